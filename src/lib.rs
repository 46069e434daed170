//! pyramidfs: a read/write POSIX filesystem in user space with transparent chunk dedup.
//!
//! The modules are layers: each may use only those above it in the table of `ARCHITECTURE.md`,
//! which says what each owns; a test keeps the imports one-way.

// The head of a module is for those who work on it, and names what is private too.
#![allow(rustdoc::private_intra_doc_links)]

pub mod check;
pub mod chunk;
pub mod cli;
pub mod fuse;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod hash;
pub mod meta;
pub mod pyramid;
pub mod store;
pub mod sys;
pub mod volume;

#[cfg(test)]
mod testing;
