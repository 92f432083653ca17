//! Sizes at which a system shows what it forgot to bound.

mod heartbeats;
mod long_job;
mod payloads;
mod queued;

use super::lab::Lab;
use super::load::one_wide_run;
use crate::out::Out;

/// Measures all of them.
pub(super) async fn measure(lab: &mut Lab<'_>, out: &Out) -> anyhow::Result<()> {
    out.say(&format!("large: {} queued steps", lab.args.queued));
    queued::measure(lab).await?;
    out.say(&format!("large: one run of {} steps", lab.args.large_run));
    let tenth = one_wide_run(lab, lab.args.large_run / 10).await?;
    let whole = one_wide_run(lab, lab.args.large_run).await?;
    lab.report.put("large.run_us_per_step_tenth", tenth);
    lab.report.put("large.run_us_per_step", whole);
    lab.report.put("large.run_growth", whole / tenth);
    out.say(&format!("large: heartbeats of {} workers", lab.args.workers));
    heartbeats::measure(lab).await?;
    out.say(&format!("large: {} payloads of 1 MiB beside small runs", lab.args.payloads));
    payloads::measure(lab).await?;
    out.say(&format!("large: a job of {} s at the head of a stream", lab.args.seconds));
    long_job::measure(lab).await
}
