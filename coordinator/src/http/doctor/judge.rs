//! From what was looked at to findings. Pure.

mod clockwork;

use stepfleet_connect::Severity;

use super::super::view::{
    DoctorFinding, DoctorView,
    FindingLevel::{self, Error, Ok, Warning},
};
use crate::store::{
    admission::{COMMANDS_BELOW, SUBMITS_BELOW},
    read::doctor::Checkup,
};

/// A host's clock that is off by more gives run ids that cost a look; by much more, listings in a wrong order.
const SKEW_WARNING_MS: u64 = 2_000;
const SKEW_ERROR_MS: u64 = 60_000;
/// The server is full sooner than this: somebody should act.
const HOURS_WARNING: f64 = 24.0;
/// A walk of the auditor that ended longer ago is late.
const WALK_LATE_MS: u64 = 10 * 60_000;
/// Findings that one check lists by name.
const NAMED: usize = 5;

/// All checks.
pub(super) fn view(found: &Checkup) -> DoctorView {
    let mut all = Findings::default();
    servers(found, &mut all);
    memory(found, &mut all);
    clock(found, &mut all);
    partitions(found, &mut all);
    auditor(found, &mut all);
    clockwork::timers(found, &mut all);
    clockwork::runs(found, &mut all);
    streams(found, &mut all);
    clockwork::subscribers(found, &mut all);
    workers(found, &mut all);
    clockwork::versions(found, &mut all);
    clockwork::policies(found, &mut all);
    let severity = all.0.iter().map(|finding| finding.severity).max().unwrap_or(Ok);
    DoctorView { severity, findings: all.0 }
}

#[derive(Default)]
struct Findings(Vec<DoctorFinding>);

impl Findings {
    fn add(&mut self, check: &str, severity: FindingLevel, sentence: String, advice: &str) {
        let advice = (!advice.is_empty()).then(|| advice.to_owned());
        self.0.push(DoctorFinding { check: check.to_owned(), severity, sentence, advice });
    }

    /// Says that the check found nothing, unless it did.
    fn close(&mut self, check: &str, sentence: &str) {
        if !self.0.iter().any(|finding| finding.check == check) {
            self.add(check, Ok, sentence.to_owned(), "");
        }
    }
}

fn named<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    let more = if all.len() > NAMED { format!(" and {} more", all.len() - NAMED) } else { String::new() };
    format!("{}{more}", all[..all.len().min(NAMED)].join(", "))
}

fn servers(found: &Checkup, all: &mut Findings) {
    for finding in &found.servers {
        let severity = match finding.severity {
            Severity::Warning => Warning,
            Severity::Error => Error,
        };
        let text = format!("{}: {}; allowed: {}", finding.addr, finding.what_found, finding.allowed);
        all.add("servers", severity, text, &finding.hint);
    }
    all.close("servers", "the settings of every server are as they should be");
}

fn memory(found: &Checkup, all: &mut Findings) {
    for node in &found.memory {
        let percent = (node.ratio() * 100.0) as u32;
        let hours =
            node.hours_to_full.map(|h| format!("; full in {h:.1} hours at the present rate")).unwrap_or_default();
        let advice = "raise `maxmemory`, shorten retention (`--retain-completed`, `--retain-runs`), or submit less";
        if node.limit == 0 {
            let advice = "set `maxmemory`, so that new runs are refused before the host is out of memory";
            all.add("memory", Warning, format!("{} has no `maxmemory`", node.node), advice);
        } else if node.ratio() >= COMMANDS_BELOW {
            let text = format!("{} is {percent} % full: everything but results is refused{hours}", node.node);
            all.add("memory", Error, text, advice);
        } else if node.ratio() >= SUBMITS_BELOW {
            all.add("memory", Error, format!("{} is {percent} % full: new runs are refused{hours}", node.node), advice);
        } else if node.hours_to_full.is_some_and(|hours| hours < HOURS_WARNING) {
            all.add("memory", Warning, format!("{} is {percent} % full{hours}", node.node), advice);
        } else {
            all.add("memory", Ok, format!("{} is {percent} % full{hours}", node.node), "");
        }
    }
    all.close("memory", "not looked at yet");
}

fn clock(found: &Checkup, all: &mut Findings) {
    let (server, host) = found.clocks_ms;
    let off = server.abs_diff(host);
    let severity = match off {
        0..SKEW_WARNING_MS => Ok,
        SKEW_WARNING_MS..SKEW_ERROR_MS => Warning,
        _ => Error,
    };
    let advice = if severity == Ok { "" } else { "run a time service on the coordinators' hosts and on the servers" };
    all.add("clock", severity, format!("the coordinator that answers is {off} ms off the server's clock"), advice);
}

fn partitions(found: &Checkup, all: &mut Findings) {
    let unowned: Vec<u16> = found.partitions.iter().filter(|p| p.owner.is_none()).map(|p| p.id).collect();
    if !unowned.is_empty() {
        let text =
            format!("{} of {} partitions have no owner: {}", unowned.len(), found.partitions.len(), named(unowned));
        all.add("partitions", Error, text, "start a coordinator; look at the log of the running ones for `ALERT`");
    }
    if !found.paused.is_empty() {
        let text = format!("partitions whose slots are on their way to other nodes pause: {}", named(&found.paused));
        all.add("partitions", Warning, text, "they go on by themselves when all keys of their slots have arrived");
    }
    let quarantined: u64 = found.partitions.iter().map(|p| p.quarantine).sum();
    if quarantined > 0 {
        let text = format!("{quarantined} entries are in quarantine");
        all.add("partitions", Warning, text, "`stepfleet quarantine list`");
    }
    all.close("partitions", &format!("{}, each with an owner", found.partitions.len()));
}

fn auditor(found: &Checkup, all: &mut Findings) {
    let late: Vec<u16> = found
        .walks
        .iter()
        .filter(|(_, walk)| found.clocks_ms.0.saturating_sub(walk.at_ms) > WALK_LATE_MS)
        .map(|(id, _)| *id)
        .collect();
    let repairs: i64 = found.partitions.iter().filter_map(|p| p.counters.get("repairs")).sum();
    if repairs > 0 {
        let text = format!("the auditor has made {repairs} repairs of what was in no place; there should be none");
        all.add("auditor", Warning, text, "find who writes to the fleet's keys, or report it; the log says which runs");
    }
    if !late.is_empty() {
        let text = format!("no walk of the auditor ended within ten minutes in partitions {}", named(late));
        all.add("auditor", Warning, text, "normal with very many open runs, or when a coordinator has just started");
    }
    let (runs, suspects) = found.walks.values().fold((0, 0), |sum, walk| (sum.0 + walk.runs, sum.1 + walk.suspects));
    all.close("auditor", &format!("its last walks looked at {runs} open runs; {suspects} steps are looked at again"));
}

fn streams(found: &Checkup, all: &mut Findings) {
    if !found.without_group.is_empty() {
        let text = format!(
            "{} job streams have no group, so nobody can read them: {}",
            found.without_group.len(),
            named(found.without_group.iter().map(|s| format!("{} of partition {}", s.queue, s.partition)))
        );
        all.add("streams", Error, text, "`stepfleet doctor --fix`");
    }
    let (idle, busy): (Vec<_>, Vec<_>) = found.orphans.iter().partition(|orphan| orphan.pending == 0);
    if !idle.is_empty() {
        let text = format!("{} consumers have no worker and nothing pending", idle.len());
        all.add("streams", Warning, text, "coordinators delete them; or `stepfleet doctor --fix`");
    }
    if !busy.is_empty() {
        let text = format!(
            "jobs are pending at {} consumers whose workers are gone: {}",
            busy.len(),
            named(busy.iter().map(|o| &o.worker))
        );
        all.add("streams", Warning, text, "coordinators take the jobs back within a minute; if not, look at their log");
    }
    for (name, queue) in &found.queues {
        let live = found.workers.iter().filter(|w| !w.silent).filter_map(|w| w.beat.as_ref());
        if queue.depth() > 0 && live.filter(|beat| beat.queues.contains(name)).count() == 0 {
            let text = format!("queue `{name}` has {} waiting jobs and no live worker", queue.depth());
            all.add("streams", Error, text, &format!("`stepfleet worker --queue {name}`"));
        }
    }
    all.close("streams", "every queue with jobs has a group and a live worker");
}

fn workers(found: &Checkup, all: &mut Findings) {
    let silent = found.workers.iter().filter(|w| w.silent).count();
    if silent > 0 {
        let text = format!("{silent} of {} workers are silent", found.workers.len());
        all.add("workers", Warning, text, "`stepfleet workers list`; the dead are taken off within a minute");
    }
    all.close("workers", &format!("{}, none silent; {} coordinators", found.workers.len(), found.coordinators.len()));
}

#[cfg(test)]
mod tests {
    use stepfleet_protocol::{
        beat::CoordinatorBeat,
        id::{PartitionId, RunId},
    };

    use super::*;
    use crate::store::{
        admission::{NodeMemory, Safety},
        outbox::{Cursor, Following},
        read::{
            doctor::{LateTimers, Walked},
            partitions::Seen,
            queues::Queue,
        },
    };

    const NOW_MS: u64 = 1_700_000_000_000;

    fn healthy() -> Checkup {
        let memory =
            NodeMemory { node: "h:1".into(), used: 100, limit: 1_000, safety: Safety::default(), hours_to_full: None };
        let seen = Seen { id: 0, owner: Some("c".into()), ..Seen::default() };
        let walk = Walked { at_ms: NOW_MS - 5_000, runs: 3, suspects: 0 };
        Checkup {
            clocks_ms: (NOW_MS, NOW_MS + 3),
            memory: vec![memory],
            partitions: vec![seen],
            walks: [(0, walk)].into(),
            ..Checkup::default()
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Checkup), severity: FindingLevel, check: &str, part: &str) {
        let mut found = healthy();
        change(&mut found);
        let view = view(&found);
        assert_eq!(view.severity, severity, "{view:#?}");
        let told = view.findings.iter().find(|finding| finding.check == check && finding.severity == severity);
        assert!(told.is_some_and(|finding| finding.sentence.contains(part)), "no `{part}` in {view:#?}");
    }

    #[test]
    fn each_check_says_what_is_wrong_and_how_bad_it_is() {
        check(|_| {}, Ok, "partitions", "1, each with an owner");
        check(|c| c.memory[0].used = 810, Error, "memory", "new runs are refused");
        check(|c| c.memory[0].used = 910, Error, "memory", "everything but results");
        check(|c| c.memory[0].hours_to_full = Some(3.25), Warning, "memory", "full in 3.2 hours");
        check(|c| c.memory[0].limit = 0, Warning, "memory", "no `maxmemory`");
        check(|c| c.clocks_ms.1 = NOW_MS - 5_000, Warning, "clock", "5000 ms");
        check(|c| c.clocks_ms.1 = NOW_MS + 90_000, Error, "clock", "90000 ms");
        check(|c| c.partitions[0].owner = None, Error, "partitions", "1 of 1 partitions have no owner: 0");
        check(|c| c.paused = [PartitionId(3)].into(), Warning, "partitions", "to other nodes pause: 3");
        check(|c| c.partitions[0].quarantine = 2, Warning, "partitions", "2 entries");
        check(|c| c.partitions[0].counters = [("repairs".into(), 4)].into(), Warning, "auditor", "made 4 repairs");
        let late = |late_ms| LateTimers { partition: PartitionId(0), count: 2, late_ms };
        check(|c| c.late = vec![late(20_000)], Warning, "timers", "2 timers of partition 0 are late");
        check(|c| c.late = vec![late(90_000)], Error, "timers", "by up to 90 s");
        let run = RunId::new(PartitionId(0), 1, 1);
        check(|c| c.untimed.lost = vec![run], Error, "runs", "1 open runs have lost their time-out");
        check(|c| c.untimed.endless = vec![run], Warning, "runs", "for more than an hour");
        let beat = |version: &str, policies| Some(CoordinatorBeat { v: 1, version: version.into(), policies });
        check(
            |c| c.coordinators = [("a".into(), beat("1", 0)), ("b".into(), beat("2", 0))].into(),
            Warning,
            "versions",
            "coordinators: 1 of 1, 1 of 2",
        );
        check(
            |c| c.coordinators = [("a".into(), None), ("b".into(), beat("2", 0))].into(),
            Warning,
            "versions",
            "1 of a version that does not say",
        );
        check(
            |c| (c.policies, c.coordinators) = (4, [("a".into(), beat("1", 3))].into()),
            Warning,
            "policies",
            "a decides by version 3",
        );
        let cursor = Cursor { undelivered: 3, missed: 1, ..Cursor::first(0) };
        let following = Following { subscriber: "s".into(), feed: PartitionId(0).into(), cursor, lag: 0, lag_ms: None };
        check(|c| c.following = vec![following.clone()], Warning, "subscribers", "`s` did not take 3 entries");
        let behind = Following { lag: 5, lag_ms: Some(70_000), cursor: Cursor::first(0), ..following };
        check(|c| c.following = vec![behind], Warning, "subscribers", "`s` is 70 s behind");
        check(|c| c.walks.entry(0).or_default().at_ms = 0, Warning, "auditor", "partitions 0");
        check(|c| c.partitions[0].rules = 4, Error, "policies", "newer policies than 0 are lost");
        let waiting = Queue { ready: 3, ..Queue::default() };
        let name = stepfleet_protocol::name::Name::new("mail").expect("a legal name");
        check(|c| c.queues = [(name, waiting)].into(), Error, "streams", "`mail` has 3 waiting jobs");
    }
}
