//! What a shell and a fleet would hold of one run, driven by nothing but the effects: an effect that is missing shows as a
//! run that never ends, one too many as a failed check.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    sync::Arc,
};

use stepfleet_coordinator::machine::{
    decide::{Mint, STEPS_PER_DECISION, decide},
    decision::{Decision, Effect, Transition, Why},
    event::{Event, Timer, Work},
    plan::Plan,
    rules::Rules,
    run::Run,
};
use stepfleet_protocol::{
    id::{CommandId, JobId, PartitionId, Reign, RunId, StreamId, WorkerId},
    limits::LOSSES_MAX,
    message::{Command, JobRef, NewRun, Verb},
    state::State,
};

/// Where the clock of a world begins, in Unix milliseconds.
pub(crate) const START_MS: u64 = 1_000_000;

/// One run, and everything around it.
pub(crate) struct World {
    pub(crate) run: Run,
    pub(crate) now_ms: u64,
    /// Steps in the ready set.
    pub(crate) ready: BTreeSet<u32>,
    /// Jobs on a stream or at a worker, with their step: a worker may hold one that the run gave up.
    pub(crate) jobs: BTreeMap<JobId, u32>,
    /// Jobs that were answered, with their step: what a doubled report names.
    pub(crate) answered: Vec<JobRef>,
    pub(crate) timers: BTreeMap<Timer, u64>,
    pub(crate) todo: VecDeque<Work>,
    /// Jobs that workers are told to stop.
    pub(crate) stops: BTreeSet<JobId>,
    /// Open dead letters with their step.
    pub(crate) letters: BTreeMap<StreamId, u32>,
    /// The packed form of every reason that was given.
    pub(crate) reasons: BTreeSet<u8>,
    /// Every move that was made: whether of a step, from, to.
    pub(crate) moves: BTreeSet<(bool, State, State)>,
    /// Every job of a step, oldest first.
    pub(crate) history: BTreeMap<u32, Vec<JobId>>,
    /// Every letter that was ever written, with its step.
    pub(crate) letters_ever: BTreeMap<StreamId, u32>,
    /// What is decided by.
    pub(crate) rules: Rules,
    /// Steps that somebody took the run back to: those run even if they were skipped.
    forced: BTreeSet<u32>,
    mint: Mint,
    seen: HashSet<JobId>,
    awaited: BTreeMap<u32, JobId>,
    last_letter: StreamId,
    run_state: State,
    states: Vec<State>,
    needs: Vec<Vec<usize>>,
}

impl World {
    /// A world in which nothing happened yet.
    pub(crate) fn new(plan: Arc<Plan>) -> Self {
        let states = vec![State::Created; plan.steps.len()];
        let mut needs = vec![Vec::new(); plan.steps.len()];
        for (need, step) in plan.steps.iter().enumerate() {
            step.dependants.iter().for_each(|index| needs[*index as usize].push(need));
        }
        Self {
            run: Run::new(RunId::new(PartitionId(0), START_MS, 7), plan),
            now_ms: START_MS,
            ready: BTreeSet::new(),
            jobs: BTreeMap::new(),
            answered: Vec::new(),
            timers: BTreeMap::new(),
            todo: VecDeque::new(),
            stops: BTreeSet::new(),
            letters: BTreeMap::new(),
            reasons: BTreeSet::new(),
            moves: BTreeSet::new(),
            history: BTreeMap::new(),
            letters_ever: BTreeMap::new(),
            rules: Rules::default(),
            forced: BTreeSet::new(),
            mint: Mint::new(Reign { counter: 1, random: 0xfe }, 0),
            seen: HashSet::new(),
            awaited: BTreeMap::new(),
            last_letter: StreamId::ZERO,
            run_state: State::Created,
            states,
            needs,
        }
    }

    /// A submit of the run.
    pub(crate) fn submit(&self) -> Event {
        let new = NewRun { run: self.run.id, plan: "hash".into(), version: None, input: None, traceparent: None };
        Event::Submitted { new, actor: "ann".into() }
    }

    /// A command about the run.
    pub(crate) fn command(&self, verb: Verb) -> Event {
        let id = CommandId(uuid::Uuid::from_u128(1));
        Event::Command(Command {
            id,
            actor: "ann".into(),
            run: self.run.id,
            reason: Some("why not".into()),
            verb,
            again: false,
            campaign: None,
        })
    }

    /// Where a job is: its stream entry tells nothing but itself.
    pub(crate) fn job_ref(&self, job: JobId, index: u32) -> JobRef {
        let queue = self.run.plan.steps[index as usize].queue.clone();
        JobRef { job, run: self.run.id, index, queue, entry: StreamId { ms: job.seq, seq: u64::from(job.n) } }
    }

    /// The worker of every job.
    pub(crate) fn worker() -> WorkerId {
        "w@000000000001".parse().expect("a worker's id")
    }

    /// Decides one event, in a commit of its own, and does what its effects say.
    pub(crate) fn apply(&mut self, event: Event) -> Decision {
        self.mint = Mint::new(self.mint.reign, self.mint.seq + 1);
        self.before(&event);
        let (acks, answers) = match &event {
            Event::Result { of, .. } | Event::Lost { of, .. } => (vec![(of.queue.clone(), of.entry)], 0),
            Event::Submitted { .. } | Event::Command(_) => (Vec::new(), 1),
            _ => (Vec::new(), 0),
        };
        let continued = if let Event::Continue(work) = &event { Some(*work) } else { None };
        let audited = matches!(event, Event::Audit { .. } | Event::AuditJob { .. });
        let decision = decide(&self.rules, &mut self.run, event, self.now_ms, &mut self.mint);
        // A step that expired or was resolved does not wait for its job any more, which is told to stop.
        let fenced = |index: &u32, job: &JobId| {
            let step = self.run.step(*index);
            let waits = step.in_flight && step.job == Some(*job);
            !waits && decision.effects.contains(&Effect::Stop(*job))
        };
        self.awaited.retain(|index, job| !fenced(index, job));
        self.follow(&decision.transitions);
        let mut acked = Vec::new();
        let mut answered = 0;
        for effect in &decision.effects {
            match effect {
                Effect::Ack { queue, entry } => acked.push((queue.clone(), *entry)),
                Effect::Answer(_) => answered += 1,
                Effect::Work(work) => {
                    let same = continued.filter(|before| before.kind == work.kind);
                    assert!(same.is_none_or(|before| work.next > before.next), "a part goes forward: {work:?}");
                    assert!(work.next > 0, "what goes on is told from what begins: {work:?}");
                }
                Effect::Ready { index } if audited => drop(self.ready.remove(index)),
                _ => {}
            }
            self.effect(effect);
        }
        assert_eq!(acked, acks, "each report is acked once, and nothing else is");
        assert_eq!(answered, answers, "each command is answered once");
        self.check(&decision);
        decision
    }

    /// What happens to the world by the event itself.
    fn before(&mut self, event: &Event) {
        match event {
            Event::Result { of, .. } | Event::Lost { of, .. } => {
                if self.jobs.remove(&of.job).is_some() {
                    self.answered.push(of.clone());
                }
                self.awaited.retain(|_, job| *job != of.job);
            }
            Event::Timer(timer) => {
                self.timers.remove(timer);
                if let Timer::Attempt { job, .. } = timer {
                    self.awaited.retain(|_, awaited| awaited != job);
                }
            }
            Event::Unrenderable { job, .. } | Event::Deferred { job, .. } | Event::AuditJob { job, .. } => {
                self.jobs.remove(job);
                self.awaited.retain(|_, awaited| awaited != job);
            }
            Event::Release { index } => drop(self.ready.remove(index)),
            Event::Continue(work) => self.todo.retain(|w| w != work),
            Event::Command(command) => {
                if let Verb::RetryFrom { index } = command.verb {
                    self.forced.insert(index);
                }
            }
            Event::Submitted { .. }
            | Event::Started { .. }
            | Event::FellBack { .. }
            | Event::Audit { .. }
            | Event::AuditLetter { .. }
            | Event::AuditRun
            | Event::AuditTimeout => {}
            Event::AuditWork => self.todo.clear(),
        }
    }

    fn follow(&mut self, transitions: &[Transition]) {
        for t in transitions {
            let state = match t.step {
                Some(index) => &mut self.states[index as usize],
                None => &mut self.run_state,
            };
            assert_eq!(*state, t.from, "{t} does not go on from where the history stands");
            let remark = t.from == t.to
                && (t.step.is_none()
                    || matches!(
                        t.why,
                        Why::Ignored
                            | Why::Repaired
                            | Why::Returned
                            | Why::DeliveryLost
                            | Why::Escalated
                            | Why::Discarded
                    )
                    || (t.why == Why::GaveUp && t.to == State::Failed));
            let reborn = t.step.is_some() && t.from.is_finished() && t.to == State::Created;
            assert!(remark || reborn || t.from.may_become(t.to), "illegal: {t}");
            assert!(t.at_ms <= self.now_ms, "{t} is in the future");
            *state = t.to;
            self.reasons.insert(t.why as u8);
            if t.from != t.to {
                self.moves.insert((t.step.is_some(), t.from, t.to));
            }
        }
        assert_eq!(self.run_state, self.run.state);
    }

    fn effect(&mut self, effect: &Effect) {
        match effect {
            Effect::Ready { index } => {
                assert_eq!(self.run.step(*index).state, State::Queued);
                assert!(self.ready.insert(*index), "step {index} is ready twice");
            }
            Effect::Unready { index } => assert!(self.ready.remove(index), "step {index} was not ready"),
            Effect::Dispatch { index, job, attempt, max_attempts } => {
                self.dispatch(*index, *job, *attempt, *max_attempts)
            }
            Effect::SetTimer { due_ms, timer } => {
                assert!(
                    *due_ms >= self.now_ms || matches!(timer, Timer::Attempt { .. }),
                    "{timer:?} is due in the past"
                );
                self.timers.insert(*timer, *due_ms);
            }
            Effect::ClearTimer { timer } => {
                let cleared = self.timers.remove(timer).is_some();
                assert!(cleared || *timer == Timer::Run, "{timer:?} was not set");
            }
            Effect::Letter(letter) => {
                assert!(letter.id > self.last_letter, "ids of letters grow");
                assert_eq!(self.run.step(letter.index).state, State::Failed);
                assert!(letter.attempts.iter().all(|e| e.index == letter.index) && !letter.attempts.is_empty());
                self.last_letter = letter.id;
                self.letters.insert(letter.id, letter.index);
                self.letters_ever.insert(letter.id, letter.index);
            }
            Effect::CloseLetter(id) => assert!(self.letters.remove(id).is_some(), "{id} was not open"),
            Effect::Work(work) => self.todo.push_back(*work),
            Effect::Stop(job) => drop(self.stops.insert(*job)),
            Effect::Stopped(job) => drop(self.stops.remove(job)),
            Effect::Ack { .. }
            | Effect::SaveOutput { .. }
            | Effect::SaveResolved { .. }
            | Effect::DropValue { .. }
            | Effect::SaveInput { .. }
            | Effect::SavePatch { .. }
            | Effect::KeepError(_)
            | Effect::Answer(_) => {}
        }
    }

    fn dispatch(&mut self, index: u32, job: JobId, attempt: u32, max_attempts: u32) {
        assert!(self.seen.insert(job), "{job} is not fresh");
        let step = self.run.step(index);
        self.undone_in_order(index);
        let counted = |attempt: u32| (step.spent + 1..=step.attempts).contains(&attempt);
        let last = self.run.errors.iter().rev().find(|e| e.index == index && counted(e.attempt));
        let category = last.map(|e| e.failure.category);
        let budget = self.rules.max_attempts(&self.run.plan, &self.run.plan.steps[index as usize], category);
        let promised = (step.spent + budget).max(attempt);
        assert_eq!((attempt, max_attempts), (step.attempts + 1, promised), "step {index}: its budget");
        let before = self.awaited.insert(index, job);
        assert_eq!(before, None, "step {index} has two jobs in flight");
        assert!(attempt <= max_attempts, "attempt {attempt} of {max_attempts}");
        assert!(self.run.ending.is_none() && self.run.state != State::Suspended, "a held run dispatches nothing");
        for need in &self.needs[index as usize] {
            let borne = self.run.step(*need as u32).tolerated || self.forced.contains(&index);
            assert!(borne || self.states[*need] == State::Completed, "step {index} needs step {need}");
        }
        self.jobs.insert(job, index);
        self.history.entry(index).or_default().push(job);
    }

    /// A step is undone only if it is completed, and everything that was done behind it is undone already.
    fn undone_in_order(&self, index: u32) {
        let Some(undoes) = self.run.plan.steps[index as usize].undoes else { return };
        assert_eq!(self.states[undoes.of as usize], State::Completed, "step {} is undone", undoes.of);
        for dependant in &self.run.plan.steps[undoes.of as usize].dependants {
            let mut all = self.run.plan.steps.iter().zip(&self.states);
            let undo = all.find(|(s, _)| s.undoes.is_some_and(|u| u.of == *dependant));
            let open = self.states[*dependant as usize] == State::Completed;
            assert!(!open || undo.is_none_or(|(_, state)| *state == State::Completed), "{dependant} goes first");
        }
    }

    fn check(&self, decision: &Decision) {
        self.run.check_invariants().expect("what must hold after every decision");
        assert!(decision.transitions.len() <= 4 * STEPS_PER_DECISION, "a decision is bounded");
        for (index, step) in (0u32..).zip(self.run.steps()) {
            assert_eq!(step.state, self.states[index as usize], "step {index}: the history says otherwise");
            assert!(step.losses <= LOSSES_MAX);
            let awaited = self.awaited.get(&index).copied();
            assert_eq!(awaited, step.job.filter(|_| step.in_flight), "step {index}: what it waits for");
            let retrying = step.job.is_some_and(|job| self.timers.contains_key(&Timer::Retry { index, job }));
            assert_eq!(step.state == State::Retrying, retrying, "step {index}: a retry has its timer");
            let ready = step.state == State::Queued && !step.in_flight;
            assert_eq!(ready, self.ready.contains(&index), "step {index}: ready");
            let start = Timer::Start { index, by_ms: step.start_by_ms };
            assert_eq!(step.start_by_ms > 0, self.timers.contains_key(&start), "step {index}: its limit has its timer");
            let open = step.letter.filter(|letter| self.letters.get(letter) == Some(&index));
            assert_eq!(open, step.letter, "step {index}: its letter is open");
        }
        assert_eq!(self.run.work as usize, self.todo.len(), "work items");
    }
}
