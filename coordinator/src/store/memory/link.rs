//! Connections to the simulated server.

use super::db::Wait;
use super::faults::Fate;
use super::session::Step;
use super::{Inner, MemoryServer};
use crate::store::link::{Dial, Link, LinkError};
use redis::Value;
use std::time::Duration;

/// Makes connections to one [`MemoryServer`]. Every slot is served by it.
#[derive(Debug, Clone)]
pub struct MemoryDial {
    pub(super) server: MemoryServer,
}

impl Dial for MemoryDial {
    type Link = MemoryLink;

    async fn dial(&self, _slot: u16, response_timeout: Duration) -> Result<MemoryLink, LinkError> {
        tokio::task::yield_now().await;
        let mut state = self.server.inner.lock();
        if state.down {
            return Err(LinkError::Lost("connection refused".into()));
        }
        let session = state.connect();
        drop(state);
        Ok(MemoryLink { server: self.server.clone(), session, response_timeout, dead: false })
    }

    fn node(&self, _slot: u16) -> u64 {
        0
    }

    fn is_cluster(&self) -> bool {
        false
    }

    async fn refresh(&self) {}
}

/// One connection to a [`MemoryServer`].
///
/// A trip that is dropped half-way takes its blocked read back; commands behind it are not executed.
#[derive(Debug)]
pub struct MemoryLink {
    server: MemoryServer,
    session: u64,
    response_timeout: Duration,
    dead: bool,
}

impl Link for MemoryLink {
    async fn trip(&mut self, pipe: &redis::Pipeline) -> Result<Vec<Value>, LinkError> {
        if self.dead {
            return Err(LinkError::Lost("the link is dead".into()));
        }
        let commands = unpack(pipe);
        let replies = tokio::time::timeout(self.response_timeout, self.carry(commands)).await;
        let replies = replies.unwrap_or(Err(LinkError::TimedOut));
        if replies.is_err() {
            self.hang_up();
        }
        replies
    }
}

impl MemoryLink {
    /// Carries the commands over a wire with faults.
    async fn carry(&self, mut commands: Vec<Vec<Vec<u8>>>) -> Result<Vec<Value>, LinkError> {
        let exec_at =
            commands.iter().position(|args| args.first().is_some_and(|name| name.eq_ignore_ascii_case(b"EXEC")));
        let (fate, latency) = self.server.inner.lock().dice.roll(exec_at.is_some());
        // Without this a loop of trips would never let another task run, nor simulated time pass.
        tokio::task::yield_now().await;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let lost = |what: &str| LinkError::Lost(format!("{what} lost by the simulation"));
        match fate {
            Fate::Delivered => self.run(commands).await,
            Fate::RequestLost => Err(lost("request")),
            Fate::ReplyLost => {
                self.run(commands).await?;
                Err(lost("reply"))
            }
            Fate::ExecLate { by, timed_out } => {
                let rest = commands.split_off(exec_at.unwrap_or(commands.len()));
                self.run(commands).await?;
                self.send_late(rest, by);
                Err(if timed_out { LinkError::TimedOut } else { lost("connection") })
            }
        }
    }

    async fn run(&self, commands: Vec<Vec<Vec<u8>>>) -> Result<Vec<Value>, LinkError> {
        let mut replies = Vec::with_capacity(commands.len());
        for args in &commands {
            let step = self.server.inner.execute(self.session, args).ok_or_else(reset)?;
            replies.push(match step {
                Step::Done(value) => value,
                Step::Wait(wait) => self.wait(wait).await?,
            });
        }
        Ok(replies)
    }

    /// Waits until a blocked read is served or its time is over, which answers nil.
    async fn wait(&self, wait: Wait) -> Result<Value, LinkError> {
        let block = wait.block;
        let (ticket, mut served) = self.server.inner.lock().park(self.session, wait);
        let parked = Parked { inner: &self.server.inner, ticket };
        let value = match block {
            None => (&mut served).await,
            Some(block) => match tokio::time::timeout(block, &mut served).await {
                Ok(value) => value,
                Err(_) if parked.inner.lock().unpark(ticket) => return Ok(Value::Nil),
                // RACE: the server served or cut the reader at the very moment its time was over; the server wins.
                Err(_) => served.await,
            },
        };
        value.map_err(|_| reset())
    }

    /// Leaves the rest of a pipeline on its way; it arrives on the same connection although the client is gone.
    fn send_late(&self, rest: Vec<Vec<Vec<u8>>>, by: Duration) {
        let (server, id) = (self.server.clone(), self.session);
        if let Some(session) = server.inner.lock().session(id) {
            session.late = true;
        }
        tokio::spawn(async move {
            tokio::time::sleep(by).await;
            for args in &rest {
                // A reader behind the EXEC has nobody to wait for.
                server.inner.execute(id, args);
            }
            server.inner.lock().disconnect(id);
        });
    }

    fn hang_up(&mut self) {
        self.dead = true;
        let mut state = self.server.inner.lock();
        if state.session(self.session).is_some_and(|session| !session.late) {
            state.disconnect(self.session);
        }
    }
}

impl Drop for MemoryLink {
    fn drop(&mut self) {
        self.hang_up();
    }
}

/// Takes a blocked read back when nobody waits for it any more.
struct Parked<'a> {
    inner: &'a Inner,
    ticket: u64,
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.inner.lock().unpark(self.ticket);
    }
}

fn reset() -> LinkError {
    LinkError::Lost("connection reset by the server".into())
}

/// The arguments of every command, as the server would read them.
fn unpack(pipe: &redis::Pipeline) -> Vec<Vec<Vec<u8>>> {
    let wrap = |name: &str| vec![vec![name.as_bytes().to_vec()]];
    let commands = pipe.cmd_iter().map(|cmd| {
        let args = cmd.args_iter().map(|arg| match arg {
            redis::Arg::Simple(bytes) => bytes.to_vec(),
            redis::Arg::Cursor => b"0".to_vec(),
            _ => unreachable!("the client crate knows no other argument"),
        });
        args.collect()
    });
    if pipe.is_transaction() {
        return wrap("MULTI").into_iter().chain(commands).chain(wrap("EXEC")).collect();
    }
    commands.collect()
}
