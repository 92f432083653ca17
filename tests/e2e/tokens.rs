//! The API with tokens: who is let in, to what, under which name, and what an open door costs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use stepfleet_tests::{
    Program, Server,
    lab::{self, Api, Fleet, users},
    port, wait,
};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);
/// Who holds a token, and their roles.
const HOLDERS: [(&str, &str); 3] = [("vera", "viewer"), ("otto", "operator"), ("ada", "admin")];

/// A coordinator and a worker, and a tokens file that the program itself wrote.
struct Site {
    _server: Server,
    fleet: Fleet,
    http: reqwest::Client,
    folder: TempDir,
    /// In the order of [`HOLDERS`].
    tokens: Vec<String>,
}

/// A new token: itself, and the line that lets it in.
async fn create(name: &str, role: &str) -> anyhow::Result<(String, String)> {
    let words = ["tokens", "create", "--name", name, "--role", role, "--output", "json"];
    let mut program = Program::stepfleet(words)?.start()?;
    ensure!(program.wait(lab::START).await?.success(), "{}", program.stderr());
    let made: Value = serde_json::from_str(&program.stdout())?;
    let word = |field: &str| made[field].as_str().map(str::to_owned).unwrap_or_default();
    Ok((word("token"), word("line")))
}

impl Site {
    async fn start() -> anyhow::Result<Self> {
        let (mut tokens, mut text) = (Vec::new(), "tokens:\n".to_owned());
        for (name, role) in HOLDERS {
            let (token, line) = create(name, role).await?;
            ensure!(token.len() >= 20 && !line.contains(&token), "{line}");
            tokens.push(token);
            text += &format!("{line}\n");
        }
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("tokens.yaml");
        std::fs::write(&file, text)?;
        let server = lab::server().await?;
        let mut fleet = Fleet::at(&server.url(), 1);
        fleet.add_coordinator_with(&["--tokens-file", file.to_str().expect("UTF-8")]).await?;
        fleet.add_worker(&[])?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { _server: server, fleet, http, folder, tokens })
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("tokens.yaml")
    }

    fn token(&self, holder: &str) -> &str {
        let at = HOLDERS.iter().position(|(name, _)| *name == holder).expect("a holder");
        &self.tokens[at]
    }

    fn api(&self, holder: &str) -> Api {
        self.fleet.api().as_holder(self.token(holder))
    }

    /// Asks with this token, or with none.
    async fn ask(&self, method: Method, path: &str, token: Option<&str>) -> Response {
        let request = self.http.request(method, format!("{}{path}", self.fleet.api().base()));
        let request = if let Some(token) = token { request.bearer_auth(token) } else { request };
        request.body("{}").send().await.expect("an answer")
    }

    /// The exit code of a verb of the command line, and what it wrote to stderr.
    async fn verb(&self, words: &[&str], variable: (&str, &str)) -> (Option<i32>, String) {
        let words = ["--api", self.fleet.api().base()].into_iter().chain(words.iter().copied());
        let mut program = Program::stepfleet(words).unwrap().env(variable.0, variable.1).start().unwrap();
        let status = program.wait(lab::START).await.unwrap();
        (status.code(), program.stderr())
    }
}

/// The status and the problem of an answer that is one.
async fn problem(answer: Response) -> (u16, String, Value) {
    let status = answer.status().as_u16();
    let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let (challenge, kind) = (header("www-authenticate"), header("content-type"));
    let body: Value = serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON");
    assert_eq!(kind, "application/problem+json", "{body:#}");
    (status, challenge, body)
}

#[tokio::test]
async fn each_route_lets_in_the_role_that_its_description_names_and_nobody_less() {
    let site = Site::start().await.unwrap();
    let description: Value = site.ask(Method::GET, "/api/v1/openapi.json", None).await.json().await.unwrap();
    assert_eq!(description["components"]["securitySchemes"]["token"]["scheme"], "bearer");
    let mut count = 0;
    for (path, item) in description["paths"].as_object().unwrap() {
        // No names of anything that there is: whoever is let in finds nothing.
        let place = path.replace("{id}", "nothing").replace("{name}", "nothing");
        for (method, operation) in item.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let needed = operation["security"][0]["token"][0].as_str();
            let nobody = site.ask(method.clone(), &place, None).await.status().as_u16();
            let stranger = site.ask(method.clone(), &place, Some("sf_nobody-has-this-token")).await.status().as_u16();
            let Some(needed) = needed else {
                assert!(!matches!(nobody, 401 | 403) && !matches!(stranger, 401 | 403), "{method} {path}");
                continue;
            };
            assert_eq!((nobody, stranger), (401, 401), "{method} {path}");
            let mut is_enough = false;
            for (holder, role) in HOLDERS {
                is_enough |= role == needed;
                let status = site.ask(method.clone(), &place, Some(site.token(holder))).await.status().as_u16();
                assert_eq!(status == 403, !is_enough, "{method} {path} {holder}: {status}, {needed} is needed");
                assert_ne!(status, 401, "{method} {path} {holder}");
            }
            count += 1;
        }
    }
    assert!(count > 60, "{count} operations");
    let other_names = [("GET", "/api/v1/workflow"), ("POST", "/api/v1/workflow/nothing/cancel")];
    for (method, path) in other_names {
        assert_eq!(site.ask(method.parse().unwrap(), path, None).await.status(), 401, "{method} {path}");
    }
    assert_eq!(site.ask(Method::POST, "/api/v1/workflow/x/cancel", Some(site.token("vera"))).await.status(), 403);
    assert_eq!(site.ask(Method::GET, "/api/v1/nowhere", None).await.status(), 401);
    assert_eq!(site.ask(Method::GET, "/api/v1/nowhere", Some(site.token("vera"))).await.status(), 404);
    site.fleet.stop().await.unwrap();
}

#[tokio::test]
async fn who_is_refused_is_told_why_and_counted() {
    let site = Site::start().await.unwrap();
    let runs = "/api/v1/runs";
    let (status, challenge, body) = problem(site.ask(Method::GET, runs, None).await).await;
    assert_eq!((status, &body["code"]), (401, &json!("token_missing")), "{body:#}");
    assert!(challenge.starts_with("Bearer "), "{challenge}");
    let (status, challenge, body) = problem(site.ask(Method::GET, runs, Some("sf_somebody-elses-token")).await).await;
    assert_eq!((status, &body["code"]), (401, &json!("token_unknown")), "{body:#}");
    assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
    let (status, _, body) = problem(site.ask(Method::PUT, "/api/v1/policies", Some(site.token("otto"))).await).await;
    assert_eq!((status, &body["code"]), (403, &json!("role_missing")), "{body:#}");
    assert_eq!(body["detail"], "`PUT /api/v1/policies` needs the role `admin`; `otto` has `operator`");
    assert!(body["request_id"].is_string(), "{body:#}");
    let metrics = site.api("vera").text("/metrics").await.unwrap();
    for line in ["{why=\"missing\"} 1", "{why=\"unknown\"} 1", "{why=\"role\"} 1"] {
        assert!(metrics.contains(&format!("stepfleet_http_denied_total{line}")), "{line}\n{metrics}");
    }
    for secret in &site.tokens {
        assert!(!site.fleet.story().contains(secret), "a token in a log");
    }
    site.fleet.stop().await.unwrap();
}

#[tokio::test]
async fn the_actor_is_the_name_of_the_token_whatever_the_request_says() {
    let site = Site::start().await.unwrap();
    let (api, liar) = (site.api("otto"), [("x-stepfleet-actor", "the-boss")]);
    let step = json!({ "handler": "sleep", "queue": "nobody", "with": { "duration": "1ms" } });
    let definition = json!({ "workflow": "idle", "steps": { "only": step } });
    let (status, run) =
        api.post("/api/v1/runs", &liar, &json!({ "definition": definition, "input": null })).await.unwrap();
    assert_eq!(status, 201, "{run:#}");
    let run = run["id"].as_str().unwrap();
    let cancel = format!("/api/v1/runs/{run}/cancel");
    let (status, answer) = api.post(&cancel, &liar, &json!({ "reason": "wrong" })).await.unwrap();
    assert_eq!(status, 200, "{answer:#}");
    let history = api.history(run).await.unwrap();
    let actors: Vec<&str> = history.iter().filter_map(|entry| entry["actor"].as_str()).collect();
    assert!(actors.contains(&"otto") && !actors.contains(&"the-boss"), "{history:#?}");
    let (status, paused) = api.post("/api/v1/queues/nobody/pause", &liar, &json!({ "reason": "x" })).await.unwrap();
    assert_eq!(status, 200, "{paused:#}");
    let entries = site.api("vera").items("/api/v1/audit").await.unwrap();
    let found: Vec<(&str, &str)> =
        entries.iter().map(|e| (e["actor"].as_str().unwrap(), e["action"].as_str().unwrap())).collect();
    assert!(found.contains(&("otto", "run.cancel")) && found.contains(&("otto", "queue.pause")), "{found:?}");
    assert!(found.iter().all(|(actor, _)| *actor == "otto"), "{found:?}");
    site.fleet.stop().await.unwrap();
}

#[tokio::test]
async fn a_token_that_is_taken_out_of_the_file_is_nobodys_within_seconds_and_a_bad_file_changes_nothing() {
    let mut site = Site::start().await.unwrap();
    let text = std::fs::read_to_string(site.file()).unwrap();
    // A file that is half written, or wrong, or gone, locks nobody out.
    std::fs::write(site.file(), "tokens: [").unwrap();
    let coordinator = &mut site.fleet.coordinators[0].program;
    coordinator.wait_for_line(|line| line.contains("those of before count"), SOON).await.unwrap();
    assert!(site.api("otto").get("/api/v1/runs").await.is_ok());
    let (new, line) = create("olga", "operator").await.unwrap();
    let without_otto = text.lines().filter(|line| !line.contains("otto")).collect::<Vec<_>>().join("\n");
    std::fs::write(site.file(), format!("{without_otto}\n{line}\n")).unwrap();
    wait::until(SOON, "the new token to count", async || {
        site.fleet.api().as_holder(&new).get("/api/v1/runs").await.map(drop)
    })
    .await
    .unwrap();
    let (status, _, body) = problem(site.ask(Method::GET, "/api/v1/runs", Some(site.token("otto"))).await).await;
    assert_eq!((status, &body["code"]), (401, &json!("token_unknown")), "{body:#}");
    assert!(site.api("ada").get("/api/v1/runs").await.is_ok(), "the others still count");
    site.fleet.stop().await.unwrap();
}

#[tokio::test]
async fn the_command_line_takes_its_token_from_the_environment_or_a_file_and_says_what_is_missing() {
    let site = Site::start().await.unwrap();
    let list = ["runs", "list"];
    let (code, told) = site.verb(&list, ("STEPFLEET_TOKEN", "")).await;
    assert_eq!(code, Some(6), "{told}");
    assert!(told.contains("STEPFLEET_TOKEN") && told.contains("--token-file"), "{told}");
    let (code, told) = site.verb(&list, ("STEPFLEET_TOKEN", site.token("vera"))).await;
    assert_eq!(code, Some(0), "{told}");
    let file = site.folder.path().join("ada.token");
    std::fs::write(&file, format!("{}\n", site.token("ada"))).unwrap();
    let file = file.to_str().unwrap();
    let (code, told) = site.verb(&["doctor", "--fix"], ("STEPFLEET_TOKEN_FILE", file)).await;
    assert_eq!(code, Some(0), "{told}");
    // The file of the command line wins.
    let words = ["workers", "list", "--token-file", file];
    assert_eq!(site.verb(&words, ("STEPFLEET_TOKEN", "sf_somebody-elses-token")).await.0, Some(0));
    let (code, told) = site.verb(&["doctor", "--fix"], ("STEPFLEET_TOKEN", site.token("otto"))).await;
    assert_eq!(code, Some(6), "{told}");
    let (code, told) = site.verb(&["partitions", "add", "2", "--yes"], ("STEPFLEET_TOKEN", site.token("otto"))).await;
    assert_eq!(code, Some(6), "{told}");
    assert!(told.contains("`admin`") && told.contains("`otto` has `operator`"), "{told}");
    site.fleet.stop().await.unwrap();
}

#[tokio::test]
async fn beyond_loopback_there_are_tokens_or_an_explicit_word_and_metrics_on_their_own_port_stay_open() {
    let server = lab::server().await.unwrap();
    let (listen, metrics) = (format!("0.0.0.0:{}", port::free()), format!("127.0.0.1:{}", port::free()));
    let redis = users::login_if_wanted(&server.url(), "coordinator");
    let words = ["coordinator", "--redis", &redis, "--partitions", "1", "--listen", &listen];
    let mut refused = Program::stepfleet(words).unwrap().start().unwrap();
    assert_eq!(refused.wait(lab::START).await.unwrap().code(), Some(2));
    assert!(refused.stderr().contains("--tokens-file") && refused.stderr().contains("--insecure-listen"));

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.yaml");
    let file = file.to_str().unwrap();
    std::fs::write(file, "tokens:\n  - { name: a b, role: root }\n").unwrap();
    let with_tokens = [&words[..], &["--tokens-file", file, "--metrics-listen", &metrics]].concat();
    let mut refused = Program::stepfleet(with_tokens.clone()).unwrap().start().unwrap();
    assert_eq!(refused.wait(lab::START).await.unwrap().code(), Some(2));
    let told = refused.stderr();
    for problem in ["3 problems", "tokens[0].name", "tokens[0].role", "missing field `sha256`"] {
        assert!(told.contains(problem), "{problem}: {told}");
    }

    let (_, line) = create("vera", "viewer").await.unwrap();
    std::fs::write(file, format!("tokens:\n{line}\n")).unwrap();
    let _coordinator = Program::stepfleet(with_tokens).unwrap().start().unwrap();
    let api = Api::new(&format!("http://{}", listen.replace("0.0.0.0", "127.0.0.1")));
    wait::until(lab::START, "the coordinator to be ready", async || api.ready().await).await.unwrap();
    assert!(api.text("/metrics").await.unwrap_err().to_string().contains("401"));
    assert!(Api::new(&format!("http://{metrics}")).text("/metrics").await.unwrap().contains("stepfleet_"));
}
