//! What can go wrong with a tree.
//!
//! Absent on purpose: errors of callers (ranges behind the end, unsorted runs). Those are asserts.

use std::io;

use crate::chunk::Address;

/// Why a tree could not be read or changed. `E` is the error of the store.
#[derive(Debug, thiserror::Error)]
pub enum Error<E: std::error::Error + 'static> {
    /// The store failed; its error says how.
    #[error(transparent)]
    Store(#[from] E),
    /// The tree chunk does not fit its place in the tree.
    #[error(
        "tree chunk {address} does not fit: span {span} with {children} children \
         ({filled} counts), expected span {span_expected} with {children_expected} children"
    )]
    TreeShape {
        /// The chunk.
        address: Address,
        /// The span that it has.
        span: u64,
        /// The number of children that it has.
        children: usize,
        /// The number of counts of filled bytes that it has.
        filled: usize,
        /// The span that its place asks for.
        span_expected: u64,
        /// The number of children that its place asks for.
        children_expected: usize,
    },
    /// The data chunk does not fit its place in the tree.
    #[error("data chunk {address} has {length} bytes, expected {length_expected}")]
    DataLength {
        /// The chunk.
        address: Address,
        /// The bytes that it has.
        length: usize,
        /// The bytes that its place asks for.
        length_expected: u64,
    },
}

/// Why content could not be read.
pub type ReadError<E> = Error<E>;

/// Why content could not be changed.
pub type EditError<E> = Error<E>;

/// Why a reader could not be split. `E` is the error of the store.
#[derive(Debug, thiserror::Error)]
pub enum SplitError<E: std::error::Error + 'static> {
    /// The reader failed. Nothing of what it gave is part of a root.
    #[error("cannot read the content to split")]
    Reader(#[source] io::Error),
    /// The content would be longer than [`super::SIZE_MAX`].
    #[error("content of more than {} bytes is not supported", super::SIZE_MAX)]
    TooLarge,
    /// The old tree could not be read, or the new one not be put.
    #[error(transparent)]
    Tree(#[from] Error<E>),
}
