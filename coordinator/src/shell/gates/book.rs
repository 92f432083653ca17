//! What one owner keeps in mind of gates: who is parked, who may try, what was counted.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use stepfleet_protocol::{
    gate::{Gate, Stand},
    id::{JobId, PartitionId, RunId},
    message::Outcome,
    name::Name,
};

use super::{
    Granting, Inbox, Say, Tally, Verdict, View,
    pass::{Leave, Parked, Pass},
    shares::{Permit, Shares, Waiting},
};
use crate::{machine::rules::Rules, mutants::mutant, shell::upkeep::is_due, store::limits::Held};

/// Time between two tellings of what was counted, while nothing fails.
const TELL_EVERY_MS: u64 = 1_000;
/// Time after which tokens are wished for again.
const WISH_EVERY_MS: u64 = 500;
/// Time between two words that a job that tries is still at it. A token holds for 30 s.
const HOLD_EVERY_MS: u64 = 10_000;
/// How much longer each wave of a recovery is than the one before it, once a second.
const WAVE_MS: u64 = 1_000;
/// Steps that one look at a gate takes.
const UNPARK_MAX: u64 = 400;

/// What one owner keeps in mind of gates.
#[derive(Debug, Default)]
pub struct Book {
    view: Arc<View>,
    parked: BTreeMap<Gate, Parked>,
    /// Tokens that no job has yet.
    tokens: BTreeMap<Gate, Vec<String>>,
    /// When tokens were last wished for.
    wished_ms: BTreeMap<Gate, u64>,
    /// Jobs that try.
    canaries: BTreeMap<JobId, (Gate, String)>,
    held_ms: u64,
    tallies: BTreeMap<Gate, Tally>,
    told_ms: u64,
    urgent: bool,
    ended: Vec<(Gate, String, Verdict)>,
    look: bool,
    /// The gates of handlers, if their circuit breakers open by themselves, by the rules of this version.
    of_handlers: HashMap<Name, Option<Gate>>,
    rules: u64,
    shares: Shares,
    /// This partition, and the counter of this reign.
    me: (PartitionId, u64),
    now_ms: u64,
}

impl Book {
    /// The book of a reign. `held`: the jobs that count against limits; `stopping`: those that workers are to stop.
    pub fn new(me: (PartitionId, u64), held: Vec<(JobId, Held)>, stopping: &[JobId], now_ms: u64) -> Self {
        let mut book = Self { me, now_ms, ..Self::default() };
        book.shares.load(held, now_ms);
        stopping.iter().for_each(|job| book.shares.stops(*job));
        book
    }

    /// Takes the limits of these rules.
    pub fn follow(&mut self, rules: &Rules) {
        self.shares.follow(rules);
    }

    /// Takes a new view. Tokens of gates that nobody has to try any more are void.
    pub fn see(&mut self, view: Arc<View>) {
        self.tokens.retain(|gate, _| view.gates.get(gate).is_some_and(|g| g.stand == Stand::HalfOpen));
        self.view = view;
    }

    /// The present view.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Whether nothing is held back and nobody is parked: the hot path pays for nothing more.
    pub fn is_idle(&self) -> bool {
        self.view.gates.is_empty() && self.parked.is_empty() && self.shares.is_idle()
    }

    /// Whether something is awaited that may come any moment.
    pub fn waits(&self) -> bool {
        self.shares.waits(waiting(&self.parked, &self.view, &self.tokens))
    }

    /// Whether nothing of what is kept here can change by itself.
    pub fn is_quiet(&self) -> bool {
        self.view.gates.is_empty() && self.parked.is_empty() && self.shares.is_quiet()
    }

    /// Whether a step may pass now. While a dependency recovers, what is parked goes first.
    pub fn pass(&mut self, gate: &Gate, was_parked: bool) -> Pass {
        let canary = match self.view.gates.get(gate).map(|state| state.stand) {
            None => None,
            Some(Stand::Recovering) if was_parked || !self.parked.contains_key(gate) => None,
            Some(Stand::Open | Stand::Paused | Stand::Recovering) => return Pass::Blocked,
            Some(Stand::HalfOpen) => match self.tokens.get_mut(gate).and_then(Vec::pop) {
                None => return Pass::Blocked,
                token => token,
            },
        };
        let leave = |canary, permit| Leave { gate: gate.clone(), canary, permit };
        match self.shares.take(gate) {
            Permit::NotNeeded => Pass::May(canary.map(|token| leave(Some(token), false))),
            Permit::Taken => Pass::May(Some(leave(canary, true))),
            Permit::Full => {
                self.give_back(leave(canary, false));
                Pass::Full
            }
        }
    }

    /// Whether a step would have to wait for its gate's limit: what is parked goes first, unless the step is the heir of a
    /// job that has just ended.
    pub fn is_full(&mut self, gate: &Gate, goes_first: bool) -> bool {
        if self.shares.is_idle() {
            return false;
        }
        self.shares.is_full(gate) || self.is_behind(gate, goes_first)
    }

    /// Whether a step has to wait behind what is parked for the gate's limit.
    pub fn is_behind(&self, gate: &Gate, goes_first: bool) -> bool {
        !goes_first && self.is_limited(gate) && self.has_parked(gate)
    }

    /// Whether a step of this priority may take the place of one that is parked: none of them is more urgent.
    pub fn may_inherit(&self, gate: &Gate, priority: u8) -> bool {
        self.parked.get(gate).is_none_or(|parked| parked.urgent <= priority)
    }

    fn is_limited(&self, gate: &Gate) -> bool {
        self.shares.room(gate).is_some()
    }

    /// Whether somebody may try.
    pub fn has_tokens(&self, gate: &Gate) -> bool {
        self.tokens.get(gate).is_some_and(|tokens| !tokens.is_empty())
    }

    /// A leave that was not used.
    pub fn give_back(&mut self, leave: Leave) {
        if leave.permit {
            self.shares.give_back(&leave.gate);
        }
        if let Some(token) = leave.canary {
            self.tokens.entry(leave.gate).or_default().push(token);
        }
    }

    /// A job begins with this leave. Returns what has to be written down of it.
    pub fn begins(&mut self, job: JobId, leave: Leave, of: (RunId, u32)) -> Option<Held> {
        if let Some(token) = leave.canary {
            self.canaries.insert(job, (leave.gate.clone(), token));
        }
        if leave.permit { self.shares.begins(job, leave.gate, of, self.now_ms) } else { None }
    }

    /// Jobs that count against limits and have not been heard of for long.
    pub fn due_checks(&mut self) -> Vec<(JobId, RunId, u32)> {
        self.shares.due_checks(self.now_ms)
    }

    /// Jobs that count against no limit any more, for the next commit.
    pub fn take_released(&mut self) -> Vec<JobId> {
        self.shares.take_released()
    }

    /// Nobody waits for a job any more, and its worker is told to stop.
    pub fn stops(&mut self, job: JobId) {
        self.ended(job, Verdict::None);
        self.shares.stops(job);
    }

    /// A job is over, however it ended. Returns the gate whose limit it counted against.
    pub fn over(&mut self, job: JobId) -> Option<Gate> {
        self.shares.ended(job)
    }

    /// Jobs that count against limits.
    pub fn held(&self) -> usize {
        self.shares.held()
    }

    /// Counts a result that its step waited for.
    #[expect(clippy::too_many_arguments, reason = "one call, and a struct for it would only move the list")]
    pub fn count(&mut self, job: JobId, gate: Option<&Gate>, handler: &Name, outcome: &Outcome, rules: &Rules) {
        self.ended(job, Verdict::of(outcome));
        let gate = match gate {
            Some(gate) => Some(gate.clone()),
            None => self.gate_of(handler, rules),
        };
        let Some(gate) = gate else { return };
        let mut one = Tally::default();
        if one.count(outcome) {
            self.tallies.entry(gate).or_default().add(&one);
            self.urgent |= one.failed > 0;
        }
    }

    /// The gate of a handler, if its results are to be counted.
    fn gate_of(&mut self, handler: &Name, rules: &Rules) -> Option<Gate> {
        if self.rules != rules.version {
            self.rules = rules.version;
            self.of_handlers.clear();
        }
        if let Some(known) = self.of_handlers.get(handler) {
            return known.clone();
        }
        let gate = rules.breaker_of_handler(handler).enabled.then(|| Gate::handler(handler));
        self.of_handlers.insert(handler.clone(), gate.clone());
        gate
    }

    /// What became of a job, if it tries.
    pub fn ended(&mut self, job: JobId, verdict: Verdict) {
        if !self.canaries.is_empty()
            && !mutant("token_leaks")
            && let Some((gate, token)) = self.canaries.remove(&job)
        {
            self.ended.push((gate, token, verdict));
            self.urgent = true;
        }
    }

    /// A worker handed a job back for a gate.
    pub fn handed_back(&mut self) {
        self.look = true;
    }

    /// So many steps are parked at the gate, as it was read.
    pub fn set_parked(&mut self, gate: &Gate, count: u64) {
        if count == 0 {
            self.parked.remove(gate);
        } else {
            let unknown = || Parked { urgent: u8::MAX, ..Parked::default() };
            self.parked.entry(gate.clone()).or_insert_with(unknown).count = count;
        }
    }

    /// A step of this priority is parked. True if it is the first at its gate.
    pub fn park(&mut self, gate: &Gate, priority: u8) -> bool {
        let first = !self.parked.contains_key(gate);
        let parked = self.parked.entry(gate.clone()).or_default();
        parked.count += 1;
        parked.urgent = parked.urgent.max(priority);
        first
    }

    /// Steps came back from the gate.
    pub fn unpark(&mut self, gate: &Gate, count: u64) {
        if let Some(parked) = self.parked.get_mut(gate) {
            parked.looked_at = false;
            parked.count = parked.count.saturating_sub(count);
            parked.released += count;
        }
    }

    /// Gates at which somebody is parked.
    pub fn parked(&self) -> impl Iterator<Item = (&Gate, u64)> {
        self.parked.iter().map(|(gate, parked)| (gate, parked.count))
    }

    /// Whether steps are parked at this gate.
    pub fn has_parked(&self, gate: &Gate) -> bool {
        self.parked.contains_key(gate)
    }

    /// Gates whose parked steps may go now, with how many; each is looked at once until [`Self::unpark`].
    pub fn passable(&mut self, now_ms: u64) -> Vec<(Gate, u64)> {
        let mut out = Vec::new();
        for (gate, parked) in &mut self.parked {
            if parked.looked_at {
                continue;
            }
            let count = match self.view.gates.get(gate) {
                None => UNPARK_MAX,
                Some(state) => match state.stand {
                    Stand::Open | Stand::Paused => 0,
                    Stand::HalfOpen => self.tokens.get(gate).map_or(0, |t| t.len() as u64),
                    Stand::Recovering => {
                        if parked.since_ms != state.since_ms {
                            (parked.since_ms, parked.released) = (state.since_ms, 0);
                        }
                        let wave = (now_ms.saturating_sub(state.since_ms) / WAVE_MS).min(20);
                        let first = u64::from(state.canaries.max(1)).div_ceil(self.view.partitions.max(1));
                        (first << wave).saturating_sub(parked.released)
                    }
                },
            };
            let count = count.min(self.shares.room(gate).unwrap_or(UNPARK_MAX));
            if count > 0 {
                parked.looked_at = true;
                out.push((gate.clone(), count.min(UNPARK_MAX)));
            }
        }
        out
    }

    /// Whether something may have been granted.
    pub(super) fn expects(&self) -> bool {
        !self.wished_ms.is_empty() || !self.shares.is_idle()
    }

    pub(super) fn take_granted(&mut self, granted: Granting, now_ms: u64) {
        self.shares.answered(granted.shares, now_ms);
        for (gate, tokens) in granted.tokens {
            self.wished_ms.remove(&gate);
            if self.view.gates.get(&gate).is_some_and(|g| g.stand == Stand::HalfOpen) {
                self.tokens.entry(gate).or_default().extend(tokens);
            } else {
                // The view is older than the grant, or newer: another owner, or another try, may have it.
                self.ended.extend(tokens.into_iter().map(|token| (gate.clone(), token, Verdict::None)));
            }
        }
    }

    /// What the pump has to know now.
    pub(super) fn words(&mut self, now_ms: u64, inbox: &Inbox) -> Vec<Say> {
        self.now_ms = now_ms;
        if !self.shares.is_idle() {
            self.parked.keys().for_each(|gate| self.shares.wants(gate));
        }
        let shares = self.shares.words(self.me, now_ms, waiting(&self.parked, &self.view, &self.tokens));
        let mut out: Vec<Say> = shares.into_iter().map(|(gate, tell)| Say::Share(gate, tell, inbox.clone())).collect();
        let due = is_due(self.told_ms, TELL_EVERY_MS, now_ms);
        if !self.tallies.is_empty() && (self.urgent || due) {
            out.extend(std::mem::take(&mut self.tallies).into_iter().map(|(gate, tally)| Say::Counted(gate, tally)));
            self.told_ms = now_ms + TELL_EVERY_MS;
        }
        self.urgent = false;
        out.extend(self.ended.drain(..).map(|(gate, token, verdict)| Say::Canary(gate, token, verdict)));
        // Whoever has nobody to let through leaves it to others.
        for (gate, tokens) in &mut self.tokens {
            if !self.parked.contains_key(gate) {
                out.extend(tokens.drain(..).map(|token| Say::Canary(gate.clone(), token, Verdict::None)));
            }
        }
        self.tokens.retain(|_, tokens| !tokens.is_empty());
        let held = !self.canaries.is_empty() || !self.tokens.is_empty();
        if held && is_due(self.held_ms, HOLD_EVERY_MS, now_ms) {
            self.held_ms = now_ms + HOLD_EVERY_MS;
            let free = self.tokens.iter().flat_map(|(gate, all)| all.iter().map(move |token| (gate, token)));
            let used = self.canaries.values().map(|(gate, token)| (gate, token));
            out.extend(free.chain(used).map(|(g, t)| Say::Canary(g.clone(), t.clone(), Verdict::Held)));
        }
        for (gate, parked) in &self.parked {
            let state = self.view.gates.get(gate).filter(|g| g.stand == Stand::HalfOpen);
            let wished = self.wished_ms.get(gate).is_some_and(|at| !is_due(*at, WISH_EVERY_MS, now_ms));
            if let Some(state) = state
                && !wished
                && self.tokens.get(gate).is_none_or(Vec::is_empty)
            {
                self.wished_ms.insert(gate.clone(), now_ms + WISH_EVERY_MS);
                let count = u64::from(state.canaries).min(parked.count.max(1));
                out.push(Say::Wants(gate.clone(), u32::try_from(count).unwrap_or(u32::MAX), inbox.clone()));
            }
        }
        self.wished_ms.retain(|gate, _| self.view.gates.get(gate).is_some_and(|g| g.stand == Stand::HalfOpen));
        if std::mem::take(&mut self.look) {
            out.push(Say::Look);
        }
        out
    }
}

/// What is parked at a gate, and how much of it the circuit breaker lets pass.
fn waiting<'a>(
    parked: &'a BTreeMap<Gate, Parked>,
    view: &'a View,
    tokens: &'a BTreeMap<Gate, Vec<String>>,
) -> impl Fn(&Gate) -> Waiting + use<'a> {
    |gate| {
        let parked = parked.get(gate).map_or(0, |parked| parked.count);
        let able = match view.gates.get(gate).map(|state| state.stand) {
            None | Some(Stand::Recovering) => parked,
            Some(Stand::Open | Stand::Paused) => 0,
            Some(Stand::HalfOpen) => parked.min(tokens.get(gate).map_or(0, |tokens| tokens.len() as u64)),
        };
        Waiting { parked, able }
    }
}
