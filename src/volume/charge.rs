//! What a change may cost on the disk, before anybody knows what of it is stored already.
//!
//! Owns the bounds, as pure arithmetic: for bytes of a file the data chunks that they touch and
//! the tree chunks above these, each with its place in the lists, the footer and the index; for
//! entries their record and the pages of the checkpoint.
//!
//! Invariant: nothing that is stored for a change is more than its bound, which the tests measure.
//! Bounds are loose, as equal content and compression are not known before: whoever refuses for
//! want of room has first to commit, which puts what was really stored in the place of the bounds.

use crate::chunk::Profile;

/// What a chunk has beside its bytes: its item in the frame's list and once more in the footer, its
/// share of the frame's header, and its place in the index.
const CHUNK_EXTRA_BYTES: u64 = 160;

/// Frames that a flush leaves half full, and what a file of the filesystem below is rounded up to.
const FLUSH_EXTRA_BYTES: u64 = 1024;

/// An operation's entries, beside names and values that are long.
pub(super) const ENTRIES_BYTES: u64 = 2048;

/// Nodes of one level that a change may touch beside those straight above its chunks: where it
/// begins, the old and the new end of the file, and a hole in between.
const EDGES: u64 = 4;

/// Pages of the checkpoint that a take-in replaces are free only after it: so many times the bytes
/// of its entries, when each entry lies in a page of its own.
const PAGES_FACTOR: u64 = 32;

/// Entries that one transaction of the checkpoint takes in, bytes: as `meta::Options` has it.
const TAKE_IN_BYTES: u64 = 512 << 10;

/// The bounds for volumes of one shape.
#[derive(Debug, Clone, Copy)]
pub(super) struct Charges {
    chunk_bytes: u64,
    branches: u64,
    tree_copies: u64,
}

impl Charges {
    /// The bounds for a volume with so many copies of each tree chunk.
    pub(super) fn new(profile: Profile, tree_copies: u32) -> Charges {
        Charges {
            chunk_bytes: profile.chunk_bytes() as u64,
            branches: u64::from(profile.branches).max(2),
            tree_copies: u64::from(tree_copies).max(1),
        }
    }

    /// The bound for `length` bytes at `offset` of a file, which has `size` bytes then.
    pub(super) fn content(&self, offset: u64, length: u64, size: u64) -> u64 {
        let end = offset.saturating_add(length).div_ceil(self.chunk_bytes);
        // One more is the old end of the file, when it lies within a chunk.
        let touched = end - offset / self.chunk_bytes + 1;
        let all = size.div_ceil(self.chunk_bytes);
        let data = touched.min(all);
        let bytes = data.saturating_mul(self.chunk_bytes).min(size);
        bytes
            .saturating_add(data.saturating_mul(CHUNK_EXTRA_BYTES))
            .saturating_add(self.trees(touched, all))
            .saturating_add(ENTRIES_BYTES + FLUSH_EXTRA_BYTES)
    }

    /// The bound for a copy that shares chunks; with both ranges at the same offset it shares whole
    /// subtrees, and only the edges are new.
    pub(super) fn copy(&self, (from, to): (u64, u64), length: u64, size: u64) -> u64 {
        let edges = self.content(to, length.min(2 * self.chunk_bytes), size);
        let touched = if from == to { 1 } else { length.div_ceil(self.chunk_bytes) };
        let trees = self.trees(touched, size.div_ceil(self.chunk_bytes));
        edges.saturating_mul(2).saturating_add(trees)
    }

    /// The tree chunks above `touched` of `all` data chunks.
    fn trees(&self, touched: u64, all: u64) -> u64 {
        let one = (self.chunk_bytes + CHUNK_EXTRA_BYTES) * self.tree_copies;
        let (mut touched, mut all, mut bytes) = (touched, all, 0u64);
        while 1 < all {
            all = all.div_ceil(self.branches);
            touched = (touched.div_ceil(self.branches) + EDGES).min(all.saturating_add(EDGES));
            bytes = bytes.saturating_add(touched.saturating_mul(one));
        }
        bytes
    }
}

/// The bound for entries: `changed` bytes of them are in groups, `committed` in records and not in
/// the checkpoint, which has `checkpoint` bytes.
pub(super) fn entries(changed: u64, committed: u64, checkpoint: u64) -> u64 {
    // Once in the record, once in the checkpoint; memory counts more for an entry than its bytes.
    let places = changed.saturating_mul(2).saturating_add(committed);
    let taken_in = changed.saturating_add(committed).min(TAKE_IN_BYTES);
    places.saturating_add(checkpoint.min(taken_in.saturating_mul(PAGES_FACTOR)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 4096;

    fn charges() -> Charges {
        Charges::new(Profile::DEFAULT, 1)
    }

    #[test]
    fn a_small_file_costs_its_bytes_and_no_tree() {
        let one = charges().content(0, 1, 1);
        assert_eq!(one, 1 + CHUNK_EXTRA_BYTES + ENTRIES_BYTES + FLUSH_EXTRA_BYTES);
        assert!(charges().content(0, CHUNK, CHUNK) < 2 * CHUNK);
    }

    #[test]
    fn long_writes_cost_little_more_than_their_bytes() {
        let mib = 1 << 20;
        let cost = charges().content(100 * mib, mib, 101 * mib);
        assert!(mib < cost && cost < mib * 5 / 4, "{cost}");
    }

    #[test]
    fn a_chunk_in_the_middle_costs_the_tree_chunks_above_it() {
        let cost = charges().content(1 << 30, CHUNK, 1 << 31);
        // Three levels above 2 GiB, and each edge of them.
        assert!(4 * CHUNK < cost && cost < 20 * CHUNK, "{cost}");
        let doubled = Charges::new(Profile::DEFAULT, 2).content(1 << 30, CHUNK, 1 << 31);
        assert!(cost < doubled && doubled < 2 * cost);
    }

    #[test]
    fn no_size_is_too_much() {
        let all = charges().content(0, u64::MAX, u64::MAX);
        assert!(1 << 62 < all);
        assert!(charges().copy((0, 0), u64::MAX, u64::MAX) < 1 << 20);
        assert!(charges().copy((0, 4096), 1 << 40, 1 << 41) < 1 << 36);
        assert_eq!(entries(u64::MAX, u64::MAX, u64::MAX), u64::MAX);
    }
}
