//! The dispatcher over a real server: at least once, in order, and no subscriber in the way of another or of trimming.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use stepfleet_connect::Redis;
use stepfleet_coordinator::{
    machine::{decision::Why, rules::Rules},
    shell::{
        dispatcher::{ATTEMPTS_MAX, Dispatcher, FleetEvent, Notice, Refusal, Settings, Subscriber},
        metrics::Metrics,
        retention::Retention,
    },
    store::{
        client::Client,
        gates::Act,
        outbox::{Cursor, Feed},
        reply,
    },
};
use stepfleet_protocol::{
    audit::AuditEntry,
    gate::Gate,
    id::{RunId, StreamId},
    name::Name,
};
use tokio::{sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    fleet::{PARTITION, all_keys, chain, keys},
    world::{World, on_real},
};

const DEADLINE: Duration = Duration::from_secs(60);

/// How a subscriber behaves.
#[derive(Default)]
struct Manners {
    /// It refuses whatever is about this run.
    refuses: Option<RunId>,
    /// It refuses changes of the fleet with this action.
    refuses_action: Option<&'static str>,
    /// It notes the delivery with this number, from 1, and is never done with it.
    hangs_at: Option<usize>,
    /// It wants nothing at all.
    deaf: AtomicBool,
}

/// A subscriber that notes what it was told, refused or not.
struct Probe {
    name: &'static str,
    manners: Manners,
    told: Mutex<Vec<(StreamId, RunId)>>,
    /// Changes of the fleet: action and target.
    of_fleet: Mutex<Vec<(String, String)>>,
    news: Notify,
}

impl Probe {
    fn new(name: &'static str, manners: Manners) -> Arc<Self> {
        Arc::new(Self { name, manners, told: Mutex::default(), of_fleet: Mutex::default(), news: Notify::new() })
    }

    fn told(&self) -> Vec<(StreamId, RunId)> {
        self.told.lock().expect("nobody panics").clone()
    }

    fn entries(&self) -> Vec<StreamId> {
        self.told().into_iter().map(|(entry, _)| entry).collect()
    }

    async fn until(&self, what: &str, is_it: impl Fn(&[(StreamId, RunId)]) -> bool) {
        let wait = async {
            while !is_it(&self.told()) {
                self.news.notified().await;
            }
        };
        let told = tokio::time::timeout(DEADLINE, wait).await;
        told.unwrap_or_else(|_| panic!("{}: not within the deadline: {what}: {:?}", self.name, self.told()));
    }
}

impl Subscriber for Probe {
    fn name(&self) -> &str {
        self.name
    }

    fn wants(&self, _: Why) -> bool {
        !self.manners.deaf.load(Ordering::Relaxed)
    }

    fn deliver<'a>(&'a self, notices: &'a [Notice]) -> BoxFuture<'a, Result<(), Refusal>> {
        async move {
            assert!(notices.iter().all(|notice| notice.followed.is_some() && !notice.transitions.is_empty()));
            let number = {
                let mut told = self.told.lock().expect("nobody panics");
                told.extend(notices.iter().map(|notice| (notice.entry, notice.run)));
                told.len()
            };
            self.news.notify_one();
            if self.manners.hangs_at.is_some_and(|at| number >= at) {
                std::future::pending::<()>().await;
            }
            let refused = notices.iter().any(|notice| Some(notice.run) == self.manners.refuses);
            if refused { Err(Refusal("not that one".into())) } else { Ok(()) }
        }
        .boxed()
    }

    fn wants_of_fleet(&self, action: &str) -> bool {
        !self.manners.deaf.load(Ordering::Relaxed) && (action.starts_with("breaker.") || action.starts_with("queue."))
    }

    fn deliver_of_fleet<'a>(&'a self, event: &'a FleetEvent) -> BoxFuture<'a, Result<(), Refusal>> {
        async move {
            let refuses = self.manners.refuses_action.is_some_and(|action| action == event.change.action);
            self.of_fleet
                .lock()
                .expect("nobody panics")
                .push((event.change.action.clone(), event.change.target.clone()));
            self.news.notify_one();
            if refuses { Err(Refusal("not that change".into())) } else { Ok(()) }
        }
        .boxed()
    }
}

impl World<Redis> {
    fn api(&self) -> Client {
        Client::new(self.dial.clone(), all_keys())
    }

    /// Follows the partition's outbox for these subscribers.
    fn dispatch(&self, probes: &[&Arc<Probe>], metrics: &Metrics) -> (JoinHandle<()>, CancellationToken) {
        let settings = Settings {
            interval: Duration::from_millis(5),
            retry_base: Duration::from_millis(2),
            ..Settings::default()
        };
        let subscribers = probes.iter().map(|probe| (*probe).clone() as Arc<dyn Subscriber>).collect();
        let (dispatcher, stop) = (Dispatcher::new(self.api(), settings, subscribers), CancellationToken::new());
        (tokio::spawn(dispatcher.follow(PARTITION, metrics.clone(), stop.clone())), stop)
    }

    /// Runs of one step, each begun in a commit of its own.
    async fn begin(&mut self, count: usize) -> Vec<RunId> {
        let mut owner = self.own().await;
        let mut runs = Vec::new();
        for _ in 0..count {
            runs.push(self.submit(&chain(1)).await);
            // It commits the run before this one, so that it never has to wait for something to do.
            self.turns(&mut owner, 1).await;
        }
        self.turns(&mut owner, 1).await;
        runs
    }

    /// The entries of the outbox.
    async fn events(&mut self) -> Vec<StreamId> {
        let found = self.one(&[b"XRANGE", keys().events().as_bytes(), b"-", b"+"]).await;
        reply::entries(found).into_iter().map(|(id, _)| id).collect()
    }

    async fn cursor(&self, name: &str) -> Cursor {
        self.api().cursor(PARTITION, name).await.expect("up").expect("it ran")
    }
}

async fn end((task, stop): (JoinHandle<()>, CancellationToken)) {
    stop.cancel();
    tokio::time::timeout(DEADLINE, task).await.expect("it stops").expect("it did not panic");
}

#[test]
fn what_a_subscriber_refuses_five_times_is_set_aside_and_the_next_events_arrive() -> anyhow::Result<()> {
    on_real("outbox_refused", async |mut w| {
        let runs = w.begin(3).await;
        let probe = Probe::new("picky", Manners { refuses: Some(runs[1]), ..Manners::default() });
        let metrics = Metrics::new();
        let follower = w.dispatch(&[&probe], &metrics);
        probe.until("the last event", |told| told.iter().any(|(_, run)| *run == runs[2])).await;
        end(follower).await;
        let tries = probe.told().iter().filter(|(_, run)| *run == runs[1]).count();
        assert_eq!(tries, ATTEMPTS_MAX as usize);
        w.api().add_partitions(1).await.expect("up");
        let page = w.api().undelivered(Some("picky"), None, 10).await.expect("up");
        assert_eq!((page.items.len(), page.next), (1, None), "{page:?}");
        let (_, set_aside) = &page.items[0];
        assert_eq!((set_aside.error.as_str(), set_aside.attempts), ("not that one", ATTEMPTS_MAX));
        assert_eq!(set_aside.entry, w.events().await[1]);
        let following = w.api().subscribers().await.expect("up").remove(0);
        assert_eq!((following.lag, following.cursor.delivered, following.cursor.undelivered), (0, 2, 1));
        let counted = [&metrics.outbox.deliveries, &metrics.outbox.failures, &metrics.outbox.undelivered]
            .map(|counter| counter.with_label_values(&["picky"]).get());
        assert_eq!((counted, w.counter("undelivered_events").await), ([2, 5, 1], 1));
    })
}

#[test]
fn a_dispatcher_that_dies_between_delivery_and_cursor_delivers_again_and_skips_nothing() -> anyhow::Result<()> {
    on_real("outbox_crash", async |mut w| {
        w.begin(5).await;
        let before = Probe::new("same", Manners { hangs_at: Some(3), ..Manners::default() });
        let (task, _) = w.dispatch(&[&before], &Metrics::new());
        before.until("three events", |told| told.len() == 3).await;
        // As a kill does: nothing more is written.
        task.abort();
        let _ = task.await;
        w.begin(2).await;
        let after = Probe::new("same", Manners::default());
        let follower = w.dispatch(&[&after], &Metrics::new());
        let events = w.events().await;
        after.until("the last event", |told| told.last().map(|(entry, _)| entry) == events.last()).await;
        end(follower).await;
        let (first, second) = (before.entries(), after.entries());
        assert_eq!((events.len(), &first[..]), (7, &events[..3]), "in the order of the commits");
        assert!(second.contains(&events[2]), "what was delivered and not noted comes again: {second:?}");
        assert!(second.is_sorted() && events[2..].iter().all(|e| second.contains(e)), "none is skipped: {second:?}");
        assert_eq!((w.cursor("same").await.entry, w.cursor("same").await.missed), (events[6], 0));
    })
}

#[test]
fn a_dead_subscriber_stops_neither_another_nor_trimming_and_what_it_missed_is_counted() -> anyhow::Result<()> {
    on_real("outbox_dead", async |mut w| {
        let dead = Probe::new("dead", Manners { hangs_at: Some(1), ..Manners::default() });
        let live = Probe::new("live", Manners::default());
        let follower = w.dispatch(&[&dead, &live], &Metrics::new());
        let runs = w.begin(250).await;
        live.until("every run", |told| told.iter().any(|(_, run)| *run == runs[249])).await;
        assert_eq!(dead.told().len(), 1, "it is not done with the first");
        end(follower).await;
        let heard: BTreeSet<StreamId> = live.entries().into_iter().collect();
        assert_eq!(heard, w.events().await.into_iter().collect(), "the other one heard everything");
        assert!(w.expire(Retention { events_max: 50, ..Retention::default() }).await.done.expired.events > 0);
        let left = w.events().await;

        let again = Probe::new("dead", Manners::default());
        let metrics = Metrics::new();
        let follower = w.dispatch(&[&again], &metrics);
        again.until("what is left", |told| told.last().map(|(entry, _)| entry) == left.last()).await;
        end(follower).await;
        assert_eq!(again.entries(), left);
        let missed = heard.len() - left.len();
        let counted = metrics.outbox.missed.with_label_values(&["dead"]).get();
        assert_eq!((counted, w.counter("missed_events").await), (missed as u64, missed as i64));
        assert_eq!(w.cursor("dead").await.seen, heard.len() as u64);
    })
}

#[test]
fn a_subscriber_that_wants_nothing_is_told_nothing_and_does_not_lag() -> anyhow::Result<()> {
    on_real("outbox_deaf", async |mut w| {
        w.begin(3).await;
        let deaf = Probe::new("deaf", Manners { deaf: AtomicBool::new(true), ..Manners::default() });
        let other = Probe::new("other", Manners::default());
        let follower = w.dispatch(&[&deaf, &other], &Metrics::new());
        other.until("three events", |told| told.len() >= 3).await;
        w.api().add_partitions(1).await.expect("up");
        let passed = async {
            while w
                .api()
                .subscribers()
                .await
                .expect("up")
                .iter()
                .filter(|f| f.feed != Feed::Fleet && f.lag == 0)
                .count()
                < 2
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, passed).await.expect("both are at the end");
        end(follower).await;
        assert_eq!((deaf.told().len(), w.cursor("deaf").await.seen), (0, 3));
    })
}

#[test]
fn what_happens_to_breakers_and_queues_is_told_once_it_changed_and_what_is_refused_is_set_aside() -> anyhow::Result<()>
{
    on_real("outbox_fleet", async |w| {
        let api = w.api();
        api.add_partitions(1).await.expect("up");
        let probe = Probe::new("gates", Manners { refuses_action: Some("queue.pause"), ..Manners::default() });
        let follower = w.dispatch(&[&probe], &Metrics::new());
        let (bank, mail) = (Gate::target("bank"), Gate::queue(&Name::new("mail").expect("a legal name")));
        let policy = Rules::default().breaker_of_target("bank");
        api.act_on_breaker(&bank, &policy, Act::Open(0), ("ann", "down")).await.expect("up");
        api.pause_queue(&mail, true, "ann", "wait").await.expect("up");
        api.pause_queue(&mail, true, "bob", "wait, I say").await.expect("up");
        api.audit_fleet(&AuditEntry::new("ann", "policies.apply", "policies".into(), 1)).await.expect("up");
        api.act_on_breaker(&bank, &policy, Act::Reset, ("ann", "up")).await.expect("up");
        let heard = || probe.of_fleet.lock().expect("nobody panics").clone();
        let wait = async {
            while heard().last().is_none_or(|(action, _)| action != "breaker.closed") {
                probe.news.notified().await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("not all: {:?}", heard()));
        end(follower).await;
        let actions: Vec<String> = heard().into_iter().map(|(action, _)| action).collect();
        let pause = ["queue.pause"; ATTEMPTS_MAX as usize];
        assert_eq!(
            actions,
            [&["breaker.open"][..], &pause[..], &["breaker.closed"][..]].concat(),
            "in order, each change"
        );
        assert_eq!(heard()[0].1, "breaker:target:bank");
        let page = api.undelivered(Some("gates"), None, 10).await.expect("up");
        assert_eq!((page.items.len(), page.items[0].1.error.as_str()), (1, "not that change"));
        assert!(page.items[0].0.to_string().starts_with("fleet-"), "{:?}", page.items[0].0);
        let following = api.subscribers().await.expect("up");
        let of_fleet = following.iter().find(|f| f.feed == Feed::Fleet).expect("it followed the fleet");
        assert_eq!((of_fleet.lag, of_fleet.cursor.delivered, of_fleet.cursor.undelivered), (0, 2, 1));
    })
}
