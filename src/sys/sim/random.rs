//! Randomness and time that are the same in every run.
//!
//! Owns [`SimRng`], [`SimClock`] and the generator behind both the random numbers and the crashes.
//!
//! Absent on purpose: any quality that matters outside tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sys::{Clock, Rng, Timestamp};

/// The step between two states of the generator (splitmix64: 2^64 divided by the golden ratio).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(state: u64) -> u64 {
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A splitmix64 generator for one thread.
#[derive(Debug, Clone)]
pub(super) struct SplitMix {
    state: u64,
}

impl SplitMix {
    pub(super) fn new(seed: u64) -> SplitMix {
        SplitMix { state: seed }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
    }

    /// A number below `end`, which is not 0. The slight preference for small ones does not matter.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(super) fn coin(&mut self) -> bool {
        self.below(2) == 1
    }
}

/// Random bytes from a seed (splitmix64).
#[derive(Debug)]
pub struct SimRng {
    state: AtomicU64,
}

impl SimRng {
    /// Makes a generator; the same seed gives the same bytes for the same calls.
    pub fn new(seed: u64) -> SimRng {
        SimRng { state: AtomicU64::new(seed) }
    }

    /// The next 64 bits.
    pub fn next_u64(&self) -> u64 {
        mix(self.state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP))
    }
}

impl Rng for SimRng {
    fn fill(&self, buf: &mut [u8]) {
        for part in buf.chunks_mut(8) {
            let bytes = self.next_u64().to_le_bytes();
            for (target, byte) in part.iter_mut().zip(bytes) {
                *target = byte;
            }
        }
    }
}

/// A clock that moves only when told to. Clones show the same time.
#[derive(Debug, Clone)]
pub struct SimClock {
    /// Nanoseconds since the clock was made.
    elapsed: Arc<AtomicU64>,
}

/// Where every simulated clock begins: 2001-09-09 01:46:40 UTC.
const START_SECS: i64 = 1_000_000_000;

impl SimClock {
    /// Makes a clock that stands at 2001-09-09 01:46:40 UTC.
    #[expect(clippy::new_without_default, reason = "as with the real clock")]
    pub fn new() -> SimClock {
        SimClock { elapsed: Arc::new(AtomicU64::new(0)) }
    }

    /// Moves the time forward. The limit is 584 years in all.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.elapsed.fetch_add(by, Ordering::SeqCst);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let elapsed = self.monotonic();
        let secs = START_SECS.saturating_add_unsigned(elapsed.as_secs());
        Timestamp { secs, nanos: elapsed.subsec_nanos() }
    }

    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.elapsed.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_splitmix64() {
        // The published first outputs for the seed 1234567.
        let expected = [6_457_827_717_110_365_317_u64, 3_203_168_211_198_807_973];
        let rng = SimRng::new(1_234_567);
        assert_eq!([rng.next_u64(), rng.next_u64()], expected);
        let mut mix = SplitMix::new(1_234_567);
        assert_eq!([mix.next(), mix.next()], expected);
    }

    #[test]
    fn bytes_of_a_seed_are_the_same_in_every_run() {
        let (mut one, mut two) = ([0; 13], [0; 13]);
        SimRng::new(7).fill(&mut one);
        SimRng::new(7).fill(&mut two);
        assert_eq!(one, two);
        SimRng::new(8).fill(&mut two);
        assert_ne!(one, two);
    }

    #[test]
    fn the_clock_moves_only_when_told() {
        let clock = SimClock::new();
        assert_eq!(clock.now(), clock.now());
        clock.clone().advance(Duration::from_millis(2500));
        assert_eq!(clock.monotonic(), Duration::from_millis(2500));
        assert_eq!(clock.now(), Timestamp { secs: START_SECS + 2, nanos: 500_000_000 });
    }
}
