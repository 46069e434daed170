//! Comparing two trees.
//!
//! Owns [`Pyramid::diff`]: it descends in both trees at once, block by block, and only where the
//! addresses differ.
//!
//! Absent on purpose: differences finer than a data chunk.

use std::ops::Range;
use std::sync::Arc;

use super::error::{Error, ReadError};
use super::root::{Pyramid, Root};
use super::spot::Spot;
use crate::chunk::{Source, Tree};

impl Pyramid {
    /// Calls `each` with every range in which the two contents may differ, in order and merged.
    ///
    /// Ranges begin and end at borders of data chunks, or at an end of the content. What only the
    /// longer one has is part of a range, zeros or not.
    ///
    /// # Errors
    ///
    /// Fails when the source fails or a tree chunk does not fit its place.
    pub fn diff<S: Source>(
        &self,
        source: &S,
        old: &Root,
        new: &Root,
        each: &mut dyn FnMut(Range<u64>),
    ) -> Result<(), ReadError<S::Error>> {
        let (common, longer) = (old.size.min(new.size), old.size.max(new.size));
        let mut diff = Diff { pyramid: self, source, common, each, open: None };
        let sides = [Some(self.spot(old)), Some(self.spot(new))];
        let height = sides.iter().flatten().map(|spot| spot.shape.height).max().unwrap_or(0);
        diff.block(0, height, sides)?;
        if common < longer {
            diff.add(common..longer);
        }
        diff.close();
        Ok(())
    }
}

/// What one tree has in a block: the node, and its chunk if it is as high as the block.
type Side = (Spot, Option<Arc<Tree>>);

struct Diff<'a, S> {
    pyramid: &'a Pyramid,
    source: &'a S,
    /// The size of the shorter content.
    common: u64,
    each: &'a mut dyn FnMut(Range<u64>),
    /// A range that the next one may prolong.
    open: Option<Range<u64>>,
}

impl<S: Source> Diff<'_, S> {
    /// Compares a block of `S(height)` bytes. Each side is the node with all that its tree has
    /// there; None when that is zeros.
    fn block(
        &mut self,
        offset: u64,
        height: u32,
        sides: [Option<Spot>; 2],
    ) -> Result<(), Error<S::Error>> {
        let sides = sides.map(|side| side.filter(|spot| !self.pyramid.spot_is_zero(spot)));
        let equal = match &sides {
            [None, None] => true,
            [Some(a), Some(b)] => (a.link.address, a.shape.span) == (b.link.address, b.shape.span),
            _ => false,
        };
        if equal {
            return Ok(());
        }
        let end = self.common.min(offset.saturating_add(self.pyramid.geometry().span(height)));
        if height == 0 {
            self.add(offset..end);
            return Ok(());
        }
        let [a, b] = sides;
        let (a, b) = (self.open(a, height)?, self.open(b, height)?);
        let piece = self.pyramid.geometry().span(height - 1);
        for index in 0..end.saturating_sub(offset).div_ceil(piece) {
            let children = [self.child(&a, index as usize), self.child(&b, index as usize)];
            self.block(offset + index * piece, height - 1, children)?;
        }
        Ok(())
    }

    /// Loads the chunk of a node that is as high as the block.
    fn open(&self, spot: Option<Spot>, height: u32) -> Result<Option<Side>, Error<S::Error>> {
        let Some(spot) = spot else { return Ok(None) };
        if spot.shape.height < height {
            return Ok(Some((spot, None)));
        }
        let tree = self.pyramid.load_tree(self.source, &spot.link.address, spot.shape)?;
        Ok(Some((spot, Some(tree))))
    }

    fn child(&self, side: &Option<Side>, index: usize) -> Option<Spot> {
        match side {
            Some((spot, Some(tree))) => self.pyramid.spot_child(spot, tree, index),
            // A node lower than its block is all that the first of the smaller blocks has.
            Some((spot, None)) => Some(*spot).filter(|_| index == 0),
            None => None,
        }
    }

    fn add(&mut self, range: Range<u64>) {
        match &mut self.open {
            Some(open) if open.end == range.start => open.end = range.end,
            _ => {
                self.close();
                self.open = Some(range);
            }
        }
    }

    fn close(&mut self) {
        if let Some(range) = self.open.take() {
            (self.each)(range);
        }
    }
}
