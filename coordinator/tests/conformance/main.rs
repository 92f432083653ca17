//! The conformance suite: the store and the owner over the memory twin and over a real server, the same tests for both.
//!
//! The server is the program in `STEPFLEET_TEST_SERVER`, else `valkey-server` or `redis-server` on the PATH. One is started
//! for all tests of this program, one more for each test that fills or measures it; every test has its own key prefix.

#[expect(dead_code, reason = "shared with the simulation, which uses other parts of it")]
#[path = "../simulation/fleet.rs"]
mod fleet;
mod server;
mod tap;
mod wire;
mod world;

mod atomic;
mod audit;
mod bounds;
mod breaker;
mod dispatcher;
mod fence;
mod gates;
mod leases;
mod lessons;
mod letters;
mod limit_script;
mod limits;
mod liveness;
mod losses;
mod outages;
mod plans;
mod poison;
mod policies;
mod repairs;
mod retention;
mod scripts;
mod sweeps;
mod twin;
mod values;
mod young;

/// Makes of each generic test one over the memory twin and one over a real server.
macro_rules! both {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[test] fn $name() { crate::world::on_memory(async |w| super::$name(w).await); })*
        }
        mod real {
            $(#[test] fn $name() -> anyhow::Result<()> { crate::world::on_real(stringify!($name), async |w| super::$name(w).await) })*
        }
    };
}
pub(crate) use both;
