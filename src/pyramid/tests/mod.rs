//! Tests of the pyramid against a plain byte vector and the slow reference.

mod counts;
mod faults;
mod properties;
mod ranges;
mod store;
