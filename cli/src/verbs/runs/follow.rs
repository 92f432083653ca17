//! Following a run until it ends, by asking the API again and again: `runs watch` and `runs start --wait`.

use std::time::{Duration, Instant};

use serde_json::Value;
use stepfleet_coordinator::http::view::{HistoryView, Page, RunView};
use stepfleet_protocol::state::State;

use super::progress::Progress;
use super::{Session, show};
use crate::api::Answer;
use crate::failure::{Exit, Failure};
use crate::out::Ink;
use crate::time::span;

/// Time between two questions while something happens.
const POLL_MIN: Duration = Duration::from_millis(100);
/// Time between two questions after a while of quiet.
const POLL_MAX: Duration = Duration::from_secs(1);
/// How long the API may be away before the wait is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// Transitions of one page.
const PAGE_ITEMS: usize = 100;

/// What following writes, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Voice {
    /// Bars on stderr.
    Drawn,
    /// A line for each transition on stdout.
    Lines,
    /// The API's JSON of each transition on stdout.
    Json,
    /// A line for each transition on stderr, as stdout belongs to something else.
    Talk,
}

/// `runs watch`: transitions, then the end.
pub(super) async fn watch(id: &str, session: &Session<'_>) -> Result<Exit, Failure> {
    let voice = if session.out.is_json() {
        Voice::Json
    } else if session.out.draws() && std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        Voice::Drawn
    } else {
        Voice::Lines
    };
    let (run, _) = follow(id, session, voice).await?;
    Ok(concluded(&run, session))
}

/// The wait of `runs start --wait`: progress is talk; with `--output json` the run as it ended is the data.
pub(super) async fn wait(id: &str, session: &Session<'_>) -> Result<Exit, Failure> {
    let voice = if session.out.draws() { Voice::Drawn } else { Voice::Talk };
    let (run, answer) = follow(id, session, voice).await?;
    if session.out.is_json() {
        session.out.line(answer.text.trim_end())?;
    }
    Ok(concluded(&run, session))
}

/// Nothing more happens by itself.
fn rests(state: State) -> bool {
    state.is_finished() || state == State::Suspended
}

async fn follow(id: &str, session: &Session<'_>, voice: Voice) -> Result<(RunView, Answer), Failure> {
    let mut followed = Followed { id, session, voice, tail: Tail::default(), drawn: None, pause: POLL_MIN };
    let limit = async {
        match session.timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    let end = tokio::select! {
        end = followed.until_it_rests() => end,
        () = limit => Err(Failure::failed(format!("run `{id}` goes on after {}", span_of(session.timeout)))
            .hint(format!("follow it with `stepfleet runs watch {id}`"))),
        _ = tokio::signal::ctrl_c() => Err(Failure::failed(format!("stopped following; run `{id}` goes on"))
            .hint(format!("follow it with `stepfleet runs watch {id}`, or stop it with `stepfleet runs cancel {id}`"))),
    };
    if let Some(drawn) = followed.drawn.take() {
        drawn.clear();
    }
    end
}

fn span_of(timeout: Option<Duration>) -> String {
    timeout.map(|timeout| span(timeout.as_millis() as u64)).unwrap_or_default()
}

struct Followed<'a> {
    id: &'a str,
    session: &'a Session<'a>,
    voice: Voice,
    tail: Tail,
    drawn: Option<Progress>,
    pause: Duration,
}

/// How far the history was read. A page that is not full is read again, as it may have grown.
#[derive(Debug, Default)]
struct Tail {
    cursor: Option<String>,
    seen: usize,
}

impl Followed<'_> {
    async fn until_it_rests(&mut self) -> Result<(RunView, Answer), Failure> {
        let mut away_since: Option<Instant> = None;
        let mut last = String::new();
        loop {
            match self.once().await {
                Ok((run, answer)) => {
                    if away_since.take().is_some() {
                        self.session.out.say("the API is back");
                    }
                    if rests(run.summary.state) {
                        return Ok((run, answer));
                    }
                    self.pause = if answer.text == last { (self.pause * 2).min(POLL_MAX) } else { POLL_MIN };
                    last = answer.text;
                }
                Err(failure) if failure.exit() == Exit::Unreachable => {
                    let since = *away_since.get_or_insert_with(|| {
                        self.session.out.say(&format!("{}; trying again", failure.text));
                        Instant::now()
                    });
                    if since.elapsed() > PATIENCE {
                        return Err(failure);
                    }
                    self.pause = POLL_MAX;
                }
                Err(failure) => return Err(failure),
            }
            tokio::time::sleep(self.pause).await;
        }
    }

    /// Asks for the run, then shows what is new. The history is read after the run, so that nothing of an ended run is missed.
    async fn once(&mut self) -> Result<(RunView, Answer), Failure> {
        let answer = self.session.api.get(&["runs", self.id]).send().await?;
        let run: RunView = answer.read()?;
        match self.voice {
            Voice::Drawn => self.drawn.get_or_insert_with(|| Progress::new(self.session.out)).show(&run),
            Voice::Lines | Voice::Json | Voice::Talk => self.transitions().await?,
        }
        Ok((run, answer))
    }

    async fn transitions(&mut self) -> Result<(), Failure> {
        loop {
            let call = self.session.api.get(&["runs", self.id, "history"]).query("limit", Some(PAGE_ITEMS));
            let page: Page<Value> = call.query("cursor", self.tail.cursor.as_deref()).send().await?.read()?;
            for item in page.items.iter().skip(self.tail.seen) {
                self.transition(item)?;
            }
            self.tail.seen = page.items.len().max(self.tail.seen);
            match page.next {
                Some(next) if Some(&next) != self.tail.cursor.as_ref() => {
                    self.tail = Tail { cursor: Some(next), seen: 0 };
                }
                _ => return Ok(()),
            }
        }
    }

    fn transition(&self, item: &Value) -> Result<(), Failure> {
        let out = self.session.out;
        if self.voice == Voice::Json {
            return out.json(item);
        }
        let item: HistoryView = serde_json::from_value(item.clone())
            .map_err(|error| Failure::failed(format!("the API's history cannot be read: {error}")))?;
        let line = show::transition(&item, out);
        match self.voice {
            Voice::Lines => out.line(&line)?,
            Voice::Drawn | Voice::Json | Voice::Talk => out.say(&line),
        }
        Ok(())
    }
}

/// Says how the run ended; exit code 0 only if it completed.
fn concluded(run: &RunView, session: &Session<'_>) -> Exit {
    let (out, summary) = (session.out, &run.summary);
    let state = out.talk_ink(summary.state.as_str(), Ink::of(summary.state));
    let took = summary.duration_ms.map(|ms| format!(" in {}", span(ms))).unwrap_or_default();
    out.say(&format!("{state}{took}: {} of {} steps completed", summary.steps.completed, summary.steps.total));
    if summary.state == State::Completed {
        out.hint(&format!("its output: `stepfleet runs output {}`", summary.id));
        return Exit::Done;
    }
    for step in run.step_list.iter().filter(|step| step.state == State::Failed || step.dead_letter.is_some()) {
        let error = run.errors.iter().find(|error| error.step == step.name);
        let text = error.map(|error| format!(": {}", show::error_text(error))).unwrap_or_default();
        out.say(&format!("  {} {}{}", step.name, step.state, crate::out::plain(&text)));
    }
    for hint in show::hints(run) {
        out.hint(&hint);
    }
    Exit::Failed
}
