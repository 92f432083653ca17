//! Inputs and outputs: rendered, passed on by reference, or impossible.

use stepfleet_coordinator::store::{link::Dial, record::DeadLetter, reply};
use stepfleet_protocol::{
    codec,
    failure::{Category, Failure},
    message::Outcome,
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
