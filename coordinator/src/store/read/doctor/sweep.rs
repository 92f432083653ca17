//! Asks the auditors for a walk, and looks how far it is. The fields are described at `shell/auditor/ask.rs`.

use redis::Value;
use stepfleet_protocol::{id::PartitionId, keys::slot};

use super::super::{super::client::Client, ClientError, count, reply};

/// How far the walks are that were asked for last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Partitions that are not done: a walk is under way, what it did not find has no second look yet, or nobody owns them.
    pub open: Vec<PartitionId>,
    /// Partitions in all.
    pub partitions: usize,
    /// Open runs that the last walks looked at.
    pub runs: u64,
    /// Repairs that were ever told of, in all partitions.
    pub repairs: u64,
}

impl Client {
    /// Asks the auditor of every partition to begin its walks as soon as those under way are done.
    ///
    /// # Errors
    /// [`ClientError`]; some may have been asked then.
    pub async fn ask_for_sweep(&self) -> Result<(), ClientError> {
        let partitions = self.all_partitions().await?;
        let times = self.ask_all(partitions.iter().map(|p| (slot(*p), redis::cmd("TIME"))).collect()).await?;
        let ask = |(partition, time): (PartitionId, &Value)| {
            // By the clock of the partition's own server, as the auditor's times are.
            let now_ms = reply::time_ms(time).ok_or(ClientError::Broken("the time"))?;
            let mut set = redis::cmd("HSET");
            set.arg(self.keys.partition(partition).audited()).arg("asked_ms").arg(now_ms);
            Ok((slot(partition), set))
        };
        let asks: Result<Vec<_>, ClientError> = partitions.into_iter().zip(&times).map(ask).collect();
        crate::store::ask::all_good(self.ask_all(asks?).await?)?;
        Ok(())
    }

    /// How far the walks are that were asked for last.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn sweep(&self) -> Result<Sweep, ClientError> {
        const FIELDS: [&str; 7] =
            ["asked_ms", "clear_ms", "swept_from_ms", "swept_ms", "letters_from_ms", "letters_ms", "runs"];
        let partitions = self.all_partitions().await?;
        let looks = partitions.iter().flat_map(|p| {
            let keys = self.keys.partition(*p);
            let (mut walks, mut repairs) = (redis::cmd("HMGET"), redis::cmd("HGET"));
            walks.arg(keys.audited()).arg(&FIELDS);
            repairs.arg(keys.counters()).arg("repairs");
            [(slot(*p), walks), (slot(*p), repairs)]
        });
        let replies = self.ask_all(looks.collect()).await?;
        let mut out = Sweep { partitions: partitions.len(), ..Sweep::default() };
        for (partition, pair) in partitions.into_iter().zip(replies.chunks_exact(2)) {
            let fields = reply::array(&pair[0]).unwrap_or_default();
            let [asked, clear, swept_from, swept, letters_from, letters, runs] =
                std::array::from_fn(|at| count(fields.get(at)));
            let is_done = swept_from >= asked && letters_from >= asked && clear >= swept.max(letters);
            if !is_done {
                out.open.push(partition);
            }
            out.runs += runs;
            out.repairs += count(pair.get(1));
        }
        Ok(out)
    }
}
