//! More and fewer workers and coordinators while load runs.

use stepfleet_tests::{
    Signal,
    lab::{self, Effects, Fleet, Hands, START},
};

use crate::load;

const RUNS: usize = 240;

#[tokio::test]
async fn one_worker_becomes_eight_and_one_again() {
    let server = lab::server().await.unwrap();
    let fleet = Fleet::start(&server.url(), 2, 0).await.unwrap();
    let (api, effects) = (fleet.api(), Effects::default());
    let start = || Hands::start(&server.url(), 4, &effects).unwrap();
    let first = start();
    let runs = load::submit(api, RUNS).await.unwrap();
    load::until_begun(&effects, RUNS / 2).await.unwrap();
    let others: Vec<Hands> = (0..7).map(|_| start()).collect();
    load::until_begun(&effects, RUNS * 5 / 2).await.unwrap();
    for other in others {
        other.drain().await.unwrap();
    }
    load::until_done(api, &runs, &effects).await.unwrap();
    first.drain().await.unwrap();
}

#[tokio::test]
async fn one_coordinator_becomes_three_and_one_again() {
    let server = lab::server().await.unwrap();
    let mut fleet = Fleet::start(&server.url(), 4, 0).await.unwrap();
    let (api, effects) = (fleet.api().clone(), Effects::default());
    let hands = Hands::start(&server.url(), 8, &effects).unwrap();
    let mut runs = load::submit(&api, RUNS).await.unwrap();
    for _ in 0..2 {
        fleet.add_coordinator().await.unwrap();
        runs.extend(load::submit(&fleet.coordinators.last().unwrap().api, RUNS / 4).await.unwrap());
    }
    for place in [2, 0] {
        fleet.coordinators[place].program.signal(Signal::SIGTERM).unwrap();
        assert!(fleet.coordinators[place].program.wait(START).await.unwrap().success());
        runs.extend(load::submit(&fleet.coordinators[1].api, RUNS / 4).await.unwrap());
    }
    load::until_done(&fleet.coordinators[1].api, &runs, &effects).await.unwrap();
    hands.drain().await.unwrap();
}
