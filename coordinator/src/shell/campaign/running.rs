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
    pub(super) since: Instant,
    pub(super) taken_here: u64,
}

/// What a look found out, to be written at once.
#[derive(Default)]
pub(super) struct News {
    pub(super) taken: Vec<(PlacedId, Taken)>,
    pub(super) items: Vec<Item>,
    pub(super) at: BTreeMap<u16, StreamId>,
    pub(super) phase: Option<(Phase, String)>,
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

    /// How many letters may be taken up now.
    pub(super) fn judge(&mut self, want: Want, news: &mut News) -> usize {
        if want != Want::Running {
            return 0;
        }
        let (failed, completed) = (self.count(news, Outcome::FailedAgain), self.count(news, Outcome::Completed));
        let (limit, ended) = (u64::from(self.campaign.stop_when_failing), failed + completed);
        if limit > 0 && ended >= FAILING_AFTER && failed * 100 >= ended * limit {
            news.phase = Some((Phase::Stopped, format!("{failed} of {ended} letters failed again")));
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
                news.phase = Some((Phase::Stopped, format!("{failed} of the first {canary} letters failed again")));
                return 0;
            }
        }
        if self.campaign.rate > 0 {
            let earned = self.since.elapsed().as_millis() as u64 * u64::from(self.campaign.rate) / 1_000;
            room = room.min(earned.saturating_sub(self.taken_here));
        }
        let open = OPEN_MAX.saturating_sub(self.open.len());
        usize::try_from(room).unwrap_or(usize::MAX).min(open).min(ASKS_PER_TRIP * 4)
    }

    /// Whether the campaign is in another phase now.
    pub(super) fn conclude(&self, want: Want, news: &mut News) {
        if news.phase.is_some() {
            return;
        }
        let at = |partition: u16| news.at.get(&partition).or_else(|| self.at.get(&partition)).copied();
        let is_read = (0u16..).zip(&self.campaign.ends).all(|(p, end)| at(p).unwrap_or(StreamId::ZERO) >= *end);
        let open = self.open.len() - self.closed(news) + news.taken.len();
        let taken = self.taken(news) + news.taken.len() as u64;
        let canary = u64::from(self.campaign.canary);
        let phase = match want {
            Want::Cancelled => Phase::Cancelled,
            Want::Paused => Phase::Paused,
            Want::Running if open == 0 && (is_read || taken >= self.campaign.max) => Phase::Completed,
            Want::Running if canary > 0 && taken <= canary && open > 0 => Phase::Canary,
            Want::Running => Phase::Running,
        };
        if phase != self.phase {
            news.phase = Some((phase, String::new()));
        }
    }
}
