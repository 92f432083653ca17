//! An API server of Kubernetes, as far as a watch of pods goes: HTTPS with a certificate of its own authority, a bearer token,
//! lists, and watches that follow from a version, end when they are cut, and are told when that version is forgotten (410).
//!
//! After <https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes>.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::stream;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
    server::TlsStream,
};

use crate::tls::Certificates;

/// The namespace of the pods.
const NAMESPACE: &str = "fleet";
/// Who may ask.
const TOKEN: &str = "a-token-of-the-service-account";
/// What watches have to ask for.
const SELECTOR: &str = "app.kubernetes.io/component=worker";

/// The server; it ends when it is dropped.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    folder: tempfile::TempDir,
    task: JoinHandle<()>,
}

/// What is wrong with the server.
#[derive(Debug, Clone, Copy)]
pub enum Wrong {
    /// It does not answer.
    Silent,
    /// It answers every request with this status.
    Answers(u16),
}

#[derive(Debug)]
struct Shared {
    cluster: Mutex<Cluster>,
    /// The newest version, and how many times watches were cut.
    news: watch::Sender<(u64, u64)>,
}

#[derive(Debug, Default)]
struct Cluster {
    pods: BTreeMap<String, Value>,
    version: u64,
    /// Events by their version; those up to `forgotten` are not kept.
    events: BTreeMap<u64, Value>,
    forgotten: u64,
    wrong: Option<Wrong>,
    lists: u64,
    watches: u64,
}

impl ApiServer {
    /// Starts it on a free port of loopback.
    ///
    /// # Errors
    /// No port, no folder, no certificate.
    pub async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let files = Certificates::make(folder.path())?;
        let chain = CertificateDer::pem_file_iter(&files.certificate)?.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(&files.key)?;
        let tls = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("https://{}", listener.local_addr()?);
        let file = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "c", "cluster": { "server": url, "certificate-authority": files.authority } }],
            "users": [{ "name": "u", "user": { "token": TOKEN } }],
            "contexts": [{ "name": "test", "context": { "cluster": "c", "user": "u", "namespace": NAMESPACE } }],
        });
        // YAML is a superset of JSON.
        std::fs::write(folder.path().join("config"), file.to_string())?;
        let shared = Arc::new(Shared { cluster: Mutex::default(), news: watch::Sender::new((0, 0)) });
        let router = Router::new().route("/api/v1/namespaces/{namespace}/pods", get(pods)).with_state(shared.clone());
        let listener = Tls { listener, acceptor: TlsAcceptor::from(Arc::new(tls)) };
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves until the end") });
        Ok(Self { shared, folder, task })
    }

    /// The file that `KUBECONFIG` has to name.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("config")
    }

    /// The selector that watches have to ask for.
    #[must_use]
    pub fn selector(&self) -> &'static str {
        SELECTOR
    }

    /// How many lists and watches were asked for.
    #[must_use]
    pub fn asked(&self) -> (u64, u64) {
        let cluster = self.cluster();
        (cluster.lists, cluster.watches)
    }

    /// A pod of this uid has this status now, and the members `metadata` beside its usual ones.
    pub fn set(&self, uid: &str, metadata: &Value, status: Value) {
        let mut cluster = self.cluster();
        let is_new = !cluster.pods.contains_key(uid);
        let mut pod = json!({ "apiVersion": "v1", "kind": "Pod", "status": status,
            "metadata": { "name": format!("pool-{uid}"), "namespace": NAMESPACE, "uid": uid },
            "spec": { "containers": [{ "name": "worker", "image": "stepfleet" }] } });
        for (name, value) in metadata.as_object().into_iter().flatten() {
            pod["metadata"][name] = value.clone();
        }
        cluster.happened(if is_new { "ADDED" } else { "MODIFIED" }, uid, pod);
        self.tell(cluster);
    }

    /// A pod of this uid runs, ready or not.
    pub fn runs(&self, uid: &str, ready: bool) {
        let state = json!({ "running": { "startedAt": "2026-01-01T00:00:00Z" } });
        let container = json!({ "name": "worker", "ready": ready, "restartCount": 0, "state": state, "lastState": {} });
        self.set(uid, &Value::Null, json!({ "phase": "Running", "containerStatuses": [container] }));
    }

    /// The container of this pod has ended so.
    pub fn terminated(&self, uid: &str, reason: &str, exit_code: i32) {
        let state = ended(uid, reason, exit_code);
        let container = json!({ "name": "worker", "ready": false, "restartCount": 0, "state": state, "lastState": {} });
        self.set(uid, &Value::Null, json!({ "phase": "Running", "containerStatuses": [container] }));
    }

    /// The container that came after the one of [`ApiServer::terminated`] runs.
    pub fn restarted(&self, uid: &str, reason: &str, exit_code: i32) {
        let ended = ended(uid, reason, exit_code);
        let state = json!({ "running": { "startedAt": "2026-01-01T00:01:01Z" } });
        let container =
            json!({ "name": "worker", "ready": true, "restartCount": 1, "state": state, "lastState": ended });
        self.set(uid, &Value::Null, json!({ "phase": "Running", "containerStatuses": [container] }));
    }

    /// The pod is gone.
    pub fn deleted(&self, uid: &str) {
        let mut cluster = self.cluster();
        if let Some(pod) = cluster.pods.get(uid).cloned() {
            cluster.happened("DELETED", uid, pod);
            cluster.pods.remove(uid);
        }
        self.tell(cluster);
    }

    /// Ends every watch in the middle.
    pub fn cut(&self) {
        self.shared.news.send_modify(|(_, cuts)| *cuts += 1);
    }

    /// Forgets the versions before the newest, as after a compaction: who asks for one of them has to list anew.
    pub fn forget(&self) {
        let mut cluster = self.cluster();
        cluster.version += 1;
        cluster.forgotten = cluster.version;
        cluster.events.clear();
    }

    /// From now on this is wrong, or nothing is any more. Every watch is cut.
    pub fn is(&self, wrong: Option<Wrong>) {
        self.cluster().wrong = wrong;
        self.cut();
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.shared.cluster()
    }

    fn tell(&self, cluster: MutexGuard<'_, Cluster>) {
        let version = cluster.version;
        drop(cluster);
        self.shared.news.send_modify(|news| news.0 = version);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cluster {
    fn happened(&mut self, what: &str, uid: &str, mut pod: Value) {
        self.version += 1;
        pod["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.events.insert(self.version, json!({ "type": what, "object": pod }));
        self.pods.insert(uid.to_owned(), pod);
    }
}

/// The state of a container that has ended so.
fn ended(uid: &str, reason: &str, exit_code: i32) -> Value {
    json!({ "terminated": { "exitCode": exit_code, "reason": reason, "containerID": format!("containerd://{uid}"),
        "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:01:00Z" } })
}

/// Lists or watches.
async fn pods(
    State(shared): State<Arc<Shared>>,
    Path(namespace): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let refused = |code: StatusCode, message: &str| {
        let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden",
            "message": message, "code": code.as_u16() });
        (code, Json(status)).into_response()
    };
    if headers.get("authorization").is_none_or(|given| given != &format!("Bearer {TOKEN}")) {
        return refused(StatusCode::UNAUTHORIZED, "Unauthorized");
    }
    let param = |name: &str| query.get(name).map_or("", String::as_str);
    if namespace != NAMESPACE || param("labelSelector") != SELECTOR {
        return refused(StatusCode::FORBIDDEN, "pods is forbidden");
    }
    let wrong = shared.cluster().wrong;
    match wrong {
        Some(Wrong::Silent) => std::future::pending::<()>().await,
        Some(Wrong::Answers(code)) => {
            return refused(StatusCode::from_u16(code).unwrap_or_default(), "something is wrong");
        }
        None => {}
    }
    if param("watch") == "true" || param("watch") == "1" {
        shared.cluster().watches += 1;
        let from = param("resourceVersion").parse().unwrap_or(0);
        let seconds = param("timeoutSeconds").parse().unwrap_or(300);
        return watched(shared, from, Duration::from_secs(seconds));
    }
    let mut cluster = shared.cluster();
    cluster.lists += 1;
    // Pages of one pod, so that every list of several is read page by page.
    let from: usize = param("continue").parse().unwrap_or(0);
    let items: Vec<&Value> = cluster.pods.values().skip(from).take(1).collect();
    let has_more = from + 1 < cluster.pods.len();
    let rest = if has_more { (from + 1).to_string() } else { String::new() };
    let metadata = json!({ "resourceVersion": cluster.version.to_string(), "continue": rest });
    Json(json!({ "kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items })).into_response()
}

/// The events behind a version, a line for each.
fn watched(shared: Arc<Shared>, from: u64, lasts: Duration) -> Response {
    let news = shared.news.subscribe();
    let cuts = news.borrow().1;
    let ends = tokio::time::Instant::now() + lasts;
    let events = stream::unfold((shared, news, from, false), move |(shared, mut news, from, is_over)| async move {
        if is_over {
            return None;
        }
        loop {
            if news.borrow_and_update().1 != cuts {
                return Some((Err(std::io::Error::other("cut")), (shared, news, from, true)));
            }
            let (forgotten, next) = {
                let cluster = shared.cluster();
                let next = cluster.events.range(from + 1..).next().map(|(at, event)| (*at, event.to_string()));
                (from < cluster.forgotten, next)
            };
            if forgotten {
                let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired",
                    "message": "too old resource version", "code": 410 });
                let line = format!("{}\n", json!({ "type": "ERROR", "object": status }));
                return Some((Ok(Bytes::from(line)), (shared, news, from, true)));
            }
            if let Some((at, line)) = next {
                return Some((Ok(Bytes::from(line + "\n")), (shared, news, at, false)));
            }
            let changed = tokio::time::timeout_at(ends, news.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                return None;
            }
        }
    });
    ([("content-type", "application/json")], Body::from_stream(events)).into_response()
}

/// Connections with TLS.
struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            if let Ok((stream, from)) = self.listener.accept().await
                && let Ok(stream) = self.acceptor.accept(stream).await
            {
                return (stream, from);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
