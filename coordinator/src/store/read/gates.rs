//! How many steps are parked at gates.

use stepfleet_protocol::{gate::Gate, keys::slot};

use super::{super::client::Client, ClientError, count};

impl Client {
    /// Steps that are parked at each of these gates, over all partitions.
    ///
    /// # Errors
    /// Redis' fault.
    pub async fn parked(&self, gates: &[Gate]) -> Result<Vec<u64>, ClientError> {
        let partitions = self.all_partitions().await?;
        let mut commands = Vec::with_capacity(gates.len() * partitions.len());
        for gate in gates {
            for partition in &partitions {
                let mut cmd = redis::cmd("ZCARD");
                cmd.arg(self.keys.partition(*partition).parked(gate));
                commands.push((slot(*partition), cmd));
            }
        }
        let replies = self.ask_all(commands).await?;
        let of = |replies: &[redis::Value]| replies.iter().map(|value| count(Some(value))).sum();
        Ok(replies.chunks(partitions.len().max(1)).map(of).collect())
    }
}
