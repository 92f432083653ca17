//! Where figures come from: without that they say nothing.

use std::process::{Command, Stdio};

use serde::Serialize;

use super::args::AppendOnly;

/// What was measured, on what, when.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Origin {
    /// The program's version.
    version: &'static str,
    /// The commit of the folder in which it ran, with a `+` if something was changed; `unknown` outside a repository.
    commit: String,
    /// Processor and number of cores.
    machine: String,
    /// Name, version and allocator of the server.
    pub(super) server: String,
    /// The server's append-only file.
    append_only: &'static str,
    /// When, in UTC.
    date: String,
}

impl Origin {
    /// Here and now, on this server.
    pub(super) fn here(server: String, append_only: AppendOnly) -> Self {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: commit().unwrap_or_else(|| "unknown".to_owned()),
            machine: format!("{cores} cores, {}", processor().unwrap_or_else(|| "unknown".to_owned())),
            server,
            append_only: append_only.word(),
            date: stepfleet_coordinator::time::rfc3339(crate::time::now_ms()),
        }
    }
}

fn git(words: &[&str]) -> Option<String> {
    let output = Command::new("git").args(words).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn commit() -> Option<String> {
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let is_changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| !changes.is_empty());
    Some(if is_changed { format!("{commit}+") } else { commit })
}

fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, name)| name.trim().to_owned())
}
