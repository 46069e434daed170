//! Visiting what is stored of a tree.
//!
//! Owns [`Pyramid::walk`]. Invariants: parents come before their children, holes never come.
//!
//! Absent on purpose: remembering addresses. One that is in the tree twice comes twice, unless the
//! visitor skips it.

use super::error::{Error, ReadError};
use super::root::{Pyramid, Root};
use super::spot::Spot;
use crate::chunk::{Address, Source};

/// A chunk on a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visit<'a> {
    /// A tree chunk that is not loaded yet. The answer false skips it and all below.
    Enter {
        /// The chunk.
        address: Address,
        /// File bytes below.
        span: u64,
        /// 1 for a parent of data chunks.
        level: u32,
    },
    /// The same tree chunk, loaded. The answer false skips all below.
    Tree {
        /// The chunk.
        address: Address,
        /// File bytes below.
        span: u64,
        /// 1 for a parent of data chunks.
        level: u32,
        /// All its children, holes too.
        children: &'a [Address],
        /// For each child the number of bytes that are not holes, as the source tells.
        filled: &'a [u64],
    },
    /// A data chunk, which is not loaded. The answer does not matter.
    Data {
        /// The chunk.
        address: Address,
        /// Its length in bytes.
        span: u64,
    },
}

impl Pyramid {
    /// Visits every chunk of `root`, which comes first, that is not a hole.
    ///
    /// # Errors
    ///
    /// Fails when the source fails or a tree chunk does not fit its place.
    pub fn walk<S: Source>(
        &self,
        source: &S,
        root: &Root,
        visit: &mut dyn FnMut(Visit<'_>) -> bool,
    ) -> Result<(), ReadError<S::Error>> {
        self.walk_node(source, &self.spot(root), visit)
    }

    fn walk_node<S: Source>(
        &self,
        source: &S,
        spot: &Spot,
        visit: &mut dyn FnMut(Visit<'_>) -> bool,
    ) -> Result<(), Error<S::Error>> {
        if self.spot_is_zero(spot) {
            return Ok(());
        }
        let (address, span, level) = (spot.link.address, spot.shape.span, spot.shape.height);
        if level == 0 {
            visit(Visit::Data { address, span });
            return Ok(());
        }
        if !visit(Visit::Enter { address, span, level }) {
            return Ok(());
        }
        let tree = self.load_tree(source, &address, spot.shape)?;
        let (children, filled) = (tree.children.as_slice(), tree.filled.as_slice());
        if !visit(Visit::Tree { address, span, level, children, filled }) {
            return Ok(());
        }
        for child in (0..).map_while(|index| self.spot_child(spot, &tree, index)) {
            self.walk_node(source, &child, visit)?;
        }
        Ok(())
    }
}
