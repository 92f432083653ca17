//! Failures: what went wrong, in categories that pick the policy.

use serde::{Deserialize, Serialize};

use crate::{limits::ERROR_TEXT_BYTES_MAX, value::Payload};

/// What kind of trouble a failure is. The category picks the retry policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Category {
    /// Network, temporary unavailability, 5xx.
    Transient = 0,
    /// 429, quota. The server's retry-after is obeyed.
    RateLimited = 1,
    /// The attempt ran past its limit.
    Timeout = 2,
    /// Out of memory, database lost, disk full.
    System = 3,
    /// The worker died with it.
    WorkerLost = 4,
    /// Invalid or missing input: held for a person.
    Data = 5,
    /// 4xx, auth, business refusal: no retry.
    Permanent = 6,
}

impl Category {
    /// Every category, in the order of the packed form.
    pub const ALL: [Self; 7] = [
        Self::Transient,
        Self::RateLimited,
        Self::Timeout,
        Self::System,
        Self::WorkerLost,
        Self::Data,
        Self::Permanent,
    ];

    /// From the packed form.
    pub fn from_u8(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }

    /// The name, as in JSON and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::RateLimited => "rate_limited",
            Self::Timeout => "timeout",
            Self::System => "system",
            Self::WorkerLost => "worker_lost",
            Self::Data => "data",
            Self::Permanent => "permanent",
        }
    }
}

impl std::fmt::Display for Category {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What went wrong with one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The category.
    pub category: Category,
    /// A stable word for this failure, chosen by the handler: `card_declined`, `exit_3`, `http_503`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// One sentence for people. At most [`ERROR_TEXT_BYTES_MAX`] bytes.
    pub message: String,
    /// The chain of causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// The wait that the other side asked for, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// The handler's own verdict, which goes before the category's: no more tries, or another one while the budget lasts.
    /// Without it the category decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retryable: Option<bool>,
    /// Anything more that the handler wants kept: a body, the last lines of output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Payload>,
    /// The program that the attempt ran in; none from older workers, and where no worker was at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Box<Origin>>,
}

/// The program that an attempt ran in. Only failures carry it: some 35 bytes each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The worker program's version.
    pub version: String,
    /// Its host's name.
    #[serde(default)]
    pub host: String,
}

impl Failure {
    /// A failure of `category` with a message, which is cut to its limit.
    pub fn new(category: Category, message: impl Into<String>) -> Self {
        let message = cut(message.into(), ERROR_TEXT_BYTES_MAX);
        Self {
            category,
            code: None,
            message,
            causes: Vec::new(),
            retry_after_ms: None,
            retryable: None,
            detail: None,
            origin: None,
        }
    }

    /// With a code.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }
}

/// Cuts `text` to at most `bytes` bytes at a character boundary.
pub fn cut(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        let mut end = bytes;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}
