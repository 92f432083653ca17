//! What `doctor --fix` puts right. Each act is one script with its audit entry.

use std::collections::HashSet;

use redis::{Cmd, Value};
use stepfleet_protocol::{
    audit::{AuditEntry, action},
    codec,
    id::{JobId, PartitionId, StreamId},
    keys::{GROUP, slot},
    limits::CHUNK_STEPS,
    message::Job,
};

use super::{
    ask,
    client::{Client, ClientError},
    read::doctor::{Checkup, Stream},
    record, reply,
};

/// Source of the script that makes one repair.
pub const DOCTOR_FIX: &str = include_str!("doctor_fix.lua");
/// Entries of one read of a job stream: with inputs inside, less than a MiB.
const ENTRIES_PER_READ: usize = 100;
/// Entries of a job stream that are looked at, at most. What lies behind them is delivered, done or not.
const ENTRIES_MAX: usize = 20_000;

impl Client {
    /// Puts right what is safe to put right: makes missing groups, and deletes consumers of gone workers at which
    /// nothing is pending. Returns what was done. Each act has its audit entry under `actor`.
    ///
    /// # Errors
    /// [`ClientError`]; what was done before stays done.
    pub async fn fix(&self, found: &Checkup, actor: &str) -> Result<Vec<String>, ClientError> {
        let mut done = Vec::new();
        let beats = found.workers.iter().filter_map(|worker| worker.beat.as_ref());
        let held: HashSet<JobId> = beats.flat_map(|beat| &beat.held).map(|held| held.job).collect();
        for stream in &found.without_group {
            self.drop_done(stream, &held).await?;
            let what = format!("made the group of queue `{}` in partition {}", stream.queue, stream.partition);
            // From the beginning: what is left there is awaited by a run and held by no worker.
            if self.put_right(stream, ("group", "0"), actor, &what).await? {
                done.push(what);
            }
        }
        for orphan in found.orphans.iter().filter(|orphan| orphan.pending == 0) {
            let (worker, Stream { partition, queue }) = (&orphan.worker, &orphan.stream);
            let what = format!("deleted the consumer {worker} of queue `{queue}` in partition {partition}");
            // RACE: its worker may have come back and read: the script looks again, and the job wins.
            if self.put_right(&orphan.stream, ("consumer", worker), actor, &what).await? {
                done.push(what);
            }
        }
        Ok(done)
    }

    async fn put_right(
        &self,
        stream: &Stream,
        (act, name): (&str, &str),
        actor: &str,
        what: &str,
    ) -> Result<bool, ClientError> {
        let keys = self.keys.partition(stream.partition);
        let entry = AuditEntry::new(actor, action::DOCTOR_FIX, what.to_owned(), self.server_time_ms().await?);
        let mut eval = redis::cmd("EVAL");
        eval.arg(DOCTOR_FIX).arg(2).arg(keys.jobs(&stream.queue)).arg(keys.audit());
        eval.arg(act).arg(GROUP).arg(name).arg(codec::pack(&entry));
        let mut pipe = redis::pipe();
        pipe.add_command(eval);
        // Not twice: the second would find nothing to do, and its answer would hide that the first did it.
        let replies = ask::all_good(ask::ask(&self.redis, slot(stream.partition), &pipe).await?)?;
        Ok(replies.first().and_then(reply::number) == Some(1))
    }

    /// Deletes the entries of a stream without a group that nobody has to do: their job is awaited no more, or a worker has it.
    /// With the group went the note of what was acked, and all of it would run again.
    ///
    /// RACE: an entry is written by the commit that lets its step wait for it, and a step never waits for an old job again:
    /// what is not awaited now never will be. What a worker holds is found missing by the auditor if that worker dies.
    async fn drop_done(&self, stream: &Stream, held: &HashSet<JobId>) -> Result<(), ClientError> {
        let key = self.keys.partition(stream.partition).jobs(&stream.queue);
        let (mut from, mut seen) = (StreamId::ZERO, 0);
        while seen < ENTRIES_MAX {
            let mut range = redis::cmd("XRANGE");
            range.arg(&key).arg(from.to_string()).arg("+").arg("COUNT").arg(ENTRIES_PER_READ);
            let entries = reply::entries(self.ask_partition(stream.partition, range).await?);
            let Some((last, _)) = entries.last() else { return Ok(()) };
            (from, seen) = (last.next(), seen + entries.len());
            // What is no job, or a job of a newer program, is left to whoever reads it.
            let job = |(id, fields): &(StreamId, reply::Fields)| {
                let (field, bytes) = fields.first()?;
                Some((*id, codec::decode::<Job>(field, bytes).ok()?))
            };
            let jobs: Vec<(StreamId, Job)> = entries.iter().filter_map(job).collect();
            let looks = jobs.iter().map(|(_, job)| (slot(stream.partition), self.look_at_step(stream.partition, job)));
            let steps = self.ask_all(looks.collect()).await?;
            let mut delete = redis::cmd("XDEL");
            delete.arg(&key);
            let mut count = 0;
            for ((entry, job), step) in jobs.iter().zip(&steps) {
                if held.contains(&job.id) || !awaits(step, job.id) {
                    delete.arg(entry.to_string());
                    count += 1;
                }
            }
            if count > 0 {
                self.ask_partition(stream.partition, delete).await?;
            }
        }
        Ok(())
    }

    fn look_at_step(&self, partition: PartitionId, job: &Job) -> Cmd {
        let keys = self.keys.partition(partition);
        let key = match job.index / CHUNK_STEPS {
            0 => keys.run(&job.run),
            chunk => keys.chunk(&job.run, chunk),
        };
        let mut get = redis::cmd("HGET");
        get.arg(key).arg(job.index);
        get
    }
}

/// Whether a step, as it was read, waits for this job. One that cannot be read may do so.
fn awaits(step: &Value, job: JobId) -> bool {
    match reply::bytes(step) {
        Some(packed) => record::unpack_step(packed).map_or(true, |step| step.in_flight && step.job == Some(job)),
        None => *step != Value::Nil,
    }
}
