//! Runs campaigns over dead letters. A campaign is run by whoever owns its home partition, over the letters of all partitions.
//!
//! No letter is left out and none is taken twice, whenever a runner dies: that a letter is taken up is written, together with
//! the place in the stream, before its command is sent, and its command always has the same id. A runner that takes over sends
//! the commands of all open letters again; the owner of a partition answers a repeated command as before, and refuses one for a
//! letter that is closed. Two runners at once are told apart by a number that each raises: writes of the older one fail.

mod running;

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use redis::{Cmd, Value};
use stepfleet_protocol::{
    codec,
    id::{PartitionId, StreamId},
    keys::Keys,
    limits::CHUNK_STEPS,
    message::{Answer, Body, Command, LogEntry, Reply, Verb},
    state::State,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::running::{News, Running};
use super::{
    links::{Ask, Links},
    metrics::Metrics,
};
use crate::store::{
    campaigns::{
        FIELD_AT, FIELD_COUNT, FIELD_FENCE, FIELD_PHASE, FIELD_WANT, FIELD_WHY, Item, Kind, Outcome, Standing, Taken,
        Want, standing,
    },
    letters,
    link::{Dial, LinkError},
    read::PlacedId,
    record, reply,
};

/// Time between two looks when nothing was to be done.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Letters of one partition that one look reads.
const LETTERS_PER_READ: usize = 100;
/// Open letters that one look asks about.
const POLLS: usize = 1_000;
/// Asks of one trip.
const ASKS_PER_TRIP: usize = 200;
/// A command without an answer is sent again after this long.
const SEND_AGAIN: Duration = Duration::from_secs(10);

/// The runner of one coordinator.
pub struct Campaigns<D: Dial> {
    links: Links<D>,
    keys: Keys,
    metrics: Metrics,
    owned: watch::Receiver<BTreeSet<PartitionId>>,
    running: HashMap<Uuid, Running>,
}

impl<D: Dial> Campaigns<D> {
    /// For the campaigns whose home is in `owned`.
    pub fn new(dial: D, keys: Keys, metrics: Metrics, owned: watch::Receiver<BTreeSet<PartitionId>>) -> Self {
        Self { links: Links::new(dial), keys, metrics, owned, running: HashMap::new() }
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
        let Some(Standing { phase, counts, .. }) = standing(&fields, 0) else { return Ok(None) };
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
            since: Instant::now(),
            taken_here: 0,
        }))
    }

    /// One step of a campaign. Whether there is more to do at once; none if another runner has it.
    async fn step(&mut self, running: &mut Running) -> Result<Option<bool>, LinkError> {
        self.send(running).await?;
        let mut news = News::default();
        self.poll(running, &mut news).await?;
        let key = self.keys.campaign(running.campaign.id);
        let want = self.links.one(&key, redis::cmd("HGET").arg(&key).arg(FIELD_WANT).clone()).await?;
        let want = reply::text(&want).and_then(Want::from_word).unwrap_or(Want::Running);
        let room = running.judge(want, &mut news);
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

    /// Reads letters, at most `room`, and decides about each.
    async fn take_up(&mut self, running: &Running, room: usize, news: &mut News) -> Result<(), LinkError> {
        let now_ms = running.campaign.at_ms;
        for (partition, end) in (0u16..).zip(&running.campaign.ends) {
            let left = room - news.taken.len();
            let at = running.at.get(&partition).copied().unwrap_or(StreamId::ZERO);
            if left == 0 || at >= *end {
                continue;
            }
            let key = self.keys.partition(PartitionId(partition)).dead();
            let mut range = redis::cmd("XRANGE");
            range.arg(&key).arg(format!("({at}")).arg(end.to_string()).arg("COUNT").arg(left.min(LETTERS_PER_READ));
            let found = reply::entries(self.links.one(&key, range).await?);
            let is_last = found.len() < left.min(LETTERS_PER_READ);
            for (entry, fields) in found {
                news.at.insert(partition, entry);
                let id = PlacedId { entry, partition: PartitionId(partition) };
                let Some(letter) = letters::decode(&fields) else { continue };
                if !running.campaign.filter.takes(now_ms, id, &letter) {
                    continue;
                }
                let (run, step) = (letter.run, letter.step.to_string());
                if letter.returns >= running.campaign.returns_max && running.campaign.kind == Kind::Replay {
                    let note = Some(format!("its step came back {} times", letter.returns));
                    news.items.push(Item { letter: id, run, step, outcome: Outcome::Skipped, note });
                } else {
                    news.taken.push((id, Taken { run, index: letter.index, step }));
                }
            }
            if is_last {
                news.at.insert(partition, *end);
            }
        }
        Ok(())
    }

    /// Asks what became of some of the open letters.
    async fn poll(&mut self, running: &mut Running, news: &mut News) -> Result<(), LinkError> {
        let from = running.next.take();
        let some: Vec<(PlacedId, Taken)> = running
            .open
            .iter()
            .filter(|(id, _)| from.is_none_or(|from| **id > from))
            .take(POLLS)
            .map(|(id, (taken, _))| (*id, taken.clone()))
            .collect();
        running.next = if some.len() == POLLS { some.last().map(|(id, _)| *id) } else { None };
        let ask = |(id, taken): &(PlacedId, Taken)| {
            let keys = self.keys.partition(id.partition);
            let chunk = taken.index / CHUNK_STEPS;
            let run = if chunk == 0 { keys.run(&taken.run) } else { keys.chunk(&taken.run, chunk) };
            let get = redis::cmd("GET").arg(keys.reply(&running.campaign.command(*id))).clone();
            Ask::new(&run, vec![get, redis::cmd("HGET").arg(&run).arg(taken.index).clone()])
        };
        let asks = some.iter().map(ask).collect();
        let answers = self.links.gather(asks, ASKS_PER_TRIP).await;
        for ((id, taken), answer) in some.into_iter().zip(answers) {
            let replies = answer?.replies;
            if let Some((outcome, note)) = became(running.campaign.kind, id, &replies) {
                news.items.push(Item { letter: id, run: taken.run, step: taken.step, outcome, note });
            }
        }
        Ok(())
    }

    /// Writes the news, if no other runner has taken over.
    async fn write(&mut self, running: &mut Running, news: News) -> Result<bool, LinkError> {
        let id = running.campaign.id;
        let (key, open, items) = (self.keys.campaign(id), self.keys.campaign_open(id), self.keys.campaign_items(id));
        let mut look = redis::pipe();
        look.cmd("WATCH").arg(&key).cmd("HGET").arg(&key).arg(FIELD_FENCE);
        let replies = self.links.trip(&key, &look).await?;
        if replies.get(1).and_then(reply::number) != Some(running.fence) {
            self.links.one(&key, redis::cmd("UNWATCH")).await?;
            return Ok(false);
        }
        let mut pipe = redis::pipe();
        pipe.cmd("MULTI");
        for (partition, at) in &news.at {
            pipe.cmd("HSET").arg(&key).arg(format!("{FIELD_AT}{partition}")).arg(at.to_string());
        }
        for (letter, taken) in &news.taken {
            pipe.cmd("HSET").arg(&open).arg(letter.to_string()).arg(codec::pack(taken));
        }
        for item in &news.items {
            pipe.cmd("RPUSH").arg(&items).arg(codec::pack(item)).cmd("HDEL").arg(&open).arg(item.letter.to_string());
            pipe.cmd("HINCRBY").arg(&key).arg(format!("{FIELD_COUNT}{}", item.outcome.as_str())).arg(1);
        }
        if let Some((phase, why)) = &news.phase {
            pipe.cmd("HSET").arg(&key).arg(FIELD_PHASE).arg(phase.as_str()).arg(FIELD_WHY).arg(why);
        }
        pipe.cmd("EXEC");
        let replies = self.links.trip(&key, &pipe).await?;
        let done = match replies.last() {
            // An operator's wish came in between: the next look has it. Nothing was written.
            Some(Value::Nil) | None => return Ok(false),
            Some(Value::Array(done)) => done,
            Some(other) => return Err(LinkError::Lost(reply::error(other).unwrap_or_default())),
        };
        if let Some(text) = done.iter().find_map(reply::error) {
            return Err(LinkError::Lost(text));
        }
        running.at.extend(news.at);
        running.taken_here += news.taken.len() as u64;
        running.open.extend(news.taken.into_iter().map(|(letter, taken)| (letter, (taken, None))));
        for item in news.items {
            running.open.remove(&item.letter);
            *running.counts.entry(item.outcome.as_str()).or_default() += 1;
            self.metrics.campaign_items.with_label_values(&[item.outcome.as_str()]).inc();
        }
        if let Some((phase, _)) = news.phase {
            running.phase = phase;
        }
        Ok(true)
    }

    /// Sends the commands of the letters that have none under way.
    async fn send(&mut self, running: &mut Running) -> Result<(), LinkError> {
        let campaign = &running.campaign;
        let mut asks = Vec::new();
        for (id, (taken, sent)) in &mut running.open {
            if sent.is_some_and(|at| at.elapsed() < SEND_AGAIN) {
                continue;
            }
            *sent = Some(Instant::now());
            let (index, letter) = (taken.index, id.entry);
            let verb = match campaign.kind {
                Kind::Replay => Verb::Replay { index, letter, input: None },
                Kind::Discard => Verb::Discard { index, letter },
            };
            let reason = Some(campaign.reason.clone().unwrap_or_else(|| format!("campaign {}", campaign.id)));
            let (actor, run) = (campaign.actor.clone(), taken.run);
            // Whoever ran the campaign before may have sent it.
            let command = Command { id: campaign.command(*id), actor, run, reason, verb, again: true };
            asks.push(append(&self.keys, id.partition, command));
        }
        for answer in self.links.gather(asks, ASKS_PER_TRIP).await {
            if let Some(text) = answer?.replies.iter().find_map(reply::error) {
                return Err(LinkError::Lost(text));
            }
        }
        Ok(())
    }
}

fn append(keys: &Keys, partition: PartitionId, command: Command) -> Ask {
    let log = keys.partition(partition).log();
    let wire = codec::encode(&LogEntry::new(Body::Command(command)));
    let mut add: Cmd = redis::cmd("XADD");
    add.arg(&log).arg("*").arg(wire.field).arg(&wire.bytes[..]);
    Ask::new(&log, vec![add])
}

/// What became of a letter, by the answer to its command and the state of its step; none if that is not known yet.
fn became(kind: Kind, id: PlacedId, replies: &[Value]) -> Option<(Outcome, Option<String>)> {
    let reply: Reply = replies.first().and_then(reply::bytes).and_then(|bytes| codec::unpack(bytes).ok())?;
    match reply.answers.into_iter().next()? {
        Answer::Done { .. } | Answer::Known { .. } if kind == Kind::Discard => Some((Outcome::Discarded, None)),
        Answer::Done { .. } | Answer::Known { .. } => {
            let step = replies.get(1).and_then(reply::bytes).and_then(|bytes| record::unpack_step(bytes).ok());
            let Some(step) = step else { return Some((Outcome::Unknown, Some("its run is gone".into()))) };
            match (step.state, step.letter) {
                (State::Completed, _) => Some((Outcome::Completed, None)),
                (State::Failed, Some(entry)) => {
                    Some((Outcome::FailedAgain, Some(PlacedId { entry, ..id }.to_string())))
                }
                (State::Failed, None) => Some((Outcome::FailedAgain, None)),
                (State::Cancelled | State::Skipped, _) => Some((Outcome::Cancelled, None)),
                _ => None,
            }
        }
        Answer::Conflict { message, .. } | Answer::Refused { message, .. } => Some((Outcome::Skipped, Some(message))),
        Answer::NotFound | Answer::NoPlan => Some((Outcome::Skipped, Some("its run is gone".into()))),
    }
}
