//! Who is dead, by tables of looks.

use super::*;

fn at(base: Instant, secs: u64) -> Instant {
    base + Duration::from_secs(secs)
}

fn beats(n: i64) -> Record {
    Record { count: Some(n), beat: None, losses: None }
}

/// Workers that were seen at second 0 and have been silent until the second `until`, each in a good look every 2 s.
fn silent(base: Instant, ids: &[&str], until: u64) -> Workers {
    let mut workers = Workers::default();
    for secs in (0..=until).step_by(2) {
        ids.iter().for_each(|id| workers.seen(id, (at(base, secs), at(base, secs)), beats(1)));
    }
    workers
}

#[test]
fn silence_counts_from_the_answer_that_showed_a_beat_to_the_question_that_did_not() {
    let base = Instant::now();
    let mut workers = Workers::default();
    workers.seen("a", (base, at(base, 2)), beats(1));
    workers.seen("a", (at(base, 31), at(base, 33)), beats(1));
    assert!(workers.verdict().dead.is_empty(), "29 s");
    workers.seen("a", (at(base, 32), at(base, 34)), beats(1));
    assert_eq!(workers.verdict().dead.len(), 1, "30 s");
}

#[test]
fn an_answer_that_took_longer_than_a_gap_proves_nothing() {
    let base = Instant::now();
    let mut workers = silent(base, &["a"], 28);
    workers.seen("a", (at(base, 40), at(base, 47)), beats(1));
    assert!(workers.verdict().dead.is_empty());
}

#[test]
fn who_would_die_with_more_than_a_third_of_the_fleet_gets_one_more_period() {
    let base = Instant::now();
    let mut workers = silent(base, &["a", "b", "c"], 30);
    assert_eq!(workers.verdict(), Verdict { dead: BTreeSet::new(), held_back: 3 });
    workers.seen("a", (at(base, 32), at(base, 32)), beats(2));
    assert_eq!(workers.verdict(), Verdict { dead: BTreeSet::new(), held_back: 2 });
    workers.seen("b", (at(base, 34), at(base, 34)), beats(2));
    assert_eq!(workers.verdict(), Verdict { dead: ["c".into()].into(), held_back: 0 }, "one of three is a death");
    let workers = silent(base, &["a", "b", "c"], 60);
    assert_eq!((workers.verdict().dead.len(), workers.verdict().held_back), (3, 0));
    assert_eq!(silent(base, &["a", "b"], 30).verdict().dead.len(), 2, "two are no fleet");
}

#[test]
fn the_last_one_of_a_fleet_whose_others_are_dead_is_a_death() {
    let base = Instant::now();
    let mut workers = silent(base, &["a", "b", "c"], 60);
    workers.seen("c", (at(base, 61), at(base, 61)), beats(2));
    let dead = workers.verdict().dead;
    assert_eq!(dead, ["a".into(), "b".into()].into());
    workers.bury(&dead);
    workers.seen("c", (at(base, 91), at(base, 91)), beats(2));
    assert_eq!(workers.verdict(), Verdict { dead: ["a".into(), "b".into(), "c".into()].into(), held_back: 0 });
}

#[test]
fn who_was_dead_before_stays_dead_while_others_are_held_back() {
    let base = Instant::now();
    let mut workers = silent(base, &["a", "b", "c", "d"], 60);
    for id in ["b", "c", "d"] {
        workers.seen(id, (at(base, 61), at(base, 61)), beats(2));
        workers.seen(id, (at(base, 92), at(base, 92)), beats(2));
    }
    assert_eq!(workers.verdict(), Verdict { dead: ["a".into()].into(), held_back: 3 });
}

#[test]
fn who_is_dead_already_does_not_hold_the_next_deaths_back() {
    let base = Instant::now();
    let ids: Vec<String> = (0..9).map(|n| format!("w{n}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    // Three were gone by their channels; their beats are as old as that of a fourth, which only is silent.
    let mut workers = silent(base, &ids, 2);
    let gone: BTreeSet<String> = ids[..3].iter().map(ToString::to_string).collect();
    assert_eq!(workers.bury(&gone).len(), 3);
    for secs in (4..=32).step_by(2) {
        ids[..4].iter().for_each(|id| workers.seen(id, (at(base, secs), at(base, secs)), beats(1)));
        ids[4..].iter().for_each(|id| workers.seen(id, (at(base, secs), at(base, secs)), beats(secs as i64)));
    }
    let dead = ids[..4].iter().map(ToString::to_string).collect();
    assert_eq!(workers.verdict(), Verdict { dead, held_back: 0 }, "one of six that lived");
}

/// A fleet that is watched from second 0 on; at second 100 and later the channels of `absent` are empty. A look every two
/// seconds until the second `until`; who is gone at each. `beat` and `losses` say what the record of a worker tells then.
fn watched(
    absent: &[&str],
    until: u64,
    beat: impl Fn(&str, u64) -> i64,
    losses: impl Fn(&str, u64) -> Option<i64>,
) -> Vec<(u64, BTreeSet<String>)> {
    let base = Instant::now();
    let (mut workers, mut found) = (Workers::default(), Vec::new());
    for secs in (40..=until).step_by(2) {
        for id in ["a", "b", "c", "d"] {
            let record = Record { count: Some(beat(id, secs)), beat: None, losses: losses(id, secs) };
            workers.seen(id, (at(base, secs), at(base, secs)), record);
            let look = Look { steady: base, sent: at(base, secs), got: at(base, secs) };
            workers.heard(id, look, i64::from(secs < 100 || !absent.contains(&id)));
        }
        let gone = workers.gone(at(base, secs));
        if !gone.is_empty() {
            found.push((secs, gone));
        }
    }
    found
}

fn steps_of_ten(_: &str, secs: u64) -> i64 {
    secs as i64 / 10
}

#[test]
fn who_is_gone_from_its_channel_and_beats_no_more_is_gone_after_four_seconds() {
    let silent = |id: &str, secs| if id == "a" { 9 } else { steps_of_ten(id, secs) };
    assert_eq!(watched(&["a"], 104, silent, |_, _| Some(0)), [(104, BTreeSet::from(["a".to_owned()]))]);
}

#[test]
fn who_beats_without_a_channel_is_not_gone() {
    assert_eq!(watched(&["a"], 160, |_, secs| secs as i64, |_, _| Some(0)), []);
}

#[test]
fn a_worker_of_an_older_version_that_does_not_beat_at_once_is_not_gone() {
    assert_eq!(watched(&["a"], 118, |_, _| 9, |_, _| None), []);
}

#[test]
fn when_more_than_a_third_of_the_fleet_is_gone_from_its_channels_nobody_is() {
    assert_eq!(watched(&["a", "b"], 128, |_, _| 9, |_, _| Some(0)), []);
}

#[test]
fn while_others_lose_their_channels_and_live_nobody_is_gone() {
    let losses = |id: &str, secs| Some(i64::from(id == "d" && secs >= 90));
    let silent = |id: &str, secs| if id == "a" { 9 } else { steps_of_ten(id, secs) };
    assert_eq!(watched(&["a"], 118, silent, losses), []);
    assert_eq!(watched(&["a"], 120, silent, losses).len(), 1, "half a minute later it is");
}

#[test]
fn a_pause_of_the_looks_ends_what_was_known_of_channels() {
    let base = Instant::now();
    let mut workers = silent(base, &["a"], 2);
    workers.heard("a", Look { steady: base, sent: at(base, 40), got: at(base, 40) }, 1);
    assert_eq!(workers.watched(at(base, 40)), 1);
    workers.start_again(at(base, 50));
    workers.heard("a", Look { steady: base, sent: at(base, 52), got: at(base, 52) }, 0);
    assert_eq!(workers.by_id["a"].channel.absent(), None, "nobody was seen there since");
    workers.heard("a", Look { steady: base, sent: at(base, 54), got: at(base, 54) }, 1);
    assert_eq!((workers.watched(at(base, 79)), workers.watched(at(base, 80))), (0, 1));
}

#[test]
fn a_death_is_counted_once_until_the_worker_beats_again() {
    let base = Instant::now();
    let mut workers = silent(base, &["a", "b"], 30);
    let dead = workers.verdict().dead;
    assert_eq!(workers.bury(&dead).len(), 2);
    assert_eq!(workers.bury(&dead), []);
    workers.seen("a", (at(base, 32), at(base, 32)), beats(2));
    assert_eq!(workers.bury(&["a".to_owned()].into()), [("a".to_owned(), "channel")]);
}

/// A worker that told the uid `pod` and was on its channel at second 1; `losses` as its record says.
fn in_a_pod(base: Instant, losses: Option<i64>) -> Workers {
    let mut workers = Workers::default();
    let beat = Beat {
        v: 1,
        read_age_ms: 0,
        phase: Phase::Running,
        slots: 1,
        queues: Vec::new(),
        handlers: Vec::new(),
        version: String::new(),
        host: String::new(),
        pid: 1,
        held: Vec::new(),
        pod: Some("pod".into()),
    };
    workers.seen("a", (at(base, 1), at(base, 1)), Record { count: Some(1), beat: Some(beat), losses });
    workers.heard("a", Look { steady: base, sent: at(base, 1), got: at(base, 1) }, 1);
    workers
}

fn ended(uid: &str, at: Instant) -> Vec<Ended> {
    let end = PodEnd { pod: "p".into(), reason: "OOMKilled".into(), exit_code: Some(137), message: None };
    vec![Ended { uid: uid.into(), end, at }]
}

/// A sweep with `news` from before it: how many ended with their pods. `look`: milliseconds after `base`, and the beats and the
/// losses of the record then.
fn sweep(workers: &mut Workers, base: Instant, look: (u64, i64, i64), subscribers: i64, news: Vec<Ended>) -> usize {
    let (ms, count, losses) = look;
    let now = base + Duration::from_millis(ms);
    workers.seen("a", (now, now), Record { count: Some(count), beat: None, losses: Some(losses) });
    workers.heard("a", Look { steady: base, sent: now, got: now }, subscribers);
    workers.ended_with_pods(news, now).len()
}

#[test]
fn who_ended_with_its_pod_is_dead_by_the_second_look_until_it_beats_again() {
    let base = Instant::now();
    let mut workers = in_a_pod(base, Some(0));
    assert_eq!(sweep(&mut workers, base, (2_000, 1, 0), 0, ended("other", at(base, 2))), 0);
    assert!(!workers.wants_a_second_look() && workers.is_in_pod("pod") && !workers.is_in_pod("other"));
    // A beat from before its end is seen only now.
    assert_eq!(sweep(&mut workers, base, (2_500, 2, 0), 0, ended("pod", at(base, 2))), 0);
    assert!(workers.wants_a_second_look());
    assert_eq!(sweep(&mut workers, base, (2_600, 2, 0), 0, Vec::new()), 0, "too soon");
    assert_eq!(sweep(&mut workers, base, (2_800, 2, 0), 0, Vec::new()), 1);
    let dead = BTreeSet::from(["a".to_owned()]);
    assert_eq!(workers.bury(&dead), [("a".to_owned(), POD)]);
    let queue = Name::new("q").expect("a legal name");
    let sight = workers.sight("a", PartitionId(0), &queue, StreamId::default());
    assert!(sight.to_string().starts_with("its pod `p`: OOMKilled, exit code 137; its beat"), "{sight}");
    assert_eq!(sweep(&mut workers, base, (60_000, 2, 0), 0, Vec::new()), 1, "it stays dead");
    assert_eq!(sweep(&mut workers, base, (61_000, 3, 0), 0, Vec::new()), 0, "it was none");
}

#[test]
fn an_end_waits_for_the_server_to_miss_the_worker_but_not_for_long() {
    let base = Instant::now();
    let mut workers = in_a_pod(base, Some(0));
    assert_eq!(sweep(&mut workers, base, (2_000, 1, 0), 1, ended("pod", at(base, 2))), 0, "it is on its channel");
    assert_eq!(sweep(&mut workers, base, (4_000, 1, 0), 0, Vec::new()), 0);
    assert_eq!(sweep(&mut workers, base, (4_300, 1, 0), 0, Vec::new()), 1);
    let mut workers = in_a_pod(base, Some(0));
    assert_eq!(sweep(&mut workers, base, (2_000, 1, 0), 1, ended("pod", at(base, 2))), 0);
    assert_eq!(sweep(&mut workers, base, (13_000, 1, 0), 0, Vec::new()), 0);
    assert_eq!(sweep(&mut workers, base, (14_000, 1, 0), 0, Vec::new()), 0, "that is another matter now");
}

/// The successor of a worker that ended, or one whose pod went by force: what was said is not about it.
#[test]
fn a_worker_that_lost_its_channel_and_beats_does_not_end_with_its_pod() {
    let base = Instant::now();
    let mut workers = in_a_pod(base, Some(0));
    let news = ended("pod", at(base, 2));
    assert_eq!(sweep(&mut workers, base, (2_000, 1, 0), 0, news), 0);
    assert_eq!(sweep(&mut workers, base, (2_300, 2, 1), 0, Vec::new()), 0, "it beats at once");
    for (ms, count) in [(2_600, 2), (2_900, 2), (3_200, 2), (3_500, 3), (3_800, 3), (4_500, 4), (5_500, 5), (7_500, 6)]
    {
        assert_eq!(sweep(&mut workers, base, (ms, count, 1), 0, Vec::new()), 0, "and every second: {ms}");
    }
    assert!(workers.wants_a_second_look());
    assert_eq!(sweep(&mut workers, base, (12_100, 7, 1), 0, Vec::new()), 0);
    assert!(!workers.wants_a_second_look(), "nobody asks after it any more, channel or not");
}

#[test]
fn who_was_not_seen_on_its_channel_over_this_connection_does_not_end_with_its_pod() {
    let base = Instant::now();
    let mut new = in_a_pod(base, None);
    new.heard("a", Look { steady: base, sent: at(base, 2), got: at(base, 2) }, 0);
    for secs in [2, 4, 6] {
        assert!(
            new.ended_with_pods(ended("pod", at(base, 2)), at(base, secs)).is_empty(),
            "it has not said that it is"
        );
    }
    let mut elsewhere = in_a_pod(base, Some(0));
    let news = ended("pod", at(base, 2));
    for (secs, news) in [(2, news), (4, Vec::new()), (6, Vec::new())] {
        let look = Look { steady: at(base, 1), sent: at(base, secs), got: at(base, secs) };
        elsewhere.seen("a", (at(base, secs), at(base, secs)), Record { count: Some(1), beat: None, losses: Some(0) });
        elsewhere.heard("a", look, 0);
        assert!(elsewhere.ended_with_pods(news, at(base, secs)).is_empty(), "after a fail-over");
    }
    let mut doubtful = in_a_pod(base, Some(0));
    doubtful.unheard_channel("a");
    assert!(doubtful.ended_with_pods(ended("pod", at(base, 2)), at(base, 2)).is_empty(), "the look failed");
    assert!(!doubtful.wants_a_second_look());
}
