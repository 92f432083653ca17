//! Where things are in the end: nothing is left on its way, and what could not be read is kept once.

use redis::{Cmd, cmd};
use stepfleet_coordinator::{
    shell::core::LEAKED,
    store::{memory::MemoryDial, partition::Head, reply},
};
use stepfleet_protocol::{gate::Gate, id::PartitionId, keys::GROUP};

use super::{End, Verdict};
use crate::{
    fleet::Line,
    fleets::{plans::QUEUES, world::World},
    name,
};

/// When every run has ended nothing of them is ready, on a stream, at a gate, timed, to be continued or to be stopped.
pub(crate) async fn nothing_is_left(end: &mut End<'_>) -> Verdict {
    for partition in end.world.all_partitions() {
        let left = left(&mut end.line, end.world, partition).await;
        if !left.is_empty() {
            return Err((None, format!("partition {partition}: {}", left.join(", "))));
        }
        log(end, partition).await?;
    }
    Ok(())
}

/// What is on its way in a partition.
pub(crate) async fn left(line: &mut Line<MemoryDial>, world: &World, partition: PartitionId) -> Vec<String> {
    let keys = world.part(partition);
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
    let mut found = Vec::new();
    for (what, look) in looks {
        let count = line.one(look).await.ok().as_ref().and_then(reply::number).unwrap_or(-1);
        found.extend((count != 0).then(|| format!("{count} {what}")));
    }
    let gates = line.one(cmd("SMEMBERS").arg(keys.gates()).clone()).await.unwrap_or(redis::Value::Nil);
    for gate in reply::array(&gates).unwrap_or_default().iter().filter_map(reply::text) {
        let Ok(gate) = Gate::parse(gate) else { continue };
        let count = line.one(cmd("ZCARD").arg(keys.parked(&gate)).clone()).await;
        let count = count.ok().as_ref().and_then(reply::number);
        found.push(format!("steps parked at {gate}: {count:?}"));
    }
    for queue in QUEUES.map(name) {
        let mut groups = cmd("XINFO");
        groups.arg("GROUPS").arg(keys.jobs(&queue));
        let groups = line.one(groups).await.unwrap_or(redis::Value::Nil);
        let number = |field| reply::group(&groups, GROUP).and_then(|g| reply::number(reply::field(g, field)?));
        let jobs = (number("pending"), number("lag"));
        let none = jobs == (Some(0), Some(0)) || groups == redis::Value::Nil;
        found.extend((!none).then(|| format!("jobs of {queue}, pending and undelivered: {jobs:?}")));
    }
    found
}

/// Every entry of the log is decided.
async fn log(end: &mut End<'_>, partition: PartitionId) -> Verdict {
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

/// What is no entry is quarantined, each once, and nothing else is but runs that are gone in a partition that was set back.
pub(crate) async fn quarantine(end: &mut End<'_>) -> Verdict {
    let mut kept = Vec::new();
    for partition in end.world.all_partitions() {
        let mut read = cmd("XRANGE");
        read.arg(end.world.part(partition).quarantine()).arg("-").arg("+");
        let entries = end.line.one(read).await.map(reply::entries).unwrap_or_default();
        let why = |fields: &[(bytes::Bytes, bytes::Bytes)]| {
            fields.iter().find(|(name, _)| name == "why").map(|(_, why)| String::from_utf8_lossy(why).into_owned())
        };
        kept.extend(
            entries.iter().map(|(id, fields)| format!("{partition}/{id}: {}", why(fields).unwrap_or_default())),
        );
    }
    let ledger = end.world.ledger.borrow();
    if !ledger.set_back.is_empty() {
        kept.retain(|entry| !entry.contains("is not there, and a worker did a job of it"));
    }
    let (count, most) = (kept.len() as u64, ledger.garbage + ledger.perhaps_garbage);
    // What a partition that was set back had kept may be gone.
    let least = if ledger.set_back.is_empty() { ledger.garbage } else { 0 };
    let right = (least..=most).contains(&count);
    if right { Ok(()) } else { Err((None, format!("{least} to {most} were garbage, quarantined are {kept:?}"))) }
}
