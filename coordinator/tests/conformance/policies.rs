//! The fleet's policies as they are stored: versions, their copies and the audit, over the memory twin and a real server; and
//! what owners make of them.

use redis::Value;
use stepfleet_coordinator::{
    machine::rules::Rules,
    store::{
        link::Dial,
        policies::{self, Applied, Change, VERSIONS_KEPT},
        reply,
    },
};
use stepfleet_protocol::{codec, policy::Policies, workflow::Retry};

use crate::{
    both,
    fleet::{all_keys, chain, keys},
    world::World,
};

both! {
    of_two_changes_of_one_version_the_second_is_told_and_writes_nothing,
    the_last_hundred_versions_are_kept_and_every_change_has_its_audit_entry,
    a_head_names_the_policies_that_its_partition_was_last_decided_with,
}

fn tries(max_attempts: u32) -> Policies {
    Policies { retry: Some(Retry { max_attempts: Some(max_attempts), ..Retry::default() }), ..Policies::default() }
}

async fn apply<D: Dial>(w: &mut World<D>, expected: u64, max_attempts: u32) -> Applied {
    let change = Change {
        expected,
        policies: tries(max_attempts),
        diff: format!("+ retry.max_attempts: {max_attempts}"),
        at_ms: 1_000,
        actor: "ann".into(),
        reason: Some("why not".into()),
    };
    let mut pipe = redis::pipe();
    pipe.add_command(policies::apply_policies(&all_keys(), &change));
    let reply = w.client.trip(&pipe).await.expect("no faults").swap_remove(0);
    policies::applied(&reply).unwrap_or_else(|| panic!("{reply:?}"))
}

async fn present<D: Dial>(w: &mut World<D>) -> policies::Stored {
    let mut pipe = redis::pipe();
    pipe.add_command(policies::present(&all_keys()));
    let reply = w.client.trip(&pipe).await.expect("no faults").swap_remove(0);
    policies::read(&reply).expect("readable").unwrap_or_default()
}

async fn of_two_changes_of_one_version_the_second_is_told_and_writes_nothing<D: Dial>(mut w: World<D>) {
    assert_eq!(present(&mut w).await, policies::Stored::default(), "nobody has written any");
    assert_eq!(apply(&mut w, 0, 4).await, Applied::Version(1));
    assert_eq!(apply(&mut w, 0, 5).await, Applied::Changed { present: 1 });
    assert_eq!(apply(&mut w, 7, 5).await, Applied::Changed { present: 1 });
    let found = present(&mut w).await;
    assert_eq!((found.version, &found.policies, found.at_ms), (1, &tries(4), 1_000));
    assert_eq!((found.actor.as_str(), found.reason.as_deref()), ("ann", Some("why not")));
    let audit = all_keys().fleet_audit();
    assert_eq!(w.number(&["XLEN", &audit]).await, 1, "who was refused has no entry");
    assert_eq!(apply(&mut w, 1, 5).await, Applied::Version(2));
}

async fn the_last_hundred_versions_are_kept_and_every_change_has_its_audit_entry<D: Dial>(mut w: World<D>) {
    let last = VERSIONS_KEPT + 2;
    for version in 0..last {
        assert_eq!(apply(&mut w, version, 1 + version as u32 % 9).await, Applied::Version(version + 1));
    }
    let kept = [2, 3, last].map(|version| all_keys().fleet_policies_of(version));
    let mut there = Vec::new();
    for key in &kept {
        there.push(w.number(&["EXISTS", key]).await);
    }
    assert_eq!(there, [0, 1, 1], "the oldest of a hundred is version 3");
    let audit = all_keys().fleet_audit();
    let entries = w.one(&[b"XRANGE", audit.as_bytes(), b"-", b"+"]).await;
    let entries = reply::read(Value::Array(vec![Value::Array(vec![Value::BulkString(audit.into()), entries])]));
    assert_eq!(entries.len() as u64, last);
    let entry: serde_json::Value = codec::unpack(&entries[0].1[0].1).expect("a named map");
    assert_eq!(
        entry,
        serde_json::json!({ "v": 1, "actor": "ann", "action": "policies.apply", "target": "policies",
            "reason": "why not", "outcome": "done", "detail": "+ retry.max_attempts: 1" })
    );
}

async fn a_head_names_the_policies_that_its_partition_was_last_decided_with<D: Dial>(mut w: World<D>) {
    let (head, step) = (keys().head(), chain(1));
    let mut owner = w.own().await;
    w.submit(&step).await;
    w.turns(&mut owner, 3).await;
    assert_eq!(w.number(&["HEXISTS", &head, "rules"]).await, 0, "nobody has written any");
    owner.set_rules(Rules::new(7, tries(1)));
    w.turns(&mut owner, 2).await;
    assert_eq!(w.number(&["HEXISTS", &head, "rules"]).await, 0, "nothing was decided by them yet");
    w.submit(&step).await;
    w.turns(&mut owner, 3).await;
    assert_eq!(w.number(&["HGET", &head, "rules"]).await, 7);
}

#[test]
fn stored_policies_stay_readable_and_unknown_keys_are_tolerated() {
    let stored = |doc: Vec<u8>| {
        let texts = [b"7".to_vec(), doc, b"1000".to_vec(), b"ann".to_vec(), Vec::new()];
        policies::read(&Value::Array(texts.map(Value::BulkString).into()))
    };
    // {"retry": {"max_attempts": 4}}
    let golden = b"\x81\xa5retry\x81\xacmax_attempts\x04".to_vec();
    assert_eq!(codec::pack(&tries(4)), golden);
    let found = stored(golden).expect("readable").expect("there is one");
    assert_eq!((found.version, found.policies, found.reason), (7, tries(4), None));
    let later = serde_json::json!({ "retry": { "max_attempts": 4, "luck": 1 }, "added_later": { "a": [1] } });
    assert_eq!(stored(codec::pack(&later)).expect("readable").expect("there is one").policies, tries(4));
    assert!(stored(b"\xc1".to_vec()).is_err(), "what cannot be read is not taken for no policies");
}
