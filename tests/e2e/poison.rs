//! Bytes that nobody can read, wherever they may come from.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use stepfleet_protocol::{
    codec,
    id::PartitionId,
    keys::{Keys, PREFIX_DEFAULT},
    name::Name,
};
use stepfleet_tests::{
    lab::{self, Fleet},
    wait,
};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn malformed_bytes_are_set_aside_and_everything_goes_on() {
    let server = lab::server().await.unwrap();
    let fleet = Fleet::start(&server.url(), 1, 1).await.unwrap();
    let api = fleet.api();
    let definition = json!({ "workflow": "one", "steps": { "only": { "handler": "noop" } } });
    let run = api.submit(&definition, json!(null)).await.unwrap();
    api.until_state(&run, "completed", SOON).await.unwrap();

    let keys = Keys::new(PREFIX_DEFAULT).partition(PartitionId(0));
    let jobs = keys.jobs(&Name::new("default").unwrap());
    let mut redis = server.connection().await.unwrap();
    let result =
        codec::encode(&json!({ "v": 1, "body": { "results": { "worker": "w@1", "results": [{ "job": 17 }] } } }));
    let entries: [(&str, &str, &[u8]); 5] = [
        (&keys.log(), "nonsense", b"bread"),
        (&keys.log(), codec::FIELD_PLAIN, b"\xc1\xff\x00"),
        (&keys.log(), codec::FIELD_LZ4, b"\xff\xff\xff\xff\xff"),
        (&keys.log(), result.field, &result.bytes),
        (&jobs, codec::FIELD_PLAIN, b"\xc1\xff\x00"),
    ];
    for (key, field, bytes) in entries {
        let _: String =
            redis::cmd("XADD").arg(key).arg("*").arg(field).arg(bytes).query_async(&mut redis).await.unwrap();
    }
    let found = wait::until(SOON, "five entries in the quarantine", async || {
        let found = api.items("/api/v1/quarantine").await?;
        ensure!(found.len() == entries.len(), "{found:#?}");
        Ok(found)
    })
    .await
    .unwrap();
    assert_eq!(api.metric("stepfleet_quarantined_total").await.unwrap(), 4.0, "those of the log");
    let run = api.submit(&definition, json!(null)).await.unwrap();
    api.until_state(&run, "completed", SOON).await.unwrap();
    for entry in found {
        fleet.verb(&["quarantine", "discard", entry["id"].as_str().unwrap(), "--yes"]).await.unwrap();
    }
    wait::until(SOON, "nothing to be pending", async || {
        let pending: (u64, redis::Value, redis::Value, redis::Value) =
            redis::cmd("XPENDING").arg(&jobs).arg("workers").query_async(&mut redis).await?;
        ensure!(pending.0 == 0, "{} are", pending.0);
        Ok(())
    })
    .await
    .unwrap();
}
