//! Gates that hold jobs back: circuit breakers that are open, and paused queues. A job that came before its gate closed is
//! handed back, uncounted, instead of being done.
//!
//! Coordinators tell on the control channel. Since a message may be lost, the worker looks by itself too: with its beats, and
//! more often while anything is held back, so that it hands back nothing that may pass again.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use redis::{Pipeline, Value};
use stepfleet_protocol::{
    codec,
    gate::{Gate, GateState},
    message::Job,
    name::Name,
};

use crate::{beat::trip, kit::Kit};

/// Time between two looks while something is held back.
const LOOK_CLOSED: Duration = Duration::from_millis(250);
/// Time between two looks otherwise.
const LOOK_OPEN: Duration = Duration::from_secs(10);

/// The gates that hold jobs back, as last heard.
#[derive(Debug, Default)]
pub(crate) struct Gates {
    blocking: RwLock<HashSet<Gate>>,
    changed: tokio::sync::Notify,
}

impl Gates {
    /// Takes what was heard or read.
    pub(crate) fn set(&self, blocking: Vec<Gate>) {
        let new: HashSet<Gate> = blocking.into_iter().collect();
        *self.blocking.write().unwrap_or_else(PoisonError::into_inner) = new;
        self.changed.notify_one();
    }

    fn is_open(&self) -> bool {
        self.blocking.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Whether a job from this queue has to be handed back.
    pub(crate) fn blocks(&self, job: &Job, queue: &Name) -> bool {
        let blocking = self.blocking.read().unwrap_or_else(PoisonError::into_inner);
        if blocking.is_empty() {
            return false;
        }
        let own = || job.gate.clone().unwrap_or_else(|| Gate::handler(&job.handler));
        blocking.contains(&Gate::queue(queue)) || (!job.canary && blocking.contains(&own()))
    }
}

/// Looks from time to time until the worker has left.
pub(crate) async fn run(kit: Arc<Kit>) {
    loop {
        match look(&kit).await {
            Ok(blocking) => kit.gates.set(blocking),
            Err(error) => tracing::debug!(%error, "gates could not be read"),
        }
        // What was just set is no news.
        let _ = futures::FutureExt::now_or_never(kit.gates.changed.notified());
        let wait = if kit.gates.is_open() { LOOK_OPEN } else { LOOK_CLOSED };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = kit.gates.changed.notified() => tokio::time::sleep(LOOK_CLOSED).await,
            () = kit.flush.cancelled() => return,
        }
    }
}

async fn look(kit: &Kit) -> Result<Vec<Gate>, String> {
    let key = kit.keys.fleet_gates();
    let mut pipeline = Pipeline::new();
    pipeline.cmd("HGETALL").arg(&key);
    let replies = trip(kit, &key, &pipeline).await?;
    let blocks = |(name, state): (&Value, &Value)| {
        let (Value::BulkString(name), Value::BulkString(state)) = (name, state) else { return None };
        let gate = Gate::parse(std::str::from_utf8(name).ok()?).ok()?;
        codec::unpack::<GateState>(state).is_ok_and(|state| state.blocks()).then_some(gate)
    };
    match replies.first() {
        Some(Value::Array(flat)) => Ok(flat.chunks_exact(2).filter_map(|pair| blocks((&pair[0], &pair[1]))).collect()),
        Some(Value::Map(pairs)) => Ok(pairs.iter().filter_map(|(name, state)| blocks((name, state))).collect()),
        _ => Err("an unexpected reply to HGETALL".into()),
    }
}
