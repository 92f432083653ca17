//! The programs of a test, each of which may die and come back many times, and what was done to every one of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use crate::chaos::effects::now_ns;
use crate::chaos::hosts::Hosts;
use crate::chaos::link::Link;
use crate::{Program, Signal, binary, port};

/// How long a program may take to end by itself.
const END: Duration = Duration::from_secs(40);
/// A death that is found counts as rightly found while the worker was out of reach so long before, at most.
const DEATH_NS: u64 = 75_000_000_000;

/// What a program does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `stepfleet coordinator`.
    Coordinator,
    /// A worker whose handler writes down what it does.
    Worker,
}

/// One process, from its start to its end.
#[derive(Debug, Clone)]
pub struct Life {
    /// Its name, which no other ever has.
    pub name: String,
    /// When it ended.
    pub ended_ns: Option<u64>,
    /// When it was stopped or out of reach, until when; still, if that is none.
    pub away: Vec<(u64, Option<u64>)>,
}

impl Life {
    /// Whether somebody who says at that time that it is dead is right: it is gone, or was away a short while ago.
    #[must_use]
    pub fn may_be_called_dead(&self, at_ns: u64) -> bool {
        let away = |(from, until): &(u64, Option<u64>)| {
            *from <= at_ns && until.is_none_or(|until| at_ns <= until.saturating_add(DEATH_NS))
        };
        self.ended_ns.is_some_and(|ended| ended <= at_ns) || self.away.iter().any(away)
    }
}

/// What all programs share.
#[derive(Debug)]
pub struct Ground {
    /// Where servers are, for those without a link.
    pub url: String,
    /// Partitions.
    pub partitions: u16,
    /// Where workers write.
    pub effects: PathBuf,
    /// Where outputs of ended programs are kept.
    pub logs: PathBuf,
    /// The hosts, if there are any.
    pub hosts: Option<Arc<Hosts>>,
    /// The `stepfleet` to start.
    pub new: PathBuf,
    /// The one that rolling restarts begin with.
    pub old: PathBuf,
    /// The program that is a worker when it is asked to.
    pub worker: PathBuf,
}

/// A place for a program.
#[derive(Debug)]
pub struct Slot {
    role: Role,
    /// Which coordinator or worker it is, from 1.
    number: usize,
    /// Which host it is, from 0.
    host: usize,
    /// Its connection to a single server.
    pub link: Option<Link>,
    listen: String,
    program: Option<Program>,
    lives: Vec<Life>,
    ground: Arc<Ground>,
}

impl Slot {
    /// An empty place.
    #[must_use]
    pub fn new(role: Role, number: usize, host: usize, link: Option<Link>, ground: Arc<Ground>) -> Self {
        let ip = ground.hosts.as_ref().map_or("127.0.0.1".to_owned(), |hosts| hosts.address(host));
        let listen = format!("{ip}:{}", port::free());
        Self { role, number, host, link, listen, program: None, lives: Vec::new(), ground }
    }

    /// Where the API of a coordinator is, whatever process serves it.
    #[must_use]
    pub fn base(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// The name of the present process, or of the last one.
    #[must_use]
    pub fn name(&self) -> &str {
        self.lives.last().map_or("", |life| &life.name)
    }

    /// Every process that there was.
    #[must_use]
    pub fn lives(&self) -> &[Life] {
        &self.lives
    }

    /// Starts a process; the old version if `old`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&mut self, old: bool) -> anyhow::Result<()> {
        let letter = if self.role == Role::Coordinator { 'c' } else { 'w' };
        let name = format!("{letter}{}-{}", self.number, self.lives.len() + 1);
        let ground = &self.ground;
        let url = self.link.as_ref().map_or_else(|| ground.url.clone(), |link| format!("redis://{}", link.address()));
        let stepfleet = if old { &ground.old } else { &ground.new };
        // The worker of these tests is no `stepfleet`; an old version that differs brings its own stock worker, which
        // hands the jobs of these tests back, as it has no handler for them.
        let (program, words): (&Path, Vec<String>) = match self.role {
            Role::Coordinator => {
                let partitions = ground.partitions.to_string();
                let words = ["coordinator", "--listen", &self.listen, "--insecure-listen", "--partitions", &partitions];
                (stepfleet, words.map(String::from).to_vec())
            }
            Role::Worker if old && ground.old != ground.new => {
                (stepfleet, ["worker", "--drain-timeout", "200ms"].map(String::from).to_vec())
            }
            Role::Worker => {
                let effects = ground.effects.display().to_string();
                (&ground.worker, ["worker", "--effects", &effects].map(String::from).to_vec())
            }
        };
        let mut all = ground.hosts.as_ref().map(|hosts| hosts.enter(self.host)).unwrap_or_default();
        all.push(program.display().to_string());
        all.extend(words);
        all.extend(["--name", &name, "--redis", &url].map(String::from));
        let program = all.remove(0);
        let launch = Program::at(program, all).env("NO_PROXY", "*").env("STEPFLEET_LOG", "info");
        self.program = Some(launch.start()?);
        self.lives.push(Life { name, ended_ns: None, away: Vec::new() });
        Ok(())
    }

    /// Kills the process.
    ///
    /// # Errors
    /// There is none.
    pub fn kill(&mut self) -> anyhow::Result<u64> {
        let at = now_ns();
        self.program.as_mut().context("no process")?.kill_9()?;
        self.ended(at);
        Ok(at)
    }

    /// Asks the process to end; when that was.
    ///
    /// # Errors
    /// There is none.
    pub fn ask_to_end(&mut self) -> anyhow::Result<u64> {
        let at = now_ns();
        self.program.as_mut().context("no process")?.signal(Signal::SIGTERM)?;
        // Whoever leaves may be called dead.
        self.life().away.push((at, None));
        Ok(at)
    }

    /// Waits for the end of a process that was asked to end; when it was seen.
    ///
    /// # Errors
    /// It does not end, or not with success.
    pub async fn until_ended(&mut self) -> anyhow::Result<u64> {
        let status = self.program.as_mut().context("no process")?.wait(END).await?;
        let name = self.name().to_owned();
        self.ended(now_ns());
        anyhow::ensure!(status.success(), "`{name}` ended with {status}");
        Ok(now_ns())
    }

    /// Freezes the process.
    ///
    /// # Errors
    /// There is none.
    pub fn freeze(&mut self) -> anyhow::Result<u64> {
        self.program.as_mut().context("no process")?.signal(Signal::SIGSTOP)?;
        self.leave();
        Ok(now_ns())
    }

    /// Thaws it.
    ///
    /// # Errors
    /// There is none.
    pub fn thaw(&mut self) -> anyhow::Result<u64> {
        self.program.as_mut().context("no process")?.signal(Signal::SIGCONT)?;
        self.come_back();
        Ok(now_ns())
    }

    /// Cuts it off from everything else, by its host if there are hosts, else by its link.
    ///
    /// # Errors
    /// The kernel refuses, or there is neither.
    pub fn cut(&mut self, cut: bool) -> anyhow::Result<u64> {
        match (&self.ground.hosts, &self.link) {
            (Some(hosts), _) if cut => hosts.cut(self.host)?,
            (Some(hosts), _) => hosts.join(self.host)?,
            (None, Some(link)) => link.set(crate::chaos::link::Weather { cut, ..Default::default() }),
            (None, None) => anyhow::bail!("there is nothing to cut"),
        }
        if cut {
            self.leave()
        } else {
            self.come_back()
        }
        Ok(now_ns())
    }

    /// Notes that the process is out of reach from now on.
    pub fn leave(&mut self) {
        self.life().away.push((now_ns(), None));
    }

    /// Notes that it is back.
    pub fn come_back(&mut self) {
        if let Some((_, until)) = self.life().away.last_mut() {
            *until = Some(now_ns());
        }
    }

    /// Whether a process runs that was not told to end.
    ///
    /// # Errors
    /// The system refuses to tell.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(match &mut self.program {
            Some(program) => program.is_running()?,
            None => false,
        })
    }

    /// Keeps what the process wrote, and forgets it.
    pub fn ended(&mut self, at_ns: u64) {
        self.keep_log();
        self.program = None;
        self.life().ended_ns = Some(at_ns);
    }

    /// Keeps what the process has written so far.
    pub fn keep_log(&self) {
        if let Some(program) = &self.program {
            let text = format!("{}{}", program.stdout(), program.stderr());
            let path = self.ground.logs.join(format!("{}.log", self.name()));
            if let Err(error) = fs::write(&path, text) {
                eprintln!("`{}` could not be kept: {error}", path.display());
            }
        }
    }

    fn life(&mut self) -> &mut Life {
        self.lives.last_mut().expect("a process was started")
    }
}

impl Ground {
    /// The programs that are built beside the running one.
    ///
    /// # Errors
    /// They are not.
    pub fn built() -> anyhow::Result<(PathBuf, PathBuf)> {
        Ok((binary::stepfleet()?, binary::beside("chaos")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_rightly_called_dead_only_when_it_is_gone_or_was_away() {
        let life = |ended_ns, away: &[(u64, Option<u64>)]| Life { name: "w".into(), ended_ns, away: away.to_vec() };
        assert!(!life(None, &[]).may_be_called_dead(10), "it lives");
        assert!(life(Some(10), &[]).may_be_called_dead(10));
        assert!(!life(Some(10), &[]).may_be_called_dead(9), "it lived then");
        assert!(life(None, &[(5, None)]).may_be_called_dead(10), "it is frozen");
        assert!(!life(None, &[(11, None)]).may_be_called_dead(10), "it is frozen later");
        assert!(life(None, &[(5, Some(8))]).may_be_called_dead(10), "it has just come back");
        assert!(!life(None, &[(5, Some(8))]).may_be_called_dead(10 + 8 + DEATH_NS));
    }
}
