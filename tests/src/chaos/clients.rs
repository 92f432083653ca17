//! Clients: each submits one run after the other under a key of its own, and again under the same key when the answer
//! is lost. Some runs are cancelled, some are retried or replayed when they have failed; what they are told of it is noted.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::chaos::history::{F, History, Kind};
use crate::chaos::promises::Wished;
use crate::chaos::work::{self, Wish};

/// How long a client waits for an answer before it asks somebody else.
const PATIENCE: Duration = Duration::from_secs(6);
/// How long it asks before it gives up.
const GIVE_UP: Duration = Duration::from_secs(40);
/// Rest between two tries.
const REST: Duration = Duration::from_millis(250);
/// How long a client waits for a run to fail that shall be retried.
const FOLLOW: Duration = Duration::from_secs(60);
/// Of a hundred submits so many are durable.
const DURABLE_PERCENT: u32 = 20;

/// What became of a submit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged: the run, and what a durable submit got.
    Taken {
        /// The run.
        run: String,
        /// `fsync`, `replica` or `none`, if it was asked to be durable.
        durability: Option<String>,
    },
    /// Not taken, for certain.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// One submit.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Its key.
    pub key: String,
    /// During which fault, or the quiet time after it, it was begun.
    pub fault: usize,
    /// What became of it.
    pub outcome: Outcome,
    /// What is wished of the run.
    pub wish: Wish,
}

impl Submission {
    /// Whether somebody asked, or tried to ask, to cancel the run.
    #[must_use]
    pub fn is_cancel_asked(&self) -> bool {
        matches!((&self.outcome, self.wish), (Outcome::Taken { .. }, Wish::Cancel { .. }))
    }

    /// Whether its input tells a step to fail for good, once.
    #[must_use]
    pub fn is_told_to_fail(&self) -> bool {
        matches!(self.wish, Wish::Retry | Wish::Replay | Wish::RetryFrom)
    }
}

/// What all clients share.
#[derive(Debug)]
pub struct Counter {
    /// Where coordinators are.
    pub bases: Vec<String>,
    /// The history.
    pub history: Arc<History>,
    /// Every submit.
    pub submissions: Mutex<Vec<Submission>>,
    /// Every wish that was answered.
    pub wished: Mutex<Vec<Wished>>,
    /// The fault of the hour.
    pub fault: AtomicUsize,
    /// Answers that should never come.
    pub odd: Mutex<Vec<String>>,
}

impl Counter {
    /// Notes an answer that should never come.
    fn note_odd(&self, what: &str, status: u16, answer: &str) {
        self.odd.lock().expect("nobody panics with it").push(format!("{what}: {status} {answer}"));
    }
}

/// The clients at work.
#[derive(Debug)]
pub struct Clients {
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Clients {
    /// Starts `count` clients, each of which submits about `per_second` runs.
    #[must_use]
    pub fn start(counter: &Arc<Counter>, count: usize, per_second: f64, seed: u64) -> Self {
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        for number in 0..count {
            let client = Client {
                number,
                counter: counter.clone(),
                http: reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a plain client"),
                random: StdRng::seed_from_u64(seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                follow_ups: JoinSet::new(),
                base: number,
            };
            tasks.spawn(client.run(per_second, stop.clone()));
        }
        Self { tasks, stop }
    }

    /// Lets each finish its submit, and ends them.
    pub async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a client does not panic");
        }
    }
}

struct Client {
    number: usize,
    counter: Arc<Counter>,
    http: reqwest::Client,
    random: StdRng,
    follow_ups: JoinSet<()>,
    base: usize,
}

/// One answer to a submit.
enum Answer {
    Taken(String, Option<String>),
    NotSent,
    Unknown,
}

impl Client {
    async fn run(mut self, per_second: f64, stop: CancellationToken) {
        for count in 0.. {
            if stop.is_cancelled() {
                break;
            }
            let begun = Instant::now();
            self.one(&format!("c{}-{count}", self.number)).await;
            let pace = Duration::from_secs_f64(self.random.random_range(0.5..1.5) / per_second);
            tokio::time::sleep(pace.saturating_sub(begun.elapsed())).await;
            while self.follow_ups.try_join_next().is_some() {}
        }
        // Wishes that are still open are no part of what was promised.
        self.follow_ups.shutdown().await;
    }

    /// Submits one run.
    async fn one(&mut self, key: &str) {
        let (input, wish) = work::draw(&mut self.random, key);
        let durable = self.random.random_range(0..100) < DURABLE_PERCENT;
        let body = json!({ "workflow": work::WORKFLOW, "input": input, "durable": durable });
        let fault = self.counter.fault.load(Ordering::Relaxed);
        let history = self.counter.history.clone();
        history.note(self.number, Kind::Invoke, F::Enqueue, key);
        let outcome = self.submit(key, &body).await;
        let kind = match &outcome {
            Outcome::Taken { .. } => Kind::Ok,
            Outcome::Refused => Kind::Fail,
            Outcome::Unknown => Kind::Info,
        };
        history.note(self.number, kind, F::Enqueue, key);
        let run = if let Outcome::Taken { run, .. } = &outcome { Some(run.clone()) } else { None };
        let submission = Submission { key: key.to_owned(), fault, outcome, wish };
        self.counter.submissions.lock().expect("nobody panics with it").push(submission);
        if let Some(run) = run.filter(|_| wish != Wish::None) {
            let (http, counter) = (self.http.clone(), self.counter.clone());
            self.follow_ups.spawn(async move { fulfil(&http, &counter, &run, wish).await });
        }
    }

    async fn submit(&mut self, key: &str, body: &Value) -> Outcome {
        let (begun, mut sent) = (Instant::now(), false);
        while begun.elapsed() < GIVE_UP {
            match self.ask(key, body).await {
                Answer::Taken(run, durability) => return Outcome::Taken { run, durability },
                Answer::NotSent => {}
                Answer::Unknown => sent = true,
            }
            // Somebody else may know more.
            self.base += 1;
            tokio::time::sleep(REST).await;
        }
        if sent { Outcome::Unknown } else { Outcome::Refused }
    }

    async fn ask(&mut self, key: &str, body: &Value) -> Answer {
        let base = &self.counter.bases[self.base % self.counter.bases.len()];
        let request = self.http.post(format!("{base}/api/v1/runs")).header("Idempotency-Key", key).json(body);
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) if error.is_connect() => return Answer::NotSent,
            Err(_) => return Answer::Unknown,
        };
        let status = answer.status().as_u16();
        let Ok(answer) = answer.json::<Value>().await else { return Answer::Unknown };
        let text = |field: &str| answer[field].as_str().map(str::to_owned);
        match (status, text("code").as_deref()) {
            (200 | 201, _) => match text("id") {
                Some(run) => Answer::Taken(run, text("durability")),
                None => self.odd(status, &answer),
            },
            (202, _) => Answer::Unknown,
            (503, Some("server_full" | "slot_moving")) | (429, _) => Answer::NotSent,
            (503, _) => Answer::Unknown,
            _ => self.odd(status, &answer),
        }
    }

    fn odd(&self, status: u16, answer: &Value) -> Answer {
        self.counter.note_odd("submit", status, &answer.to_string());
        Answer::Unknown
    }
}

/// Does with a run what is wished of it, and notes what was answered.
async fn fulfil(http: &reqwest::Client, counter: &Counter, run: &str, wish: Wish) {
    let (path, body) = match wish {
        Wish::None => return,
        Wish::Cancel { after_ms } => {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            (format!("runs/{run}/cancel"), json!({ "reason": "the test says so" }))
        }
        Wish::Retry | Wish::Replay | Wish::RetryFrom => {
            let Ok(view) = failed(http, counter, run).await else { return };
            let letter =
                view["step_list"].as_array().and_then(|steps| steps.iter().find_map(|s| s["dead_letter"].as_str()));
            match (wish, letter) {
                (Wish::Replay, Some(letter)) => (format!("dead-letters/{letter}/replay"), json!({})),
                (Wish::RetryFrom, _) => (format!("runs/{run}/retry"), json!({ "from": "a" })),
                _ => (format!("runs/{run}/retry"), json!({})),
            }
        }
    };
    let begun = Instant::now();
    // The same command under one key, until somebody tells what became of it.
    for base in counter.bases.iter().cycle() {
        let key = format!("wish-{run}");
        let request = http.post(format!("{base}/api/v1/{path}")).header("Idempotency-Key", key).json(&body);
        if let Ok(answer) = request.send().await {
            match answer.status().as_u16() {
                status @ (200 | 404 | 409) => {
                    let wished = Wished { run: run.to_owned(), wish, status };
                    return counter.wished.lock().expect("nobody panics with it").push(wished);
                }
                202 | 429 | 503 => {}
                status => return counter.note_odd(&path, status, &answer.text().await.unwrap_or_default()),
            }
        }
        if begun.elapsed() > GIVE_UP {
            return;
        }
        tokio::time::sleep(REST).await;
    }
}

/// Waits until a run has failed.
async fn failed(http: &reqwest::Client, counter: &Counter, run: &str) -> anyhow::Result<Value> {
    let end = Instant::now() + FOLLOW;
    for base in counter.bases.iter().cycle() {
        if let Ok(answer) = http.get(format!("{base}/api/v1/runs/{run}")).send().await {
            match answer.status().as_u16() {
                200 => match answer.json::<Value>().await {
                    Ok(view) if view["state"] == "failed" => return Ok(view),
                    _ => {}
                },
                404 | 429 | 503 => {}
                status => {
                    counter.note_odd(&format!("GET runs/{run}"), status, &answer.text().await.unwrap_or_default())
                }
            }
        }
        ensure!(Instant::now() < end, "it did not fail");
        tokio::time::sleep(REST).await;
    }
    bail!("there is no coordinator")
}
