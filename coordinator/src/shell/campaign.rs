//! Runs campaigns over dead letters. A campaign is run by whoever owns its home partition, over the letters of all partitions.
//!
//! No letter is left out and none is taken twice, whenever a runner dies: that a letter is taken up is written, together with
//! the place in the stream, before its command is sent, and its command always has the same id. A runner that takes over sends
//! the commands of all open letters again; the owner of a partition answers a repeated command as before, and refuses one for a
//! letter that is closed. Two runners at once are told apart by a number that each raises: writes of the older one fail.

mod expire;
mod letters;
mod running;
mod send;
mod versions;
mod write;

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use stepfleet_protocol::{codec, id::PartitionId, keys::Keys};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::{
    running::{Credit, News, Running},
    versions::Versions,
};
use super::{links::Links, metrics::Metrics};
use crate::store::{
    campaigns::{FIELD_AT, FIELD_FENCE, FIELD_WANT, Standing, Want, standing},
    link::{Dial, LinkError},
    reply,
};

/// Time between two looks when nothing was to be done.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Asks of one trip.
const ASKS_PER_TRIP: usize = 200;

/// The runner of one coordinator.
pub struct Campaigns<D: Dial> {
    links: Links<D>,
    keys: Keys,
    metrics: Metrics,
    owned: watch::Receiver<BTreeSet<PartitionId>>,
    running: HashMap<Uuid, Running>,
    versions: Versions,
    /// When it was last looked what retention takes.
    expired: Option<Instant>,
}

impl<D: Dial> Campaigns<D> {
    /// For the campaigns whose home is in `owned`.
    pub fn new(dial: D, keys: Keys, metrics: Metrics, owned: watch::Receiver<BTreeSet<PartitionId>>) -> Self {
        let (links, running, versions) = (Links::new(dial), HashMap::new(), Versions::default());
        Self { links, keys, metrics, owned, running, versions, expired: None }
    }

    /// Looks until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            let busy = match self.look().await {
                Ok(busy) => busy,
                Err(error) => {
                    tracing::debug!(%error, "campaigns could not be looked at");
                    self.running.clear();
                    false
                }
            };
            let wait = if busy { Duration::from_millis(20) } else { LOOK_EVERY };
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One look at every campaign of ours. Whether there is more to do at once.
    ///
    /// # Errors
    /// The links'; what is run is then taken up anew.
    pub async fn look(&mut self) -> Result<bool, LinkError> {
        let key = self.keys.campaigns_active();
        let found = self.links.one(&key, redis::cmd("ZRANGE").arg(&key).arg(0).arg(-1).clone()).await?;
        let ids = reply::array(&found).unwrap_or_default().iter().filter_map(reply::text);
        let ids: BTreeSet<Uuid> = ids.filter_map(|id| id.parse().ok()).collect();
        self.running.retain(|id, _| ids.contains(id));
        self.metrics.campaigns.set(ids.len() as i64);
        let mut busy = false;
        for id in ids {
            let mut running = match self.running.remove(&id) {
                Some(running) => running,
                None => match self.take(id).await? {
                    Some(running) => running,
                    None => continue,
                },
            };
            if !self.owned.borrow().contains(&running.campaign.home()) {
                continue;
            }
            let Some(more) = self.step(&mut running).await? else { continue };
            busy |= more;
            if running.phase.is_final() {
                self.links.one(&key, redis::cmd("ZREM").arg(&key).arg(id.to_string()).clone()).await?;
            } else {
                self.running.insert(id, running);
            }
        }
        self.expire().await?;
        Ok(busy)
    }

    /// Takes a campaign over, if its home is ours.
    async fn take(&mut self, id: Uuid) -> Result<Option<Running>, LinkError> {
        let (key, open) = (self.keys.campaign(id), self.keys.campaign_open(id));
        let fields = self.links.one(&key, redis::cmd("HGETALL").arg(&key).clone()).await?;
        let Some(Standing { campaign, phase, .. }) = standing(&reply::pairs(fields), 0) else { return Ok(None) };
        if phase.is_final() {
            // RACE: its runner died between writing the end and taking it off the list.
            let active = self.keys.campaigns_active();
            self.links.one(&active, redis::cmd("ZREM").arg(&active).arg(id.to_string()).clone()).await?;
            return Ok(None);
        }
        if !self.owned.borrow().contains(&campaign.home()) {
            return Ok(None);
        }
        let mut pipe = redis::pipe();
        pipe.cmd("HINCRBY").arg(&key).arg(FIELD_FENCE).arg(1).cmd("HGETALL").arg(&key).cmd("HGETALL").arg(&open);
        let mut replies = self.links.trip(&key, &pipe).await?.into_iter();
        let fence = replies.next().as_ref().and_then(reply::number).unwrap_or(0);
        let fields = replies.next().map(reply::pairs).unwrap_or_default();
        let Some(Standing { phase, why, counts, ending_ms, .. }) = standing(&fields, 0) else { return Ok(None) };
        let text = |bytes: &bytes::Bytes| String::from_utf8_lossy(bytes).into_owned();
        let place = |(field, value): &(bytes::Bytes, bytes::Bytes)| {
            Some((text(field).strip_prefix(FIELD_AT)?.parse().ok()?, text(value).parse().ok()?))
        };
        let open = replies.next().map(reply::pairs).unwrap_or_default();
        let taken = |(field, value): &(bytes::Bytes, bytes::Bytes)| {
            Some((text(field).parse().ok()?, (codec::unpack(value).ok()?, None)))
        };
        Ok(Some(Running {
            at: fields.iter().filter_map(place).collect(),
            open: open.iter().filter_map(taken).collect(),
            counts: counts.into_iter().map(|(outcome, count)| (outcome.as_str(), count)).collect(),
            campaign,
            fence,
            next: None,
            phase,
            why,
            ending_ms,
            waits: None,
            unsendable: Vec::new(),
            // What a rate allowed before is not caught up with.
            credit: Credit::new(Instant::now()),
        }))
    }

    /// One step of a campaign. Whether there is more to do at once; none if another runner has it.
    async fn step(&mut self, running: &mut Running) -> Result<Option<bool>, LinkError> {
        self.send(running).await?;
        let key = self.keys.campaign(running.campaign.id);
        let mut look = redis::pipe();
        look.cmd("HGET").arg(&key).arg(FIELD_WANT).cmd("TIME");
        let found = self.links.trip(&key, &look).await?;
        let want = found.first().and_then(reply::text).and_then(Want::from_word).unwrap_or(Want::Running);
        let now_ms = found.get(1).and_then(reply::time_ms).ok_or_else(|| LinkError::Lost("no time".into()))?;
        let mut news = News { items: std::mem::take(&mut running.unsendable), now_ms, ..News::default() };
        self.poll(running, &mut news).await?;
        let room = running.judge(want, &mut news, Instant::now());
        if room > 0 {
            self.take_up(running, room, &mut news).await?;
        }
        running.conclude(want, &mut news);
        let more = !news.taken.is_empty() || !news.items.is_empty();
        if !self.write(running, news).await? {
            return Ok(None);
        }
        self.send(running).await?;
        Ok(Some(more))
    }
}
