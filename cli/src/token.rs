//! The token with which the command line asks the API. It is never an argument, which other users of the host could read.

use std::path::Path;

use reqwest::header::HeaderValue;
use stepfleet_coordinator::http::tokens::TOKEN_CHARS_MAX;

use crate::failure::Failure;

const VARIABLE: &str = "STEPFLEET_TOKEN";

/// The header `Authorization`: of the token in this file, else of `STEPFLEET_TOKEN`; none if nobody gave one.
///
/// # Errors
/// The file cannot be read, or what was given is no token.
pub(crate) fn authorization(file: Option<&Path>) -> Result<Option<HeaderValue>, Failure> {
    match file {
        Some(path) => {
            let named = format!("the token file `{}`", path.display());
            let text = std::fs::read_to_string(path)
                .map_err(|error| Failure::usage(format!("{named} cannot be read: {error}")))?;
            header(&text, &named).map(Some)
        }
        None => match std::env::var(VARIABLE) {
            Ok(text) if !text.trim().is_empty() => header(&text, VARIABLE).map(Some),
            Ok(_) | Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err(no_token(VARIABLE)),
        },
    }
}

fn header(text: &str, named: &str) -> Result<HeaderValue, Failure> {
    let token = text.trim();
    let is_token = (1..=TOKEN_CHARS_MAX).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic());
    let value = is_token.then(|| HeaderValue::from_str(&format!("Bearer {token}")).ok()).flatten();
    let mut value = value.ok_or_else(|| no_token(named))?;
    value.set_sensitive(true);
    Ok(value)
}

fn no_token(named: &str) -> Failure {
    Failure::usage(format!("{named} holds no token; allowed are up to {TOKEN_CHARS_MAX} visible ASCII characters"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_sent_without_the_blanks_around_it_and_not_shown() {
        let value = header(" sf_0123\n", "x").expect("a token");
        assert_eq!(value.to_str().expect("ASCII"), "Bearer sf_0123");
        assert!(!format!("{value:?}").contains("0123"), "{value:?}");
    }

    #[test]
    fn what_is_no_token_is_refused_without_being_shown() {
        for text in ["", "two words", "zeile\nzwei", "schlüssel", &"x".repeat(TOKEN_CHARS_MAX + 1)] {
            let failure = header(text, "the token file `t`").expect_err("no token");
            assert!(failure.text.starts_with("the token file `t` holds no token"), "{}", failure.text);
            assert!(text.is_empty() || !failure.text.contains(text), "{}", failure.text);
        }
    }
}
