//! Everything that one commit writes, as a value, and its commands.
//!
//! Writes of one kind are gathered into few commands, because a command costs Redis more than its arguments. Only commands
//! that cannot fail on keys that only we write are used: an error inside EXEC would be a torn commit.

mod announce;
mod letters;
mod schedule;

use std::collections::BTreeMap;

use redis::{Cmd, Pipeline};
use stepfleet_protocol::{
    codec::{Wire, pack},
    gate::Gate,
    id::{CommandId, JobId, RunId, StreamId},
    keys::{GROUP, PartitionKeys},
    message::Reply,
    name::Name,
    state::State,
};

use super::{
    limits::Held,
    plans::{self, PlanMove},
    young,
};
pub use letters::{LetterIndex, letter_id, letter_member};

/// How long the answer to a command is kept, in milliseconds: longer than an idempotency key, so that a key that is known
/// always has its answer.
pub const REPLY_MS: u64 = 26 * 3_600_000;

/// How long a tombstone is kept, in milliseconds: as long as an idempotency key, by which its run may be submitted.
pub const TOMBSTONE_MS: u64 = 25 * 3_600_000;

/// Fields of a hash with their values.
pub type HashFields = Vec<(Vec<u8>, Vec<u8>)>;

/// What one commit writes.
#[derive(Debug, Default)]
pub struct Commit {
    /// Everything up to this entry of the log is decided.
    pub offset: StreamId,
    /// The latest time that was decided with.
    pub now_ms: u64,
    /// The version of the policies that was decided with, where it is another one than that of the commit before.
    pub rules: Option<u64>,
    /// Of runs made before, the time-outs are stored; none if the commit before says it well enough.
    pub timed_to: Option<u64>,
    /// Fields of run hashes: `(run, chunk, fields)`; chunk 0 is the run hash itself.
    pub hashes: Vec<(RunId, u32, HashFields)>,
    /// Chunks of history by run, of those whose own hash does not take them.
    pub history: Vec<(RunId, Vec<u8>)>,
    /// Jobs in the order of dispatch.
    pub jobs: Vec<(Name, Wire)>,
    /// Entries of job streams that are done with.
    pub acks: BTreeMap<Name, Vec<StreamId>>,
    /// Timers to set: due time and member.
    pub timers_set: Vec<(u64, Vec<u8>)>,
    /// Timers to take away.
    pub timers_cleared: Vec<Vec<u8>>,
    /// Members of ready sets to add, with their scores.
    pub ready_added: BTreeMap<Name, Vec<(u64, Vec<u8>)>>,
    /// Members of ready sets to take away.
    pub ready_removed: BTreeMap<Name, Vec<Vec<u8>>>,
    /// Steps that are parked at gates, with their scores.
    pub parked_added: BTreeMap<Gate, Vec<(u64, Vec<u8>)>>,
    /// Steps that leave gates.
    pub parked_removed: BTreeMap<Gate, Vec<Vec<u8>>>,
    /// Gates at which the first step is parked.
    pub gates_added: Vec<Gate>,
    /// Gates at which nobody is parked any more.
    pub gates_removed: Vec<Gate>,
    /// Jobs that count against limits from now on.
    pub held_added: Vec<(JobId, Held)>,
    /// Jobs that count no more.
    pub held_removed: Vec<JobId>,
    /// Runs that come into a listing: state, time, run.
    pub listed: BTreeMap<State, Vec<(u64, RunId)>>,
    /// Runs that leave a listing.
    pub unlisted: BTreeMap<State, Vec<RunId>>,
    /// New runs of workflows: time, run.
    pub listed_by_workflow: BTreeMap<Name, Vec<(u64, RunId)>>,
    /// Values to keep, by id.
    pub values: Vec<(String, Vec<u8>)>,
    /// Values to drop, by id.
    pub values_dropped: Vec<String>,
    /// Values that travelled with commands, to their places: from, to.
    pub values_moved: Vec<(String, String)>,
    /// Failed attempts to keep.
    pub errors: Vec<(RunId, Vec<u8>)>,
    /// Dead letters.
    pub letters: Vec<(StreamId, Wire)>,
    /// Dead letters to close.
    pub letters_closed: Vec<StreamId>,
    /// The index of dead letters.
    pub letter_index: LetterIndex,
    /// The outbox entry.
    pub event: Option<Wire>,
    /// Audit entries, packed.
    pub audit: Vec<Vec<u8>>,
    /// Answers to commands.
    pub replies: Vec<Reply>,
    /// Work items that were taken from the front of the list.
    pub work_taken: usize,
    /// Work items that come to its end.
    pub work_added: Vec<Vec<u8>>,
    /// Jobs that workers are to stop.
    pub stops: Vec<JobId>,
    /// Jobs that need not be stopped any more.
    pub stopped: Vec<JobId>,
    /// Changes of counters.
    pub counters: BTreeMap<&'static str, i64>,
    /// Changes of how many runs follow a plan.
    pub plan_uses: BTreeMap<String, i64>,
    /// Plans that come or go with their runs.
    pub plan_moves: BTreeMap<String, PlanMove>,
    /// Entries to quarantine: why, and the bytes.
    pub quarantined: Vec<(String, Vec<u8>)>,
    /// Failed attempts to drop, the oldest of a run.
    pub errors_dropped: Vec<(RunId, usize)>,
    /// Whole keys to delete, of runs beyond retention.
    pub keys_deleted: Vec<String>,
    /// Runs to take from the listing of their workflow.
    pub unlisted_by_workflow: BTreeMap<Name, Vec<RunId>>,
    /// Unknown runs that were cancelled: a submit of theirs that comes later begins nothing.
    pub tombstones: Vec<RunId>,
    /// On Cluster: the doorbell of queues that got jobs is rung, and announcements come behind the transaction.
    pub cluster: bool,
}

impl Commit {
    /// Whether nothing but the head would be written.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
            && self.history.is_empty()
            && self.jobs.is_empty()
            && self.acks.is_empty()
            && self.timers_set.is_empty()
            && self.timers_cleared.is_empty()
            && self.ready_added.is_empty()
            && self.ready_removed.is_empty()
            && self.parked_added.is_empty()
            && self.parked_removed.is_empty()
            && self.gates_removed.is_empty()
            && self.held_removed.is_empty()
            && self.replies.is_empty()
            && self.audit.is_empty()
            && self.work_taken == 0
            && self.values_dropped.is_empty()
            && self.stopped.is_empty()
            && self.quarantined.is_empty()
            && self.keys_deleted.is_empty()
            && self.counters.is_empty()
            && self.plan_moves.is_empty()
    }

    /// Appends the commands between MULTI and EXEC to `pipe`, the new head first. Returns how many there are.
    pub fn write(&self, keys: &PartitionKeys, seq: u64, pipe: &mut Pipeline) -> usize {
        let mut out = Commands { pipe, keys, count: 0 };
        out.cmd("HSET")
            .arg(keys.head())
            .arg("seq")
            .arg(seq)
            .arg("offset")
            .arg(self.offset.to_string())
            .arg("now")
            .arg(self.now_ms);
        if let Some(version) = self.rules {
            out.pipe.arg("rules").arg(version);
        }
        if let Some(to) = self.timed_to {
            out.pipe.arg(young::FIELD).arg(to);
        }
        self.write_state(&mut out);
        self.write_jobs(&mut out);
        self.write_schedule(&mut out);
        self.write_listings(&mut out);
        plans::write(&self.plan_moves, &mut out);
        self.write_letters(&mut out);
        self.write_tombstones(&mut out);
        for reply in &self.replies {
            let key = out.keys.reply(&reply.id);
            out.cmd("SET").arg(key).arg(pack(reply)).arg("PX").arg(REPLY_MS);
        }
        if !self.cluster {
            for cmd in self.announcements(keys) {
                out.add(cmd);
            }
        }
        out.count
    }

    fn write_state(&self, out: &mut Commands) {
        for (run, chunk, fields) in &self.hashes {
            let key = if *chunk == 0 { out.keys.run(run) } else { out.keys.chunk(run, *chunk) };
            let cmd = out.cmd("HSET").arg(key);
            for (field, value) in fields {
                cmd.arg(&field[..]).arg(&value[..]);
            }
        }
        for (run, chunk) in &self.history {
            let key = out.keys.history(run);
            out.cmd("APPEND").arg(key).arg(&chunk[..]);
        }
        for (id, bytes) in &self.values {
            let key = out.keys.value(id);
            out.cmd("SET").arg(key).arg(&bytes[..]);
        }
        for (from, to) in &self.values_moved {
            let (from, to) = (out.keys.value(from), out.keys.value(to));
            // Unlike RENAME it cannot fail when the value is gone; its lifetime comes along and is taken away.
            out.cmd("COPY").arg(&from).arg(&to).arg("REPLACE");
            out.cmd("PERSIST").arg(&to);
            out.cmd("UNLINK").arg(&from);
        }
        for (run, error) in &self.errors {
            let key = out.keys.errors(run);
            out.cmd("RPUSH").arg(key).arg(&error[..]);
        }
        for (run, count) in &self.errors_dropped {
            let key = out.keys.errors(run);
            out.cmd("LTRIM").arg(key).arg(*count).arg(-1);
        }
        let dropped: Vec<String> = self.values_dropped.iter().map(|id| out.keys.value(id)).collect();
        for keys in dropped.chunks(100).chain(self.keys_deleted.chunks(100)) {
            out.cmd("UNLINK").arg(keys);
        }
    }

    fn write_jobs(&self, out: &mut Commands) {
        for (queue, wire) in &self.jobs {
            let key = out.keys.jobs(queue);
            out.cmd("XADD").arg(key).arg("*").arg(wire.field).arg(&wire.bytes[..]);
        }
        for (queue, entries) in &self.acks {
            let key = out.keys.jobs(queue);
            for part in entries.chunks(500) {
                let cmd = out.cmd("XACK").arg(&key).arg(GROUP);
                for entry in part {
                    cmd.arg(entry.to_string());
                }
            }
        }
        if !self.stops.is_empty() {
            let set = out.keys.cancels();
            let ids: Vec<String> = self.stops.iter().map(JobId::to_string).collect();
            out.cmd("SADD").arg(set).arg(ids);
        }
        if !self.stopped.is_empty() {
            let set = out.keys.cancels();
            let ids: Vec<String> = self.stopped.iter().map(JobId::to_string).collect();
            out.cmd("SREM").arg(set).arg(ids);
        }
    }

    fn write_listings(&self, out: &mut Commands) {
        let zrem = |out: &mut Commands, key: String, runs: &[RunId]| {
            for part in runs.chunks(500) {
                let cmd = out.cmd("ZREM").arg(&key);
                for run in part {
                    cmd.arg(&run.bytes()[..]);
                }
            }
        };
        for (state, runs) in &self.unlisted {
            let key = out.keys.runs(*state);
            zrem(out, key, runs);
        }
        for (workflow, runs) in &self.unlisted_by_workflow {
            let key = out.keys.runs_of(workflow);
            zrem(out, key, runs);
        }
        let by_state = self.listed.iter().map(|(state, runs)| (out.keys.runs(*state), runs));
        let by_workflow = self.listed_by_workflow.iter().map(|(name, runs)| (out.keys.runs_of(name), runs));
        for (key, runs) in by_state.chain(by_workflow).collect::<Vec<_>>() {
            for part in runs.chunks(500) {
                let cmd = out.cmd("ZADD").arg(&key);
                for (at_ms, run) in part {
                    cmd.arg(*at_ms).arg(&run.bytes()[..]);
                }
            }
        }
        let (counters, uses) = (out.keys.counters(), out.keys.plan_uses());
        for (name, by) in &self.counters {
            out.cmd("HINCRBY").arg(&counters).arg(*name).arg(*by);
        }
        for (plan, by) in &self.plan_uses {
            out.cmd("HINCRBY").arg(&uses).arg(plan).arg(*by);
        }
    }

    fn write_letters(&self, out: &mut Commands) {
        let (dead, quarantine, events) = (out.keys.dead(), out.keys.quarantine(), out.keys.events());
        for (id, wire) in &self.letters {
            out.cmd("XADD").arg(&dead).arg(id.to_string()).arg(wire.field).arg(&wire.bytes[..]);
        }
        for part in self.letters_closed.chunks(500) {
            let cmd = out.cmd("XDEL").arg(&dead);
            for id in part {
                cmd.arg(id.to_string());
            }
        }
        self.letter_index.write(out);
        for (why, bytes) in &self.quarantined {
            out.cmd("XADD").arg(&quarantine).arg("*").arg("why").arg(why).arg("m").arg(&bytes[..]);
        }
        let audit = out.keys.audit();
        for entry in &self.audit {
            out.cmd("XADD").arg(&audit).arg("*").arg("m").arg(&entry[..]);
        }
        if let Some(event) = &self.event {
            out.cmd("XADD").arg(&events).arg("*").arg(event.field).arg(&event.bytes[..]);
        }
    }

    fn write_tombstones(&self, out: &mut Commands) {
        for run in &self.tombstones {
            let key = out.keys.tombstone(run);
            out.cmd("SET").arg(key).arg("").arg("PX").arg(TOMBSTONE_MS);
        }
    }

    /// Adds an answer.
    pub fn answer(&mut self, id: CommandId, answers: Vec<stepfleet_protocol::message::Answer>) {
        self.replies.push(Reply { v: stepfleet_protocol::codec::VERSION, id, answers });
    }
}

/// The commands of a commit, counted.
pub(super) struct Commands<'a> {
    pipe: &'a mut Pipeline,
    pub(super) keys: &'a PartitionKeys,
    count: usize,
}

impl Commands<'_> {
    pub(super) fn cmd(&mut self, name: &str) -> &mut Pipeline {
        self.count += 1;
        self.pipe.cmd(name)
    }

    fn add(&mut self, cmd: Cmd) {
        self.count += 1;
        self.pipe.add_command(cmd);
    }
}
