//! What keeps the gates of a process in step with the fleet: tells the circuit breakers what owners have counted, gets tokens
//! for jobs that may try, and reads how the gates stand.
//!
//! One task a process, over pooled connections. While Redis does not answer the view stays as it was.

use std::{collections::BTreeMap, sync::Arc, sync::PoisonError, time::Duration};

use redis::{Cmd, Value};
use stepfleet_protocol::{
    beat::Control,
    codec::pack,
    gate::{Gate, Stand},
    id::PartitionId,
    keys::{Keys, slot, slot_of},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Inbox, Say, Tally, Verdict, View, Way};
use crate::{
    machine::rules::Breaker,
    shell::{metrics::Metrics, policies::Known},
    store::{
        gates::{breaker, read_gates},
        limits::Tell,
        link::{Dial, Link as _, LinkError},
        reply,
    },
};

/// Time between two looks at the gates.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Longest trip.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a token holds, in milliseconds, unless its owner says that the job is still at it.
const TOKEN_MS: u64 = 30_000;
/// Gates that are told in one message; beyond it workers look themselves.
const TOLD_MAX: usize = 500;

/// Makes the way of owners to the pump of a process, and the pump. `random` must be fresh: it tells the tokens of this process
/// from those of all others.
pub fn new<D: Dial>(
    dial: D,
    keys: Keys,
    rules: watch::Receiver<Known>,
    metrics: Metrics,
    random: u64,
) -> (Way, Pump<D>) {
    let (say, heard) = mpsc::unbounded_channel();
    let (view, receiver) = watch::channel(Arc::new(View::default()));
    let way = Way { view: receiver, say };
    let pump = Pump { dial, keys, rules, metrics, heard, view, random, minted: 0, link: None };
    (way, pump)
}

/// See the module.
pub struct Pump<D: Dial> {
    dial: D,
    keys: Keys,
    rules: watch::Receiver<Known>,
    metrics: Metrics,
    heard: mpsc::UnboundedReceiver<Say>,
    view: watch::Sender<Arc<View>>,
    /// Makes tokens that no other process makes.
    random: u64,
    minted: u64,
    link: Option<D::Link>,
}

/// What was heard and is not told yet.
#[derive(Default)]
struct Heard {
    tallies: BTreeMap<Gate, Tally>,
    canaries: BTreeMap<Gate, Vec<(String, Verdict)>>,
    wants: Vec<(Gate, u32, Inbox)>,
    shares: Vec<(Gate, Tell, Inbox)>,
}

impl Heard {
    fn take(&mut self, said: Say) {
        match said {
            Say::Counted(gate, tally) => self.tallies.entry(gate).or_default().add(&tally),
            Say::Canary(gate, token, verdict) => self.canaries.entry(gate).or_default().push((token, verdict)),
            Say::Wants(gate, count, inbox) => self.wants.push((gate, count, inbox)),
            Say::Share(gate, tell, inbox) => self.shares.push((gate, tell, inbox)),
            Say::Look => {}
        }
    }
}

impl<D: Dial> Pump<D> {
    /// Runs until `shutdown`.
    pub async fn run(mut self, partitions: watch::Receiver<u16>, shutdown: CancellationToken) {
        let mut heard = Heard::default();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                said = self.heard.recv() => match said {
                    Some(said) => heard.take(said),
                    None => return,
                },
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            while let Ok(said) = self.heard.try_recv() {
                heard.take(said);
            }
            let partitions = u64::from(*partitions.borrow()).max(1);
            if let Err(error) = self.turn(&mut heard, partitions).await {
                tracing::debug!(%error, "circuit breakers cannot be told");
                self.link = None;
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
                self.dial.refresh().await;
            }
        }
    }

    /// Tells what was heard, and looks how the gates stand.
    async fn turn(&mut self, heard: &mut Heard, partitions: u64) -> Result<(), LinkError> {
        self.tell(heard).await?;
        let mut look = redis::cmd("HGETALL");
        look.arg(self.keys.fleet_gates());
        let found = self.one(look).await?;
        if let Some(text) = reply::error(&found) {
            return Err(LinkError::Lost(text));
        }
        let view = View { gates: read_gates(found), partitions };
        self.follow(view).await;
        Ok(())
    }

    async fn tell(&mut self, heard: &mut Heard) -> Result<(), LinkError> {
        self.share(std::mem::take(&mut heard.shares)).await?;
        // What only time changes: an open breaker whose time is over, a recovery that is complete.
        let due: Vec<Gate> =
            self.view.borrow().gates.iter().filter(|(_, g)| g.until_ms > 0).map(|(g, _)| g.clone()).collect();
        for gate in due {
            heard.tallies.entry(gate).or_default();
        }
        for gate in heard.canaries.keys() {
            heard.tallies.entry(gate.clone()).or_default();
        }
        while let Some((gate, tally)) = heard.tallies.first_key_value() {
            let (gate, tally) = (gate.clone(), *tally);
            let mut report = breaker(&self.keys, &gate, &self.policy(&gate), "report");
            report.arg(tally.ok).arg(tally.failed).arg(tally.first).arg(tally.most).arg(tally.last);
            for (token, verdict) in heard.canaries.get(&gate).into_iter().flatten() {
                report.arg(token).arg(verdict.as_str());
            }
            let told = self.one(report).await?;
            if let Some(text) = reply::error(&told) {
                // A full server refuses; what was counted is worth less than what comes next.
                tracing::debug!(%gate, text, "a circuit breaker was not told");
            }
            heard.tallies.remove(&gate);
            heard.canaries.remove(&gate);
            let fields = reply::array(&told).unwrap_or_default();
            if fields.get(1).and_then(reply::number) == Some(1) {
                let state = fields.first().and_then(reply::text).unwrap_or_default();
                tracing::warn!(%gate, %state, "circuit breaker");
                self.metrics.breaker_moves.with_label_values(&[&state]).inc();
            }
        }
        for (gate, count, inbox) in std::mem::take(&mut heard.wants) {
            let mut take = breaker(&self.keys, &gate, &self.policy(&gate), "take");
            take.arg(TOKEN_MS);
            for _ in 0..count {
                self.minted += 1;
                take.arg(format!("{:016x}.{}", self.random, self.minted));
            }
            let granted = self.one(take).await?;
            let tokens = reply::array(&granted).unwrap_or_default().iter().filter_map(reply::text);
            let tokens: Vec<String> = tokens.map(Into::into).collect();
            if !tokens.is_empty() {
                inbox.lock().unwrap_or_else(PoisonError::into_inner).tokens.entry(gate).or_default().extend(tokens);
            }
        }
        Ok(())
    }

    /// Tells what owners have of limits, all in one trip, and brings them the answers.
    async fn share(&mut self, told: Vec<(Gate, Tell, Inbox)>) -> Result<(), LinkError> {
        for part in told.chunks(TOLD_MAX) {
            let mut pipe = redis::pipe();
            let rules = self.rules.borrow().rules.clone();
            let known = part.iter().filter_map(|said| Some((said, rules.limit_of(&said.0)?)));
            let asked: Vec<_> = known
                .map(|((gate, tell, inbox), limit)| {
                    pipe.add_command(tell.call(&self.keys, gate, &limit));
                    (gate, tell, inbox)
                })
                .collect();
            for ((gate, tell, inbox), reply) in asked.into_iter().zip(self.trip(&pipe).await?) {
                if let Some(text) = reply::error(&reply) {
                    tracing::debug!(%gate, text, "a limit was not told");
                    continue;
                }
                let answer = (gate.clone(), tell.call, tell.answer(&reply));
                self.metrics.limit_permits.inc_by(answer.2.map_or(0, |granted| granted.granted));
                inbox.lock().unwrap_or_else(PoisonError::into_inner).shares.push(answer);
            }
        }
        Ok(())
    }

    /// Gives owners the view if it is new, and tells workers.
    async fn follow(&mut self, view: View) {
        if **self.view.borrow() == view {
            return;
        }
        let blocking = view.blocking();
        let told = self.view.borrow().blocking() != blocking;
        for stand in [Stand::Open, Stand::HalfOpen, Stand::Recovering, Stand::Paused] {
            let count = view.gates.values().filter(|g| g.stand == stand).count();
            self.metrics.gates.with_label_values(&[stand.as_str()]).set(count as i64);
        }
        self.view.send_replace(Arc::new(view));
        if told && blocking.len() <= TOLD_MAX {
            let partition = PartitionId(0);
            let mut publish = redis::pipe();
            publish.cmd("SPUBLISH").arg(self.keys.partition(partition).control()).arg(pack(&Control::Gates(blocking)));
            // Workers look by themselves too.
            if let Ok(mut link) = self.dial.dial(slot(partition), PATIENCE).await {
                let _ = link.trip(&publish).await;
            }
        }
    }

    fn policy(&self, gate: &Gate) -> Breaker {
        self.rules.borrow().rules.breaker_of(gate)
    }

    async fn one(&mut self, command: Cmd) -> Result<Value, LinkError> {
        let mut pipe = redis::pipe();
        pipe.add_command(command);
        Ok(self.trip(&pipe).await?.into_iter().next().unwrap_or(Value::Nil))
    }

    async fn trip(&mut self, pipe: &redis::Pipeline) -> Result<Vec<Value>, LinkError> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => self.dial.dial(slot_of(self.keys.fleet_gates().as_bytes()), PATIENCE).await?,
        };
        let replies = link.trip(pipe).await?;
        self.link = Some(link);
        Ok(replies)
    }
}
