//! Changes in memory: parts of entries, and the hold on the open group.
//!
//! A part is a sorted map of what changed: a value, or a deletion that hides whatever the layers
//! below say. Keys and values are shared, so moving them between parts copies no bytes.
//!
//! Absent on purpose: in which order parts are asked, and when they move (`layers`).

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::meta::key::VERSIONED;
use crate::meta::{Key, Meta};
use crate::sys::locks::{RwLock, RwLockReadGuard};

/// Longest value: an extended attribute has at most 64 KiB, and what is larger than this is
/// written to the packs first and then named.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// Memory of an entry beside its key and value: two shared pointers, their counts, the map.
const ENTRY_OVERHEAD_BYTES: u64 = 96;

/// Entries copied from one part to another under one hold of its lock: well below a millisecond.
const COPY_BATCH: usize = 1024;

/// Keys and their values, or `None` for a deletion.
pub(super) type Entries = BTreeMap<Arc<[u8]>, Option<Arc<[u8]>>>;

/// Names one group of changes; later groups have higher numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

/// Changes that lie above the checkpoint.
#[derive(Default)]
pub(super) struct Part {
    entries: RwLock<Entries>,
    bytes: AtomicU64,
    /// Bytes of old values that the record will hold as well.
    kept_bytes: AtomicU64,
}

impl Part {
    /// Makes a part of entries.
    pub(super) fn new(entries: Entries) -> Part {
        let bytes = entries.iter().map(|(key, value)| charge(key, value.as_deref())).sum();
        let bytes = AtomicU64::new(bytes);
        Part { entries: RwLock::new(entries), bytes, kept_bytes: AtomicU64::default() }
    }

    /// Memory that it occupies.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes of old values that the record of this group will hold as well.
    pub(super) fn kept_bytes(&self) -> u64 {
        self.kept_bytes.load(Ordering::Relaxed)
    }

    /// Whether nothing is in it; what is in it never leaves it.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes() == 0
    }

    /// Sets or deletes a key.
    pub(super) fn change(&self, key: Vec<u8>, value: Option<Vec<u8>>) {
        if let Some(value) = &value {
            assert!(value.len() <= VALUE_BYTES_MAX, "a value is at most {VALUE_BYTES_MAX} bytes");
        }
        let (key, value) = (Arc::from(key), value.map(Arc::from));
        self.insert(&mut self.entries.write(), key, value);
    }

    /// What it says of `key`: nothing, a deletion, or a value.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Arc<[u8]>>> {
        if self.is_empty() {
            return None;
        }
        self.entries.read().get(key).cloned()
    }

    /// Takes in all entries of `newer`, in batches, so that readers wait for none of it.
    ///
    /// Versions first, what they are of last: so a reader of a snapshot, who looks at these layers
    /// alone, meets no change whose version is not there.
    pub(super) fn absorb(&self, newer: &Part) {
        let newer = newer.entries.read();
        let versioned = [VERSIONED.end];
        let first = newer.range::<[u8], _>((Bound::Included(&versioned[..]), Bound::Unbounded));
        let last = newer.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(&versioned[..])));
        let mut rest = first.chain(last).peekable();
        while rest.peek().is_some() {
            let mut entries = self.entries.write();
            for (key, value) in rest.by_ref().take(COPY_BATCH) {
                self.insert(&mut entries, key.clone(), value.clone());
            }
        }
    }

    /// Copies entries from `from` on, of about `bytes` together, and tells whether they are the
    /// last.
    pub(super) fn slice(&self, from: Bound<Arc<[u8]>>, bytes: u64) -> (Entries, bool) {
        let entries = self.entries.read();
        let mut rest = entries.range::<Arc<[u8]>, _>((from, Bound::Unbounded));
        let mut slice = Entries::new();
        let mut taken = 0;
        for (key, value) in rest.by_ref() {
            taken += charge(key, value.as_deref());
            slice.insert(Arc::clone(key), value.clone());
            if bytes <= taken {
                break;
            }
        }
        let last = rest.next().is_none();
        (slice, last)
    }

    /// Its entries, held still.
    pub(super) fn entries(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read()
    }

    fn insert(&self, entries: &mut Entries, key: Arc<[u8]>, value: Option<Arc<[u8]>>) {
        let added = charge(&key, value.as_deref());
        let key_bytes = key.len() as u64;
        let removed = match entries.insert(key, value) {
            None => 0,
            Some(None) => key_bytes + ENTRY_OVERHEAD_BYTES,
            Some(Some(old)) => key_bytes + ENTRY_OVERHEAD_BYTES + old.len() as u64,
        };
        // Added first: the sum never seems to be 0 in between, which would mean an empty part.
        self.bytes.fetch_add(added, Ordering::Relaxed);
        self.bytes.fetch_sub(removed, Ordering::Relaxed);
    }
}

fn charge(key: &[u8], value: Option<&[u8]>) -> u64 {
    (key.len() + value.map_or(0, <[u8]>::len)) as u64 + ENTRY_OVERHEAD_BYTES
}

/// A shared hold on the open group: while it lives there is no cut.
///
/// Putting never fails, so an operation reads and waits first, then takes its hold and puts all
/// its changes. It must not wait while it holds one, nor take a second.
pub struct Group<'a> {
    pub(super) id: GroupId,
    pub(super) part: Arc<Part>,
    pub(super) meta: &'a Meta,
    pub(super) _hold: RwLockReadGuard<'a, ()>,
}

impl Group<'_> {
    /// The group that is open.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// Sets `key` to `value`, of at most [`VALUE_BYTES_MAX`] bytes.
    pub fn put(&self, key: &Key<'_>, value: Vec<u8>) {
        self.charge_kept(key);
        self.part.change(key.encode(), Some(value));
    }

    /// Deletes `key`, whether it exists or not.
    pub fn delete(&self, key: &Key<'_>) {
        self.charge_kept(key);
        self.part.change(key.encode(), None);
    }

    /// Counts what the record grows by when the old value of `key` is kept for a snapshot.
    fn charge_kept(&self, key: &Key<'_>) {
        let bytes = self.meta.kept_bytes(key);
        self.part.kept_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Sets or deletes the entry of an encoded key: for repair, which also meets bytes that are no
    /// key.
    pub fn change_encoded(&self, key: &[u8], value: Option<Vec<u8>>) {
        self.part.change(key.to_vec(), value);
    }
}
