//! Fuzzes heads of commit records.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pyramidfs::fuzzing::run("record_head", bytes));
