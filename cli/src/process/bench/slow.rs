//! The throughput that is left with a millisecond more to the server.
//!
//! The proxy takes CPU of its own on the same machine. So what counts is the share of what goes through the same proxy with
//! nothing added; the share of what goes without a proxy is told too.

use std::time::{Duration, Instant};

use super::delay::Proxy;
use super::lab::Lab;
use super::load::Load;
use super::probe::connection;

/// What is added to a round trip.
const ADDED: Duration = Duration::from_millis(1);
/// Round trips of which the median is taken.
const TRIPS: usize = 200;

/// Measures the same chains without a proxy, through one that adds nothing, and through one that adds a millisecond.
pub(super) async fn measure(lab: &mut Lab<'_>) -> anyhow::Result<()> {
    let direct = lab.url.clone();
    let (proxies, trip) = ([Duration::ZERO, ADDED], trip_ms(&direct).await?);
    let without = steps_per_s(lab, &direct).await?;
    lab.report.put("latency1ms.direct.trip_ms", trip);
    lab.report.put("latency1ms.direct.steps_per_s", without);
    let mut through = Vec::new();
    for (name, added) in ["added_0ms", "added_1ms"].into_iter().zip(proxies) {
        let proxy = Proxy::start(lab.port, added)?;
        let (trip, rate) = (trip_ms(&proxy.url()).await?, steps_per_s(lab, &proxy.url()).await?);
        lab.report.put(&format!("latency1ms.{name}.trip_ms"), trip);
        lab.report.put(&format!("latency1ms.{name}.steps_per_s"), rate);
        through.push(rate);
    }
    lab.report.put("latency1ms.left", through[1] / through[0]);
    lab.report.put("latency1ms.left_of_direct", through[1] / without);
    Ok(())
}

async fn steps_per_s(lab: &mut Lab<'_>, url: &str) -> anyhow::Result<f64> {
    let size = lab.size();
    Ok(Load::chains(lab.args.scale_chains, 10)?.through(lab, url, size).await?.steps_per_s())
}

async fn trip_ms(url: &str) -> anyhow::Result<f64> {
    let mut connection = connection(url).await?;
    let mut trips = Vec::with_capacity(TRIPS);
    for _ in 0..TRIPS {
        let began = Instant::now();
        redis::cmd("PING").query_async::<String>(&mut connection).await?;
        trips.push(began.elapsed().as_secs_f64() * 1e3);
    }
    trips.sort_by(f64::total_cmp);
    Ok(trips[TRIPS / 2])
}
