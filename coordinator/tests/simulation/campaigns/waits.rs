//! Campaigns that wait for a version, and those that are kept no longer.

use std::time::Duration;

use stepfleet_coordinator::store::{
    campaigns::{Campaign, FIELD_DEFINITION, FIELD_PHASE, FIELD_WANT, Phase},
    memory::MemoryDial,
    reply,
};
use stepfleet_protocol::{
    beat::{self, Beat},
    codec,
    id::WorkerId,
    name::Name,
};

use super::{LETTERS, Story, campaign};
use crate::{fleet::*, run};

#[test]
fn a_campaign_waits_until_a_worker_of_the_version_is_there() {
    run(async {
        let mut story = Story::new(1);
        story.fail().await;
        let campaign = story.begin(Campaign { when_version: Some(">=1.4".into()), ..campaign(1) }).await;
        let runner = &mut story.runners[0];
        runner.campaigns.look().await.expect("no faults");
        let found = story.standing(campaign.id).await;
        assert_eq!((found.phase, found.open), (Phase::Waiting, 0));
        let why = found.why.expect("it says why");
        assert_eq!(why, "no live worker of version `>=1.4` does `noop` from queue `default`: nobody does");
        // An old one, one that says no version, and one that fits and does something else.
        for (name, version, handler) in [("a", "1.3.9", "noop"), ("b", "blue", "noop"), ("c", "1.5.0", "http")] {
            register(&mut story.client, name, version, handler).await;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        story.runners[0].campaigns.look().await.expect("no faults");
        let found = story.standing(campaign.id).await;
        let why = found.why.expect("it says why");
        assert!(why.ends_with("found `1.3.9`, `blue`, which is no version"), "{why}");
        register(&mut story.client, "d", "1.4.0", "noop").await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        story.runners[0].campaigns.look().await.expect("no faults");
        let found = story.standing(campaign.id).await;
        assert_eq!((found.phase, found.open, found.why), (Phase::Running, LETTERS as u64 / 2, None));
    });
}

async fn register(client: &mut Client<MemoryDial>, name: &str, version: &str, handler: &str) {
    let word = |text: &str| Name::new(text).expect("a legal name");
    let beat = Beat {
        v: 1,
        read_age_ms: 0,
        phase: beat::Phase::Running,
        slots: 1,
        queues: vec![word("default")],
        handlers: vec![word(handler)],
        version: version.into(),
        host: "h".into(),
        pid: 1,
        held: Vec::new(),
        pod: None,
    };
    let id = WorkerId::new(&word(name), 7);
    let mut pipe = redis::pipe();
    pipe.cmd("ZADD").arg(all_keys().workers()).arg(1).arg(id.as_str());
    pipe.cmd("HSET").arg(all_keys().worker(&id)).arg("n").arg(1).arg("beat").arg(codec::pack(&beat));
    client.trip(&pipe).await.expect("no faults");
}

#[test]
fn ended_campaigns_go_when_they_are_too_many_and_those_that_go_on_stay() {
    run(async {
        let mut story = Story::new(2);
        story.fail().await;
        let goes_on = story.begin(Campaign { when_version: Some(">=9".into()), at_ms: 1, ..campaign(0) }).await;
        let mut pipe = redis::pipe();
        // More than are kept by three, all of them ended long after they began.
        for number in 0..1_002_u64 {
            let old = Campaign { at_ms: 1_000 + number, ..campaign(1_000 + number) };
            pipe.cmd("HSET").arg(all_keys().campaign(old.id)).arg(FIELD_DEFINITION).arg(codec::pack(&old));
            pipe.arg(FIELD_WANT).arg("running").arg(FIELD_PHASE).arg("completed").arg("ending").arg(u64::MAX / 2);
            pipe.cmd("ZADD").arg(all_keys().campaigns()).arg(old.at_ms).arg(old.id.to_string());
        }
        story.client.trip(&pipe).await.expect("no faults");
        story.runners[0].campaigns.look().await.expect("no faults");
        let mut look = redis::pipe();
        look.cmd("ZRANGE").arg(all_keys().campaigns()).arg(0).arg(-1);
        let left = story.client.trip(&look).await.expect("no faults").swap_remove(0);
        let left: Vec<&str> = reply::array(&left).unwrap_or_default().iter().filter_map(reply::text).collect();
        assert_eq!(left.len(), 1_000);
        let oldest = campaign(1_003).id.to_string();
        assert_eq!(left[..2], [goes_on.id.to_string().as_str(), oldest.as_str()], "the oldest ended ones went");
    });
}
