//! What the drivers share: the words they are called with, the clock, the counter of what is done, what they print.
//!
//! A driver is called as `worker`, `submit KIND N` or `idle KIND N`, KIND being `jobs`, `chains` or `fanouts`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use nix::time::{ClockId, clock_gettime};

/// Steps of a chain.
pub const CHAIN: usize = 10;
/// Steps between the first and the last of a fan-out.
pub const WIDTH: usize = 50;
/// Jobs that a worker has under way at once.
pub const CONCURRENCY: usize = 256;
/// String: finished jobs or runs, where the peer itself keeps no count.
const DONE: &str = "bench:done";

static DONE_HERE: AtomicU64 = AtomicU64::new(0);

/// What a driver is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Jobs by themselves.
    Jobs,
    /// Ten steps, one behind the other.
    Chains,
    /// One step, fifty behind it, one behind these.
    Fanouts,
}

/// How a driver was called.
#[derive(Debug, Clone, Copy)]
pub enum Call {
    /// Work until killed.
    Worker,
    /// Submit so many as fast as possible.
    Submit(Kind, usize),
    /// One at a time on an idle system.
    Idle(Kind, usize),
}

/// Reads the command line.
///
/// # Errors
/// It is none of the three.
pub fn call() -> anyhow::Result<Call> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let kind = |word: &str| match word {
        "jobs" => Ok(Kind::Jobs),
        "chains" => Ok(Kind::Chains),
        "fanouts" => Ok(Kind::Fanouts),
        _ => anyhow::bail!("no kind `{word}`: allowed are `jobs`, `chains` and `fanouts`"),
    };
    match words[..] {
        ["worker"] => Ok(Call::Worker),
        ["submit", of, count] => Ok(Call::Submit(kind(of)?, count.parse()?)),
        ["idle", of, count] => Ok(Call::Idle(kind(of)?, count.parse()?)),
        _ => anyhow::bail!("allowed are `worker`, `submit KIND N` and `idle KIND N`"),
    }
}

/// Where Redis is.
///
/// # Errors
/// PEER_REDIS is not set.
pub fn url() -> anyhow::Result<String> {
    std::env::var("PEER_REDIS").context("PEER_REDIS is missing")
}

/// The payload of a job: 90 bytes.
pub fn payload() -> String {
    "x".repeat(90)
}

/// Nanoseconds of the clock that every process of the machine shares.
pub fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// One more is done. It costs the peer no command: [`tell_done`] tells of many at once.
pub fn count_done() {
    DONE_HERE.fetch_add(1, Ordering::Relaxed);
}

/// Writes the count to Redis a hundred times a second, forever.
///
/// # Errors
/// Redis is gone.
pub async fn tell_done() -> anyhow::Result<()> {
    let mut connection = redis::Client::open(url()?)?.get_multiplexed_async_connection().await?;
    let mut told = 0;
    loop {
        let done = DONE_HERE.load(Ordering::Relaxed);
        if done != told {
            redis::cmd("SET").arg(DONE).arg(done).query_async::<()>(&mut connection).await?;
            told = done;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// How many are done, as it is in Redis.
///
/// # Errors
/// Redis is gone.
pub async fn done(connection: &mut redis::aio::MultiplexedConnection) -> anyhow::Result<u64> {
    Ok(redis::cmd("GET").arg(DONE).query_async::<Option<u64>>(connection).await?.unwrap_or(0))
}

/// Prints when a submit began and how long it took.
pub fn print_submitted(began_ns: u64) {
    let seconds = (now_ns() - began_ns) as f64 / 1e9;
    println!("{}", serde_json::json!({ "began_ns": began_ns, "seconds": seconds }));
}

/// Prints latencies in milliseconds, as median and 99th percentile. The first tenth warms up and does not count.
pub fn print_latencies(start_ms: &[f64], end_ms: &[f64]) {
    let of = |ms: &[f64]| {
        let mut ms = ms[ms.len() / 10..].to_vec();
        ms.sort_by(f64::total_cmp);
        let at = |share: f64| ms.get(((ms.len() as f64 * share) as usize).min(ms.len().saturating_sub(1))).copied();
        serde_json::json!({ "p50": at(0.5), "p99": at(0.99) })
    };
    println!("{}", serde_json::json!({ "start_ms": of(start_ms), "end_ms": of(end_ms) }));
}
