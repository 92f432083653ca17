//! The jobs that a worker holds: from the moment it read them until their results were acknowledged.
//!
//! One short lock, taken once a batch: the reader adds, the writer removes, beats and cancels look.

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError},
};

use stepfleet_protocol::id::JobId;
use tokio::sync::Notify;

use crate::{attempt::Attempt, limits::CANCELLED_MAX};

/// Held jobs, and cancels that came before their jobs.
#[derive(Debug, Default)]
pub(crate) struct Table {
    state: Mutex<State>,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<JobId, Attempt>,
    cancelled: HashSet<JobId>,
    cancelled_order: VecDeque<JobId>,
}

impl Table {
    /// Adds jobs and returns those that are new, each with whether a cancel of it came before. A job that is held
    /// already is dropped from the list.
    pub(crate) fn add(&self, jobs: Vec<Attempt>) -> Vec<(Attempt, bool)> {
        let mut state = self.state();
        let State { held, cancelled, .. } = &mut *state;
        let fresh = jobs.into_iter().filter_map(|job| match held.entry(job.job()) {
            Entry::Vacant(place) => {
                place.insert(job.clone());
                let is_cancelled = !cancelled.is_empty() && cancelled.contains(&job.job());
                Some((job, is_cancelled))
            }
            Entry::Occupied(_) => None,
        });
        fresh.collect()
    }

    /// Removes jobs whose results were acknowledged.
    pub(crate) fn remove(&self, jobs: impl IntoIterator<Item = JobId>) {
        let mut state = self.state();
        for job in jobs {
            state.held.remove(&job);
        }
        if state.held.is_empty() {
            self.emptied.notify_waiters();
        }
    }

    /// Every held job.
    pub(crate) fn all(&self) -> Vec<Attempt> {
        self.state().held.values().cloned().collect()
    }

    /// Remembers cancels and returns those of them that are held.
    pub(crate) fn cancel(&self, jobs: &[JobId]) -> Vec<Attempt> {
        let mut state = self.state();
        for job in jobs {
            if state.cancelled.insert(*job) {
                state.cancelled_order.push_back(*job);
            }
            if state.cancelled_order.len() > CANCELLED_MAX
                && let Some(oldest) = state.cancelled_order.pop_front()
            {
                state.cancelled.remove(&oldest);
            }
        }
        jobs.iter().filter_map(|job| state.held.get(job).cloned()).collect()
    }

    /// Waits until nothing is held.
    pub(crate) async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            // RACE: with `remove`. Enabled before the look, so that a removal in between still wakes.
            emptied.as_mut().enable();
            if self.state().held.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
