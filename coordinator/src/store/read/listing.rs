//! Listings of runs, newest first, over all partitions.
//!
//! A listing is a merge of sorted sets. Its order is total: time, then the set (partition and kind), then the run id. So a
//! cursor can be continued in every set by itself, although thousands of runs of one bulk submit share their millisecond.

use std::collections::BTreeMap;

use redis::Cmd;
use stepfleet_protocol::{
    id::{PartitionId, RunId},
    keys::slot,
    name::Name,
    state::State,
};

use super::{super::client::Client, ClientError, reply, runs::Found};
use crate::store::record;

/// Runs that are looked at for one page, at most; beyond it the page ends with a cursor, full or not.
const LOOKS_MAX: usize = 2_000;
/// Runs that are looked at together when a filter may leave most of them out.
const LOOKS_AT_ONCE: usize = 200;
/// One state for each listing.
const LISTINGS: [State; 5] = [State::Processing, State::Completed, State::Failed, State::Suspended, State::Cancelled];

/// Which runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// In this state.
    pub state: Option<State>,
    /// Of this workflow.
    pub workflow: Option<Name>,
}

/// The last run that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Its time in the listing, in Unix milliseconds.
    pub ms: u64,
    /// The number of its sorted set.
    pub source: u32,
    /// Its id.
    pub run: RunId,
}

/// A page of runs.
#[derive(Debug, Default)]
pub struct Page {
    /// The runs, without steps.
    pub runs: Vec<Found>,
    /// Where the next page begins; none at the end.
    pub next: Option<Cursor>,
}

struct Source {
    number: u32,
    partition: PartitionId,
    key: String,
}

impl Client {
    /// At most `limit` runs behind `after`, newest first: by when they ended, or were submitted if they go on or the
    /// listing is that of a workflow.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list_runs(
        &self,
        filter: &Filter,
        mut after: Option<Cursor>,
        limit: usize,
    ) -> Result<Page, ClientError> {
        let sources = self.sources(filter).await?;
        let at_once = if *filter == Filter::default() { limit } else { limit.max(LOOKS_AT_ONCE) };
        let mut page = Page::default();
        let mut looked = 0;
        while looked < LOOKS_MAX {
            let places = self.places(&sources, after, at_once).await?;
            let more = places.len() == at_once;
            looked += places.len();
            let mut found = self.records(&places).await?;
            for place in &places {
                after = Some(*place);
                let Some(run) = found.remove(&place.run).filter(|run| filter.takes(run)) else { continue };
                page.runs.push(run);
                if page.runs.len() == limit {
                    let last = places.last() == Some(place) && !more;
                    page.next = (!last).then_some(*place);
                    return Ok(page);
                }
            }
            if !more {
                return Ok(page);
            }
        }
        page.next = after;
        Ok(page)
    }

    async fn sources(&self, filter: &Filter) -> Result<Vec<Source>, ClientError> {
        let mut sources = Vec::new();
        for partition in self.all_partitions().await? {
            let keys = self.keys.partition(partition);
            let mut add = |kind: u32, key: String| {
                let number = u32::from(partition.0) * LISTINGS.len() as u32 + kind;
                sources.push(Source { number, partition, key });
            };
            match (filter.state, &filter.workflow) {
                (_, Some(workflow)) => add(0, keys.runs_of(workflow)),
                (Some(state), None) => add(0, keys.runs(state)),
                (None, None) => (0..).zip(LISTINGS).for_each(|(kind, state)| add(kind, keys.runs(state))),
            }
        }
        Ok(sources)
    }

    /// The next places behind `after` over all sources, at most `limit`.
    async fn places(
        &self,
        sources: &[Source],
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Vec<Cursor>, ClientError> {
        let mut ties = 0;
        if let Some((cursor, source)) =
            after.and_then(|c| sources.iter().find(|s| s.number == c.source).map(|s| (c, s)))
        {
            ties = self.ties(cursor, source).await?;
        }
        let commands = sources.iter().map(|s| (slot(s.partition), range(s, after, ties, limit))).collect();
        let mut places = Vec::new();
        for (source, found) in sources.iter().zip(self.ask_all(commands).await?) {
            let items = reply::array(&found).unwrap_or_default();
            for pair in items.chunks_exact(2) {
                let run = reply::bytes(&pair[0]).and_then(RunId::from_bytes);
                if let (Some(run), Some(ms)) = (run, reply::score(&pair[1])) {
                    places.push(Cursor { ms, source: source.number, run });
                }
            }
        }
        places.sort_by_key(|p| std::cmp::Reverse((p.ms, p.source, p.run)));
        places.truncate(limit);
        Ok(places)
    }

    /// How many runs of the cursor's own set and millisecond were seen already.
    async fn ties(&self, cursor: Cursor, source: &Source) -> Result<u64, ClientError> {
        let slot = slot(source.partition);
        let mut rank = redis::cmd("ZREVRANK");
        rank.arg(&source.key).arg(&cursor.run.bytes()[..]);
        let mut score_now = redis::cmd("ZSCORE");
        score_now.arg(&source.key).arg(&cursor.run.bytes()[..]);
        let mut newer = redis::cmd("ZCOUNT");
        newer.arg(&source.key).arg(format!("({}", cursor.ms)).arg("+inf");
        let mut same = redis::cmd("ZCOUNT");
        same.arg(&source.key).arg(cursor.ms).arg(cursor.ms);
        let replies = self.ask_all(vec![(slot, rank), (slot, score_now), (slot, newer), (slot, same)]).await?;
        let number = |i: usize| super::count(replies.get(i));
        let in_place = replies.get(1).and_then(reply::score) == Some(cursor.ms);
        match replies.first().and_then(reply::number).filter(|_| in_place) {
            Some(rank) => Ok((rank.max(0) as u64 + 1).saturating_sub(number(2))),
            // The run has left the set since: the rest of its millisecond is given up, rather than shown twice.
            None => Ok(number(3)),
        }
    }

    /// The records of runs, with their workflows. Runs that are gone are left out.
    async fn records(&self, places: &[Cursor]) -> Result<BTreeMap<RunId, Found>, ClientError> {
        let get = |place: &Cursor| {
            let partition = place.run.partition();
            let mut cmd = redis::cmd("HGET");
            cmd.arg(self.keys.partition(partition).run(&place.run)).arg(record::FIELD_RECORD);
            (slot(partition), cmd)
        };
        let replies = self.ask_all(places.iter().map(get).collect()).await?;
        let mut out = BTreeMap::new();
        for (place, value) in places.iter().zip(replies) {
            let Some(record) = reply::bytes(&value).and_then(|b| record::unpack_run(b).ok()) else { continue };
            let workflow = self.plan(place.run.partition(), &record.plan).await?;
            out.insert(place.run, Found { id: place.run, record, trace: None, workflow });
        }
        Ok(out)
    }
}

impl Filter {
    fn takes(&self, run: &Found) -> bool {
        let name = run.workflow.as_ref().map(|w| &w.workflow);
        self.state.is_none_or(|state| state == run.record.state)
            && self.workflow.as_ref().is_none_or(|wanted| name == Some(wanted))
    }
}

fn range(source: &Source, after: Option<Cursor>, ties: u64, limit: usize) -> Cmd {
    let mut cmd = redis::cmd("ZREVRANGEBYSCORE");
    cmd.arg(&source.key);
    let mut offset = 0;
    match after {
        None => cmd.arg("+inf"),
        Some(cursor) if source.number > cursor.source => cmd.arg(format!("({}", cursor.ms)),
        Some(cursor) => {
            if source.number == cursor.source {
                offset = ties;
            }
            cmd.arg(cursor.ms)
        }
    };
    cmd.arg("-inf").arg("WITHSCORES").arg("LIMIT").arg(offset).arg(limit);
    cmd
}
