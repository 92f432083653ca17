//! The work of a test: one workflow, what its runs are told to do, and the worker that does it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rand::{Rng, RngExt};
use serde::Deserialize;
use serde_json::{Value, json};
use stepfleet_worker::{Attempt, Failure, Worker};

use crate::chaos::effects::{Effect, Pen, Phase, now_ns};

/// The name of the workflow.
pub const WORKFLOW: &str = "chaos";
/// What a step needs: a dependant that begins shows that a commit has happened since its needs were done.
pub const NEEDS: [(&str, &[&str]); 4] = [("a", &[]), ("b", &["a"]), ("c", &["a"]), ("d", &["b", "c"])];

/// A diamond whose step `b` may take long and may fail.
#[must_use]
pub fn workflow() -> Value {
    let mut steps = json!({});
    for (name, needs) in NEEDS {
        let with = match name {
            "b" => json!({ "ms": "${{ input.slow }}", "fail": "${{ input.fail }}", "broken": "${{ input.broken }}" }),
            _ => json!({ "ms": "${{ input.quick }}" }),
        };
        let retry = json!({ "max_attempts": 4, "backoff": { "base": "200ms", "cap": "1s" } });
        steps[name] = json!({ "handler": "mark", "needs": needs, "with": with, "retry": retry });
    }
    json!({ "workflow": WORKFLOW, "steps": steps })
}

/// What is wished of a run beside its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    None,
    /// It is cancelled after a moment.
    Cancel {
        /// Milliseconds after the submit.
        after_ms: u64,
    },
    /// Its step gives up; then the run is retried.
    Retry,
    /// Its step gives up; then the dead letter is replayed.
    Replay,
    /// Its step gives up; then the run goes back to its first step.
    RetryFrom,
}

/// Draws the input of a run, and what is wished of it.
pub fn draw(random: &mut impl Rng, key: &str) -> (Value, Wish) {
    let slow = match random.random_range(0..100) {
        0..84 => random.random_range(5..30),
        84..96 => random.random_range(500..1_500),
        _ => random.random_range(2_000..4_000),
    };
    let wish = match random.random_range(0..100) {
        0..5 => Wish::Cancel { after_ms: random.random_range(0..400) },
        5..7 => Wish::Retry,
        7..9 => Wish::Replay,
        9..10 => Wish::RetryFrom,
        _ => Wish::None,
    };
    let fail = u32::from(random.random_range(0..100) < 6);
    let broken = u32::from(matches!(wish, Wish::Retry | Wish::Replay | Wish::RetryFrom));
    let quick = random.random_range(2..20);
    (json!({ "key": key, "quick": quick, "slow": slow, "fail": fail * (1 - broken), "broken": broken }), wish)
}

/// What `mark` is given.
#[derive(Debug, Deserialize)]
struct Mark {
    ms: u64,
    /// Tries that fail and are tried again.
    #[serde(default)]
    fail: u32,
    /// Tries that fail for good; only in the first generation.
    #[serde(default)]
    broken: u32,
}

/// How a worker process is started.
#[derive(Debug)]
pub struct WorkerArgs {
    /// Where Redis is.
    pub redis: String,
    /// Its name.
    pub name: String,
    /// Where it writes what it does.
    pub effects: PathBuf,
}

/// Jobs of one worker at once.
const SLOTS: usize = 6;
/// After SIGTERM what takes longer than this goes to others, so that the hand-over is seen.
const DRAIN: Duration = Duration::from_millis(200);

/// Runs a worker until SIGTERM. Its handler `mark` writes down that it began, waits, and fails or writes down that it
/// is done.
///
/// # Errors
/// It cannot begin.
pub async fn run_worker(args: WorkerArgs) -> anyhow::Result<()> {
    let pen = Arc::new(Pen::open(&args.effects)?);
    let name = Arc::<str>::from(args.name.as_str());
    let builder = Worker::builder().redis(&args.redis).name(&args.name).concurrency(SLOTS).drain_timeout(DRAIN);
    let builder = builder.handler("mark", move |attempt: Attempt, input: Mark| {
        let (pen, name) = (pen.clone(), name.clone());
        async move { mark(&pen, &name, &attempt, &input).await }
    });
    builder.run().await.context("the worker ended")
}

async fn mark(pen: &Pen, name: &str, attempt: &Attempt, input: &Mark) -> Result<u32, Failure> {
    let key = attempt.idempotency_key();
    let generation = key.rsplit('/').next().and_then(|number| number.parse().ok()).unwrap_or(0);
    let effect = |phase| Effect {
        at_ns: now_ns(),
        phase,
        run: attempt.run().to_string(),
        step: attempt.step().to_owned(),
        generation,
        attempt: attempt.attempt(),
        job: attempt.job().to_string(),
        worker: name.to_owned(),
    };
    let write = |phase| pen.write(&effect(phase)).map_err(|error| Failure::system(format!("{error:#}")));
    write(Phase::Begun)?;
    tokio::select! {
        () = tokio::time::sleep(Duration::from_millis(input.ms)) => {}
        () = attempt.cancelled() => return Err(Failure::transient("stopped")),
    }
    if attempt.attempt() <= input.broken && generation <= 1 {
        write(Phase::Failed)?;
        return Err(Failure::permanent("broken, as the input says"));
    }
    if attempt.attempt() <= input.fail {
        write(Phase::Failed)?;
        return Err(Failure::transient("not yet, as the input says"));
    }
    write(Phase::Done)?;
    Ok(attempt.attempt())
}
