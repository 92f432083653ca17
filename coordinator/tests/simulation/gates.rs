//! Gates that open and close by chance: of the handler, of the queue, of a target.

use std::{collections::BTreeMap, sync::Arc};

use rand::{RngExt, rngs::StdRng};
use stepfleet_coordinator::shell::gates::{Inbox, Link, Say, View};
use stepfleet_protocol::{
    gate::{Gate, GateState, Stand},
    name::Name,
};
use tokio::sync::{mpsc, watch};

/// The circuit breakers and pauses of the simulated fleet.
pub(crate) struct Gates {
    view: watch::Sender<Arc<View>>,
    say: mpsc::UnboundedSender<Say>,
    heard: mpsc::UnboundedReceiver<Say>,
}

impl Default for Gates {
    fn default() -> Self {
        let (say, heard) = mpsc::unbounded_channel();
        Self { view: watch::Sender::new(Arc::new(View::default())), say, heard }
    }
}

impl Gates {
    /// The end of a new owner.
    pub(crate) fn link(&self) -> Link {
        Link { view: self.view.subscribe(), say: self.say.clone(), inbox: Inbox::default() }
    }

    /// Moves one of the gates, and grants what owners wish for.
    pub(crate) fn stir(&mut self, rng: &mut StdRng, turn: u32) {
        let name = |text| Name::new(text).expect("a legal name");
        let all = [Gate::handler(&name("noop")), Gate::queue(&name("default")), Gate::target("bank")];
        let gate = all[rng.random_range(0..all.len())].clone();
        let stands = [None, None, Some(Stand::Open), Some(Stand::HalfOpen), Some(Stand::Recovering)];
        let stand = match gate {
            _ if gate.as_str().starts_with("queue") => [None, Some(Stand::Paused)][rng.random_range(0..2)],
            _ => stands[rng.random_range(0..stands.len())],
        };
        let mut gates: BTreeMap<Gate, GateState> = self.view.borrow().gates.clone();
        gates.remove(&gate);
        if let Some(stand) = stand {
            let since_ms = u64::from(turn);
            let state = GateState {
                v: 1,
                stand,
                since_ms,
                until_ms: 0,
                canaries: 3,
                reason: String::new(),
                actor: String::new(),
            };
            gates.insert(gate, state);
        }
        self.view.send_replace(Arc::new(View { gates, partitions: 1 }));
        while let Ok(said) = self.heard.try_recv() {
            if let Say::Wants(gate, count, inbox) = said {
                let tokens = (0..count).map(|n| format!("{turn}.{n}"));
                inbox.lock().expect("nobody panics here").tokens.entry(gate).or_default().extend(tokens);
            }
        }
    }

    /// Everything may pass from now on.
    pub(crate) fn open(&self) {
        self.view.send_replace(Arc::new(View::default()));
    }
}
