//! The jobs that a worker holds: from the moment it read them until their results were acknowledged.
//!
//! One short lock, taken once a batch: the reader adds, the writer removes, beats and cancels look.

use std::{
    collections::{HashMap, HashSet, VecDeque},
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
    /// Adds jobs and returns those that are new: a job that is held already is dropped from the list.
    pub(crate) fn add(&self, mut jobs: Vec<Attempt>) -> Vec<Attempt> {
        let mut state = self.state();
        jobs.retain(|job| match state.held.entry(job.job()) {
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(job.clone());
                true
            }
            std::collections::hash_map::Entry::Occupied(_) => false,
        });
        jobs
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

    /// Whether a cancel of this job came before.
    pub(crate) fn is_cancelled(&self, job: JobId) -> bool {
        let state = self.state();
        !state.cancelled.is_empty() && state.cancelled.contains(&job)
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
