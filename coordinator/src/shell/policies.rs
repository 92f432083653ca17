//! How owners come to know the fleet's policies: a look once a second, and a wait before an owner begins with older ones than
//! its partition has seen.

use std::time::Duration;

use stepfleet_protocol::keys::Keys;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{links::Links, metrics::Metrics};
use crate::{
    machine::rules::Rules,
    store::{
        client::ClientError,
        link::{Dial, LinkError},
        policies, reply,
    },
};

/// Time between two looks.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long an owner waits for the policies that its partition has seen, before it gives its reign up.
const WAIT: Duration = Duration::from_secs(3);

/// What is known of the policies.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The rules of the last look that was answered.
    pub rules: Rules,
    /// Looks that were answered.
    pub looks: u64,
}

/// Why a look brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The server was not reached.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// What is stored cannot be read.
    #[error(transparent)]
    Stored(#[from] ClientError),
}

/// Looks at the policies for every owner of this coordinator.
pub struct Watcher<D: Dial> {
    links: Links<D>,
    keys: Keys,
    metrics: Metrics,
    known: watch::Sender<Known>,
    fails: bool,
}

impl<D: Dial> Watcher<D> {
    /// Nothing is known yet.
    pub fn new(dial: D, keys: Keys, metrics: Metrics) -> Self {
        Self { links: Links::new(dial), keys, metrics, known: watch::Sender::default(), fails: false }
    }

    /// What is known, from now on.
    pub fn subscribe(&self) -> watch::Receiver<Known> {
        self.known.subscribe()
    }

    /// Looks once a second until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => self.tell().await,
            }
        }
    }

    /// Looks once, and says in the log when that begins to fail. What was known goes on to hold.
    pub async fn tell(&mut self) {
        match self.look().await {
            Ok(()) => self.fails = false,
            Err(error) => {
                self.metrics.policies_unread.inc();
                if !std::mem::replace(&mut self.fails, true) {
                    tracing::error!(%error, "the fleet's policies cannot be read; those that were known go on to hold");
                }
            }
        }
    }

    /// Looks once.
    ///
    /// # Errors
    /// [`LookError`]; then what was known goes on to hold.
    pub async fn look(&mut self) -> Result<(), LookError> {
        let key = self.keys.fleet_policies();
        let version = self.links.one(&key, policies::version(&self.keys)).await?;
        if let Some(text) = reply::error(&version) {
            return Err(LinkError::Lost(text).into());
        }
        let before = self.known.borrow().rules.version;
        let version = reply::number(&version).map_or(0, i64::unsigned_abs);
        let rules = if version == before {
            None
        } else {
            let found =
                policies::read(&self.links.one(&key, policies::present(&self.keys)).await?)?.unwrap_or_default();
            if found.version < before {
                // A failover has lost the last change, and nobody has it any more.
                tracing::error!(
                    before,
                    now = found.version,
                    "ALERT: the fleet's policies have gone back; apply them again"
                );
            } else {
                tracing::info!(version = found.version, actor = found.actor, "new policies");
            }
            Some(Rules::new(found.version, found.policies))
        };
        self.known.send_modify(|known| {
            known.looks += 1;
            if let Some(rules) = rules {
                known.rules = rules;
            }
        });
        self.metrics.policies_version.set(i64::try_from(self.known.borrow().rules.version).unwrap_or(i64::MAX));
        Ok(())
    }
}

/// The rules to begin a reign with, of a partition that was last decided with version `seen`: not older, unless the server
/// itself has lost that version. None if that cannot be told now.
pub async fn not_older(known: &mut watch::Receiver<Known>, seen: u64) -> Option<Rules> {
    // RACE: the last owner had looked before this coordinator did. The look that was under way may have come too early, the
    // one after it cannot.
    let enough = known.borrow().looks + 2;
    let settled = known.wait_for(|k| k.rules.version >= seen || k.looks >= enough);
    let found = tokio::time::timeout(WAIT, settled).await.ok()?.ok()?;
    if found.rules.version < seen {
        tracing::error!(seen, known = found.rules.version, "ALERT: the policies that a partition has seen are lost");
    }
    Some(found.rules.clone())
}

#[cfg(test)]
mod tests {
    use stepfleet_protocol::policy::Policies;
    use tokio::time::Instant;

    use super::*;

    fn known(version: u64, looks: u64) -> Known {
        Known { rules: Rules::new(version, Policies::default()), looks }
    }

    async fn begins_with(seen: u64, later: Vec<Known>) -> (Option<u64>, Duration) {
        let (sender, mut receiver) = watch::channel(known(5, 1));
        let begun = Instant::now();
        let looking = async {
            for next in later {
                tokio::time::sleep(LOOK_EVERY).await;
                sender.send_replace(next);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            found = not_older(&mut receiver, seen) => (found.map(|rules| rules.version), begun.elapsed()),
            () = looking => unreachable!("it looks for ever"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_waits_for_the_policies_that_its_partition_has_seen() {
        assert_eq!(begins_with(4, vec![]).await, (Some(5), Duration::ZERO));
        assert_eq!(begins_with(5, vec![]).await, (Some(5), Duration::ZERO));
        assert_eq!(begins_with(6, vec![known(6, 2)]).await, (Some(6), LOOK_EVERY));
        assert_eq!(begins_with(6, vec![known(5, 2), known(7, 3)]).await, (Some(7), LOOK_EVERY * 2));
    }

    #[tokio::test(start_paused = true)]
    async fn policies_that_the_server_has_lost_are_not_waited_for_but_a_server_that_is_silent_is() {
        let lost = begins_with(6, vec![known(5, 2), known(5, 3)]).await;
        assert_eq!(lost, (Some(5), LOOK_EVERY * 2), "two whole looks have not found them");
        assert_eq!(begins_with(6, vec![]).await, (None, WAIT));
    }
}
