//! Nodes of stored trees, found by where they lie.
//!
//! Owns [`Spot`] and the way down to it. Invariant: trees of one profile are aligned. A node of
//! height h starts at a multiple of `S(h)`, so of a block of `S(h)` bytes that starts at such a
//! multiple, a tree has at most one node of height h or lower with all that it holds there, and
//! that node starts where the block does.
//!
//! Absent on purpose: what is done with a node.

use std::sync::Arc;

use super::error::Error;
use super::geometry::Shape;
use super::root::{Link, Pyramid, Root};
use crate::chunk::Tree;

/// A node of a stored tree.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot {
    /// Where it starts in its file.
    pub offset: u64,
    pub shape: Shape,
    pub link: Link,
}

/// Loads the chunk of a node.
pub(super) type Load<'a, E> = dyn FnMut(&Spot) -> Result<Arc<Tree>, Error<E>> + 'a;

impl Pyramid {
    /// Returns the topmost node.
    pub(super) fn spot(&self, root: &Root) -> Spot {
        let link = Link { address: root.address, filled: root.filled.min(root.size) };
        Spot { offset: 0, shape: self.geometry().root(root.size), link }
    }

    /// Returns the child at `index` of a node and its loaded chunk. None behind the last.
    pub(super) fn spot_child(&self, spot: &Spot, tree: &Tree, index: usize) -> Option<Spot> {
        let address = *tree.children.get(index)?;
        let shape = self.geometry().child(spot.shape, index);
        // The counts are not hashed: a wrong one must not make sums overflow.
        let filled = *tree.filled.get(index)?.min(&shape.span);
        let offset = spot.offset + index as u64 * self.geometry().piece(spot.shape);
        Some(Spot { offset, shape, link: Link { address, filled } })
    }

    /// Whether all below is zeros, as [`Pyramid::is_zero_link`] tells.
    pub(super) fn spot_is_zero(&self, spot: &Spot) -> bool {
        self.is_zero_link(&spot.link, spot.shape)
    }

    /// Goes down from `spot` to the node at `offset` that is at most `height` high; `load` gets the
    /// chunks on the way. None when a node above is a hole.
    ///
    /// `offset` must be a multiple of `S(height)` and inside `spot`.
    pub(super) fn descend<E: std::error::Error + 'static>(
        &self,
        mut spot: Spot,
        offset: u64,
        height: u32,
        load: &mut Load<'_, E>,
    ) -> Result<Option<Spot>, Error<E>> {
        while height < spot.shape.height {
            if self.spot_is_zero(&spot) {
                return Ok(None);
            }
            let index = (offset - spot.offset) / self.geometry().piece(spot.shape);
            let tree = load(&spot)?;
            let child = self.spot_child(&spot, &tree, usize::try_from(index).unwrap_or(usize::MAX));
            assert!(child.is_some(), "offset {offset} lies inside the tree");
            spot = child.unwrap_or(spot);
        }
        assert!(spot.offset == offset, "nodes are aligned with their heights");
        Ok(Some(spot))
    }
}
