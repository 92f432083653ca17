//! The end of a test: everything is whole, nobody submits any more, and what is left is looked at run by run.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::{StreamExt as _, stream};
use serde_json::Value;

use crate::chaos::clients::{Counter, Outcome, Submission};
use crate::chaos::effects::Effect;
use crate::chaos::history::{F, Kind};
use crate::chaos::moves::{self, Account};
use crate::chaos::promises::{self, Cause, Wished};
use crate::chaos::work;
use crate::chaos::world::World;
use crate::lab::Api;
use crate::wait;

/// How long what is accepted may take to end.
const END: Duration = Duration::from_secs(120);
/// The process of the history that dequeues.
const DRAIN: usize = 1_000;
/// Runs that are looked at at once.
const AT_ONCE: usize = 6;
/// What the quarantine says of a run that is not there and that a worker did a job of.
const STRANGER: &str = "is not there, and a worker did a job of it";
/// States in which a run goes on by itself.
const ACTIVE: [&str; 5] = ["created", "queued", "processing", "waiting", "retrying"];

/// A run at the end of a test.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The run.
    pub run: String,
    /// The key under which it was submitted.
    pub key: String,
    /// What the checker says.
    pub account: Account,
    /// Workers that were called dead while they had one of its jobs, and when, in milliseconds of 1970.
    pub deaths: Vec<(String, u64)>,
    /// What was acknowledged beside the submit, and is lost.
    pub broken: Vec<String>,
    /// By which rules it has failed, once for each time.
    pub failed_by: Vec<Cause>,
    /// Its history.
    pub history: Vec<Value>,
}

impl Ended {
    /// Whether nothing more happens to it by itself.
    #[must_use]
    pub fn is_over(&self) -> bool {
        !ACTIVE.contains(&self.account.state.as_str())
    }

    /// Holds it to what was promised to whoever submitted it.
    fn hold_to(&mut self, wished: &[Wished], submission: Option<&Submission>) {
        let answers = wished.iter().filter(|wished| wished.run == self.run);
        self.broken = answers.filter_map(|wished| promises::broken(wished, &self.history)).collect();
        match promises::causes(&self.history, submission.is_some_and(Submission::is_told_to_fail)) {
            Ok(causes) => self.failed_by = causes,
            Err(sentence) => self.account.illegal.push(sentence),
        }
    }
}

/// Everything at the end of a test.
#[derive(Debug)]
pub struct Settled {
    /// Every run that there is.
    pub runs: Vec<Ended>,
    /// Every submit, by its key.
    pub submissions: BTreeMap<String, Submission>,
    /// Runs with effects that do not exist (any more).
    pub ghosts: Vec<String>,
    /// How many of these the quarantine names, because a worker reported a job of theirs.
    pub named: usize,
    /// What else is in quarantine, which nobody put anything into.
    pub quarantined: Vec<String>,
    /// Acknowledged runs that are there by their id and in no listing.
    pub unlisted: Vec<String>,
}

/// Waits until nothing goes on any more, looks at every run, and dequeues what has ended.
///
/// # Errors
/// The API does not tell.
pub async fn settle(world: &World, counter: &Counter) -> anyhow::Result<Settled> {
    let api = world.apis().into_iter().next().context("there is a coordinator")?;
    let all_ended = wait::until(END, "every run to end", async || {
        for state in ACTIVE {
            let page = api.get(&format!("/api/v1/runs?state={state}&limit=1")).await?;
            ensure!(page["items"].as_array().is_some_and(Vec::is_empty), "one is {state}: {page}");
        }
        Ok(())
    });
    if let Err(error) = all_ended.await {
        eprintln!("{error:#}");
    }
    let submissions = counter.submissions.lock().expect("nobody panics with it").clone();
    let mut keys = HashMap::new();
    for submission in &submissions {
        if let Outcome::Taken { run, .. } = &submission.outcome {
            keys.insert(run.clone(), submission.key.clone());
        }
    }
    let effects: Vec<Effect> = world.effects.look(<[Effect]>::to_vec);
    let mut by_run: HashMap<&str, Vec<&Effect>> = HashMap::new();
    for effect in &effects {
        by_run.entry(&effect.run).or_default().push(effect);
    }
    let submissions: BTreeMap<String, Submission> =
        submissions.into_iter().map(|submission| (submission.key.clone(), submission)).collect();
    let wished: Vec<Wished> = counter.wished.lock().expect("nobody panics with it").clone();
    let listed = api.items(&format!("/api/v1/runs?workflow={}", work::WORKFLOW)).await?;
    let ids = listed.iter().filter_map(|run| run["id"].as_str());
    let (api, keys, by_run) = (&api, &keys, &by_run);
    let looks = ids.map(|run| async move {
        let key = keys.get(run).cloned();
        look(api, run, key, by_run.get(run).map_or(&[][..], Vec::as_slice)).await
    });
    let looked: Vec<anyhow::Result<Ended>> = stream::iter(looks).buffered(AT_ONCE).collect().await;
    let mut runs = looked.into_iter().collect::<anyhow::Result<Vec<Ended>>>()?;
    for run in &mut runs {
        run.hold_to(&wished, submissions.get(&run.key));
    }
    for run in runs.iter().filter(|run| run.is_over()) {
        counter.history.note(DRAIN, Kind::Invoke, F::Dequeue, &run.key);
        counter.history.note(DRAIN, Kind::Ok, F::Dequeue, &run.key);
    }
    let there: std::collections::HashSet<&str> = runs.iter().map(|run| run.run.as_str()).collect();
    let ghosts: Vec<String> = by_run.keys().filter(|run| !there.contains(**run)).map(|run| (*run).to_owned()).collect();
    let quarantine = api.items("/api/v1/quarantine").await?;
    let why = quarantine.iter().map(|entry| entry["why"].as_str().unwrap_or_default().to_owned());
    let (gone, quarantined): (Vec<String>, Vec<String>) = why.partition(|why| why.contains(STRANGER));
    let named = ghosts.iter().filter(|run| gone.iter().any(|why| why.contains(run.as_str()))).count();
    let mut unlisted = Vec::new();
    for run in keys.keys().filter(|run| !there.contains(run.as_str())) {
        match api.find(&format!("/api/v1/runs/{run}")).await? {
            None => {}
            Some(_) => unlisted.push(run.clone()),
        }
    }
    Ok(Settled { runs, submissions, ghosts, named, quarantined, unlisted })
}

async fn look(api: &Api, run: &str, key: Option<String>, effects: &[&Effect]) -> anyhow::Result<Ended> {
    let history = api.history(run).await?;
    let key = match key {
        Some(key) => key,
        None => {
            let view = api.run(run).await?;
            view["input"]["value"]["key"].as_str().with_context(|| format!("no key in {view}"))?.to_owned()
        }
    };
    let mut account = moves::judge(&history, effects);
    moves::against(&work::NEEDS, &history, &mut account);
    let deaths = history.iter().filter(|entry| entry["reason"] == "worker_lost").filter_map(death).collect();
    let (broken, failed_by) = (Vec::new(), Vec::new());
    Ok(Ended { run: run.to_owned(), key, account, deaths, broken, failed_by, history })
}

/// Who was called dead and when, in an entry of a history.
fn death(entry: &Value) -> Option<(String, u64)> {
    let worker = entry["worker"].as_str()?.split('@').next()?.to_owned();
    Some((worker, stepfleet_coordinator::time::unix_ms(entry["at"].as_str()?)?))
}

/// Why a run that should have ended has not, as the product explains it.
pub async fn explain(api: &Api, run: &str) -> String {
    match api.get(&format!("/api/v1/runs/{run}/explain")).await {
        Ok(told) => told.to_string(),
        Err(error) => format!("{error:#}"),
    }
}
