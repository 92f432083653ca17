//! `policies`: what holds when something fails. `check` and `schema` work offline, with the checker of the API itself.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::Value;
use stepfleet_coordinator::http::view::{
    CategoryView, EffectivePolicies, Page, PoliciesApplied, PoliciesView, Setting,
};
use stepfleet_coordinator::workflow::{check_policies, policies_schema};

use super::Session;
use super::workflows::lines_of;
use crate::failure::{Exit, Failure};
use crate::input;
use crate::out::{Ink, Out, plain};
use crate::table::{Rows, pairs};
use crate::time::{ago, now_ms, span};

/// `policies …`
#[derive(Debug, Subcommand)]
pub(crate) enum Policies {
    /// Show what holds when something fails, and where each number was written.
    #[command(after_help = "\
Examples:
  stepfleet policies show
  stepfleet policies show --handler pay
  stepfleet policies show --workflow orders --step fetch
  stepfleet policies show --target db.example --output json | jq .breaker")]
    Show(ShowArgs),
    /// Print the document as it was applied, for `apply -f`.
    #[command(after_help = "\
Examples:
  stepfleet policies export > policies.json
  stepfleet policies export --version 3")]
    #[command(disable_version_flag = true)]
    Export(ExportArgs),
    /// List the last versions: when, who, why.
    #[command(after_help = "\
Examples:
  stepfleet policies history")]
    History(HistoryArgs),
    /// Change the policies of the fleet. They hold within about a second, without a restart.
    #[command(after_help = "\
Examples:
  stepfleet policies apply -f policies.yaml --dry-run
  stepfleet policies apply -f policies.yaml --reason 'the bank is slow today'
  stepfleet policies apply -f policies.yaml --expected-version 7
  stepfleet policies apply --version 6 --reason 'back to what worked'")]
    #[command(disable_version_flag = true)]
    Apply(ApplyArgs),
    /// Check a document offline: every problem as `file:line:column`, exit code 1 if there is one.
    #[command(after_help = "\
Examples:
  stepfleet policies check -f policies.yaml")]
    Check(CheckArgs),
    /// Print the JSON Schema of the document, for editors.
    #[command(after_help = "\
Examples:
  stepfleet policies schema > policies.schema.json")]
    Schema,
}

/// `policies show`
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// As it holds in this registered workflow, `NAME` or `NAME@VERSION`.
    #[arg(long, value_name = "WORKFLOW")]
    workflow: Option<String>,
    /// As it holds in this step of the workflow.
    #[arg(long, value_name = "STEP", requires = "workflow")]
    step: Option<String>,
    /// As it holds for this handler; that of the step if not given.
    #[arg(long, value_name = "HANDLER")]
    handler: Option<String>,
    /// The circuit breaker of this target instead of the handler's.
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
}

/// `policies export`
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// This version instead of the present one.
    #[arg(long, value_name = "N")]
    version: Option<u64>,
}

/// `policies history`
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Show at most this many.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
    limit: u32,
}

/// `policies apply`
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// The document in YAML or JSON; `-` for stdin.
    #[arg(short, long, value_name = "FILE", required_unless_present = "version", conflicts_with = "version")]
    file: Option<String>,
    /// Go back to this version of the history.
    #[arg(long, value_name = "N")]
    version: Option<u64>,
    /// Only show what would be different.
    #[arg(long)]
    dry_run: bool,
    /// Why, for the audit.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Refuse if the present version is another one.
    #[arg(long, value_name = "N")]
    expected_version: Option<u64>,
}

/// `policies check`
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The document in YAML or JSON; `-` for stdin.
    #[arg(short, long, value_name = "FILE")]
    file: String,
}

/// Runs a verb of `policies`; `ask` makes a session when the API is needed.
///
/// # Errors
/// Whatever kept it from its answer.
pub(crate) async fn run<'a>(
    verb: Policies,
    out: &'a Out,
    ask: impl FnOnce() -> Result<Session<'a>, Failure>,
) -> Result<Exit, Failure> {
    match verb {
        Policies::Check(args) => check(&args.file, out),
        Policies::Schema => pretty(&policies_schema(), out),
        Policies::Show(args) => show(&args, &ask()?).await,
        Policies::Export(args) => export(args.version, &ask()?).await,
        Policies::History(args) => history(args.limit, &ask()?).await,
        Policies::Apply(args) => apply(&args, &ask()?).await,
    }
}

fn pretty(value: &Value, out: &Out) -> Result<Exit, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::failed(error.to_string()))?;
    out.line(&text)?;
    Ok(Exit::Done)
}

fn check(file: &str, out: &Out) -> Result<Exit, Failure> {
    let name = if file == input::STDIN { "stdin" } else { file };
    let checked = check_policies(&input::file(file)?);
    let exit = if checked.is_ok() { Exit::Done } else { Exit::Failed };
    match checked {
        _ if out.is_json() => {
            let report = checked.err().unwrap_or_default();
            let valid = exit == Exit::Done;
            out.json(&serde_json::json!({
                "file": name, "valid": valid, "problems": report.problems, "omitted": report.omitted,
            }))?;
        }
        Ok(_) => out.line(&format!("{name}: {}", out.ink("ok", Ink::Good)))?,
        Err(report) => lines_of(&report, name).iter().try_for_each(|line| out.line(line))?,
    }
    Ok(exit)
}

async fn apply(args: &ApplyArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let out = session.out;
    let text = match (&args.file, args.version) {
        (Some(file), _) => {
            let text = input::file(file)?;
            if let Err(report) = check_policies(&text) {
                let name = if file == input::STDIN { "stdin" } else { file };
                return Err(Failure::failed("nothing was applied").problems(lines_of(&report, name)));
            }
            text
        }
        (None, version) => document(version, session).await?.to_string(),
    };
    let call = session.api.put(&["policies"]).query("dry_run", args.dry_run.then_some("true"));
    let call = call.query("expected_version", args.expected_version).query("reason", args.reason.as_deref());
    let answer = call.text("application/yaml", text).send().await?;
    if out.is_json() {
        out.line(answer.text.trim_end())?;
        return Ok(Exit::Done);
    }
    let applied: PoliciesApplied = answer.read()?;
    for line in &applied.diff {
        let ink = match line.as_bytes().first() {
            Some(b'+') => Ink::Good,
            Some(b'-') => Ink::Bad,
            _ => Ink::Warn,
        };
        out.line(&out.ink(&plain(line), ink))?;
    }
    out.say(&match (applied.changed, applied.dry_run) {
        (false, _) => format!("nothing is different from version {}", applied.version),
        (true, true) => format!("this would change version {}; nothing was written", applied.version),
        (true, false) => format!("version {} holds within about a second", applied.version),
    });
    Ok(Exit::Done)
}

async fn document(version: Option<u64>, session: &Session<'_>) -> Result<Value, Failure> {
    let found: PoliciesView = session.api.get(&["policies"]).query("version", version).send().await?.read()?;
    Ok(found.policies.unwrap_or_default())
}

async fn export(version: Option<u64>, session: &Session<'_>) -> Result<Exit, Failure> {
    if session.out.is_json() {
        let answer = session.api.get(&["policies"]).query("version", version).send().await?;
        session.out.line(answer.text.trim_end())?;
        return Ok(Exit::Done);
    }
    pretty(&document(version, session).await?, session.out)
}

async fn history(limit: u32, session: &Session<'_>) -> Result<Exit, Failure> {
    let out = session.out;
    let answer = session.api.get(&["policies", "history"]).query("limit", Some(limit)).send().await?;
    if out.is_json() {
        out.line(answer.text.trim_end())?;
        return Ok(Exit::Done);
    }
    let page: Page<PoliciesView> = answer.read()?;
    let mut rows = Rows::new(out, &["VERSION", "WHEN", "WHO", "WHY"]);
    let now = now_ms();
    for version in &page.items {
        rows.row(vec![
            version.version.to_string().into(),
            version.at.as_deref().map(|at| ago(at, now)).unwrap_or_default().into(),
            version.actor.as_deref().unwrap_or_default().into(),
            version.reason.as_deref().unwrap_or_default().into(),
        ]);
    }
    if rows.is_empty() {
        out.say("nobody has applied any policies: what is built in holds");
        return Ok(Exit::Done);
    }
    rows.print(out)?;
    Ok(Exit::Done)
}

async fn show(args: &ShowArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let out = session.out;
    let call = session.api.get(&["policies", "effective"]);
    let call = call.query("workflow", args.workflow.as_deref()).query("step", args.step.as_deref());
    let call = call.query("handler", args.handler.as_deref()).query("target", args.target.as_deref());
    let answer = call.send().await?;
    if out.is_json() {
        out.line(answer.text.trim_end())?;
        return Ok(Exit::Done);
    }
    let found: EffectivePolicies = answer.read()?;
    let version = match found.version {
        0 => "none; what is built in holds".to_owned(),
        version => version.to_string(),
    };
    let who =
        if found.classified { "the policy of its category, unless the handler says" } else { "the handler alone" };
    pairs(
        out,
        &[
            ("version", version),
            ("workflow", plain(args.workflow.as_deref().unwrap_or_default())),
            ("step", plain(args.step.as_deref().unwrap_or_default())),
            ("handler", plain(found.handler.as_deref().unwrap_or_default())),
            ("who decides on retries", who.to_owned()),
        ],
    )?;
    out.line("")?;
    let mut rows = Rows::new(out, &["SETTING", "VALUE", "FROM", "CATEGORIES"]);
    for (name, of) in SETTINGS {
        for (value, from, categories) in grouped(&found.categories, name, of) {
            rows.row(vec![name.into(), value.into(), from.into(), categories.into()]);
        }
    }
    rows.print(out)?;
    let b = &found.breaker;
    out.line("")?;
    pairs(
        out,
        &[
            ("circuit breaker of", plain(&found.breaker_of)),
            ("opens by itself", if b.enabled { "yes" } else { "no" }.to_owned()),
            ("failures in a row", b.failures.to_string()),
            ("or a share of", format!("{} of at least {} calls in {}", b.ratio, b.minimum_calls, span(b.window_ms))),
            ("stays open for", format!("{}, at most {}", span(b.break_ms), span(b.break_cap_ms))),
            ("then tries", format!("{} jobs", b.canaries)),
            ("at once in the fleet", found.concurrency.map_or("any number".to_owned(), |n| n.to_string())),
            ("begin in a time", found.rate.as_deref().unwrap_or("any number").to_owned()),
        ],
    )?;
    Ok(Exit::Done)
}

/// A setting of a category.
type Of = fn(&CategoryView) -> &Setting;

/// The settings of a category, by the names of the document.
const SETTINGS: [(&str, Of); 8] = [
    ("retry", |c| &c.retry),
    ("max_attempts", |c| &c.max_attempts),
    ("backoff.base", |c| &c.base_ms),
    ("backoff.factor", |c| &c.factor),
    ("backoff.cap", |c| &c.cap_ms),
    ("backoff.jitter", |c| &c.jitter),
    ("escalate_after", |c| &c.escalate_after),
    ("notify", |c| &c.notify),
];

/// The values of a setting, each with where it was written and the categories that it holds for.
fn grouped(categories: &[CategoryView], name: &str, of: Of) -> Vec<(String, String, String)> {
    let mut groups: Vec<(String, String, Vec<&str>)> = Vec::new();
    for category in categories {
        let setting = of(category);
        let (value, from) = (value_text(name, &setting.value), from_text(setting));
        match groups.iter_mut().find(|(v, f, _)| (v, f) == (&value, &from)) {
            Some((.., of)) => of.push(category.category.as_str()),
            None => groups.push((value, from, vec![category.category.as_str()])),
        }
    }
    let all: BTreeSet<&str> = categories.iter().map(|c| c.category.as_str()).collect();
    let told = |of: Vec<&str>| if of.len() == all.len() { "all".to_owned() } else { of.join(", ") };
    groups.into_iter().map(|(value, from, of)| (value, from, told(of))).collect()
}

fn value_text(name: &str, value: &Value) -> String {
    match (name, value) {
        ("backoff.base" | "backoff.cap", Value::Number(ms)) => ms.as_u64().map(span).unwrap_or_default(),
        ("escalate_after", Value::Number(n)) if n.as_u64() == Some(0) => "never".to_owned(),
        (_, Value::Bool(yes)) => if *yes { "yes" } else { "no" }.to_owned(),
        (_, Value::String(word)) => word.clone(),
        (_, other) => other.to_string(),
    }
}

fn from_text(setting: &Setting) -> String {
    let level = word(&setting.level);
    if setting.for_category && level != "built in" { format!("{level}, for the category") } else { level }
}

/// A word of the API, for people.
fn word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().replace('_', " ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_that_are_the_same_share_a_row() {
        let setting = |value: Value, level: &str, special: bool| json!({ "value": value, "level": level, "for_category": special });
        let category = |name: &str, base: u64, level: &str, special: bool| -> CategoryView {
            let plain = setting(json!(3), "built_in", false);
            serde_json::from_value(json!({
                "category": name, "retry": setting(json!(true), "built_in", true), "max_attempts": plain,
                "base_ms": setting(json!(base), level, special), "factor": plain, "cap_ms": plain, "jitter": plain,
                "escalate_after": plain, "notify": plain,
            }))
            .expect("a category")
        };
        let all = [
            category("transient", 1_000, "fleet", false),
            category("timeout", 1_000, "fleet", false),
            category("system", 5_000, "handler", true),
        ];
        let row = |value: &str, from: &str, of: &str| (value.to_owned(), from.to_owned(), of.to_owned());
        let base = SETTINGS[2];
        let seconds = [span(1_000), span(5_000)];
        assert_eq!(
            grouped(&all, base.0, base.1),
            [row(&seconds[0], "fleet", "transient, timeout"), row(&seconds[1], "handler, for the category", "system")]
        );
        assert_eq!(grouped(&all, SETTINGS[0].0, SETTINGS[0].1), [row("yes", "built in", "all")]);
        assert_eq!(value_text("escalate_after", &json!(0)), "never");
    }
}
