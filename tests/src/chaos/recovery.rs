//! How long work stood still, seen from outside: by what handlers did, never by what servers or programs say.
//!
//! A step begins only after a commit that knows that the steps it needs are done. So when a step begins whose need was
//! done after some moment, its partition has committed since that moment.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use anyhow::bail;
use stepfleet_protocol::id::RunId;

use crate::chaos::effects::{Effect, Effects, Phase};
use crate::chaos::work::NEEDS;
use crate::wait;

/// So many effects in a row have to be old for the search to end.
const OLDER: usize = 200;

/// When each of these partitions is first known to have committed after `since_ns`, as far as it is known.
#[must_use]
pub fn commits_since(effects: &[Effect], since_ns: u64) -> BTreeMap<u16, u64> {
    let mut first = BTreeMap::new();
    let mut done: BTreeSet<(&str, &str)> = BTreeSet::new();
    // The file is in the order of time but for a moment, which does not matter: what is missed is seen with the next
    // step.
    for effect in effects.iter().filter(|effect| effect.at_ns > since_ns) {
        if effect.phase != Phase::Begun {
            if effect.phase == Phase::Done {
                done.insert((&effect.run, &effect.step));
            }
            continue;
        }
        let needs = NEEDS.iter().find(|(step, _)| *step == effect.step).map_or(&[][..], |(_, needs)| needs);
        if needs.iter().any(|need| done.contains(&(effect.run.as_str(), *need)))
            && let Ok(run) = effect.run.parse::<RunId>()
        {
            first.entry(run.partition().0).or_insert(effect.at_ns);
        }
    }
    first
}

/// Waits until each of these partitions has committed after `since_ns`; how long each took. None if one takes longer
/// than `patience`.
pub async fn until_commits(
    effects: &Effects,
    partitions: &[u16],
    since_ns: u64,
    patience: Duration,
) -> Option<Vec<Duration>> {
    let found = wait::until(patience, "commits", async || {
        let first = effects.look(|all| commits_since(recent(all, since_ns), since_ns));
        let mut took = Vec::new();
        for partition in partitions {
            match first.get(partition) {
                Some(at) => took.push(Duration::from_nanos(at - since_ns)),
                None => bail!("none in partition {partition}"),
            }
        }
        Ok(took)
    });
    found.await.ok()
}

/// A try that a worker had begun and not ended.
pub type Try = (String, String, u32);

/// What a worker had begun and not ended, without what somebody else had begun by `since_ns` too.
#[must_use]
pub fn at_work(effects: &[Effect], worker: &str, since_ns: u64) -> Vec<Try> {
    let mut open: HashMap<&str, &Effect> = HashMap::new();
    for effect in effects {
        match (effect.worker == worker, effect.phase) {
            (true, Phase::Begun) => _ = open.insert(&effect.job, effect),
            (true, Phase::Done | Phase::Failed) => _ = open.remove(effect.job.as_str()),
            (false, Phase::Begun) if effect.at_ns <= since_ns => open.retain(|_, mine| try_of(mine) != try_of(effect)),
            (false, _) => {}
        }
    }
    let tries = open.values().map(|effect| (effect.run.clone(), effect.step.clone(), effect.generation));
    tries.collect::<BTreeSet<_>>().into_iter().collect()
}

fn try_of(effect: &Effect) -> (&str, &str, u32) {
    (&effect.run, &effect.step, effect.generation)
}

/// When each of these tries was first begun by another worker after `since_ns`. None: not yet.
#[must_use]
pub fn elsewhere(effects: &[Effect], tries: &[Try], worker: &str, since_ns: u64) -> Vec<Option<u64>> {
    let mut first: HashMap<(&str, &str, u32), u64> = HashMap::new();
    for effect in effects.iter().filter(|e| e.phase == Phase::Begun && e.at_ns > since_ns && e.worker != worker) {
        first.entry(try_of(effect)).or_insert(effect.at_ns);
    }
    tries
        .iter()
        .map(|(run, step, generation)| first.get(&(run.as_str(), step.as_str(), *generation)).copied())
        .collect()
}

/// Waits until all of these tries run at other workers; how long each took, without those that do not within
/// `patience`, as their run may have been cancelled or have failed meanwhile.
pub async fn until_elsewhere(
    effects: &Effects,
    tries: &[Try],
    worker: &str,
    since_ns: u64,
    patience: Duration,
) -> Vec<Duration> {
    let mut seen = Vec::new();
    let all = wait::until(patience, "jobs of a dead worker to run elsewhere", async || {
        seen = effects.look(|all| elsewhere(recent(all, since_ns), tries, worker, since_ns));
        if seen.iter().any(Option::is_none) {
            bail!("{seen:?}");
        }
        Ok(())
    });
    // What is missing is told by its absence.
    let _some_missing = all.await;
    seen.into_iter().flatten().map(|at| Duration::from_nanos(at - since_ns)).collect()
}

/// What was written since a moment, and a little before. A process that was stopped between the look at the clock and
/// the write has old times among new ones, so the search goes on behind them.
fn recent(all: &[Effect], since_ns: u64) -> &[Effect] {
    let (mut from, mut older) = (all.len(), 0);
    while from > 0 && older < OLDER {
        from -= 1;
        older = if all[from].at_ns < since_ns { older + 1 } else { 0 };
    }
    &all[from..]
}

#[cfg(test)]
mod tests {
    use stepfleet_protocol::id::PartitionId;

    use super::*;

    fn effect(at_ns: u64, done: bool, step: &str, worker: &str) -> Effect {
        let phase = if done { Phase::Done } else { Phase::Begun };
        let run = RunId::new(PartitionId(3), 1, 1).to_string();
        let job = format!("{step}{worker}");
        Effect { at_ns, phase, run, step: step.into(), generation: 1, attempt: 1, job, worker: worker.into() }
    }

    #[test]
    fn a_commit_is_seen_when_a_need_was_done_after_the_moment() {
        let all = [effect(1, false, "a", "w"), effect(5, true, "a", "w"), effect(8, false, "b", "w")];
        assert_eq!(commits_since(&all, 2), BTreeMap::from([(3, 8)]));
        assert_eq!(commits_since(&all, 5), BTreeMap::new(), "the commit may have been before");
        assert_eq!(commits_since(&all[2..], 0), BTreeMap::new(), "nothing was done");
    }

    #[test]
    fn what_a_dead_worker_left_is_seen_to_run_elsewhere() {
        let all = [
            effect(1, false, "a", "w1"),
            effect(2, true, "a", "w1"),
            effect(3, false, "b", "w1"),
            effect(9, false, "b", "w2"),
        ];
        let tries = at_work(&all, "w1", 4);
        assert_eq!(tries.len(), 1, "{tries:?}");
        assert_eq!(elsewhere(&all, &tries, "w1", 4), [Some(9)]);
        assert!(at_work(&all, "w1", 9).is_empty(), "it ran elsewhere before");
        assert_eq!(elsewhere(&all[..3], &tries, "w1", 2), [None], "only it itself");
    }
}
