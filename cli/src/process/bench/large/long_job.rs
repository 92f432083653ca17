//! A job that runs all the time at the head of a stream, and many that pass it: the stream must not grow behind it.

use std::time::{Duration, Instant};

use stepfleet_protocol::name::Name;

use super::super::graphs::{chain, long_job};
use super::super::lab::Lab;
use super::super::load::{client, submit};
use super::super::probe::all_keys;

/// Jobs that pass between two looks at the stream.
const PART: usize = 2_000;

pub(super) async fn measure(lab: &mut Lab<'_>) -> anyhow::Result<()> {
    let (url, size, length) = (lab.url.clone(), lab.size(), Duration::from_secs(lab.args.seconds));
    let _fleet = lab.fleet(&url, size).await?;
    let (client, small) = (client(&url).await?, chain(1, "noop")?);
    // One in each partition.
    let long = usize::from(size.partitions);
    submit(&client, &long_job(lab.args.seconds + 1)?, long).await?;
    let (began, part) = (Instant::now(), PART.min(lab.args.runs));
    let (mut passed, mut most) = (0, 0);
    let mut left = 0;
    while began.elapsed() < length {
        submit(&client, &small, part).await?;
        passed += part;
        lab.all_completed(size.partitions, passed, 1).await?;
        left = entries(lab, size.partitions).await?;
        most = most.max(left);
    }
    lab.all_completed(size.partitions, passed + long, 1).await?;
    lab.report.put("large.long_job.passed_jobs", passed as f64);
    lab.report.put("large.long_job.stream_entries_most", most as f64);
    lab.report.put("large.long_job.stream_entries_left", left as f64);
    lab.report.put("large.long_job.stream_share_left", left as f64 / passed as f64);
    Ok(())
}

/// Entries of the job streams.
async fn entries(lab: &mut Lab<'_>, partitions: u16) -> anyhow::Result<usize> {
    let (mut sum, queue) = (0, Name::new("default")?);
    for keys in all_keys(partitions) {
        let mut length = redis::cmd("XLEN");
        sum += length.arg(keys.jobs(&queue)).query_async::<usize>(&mut lab.probe.connection).await?;
    }
    Ok(sum)
}
