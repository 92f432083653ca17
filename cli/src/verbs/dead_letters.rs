//! `dead-letters`: look at the steps that gave up, and replay them.

pub(super) mod filter;
mod groups;
pub(super) mod patch;

use clap::{Args, Subcommand};
use stepfleet_coordinator::http::view::{LetterView, Page, ReplayRequest, Replayed};

use self::filter::Filter;
use super::campaigns::{self, Caution, Many};
use super::runs::{error_text, shortened, worker_name};
use super::{Paging, Session};
use crate::failure::{Exit, Failure};
use crate::input;
use crate::out::{Ink, plain};
use crate::table::{Rows, Word, pairs};
use crate::time::{ago, now_ms, span};

/// Lines of the detail of an error that are shown.
const DETAIL_LINES_MAX: usize = 60;

/// `dead-letters …`
#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetters {
    /// List the open dead letters, newest first.
    #[command(after_help = "\
Examples:
  stepfleet dead-letters list
  stepfleet dead-letters list --workflow orders --category permanent")]
    List(ListArgs),
    /// Show a dead letter: every attempt's error, and the input of the last.
    #[command(after_help = "\
Examples:
  stepfleet dead-letters show 3-1795132799999-0")]
    Show(LetterArg),
    /// What failed in the same way, the largest group first.
    #[command(after_help = "\
Examples:
  stepfleet dead-letters groups
  stepfleet dead-letters groups --workflow orders --newer-than 1h")]
    Groups(groups::GroupsArgs),
    /// Close dead letters for good: their steps stay failed.
    #[command(after_help = "\
Examples:
  stepfleet dead-letters discard 3-1795132799999-0 --reason 'paid by hand'")]
    Discard(groups::DiscardArgs),
    /// Try the steps of dead letters again, which reopens their runs.
    #[command(after_help = "\
Examples:
  stepfleet dead-letters replay 3-1795132799999-0
  stepfleet dead-letters replay 3-1795132799999-0 --input '{\"amount\": 12}'
  stepfleet dead-letters replay --all --workflow orders --set customer.zip=12345 --canary 5
  stepfleet dead-letters replay --all --workflow orders --dry-run
  stepfleet dead-letters replay --fingerprint 4f1c9a7be2d3508a --canary 5 --rate 50/s --ramp 60s --stop-when-failing 20%
  stepfleet dead-letters replay --all --handler charge --when-version '>=1.4' --yes --detach
  stepfleet dead-letters replay --all --category transient --yes --detach")]
    Replay(Box<ReplayArgs>),
    /// Close very many dead letters for good.
    #[command(after_help = "\
Examples:
  stepfleet dead-letters purge --workflow old-report --older-than 30d --dry-run
  stepfleet dead-letters purge --workflow old-report --older-than 30d --reason 'nobody needs them'")]
    Purge(Box<Many>),
}

/// One dead letter.
#[derive(Debug, Args)]
pub(crate) struct LetterArg {
    /// The id of the dead letter.
    #[arg(value_name = "ID")]
    id: String,
}

/// `dead-letters list`
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    filter: Filter,
    /// Only of this run; without other filters.
    #[arg(long, value_name = "RUN", conflicts_with_all = filter::NAMES)]
    run: Option<String>,
    #[command(flatten)]
    paging: Paging,
}

/// `dead-letters replay`
#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The dead letters to replay; or say which with filters, or `--all`.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// A wholly new input for the step: `JSON`, `@file`, or `-`. For one dead letter only.
    #[arg(long, value_name = "JSON", conflicts_with_all = ["input", "set"])]
    whole_input: Option<String>,
    #[command(flatten)]
    many: Many,
    #[command(flatten)]
    caution: Caution,
}

/// Runs a verb of `dead-letters`.
///
/// # Errors
/// Whatever kept it from its answer.
pub(crate) async fn run(verb: DeadLetters, session: &Session<'_>) -> Result<Exit, Failure> {
    match verb {
        DeadLetters::List(args) => list(&args, session).await,
        DeadLetters::Show(letter) => show(&letter.id, session).await,
        DeadLetters::Groups(args) => groups::list(&args, session).await,
        DeadLetters::Discard(args) => groups::discard(args, session).await,
        DeadLetters::Replay(args) => replay(*args, session).await,
        DeadLetters::Purge(many) if many.is_said() => campaigns::begin(&many, None, session).await,
        DeadLetters::Purge(_) => Err(nothing_said()),
    }
}

async fn list(args: &ListArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let out = session.out;
    let page = match &args.run {
        Some(run) => of_run(run, session).await?,
        None => session.list(|| args.filter.apply(session.api.get(&["dead-letters"])), &args.paging).await?,
    };
    let Some(page) = page else { return Ok(Exit::Done) };
    let mut rows = Rows::new(out, &["DEAD LETTER", "WORKFLOW", "STEP", "TRIES", "CATEGORY", "CAUSE", "WHEN", "ERROR"]);
    let now = now_ms();
    for letter in &page.items {
        rows.row(vec![
            letter.id.as_str().into(),
            letter.workflow.as_str().into(),
            letter.step.as_str().into(),
            letter.attempts_count.to_string().into(),
            Word::new(letter.category.as_str(), Ink::Bad),
            cause(letter).into(),
            ago(&letter.at, now).into(),
            shortened(&letter.message, 160).into(),
        ]);
    }
    if rows.is_empty() {
        out.say("no dead letters");
    } else {
        rows.print(out)?;
        out.hint(
            "look closer with `stepfleet dead-letters show ID`, try again with `stepfleet dead-letters replay ID`",
        );
    }
    session.more(page.next.as_deref());
    Ok(Exit::Done)
}

/// The open dead letters of one run, by its steps. Written as one page with `--output json`.
async fn of_run(run: &str, session: &Session<'_>) -> Result<Option<Page<LetterView>>, Failure> {
    let (run, _) = super::runs::read(run, session).await?;
    let mut items = Vec::new();
    for id in run.step_list.iter().filter_map(|step| step.dead_letter.as_deref()) {
        match session.api.get(&["dead-letters", id]).send().await {
            Ok(answer) => items.push(answer.read::<LetterView>()?),
            // Replayed a moment ago.
            Err(failure) if failure.exit() == Exit::NotFound => {}
            Err(failure) => return Err(failure),
        }
    }
    let page = Page { items, next: None };
    if !session.out.is_json() {
        return Ok(Some(page));
    }
    session.out.json(&page)?;
    Ok(None)
}

/// The word of the cause, as in JSON.
fn cause(letter: &LetterView) -> String {
    let word = serde_json::to_value(letter.cause).ok();
    word.and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

async fn show(id: &str, session: &Session<'_>) -> Result<Exit, Failure> {
    let out = session.out;
    let answer = session.api.get(&["dead-letters", id]).send().await?;
    if out.is_json() {
        out.line(answer.text.trim_end())?;
        return Ok(Exit::Done);
    }
    let letter: LetterView = answer.read()?;
    let now = now_ms();
    let version = letter.version.map(|version| format!("@{version}")).unwrap_or_default();
    let input = letter.input.as_ref().map(|input| match (&input.value, &input.note) {
        (Some(value), _) => shortened(&value.to_string(), 2_000),
        (None, note) => format!("{} bytes {}", input.bytes, plain(note.as_deref().unwrap_or_default())),
    });
    pairs(
        out,
        &[
            ("dead letter", plain(&letter.id)),
            ("run", letter.run.to_string()),
            ("workflow", plain(&format!("{}{version}", letter.workflow))),
            ("step", plain(&letter.step)),
            ("handler", plain(&letter.handler)),
            ("queue", plain(&letter.queue)),
            ("cause", cause(&letter)),
            ("category", out.ink(letter.category.as_str(), Ink::Bad)),
            ("group", letter.fingerprint.clone().unwrap_or_default()),
            ("came back", letter.returns.to_string()),
            ("when", format!("{} ({})", ago(&letter.at, now), letter.at)),
            ("error", plain(&letter.message)),
            ("input", input.unwrap_or_default()),
        ],
    )?;
    if !letter.attempts.is_empty() {
        let mut rows = Rows::new(out, &["TRY", "WHEN", "WORKER", "VERSION", "HOST", "RAN", "ERROR"]);
        for attempt in &letter.attempts {
            let causes = attempt.causes.iter().map(|cause| format!("; caused by: {cause}")).collect::<String>();
            rows.row(vec![
                attempt.attempt.to_string().into(),
                ago(&attempt.at, now).into(),
                attempt.worker.as_deref().map(worker_name).unwrap_or_default().into(),
                plain(attempt.worker_version.as_deref().unwrap_or_default()).into(),
                plain(attempt.host.as_deref().unwrap_or_default()).into(),
                span(attempt.run_ms).into(),
                shortened(&format!("{}{causes}", error_text(attempt)), 400).into(),
            ]);
        }
        out.line("")?;
        rows.print(out)?;
    }
    let detail = letter.attempts.last().and_then(|attempt| attempt.detail.as_ref()?.value.as_ref());
    if let Some(detail) = detail {
        out.line(&format!("\n{}", out.ink("what the last try left:", Ink::Dim)))?;
        let text = serde_json::to_string_pretty(detail).unwrap_or_default();
        text.lines().take(DETAIL_LINES_MAX).try_for_each(|line| out.line(&plain(line)))?;
    }
    out.hint(&format!("try it again with `stepfleet dead-letters replay {id}`, with another input by `--input JSON`"));
    Ok(Exit::Done)
}

fn nothing_said() -> Failure {
    Failure::usage("which dead letters? found none named: allowed are ids, filters, or `--all`")
}

async fn replay(args: ReplayArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    match (args.ids.is_empty(), args.many.is_said()) {
        (true, false) => Err(nothing_said()),
        (false, true) => Err(Failure::usage("ids were given, and filters or `--all` too: allowed is one of the two")),
        (true, true) if args.whole_input.is_some() => Err(Failure::usage("`--whole-input` is for one dead letter")),
        (true, true) => campaigns::begin(&args.many, Some(&args.caution), session).await,
        (false, false) if args.caution.is_for_many() => Err(Failure::usage(
            "`--canary`, `--ramp`, `--when-version`, `--stop-when-failing` and `--force` are for filters and `--all`",
        )),
        (false, false) => replay_each(args, session).await,
    }
}

async fn replay_each(args: ReplayArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let out = session.out;
    if args.whole_input.is_some() && args.ids.len() > 1 {
        return Err(Failure::usage("`--whole-input` is for one dead letter").hint("replay them one by one"));
    }
    let patch = args.caution.patch.read()?;
    if args.many.dry_run {
        for id in &args.ids {
            let letter: LetterView = session.api.get(&["dead-letters", id]).send().await?.read()?;
            out.line(&format!("{id} would try `{}` of run {} again", plain(&letter.step), letter.run))?;
        }
        return Ok(Exit::Done);
    }
    let input = args.whole_input.as_deref().map(|given| input::json("--whole-input", given)).transpose()?;
    let request = ReplayRequest { input, patch, reason: args.many.reason };
    let mut worst = Exit::Done;
    for id in &args.ids {
        let sent = session.api.post(&["dead-letters", id, "replay"]).json(&request).send().await;
        match sent {
            Ok(answer) if out.is_json() => out.line(answer.text.trim_end())?,
            Ok(answer) => {
                let replayed: Replayed = answer.read()?;
                let state = replayed.state.map(|state| format!(", its run is {state}")).unwrap_or_default();
                let word = if replayed.pending > 0 { "taken, not answered yet" } else { "replayed" };
                out.line(&format!("{id} {word}{state}"))?;
            }
            Err(failure) if args.ids.len() == 1 || failure.exit() == Exit::Unreachable => return Err(failure),
            // The others can still be replayed.
            Err(failure) => {
                out.failure(&failure);
                worst = failure.exit();
            }
        }
    }
    Ok(worst)
}
