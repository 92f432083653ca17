//! Gates that open and close by chance: of the handler, of the queue, of a target. And limits, in every second story.

use std::{collections::BTreeMap, sync::Arc};

use rand::{RngExt, rngs::StdRng};
use stepfleet_coordinator::{
    machine::rules::Rules,
    shell::gates::{Inbox, Link, Say, View},
    store::limits::Granted,
};
use stepfleet_protocol::{
    gate::{Gate, GateState, Stand},
    name::Name,
    policy::{LimitPolicy, Policies},
};
use tokio::sync::{mpsc, watch};

/// The circuit breakers and pauses of the simulated fleet.
pub(crate) struct Gates {
    view: watch::Sender<Arc<View>>,
    say: mpsc::UnboundedSender<Say>,
    heard: mpsc::UnboundedReceiver<Say>,
    /// Jobs that a limit lets be under way; none without limits.
    most: Option<u64>,
}

impl Gates {
    pub(crate) fn new(seed: u64) -> Self {
        let (say, heard) = mpsc::unbounded_channel();
        let most = seed.is_multiple_of(2).then_some(4 + seed % 5);
        Self { view: watch::Sender::new(Arc::new(View::default())), say, heard, most }
    }

    /// The limits, of the handler and of the target.
    pub(crate) fn rules(&self) -> Rules {
        let mut policies = Policies::default();
        for name in ["handler:noop", "target:bank"] {
            if let Some(most) = self.most {
                let limit = LimitPolicy { concurrency: Some(most as u32), ..LimitPolicy::default() };
                policies.limits.insert(name.into(), limit);
            }
        }
        Rules::new(1, policies)
    }

    /// Answers what owners tell and wish for. Some of it is lost.
    pub(crate) fn answer(&mut self, rng: &mut StdRng) {
        while let Ok(said) = self.heard.try_recv() {
            match said {
                Say::Wants(gate, count, inbox) => {
                    let tokens = (0..count).map(|_| rng.random::<u64>().to_string());
                    inbox.lock().expect("nobody panics here").tokens.entry(gate).or_default().extend(tokens);
                }
                Say::Share(gate, tell, inbox) if rng.random_bool(0.95) => {
                    let most = self.most.unwrap_or(0);
                    let granted = tell.want.min(most.saturating_sub(tell.used));
                    // Others wait, now and then.
                    let keep = [0, most / 2, most][rng.random_range(0..3)];
                    let granted = Granted { used: tell.used, granted, keep, due_ms: 0 };
                    inbox.lock().expect("nobody panics here").shares.push((gate, tell.call, Some(granted)));
                }
                _ => {}
            }
        }
    }

    /// The end of a new owner.
    pub(crate) fn link(&self) -> Link {
        Link { view: self.view.subscribe(), say: self.say.clone(), inbox: Inbox::default() }
    }

    /// Moves one of the gates.
    pub(crate) fn stir(&self, rng: &mut StdRng, turn: u32) {
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
    }

    /// Everything may pass from now on.
    pub(crate) fn open(&self) {
        self.view.send_replace(Arc::new(View::default()));
    }
}
