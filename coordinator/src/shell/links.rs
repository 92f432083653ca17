//! Links for short commands outside any transaction, one a node, opened again when lost.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use redis::{Cmd, Pipeline, Value};
use stepfleet_protocol::keys::slot_of;
use tokio::time::Instant;

use crate::store::{
    link::{Dial, Link, LinkError},
    reply,
};

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// A node that let us wait this long before it failed is not asked again for [`REST`], so that the other nodes are not
/// kept waiting by each question to it.
const SLOW_FAILURE: Duration = Duration::from_millis(500);
const REST: Duration = Duration::from_secs(3);
/// Where nobody is waited for in vain: a node has so much longer than the first one that answered.
const PATIENCE: Duration = Duration::from_millis(400);
/// The same while there is one that has to be dialled, which is five trips or more: one that is far away gets its link.
const PATIENCE_TO_DIAL: Duration = Duration::from_millis(1_000);

/// Commands about keys of one slot.
#[derive(Debug)]
pub struct Ask {
    slot: u16,
    cmds: Vec<Cmd>,
}

impl Ask {
    /// About `key`, and others of its slot.
    pub fn new(key: &str, cmds: Vec<Cmd>) -> Self {
        Self { slot: slot_of(key.as_bytes()), cmds }
    }
}

/// What a server said to an [`Ask`].
#[derive(Debug)]
pub struct Answer {
    /// One reply a command; refusals in their own place.
    pub replies: Vec<Value>,
    /// Just before the commands went out.
    pub sent: Instant,
    /// When the replies were there.
    pub got: Instant,
    /// Since when the link had been open, and nobody on it had been told that its server is not the one to ask. Two answers
    /// with the same moment, about slots of one node, are of the same process of a server.
    pub steady: Instant,
}

impl Answer {
    /// The answer, if nothing in it was refused.
    ///
    /// # Errors
    /// The first refusal.
    pub fn accepted(self) -> Result<Self, LinkError> {
        match self.replies.iter().find_map(reply::error) {
            Some(text) => Err(LinkError::Lost(text)),
            None => Ok(self),
        }
    }
}

/// A link, and since when it has been as an [`Answer`] tells.
struct Open<L> {
    link: L,
    steady: Instant,
}

/// Links by node. One task uses them.
pub struct Links<D: Dial> {
    dial: D,
    by_node: HashMap<u64, Open<D::Link>>,
    /// Nodes that are left alone until then.
    rests: HashMap<u64, Instant>,
    /// How much longer than the first one a node may take.
    patience: Option<Duration>,
}

impl<D: Dial> Links<D> {
    /// None are open yet.
    pub fn new(dial: D) -> Self {
        Self { dial, by_node: HashMap::new(), rests: HashMap::new(), patience: None }
    }

    /// None are open yet. A node whose answer comes 400 ms later than that of another one counts as away, so that it does
    /// not hold up what is done with the others; it may have done what it was asked all the same.
    pub fn impatient(dial: D) -> Self {
        Self { patience: Some(PATIENCE), ..Self::new(dial) }
    }

    /// A number for the node that serves `slot` now.
    pub fn node(&self, slot: u16) -> u64 {
        self.dial.node(slot)
    }

    /// Asks all nodes concerned at the same time, at most `per_trip` asks in one trip. Answers stand in the order of the asks;
    /// a node that fails takes only its own with it.
    ///
    /// An answer is an error if the link was lost, or if the server is not the one to ask (moved, read-only); the topology
    /// has been looked at again then.
    pub async fn gather(&mut self, asks: Vec<Ask>, per_trip: usize) -> Vec<Result<Answer, LinkError>> {
        let mut answers: Vec<Option<Result<Answer, LinkError>>> = asks.iter().map(|_| None).collect();
        let mut by_node: BTreeMap<u64, Vec<(usize, Ask)>> = BTreeMap::new();
        for (at, ask) in asks.into_iter().enumerate() {
            by_node.entry(self.dial.node(ask.slot)).or_default().push((at, ask));
        }
        let mut flights = FuturesUnordered::new();
        let mut under_way: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        let mut dialled: BTreeSet<u64> = BTreeSet::new();
        for (node, asks) in by_node {
            let rests = self.rests.get(&node).is_some_and(|until| Instant::now() < *until);
            let lost = rests.then(|| LinkError::Lost("the node failed a moment ago".into()));
            let flight =
                Flight { dial: self.dial.clone(), link: self.by_node.remove(&node), lost, answers: Vec::new() };
            dialled.extend((flight.link.is_none() && !rests).then_some(node));
            under_way.insert(node, asks.iter().map(|(at, _)| *at).collect());
            flights.push(async move { (node, rests, flight.fly(asks, per_trip).await) });
        }
        let (mut is_stale, mut slow, mut give_up) = (false, Vec::new(), None);
        while let Some((node, rested, (flight, took))) = next_until(&mut flights, give_up).await {
            under_way.remove(&node);
            dialled.remove(&node);
            let failed = flight.answers.iter().any(|(_, answer)| answer.is_err());
            is_stale |= !rested && failed;
            if !rested && flight.lost.is_some() && took >= SLOW_FAILURE {
                slow.push(node);
            }
            if !failed && give_up.is_none() {
                let to_dial = !dialled.is_empty();
                give_up = self.patience.map(|open| Instant::now() + if to_dial { PATIENCE_TO_DIAL } else { open });
            }
            self.by_node.extend(flight.link.map(|link| (node, link)));
            for (at, answer) in flight.answers {
                answers[at] = Some(answer);
            }
        }
        // Who is still under way is waited for no longer, and its link goes.
        drop(flights);
        for (node, asks) in under_way {
            is_stale = true;
            slow.push(node);
            asks.into_iter().for_each(|at| answers[at] = Some(Err(LinkError::TimedOut)));
        }
        if is_stale {
            self.dial.refresh().await;
        }
        // From now on, as the look at the topology may have asked such a node, too.
        self.rests.extend(slow.into_iter().map(|node| (node, Instant::now() + REST)));
        answers.into_iter().map(|answer| answer.expect("every ask was of one node")).collect()
    }

    /// Sends commands about `key`, and others of its slot, in one trip.
    ///
    /// # Errors
    /// The link's, after which the topology has been looked at again; a refusal by the server (moved, read-only) counts as
    /// a lost link.
    pub async fn trip(&mut self, key: &str, pipe: &Pipeline) -> Result<Vec<Value>, LinkError> {
        let ask = Ask::new(key, pipe.cmd_iter().cloned().collect());
        let answer = self.gather(vec![ask], 1).await.swap_remove(0);
        answer.map(|answer| answer.replies)
    }

    /// Sends one command.
    ///
    /// # Errors
    /// As [`Self::trip`].
    pub async fn one(&mut self, key: &str, cmd: Cmd) -> Result<Value, LinkError> {
        let answer = self.gather(vec![Ask::new(key, vec![cmd])], 1).await.swap_remove(0);
        answer?.replies.into_iter().next().ok_or_else(|| LinkError::Lost("no reply".into()))
    }

    /// Reads something by one command. What the server refuses is no answer: it must not pass for nothing.
    ///
    /// # Errors
    /// As [`Self::trip`], and any refusal.
    pub async fn read(&mut self, key: &str, cmd: Cmd) -> Result<Value, LinkError> {
        let found = self.one(key, cmd).await?;
        match reply::error(&found) {
            Some(text) => Err(LinkError::Lost(text)),
            None => Ok(found),
        }
    }
}

/// The next flight that ends; none if all have, or the time is over.
async fn next_until<F: Future>(flights: &mut FuturesUnordered<F>, give_up: Option<Instant>) -> Option<F::Output> {
    match give_up {
        Some(at) => tokio::time::timeout_at(at, flights.next()).await.ok().flatten(),
        None => flights.next().await,
    }
}

/// The asks of one node under way.
struct Flight<D: Dial> {
    dial: D,
    link: Option<Open<D::Link>>,
    /// Why nothing more is asked.
    lost: Option<LinkError>,
    answers: Vec<(usize, Result<Answer, LinkError>)>,
}

impl<D: Dial> Flight<D> {
    /// Asks trip by trip until the link is lost. Returns also how long the last trip took, its dialling included.
    async fn fly(mut self, mut asks: Vec<(usize, Ask)>, per_trip: usize) -> (Self, Duration) {
        let mut took = Duration::ZERO;
        while !asks.is_empty() {
            let rest = asks.split_off(asks.len().min(per_trip.max(1)));
            if self.lost.is_none() {
                let begun = Instant::now();
                self.lost = self.trip(&asks).await.err();
                took = begun.elapsed();
            }
            if let Some(why) = &self.lost {
                self.link = None;
                self.answers.extend(asks.iter().map(|(at, _)| (*at, Err(why.clone()))));
            }
            asks = rest;
        }
        (self, took)
    }

    /// One trip. What it brought is among the answers, unless all of it was lost.
    async fn trip(&mut self, asks: &[(usize, Ask)]) -> Result<(), LinkError> {
        let open = match &mut self.link {
            Some(open) => open,
            none => {
                let link = self.dial.dial(asks[0].1.slot, RESPONSE_TIMEOUT).await?;
                none.insert(Open { link, steady: Instant::now() })
            }
        };
        let mut pipe = Pipeline::with_capacity(asks.iter().map(|(_, ask)| ask.cmds.len()).sum());
        for cmd in asks.iter().flat_map(|(_, ask)| &ask.cmds) {
            pipe.add_command(cmd.clone());
        }
        let sent = Instant::now();
        let mut replies = open.link.trip(&pipe).await?.into_iter();
        let got = Instant::now();
        let steady = open.steady;
        for (at, ask) in asks {
            let replies: Vec<Value> = replies.by_ref().take(ask.cmds.len()).collect();
            let answer = match replies.iter().filter_map(reply::error).find(|text| is_elsewhere(text)) {
                Some(text) => {
                    open.steady = got;
                    Err(LinkError::Lost(text))
                }
                None => Ok(Answer { replies, sent, got, steady }),
            };
            self.answers.push((*at, answer));
        }
        Ok(())
    }
}

/// Whether a refusal says that this server is not the one to ask, now or any more.
fn is_elsewhere(text: &str) -> bool {
    ["MOVED", "ASK", "TRYAGAIN", "READONLY", "CLUSTERDOWN", "LOADING"].iter().any(|word| text.starts_with(word))
}
