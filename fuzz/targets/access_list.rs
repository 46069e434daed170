//! Fuzzes access control lists, as attributes have them.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pyramidfs::fuzzing::run("access_list", bytes));
