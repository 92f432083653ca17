//! How a command ends: the exit code, and what is said when it is not 0.

use std::process::ExitCode;

/// The exit codes, as promised in the help and in `docs/cli.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// Failed, or the answer is no: a run that was waited for failed, a definition has problems.
    Failed = 1,
    /// Wrong use or settings.
    Usage = 2,
    /// What was asked for does not exist.
    NotFound = 3,
    /// The present state, or another request with the same idempotency key, does not allow it.
    Conflict = 4,
    /// The API, or the server, cannot be reached or cannot serve now.
    Unreachable = 5,
    /// Not allowed.
    NotAllowed = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked to. Shown once, by `main`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    exit: Exit,
    /// One sentence: lower case, no full stop, values in backticks.
    pub(crate) text: String,
    /// Single problems, a line each.
    pub(crate) problems: Vec<String>,
    /// What to do about it.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// With this exit code.
    pub(crate) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into(), problems: Vec::new(), hint: None }
    }

    /// Exit code 1.
    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self::new(Exit::Failed, text)
    }

    /// Exit code 2.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(Exit::Usage, text)
    }

    /// The reader of our stdout has gone, as in `stepfleet runs list | head`: nothing to say, nothing went wrong.
    pub(crate) fn reader_left() -> Self {
        Self::new(Exit::Done, "")
    }

    /// With a line `hint: …`.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With single problems under the sentence.
    pub(crate) fn problems(mut self, problems: Vec<String>) -> Self {
        self.problems = problems;
        self
    }

    /// The exit code.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }
}
