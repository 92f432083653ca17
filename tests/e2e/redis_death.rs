//! Redis killed and started again under load.

use stepfleet_tests::{
    Fsync,
    lab::{self, Effects, Fleet, Hands},
};

use crate::load;

#[tokio::test]
async fn after_a_crash_of_redis_everything_goes_on_by_itself() {
    let mut server = lab::durable().append_only(Fsync::Always).start().await.unwrap();
    let fleet = Fleet::start(&server.url(), 2, 0).await.unwrap();
    let effects = Effects::default();
    let hands = Hands::start(&server.url(), 16, &effects).unwrap();
    let mut runs = load::submit(fleet.api(), 150).await.unwrap();
    for steps in [100, 400] {
        load::until_begun(&effects, steps).await.unwrap();
        server.kill_9().unwrap();
        server.restart().await.unwrap();
    }
    load::until_done(fleet.api(), &runs, &effects).await.unwrap();
    runs = load::submit(fleet.api(), 10).await.unwrap();
    load::until_done(fleet.api(), &runs, &effects).await.unwrap();
    assert_eq!(fleet.api().metric("stepfleet_owner_torn_commits_total").await.unwrap(), 0.0);
    hands.drain().await.unwrap();
}
