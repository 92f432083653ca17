//! The built-in subscribers: whatever a person should look at, as a log line, or told to a program of the operator's.

use std::{path::PathBuf, pin::pin, process::Stdio, time::Duration};

use futures::{
    FutureExt,
    future::{BoxFuture, Either, select},
};
use serde::Serialize;
use stepfleet_protocol::{audit::AuditEntry, id::RunId};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{ChildStderr, ChildStdin, Command},
};

use super::{FleetEvent, Notice, Refusal, Subscriber};
use crate::{
    machine::decision::{Transition, Why},
    time::rfc3339,
};

/// Bytes of what a program writes to stderr that are kept when it fails.
const STDERR_BYTES: u64 = 1_000;
/// How long is listened to what a program wrote before its end.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Writes a structured log line, at the level `warn`, for each step that escalates, and for each change of a circuit breaker or
/// of a paused queue.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<&'a str>,
}

/// Whether a transition for this reason is something that a person should look at.
pub fn is_escalation(why: Why) -> bool {
    matches!(why, Why::GaveUp | Why::Escalated)
}

impl<'a> Escalation<'a> {
    /// Those of a notice; what the run does about them is in its history.
    fn of(notice: &'a Notice) -> impl Iterator<Item = Self> {
        let workflow = notice.followed.as_ref().map_or("", |followed| followed.workflow.workflow.as_str());
        let trace = notice.followed.as_ref().and_then(|followed| followed.trace.as_deref());
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
                trace,
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
                let Escalation { run, workflow, step, step_index, attempt, why, reason, at, trace } = e;
                tracing::warn!(%run, trace, step, step_index, workflow, reason, why, attempt, at, "a step needs attention");
            }
            Ok(())
        }
        .boxed()
    }

    fn wants_of_fleet(&self, action: &str) -> bool {
        action.starts_with("breaker.") || action.starts_with("queue.")
    }

    fn deliver_of_fleet<'a>(&'a self, event: &'a FleetEvent) -> BoxFuture<'a, Result<(), Refusal>> {
        let AuditEntry { action, target, actor, reason, at_ms, .. } = &event.change;
        let reason = reason.as_deref().unwrap_or_default();
        tracing::warn!(action, target, actor, reason, at_ms, "a gate has changed");
        futures::future::ready(Ok(())).boxed()
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
        let mut command = Command::new(&self.program);
        // One that is given up is killed with the future.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| refusal("could not be started", error))?;
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
        let mut said = Vec::new();
        let status = {
            let talk = pin!(talk(stdin, text, stderr, &mut said));
            // Its end decides: something that it has started may hold the pipes for longer.
            match select(pin!(child.wait()), talk).await {
                Either::Left((status, talk)) => {
                    let _ = tokio::time::timeout(LAST_WORDS, talk).await;
                    status
                }
                Either::Right(((), wait)) => wait.await,
            }
        };
        let status = status.map_err(|error| refusal("could not be awaited", error))?;
        if status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&said);
        Err(Refusal(format!("`{}` ended with {status}: {}", self.program.display(), said.trim())))
    }
}

/// Tells a program, and hears the first of what it has to say about that; the rest goes nowhere.
async fn talk(stdin: Option<ChildStdin>, text: String, stderr: Option<ChildStderr>, said: &mut Vec<u8>) {
    let tell = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read says by its code whether that is well.
            let _ = stdin.write_all(text.as_bytes()).await;
        }
    };
    let hear = async {
        if let Some(mut stderr) = stderr {
            let _ = (&mut stderr).take(STDERR_BYTES).read_to_end(said).await;
            let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        }
    };
    futures::join!(tell, hear);
}
