//! What a step costs with more partitions, workers and slots: it should cost the same.
//!
//! On a small machine the wall clock says nothing about how a fleet scales, as everybody shares the cores; CPU time does.

use super::lab::{Lab, Size};
use super::load::{Load, Outcome};

/// Slots of all workers together, where slots are not what grows.
const SLOTS: usize = 256;

/// Measures the same chains on each size, and how the cost of a step grew against the first of its kind.
pub(super) async fn measure(lab: &mut Lab<'_>) -> anyhow::Result<()> {
    let first = Size { partitions: 1, workers: 1, slots: SLOTS };
    let of_one = one(lab, first).await?;
    put(lab, "partitions_1", &of_one, &of_one);
    for partitions in [2, 4, 8] {
        let outcome = one(lab, Size { partitions, ..first }).await?;
        put(lab, &format!("partitions_{partitions}"), &outcome, &of_one);
    }
    for workers in [2, 4, 8] {
        let outcome = one(lab, Size { workers, slots: SLOTS / workers, ..first }).await?;
        put(lab, &format!("workers_{workers}"), &outcome, &of_one);
    }
    let few = one(lab, Size { slots: 16, ..first }).await?;
    put(lab, "slots_16", &few, &few);
    for slots in [64, 256, 1_000] {
        let outcome = one(lab, Size { slots, ..first }).await?;
        put(lab, &format!("slots_{slots}"), &outcome, &few);
    }
    Ok(())
}

async fn one(lab: &mut Lab<'_>, size: Size) -> anyhow::Result<Outcome> {
    let url = lab.url.clone();
    Load::chains(lab.args.scale_chains, 10)?.through(lab, &url, size).await
}

fn put(lab: &mut Lab<'_>, name: &str, outcome: &Outcome, first: &Outcome) {
    let (us, us_first) = (outcome.us_per_step(), first.us_per_step());
    let sum = |us: &[(&str, f64)]| us.iter().map(|(_, us)| us).sum::<f64>();
    lab.report.put(&format!("scale.{name}.steps_per_s"), outcome.steps_per_s());
    for ((what, us), (_, us_first)) in us.iter().zip(&us_first) {
        lab.report.put(&format!("scale.{name}.{what}"), *us);
        let who = what.trim_end_matches("_us_per_step");
        lab.report.put(&format!("scale.{name}.{who}_growth"), us / us_first);
    }
    lab.report.put(&format!("scale.{name}.growth"), sum(&us) / sum(&us_first));
}
