//! A campaign that is run: how many letters it may take up, and when it is over. No I/O.

use std::collections::BTreeMap;

use stepfleet_protocol::id::StreamId;
use tokio::time::Instant;

use super::ASKS_PER_TRIP;
use crate::store::{
    campaigns::{Campaign, Item, Outcome, Phase, Taken, Want},
    read::PlacedId,
};

/// Letters without an outcome, at most; then the campaign waits for outcomes.
const OPEN_MAX: usize = 20_000;
/// Outcomes from which on a campaign may be stopped for failing.
const FAILING_AFTER: u64 = 10;
/// How long a campaign that was cancelled or stopped waits for the outcomes of what is under way, in milliseconds.
const FOLLOWS_MS: u64 = 3_600_000;

/// A campaign that is run here.
pub(super) struct Running {
    pub(super) campaign: Campaign,
    pub(super) fence: i64,
    pub(super) at: BTreeMap<u16, StreamId>,
    pub(super) open: BTreeMap<PlacedId, (Taken, Option<Instant>)>,
    /// Where the next look at open letters begins.
    pub(super) next: Option<PlacedId>,
    pub(super) counts: BTreeMap<&'static str, u64>,
    pub(super) phase: Phase,
    pub(super) why: Option<String>,
    /// Since when it is ending, in Unix milliseconds of the server; 0 while it goes on.
    pub(super) ending_ms: u64,
    /// Why some letter has to wait for a worker, as of the last time that letters were read.
    pub(super) waits: Option<String>,
    /// Letters whose commands cannot be made, with what is to be told of them.
    pub(super) unsendable: Vec<Item>,
    pub(super) credit: Credit,
}

/// What a look found out, to be written at once.
#[derive(Default)]
pub(super) struct News {
    pub(super) taken: Vec<(PlacedId, Taken)>,
    /// Open letters whose command was done.
    pub(super) answered: Vec<(PlacedId, Taken)>,
    pub(super) items: Vec<Item>,
    pub(super) at: BTreeMap<u16, StreamId>,
    pub(super) phase: Option<(Phase, Option<String>)>,
    /// When the look began, in Unix milliseconds of the server.
    pub(super) now_ms: u64,
}

/// How many letters the rate allows. It is earned only while letters may be taken up, and never for longer than a second, so
/// that nothing is caught up with after a pause.
pub(super) struct Credit {
    /// In thousandths of a letter.
    thousandths: u64,
    last: Instant,
    /// How long letters could be taken up so far, in milliseconds: the place on the ramp.
    earning_ms: u64,
}

impl Credit {
    /// None yet.
    pub(super) fn new(now: Instant) -> Self {
        Self { thousandths: 0, last: now, earning_ms: 0 }
    }

    /// Time went by in which nothing could be taken up.
    fn rest(&mut self, now: Instant) {
        self.last = now;
    }

    /// How many letters may be taken up now.
    fn earn(&mut self, campaign: &Campaign, waits: bool, now: Instant) -> u64 {
        let passed = (now.saturating_duration_since(self.last).as_millis() as u64).min(1_000);
        self.last = now;
        if !waits {
            self.earning_ms += passed;
        }
        let rate = rate_at(u64::from(campaign.rate), campaign.ramp_ms, self.earning_ms);
        // One that waits for a worker tries a letter now and then, and saves nothing for later.
        let most = if waits { 1_000 } else { rate.max(1) * 1_000 };
        self.thousandths = (self.thousandths + passed * rate).min(most);
        self.thousandths / 1_000
    }

    /// So many letters were taken up.
    pub(super) fn spend(&mut self, letters: u64) {
        self.thousandths = self.thousandths.saturating_sub(letters.saturating_mul(1_000));
    }
}

/// Letters a second after so many milliseconds: the rate grows evenly from a tenth of it, 1 at least.
fn rate_at(rate: u64, ramp_ms: u64, earning_ms: u64) -> u64 {
    if earning_ms >= ramp_ms {
        return rate;
    }
    let first = (rate / 10).max(1).min(rate);
    first + (rate - first) * earning_ms / ramp_ms
}

impl Running {
    fn count(&self, news: &News, outcome: Outcome) -> u64 {
        let fresh = news.items.iter().filter(|item| item.outcome == outcome).count() as u64;
        self.counts.get(outcome.as_str()).copied().unwrap_or(0) + fresh
    }

    /// Letters that were taken up, those that were left alone not counted.
    fn taken(&self, news: &News) -> u64 {
        let ended = Outcome::ALL.iter().filter(|o| **o != Outcome::Skipped).map(|o| self.count(news, *o)).sum::<u64>();
        ended + (self.open.len() - self.closed(news)) as u64
    }

    /// Open letters that have an outcome now.
    fn closed(&self, news: &News) -> usize {
        news.items.iter().filter(|item| self.open.contains_key(&item.letter)).count()
    }

    /// Whether nobody waits any more for what is under way.
    pub(super) fn gives_up(&self, now_ms: u64) -> bool {
        self.phase.is_ending() && now_ms.saturating_sub(self.ending_ms) >= FOLLOWS_MS
    }

    /// How many letters may be taken up now.
    pub(super) fn judge(&mut self, want: Want, news: &mut News, now: Instant) -> usize {
        let room = self.room(want, news);
        if room == 0 {
            self.credit.rest(now);
            return 0;
        }
        let room = match self.campaign.rate {
            0 => room,
            _ => room.min(self.credit.earn(&self.campaign, self.waits.is_some(), now)),
        };
        usize::try_from(room).unwrap_or(usize::MAX).min(ASKS_PER_TRIP * 4)
    }

    /// How many letters may be taken up, whatever the rate is.
    fn room(&self, want: Want, news: &mut News) -> u64 {
        if want != Want::Running || self.phase.is_ending() {
            return 0;
        }
        let (failed, completed) = (self.count(news, Outcome::FailedAgain), self.count(news, Outcome::Completed));
        let (limit, ended) = (u64::from(self.campaign.stop_when_failing), failed + completed);
        if limit > 0 && ended >= FAILING_AFTER && failed * 100 >= ended * limit {
            news.phase = Some((Phase::Stopping, Some(format!("{failed} of {ended} letters failed again"))));
            return 0;
        }
        let (taken, canary) = (self.taken(news), u64::from(self.campaign.canary));
        let mut room = self.campaign.max.saturating_sub(taken);
        if canary > 0 && taken < canary {
            room = room.min(canary - taken);
        } else if canary > 0 && taken == canary {
            // The next ones come when each of the first has its outcome.
            if self.open.len() > self.closed(news) {
                return 0;
            }
            if failed > 0 {
                let why = format!("{failed} of the first {canary} letters failed again");
                news.phase = Some((Phase::Stopping, Some(why)));
                return 0;
            }
        }
        room.min(OPEN_MAX.saturating_sub(self.open.len()) as u64)
    }

    /// Whether the campaign is in another phase now.
    pub(super) fn conclude(&self, want: Want, news: &mut News) {
        let at = |partition: u16| news.at.get(&partition).or_else(|| self.at.get(&partition)).copied();
        let is_read = (0u16..).zip(&self.campaign.ends).all(|(p, end)| at(p).unwrap_or(StreamId::ZERO) >= *end);
        let open = self.open.len() - self.closed(news) + news.taken.len();
        let taken = self.taken(news) + news.taken.len() as u64;
        let canary = u64::from(self.campaign.canary);
        let stopping = match &news.phase {
            Some((Phase::Stopping, why)) => Some(why.clone()),
            _ => (self.phase == Phase::Stopping).then(|| self.why.clone()),
        };
        let (phase, why) = match (stopping, want) {
            (Some(why), _) if open == 0 => (Phase::Stopped, why),
            (Some(why), _) => (Phase::Stopping, why),
            (None, Want::Cancelled) if open == 0 => (Phase::Cancelled, None),
            (None, Want::Cancelled) => (Phase::Cancelling, None),
            (None, Want::Paused) => (Phase::Paused, None),
            (None, Want::Running) if open == 0 && (is_read || taken >= self.campaign.max) => (Phase::Completed, None),
            (None, Want::Running) if self.waits.is_some() && news.taken.is_empty() => {
                (Phase::Waiting, self.waits.clone())
            }
            (None, Want::Running) if canary > 0 && taken <= canary && open > 0 => (Phase::Canary, None),
            (None, Want::Running) => (Phase::Running, None),
        };
        news.phase = ((phase, &why) != (self.phase, &self.why)).then_some((phase, why));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use stepfleet_protocol::id::{PartitionId, RunId};
    use uuid::Uuid;

    use super::*;
    use crate::store::{campaigns::Kind, letters::Filter};

    fn running(rate: u32, ramp_ms: u64, now: Instant) -> Running {
        let campaign = Campaign {
            v: 1,
            id: Uuid::from_u128(1),
            kind: Kind::Replay,
            filter: Filter::default(),
            actor: "ann".into(),
            reason: None,
            at_ms: 1,
            ends: vec![StreamId { ms: 9, seq: 0 }],
            canary: 0,
            rate,
            stop_when_failing: 0,
            max: 1_000_000,
            returns_max: 3,
            ramp_ms,
            patch: None,
            when_version: None,
        };
        Running {
            campaign,
            fence: 1,
            at: BTreeMap::new(),
            open: BTreeMap::new(),
            next: None,
            counts: BTreeMap::new(),
            phase: Phase::Running,
            why: None,
            ending_ms: 0,
            waits: None,
            unsendable: Vec::new(),
            credit: Credit::new(now),
        }
    }

    /// Letters that are taken up in so many seconds, with four looks a second that have `want`.
    fn take(running: &mut Running, now: &mut Instant, secs: u32, want: Want) -> u64 {
        let mut all = 0;
        for _ in 0..secs * 4 {
            *now += Duration::from_millis(250);
            let room = running.judge(want, &mut News::default(), *now) as u64;
            running.credit.spend(room);
            all += room;
        }
        all
    }

    #[test]
    fn a_pause_or_a_wait_saves_no_letters_for_later() {
        let mut now = Instant::now();
        let mut running = running(10, 0, now);
        assert_eq!(take(&mut running, &mut now, 10, Want::Running), 100);
        assert_eq!(take(&mut running, &mut now, 600, Want::Paused), 0);
        assert_eq!(take(&mut running, &mut now, 1, Want::Running), 10, "nothing is caught up with");
        running.waits = Some("no worker".into());
        for _ in 0..100 {
            now += Duration::from_millis(500);
            assert!(running.judge(Want::Running, &mut News::default(), now) <= 1, "it looks, and takes none");
        }
        running.waits = None;
        assert!(take(&mut running, &mut now, 1, Want::Running) <= 11);
        // A runner that takes over begins with nothing, and a look that came late brings a second's worth at most.
        now += Duration::from_secs(60);
        assert!(running.judge(Want::Running, &mut News::default(), now) <= 10);
    }

    #[test]
    fn the_rate_grows_over_the_ramp_and_stays() {
        let rates: Vec<u64> = [0, 15_000, 30_000, 60_000, 90_000].map(|ms| rate_at(100, 60_000, ms)).into();
        assert_eq!(rates, [10, 32, 55, 100, 100]);
        assert_eq!([rate_at(3, 10_000, 0), rate_at(1, 10_000, 5_000), rate_at(7, 0, 0)], [1, 1, 7]);
        let mut now = Instant::now();
        let mut running = running(100, 10_000, now);
        let (first, later) =
            (take(&mut running, &mut now, 10, Want::Running), take(&mut running, &mut now, 10, Want::Running));
        assert!((500..600).contains(&first) && later == 1_000, "{first} {later}");
    }

    #[test]
    fn a_campaign_that_ends_follows_what_is_under_way_for_a_time() {
        let now = Instant::now();
        let mut running = running(0, 0, now);
        let letter = PlacedId { entry: StreamId { ms: 5, seq: 0 }, partition: PartitionId(0) };
        let run = RunId::new(PartitionId(0), 1, 1);
        running.open.insert(letter, (Taken { run, index: 0, step: "s".into(), answered: true }, None));
        let mut news = News { now_ms: 1_000, ..News::default() };
        assert_eq!(running.judge(Want::Cancelled, &mut news, now), 0);
        running.conclude(Want::Cancelled, &mut news);
        assert_eq!(news.phase, Some((Phase::Cancelling, None)));
        (running.phase, running.ending_ms) = (Phase::Cancelling, 1_000);
        assert!(!running.gives_up(FOLLOWS_MS + 999) && running.gives_up(FOLLOWS_MS + 1_000));
        let item = Item { letter, run, step: "s".into(), outcome: Outcome::Completed, note: None };
        let mut news = News { items: vec![item], now_ms: 2_000, ..News::default() };
        running.conclude(Want::Cancelled, &mut news);
        assert_eq!(news.phase, Some((Phase::Cancelled, None)), "the outcome of the last one ends it");
    }

    #[test]
    fn a_campaign_that_stops_keeps_its_reason_until_the_end() {
        let now = Instant::now();
        let mut running = running(0, 0, now);
        running.campaign.stop_when_failing = 50;
        running.counts = BTreeMap::from([("failed_again", 6), ("completed", 4)]);
        let letter = PlacedId { entry: StreamId { ms: 5, seq: 0 }, partition: PartitionId(0) };
        let run = RunId::new(PartitionId(0), 1, 1);
        running.open.insert(letter, (Taken { run, index: 0, step: "s".into(), answered: true }, None));
        let mut news = News::default();
        assert_eq!(running.judge(Want::Running, &mut news, now), 0);
        running.conclude(Want::Running, &mut news);
        let why = Some("6 of 10 letters failed again".to_owned());
        assert_eq!(news.phase, Some((Phase::Stopping, why.clone())));
        (running.phase, running.why) = (Phase::Stopping, why.clone());
        running.open.clear();
        let mut news = News::default();
        assert_eq!(running.judge(Want::Running, &mut news, now), 0, "it takes up no more");
        running.conclude(Want::Running, &mut news);
        assert_eq!(news.phase, Some((Phase::Stopped, why)));
    }
}
