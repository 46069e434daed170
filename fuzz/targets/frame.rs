//! Fuzzes frames of a pack.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pyramidfs::fuzzing::run("frame", bytes));
