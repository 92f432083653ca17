//! An ear: one RESP3 connection to one node, and its task. It ends at the first doubt and says so exactly once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use redis::aio::MultiplexedConnection;
use redis::{ProtocolVersion, PushInfo, PushKind, Value};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::{Event, Outlet};
use crate::client::Redis;
use crate::limits::{ASK_TIMEOUT, SUBSCRIBER_ASKS_MAX, SUBSCRIBER_PING_INTERVAL};
use crate::link::{Party, ask, hello, patience};
use crate::topology::NodeId;

pub(super) enum Order {
    Join(Vec<u8>),
    Leave(Vec<u8>),
}

pub(super) enum Report {
    Live { number: u64, channel: Vec<u8> },
    Ended { number: u64, why: String },
}

/// The desk's side of an ear; dropping it ends the task and closes the connection.
pub(super) struct Ear {
    pub(super) number: u64,
    pub(super) orders: mpsc::Sender<Order>,
    task: AbortHandle,
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) fn start(number: u64, redis: Redis, node: NodeId, outlet: Outlet, reports: mpsc::Sender<Report>) -> Ear {
    let (orders, ordered) = mpsc::channel(SUBSCRIBER_ASKS_MAX);
    let task = tokio::spawn(async move {
        let why = match listen(number, &redis, &node, outlet, &reports, ordered).await {
            Ok(()) => return,
            Err(why) => format!("{node}: {why}"),
        };
        // Without a desk nobody needs to know.
        let _no_desk = reports.send(Report::Ended { number, why }).await;
    });
    Ear { number, orders, task: task.abort_handle() }
}

/// What the connection's reader tells the ear's task.
#[derive(Default)]
struct Doubt {
    /// SUNSUBSCRIBEs of ours whose confirmation is still to come.
    leaving: AtomicUsize,
    raised: Notify,
}

/// Serves the orders until the desk is gone (`Ok`) or the connection is in doubt (`Err`, with the reason).
#[expect(clippy::too_many_arguments, reason = "one call, and every argument is a channel of its own")]
async fn listen(
    number: u64,
    redis: &Redis,
    node: &NodeId,
    outlet: Outlet,
    reports: &mpsc::Sender<Report>,
    mut orders: mpsc::Receiver<Order>,
) -> Result<(), String> {
    let doubt = Arc::new(Doubt::default());
    let reader = Arc::clone(&doubt);
    let config = patience(ASK_TIMEOUT).set_push_sender(move |push: PushInfo| -> Result<(), redis::aio::SendError> {
        heard(push, &outlet, &reader);
        Ok(())
    });
    let mut connection = redis
        .dialer()
        .dial(node.target(), Party::Data, ProtocolVersion::RESP3, config)
        .await
        .map_err(|error| error.to_string())?;
    // A replica takes sharded subscriptions and its primary does not count them: after a fail-over, with a topology of before, the
    // subscriber would stay there unseen.
    let role = hello(&mut connection, &node.to_string()).await.map_err(|error| error.to_string())?.role;
    if role != "master" {
        return Err(format!("its role is `{role}`"));
    }
    let mut pings = interval_at(Instant::now() + SUBSCRIBER_PING_INTERVAL, SUBSCRIBER_PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = doubt.raised.notified() => return Err("the connection broke or a slot moved".to_owned()),
            order = orders.recv() => match order {
                Some(Order::Join(channel)) => {
                    tell(&mut connection, node, "SSUBSCRIBE", &channel).await?;
                    reports.send(Report::Live { number, channel }).await.map_err(|_| "no desk".to_owned())?;
                }
                Some(Order::Leave(channel)) => {
                    doubt.leaving.fetch_add(1, Ordering::AcqRel);
                    tell(&mut connection, node, "SUNSUBSCRIBE", &channel).await?;
                }
                None => return Ok(()),
            },
            _ = pings.tick() => {
                ask(&mut connection, &node.to_string(), &redis::cmd("PING")).await.map_err(|error| error.to_string())?;
            }
        }
    }
}

async fn tell(connection: &mut MultiplexedConnection, node: &NodeId, word: &str, channel: &[u8]) -> Result<(), String> {
    match ask(connection, &node.to_string(), redis::cmd(word).arg(channel)).await {
        Ok(Value::Push { .. }) => Ok(()),
        Ok(other) => Err(format!("{word} was answered with {other:?}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Runs inside the connection's reader, so it never waits.
fn heard(push: PushInfo, outlet: &Outlet, doubt: &Doubt) {
    match push.kind {
        PushKind::SMessage => {
            let mut parts = push.data.into_iter();
            if let (Some(Value::BulkString(channel)), Some(Value::BulkString(payload))) = (parts.next(), parts.next()) {
                outlet.put(Event::Message { channel, payload });
            }
        }
        PushKind::Disconnection => doubt.raised.notify_one(),
        // RACE: the server unsubscribes because the slot moved, while we unsubscribe ourselves. Either may be counted as
        // ours; the other one then ends the connection, so no channel stays deaf.
        PushKind::SUnsubscribe => {
            let ours =
                doubt.leaving.fetch_update(Ordering::AcqRel, Ordering::Acquire, |leaving| leaving.checked_sub(1));
            if ours.is_err() {
                doubt.raised.notify_one();
            }
        }
        _ => {}
    }
}
