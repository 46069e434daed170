//! Fuzzes keys of the metadata.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pyramidfs::fuzzing::run("meta_key", bytes));
