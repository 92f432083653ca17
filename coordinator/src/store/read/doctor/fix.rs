//! What `doctor --fix` puts right.

use stepfleet_protocol::{
    audit::{AuditEntry, action},
    id::StreamId,
    keys::GROUP,
};

use super::{
    super::{super::client::Client, ClientError, count, reply},
    Checkup, Stream,
};
use crate::store::script;

/// Entries that are cleared away at once: with inputs inside, less than a MiB.
const CLEARED_AT_ONCE: u64 = 100;

impl Client {
    /// Puts right what is safe to put right: makes missing groups, and deletes consumers of gone workers at which
    /// nothing is pending. Returns what was done. Each act is noted under `actor`.
    ///
    /// # Errors
    /// [`ClientError`]; what was done before stays done.
    pub async fn fix(&self, found: &Checkup, actor: &str) -> Result<Vec<String>, ClientError> {
        let mut done = Vec::new();
        for stream in &found.without_group {
            let cleared = self.make_group(stream).await?;
            let Stream { partition, queue } = stream;
            done.push(format!("made the group of queue `{queue}` in partition {partition}, behind {cleared} entries"));
        }
        for orphan in found.orphans.iter().filter(|orphan| orphan.pending == 0) {
            let key = self.keys.partition(orphan.stream.partition).jobs(&orphan.stream.queue);
            let delete = script::delete_consumer(&key, GROUP, &orphan.worker);
            // RACE: its worker may have come back and read: the script looks again, and the job wins.
            if reply::number(&self.ask_partition(orphan.stream.partition, delete).await?) == Some(1) {
                let (worker, Stream { partition, queue }) = (&orphan.worker, &orphan.stream);
                done.push(format!("deleted the consumer {worker} of queue `{queue}` in partition {partition}"));
            }
        }
        for what in &done {
            let entry = AuditEntry::new(actor, action::DOCTOR_FIX, what.clone(), self.server_time_ms().await?);
            self.audit_fleet(&entry).await?;
        }
        Ok(done)
    }

    /// Clears away what is on a stream without a group, and makes the group behind it. Returns how many entries went.
    ///
    /// With the group went the knowledge of what was delivered and what was acked. From the beginning of the stream jobs
    /// that are long done would be done again, and so would one that a worker has just taken. So nothing of the old stream
    /// is delivered: a job that is still awaited and that no worker tells of in two beats is in no place then, and the
    /// auditor has it dispatched anew, uncounted.
    ///
    /// RACE: a job that the owner adds meanwhile comes behind the last entry seen here, and is delivered. If this process
    /// dies in between, the stream has no group still, and the next call goes on.
    async fn make_group(&self, stream: &Stream) -> Result<u64, ClientError> {
        let (partition, key) = (stream.partition, self.keys.partition(stream.partition).jobs(&stream.queue));
        let mut info = redis::cmd("XINFO");
        info.arg("STREAM").arg(&key);
        let info = self.ask_partition(partition, info).await?;
        let last = reply::field(&info, "last-generated-id").and_then(reply::text).and_then(|id| id.parse().ok());
        let last: StreamId = last.ok_or(ClientError::Broken("a job stream"))?;
        let mut cleared = 0;
        loop {
            let mut range = redis::cmd("XRANGE");
            range.arg(&key).arg("-").arg(last.to_string()).arg("COUNT").arg(CLEARED_AT_ONCE);
            let found = reply::entries(self.ask_partition(partition, range).await?);
            let Some((to, _)) = found.last() else { break };
            let mut trim = redis::cmd("XTRIM");
            trim.arg(&key).arg("MINID").arg(to.next().to_string());
            cleared += count(Some(&self.ask_partition(partition, trim).await?));
        }
        let mut create = redis::cmd("XGROUP");
        create.arg("CREATE").arg(&key).arg(GROUP).arg(last.to_string());
        self.ask_partition(partition, create).await?;
        Ok(cleared)
    }
}
