//! Where things are in the end: nothing is left on its way, and what could not be read is kept once.

use redis::{Cmd, cmd};
use stepfleet_coordinator::{
    shell::core::LEAKED,
    store::{partition::Head, reply},
};
use stepfleet_protocol::{keys::GROUP, name::Name};

use super::{End, Verdict};
use crate::{fleets::plans::QUEUES, name};

/// When every run has ended nothing of them is ready, on a stream, at a gate, timed, to be continued or to be stopped.
pub(crate) async fn nothing_is_left(end: &mut End<'_>) -> Verdict {
    for partition in end.world.all_partitions() {
        let keys = end.world.part(partition);
        let mut looks: Vec<(String, Cmd)> = Vec::new();
        let mut look = |what: String, name: &str, key: String| looks.push((what, cmd(name).arg(key).clone()));
        look("work items".into(), "LLEN", keys.todo());
        look("timers".into(), "ZCARD", keys.timers());
        look("jobs to stop".into(), "SCARD", keys.cancels());
        look("places under limits".into(), "HLEN", keys.held());
        look("gates with parked steps".into(), "SCARD", keys.gates());
        for queue in QUEUES.map(name) {
            look(format!("ready steps of {queue}"), "ZCARD", keys.ready(&queue));
        }
        for (what, look) in looks {
            let left = end.line.one(look).await.ok().as_ref().and_then(reply::number).unwrap_or(-1);
            if left != 0 {
                return Err((None, format!("partition {partition}: {left} {what} are left")));
            }
        }
        for queue in QUEUES.map(name) {
            stream(end, partition, &queue).await?;
        }
        log(end, partition).await?;
    }
    Ok(())
}

async fn stream(end: &mut End<'_>, partition: stepfleet_protocol::id::PartitionId, queue: &Name) -> Verdict {
    let mut groups = cmd("XINFO");
    groups.arg("GROUPS").arg(end.world.part(partition).jobs(queue));
    let Ok(found) = end.line.one(groups).await else { return Ok(()) };
    let Some(group) = reply::group(&found, GROUP) else { return Ok(()) };
    let number = |field| reply::field(group, field).and_then(reply::number);
    match (number("pending"), number("lag")) {
        (Some(0), Some(0)) => Ok(()),
        left => Err((None, format!("partition {partition}, queue {queue}: pending and undelivered jobs: {left:?}"))),
    }
}

/// Every entry of the log is decided.
async fn log(end: &mut End<'_>, partition: stepfleet_protocol::id::PartitionId) -> Verdict {
    let keys = end.world.part(partition);
    let mut pipe = redis::pipe();
    pipe.cmd("HGET").arg(keys.head()).arg("offset").cmd("XREVRANGE").arg(keys.log()).arg("+").arg("-");
    pipe.arg("COUNT").arg(1);
    let mut found = end.line.trip(&pipe).await.map_err(|e| (None, e.to_string()))?;
    let last = reply::entries(found.swap_remove(1)).first().map(|(id, _)| *id).unwrap_or_default();
    let offset = reply::text(&found[0]).and_then(|text| text.parse().ok()).unwrap_or(Head::default().offset);
    if offset < last { Err((None, format!("partition {partition}: decided to {offset} of {last}"))) } else { Ok(()) }
}

/// No place under a limit leaks.
pub(crate) async fn no_leaks(end: &mut End<'_>) -> Verdict {
    for partition in end.world.all_partitions() {
        let mut get = cmd("HGET");
        get.arg(end.world.part(partition).counters()).arg(LEAKED);
        let leaked = end.line.one(get).await.ok().as_ref().and_then(reply::number).unwrap_or(0);
        let set_back = end.world.ledger.borrow().set_back.contains_key(&partition);
        if leaked > 0 && !set_back {
            return Err((None, format!("partition {partition}: {leaked} places under limits leaked")));
        }
    }
    Ok(())
}

/// What is no entry is quarantined, each once, and nothing else is.
pub(crate) async fn quarantine(end: &mut End<'_>) -> Verdict {
    let mut kept = 0;
    for partition in end.world.all_partitions() {
        let len = end.line.one(cmd("XLEN").arg(end.world.part(partition).quarantine()).clone()).await;
        kept += len.ok().as_ref().and_then(reply::number).unwrap_or(0) as u64;
    }
    let ledger = end.world.ledger.borrow();
    let right = if ledger.set_back.is_empty() { kept == ledger.garbage } else { kept <= ledger.garbage };
    if right { Ok(()) } else { Err((None, format!("{kept} entries are quarantined, {} were garbage", ledger.garbage))) }
}
