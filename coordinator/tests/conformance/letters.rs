//! The index of dead letters: a letter is in it exactly while it is open, whatever closes it.

use stepfleet_coordinator::{
    machine::fingerprint::Fingerprint,
    shell::retention::Retention,
    store::{commit::letter_id, letters, link::Dial, record::DeadLetter, reply},
};
use stepfleet_protocol::{
    failure::{Category, Failure},
    id::{RunId, StreamId},
    message::{Outcome, Verb},
    state::State,
};

use crate::{
    both,
    fleet::keys,
    world::{World, on_memory},
};

both! {
    a_letter_is_in_its_group_until_it_is_replayed,
    a_discarded_letter_leaves_its_group_and_its_step_stays_failed,
    retention_takes_letters_out_of_their_groups,
    a_step_that_comes_back_says_how_often,
}

impl<D: Dial> World<D> {
    /// Every group with its letters, as the index has them.
    async fn index(&mut self) -> Vec<(Fingerprint, Vec<StreamId>)> {
        let groups = self.one(&[b"ZRANGE", keys().letter_groups().as_bytes(), b"0", b"-1"]).await;
        let groups: Vec<Fingerprint> = reply::array(&groups)
            .unwrap_or_default()
            .iter()
            .filter_map(reply::text)
            .map(|text| text.parse().expect("a fingerprint"))
            .collect();
        let mut out = Vec::new();
        for group in groups {
            let members = self.one(&[b"ZRANGE", keys().letters(group).as_bytes(), b"0", b"-1"]).await;
            let members = reply::array(&members).unwrap_or_default().iter().filter_map(reply::bytes);
            out.push((group, members.map(|member| letter_id(member).expect("an id")).collect()));
        }
        out
    }

    async fn open_letter(&mut self, id: StreamId) -> DeadLetter {
        let id = id.to_string();
        let found = self.one(&[b"XRANGE", keys().dead().as_bytes(), id.as_bytes(), id.as_bytes()]).await;
        let (_, fields) = reply::entries(found).swap_remove(0);
        letters::decode(&fields).expect("a letter of ours")
    }

    async fn wish(&mut self, run: RunId, verb: Verb) {
        let mut owner = self.own().await;
        self.client.command(run, verb).await.expect("up");
        self.turns(&mut owner, 3).await;
    }
}

async fn a_letter_is_in_its_group_until_it_is_replayed<D: Dial>(mut w: World<D>) {
    let ((first, one), (_, two)) = (w.failed().await, w.failed().await);
    let group = w.open_letter(one).await.fingerprint.expect("every new letter has a group");
    assert_eq!(group, Fingerprint::of("noop", &Failure::new(Category::Permanent, "no")));
    assert_eq!(w.index().await, [(group, vec![one, two])]);
    w.wish(first, Verb::Replay { index: 0, letter: one, input: None }).await;
    assert_eq!(w.index().await, [(group, vec![two])]);
}

async fn a_discarded_letter_leaves_its_group_and_its_step_stays_failed<D: Dial>(mut w: World<D>) {
    let (run, letter) = w.failed().await;
    w.wish(run, Verb::Discard { index: 0, letter }).await;
    assert_eq!((w.index().await, w.letters().await), (vec![], 0), "an empty group is none");
    let stored = w.stored(run).await;
    assert_eq!(
        (stored.record.state, stored.steps[&0].state, stored.steps[&0].letter),
        (State::Failed, State::Failed, None)
    );
    w.wish(run, Verb::Retry).await;
    assert_eq!(w.state(run).await, Some(State::Queued), "a retry of the run needs no letter");
}

async fn retention_takes_letters_out_of_their_groups<D: Dial>(mut w: World<D>) {
    let (_, (_, newest)) = (w.failed().await, w.failed().await);
    w.expire(Retention { letters_max: 1, ..Retention::default() }).await;
    let index = w.index().await;
    assert_eq!(index.iter().map(|(_, letters)| letters.clone()).collect::<Vec<_>>(), [vec![newest]]);
    w.expire(Retention { completed_ms: 0, ..Retention::default() }).await;
    assert_eq!((w.index().await, w.letters().await), (vec![], 0), "with their runs too");
}

async fn a_step_that_comes_back_says_how_often<D: Dial>(mut w: World<D>) {
    let (run, mut letter) = w.failed().await;
    for returns in 0..3 {
        assert_eq!(w.open_letter(letter).await.returns, returns);
        let mut owner = w.own().await;
        w.client.command(run, Verb::Replay { index: 0, letter, input: None }).await.expect("up");
        let mut worker = w.worker(1);
        let (of, _) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
        let failure = Outcome::Failed(Failure::new(Category::Permanent, "no"));
        worker.answer(vec![(of, failure)]).await.expect("up");
        w.turns(&mut owner, 3).await;
        letter = w.stored(run).await.steps[&0].letter.expect("it gave up again");
    }
    assert_eq!(w.index().await.len(), 1, "and it is in one group all the time");
}

#[test]
fn a_letter_of_an_older_version_is_closed_without_an_index() {
    on_memory(async |mut w| {
        let (run, letter) = w.failed().await;
        let group = w.index().await[0].0;
        // As it was before there was an index.
        w.one(&[b"DEL", keys().letters(group).as_bytes()]).await;
        w.one(&[b"DEL", keys().letter_groups().as_bytes()]).await;
        w.wish(run, Verb::Replay { index: 0, letter, input: None }).await;
        assert_eq!((w.index().await, w.letters().await), (vec![], 0));
    });
}
