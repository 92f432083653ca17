//! A minute of chaos with a fixed seed: what `make chaos` does for longer, and on more topologies.

use std::time::Duration;

use stepfleet_tests::binary;
use stepfleet_tests::chaos::faults::Kind;
use stepfleet_tests::chaos::servers::Topology;
use stepfleet_tests::chaos::{Plan, run};

/// Those that need nothing of the system, with the death of a worker, which alone takes half a minute.
const FAULTS: [Kind; 7] = [
    Kind::WorkerKilled,
    Kind::CoordinatorKilled,
    Kind::CoordinatorLeaves,
    Kind::RedisKilled,
    Kind::Partition,
    Kind::Resets,
    Kind::ClientsKilled,
];

#[tokio::test]
async fn a_minute_of_chaos_on_a_durable_server_loses_nothing_and_commits_nothing_twice() {
    let plan = Plan {
        topology: Topology::Single,
        seed: 7,
        duration: Duration::from_secs(35),
        faults: FAULTS.to_vec(),
        privileged: false,
        coordinators: 2,
        workers: 4,
        clients: 4,
        per_second: 2.0,
        old: None,
        min_replicas: 0,
        folder: binary::root().join("target/chaos/e2e"),
    };
    let report = run(&plan, &|line| println!("{line}")).await.unwrap();
    println!("{}", report.markdown());
    assert!(!report.is_bad(), "{}", report.markdown());
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    let sum = |count: fn(&stepfleet_tests::chaos::report::Row) -> usize| report.rows.values().map(count).sum::<usize>();
    assert_eq!(sum(|row| row.false_deaths), 0);
    // A killed worker of a young fleet is missed after half a minute, which leaves time for one more.
    assert!(sum(|row| row.times) >= 2, "too few faults: {:#?}", report.faults);
    assert!(sum(|row| row.accepted) > 50 && sum(|row| row.completed) > 50, "too little work to prove anything");
}
