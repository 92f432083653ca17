//! A simulated process: a tree of tasks that is killed, stopped and cut off from the server as one, and its connections.

use std::{
    cell::{Cell, RefCell},
    future::{Future, pending},
    panic::AssertUnwindSafe,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::FutureExt;
use redis::{Pipeline, Value};
use stepfleet_coordinator::store::{
    link::{Dial, Link, LinkError},
    memory::{MemoryDial, MemoryLink},
};
use tokio::{sync::Notify, task::AbortHandle};

use super::world::World;

/// Trips of one seed: more say that something goes round in circles.
pub(crate) const TRIPS_MAX: u64 = 150_000;

/// One process.
pub(crate) struct Process {
    pub(crate) world: Rc<World>,
    pub(crate) name: String,
    pub(crate) wire: Arc<Wire>,
    stopped: Cell<bool>,
    wakers: RefCell<Vec<Waker>>,
    tasks: RefCell<Vec<AbortHandle>>,
}

/// The wires of a process to the server.
pub(crate) struct Wire {
    /// Nothing comes through.
    cut: AtomicBool,
    /// The process dies in the middle of the trip with this number; 0 for never.
    dies_at: AtomicU64,
    trips: AtomicU64,
    /// Trips of all processes.
    all: Arc<AtomicU64>,
    doom: Notify,
}

impl Process {
    pub(crate) fn new(world: &Rc<World>, name: String) -> Rc<Self> {
        let (cut, dies_at, trips) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let wire = Arc::new(Wire { cut, dies_at, trips, all: world.trips.clone(), doom: Notify::new() });
        let (stopped, wakers, tasks) = (Cell::new(false), RefCell::default(), RefCell::default());
        Rc::new(Self { world: world.clone(), name, wire, stopped, wakers, tasks })
    }

    /// Makes connections of this process.
    pub(crate) fn dial(&self) -> ProcessDial {
        ProcessDial { dial: self.world.server.dial(), wire: self.wire.clone() }
    }

    /// A task of it.
    pub(crate) fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let world = self.world.clone();
        let caught = AssertUnwindSafe(task).catch_unwind();
        let told = async move {
            if let Err(panic) = caught.await {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned()));
                world.violated("panics", None, text.unwrap_or_default());
            }
        };
        let task = tokio::task::spawn_local(Stoppable { process: self.clone(), task: Box::pin(told) });
        self.tasks.borrow_mut().push(task.abort_handle());
    }

    /// Ends every task of it at whatever it awaits.
    pub(crate) fn end(&self) {
        self.tasks.take().iter().for_each(AbortHandle::abort);
        self.go_on();
    }

    /// As SIGKILL.
    pub(crate) fn kill(&self) {
        self.wire.doom.notify_one();
    }

    /// Dies in the middle of one of its next trips: the server has taken it, and nobody heard the answer.
    pub(crate) fn kill_in_trip(&self, trips: u64) {
        self.wire.dies_at.store(self.wire.trips.load(Relaxed) + trips, Relaxed);
    }

    /// Until the process was killed.
    pub(crate) async fn doomed(&self) {
        self.wire.doom.notified().await;
    }

    /// As SIGSTOP.
    pub(crate) fn stop(&self) {
        self.stopped.set(true);
    }

    /// As SIGCONT.
    pub(crate) fn go_on(&self) {
        self.stopped.set(false);
        self.wakers.take().into_iter().for_each(Waker::wake);
    }

    pub(crate) fn cut(&self, cut: bool) {
        self.wire.cut.store(cut, Relaxed);
    }
}

/// A task that is not polled while its process is stopped.
struct Stoppable {
    process: Rc<Process>,
    task: Pin<Box<dyn Future<Output = ()>>>,
}

impl Future for Stoppable {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.process.stopped.get() {
            self.process.wakers.borrow_mut().push(cx.waker().clone());
            return Poll::Pending;
        }
        self.task.as_mut().poll(cx)
    }
}

/// See [`Process::dial`].
#[derive(Clone)]
pub(crate) struct ProcessDial {
    dial: MemoryDial,
    wire: Arc<Wire>,
}

/// A connection of a process.
pub(crate) struct ProcessLink {
    link: MemoryLink,
    wire: Arc<Wire>,
}

impl Dial for ProcessDial {
    type Link = ProcessLink;

    async fn dial(&self, slot: u16, response_timeout: Duration) -> Result<ProcessLink, LinkError> {
        self.wire.check().await?;
        match self.dial.dial(slot, response_timeout).await {
            Ok(link) => Ok(ProcessLink { link, wire: self.wire.clone() }),
            Err(error) => {
                // A refusal takes time too.
                tokio::time::sleep(Duration::from_millis(2)).await;
                Err(error)
            }
        }
    }

    fn node(&self, slot: u16) -> u64 {
        self.dial.node(slot)
    }

    fn is_cluster(&self) -> bool {
        self.dial.is_cluster()
    }

    async fn refresh(&self) {
        self.dial.refresh().await;
    }
}

impl Link for ProcessLink {
    async fn trip(&mut self, pipe: &Pipeline) -> Result<Vec<Value>, LinkError> {
        self.wire.check().await?;
        let number = self.wire.trips.fetch_add(1, Relaxed) + 1;
        let replies = self.link.trip(pipe).await;
        if self.wire.dies_at.load(Relaxed) == number {
            self.wire.doom.notify_one();
            pending::<()>().await;
        }
        self.wire.check().await?;
        replies
    }
}

impl Wire {
    async fn check(&self) -> Result<(), LinkError> {
        if self.all.fetch_add(1, Relaxed) > TRIPS_MAX {
            // The story ends here, and tells why.
            pending::<()>().await;
        }
        if self.cut.load(Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            return Err(LinkError::Lost("the network is cut by the simulation".into()));
        }
        Ok(())
    }
}
