//! When a failed attempt is tried again: the category's numbers, overridden by what was written.

use stepfleet_protocol::{
    failure::Category,
    id::RunId,
    limits::RETRY_AFTER_MS_MAX,
    workflow::{BACKOFF_BASE, BACKOFF_CAP, BACKOFF_FACTOR, Jitter, MAX_ATTEMPTS, RetryPolicy},
};

/// Numbers of a category when nobody wrote any.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// Whether it is retried, unless the failure itself says so or otherwise.
    pub retry: bool,
    /// The wait after the first failed try, in milliseconds.
    pub base_ms: u64,
    /// What each wait is multiplied with for the next one.
    pub factor: f64,
    /// The longest wait, in milliseconds.
    pub cap_ms: u64,
}

/// The built-in policy of a category.
pub fn policy(category: Category) -> Policy {
    let with = |base_ms| Policy { retry: true, base_ms, factor: BACKOFF_FACTOR, cap_ms: BACKOFF_CAP.0 };
    match category {
        Category::Transient | Category::Timeout => with(BACKOFF_BASE.0),
        Category::RateLimited => with(30_000),
        Category::System => with(5_000),
        Category::WorkerLost => with(0),
        // The waits are for a failure whose handler says that it may be retried.
        Category::Data | Category::Permanent => Policy { retry: false, ..with(BACKOFF_BASE.0) },
    }
}

/// Tries in all.
pub fn max_attempts(written: &RetryPolicy) -> u32 {
    written.max_attempts.unwrap_or(MAX_ATTEMPTS)
}

/// The wait before the next try, in milliseconds: `min(cap, base * factor^(tries - 1))` with jitter inside, or what the
/// server asked for if that is longer, up to a day. Full and equal jitter as in "Exponential Backoff And Jitter" (AWS
/// Architecture Blog, 2015); the random part is a hash of run, step and try, so that the decision stays pure.
pub fn delay_ms(
    written: &RetryPolicy,
    category: Category,
    of: (RunId, u32),
    tries: u32,
    retry_after_ms: Option<u64>,
) -> u64 {
    let built_in = policy(category);
    let base = written.base_ms.unwrap_or(built_in.base_ms) as f64;
    let factor = written.factor.unwrap_or(built_in.factor);
    let cap = written.cap_ms.unwrap_or(built_in.cap_ms) as f64;
    let exponent = i32::try_from(tries.saturating_sub(1)).unwrap_or(i32::MAX);
    // A finite factor keeps `0 * factor` at 0, where an infinite one would make it the cap.
    let full = (base * factor.powi(exponent).min(f64::MAX)).min(cap).max(0.0);
    let share = unit_hash(of.0, of.1, tries);
    let jittered = match written.jitter.unwrap_or_default() {
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
    use stepfleet_protocol::id::PartitionId;

    use super::*;

    fn run(random: u64) -> RunId {
        RunId::new(PartitionId(0), 1, random)
    }

    #[test]
    fn waits_grow_by_the_factor_up_to_the_cap() {
        let exact = RetryPolicy { jitter: Some(Jitter::None), ..Default::default() };
        let waits: Vec<u64> = (1..=8).map(|n| delay_ms(&exact, Category::Transient, (run(1), 0), n, None)).collect();
        assert_eq!(waits, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
        let minute = RetryPolicy { base_ms: Some(60_000), cap_ms: Some(600_000), ..exact };
        let waits: Vec<u64> = (1..=3).map(|n| delay_ms(&minute, Category::Transient, (run(1), 0), n, None)).collect();
        assert_eq!(waits, [60_000, 120_000, 240_000], "the schedule of checklist item 16");
        let custom = RetryPolicy { base_ms: Some(30_000), factor: Some(1.5), ..exact };
        let waits: Vec<u64> = (1..=3).map(|n| delay_ms(&custom, Category::Transient, (run(1), 0), n, None)).collect();
        assert_eq!(waits, [30_000, 45_000, 60_000], "the numbers of checklist item 17");
        // Presets of docs/examples/catalogue.yaml and of a service with a short cap.
        let production = RetryPolicy { max_attempts: Some(5), base_ms: Some(2_000), cap_ms: Some(120_000), ..exact };
        let waits: Vec<u64> =
            (1..=8).map(|n| delay_ms(&production, Category::Transient, (run(1), 0), n, None)).collect();
        assert_eq!(waits, [2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 120_000, 120_000]);
        assert_eq!((max_attempts(&production), max_attempts(&exact)), (5, 3));
        let short = RetryPolicy { cap_ms: Some(30_000), ..exact };
        let waits: Vec<u64> = (4..=7).map(|n| delay_ms(&short, Category::Transient, (run(1), 0), n, None)).collect();
        assert_eq!(waits, [8_000, 16_000, 30_000, 30_000]);
    }

    #[test]
    fn no_wait_stays_no_wait_however_large_the_factor_grows() {
        let none = RetryPolicy { base_ms: Some(0), factor: Some(100.0), ..Default::default() };
        assert_eq!(delay_ms(&none, Category::Transient, (run(1), 0), 999, None), 0);
        let some = RetryPolicy { base_ms: Some(1), jitter: Some(Jitter::None), ..none };
        assert_eq!(delay_ms(&some, Category::Transient, (run(1), 0), 999, None), BACKOFF_CAP.0);
    }

    #[test]
    fn a_servers_wait_is_obeyed_beyond_the_cap_up_to_a_day() {
        let policy = RetryPolicy::default();
        let wait = |asked| delay_ms(&policy, Category::RateLimited, (run(1), 0), 1, Some(asked));
        assert_eq!((wait(3_600_000), wait(u64::MAX)), (3_600_000, RETRY_AFTER_MS_MAX));
    }

    proptest! {
        #[test]
        fn jitter_stays_inside_the_wait(random: u64, index: u32, tries in 1u32..2_000, factor in 1.0f64..100.0) {
            let with = |jitter| {
                let policy = RetryPolicy { jitter: Some(jitter), factor: Some(factor), ..Default::default() };
                delay_ms(&policy, Category::Transient, (run(random), index), tries, None)
            };
            let (full, equal, none) = (with(Jitter::Full), with(Jitter::Equal), with(Jitter::None));
            prop_assert!(full <= none && equal <= none && none <= 60_000);
            prop_assert!(equal + 1 >= none / 2);
        }
    }
}
