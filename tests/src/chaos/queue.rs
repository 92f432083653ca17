//! The checker of histories: what comes out of a queue must have gone in, and what went in must come out.
//!
//! As Jepsen's `total-queue`: the history has to end with everything that is left being dequeued.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;

use crate::chaos::history::{F, Kind, Op};

/// What a history shows. Lists hold values, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Enqueues that were asked for.
    pub attempts: usize,
    /// Enqueues that were acknowledged.
    pub acknowledged: usize,
    /// Acknowledged and never dequeued.
    pub lost: Vec<String>,
    /// Dequeued, and nobody ever asked to enqueue it, or was told that it was not.
    pub unexpected: Vec<String>,
    /// Dequeued more often than enqueued.
    pub duplicated: Vec<String>,
    /// Dequeued though its enqueue was not known to have been done.
    pub recovered: Vec<String>,
}

/// Judges a whole history.
///
/// # Errors
/// It is no history: a process does two things at once, or ends what it did not begin.
pub fn judge(ops: &[Op]) -> anyhow::Result<Verdict> {
    let mut open: BTreeMap<usize, (F, &str)> = BTreeMap::new();
    let mut counts: BTreeMap<&str, Counts> = BTreeMap::new();
    for (place, op) in ops.iter().enumerate() {
        let value = op.value.as_str();
        let count = counts.entry(value).or_default();
        if op.kind == Kind::Invoke {
            ensure!(open.insert(op.process, (op.f, value)).is_none(), "line {place}: two at once: {op:?}");
            count.attempts += usize::from(op.f == F::Enqueue);
            continue;
        }
        let begun = open.remove(&op.process);
        ensure!(begun == Some((op.f, value)), "line {place}: ends {begun:?}: {op:?}");
        match (op.f, op.kind) {
            (F::Enqueue, Kind::Ok) => count.enqueued += 1,
            (F::Enqueue, Kind::Fail) => count.refused += 1,
            (F::Dequeue, Kind::Ok) => count.dequeued += 1,
            (_, Kind::Invoke | Kind::Info) | (F::Dequeue, Kind::Fail) => {}
        }
    }
    let mut verdict = Verdict::default();
    for (value, count) in counts {
        verdict.attempts += count.attempts;
        verdict.acknowledged += count.enqueued;
        let possible = count.attempts - count.refused;
        let list = match count.dequeued {
            0 if count.enqueued > 0 => &mut verdict.lost,
            0 => continue,
            _ if possible == 0 => &mut verdict.unexpected,
            n if n > possible => &mut verdict.duplicated,
            n if n > count.enqueued => &mut verdict.recovered,
            _ => continue,
        };
        list.push(value.to_owned());
    }
    Ok(verdict)
}

/// The values of some list that are in a set.
#[must_use]
pub fn among(list: &[String], set: &BTreeSet<&str>) -> usize {
    list.iter().filter(|value| set.contains(value.as_str())).count()
}

#[derive(Default)]
struct Counts {
    attempts: usize,
    enqueued: usize,
    refused: usize,
    dequeued: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `3 invoke enqueue a`, one a line.
    fn history(text: &str) -> Vec<Op> {
        let line = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let kind = match words[1] {
                "invoke" => Kind::Invoke,
                "ok" => Kind::Ok,
                "fail" => Kind::Fail,
                _ => Kind::Info,
            };
            let f = if words[2] == "enqueue" { F::Enqueue } else { F::Dequeue };
            Op { process: words[0].parse().unwrap(), kind, f, value: words[3].into(), time: 0 }
        };
        text.lines().filter(|l| !l.trim().is_empty()).map(line).collect()
    }

    fn of(text: &str) -> Verdict {
        judge(&history(text)).unwrap()
    }

    const PUT: &str = "1 invoke enqueue a\n1 ok enqueue a\n";
    const GOT: &str = "9 invoke dequeue a\n9 ok dequeue a\n";

    #[test]
    fn what_went_in_and_came_out_is_well() {
        let good = Verdict { attempts: 1, acknowledged: 1, ..Verdict::default() };
        assert_eq!(of(&format!("{PUT}{GOT}")), good);
    }

    #[test]
    fn what_was_acknowledged_and_never_came_out_is_lost() {
        assert_eq!(of(PUT).lost, ["a"]);
        let not_got = format!("{PUT}9 invoke dequeue a\n9 info dequeue a\n");
        assert_eq!(of(&not_got).lost, ["a"], "a dequeue that nobody knows of is none");
    }

    #[test]
    fn what_was_not_acknowledged_is_not_lost_and_is_recovered_if_it_comes_out() {
        let unknown = "1 invoke enqueue a\n1 info enqueue a\n";
        assert_eq!(of(unknown), Verdict { attempts: 1, ..Verdict::default() });
        assert_eq!(of(&format!("{unknown}{GOT}")).recovered, ["a"]);
        assert_eq!(of(&format!("1 invoke enqueue a\n{GOT}")).recovered, ["a"], "one still under way");
    }

    #[test]
    fn what_came_out_and_never_went_in_is_unexpected() {
        assert_eq!(of(GOT).unexpected, ["a"]);
        assert_eq!(of(&format!("1 invoke enqueue a\n1 fail enqueue a\n{GOT}")).unexpected, ["a"]);
    }

    #[test]
    fn what_came_out_twice_is_duplicated() {
        assert_eq!(of(&format!("{PUT}{GOT}{GOT}")).duplicated, ["a"]);
        let twice = of(&format!("{PUT}{PUT}{GOT}{GOT}"));
        assert_eq!((twice.duplicated.len(), twice.acknowledged), (0, 2), "it went in twice");
    }

    #[test]
    fn what_is_no_history_is_refused() {
        assert!(judge(&history("1 ok enqueue a\n")).is_err(), "nothing was begun");
        assert!(judge(&history("1 invoke enqueue a\n1 invoke enqueue b\n")).is_err(), "two at once");
        assert!(judge(&history("1 invoke enqueue a\n1 ok enqueue b\n")).is_err(), "another value");
        assert!(judge(&history("1 invoke enqueue a\n1 ok dequeue a\n")).is_err(), "another operation");
    }
}
