//! Every Redis key and channel. They are built here and nowhere else.
//!
//! All keys of a partition share a hash tag, so that one commit is one slot. Tags come from a fixed table in which any
//! prefix spreads evenly over the slots: partition `p` has the slot `4 * bit_reverse(p)`.

mod slots;

use std::{fmt::Display, sync::Arc};

use crate::{
    gate::Gate,
    id::{CommandId, PartitionId, RunId},
    name::Name,
    state::State,
};

pub use self::slots::{SLOTS, crc16, slot, slot_of, tag};

/// Key prefix unless the settings say otherwise.
pub const PREFIX_DEFAULT: &str = "sf:";

/// The consumer group of every job stream.
pub const GROUP: &str = "workers";

/// Keys of one installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: Arc<str>,
}

impl Default for Keys {
    fn default() -> Self {
        Self::new(PREFIX_DEFAULT)
    }
}

impl Keys {
    /// With a prefix, which must not contain `{` or `}`.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into() }
    }

    /// Keys of a partition.
    pub fn partition(&self, partition: PartitionId) -> PartitionKeys {
        PartitionKeys { partition, stem: format!("{}{{{}}}:", self.prefix, tag(partition)).into() }
    }

    /// Hash: the list of partitions and the version of the layout.
    pub fn meta(&self) -> String {
        format!("{}meta", self.prefix)
    }

    /// Sorted set: the workers by when they registered.
    pub fn workers(&self) -> String {
        format!("{}workers", self.prefix)
    }

    /// Sorted set: the coordinators by when they were last seen, in milliseconds of the server.
    pub fn coordinators(&self) -> String {
        format!("{}coordinators", self.prefix)
    }

    /// String, a minute: what a coordinator says of itself; in the slot of [`Self::coordinators`].
    pub fn coordinator(&self, name: &str) -> String {
        format!("{}coordinator:{{{}}}:{name}", self.prefix, self.coordinators())
    }

    /// Hash: one worker.
    pub fn worker(&self, worker: impl Display) -> String {
        format!("{}worker:{worker}", self.prefix)
    }

    /// String with a lifetime, in the slot of [`Self::worker`]: a write to find out whether that worker could beat.
    pub fn worker_probe(&self, worker: impl Display) -> String {
        format!("{0}probe:{{{0}worker:{worker}}}", self.prefix)
    }

    /// Channel: what reaches one worker at once.
    pub fn worker_control(&self, worker: impl Display) -> String {
        format!("{}control:{worker}", self.prefix)
    }

    /// What belongs to the whole fleet shares a slot, so that one script can change a thing and write down who did it.
    fn fleet(&self, name: impl Display) -> String {
        format!("{}{{fleet}}:{name}", self.prefix)
    }

    /// Hash: gates that are not simply open to everybody.
    pub fn fleet_gates(&self) -> String {
        self.fleet("gates")
    }

    /// Hash: the window and the state of a circuit breaker.
    pub fn fleet_breaker(&self, gate: &Gate) -> String {
        self.fleet(format_args!("breaker:{gate}"))
    }

    /// Hash: what each partition has of a limit.
    pub fn fleet_limit(&self, gate: &Gate) -> String {
        self.fleet(format_args!("limit:{gate}"))
    }

    /// Sorted set: circuit breakers by the time they were last heard of.
    pub fn fleet_breakers(&self) -> String {
        self.fleet("breakers")
    }

    /// Stream: what operators and circuit breakers did to the fleet.
    pub fn fleet_audit(&self) -> String {
        self.fleet("audit")
    }

    /// Hash: changes of other slots that are under way, each until its audit entry is written.
    pub fn fleet_intents(&self) -> String {
        self.fleet("intents")
    }

    /// Hash: how far each subscriber of the fleet's events is.
    pub fn fleet_cursors(&self) -> String {
        self.fleet("cursors")
    }

    /// Stream: events of the fleet that a subscriber did not take.
    pub fn fleet_undelivered(&self) -> String {
        self.fleet("undelivered")
    }

    /// String with a lifetime: the run of an idempotent submit.
    pub fn idempotency(&self, namespace: &str, key: &str) -> String {
        format!("{}idem:{namespace}:{key}", self.prefix)
    }

    /// Hash: the registered versions of a workflow.
    pub fn workflow(&self, name: &Name) -> String {
        format!("{}workflow:{name}", self.prefix)
    }

    /// Set: the names of registered workflows.
    pub fn workflows(&self) -> String {
        format!("{}workflows", self.prefix)
    }

    /// Hash: queues that were ever used, with their settings.
    pub fn queues(&self) -> String {
        format!("{}queues", self.prefix)
    }

    /// Hash: the fleet's policies, with their version.
    pub fn fleet_policies(&self) -> String {
        self.fleet("policies")
    }

    /// Hash: one version of the fleet's policies.
    pub fn fleet_policies_of(&self, version: u64) -> String {
        self.fleet(format_args!("policies:{version}"))
    }

    /// Sorted set: campaigns over dead letters, by when they began.
    pub fn campaigns(&self) -> String {
        self.fleet("campaigns")
    }

    /// Sorted set: the campaigns that go on, by when they began.
    pub fn campaigns_active(&self) -> String {
        self.fleet("campaigns-active")
    }

    /// Hash: one campaign. It shares the slot of the audit.
    pub fn campaign(&self, id: impl Display) -> String {
        self.fleet(format_args!("campaign:{id}"))
    }

    /// Hash: the letters that a campaign has taken up, whose outcome is not known yet.
    pub fn campaign_open(&self, id: impl Display) -> String {
        self.fleet(format_args!("campaign:{id}:open"))
    }

    /// List: what became of the letters of a campaign, in the order in which it was known.
    pub fn campaign_items(&self, id: impl Display) -> String {
        self.fleet(format_args!("campaign:{id}:items"))
    }
}

/// Keys of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionKeys {
    /// Which.
    pub partition: PartitionId,
    stem: Arc<str>,
}

macro_rules! plain_keys {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        impl PartitionKeys {
            $($(#[$doc])*
            pub fn $name(&self) -> String {
                format!(concat!("{}", $text), self.stem)
            })*
        }
    };
}

plain_keys! {
    /// Stream: every input of the partition, in order.
    log = "log";
    /// Hash: reign, seq, offset, now.
    head = "head";
    /// String with a lifetime: who owns the partition.
    lease = "lease";
    /// Sorted set: timers by when they are due, in milliseconds.
    timers = "timers";
    /// List: work items that later commits continue.
    todo = "todo";
    /// Stream: dead letters.
    dead = "dead";
    /// Stream: the outbox.
    events = "events";
    /// Stream: entries that could not be decided.
    quarantine = "quarantine";
    /// Hash: how many runs follow each plan.
    plan_uses = "plan-uses";
    /// Sorted set: plans that no run follows, by when the last one went, in milliseconds.
    plans_aside = "plans-aside";
    /// Set: jobs that are to be stopped.
    cancels = "cancels";
    /// Channel: what reaches all workers that may hold jobs of the partition.
    control = "control";
    /// Channel: answers to commands.
    replies = "replies";
    /// Hash: counters of what was dropped or repaired.
    counters = "counters";
    /// Set: queues that have a job stream or a ready set.
    queues = "queues";
    /// Set: the gates at which steps are parked.
    gates = "gates";
    /// Hash: jobs under way that count against a limit, with what they count against.
    held = "held";
    /// Stream: audit entries, each written by the commit that decided what was asked.
    audit = "audit";
    /// Hash: how far each subscriber of the outbox is.
    cursors = "cursors";
    /// Stream: outbox entries that a subscriber did not take.
    undelivered = "undelivered";
    /// Hash: what the auditor's last whole walk found.
    audited = "audited";
    /// Sorted set: groups of open dead letters by when the last one came, in milliseconds; members are fingerprints.
    letter_groups = "letter-groups";
}

/// The listing that runs in a state are found in.
pub const fn listing(state: State) -> &'static str {
    match state {
        State::Created | State::Queued | State::Processing | State::Waiting | State::Retrying => "active",
        State::Completed | State::Failed | State::Suspended | State::Cancelled | State::Skipped => state.as_str(),
    }
}

impl PartitionKeys {
    /// Hash: a run's record, with the states of its first steps.
    pub fn run(&self, run: &RunId) -> String {
        format!("{}run:{run}", self.stem)
    }

    /// String with a lifetime: the run was cancelled before it was known.
    pub fn tombstone(&self, run: &RunId) -> String {
        format!("{}tombstone:{run}", self.stem)
    }

    /// Hash: the states of the steps of one later chunk.
    pub fn chunk(&self, run: &RunId, chunk: u32) -> String {
        format!("{}run:{run}:{chunk}", self.stem)
    }

    /// String: a value.
    pub fn value(&self, id: impl Display) -> String {
        format!("{}value:{id}", self.stem)
    }

    /// String: a run's history, packed.
    pub fn history(&self, run: &RunId) -> String {
        format!("{}history:{run}", self.stem)
    }

    /// List: the failed attempts of a run's steps.
    pub fn errors(&self, run: &RunId) -> String {
        format!("{}errors:{run}", self.stem)
    }

    /// Hash: the external calls of a run's steps.
    pub fn calls(&self, run: &RunId) -> String {
        format!("{}calls:{run}", self.stem)
    }

    /// String: a workflow that runs follow, by its hash.
    pub fn plan(&self, hash: &str) -> String {
        format!("{}plan:{hash}", self.stem)
    }

    /// String: a plan that no run follows, until it is deleted or followed again.
    pub fn plan_aside(&self, hash: &str) -> String {
        format!("{}plan-aside:{hash}", self.stem)
    }

    /// Sorted set: the open dead letters of a group by when they came, in milliseconds; members are packed ids.
    pub fn letters(&self, fingerprint: impl Display) -> String {
        format!("{}letters:{fingerprint}", self.stem)
    }

    /// Hash: how many dead letters each step of a run has had.
    pub fn letter_counts(&self, run: &RunId) -> String {
        format!("{}letter-counts:{run}", self.stem)
    }

    /// Sorted set: ready steps of a queue.
    pub fn ready(&self, queue: &Name) -> String {
        format!("{}ready:{queue}", self.stem)
    }

    /// Sorted set: steps that are parked at a gate, in the form of the ready set.
    pub fn parked(&self, gate: &Gate) -> String {
        format!("{}gate:{gate}", self.stem)
    }

    /// Stream with the group [`GROUP`]: dispatched jobs of a queue.
    pub fn jobs(&self, queue: &Name) -> String {
        format!("{}jobs:{queue}", self.stem)
    }

    /// String with a lifetime: the answer to a command.
    pub fn reply(&self, command: &CommandId) -> String {
        format!("{}reply:{command}", self.stem)
    }

    /// Sorted set: runs in a state, by when they were made, or by when they ended if they did. The states of runs that go
    /// on share one listing, `active`, because a short run passes through all of them.
    pub fn runs(&self, state: State) -> String {
        format!("{}runs:{}", self.stem, listing(state))
    }

    /// Sorted set: runs of a workflow, by time.
    pub fn runs_of(&self, workflow: &Name) -> String {
        format!("{}runs:wf:{workflow}", self.stem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_and_its_probe_share_a_slot() {
        let keys = Keys::new("any:");
        let (own, probe) = (keys.worker("w@0123456789ab"), keys.worker_probe("w@0123456789ab"));
        assert_eq!(slot_of(own.as_bytes()), slot_of(probe.as_bytes()));
        assert!(probe.starts_with("any:"), "{probe}");
    }

    #[test]
    fn campaigns_and_the_audit_share_a_slot() {
        let keys = Keys::new("any:");
        let of = [
            keys.campaigns(),
            keys.campaigns_active(),
            keys.campaign(7),
            keys.campaign_open(7),
            keys.campaign_items(7),
        ];
        assert_eq!(of.map(|k| slot_of(k.as_bytes())), [slot_of(keys.fleet_audit().as_bytes()); 5]);
    }

    #[test]
    fn policies_their_versions_and_the_audit_share_a_slot() {
        let keys = Keys::new("any:");
        let slots =
            [keys.fleet_policies(), keys.fleet_policies_of(7), keys.fleet_audit()].map(|k| slot_of(k.as_bytes()));
        assert_eq!(slots, [slot_of(b"fleet"); 3]);
        assert_eq!(keys.fleet_policies_of(7), "any:{fleet}:policies:7");
    }

    #[test]
    fn keys_of_a_partition_share_its_slot() {
        let keys = Keys::default().partition(PartitionId(3));
        let name = Name::new("q").expect("a legal name");
        for key in [keys.log(), keys.head(), keys.jobs(&name), keys.control(), keys.value("x")] {
            assert_eq!(slot_of(key.as_bytes()), slot(PartitionId(3)), "{key}");
        }
    }
}
