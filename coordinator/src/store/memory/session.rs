//! The server behind its connections: MULTI, WATCH, blocked readers and scripts.
//!
//! A session is one connection as the server sees it. Its watches and its queue belong to it alone and end with EXEC,
//! DISCARD or the connection. Every command, and every EXEC as a whole, is one moment: the time stands still, watchers
//! are told and blocked readers are served before the next one.

use super::commands;
use super::db::{Db, Wait};
use super::faults::Dice;
use super::reply::{Refusal, Reply, bulk, parse_int, settle, word, yes};
use crate::mutants::mutant;
use redis::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::oneshot;

/// The Rust twin of a script: the data, KEYS and ARGV in, the reply out.
pub(super) type Twin = Arc<dyn Fn(&mut Db, &[Vec<u8>], &[Vec<u8>]) -> Value + Send + Sync>;

/// One connection.
#[derive(Debug, Default)]
pub(super) struct Session {
    watched: BTreeSet<Vec<u8>>,
    /// A watched key was touched.
    dirty: bool,
    queue: Option<Queue>,
    /// Bytes of a client that is gone are still on their way.
    pub(super) late: bool,
}

/// What MULTI collects.
#[derive(Debug, Default)]
struct Queue {
    commands: Vec<Vec<Vec<u8>>>,
    /// A command was refused while queueing.
    failed: bool,
    grows: bool,
}

/// A reader that waits.
#[derive(Debug)]
struct Blocked {
    ticket: u64,
    session: u64,
    wait: Wait,
    to: oneshot::Sender<Value>,
}

/// What a command came to.
pub(super) enum Step {
    Done(Value),
    Wait(Wait),
}

/// The whole server.
#[derive(Default)]
pub(super) struct State {
    pub(super) db: Db,
    pub(super) dice: Dice,
    pub(super) down: bool,
    pub(super) used_bytes: u64,
    pub(super) limit_bytes: u64,
    sessions: BTreeMap<u64, Session>,
    blocked: Vec<Blocked>,
    numbers: u64,
    /// How often the server came back as another one.
    incarnation: u64,
    twins: BTreeMap<String, Twin>,
    loaded: BTreeSet<String>,
    /// Digests of sources, which are dear to make each time.
    digests: BTreeMap<Vec<u8>, String>,
}

impl State {
    pub(super) fn connect(&mut self) -> u64 {
        let id = self.number();
        self.sessions.insert(id, Session::default());
        id
    }

    pub(super) fn session(&mut self, id: u64) -> Option<&mut Session> {
        self.sessions.get_mut(&id)
    }

    pub(super) fn disconnect(&mut self, id: u64) {
        self.sessions.remove(&id);
        self.blocked.retain(|blocked| blocked.session != id);
    }

    /// Ends every connection and every subscription.
    pub(super) fn cut(&mut self) {
        self.sessions.clear();
        self.blocked.clear();
        self.db.channels.cut();
    }

    /// Comes back as another server process: a new run id, no scripts loaded, no connections.
    pub(super) fn reincarnate(&mut self) {
        self.cut();
        self.incarnation += 1;
        self.loaded.clear();
    }

    pub(super) fn register(&mut self, source: &str, twin: Twin) {
        self.twins.insert(digest(source), twin);
    }

    /// Parks a reader; the value comes, or the sender is dropped with the connection.
    pub(super) fn park(&mut self, session: u64, wait: Wait) -> (u64, oneshot::Receiver<Value>) {
        let (to, from) = oneshot::channel();
        let ticket = self.number();
        self.blocked.push(Blocked { ticket, session, wait, to });
        (ticket, from)
    }

    /// Takes a reader back; false if it was served or cut meanwhile.
    pub(super) fn unpark(&mut self, ticket: u64) -> bool {
        let before = self.blocked.len();
        self.blocked.retain(|blocked| blocked.ticket != ticket);
        self.blocked.len() < before
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Takes one command of a connection at `now_us`; `None` if the connection is gone.
    pub(super) fn execute(&mut self, id: u64, args: &[Vec<u8>], now_us: i64) -> Option<Step> {
        let mut session = self.sessions.remove(&id)?;
        self.db.now_us = now_us;
        self.db.wait = None;
        let value = settle(self.take(&mut session, args));
        let wait = self.db.wait.take();
        self.sessions.insert(id, session);
        self.tell_watchers();
        self.serve_blocked();
        Some(wait.map_or(Step::Done(value), Step::Wait))
    }

    fn tell_watchers(&mut self) {
        let touched = std::mem::take(&mut self.db.touched);
        if touched.is_empty() {
            return;
        }
        for session in self.sessions.values_mut() {
            session.dirty |= session.watched.iter().any(|key| touched.contains(key));
        }
    }

    /// Tries the blocked readers of what changed again, the longest waiting first.
    fn serve_blocked(&mut self) {
        let roused = std::mem::take(&mut self.db.roused);
        if roused.is_empty() || self.blocked.is_empty() {
            return;
        }
        for blocked in std::mem::take(&mut self.blocked) {
            if !blocked.wait.keys.iter().any(|key| roused.contains(key)) {
                self.blocked.push(blocked);
                continue;
            }
            let command = &blocked.wait.command;
            let value = match commands::find(command) {
                Ok(spec) => settle((spec.run)(&mut self.db, command)),
                Err(refusal) => refusal.into_value(),
            };
            if self.db.wait.take().is_some() {
                self.blocked.push(blocked);
            } else {
                // A reader that is gone loses what was delivered to it, as on a real wire.
                drop(blocked.to.send(value));
            }
        }
    }

    /// Refuses, queues or runs a command.
    fn take(&mut self, session: &mut Session, args: &[Vec<u8>]) -> Reply {
        let name = args.first().map_or_else(String::new, |name| word(name));
        let grows = match commands::find(args) {
            Ok(spec) => spec.grows,
            Err(refusal) => {
                if let Some(queue) = &mut session.queue {
                    queue.failed = true;
                }
                return Err(refusal);
            }
        };
        if self.db.full {
            self.refuse_if_full(session, &name, grows)?;
        }
        match (name.as_str(), &mut session.queue) {
            ("MULTI", None) => {
                session.queue = Some(Queue::default());
                Ok(Value::Okay)
            }
            ("MULTI" | "WATCH", Some(queue)) => {
                // Valkey 9 lets the transaction fail, Redis does not; the stricter one finds more mistakes.
                queue.failed = true;
                Err(Refusal::new("ERR Command not allowed inside a transaction"))
            }
            ("EXEC", None) => Err(Refusal::new("ERR EXEC without MULTI")),
            ("EXEC", Some(_)) => self.exec(session),
            ("DISCARD", None) => Err(Refusal::new("ERR DISCARD without MULTI")),
            ("DISCARD", Some(_)) => {
                *session = Session { late: session.late, ..Session::default() };
                Ok(Value::Okay)
            }
            ("WATCH", None) => {
                args[1..].iter().for_each(|key| self.db.purge(key));
                // An expiry noticed just now was in the past: it dirties older watches, not the one that begins here.
                session.dirty |= session.watched.iter().any(|key| self.db.touched.contains(key));
                self.tell_watchers();
                session.watched.extend(args[1..].iter().cloned());
                Ok(Value::Okay)
            }
            ("UNWATCH", None) => {
                session.watched.clear();
                session.dirty = false;
                Ok(Value::Okay)
            }
            (_, Some(queue)) => {
                queue.commands.push(args.to_vec());
                queue.grows |= grows;
                Ok(Value::SimpleString("QUEUED".into()))
            }
            (_, None) => {
                let reply = self.run(&name, args);
                // A connection's own plain write dirties its own watch too.
                session.dirty |= session.watched.iter().any(|key| self.db.touched.contains(key));
                reply
            }
        }
    }

    /// A full server refuses what may grow, and an EXEC of anything that may. Like Redis 7.0, the strictest of those we
    /// support, it also refuses whatever would be queued; later ones queue what frees memory.
    fn refuse_if_full(&mut self, session: &mut Session, name: &str, grows: bool) -> Result<(), Refusal> {
        let Some(queue) = &mut session.queue else {
            return if grows { Err(Refusal::out_of_memory()) } else { Ok(()) };
        };
        match name {
            "DISCARD" => Ok(()),
            "EXEC" if !queue.grows => Ok(()),
            "EXEC" => {
                *session = Session { late: session.late, ..Session::default() };
                let why = Refusal::out_of_memory().0;
                Err(Refusal::new(format!("EXECABORT Transaction discarded because of: {why}")))
            }
            _ => {
                queue.failed = true;
                Err(Refusal::out_of_memory())
            }
        }
    }

    fn exec(&mut self, session: &mut Session) -> Reply {
        session.watched.iter().for_each(|key| self.db.purge(key));
        let dirty = session.dirty || session.watched.iter().any(|key| self.db.touched.contains(key));
        let queue = session.queue.take().unwrap_or_default();
        *session = Session { late: session.late, ..Session::default() };
        if queue.failed {
            return Err(Refusal::new("EXECABORT Transaction discarded because of previous errors."));
        }
        if dirty {
            return Ok(Value::Nil);
        }
        let mut replies = Vec::with_capacity(queue.commands.len());
        for args in &queue.commands {
            let torn = mutant("commit_torn") && replies.len() % 8 == 7;
            replies.push(if torn { Value::Okay } else { settle(self.run(&word(&args[0]), args)) });
            // Nothing blocks inside EXEC.
            self.db.wait = None;
        }
        Ok(Value::Array(replies))
    }

    /// Runs a command that is neither refused nor queued.
    fn run(&mut self, name: &str, args: &[Vec<u8>]) -> Reply {
        match name {
            "PING" => Ok(args.get(1).map_or(Value::SimpleString("PONG".into()), |text| bulk(text.clone()))),
            "UNWATCH" => Ok(Value::Okay),
            "CLIENT" if word(&args[1]) == "ID" => Ok(Value::Int(1)),
            "CLIENT" => Ok(Value::Okay),
            "INFO" => Ok(bulk(self.info(&args[1..]))),
            "SCRIPT" => self.script(args),
            "EVAL" => {
                let sha = self.digest_of(&args[1]);
                self.loaded.insert(sha.clone());
                self.eval(&sha, args)
            }
            "EVALSHA" => {
                let sha = String::from_utf8_lossy(&args[1]).to_lowercase();
                if !self.loaded.contains(&sha) {
                    return Err(Refusal::new("NOSCRIPT No matching script. Please use EVAL."));
                }
                self.eval(&sha, args)
            }
            _ => (commands::find(args)?.run)(&mut self.db, args),
        }
    }

    fn script(&mut self, args: &[Vec<u8>]) -> Reply {
        match word(&args[1]).as_str() {
            "LOAD" => {
                let sha = self.digest_of(&args[2]);
                self.loaded.insert(sha.clone());
                Ok(bulk(sha))
            }
            "FLUSH" => {
                self.loaded.clear();
                Ok(Value::Okay)
            }
            _ => {
                let known = args[2..].iter().map(|sha| yes(self.loaded.contains(&*String::from_utf8_lossy(sha))));
                Ok(Value::Array(known.collect()))
            }
        }
    }

    fn digest_of(&mut self, source: &[u8]) -> String {
        if let Some(known) = self.digests.get(source) {
            return known.clone();
        }
        let made = digest(&String::from_utf8_lossy(source));
        self.digests.insert(source.to_vec(), made.clone());
        made
    }

    fn eval(&mut self, sha: &str, args: &[Vec<u8>]) -> Reply {
        let count =
            usize::try_from(parse_int(&args[2])?).map_err(|_| Refusal::new("ERR Number of keys can't be negative"))?;
        let rest = &args[3..];
        if count > rest.len() {
            return Err(Refusal::new("ERR Number of keys can't be greater than number of args"));
        }
        let missing = || Refusal::new(format!("ERR script {sha} has no twin; register it with `register_script`"));
        let twin = self.twins.get(sha).cloned().ok_or_else(missing)?;
        let (keys, argv) = rest.split_at(count);
        Ok(twin(&mut self.db, keys, argv))
    }

    fn info(&self, wanted: &[Vec<u8>]) -> String {
        let (run, used, limit) = (self.incarnation + 1, self.used_bytes, self.limit_bytes);
        let server = format!("# Server\r\nredis_version:7.2.4\r\nredis_mode:standalone\r\nrun_id:{run:040x}\r\n");
        let memory = format!("# Memory\r\nused_memory:{used}\r\nmaxmemory:{limit}\r\nmaxmemory_policy:noeviction\r\n");
        let sections =
            [("SERVER", server), ("MEMORY", memory), ("REPLICATION", "# Replication\r\nrole:master\r\n".into())];
        let asked = |name: &str| {
            let fits = |section: &Vec<u8>| [name, "ALL", "DEFAULT", "EVERYTHING"].contains(&&*word(section));
            wanted.is_empty() || wanted.iter().any(fits)
        };
        let chosen: Vec<String> =
            sections.into_iter().filter(|(name, _)| asked(name)).map(|(_, section)| section).collect();
        chosen.join("\r\n")
    }
}

/// The SHA-1 of a script in hexadecimal digits, as EVALSHA wants it.
fn digest(source: &str) -> String {
    redis::Script::new(source).get_hash().to_owned()
}
