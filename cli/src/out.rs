//! The two voices of the program: data on stdout, talk on stderr.

use std::io::{BufRead, ErrorKind, IsTerminal, Write, stderr, stdin, stdout};

use serde::Serialize;
use stepfleet_protocol::state::State;

use crate::args::{Format, Global};
use crate::failure::Failure;

/// Where and how to write. Everything that a command says goes through here.
#[derive(Debug, Clone)]
pub(crate) struct Out {
    format: Format,
    quiet: bool,
    verbose: u8,
    color_out: bool,
    color_err: bool,
}

/// Ink of a word. Never the only carrier of a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ink {
    /// Went well.
    Good,
    /// Goes on.
    Busy,
    /// Wants attention.
    Warn,
    /// Went wrong.
    Bad,
    /// Beside the point.
    Dim,
    /// A heading.
    Bold,
    /// As it is.
    Plain,
}

impl Ink {
    /// The ink of a state.
    pub(crate) fn of(state: State) -> Self {
        match state {
            State::Completed => Self::Good,
            State::Processing | State::Waiting => Self::Busy,
            State::Retrying | State::Suspended => Self::Warn,
            State::Failed => Self::Bad,
            State::Created | State::Queued | State::Cancelled | State::Skipped => Self::Dim,
        }
    }

    fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Busy => "36",
            Self::Warn => "33",
            Self::Bad => "31",
            Self::Dim => "2",
            Self::Bold => "1",
            Self::Plain => "0",
        }
    }
}

fn inked(text: &str, ink: Ink, color: bool) -> String {
    if color && ink != Ink::Plain { format!("\x1b[{}m{text}\x1b[0m", ink.code()) } else { text.to_owned() }
}

impl Out {
    /// As the global options and the environment say.
    pub(crate) fn new(global: &Global) -> Self {
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let color = !global.no_color && !unwanted && !is_dumb;
        Self {
            format: global.output,
            quiet: global.quiet,
            verbose: global.verbose,
            color_out: color && stdout().is_terminal(),
            color_err: color && stderr().is_terminal(),
        }
    }

    /// Whether stdout is for a program.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// How much more than usual is said: the number of `-v`.
    pub(crate) fn verbose(&self) -> u8 {
        self.verbose
    }

    /// Whether stdout takes colours.
    pub(crate) fn has_color(&self) -> bool {
        self.color_out
    }

    /// Whether progress may be drawn.
    pub(crate) fn draws(&self) -> bool {
        !self.quiet && stderr().is_terminal()
    }

    /// One line of data.
    ///
    /// # Errors
    /// stdout is closed or broken.
    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = stdout().lock();
        writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => Failure::reader_left(),
            _ => Failure::failed(format!("cannot write to stdout: {error}")),
        })
    }

    /// One JSON document, on one line.
    ///
    /// # Errors
    /// stdout is closed or broken.
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(|error| Failure::failed(format!("no JSON: {error}")))?;
        self.line(&text)
    }

    /// A word on stdout in its ink.
    pub(crate) fn ink(&self, text: &str, ink: Ink) -> String {
        inked(text, ink, self.color_out)
    }

    /// A word on stderr in its ink.
    pub(crate) fn talk_ink(&self, text: &str, ink: Ink) -> String {
        inked(text, ink, self.color_err)
    }

    /// A line for the person in front, unless `--quiet`.
    pub(crate) fn say(&self, text: &str) {
        if !self.quiet {
            self.talk(text);
        }
    }

    /// A line for the person in front that nobody will tell again. Also with `--quiet`.
    pub(crate) fn tell(&self, text: &str) {
        self.talk(text);
    }

    /// A line `hint: …` for the person in front, unless `--quiet`.
    pub(crate) fn hint(&self, text: &str) {
        if !self.quiet {
            self.talk(&format!("{} {text}", self.talk_ink("hint:", Ink::Busy)));
        }
    }

    /// A line that `-v` asks for.
    pub(crate) fn detail(&self, text: &str) {
        if self.verbose > 0 {
            self.talk(&self.talk_ink(text, Ink::Dim));
        }
    }

    /// A warning. Also with `--quiet`.
    pub(crate) fn warn(&self, text: &str) {
        self.talk(&format!("{} {text}", self.talk_ink("warning:", Ink::Warn)));
    }

    /// A failure with its problems and hint. Also with `--quiet`.
    pub(crate) fn failure(&self, failure: &Failure) {
        if failure.text.is_empty() {
            return;
        }
        self.talk(&format!("{} {}", self.talk_ink("error:", Ink::Bad), failure.text));
        for problem in &failure.problems {
            self.talk(&format!("  {problem}"));
        }
        if let Some(hint) = &failure.hint {
            self.talk(&format!("{} {hint}", self.talk_ink("hint:", Ink::Busy)));
        }
    }

    /// Asks before something that cannot be undone. `what` reads as a question: "cancel run `x`?".
    ///
    /// # Errors
    /// The answer was no; or nobody can be asked and `yes` was not given.
    pub(crate) fn confirm(&self, what: &str, yes: bool) -> Result<(), Failure> {
        if yes {
            return Ok(());
        }
        let answer = self.asked(what, " [y/N] ")?;
        match answer.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(Failure::failed("nothing was done")),
        }
    }

    /// Asks before something large that cannot be undone: the answer has to be this very word.
    ///
    /// # Errors
    /// As [`Self::confirm`].
    pub(crate) fn confirm_by_typing(&self, what: &str, word: &str, yes: bool) -> Result<(), Failure> {
        if yes || self.asked(what, ": ")?.trim() == word { Ok(()) } else { Err(Failure::failed("nothing was done")) }
    }

    /// The answer to a question.
    fn asked(&self, what: &str, behind: &str) -> Result<String, Failure> {
        if !stdin().is_terminal() || !stderr().is_terminal() {
            let text = format!("not confirmed: {what}");
            return Err(Failure::usage(text).hint("without a terminal to ask on, say so with `--yes`"));
        }
        let mut stderr = stderr().lock();
        let mut answer = String::new();
        let asked = write!(stderr, "{what}{behind}").and_then(|()| stderr.flush());
        asked.and_then(|()| stdin().lock().read_line(&mut answer)).map_err(|e| Failure::failed(e.to_string()))?;
        Ok(answer)
    }

    fn talk(&self, text: &str) {
        // Nobody is left to tell when stderr is gone.
        let _ = writeln!(stderr().lock(), "{text}");
    }
}

/// What other programs wrote, made harmless for a terminal: control characters become spaces.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
