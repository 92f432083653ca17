//! What reaches a worker at once: cancels, the doorbell of Cluster, and the wish that it drains.

use std::sync::Arc;

use stepfleet_protocol::beat::Control;

use crate::{beat, kit::Kit};

/// Listens until the worker has left.
pub(crate) async fn run(kit: Arc<Kit>) {
    kit.flush.cancelled().await;
}

/// Does what a message asks.
pub(crate) fn obey(kit: &Kit, message: Control) {
    match message {
        Control::Cancel(jobs) => beat::cancel(kit, &jobs),
        Control::Drain => kit.drain.cancel(),
        Control::Jobs(queue) => {
            if kit.queues.contains(&queue) {
                kit.doorbell.send_modify(|rings| *rings = rings.wrapping_add(1));
            }
        }
    }
}
