//! Fuzzes the list behind `-o`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pyramidfs::fuzzing::run("mount_options", bytes));
