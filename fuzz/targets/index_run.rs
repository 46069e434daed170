//! Fuzzes runs of the index.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pyramidfs::fuzzing::run("index_run", bytes));
