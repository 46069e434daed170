//! Fuzzes messages of the control socket.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pyramidfs::fuzzing::run("control", bytes));
