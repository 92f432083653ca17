//! How many runs ended how, from the listings.

use stepfleet_protocol::{keys::slot, state::State};

use super::{super::client::Client, ClientError, count};

/// Runs that ended in a window, and those that go on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ended {
    /// Runs that go on now.
    pub active: u64,
    /// Runs that are suspended now.
    pub suspended: u64,
    /// Completed in the window.
    pub completed: u64,
    /// Failed in the window, and neither reopened nor suspended since.
    pub failed: u64,
    /// Cancelled in the window.
    pub cancelled: u64,
    /// Open dead letters now.
    pub dead_letters: u64,
}

const LOOKS: usize = 6;

impl Client {
    /// Counts runs that ended at `since_ms` (Unix milliseconds) or later.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn ended_since(&self, since_ms: u64) -> Result<Ended, ClientError> {
        let mut commands = Vec::new();
        for partition in self.all_partitions().await? {
            let keys = self.keys.partition(partition);
            for state in [State::Processing, State::Suspended] {
                let mut cmd = redis::cmd("ZCARD");
                cmd.arg(keys.runs(state));
                commands.push((slot(partition), cmd));
            }
            for state in [State::Completed, State::Failed, State::Cancelled] {
                let mut cmd = redis::cmd("ZCOUNT");
                cmd.arg(keys.runs(state)).arg(since_ms).arg("+inf");
                commands.push((slot(partition), cmd));
            }
            let mut cmd = redis::cmd("XLEN");
            cmd.arg(keys.dead());
            commands.push((slot(partition), cmd));
        }
        let mut sum = Ended::default();
        for found in self.ask_all(commands).await?.chunks_exact(LOOKS) {
            sum.active += count(found.first());
            sum.suspended += count(found.get(1));
            sum.completed += count(found.get(2));
            sum.failed += count(found.get(3));
            sum.cancelled += count(found.get(4));
            sum.dead_letters += count(found.get(5));
        }
        Ok(sum)
    }
}
