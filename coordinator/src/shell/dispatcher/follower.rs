//! One subscriber of one feed: reads behind its cursor, delivers, tries again, sets aside.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use rand::RngExt;
use stepfleet_protocol::{
    codec::{DecodeError, VERSION},
    failure::cut,
    id::{RunId, StreamId},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{ATTEMPTS_MAX, FleetEvent, Notice, Settings, Subscriber};
use crate::{
    shell::metrics::OutboxCounters,
    store::{
        client::{Client, ClientError},
        outbox::{Cursor, ERROR_BYTES_MAX, Feed, Undelivered},
        reply::Fields,
    },
};

/// How long one try may take.
const DELIVERY_MAX: Duration = Duration::from_secs(30);
/// A cursor that moved is kept after this long, in the middle of a batch too: so much is delivered again after a crash, at
/// most, or what one delivery takes.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// Wait after Redis could not be reached.
const REDIS_WAIT: Duration = Duration::from_secs(1);
/// Bytes of one read, about.
const READ_BYTES: usize = 4 << 20;

/// How a delivery ended.
enum Delivery {
    Done,
    /// Every try failed; the last one so.
    Failed(String),
    /// The follower has to stop.
    Stopped,
}

/// What an entry tells a subscriber.
enum News {
    Nothing,
    Commit(Vec<Notice>),
    Fleet(FleetEvent),
}

/// One subscriber of one feed.
pub(super) struct Follower {
    client: Client,
    settings: Settings,
    subscriber: Arc<dyn Subscriber>,
    feed: Feed,
    counters: OutboxCounters,
    /// None until it is read.
    cursor: Option<Cursor>,
    kept: Option<Cursor>,
    kept_at: Instant,
    /// Bytes of an entry, as the last read has shown.
    entry_bytes: usize,
}

impl Follower {
    pub(super) fn new(
        client: Client,
        settings: Settings,
        subscriber: Arc<dyn Subscriber>,
        feed: Feed,
        counters: OutboxCounters,
    ) -> Self {
        let (cursor, kept, kept_at) = (None, None, Instant::now());
        Self { client, settings, subscriber, feed, counters, cursor, kept, kept_at, entry_bytes: READ_BYTES / 8 }
    }

    /// Follows until `stop`.
    pub(super) async fn run(mut self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            let wait = match self.round(stop).await {
                Ok(true) => continue,
                Ok(false) => self.settings.interval,
                Err(error) => {
                    tracing::debug!(%error, subscriber = self.subscriber.name(), "the outbox could not be followed");
                    REDIS_WAIT
                }
            };
            stop.run_until_cancelled(tokio::time::sleep(wait)).await;
        }
        if let Err(error) = self.keep().await {
            // What was delivered since the cursor was kept is delivered again.
            tracing::debug!(%error, subscriber = self.subscriber.name(), "the cursor could not be kept");
        }
    }

    /// Reads and delivers one batch. Whether there may be more.
    async fn round(&mut self, stop: &CancellationToken) -> Result<bool, ClientError> {
        if self.cursor.is_none() {
            self.cursor = self.client.cursor(self.feed, self.subscriber.name()).await?;
            self.kept.clone_from(&self.cursor);
        }
        let after = self.cursor.as_ref().map_or(StreamId::ZERO, |cursor| cursor.entry);
        let count = (READ_BYTES / self.entry_bytes.max(1)).clamp(1, self.settings.batch);
        let read = self.client.events_behind(self.feed, after, count).await?;
        self.pass_trimmed(read.trimmed);
        let entries = read.entries.len();
        let bytes = read.entries.iter().flat_map(|(_, fields)| fields).map(|(_, value)| value.len()).sum::<usize>();
        if let Some(average) = bytes.checked_div(entries) {
            self.entry_bytes = average;
        }
        let mut batch = Vec::with_capacity(entries);
        for (entry, fields) in read.entries {
            batch.push((entry, self.news(entry, &fields)));
        }
        self.look_up_runs(&mut batch).await?;
        for (entry, news) in batch {
            match news {
                Ok(News::Nothing) => self.pass(entry, 0),
                Ok(news) => match self.deliver(&news, stop).await? {
                    Delivery::Done => self.pass(entry, 1),
                    Delivery::Failed(error) => self.set_aside(entry, error, ATTEMPTS_MAX).await?,
                    Delivery::Stopped => break,
                },
                // Nobody can read it here, now or later.
                Err(error) => self.set_aside(entry, error.to_string(), 0).await?,
            }
            if stop.is_cancelled() {
                break;
            }
            if self.kept_at.elapsed() > KEEP_EVERY {
                self.keep().await?;
            }
        }
        self.keep().await?;
        Ok(entries == count)
    }

    /// What is wanted of an entry.
    fn news(&self, entry: StreamId, fields: &Fields) -> Result<News, DecodeError> {
        match self.feed {
            Feed::Partition(partition) => {
                let notices = Notice::read((partition, entry), fields, |why| self.subscriber.wants(why))?;
                Ok(if notices.is_empty() { News::Nothing } else { News::Commit(notices) })
            }
            Feed::Fleet => {
                let event = FleetEvent::read(entry, fields, |action| self.subscriber.wants_of_fleet(action))?;
                Ok(event.map_or(News::Nothing, News::Fleet))
            }
        }
    }

    /// What was trimmed before it was read is missed; but for a subscriber that begins now, it is history.
    fn pass_trimmed(&mut self, trimmed: u64) {
        let cursor = self.cursor.get_or_insert_with(|| Cursor::first(trimmed));
        let missed = trimmed.saturating_sub(cursor.seen);
        if missed > 0 {
            let (feed, subscriber) = (self.feed, self.subscriber.name());
            tracing::warn!(%feed, subscriber, missed, "events were trimmed before the subscriber had seen them");
            cursor.missed += missed;
            cursor.seen = trimmed;
            self.counters.missed.with_label_values(&[subscriber]).inc_by(missed);
        }
    }

    /// Adds to wanted notices what their runs follow, and their traces.
    async fn look_up_runs<E>(&self, batch: &mut [(StreamId, Result<News, E>)]) -> Result<(), ClientError> {
        let commits = batch.iter_mut().filter_map(|(_, news)| match news {
            Ok(News::Commit(notices)) => Some(notices),
            Ok(News::Nothing | News::Fleet(_)) | Err(_) => None,
        });
        let mut notices: Vec<&mut Notice> = commits.flatten().collect();
        let mut runs: Vec<RunId> = notices.iter().map(|notice| notice.run).collect();
        runs.sort_unstable();
        runs.dedup();
        if runs.is_empty() {
            return Ok(());
        }
        let followed = self.client.followed_by(runs).await?;
        for notice in &mut notices {
            notice.followed = followed.get(&notice.run).cloned();
        }
        Ok(())
    }

    /// Delivers the news of one entry, with a few tries.
    async fn deliver(&mut self, news: &News, stop: &CancellationToken) -> Result<Delivery, ClientError> {
        let mut error = String::new();
        for attempt in 1..=ATTEMPTS_MAX {
            if attempt > 1 {
                // What went well before is not delivered again if the wait is not survived.
                self.keep().await?;
                if stop.run_until_cancelled(tokio::time::sleep(self.wait(attempt - 1))).await.is_none() {
                    return Ok(Delivery::Stopped);
                }
            }
            let subscriber = self.subscriber.clone();
            let call = async {
                let delivery = match news {
                    News::Nothing => return Ok(Ok(())),
                    News::Commit(notices) => subscriber.deliver(notices),
                    News::Fleet(event) => subscriber.deliver_of_fleet(event),
                };
                tokio::time::timeout(DELIVERY_MAX, delivery).await
            };
            let Some(ended) = stop.run_until_cancelled(AssertUnwindSafe(call).catch_unwind()).await else {
                return Ok(Delivery::Stopped);
            };
            error = match ended {
                Ok(Ok(Ok(()))) => {
                    self.counters.deliveries.with_label_values(&[self.subscriber.name()]).inc();
                    return Ok(Delivery::Done);
                }
                Ok(Ok(Err(refusal))) => refusal.to_string(),
                Ok(Err(_)) => format!("no end within {} s", DELIVERY_MAX.as_secs()),
                Err(_) => "the subscriber panicked".to_owned(),
            };
            self.counters.failures.with_label_values(&[self.subscriber.name()]).inc();
            tracing::debug!(subscriber = self.subscriber.name(), attempt, error, "a delivery failed");
        }
        Ok(Delivery::Failed(error))
    }

    /// The wait after a failed try: it doubles, and half of it is chance, so that subscribers of many partitions do not come
    /// back together.
    fn wait(&self, failed: u32) -> Duration {
        let whole = self.settings.retry_base * 2u32.pow(failed - 1);
        whole.mul_f64(rand::rng().random_range(0.5..1.0))
    }

    fn moved(&self, entry: StreamId) -> Cursor {
        let before = self.cursor.clone().unwrap_or_else(|| Cursor::first(0));
        Cursor { entry, seen: before.seen + 1, ..before }
    }

    fn pass(&mut self, entry: StreamId, delivered: u64) {
        let mut cursor = self.moved(entry);
        cursor.delivered += delivered;
        self.cursor = Some(cursor);
    }

    /// Sets an entry aside. It is passed by only when that is written.
    async fn set_aside(&mut self, entry: StreamId, error: String, attempts: u32) -> Result<(), ClientError> {
        let mut cursor = self.moved(entry);
        cursor.undelivered += 1;
        let subscriber = self.subscriber.name().to_owned();
        tracing::error!(feed = %self.feed, subscriber, %entry, error, attempts, "an event was not delivered");
        let error = cut(error, ERROR_BYTES_MAX);
        let undelivered = Undelivered { v: VERSION, subscriber, entry, error, attempts };
        self.client.set_aside(self.feed, &undelivered, &cursor, self.missed_since_kept(&cursor)).await?;
        self.counters.undelivered.with_label_values(&[self.subscriber.name()]).inc();
        self.has_kept(cursor);
        Ok(())
    }

    /// Keeps the cursor if it moved.
    async fn keep(&mut self) -> Result<(), ClientError> {
        let Some(cursor) = self.cursor.clone().filter(|_| self.cursor != self.kept) else { return Ok(()) };
        let missed = self.missed_since_kept(&cursor);
        self.client.keep_cursor(self.feed, self.subscriber.name(), &cursor, missed).await?;
        self.has_kept(cursor);
        Ok(())
    }

    fn missed_since_kept(&self, cursor: &Cursor) -> u64 {
        cursor.missed.saturating_sub(self.kept.as_ref().map_or(0, |kept| kept.missed))
    }

    fn has_kept(&mut self, cursor: Cursor) {
        self.kept = Some(cursor.clone());
        self.cursor = Some(cursor);
        self.kept_at = Instant::now();
    }
}
