//! What goes wrong, and when: all of it drawn from the seed.

use std::{cell::RefCell, rc::Rc, time::Duration};

use stepfleet_coordinator::store::{link::LinkError, memory::Faults, reply};
use stepfleet_protocol::{
    id::{PartitionId, WorkerId},
    keys::PREFIX_DEFAULT,
    keys::tag,
};

use super::{people::Person, process::Process, world::World};
use crate::{fleet::Line, name};

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Coordinator,
    Worker,
}

/// A place where processes of one kind live one after the other.
pub(crate) struct Place {
    pub(crate) kind: Kind,
    pub(crate) number: usize,
    pub(crate) now: RefCell<Option<(Rc<Process>, Option<WorkerId>)>>,
}

/// Starts a process there again and again.
pub(crate) async fn keep(world: Rc<World>, place: Rc<Place>) {
    loop {
        let (process, worker) = begin(&world, &place);
        let body = process.clone();
        match worker.clone() {
            Some(id) => process.spawn(super::worker::run(body, id)),
            None => process.spawn(super::coordinator::run(body)),
        }
        *place.now.borrow_mut() = Some((process.clone(), worker.clone()));
        process.doomed().await;
        world.tell(None, format!("{} is killed", process.name));
        *place.now.borrow_mut() = None;
        process.end();
        if let Some(id) = &worker {
            let mut ledger = world.ledger.borrow_mut();
            let since = ledger.away.remove(id).unwrap_or(world.at());
            ledger.absent.entry(id.clone()).or_default().push((since, u64::MAX));
        }
        let most = if world.calm.get() { 500 } else { 15_000 };
        world.pause(10..most).await;
    }
}

fn begin(world: &Rc<World>, place: &Place) -> (Rc<Process>, Option<WorkerId>) {
    let boot = world.id();
    match place.kind {
        Kind::Coordinator => (Process::new(world, format!("c{}-{boot}", place.number)), None),
        Kind::Worker => {
            let id = WorkerId::new(&name(&format!("w{}", place.number)), boot);
            (Process::new(world, id.to_string()), Some(id))
        }
    }
}

/// How the wire is while things go wrong.
pub(crate) fn rough(seed: u64) -> Faults {
    Faults {
        seed,
        lose_request: 0.006,
        lose_reply: 0.006,
        late_exec: 0.01,
        late_by_max: Duration::from_secs(3),
        latency_max: Duration::from_millis(4),
    }
}

/// How it is when all is calm.
pub(crate) fn smooth(seed: u64) -> Faults {
    Faults { seed, latency_max: Duration::from_millis(2), ..Faults::default() }
}

/// Lets things go wrong for a while.
pub(crate) async fn rage(world: Rc<World>, places: Vec<Rc<Place>>, until_ms: u64) {
    let client = Process::new(&world, "redo".into());
    while world.at() < until_ms {
        world.pause(800..6_000).await;
        match world.draw(0..20) {
            0..5 => kill(&world, &places),
            5..8 => leave(&world, &places, 500..45_000, false).await,
            8..10 => leave(&world, &places, 500..40_000, true).await,
            10..12 => outage(&world).await,
            12 | 13 => full(&world).await,
            14 => jump(&world),
            15 | 16 => set_back(&world, &client).await,
            17 => garbage(&world, &client).await,
            _ => {
                world.tell(None, "every connection is cut".into());
                world.server.cut();
            }
        }
    }
}

fn kill(world: &World, places: &[Rc<Place>]) {
    let place = world.pick(places);
    let Some((process, _)) = place.now.borrow().clone() else { return };
    if world.chance(0.5) {
        process.kill();
    } else {
        process.kill_in_trip(world.draw(1..30));
    }
}

/// A process is stopped, or cut off, for a while; others go on.
async fn leave(world: &Rc<World>, places: &[Rc<Place>], span: std::ops::Range<u64>, cut: bool) {
    let place = world.pick(places);
    let Some((process, worker)) = place.now.borrow().clone() else { return };
    let for_ms = world.draw(span);
    world.tell(None, format!("{} is {} for {for_ms} ms", process.name, if cut { "cut off" } else { "stopped" }));
    if cut {
        process.cut(true);
    } else {
        process.stop();
    }
    if let Some(id) = &worker {
        world.ledger.borrow_mut().away.entry(id.clone()).or_insert(world.at());
    }
    let world = world.clone();
    tokio::task::spawn_local(async move {
        tokio::time::sleep(Duration::from_millis(for_ms)).await;
        process.cut(false);
        process.go_on();
        if let Some(id) = worker {
            let mut ledger = world.ledger.borrow_mut();
            let now = world.at();
            if let Some(since) = ledger.away.remove(&id) {
                ledger.absent.entry(id).or_default().push((since, now));
            }
        }
    });
}

async fn outage(world: &World) {
    let for_ms = if world.chance(0.3) { world.draw(30_000..50_000) } else { world.draw(200..8_000) };
    world.tell(None, format!("the server is down for {for_ms} ms"));
    world.server.down();
    tokio::time::sleep(Duration::from_millis(for_ms)).await;
    world.server.up();
}

/// Full for good, or at the edge of it: then it takes this and refuses that.
async fn full(world: &World) {
    if world.chance(0.5) {
        world.tell(None, "the server is full now and then".into());
        for _ in 0..world.draw(5..60) {
            world.server.set_full(true);
            world.pause(1..60).await;
            world.server.set_full(false);
            world.pause(1..30).await;
        }
        return;
    }
    let for_ms = if world.chance(0.3) { world.draw(30_000..45_000) } else { world.draw(200..6_000) };
    world.tell(None, format!("the server is full for {for_ms} ms"));
    world.server.set_full(true);
    tokio::time::sleep(Duration::from_millis(for_ms)).await;
    world.server.set_full(false);
}

fn jump(world: &World) {
    let by = world.draw(500..40_000);
    let ahead = world.chance(0.6);
    world.tell(None, format!("the server's clock jumps {} by {by} ms", if ahead { "ahead" } else { "back" }));
    world.ledger.borrow_mut().jumped = true;
    if ahead {
        world.server.clock().jump_forward(Duration::from_millis(by));
    } else {
        world.server.clock().jump_back(Duration::from_millis(by));
    }
}

/// A partition goes back to an earlier moment; whoever submitted a run does so again.
async fn set_back(world: &Rc<World>, client: &Rc<Process>) {
    let partition = PartitionId(world.draw(0..u64::from(world.partitions)) as u16);
    let before = world.server.snapshot();
    world.pause(500..9_000).await;
    if world.calm.get() {
        return;
    }
    world.tell(None, format!("partition {partition} is set back"));
    world.ledger.borrow_mut().set_back.entry(partition).or_default().push(world.at());
    let stem = format!("{PREFIX_DEFAULT}{{{}}}", tag(partition));
    world.server.restore_part(&before, |key| key.starts_with(stem.as_bytes()));
    let mut person = Person::new(client);
    for run in world.accepted().into_iter().filter(|run| run.partition() == partition) {
        let Some(workflow) = world.workflow(run) else { continue };
        person.submit(run, &workflow, true).await;
    }
}

/// Something that is no entry comes to a log.
async fn garbage(world: &Rc<World>, client: &Rc<Process>) {
    let partition = PartitionId(world.draw(0..u64::from(world.partitions)) as u16);
    let mut add = redis::cmd("XADD");
    add.arg(world.part(partition).log()).arg("*").arg("m").arg(b"\xc1");
    let mut line = Line::new(client.dial());
    let added: Result<redis::Value, LinkError> = line.one(add).await;
    match added {
        Ok(value) if reply::text(&value).is_some() => {
            world.tell(None, format!("garbage comes to the log of {partition}"));
            world.ledger.borrow_mut().garbage += 1;
        }
        Ok(_) => {}
        Err(error) => {
            world.tell(None, format!("garbage may have come to the log of {partition}: {error}"));
            world.ledger.borrow_mut().perhaps_garbage += 1;
        }
    }
}
