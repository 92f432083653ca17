//! From log entries, due timers, released steps and work items to one ordered list of items to decide.

use std::sync::{Arc, LazyLock};

use stepfleet_protocol::{
    codec::{self, DecodeError},
    gate::Gate,
    id::{CommandId, JobId, PartitionId, RunId, StreamId},
    limits::ENTRY_PARTS_MAX,
    message::{Audit, Body, Command, LogEntry, NewRun, Unreadable},
    missing::Missing,
};

use crate::{
    machine::event::{Event, Work},
    mutants::mutant,
    store::reply::Fields,
};

/// Where an item comes from; it names a poison one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// The n-th part of a log entry.
    Entry(StreamId, u32),
    /// A timer.
    Timer,
    /// The ready set.
    Ready,
    /// A gate at which steps are parked.
    Parked,
    /// The jobs that count against limits.
    Held,
    /// The list of work items.
    Todo,
}

/// Names an item for as long as nothing of its batch is committed: where it comes from and the run it is about.
pub type Place = (Origin, RunId);

/// A submit that comes so much later, or earlier, than its run id says may be a copy that was held up. Less than the time
/// after which a client sends a second copy.
const LATE_MS: u64 = 2_000;

/// Stands for the run of an item that is about none.
pub static NO_RUN: LazyLock<RunId> = LazyLock::new(|| RunId::new(PartitionId(0), 0, 0));

/// One thing to decide.
#[derive(Debug)]
pub struct Item {
    /// Where it comes from.
    pub origin: Origin,
    /// The time it is decided with, in Unix milliseconds of the server.
    pub at_ms: u64,
    /// The run it is about.
    pub run: RunId,
    /// What it is.
    pub what: What,
}

/// What an item is.
#[derive(Debug)]
pub enum What {
    /// A new run.
    New {
        /// The command it belongs to.
        command: CommandId,
        /// Sent before, perhaps.
        again: bool,
        /// The run.
        new: NewRun,
        /// Who asked.
        actor: Arc<str>,
    },
    /// A command about a run.
    Command(Command),
    /// What became of a job, and the circuit breaker that it speaks about if it is not that of the step's handler.
    Result {
        /// The gate.
        gate: Option<Gate>,
        /// The result.
        event: Event,
    },
    /// Anything else that happens to a run.
    Event(Event),
    /// A job counts against a limit for long: whether it is still awaited.
    Held {
        /// The job.
        job: JobId,
        /// Its step's number.
        index: u32,
    },
    /// Entries of a job stream that are no jobs. It is about no run.
    Unreadable(Unreadable),
}

impl Item {
    /// What names it.
    pub fn place(&self) -> Place {
        (self.origin, self.run)
    }

    /// The command it is, or is part of.
    pub fn command(&self) -> Option<CommandId> {
        match &self.what {
            What::New { command, .. } => Some(*command),
            What::Command(command) => Some(command.id),
            What::Result { .. } | What::Event(_) | What::Held { .. } | What::Unreadable(_) => None,
        }
    }

    /// The command, if it may have been decided before: so says its sender, or nobody can rule it out. Commands are few, so
    /// that a look costs nothing that matters; submits are many, and one that comes at once is a first copy.
    ///
    /// RACE: a first copy that was held up on its way comes behind the second one, which was sent because the first was not
    /// answered. Its run may have ended by then, and would be done again.
    pub fn sent_before(&self) -> Option<CommandId> {
        let may_be = match &self.what {
            What::New { again, new, .. } => *again || self.at_ms.abs_diff(new.run.created_ms()) > LATE_MS,
            What::Command(_) => true,
            What::Result { .. } | What::Event(_) | What::Held { .. } | What::Unreadable(_) => false,
        };
        self.command().filter(|_| may_be)
    }

    /// Whether the run has to be looked up although it may never have existed.
    pub fn looks_back(&self) -> bool {
        match &self.what {
            What::New { .. } => self.sent_before().is_some(),
            What::Command(_) | What::Result { .. } | What::Event(_) | What::Held { .. } => true,
            What::Unreadable(_) => false,
        }
    }
}

/// An entry that is no message, or one that says too much at once.
#[derive(Debug)]
pub struct Malformed {
    /// Which.
    pub id: StreamId,
    /// Why.
    pub why: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The command that has to be told.
    pub command: Option<CommandId>,
}

/// The entry is of a newer version than this program can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newer(pub u8);

/// Reads log entries into items. Malformed entries come back beside them.
///
/// # Errors
/// [`Newer`] when an entry must not be skipped by this program.
pub fn from_log(entries: Vec<(StreamId, Fields)>) -> Result<(Vec<Item>, Vec<Malformed>), Newer> {
    let (mut items, mut malformed) = (Vec::with_capacity(entries.len() * 2), Vec::new());
    for (id, fields) in entries {
        let Some((field, bytes)) = fields.first() else {
            malformed.push(Malformed { id, why: "an entry without fields".into(), bytes: Vec::new(), command: None });
            continue;
        };
        match codec::decode::<LogEntry>(field, bytes) {
            Ok(entry) if entry.body.parts() > ENTRY_PARTS_MAX => {
                let why = format!("an entry of {} parts: allowed are at most {ENTRY_PARTS_MAX}", entry.body.parts());
                let command = if let Body::Submit(submit) = entry.body { Some(submit.id) } else { None };
                malformed.push(Malformed { id, why, bytes: bytes.to_vec(), command });
            }
            Ok(entry) => split(id, entry.body, &mut items),
            Err(DecodeError::Newer(version)) => return Err(Newer(version)),
            Err(DecodeError::Malformed(why)) => {
                malformed.push(Malformed { id, why, bytes: bytes.to_vec(), command: None });
            }
        }
    }
    Ok((items, malformed))
}

fn split(id: StreamId, body: Body, items: &mut Vec<Item>) {
    let mut n = 0;
    let mut push = |run: RunId, what: What| {
        items.push(Item { origin: Origin::Entry(id, n), at_ms: id.ms, run, what });
        n += 1;
    };
    match body {
        Body::Submit(submit) => {
            let actor: Arc<str> = submit.actor.into();
            for new in submit.runs {
                push(new.run, What::New { command: submit.id, again: submit.again, actor: actor.clone(), new });
            }
        }
        Body::Results(results) => {
            for r in results.results {
                let worker = results.worker.clone();
                let (run, gate) = (r.of.run, r.gate);
                let event = Event::Result { of: r.of, worker, run_ms: r.run_ms, outcome: r.outcome };
                push(run, What::Result { gate, event });
            }
        }
        Body::Started(started) => {
            for (of, running_ms) in started.jobs {
                let worker = started.worker.clone();
                push(of.run, What::Event(Event::Started { of, worker, running_ms }));
            }
        }
        Body::Command(command) => push(command.run, What::Command(command)),
        Body::Lost(lost) => {
            for (n, of) in lost.jobs.into_iter().enumerate() {
                let (worker, counted, seen) = (lost.worker.clone(), lost.counted, lost.seen.get(n).cloned());
                push(of.run, What::Event(Event::Lost { of, worker, counted, seen }));
            }
        }
        Body::Unreadable(unreadable) => push(*NO_RUN, What::Unreadable(unreadable)),
        Body::Audit(audit) => push(audit.run, What::Event(audited(&audit))),
    }
}

fn audited(audit: &Audit) -> Event {
    match (audit.index, audit.job, audit.what) {
        (None, _, Some(Missing::Timeout)) => Event::AuditTimeout,
        (None, _, Some(Missing::Work)) => Event::AuditWork,
        (Some(index), _, Some(Missing::Letter { id })) => Event::AuditLetter { index, letter: id },
        (Some(index), Some(job), _) => Event::AuditJob { index, job },
        (Some(index), None, _) => Event::Audit { index },
        (None, _, _) => Event::AuditRun,
    }
}

/// Puts timers between entries: a timer due at T comes after every entry with an id below T, and before the others. Both
/// lists are in order already.
pub fn merge(entries: Vec<Item>, timers: Vec<Item>) -> Vec<Item> {
    if timers.is_empty() {
        return entries;
    }
    let mut out = Vec::with_capacity(entries.len() + timers.len());
    let mut timers = timers.into_iter().peekable();
    for entry in entries {
        while let Some(timer) = timers.next_if(|t| t.at_ms <= entry.at_ms || mutant("timer_before_older_result")) {
            out.push(timer);
        }
        out.push(entry);
    }
    out.extend(timers);
    out
}

/// An item for a work item.
pub fn from_work(work: Work, now_ms: u64) -> Item {
    Item { origin: Origin::Todo, at_ms: now_ms, run: work.run, what: What::Event(Event::Continue(work)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::event::Timer;

    fn item(at_ms: u64, origin: Origin) -> Item {
        let run = RunId::new(PartitionId(0), 0, 0);
        Item { origin, at_ms, run, what: What::Event(Event::Timer(Timer::Run)) }
    }

    #[test]
    fn a_timer_due_at_t_is_decided_after_every_entry_below_t_and_before_the_others() {
        let entries = [5, 9, 10, 12].map(|ms| item(ms, Origin::Entry(StreamId { ms, seq: 0 }, 0))).into();
        let timers = [3, 10, 20].map(|ms| item(ms, Origin::Timer)).into();
        let merged: Vec<(u64, bool)> =
            merge(entries, timers).iter().map(|i| (i.at_ms, i.origin == Origin::Timer)).collect();
        assert_eq!(merged, [(3, true), (5, false), (9, false), (10, true), (10, false), (12, false), (20, true)]);
    }

    #[test]
    fn malformed_entries_come_back_with_their_bytes_and_the_rest_goes_on() {
        let good = codec::pack(&LogEntry::new(Body::Audit(Audit::of_step(RunId::new(PartitionId(0), 0, 0), 3))));
        let entry = |seq, field: &'static str, bytes: &[u8]| {
            (StreamId { ms: 1, seq }, vec![(field.into(), bytes::Bytes::copy_from_slice(bytes))])
        };
        let entries =
            vec![entry(0, "m", b"\xc1"), entry(1, "x", &good), entry(2, "m", &good), (StreamId::ZERO, Vec::new())];
        let (items, malformed) = from_log(entries).expect("nothing newer");
        assert_eq!((items.len(), malformed.len()), (1, 3));
        assert_eq!(malformed[0].bytes, b"\xc1");
    }

    #[test]
    fn an_entry_that_says_too_much_at_once_is_kept_out_whole() {
        let lost = |parts: usize| {
            let at = stepfleet_protocol::message::JobRef {
                job: stepfleet_protocol::id::JobId { reign: Default::default(), seq: 1, n: 0 },
                run: RunId::new(PartitionId(0), 0, 0),
                index: 0,
                queue: stepfleet_protocol::name::Name::new("q").expect("a legal name"),
                entry: StreamId::ZERO,
            };
            let worker = "w@000000000001".parse().expect("a worker's id");
            let jobs = vec![at; parts];
            let body = Body::Lost(stepfleet_protocol::message::Lost { worker, counted: true, jobs, seen: Vec::new() });
            let wire = codec::encode(&LogEntry::new(body));
            let (items, malformed) =
                from_log(vec![(StreamId::ZERO, vec![(wire.field.into(), wire.bytes.into())])]).expect("nothing newer");
            (items.len(), malformed.len())
        };
        assert_eq!(lost(ENTRY_PARTS_MAX), (ENTRY_PARTS_MAX, 0));
        assert_eq!(lost(ENTRY_PARTS_MAX + 1), (0, 1));
    }

    #[test]
    fn an_entry_of_a_newer_version_is_never_skipped() {
        let newer = codec::pack(&serde_json::json!({"v": 2, "body": {"from_the_future": {}}}));
        let fields = vec![("m".into(), newer.into())];
        assert_eq!(from_log(vec![(StreamId::ZERO, fields)]).map(|_| ()), Err(Newer(2)));
    }
}
