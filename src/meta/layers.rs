//! The layers that a reader asks, newest first, and how they are merged.
//!
//! Open group, committing group, filling part, part being taken in, view of the checkpoint. All
//! five hang on one lock, and every move between them is one exchange under it, so no reader sees
//! a moment in which an entry is in neither its old nor its new place.
//!
//! Invariant: what a layer says hides what the layers behind it say.
//!
//! Absent on purpose: when things move (`Meta`).

use std::ops::Bound;
use std::sync::Arc;

use crate::meta::checkpoint::{Held, View};
use crate::meta::error::{Error, Result};
use crate::meta::groups::{GroupId, Part};

/// A key and a value, or a deletion.
pub(super) type Entry = (Arc<[u8]>, Option<Arc<[u8]>>);

/// A key and its value.
pub(super) type Living = (Arc<[u8]>, Arc<[u8]>);

/// Layers that can be asked at once.
const LAYERS_MAX: usize = 5;

/// The layers at one moment.
pub(super) struct Layers {
    /// The open group.
    pub(super) open: (GroupId, Arc<Part>),
    /// The group that is being committed.
    pub(super) committing: Option<Committing>,
    /// What is committed since the last take-in began.
    pub(super) filling: Arc<Part>,
    /// Of the last record in `filling`; without one, of the layers below.
    pub(super) filled_to: Held,
    /// What is being taken in, with the position of its last record.
    pub(super) taking: Option<(Arc<Part>, Held)>,
    /// The checkpoint as the last take-in left it; none once closed.
    pub(super) view: Option<Arc<dyn View>>,
    /// Of the last record in `view`.
    pub(super) viewed_to: Held,
}

/// A group between its cut and the moment at which it is durable.
pub(super) struct Committing {
    /// Its name.
    pub(super) id: GroupId,
    /// Its entries.
    pub(super) part: Arc<Part>,
    /// Bytes of its record, once that was made: then nothing may be added.
    pub(super) record_bytes: Option<u64>,
}

impl Layers {
    /// The layers in memory, newest first.
    fn parts(&self) -> impl Iterator<Item = &Arc<Part>> {
        let committing = self.committing.as_ref().map(|committing| &committing.part);
        let taking = self.taking.as_ref().map(|(part, _)| part);
        std::iter::once(&self.open.1).chain(committing).chain([&self.filling]).chain(taking)
    }

    /// What the layers in memory say of `key`.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Arc<[u8]>>> {
        self.parts().find_map(|part| part.get(key))
    }

    /// Returns the view of the checkpoint.
    pub(super) fn view(&self) -> Result<Arc<dyn View>> {
        self.view.clone().ok_or(Error::Closed)
    }

    /// What is committed: neither the open nor the committing group.
    pub(super) fn below(&self) -> Result<Below> {
        let taking = self.taking.as_ref().map(|(part, _)| part);
        let parts = std::iter::once(&self.filling).chain(taking).cloned().collect();
        Ok(Below { parts, view: self.view()? })
    }

    /// Copies the next entries of each layer in memory, at most `count` of each.
    pub(super) fn slices(&self, from: Bound<&[u8]>, end: &[u8], count: usize) -> Vec<Slice> {
        let mut slices = Vec::with_capacity(LAYERS_MAX);
        for part in self.parts().filter(|part| !part.is_empty()) {
            slices.push(slice(part, from, end, count));
        }
        slices
    }
}

/// The layers of what is committed, at one moment.
pub(super) struct Below {
    /// In memory, the newest first.
    parts: Vec<Arc<Part>>,
    view: Arc<dyn View>,
}

impl Below {
    /// Returns the value of `key`.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.parts.iter().find_map(|part| part.get(key)) {
            Some(found) => Ok(found.map(|value| value.to_vec())),
            None => self.view.get(key),
        }
    }

    /// Returns the next entries from `from` up to, not including, `end`, of about `count`.
    pub(super) fn batch(&self, from: Bound<&[u8]>, end: &[u8], count: usize) -> Result<Batch> {
        let mut slices: Vec<Slice> = self
            .parts
            .iter()
            .filter(|part| !part.is_empty())
            .map(|part| slice(part, from, end, count))
            .collect();
        slices.push(self.view.slice(from, end, count)?);
        Ok(merge(&slices))
    }
}

/// Copies the next entries of a part, at most `count`.
fn slice(part: &Part, from: Bound<&[u8]>, end: &[u8], count: usize) -> Slice {
    let entries = part.entries();
    let mut range = entries.range::<[u8], _>((from, Bound::Excluded(end)));
    let slice: Vec<Entry> =
        range.by_ref().take(count).map(|(k, v)| (k.clone(), v.clone())).collect();
    Slice { entries: slice, is_cut: range.next().is_some() }
}

/// The next entries of one layer.
pub(super) struct Slice {
    /// By ascending key.
    pub(super) entries: Vec<Entry>,
    /// Whether the layer has more behind them.
    pub(super) is_cut: bool,
}

/// Entries that were merged.
pub(super) struct Batch {
    /// Living entries by ascending key.
    pub(super) entries: Vec<Living>,
    /// Where the next batch begins: behind this key. None at the end.
    pub(super) behind: Option<Arc<[u8]>>,
}

/// Merges slices, newest layer first, as far as all of them reach.
pub(super) fn merge(slices: &[Slice]) -> Batch {
    let behind = slices
        .iter()
        .filter(|slice| slice.is_cut)
        .filter_map(|slice| slice.entries.last().map(|(key, _)| key.clone()))
        .min();
    let mut rests: Vec<&[Entry]> = slices.iter().map(|slice| slice.entries.as_slice()).collect();
    let mut entries = Vec::new();
    loop {
        // The least key; among equal ones `min_by` keeps the first, which is the newest layer.
        let next = rests.iter().filter_map(|rest| rest.first()).min_by(|a, b| a.0.cmp(&b.0));
        let Some((key, value)) = next else { break };
        if behind.as_ref().is_some_and(|behind| behind < key) {
            break;
        }
        for rest in &mut rests {
            if let Some(((first, _), tail)) = rest.split_first()
                && first == key
            {
                *rest = tail;
            }
        }
        if let Some(value) = value {
            entries.push((key.clone(), value.clone()));
        }
    }
    Batch { entries, behind }
}
