//! What tests share.
//!
//! Owns the settings of property tests: a fixed seed, so that a run is the same everywhere, and
//! two environment variables for longer campaigns: `PYRAMIDFS_SEED` (default 1) picks another
//! seed, `PYRAMIDFS_CASES_FACTOR` (default 1) multiplies the number of cases. A campaign that may
//! hang has a time limit. With `--cfg shuttle` also how a test is run with its threads in many
//! orders.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use proptest::test_runner::{Config, RngSeed};

/// Settings for a property test of `cases` cases.
pub fn config(cases: u32) -> Config {
    // Miri takes a thousand times as long.
    let cases = if cfg!(miri) { cases.div_ceil(100) } else { cases };
    Config {
        cases: cases.saturating_mul(factor()),
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(number_from("PYRAMIDFS_SEED")),
        ..Config::default()
    }
}

/// The seed of this run, for tests that make their own random numbers.
pub fn seed() -> u64 {
    number_from("PYRAMIDFS_SEED")
}

/// How many times more a campaign does than a plain run.
pub fn factor() -> u32 {
    number_from("PYRAMIDFS_CASES_FACTOR") as u32
}

/// Runs `work` on a thread of its own, and returns what it does. It tells where it is, and has
/// `limit` from one word to the next: what takes longer hangs, and fails the test.
pub fn watched<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce(&Sender<String>) -> T + Send + 'static,
) -> T {
    let (told, words) = channel();
    let worker = std::thread::spawn(move || work(&told));
    let mut last = String::new();
    loop {
        match words.recv_timeout(limit) {
            Ok(word) => last = word,
            Err(RecvTimeoutError::Timeout) => panic!("it hangs at {last}"),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    worker.join().unwrap_or_else(|_| panic!("it panicked at {last}"))
}

fn number_from(variable: &str) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Runs `test` with its threads in that many orders: half of them wholly random, half with a few
/// changes of the thread that goes first, which finds what needs rare orders.
///
/// A failure prints its order; `PYRAMIDFS_SCHEDULE` with that text runs it again, alone.
#[cfg(shuttle)]
pub fn schedules(count: u32, test: impl Fn() + Send + Sync + 'static) {
    use shuttle::Runner;
    use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler};

    // What is asked of the files below goes deep.
    let mut config = shuttle::Config::new();
    config.stack_size = 2 << 20;
    let (test, count) = (std::sync::Arc::new(test), (count * factor() / 2) as usize);
    let again = |test: &std::sync::Arc<_>| {
        let test: std::sync::Arc<dyn Fn() + Send + Sync> = std::sync::Arc::clone(test) as _;
        move || test()
    };
    if let Ok(order) = std::env::var("PYRAMIDFS_SCHEDULE") {
        Runner::new(ReplayScheduler::new_from_encoded(&order), config).run(again(&test));
        return;
    }
    println!("PYRAMIDFS_SEED={}", seed());
    let random = RandomScheduler::new_from_seed(seed(), count);
    Runner::new(random, config.clone()).run(again(&test));
    Runner::new(PctScheduler::new_from_seed(seed(), 3, count), config).run(again(&test));
}
