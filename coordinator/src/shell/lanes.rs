//! Threads for owners. Each lane is one thread with a runtime of its own, which drives the owners of some partitions and
//! their connections and nothing else: between an owner and its server no other thread has a part, and neither the API nor
//! an auditor's walk comes in between. On the shared runtime, whose threads look for work at each other's, an owner
//! costs a quarter more processor time a step (docs/performance.md).

use std::{io, num::NonZeroUsize, sync::Arc};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// More threads than this never help one process.
const LANES_MAX: usize = 16;

/// The lanes of a process; without any, owners run where they are started.
#[derive(Debug, Clone, Default)]
pub struct Lanes {
    handles: Vec<Handle>,
    /// The threads end when the last copy goes.
    _open: Option<Arc<DropGuard>>,
}

impl Lanes {
    /// One lane for each processor, at most 16.
    ///
    /// # Errors
    /// The system gives no thread or no descriptor.
    pub fn open() -> io::Result<Self> {
        let count = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(LANES_MAX);
        let close = CancellationToken::new();
        // An error from here on ends the lanes that are open already.
        let open = close.clone().drop_guard();
        let mut handles = Vec::with_capacity(count);
        for lane in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            handles.push(runtime.handle().clone());
            let closed = close.clone();
            std::thread::Builder::new()
                .name(format!("owners-{lane}"))
                .spawn(move || runtime.block_on(closed.cancelled()))?;
        }
        Ok(Self { handles, _open: Some(Arc::new(open)) })
    }

    /// The runtime for the partition with this number: neighbours are on different lanes.
    pub fn of(&self, partition: u16) -> Handle {
        match self.handles.len() {
            0 => Handle::current(),
            lanes => self.handles[usize::from(partition) % lanes].clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_partition_stays_on_its_lane_and_lanes_end_with_their_process_part() {
        let lanes = Lanes::open().expect("threads");
        let name = |p: u16| lanes.of(p).spawn(async { std::thread::current().name().map(str::to_owned) });
        let (first, again) = (name(3).await.expect("it runs"), name(3).await.expect("it runs"));
        assert_eq!(first, again);
        assert!(first.is_some_and(|name| name.starts_with("owners-")));
        let waits = lanes.of(0).spawn(std::future::pending::<()>());
        drop(lanes);
        assert!(waits.await.expect_err("its lane has ended").is_cancelled());
        assert!(Lanes::default().of(0).spawn(async { 7 }).await.is_ok_and(|n| n == 7), "without lanes it runs here");
    }
}
