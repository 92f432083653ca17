//! Makes the streams and groups that a reader reads.

use redis::{Pipeline, Value};
use stepfleet_connect::Plain;
use stepfleet_protocol::keys::GROUP;

use super::{super::reply, Reader};
use crate::limits::PENDING_PAGE;

impl Reader {
    /// Creates the streams and groups, and tells the owners of the queues. What exists stays as it is.
    pub(super) async fn make_groups(&self, plain: &mut Plain) -> Result<(), String> {
        for streams in self.streams.all().chunks(PENDING_PAGE) {
            let mut pipeline = Pipeline::with_capacity(streams.len() * 4);
            for stream in streams {
                pipeline.cmd("MULTI");
                let queues = self.kit.keys.partition(stream.partition).queues();
                pipeline.cmd("SADD").arg(queues).arg(stream.queue.as_str());
                pipeline.cmd("XGROUP").arg("CREATE").arg(&stream.key).arg(GROUP).arg("0").arg("MKSTREAM");
                pipeline.cmd("EXEC");
            }
            let replies = plain.trip(&pipeline).await.map_err(|error| error.to_string())?;
            for group in replies.chunks(4) {
                if self.node.is_some() && group.iter().any(is_away) {
                    // The partition pauses; the others go on.
                    continue;
                }
                if let Some(why) = group.iter().find_map(refusal) {
                    return Err(why);
                }
            }
        }
        Ok(())
    }
}

fn is_away(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if reply::is_away(error))
}

/// Why a group is still missing; that it exists already is no reason.
fn refusal(reply: &Value) -> Option<String> {
    match reply {
        Value::ServerError(error) if error.code() == "BUSYGROUP" => None,
        Value::ServerError(error) => Some(error.to_string()),
        Value::Array(replies) => replies.iter().find_map(refusal),
        _ => None,
    }
}
