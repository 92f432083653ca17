//! A builder that runs its worker itself.

use serde_json::Value as Json;
use stepfleet_protocol::message::Outcome;
use stepfleet_worker::{Error, Worker};
use tokio::sync::oneshot;

use crate::{
    owner::{self, Owner, job},
    server::Server,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_runs_its_worker_and_tells_what_was_built_wrong() {
    let server = Server::start_with(&[]).await;
    let mut owner = Owner::new(&server, 1).await;
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(owner::worker(&server).run_until(async move {
        let _dropped_is_stopped = stopped.await;
    }));
    assert_eq!(owner.outcome(&job("noop", Json::Null)).await, Outcome::Completed(None));
    drop(stop);
    running.await.expect("no panic").expect("it ran");
    let Err(Error::Build(wrong)) = Worker::builder().concurrency(0).run().await else { panic!("it was built wrong") };
    assert_eq!(wrong.problems.len(), 2, "{wrong}");
}
