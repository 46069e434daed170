//! Power losses without end: one random history after another, each with a crash at every sync,
//! until it is stopped. `mount-scripts/soak` runs it.
//!
//! A seed is a history: `PYRAMIDFS_SEED` set to the one that was printed begins with it again.
//! `PYRAMIDFS_SOAK_SECONDS` ends it after that time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::crash::Worker;
use super::*;
use crate::sys::real::RealClock;
use crate::sys::{Clock, Rng};

/// How often the rate is printed.
const REPORT: Duration = Duration::from_secs(10);
/// Steps of a history at most.
const STEPS_MAX: u64 = 60;

/// Names the history that failed, and ends all: the others go on for ever.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the history was PYRAMIDFS_SEED={}", self.0);
            std::process::exit(1);
        }
    }
}

fn number(rng: &SimRng) -> u64 {
    let mut bytes = [0; 8];
    rng.fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// Runs the history of a seed; answers how many crashes it had.
fn history(seed: u64) -> u64 {
    let _told = Told(seed);
    let rng = SimRng::new(seed);
    let mut worker = Worker::new(seed);
    for _ in 0..10 + number(&rng) % (STEPS_MAX - 10) {
        let bits = number(&rng);
        let what = (bits % u64::from(super::crash::KINDS)) as u8;
        worker.step((what, (bits >> 8) as u16, (bits >> 24) as u16, (bits >> 40) as u16));
    }
    worker.end();
    worker.judged
}

#[test]
#[ignore = "runs until it is stopped: mount-scripts/soak"]
fn soak() {
    let clock = RealClock::new();
    let chosen = std::env::var("PYRAMIDFS_SEED").is_ok();
    let limit = std::env::var("PYRAMIDFS_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let limit = limit.map_or(Duration::MAX, Duration::from_secs);
    let started = clock.monotonic();
    let is_over = || limit <= clock.monotonic() - started;
    let first = if chosen { crate::testing::seed() } else { u64::from(clock.now().nanos) };
    eprintln!("the first seed is {first}");
    let (next, crashes) = (AtomicU64::new(first), AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !is_over() {
                    let judged = history(next.fetch_add(1, Ordering::Relaxed));
                    crashes.fetch_add(judged, Ordering::Relaxed);
                }
            });
        }
        while !is_over() {
            std::thread::sleep(REPORT.min(limit));
            let (histories, crashes) =
                (next.load(Ordering::Relaxed) - first, crashes.load(Ordering::Relaxed));
            let seconds = (clock.monotonic() - started).as_secs().max(1);
            let minute = crashes * 60 / seconds;
            eprintln!("{histories} histories, {crashes} crashes, {minute} a minute");
        }
    });
}
