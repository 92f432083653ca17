//! The built `stepfleet`, or any other program, as a child whose output is kept.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::child::Child;
use crate::{binary, wait};

/// What a [`Program`] is started with.
#[derive(Debug)]
pub struct Launch {
    path: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    folder: Option<PathBuf>,
}

/// A program that runs as a child, without standard input. Dropping it kills it.
#[derive(Debug)]
pub struct Program {
    child: Child,
    output: TempDir,
}

impl Program {
    /// Prepares the built `stepfleet` with these arguments.
    ///
    /// # Errors
    /// It is not built.
    pub fn stepfleet<A: Into<OsString>>(args: impl IntoIterator<Item = A>) -> anyhow::Result<Launch> {
        Ok(Self::at(binary::stepfleet()?, args))
    }

    /// Prepares the program at `path`.
    pub fn at<A: Into<OsString>>(path: impl Into<PathBuf>, args: impl IntoIterator<Item = A>) -> Launch {
        Launch { path: path.into(), args: args.into_iter().map(Into::into).collect(), env: Vec::new(), folder: None }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// What it wrote to standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        read(&self.output.path().join("stdout"))
    }

    /// What it wrote to standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        read(&self.output.path().join("stderr"))
    }

    /// Waits for the first complete line, of standard output or standard error, for which `is_it` holds, and returns it. Lines
    /// written before the call count.
    ///
    /// # Errors
    /// The deadline passed, or the program ended without such a line; the text holds what it wrote.
    pub async fn wait_for_line(&mut self, is_it: impl Fn(&str) -> bool, deadline: Duration) -> anyhow::Result<String> {
        let found = wait::until(deadline, "a line of the program", async || {
            // Seen before the output is read: what an ended program wrote is then all there.
            let ended = self.child.ended()?;
            let line = [self.stdout(), self.stderr()].iter().find_map(|text| complete_line(text, &is_it));
            match (line, ended) {
                (Some(line), _) => Ok(Some(line)),
                (None, Some(_)) => Ok(None),
                (None, None) => bail!("it has not written it yet"),
            }
        })
        .await
        .with_context(|| self.story())?;
        found.with_context(|| format!("the program ended before it wrote the line\n{}", self.story()))
    }

    /// Sends a signal; nothing happens if it has ended.
    ///
    /// # Errors
    /// The system refuses.
    pub fn signal(&mut self, signal: Signal) -> io::Result<()> {
        self.child.signal(signal)
    }

    /// Kills it at once and waits until it is gone.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill_9(&mut self) -> io::Result<()> {
        self.child.kill_9()
    }

    /// Whether it still runs; a paused program does.
    ///
    /// # Errors
    /// The system refuses to tell.
    pub fn is_running(&mut self) -> io::Result<bool> {
        Ok(self.child.ended()?.is_none())
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// The deadline passed; the text holds what it wrote.
    pub async fn wait(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        wait::until(deadline, "the program to end", async || self.child.ended()?.context("it still runs"))
            .await
            .with_context(|| self.story())
    }

    fn story(&self) -> String {
        format!("--- stdout\n{}--- stderr\n{}---", self.stdout(), self.stderr())
    }
}

impl Launch {
    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets the working folder; without it the program runs where the test runs.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Starts it. Settings of the caller's environment (`STEPFLEET_…`) are not passed on.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(self) -> anyhow::Result<Program> {
        let output = tempfile::Builder::new().prefix("stepfleet-program-").tempdir()?;
        let mut command = Command::new(&self.path);
        command.args(self.args).stdin(Stdio::null());
        command.stdout(fs::File::create(output.path().join("stdout"))?);
        command.stderr(fs::File::create(output.path().join("stderr"))?);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("STEPFLEET_") {
                command.env_remove(name);
            }
        }
        command.envs(self.env);
        if let Some(folder) = self.folder {
            command.current_dir(folder);
        }
        let child = Child::spawn(command).with_context(|| format!("start `{}`", self.path.display()))?;
        Ok(Program { child, output })
    }
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The first line with its end for which `is_it` holds; half a line may still change.
fn complete_line(text: &str, is_it: impl Fn(&str) -> bool) -> Option<String> {
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).find(|line| is_it(line)).map(String::from)
}
