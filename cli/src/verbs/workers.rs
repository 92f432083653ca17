//! `workers`: the fleet, one worker, its health, and draining.

use clap::{Args, Subcommand};
use stepfleet_coordinator::http::view::{Draining, FleetHealth, FleetStats, Level, WorkerView};

use super::{Paging, Session, queues};
use crate::failure::{Exit, Failure};
use crate::out::{Ink, plain};
use crate::table::{Rows, Word, pairs};
use crate::time::{ago, now_ms, span};

/// `workers …`
#[derive(Debug, Subcommand)]
pub(crate) enum Workers {
    /// List the workers.
    #[command(after_help = "\
Examples:
  stepfleet workers list
  stepfleet workers list --output json | jq '.items[] | select(.state == \"silent\")'")]
    List(Paging),
    /// Show a worker and the jobs it holds.
    #[command(after_help = "\
Examples:
  stepfleet workers show alpha@0198c2f46f5c")]
    Show(WorkerArg),
    /// How the fleet does, queue by queue; exit code 1 if it is critical.
    #[command(after_help = "\
Examples:
  stepfleet workers health
  stepfleet workers health --quiet > /dev/null || alert")]
    Health,
    /// What the fleet has and does: slots, how many are busy, runs of the last hour.
    #[command(after_help = "\
Examples:
  stepfleet workers stats")]
    Stats,
    /// Let a worker finish what it has and leave.
    #[command(after_help = "\
Examples:
  stepfleet workers drain alpha@0198c2f46f5c
  stepfleet workers drain alpha@0198c2f46f5c --yes")]
    Drain(DrainArgs),
}

/// One worker.
#[derive(Debug, Args)]
pub(crate) struct WorkerArg {
    /// The id of the worker, as `NAME@BOOT`.
    #[arg(value_name = "WORKER")]
    id: String,
}

/// `workers drain`
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    worker: WorkerArg,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

/// Runs a verb of `workers`.
///
/// # Errors
/// Whatever kept it from its answer.
pub(crate) async fn run(verb: Workers, session: &Session<'_>) -> Result<Exit, Failure> {
    match verb {
        Workers::List(paging) => list(&paging, session).await,
        Workers::Show(worker) => show(&worker.id, session).await,
        Workers::Health => health(session).await,
        Workers::Stats => stats(session).await,
        Workers::Drain(args) => drain(&args, session).await,
    }
}

/// The word of a level, and its ink.
pub(super) fn level(level: Level) -> (&'static str, Ink) {
    match level {
        Level::Healthy => ("healthy", Ink::Good),
        Level::Warning => ("warning", Ink::Warn),
        Level::Critical => ("critical", Ink::Bad),
    }
}

fn state_ink(state: &str) -> Ink {
    match state {
        "running" => Ink::Good,
        "silent" => Ink::Bad,
        _ => Ink::Warn,
    }
}

async fn list(paging: &Paging, session: &Session<'_>) -> Result<Exit, Failure> {
    let out = session.out;
    let call = || session.api.get(&["workers"]);
    let Some(page) = session.list::<WorkerView>(call, paging).await? else { return Ok(Exit::Done) };
    let mut rows = Rows::new(out, &["WORKER", "STATE", "BUSY", "HOST", "VERSION", "SINCE", "QUEUES"]);
    let now = now_ms();
    for worker in &page.items {
        rows.row(vec![
            worker.id.as_str().into(),
            Word::new(&worker.state, state_ink(&worker.state)),
            format!("{}/{}", worker.running, worker.slots).into(),
            worker.host.as_str().into(),
            worker.version.as_str().into(),
            ago(&worker.registered_at, now).into(),
            worker.queues.join(", ").into(),
        ]);
    }
    if rows.is_empty() {
        out.say("no workers");
        out.hint("start one with `stepfleet worker --redis URL`");
    } else {
        rows.print(out)?;
    }
    session.more(page.next.as_deref());
    Ok(Exit::Done)
}

async fn show(id: &str, session: &Session<'_>) -> Result<Exit, Failure> {
    let out = session.out;
    let answer = session.api.get(&["workers", id]).send().await?;
    if out.is_json() {
        out.line(answer.text.trim_end())?;
        return Ok(Exit::Done);
    }
    let worker: WorkerView = answer.read()?;
    pairs(
        out,
        &[
            ("worker", plain(&worker.id)),
            ("state", out.ink(&plain(&worker.state), state_ink(&worker.state))),
            ("busy", format!("{} of {} slots", worker.running, worker.slots)),
            ("queues", plain(&worker.queues.join(", "))),
            ("handlers", plain(&worker.handlers.join(", "))),
            ("host", plain(&format!("{} (process {})", worker.host, worker.pid))),
            ("version", plain(&worker.version)),
            ("since", format!("{} ({})", ago(&worker.registered_at, now_ms()), worker.registered_at)),
            ("beats", worker.beats.to_string()),
            ("last read", format!("{} before its last beat", span(worker.read_age_ms))),
        ],
    )?;
    if worker.held.is_empty() {
        return Ok(Exit::Done);
    }
    let mut rows = Rows::new(out, &["JOB", "QUEUE", "PARTITION", "RUNS FOR", "PROGRESS"]);
    for job in &worker.held {
        rows.row(vec![
            job.job.as_str().into(),
            job.queue.as_str().into(),
            job.partition.to_string().into(),
            job.running_ms.map_or_else(|| "not begun".to_owned(), span).into(),
            job.progress.map(|percent| format!("{percent} %")).unwrap_or_default().into(),
        ]);
    }
    out.line("")?;
    rows.print(out)?;
    Ok(Exit::Done)
}

async fn health(session: &Session<'_>) -> Result<Exit, Failure> {
    let out = session.out;
    let answer = session.api.get(&["workers", "health"]).send().await?;
    let health: FleetHealth = answer.read()?;
    let exit = if health.level == Level::Critical { Exit::Failed } else { Exit::Done };
    if out.is_json() {
        out.line(answer.text.trim_end())?;
        return Ok(exit);
    }
    let (word, ink) = level(health.level);
    let FleetHealth { workers_live: live, workers_draining: draining, workers_silent: silent, .. } = health;
    out.line(&format!("{}: {live} workers live, {draining} draining, {silent} silent", out.ink(word, ink)))?;
    health.reasons.iter().try_for_each(|reason| out.line(&format!("  {}", plain(reason))))?;
    if !health.queues.is_empty() {
        out.line("")?;
        queues::table(&health.queues, out)?;
    }
    Ok(exit)
}

async fn stats(session: &Session<'_>) -> Result<Exit, Failure> {
    let out = session.out;
    let answer = session.api.get(&["workers", "stats"]).send().await?;
    if out.is_json() {
        out.line(answer.text.trim_end())?;
        return Ok(Exit::Done);
    }
    let stats: FleetStats = answer.read()?;
    let runs = &stats.runs;
    pairs(
        out,
        &[
            ("workers", stats.workers.to_string()),
            ("busy", format!("{} of {} slots ({:.0} %)", stats.running, stats.slots, stats.utilisation_percent)),
            ("runs active", runs.active.to_string()),
            ("suspended", runs.suspended.to_string()),
            ("ended in the last hour", format!("{} ({:.1} % failed)", runs.finished, runs.error_rate_percent)),
            ("dead letters", runs.dead_letters.to_string()),
        ],
    )?;
    if stats.queues.is_empty() {
        return Ok(Exit::Done);
    }
    let mut rows = Rows::new(out, &["QUEUE", "WORKERS", "SLOTS", "RUNNING", "WAITING"]);
    for (name, queue) in &stats.queues {
        rows.row(vec![
            name.as_str().into(),
            queue.workers.to_string().into(),
            queue.slots.to_string().into(),
            queue.running.to_string().into(),
            queue.depth.to_string().into(),
        ]);
    }
    out.line("")?;
    rows.print(out)?;
    Ok(Exit::Done)
}

async fn drain(args: &DrainArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let (out, id) = (session.out, &args.worker.id);
    out.confirm(&format!("drain worker `{id}`? it finishes what it has and leaves"), args.yes)?;
    let answer = session.api.post(&["workers", id, "drain"]).send().await?;
    if out.is_json() {
        out.line(answer.text.trim_end())?;
        return Ok(Exit::Done);
    }
    let draining: Draining = answer.read()?;
    out.line(&format!("{} draining", plain(&draining.id)))?;
    if draining.heard == 0 {
        out.warn("the worker did not hear it at once; it will with its next beat, if it lives");
    }
    out.hint(&format!("watch it leave with `stepfleet workers show {id}`"));
    Ok(Exit::Done)
}
