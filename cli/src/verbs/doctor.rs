//! `doctor`: is everything there, and set up well? Each check says what it looked at.

use clap::Args;
use stepfleet_connect::Severity;
use stepfleet_coordinator::http::view::{FleetHealth, Level, Page, PartitionView};

use super::Session;
use crate::failure::{Exit, Failure};
use crate::out::{Ink, plain};
use crate::process::redis::{self, RedisArgs};
use crate::process::{Checks, Given};

/// `doctor`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stepfleet doctor
  stepfleet doctor --redis redis://127.0.0.1:6379       the settings of the servers too
  stepfleet doctor --output json | jq '.[] | select(.result != \"ok\")'")]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    redis: RedisArgs,
}

/// What became of one check.
#[derive(Debug, serde::Serialize)]
struct Check {
    check: &'static str,
    result: Verdict,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    #[serde(skip)]
    exit: Exit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    Warning,
    Failed,
}

impl Check {
    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, result: Verdict::Ok, text: text.into(), hint: None, exit: Exit::Done }
    }

    fn warning(check: &'static str, text: impl Into<String>) -> Self {
        Self { result: Verdict::Warning, ..Self::ok(check, text) }
    }

    fn failed(check: &'static str, text: impl Into<String>) -> Self {
        Self { result: Verdict::Failed, exit: Exit::Failed, ..Self::ok(check, text) }
    }

    fn of(check: &'static str, failure: Failure) -> Self {
        Self { exit: failure.exit(), hint: failure.hint, ..Self::failed(check, failure.text) }
    }
}

/// Checks everything that was named; the exit code is that of the first check that failed.
///
/// # Errors
/// Bad settings of Redis, or stdout is closed.
pub(crate) async fn run(args: DoctorArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let mut checks = api(session).await;
    if args.redis.is_given() {
        let given = Given::default();
        let mut settings = Checks::new(&given);
        let redis = args.redis.check(&mut settings);
        checks.extend(servers(settings.done(redis)?).await);
    }
    let out = session.out;
    if out.is_json() {
        out.json(&checks)?;
    }
    for check in checks.iter().filter(|_| !out.is_json()) {
        let word = match check.result {
            Verdict::Ok => out.ink("ok     ", Ink::Good),
            Verdict::Warning => out.ink("warning", Ink::Warn),
            Verdict::Failed => out.ink("failed ", Ink::Bad),
        };
        out.line(&format!("{word}  {:<11} {}", check.check, plain(&check.text)))?;
        if let Some(hint) = &check.hint {
            out.hint(hint);
        }
    }
    if !args.redis.is_given() {
        out.hint("with `--redis URL` the settings of the servers are checked too");
    }
    Ok(checks.iter().map(|check| check.exit).find(|exit| *exit != Exit::Done).unwrap_or(Exit::Done))
}

async fn api(session: &Session<'_>) -> Vec<Check> {
    let api = &session.api;
    match api.probe("livez").send().await {
        Ok(_) => {}
        Err(failure) => return vec![Check::of("api", failure)],
    }
    let mut checks = vec![Check::ok("api", format!("answers at {}", api.base()))];
    checks.push(match api.probe("readyz").send().await {
        Ok(_) => Check::ok("ready", "the coordinator reaches its server"),
        Err(failure) => Check::of("ready", failure),
    });
    checks.push(
        match api.get(&["partitions"]).query("limit", Some(100)).send().await.and_then(|answer| answer.read()) {
            Ok(page) => partitions(&page),
            Err(failure) => Check::of("partitions", failure),
        },
    );
    checks.push(match api.get(&["workers", "health"]).send().await.and_then(|answer| answer.read()) {
        Ok(health) => workers(&health),
        Err(failure) => Check::of("workers", failure),
    });
    checks
}

fn partitions(page: &Page<PartitionView>) -> Check {
    let total = page.items.len();
    let without: Vec<String> = page.items.iter().filter(|p| p.owner.is_none()).map(|p| p.id.to_string()).collect();
    let quarantined: u64 = page.items.iter().map(|partition| partition.quarantine).sum();
    if !without.is_empty() {
        return Check::failed(
            "partitions",
            format!("{} of {total} have no owner: {}", without.len(), without.join(", ")),
        );
    }
    if quarantined > 0 {
        let hint = Some("see `stepfleet quarantine list`".to_owned());
        return Check { hint, ..Check::warning("partitions", format!("{quarantined} entries are in quarantine")) };
    }
    Check::ok("partitions", format!("{total}, each with an owner"))
}

fn workers(health: &FleetHealth) -> Check {
    let text = format!("{} live, {} silent", health.workers_live, health.workers_silent);
    let reasons = health.reasons.join("; ");
    let check = match health.level {
        Level::Healthy if health.workers_live == 0 => Check::warning("workers", "none"),
        Level::Healthy => Check::ok("workers", text),
        Level::Warning => Check::warning("workers", format!("{text}; {reasons}")),
        Level::Critical => Check::failed("workers", format!("{text}; {reasons}")),
    };
    if health.workers_live > 0 {
        return check;
    }
    Check { hint: Some("start one with `stepfleet worker --redis URL`".to_owned()), ..check }
}

async fn servers(settings: stepfleet_connect::Settings) -> Vec<Check> {
    let name = settings.to_string();
    let redis = match redis::connect(settings).await {
        Ok(redis) => redis,
        Err(failure) => return vec![Check::of("redis", failure)],
    };
    let facts = match redis.facts().await {
        Ok(facts) => facts,
        Err(error) => return vec![Check::of("redis", redis::failure(&error))],
    };
    let kind = facts.first().map_or(String::new(), |facts| {
        format!("{} {}", if facts.is_valkey { "valkey" } else { "redis" }, facts.version)
    });
    let mut checks = vec![Check::ok("redis", format!("{name}: {kind}, {} primaries", facts.len()))];
    let findings = stepfleet_connect::preflight(&facts, false);
    if findings.is_empty() {
        checks.push(Check::ok("settings", "as they should be"));
    }
    checks.extend(findings.into_iter().map(|found| {
        let text = format!("{}: {}; allowed: {}", found.addr, found.what_found, found.allowed);
        let check = match found.severity {
            Severity::Warning => Check::warning("settings", text),
            Severity::Error => Check::failed("settings", text),
        };
        Check { hint: Some(found.hint), ..check }
    }));
    checks
}
