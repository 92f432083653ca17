//! The built-in subscribers: whatever a person should look at, as a log line, or told to a program of the operator's.

use std::{path::PathBuf, process::Stdio};

use futures::{FutureExt, future::BoxFuture};
use serde::Serialize;
use stepfleet_protocol::id::RunId;
use tokio::{io::AsyncWriteExt, process::Command};

use super::{Notice, Refusal, Subscriber};
use crate::{
    machine::decision::{Transition, Why},
    time::rfc3339,
};

/// Bytes of what a program writes to stderr that are kept when it fails.
const STDERR_BYTES: usize = 1_000;

/// Writes a structured log line, at the level `warn`, for each step that escalates.
#[derive(Debug, Clone, Copy, Default)]
pub struct EscalationLog;

/// Runs a program for the escalations of each commit, with a line of JSON for each of them on its stdin. It is taken when the
/// program ends with code 0.
#[derive(Debug, Clone)]
pub struct EscalationCommand {
    /// The program.
    pub program: PathBuf,
}

/// A step that a person should look at.
#[derive(Debug, Serialize)]
struct Escalation<'a> {
    run: RunId,
    workflow: &'a str,
    step: &'a str,
    step_index: u32,
    attempt: u32,
    why: &'static str,
    reason: &'a str,
    at: String,
}

/// Whether a transition for this reason is something that a person should look at.
pub fn is_escalation(why: Why) -> bool {
    matches!(why, Why::GaveUp | Why::Escalated)
}

impl<'a> Escalation<'a> {
    /// Those of a notice; what the run does about them is in its history.
    fn of(notice: &'a Notice) -> impl Iterator<Item = Self> {
        let workflow = notice.workflow.as_ref().map_or("", |workflow| workflow.workflow.as_str());
        let escalation = move |t: &'a Transition| {
            let index = t.step.filter(|_| is_escalation(t.why))?;
            Some(Self {
                run: notice.run,
                workflow,
                step: notice.step_name(index).unwrap_or_default(),
                step_index: index,
                attempt: t.attempt,
                why: if t.why == Why::GaveUp { "gave_up" } else { "escalated" },
                reason: t.note.as_deref().unwrap_or_default(),
                at: rfc3339(t.at_ms),
            })
        };
        notice.transitions.iter().filter_map(escalation)
    }
}

impl Subscriber for EscalationLog {
    fn name(&self) -> &str {
        "escalation-log"
    }

    fn wants(&self, why: Why) -> bool {
        is_escalation(why)
    }

    fn deliver<'a>(&'a self, notices: &'a [Notice]) -> BoxFuture<'a, Result<(), Refusal>> {
        async move {
            for e in notices.iter().flat_map(Escalation::of) {
                let Escalation { run, workflow, step, step_index, attempt, why, reason, at } = e;
                tracing::warn!(%run, step, step_index, workflow, reason, why, attempt, at, "a step needs attention");
            }
            Ok(())
        }
        .boxed()
    }
}

impl Subscriber for EscalationCommand {
    fn name(&self) -> &str {
        "escalation-command"
    }

    fn wants(&self, why: Why) -> bool {
        is_escalation(why)
    }

    fn deliver<'a>(&'a self, notices: &'a [Notice]) -> BoxFuture<'a, Result<(), Refusal>> {
        let lines = notices.iter().flat_map(Escalation::of).filter_map(|e| serde_json::to_string(&e).ok());
        let text: String = lines.map(|line| line + "\n").collect();
        async move { if text.is_empty() { Ok(()) } else { self.run(text).await } }.boxed()
    }
}

impl EscalationCommand {
    async fn run(&self, text: String) -> Result<(), Refusal> {
        let refusal =
            |what: &str, error: std::io::Error| Refusal(format!("`{}` {what}: {error}", self.program.display()));
        // One that is given up is killed with the future.
        let mut command = Command::new(&self.program);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| refusal("could not be started", error))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read says by its code whether that is well.
            let _ = stdin.write_all(text.as_bytes()).await;
        }
        let output = child.wait_with_output().await.map_err(|error| refusal("could not be awaited", error))?;
        if output.status.success() {
            return Ok(());
        }
        let mut said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        said.truncate(said.floor_char_boundary(STDERR_BYTES));
        Err(Refusal(format!("`{}` ended with {}: {said}", self.program.display(), output.status)))
    }
}
