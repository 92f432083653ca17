//! What a look found out is written at once, if no other runner has taken over.

use redis::Value;
use stepfleet_protocol::codec;

use super::{
    Campaigns,
    running::{News, Running},
};
use crate::{
    mutants::mutant,
    store::{
        campaigns::{FIELD_AT, FIELD_COUNT, FIELD_ENDING, FIELD_FENCE, FIELD_PHASE, FIELD_WHY},
        link::{Dial, LinkError},
        reply,
    },
};

impl<D: Dial> Campaigns<D> {
    /// Writes the news. False if another runner has the campaign, or an operator came in between: then nothing was written.
    pub(super) async fn write(&mut self, running: &mut Running, news: News) -> Result<bool, LinkError> {
        let id = running.campaign.id;
        let (key, open, items) = (self.keys.campaign(id), self.keys.campaign_open(id), self.keys.campaign_items(id));
        let mut look = redis::pipe();
        look.cmd("WATCH").arg(&key).cmd("HGET").arg(&key).arg(FIELD_FENCE);
        let replies = self.links.trip(&key, &look).await?;
        if replies.get(1).and_then(reply::number) != Some(running.fence) && !mutant("campaign_not_fenced") {
            self.links.one(&key, redis::cmd("UNWATCH")).await?;
            return Ok(false);
        }
        let mut pipe = redis::pipe();
        pipe.cmd("MULTI");
        for (partition, at) in &news.at {
            pipe.cmd("HSET").arg(&key).arg(format!("{FIELD_AT}{partition}")).arg(at.to_string());
        }
        for (letter, taken) in news.taken.iter().chain(&news.answered) {
            pipe.cmd("HSET").arg(&open).arg(letter.to_string()).arg(codec::pack(taken));
        }
        for item in &news.items {
            pipe.cmd("RPUSH").arg(&items).arg(codec::pack(item)).cmd("HDEL").arg(&open).arg(item.letter.to_string());
            pipe.cmd("HINCRBY").arg(&key).arg(format!("{FIELD_COUNT}{}", item.outcome.as_str())).arg(1);
        }
        if let Some((phase, why)) = &news.phase {
            let why = why.as_deref().unwrap_or_default();
            pipe.cmd("HSET").arg(&key).arg(FIELD_PHASE).arg(phase.as_str()).arg(FIELD_WHY).arg(why);
            if phase.is_ending() || phase.is_final() {
                pipe.cmd("HSET").arg(&key).arg(FIELD_ENDING).arg(news.now_ms);
            }
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
        running.credit.spend(news.taken.len() as u64);
        running.open.extend(news.taken.into_iter().map(|(letter, taken)| (letter, (taken, None))));
        for (letter, taken) in news.answered {
            running.open.entry(letter).and_modify(|open| open.0 = taken);
        }
        for item in news.items {
            running.open.remove(&item.letter);
            *running.counts.entry(item.outcome.as_str()).or_default() += 1;
            self.metrics.campaign_items.with_label_values(&[item.outcome.as_str()]).inc();
        }
        if let Some((phase, why)) = news.phase {
            (running.phase, running.why) = (phase, why);
            if phase.is_ending() {
                running.ending_ms = news.now_ms;
            }
        }
        Ok(true)
    }
}
