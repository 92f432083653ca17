//! New runs on their way to the log.
//!
//! A run's id is made here and routes it. The plan and a large input are written in the same MULTI as the log entry that names
//! them. Submits may be repeated: the owner knows a run by its id.

mod durable;
mod seen;

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use redis::Value;
use stepfleet_protocol::{
    codec,
    id::{CommandId, PartitionId, RunId, StreamId},
    keys::slot,
    limits::{INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX},
    message::{Answer, Body, LogEntry, NewRun, Submit},
    value::{Payload, ValueRef},
};
use uuid::Uuid;

use super::{
    ask::{self, AskError},
    client::{Client, ClientError},
    reply,
    workflows::Stored,
};

pub(super) use self::seen::{Clock, PlansWritten};
pub use self::{durable::Durability, seen::PLAN_AGE_MAX};

/// How long an idempotency key is kept: a day and an hour, in milliseconds.
pub const IDEMPOTENCY_MS: u64 = 25 * 3_600_000;
/// Runs of one log entry.
pub const RUNS_PER_ENTRY: usize = 128;
/// Bytes of inputs of one log entry, beyond which the next one begins.
const BYTES_PER_ENTRY: usize = 256 << 10;
/// Log entries of one bulk submit on their way at once.
const IN_FLIGHT: usize = 12;

/// A run to be submitted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What it follows.
    pub workflow: Arc<Stored>,
    /// The MessagePack bytes of its input.
    pub input: Option<Bytes>,
    /// W3C trace context of the submitter.
    pub traceparent: Option<String>,
    /// The client's key and a fingerprint of its request: the same pair gives the same run.
    pub idempotency: Option<(String, String)>,
}

/// A run that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Its id.
    pub run: RunId,
    /// The owner's answer; none if it did not come in time.
    pub answer: Option<Answer>,
    /// What a durable submit got.
    pub durability: Option<Durability>,
}

/// Who submits, when and how.
#[derive(Debug, Clone)]
pub struct How {
    /// Who asks.
    pub actor: String,
    /// The caller's time in Unix milliseconds, for the ids.
    pub now_ms: u64,
    /// Wait for the disk or a replica.
    pub durable: bool,
}

/// A submit under way.
struct Sending<'a> {
    how: &'a How,
    begun: Instant,
}

impl Sending<'_> {
    /// This host's time now.
    fn host_ms(&self) -> u64 {
        self.how.now_ms + self.begun.elapsed().as_millis() as u64
    }
}

/// A run with its id, at its place in the list of the caller.
struct Placed {
    place: usize,
    run: RunId,
    wanted: Wanted,
}

impl Client {
    /// Submits one run. Returns when its owner has answered, after five seconds in any case.
    ///
    /// # Errors
    /// [`ClientError`]; after `Unavailable` it is unknown whether the run exists.
    pub async fn submit(&self, wanted: Wanted, how: &How) -> Result<Taken, ClientError> {
        self.submit_many(vec![wanted], how).await.pop().expect("one answer for one run")
    }

    /// Submits many runs, in entries of bounded size that are on their way at the same time. One answer for each, in order.
    pub async fn submit_many(&self, wanted: Vec<Wanted>, how: &How) -> Vec<Result<Taken, ClientError>> {
        let count = wanted.len();
        let sending = Sending { how, begun: Instant::now() };
        let mut out: Vec<Option<Result<Taken, ClientError>>> = (0..count).map(|_| None).collect();
        let mut placed = Vec::with_capacity(count);
        let mut part = Chunker::default();
        let mut claims = Vec::new();
        for (place, wanted) in wanted.into_iter().enumerate() {
            if let Err(e) = check_size(&wanted) {
                out[place] = Some(Err(e));
                continue;
            }
            let partition = match part.next(self, &wanted).await {
                Ok(partition) => partition,
                Err(e) => {
                    out[place] = Some(Err(e));
                    continue;
                }
            };
            let one = Placed {
                place,
                run: RunId::new(partition, self.shared.clock.server_ms(how.now_ms), rand::random()),
                wanted,
            };
            match &one.wanted.idempotency {
                Some(_) => claims.push(self.claim_run(one)),
                None => placed.push(one),
            }
        }
        let claimed: Vec<_> = stream::iter(claims).buffer_unordered(IN_FLIGHT).collect().await;
        for claimed in claimed {
            match claimed {
                Ok(one) => placed.push(one),
                Err((place, e)) => out[place] = Some(Err(e)),
            }
        }
        let sendings = entries(placed).into_iter().map(|(partition, runs)| self.send(partition, runs, &sending));
        let answers: Vec<_> = stream::iter(sendings).buffer_unordered(IN_FLIGHT).collect().await;
        for (place, answer) in answers.into_iter().flatten() {
            out[place] = Some(answer);
        }
        out.into_iter().map(|a| a.expect("every run was answered")).collect()
    }

    /// Claims the idempotency key of a run: an earlier claim with the same fingerprint gives its run id.
    async fn claim_run(&self, mut one: Placed) -> Result<Placed, (usize, ClientError)> {
        let (key, print) = one.wanted.idempotency.clone().expect("only called with a key");
        let found = self.claim("runs", &key, &format!("{} {print}", one.run)).await.map_err(|e| (one.place, e))?;
        if let Some(found) = found {
            let broken = (one.place, ClientError::Broken("an idempotency key"));
            let Some((run, before)) = found.split_once(' ') else { return Err(broken) };
            if before != print {
                return Err((one.place, ClientError::Mismatch));
            }
            one.run = run.parse().map_err(|_| broken)?;
        }
        Ok(one)
    }

    /// Sends the runs of one entry and waits for their answers.
    async fn send(
        &self,
        partition: PartitionId,
        mut runs: Vec<Placed>,
        sending: &Sending<'_>,
    ) -> Vec<(usize, Result<Taken, ClientError>)> {
        // The ids of many are made long before the last of them is sent, and an old one costs its owner a look.
        let now_ms = self.shared.clock.server_ms(sending.host_ms());
        for one in runs.iter_mut().filter(|one| one.wanted.idempotency.is_none()) {
            one.run = RunId::new(partition, now_ms, rand::random());
        }
        let all: Vec<usize> = (0..runs.len()).collect();
        let again = runs.iter().any(|r| r.wanted.idempotency.is_some());
        let first = match self.send_once(partition, &runs, &all, again, sending).await {
            Ok(answers) => answers,
            Err(e) => return runs.iter().map(|r| (r.place, Err(e.clone()))).collect(),
        };
        let (mut answers, durability) = first;
        let mut failed = None;
        let lacking: Vec<usize> = all.iter().copied().filter(|i| answers.get(*i) == Some(&Answer::NoPlan)).collect();
        if !lacking.is_empty() {
            // The plan was dropped since this process wrote it: once more, with it.
            for i in &lacking {
                self.shared.plans.forget(partition, &runs[*i].wanted.workflow.hash);
            }
            match self.send_once(partition, &runs, &lacking, true, sending).await {
                Ok((second, _)) => {
                    for (n, i) in lacking.iter().enumerate() {
                        // Without an answer in time the run is in the log all the same.
                        answers[*i] = second.get(n).cloned().unwrap_or(Answer::NoPlan);
                    }
                }
                Err(e) => failed = Some(e),
            }
        }
        let taken = |(i, r): (usize, &Placed)| {
            if let Some(error) = failed.as_ref().filter(|_| lacking.contains(&i)) {
                return (r.place, Err(error.clone()));
            }
            let answer = answers.get(i).cloned().filter(|a| *a != Answer::NoPlan);
            (r.place, Ok(Taken { run: r.run, answer, durability }))
        };
        runs.iter().enumerate().map(taken).collect()
    }

    #[expect(clippy::too_many_arguments, reason = "one call, and a struct for it would only move the list")]
    async fn send_once(
        &self,
        partition: PartitionId,
        runs: &[Placed],
        which: &[usize],
        again: bool,
        sending: &Sending<'_>,
    ) -> Result<(Vec<Answer>, Option<Durability>), ClientError> {
        let id = CommandId(Uuid::now_v7());
        let wait = self.shared.replies.expect(id).ok_or(ClientError::Busy)?;
        let new = which.iter().map(|i| new_run(&runs[*i])).collect();
        let how = sending.how;
        let mut submit = Submit { id, actor: how.actor.clone(), runs: new, again };
        let (begun, host_ms) = (Instant::now(), sending.host_ms());
        let mut sent = self.append(partition, runs, which, &submit, how.durable).await;
        if let Err(AskError::Unavailable(why)) = &sent {
            // It may be in the log already: the owner then looks whether it knows the runs. What the second try is refused
            // with says nothing about the first.
            let unknown = AskError::Unavailable(why.clone());
            submit.again = true;
            sent = self.append(partition, runs, which, &submit, how.durable).await.map_err(|_| unknown);
        }
        let (entry, durability) = sent?;
        self.shared.clock.learn(host_ms, entry, begun.elapsed());
        Ok((self.answers(partition, wait).await?, durability))
    }

    /// One MULTI: plans that may be missing, large inputs, the log entry.
    #[expect(clippy::too_many_arguments, reason = "one call, and a struct for it would only move the list")]
    async fn append(
        &self,
        partition: PartitionId,
        runs: &[Placed],
        which: &[usize],
        submit: &Submit,
        durable: bool,
    ) -> Result<(StreamId, Option<Durability>), AskError> {
        let keys = self.keys.partition(partition);
        let mut pipe = redis::pipe();
        pipe.cmd("MULTI");
        let mut plans = BTreeMap::new();
        for one in which.iter().map(|i| &runs[*i]) {
            let workflow = &one.wanted.workflow;
            if !self.shared.plans.fresh(partition, &workflow.hash) {
                plans.insert(workflow.hash.clone(), workflow.bytes.clone());
            }
            if let Some(input) = one.wanted.input.as_ref().filter(|i| i.len() > INLINE_BYTES_MAX) {
                pipe.cmd("SET").arg(keys.value(one.run)).arg(&input[..]);
            }
        }
        for (hash, bytes) in &plans {
            pipe.cmd("SET").arg(keys.plan(hash)).arg(&bytes[..]).arg("NX");
        }
        let wire = codec::encode(&LogEntry::new(Body::Submit(submit.clone())));
        let values = which.iter().map(|i| size(&runs[*i].wanted)).filter(|bytes| *bytes > INLINE_BYTES_MAX);
        self.note_written(partition, wire.bytes.len() + values.sum::<usize>());
        pipe.cmd("XADD").arg(keys.log()).arg("*").arg(wire.field).arg(&wire.bytes[..]);
        pipe.cmd("EXEC");
        let (entry, durability) = if durable {
            let (entry, durability) = self.append_durably(partition, &pipe).await?;
            (entry, Some(durability))
        } else {
            (executed(ask::ask(&self.redis, slot(partition), &pipe).await?)?, None)
        };
        for hash in plans.into_keys() {
            self.shared.plans.wrote(partition, hash);
        }
        Ok((entry, durability))
    }
}

/// Picks partitions: one for as many runs as fit one entry.
#[derive(Default)]
struct Chunker {
    partition: Option<PartitionId>,
    runs: usize,
    bytes: usize,
}

impl Chunker {
    async fn next(&mut self, client: &Client, wanted: &Wanted) -> Result<PartitionId, ClientError> {
        self.runs += 1;
        self.bytes += size(wanted);
        match self.partition {
            Some(partition) if self.runs <= RUNS_PER_ENTRY && self.bytes <= BYTES_PER_ENTRY => Ok(partition),
            _ => {
                let partition = client.next_partition().await?;
                *self = Self { partition: Some(partition), runs: 1, bytes: size(wanted) };
                Ok(partition)
            }
        }
    }
}

fn size(wanted: &Wanted) -> usize {
    wanted.input.as_ref().map_or(0, Bytes::len)
}

fn check_size(wanted: &Wanted) -> Result<(), ClientError> {
    let bytes = size(wanted);
    if bytes > PAYLOAD_BYTES_MAX {
        return Err(ClientError::TooLarge { what: "input", bytes, allowed: PAYLOAD_BYTES_MAX });
    }
    Ok(())
}

/// Groups runs by partition into entries of bounded size.
fn entries(placed: Vec<Placed>) -> Vec<(PartitionId, Vec<Placed>)> {
    let mut open: BTreeMap<PartitionId, (usize, Vec<Placed>)> = BTreeMap::new();
    let mut out = Vec::new();
    for one in placed {
        let (partition, bytes) = (one.run.partition(), size(&one.wanted));
        let (sum, runs) = open.entry(partition).or_default();
        if runs.len() >= RUNS_PER_ENTRY || (!runs.is_empty() && *sum + bytes > BYTES_PER_ENTRY) {
            out.push((partition, std::mem::take(runs)));
            *sum = 0;
        }
        *sum += bytes;
        runs.push(one);
    }
    out.extend(open.into_iter().filter(|(_, (_, runs))| !runs.is_empty()).map(|(p, (_, runs))| (p, runs)));
    out
}

fn new_run(one: &Placed) -> NewRun {
    let input = one.wanted.input.as_ref().map(|bytes| match bytes.len() {
        0..=INLINE_BYTES_MAX => Payload::Inline(bytes.clone()),
        long => Payload::Ref(ValueRef { id: one.run.to_string(), bytes: long as u64 }),
    });
    NewRun {
        run: one.run,
        plan: one.wanted.workflow.hash.clone(),
        version: one.wanted.workflow.version,
        input,
        traceparent: one.wanted.traceparent.clone(),
    }
}

/// Checks the replies to `MULTI … XADD EXEC`, and gives the entry's id.
fn executed(replies: Vec<Value>) -> Result<StreamId, AskError> {
    // A refused command says why; EXEC only that there was one.
    if let Some(text) = replies.iter().find_map(reply::error) {
        return Err(AskError::Refused(text));
    }
    let results = replies.last().and_then(reply::array).ok_or(AskError::Unexpected("EXEC"))?;
    let results = ask::all_good(results.to_vec())?;
    results.last().and_then(reply::text).and_then(|id| id.parse().ok()).ok_or(AskError::Unexpected("XADD"))
}
