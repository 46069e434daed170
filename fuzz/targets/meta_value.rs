//! Fuzzes values of the metadata.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pyramidfs::fuzzing::run("meta_value", bytes));
