//! Dirty runs: what is written to one file and not yet chunks.
//!
//! Owns [`Layer`]: what happened to a file's content within one group, or a part of it. A file's
//! layers lie above its root, the newest on top; flushing turns the lowest into a new root.
//!
//! Invariants: (1) runs are sorted, do not overlap, are not empty and end at or before `size`;
//! (2) a sealed layer never changes again, so it can be read without a lock; (3) `bytes` is the
//! sum of the lengths of runs that hold bytes: zeros and shared content cost nothing.
//!
//! Absent on purpose: chunks, locks, and when anything is flushed.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::meta::GroupId;
use crate::pyramid::{Root, Run, RunBytes};

/// A run is extended in place up to this many bytes; behind it a new one begins.
const RUN_BYTES_MAX: usize = 1 << 20;

/// What a layer costs beside the bytes of its runs, for the budget of dirty bytes.
pub(super) const LAYER_COST_BYTES: u64 = 256;

/// What a run costs beside its bytes.
pub(super) const RUN_COST_BYTES: u64 = 128;

/// What a run holds.
#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    /// So many zeros.
    Zeros(u64),
    /// A range of other content.
    Content(Range),
}

/// A range of content that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) root: Root,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::Zeros(length) => *length,
            Piece::Content(range) => range.length,
        }
    }

    /// Bytes that it holds in memory.
    fn held(&self) -> u64 {
        if let Piece::Bytes(bytes) = self { bytes.len() as u64 } else { 0 }
    }

    fn truncate(&mut self, length: u64) {
        match self {
            Piece::Bytes(bytes) => bytes.truncate(length as usize),
            Piece::Zeros(zeros) => *zeros = length,
            Piece::Content(range) => range.length = length,
        }
    }

    /// Keeps the first `at` bytes and returns the rest.
    fn split_off(&mut self, at: u64) -> Piece {
        let rest = match self {
            Piece::Bytes(bytes) => Piece::Bytes(bytes.split_off(at as usize)),
            Piece::Zeros(length) => Piece::Zeros(*length - at),
            Piece::Content(range) => Piece::Content(Range {
                offset: range.offset + at,
                length: range.length - at,
                ..*range
            }),
        };
        self.truncate(at);
        rest
    }
}

/// Changes of a file's content on top of what lies below.
#[derive(Debug)]
pub(super) struct Layer {
    /// The group that the changes belong to.
    pub(super) group: GroupId,
    /// Content that takes the place of all below (a copied root); `None` keeps what is below.
    pub(super) base: Option<Root>,
    /// Bytes of what lies below that are still visible; what is behind them is a hole.
    pub(super) keep: u64,
    /// The file's size after these changes.
    pub(super) size: u64,
    /// What was written, by offset.
    runs: BTreeMap<u64, Piece>,
    bytes: u64,
}

impl Layer {
    /// Makes a layer that changes nothing of a file of `size` bytes.
    pub(super) fn new(group: GroupId, size: u64) -> Layer {
        Layer { group, base: None, keep: u64::MAX, size, runs: BTreeMap::new(), bytes: 0 }
    }

    /// Makes a layer whose content is `root`, whatever was below.
    pub(super) fn replacing(group: GroupId, root: Root) -> Layer {
        Layer { base: Some(root), ..Layer::new(group, root.size) }
    }

    /// Bytes that the runs hold in memory.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the layer takes from the budget of dirty bytes.
    pub(super) fn cost(&self) -> u64 {
        LAYER_COST_BYTES + self.bytes + self.runs.len() as u64 * RUN_COST_BYTES
    }

    /// The runs, for the pyramid.
    pub(super) fn runs(&self) -> Vec<Run<'_>> {
        let run = |(&offset, piece)| match piece {
            &Piece::Zeros(length) => Run::zeros(offset, length),
            Piece::Bytes(bytes) => Run::bytes(offset, bytes),
            Piece::Content(Range { root, offset: start, length }) => {
                let bytes = RunBytes::Content { root, offset: *start, length: *length };
                Run { offset, bytes }
            }
        };
        self.runs.iter().map(run).collect()
    }

    /// Writes `bytes` at `offset` and extends the file to hold them.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len() as u64;
        self.size = self.size.max(end);
        if self.overwrite_in_place(offset, bytes) {
            return;
        }
        self.cut_out(offset, end);
        self.bytes += bytes.len() as u64;
        if let Some((&start, Piece::Bytes(run))) = self.runs.range_mut(..offset).next_back()
            && start + run.len() as u64 == offset
            && run.len() + bytes.len() <= RUN_BYTES_MAX
        {
            run.extend_from_slice(bytes);
            return;
        }
        self.runs.insert(offset, Piece::Bytes(bytes.to_vec()));
    }

    /// Makes `length` bytes at `offset` zeros, and extends the file to hold them.
    pub(super) fn zero(&mut self, offset: u64, length: u64) {
        self.put(offset, Piece::Zeros(length));
    }

    /// Lays a range of other content over the file at `offset`, and extends it to hold that.
    pub(super) fn share(&mut self, offset: u64, range: Range) {
        self.put(offset, Piece::Content(range));
    }

    fn put(&mut self, offset: u64, piece: Piece) {
        if piece.len() == 0 {
            return;
        }
        let end = offset + piece.len();
        self.size = self.size.max(end);
        self.cut_out(offset, end);
        self.bytes += piece.held();
        self.runs.insert(offset, piece);
    }

    /// Cuts or extends the file to `size` bytes; what an extension adds is a hole.
    pub(super) fn truncate(&mut self, size: u64) {
        if size < self.size {
            self.cut_out(size, u64::MAX);
            self.keep = self.keep.min(size);
        }
        self.size = size;
    }

    /// Copies the bytes that this layer holds of `[offset, offset + buf.len())` into `buf`.
    ///
    /// `gaps` are the parts of that range, as file offsets, that are wanted; returned are those
    /// that must come from below. What other content gives goes to `shared`: where it is wanted
    /// in the file, and what is wanted. Bytes that are zeros by this layer are left as they are.
    pub(super) fn read(
        &self,
        offset: u64,
        buf: &mut [u8],
        gaps: Vec<Gap>,
        shared: &mut Vec<(u64, Range)>,
    ) -> Vec<Gap> {
        let mut below = Vec::new();
        for gap in gaps {
            let mut position = gap.start;
            let first = self.runs.range(..=gap.start).next_back().map_or(gap.start, |run| *run.0);
            for (&start, piece) in self.runs.range(first..gap.end) {
                let (from, to) = (start.max(position), (start + piece.len()).min(gap.end));
                if to <= from {
                    continue;
                }
                self.push_below(&mut below, Gap { start: position, end: from });
                let skipped = from - start;
                match piece {
                    Piece::Zeros(_) => {}
                    Piece::Bytes(bytes) => buf[(from - offset) as usize..(to - offset) as usize]
                        .copy_from_slice(&bytes[skipped as usize..(to - start) as usize]),
                    Piece::Content(range) => {
                        let offset = range.offset + skipped;
                        shared.push((from, Range { offset, length: to - from, ..*range }));
                    }
                }
                position = to;
            }
            self.push_below(&mut below, Gap { start: position, end: gap.end });
        }
        below
    }

    fn push_below(&self, below: &mut Vec<Gap>, gap: Gap) {
        let end = gap.end.min(self.keep);
        if gap.start < end {
            below.push(Gap { start: gap.start, end });
        }
    }

    /// Copies into one run that holds all of the range; answers whether there is one.
    fn overwrite_in_place(&mut self, offset: u64, bytes: &[u8]) -> bool {
        let Some((&start, Piece::Bytes(run))) = self.runs.range_mut(..=offset).next_back() else {
            return false;
        };
        let at = (offset - start) as usize;
        match run.get_mut(at..at.saturating_add(bytes.len())) {
            Some(place) => {
                place.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }

    /// Removes `[start, end)` from the runs.
    fn cut_out(&mut self, start: u64, end: u64) {
        if let Some((&run_start, piece)) = self.runs.range_mut(..start).next_back()
            && start < run_start + piece.len()
        {
            let held = piece.held();
            let mut middle = piece.split_off(start - run_start);
            let kept = piece.held();
            let rest = (end - start < middle.len()).then(|| middle.split_off(end - start));
            self.bytes -= held - kept - rest.as_ref().map_or(0, Piece::held);
            self.runs.extend(rest.map(|rest| (end, rest)));
        }
        let inside: Vec<u64> = self
            .runs
            .range((Bound::Included(start), Bound::Excluded(end)))
            .map(|(&run_start, _)| run_start)
            .collect();
        for run_start in inside {
            let Some(mut piece) = self.runs.remove(&run_start) else { continue };
            let rest = (end - run_start < piece.len()).then(|| piece.split_off(end - run_start));
            self.bytes -= piece.held();
            self.runs.extend(rest.map(|rest| (end, rest)));
        }
    }
}

/// A part of a file that is still wanted: `[start, end)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) start: u64,
    pub(super) end: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chunk::Address;

    #[derive(Debug, Clone)]
    enum Change {
        Write(u64, Vec<u8>),
        Truncate(u64),
        Zero(u64, u64),
        Share(u64, u64, u64),
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            3 => (0u64..200, prop::collection::vec(any::<u8>(), 0..60))
                .prop_map(|(offset, bytes)| Change::Write(offset, bytes)),
            1 => (0u64..260).prop_map(Change::Truncate),
            1 => (0u64..200, 0u64..60).prop_map(|(offset, length)| Change::Zero(offset, length)),
            1 => (0u64..200, 0u64..100, 0u64..60)
                .prop_map(|(offset, from, length)| Change::Share(offset, from, length)),
        ]
    }

    /// The content that all shared ranges are of: only its size is looked at by a layer.
    const OTHER: Root = Root { address: Address([7; 32]), size: 200, filled: 200 };

    fn other(offset: u64) -> u8 {
        offset as u8 ^ 0x5a
    }

    /// Reads a whole file through `layers` above `root`.
    fn read(root: &[u8], layers: &[Layer], size: u64) -> Vec<u8> {
        let mut buf = vec![0; size as usize];
        let mut gaps = vec![Gap { start: 0, end: size }];
        for layer in layers.iter().rev() {
            let mut shared = Vec::new();
            gaps = layer.read(0, &mut buf, gaps, &mut shared);
            for (start, range) in shared {
                for position in 0..range.length {
                    buf[(start + position) as usize] = other(range.offset + position);
                }
            }
        }
        for gap in gaps {
            let end = gap.end.min(root.len() as u64);
            if gap.start < end {
                let range = gap.start as usize..end as usize;
                buf[range.clone()].copy_from_slice(&root[range]);
            }
        }
        buf
    }

    fn write(plain: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
        let end = offset as usize + bytes.len();
        if !bytes.is_empty() {
            plain.resize(plain.len().max(end), 0);
            plain[offset as usize..end].copy_from_slice(bytes);
        }
    }

    proptest! {
        #![proptest_config(crate::testing::config(400))]

        #[test]
        fn layers_read_as_a_plain_vector(
            root in prop::collection::vec(any::<u8>(), 0..150),
            changes in prop::collection::vec(prop::collection::vec(change(), 0..8), 1..4),
        ) {
            let mut plain = root.clone();
            let mut layers: Vec<Layer> = Vec::new();
            for (index, changes) in changes.into_iter().enumerate() {
                let mut layer = Layer::new(GroupId(index as u64), plain.len() as u64);
                for change in changes {
                    match change {
                        Change::Write(offset, bytes) => {
                            layer.write(offset, &bytes);
                            write(&mut plain, offset, &bytes);
                        }
                        Change::Zero(offset, length) => {
                            layer.zero(offset, length);
                            write(&mut plain, offset, &vec![0; length as usize]);
                        }
                        Change::Share(offset, from, length) => {
                            layer.share(offset, Range { root: OTHER, offset: from, length });
                            let bytes: Vec<u8> = (from..from + length).map(other).collect();
                            write(&mut plain, offset, &bytes);
                        }
                        Change::Truncate(size) => {
                            layer.truncate(size);
                            plain.resize(size as usize, 0);
                        }
                    }
                    prop_assert_eq!(layer.size, plain.len() as u64);
                    let runs = layer.runs();
                    let sum: u64 = layer.runs.values().map(Piece::held).sum();
                    prop_assert_eq!(layer.bytes(), sum);
                    prop_assert_eq!(runs.len(), layer.runs.len());
                    let mut end = 0;
                    for (&start, run) in &layer.runs {
                        prop_assert!(end <= start && 0 < run.len());
                        end = start + run.len();
                        prop_assert!(end <= layer.size);
                    }
                }
                layers.push(layer);
                prop_assert_eq!(&read(&root, &layers, plain.len() as u64), &plain);
            }
        }
    }
}
