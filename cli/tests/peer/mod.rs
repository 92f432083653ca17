//! A server that answers what it was told to, and the real program that asks it.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::http::{Method, StatusCode, Uri};
use axum::response::IntoResponse;

/// One recorded answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    status: u16,
    body: String,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<String>) -> Self {
        Self { status, body: body.into() }
    }
}

type Asked = Arc<Mutex<Vec<(String, String)>>>;

/// The server. The first answer whose `METHOD /path` the request begins with is given. It ends with the test.
pub(crate) struct Peer {
    pub(crate) url: String,
    asked: Asked,
    _runtime: tokio::runtime::Runtime,
}

impl Peer {
    pub(crate) fn start(replies: Vec<(&str, Reply)>) -> Self {
        let replies: Vec<(String, Reply)> = replies.into_iter().map(|(call, reply)| (call.to_owned(), reply)).collect();
        let asked = Asked::default();
        let heard = asked.clone();
        let answer = move |method: Method, uri: Uri, body: Bytes| {
            let call = format!("{method} {uri}");
            let reply = replies.iter().find(|(start, _)| call.starts_with(start)).map(|(_, reply)| reply.clone());
            heard.lock().expect("no panic").push((call, String::from_utf8_lossy(&body).into_owned()));
            async move {
                let reply = reply.unwrap_or_else(|| Reply::new(418, "not told"));
                (StatusCode::from_u16(reply.status).expect("a status"), reply.body).into_response()
            }
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let app = axum::Router::new().fallback(answer);
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self { url, asked, _runtime: runtime }
    }

    /// Every request so far, as `METHOD /path?query`.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").iter().map(|(call, _)| call.clone()).collect()
    }

    /// Every body so far that was not empty.
    pub(crate) fn bodies(&self) -> Vec<String> {
        let asked = self.asked.lock().expect("no panic");
        asked.iter().map(|(_, body)| body.trim_end().to_owned()).filter(|body| !body.is_empty()).collect()
    }
}

/// What the program said and returned.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs the program against the peer, without a terminal.
pub(crate) fn run(peer: &Peer, words: &[&str]) -> Shown {
    run_with(&peer.url, words, "")
}

/// As [`run`], with an address and stdin.
pub(crate) fn run_with(api: &str, words: &[&str], stdin: &str) -> Shown {
    run_in(&[("STEPFLEET_API", api)], words, stdin)
}

/// As [`run`], with settings in the environment and stdin.
pub(crate) fn run_in(env: &[(&str, &str)], words: &[&str], stdin: &str) -> Shown {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stepfleet"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("STEPFLEET_")) {
        command.env_remove(name);
    }
    command.args(words).envs(env.iter().copied());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    // A program that does not read its stdin may be gone already.
    let _ = child.stdin.take().expect("piped").write_all(stdin.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Shown { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}
