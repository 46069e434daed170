//! What tests share.
//!
//! Owns the settings of property tests: a fixed seed, so that a run is the same everywhere, and
//! two environment variables for longer campaigns: `PYRAMIDFS_SEED` (default 1) picks another
//! seed, `PYRAMIDFS_CASES_FACTOR` (default 1) multiplies the number of cases.

use proptest::test_runner::{Config, RngSeed};

/// Settings for a property test of `cases` cases.
pub fn config(cases: u32) -> Config {
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

fn number_from(variable: &str) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}
