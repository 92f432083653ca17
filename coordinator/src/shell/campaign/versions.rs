//! Which versions of workers are live, for campaigns that wait for one.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use redis::Value;
use semver::{Version, VersionReq};
use stepfleet_protocol::{
    beat::{Beat, Phase},
    codec,
    keys::Keys,
    limits::DEAD_AFTER_MS,
};
use tokio::time::Instant;

use super::ASKS_PER_TRIP;
use crate::{
    shell::links::{Ask, Links},
    store::{
        link::{Dial, LinkError},
        read::fleet::WORKERS_MAX,
        record::DeadLetter,
        reply,
    },
};

/// Time between two looks at the workers.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Versions that a reason names.
const NAMED_MAX: usize = 5;

/// The workers as they were last seen.
#[derive(Debug, Default)]
pub(super) struct Versions {
    looked: Option<Instant>,
    pulses: HashMap<String, (u64, Instant)>,
    live: Vec<Beat>,
}

impl Versions {
    /// Looks at the workers, if it is time. One whose beat has not moved for the time after which a worker is dead does not
    /// count, nor does one that drains.
    pub(super) async fn look<D: Dial>(&mut self, links: &mut Links<D>, keys: &Keys) -> Result<(), LinkError> {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return Ok(());
        }
        let key = keys.workers();
        let found = links.one(&key, redis::cmd("ZRANGE").arg(&key).arg(0).arg(WORKERS_MAX - 1).clone()).await?;
        let ids = reply::array(&found).unwrap_or_default().iter().filter_map(reply::text);
        let ids: Vec<String> = ids.map(str::to_owned).collect();
        let ask = |id: &String| {
            let key = keys.worker(id);
            Ask::new(&key, vec![redis::cmd("HMGET").arg(&key).arg("n").arg("beat").clone()])
        };
        let answers = links.gather(ids.iter().map(ask).collect(), ASKS_PER_TRIP).await;
        self.live.clear();
        self.pulses.retain(|id, _| ids.contains(id));
        for (id, answer) in ids.into_iter().zip(answers) {
            let fields = answer?.replies.pop().unwrap_or(Value::Nil);
            let fields = reply::array(&fields).unwrap_or_default();
            let beats = fields.first().and_then(reply::number).unwrap_or(0) as u64;
            let beat = fields.get(1).and_then(reply::bytes).and_then(|bytes| codec::unpack::<Beat>(bytes).ok());
            let pulse = self.pulses.entry(id).or_insert_with(|| (beats, Instant::now()));
            if pulse.0 != beats {
                *pulse = (beats, Instant::now());
            }
            let is_live = pulse.1.elapsed() < Duration::from_millis(DEAD_AFTER_MS);
            self.live.extend(beat.filter(|beat| is_live && beat.phase == Phase::Running));
        }
        self.looked = Some(Instant::now());
        Ok(())
    }

    /// Why the letter has to wait; none if a live worker of its handler and queue has a version that fits.
    pub(super) fn miss(&self, wanted: &str, letter: &DeadLetter) -> Option<String> {
        let serving: BTreeSet<&str> = self
            .live
            .iter()
            .filter(|beat| beat.queues.contains(&letter.queue) && beat.handlers.contains(&letter.handler))
            .map(|beat| beat.version.as_str())
            .collect();
        let requirement = VersionReq::parse(wanted).ok();
        let fits = |text: &&str| {
            let version = Version::parse(text).ok();
            requirement.as_ref().zip(version).is_some_and(|(requirement, version)| requirement.matches(&version))
        };
        if serving.iter().any(fits) {
            return None;
        }
        let name = |text: &&str| match Version::parse(text) {
            Ok(_) => format!("`{text}`"),
            Err(_) => format!("`{text}`, which is no version"),
        };
        let named: Vec<String> = serving.iter().take(NAMED_MAX).map(name).collect();
        let there = if named.is_empty() { "nobody does".to_owned() } else { format!("found {}", named.join(", ")) };
        let (handler, queue) = (&letter.handler, &letter.queue);
        Some(format!("no live worker of version `{wanted}` does `{handler}` from queue `{queue}`: {there}"))
    }
}
