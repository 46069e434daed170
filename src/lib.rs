//! pyramidfs: a read/write POSIX filesystem in user space with transparent chunk dedup.
//!
//! The modules are layers: each may use only those above it in this list. `ARCHITECTURE.md` says
//! what each owns, and a test keeps the imports one-way.

pub mod chunk;
pub mod hash;
pub mod store;
pub mod sys;

#[cfg(test)]
mod testing;
