//! Fuzzes the entries of a commit record.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pyramidfs::fuzzing::run("meta_record", bytes));
