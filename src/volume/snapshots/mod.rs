//! Snapshots: made, listed, deleted, and what is left of deleted ones purged.
//!
//! Owns [`Snapshots`], the names of those that can be read. `view` lets them be browsed,
//! `diff` compares them, `restore` brings back what was.
//!
//! A snapshot is made by one commit: its entry stands in the record of the group that is the last
//! of its epoch (`meta`, versions). It is deleted by one commit as well, which flags it; then what
//! no other snapshot sees is removed in batches, and at last its entry. A crash in between leaves
//! the flag, and the next opening goes on.
//!
//! Invariants: (1) what is listed is durable; (2) no two that are listed have one name.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::names::check_name;
use super::{Error, Volume, Wait};
use crate::meta::{Key, KeyRange, Meta, Snapshot};
use crate::sys::Timestamp;
use crate::sys::locks::{Mutex, RwLock};

mod diff;
mod policy;
mod restore;
mod view;

pub use diff::{Change, Difference, EachDifference};
pub use policy::{Keeper, Plan, Policy, utc};
pub use restore::{EachName, Restored};
pub(super) use view::{Alone, is_reserved};
pub use view::{SNAPSHOTS, SNAPSHOTS_NAME};

/// Highest number of a snapshot: inode numbers in it have 22 bits for that.
const NUMBER_MAX: u64 = (1 << 22) - 1;

/// Old versions that a purge looks at within one group.
const PURGE_BATCH: usize = 512;

/// A snapshot that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its number; later ones have higher numbers.
    pub number: u64,
    /// Its name.
    pub name: Vec<u8>,
    /// When it was made.
    pub time: Timestamp,
    /// Inodes then.
    pub files: u64,
    /// Sum of file sizes without holes, then.
    pub logical_bytes: u64,
}

/// Snapshots by number, and their numbers by name.
#[derive(Debug, Default)]
struct List {
    by_number: BTreeMap<u64, SnapshotInfo>,
    by_name: BTreeMap<Vec<u8>, u64>,
}

/// What a volume knows of its snapshots.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    list: RwLock<List>,
    /// Held by the one who makes or deletes one.
    changing: Mutex<()>,
    /// Held by those who read a snapshot at length, and for writing by who deletes one.
    in_use: RwLock<()>,
    /// Held by the one who purges.
    purging: Mutex<()>,
}

impl Snapshots {
    pub(super) fn load(meta: &Meta) -> Result<Snapshots, Error> {
        let snapshots = Snapshots::default();
        meta.scan(KeyRange::snapshots(), &mut |key, value| {
            // What cannot be read is named by `check`; its number stays in use.
            if let (Ok(Key::Snapshot(number)), Ok(entry)) =
                (Key::decode(key), Snapshot::decode(value))
                && !entry.deleting
            {
                snapshots.add(number, &entry);
            }
            ControlFlow::Continue(())
        })?;
        Ok(snapshots)
    }

    /// Lists one that is durable now.
    pub(super) fn add(&self, number: u64, entry: &Snapshot) {
        let info = SnapshotInfo {
            number,
            name: entry.name.clone(),
            time: entry.time,
            files: entry.files,
            logical_bytes: entry.logical_bytes,
        };
        let mut list = self.list.write();
        list.by_name.insert(info.name.clone(), number);
        list.by_number.insert(number, info);
    }

    /// Keeps purges from beginning.
    #[cfg(test)]
    pub(super) fn hold_purge(&self) -> crate::sys::locks::MutexGuard<'_, ()> {
        self.purging.lock()
    }

    fn remove(&self, info: &SnapshotInfo) {
        let mut list = self.list.write();
        list.by_name.remove(&info.name);
        list.by_number.remove(&info.number);
    }
}

impl Volume {
    /// Makes a snapshot of the whole volume, as it is now: one commit.
    ///
    /// What the kernel holds of a mounted volume must have been handed over before.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`] when there is one of that name.
    pub fn snapshot_create(&self, name: &[u8]) -> Result<SnapshotInfo, Error> {
        check_name(name)?;
        self.begin_change(Wait::Yes)?;
        self.admit(0)?;
        let _changing = self.snapshots.changing.lock();
        if self.snapshot(name).is_ok() {
            return Err(Error::Exists);
        }
        if NUMBER_MAX < self.meta.next_snapshot() {
            return Err(Error::Invalid { what: "the volume has had as many snapshots as it can" });
        }
        self.commit_snapshot(name)?;
        self.snapshot(name)
    }

    /// The snapshots that can be read, the oldest first.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        self.snapshots.list.read().by_number.values().cloned().collect()
    }

    /// The snapshot of that name.
    pub fn snapshot(&self, name: &[u8]) -> Result<SnapshotInfo, Error> {
        let list = self.snapshots.list.read();
        let info = list.by_name.get(name).and_then(|number| list.by_number.get(number));
        info.cloned().ok_or(Error::NotFound)
    }

    /// How many there are.
    fn snapshot_count(&self) -> usize {
        self.snapshots.list.read().by_number.len()
    }

    /// Deletes a snapshot: nobody reads it from then on, and a crash does not bring it back. What
    /// only it kept is removed afterwards.
    pub fn snapshot_delete(&self, name: &[u8]) -> Result<(), Error> {
        self.begin_change(Wait::Yes)?;
        {
            let _changing = self.snapshots.changing.lock();
            let _unused = self.snapshots.in_use.write();
            let info = self.snapshot(name)?;
            let entry = Snapshot {
                deleting: true,
                time: info.time,
                files: info.files,
                logical_bytes: info.logical_bytes,
                name: info.name.clone(),
            };
            self.meta.enter().put(&Key::Snapshot(info.number), entry.encode());
            self.commit_all()?;
            self.snapshots.remove(&info);
        }
        if self.options.background {
            self.wake_timer();
            return Ok(());
        }
        self.purge_snapshots()
    }

    /// Removes what only deleted snapshots saw, and their entries at last.
    pub(super) fn purge_snapshots(&self) -> Result<(), Error> {
        let _purging = self.snapshots.purging.lock();
        let mut deleted = Vec::new();
        self.meta.scan(KeyRange::snapshots(), &mut |key, value| {
            if let (Ok(Key::Snapshot(number)), Ok(entry)) =
                (Key::decode(key), Snapshot::decode(value))
                && entry.deleting
            {
                deleted.push(number);
            }
            ControlFlow::Continue(())
        })?;
        // A flag that is not durable yet is no reason to remove anything.
        let living = self.meta.living_snapshots();
        deleted.retain(|number| !living.contains(number));
        deleted.into_iter().try_for_each(|number| self.purge(number))
    }

    /// Goes on with purges that a crash or an unmount cut short.
    pub(super) fn go_on_purging(&self) -> Result<(), Error> {
        if self.options.background {
            self.wake_timer();
            return Ok(());
        }
        self.purge_snapshots()
    }

    fn purge(&self, number: u64) -> Result<(), Error> {
        let mut from = None;
        loop {
            // An end of the volume ends this too; the next opening begins anew.
            self.begin_change(Wait::Yes)?;
            let found = self.meta.unneeded_versions(number, from.take(), PURGE_BATCH)?;
            let group = self.meta.enter();
            found.keys.iter().for_each(|key| group.change_encoded(key, None));
            from = found.behind;
            if from.is_none() {
                group.delete(&Key::Snapshot(number));
                return Ok(());
            }
        }
    }
}
