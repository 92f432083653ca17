//! Findings about time, versions, policies and subscribers.

use std::collections::BTreeMap;

use super::{
    FindingLevel::{Error, Warning},
    Findings, named,
};
use crate::store::read::doctor::Checkup;

/// Timers that are late by more mean that something does not work.
const LATE_ERROR_MS: u64 = 60_000;
/// A subscriber whose oldest unseen entry is older is behind.
const BEHIND_MS: u64 = 60_000;

pub(super) fn timers(found: &Checkup, all: &mut Findings) {
    for late in &found.late {
        let severity = if late.late_ms >= LATE_ERROR_MS { Error } else { Warning };
        let (count, partition, secs) = (late.count, late.partition, late.late_ms / 1_000);
        let text = format!("{count} timers of partition {partition} are late, by up to {secs} s");
        all.add("timers", severity, text, "normal for a moment after a restart; else look at the log of its owner");
    }
    all.close("timers", "none is late by ten seconds or more");
}

pub(super) fn runs(found: &Checkup, all: &mut Findings) {
    let (lost, endless) = (&found.untimed.lost, &found.untimed.endless);
    if !lost.is_empty() {
        let text =
            format!("{} open runs have lost their time-out, and no timer would end them: {}", lost.len(), named(lost));
        all.add("runs", Error, text, "the auditor arms it again: `stepfleet doctor --audit`; or `runs cancel RUN`");
    }
    if !endless.is_empty() {
        let text = format!(
            "{} runs without a time-out have been open for more than an hour: {}",
            endless.len(),
            named(endless)
        );
        all.add("runs", Warning, text, "`stepfleet runs explain RUN`; give the workflow a `timeout`");
    }
    all.close("runs", "every open run that was looked at can end");
}

pub(super) fn subscribers(found: &Checkup, all: &mut Findings) {
    // Undelivered, missed, the age of the oldest entry that was not seen.
    let mut by_name: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    for following in &found.following {
        let sum = by_name.entry(&following.subscriber).or_default();
        sum.0 += following.cursor.undelivered;
        sum.1 += following.cursor.missed;
        sum.2 = sum.2.max(following.lag_ms.unwrap_or(0));
    }
    for (name, (undelivered, missed, behind_ms)) in &by_name {
        if *undelivered > 0 || *missed > 0 {
            let text = format!(
                "subscriber `{name}` did not take {undelivered} entries of the outbox, and missed {missed} that were trimmed"
            );
            all.add("subscribers", Warning, text, "`stepfleet subscribers undelivered`");
        }
        if *behind_ms > BEHIND_MS {
            let text = format!("subscriber `{name}` is {} s behind", behind_ms / 1_000);
            all.add("subscribers", Warning, text, "`stepfleet subscribers list`; does it answer?");
        }
    }
    all.close("subscribers", &format!("{}, each took every entry of the outbox", by_name.len()));
}

pub(super) fn versions(found: &Checkup, all: &mut Findings) {
    const UNSAID: &str = "a version that does not say";
    let (mut coordinators, mut workers): (BTreeMap<&str, usize>, BTreeMap<&str, usize>) = Default::default();
    for beat in found.coordinators.values() {
        *coordinators.entry(beat.as_ref().map_or(UNSAID, |beat| &beat.version)).or_default() += 1;
    }
    for beat in found.workers.iter().filter_map(|worker| worker.beat.as_ref()) {
        *workers.entry(&beat.version).or_default() += 1;
    }
    let list = |versions: &BTreeMap<&str, usize>| {
        if versions.is_empty() {
            return "none".to_owned();
        }
        named(versions.iter().map(|(version, count)| format!("{count} of {version}")))
    };
    let mut versions: Vec<&str> = coordinators.keys().chain(workers.keys()).copied().collect();
    versions.sort_unstable();
    versions.dedup();
    if versions.len() > 1 {
        let text = format!(
            "programs of several versions are live: coordinators: {}; workers: {}",
            list(&coordinators),
            list(&workers)
        );
        all.add("versions", Warning, text, "normal during a deploy; else bring the others up to date");
    }
    all.close("versions", "all coordinators and workers have the same version");
}

pub(super) fn policies(found: &Checkup, all: &mut Findings) {
    for (name, beat) in &found.coordinators {
        let Some(version) = beat.as_ref().map(|beat| beat.policies) else { continue };
        if version != found.policies {
            let newest = found.policies;
            let text =
                format!("coordinator {name} decides by version {version} of the policies, and {newest} is the newest");
            all.add("policies", Warning, text, "normal for a second after a change; else look at its log");
        }
    }
    let lost: Vec<u16> = found.partitions.iter().filter(|p| p.rules > found.policies).map(|p| p.id).collect();
    if !lost.is_empty() {
        let text =
            format!("newer policies than {} are lost; partitions {} were decided by them", found.policies, named(lost));
        all.add("policies", Error, text, "`stepfleet policies apply` again");
    }
    all.close("policies", &format!("every coordinator decides by version {}, the newest", found.policies));
}
