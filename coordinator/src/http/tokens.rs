//! API tokens: who asks, and what that one may do. The file is read again when it changes; what cannot be read changes nothing.

use std::{
    fmt,
    io::Read,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use stepfleet_protocol::name::Name;
use tokio::time::MissedTickBehavior;

use crate::workflow::{Report, check_tokens};
pub use crate::workflow::{Role, TokenEntry};

/// Characters of a token, at least: what is shorter may be guessed, and is nobody's.
pub const TOKEN_CHARS_MIN: usize = 20;
/// Characters of a token, at most.
pub const TOKEN_CHARS_MAX: usize = 512;
/// Bytes of the file, at most.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Time between two looks at the file.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Why a file of tokens cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokensError {
    /// It cannot be read.
    #[error("`{}` cannot be read: {why}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// It says what is not allowed.
    #[error(transparent)]
    Wrong(#[from] Report),
}

impl TokensError {
    /// Each problem for itself.
    pub fn problems(&self) -> Vec<String> {
        match self {
            Self::Unreadable { .. } => vec![self.to_string()],
            Self::Wrong(report) => {
                let omitted = (report.omitted > 0).then(|| format!("and {} more", report.omitted));
                report.problems.iter().map(ToString::to_string).chain(omitted).collect()
            }
        }
    }
}

/// The SHA-256 of a token.
pub fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// The tokens of a file. Clones are the same ones.
#[derive(Clone)]
pub struct Tokens {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    /// What stood in the file at first.
    first: String,
    known: RwLock<Arc<[TokenEntry]>>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({}, {})", self.shared.path.display(), self.known().len())
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) name: Name,
    pub(super) role: Role,
}

/// Why nobody knows who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stranger {
    /// There is no bearer token in the request.
    Missing,
    /// It is nobody's.
    Unknown,
}

impl Tokens {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, or everything that is wrong with it.
    pub fn open(path: &Path) -> Result<Self, TokensError> {
        let unreadable = |why| TokensError::Unreadable { path: path.to_owned(), why };
        let first = text_of(path).map_err(unreadable)?;
        let known = RwLock::new(check_tokens(&first)?.into());
        Ok(Self { shared: Arc::new(Shared { path: path.to_owned(), first, known }) })
    }

    /// Every token that counts now.
    pub fn known(&self) -> Arc<[TokenEntry]> {
        self.shared.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The holder of the token in the request.
    pub(super) fn caller(&self, headers: &HeaderMap) -> Result<Caller, Stranger> {
        let token = bearer(headers).ok_or(Stranger::Missing)?;
        if !(TOKEN_CHARS_MIN..=TOKEN_CHARS_MAX).contains(&token.len()) {
            return Err(Stranger::Unknown);
        }
        let digest = digest(token);
        let known = self.known();
        // All are looked at, so that the time tells nothing of which one it is, or how nearly.
        let found =
            known.iter().fold(None, |found, entry| if is_same(&entry.sha256, &digest) { Some(entry) } else { found });
        let entry = found.ok_or(Stranger::Unknown)?;
        Ok(Caller { name: entry.name.clone(), role: entry.role })
    }

    /// Reads the file again and again. Never ends.
    pub(super) async fn follow(&self) {
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = Ok(self.shared.first.clone());
        loop {
            every.tick().await;
            let path = self.shared.path.clone();
            let read = tokio::task::spawn_blocking(move || text_of(&path)).await;
            self.look(read.unwrap_or_else(|error| Err(error.to_string())), &mut seen);
        }
    }

    /// Takes what was read if it is new and right. What is wrong is told once.
    fn look(&self, read: Result<String, String>, seen: &mut Result<String, String>) {
        if read == *seen {
            return;
        }
        let file = self.shared.path.display();
        match &read {
            Err(why) => tracing::error!(%file, %why, "the tokens cannot be read; those of before count"),
            Ok(text) => match check_tokens(text) {
                Err(report) => {
                    tracing::error!(%file, problems = %report, "the tokens are wrong; those of before count");
                }
                Ok(entries) => {
                    tracing::info!(%file, tokens = entries.len(), "the tokens were read again");
                    *self.shared.known.write().unwrap_or_else(PoisonError::into_inner) = entries.into();
                }
            },
        }
        *seen = read;
    }
}

/// Follows the file, if there is one. Never ends.
pub(super) async fn follow(tokens: Option<Tokens>) {
    match tokens {
        Some(tokens) => tokens.follow().await,
        None => std::future::pending().await,
    }
}

fn text_of(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let size = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if size as u64 > FILE_BYTES_MAX { Err(format!("it is larger than {FILE_BYTES_MAX} bytes")) } else { Ok(text) }
}

/// The token of `Authorization: Bearer <token>`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

/// Compares without stopping at the first difference.
fn is_same(one: &[u8; 32], other: &[u8; 32]) -> bool {
    let difference = one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: &str = "the-token-of-ann-0123456789";
    const BOB: &str = "the-token-of-bob-0123456789";

    fn line(name: &str, role: &str, token: &str) -> String {
        let hex: String = digest(token).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("  - {{ name: {name}, role: {role}, sha256: \"{hex}\" }}\n")
    }

    fn file(lines: &[String]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokens.yaml");
        std::fs::write(&path, format!("tokens:\n{}", lines.concat())).expect("written");
        (folder, path)
    }

    fn ask(tokens: &Tokens, value: &str) -> Result<(String, Role), Stranger> {
        let mut headers = HeaderMap::new();
        if !value.is_empty() {
            headers.insert(header::AUTHORIZATION, value.parse().expect("a legal header"));
        }
        tokens.caller(&headers).map(|caller| (caller.name.to_string(), caller.role))
    }

    #[test]
    fn a_caller_is_known_by_the_token() {
        let (_folder, path) = file(&[line("ann", "viewer", ANN), line("bob", "admin", BOB)]);
        let tokens = Tokens::open(&path).expect("a good file");
        assert_eq!(ask(&tokens, &format!("Bearer {ANN}")), Ok(("ann".into(), Role::Viewer)));
        assert_eq!(ask(&tokens, &format!("bearer  {BOB} ")), Ok(("bob".into(), Role::Admin)));
        for (value, why) in [
            ("", Stranger::Missing),
            (BOB, Stranger::Missing),
            ("Bearer ", Stranger::Missing),
            ("Basic YW5uOnNlY3JldA==", Stranger::Missing),
            ("Bearer the-token-of-nobody-0123", Stranger::Unknown),
            ("Bearer the-token-of-ann-012345678", Stranger::Unknown),
        ] {
            assert_eq!(ask(&tokens, value), Err(why), "{value}");
        }
        let shown = format!("{tokens:?}");
        assert!(shown.ends_with("tokens.yaml, 2)"), "no hash in a log: {shown}");
    }

    #[test]
    fn a_token_that_is_too_short_is_nobodys() {
        let (_folder, path) = file(&[line("ann", "admin", "secret")]);
        assert_eq!(ask(&Tokens::open(&path).expect("a good file"), "Bearer secret"), Err(Stranger::Unknown));
    }

    #[test]
    fn a_changed_file_counts_and_a_bad_one_does_not() {
        let (_folder, path) = file(&[line("ann", "viewer", ANN)]);
        let tokens = Tokens::open(&path).expect("a good file");
        let mut seen = Ok(tokens.shared.first.clone());
        let (ann, bob) = (format!("Bearer {ANN}"), format!("Bearer {BOB}"));
        for bad in [Err("gone".to_owned()), Ok("tokens: []".to_owned()), Ok(String::new())] {
            tokens.look(bad.clone(), &mut seen);
            assert!(ask(&tokens, &ann).is_ok(), "{bad:?}");
        }
        tokens.look(Ok(format!("tokens:\n{}", line("bob", "operator", BOB))), &mut seen);
        assert_eq!(
            (ask(&tokens, &ann), ask(&tokens, &bob).map(|(_, role)| role)),
            (Err(Stranger::Unknown), Ok(Role::Operator))
        );
    }

    #[test]
    fn every_problem_of_a_file_is_named() {
        let (_folder, path) = file(&["  - { name: a b, role: root, sha256: 12 }\n".to_owned()]);
        let error = Tokens::open(&path).expect_err("three problems");
        assert_eq!(error.problems().len(), 3, "{error}");
        let gone = Tokens::open(Path::new("no/such/file")).expect_err("no file");
        assert!(gone.problems()[0].starts_with("`no/such/file` cannot be read: "), "{gone}");
    }
}
