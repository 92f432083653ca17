//! Large payloads, many a second, and what they do to the latency of small runs beside them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use stepfleet_coordinator::store::{client::Client, workflows::Stored};
use stepfleet_protocol::{codec, limits::PAYLOAD_BYTES_MAX};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::graphs::{chain, with_input};
use super::super::lab::{Lab, Size};
use super::super::latency::Ends;
use super::super::load::{client, how, submit, wanted};

/// Large runs a second.
const PER_S: u32 = 200;
/// Large submits that are not answered yet.
const UNDER_WAY: usize = 8;
/// Small runs before the large ones.
const SMALL: usize = 200;

pub(super) async fn measure(lab: &mut Lab<'_>) -> anyhow::Result<()> {
    // One partition: the outbox that is followed is that of its only one.
    let (url, size) = (lab.url.clone(), Size { partitions: 1, ..lab.size() });
    let _fleet = lab.fleet(&url, size).await?;
    let client = client(&url).await?;
    submit(&client, &chain(1, "noop")?, 10).await?;
    lab.all_completed(1, 10, 1).await?;
    let mut ends = Ends::follow(&url).await?;
    let alone = small(&client, &mut ends, |done| done < SMALL.min(lab.args.payloads)).await?;
    let large = tokio::spawn(large(client.clone(), lab.args.payloads));
    let beside = small(&client, &mut ends, |_| !large.is_finished()).await?;
    let took = large.await??;
    let all = 10 + alone.len() + beside.len() + lab.args.payloads;
    lab.all_completed(1, all, 1).await?;
    lab.report.put("large.payloads.per_s", lab.args.payloads as f64 / took);
    lab.report.put_times("large.payloads.small_alone_ms", alone);
    lab.report.put_times("large.payloads.small_beside_ms", beside);
    let p50 = |of: &str| lab.report.get(&format!("large.payloads.small_{of}_ms.p50"));
    let growth = p50("beside") / p50("alone");
    lab.report.put("large.payloads.small_p50_growth", growth);
    Ok(())
}

/// Milliseconds from submit to end of small runs, one at a time, as long as `goes_on` says.
async fn small(client: &Client, ends: &mut Ends, goes_on: impl Fn(usize) -> bool) -> anyhow::Result<Vec<f64>> {
    let workflow = Arc::new(Stored::new(&chain(1, "noop")?));
    let (how, mut times) = (how(), Vec::new());
    while goes_on(times.len()) {
        let began = Instant::now();
        let taken = client.submit(wanted(&workflow, None), &how).await?;
        let ended = loop {
            let (run, at) = ends.next().await?;
            if run == taken.run {
                break at;
            }
        };
        times.push((ended - began.into_std()).as_secs_f64() * 1e3);
    }
    Ok(times)
}

/// Submits so many large runs at their pace; the seconds until the last was answered.
async fn large(client: Client, runs: usize) -> anyhow::Result<f64> {
    let (workflow, payload) = (Arc::new(Stored::new(&with_input("large")?)), payload());
    let mut every = tokio::time::interval(Duration::from_secs(1) / PER_S);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let (began, mut sent) = (Instant::now(), JoinSet::new());
    for _ in 0..runs {
        every.tick().await;
        // A machine that is too slow shows as a lower rate, not as a client without connections.
        if sent.len() >= UNDER_WAY
            && let Some(taken) = sent.join_next().await
        {
            taken??;
        }
        let (client, wanted) = (client.clone(), wanted(&workflow, Some(payload.clone())));
        sent.spawn(async move { client.submit(wanted, &how()).await });
    }
    while let Some(taken) = sent.join_next().await {
        taken??;
    }
    Ok(began.elapsed().as_secs_f64())
}

/// As large as a payload may be, of characters that do not compress.
fn payload() -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let letter = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'0' + (state % 75) as u8)
    };
    let text: String = (0..PAYLOAD_BYTES_MAX - 16).map(letter).collect();
    codec::pack(&text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_as_large_as_is_allowed() {
        assert!((PAYLOAD_BYTES_MAX - 16..=PAYLOAD_BYTES_MAX).contains(&payload().len()));
    }
}
