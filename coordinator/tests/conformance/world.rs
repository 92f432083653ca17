//! What a test of the suite is given: a server behind the seam, a client, and short ways to drive an owner.

use redis::Value;
use stepfleet_connect::{Redis, Settings};
use stepfleet_coordinator::{
    shell::{
        lease::Leases,
        owner::{Memory, Owner},
    },
    store::{
        link::{Dial, LinkError},
        memory::{Clock, MemoryDial, MemoryServer},
        reply,
    },
};
use stepfleet_protocol::{
    id::{PartitionId, RunId},
    keys::PREFIX_DEFAULT,
    message::{Job, JobRef, Outcome, Reply},
    state::State,
    workflow::Workflow,
};

use crate::{
    fleet::{Client, PREFIX, Stored, Worker, keys, own, stored},
    server::Server,
};

/// One test's world.
pub(crate) struct World<D: Dial> {
    pub(crate) dial: D,
    pub(crate) client: Client<D>,
    reigns: u64,
}

/// One look at one lease.
pub(crate) trait TryTake {
    /// Takes the lease if it is time to; one that `has_share` leaves it to others for a while. True when it is its own now;
    /// false also where it looks at none.
    async fn try_take(&mut self, partition: PartitionId, has_share: bool) -> Result<bool, LinkError>;
}

impl<D: Dial> TryTake for Leases<D> {
    async fn try_take(&mut self, partition: PartitionId, has_share: bool) -> Result<bool, LinkError> {
        self.take(&[partition], u64::from(!has_share)).await.pop().map_or(Ok(false), |(_, taken)| taken)
    }
}

/// A runtime of one thread; under simulated time if it is `paused`.
pub(crate) fn runtime(paused: bool) -> tokio::runtime::Runtime {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(paused).build();
    rt.expect("a runtime")
}

/// Runs a test over the memory twin, under simulated time.
pub(crate) fn on_memory(test: impl AsyncFnOnce(World<MemoryDial>)) {
    on_twin(async |_, world| test(world).await);
}

/// Runs a test that needs the twin itself: faults, snapshots, time.
pub(crate) fn on_twin(test: impl AsyncFnOnce(MemoryServer, World<MemoryDial>)) {
    PREFIX.set(PREFIX_DEFAULT.into());
    runtime(true).block_on(async {
        let server = MemoryServer::new(Clock::default());
        let world = World::new(server.dial());
        test(server, world).await;
    });
}

/// Runs a test over the shared real server.
pub(crate) fn on_real(name: &str, test: impl AsyncFnOnce(World<Redis>)) -> anyhow::Result<()> {
    let server = Server::shared()?;
    PREFIX.set(format!("{name}:"));
    over(&server, test)
}

/// Runs a test over a real server of its own.
pub(crate) fn on_real_alone(test: impl AsyncFnOnce(World<Redis>)) -> anyhow::Result<()> {
    PREFIX.set(PREFIX_DEFAULT.into());
    over(&Server::start()?, test)
}

fn over(server: &Server, test: impl AsyncFnOnce(World<Redis>)) -> anyhow::Result<()> {
    runtime(false).block_on(async {
        let redis = Redis::connect(Settings::parse(&server.url())?).await?;
        test(World::new(redis)).await;
        Ok(())
    })
}

impl<D: Dial> World<D> {
    fn new(dial: D) -> Self {
        Self { client: Client::new(dial.clone(), 1), dial, reigns: 0 }
    }

    /// A fresh owner of the partition.
    pub(crate) async fn own(&mut self) -> Owner<D::Link> {
        self.reigns += 1;
        own(&self.dial, self.reigns, Memory::default()).await.expect("the partition can be owned")
    }

    pub(crate) fn worker(&self, boot: u64) -> Worker<D> {
        Worker::new(self.dial.clone(), boot)
    }

    /// Submits a run.
    pub(crate) async fn submit(&mut self, workflow: &Workflow) -> RunId {
        let run = self.client.run_id();
        self.client.submit(run, workflow, None, false).await.expect("no faults");
        run
    }

    /// One command.
    pub(crate) async fn one(&mut self, words: &[&[u8]]) -> Value {
        let mut pipe = redis::pipe();
        let (name, args) = words.split_first().expect("a command has a name");
        pipe.cmd(std::str::from_utf8(name).expect("ASCII"));
        for arg in args {
            pipe.arg(*arg);
        }
        self.client.trip(&pipe).await.expect("no faults").swap_remove(0)
    }

    /// One command in words, and its number.
    pub(crate) async fn number(&mut self, words: &[&str]) -> i64 {
        let words: Vec<&[u8]> = words.iter().map(|w| w.as_bytes()).collect();
        let value = self.one(&words).await;
        reply::number(&value).unwrap_or_else(|| panic!("{words:?}: {value:?}"))
    }

    pub(crate) async fn stored(&mut self, run: RunId) -> Stored {
        stored(&mut self.client, run).await.expect("no faults").expect("the run is stored")
    }

    pub(crate) async fn state(&mut self, run: RunId) -> Option<State> {
        stored(&mut self.client, run).await.expect("no faults").map(|s| s.record.state)
    }

    /// The answer to a command.
    pub(crate) async fn answer(&mut self, id: &stepfleet_protocol::id::CommandId) -> Option<Reply> {
        let value = self.one(&[b"GET", keys().reply(id).as_bytes()]).await;
        reply::bytes(&value).map(|b| stepfleet_protocol::codec::unpack(b).expect("a reply of ours"))
    }

    /// Turns the owner until a worker gets jobs.
    pub(crate) async fn jobs(&mut self, owner: &mut Owner<D::Link>, worker: &mut Worker<D>) -> Vec<(JobRef, Job)> {
        for _ in 0..20 {
            owner.turn(false).await.expect("no faults");
            let jobs = worker.take(100).await.unwrap_or_default();
            if !jobs.is_empty() {
                return jobs;
            }
        }
        panic!("no job came");
    }

    /// Lets `worker` complete everything until the run has ended. Returns the jobs that it did.
    pub(crate) async fn finish(&mut self, owner: &mut Owner<D::Link>, worker: &mut Worker<D>, run: RunId) -> Vec<Job> {
        let mut done = Vec::new();
        for _ in 0..2_000 {
            owner.turn(false).await.expect("no faults");
            let jobs = worker.take(300).await.unwrap_or_default();
            if jobs.is_empty() {
                if self.state(run).await.is_some_and(State::is_finished) {
                    return done;
                }
                continue;
            }
            worker
                .answer(jobs.iter().map(|(of, _)| (of.clone(), Outcome::Completed(None))).collect())
                .await
                .expect("up");
            done.extend(jobs.into_iter().map(|(_, job)| job));
        }
        panic!("the run did not end: {:?}", self.state(run).await);
    }

    /// Turns the owner `n` times.
    pub(crate) async fn turns(&mut self, owner: &mut Owner<D::Link>, n: usize) {
        for _ in 0..n {
            owner.turn(false).await.expect("no faults");
        }
    }
}
