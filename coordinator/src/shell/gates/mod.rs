//! Gates between a ready step and the stream: circuit breakers and limits that the whole fleet shares, and paused queues.
//!
//! An owner looks at a view of the gates that its process keeps fresh ([`pump`]), parks what may not pass, and counts what
//! results say about dependencies ([`Book`]). It never waits for a gate: a view that is a moment old only means that a few
//! more jobs are dispatched, which workers hand back uncounted.

mod book;
mod pass;
pub mod pump;
mod shares;
mod tally;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use stepfleet_protocol::{
    gate::{About, Gate, GateState, Stand},
    name::Name,
};
use tokio::sync::{mpsc, watch};

pub use book::Book;
pub use pass::{Leave, Pass};
pub use tally::{Tally, Verdict};

use crate::store::limits::{Granted, Tell};

/// How the gates stand that are not simply open to everybody, as last read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// The gates.
    pub gates: BTreeMap<Gate, GateState>,
    /// How many partitions share a wave; at least 1.
    pub partitions: u64,
}

impl View {
    /// The paused queues.
    pub fn paused(&self) -> BTreeSet<Name> {
        let paused = self.gates.iter().filter(|(_, state)| state.stand == Stand::Paused);
        paused
            .filter_map(|(gate, _)| if let About::Queue(name) = gate.about() { Name::new(name).ok() } else { None })
            .collect()
    }

    /// Gates that hold jobs back, for workers.
    pub fn blocking(&self) -> Vec<Gate> {
        self.gates.iter().filter(|(_, state)| state.blocks()).map(|(gate, _)| gate.clone()).collect()
    }
}

/// What an owner tells the pump.
#[derive(Debug)]
pub enum Say {
    /// What results said about a dependency.
    Counted(Gate, Tally),
    /// What became of a job that tried.
    Canary(Gate, String, Verdict),
    /// The owner would let so many jobs try. What is granted comes to its inbox.
    Wants(Gate, u32, Inbox),
    /// What the owner has of a limit, and wants. The answer comes to its inbox.
    Share(Gate, Tell, Inbox),
    /// A worker knows of a gate that the view does not.
    Look,
}

/// What was granted to an owner.
#[derive(Debug, Default)]
pub struct Granting {
    /// Tokens for jobs that may try, by gate.
    pub tokens: BTreeMap<Gate, Vec<String>>,
    /// Answers about shares of limits: the number of the call, and what was granted if it was heard.
    pub shares: Vec<(Gate, u64, Option<Granted>)>,
}

/// Where what is granted comes to.
pub type Inbox = Arc<Mutex<Granting>>;

/// The way of all owners of a process to its pump.
#[derive(Debug, Clone)]
pub struct Way {
    view: watch::Receiver<Arc<View>>,
    say: mpsc::UnboundedSender<Say>,
}

impl Way {
    /// The end of one owner.
    pub fn link(&self) -> Link {
        Link { view: self.view.clone(), say: self.say.clone(), inbox: Inbox::default() }
    }
}

/// An owner's end: the view, and the way to the pump.
#[derive(Debug, Clone)]
pub struct Link {
    /// The gates.
    pub view: watch::Receiver<Arc<View>>,
    /// The way to the pump.
    pub say: mpsc::UnboundedSender<Say>,
    /// What was granted to this owner.
    pub inbox: Inbox,
}

impl Link {
    /// Brings the book up to date, and tells what it has counted.
    pub fn exchange(&mut self, book: &mut Book, now_ms: u64) {
        if self.view.has_changed().unwrap_or(false) {
            book.see(self.view.borrow_and_update().clone());
        }
        if book.expects() {
            let granted = std::mem::take(&mut *self.inbox.lock().unwrap_or_else(PoisonError::into_inner));
            book.take_granted(granted, now_ms);
        }
        for said in book.words(now_ms, &self.inbox) {
            // Without a pump nobody has to know.
            let _ = self.say.send(said);
        }
    }
}
