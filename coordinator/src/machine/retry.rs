//! When a failed attempt is tried again.

use stepfleet_protocol::{id::RunId, limits::RETRY_AFTER_MS_MAX, workflow::Jitter};

use super::rules::Effective;

/// The wait before the next try, in milliseconds: `min(cap, base * factor^(tries - 1))` with jitter inside, or what the
/// server asked for if that is longer, up to a day. Full and equal jitter as in "Exponential Backoff And Jitter" (AWS
/// Architecture Blog, 2015); the random part is a hash of run, step and try, so that the decision stays pure.
pub fn delay_ms(effective: &Effective, of: (RunId, u32), tries: u32, retry_after_ms: Option<u64>) -> u64 {
    let (base, factor) = (effective.base_ms.value as f64, effective.factor.value);
    let cap = effective.cap_ms.value as f64;
    let exponent = i32::try_from(tries.saturating_sub(1)).unwrap_or(i32::MAX);
    // A finite factor keeps `0 * factor` at 0, where an infinite one would make it the cap.
    let full = (base * factor.powi(exponent).min(f64::MAX)).min(cap).max(0.0);
    let share = unit_hash(of.0, of.1, tries);
    let jittered = match effective.jitter.value {
        Jitter::Full => full * share,
        Jitter::Equal => full * (0.5 + 0.5 * share),
        Jitter::None => full,
    };
    let asked = retry_after_ms.unwrap_or(0).min(RETRY_AFTER_MS_MAX);
    (jittered as u64).max(asked)
}

/// A number in `[0, 1)` that looks random: SplitMix64 (Steele, Lea and Flood, 2014) over run, step and try.
fn unit_hash(run: RunId, index: u32, tries: u32) -> f64 {
    let bytes = run.bytes();
    let low = u64::from_be_bytes(bytes[8..].try_into().expect("eight bytes"));
    let mut z = low ^ (u64::from(index) << 32) ^ u64::from(tries).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stepfleet_protocol::{
        duration::Millis,
        failure::Category,
        id::PartitionId,
        name::Name,
        workflow::{BACKOFF_CAP, Backoff, Retry},
    };

    use super::*;
    use crate::machine::rules::Rules;

    fn run(random: u64) -> RunId {
        RunId::new(PartitionId(0), 1, random)
    }

    fn effective(backoff: Backoff, category: Category) -> Effective {
        let retry = Retry { backoff: Some(backoff), ..Default::default() };
        Rules::default().resolve((Some(&retry), None), Some(&Name::new("h").expect("a legal name")), category)
    }

    fn exact(base: Option<u64>, factor: Option<f64>, cap: Option<u64>) -> Effective {
        let backoff = Backoff { base: base.map(Millis), factor, cap: cap.map(Millis), jitter: Some(Jitter::None) };
        effective(backoff, Category::Transient)
    }

    fn waits(of: &Effective, tries: std::ops::RangeInclusive<u32>) -> Vec<u64> {
        tries.map(|n| delay_ms(of, (run(1), 0), n, None)).collect()
    }

    #[test]
    fn waits_grow_by_the_factor_up_to_the_cap() {
        let plain = exact(None, None, None);
        assert_eq!(waits(&plain, 1..=8), [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
        let minute = exact(Some(60_000), None, Some(600_000));
        assert_eq!(waits(&minute, 1..=3), [60_000, 120_000, 240_000], "the schedule of checklist item 16");
        let custom = exact(Some(30_000), Some(1.5), None);
        assert_eq!(waits(&custom, 1..=3), [30_000, 45_000, 60_000], "the numbers of checklist item 17");
        let short = exact(None, None, Some(30_000));
        assert_eq!(waits(&short, 4..=7), [8_000, 16_000, 30_000, 30_000]);
    }

    #[test]
    fn no_wait_stays_no_wait_however_large_the_factor_grows() {
        let none = exact(Some(0), Some(100.0), None);
        assert_eq!(delay_ms(&none, (run(1), 0), 999, None), 0);
        let some = exact(Some(1), Some(100.0), None);
        assert_eq!(delay_ms(&some, (run(1), 0), 999, None), BACKOFF_CAP.0);
    }

    #[test]
    fn a_servers_wait_is_obeyed_beyond_the_cap_up_to_a_day() {
        let limited = effective(Backoff::default(), Category::RateLimited);
        let wait = |asked| delay_ms(&limited, (run(1), 0), 1, Some(asked));
        assert_eq!((wait(3_600_000), wait(u64::MAX)), (3_600_000, RETRY_AFTER_MS_MAX));
    }

    proptest! {
        #[test]
        fn jitter_stays_inside_the_wait(random: u64, index: u32, tries in 1u32..2_000, factor in 1.0f64..100.0) {
            let with = |jitter| {
                let backoff = Backoff { jitter: Some(jitter), factor: Some(factor), ..Default::default() };
                delay_ms(&effective(backoff, Category::Transient), (run(random), index), tries, None)
            };
            let (full, equal, none) = (with(Jitter::Full), with(Jitter::Equal), with(Jitter::None));
            prop_assert!(full <= none && equal <= none && none <= 60_000);
            prop_assert!(equal + 1 >= none / 2);
        }
    }
}
