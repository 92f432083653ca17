//! The whole of Stepfleet on real servers: what users do, and what must not happen. Every test has its own server and its own
//! programs; deadlines are at least five times what is promised, as the machine may be busy.

#![expect(clippy::unwrap_used, reason = "what several tests share is no test to the lint, and means the same")]

/// Makes of each function that is given a fleet a test on one server. On a Cluster the same functions run together, in
/// `topologies`.
macro_rules! on_one_server {
    ($($name:ident),* $(,)?) => {
        mod on_one_server {
            $(#[tokio::test]
            async fn $name() {
                let server = stepfleet_tests::lab::server().await.unwrap();
                let fleet = stepfleet_tests::lab::Fleet::start(&server.url(), 2, 2).await.unwrap();
                super::$name(&fleet).await;
                fleet.stop().await.unwrap();
            })*
        }
    };
}

mod acl;
mod audit;
mod auditor;
mod breakers;
mod calls;
mod campaigns;
mod chaos;
mod commands;
mod coordinator_death;
mod dead_letters;
mod explain;
mod failures;
mod fast_death;
mod flows;
mod full_server;
mod limits;
mod load;
mod metrics;
mod names;
mod outcomes;
mod pods;
mod poison;
mod policies;
mod redis_death;
mod repairs;
mod retention;
mod scaling;
mod tokens;
mod topologies;
mod traces;
mod user_spans;
mod waits;
mod web;
mod worker_death;
