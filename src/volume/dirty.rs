//! Dirty runs: bytes of one file that are written but not yet chunks.
//!
//! Owns [`Layer`]: what happened to a file's content within one group, or a part of it. A file's
//! layers lie above its root, the newest on top; flushing turns the lowest into a new root.
//!
//! Invariants: (1) runs are sorted, do not overlap and end at or before `size`; (2) a sealed layer
//! never changes again, so it can be read without a lock; (3) `bytes` is the sum of the runs'
//! lengths.
//!
//! Absent on purpose: chunks, locks, and when anything is flushed.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::meta::GroupId;
use crate::pyramid::{Root, Run};

/// A run is extended in place up to this many bytes; behind it a new one begins.
const RUN_BYTES_MAX: usize = 1 << 20;

/// What a layer costs beside the bytes of its runs, for the budget of dirty bytes.
pub(super) const LAYER_COST_BYTES: u64 = 256;

/// What a run costs beside its bytes.
pub(super) const RUN_COST_BYTES: u64 = 128;

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
    /// Written bytes by offset.
    runs: BTreeMap<u64, Vec<u8>>,
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

    /// Sum of the runs' lengths.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the layer takes from the budget of dirty bytes.
    pub(super) fn cost(&self) -> u64 {
        LAYER_COST_BYTES + self.bytes + self.runs.len() as u64 * RUN_COST_BYTES
    }

    /// The runs, for the pyramid.
    pub(super) fn runs(&self) -> Vec<Run<'_>> {
        self.runs.iter().map(|(&offset, bytes)| Run::bytes(offset, bytes)).collect()
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
        if let Some((&start, run)) = self.runs.range_mut(..offset).next_back()
            && start + run.len() as u64 == offset
            && run.len() + bytes.len() <= RUN_BYTES_MAX
        {
            run.extend_from_slice(bytes);
            return;
        }
        self.runs.insert(offset, bytes.to_vec());
    }

    /// Cuts or extends the file to `size` bytes; what an extension adds is a hole.
    pub(super) fn truncate(&mut self, size: u64) {
        if size < self.size {
            self.cut_out(size, u64::MAX);
            self.keep = self.keep.min(size);
        }
        self.size = size;
    }

    /// Copies what this layer knows of `[offset, offset + buf.len())` into `buf`.
    ///
    /// `gaps` are the parts of that range, as file offsets, that are wanted; returned are those
    /// that must come from below. Bytes that are holes by this layer are left as they are.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8], gaps: Vec<Gap>) -> Vec<Gap> {
        let mut below = Vec::new();
        for gap in gaps {
            let mut position = gap.start;
            let first = self.runs.range(..=gap.start).next_back().map_or(gap.start, |run| *run.0);
            for (&start, run) in self.runs.range(first..gap.end) {
                let end = start + run.len() as u64;
                let (from, to) = (start.max(position), end.min(gap.end));
                if to <= from {
                    continue;
                }
                self.push_below(&mut below, Gap { start: position, end: from });
                let source = &run[(from - start) as usize..(to - start) as usize];
                buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
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
        let Some((&start, run)) = self.runs.range_mut(..=offset).next_back() else {
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

    /// Removes the bytes of `[start, end)` from the runs.
    fn cut_out(&mut self, start: u64, end: u64) {
        if let Some((&run_start, run)) = self.runs.range_mut(..start).next_back() {
            let run_end = run_start + run.len() as u64;
            if start < run_end {
                if end < run_end {
                    let tail = run.split_off((end - run_start) as usize);
                    self.runs.insert(end, tail);
                }
                if let Some(run) = self.runs.get_mut(&run_start) {
                    run.truncate((start - run_start) as usize);
                }
                self.bytes -= run_end.min(end) - start;
            }
        }
        let inside: Vec<u64> = self
            .runs
            .range((Bound::Included(start), Bound::Excluded(end)))
            .map(|(&run_start, _)| run_start)
            .collect();
        for run_start in inside {
            let Some(mut run) = self.runs.remove(&run_start) else { continue };
            let run_end = run_start + run.len() as u64;
            if end < run_end {
                self.runs.insert(end, run.split_off((end - run_start) as usize));
            }
            self.bytes -= run_end.min(end) - run_start;
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

    #[derive(Debug, Clone)]
    enum Change {
        Write(u64, Vec<u8>),
        Truncate(u64),
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            3 => (0u64..200, prop::collection::vec(any::<u8>(), 0..60))
                .prop_map(|(offset, bytes)| Change::Write(offset, bytes)),
            1 => (0u64..260).prop_map(Change::Truncate),
        ]
    }

    /// Reads a whole file through `layers` above `root`.
    fn read(root: &[u8], layers: &[Layer], size: u64) -> Vec<u8> {
        let mut buf = vec![0; size as usize];
        let mut gaps = vec![Gap { start: 0, end: size }];
        for layer in layers.iter().rev() {
            gaps = layer.read(0, &mut buf, gaps);
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
                            let end = offset as usize + bytes.len();
                            if !bytes.is_empty() {
                                if plain.len() < end {
                                    plain.resize(end, 0);
                                }
                                plain[offset as usize..end].copy_from_slice(&bytes);
                            }
                        }
                        Change::Truncate(size) => {
                            layer.truncate(size);
                            plain.resize(size as usize, 0);
                        }
                    }
                    prop_assert_eq!(layer.size, plain.len() as u64);
                    let runs = layer.runs();
                    let sum: u64 = layer.runs.values().map(|run| run.len() as u64).sum();
                    prop_assert_eq!(layer.bytes(), sum);
                    prop_assert!(layer.runs.values().all(|run| !run.is_empty()) || runs.is_empty());
                    let mut end = 0;
                    for (&start, run) in &layer.runs {
                        prop_assert!(end <= start);
                        end = start + run.len() as u64;
                        prop_assert!(end <= layer.size);
                    }
                }
                layers.push(layer);
                prop_assert_eq!(&read(&root, &layers, plain.len() as u64), &plain);
            }
        }
    }
}
