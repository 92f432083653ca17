//! Who judges a story: promises of the product against what truly happened (the ledger) and what is stored (its bytes). None of
//! them asks the product what is right.

mod effects;
mod gates;
mod history;
mod places;

use std::{collections::BTreeMap, rc::Rc};

use stepfleet_coordinator::{
    machine::run::Step,
    store::{
        link::{Dial, LinkError},
        memory::MemoryDial,
        reply,
    },
};
use stepfleet_protocol::{
    codec,
    id::RunId,
    message::{Answer, Reply, Verb},
    state::State,
};

use crate::{
    fleet::{Line, Stored},
    fleets::world::World,
};

/// All that is stored at the end.
pub(crate) struct End<'a> {
    pub(crate) world: &'a World,
    pub(crate) runs: BTreeMap<RunId, Stored>,
    pub(crate) line: Line<MemoryDial>,
}

/// What a checker says.
pub(crate) type Verdict = Result<(), (Option<RunId>, String)>;

/// Says that something is wrong unless it is right.
pub(crate) fn must(right: bool, run: RunId, what: impl FnOnce() -> String) -> Verdict {
    if right { Ok(()) } else { Err((Some(run), what())) }
}

/// Judges a story that has ended.
pub(crate) async fn check(world: &Rc<World>) {
    let line = Line::new(world.server.dial());
    let mut end = End { world, runs: BTreeMap::new(), line };
    end.load().await.expect("nothing goes wrong any more");
    let of_gates = gates::none_is_left(&end, &world.gates.lock().expect("no panic"));
    let verdicts = [
        ("accepted", end.accepted().await),
        ("moves", each(&end, history::moves)),
        ("replay", each(&end, history::replays)),
        ("attempts", each(&end, history::attempts)),
        ("repairs", each(&end, history::no_repairs)),
        ("outbox", history::outbox(&mut end).await),
        ("letters", history::letters(&mut end).await),
        ("effects", each(&end, effects::once)),
        ("order", effects::in_order(&end)),
        ("doubles", effects::no_doubles(&end)),
        ("deaths", each(&end, effects::no_false_deaths)),
        ("time-outs", each(&end, effects::no_false_time_outs)),
        ("answers", end.answers().await),
        ("times", each(&end, effects::in_time)),
        ("leaks", places::no_leaks(&mut end).await),
        ("places", places::nothing_is_left(&mut end).await),
        ("quarantine", places::quarantine(&mut end).await),
        ("gates", of_gates),
    ];
    for (checker, verdict) in verdicts {
        if let Err((run, what)) = verdict {
            world.violated(checker, run, what);
        }
    }
}

/// Judges what must hold at every moment.
pub(crate) async fn while_it_runs(world: &World) {
    if let Err((run, what)) = gates::limit_holds(world).await {
        world.violated("limits", run, what);
    }
}

/// Whether nothing is on its way any more.
pub(crate) async fn is_quiet(world: &World) -> bool {
    let mut end = End { world, runs: BTreeMap::new(), line: Line::new(world.server.dial()) };
    // A token that was granted to a reign which ended just then goes by itself, in half a minute.
    let no_tokens = gates::none_is_left(&end, &world.gates.lock().expect("no panic")).is_ok();
    no_tokens && places::nothing_is_left(&mut end).await.is_ok()
}

/// Runs that have not ended although nothing goes wrong any more: each needs a reason, and there is none.
pub(crate) async fn never_ended(world: &World) {
    let mut line = Line::new(world.server.dial());
    for run in world.accepted() {
        let Ok(Some(stored)) = line.stored(&world.part(run.partition()), run).await else { continue };
        if !stored.record.state.is_finished() {
            let at_work = |step: &Step| if step.in_flight { " (in flight)" } else { "" };
            let steps: Vec<String> =
                stored.steps.iter().map(|(i, s)| format!("{i} {}{}", s.state, at_work(s))).collect();
            let mut left = places::left(&mut line, world, run.partition()).await;
            left.push(format!("gates: {}", world.gates.lock().expect("no panic")));
            let what = format!("{}: {}; left: {}", stored.record.state, steps.join(", "), left.join(", "));
            world.violated("ends", Some(run), what);
        }
    }
}

fn each(end: &End<'_>, check: fn(&World, RunId, &Stored) -> Verdict) -> Verdict {
    end.runs.iter().try_for_each(|(run, stored)| check(end.world, *run, stored))
}

impl End<'_> {
    async fn load(&mut self) -> Result<(), LinkError> {
        let runs: Vec<RunId> = self.world.ledger.borrow().runs.keys().copied().collect();
        for run in runs {
            if let Some(stored) = self.line.stored(&self.world.part(run.partition()), run).await? {
                self.runs.insert(run, stored);
            }
        }
        Ok(())
    }

    /// No run is lost that a log has taken. One that was cancelled before it came never began.
    async fn accepted(&mut self) -> Verdict {
        for run in self.world.accepted() {
            let keys = self.world.part(run.partition());
            let mut exists = redis::cmd("EXISTS");
            exists.arg(keys.tombstone(&run));
            let buried = self.line.one(exists).await.ok().as_ref().and_then(reply::number) == Some(1);
            let known = self.runs.contains_key(&run);
            must(known || buried, run, || "it was accepted, and is lost".into())?;
            must(!(known && buried) || self.world.was_set_back(run), run, || {
                "it was cancelled before it came, and ran".into()
            })?;
        }
        Ok(())
    }

    /// A command has one answer, however often it is sent and asked for; a run that says it was cancelled is.
    async fn answers(&mut self) -> Verdict {
        let commands = self.world.ledger.borrow().commands.clone();
        for (id, (run, verb, mut answers)) in
            commands.into_iter().filter(|(_, (run, ..))| !self.world.was_set_back(*run))
        {
            let mut get = redis::cmd("GET");
            get.arg(self.world.part(run.partition()).reply(&id));
            let found = self.line.one(get).await.map_err(|e| (None, e.to_string()))?;
            let last: Option<Reply> = reply::bytes(&found).and_then(|bytes| codec::unpack(bytes).ok());
            let last = last.and_then(|reply| reply.answers.into_iter().next());
            must(last.is_some(), run, || format!("{verb:?} has no answer"))?;
            answers.extend(last);
            must(answers.windows(2).all(|two| two[0] == two[1]), run, || format!("{verb:?}: {answers:?}"))?;
            let cancelled = matches!((&verb, answers.last()), (Verb::Cancel, Some(Answer::Done { .. })));
            let state = self.runs.get(&run).map(|stored| stored.record.state);
            let is = state.is_none_or(|state| state == State::Cancelled);
            must(!cancelled || is, run, || format!("its cancel was done, and it is {state:?}"))?;
        }
        Ok(())
    }
}

/// The server as the checkers see it.
pub(crate) fn line(world: &World) -> Line<impl Dial> {
    Line::new(world.server.dial())
}
