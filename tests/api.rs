//! The API from outside: a real server, a coordinator, a worker and HTTP.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use reqwest::{Client as Http, Method, StatusCode};
use serde_json::{Value, json};
use stepfleet_connect::{Redis, Settings};
use stepfleet_coordinator::{
    http::{self, AppState},
    shell::{
        dispatcher::{Dispatcher, EscalationLog, Settings as Outbox, Subscriber},
        fleet::{self, Config},
        metrics::Metrics,
        retention::Retention,
    },
    store::client::Client,
};
use stepfleet_protocol::keys::Keys;
use stepfleet_tests::server::Server;
use stepfleet_worker::{Attempt, Failure, Worker};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);

/// An installation of its own: server, coordinator with two partitions, API and, if wanted, a worker.
struct Site {
    _server: Server,
    base: String,
    http: Http,
    redis_url: String,
    stop: CancellationToken,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Site {
    async fn start() -> anyhow::Result<Self> {
        let server = Server::start().await?;
        let redis = Redis::connect(Settings::parse(&server.url())?).await?;
        let (stop, metrics) = (CancellationToken::new(), Metrics::new());
        let subscribers: Vec<Arc<dyn Subscriber>> = vec![Arc::new(EscalationLog)];
        let client = Client::new(redis.clone(), Keys::default());
        let config = Config {
            name: "c1".into(),
            keys: Keys::default(),
            partitions: 2,
            retention: Retention::default(),
            dispatcher: Some(Dispatcher::new(client, Outbox::default(), subscribers)),
            spans: stepfleet_coordinator::shell::spans::Spans::default(),
            pods: stepfleet_coordinator::shell::observer::Pods::default(),
        };
        tokio::spawn(fleet::run(redis.clone(), config, metrics.clone(), stop.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let base = format!("http://{}", listener.local_addr()?);
        let app = AppState::new(Client::new(redis, Keys::default()), metrics);
        tokio::spawn(http::serve(listener, app, stop.clone()));
        let site = Self { redis_url: server.url(), _server: server, base, http: Http::new(), stop };
        site.until("/readyz", |status, _| status == StatusCode::OK).await?;
        Ok(site)
    }

    fn worker(&self) -> anyhow::Result<()> {
        let worker = Worker::builder()
            .redis(&self.redis_url)
            .queue("default")
            .handler("echo", |_: Attempt, input: Value| async move { Ok::<_, Failure>(input) })
            .concurrency(4)
            .handler("hold", |_: Attempt, _: Value| std::future::pending::<Result<(), Failure>>())
            .handler("refuse", |_: Attempt, input: Value| async move {
                if input["mended"] == true { Ok(input) } else { Err(Failure::permanent("no").code("refused")) }
            })
            .build()?;
        let stop = self.stop.clone();
        tokio::spawn(worker.run_until(async move { stop.cancelled().await }));
        Ok(())
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<(StatusCode, Value)> {
        self.ask_with(method, path, body, &[]).await
    }

    async fn ask_with(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<(StatusCode, Value)> {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).timeout(DEADLINE);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let response = request.send().await?;
        let (status, text) = (response.status(), response.text().await?);
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let (status, value) = self.ask(Method::GET, path, None).await?;
        ensure!(status.is_success(), "{path}: {status} {value}");
        Ok(value)
    }

    async fn post(&self, path: &str, body: Value) -> anyhow::Result<(StatusCode, Value)> {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// Asks until the answer is as it should be.
    async fn until(&self, path: &str, good: impl Fn(StatusCode, &Value) -> bool) -> anyhow::Result<Value> {
        let mut every = tokio::time::interval(Duration::from_millis(20));
        let mut last = String::new();
        let wait = async {
            loop {
                every.tick().await;
                if let Ok((status, value)) = self.ask(Method::GET, path, None).await {
                    if good(status, &value) {
                        return value;
                    }
                    last = format!("{status} {value}");
                }
            }
        };
        let found = tokio::time::timeout(DEADLINE, wait).await;
        found.with_context(|| format!("{path} did not become what it should; last: {last}"))
    }

    async fn until_state(&self, id: &str, state: &str) -> anyhow::Result<Value> {
        self.until(&format!("/api/v1/runs/{id}"), |_, v| v["state"] == state).await
    }
}

fn chain(handler: &str) -> Value {
    json!({ "workflow": "chain", "steps": {
        "first": { "handler": "echo", "with": "${{ input }}" },
        "second": { "handler": handler, "needs": ["first"], "with": "${{ steps.first.output }}" } } })
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_submitted_worked_on_and_shown() -> anyhow::Result<()> {
    let site = Site::start().await?;
    site.worker()?;
    let (status, registered) = site.post("/api/v1/workflows", chain("echo")).await?;
    ensure!(status == StatusCode::CREATED && registered["version"] == 1, "{status} {registered}");
    let (status, again) = site.post("/api/v1/workflows", chain("echo")).await?;
    ensure!(status == StatusCode::OK && again["created"] == false, "{again}");
    let large = "x".repeat(20_000);
    let body = json!({ "workflow": "chain@1", "input": { "n": 7, "large": large } });
    let (status, taken) = site.post("/api/v1/runs", body).await?;
    ensure!(status == StatusCode::CREATED, "{status} {taken}");
    let id = text(&taken, "id").to_owned();
    let run = site.until_state(&id, "completed").await?;
    ensure!(run["workflow"] == "chain" && run["version"] == 1 && run["steps"]["completed"] == 2, "{run}");
    ensure!(run["input"]["value"]["n"] == 7, "{run}");
    let second = &run["step_list"][1];
    ensure!(second["name"] == "second" && second["attempts"] == 1 && second["has_output"] == true, "{second}");
    ensure!(second["worker"].is_string() && second["finished_at"].is_string(), "{second}");
    ensure!(site.get(&format!("/api/v1/runs/{id}/output")).await?["second"]["n"] == 7);
    ensure!(site.get(&format!("/api/v1/runs/{id}/output?step=first")).await?["large"] == large.as_str());
    let history = site.get(&format!("/api/v1/runs/{id}/history?limit=100")).await?;
    let items = history["items"].as_array().context("items")?;
    ensure!(items[0]["reason"] == "submitted" && items.last().context("last")?["to"] == "completed", "{history}");
    ensure!(site.get(&format!("/api/v1/workflow/{id}/status")).await?["current_state"] == "completed");
    ensure!(site.get("/api/v1/workflow/metrics?time_range=24h").await?["completed"] == 1);
    ensure!(site.get("/workers/health").await?["level"] == "healthy");
    ensure!(site.get("/workers/stats").await?["workers"] == 1);
    let worker = site.get("/api/v1/workers").await?;
    let drain = format!("/api/v1/workers/{}/drain", text(&worker["items"][0], "id"));
    let (status, drained) = site.post(&drain, json!({})).await?;
    ensure!(status == StatusCode::ACCEPTED && drained["heard"] == 1, "{drained}");
    let metrics = site.get("/metrics").await?;
    let metrics = metrics.as_str().context("text")?;
    for name in ["stepfleet_queue_depth", "stepfleet_http_requests_total", "stepfleet_owner_commits_total"] {
        ensure!(metrics.contains(name), "{name} is missing");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_gives_the_same_run_and_refuses_another_request() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let body = json!({ "definition": chain("echo"), "input": 1 });
    let key = [("Idempotency-Key", "order-17")];
    let submit = |body: Value| site.ask_with(Method::POST, "/api/v1/runs", Some(body), &key);
    let (status, first) = submit(body.clone()).await?;
    ensure!(status == StatusCode::CREATED, "{status} {first}");
    let (status, second) = submit(body).await?;
    ensure!(status == StatusCode::OK && second["known"] == true && second["id"] == first["id"], "{second}");
    let (status, other) = submit(json!({ "definition": chain("echo"), "input": 2 })).await?;
    ensure!(status == StatusCode::UNPROCESSABLE_ENTITY && other["code"] == "idempotency_mismatch", "{other}");
    let cancel = format!("/api/v1/runs/{}/cancel", text(&first, "id"));
    let key = [("Idempotency-Key", "stop-17"), ("X-Stepfleet-Actor", "ops")];
    for _ in 0..2 {
        let (status, taken) = site.ask_with(Method::POST, &cancel, None, &key).await?;
        // The job is on its stream: the run is cancelled when a worker has confirmed.
        ensure!(status == StatusCode::OK && taken["state"] == "queued", "{status} {taken}");
    }
    site.worker()?;
    site.until_state(text(&first, "id"), "cancelled").await?;
    let (status, conflict) = site.ask(Method::POST, &cancel, None).await?;
    ensure!(status == StatusCode::CONFLICT && conflict["state"] == "cancelled", "{status} {conflict}");
    ensure!(conflict["code"] == "illegal_state" && conflict["request_id"].is_string(), "{conflict}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_runs_are_submitted_at_once_and_listed_page_by_page() -> anyhow::Result<()> {
    let site = Site::start().await?;
    site.post("/api/v1/workflows", chain("echo")).await?;
    let mut lines = String::new();
    for n in 0..3_000 {
        lines.push_str(&format!("{}\n", json!({ "workflow": "chain", "input": n })));
    }
    lines.push_str("{\"workflow\":\"nothing\"}\n\n{\"workfow\":\"chain\"}\n");
    let request = self::Http::new().post(format!("{}/api/v1/runs/bulk", site.base)).body(lines);
    let answers = request.send().await?.text().await?;
    let answers: Vec<Value> = answers.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(answers.len() == 3_002);
    for (n, answer) in answers[..3_000].iter().enumerate() {
        ensure!(answer["line"] == n + 1 && answer["run"]["state"].is_string(), "{answer}");
    }
    ensure!(answers[3_000]["error"]["code"] == "workflow_not_found", "{}", answers[3_000]);
    ensure!(
        answers[3_001]["line"] == 3_003 && answers[3_001]["error"]["code"] == "unknown_field",
        "{}",
        answers[3_001]
    );
    for filter in ["", "&state=queued", "&workflow=chain", "&workflow=chain&state=queued"] {
        let mut seen = std::collections::HashSet::new();
        let mut cursor = String::new();
        loop {
            let page = site.get(&format!("/api/v1/runs?limit=100{filter}{cursor}")).await?;
            for item in page["items"].as_array().context("items")? {
                ensure!(seen.insert(text(item, "id").to_owned()), "{filter}: twice: {item}");
            }
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        ensure!(seen.len() == 3_000, "{filter}: {}", seen.len());
    }
    let queues = site.get("/api/v1/queues").await?;
    ensure!(queues["items"][0]["depth"] == 3_000 && queues["items"][0]["level"] == "critical", "{queues}");
    ensure!(site.get("/api/v1/runs?state=completed").await?["items"] == json!([]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_shown_and_replayed_with_another_input() -> anyhow::Result<()> {
    let site = Site::start().await?;
    site.worker()?;
    let body = json!({ "definition": chain("refuse"), "input": { "n": 1 } });
    let mut runs = Vec::new();
    for _ in 0..3 {
        let (_, taken) = site.post("/api/v1/runs", body.clone()).await?;
        let id = text(&taken, "id").to_owned();
        let run = site.until_state(&id, "failed").await?;
        ensure!(run["errors"][0]["code"] == "refused", "{run}");
        runs.push(id);
    }
    let page = site.get("/api/v1/dead-letters?workflow=chain&category=permanent&limit=2").await?;
    ensure!(page["items"].as_array().map(Vec::len) == Some(2), "{page}");
    let rest = site.get(&format!("/api/v1/dead-letters?limit=2&cursor={}", text(&page, "next"))).await?;
    ensure!(rest["items"].as_array().map(Vec::len) == Some(1) && rest["next"].is_null(), "{rest}");
    let path = format!("/api/v1/dead-letters/{}", text(&rest["items"][0], "id"));
    let letter = site.get(&path).await?;
    ensure!(letter["input"]["value"]["n"] == 1 && letter["attempts"][0]["code"] == "refused", "{letter}");
    let (status, replayed) = site.post(&format!("{path}/replay"), json!({ "input": { "mended": true } })).await?;
    ensure!(status == StatusCode::OK && replayed["replayed"] == 1, "{status} {replayed}");
    site.until_state(text(&letter, "run"), "completed").await?;
    let (status, gone) = site.ask(Method::GET, &path, None).await?;
    ensure!(status == StatusCode::NOT_FOUND && gone["code"] == "letter_not_found", "{gone}");
    let large = json!({ "input": { "mended": true, "text": "x".repeat(300_000) } });
    let left = site.get("/api/v1/dead-letters?limit=1").await?;
    let path = format!("/api/v1/dead-letters/{}/replay", text(&left["items"][0], "id"));
    let (status, refused) = site.post(&path, json!({ "input": "x".repeat(1 << 20) })).await?;
    ensure!(status == StatusCode::PAYLOAD_TOO_LARGE && refused["code"] == "value_too_large", "{status} {refused}");
    let (status, replayed) = site.post(&path, large).await?;
    ensure!(status == StatusCode::OK && replayed["replayed"] == 1, "{status} {replayed}");
    site.until_state(text(&left["items"][0], "run"), "completed").await?;
    let (status, refused) = site.post("/api/v1/campaigns", json!({ "kind": "replay", "dry_run": true })).await?;
    ensure!(status == StatusCode::BAD_REQUEST && refused["code"] == "all_missing", "{status} {refused}");
    let some = json!({ "kind": "replay", "filter": { "category": "permanent" }, "dry_run": true });
    let (_, counted) = site.post("/api/v1/campaigns", some).await?;
    ensure!(counted["matched"] == 1 && counted["more"] == false, "{counted}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_error_rate_is_failed_of_finished_in_every_range() -> anyhow::Result<()> {
    let site = Site::start().await?;
    site.worker()?;
    for (handler, state) in [("echo", "completed"), ("echo", "completed"), ("echo", "completed"), ("refuse", "failed")]
    {
        let (_, taken) = site.post("/api/v1/runs", json!({ "definition": chain(handler), "input": {} })).await?;
        site.until_state(text(&taken, "id"), state).await?;
    }
    for range in ["1h", "24h", "7d", "30d"] {
        let found = site.get(&format!("/api/v1/metrics/runs?time_range={range}")).await?;
        let counts = ["completed", "failed", "cancelled", "finished"].map(|field| found[field].as_u64());
        ensure!(counts == [Some(3), Some(1), Some(0), Some(4)] && found["time_range"] == range, "{found}");
        ensure!(found["error_rate_percent"] == 25.0, "{found}");
    }
    ensure!(site.get("/api/v1/metrics/runs").await?["time_range"] == "24h");
    let (status, problem) = site.ask(Method::GET, "/api/v1/metrics/runs?time_range=2h", None).await?;
    ensure!(status == StatusCode::BAD_REQUEST && problem["code"] == "bad_parameter", "{status} {problem}");
    ensure!(text(&problem, "detail").contains("`24h`"), "what is allowed is said: {problem}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fleet_is_critical_without_workers_and_warned_of_with_too_few() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let healthy = site.get("/api/v1/workers/health").await?;
    ensure!(healthy["level"] == "healthy" && healthy["reasons"] == json!([]), "nothing waits: {healthy}");
    let definition = json!({ "workflow": "slow", "steps": { "hold": { "handler": "hold" } } });
    site.post("/api/v1/workflows", definition).await?;
    let lines = format!("{}\n", json!({ "workflow": "slow" })).repeat(150);
    self::Http::new().post(format!("{}/api/v1/runs/bulk", site.base)).body(lines).send().await?.text().await?;
    let critical = site.get("/api/v1/workers/health").await?;
    ensure!(critical["level"] == "critical" && critical["workers_live"] == 0, "{critical}");
    ensure!(critical["reasons"][0].is_string() && critical["queues"][0]["depth"] == 150, "{critical}");
    site.worker()?;
    // Its four slots are taken; 146 wait for one worker.
    let few = |_: StatusCode, v: &Value| v["workers_live"] == 1 && v["queues"][0]["pending"] == 4;
    let warning = site.until("/api/v1/workers/health", few).await?;
    ensure!(warning["level"] == "warning" && warning["queues"][0]["depth"] == 146, "{warning}");
    let reason = warning["reasons"][0].as_str().unwrap_or_default();
    ensure!(reason.contains("146 jobs wait") && reason.contains("1 live workers"), "{warning}");
    let page = site.get("/api/v1/runs").await?;
    ensure!(page["items"].as_array().map(Vec::len) == Some(20) && page["next"].is_string(), "{page}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_are_told_what_is_wrong() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let unknown = "/api/v1/runs/0192a1b2-c3d4-7000-8000-000000000000";
    let cases = [
        (Method::GET, unknown, None, 404, "run_not_found"),
        (Method::POST, "/api/v1/runs/0192a1b2-c3d4-7000-8000-000000000000/cancel", None, 404, "run_not_found"),
        (Method::GET, "/api/v1/runs/nonsense", None, 400, "bad_run_id"),
        (Method::GET, "/api/v1/runs?limit=0", None, 400, "bad_limit"),
        (Method::GET, "/api/v1/runs?limit=101", None, 400, "bad_limit"),
        (Method::GET, "/api/v1/runs?state=done", None, 400, "bad_state"),
        (Method::GET, "/api/v1/runs?cursor=x", None, 400, "bad_cursor"),
        (Method::GET, "/api/v1/runs?stat=failed", None, 400, "bad_parameter"),
        (Method::GET, "/api/v1/nothing", None, 404, "no_such_route"),
        (Method::DELETE, "/api/v1/runs", None, 405, "method_not_allowed"),
        (Method::POST, "/api/v1/runs", Some(json!({ "workflw": "x" })), 400, "unknown_field"),
        (Method::POST, "/api/v1/runs", Some(json!({})), 400, "bad_workflow"),
        (Method::POST, "/api/v1/runs", Some(json!({ "workflow": "x" })), 404, "workflow_not_found"),
        (Method::POST, "/api/v1/runs", Some(json!({ "definition": { "workflow": "x" } })), 422, "invalid_workflow"),
        (
            Method::POST,
            "/api/v1/runs",
            Some(json!({ "definition": chain("echo"), "input": "x".repeat(1 << 20) })),
            413,
            "value_too_large",
        ),
        (Method::POST, "/api/v1/partitions", Some(json!({ "count": 1 })), 400, "partitions_only_grow"),
        (Method::POST, "/api/v1/partitions", Some(json!({ "count": 5_000 })), 400, "bad_count"),
    ];
    for (method, path, body, status, code) in cases {
        let (found, problem) = site.ask(method.clone(), path, body).await?;
        ensure!(found.as_u16() == status && problem["code"] == code, "{method} {path}: {found} {problem}");
    }
    let (status, checked) = site.post("/api/v1/workflows/check", json!({ "workflow": "x" })).await?;
    ensure!(status == StatusCode::OK && checked["valid"] == false, "{checked}");
    let (_, more) = site.post("/api/v1/partitions", json!({ "count": 4 })).await?;
    ensure!(more["items"].as_array().map(Vec::len) == Some(4), "{more}");
    site.until("/readyz", |status, _| status == StatusCode::OK).await?;
    let description = site.get("/api/v1/openapi.json").await?;
    ensure!(description["paths"]["/api/v1/runs/{id}/cancel"]["post"].is_object(), "openapi");
    Ok(())
}
