//! The kernel's side: requests in, replies out.
//!
//! Owns the translation of each request into one call of [`Volume`](crate::volume::Volume)
//! ([`adapter`]), the one table of errno numbers ([`errno`]), the threads on which a request may
//! wait ([`workers`]), and mounting with all settings of the kernel ([`session`], [`mountinfo`],
//! [`kernel`]).
//!
//! Invariants: (1) no type of the transport leaves this module; (2) a thread that reads requests
//! never waits: what would wait goes to a worker, with its reply.
//!
//! Absent on purpose: chunks, packs, and any judgement beyond the errno table.

mod adapter;
mod answer;
mod convert;
mod errno;
mod fusermount;
mod groups;
mod ioctl;
mod kernel;
pub mod mountinfo;
pub mod session;
mod workers;

pub use errno::chain;
pub use session::{
    Change, MountError, Mounted, Settings, Unmount, access_times, mark_io_flusher, mount, remount,
    unmount,
};
