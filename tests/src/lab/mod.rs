//! A whole fleet for a test: a real server, and coordinators and workers that are the built program.
//!
//! [`Fleet`] starts and stops the programs, [`Api`] talks to a coordinator as any client does, [`Hands`] is a worker inside the
//! test that notes every effect of its handler, and [`audit()`] holds a run's history against the rules and those effects.

mod api;
mod audit;
mod hands;
pub mod users;

pub use api::Api;
pub use audit::audit;
pub use hands::{Effect, Effects, Hands};

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::cluster::ClusterOptions;
use crate::{Cluster, Fsync, Program, Server, ServerOptions, port, program::Launch, wait};

/// Five times what a start may take.
pub const START: Duration = Duration::from_secs(60);

/// What a server needs that the programs accept: they refuse one that keeps nothing on disk.
///
/// # Panics
/// The environment wants users and their file cannot be read.
#[must_use]
pub fn durable() -> ServerOptions {
    let options = ServerOptions::new().append_only(Fsync::No);
    if users::wanted() { users::add(options).expect("the file of users is there") } else { options }
}

/// A server that the programs accept.
///
/// # Errors
/// It does not come up.
pub async fn server() -> anyhow::Result<Server> {
    durable().start().await
}

/// A Cluster of three that the programs accept.
///
/// # Errors
/// It does not come up.
pub async fn cluster() -> anyhow::Result<Cluster> {
    Cluster::launch(ClusterOptions { server: durable(), ..ClusterOptions::default() }).await
}

/// A coordinator and where its API is.
#[derive(Debug)]
pub struct Coordinator {
    /// The process.
    pub program: Program,
    /// Its API.
    pub api: Api,
}

/// Where the servers are, and the programs that were started on them.
#[derive(Debug)]
pub struct Fleet {
    coordinators_at: String,
    workers_at: String,
    options: Vec<OsString>,
    variables: Vec<(String, OsString)>,
    partitions: u16,
    /// Coordinators, in the order of their start.
    pub coordinators: Vec<Coordinator>,
    /// Workers, in the order of their start.
    pub workers: Vec<Program>,
}

impl Fleet {
    /// A fleet without programs yet, on the servers at `url`.
    #[must_use]
    pub fn at(url: &str, partitions: u16) -> Self {
        let fleet = Self {
            coordinators_at: url.into(),
            workers_at: url.into(),
            options: Vec::new(),
            variables: Vec::new(),
            partitions,
            coordinators: Vec::new(),
            workers: Vec::new(),
        };
        if users::wanted() { fleet.with_users() } else { fleet }
    }

    /// Each program logs in as the user that is meant for it; see [`users`].
    #[must_use]
    pub fn with_users(mut self) -> Self {
        self.coordinators_at = users::login(&self.coordinators_at, "coordinator");
        self.workers_at = users::login(&self.workers_at, "worker");
        self
    }

    /// Workers log in as this user, who has the same password.
    #[must_use]
    pub fn workers_as(mut self, user: &str) -> Self {
        let nobody = self.workers_at.replace(&format!("worker:{}@", users::PASSWORD), "");
        self.workers_at = users::login(&nobody, user);
        self
    }

    /// Gives every program one more option for its connection, like `--redis-ca-file`.
    #[must_use]
    pub fn option(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.options.extend([name.into(), value.into()]);
        self
    }

    /// Gives every program one more variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// A fleet with a coordinator that owns every partition, and `workers` stock workers with four slots each.
    ///
    /// # Errors
    /// A program does not come up.
    pub async fn start(url: &str, partitions: u16, workers: usize) -> anyhow::Result<Self> {
        let mut fleet = Self::at(url, partitions);
        fleet.add_coordinator().await?;
        for _ in 0..workers {
            fleet.add_worker(&[])?;
        }
        Ok(fleet)
    }

    /// Starts a coordinator and waits until it answers and every partition has an owner.
    ///
    /// # Errors
    /// It does not come up; the text holds what it wrote.
    pub async fn add_coordinator(&mut self) -> anyhow::Result<&mut Coordinator> {
        self.add_coordinator_with(&[]).await
    }

    /// The same with these further arguments.
    ///
    /// # Errors
    /// It does not come up; the text holds what it wrote.
    pub async fn add_coordinator_with(&mut self, args: &[&str]) -> anyhow::Result<&mut Coordinator> {
        let port = port::free();
        let (listen, partitions) = (format!("127.0.0.1:{port}"), self.partitions.to_string());
        let name = format!("c{}", self.coordinators.len() + 1);
        let words = ["coordinator", "--listen", &listen, "--partitions", &partitions, "--name", &name];
        let words = [&words[..], args].concat();
        let mut program = self.program(&words, &self.coordinators_at)?.start()?;
        let api = Api::new(&format!("http://{listen}"));
        let mut gone = false;
        let ready = wait::until(START, "the coordinator to be ready", async || {
            gone = !program.is_running()?;
            if gone { Ok(()) } else { api.ready().await }
        });
        let ready = ready.await.and_then(|()| if gone { bail!("the coordinator ended") } else { Ok(()) });
        if let Err(error) = ready {
            return Err(error.context(format!("it wrote {}{}", program.stdout(), program.stderr())));
        }
        self.coordinators.push(Coordinator { program, api });
        Ok(self.coordinators.last_mut().expect("one was pushed"))
    }

    /// Starts a stock worker with four slots and these further arguments. It takes jobs as soon as it is up.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn add_worker(&mut self, args: &[&str]) -> anyhow::Result<&mut Program> {
        let name = format!("w{}", self.workers.len() + 1);
        let mut words = vec!["worker", "--name", &name];
        if !args.contains(&"--concurrency") {
            words.extend(["--concurrency", "4"]);
        }
        words.extend(args);
        self.workers.push(self.program(&words, &self.workers_at)?.start()?);
        Ok(self.workers.last_mut().expect("one was pushed"))
    }

    fn program(&self, words: &[&str], url: &str) -> anyhow::Result<Launch> {
        let words = [words, &["--redis", url]].concat();
        let words = words.iter().map(OsString::from).chain(self.options.iter().cloned());
        let launch = Program::stepfleet(words.collect::<Vec<_>>())?.env("NO_PROXY", "*").env("STEPFLEET_LOG", "info");
        Ok(self.variables.iter().fold(launch, |launch, (name, value)| launch.env(name, value)))
    }

    /// The API of the first coordinator.
    #[must_use]
    pub fn api(&self) -> &Api {
        &self.coordinators[0].api
    }

    /// What every program wrote, for the report of a failed test.
    #[must_use]
    pub fn story(&self) -> String {
        let programs = self.coordinators.iter().map(|c| &c.program).chain(&self.workers);
        programs.map(|p| format!("--- {}\n{}{}", p.pid(), p.stdout(), p.stderr())).collect()
    }

    /// Runs one verb of the CLI against the first coordinator and returns what it wrote to standard output.
    ///
    /// # Errors
    /// It did not end with 0 within a minute.
    pub async fn verb(&self, words: &[&str]) -> anyhow::Result<String> {
        let all = ["--api", self.api().base(), "--output", "json"].into_iter().chain(words.iter().copied());
        let mut program = Program::stepfleet(all)?.start()?;
        let status = program.wait(START).await?;
        let told = format!("{words:?} ended with {status}: {}{}", program.stdout(), program.stderr());
        anyhow::ensure!(status.success(), told);
        Ok(program.stdout())
    }

    /// Asks every program to end (SIGTERM), workers first, and waits until all are gone.
    ///
    /// # Errors
    /// One does not end within a minute, or not with exit code 0.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let coordinators = self.coordinators.drain(..).map(|c| c.program);
        for mut program in self.workers.drain(..).chain(coordinators) {
            if !program.is_running()? {
                continue;
            }
            program.signal(crate::Signal::SIGTERM)?;
            let status = program.wait(START).await.context("a program to stop")?;
            anyhow::ensure!(status.success(), "it ended with {status}: {}", program.stderr());
        }
        Ok(())
    }
}
