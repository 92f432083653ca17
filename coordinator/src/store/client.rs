//! What a client of the partitions does: it appends to their logs and waits for the answers. It never writes run state.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU32, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use redis::Pipeline;
use stepfleet_connect::Redis;
use stepfleet_protocol::{
    audit::AuditEntry,
    codec,
    id::{CommandId, PartitionId, RunId},
    keys::{Keys, slot},
    limits::{INLINE_BYTES_MAX, PARTITIONS_MAX, PAYLOAD_BYTES_MAX},
    message::{Answer, Body, Command, LogEntry, Resolution, Verb, command_value},
    value::{Payload, ValueRef},
};
use uuid::Uuid;

use super::{
    admission::Load,
    ask::{self, AskError, Swap},
    intent::Change,
    replies::{Replies, Wait},
    reply,
};

/// The list of partitions is read again after this long.
const PARTITIONS_AGE_MAX: Duration = Duration::from_secs(5);
/// How long a value that travels with a command is kept for its owner, in milliseconds.
pub(crate) const COMMAND_VALUE_MS: u64 = 25 * 3_600_000;
/// Field of [`Keys::meta`] with the number of partitions.
pub const FIELD_PARTITIONS: &str = "partitions";

/// Why a wish was not fulfilled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// Redis gave no usable answer; whether the wish was written is unknown where it was unavailable.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// There are no partitions: no coordinator has ever run here.
    #[error("there are no partitions; hint: start a coordinator")]
    NoPartitions,
    /// The idempotency key was used with another request.
    #[error("the idempotency key was used before with another request")]
    Mismatch,
    /// Too many callers wait for answers already.
    #[error("too many requests wait for the coordinator")]
    Busy,
    /// A value is too large.
    #[error("the {what} has {bytes} bytes: allowed are at most {allowed}")]
    TooLarge {
        /// Which value.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// What is allowed.
        allowed: usize,
    },
    /// The node has too little memory left for this.
    #[error("the redis node `{node}` is {percent} % full: {what} are taken below {below} % of its `maxmemory`")]
    ServerFull {
        /// The node.
        node: String,
        /// How full it is, in per cent of `maxmemory`.
        percent: u32,
        /// What is refused.
        what: &'static str,
        /// Below what it is taken, in per cent.
        below: u32,
    },
    /// There is no such workflow or version.
    #[error("there is no workflow `{0}`")]
    NoWorkflow(String),
    /// What Redis holds cannot be read.
    #[error("{0} in redis is broken or of a newer version")]
    Broken(&'static str),
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decided {
    /// The owner's answer.
    Answered(Answer),
    /// It is in the log, and the owner has not answered within the wait.
    Pending,
}

/// A wish about one run.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The run.
    pub run: RunId,
    /// What is wished.
    pub verb: Verb,
    /// Who asks.
    pub actor: String,
    /// Why.
    pub reason: Option<String>,
    /// The command's id; one that was used before gets the same answer.
    pub id: CommandId,
    /// The id may have been used before.
    pub again: bool,
}

/// Takes a large input out of the wish and leaves a reference, which travels better.
pub(crate) fn take_large(verb: &mut Verb, id: CommandId) -> Option<Bytes> {
    let (Verb::Replay { input: Some(input), .. }
    | Verb::Resolve { resolution: Resolution::Completed(Some(input)), .. }) = verb
    else {
        return None;
    };
    match input {
        Payload::Inline(bytes) if bytes.len() > INLINE_BYTES_MAX => {
            let bytes = std::mem::take(bytes);
            *input = Payload::Ref(ValueRef { id: command_value(id), bytes: bytes.len() as u64 });
            Some(bytes)
        }
        Payload::Inline(_) | Payload::Ref(_) => None,
    }
}

/// The commands that make `count` partitions of what was found; how many there are, if that is no less.
fn more_partitions(key: &str, found: &redis::Value, count: u16) -> Result<Pipeline, u16> {
    let now = reply::number(found).and_then(|n| u16::try_from(n).ok()).unwrap_or(0);
    if now >= count {
        return Err(now);
    }
    let mut write = redis::pipe();
    write.cmd("HSET").arg(key).arg(FIELD_PARTITIONS).arg(count);
    Ok(write)
}

/// A client of the partitions. Clones share everything.
#[derive(Debug, Clone)]
pub struct Client {
    pub(super) redis: Redis,
    pub(super) keys: Keys,
    pub(super) shared: Arc<Shared>,
    /// Partitions that are left out of looks at all of them.
    pub(super) left_out: Arc<BTreeSet<PartitionId>>,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    partitions: Mutex<Option<(Instant, u16)>>,
    next: AtomicU32,
    pub(super) plans: super::submit::PlansWritten,
    pub(super) versions: Mutex<HashMap<(String, u32), Arc<super::workflows::Stored>>>,
    pub(super) replies: Replies,
    pub(super) clock: super::submit::Clock,
    pub(super) read_plans: Mutex<HashMap<String, Arc<stepfleet_protocol::workflow::Workflow>>>,
    pub(super) memories: super::admission::Memories,
    pub(super) pulses: super::read::fleet::Pulses,
    pub(super) paces: super::read::queues::Paces,
}

/// A lock whose holder cannot have left the value half-changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// A client over these servers.
    pub fn new(redis: Redis, keys: Keys) -> Self {
        Self { redis, keys, shared: Arc::default(), left_out: Arc::default() }
    }

    /// The keys of this installation.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// How many partitions there are; read again every five seconds.
    ///
    /// # Errors
    /// [`ClientError::NoPartitions`], or Redis' fault.
    pub async fn partitions(&self) -> Result<u16, ClientError> {
        if let Some((at, count)) = *lock(&self.shared.partitions)
            && at.elapsed() < PARTITIONS_AGE_MAX
        {
            return Ok(count);
        }
        let key = self.keys.meta();
        let mut cmd = redis::cmd("HGET");
        cmd.arg(&key).arg(FIELD_PARTITIONS);
        let value = ask::one(&self.redis, &key, cmd).await?;
        let count =
            reply::number(&value).and_then(|n| u16::try_from(n).ok()).filter(|n| (1..=PARTITIONS_MAX).contains(n));
        let count = count.ok_or(ClientError::NoPartitions)?;
        *lock(&self.shared.partitions) = Some((Instant::now(), count));
        Ok(count)
    }

    /// Raises the number of partitions to `count`; a smaller one changes nothing. Returns how many there are now.
    ///
    /// # Errors
    /// Redis' fault.
    pub async fn add_partitions(&self, count: u16) -> Result<u16, ClientError> {
        debug_assert!(count <= PARTITIONS_MAX, "checked by the caller");
        let key = self.keys.meta();
        let mut read = redis::cmd("HGET");
        read.arg(&key).arg(FIELD_PARTITIONS);
        let total = ask::swap(&self.redis, &key, &read, |found| match more_partitions(&key, found, count) {
            Ok(write) => Swap::Write(write, count),
            Err(now) => Swap::Keep(now),
        });
        let total = total.await?;
        *lock(&self.shared.partitions) = None;
        Ok(total)
    }

    /// As [`Self::add_partitions`], in one change with the audit entry; a number that changes nothing has none.
    ///
    /// # Errors
    /// Redis' fault.
    pub async fn add_partitions_for(&self, count: u16, entry: &AuditEntry) -> Result<u16, ClientError> {
        debug_assert!(count <= PARTITIONS_MAX, "checked by the caller");
        let key = self.keys.meta();
        let total =
            self.change_hash((&key, FIELD_PARTITIONS), entry, |found| match more_partitions(&key, found, count) {
                Ok(write) => Change::Write(write, Box::new(entry.clone()), count),
                Err(now) => Change::None(now),
            });
        let total = total.await?;
        *lock(&self.shared.partitions) = None;
        Ok(total)
    }

    /// The partition of the next new run: the next one whose node has room.
    pub(super) async fn next_partition(&self) -> Result<PartitionId, ClientError> {
        let count = self.partitions().await?;
        let mut full = ClientError::NoPartitions;
        for _ in 0..count {
            let next = self.shared.next.fetch_add(1, Ordering::Relaxed);
            let partition = PartitionId((next % u32::from(count)) as u16);
            match self.admit(partition, Load::Submit) {
                Ok(()) => return Ok(partition),
                Err(error) => full = error,
            }
        }
        Err(full)
    }

    /// Whether runs of this partition can exist.
    pub(super) async fn knows(&self, partition: PartitionId) -> Result<bool, ClientError> {
        Ok(partition.0 < self.partitions().await?)
    }

    /// Sends a command to the run's owner and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError`]; after `Unavailable` the same wish may be sent again with `again`.
    pub async fn command(&self, wish: Wish) -> Result<Decided, ClientError> {
        let partition = wish.run.partition();
        if !self.knows(partition).await? {
            return Ok(Decided::Answered(Answer::NotFound));
        }
        self.admit(partition, Load::Command)?;
        let Wish { run, mut verb, actor, reason, id, again } = wish;
        let value = take_large(&mut verb, id);
        if let Some(bytes) = value.as_ref().map(Bytes::len).filter(|bytes| *bytes > PAYLOAD_BYTES_MAX) {
            return Err(ClientError::TooLarge { what: "input", bytes, allowed: PAYLOAD_BYTES_MAX });
        }
        let mut command = Command { id, actor, run, reason, verb, again, campaign: None };
        let wait = self.shared.replies.expect(id).ok_or(ClientError::Busy)?;
        let mut sent = self.append_command(partition, &command, value.as_ref()).await;
        if let Err(AskError::Unavailable(_)) = sent {
            // It may be in the log already; the owner then finds its own answer.
            command.again = true;
            sent = self.append_command(partition, &command, value.as_ref()).await;
        }
        sent?;
        Ok(match self.answers(partition, wait).await?.into_iter().next() {
            Some(answer) => Decided::Answered(answer),
            None => Decided::Pending,
        })
    }

    /// The log entry, and in the same transaction the value that travels with it.
    async fn append_command(
        &self,
        partition: PartitionId,
        command: &Command,
        value: Option<&Bytes>,
    ) -> Result<(), AskError> {
        let keys = self.keys.partition(partition);
        let wire = codec::encode(&LogEntry::new(Body::Command(command.clone())));
        let mut pipe = redis::pipe();
        if let Some(value) = value {
            let key = keys.value(command_value(command.id));
            pipe.cmd("MULTI");
            pipe.cmd("SET").arg(key).arg(&value[..]).arg("PX").arg(COMMAND_VALUE_MS);
        }
        pipe.cmd("XADD").arg(keys.log()).arg("*").arg(wire.field).arg(&wire.bytes[..]);
        if value.is_some() {
            pipe.cmd("EXEC");
        }
        let replies = ask::all_good(ask::ask(&self.redis, slot(partition), &pipe).await?)?;
        let executed = replies.last().and_then(reply::array).unwrap_or_default();
        ask::all_good(executed.to_vec()).map(drop)
    }

    /// Waits for the answers to a command; none if they do not come in time.
    pub(super) async fn answers(&self, partition: PartitionId, wait: Wait<'_>) -> Result<Vec<Answer>, ClientError> {
        let keys = self.keys.partition(partition);
        Ok(wait.answer(&self.redis, &keys).await?.map(|r| r.answers).unwrap_or_default())
    }

    /// Claims an idempotency key of a command: the same key with the same request gives the same command id.
    ///
    /// # Errors
    /// [`ClientError::Mismatch`] when it was used with another request.
    pub async fn claim_command(&self, key: &str, fingerprint: &str) -> Result<CommandId, ClientError> {
        let mut fresh = Uuid::now_v7();
        let found = self.claim("commands", key, &format!("{fresh} {fingerprint}")).await?;
        if let Some(found) = found {
            let (id, print) = found.split_once(' ').ok_or(ClientError::Broken("an idempotency key"))?;
            if print != fingerprint {
                return Err(ClientError::Mismatch);
            }
            fresh = Uuid::parse_str(id).map_err(|_| ClientError::Broken("an idempotency key"))?;
        }
        Ok(CommandId(fresh))
    }

    /// Sets an idempotency key unless it is set. Returns what was there before.
    pub(super) async fn claim(&self, namespace: &str, key: &str, value: &str) -> Result<Option<String>, ClientError> {
        let key = self.keys.idempotency(namespace, key);
        let mut cmd = redis::cmd("SET");
        cmd.arg(&key).arg(value).arg("NX").arg("GET").arg("PX").arg(super::submit::IDEMPOTENCY_MS);
        let found = ask::one(&self.redis, &key, cmd).await?;
        let found = reply::text(&found).map(str::to_owned);
        // A repeated SET after a lost reply finds its own value.
        Ok(found.filter(|f| f != value))
    }

    /// Tells a worker to drain. Returns how many connections heard it.
    ///
    /// # Errors
    /// Redis' fault.
    pub async fn drain(&self, worker: &str) -> Result<u64, ClientError> {
        let channel = self.keys.worker_control(worker);
        let mut cmd = redis::cmd("SPUBLISH");
        cmd.arg(&channel).arg(codec::pack(&stepfleet_protocol::beat::Control::Drain));
        let heard = ask::one(&self.redis, &channel, cmd).await?;
        Ok(reply::number(&heard).map_or(0, |n| n.max(0) as u64))
    }

    /// Whether Redis answers.
    ///
    /// # Errors
    /// Its fault.
    pub async fn ping(&self) -> Result<(), ClientError> {
        let mut pipe = Pipeline::new();
        pipe.cmd("PING");
        ask::all_good(ask::ask(&self.redis, slot(PartitionId(0)), &pipe).await?)?;
        Ok(())
    }
}
