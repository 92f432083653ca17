//! What a commit writes about steps that wait: timers, ready sets, gates, work items.

use stepfleet_protocol::codec::pack;

use super::{Commands, Commit};

/// Members of one command.
const PER_COMMAND: usize = 500;

fn add<'a>(out: &mut Commands, key: &str, members: impl IntoIterator<Item = &'a [(u64, Vec<u8>)]>) {
    for part in members {
        let cmd = out.cmd("ZADD").arg(key);
        for (score, member) in part {
            cmd.arg(*score).arg(&member[..]);
        }
    }
}

fn remove<'a>(out: &mut Commands, key: &str, members: impl IntoIterator<Item = &'a [Vec<u8>]>) {
    for part in members {
        let cmd = out.cmd("ZREM").arg(key);
        for member in part {
            cmd.arg(&member[..]);
        }
    }
}

impl Commit {
    /// A step that is taken out and put back in one batch stays; a timer that is set and cleared in one is gone: it was due at
    /// once. Hence the orders.
    pub(super) fn write_schedule(&self, out: &mut Commands) {
        let timers = out.keys.timers();
        add(out, &timers, self.timers_set.chunks(PER_COMMAND));
        remove(out, &timers, self.timers_cleared.chunks(PER_COMMAND));
        for (queue, members) in &self.ready_removed {
            let key = out.keys.ready(queue);
            remove(out, &key, members.chunks(PER_COMMAND));
        }
        for (queue, members) in &self.ready_added {
            let key = out.keys.ready(queue);
            add(out, &key, members.chunks(PER_COMMAND));
        }
        for (gate, members) in &self.parked_removed {
            let key = out.keys.parked(gate);
            remove(out, &key, members.chunks(PER_COMMAND));
        }
        for (gate, members) in &self.parked_added {
            let key = out.keys.parked(gate);
            add(out, &key, members.chunks(PER_COMMAND));
        }
        let gates = out.keys.gates();
        for (command, names) in [("SREM", &self.gates_removed), ("SADD", &self.gates_added)] {
            for part in names.chunks(PER_COMMAND) {
                let cmd = out.cmd(command).arg(&gates);
                for gate in part {
                    cmd.arg(gate.as_str());
                }
            }
        }
        let held = out.keys.held();
        for part in self.held_added.chunks(PER_COMMAND) {
            let cmd = out.cmd("HSET").arg(&held);
            for (job, what) in part {
                cmd.arg(job.to_string()).arg(pack(what));
            }
        }
        for part in self.held_removed.chunks(PER_COMMAND) {
            let cmd = out.cmd("HDEL").arg(&held);
            for job in part {
                cmd.arg(job.to_string());
            }
        }
        let todo = out.keys.todo();
        if self.work_taken > 0 {
            out.cmd("LTRIM").arg(&todo).arg(self.work_taken).arg(-1);
        }
        for part in self.work_added.chunks(PER_COMMAND) {
            let cmd = out.cmd("RPUSH").arg(&todo);
            for item in part {
                cmd.arg(&item[..]);
            }
        }
    }
}
