//! `exec`: runs a program, without a shell.
//!
//! The program and all its children are one process group. It ends with the attempt: on a cancel or a time-out it gets
//! SIGTERM and 2 s later SIGKILL; when the attempt is given up, SIGKILL at once.

use std::{
    collections::BTreeMap,
    io,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use stepfleet_protocol::failure::Category;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

use crate::{attempt::Attempt, classify::Exit, failure::Failure};

/// Bytes that are kept of each output unless the input says otherwise.
const OUTPUT_LIMIT: usize = 256 << 10;
/// Bytes that an input may ask to keep.
const OUTPUT_LIMIT_MAX: usize = 1 << 20;
/// Bytes of the error output that go with a failure.
const TAIL: usize = 2 << 10;
/// Time between SIGTERM and SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(2);
/// How long the outputs may stay open once the program has ended: a child of it may hold them.
const PIPE_GRACE: Duration = Duration::from_millis(500);
/// What a program gets of the worker's environment unless the input says otherwise.
const INHERITED: &str = "PATH";

/// Input of `exec`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Exec {
    /// The program and its arguments.
    command: Vec<String>,
    /// What the program reads: a text as it is, anything else as JSON.
    #[serde(default)]
    stdin: Option<Json>,
    /// The folder it runs in.
    #[serde(default)]
    cwd: Option<String>,
    /// Its environment.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// What it gets of the worker's environment.
    #[serde(default)]
    inherit_env: Option<Vec<String>>,
    /// Bytes that are kept of each output.
    #[serde(default)]
    output_limit: Option<usize>,
    /// What becomes of the output.
    #[serde(default)]
    output: Form,
    /// Categories of exit codes.
    #[serde(default)]
    exit_codes: BTreeMap<String, Category>,
}

/// What becomes of the output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Form {
    /// Kept as text.
    #[default]
    Text,
    /// Read as JSON.
    Json,
    /// Thrown away.
    None,
}

/// Output of `exec`.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    exit_code: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout: Option<Json>,
    stderr: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

/// What was kept of one output.
#[derive(Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    truncated: bool,
}

/// Runs the program to its end.
pub(super) async fn exec(attempt: Attempt, input: Exec) -> Result<Done, Failure> {
    let limit = input.output_limit.unwrap_or(OUTPUT_LIMIT);
    if limit > OUTPUT_LIMIT_MAX {
        let message = format!("output_limit is {limit}; allowed: at most {OUTPUT_LIMIT_MAX}");
        return Err(Failure::data(message).code("bad_input"));
    }
    let mut child = command_of(&attempt, &input)?.spawn().map_err(|error| not_started(&input, &error))?;
    let group = Group::of(&child);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let fed = text_of(input.stdin.as_ref()).into_bytes();
    let feeding = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read its input to the end is none of our business: its exit code counts.
            let _unread = stdin.write_all(&fed).await;
        }
    };
    let (mut out, mut err) = (Kept::default(), Kept::default());
    let talk = async {
        let ended = async {
            tokio::join!(feeding, keep(stdout, limit, &mut out), keep(stderr, limit, &mut err));
        };
        tokio::pin!(ended);
        let status = tokio::select! {
            status = child.wait() => status,
            () = &mut ended => return child.wait().await,
        };
        let _held_open_by_a_child = tokio::time::timeout(PIPE_GRACE, ended).await;
        status
    };
    let status = tokio::select! {
        status = talk => status?,
        () = attempt.cancelled() => {
            group.end(&mut child).await;
            return Err(Failure::transient("the program was stopped").code("stopped"));
        }
    };
    drop(group);
    let stderr = String::from_utf8_lossy(&err.bytes).into_owned();
    if !status.success() {
        return Err(failed(&input, status, &stderr));
    }
    let truncated = out.truncated || err.truncated;
    Ok(Done { exit_code: 0, stdout: stdout_of(input.output, out)?, stderr, truncated })
}

fn command_of(attempt: &Attempt, input: &Exec) -> Result<Command, Failure> {
    let Some((program, arguments)) = input.command.split_first() else {
        return Err(Failure::data("command is empty; allowed: a program and its arguments").code("bad_input"));
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().process_group(0).kill_on_drop(true);
    match &input.inherit_env {
        Some(names) => inherit(&mut command, names.iter().map(String::as_str)),
        None => inherit(&mut command, [INHERITED].into_iter()),
    }
    command.env("STEPFLEET_RUN", attempt.run().to_string());
    command.env("STEPFLEET_STEP", attempt.step());
    command.env("STEPFLEET_ATTEMPT", attempt.attempt().to_string());
    command.env("STEPFLEET_IDEMPOTENCY_KEY", attempt.idempotency_key());
    if let Some(traceparent) = attempt.traceparent() {
        command.env("TRACEPARENT", traceparent);
    }
    command.envs(&input.env);
    if let Some(cwd) = &input.cwd {
        command.current_dir(cwd);
    }
    command.stdin(if input.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(if input.output == Form::None { Stdio::null() } else { Stdio::piped() });
    command.stderr(Stdio::piped());
    Ok(command)
}

fn inherit<'a>(command: &mut Command, names: impl Iterator<Item = &'a str>) {
    for name in names {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
}

fn text_of(stdin: Option<&Json>) -> String {
    match stdin {
        None => String::new(),
        Some(Json::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}

/// Reads to the end; keeps the first bytes, so that a program that talks too much is not held up.
async fn keep(pipe: Option<impl AsyncRead + Unpin>, limit: usize, kept: &mut Kept) {
    let Some(mut pipe) = pipe else { return };
    let mut part = vec![0; 16 << 10];
    while let Ok(count) = pipe.read(&mut part).await {
        if count == 0 {
            return;
        }
        let room = limit - kept.bytes.len();
        kept.bytes.extend_from_slice(&part[..count.min(room)]);
        kept.truncated |= count > room;
    }
}

fn stdout_of(form: Form, out: Kept) -> Result<Option<Json>, Failure> {
    match form {
        Form::None => Ok(None),
        Form::Text => Ok(Some(Json::String(String::from_utf8_lossy(&out.bytes).into_owned()))),
        Form::Json if out.truncated => {
            let message = format!("the output is longer than output_limit, {} bytes", out.bytes.len());
            Err(Failure::permanent(message).code("output_too_large"))
        }
        Form::Json => match serde_json::from_slice(&out.bytes) {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                let head = String::from_utf8_lossy(&out.bytes[..out.bytes.len().min(TAIL)]).into_owned();
                Err(Failure::permanent(format!("the output is no JSON: {error}")).code("bad_output").detail(head))
            }
        },
    }
}

fn not_started(input: &Exec, error: &io::Error) -> Failure {
    let message = format!("`{}` could not be started: {error}", input.command.first().map_or("", String::as_str));
    match error.kind() {
        io::ErrorKind::NotFound => Failure::permanent(message).code("not_found"),
        io::ErrorKind::PermissionDenied => Failure::permanent(message).code("not_permitted"),
        _ => Failure::system(message).code("not_started"),
    }
}

fn failed(input: &Exec, status: ExitStatus, stderr: &str) -> Failure {
    let tail = tail_of(stderr);
    let Some(code) = status.code() else {
        let signal = status.signal().unwrap_or_default();
        return Failure::of_exit(Exit::Signal(signal), format!("the program was ended by signal {signal}"))
            .code(format!("signal_{signal}"))
            .detail(tail);
    };
    let message = format!("the program ended with exit code {code}");
    let failure = match input.exit_codes.get(&code.to_string()) {
        Some(category) => Failure::new(*category, message),
        None => Failure::of_exit(Exit::Code(code), message),
    };
    failure.code(format!("exit_{code}")).detail(tail)
}

fn tail_of(text: &str) -> &str {
    let mut start = text.len().saturating_sub(TAIL);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// The process group of a program. Dropped, it is killed: nothing of it outlives the attempt.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // A group that is gone is what we want.
            let _gone = killpg(group, signal);
        }
    }

    /// SIGTERM, a moment, SIGKILL.
    async fn end(self, child: &mut Child) {
        self.signal(Signal::SIGTERM);
        if tokio::time::timeout(TERM_GRACE, child.wait()).await.is_err() {
            self.signal(Signal::SIGKILL);
            let _reaped = child.wait().await;
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}
