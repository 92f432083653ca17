//! The deliberate bugs that the simulation has to find: each is one line of the product, of the server in memory or of the
//! simulated worker, that asks `mutant("name")`.

/// Which stories have to find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Fleets,
    Campaigns,
}

/// One of them: its name, what breaks a promise, the traps of the design that it stands for, and who has to find it.
pub(super) struct Mutant(pub(super) &'static str, pub(super) &'static str, pub(super) &'static str, pub(super) By);

/// All of them.
#[rustfmt::skip]
pub(super) const ALL: &[Mutant] = &[
    Mutant("head_not_watched", "1", "A commit does not watch the head: one that comes late applies under the next reign", By::Fleets),
    Mutant("reign_without_random", "2", "A reign is a counter alone: after a failover two time lines have the same one", By::Fleets),
    Mutant("connection_shared", "3", "Every fourth commit has lost its watch to a transaction of somebody else", By::Fleets),
    Mutant("offset_passes_the_undecided", "4", "The offset passes entries that were read and not decided", By::Fleets),
    Mutant("job_id_ignored", "5", "A result counts for whatever job of its step is under way", By::Fleets),
    Mutant("worker_acks", "6", "The worker acks its job itself, when it has read it", By::Fleets),
    Mutant("nobody_acks", "6", "A commit does not ack the jobs that are over", By::Fleets),
    Mutant("consumer_deleted_with_its_jobs", "7", "The consumer of a dead worker is deleted although jobs are pending at it", By::Fleets),
    Mutant("outage_counts_as_silence", "9", "The observer counts on while the server does not answer", By::Fleets),
    Mutant("full_counts_as_silence", "9", "The observer counts on while the server takes no writes", By::Fleets),
    Mutant("timer_before_older_result", "10", "A timer is decided before entries that came before it was due", By::Fleets),
    Mutant("now_goes_back", "10", "The time of decisions follows the clock back", By::Fleets),
    Mutant("parked_step_dropped", "11", "A step that has to wait at a gate is not written down", By::Fleets),
    Mutant("ready_step_dropped", "11", "A step that has to wait in the ready set is not written down", By::Fleets),
    Mutant("work_item_dropped", "12", "What is too much for one commit is never continued", By::Fleets),
    Mutant("commit_torn", "13", "The server carries out a part of a transaction", By::Fleets),
    Mutant("poison_repeats_for_ever", "13", "An entry that cannot be read ends every owner that comes to it", By::Fleets),
    Mutant("garbage_not_kept", "13", "An entry that cannot be read is passed by and not kept", By::Fleets),
    Mutant("place_leaks", "15", "A result does not give back its place under a limit", By::Fleets),
    Mutant("limit_not_kept", "15", "A job begins although its limit has no room", By::Fleets),
    Mutant("token_leaks", "15", "A job that tried whether a dependency is back keeps its token", By::Fleets),
    Mutant("submit_not_deduplicated", "16", "A run that is submitted again begins again", By::Fleets),
    Mutant("tombstone_ignored", "16", "A run that was cancelled before it came begins", By::Fleets),
    Mutant("command_decided_twice", "17", "A command that is sent again is decided again", By::Fleets),
    Mutant("answer_not_written", "17", "A commit does not write its answers", By::Fleets),
    Mutant("room_made_of_the_undecided", "18", "A full server makes room by trimming what is not decided", By::Fleets),
    Mutant("timer_kept_in_mind_only", "", "A timer is not written: the next owner does not know it", By::Fleets),
    Mutant("timer_removed_outside_the_commit", "", "A due timer is removed when it is read, not when it is decided", By::Fleets),
    Mutant("young_time_out_forgotten", "", "A new owner does not look for the time-outs that the last one kept in mind only", By::Fleets),
    Mutant("no_grace_after_an_outage", "", "Attempts whose time is over are given up before their workers could report", By::Fleets),
    Mutant("one_try_too_many", "", "A step is tried once more than it may be", By::Fleets),
    Mutant("need_counted_twice", "", "A step that has ended counts twice for those that need it", By::Fleets),
    Mutant("dead_letter_not_written", "", "A step gives up, and its dead letter is not in the commit", By::Fleets),
    Mutant("outbox_not_told", "", "The outbox does not tell what the history tells", By::Fleets),
    Mutant("campaign_not_fenced", "", "Two coordinators run one campaign", By::Campaigns),
];
