//! A partition as its owner sees it: one connection, one reign, one fenced commit a trip.
//!
//! `{p}:head` is the fence. Every commit WATCHes it, checks that reign and seq are the ones this owner wrote, and raises seq
//! in the same MULTI. So a commit of an older owner, a commit whose EXEC comes late, and a commit on a server that was rolled
//! back all fail. Any doubt ends the connection and the reign: the caller drops the partition and takes it anew.

use std::time::Duration;

use redis::{Pipeline, Value};
use stepfleet_protocol::{
    id::{PartitionId, Reign, StreamId},
    keys::{Keys, PartitionKeys, slot},
};

use super::{
    commit::Commit,
    link::{Dial, Link, LinkError},
    reply::{self, Fields},
    young,
};
use crate::mutants::mutant;

/// A trip may take this much longer than its blocking read.
pub const RESPONSE_MARGIN: Duration = Duration::from_secs(2);
/// Longest blocking read of an owner.
pub const BLOCK_MAX: Duration = Duration::from_millis(500);
/// How long a lease holds.
pub const LEASE_MS: u64 = 3_000;

/// Why a trip of an owner did not end well. Whatever it was, the reign is over.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TurnError {
    /// The connection; whether the commit applied is unknown.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Another owner reigns: nothing was written.
    #[error("fenced: another owner has taken the partition")]
    Fenced,
    /// The server refused the commit whole: nothing was written.
    #[error("commit refused: {0}")]
    Refused(String),
    /// A command inside EXEC failed: the commit is torn. A bug, or a stranger who wrote to our keys.
    #[error("commit torn: {0}")]
    Torn(String),
    /// A reply of an impossible shape.
    #[error("unexpected reply to {0}")]
    Unexpected(&'static str),
}

impl TurnError {
    /// What an error reply means: a key of another type is not ours any more; anything else is the server's state (loading,
    /// moved, full, read-only) or a command that it cannot bear.
    pub(crate) fn of_reply(text: String) -> Self {
        if text.starts_with("WRONGTYPE") { Self::Torn(text) } else { Self::Refused(text) }
    }

    /// The server has no memory left: what is done with has to be trimmed before anything can be committed.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Refused(why) if why.starts_with("OOM"))
    }

    /// Whether the commit may itself be why it was refused. Every other refusal (full, moved, read-only, loading, failing
    /// over) would meet any commit.
    pub fn blames_the_commit(&self) -> bool {
        matches!(self, Self::Refused(why) if why.starts_with("ERR"))
    }
}

/// What stands in `{p}:head`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Commits so far.
    pub seq: u64,
    /// Everything up to here is decided.
    pub offset: StreamId,
    /// The latest time that was decided with.
    pub now_ms: u64,
    /// The version of the policies that was last decided with.
    pub rules: u64,
    /// Of runs made before, in milliseconds, the time-outs are stored; none for all ([`super::young`]).
    pub timed_to: Option<u64>,
}

/// What a trip reads behind its commit.
#[derive(Debug, Default)]
pub struct Ask {
    /// At most so many log entries; 0 for no read.
    pub count: usize,
    /// Entries behind this one.
    pub after: StreamId,
    /// Wait so long for the first entry; none to return at once.
    pub block: Option<Duration>,
    /// Commands before the read, outside the transaction; their replies come back in order.
    pub extra: Vec<redis::Cmd>,
}

/// What a trip brought.
#[derive(Debug)]
pub struct Turn {
    /// Log entries behind the offset.
    pub entries: Vec<(StreamId, Fields)>,
    /// The server's time before the read, in Unix milliseconds: an entry that the read did not see has no lower id.
    pub before_ms: u64,
    /// The server's time after the read, in Unix milliseconds.
    pub now_ms: u64,
    /// How long the read took, and waited, by the server's clock.
    pub read: Duration,
    /// Replies to the extra commands.
    pub extra: Vec<Value>,
}

/// A partition under a reign.
#[derive(Debug)]
pub struct Partition<L> {
    link: L,
    /// Its keys.
    pub keys: PartitionKeys,
    /// This owner's reign.
    pub reign: Reign,
    /// The head after the last commit.
    pub head: Head,
    /// What the last commit has to announce.
    announcements: Vec<redis::Cmd>,
    /// A trip failed, or was dropped half-way: nothing is known any more.
    broken: bool,
}

impl<L: Link> Partition<L> {
    /// Takes a new reign over the partition by compare-and-swap on its own connection. `random` must be fresh: it is the
    /// part of the reign that fences.
    ///
    /// # Errors
    /// [`TurnError::Fenced`] when another owner took it in the same moment; else the connection's fault.
    pub async fn take<D: Dial<Link = L>>(
        dial: &D,
        keys: &Keys,
        partition: PartitionId,
        random: u64,
    ) -> Result<Self, TurnError> {
        let mut link = dial.dial(slot(partition), BLOCK_MAX + RESPONSE_MARGIN).await?;
        let keys = keys.partition(partition);
        let mut look = redis::pipe();
        look.cmd("WATCH").arg(keys.head());
        look.cmd("HMGET").arg(keys.head()).arg(&["reign", "seq", "offset", "now", "rules", young::FIELD]);
        let replies = link.trip(&look).await?;
        if let Some(text) = replies.iter().find_map(reply::error) {
            return Err(TurnError::of_reply(text));
        }
        let found = replies.get(1).and_then(reply::array).ok_or(TurnError::Unexpected("HMGET head"))?;
        let old: Reign = found.first().and_then(reply::text).and_then(|t| t.parse().ok()).unwrap_or_default();
        let head = Head {
            seq: found.get(1).and_then(reply::number).map_or(0, |n| n as u64),
            offset: found.get(2).and_then(reply::text).and_then(|t| t.parse().ok()).unwrap_or_default(),
            now_ms: found.get(3).and_then(reply::number).map_or(0, |n| n as u64),
            rules: found.get(4).and_then(reply::number).map_or(0, |n| n as u64),
            timed_to: found.get(5).and_then(young::stored_to),
        };
        let random = if mutant("reign_without_random") { 0 } else { random };
        let reign = Reign { counter: old.counter + 1, random };
        // A commit of its own: `seq` grows, so that a late commit of the last owner finds neither reign nor seq.
        let head = Head { seq: head.seq + 1, ..head };
        let mut swap = redis::pipe();
        swap.cmd("MULTI");
        swap.cmd("HSET").arg(keys.head()).arg("reign").arg(reign.to_string()).arg("seq").arg(head.seq);
        swap.cmd("EXEC");
        // EXEC has ended the watch: without a new one the first commit would not be fenced.
        swap.cmd("WATCH").arg(keys.head());
        swap.cmd("HMGET").arg(keys.head()).arg("reign").arg("seq");
        let replies = link.trip(&swap).await?;
        let behind = check_exec(&replies, 1)?;
        let partition = Self { link, keys, reign, head, announcements: Vec::new(), broken: false };
        partition.check_head(replies.get(behind + 1))?;
        Ok(partition)
    }

    /// One trip: commits, if there is something to commit, then reads what comes after. All or nothing, one round trip.
    ///
    /// # Errors
    /// See [`TurnError`]; after any of them this value only returns errors.
    pub async fn turn(&mut self, commit: Option<&Commit>, ask: Ask) -> Result<Turn, TurnError> {
        if std::mem::replace(&mut self.broken, true) {
            return Err(TurnError::Fenced);
        }
        let mut pipe = Pipeline::with_capacity(64);
        if mutant("connection_shared") && self.head.seq.is_multiple_of(4) {
            // Somebody else's EXEC.
            self.announcements.push(redis::cmd("UNWATCH"));
        }
        let announced = self.announcements.len();
        for cmd in self.announcements.drain(..) {
            pipe.add_command(cmd);
        }
        let mut writes = 0;
        if let Some(commit) = commit {
            pipe.cmd("MULTI");
            writes = commit.write(&self.keys, self.head.seq + 1, &mut pipe);
            pipe.cmd("EXEC");
            self.head.seq += 1;
            self.head.offset = commit.offset;
            self.head.now_ms = commit.now_ms;
            self.head.rules = commit.rules.unwrap_or(self.head.rules);
            self.head.timed_to = commit.timed_to.or(self.head.timed_to);
        }
        let (head_key, extras) = (self.keys.head(), ask.extra.len());
        pipe.cmd("WATCH").arg(if mutant("head_not_watched") { self.keys.todo() } else { head_key.clone() });
        pipe.cmd("HMGET").arg(&head_key).arg("reign").arg("seq");
        for cmd in ask.extra {
            pipe.add_command(cmd);
        }
        pipe.cmd("TIME");
        if ask.count > 0 {
            pipe.cmd("XREAD").arg("COUNT").arg(ask.count);
            if let Some(block) = ask.block {
                // BLOCK 0 would block for ever.
                pipe.arg("BLOCK").arg(block.min(BLOCK_MAX).as_millis().max(1) as u64);
            }
            pipe.arg("STREAMS").arg(self.keys.log()).arg(ask.after.to_string());
        }
        pipe.cmd("TIME");
        let mut replies = self.link.trip(&pipe).await?;
        // Nobody minds what became of an announcement.
        replies.drain(..announced.min(replies.len()));
        let behind = if commit.is_some() { check_exec(&replies, writes)? } else { 0 };
        let turn = self.read_turn(replies, behind, extras, ask.count > 0)?;
        // Only what surely applied is announced.
        self.announcements = commit.map_or_else(Vec::new, |commit| commit.afterwards(&self.keys));
        self.broken = false;
        Ok(turn)
    }

    /// Whether the last commit has something to announce, which the next trip does.
    pub fn has_announcements(&self) -> bool {
        !self.announcements.is_empty()
    }

    /// Whether reign and seq are still the ones that this owner wrote.
    fn check_head(&self, found: Option<&Value>) -> Result<(), TurnError> {
        let found = found.ok_or(TurnError::Unexpected("HMGET head"))?;
        if let Some(text) = reply::error(found) {
            return Err(TurnError::of_reply(text));
        }
        let found = reply::array(found).ok_or(TurnError::Unexpected("HMGET head"))?;
        let reign: Option<Reign> = found.first().and_then(reply::text).and_then(|t| t.parse().ok());
        let seq = found.get(1).and_then(reply::number).map(|n| n as u64);
        let ours = reign == Some(self.reign) && seq == Some(self.head.seq);
        if ours { Ok(()) } else { Err(TurnError::Fenced) }
    }

    fn read_turn(&self, replies: Vec<Value>, behind: usize, extras: usize, read: bool) -> Result<Turn, TurnError> {
        let mut replies = replies.into_iter().skip(behind + 1);
        self.check_head(replies.next().as_ref())?;
        let extra: Vec<Value> = replies.by_ref().take(extras).collect();
        let time = |value: Option<Value>| value.as_ref().and_then(reply::time_us).ok_or(TurnError::Unexpected("TIME"));
        let before_us = time(replies.next())?;
        let entries = if read {
            let value = replies.next().ok_or(TurnError::Unexpected("XREAD"))?;
            if let Some(text) = reply::error(&value) {
                return Err(TurnError::of_reply(text));
            }
            reply::read(value)
        } else {
            Vec::new()
        };
        let now_us = time(replies.next())?;
        let read = Duration::from_micros(now_us.saturating_sub(before_us));
        Ok(Turn { entries, before_ms: before_us / 1_000, now_ms: now_us / 1_000, read, extra })
    }

    /// Reads on the owner's connection, so that reader and committer are never on different servers.
    ///
    /// # Errors
    /// As [`Self::turn`]; one refused command is enough, because what could not be read must not pass for absent.
    pub async fn load(&mut self, pipe: &Pipeline) -> Result<Vec<Value>, TurnError> {
        let replies = self.attempt(pipe).await?;
        match replies.iter().find_map(reply::error) {
            Some(text) => {
                self.broken = true;
                Err(TurnError::of_reply(text))
            }
            None => Ok(replies),
        }
    }

    /// Sends commands some of which may be refused.
    ///
    /// # Errors
    /// As [`Self::turn`].
    pub async fn attempt(&mut self, pipe: &Pipeline) -> Result<Vec<Value>, TurnError> {
        if std::mem::replace(&mut self.broken, true) {
            return Err(TurnError::Fenced);
        }
        let replies = self.link.trip(pipe).await?;
        self.broken = false;
        Ok(replies)
    }
}

/// Checks the replies of `MULTI`, `writes` queued commands and `EXEC`. Returns how many replies that is.
fn check_exec(replies: &[Value], writes: usize) -> Result<usize, TurnError> {
    let exec = replies.get(writes + 1).ok_or(TurnError::Unexpected("EXEC"))?;
    if let Some(text) = reply::error(exec) {
        let queued = replies[..=writes].iter().find_map(reply::error);
        return Err(TurnError::Refused(queued.unwrap_or(text)));
    }
    match exec {
        Value::Nil => Err(TurnError::Fenced),
        Value::Array(results) if results.len() == writes => match results.iter().find_map(reply::error) {
            Some(text) => Err(TurnError::Torn(text)),
            None => Ok(writes + 2),
        },
        _ => Err(TurnError::Unexpected("EXEC")),
    }
}
