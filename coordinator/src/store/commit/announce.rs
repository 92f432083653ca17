//! What a commit tells workers and waiting callers, inside its transaction or behind it.

use redis::Cmd;
use stepfleet_protocol::{beat::Control, codec::pack, keys::PartitionKeys, name::Name};

use super::Commit;

impl Commit {
    /// What workers and waiting callers are told. All of it can be found without: a lost one costs time only.
    pub(super) fn announcements(&self, keys: &PartitionKeys) -> Vec<Cmd> {
        let publish = |channel: String, message: Vec<u8>| {
            let mut cmd = redis::cmd("SPUBLISH");
            cmd.arg(channel).arg(message);
            cmd
        };
        let mut cmds = Vec::new();
        if self.cluster {
            let mut rung: Vec<&Name> = Vec::new();
            for (queue, _) in &self.jobs {
                if !rung.contains(&queue) {
                    rung.push(queue);
                }
            }
            cmds.extend(rung.into_iter().map(|q| publish(keys.control(), pack(&Control::Jobs(q.clone())))));
        }
        if !self.stops.is_empty() {
            cmds.push(publish(keys.control(), pack(&Control::Cancel(self.stops.clone()))));
        }
        if !self.replies.is_empty() {
            cmds.push(publish(keys.replies(), pack(&self.replies)));
        }
        cmds
    }

    /// Whether [`Self::afterwards`] has anything.
    pub fn announces(&self) -> bool {
        self.cluster && !(self.jobs.is_empty() && self.stops.is_empty() && self.replies.is_empty())
    }

    /// What has to be sent once the commit is known to have applied: on Cluster all announcements, because Valkey executes a
    /// transaction with an SPUBLISH in it without looking whether its keys are still there. While the slot moves to another
    /// node that would make them anew, with what this commit writes and nothing else.
    pub fn afterwards(&self, keys: &PartitionKeys) -> Vec<Cmd> {
        if self.cluster { self.announcements(keys) } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use stepfleet_protocol::{
        codec,
        id::{CommandId, JobId, PartitionId, Reign},
        keys::Keys,
        message::Answer,
    };

    use super::*;

    /// The names of the commands in the transaction, and of those behind it.
    fn names(cluster: bool) -> (Vec<String>, Vec<String>) {
        let queue = Name::new("q").expect("a legal name");
        let job = JobId { reign: Reign { counter: 1, random: 1 }, seq: 1, n: 1 };
        let mut commit = Commit { cluster, stops: vec![job], ..Commit::default() };
        commit.jobs = vec![(queue.clone(), codec::encode(&1)), (queue, codec::encode(&2))];
        commit.answer(CommandId(uuid::Uuid::nil()), vec![Answer::NotFound]);
        let keys = Keys::default().partition(PartitionId(0));
        let mut pipe = redis::pipe();
        assert_eq!(commit.write(&keys, 1, &mut pipe), pipe.len());
        let name = |cmd: &Cmd| match cmd.args_iter().next() {
            Some(redis::Arg::Simple(name)) => String::from_utf8_lossy(name).into_owned(),
            _ => panic!("a command has a name"),
        };
        let behind = commit.afterwards(&keys);
        assert_eq!(commit.announces(), !behind.is_empty());
        (pipe.cmd_iter().map(name).collect(), behind.iter().map(name).collect())
    }

    #[test]
    fn on_a_cluster_no_announcement_is_in_the_transaction() {
        assert_eq!(
            names(true),
            (["HSET", "XADD", "XADD", "SADD", "SET"].map(String::from).into(), vec!["SPUBLISH".into(); 3])
        );
        let one = ["HSET", "XADD", "XADD", "SADD", "SET", "SPUBLISH", "SPUBLISH"];
        assert_eq!(
            names(false),
            (one.map(String::from).into(), Vec::new()),
            "one server has no slots, and nobody waits"
        );
    }
}
