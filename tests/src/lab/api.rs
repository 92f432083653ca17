//! A client of the HTTP API that knows nothing of the product's types: what it sees is what strangers see.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::wait;

/// Items of one page.
const PAGE: usize = 100;

/// The API of one coordinator.
#[derive(Debug, Clone)]
pub struct Api {
    base: String,
    client: reqwest::Client,
}

impl Api {
    /// The API at `base`, like `http://127.0.0.1:7070`.
    ///
    /// # Panics
    /// The TLS library cannot be set up.
    #[must_use]
    pub fn new(base: &str) -> Self {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build();
        Self { base: base.into(), client: client.expect("a client without options can be made") }
    }

    /// The same, with this token in every request.
    ///
    /// # Panics
    /// The token is no visible text.
    #[must_use]
    pub fn as_holder(&self, token: &str) -> Self {
        let mut headers = reqwest::header::HeaderMap::new();
        headers.insert("authorization", format!("Bearer {token}").parse().expect("visible text"));
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).default_headers(headers);
        Self { client: client.build().expect("a client can be made"), ..self.clone() }
    }

    /// Where it is.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Whether every partition has an owner.
    ///
    /// # Errors
    /// It says no, or nothing.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let answer = self.client.get(format!("{}/readyz", self.base)).send().await?;
        ensure!(answer.status().is_success(), "{}", answer.text().await?);
        Ok(())
    }

    /// The text at a path.
    ///
    /// # Errors
    /// No answer, or one that is not 2xx.
    pub async fn text(&self, path: &str) -> anyhow::Result<String> {
        Ok(self.client.get(format!("{}{path}", self.base)).send().await?.error_for_status()?.text().await?)
    }

    /// The document at a path.
    ///
    /// # Errors
    /// No answer, or one that is not 2xx.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let answer = self.client.get(format!("{}{path}", self.base)).send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "{path}: {status} {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// The document at a path; none if there is none (404).
    ///
    /// # Errors
    /// No answer, or another that is not 2xx.
    pub async fn find(&self, path: &str) -> anyhow::Result<Option<Value>> {
        let answer = self.client.get(format!("{}{path}", self.base)).send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        if status.as_u16() == 404 {
            return Ok(None);
        }
        ensure!(status.is_success(), "{path}: {status} {text}");
        Ok(Some(serde_json::from_str(&text)?))
    }

    /// Posts a document with headers; the status and the document that came back.
    ///
    /// # Errors
    /// No answer, or one that is not JSON.
    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> anyhow::Result<(u16, Value)> {
        let mut request = self.client.post(format!("{}{path}", self.base)).json(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await?;
        let (status, text) = (answer.status().as_u16(), answer.text().await?);
        Ok((status, serde_json::from_str(&text).with_context(|| format!("{path}: {status} {text}"))?))
    }

    /// Submits a run of an inline definition; its id.
    ///
    /// # Errors
    /// It was not taken.
    pub async fn submit(&self, definition: &Value, input: Value) -> anyhow::Result<String> {
        let body = json!({ "definition": definition, "input": input });
        let (status, answer) = self.post("/api/v1/runs", &[], &body).await?;
        ensure!(status == 201, "{status} {answer}");
        id_of(&answer)
    }

    /// Submits `count` runs of a registered workflow in one request; their ids.
    ///
    /// # Errors
    /// One of them was not taken.
    pub async fn submit_many(&self, workflow: &str, count: usize) -> anyhow::Result<Vec<String>> {
        let lines = format!("{}\n", json!({ "workflow": workflow })).repeat(count);
        let request = self.client.post(format!("{}/api/v1/runs/bulk", self.base));
        let request = request.header("content-type", "application/x-ndjson").body(lines);
        let answer = request.timeout(Duration::from_secs(120)).send().await?.error_for_status()?.text().await?;
        answer
            .lines()
            .map(|line| {
                let line: Value = serde_json::from_str(line)?;
                id_of(line.get("run").with_context(|| format!("not taken: {line}"))?)
            })
            .collect()
    }

    /// Registers a workflow.
    ///
    /// # Errors
    /// It is refused.
    pub async fn register(&self, definition: &Value) -> anyhow::Result<()> {
        let request = self.client.post(format!("{}/api/v1/workflows", self.base)).body(definition.to_string());
        let answer = request.send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "{status} {text}");
        Ok(())
    }

    /// A verb on a run, as `cancel`: the status and what came back.
    ///
    /// # Errors
    /// No answer.
    pub async fn command(&self, run: &str, verb: &str) -> anyhow::Result<(u16, Value)> {
        self.post(&format!("/api/v1/runs/{run}/{verb}"), &[], &json!({ "reason": "the test says so" })).await
    }

    /// The run.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn run(&self, run: &str) -> anyhow::Result<Value> {
        self.get(&format!("/api/v1/runs/{run}")).await
    }

    /// Waits until the run is in `state`; the run then.
    ///
    /// # Errors
    /// The deadline passed; the text holds the run.
    pub async fn until_state(&self, run: &str, state: &str, deadline: Duration) -> anyhow::Result<Value> {
        wait::until(deadline, &format!("run {run} to be {state}"), async || {
            let view = self.run(run).await?;
            ensure!(view["state"] == state, "it is {view:#}");
            Ok(view)
        })
        .await
    }

    /// Waits until a step of the run is in `state`; the step then.
    ///
    /// # Errors
    /// The deadline passed; the text holds the run.
    pub async fn until_step(&self, run: &str, step: &str, state: &str, deadline: Duration) -> anyhow::Result<Value> {
        wait::until(deadline, &format!("step {step} of run {run} to be {state}"), async || {
            let view = self.run(run).await?;
            let found = step_of(&view, step).with_context(|| format!("no such step in {view:#}"))?;
            ensure!(found["state"] == state, "it is {found:#} in {}", view["state"]);
            Ok(found.clone())
        })
        .await
    }

    /// Waits until `count` runs of the workflow are in `state`.
    ///
    /// # Errors
    /// The deadline passed.
    pub async fn until_all(&self, runs: &[String], state: &str, deadline: Duration) -> anyhow::Result<()> {
        let end = std::time::Instant::now() + deadline;
        for run in runs {
            self.until_state(run, state, end.saturating_duration_since(std::time::Instant::now())).await?;
        }
        Ok(())
    }

    /// The whole history of a run, oldest first.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn history(&self, run: &str) -> anyhow::Result<Vec<Value>> {
        self.items(&format!("/api/v1/runs/{run}/history")).await
    }

    /// Every item of a listing, page by page.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn items(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        let sign = if path.contains('?') { '&' } else { '?' };
        loop {
            let page = self.get(&format!("{path}{sign}limit={PAGE}{cursor}")).await?;
            all.extend(page["items"].as_array().context("a page without items")?.iter().cloned());
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(all),
            }
        }
    }

    /// The output of a step.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn output(&self, run: &str, step: &str) -> anyhow::Result<Value> {
        self.get(&format!("/api/v1/runs/{run}/output?step={step}")).await
    }

    /// The value of a counter or gauge of this coordinator.
    ///
    /// # Errors
    /// It cannot be read, or there is no such metric.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let text = self.text("/metrics").await?;
        let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
        let line = line.with_context(|| format!("no metric {name} in\n{text}"))?;
        Ok(line.rsplit(' ').next().context("a metric has a value")?.parse()?)
    }
}

/// The step of that name in a run's document.
pub(crate) fn step_of<'a>(run: &'a Value, step: &str) -> Option<&'a Value> {
    run["step_list"].as_array()?.iter().find(|found| found["name"] == step)
}

fn id_of(answer: &Value) -> anyhow::Result<String> {
    Ok(answer["id"].as_str().with_context(|| format!("no id in {answer}"))?.to_owned())
}
