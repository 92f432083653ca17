//! Glob patterns as KEYS and SCAN read them: `*`, `?`, `[a-z]`, `[^a]` and `\`.

/// Whether the whole of `text` fits the pattern.
pub(super) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let Some((&first, rest)) = pattern.split_first() else { return text.is_empty() };
    match first {
        b'*' => (0..=text.len()).any(|skip| matches(rest, &text[skip..])),
        b'?' => !text.is_empty() && matches(rest, &text[1..]),
        b'[' => match text.split_first() {
            None => false,
            Some((&byte, after)) => {
                let (fits, rest) = class(rest, byte);
                fits && matches(rest, after)
            }
        },
        b'\\' if !rest.is_empty() => text.first() == Some(&rest[0]) && matches(&rest[1..], &text[1..]),
        literal => text.first() == Some(&literal) && matches(rest, &text[1..]),
    }
}

/// Whether `byte` is in the class that `pattern` continues with, and what follows the class.
fn class(pattern: &[u8], byte: u8) -> (bool, &[u8]) {
    let (negated, mut rest) = match pattern.split_first() {
        Some((b'^', rest)) => (true, rest),
        _ => (false, pattern),
    };
    let mut found = false;
    loop {
        match rest {
            [] => return (found != negated, rest),
            [b']', after @ ..] => return (found != negated, after),
            [b'\\', escaped, after @ ..] => {
                found |= *escaped == byte;
                rest = after;
            }
            [low, b'-', high, after @ ..] => {
                found |= (*low.min(high)..=*low.max(high)).contains(&byte);
                rest = after;
            }
            [single, after @ ..] => {
                found |= *single == byte;
                rest = after;
            }
        }
    }
}
