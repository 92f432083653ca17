//! A decision as text: a line for each move and effect, and one line for neighbours of which the same is said.

use std::fmt::Write;

use stepfleet_coordinator::machine::{
    decision::{Decision, Effect, Letter, Transition},
    event::Timer,
    run::{Step, Undoing},
};
use stepfleet_protocol::{
    id::{JobId, StreamId},
    message::Answer,
    value::Payload,
};

use super::world::World;

/// What is said, of a step or of the run.
type Line = (Option<u32>, String);

impl World {
    /// The whole outcome of one event and of the releases that follow at once, indented.
    pub(crate) fn render(&self, decisions: &[Decision]) -> String {
        let mut lines: Vec<Line> = Vec::new();
        for decision in decisions {
            lines.extend(decision.transitions.iter().map(|t| self.transition(t)));
            lines.extend(decision.effects.iter().map(|e| self.effect_line(e)));
        }
        if lines.is_empty() { "  nothing\n".into() } else { self.fold(&lines) }
    }

    /// Where the run and its steps stand, indented.
    pub(crate) fn show(&self) -> String {
        let run = &self.run;
        let mut text = format!("  run {}", run.state);
        for (what, count) in [
            ("active", run.active),
            ("completed", run.completed),
            ("failed", run.failed),
            ("tolerated", run.tolerated),
            ("skipped", run.skipped),
            ("work", run.work),
        ] {
            if count > 0 {
                write!(text, ", {count} {what}").expect("text takes everything");
            }
        }
        if run.undoing != Undoing::None {
            write!(text, ", undoing {:?}", run.undoing).expect("text takes everything");
        }
        let step = |s: &Step| {
            let generation = if s.generation > 1 { format!(", generation {}", s.generation) } else { String::new() };
            format!("{}{generation}{}", s.state, if s.patched { ", patched" } else { "" })
        };
        let shown = if run.undoing == Undoing::None { run.plan.regular as usize } else { run.steps().len() };
        let lines: Vec<Line> = (0u32..).zip(&run.steps()[..shown]).map(|(i, s)| (Some(i), step(s))).collect();
        text + "\n" + &self.fold(&lines)
    }

    fn fold(&self, lines: &[Line]) -> String {
        let mut out = String::new();
        let mut at = 0;
        while at < lines.len() {
            let (first, text) = &lines[at];
            let follows = |n: usize| first.is_some_and(|f| lines[at + n] == (Some(f + n as u32), text.clone()));
            let count = 1 + (1..lines.len() - at).take_while(|n| follows(*n)).count();
            let name = |index: Option<u32>| index.map_or("run".into(), |i| self.name(i));
            let last = lines[at + count - 1].0;
            let of = if count == 1 { name(*first) } else { format!("{}..{}", name(*first), name(last)) };
            writeln!(out, "  {of} {text}").expect("text takes everything");
            at += count;
        }
        out
    }

    /// The step's name, with `/undo` if it undoes the one of that name.
    pub(crate) fn name(&self, index: u32) -> String {
        let step = &self.run.plan.steps[index as usize];
        format!("{}{}", step.name, if step.undoes.is_some() { "/undo" } else { "" })
    }

    fn transition(&self, t: &Transition) -> Line {
        let why = serde_json::to_value(t.why).expect("a reason is a word");
        let why = why.as_str().expect("a reason is a word");
        let mut text =
            if t.from == t.to { format!("is {}: {why}", t.to) } else { format!("{} -> {}: {why}", t.from, t.to) };
        if t.attempt > 0 {
            write!(text, " #{}", t.attempt).expect("text takes everything");
        }
        if t.at_ms != self.now_ms {
            write!(text, " at {}", self.moment(t.at_ms)).expect("text takes everything");
        }
        for (what, who) in
            [("on", t.worker.as_ref().map(ToString::to_string)), ("by", t.actor.as_ref().map(ToString::to_string))]
        {
            if let Some(who) = who {
                write!(text, " {what} {}", who.split('@').next().unwrap_or_default()).expect("text takes everything");
            }
        }
        if let Some(note) = &t.note {
            write!(text, " \"{note}\"").expect("text takes everything");
        }
        (t.step, text)
    }

    /// Relative to now.
    fn moment(&self, at_ms: u64) -> String {
        if at_ms >= self.now_ms { format!("+{}ms", at_ms - self.now_ms) } else { format!("-{}ms", self.now_ms - at_ms) }
    }

    /// The step of a job, and which of its jobs it is.
    fn job_of(&self, job: JobId) -> (Option<u32>, String) {
        let place = |jobs: &Vec<JobId>| jobs.iter().position(|j| *j == job);
        let found = self.history.iter().find_map(|(index, jobs)| place(jobs).map(|n| (*index, n + 1)));
        found.map_or((None, "unknown job".into()), |(index, n)| (Some(index), format!("job {n}")))
    }

    fn letter_of(&self, id: StreamId) -> Option<u32> {
        self.letters_ever.get(&id).copied()
    }

    fn timer(&self, timer: Timer) -> Line {
        match timer {
            Timer::Run => (None, "time-out".into()),
            Timer::Retry { index, job } => (Some(index), format!("retry of {}", self.job_of(job).1)),
            Timer::Attempt { index, job } => (Some(index), format!("time-out of {}", self.job_of(job).1)),
            Timer::Start { index, .. } => (Some(index), "start".into()),
        }
    }

    fn letter(letter: &Letter) -> String {
        let attempts: Vec<String> =
            letter.attempts.iter().map(|e| format!("#{} {}", e.attempt, e.failure.category)).collect();
        let cause = serde_json::to_value(letter.cause).expect("a cause is a word");
        let entry = if letter.of.is_some() { "" } else { ", no entry" };
        format!(
            "LETTER {}/{}: {}{entry}",
            cause.as_str().expect("a cause is a word"),
            letter.category,
            attempts.join(", ")
        )
    }

    fn effect_line(&self, effect: &Effect) -> Line {
        let size = |value: &Payload| match value {
            Payload::Inline(bytes) => format!("{} bytes", bytes.len()),
            Payload::Ref(value) => format!("reference to {} bytes", value.bytes),
        };
        match effect {
            Effect::Ready { index } => (Some(*index), "+ ready".into()),
            Effect::Unready { index } => (Some(*index), "- ready".into()),
            Effect::Dispatch { index, job, attempt, max_attempts } => {
                (Some(*index), format!("DISPATCH {} as try {attempt} of {max_attempts}", self.job_of(*job).1))
            }
            Effect::Ack { entry, .. } => {
                let job = self.history.values().flatten().find(|j| (j.seq, u64::from(j.n)) == (entry.ms, entry.seq));
                let (of, text) = job.map_or((None, "unknown job".into()), |job| self.job_of(*job));
                (of, format!("ack {text}"))
            }
            Effect::SaveOutput { job, output } => {
                let (of, text) = self.job_of(*job);
                (of, format!("save output of {text}: {}", size(output)))
            }
            Effect::SaveResolved { output, .. } => (None, format!("save output by hand: {}", size(output))),
            Effect::DropValue { id } => (None, format!("drop value {id}")),
            Effect::SaveInput { input } => (None, format!("save input: {}", size(input))),
            Effect::SavePatch { index, input } => (Some(*index), format!("save patch: {}", size(input))),
            Effect::SetTimer { due_ms, timer } => {
                let (of, text) = self.timer(*timer);
                (of, format!("+ timer {text} at {}", self.moment(*due_ms)))
            }
            Effect::ClearTimer { timer } => {
                let (of, text) = self.timer(*timer);
                (of, format!("- timer {text}"))
            }
            Effect::KeepError(error) => {
                (Some(error.index), format!("keep error #{} {}", error.attempt, error.failure.category))
            }
            Effect::Letter(letter) => (Some(letter.index), Self::letter(letter)),
            Effect::CloseLetter(id) => (self.letter_of(*id), "close letter".into()),
            Effect::Answer(Answer::Done { state }) => (None, format!("ANSWER done, {state}")),
            Effect::Answer(Answer::Conflict { message, .. }) => (None, format!("ANSWER conflict: {message}")),
            Effect::Answer(other) => (None, format!("ANSWER {other:?}")),
            Effect::Work(work) => (None, format!("work {:?} from {}", work.kind, work.next)),
            Effect::Stop(job) => {
                let (of, text) = self.job_of(*job);
                (of, format!("STOP {text}"))
            }
            Effect::Stopped(job) => {
                let (of, text) = self.job_of(*job);
                (of, format!("stopped {text}"))
            }
        }
    }
}
