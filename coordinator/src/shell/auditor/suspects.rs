//! The second look at what was nowhere in the first.

use std::collections::BTreeSet;

use redis::Value;
use stepfleet_protocol::{id::JobId, limits::HEARTBEAT_MS};
use tokio::time::{Duration, Instant};

use super::{ASKS_PER_TRIP, Auditor, Place, Subject, walk::Queues};
use crate::store::{link::Dial, reply};

/// Time between the two looks.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(3);
/// The same for a job: whoever took it has told it in two beats since then.
const LOOK_FOR_JOB_AFTER: Duration = Duration::from_millis(2 * HEARTBEAT_MS + 5_000);
/// Suspects of one tick.
const LOOKS_PER_TICK: usize = 500;

/// What was nowhere in the first look.
#[derive(Debug)]
pub(super) struct Suspect {
    pub(super) since: Instant,
    pub(super) place: Place,
    pub(super) queues: Option<Queues>,
    /// Its packed state then.
    pub(super) packed: Vec<u8>,
}

impl Suspect {
    fn is_due(&self) -> bool {
        let after = if matches!(self.place, Place::Job(_)) { LOOK_FOR_JOB_AFTER } else { LOOK_AGAIN_AFTER };
        self.since.elapsed() >= after
    }
}

/// What was said about a suspect.
enum Verdict {
    /// It has moved, or it is where it has to be.
    Innocent,
    /// Not everything could be asked.
    Later,
    /// It is nowhere.
    Missing,
}

impl<D: Dial> Auditor<D> {
    /// Looks at the suspects that are due. Whoever has moved since the first look is none any more.
    pub(super) async fn look_again(&mut self) {
        let mut due: Vec<Subject> =
            self.suspects.iter().filter(|(_, s)| s.is_due()).map(|(subject, _)| *subject).collect();
        due.truncate(LOOKS_PER_TICK);
        self.drop_moved(&due).await;
        due.retain(|subject| self.suspects.contains_key(subject));
        if due.is_empty() {
            return;
        }
        let mut elsewhere = self.missing_jobs(&due).await;
        elsewhere.extend(self.missing_work(&due).await);
        elsewhere.extend(self.missing_letters(&due).await);
        let mut missing = Vec::new();
        for subject in due {
            let Some(suspect) = self.suspects.get(&subject) else { continue };
            let place = suspect.place;
            let verdict = match place {
                Place::Nothing => Verdict::Missing,
                Place::Job(_) | Place::Work | Place::Letter(_) if elsewhere.contains(&subject) => Verdict::Missing,
                Place::Job(_) | Place::Work | Place::Letter(_) => Verdict::Innocent,
                Place::Ready | Place::Timer(_) | Place::Timeout => self.judge(subject, place).await,
            };
            match verdict {
                Verdict::Innocent => drop(self.suspects.remove(&subject)),
                Verdict::Later => {}
                Verdict::Missing => missing.push(subject),
            }
        }
        // Whoever moved while we looked may have been on the way.
        self.drop_moved(&missing).await;
        for subject in missing {
            if let Some(suspect) = self.suspects.remove(&subject) {
                self.tell(subject, suspect.place).await;
            }
        }
    }

    /// Forgets those whose state is another one now. One that cannot be read is forgotten too: the walk comes by again.
    async fn drop_moved(&mut self, subjects: &[Subject]) {
        let asks = subjects.iter().map(|subject| self.look_at_state(*subject)).collect();
        let answers = self.links.gather(asks, ASKS_PER_TRIP).await;
        for (subject, answer) in subjects.iter().zip(answers) {
            let found = answer.ok();
            let now = found.as_ref().and_then(|answer| answer.replies.first()).and_then(reply::bytes);
            if self.suspects.get(subject).is_some_and(|suspect| now != Some(&suspect.packed[..])) {
                self.suspects.remove(subject);
            }
        }
    }

    async fn judge(&mut self, subject: Subject, place: Place) -> Verdict {
        let queue = self.suspects.get(&subject).and_then(|suspect| Some(suspect.queues.as_ref()?.own.clone()));
        let ask = self.look_at_place(subject, place, queue.as_ref());
        match self.links.gather(vec![ask], 1).await.swap_remove(0) {
            Ok(answer) if answer.replies.first() == Some(&Value::Nil) => {}
            Ok(_) => return Verdict::Innocent,
            Err(_) => return Verdict::Later,
        }
        match place {
            Place::Ready => match self.at_a_gate(subject).await {
                Some(true) => Verdict::Innocent,
                Some(false) => Verdict::Missing,
                None => Verdict::Later,
            },
            Place::Timer(_) | Place::Job(_) | Place::Nothing | Place::Timeout | Place::Work | Place::Letter(_) => {
                Verdict::Missing
            }
        }
    }

    /// Those of these steps whose jobs are neither held by a worker nor on a stream where they may be.
    async fn missing_jobs(&mut self, due: &[Subject]) -> Vec<Subject> {
        let job = |subject: &Subject| {
            let suspect = self.suspects.get(subject)?;
            let Place::Job(job) = suspect.place else { return None };
            Some((*subject, job, suspect.queues.clone()?))
        };
        let wanted: Vec<_> = due.iter().filter_map(job).collect();
        if wanted.is_empty() {
            return Vec::new();
        }
        let Some(held) = self.held().await else { return Vec::new() };
        let free: Vec<_> = wanted.into_iter().filter(|(_, job, _)| !held.contains(job)).collect();
        let places = |(subject, _, queues): &(Subject, _, Queues)| {
            let (partition, own, other) = (subject.run.partition(), queues.own.clone(), queues.fallback.clone());
            std::iter::once(own).chain(other).map(move |queue| (partition, queue))
        };
        let streams: BTreeSet<_> = free.iter().flat_map(places).collect();
        let found = self.on_streams(streams).await;
        let gone = |one: &(Subject, JobId, Queues)| {
            places(one).all(|place| found.get(&place).is_some_and(|jobs| !jobs.contains(&one.1)))
        };
        free.iter().filter(|one| gone(one)).map(|(subject, _, _)| *subject).collect()
    }
}
