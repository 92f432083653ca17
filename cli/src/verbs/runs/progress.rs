//! The progress of a run on a terminal: one bar for the run, a line for each step at work, a line left behind by each that ended.

use std::collections::HashMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use stepfleet_coordinator::http::view::{RunView, StepView};
use stepfleet_protocol::state::State;

use super::show::{error_text, worker_name};
use crate::out::{Ink, Out, plain};
use crate::time::{now_ms, span, unix_ms};

/// Steps at work that are drawn; the others are counted.
const LINES_MAX: usize = 8;
/// Time between two frames of a spinner.
const TICK: Duration = Duration::from_millis(100);

/// What is drawn of one run.
pub(super) struct Progress {
    out: Out,
    lines: MultiProgress,
    run: ProgressBar,
    more: ProgressBar,
    active: HashMap<String, ProgressBar>,
    told: HashMap<String, State>,
}

impl Progress {
    /// Draws on stderr.
    pub(super) fn new(out: &Out) -> Self {
        let lines = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        let run = lines.add(ProgressBar::new(0));
        run.set_style(style("{spinner} [{bar:30}] {pos}/{len} {msg}").progress_chars("=> "));
        run.enable_steady_tick(TICK);
        let more = lines.add(ProgressBar::new_spinner());
        more.set_style(style("    {msg}"));
        Self { out: out.clone(), lines, run, more, active: HashMap::new(), told: HashMap::new() }
    }

    /// Draws the run as it is now.
    pub(super) fn show(&mut self, run: &RunView) {
        let summary = &run.summary;
        self.run.set_length(summary.steps.total.into());
        self.run.set_position(summary.steps.completed.into());
        let elapsed = unix_ms(&summary.created_at).map(|ms| span(now_ms().saturating_sub(ms))).unwrap_or_default();
        let failed =
            if summary.steps.failed > 0 { format!(", {} failed", summary.steps.failed) } else { String::new() };
        let state = self.out.talk_ink(summary.state.as_str(), Ink::of(summary.state));
        self.run.set_message(format!("{} {state}{failed} {elapsed}", plain(&summary.workflow)));
        for step in &run.step_list {
            self.tell(step, run);
        }
        let working: Vec<&StepView> = run.step_list.iter().filter(|step| is_working(step.state)).collect();
        let shown = &working[..working.len().min(LINES_MAX)];
        self.active.retain(|name, line| {
            let stays = shown.iter().any(|step| step.name == *name);
            if !stays {
                self.lines.remove(line);
            }
            stays
        });
        for step in shown {
            let line = self.active.entry(step.name.clone()).or_insert_with(|| {
                let line = self.lines.insert_before(&self.more, ProgressBar::new_spinner());
                line.set_style(style("  {spinner} {msg}"));
                line.enable_steady_tick(TICK);
                line
            });
            line.set_message(working_text(step, &self.out));
        }
        let rest = summary.steps.active.saturating_sub(shown.len() as u32);
        self.more.set_message(if rest > 0 { format!("and {rest} more") } else { String::new() });
    }

    /// Takes everything drawn away, but for the lines left behind.
    pub(super) fn clear(self) {
        for line in self.active.values().chain([&self.more, &self.run]) {
            line.finish_and_clear();
        }
    }

    /// Leaves a line behind for a step that ended, or that will be tried again.
    fn tell(&mut self, step: &StepView, run: &RunView) {
        let before = self.told.insert(step.name.clone(), step.state);
        if before == Some(step.state) {
            return;
        }
        let mark = match step.state {
            State::Completed => "✓",
            State::Failed => "✗",
            State::Retrying => "↻",
            State::Suspended | State::Cancelled | State::Skipped => "-",
            State::Created | State::Queued | State::Processing | State::Waiting => return,
        };
        let took = step.duration_ms.map(|ms| format!(" {}", span(ms))).unwrap_or_default();
        let error = run.errors.iter().find(|error| error.step == step.name && step.state != State::Completed);
        let error = error.map(|error| format!(": {}", plain(&error_text(error)))).unwrap_or_default();
        let tries = if step.attempts > 1 { format!(" (attempt {})", step.attempts) } else { String::new() };
        let state = if step.state == State::Completed { String::new() } else { format!(" {}", step.state) };
        let mark = self.out.talk_ink(mark, Ink::of(step.state));
        // A line that cannot be drawn is no reason to stop.
        let _ = self.lines.println(format!("  {mark} {}{state}{took}{tries}{error}", plain(&step.name)));
    }
}

fn is_working(state: State) -> bool {
    matches!(state, State::Queued | State::Processing | State::Waiting | State::Retrying)
}

fn working_text(step: &StepView, out: &Out) -> String {
    let worker = step.worker.as_deref().map(|id| format!(" on {}", plain(worker_name(id)))).unwrap_or_default();
    let since = match step.state {
        State::Processing => step.started_at.as_deref(),
        _ => step.queued_at.as_deref(),
    };
    let since = since.and_then(unix_ms).map(|ms| format!(" {}", span(now_ms().saturating_sub(ms)))).unwrap_or_default();
    let tries = if step.attempts > 1 { format!(" (attempt {})", step.attempts) } else { String::new() };
    let state = out.talk_ink(step.state.as_str(), Ink::of(step.state));
    format!("{} {state}{worker}{since}{tries}", plain(&step.name))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is right").tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ")
}
