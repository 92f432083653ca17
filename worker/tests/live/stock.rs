//! The stock handlers.

use std::time::Duration;

use serde_json::{Value as Json, json};
use stepfleet_protocol::{
    codec::{pack, unpack},
    failure::{Category, Failure},
    message::{Job, Outcome},
    value::Payload,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    owner::{self, Owner, job, keys},
    server::{Server, until},
};

fn completed(outcome: Outcome) -> Json {
    match outcome {
        Outcome::Completed(Some(Payload::Inline(bytes))) => unpack(&bytes).expect("a value"),
        other => panic!("it should have an output: {other:?}"),
    }
}

fn failed(outcome: Outcome) -> Failure {
    match outcome {
        Outcome::Failed(failure) => failure,
        other => panic!("it should have failed: {other:?}"),
    }
}

fn sh(script: &str) -> Json {
    json!({"command": ["/bin/sh", "-c", script]})
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_gives_what_a_program_says_and_sorts_how_it_ends() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let worker = owner::start(owner::worker(&server));
    let done = completed(owner.outcome(&job("exec", sh("echo out; echo err >&2"))).await);
    assert_eq!(done, json!({"exit_code": 0, "stdout": "out\n", "stderr": "err\n"}));
    // More than the pipes hold, both ways at once.
    let through = json!({"command": ["cat"], "stdin": {"a": "x".repeat(300_000)}, "output_limit": 9});
    let done = completed(owner.outcome(&job("exec", through)).await);
    assert_eq!(done, json!({"exit_code": 0, "stdout": "{\"a\":\"xxx", "stderr": "", "truncated": true}));
    let parsed = json!({"command": ["cat"], "stdin": {"a": [1]}, "output": "json"});
    assert_eq!(completed(owner.outcome(&job("exec", parsed)).await)["stdout"], json!({"a": [1]}));
    let env = json!({"command": ["/usr/bin/env"], "env": {"A": "b"}, "inherit_env": []});
    let told = completed(owner.outcome(&job("exec", env)).await);
    let told: Vec<&str> = told["stdout"].as_str().expect("a text").lines().collect();
    assert!(
        told.contains(&"A=b") && told.iter().all(|line| line.starts_with("STEPFLEET_") || *line == "A=b"),
        "{told:?}"
    );

    let mapped = json!({"command": ["/bin/sh", "-c", "echo why >&2; exit 3"], "exit_codes": {"3": "permanent"}});
    let failure = failed(owner.outcome(&job("exec", mapped)).await);
    assert_eq!((failure.category, failure.code.as_deref()), (Category::Permanent, Some("exit_3")));
    assert_eq!(failure.detail, Some(Payload::Inline(pack("why\n").into())));
    for (script, category, code) in [
        ("exit 1", Category::Transient, "exit_1"),
        ("exit 127", Category::Permanent, "exit_127"),
        ("kill -9 $$", Category::System, "signal_9"),
    ] {
        let failure = failed(owner.outcome(&job("exec", sh(script))).await);
        assert_eq!((failure.category, failure.code.as_deref()), (category, Some(code)));
    }
    let failure = failed(owner.outcome(&job("exec", json!({"command": ["/no/such/program"]}))).await);
    assert_eq!((failure.category, failure.code.as_deref()), (Category::Permanent, Some("not_found")));
    worker.left().await;
}

/// The child of the program holds the pipe of its output open: it must die with the group, at a time-out and at a cancel.
#[tokio::test(flavor = "multi_thread")]
async fn exec_ends_the_whole_process_group_with_the_attempt() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let worker = owner::start(owner::worker(&server));
    let folder = tempfile::tempdir().expect("a folder");
    let script = |name: &str| format!("sleep 600 & echo $! > {}/{name}; wait", folder.path().display());
    let pid = |name: &str| {
        let text = std::fs::read_to_string(folder.path().join(name)).ok()?;
        text.trim().parse::<u32>().ok()
    };
    let overrun = Job { timeout_ms: 300, ..job("exec", sh(&script("a"))) };
    assert_eq!(failed(owner.outcome(&overrun).await).category, Category::Timeout);
    let cancelled = job("exec", sh(&script("b")));
    owner.dispatch(0, "q", &cancelled).await;
    until("the child runs", async || pid("b").is_some()).await;
    owner.ask(redis::cmd("SADD").arg(keys(0).cancels()).arg(cancelled.id.to_string())).await;
    assert_eq!(owner.result(&cancelled).await.outcome, Outcome::Cancelled);
    for name in ["a", "b"] {
        let pid = pid(name).expect("a process id");
        until("the child is gone", async || !runs(pid)).await;
    }
    worker.left().await;
}

/// Whether a process runs: a zombie that nobody reaps does not.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Answers each request with the next answer, and keeps what was asked.
async fn answering(answers: Vec<&'static str>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/path", listener.local_addr().expect("an address"));
    let asked = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut socket, _) = listener.accept().await.expect("a client");
            let mut text = String::new();
            while !text.contains("\r\n\r\n") {
                let mut part = [0; 4096];
                let count = socket.read(&mut part).await.expect("a request");
                text.push_str(&String::from_utf8_lossy(&part[..count]));
            }
            asked.push(text);
            socket.write_all(answer.as_bytes()).await.expect("an open socket");
        }
        asked
    });
    (url, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn http_gives_the_answer_and_sorts_refusals() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let worker = owner::start(owner::worker(&server));
    let (url, asked) = answering(vec![
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-A: b\r\nContent-Length: 7\r\nConnection: close\r\n\r\n{\"a\":1}",
        "HTTP/1.1 429 Slow\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 404 No\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnope",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n123456789",
    ])
    .await;
    let post = Job {
        traceparent: Some("00-a-b-01".into()),
        ..job("http", json!({"method": "post", "url": url, "json": "x"}))
    };
    let done = completed(owner.outcome(&post).await);
    assert_eq!((&done["status"], &done["headers"]["x-a"], &done["body"]), (&json!(200), &json!("b"), &json!({"a": 1})));
    let slow = failed(owner.outcome(&job("http", json!({"url": url}))).await);
    assert_eq!((slow.category, slow.retry_after_ms), (Category::RateLimited, Some(5_000)));
    let missing = failed(owner.outcome(&job("http", json!({"url": url}))).await);
    assert_eq!((missing.category, missing.code.as_deref()), (Category::Permanent, Some("http_404")));
    assert_eq!(missing.detail, Some(Payload::Inline(pack("nope").into())));
    let long = failed(owner.outcome(&job("http", json!({"url": url, "max_bytes": 8}))).await);
    assert_eq!(long.code.as_deref(), Some("answer_too_large"));
    let asked = tokio::time::timeout(Duration::from_secs(5), asked).await.expect("all was asked").expect("no panic");
    let key = format!("idempotency-key: {}", post.idempotency_key());
    assert!(asked[0].starts_with("POST /path ") && asked[0].contains(&key), "{}", asked[0]);
    assert!(asked[0].contains("traceparent: 00-a-b-01") && asked[0].contains("application/json"), "{}", asked[0]);
    let gone = failed(owner.outcome(&job("http", json!({"url": url}))).await);
    assert_eq!((gone.category, gone.code.as_deref()), (Category::Transient, Some("http_connection")));
    let wrong = failed(owner.outcome(&job("http", json!({"url": "nowhere"}))).await);
    assert_eq!(wrong.category, Category::Data);
    // It listens and never answers: the time of the call is its own, far below that of the attempt.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/", silent.local_addr().expect("an address"));
    let slow = failed(owner.outcome(&job("http", json!({"url": url, "timeout": "200ms"}))).await);
    assert_eq!((slow.category, slow.code.as_deref()), (Category::Timeout, Some("http_timeout")));
    worker.left().await;
}
