//! Finding holes and data.
//!
//! Owns [`Pyramid::next_data`] and [`Pyramid::next_hole`]. A hole is a data chunk, or a subtree, of
//! zeros only; zeros in a chunk with other bytes are data.
//!
//! Invariant: a subtree that is all hole, or by its count has none, is not loaded.
//!
//! Absent on purpose: the end of the file as an error number.

use super::error::{Error, ReadError};
use super::root::{Pyramid, Root};
use super::spot::Spot;
use crate::chunk::Source;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Data,
    Hole,
}

impl Pyramid {
    /// Returns the first offset from `offset` on that lies in data. None when there is none before
    /// the end.
    ///
    /// # Errors
    ///
    /// Fails when the source fails or a tree chunk does not fit its place.
    pub fn next_data<S: Source>(
        &self,
        source: &S,
        root: &Root,
        offset: u64,
    ) -> Result<Option<u64>, ReadError<S::Error>> {
        self.seek(source, &self.spot(root), offset, Wanted::Data)
    }

    /// Returns the first offset from `offset` on that lies in a hole; the end counts as one. None
    /// when `offset` is at or behind the end.
    ///
    /// # Errors
    ///
    /// Fails when the source fails or a tree chunk does not fit its place.
    pub fn next_hole<S: Source>(
        &self,
        source: &S,
        root: &Root,
        offset: u64,
    ) -> Result<Option<u64>, ReadError<S::Error>> {
        if root.size <= offset {
            return Ok(None);
        }
        let found = self.seek(source, &self.spot(root), offset, Wanted::Hole)?;
        Ok(Some(found.unwrap_or(root.size)))
    }

    fn seek<S: Source>(
        &self,
        source: &S,
        spot: &Spot,
        offset: u64,
        wanted: Wanted,
    ) -> Result<Option<u64>, Error<S::Error>> {
        if spot.offset + spot.shape.span <= offset {
            return Ok(None);
        }
        let here = Some(spot.offset.max(offset));
        if self.spot_is_zero(spot) {
            return Ok(here.filter(|_| wanted == Wanted::Hole));
        }
        if spot.shape.height == 0 || spot.link.filled == spot.shape.span {
            return Ok(here.filter(|_| wanted == Wanted::Data));
        }
        let tree = self.load_tree(source, &spot.link.address, spot.shape)?;
        let first = offset.saturating_sub(spot.offset) / self.geometry().piece(spot.shape);
        for index in first as usize..tree.children.len() {
            if let Some(child) = self.spot_child(spot, &tree, index)
                && let Some(found) = self.seek(source, &child, offset, wanted)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}
