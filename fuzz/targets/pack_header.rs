//! Fuzzes headers of packs.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pyramidfs::fuzzing::run("pack_header", bytes));
