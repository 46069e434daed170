//! Tests on real mounts, with the built program. They need root and /dev/fuse, and say so.
//!
//! One binary for all of them, as linking is dear. Each test has a [`harness::Site`] of its own: a
//! directory with a volume and a mountpoint, a time limit, and a clean-up that works also when
//! the test has failed.

mod acls;
mod backing;
mod checks;
mod collect;
mod commands;
mod copies;
mod du;
mod full;
mod harness;
mod inodes;
mod kill;
mod life;
mod mounting;
mod names;
mod numbers;
mod pairs;
mod plain;
mod pressure;
mod processes;
mod programs;
mod quota;
mod random;
mod ranges;
mod rights;
mod second_lives;
mod semantics;
mod shared;
mod snapshots;
mod users;
mod writers;
mod xattrs;
