//! Campaigns over dead letters, with owners and runners that change at random moments and a wire that loses trips: a campaign
//! neither skips nor doubles.

mod waits;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use stepfleet_coordinator::{
    machine::decision::Why,
    shell::{
        campaign::Campaigns,
        metrics::Metrics,
        owner::{Memory, Owner},
    },
    store::{
        campaigns::{
            Campaign, FIELD_DEFINITION, FIELD_PHASE, FIELD_WANT, Item, Kind, Outcome as Became, Phase, Standing, Want,
            standing,
        },
        letters::Filter,
        memory::{Clock, Faults, MemoryDial, MemoryLink, MemoryServer},
        read::PlacedId,
        reply,
    },
};
use stepfleet_protocol::{
    codec,
    failure::{Category, Failure},
    id::{PartitionId, RunId, StreamId},
    message::{Outcome, Verb},
    state::State,
    value::Input,
};
use tokio::sync::watch;
use uuid::Uuid;

use crate::{fleet::*, run, seeds};

/// Seeds of a test run.
const SEEDS_DEFAULT: u64 = 20;
/// Letters that there are when the campaign begins.
const LETTERS: usize = 24;
/// Everything is over by then.
const TURNS: u32 = 6_000;
/// From this turn on nothing goes wrong any more.
const CALM: u32 = 2_500;

struct Runner {
    campaigns: Campaigns<MemoryDial>,
    owned: watch::Sender<BTreeSet<PartitionId>>,
}

impl Runner {
    fn new(dial: &MemoryDial) -> Self {
        let owned = watch::Sender::new(BTreeSet::from([PARTITION]));
        Self { campaigns: Campaigns::new(dial.clone(), all_keys(), Metrics::new(), owned.subscribe()), owned }
    }
}

struct Story {
    seed: u64,
    rng: StdRng,
    server: MemoryServer,
    dial: MemoryDial,
    client: Client<MemoryDial>,
    worker: Worker<MemoryDial>,
    owner: Option<Owner<MemoryLink>>,
    reigns: u64,
    runners: Vec<Runner>,
    runs: Vec<RunId>,
    /// Jobs that a worker was given, by run and input.
    inputs: BTreeMap<RunId, Vec<Input>>,
}

impl Story {
    fn new(seed: u64) -> Self {
        let server = MemoryServer::new(Clock::default());
        let dial = server.dial();
        Self {
            seed,
            rng: StdRng::seed_from_u64(seed),
            client: Client::new(dial.clone(), seed),
            worker: Worker::new(dial.clone(), 1),
            owner: None,
            reigns: 0,
            runners: vec![Runner::new(&dial), Runner::new(&dial)],
            runs: Vec::new(),
            inputs: BTreeMap::new(),
            server,
            dial,
        }
    }

    async fn own(&mut self, calm: bool) {
        if self.owner.is_none() || (!calm && self.rng.random_bool(0.01)) {
            self.reigns += 1;
            self.owner = own(&self.dial, self.seed << 20 | self.reigns, Memory::default()).await.ok();
        }
        if let Some(current) = &mut self.owner
            && let Err(error) = current.turn(false).await
        {
            assert!(is_doubt(&error), "seed {}: {error}", self.seed);
            self.owner = None;
        }
    }

    async fn work(&mut self, fails: f64) {
        let jobs = match self.worker.take(4).await {
            Ok(jobs) => jobs,
            Err(_) => self.worker.own_pending().await,
        };
        let mut results = Vec::new();
        for (of, job) in jobs {
            self.inputs.entry(of.run).or_default().push(job.input);
            let outcome = match self.rng.random_bool(fails) {
                true => Outcome::Failed(Failure::new(Category::Permanent, "never")),
                false => Outcome::Completed(None),
            };
            results.push((of, outcome));
        }
        while !results.is_empty() && self.worker.answer(results.clone()).await.is_err() {}
    }

    /// One look of a runner, which may die in the middle of it or lose its partition to the other.
    async fn look(&mut self, calm: bool) {
        let which = self.rng.random_range(0..self.runners.len());
        if !calm && self.rng.random_bool(0.1) {
            let other = (which + 1) % self.runners.len();
            let both = self.rng.random_bool(0.3);
            let mine = if both { BTreeSet::from([PARTITION]) } else { BTreeSet::new() };
            self.runners[other].owned.send_replace(mine);
            self.runners[which].owned.send_replace(BTreeSet::from([PARTITION]));
        }
        if calm {
            self.runners[which].owned.send_replace(BTreeSet::from([PARTITION]));
        }
        let dies = !calm && self.rng.random_bool(0.2);
        let after = Duration::from_millis(self.rng.random_range(0..30));
        let look = self.runners[which].campaigns.look();
        if dies {
            if tokio::time::timeout(after, look).await.is_err() {
                self.runners[which] = Runner::new(&self.dial);
            }
        } else {
            drop(look.await);
        }
    }

    /// Letters of `LETTERS` runs, half of them of another workflow.
    async fn fail(&mut self) {
        let (mine, other) = (chain(1), workflow(&[("s0", &[])]));
        for at in 0..LETTERS {
            let id = self.client.run_id();
            let plan = if at % 2 == 0 { &mine } else { &other };
            self.client.submit(id, plan, None, false).await.expect("no faults yet");
            self.runs.push(id);
        }
        while self.letters().await.len() < LETTERS {
            self.own(true).await;
            self.work(1.0).await;
        }
        self.inputs.clear();
    }

    async fn letters(&mut self) -> Vec<StreamId> {
        let mut look = redis::pipe();
        look.cmd("XRANGE").arg(keys().dead()).arg("-").arg("+");
        loop {
            if let Ok(mut found) = self.client.trip(&look).await {
                return reply::entries(found.swap_remove(0)).into_iter().map(|(id, _)| id).collect();
            }
        }
    }

    /// Writes a campaign as its begin does.
    async fn begin(&mut self, mut campaign: Campaign) -> Campaign {
        campaign.ends = vec![*self.letters().await.last().expect("there are letters")];
        let mut pipe = redis::pipe();
        pipe.cmd("HSET").arg(all_keys().campaign(campaign.id)).arg(FIELD_DEFINITION).arg(codec::pack(&campaign));
        pipe.arg(FIELD_WANT).arg(Want::Running.as_str()).arg(FIELD_PHASE).arg(Phase::Running.as_str());
        pipe.cmd("ZADD").arg(all_keys().campaigns_active()).arg(1).arg(campaign.id.to_string());
        pipe.cmd("ZADD").arg(all_keys().campaigns()).arg(campaign.at_ms).arg(campaign.id.to_string());
        self.client.trip(&pipe).await.expect("no faults yet");
        campaign
    }

    async fn standing(&mut self, id: Uuid) -> Standing {
        let mut look = redis::pipe();
        look.cmd("HGETALL").arg(all_keys().campaign(id)).cmd("HLEN").arg(all_keys().campaign_open(id));
        loop {
            if let Ok(mut found) = self.client.trip(&look).await {
                let open = reply::number(&found[1]).unwrap_or(0) as u64;
                return standing(&reply::pairs(found.swap_remove(0)), open).expect("it is ours");
            }
        }
    }

    async fn items(&mut self, id: Uuid) -> Vec<Item> {
        let mut look = redis::pipe();
        look.cmd("LRANGE").arg(all_keys().campaign_items(id)).arg(0).arg(-1);
        let found = self.client.trip(&look).await.expect("no faults any more").swap_remove(0);
        let items = reply::array(&found).unwrap_or_default().iter().filter_map(reply::bytes);
        items.map(|bytes| codec::unpack(bytes).expect("it is ours")).collect()
    }
}

fn campaign(seed: u64) -> Campaign {
    Campaign {
        v: 1,
        id: Uuid::from_u128(u128::from(seed) + 1),
        kind: Kind::Replay,
        filter: Filter { workflow: Some("chain".into()), ..Filter::default() },
        actor: "ann".into(),
        reason: None,
        at_ms: 1_800_000_000_000,
        ends: Vec::new(),
        canary: 0,
        rate: 0,
        stop_when_failing: 0,
        max: 1_000,
        returns_max: 3,
        ramp_ms: 0,
        patch: None,
        when_version: None,
    }
}

/// One campaign over letters half of which it is about, some of which somebody discards meanwhile.
async fn one_seed(seed: u64) {
    let mut story = Story::new(seed);
    story.fail().await;
    let mine: BTreeMap<RunId, StreamId> = {
        let mut of = BTreeMap::new();
        for run in story.runs.clone().into_iter().step_by(2) {
            let stored = stored(&mut story.client, run).await.expect("no faults yet").expect("it is there");
            of.insert(run, stored.steps[&0].letter.expect("it failed"));
        }
        of
    };
    let patched = seed.is_multiple_of(3);
    let patch = patched.then(|| serde_json::json!({ "mended": true }));
    let campaign = story.begin(Campaign { patch, rate: (seed % 2 * 200) as u32, ..campaign(seed) }).await;
    story.server.set_faults(Faults {
        seed,
        lose_request: 0.03,
        lose_reply: 0.03,
        late_exec: 0.03,
        late_by_max: Duration::from_secs(1),
        latency_max: Duration::from_millis(3),
    });
    for turn in 0..TURNS {
        let calm = turn >= CALM;
        if turn == CALM {
            story.server.set_faults(Faults { latency_max: Duration::from_millis(1), ..Faults::default() });
        }
        story.look(calm).await;
        story.own(calm).await;
        if story.rng.random_bool(0.5) {
            story.work(0.3).await;
        }
        if turn == 3 {
            // Somebody closes one of the letters: it is left alone, or has been replayed already.
            let (run, letter) = mine.iter().next().map(|(run, letter)| (*run, *letter)).expect("there are letters");
            while story.client.command(run, Verb::Discard { index: 0, letter }).await.is_err() {}
        }
        if turn % 20 == 19 && story.standing(campaign.id).await.phase.is_final() {
            break;
        }
        assert!(turn + 1 < TURNS, "seed {seed}: the campaign never ended");
    }
    story.server.set_faults(Faults::default());
    check(&mut story, &campaign, &mine, patched).await;
}

/// Each letter that was meant has one outcome, which is the true one, and was replayed once at most; no other was touched.
async fn check(story: &mut Story, campaign: &Campaign, mine: &BTreeMap<RunId, StreamId>, patched: bool) {
    let seed = story.seed;
    let found = story.standing(campaign.id).await;
    assert_eq!((found.phase, found.open), (Phase::Completed, 0), "seed {seed}");
    let items = story.items(campaign.id).await;
    let mut told: Vec<PlacedId> = items.iter().map(|item| item.letter).collect();
    told.sort_unstable();
    let mut meant = Vec::new();
    for (run, entry) in mine {
        let letter = PlacedId { entry: *entry, partition: PARTITION };
        let stored = stored(&mut story.client, *run).await.expect("no faults").expect("it is there");
        let discarded = stored.history.iter().any(|t| t.why == Why::Discarded);
        // One that somebody closed before the campaign came to it is not there any more.
        if !discarded || told.contains(&letter) {
            meant.push(letter);
        }
    }
    assert!(meant.len() + 1 >= mine.len(), "seed {seed}: only one was discarded");
    meant.sort_unstable();
    assert_eq!(told, meant, "seed {seed}: each once");
    let counted: u64 = found.counts.iter().map(|(_, count)| count).sum();
    assert_eq!(counted, meant.len() as u64, "seed {seed}: {:?}", found.counts);
    let became: BTreeMap<RunId, &Item> = items.iter().map(|item| (item.run, item)).collect();
    for run in story.runs.clone() {
        let stored = stored(&mut story.client, run).await.expect("no faults").expect("it is there");
        let replays = stored.history.iter().filter(|t| t.why == Why::Replayed && t.step == Some(0));
        let replays = replays.filter(|t| t.from == State::Failed).count();
        let Some(item) = became.get(&run) else {
            assert_eq!(replays, 0, "seed {seed}: a letter that was not meant");
            continue;
        };
        let want = match item.outcome {
            Became::Completed => (1, State::Completed),
            Became::FailedAgain => (1, State::Failed),
            Became::Skipped => (0, State::Failed),
            other => panic!("seed {seed}: {other:?} of {run}: {:?}", item.note),
        };
        assert_eq!((replays, stored.steps[&0].state), want, "seed {seed}: {run} {item:?}");
        if let (true, 1, Some(inputs)) = (patched, replays, story.inputs.get(&run)) {
            assert!(inputs.iter().all(|input| *input != Input::None), "seed {seed}: {run} was tried without the patch");
        }
    }
}

#[test]
fn a_campaign_neither_skips_nor_doubles() {
    let one = |seed| {
        let panic = std::panic::catch_unwind(|| run(one_seed(seed))).err()?;
        let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        Some(format!("seed {seed}: checker `campaigns`: {text}\nagain: SEED={seed} make simulate"))
    };
    if let Some((_, text)) = seeds::each(seeds::wanted(SEEDS_DEFAULT), one) {
        panic!("{text}");
    }
}
