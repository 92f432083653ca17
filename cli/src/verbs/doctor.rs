//! `doctor`: is everything there, and set up well? Each check says what it looked at.

use std::time::{Duration, Instant};

use clap::Args;
use stepfleet_connect::Severity;
use stepfleet_coordinator::http::view::{
    DoctorFinding, DoctorFixed, DoctorView, FindingLevel, FleetHealth, Level, SweepView,
};

use super::Session;
use crate::failure::{Exit, Failure};
use crate::out::{Ink, plain};
use crate::process::redis::{self, RedisArgs};
use crate::process::{Checks, Given};

/// How long `--audit` waits for the auditors: what was nowhere in a first look has its second one within half a minute.
const AUDIT_WAIT: Duration = Duration::from_secs(60);
/// Time between two questions how far they are.
const AUDIT_LOOK: Duration = Duration::from_secs(1);

/// `doctor`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stepfleet doctor
  stepfleet doctor --fix                                make missing groups, delete consumers without a worker
  stepfleet doctor --audit                              let the auditors look at every open step now
  stepfleet doctor --redis redis://127.0.0.1:6379       the settings as seen from here, without the API
  stepfleet doctor --output json | jq '.[] | select(.result != \"ok\")'")]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    redis: RedisArgs,
    /// Put right first what is safe to put right: make missing groups, delete consumers of gone workers with nothing
    /// pending.
    #[arg(long)]
    fix: bool,
    /// Ask the auditors to walk over every partition now, and wait for what they find, at most a minute. What is in no place is
    /// repaired.
    #[arg(long)]
    audit: bool,
}

/// What became of one check.
#[derive(Debug, serde::Serialize)]
struct Check {
    check: String,
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
    fn ok(check: impl Into<String>, text: impl Into<String>) -> Self {
        Self { check: check.into(), result: Verdict::Ok, text: text.into(), hint: None, exit: Exit::Done }
    }

    fn warning(check: impl Into<String>, text: impl Into<String>) -> Self {
        Self { result: Verdict::Warning, ..Self::ok(check, text) }
    }

    fn failed(check: impl Into<String>, text: impl Into<String>) -> Self {
        Self { result: Verdict::Failed, exit: Exit::Failed, ..Self::ok(check, text) }
    }

    fn of(check: impl Into<String>, failure: Failure) -> Self {
        Self { exit: failure.exit(), hint: failure.hint, ..Self::failed(check, failure.text) }
    }
}

/// Checks everything that was named; the exit code is that of the first check that failed.
///
/// # Errors
/// Bad settings of Redis, or stdout is closed.
pub(crate) async fn run(args: DoctorArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let mut checks = if args.fix { fix(session).await } else { Vec::new() };
    if args.audit {
        checks.push(audit(session).await);
    }
    checks.extend(api(session).await);
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
    Ok(checks.iter().map(|check| check.exit).find(|exit| *exit != Exit::Done).unwrap_or(Exit::Done))
}

/// Puts right what is safe to put right, and says what was done.
async fn fix(session: &Session<'_>) -> Vec<Check> {
    match session.api.post(&["doctor", "fix"]).send().await.and_then(|answer| answer.read::<DoctorFixed>()) {
        Ok(fixed) if fixed.done.is_empty() => vec![Check::ok("fix", "there was nothing to put right")],
        Ok(fixed) => fixed.done.into_iter().map(|done| Check::ok("fix", done)).collect(),
        Err(failure) => vec![Check::of("fix", failure)],
    }
}

/// Lets the auditors walk, and waits for what becomes of it.
async fn audit(session: &Session<'_>) -> Check {
    let audited = async {
        let asked: SweepView = session.api.post(&["doctor", "audit"]).send().await?.read()?;
        let begin = Instant::now();
        loop {
            let now: SweepView = session.api.get(&["doctor", "audit"]).send().await?.read()?;
            if now.done || begin.elapsed() >= AUDIT_WAIT {
                return Ok((now.repairs.saturating_sub(asked.repairs), now));
            }
            tokio::time::sleep(AUDIT_LOOK).await;
        }
    };
    match audited.await {
        Err(failure) => Check::of("audit", failure),
        Ok((repairs, now)) if !now.done => {
            let (open, all) = (now.open.len(), now.partitions);
            let text =
                format!("{open} of {all} partitions are not done after {AUDIT_WAIT:?}; {repairs} repairs so far");
            let hint = "it goes on by itself; a partition without an owner is never done".to_owned();
            Check { hint: Some(hint), ..Check::warning("audit", text) }
        }
        Ok((0, now)) => {
            Check::ok("audit", format!("{} open runs were looked at; everything is in its place", now.runs))
        }
        Ok((repairs, _)) => {
            let hint = "the history of the runs and the log of the coordinators say which".to_owned();
            Check { hint: Some(hint), ..Check::warning("audit", format!("{repairs} repairs of what was in no place")) }
        }
    }
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
    match api.get(&["doctor"]).send().await.and_then(|answer| answer.read()) {
        Ok(view) => checks.extend(findings(view)),
        Err(failure) => checks.push(Check::of("doctor", failure)),
    }
    checks.push(match api.get(&["workers", "health"]).send().await.and_then(|answer| answer.read()) {
        Ok(health) => workers(&health),
        Err(failure) => Check::of("load", failure),
    });
    checks
}

/// What the coordinator found when it looked at everything.
fn findings(view: DoctorView) -> Vec<Check> {
    let check = |found: DoctorFinding| {
        let check = match found.severity {
            FindingLevel::Ok => Check::ok(found.check, found.sentence),
            FindingLevel::Warning => Check::warning(found.check, found.sentence),
            FindingLevel::Error => Check::failed(found.check, found.sentence),
        };
        Check { hint: found.advice, ..check }
    };
    view.findings.into_iter().map(check).collect()
}

fn workers(health: &FleetHealth) -> Check {
    let text = format!("{} live, {} silent", health.workers_live, health.workers_silent);
    let reasons = health.reasons.join("; ");
    let check = match health.level {
        Level::Healthy if health.workers_live == 0 => Check::warning("load", "none"),
        Level::Healthy => Check::ok("load", text),
        Level::Warning => Check::warning("load", format!("{text}; {reasons}")),
        Level::Critical => Check::failed("load", format!("{text}; {reasons}")),
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
