//! Versions: what inodes, contents, names and extended attributes were when a snapshot was made.
//!
//! Owns the current epoch and the list of snapshots that live, the making of versions when a
//! group's record is made, [`SnapshotView`], and what is of no use once a snapshot is gone.
//!
//! A snapshot is a number s: all changes up to the group in which its entry stands, which is the
//! last group of epoch s. The next group is of epoch s + 1. A value that is changed in epoch E and
//! that a living snapshot sees (start <= s < E) is kept under its key and E. So a snapshot finds
//! what it sees under the least end above s, and else, where that began early enough, as the live
//! value. An extended attribute does not say when it began; of those, absence is kept too, and
//! nothing more is kept of one for which the newest snapshot has found its answer.
//!
//! Invariants: (1) versions and the changes that they are of stand in one record; (2) a version
//! that a living snapshot sees is never removed; (3) whoever looks for a snapshot's entry looks at
//! the live value first and at versions then: a change that comes between the two shows twice, and
//! never not at all; (4) before the first snapshot nothing is looked up, and no byte more written.
//!
//! Absent on purpose: names of snapshots, and who deletes them.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use crate::meta::codec::Reader;
use crate::meta::error::{CodecError, Result};
use crate::meta::groups::{Entries, Part};
use crate::meta::key::{Key, KeyRange, VERSIONED, behind_versions, versions_from};
use crate::meta::layers::{Batch, Below, Living};
use crate::meta::value::{Content, Counters, Inode, NameEntry, Snapshot};
use crate::meta::{Meta, Reading, SCAN_FIRST, SCAN_MAX, Visitor};

/// In front of a version's value: there was none.
const ABSENT: u8 = 0;
/// In front of a version's value: the value follows.
const PRESENT: u8 = 1;

/// Versions that are read at a time.
const VERSIONS_AT_ONCE: usize = 64;

/// An encoded key, and what its value is to be.
pub(super) type Change = (Vec<u8>, Option<Vec<u8>>);

/// The epoch that the next record is of, and the snapshots that can be read.
#[derive(Debug, Clone, Default)]
pub(super) struct Epochs {
    /// 0 before the first snapshot.
    pub(super) epoch: u64,
    pub(super) living: BTreeSet<u64>,
}

impl Epochs {
    /// What they are behind a record with these entries.
    pub(super) fn advance(&mut self, entries: &Entries) {
        let counters = Key::Counters.encode();
        if let Some(Some(value)) = entries.get(counters.as_slice()) {
            self.take(&counters, Some(value));
        }
        let KeyRange { start, end } = KeyRange::snapshots();
        let range = (Bound::Included(start.as_slice()), Bound::Excluded(end.as_slice()));
        for (key, value) in entries.range::<[u8], _>(range) {
            self.take(key, value.as_deref());
        }
    }

    /// Takes in one entry, if it is about snapshots.
    pub(super) fn take(&mut self, key: &[u8], value: Option<&[u8]>) {
        match (Key::decode(key), value) {
            (Ok(Key::Counters), Some(value)) => {
                let epoch = Counters::decode(value).map_or(0, |counters| counters.epoch);
                self.epoch = self.epoch.max(epoch);
            }
            (Ok(Key::Snapshot(number)), Some(value)) => {
                // One that cannot be read lives on: what it sees stays.
                match Snapshot::decode(value) {
                    Ok(Snapshot { deleting: true, .. }) => self.living.remove(&number),
                    _ => self.living.insert(number),
                };
                self.epoch = self.epoch.max(number.saturating_add(1));
            }
            (Ok(Key::Snapshot(number)), None) => drop(self.living.remove(&number)),
            _ => {}
        }
    }
}

/// Takes the value of a version apart: what there was, if there was something.
pub fn version(value: &[u8]) -> std::result::Result<Option<&[u8]>, CodecError> {
    let mut reader = Reader::new(value);
    match reader.byte()? {
        ABSENT => reader.finish().map(|()| None),
        PRESENT => Ok(Some(reader.rest())),
        format => Err(CodecError::Format(format)),
    }
}

fn version_of(old: Option<&[u8]>) -> Vec<u8> {
    match old {
        None => vec![ABSENT],
        Some(old) => [&[PRESENT], old].concat(),
    }
}

/// The epoch in which a value began; `None` for one that does not say.
fn start(key: &[u8], value: &[u8]) -> Option<u64> {
    match Key::decode(key).ok()? {
        Key::Inode(_) => Inode::decode(value).ok().map(|inode| inode.epoch),
        Key::Content(_) => Content::decode(value).ok().map(|content| content.epoch),
        Key::Name { .. } => NameEntry::decode(value).ok().map(|name| name.epoch),
        _ => None,
    }
}

/// The same value with its beginning in `epoch`; `None` when it says so already, or cannot say it.
fn stamped(key: &[u8], value: &[u8], epoch: u64) -> Option<Vec<u8>> {
    if start(key, value)? == epoch {
        return None;
    }
    match Key::decode(key).ok()? {
        Key::Inode(_) => Inode::decode(value).ok().map(|inode| Inode { epoch, ..inode }.encode()),
        Key::Content(_) => {
            Content::decode(value).ok().map(|content| Content { epoch, ..content }.encode())
        }
        Key::Name { .. } => {
            NameEntry::decode(value).ok().map(|name| NameEntry { epoch, ..name }.encode())
        }
        _ => None,
    }
}

/// Whether a snapshot sees a value that it finds.
fn is_seen(key: &[u8], value: &[u8], snapshot: u64) -> bool {
    start(key, value).is_none_or(|start| start <= snapshot)
}

fn is_versioned(key: &[u8]) -> bool {
    key.first().is_some_and(|tag| VERSIONED.contains(tag))
}

/// The oldest version of `live` that ended after `epoch`: the epoch of its end, and its value.
fn oldest_after(below: &Below, live: &[u8], epoch: u64) -> Result<Option<(u64, Arc<[u8]>)>> {
    let KeyRange { start, end } = KeyRange::versions_after(live, epoch);
    let mut from = Bound::Included(start);
    loop {
        let batch = below.batch(from.as_ref().map(Vec::as_slice), &end, SCAN_FIRST)?;
        for (key, value) in batch.entries {
            if let Ok(Key::Version { live: of, end }) = Key::decode(&key)
                && of == live
            {
                return Ok(Some((end, value)));
            }
        }
        match batch.behind {
            Some(behind) => from = Bound::Excluded(behind.to_vec()),
            None => return Ok(None),
        }
    }
}

impl Meta {
    /// The number that the next snapshot gets.
    pub fn next_snapshot(&self) -> u64 {
        self.epochs.read().epoch.max(1)
    }

    /// The numbers of the snapshots that can be read.
    pub fn living_snapshots(&self) -> Vec<u64> {
        self.epochs.read().living.iter().copied().collect()
    }

    /// The metadata as a snapshot has it; `None` when there is no such snapshot, or no longer.
    pub fn at(&self, snapshot: u64) -> Option<SnapshotView<'_>> {
        let living = self.epochs.read().living.contains(&snapshot);
        living.then_some(SnapshotView { meta: self, snapshot })
    }

    /// What a group's record needs besides the group's own entries: versions of what it changes,
    /// their finders, and its values with the epoch in which they begin.
    pub(super) fn versions_of(&self, part: &Part) -> Result<Vec<Change>> {
        let mut epochs = self.epochs.read().clone();
        let epoch = epochs.epoch;
        if epoch == 0 {
            return Ok(Vec::new());
        }
        let entries = part.entries();
        // Those that the group deletes see nothing any more; one that it makes sees all of it.
        epochs.advance(&entries);
        let newest = epochs.living.range(..epoch).next_back().copied();
        let below = self.layers.read().below()?;
        let mut changes = Vec::new();
        let range = [VERSIONED.start]..[VERSIONED.end];
        let range = (Bound::Included(&range.start[..]), Bound::Excluded(&range.end[..]));
        for (key, value) in entries.range::<[u8], _>(range) {
            if let Some(newest) = newest {
                let old = below.get(key)?;
                if is_to_be_kept(&below, key, old.as_deref(), newest)? {
                    let version = Key::Version { live: key, end: epoch };
                    changes.push((version.encode(), Some(version_of(old.as_deref()))));
                    let finder = Key::VersionEnd { end: epoch, live: key };
                    changes.push((finder.encode(), Some(Vec::new())));
                }
            }
            if let Some(value) = value.as_deref().and_then(|value| stamped(key, value, epoch)) {
                changes.push((key.to_vec(), Some(value)));
            }
        }
        Ok(changes)
    }

    /// Bytes that the record grows by when an extended attribute is changed: its old value may be
    /// large, and is kept in it.
    pub(super) fn kept_bytes(&self, key: &Key<'_>) -> u64 {
        if !matches!(key, Key::Xattr { .. }) || self.epochs.read().living.is_empty() {
            return 0;
        }
        // What cannot be read now cannot be kept either.
        let below = self.layers.read().below();
        let old = below.and_then(|below| below.get(&key.encode()));
        old.ok().flatten().map_or(0, |old| old.len() as u64)
    }

    /// Returns keys of versions that are of no use without the snapshot `deleted`, and of their
    /// finders; looks at the next `count` that may be, and tells where to go on.
    pub fn unneeded_versions(
        &self,
        deleted: u64,
        from: Option<Vec<u8>>,
        count: usize,
    ) -> Result<Unneeded> {
        let living = self.epochs.read().living.clone();
        // A version that also the next snapshot sees ended after that one, and stays.
        let next = living.range(deleted..).next().copied().unwrap_or(u64::MAX);
        let KeyRange { start, end } = KeyRange::version_ends(deleted, next);
        let start = from.as_ref().map_or(Bound::Included(&start), Bound::Excluded);
        let batch = self.batch(start.map(Vec::as_slice), &end, count)?;
        let mut keys = Vec::new();
        for (key, _) in &batch.entries {
            let Key::VersionEnd { end, live } = Key::decode(key).unwrap_or(Key::Counters) else {
                continue;
            };
            let newest = living.range(..end).next_back().copied();
            let needed = match newest {
                None => false,
                Some(newest) => self.patiently(|| self.is_seen_by(newest, live, end))?,
            };
            if !needed {
                keys.push(Key::Version { live, end }.encode());
                keys.push(key.to_vec());
            }
        }
        Ok(Unneeded { keys, behind: batch.behind.map(|behind| behind.to_vec()) })
    }

    /// Whether what the snapshot sees of `live` is the version that ended in `end`.
    fn is_seen_by(&self, snapshot: u64, live: &[u8], end: u64) -> Result<bool> {
        let below = self.layers.read().below()?;
        Ok(match oldest_after(&below, live, snapshot)? {
            Some((first, value)) if first == end => match version(&value) {
                Ok(Some(value)) => is_seen(live, value, snapshot),
                Ok(None) | Err(_) => true,
            },
            Some((first, _)) => end < first,
            None => true,
        })
    }
}

/// Versions, and the finders of them, that nobody needs.
pub struct Unneeded {
    /// Their encoded keys.
    pub keys: Vec<Vec<u8>>,
    /// Where to go on; none at the end.
    pub behind: Option<Vec<u8>>,
}

/// Whether the newest living snapshot sees a value that is about to be changed.
fn is_to_be_kept(below: &Below, key: &[u8], old: Option<&[u8]>, newest: u64) -> Result<bool> {
    let is_xattr = matches!(Key::decode(key), Ok(Key::Xattr { .. }));
    match old.map(|old| start(key, old)) {
        Some(Some(start)) => Ok(start <= newest),
        None if !is_xattr => Ok(false),
        Some(None) | None => Ok(oldest_after(below, key, newest)?.is_none()),
    }
}

/// The metadata as it was when a snapshot was made: its inodes, contents, names and extended
/// attributes; ranges of keys must be of those.
pub struct SnapshotView<'a> {
    meta: &'a Meta,
    snapshot: u64,
}

impl SnapshotView<'_> {
    fn get_once(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let below = self.meta.layers.read().below()?;
        let live = below.get(key)?;
        let found = match oldest_after(&below, key, self.snapshot)? {
            Some((_, value)) => self.seen_version(key, &value),
            None => live.filter(|value| is_seen(key, value, self.snapshot)),
        };
        Ok(found)
    }

    /// What the snapshot sees where its version is that one.
    fn seen_version(&self, key: &[u8], value: &[u8]) -> Option<Vec<u8>> {
        // A value that cannot be read is shown as it is: so it is named as damage.
        let value = version(value).unwrap_or(Some(value))?;
        is_seen(key, value, self.snapshot).then(|| value.to_vec())
    }

    fn batch(&self, from: Bound<&[u8]>, end: &[u8], count: usize) -> Result<Batch> {
        self.meta.patiently(|| self.meta.layers.read().below()?.batch(from, end, count))
    }
}

impl Reading for SnapshotView<'_> {
    fn get(&self, key: &Key<'_>) -> Result<Option<Vec<u8>>> {
        let key = key.encode();
        if !is_versioned(&key) {
            return self.meta.patiently(|| self.meta.layers.read().below()?.get(&key));
        }
        self.meta.patiently(|| self.get_once(&key))
    }

    fn scan(&self, range: KeyRange, each: &mut Visitor<'_>) -> Result<()> {
        let KeyRange { start, end } = range;
        if start >= end {
            return Ok(());
        }
        let mut from = Bound::Included(start);
        let mut count = SCAN_FIRST;
        loop {
            let live = self.batch(from.as_ref().map(Vec::as_slice), &end, count)?;
            count = (count * 4).min(SCAN_MAX);
            // Versions of the same keys, asked for after the live values.
            let start = match &from {
                Bound::Included(key) => versions_from(key),
                Bound::Excluded(key) => behind_versions(key),
                Bound::Unbounded => versions_from(&[]),
            };
            let last = match &live.behind {
                Some(behind) => behind_versions(behind),
                None => versions_from(&end),
            };
            let mut versions = Versions::new(self, start, last);
            if self.merge(&live, &mut versions, each)?.is_break() {
                return Ok(());
            }
            match live.behind {
                Some(behind) => from = Bound::Excluded(behind.to_vec()),
                None => return Ok(()),
            }
        }
    }
}

impl SnapshotView<'_> {
    fn merge(
        &self,
        live: &Batch,
        versions: &mut Versions<'_>,
        each: &mut Visitor<'_>,
    ) -> Result<ControlFlow<()>> {
        let mut live = live.entries.iter().peekable();
        let mut next = versions.next()?;
        loop {
            let live_first = match (live.peek(), &next) {
                (None, None) => return Ok(ControlFlow::Continue(())),
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some((key, _)), Some((of, _))) => {
                    if **key == **of {
                        // The version is what the snapshot sees.
                        live.next();
                        false
                    } else {
                        **key < **of
                    }
                }
            };
            let shown = if live_first {
                let Some((key, value)) = live.next() else { continue };
                if is_seen(key, value, self.snapshot) { each(key, value) } else { continue }
            } else {
                let Some((key, value)) = next.take() else { continue };
                next = versions.next()?;
                match self.seen_version(&key, &value) {
                    Some(value) => each(&key, &value),
                    None => continue,
                }
            };
            if shown.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
}

/// A live key, and the value of its version.
type Found = (Vec<u8>, Arc<[u8]>);

/// The versions that a snapshot finds in a range, one of each key, by ascending key.
struct Versions<'a> {
    view: &'a SnapshotView<'a>,
    /// The next to be read; none when all were.
    from: Option<Bound<Vec<u8>>>,
    end: Vec<u8>,
    read: std::vec::IntoIter<Living>,
    /// The key whose version was found last.
    last: Vec<u8>,
}

impl<'a> Versions<'a> {
    fn new(view: &'a SnapshotView<'a>, from: Vec<u8>, end: Vec<u8>) -> Versions<'a> {
        let from = (from < end).then_some(Bound::Included(from));
        Versions { view, from, end, read: Vec::new().into_iter(), last: Vec::new() }
    }

    /// The next live key, and the value of its version.
    fn next(&mut self) -> Result<Option<Found>> {
        loop {
            for (key, value) in self.read.by_ref() {
                let Ok(Key::Version { live, end }) = Key::decode(&key) else { continue };
                if self.view.snapshot < end && live != self.last {
                    self.last = live.to_vec();
                    return Ok(Some((live.to_vec(), value)));
                }
            }
            let Some(from) = self.from.take() else { return Ok(None) };
            let batch =
                self.view.batch(from.as_ref().map(Vec::as_slice), &self.end, VERSIONS_AT_ONCE)?;
            self.from = batch.behind.as_deref().map(|behind| self.go_on(behind));
            self.read = batch.entries.into_iter();
        }
    }

    /// Where to go on behind a version: over those of its key that say nothing to the snapshot.
    fn go_on(&self, behind: &[u8]) -> Bound<Vec<u8>> {
        match Key::decode(behind) {
            Ok(Key::Version { live, end }) if self.view.snapshot < end => {
                Bound::Included(behind_versions(live))
            }
            Ok(Key::Version { live, .. }) => {
                Bound::Included(KeyRange::versions_after(live, self.view.snapshot).start)
            }
            _ => Bound::Excluded(behind.to_vec()),
        }
    }
}
