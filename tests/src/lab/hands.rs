//! A worker inside the test whose handler `mark` notes each of its effects.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use stepfleet_worker::{Attempt, Failure, Worker};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::lab::{START, users};

/// One time that the handler began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    /// The job.
    pub job: String,
    /// Which try.
    pub attempt: u32,
}

/// Run and step.
type Place = (String, String);

/// Every effect, by run and step.
#[derive(Debug, Clone, Default)]
pub struct Effects(Arc<Mutex<HashMap<Place, Vec<Effect>>>>);

impl Effects {
    /// The effects of a step, in their order.
    ///
    /// # Panics
    /// A handler panicked while noting one.
    #[must_use]
    pub fn of(&self, run: &str, step: &str) -> Vec<Effect> {
        let all = self.0.lock().expect("no handler panics here");
        all.get(&(run.to_owned(), step.to_owned())).cloned().unwrap_or_default()
    }

    /// How many steps had any.
    ///
    /// # Panics
    /// A handler panicked while noting one.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.0.lock().expect("no handler panics here").len()
    }

    fn note(&self, attempt: &Attempt) {
        let place = (attempt.run().to_string(), attempt.step().to_owned());
        let effect = Effect { job: attempt.job().to_string(), attempt: attempt.attempt() };
        self.0.lock().expect("no handler panics here").entry(place).or_default().push(effect);
    }
}

/// What `mark` is given.
#[derive(Debug, Default, Deserialize)]
struct Mark {
    #[serde(default)]
    ms: u64,
}

/// The worker. Dropping it stops it at once; [`Hands::drain`] lets it finish.
#[derive(Debug)]
pub struct Hands {
    stop: CancellationToken,
    worker: JoinHandle<Result<(), stepfleet_worker::RunError>>,
}

impl Hands {
    /// Starts it with `slots` slots. `mark` notes its effect, waits `ms` milliseconds and returns the attempt's number.
    ///
    /// # Errors
    /// The settings are wrong.
    pub fn start(url: &str, slots: usize, effects: &Effects) -> anyhow::Result<Self> {
        Self::on(url, "default", slots, effects)
    }

    /// As [`Hands::start`], for the jobs of this queue.
    ///
    /// # Errors
    /// The settings are wrong.
    pub fn on(url: &str, queue: &str, slots: usize, effects: &Effects) -> anyhow::Result<Self> {
        let effects = effects.clone();
        let url = users::login_if_wanted(url, "worker");
        let worker = Worker::builder()
            .redis(&url)
            .name("hands")
            .queue(queue)
            .concurrency(slots)
            .handler("mark", move |attempt: Attempt, input: Option<Mark>| {
                let effects = effects.clone();
                async move {
                    effects.note(&attempt);
                    tokio::time::sleep(Duration::from_millis(input.unwrap_or_default().ms)).await;
                    Ok::<_, Failure>(attempt.attempt())
                }
            })
            .build()?;
        let stop = CancellationToken::new();
        let asked = stop.clone();
        Ok(Self { stop, worker: tokio::spawn(worker.run_until(async move { asked.cancelled().await })) })
    }

    /// Asks it to finish what it has and to leave, and waits until it did.
    ///
    /// # Errors
    /// It does not, or could not begin.
    pub async fn drain(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        tokio::time::timeout(START, &mut self.worker).await.context("the worker does not drain")???;
        Ok(())
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        self.worker.abort();
    }
}
