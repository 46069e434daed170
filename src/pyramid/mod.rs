//! Files as Merkle trees of chunks.
//!
//! Owns the shape of trees and all that is done with them: [`Pyramid::split`] and
//! [`Pyramid::append`] build them, [`Pyramid::edit`] changes them, [`Pyramid::read`] and
//! [`Pyramid::walk`] read them, [`Pyramid::next_data`], [`Pyramid::next_hole`] and
//! [`Pyramid::diff`] answer questions about them.
//!
//! Invariants: (1) the root follows from the content alone, whatever the steps that led there;
//! (2) what is all zeros has a known address and is never put nor loaded; (3) children are put
//! before their parents; (4) no chunk from a store is trusted to fit its place: span, number of
//! children and length are compared with the geometry.
//!
//! Absent on purpose: where chunks live (the traits [`Source`](crate::chunk::Source) and
//! [`Sink`](crate::chunk::Sink)), and files.

mod append;
mod diff;
mod edit;
mod error;
mod geometry;
mod join;
mod root;
mod seek;
mod split;
mod spot;
mod walk;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub use edit::{Run, RunBytes};
pub use error::{EditError, Error, ReadError, SplitError};
pub use root::{Pyramid, Root, SIZE_MAX};
pub use walk::Visit;
