//! The registry of workers.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use stepfleet_protocol::{
    beat::Beat,
    codec,
    id::WorkerId,
    keys::slot_of,
    limits::{DEAD_AFTER_MS, HEARTBEAT_MS},
};

use super::{
    super::client::{Client, lock},
    ClientError, count, reply,
};

/// Workers that are shown, at most; the earliest registered first.
pub const WORKERS_MAX: usize = 2_000;

/// A worker as the registry knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Registered {
    /// Its id.
    pub id: WorkerId,
    /// When it registered, in Unix milliseconds.
    pub registered_ms: u64,
    /// Beats so far.
    pub beats: u64,
    /// Its last account of itself; none if it has not given one, or one that cannot be read.
    pub beat: Option<Beat>,
    /// Its beat has not moved for the time after which a worker is dead, while this process watched.
    pub silent: bool,
}

/// When this process saw the beat of each worker move. Clocks of hosts are never compared.
#[derive(Debug, Default)]
pub(in crate::store) struct Pulses(Mutex<HashMap<WorkerId, Pulse>>);

#[derive(Debug)]
struct Pulse {
    beats: u64,
    moved: Instant,
    looked: Instant,
}

/// Two looks that are further apart say nothing about the time between them.
const LOOK_GAP_MAX: Duration = Duration::from_millis(DEAD_AFTER_MS + HEARTBEAT_MS);

impl Pulses {
    fn silent(&self, id: &WorkerId, beats: u64) -> bool {
        let now = Instant::now();
        let mut pulses = lock(&self.0);
        if pulses.len() > 2 * WORKERS_MAX {
            pulses.retain(|_, p| p.looked.elapsed() < LOOK_GAP_MAX);
        }
        let pulse = pulses.entry(id.clone()).or_insert(Pulse { beats, moved: now, looked: now });
        if pulse.beats != beats {
            (pulse.beats, pulse.moved) = (beats, now);
        }
        pulse.looked = now;
        now.duration_since(pulse.moved) >= Duration::from_millis(DEAD_AFTER_MS)
    }
}

impl Client {
    /// Every worker of the registry, at most [`WORKERS_MAX`], the earliest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn workers(&self) -> Result<Vec<Registered>, ClientError> {
        let key = self.keys.workers();
        let mut range = redis::cmd("ZRANGE");
        range.arg(&key).arg(0).arg(WORKERS_MAX - 1).arg("WITHSCORES");
        let found = self.ask_all(vec![(slot_of(key.as_bytes()), range)]).await?;
        let items = found.first().and_then(reply::array).unwrap_or_default();
        let ids: Vec<(WorkerId, u64)> = items
            .chunks_exact(2)
            .filter_map(|pair| {
                let at = reply::text(&pair[1]).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0);
                Some((reply::text(&pair[0])?.parse().ok()?, at as u64))
            })
            .collect();
        let get = |id: &WorkerId| {
            let key = self.keys.worker(id);
            let mut cmd = redis::cmd("HMGET");
            cmd.arg(&key).arg("n").arg("beat");
            (slot_of(key.as_bytes()), cmd)
        };
        let replies = self.ask_all(ids.iter().map(|(id, _)| get(id)).collect()).await?;
        let worker = |((id, registered_ms), value): ((WorkerId, u64), redis::Value)| {
            let fields = reply::array(&value).unwrap_or_default();
            let beats = count(fields.first());
            let beat = fields.get(1).and_then(reply::bytes).and_then(|b| codec::unpack(b).ok());
            let silent = self.shared.pulses.silent(&id, beats);
            Registered { id, registered_ms, beats, beat, silent }
        };
        Ok(ids.into_iter().zip(replies).map(worker).collect())
    }
}
