//! Decoders under arbitrary and changed input: never a panic, never time or memory without bound, and whatever is read is
//! written so that it reads the same.
//!
//! `FUZZ_MINUTES=n` goes on for so long instead of seconds, `FUZZ_SEED=n` repeats a run. An input that breaks a decoder is made
//! as small as can be and kept in `tests/corpus/<decoder>`, where every later run tries it.

mod decoders;
mod memory;
mod mutate;
mod samples;
mod texts;

use std::{
    cell::RefCell,
    hash::{DefaultHasher, Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::decoders::{ALL, Decoder};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// Bytes that reading one input may hold at once: a message may unpack to 64 MiB, and is read from that.
const MEMORY_BYTES_MAX: u64 = 256 << 20;
/// Time of a processor that reading one input may take, in a build without optimisation on a busy machine; the rendering of a
/// template alone may take a second.
const TIME_MAX: Duration = Duration::from_secs(4);
/// Inputs between two looks at the clock.
const ROUND: u32 = 64;
/// How long each decoder is tried unless the environment says otherwise.
const USUAL: Duration = Duration::from_millis(250);

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is `{text}`: allowed is a whole number")))
}

fn spent() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).expect("Linux has this clock")
}

/// One input: the error says which promise is broken.
fn attempt(decoder: Decoder, bytes: &[u8]) -> Result<bool, String> {
    let begun = spent();
    let (outcome, held) = memory::peak(|| catch_unwind(AssertUnwindSafe(|| (decoder.check)(bytes))));
    let took = spent().saturating_sub(begun);
    let read = outcome.map_err(|_| "it panics".to_owned())??;
    if held > MEMORY_BYTES_MAX {
        return Err(format!("it takes {held} bytes: allowed are {MEMORY_BYTES_MAX}"));
    }
    if took > TIME_MAX {
        return Err(format!("it takes {took:?}: allowed are {TIME_MAX:?}"));
    }
    Ok(read)
}

/// Tries inputs until the time is over; how many, and how many of them were read.
fn fuzz(decoder: Decoder, seed: u64, lasts: Duration) -> Result<(u64, u64), String> {
    let kept: Vec<Vec<u8>> = samples::kept(decoder.name).into_iter().map(|(_, bytes)| bytes).collect();
    let (begun, counts) = (Instant::now(), RefCell::new((0, 0)));
    for round in 0u64.. {
        if begun.elapsed() >= lasts && round > 0 {
            break;
        }
        let mut hasher = DefaultHasher::new();
        (seed, decoder.name, round).hash(&mut hasher);
        let words = [seed, round, hasher.finish(), 0].map(u64::to_le_bytes);
        let config = Config { cases: ROUND, failure_persistence: None, max_shrink_iters: 2_000, ..Config::default() };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, words.as_flattened());
        let ended = TestRunner::new_with_rng(config, rng).run(&mutate::input(), |input| {
            let read = attempt(decoder, &input.bytes(&kept)).map_err(TestCaseError::fail)?;
            let mut counts = counts.borrow_mut();
            *counts = (counts.0 + 1, counts.1 + u64::from(read));
            Ok(())
        });
        match ended {
            Ok(()) => {}
            Err(TestError::Abort(why)) => return Err(format!("{}: {why}", decoder.name)),
            Err(TestError::Fail(why, input)) => {
                let bytes = input.bytes(&kept);
                let place = samples::keep(decoder.name, &format!("found-{:016x}", hasher.finish()), &bytes);
                return Err(format!("{} with FUZZ_SEED={seed}: {why}\nkept as {}", decoder.name, place.display()));
            }
        }
    }
    Ok(counts.into_inner())
}

#[test]
fn arbitrary_and_changed_input_breaks_no_decoder() {
    let seed = number("FUZZ_SEED").unwrap_or_else(rand::random);
    let lasts = number("FUZZ_MINUTES").map_or(USUAL, |minutes| Duration::from_secs(minutes * 60) / ALL.len() as u32);
    println!("FUZZ_SEED={seed}, {lasts:?} for each of {} decoders", ALL.len());
    let mut broken = Vec::new();
    for decoder in ALL {
        match fuzz(*decoder, seed, lasts) {
            Ok((inputs, read)) => println!("{:<18} {inputs:>9} inputs, {read:>9} of them read", decoder.name),
            Err(why) => broken.push(why),
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n\n"));
}

#[test]
fn every_kept_sample_is_read_and_written_as_it_was() {
    if std::env::var_os("UPDATE").is_some() {
        samples::write();
    }
    for decoder in ALL {
        for (name, bytes) in samples::kept(decoder.name) {
            let read = attempt(*decoder, &bytes).unwrap_or_else(|why| panic!("{}/{name}: {why}", decoder.name));
            assert!(read || name.starts_with("found-"), "{}/{name} is a real sample and is not read", decoder.name);
        }
    }
}
