//! Fuzzes superblocks.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pyramidfs::fuzzing::run("superblock", bytes));
