//! Clients that submit, and operators that wish for things: each repeats what it does not know the fate of.

use std::rc::Rc;

use stepfleet_coordinator::store::{gates, workflows};
use stepfleet_protocol::{
    codec,
    gate::Gate,
    id::{CommandId, PartitionId, RunId},
    message::{Answer, Body, Command, NewRun, Reply, Resolution, Submit, Verb},
    state::State,
    workflow::Workflow,
};
use uuid::Uuid;

use super::{
    process::{Process, ProcessDial},
    world::Submitted,
};
use crate::{
    fleet::{Line, Stored},
    name,
};

/// Runs of a story.
const RUNS: std::ops::Range<u64> = 6..12;

/// Somebody at a terminal.
pub(crate) struct Person {
    process: Rc<Process>,
    line: Line<ProcessDial>,
}

impl Person {
    pub(crate) fn new(process: &Rc<Process>) -> Self {
        Self { process: process.clone(), line: Line::new(process.dial()) }
    }

    /// Submits runs for a while.
    pub(crate) async fn submit_all(mut self) {
        let world = self.process.world.clone();
        for _ in 0..world.draw(RUNS) {
            world.pause(1..3_000).await;
            let partition = PartitionId(world.draw(0..u64::from(world.partitions)) as u16);
            let run = RunId::new(partition, world.server_ms(), world.id());
            let workflow = super::plans::draw(&world);
            let new = Submitted { workflow: workflow.clone(), accepted: false };
            world.ledger.borrow_mut().runs.insert(run, new);
            world.tell(Some(run), format!("a client submits `{}`", workflow.workflow));
            let early = world.chance(0.06);
            if early {
                // Its submit is on its way for long, and somebody cancels it by the id that an earlier copy told.
                self.command(run, Verb::Cancel).await;
            }
            self.submit(run, &workflow, early).await;
            if world.chance(0.2) {
                // Its answer did not reach the client: the same key, the same run.
                self.submit(run, &workflow, true).await;
            }
        }
        world.all_submitted.set(true);
    }

    /// Submits a run until the log has it.
    pub(crate) async fn submit(&mut self, run: RunId, workflow: &Workflow, mut again: bool) {
        let world = self.process.world.clone();
        let plan = workflows::Stored::new(workflow);
        let keys = world.part(run.partition());
        let id = CommandId(Uuid::from_u128(u128::from(world.id())));
        loop {
            let mut set = redis::cmd("SET");
            set.arg(keys.plan(&plan.hash)).arg(&plan.bytes[..]).arg("NX");
            let new = NewRun { run, plan: plan.hash.clone(), version: None, input: None, traceparent: None };
            let body = Body::Submit(Submit { id, actor: "client".into(), runs: vec![new], again });
            if self.line.one(set).await.is_ok() && self.line.append(&keys, body).await.is_ok() {
                break;
            }
            again = true;
            world.pause(20..200).await;
        }
        if let Some(submitted) = world.ledger.borrow_mut().runs.get_mut(&run) {
            submitted.accepted = true;
        }
    }

    /// Sends a command until the log has it, sometimes once more, and reads its answer, twice.
    pub(crate) async fn command(&mut self, run: RunId, verb: Verb) {
        let world = self.process.world.clone();
        let id = CommandId(Uuid::from_u128(u128::from(world.id())));
        world.ledger.borrow_mut().commands.insert(id, (run, verb.clone(), Vec::new()));
        world.tell(Some(run), format!("an operator wishes {verb:?}"));
        self.send(run, id, &verb, false).await;
        for _ in 0..2 {
            world.pause(200..900).await;
            if let Some(answer) = self.answer(run.partition(), id).await {
                world.ledger.borrow_mut().commands.get_mut(&id).expect("just put there").2.push(answer);
            }
            if world.chance(0.15) {
                // Its answer did not reach the operator.
                self.send(run, id, &verb, true).await;
            }
        }
    }

    async fn send(&mut self, run: RunId, id: CommandId, verb: &Verb, mut again: bool) {
        let world = self.process.world.clone();
        let keys = world.part(run.partition());
        loop {
            let (actor, verb) = ("operator".to_owned(), verb.clone());
            let command = Command { id, actor, run, reason: None, verb, again, campaign: None };
            if self.line.append(&keys, Body::Command(command)).await.is_ok() {
                return;
            }
            again = true;
            world.pause(20..200).await;
        }
    }

    async fn answer(&mut self, partition: PartitionId, id: CommandId) -> Option<Answer> {
        let mut get = redis::cmd("GET");
        get.arg(self.process.world.part(partition).reply(&id));
        let found = self.line.one(get).await.ok()?;
        let reply: Reply = codec::unpack(stepfleet_coordinator::store::reply::bytes(&found)?).ok()?;
        reply.answers.into_iter().next()
    }

    /// Reads a run until that works.
    async fn look(&mut self, run: RunId) -> Option<Stored> {
        let world = self.process.world.clone();
        loop {
            match self.line.stored(&world.part(run.partition()), run).await {
                Ok(found) => return found,
                Err(_) => world.pause(20..200).await,
            }
        }
    }

    /// Wishes for this and that while the story lasts.
    pub(crate) async fn meddle(mut self) {
        let world = self.process.world.clone();
        while !world.calm.get() {
            world.pause(500..5_000).await;
            let runs: Vec<RunId> = world.accepted().into_iter().collect();
            if world.calm.get() || runs.is_empty() {
                continue;
            }
            let run = *world.pick(&runs);
            let Some(stored) = self.look(run).await else { continue };
            let verb = self.wish(&stored, world.workflow(run).map_or(1, |w| w.steps.len() as u64));
            self.command(run, verb).await;
        }
    }

    fn wish(&self, stored: &Stored, steps: u64) -> Verb {
        let world = &self.process.world;
        let index = world.draw(0..steps) as u32;
        let letter = stored.steps.iter().find_map(|(index, step)| Some((*index, step.letter?)));
        match (letter, stored.record.state) {
            (Some((index, letter)), _) if world.chance(0.4) => match world.draw(0..4) {
                0 => Verb::Discard { index, letter },
                _ => Verb::Replay { index, letter, input: None },
            },
            (_, State::Failed) if world.chance(0.6) => Verb::Retry,
            (_, State::Suspended) if world.chance(0.7) => Verb::Resume,
            _ => match world.draw(0..12) {
                0 => Verb::Cancel,
                1..4 => Verb::Suspend { now: true },
                4..6 => Verb::Suspend { now: false },
                6 => Verb::Resume,
                7 => Verb::Retry,
                8 => Verb::RetryFrom { index },
                9 => Verb::Resolve { index, resolution: Resolution::Completed(None) },
                10 => Verb::Resolve { index, resolution: Resolution::Failed("by hand".into()) },
                _ => Verb::Compensate,
            },
        }
    }

    /// Opens and closes gates while the story lasts; in the end everything may pass.
    pub(crate) async fn turn_gates(mut self) {
        let world = self.process.world.clone();
        let bank = Gate::target("bank");
        let queue = Gate::queue(&name("slow"));
        while !world.calm.get() {
            world.pause(3_000..15_000).await;
            match world.draw(0..4) {
                0 => self.pause_queue(&queue, "pause").await,
                1 => self.pause_queue(&queue, "resume").await,
                2 => self.act(&bank, "open").await,
                _ => self.act(&bank, "close").await,
            }
            world.bank_is_down.set(world.chance(0.4));
        }
        world.bank_is_down.set(false);
        self.pause_queue(&queue, "resume").await;
        self.act(&bank, "close").await;
    }

    async fn pause_queue(&mut self, gate: &Gate, what: &str) {
        let world = self.process.world.clone();
        world.tell(None, format!("{what} {gate}"));
        let mut eval = redis::cmd("EVAL");
        eval.arg(gates::QUEUE_PAUSE).arg(2).arg(world.keys.fleet_gates()).arg(world.keys.fleet_audit());
        eval.arg(gate.as_str()).arg(what).arg("operator").arg("a test");
        while self.line.one(eval.clone()).await.is_err() {
            world.pause(20..200).await;
        }
    }

    async fn act(&mut self, gate: &Gate, what: &str) {
        let world = self.process.world.clone();
        world.tell(None, format!("{what} {gate}"));
        let rules = world.known.borrow().rules.clone();
        let mut eval = gates::breaker(&world.keys, gate, &rules.breaker_of(gate), what);
        eval.arg("operator").arg("a test").arg(5_000);
        while self.line.one(eval.clone()).await.is_err() {
            world.pause(20..200).await;
        }
    }

    /// When all is calm: what is held goes on, and what failed is left as it is.
    pub(crate) async fn tidy_up(&mut self) -> usize {
        let world = self.process.world.clone();
        let mut open = 0;
        for run in world.accepted() {
            let stored = self.look(run).await;
            // One that was buried before it came never will be there.
            let Some(stored) = stored else { continue };
            let state = Some(stored.record.state);
            open += usize::from(!state.is_some_and(State::is_finished));
            if state == Some(State::Suspended) {
                let verb = if world.chance(0.5) { Verb::Resume } else { Verb::Retry };
                self.command(run, verb).await;
            }
        }
        open
    }
}
