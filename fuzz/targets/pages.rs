//! Fuzzes the checkpoint's pages.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pyramidfs::fuzzing::run("pages", bytes));
