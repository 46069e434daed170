//! Fuzzes a volume whose files were changed.
//!
//! The panics of redb are caught: libFuzzer's hook, which ends the process at each, goes first.

#![no_main]

libfuzzer_sys::fuzz_target!(init: drop(std::panic::take_hook()), |bytes: &[u8]| pyramidfs::fuzzing::run("whole_volume", bytes));
