//! What an owner loads: timers, young runs, work items and queues at take-over, a queue's stream when it is new.
//!
//! All of it is read over the owner's own connection, before anything is decided with it.

use std::collections::{BTreeSet, VecDeque};

use redis::Value;
use stepfleet_protocol::{gate::Gate, id::JobId, keys::GROUP, name::Name};

use super::{
    super::{
        cache::Cache,
        core::{Core, Staged},
        gates::Book,
        intake::{self, Origin},
        retention::Retention,
        schedule::{HORIZON_MS, Schedule},
        tally::Tally,
        upkeep::{Upkeep, outstanding},
    },
    BATCH_ITEMS_MAX, Done, Memory, Owner, OwnerError, Returning, young,
};
use crate::{
    machine::{decide::Mint, event::Work, rules::Rules},
    mutants::mutant,
    store::{
        limits::read_held,
        link::Link,
        partition::{Ask, Partition, TurnError},
        record, reply,
    },
};

/// Work items of one read, of about 25 bytes each.
const WORK_PER_READ: usize = 5_000;

impl<L: Link> Owner<L> {
    /// Whether what becomes of runs whose traces are recorded is told as spans.
    pub fn trace(&mut self, on: bool) {
        self.core.traces = on;
    }

    /// Begins to own a partition: loads timers, young runs, work items and queues.
    ///
    /// # Errors
    /// The trip's, or that a newer program has been here.
    pub async fn begin(mut partition: Partition<L>, name: &str, memory: Memory) -> Result<Self, OwnerError> {
        let turn = partition.turn(None, Ask::default()).await?;
        let (todo, young) = (load_work(&mut partition).await?, young::load(&mut partition).await?);
        let schedule = Schedule { todo, young, ..Schedule::default() };
        let mut pipe = redis::pipe();
        pipe.cmd("SMEMBERS").arg(partition.keys.queues());
        pipe.cmd("HGETALL").arg(partition.keys.held());
        let mut replies = partition.load(&pipe).await?;
        let held = replies.pop().map(read_held).unwrap_or_default();
        let stopping = if held.is_empty() { Vec::new() } else { load_stopping(&mut partition).await? };
        let me = (partition.keys.partition, partition.reign.counter);
        let names = replies.first().and_then(reply::array).unwrap_or_default();
        let names: Vec<Name> = names.iter().filter_map(reply::text).filter_map(|t| Name::new(t).ok()).collect();
        let head = partition.head;
        let mint = Mint::new(partition.reign, head.seq + 1);
        let core = Core {
            cache: Cache::default(),
            schedule,
            staged: Staged::default(),
            tally: Tally::default(),
            mint,
            now_ms: head.now_ms,
            freed: None,
            freed_place: None,
            at: (Origin::Todo, *intake::NO_RUN),
            full: false,
            strangers: BTreeSet::new(),
            gates: Book::new(me, held, &stopping, turn.now_ms),
            leave: None,
            falls_back: false,
            parking: None,
            traces: false,
            rules: Rules::default(),
        };
        let upkeep = Upkeep::new(name, partition.keys.clone(), turn.now_ms);
        let mut owner = Self {
            partition,
            core,
            upkeep,
            memory,
            backlog: VecDeque::new(),
            batch_most: BATCH_ITEMS_MAX,
            read_to: head.offset,
            more_in_log: true,
            entry_bytes: 256,
            last_read: 0,
            pending: None,
            looked_at: Vec::new(),
            known_ms: 0,
            gates: None,
            retention: Retention::default(),
            next_retention_ms: 0,
            returning: Returning::at(turn.now_ms),
            server_ms: turn.now_ms,
            done: Done::default(),
            committed: None,
            avoided: Vec::new(),
        };
        for name in names {
            owner.make_queue(&name).await?;
        }
        owner.load_gates().await?;
        owner.load_timers().await?;
        Ok(owner)
    }

    /// Makes a queue's stream and group, and looks how much is on it.
    pub(super) async fn make_queue(&mut self, name: &Name) -> Result<(), OwnerError> {
        let keys = &self.partition.keys;
        let mut pipe = redis::pipe();
        pipe.cmd("SADD").arg(keys.queues()).arg(name.as_str());
        // A group that is there already answers BUSYGROUP, which is as good.
        pipe.cmd("XGROUP").arg("CREATE").arg(keys.jobs(name)).arg(GROUP).arg(0).arg("MKSTREAM");
        pipe.cmd("XINFO").arg("GROUPS").arg(keys.jobs(name));
        pipe.cmd("ZCARD").arg(keys.ready(name));
        pipe.cmd("ZRANGE").arg(keys.ready(name)).arg(0).arg(0).arg("WITHSCORES");
        let replies = self.partition.attempt(&pipe).await?;
        if let Some(text) = replies.iter().filter_map(reply::error).find(|text| !text.starts_with("BUSYGROUP")) {
            return Err(TurnError::of_reply(text).into());
        }
        // Jobs that this very batch has dispatched are not on the stream yet.
        let staged = self.core.staged.commit.jobs.iter().filter(|(q, _)| q == name).count() as u64;
        let queue = self.core.schedule.queue(name);
        queue.exists = true;
        if queue.outstanding == 0 {
            queue.outstanding = staged + replies.get(2).and_then(outstanding).unwrap_or(0);
        }
        if queue.ready == 0 {
            queue.ready = replies.get(3).and_then(reply::number).unwrap_or(0) as u64;
            let first = replies.get(4).and_then(reply::array).and_then(|pair| pair.get(1)).and_then(score);
            queue.urgent = first.map_or(0, record::priority_of);
        }
        Ok(())
    }

    /// Looks how many steps are parked at which gates.
    async fn load_gates(&mut self) -> Result<(), OwnerError> {
        const PER_TRIP: usize = 500;
        let keys = self.partition.keys.clone();
        let mut pipe = redis::pipe();
        pipe.cmd("SMEMBERS").arg(keys.gates());
        let replies = self.partition.load(&pipe).await?;
        let names = replies.first().and_then(reply::array).unwrap_or_default();
        let gates: Vec<Gate> = names.iter().filter_map(reply::text).filter_map(|t| Gate::parse(t).ok()).collect();
        for part in gates.chunks(PER_TRIP) {
            let mut pipe = redis::pipe();
            for gate in part {
                pipe.cmd("ZCARD").arg(keys.parked(gate));
            }
            for (gate, count) in part.iter().zip(self.partition.load(&pipe).await?) {
                // Of one that is empty the next look says so, and its name goes.
                self.core.gates.set_parked(gate, reply::number(&count).unwrap_or(0).max(1) as u64);
            }
        }
        Ok(())
    }

    async fn load_timers(&mut self) -> Result<(), OwnerError> {
        let to_ms = self.server_ms + HORIZON_MS;
        let mut pipe = redis::pipe();
        pipe.add_command(self.upkeep.timers(to_ms));
        if mutant("timer_removed_outside_the_commit") {
            pipe.cmd("ZREMRANGEBYSCORE").arg(self.partition.keys.timers()).arg("-inf").arg(to_ms);
        }
        let replies = self.partition.load(&pipe).await?;
        if let Some(value) = replies.first() {
            self.keep_timers(value, to_ms);
        }
        Ok(())
    }

    /// Takes the earliest timers in mind, which were asked for up to `to_ms`.
    pub(super) fn keep_timers(&mut self, value: &Value, to_ms: u64) {
        let pairs = reply::array(value).unwrap_or_default().chunks_exact(2);
        let read = pairs.filter_map(|pair| Some((score(&pair[1])?, reply::bytes(&pair[0])?.to_vec())));
        self.core.schedule.timers.take_in(read.collect(), to_ms);
    }
}

/// Jobs that workers are to stop.
async fn load_stopping<L: Link>(partition: &mut Partition<L>) -> Result<Vec<JobId>, TurnError> {
    let mut pipe = redis::pipe();
    pipe.cmd("SMEMBERS").arg(partition.keys.cancels());
    let replies = partition.load(&pipe).await?;
    let jobs = replies.first().and_then(reply::array).unwrap_or_default();
    Ok(jobs.iter().filter_map(reply::text).filter_map(|text| text.parse().ok()).collect())
}

/// Reads every work item, page by page: nobody else writes them, so the pages fit together.
async fn load_work<L: Link>(partition: &mut Partition<L>) -> Result<VecDeque<Work>, OwnerError> {
    let mut works = VecDeque::new();
    loop {
        let mut pipe = redis::pipe();
        pipe.cmd("LRANGE").arg(partition.keys.todo()).arg(works.len()).arg(works.len() + WORK_PER_READ - 1);
        let replies = partition.load(&pipe).await?;
        let items = replies.first().and_then(reply::array).unwrap_or_default();
        for item in items {
            let work = reply::bytes(item).and_then(record::unpack_work);
            works.push_back(work.ok_or(OwnerError::Newer(record::VERSION + 1))?);
        }
        if items.len() < WORK_PER_READ {
            return Ok(works);
        }
    }
}

fn score(value: &Value) -> Option<u64> {
    match value {
        Value::Double(score) => Some(*score as u64),
        other => reply::text(other)?.parse::<f64>().ok().map(|s| s as u64),
    }
}
