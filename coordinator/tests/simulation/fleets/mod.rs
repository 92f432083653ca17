//! Whole fleets in one process: coordinators that compete for partitions, workers, clients and operators over the server in
//! memory, under simulated time, while everything goes wrong that a seed says. Who judges is apart, in `checkers`.

mod coordinator;
mod faults;
mod people;
pub(crate) mod plans;
mod process;
pub(crate) mod scripts;
mod worker;
pub(crate) mod world;

use std::{cell::RefCell, rc::Rc, sync::atomic::Ordering::Relaxed, time::Duration};

use faults::{Kind, Place};
use people::Person;
use process::{Process, TRIPS_MAX};
use stepfleet_protocol::keys::GROUP;
use world::{Violation, World};

use crate::{checkers, fleet::Line};

/// How long things go wrong, in milliseconds of the story.
const ROUGH_MS: u64 = 35_000;
/// By then everything has ended.
const END_MS: u64 = 400_000;

/// One seed's story. What was broken, if something was.
pub(crate) async fn story(seed: u64) -> (Rc<World>, Option<Violation>) {
    let world = World::new(seed);
    let all = tokio::task::LocalSet::new();
    let me = world.clone();
    all.run_until(async move { tell(&me).await }).await;
    // Nobody does anything any more.
    drop(all);
    world.server.set_faults(stepfleet_coordinator::store::memory::Faults::default());
    if !world.is_broken() {
        checkers::check(&world).await;
    }
    let violation = world.ledger.borrow().violation.clone();
    (world, violation)
}

async fn tell(world: &Rc<World>) {
    make_streams(world).await;
    world.server.set_faults(faults::rough(world.seed));
    let mut places = Vec::new();
    let coordinators = if world.chance(0.25) { 3 } else { 2 };
    for (kind, count) in [(Kind::Coordinator, coordinators), (Kind::Worker, world.draw(2..4))] {
        for number in 0..count as usize {
            places.push(Rc::new(Place { kind, number, now: RefCell::default() }));
        }
    }
    for place in &places {
        tokio::task::spawn_local(faults::keep(world.clone(), place.clone()));
    }
    let people = Process::new(world, "people".into());
    people.spawn(Person::new(&people).submit_all());
    people.spawn(Person::new(&people).meddle());
    people.spawn(Person::new(&people).turn_gates());
    let rage = tokio::task::spawn_local(faults::rage(world.clone(), places.clone(), ROUGH_MS));
    while !rage.is_finished() {
        tokio::time::sleep(Duration::from_millis(500)).await;
        checkers::while_it_runs(world).await;
        if is_over(world) {
            return;
        }
    }
    calm_down(world, &places).await;
    let mut person = Person::new(&people);
    loop {
        tokio::time::sleep(Duration::from_secs(3)).await;
        if is_over(world) {
            return;
        }
        if person.tidy_up().await == 0 && world.all_submitted.get() {
            break;
        }
        if world.at() > END_MS {
            return checkers::never_ended(world).await;
        }
    }
    // What came late is decided, and what dead workers held is given up.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        if is_over(world) || checkers::is_quiet(world).await {
            break;
        }
    }
}

/// Workers read all streams in one call, which fails if one is missing; a real one leaves that out.
async fn make_streams(world: &Rc<World>) {
    let mut line = Line::new(world.server.dial());
    let mut pipe = redis::pipe();
    for key in world.all_partitions().flat_map(|p| plans::QUEUES.map(|q| world.part(p).jobs(&crate::name(q)))) {
        pipe.cmd("XGROUP").arg("CREATE").arg(key).arg(GROUP).arg(0).arg("MKSTREAM");
    }
    line.trip(&pipe).await.expect("nothing goes wrong yet");
}

/// From now on nothing goes wrong.
async fn calm_down(world: &Rc<World>, places: &[Rc<Place>]) {
    world.tell(None, "all is calm".into());
    world.calm.set(true);
    world.server.up();
    world.server.set_full(false);
    world.server.set_faults(faults::smooth(world.seed));
    for place in places {
        if let Some((process, _)) = &*place.now.borrow() {
            process.cut(false);
            process.go_on();
        }
    }
}

fn is_over(world: &World) -> bool {
    if world.trips.load(Relaxed) > TRIPS_MAX {
        world.violated("bounds", None, format!("more than {TRIPS_MAX} trips: something goes round in circles"));
    }
    world.is_broken()
}
