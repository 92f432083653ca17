//! Inputs and outputs: rendered, passed on by reference, or impossible.

use stepfleet_coordinator::store::{link::Dial, record::DeadLetter, reply};
use stepfleet_protocol::{
    codec,
    failure::{Category, Failure},
    id::{CommandId, RunId, StreamId},
    message::{Answer, Body, Command, Outcome, Verb, command_value},
    state::State,
    value::{Input, Payload, ValueRef},
    workflow::Workflow,
};

use crate::{both, fleet::keys, world::World};

both! {
    trap_14_large_values_go_through_a_chain_by_reference,
    a_template_is_rendered_from_input_and_outputs,
    an_input_that_cannot_be_made_is_a_dead_letter_and_suspends_the_run,
    a_dead_letter_holds_the_input_of_its_job,
    a_large_input_of_a_replay_travels_by_reference_and_reaches_the_worker,
    a_replay_that_names_a_value_of_somebody_else_is_refused,
}

fn workflow(steps: serde_json::Value) -> Workflow {
    serde_json::from_value(serde_json::json!({"workflow": "w", "steps": steps})).expect("a legal workflow")
}

fn inline(input: &Input) -> serde_json::Value {
    match input {
        Input::Whole(Payload::Inline(bytes)) => codec::unpack(bytes).expect("a value of ours"),
        other => panic!("not inline: {other:?}"),
    }
}

async fn trap_14_large_values_go_through_a_chain_by_reference<D: Dial>(mut w: World<D>) {
    let run = w
        .submit(&workflow(serde_json::json!({
            "a": {"handler": "noop"},
            "b": {"handler": "noop", "needs": ["a"], "with": "${{ steps.a.output }}"},
        })))
        .await;
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    let (of, _) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
    let value = codec::pack(&"x".repeat(64 << 10));
    w.one(&[b"SET", keys().value(of.job).as_bytes(), &value]).await;
    let output = Payload::Ref(ValueRef { id: of.job.to_string(), bytes: value.len() as u64 });
    let id = of.job.to_string();
    worker.answer(vec![(of, Outcome::Completed(Some(output)))]).await.expect("up");
    let (of, job) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
    assert!(matches!(&job.input, Input::Whole(Payload::Ref(r)) if r.id == id), "{:?}", job.input);
    worker.answer(vec![(of, Outcome::Completed(None))]).await.expect("up");
    w.turns(&mut owner, 3).await;
    assert_eq!(w.state(run).await, Some(State::Completed));
    assert!(w.number(&["STRLEN", &keys().value(&id)]).await > 64 << 10, "the output stays with the run");
}

async fn a_template_is_rendered_from_input_and_outputs<D: Dial>(mut w: World<D>) {
    let run = w.client.run_id();
    let steps = serde_json::json!({
        "a": {"handler": "noop", "with": {"n": "${{ input.n + 1 }}"}},
        "b": {"handler": "noop", "needs": ["a"], "with": "got ${{ steps.a.output }} of ${{ input.n }}"},
    });
    w.client.submit(run, &workflow(steps), Some(&serde_json::json!({"n": 4})), false).await.expect("up");
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    let (of, job) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
    assert_eq!(inline(&job.input), serde_json::json!({"n": 5}));
    let output = Payload::Inline(codec::pack("five").into());
    worker.answer(vec![(of, Outcome::Completed(Some(output)))]).await.expect("up");
    // The next owner has nothing in mind and reads the values again.
    w.turns(&mut owner, 1).await;
    let mut owner = w.own().await;
    let (_, job) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
    assert_eq!(inline(&job.input), serde_json::json!("got five of 4"));
}

async fn letters<D: Dial>(w: &mut World<D>) -> Vec<DeadLetter> {
    let found = w.one(&[b"XRANGE", keys().dead().as_bytes(), b"-", b"+"]).await;
    let decode = |(field, bytes): &(bytes::Bytes, bytes::Bytes)| codec::decode(field, bytes).expect("a letter of ours");
    reply::entries(found).iter().map(|(_, fields)| decode(&fields[0])).collect()
}

async fn an_input_that_cannot_be_made_is_a_dead_letter_and_suspends_the_run<D: Dial>(mut w: World<D>) {
    let steps = serde_json::json!({"a": {"handler": "noop", "with": "a ${{ input.missing.field }}"}});
    let run = w.client.run_id();
    w.client.submit(run, &workflow(steps), Some(&serde_json::json!({"n": 4})), false).await.expect("up");
    let mut owner = w.own().await;
    w.turns(&mut owner, 3).await;
    assert_eq!(w.state(run).await, Some(State::Suspended));
    let letters = letters(&mut w).await;
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].category, letters[0].run), (Category::Data, run));
}

async fn a_dead_letter_holds_the_input_of_its_job<D: Dial>(mut w: World<D>) {
    let run = w.submit(&workflow(serde_json::json!({"a": {"handler": "noop", "with": {"n": 7}}}))).await;
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    let (of, _) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
    worker.answer(vec![(of, Outcome::Failed(Failure::new(Category::Permanent, "no")))]).await.expect("up");
    w.turns(&mut owner, 3).await;
    assert_eq!(w.state(run).await, Some(State::Failed));
    let letters = letters(&mut w).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(inline(letters[0].input.as_ref().expect("the job had an input")), serde_json::json!({"n": 7}));
}

/// A run of one step that gave up, and its letter.
async fn given_up<D: Dial>(w: &mut World<D>) -> (RunId, StreamId) {
    let run = w.submit(&workflow(serde_json::json!({"a": {"handler": "noop", "with": {"n": 7}}}))).await;
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    let (of, _) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
    worker.answer(vec![(of, Outcome::Failed(Failure::new(Category::Permanent, "no")))]).await.expect("up");
    w.turns(&mut owner, 3).await;
    (run, w.stored(run).await.steps[&0].letter.expect("it gave up"))
}

fn replay(run: RunId, id: CommandId, letter: StreamId, value: ValueRef) -> Command {
    let verb = Verb::Replay { index: 0, letter, input: Some(Payload::Ref(value)) };
    Command { id, actor: "t".into(), run, reason: None, verb, again: false, campaign: None }
}

async fn a_large_input_of_a_replay_travels_by_reference_and_reaches_the_worker<D: Dial>(mut w: World<D>) {
    let (run, letter) = given_up(&mut w).await;
    let value = codec::pack(&"y".repeat(300_000));
    let id = w.client.command_id();
    let at = ValueRef { id: command_value(id), bytes: value.len() as u64 };
    w.one(&[b"SET", keys().value(&at.id).as_bytes(), &value, b"PX", b"90000000"]).await;
    w.client.append(Body::Command(replay(run, id, letter, at.clone()))).await.expect("up");
    let (mut owner, mut worker) = (w.own().await, w.worker(2));
    let (of, job) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
    let Input::Whole(Payload::Ref(found)) = &job.input else { panic!("not by reference: {:?}", job.input) };
    let stored = w.one(&[b"GET", keys().value(&found.id).as_bytes()]).await;
    assert!(reply::bytes(&stored) == Some(&value[..]), "the worker reads what the operator gave");
    assert_eq!(w.number(&["PTTL", &keys().value(&found.id)]).await, -1, "it stays as long as its run");
    assert_eq!(w.number(&["EXISTS", &keys().value(&at.id)]).await, 0);

    // The same letter once more, with another input: it is closed, and the input of the step stays.
    let id = w.client.command_id();
    let late = ValueRef { id: command_value(id), bytes: 1 };
    w.one(&[b"SET", keys().value(&late.id).as_bytes(), b"\x01"]).await;
    w.client.append(Body::Command(replay(run, id, letter, late))).await.expect("up");
    w.turns(&mut owner, 2).await;
    assert!(matches!(w.answer(&id).await.expect("it is answered").answers[..], [Answer::Conflict { .. }]));
    assert_eq!(w.number(&["STRLEN", &keys().value(&found.id)]).await, value.len() as i64);
    worker.answer(vec![(of, Outcome::Completed(None))]).await.expect("up");
    w.turns(&mut owner, 2).await;
    assert_eq!(w.state(run).await, Some(State::Completed));
}

async fn a_replay_that_names_a_value_of_somebody_else_is_refused<D: Dial>(mut w: World<D>) {
    let (run, letter) = given_up(&mut w).await;
    let id = w.client.command_id();
    let other = ValueRef { id: format!("{run}.1.in"), bytes: 1 };
    w.client.append(Body::Command(replay(run, id, letter, other))).await.expect("up");
    let mut owner = w.own().await;
    w.turns(&mut owner, 2).await;
    let answer = w.answer(&id).await.expect("it is answered").answers;
    assert!(matches!(&answer[..], [Answer::Refused { code, .. }] if code == "bad_input_reference"), "{answer:?}");
    assert_eq!(w.state(run).await, Some(State::Failed));
}
