//! Limits hold at every moment, and no token of a circuit breaker is left behind.

use stepfleet_coordinator::store::{limits::read_held, reply};

use super::{End, Verdict, line};
use crate::fleets::{scripts::Gates, world::World};

/// No more jobs count against the limit than it says, in all partitions together.
pub(crate) async fn limit_holds(world: &World) -> Verdict {
    let Some(most) = world.limit else { return Ok(()) };
    {
        // A server that forgets brings places back, and a clock that jumps makes others forget them.
        let ledger = world.ledger.borrow();
        if ledger.jumped || !ledger.set_back.is_empty() {
            return Ok(());
        }
    }
    let mut pipe = redis::pipe();
    for partition in world.all_partitions() {
        pipe.cmd("HGETALL").arg(world.part(partition).held());
    }
    // Between two tasks nothing goes on: all of it is one moment.
    let Ok(found) = line(world).trip(&pipe).await else { return Ok(()) };
    if found.iter().any(|value| reply::error(value).is_some()) {
        return Ok(());
    }
    let held: usize = found.into_iter().map(|value| read_held(value).len()).sum();
    if held > most as usize { Err((None, format!("{held} jobs at once, {most} are allowed"))) } else { Ok(()) }
}

/// When nothing is at work no job tries whether a dependency is back.
pub(crate) fn none_is_left(end: &End<'_>, gates: &Gates) -> Verdict {
    if end.world.ledger.borrow().jumped {
        // What expires by the server's clock may expire late.
        return Ok(());
    }
    let now_ms = end.world.server_ms() as i64;
    for (gate, breaker) in &gates.breakers {
        let live = breaker.tokens.values().filter(|ends| **ends > now_ms).count();
        if live > 0 {
            let gate = String::from_utf8_lossy(gate);
            return Err((None, format!("{gate}: {live} tokens of jobs that try, and none is at work")));
        }
    }
    Ok(())
}
