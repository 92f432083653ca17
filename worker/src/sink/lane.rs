//! One connection of the writer to one node, and what it does with it: each step is a future that gives it back.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use redis::{Pipeline, Value};
use stepfleet_connect::{NodeId, Plain, Redis};

use super::entry::Entry;
use crate::{backoff, limits::WRITE_TIMEOUT};

/// Something the writer waits for.
pub(super) type Flight = BoxFuture<'static, Landed>;

/// The way to one node.
#[derive(Default)]
pub(super) struct Lane {
    pub(super) line: Line,
    /// Failures since the last success.
    pub(super) failures: u32,
    /// The server's run id; empty until connected.
    pub(super) run_id: Arc<str>,
}

/// The state of a connection.
#[derive(Default)]
pub(super) enum Line {
    /// There is none.
    #[default]
    Down,
    /// A flight has it.
    Busy,
    /// It can be used.
    Idle(Box<Plain>),
}

/// How a flight ended.
pub(super) enum Landed {
    /// The topology was read again, or could not be.
    Searched,
    /// Connected to a server.
    Opened { node: NodeId, plain: Box<Plain>, run_id: Arc<str> },
    /// Not connected.
    NotOpened { node: NodeId, why: String },
    /// A write, or a probe without entries, came back. The connection is gone if `why` says so.
    Wrote {
        node: NodeId,
        plain: Option<Box<Plain>>,
        written: Vec<Arc<Entry>>,
        failed: Vec<Arc<Entry>>,
        why: Option<String>,
    },
}

/// Reads the topology again after a moment.
pub(super) fn search(redis: Redis) -> Flight {
    Box::pin(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        if let Err(error) = redis.refresh().await {
            tracing::debug!(%error, "the topology could not be read");
        }
        Landed::Searched
    })
}

/// Connects, after a wait that grows with the failures before.
pub(super) fn open(redis: Redis, node: NodeId, failures: u32) -> Flight {
    Box::pin(async move {
        if failures > 0 {
            tokio::time::sleep(backoff::wait(failures)).await;
            let _as_it_was = redis.refresh().await;
        }
        let opened = async {
            let mut plain = redis.plain_to(node.clone(), WRITE_TIMEOUT).await.map_err(|error| error.to_string())?;
            let reply = plain.one(redis::cmd("INFO").arg("server")).await.map_err(|error| error.to_string())?;
            Ok::<_, String>((plain, run_id(&reply)))
        };
        match opened.await {
            Ok((plain, run_id)) => Landed::Opened { node, plain: Box::new(plain), run_id },
            Err(why) => Landed::NotOpened { node, why },
        }
    })
}

fn run_id(info: &Value) -> Arc<str> {
    let text = match info {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::VerbatimString { text, .. } => text.clone(),
        _ => String::new(),
    };
    text.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap_or_default().trim().into()
}

/// Writes entries in one round trip.
pub(super) fn write(node: NodeId, mut plain: Box<Plain>, entries: Vec<Arc<Entry>>) -> Flight {
    Box::pin(async move {
        let mut pipeline = Pipeline::with_capacity(entries.len());
        let counts: Vec<usize> = entries.iter().map(|entry| entry.command(&mut pipeline)).collect();
        let replies = match plain.trip(&pipeline).await {
            Ok(replies) => replies,
            Err(error) => {
                let why = Some(error.to_string());
                return Landed::Wrote { node, plain: None, written: Vec::new(), failed: entries, why };
            }
        };
        let (mut written, mut failed, mut why) = (Vec::with_capacity(entries.len()), Vec::new(), None);
        let mut end = 0;
        for (entry, count) in entries.into_iter().zip(counts) {
            end += count;
            match refusal(&replies[end - 1]) {
                None => written.push(entry),
                Some(text) => {
                    failed.push(entry);
                    why = Some(text);
                }
            }
        }
        Landed::Wrote { node, plain: Some(plain), written, failed, why }
    })
}

/// Why a write was not done, by the reply of its last command.
fn refusal(reply: &Value) -> Option<String> {
    match reply {
        Value::ServerError(error) => Some(error.to_string()),
        Value::Nil => Some("the transaction was not done".to_owned()),
        Value::Array(replies) => replies.iter().find_map(refusal),
        _ => None,
    }
}

/// Asks whether the server is still there.
pub(super) fn ping(node: NodeId, mut plain: Box<Plain>) -> Flight {
    Box::pin(async move {
        let (written, failed) = (Vec::new(), Vec::new());
        match plain.one(&redis::cmd("PING")).await {
            Ok(reply) => Landed::Wrote { node, plain: Some(plain), written, failed, why: refusal(&reply) },
            Err(error) => Landed::Wrote { node, plain: None, written, failed, why: Some(error.to_string()) },
        }
    })
}
