//! What Kubernetes says of the end of a worker's pod, or of its container in a pod that goes on.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest uid of a pod, in bytes: a UUID has 36.
pub const POD_UID_MAX: usize = 64;
/// Longest message of a kubelet that is kept, in bytes.
pub const POD_MESSAGE_MAX: usize = 300;

/// The end of a worker's container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodEnd {
    /// Name of the pod.
    pub pod: String,
    /// In a word: `OOMKilled`, `Error`, `Evicted`, `Deleted`, or what else Kubernetes calls it.
    pub reason: String,
    /// How the container's process ended, if that was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// What the kubelet said about it, at most [`POD_MESSAGE_MAX`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl PodEnd {
    /// The cause without names: failures with the same one are alike.
    pub fn cause(&self) -> String {
        match self.exit_code {
            Some(code) => format!("{}, exit code {code}", self.reason),
            None => self.reason.clone(),
        }
    }
}

impl fmt::Display for PodEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its pod `{}`: {}", self.pod, self.cause())?;
        match &self.message {
            Some(message) => write!(f, " ({message})"),
            None => Ok(()),
        }
    }
}

/// Whether a text may be the uid of a pod.
///
/// # Errors
/// What is wrong with it.
pub fn pod_uid(text: &str) -> Result<String, String> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if !text.is_empty() && text.len() <= POD_UID_MAX && text.bytes().all(is_legal) {
        return Ok(text.to_owned());
    }
    Err(format!("`{text}` is no uid of a pod: allowed are 1 to {POD_UID_MAX} letters, digits and `-`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_says_where_why_and_what_the_kubelet_said() {
        let reason = "OOMKilled".to_owned();
        let mut end = PodEnd { pod: "pool-1".into(), reason, exit_code: Some(137), message: None };
        assert_eq!(end.to_string(), "its pod `pool-1`: OOMKilled, exit code 137");
        (end.reason, end.exit_code) = ("Evicted".into(), None);
        end.message = Some("The node was low on resource: memory.".into());
        assert_eq!(end.to_string(), "its pod `pool-1`: Evicted (The node was low on resource: memory.)");
    }

    #[test]
    fn a_uid_is_short_and_plain() {
        assert_eq!(pod_uid("0a1b-2c").as_deref(), Ok("0a1b-2c"));
        for bad in ["", "a b", "ä", &"a".repeat(65)] {
            assert!(pod_uid(bad).is_err_and(|why| why.contains("allowed are")), "{bad}");
        }
    }
}
