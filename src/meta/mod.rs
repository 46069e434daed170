//! Metadata: sorted keys and small values that say all about files except their bytes.
//!
//! Owns keys and values ([`Key`], [`Inode`], ...), the groups of changes and the cut between
//! them, versions for snapshots, and the checkpoint. Changes live in memory first and are read
//! from there: a change is in the open group, then in the committing group, then in the committed
//! layer (two parts, one filling, one being taken in), then in the checkpoint; readers ask in this
//! order.
//!
//! Invariants: (1) at most two groups exist, one open and one committing; (2) no cut happens while
//! a [`Group`] is held; (3) an entry is visible at every moment of its way down; (4) the
//! checkpoint is all entries of the records up to the position it names; while a part is being
//! taken in, and after a crash then, it has some of the part's entries too, which replay the same.
//!
//! Lock order: `take_in`, then `commit`, then `layers`, then a part's own. The cut's lock comes
//! before all of them. None is held while a caller's function runs, except the cut's.
//!
//! Absent on purpose: chunks' bytes, the log itself, open files, time.

mod checkpoint;
mod codec;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod groups;
mod image;
pub mod key;
mod layers;
mod record;
mod value;
mod versions;

#[cfg(test)]
mod tests;

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use crate::meta::checkpoint::{Checkpoint, Held, View};
use crate::meta::groups::Part;
use crate::meta::layers::{Batch, Committing, Layers, merge};
use crate::meta::versions::Epochs;
use crate::store::{LogPosition, Record};
use crate::sys::Disk;
use crate::sys::locks::{Mutex, RwLock};

pub use crate::meta::error::{CodecError, Damage, Error, Result};
pub use crate::meta::groups::{Group, GroupId, VALUE_BYTES_MAX};
pub use crate::meta::image::{ImageReader, Rebuild};
pub use crate::meta::key::{Cookie, Ino, Key, KeyRange, NAME_BYTES_MAX};
pub use crate::meta::value::{
    CheckState, CollectionState, Content, Counters, Image, Inode, NameEntry, Snapshot,
    TARGET_BYTES_MAX,
};
pub use crate::meta::versions::{SnapshotView, Unneeded, version};

/// Entries of the first batch of a scan: most scans look one name up.
const SCAN_FIRST: usize = 16;

/// Entries of a later batch of a scan, at most.
const SCAN_MAX: usize = 1024;

/// Is shown the keys and values of a scan, and says whether to go on.
pub type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Metadata that can be read: as it is now, or as it was at one moment.
pub trait Reading {
    /// Returns the value of `key`.
    fn get(&self, key: &Key<'_>) -> Result<Option<Vec<u8>>>;

    /// Visits the keys and values of a range by ascending key, until `each` breaks.
    fn scan(&self, range: KeyRange, each: &mut Visitor<'_>) -> Result<()>;
}

/// The metadata as it was at one commit. While it lives, the pages of the checkpoint that were
/// replaced since are not used again.
pub struct Frozen {
    view: Arc<dyn View>,
}

impl Reading for Frozen {
    fn get(&self, key: &Key<'_>) -> Result<Option<Vec<u8>>> {
        self.view.get(&key.encode())
    }

    fn scan(&self, range: KeyRange, each: &mut Visitor<'_>) -> Result<()> {
        let KeyRange { start, end } = range;
        let mut from = Bound::Included(start);
        loop {
            let slice = self.view.slice(from.as_ref().map(Vec::as_slice), &end, SCAN_MAX)?;
            for (key, value) in &slice.entries {
                if let Some(value) = value
                    && each(key, value).is_break()
                {
                    return Ok(());
                }
            }
            match slice.entries.last() {
                Some((key, _)) if slice.is_cut => from = Bound::Excluded(key.to_vec()),
                _ => return Ok(()),
            }
        }
    }
}

impl Reading for Meta {
    fn get(&self, key: &Key<'_>) -> Result<Option<Vec<u8>>> {
        Meta::get(self, key)
    }

    fn scan(&self, range: KeyRange, each: &mut Visitor<'_>) -> Result<()> {
        Meta::scan(self, range, each)
    }
}

/// Limits of the metadata's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Memory of what is committed and not yet taken in, both parts together. Also bounds replay.
    pub committed_bytes_max: u64,
    /// What is kept of the checkpoint's file.
    pub cache_bytes: u64,
    /// Entries that go into the checkpoint in one transaction, in bytes. The pages that one
    /// transaction replaces are used again only after it, so large ones make the file large.
    pub take_in_bytes: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { committed_bytes_max: 64 << 20, cache_bytes: 32 << 20, take_in_bytes: 512 << 10 }
    }
}

/// Memory of entries, bytes: an upper bound of what they take in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unstored {
    /// In the open group and in the one that commits.
    pub changed: u64,
    /// Committed, and not in the checkpoint.
    pub committed: u64,
}

/// The metadata of an open volume.
pub struct Meta {
    options: Options,
    /// Shared by whoever changes the open group, exclusive for the cut.
    cut: RwLock<()>,
    /// One take-in at a time.
    take_in: Mutex<()>,
    /// Held while a group moves into the filling part, so that a take-in never gets half of one.
    commit: Mutex<()>,
    layers: RwLock<Layers>,
    /// As of the last record that is committed.
    epochs: RwLock<Epochs>,
    checkpoint: Box<dyn Checkpoint>,
}

impl Meta {
    /// Makes `meta/` with an empty checkpoint, durably.
    pub fn create(disk: &Arc<dyn Disk>) -> Result<()> {
        checkpoint::create(disk, checkpoint::DIR)
    }

    /// Opens the checkpoint. The records behind its position must then be replayed.
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> Result<Meta> {
        Meta::open_in(&disk, checkpoint::DIR, options)
    }

    fn open_in(disk: &Arc<dyn Disk>, dir: &str, options: Options) -> Result<Meta> {
        let checkpoint = checkpoint::open(disk, dir, options.cache_bytes)?;
        let (view, held) = checkpoint.view()?;
        let epochs = epochs_of(&view)?;
        let layers = Layers {
            open: (GroupId(1), Arc::default()),
            committing: None,
            filling: Arc::default(),
            filled_to: held,
            taking: None,
            view: Some(view),
            viewed_to: held,
        };
        Ok(Meta {
            options,
            cut: RwLock::new(()),
            take_in: Mutex::new(()),
            commit: Mutex::new(()),
            layers: RwLock::new(layers),
            epochs: RwLock::new(epochs),
            checkpoint: Box::new(checkpoint),
        })
    }

    /// Position of the last record that the checkpoint holds.
    pub fn position(&self) -> LogPosition {
        self.layers.read().viewed_to.position
    }

    /// Bytes of all commit records so far, those behind the checkpoint's position included.
    pub fn record_bytes(&self) -> u64 {
        self.layers.read().filled_to.record_bytes
    }

    /// Applies a record from behind the position, in the log's order; takes in when that is due.
    pub fn replay(&self, record: &Record) -> Result<()> {
        let position = record.position;
        let entries =
            record::decode(&record.entries).map_err(|source| Error::Record { position, source })?;
        {
            let _commit = self.commit.lock();
            let Held { position: last, record_bytes } = self.layers.read().filled_to;
            if position.sequence <= last.sequence {
                return Err(Error::RecordOrder { position, last });
            }
            let record_bytes = record_bytes + record.entries.len() as u64;
            let part = Arc::new(Part::new(entries));
            self.fill(&part, Held { position, record_bytes }, |_| {});
            self.epochs.write().advance(&part.entries());
        }
        if self.wants_take_in() { self.take_in() } else { Ok(()) }
    }

    /// Returns the value of `key`, as the newest change left it.
    pub fn get(&self, key: &Key<'_>) -> Result<Option<Vec<u8>>> {
        let key = key.encode();
        self.patiently(|| self.get_once(&key))
    }

    fn get_once(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let view = {
            let layers = self.layers.read();
            if let Some(found) = layers.get(key) {
                return Ok(found.map(|value| value.to_vec()));
            }
            layers.view()?
        };
        view.get(key)
    }

    /// Visits the keys and values of a range by ascending key, until `each` breaks.
    ///
    /// An entry that is neither put nor deleted meanwhile is visited exactly once. Holds nothing
    /// while `each` runs.
    pub fn scan(&self, range: KeyRange, each: &mut Visitor<'_>) -> Result<()> {
        let KeyRange { start, end } = range;
        if start >= end {
            return Ok(());
        }
        let mut count = SCAN_FIRST;
        let mut batch = self.batch(Bound::Included(&start), &end, count)?;
        loop {
            for (key, value) in &batch.entries {
                if each(key, value).is_break() {
                    return Ok(());
                }
            }
            let Some(behind) = batch.behind else { return Ok(()) };
            count = (count * 4).min(SCAN_MAX);
            batch = self.batch(Bound::Excluded(&behind), &end, count)?;
        }
    }

    fn batch(&self, from: Bound<&[u8]>, end: &[u8], count: usize) -> Result<Batch> {
        self.patiently(|| self.batch_once(from, end, count))
    }

    fn batch_once(&self, from: Bound<&[u8]>, end: &[u8], count: usize) -> Result<Batch> {
        let (mut slices, view) = {
            let layers = self.layers.read();
            (layers.slices(from, end, count), layers.view()?)
        };
        slices.push(view.slice(from, end, count)?);
        Ok(merge(&slices))
    }

    /// Takes in what is committed, and returns the metadata as it stands then.
    pub fn frozen(&self) -> Result<Frozen> {
        self.take_in()?;
        Ok(Frozen { view: self.layers.read().view()? })
    }

    /// Asks, and once more when the checkpoint gave up for good because of an earlier error, or was
    /// just opened anew by another: a bad page, or a failed take-in, must not end all reading.
    fn patiently<T>(&self, ask: impl Fn() -> Result<T>) -> Result<T> {
        match ask() {
            Err(Error::PreviousFailure | Error::Closed) => {}
            answer => return answer,
        }
        let _one = self.take_in.lock();
        match ask() {
            Err(Error::PreviousFailure | Error::Closed) if self.layers.read().view.is_some() => {
                self.rescue()?;
            }
            answer => return answer,
        }
        ask()
    }

    /// Opens the checkpoint anew after an error; the take-in lock must be held.
    fn rescue(&self) -> Result<()> {
        self.checkpoint.rescue()?;
        let (view, viewed_to) = self.checkpoint.view()?;
        let mut layers = self.layers.write();
        if layers.view.is_some() {
            layers.view = Some(view);
            layers.viewed_to = viewed_to;
        }
        Ok(())
    }

    /// Takes a shared hold on the open group.
    pub fn enter(&self) -> Group<'_> {
        let hold = self.cut.read();
        let (id, part) = self.layers.read().open.clone();
        Group { id, part, meta: self, _hold: hold }
    }

    /// Changes a group that is open, or committing and not yet recorded: for the root of content
    /// whose chunks were on their way at the cut.
    pub fn amend(&self, group: GroupId, key: &Key<'_>, value: Option<Vec<u8>>) {
        let layers = self.layers.read();
        let part = match &layers.committing {
            Some(committing) if committing.id == group => {
                let is_open = committing.record_bytes.is_none();
                assert!(is_open, "{group:?} changed after its record was made");
                &committing.part
            }
            _ => {
                assert!(layers.open.0 == group, "{group:?} is neither open nor committing");
                &layers.open.1
            }
        };
        part.change(key.encode(), value);
    }

    /// Memory of the open group: an upper bound of what it adds to a record.
    pub fn dirty_bytes(&self) -> u64 {
        let layers = self.layers.read();
        layers.open.1.bytes() + layers.open.1.kept_bytes()
    }

    /// Closes the open group and opens the next; it waits until nobody holds the open group.
    ///
    /// `during` runs before anyone can enter the new group, with the id of the closed one; it must
    /// not enter or cut. None, and no cut, when nothing is in the group and `force` is false.
    /// There must be no committing group.
    pub fn cut<R>(&self, force: bool, during: impl FnOnce(GroupId) -> R) -> Option<(GroupId, R)> {
        let _exclusive = self.cut.write();
        let id = {
            let mut layers = self.layers.write();
            let (id, part) = layers.open.clone();
            if part.is_empty() && !force {
                return None;
            }
            assert!(layers.committing.is_none(), "a cut while a group is still committing");
            layers.committing = Some(Committing { id, part, record_bytes: None });
            layers.open = (GroupId(id.0 + 1), Arc::default());
            id
        };
        Some((id, during(id)))
    }

    /// Returns the committing group's entries as bytes, for its commit record.
    ///
    /// From then on the group cannot be amended. There must be a committing group. What snapshots
    /// see of what the group changes is entered into it here, and nowhere else.
    ///
    /// # Errors
    ///
    /// What is below the group cannot be read. The same can be asked again.
    pub fn record(&self) -> Result<Vec<u8>> {
        let part = self.layers.write().committing.as_mut().map(|committing| {
            committing.record_bytes = Some(0);
            committing.part.clone()
        });
        assert!(part.is_some(), "a record without a committing group");
        let part = part.unwrap_or_default();
        let versions = self.patiently(|| self.versions_of(&part));
        let versions = versions.inspect_err(|_| {
            if let Some(committing) = self.layers.write().committing.as_mut() {
                committing.record_bytes = None;
            }
        })?;
        versions.into_iter().for_each(|(key, value)| part.change(key, value));
        let record = record::encode(&part.entries());
        if let Some(committing) = self.layers.write().committing.as_mut() {
            committing.record_bytes = Some(record.len() as u64);
        }
        Ok(record)
    }

    /// Moves the committing group, whose record is durable up to `position`, to the committed
    /// layer. When that is full it grows beyond its share: whoever commits then takes in.
    pub fn committed(&self, position: LogPosition) {
        let _commit = self.commit.lock();
        let (part, record_bytes) = {
            let layers = self.layers.read();
            let Held { position: last, record_bytes } = layers.filled_to;
            assert!(last.sequence < position.sequence, "records are in order");
            let committing = layers.committing.as_ref();
            let recorded = committing.and_then(|one| Some((one.part.clone(), one.record_bytes?)));
            assert!(recorded.is_some(), "a group became durable without its record");
            let (part, bytes) = recorded.unwrap_or_default();
            (part, record_bytes + bytes)
        };
        let held = Held { position, record_bytes };
        self.fill(&part, held, |layers| layers.committing = None);
        self.epochs.write().advance(&part.entries());
    }

    /// Puts the entries of `part` into the filling part; the commit lock must be held.
    ///
    /// While they are copied readers still find them where they are, in front; `then` takes them
    /// away from there.
    fn fill(&self, part: &Arc<Part>, held: Held, then: impl FnOnce(&mut Layers)) {
        let filling = self.layers.read().filling.clone();
        if !filling.is_empty() {
            filling.absorb(part);
        }
        let mut layers = self.layers.write();
        if filling.is_empty() {
            layers.filling = part.clone();
        }
        layers.filled_to = held;
        then(&mut layers);
    }

    /// Whether the filling part is over its share, half of `committed_bytes_max`.
    pub fn wants_take_in(&self) -> bool {
        self.options.committed_bytes_max / 2 < self.layers.read().filling.bytes()
    }

    /// Takes what is committed into the checkpoint, durably; everything else goes on meanwhile.
    ///
    /// Waits for a take-in that is under way. After an error all entries stay readable, and a later
    /// try may succeed (when there is space again), unless a sync failed: then every later try
    /// answers [`Error::PreviousFailure`], and only opening the volume again helps.
    pub fn take_in(&self) -> Result<()> {
        let _one = self.take_in.lock();
        // What an earlier try left over comes first, as it is older.
        self.take_in_part()?;
        {
            let _commit = self.commit.lock();
            let mut layers = self.layers.write();
            if layers.filled_to == layers.viewed_to {
                return Ok(());
            }
            let filling = std::mem::take(&mut layers.filling);
            layers.taking = Some((filling, layers.filled_to));
        }
        self.take_in_part()
    }

    /// Takes in the part that is set aside for it, if there is one.
    ///
    /// In several transactions: all but the last still name the older position, from which a
    /// replay ends in the same state, as entries are whole values.
    fn take_in_part(&self) -> Result<()> {
        let Some((part, whole)) = self.layers.read().taking.clone() else { return Ok(()) };
        let held = self.layers.read().viewed_to;
        let mut from = Bound::Unbounded;
        loop {
            let (slice, last) = part.slice(from, self.options.take_in_bytes);
            let end = slice.last_key_value().map(|(key, _)| Arc::clone(key));
            let named = if last { whole } else { held };
            if let Err(error) = self.checkpoint.take_in(&slice, named) {
                if let Error::Io { .. } = error {
                    // So that reading goes on; the error that counts is the first one.
                    let _ = self.rescue();
                }
                return Err(error);
            }
            // The older view goes at once: it keeps the pages that were replaced from being used.
            let (view, viewed_to) = self.checkpoint.view()?;
            let mut layers = self.layers.write();
            layers.view = Some(view);
            layers.viewed_to = viewed_to;
            match end {
                Some(end) if !last => from = Bound::Excluded(end),
                _ => {
                    layers.taking = None;
                    return Ok(());
                }
            }
        }
    }

    /// Memory of what the checkpoint does not hold.
    pub fn unstored(&self) -> Unstored {
        let layers = self.layers.read();
        let committing = layers.committing.as_ref().map_or(0, |committing| committing.part.bytes());
        let taking = layers.taking.as_ref().map_or(0, |(part, _)| part.bytes());
        Unstored {
            changed: layers.open.1.bytes() + committing,
            committed: layers.filling.bytes() + taking,
        }
    }

    /// Bytes of the checkpoint's file, without the space that it has grown ahead.
    pub fn stored_bytes(&self) -> u64 {
        self.checkpoint.stored_bytes()
    }

    /// Takes in all that is committed and closes the checkpoint cleanly.
    ///
    /// What is in the open or the committing group is not durable and stays out. Reading answers
    /// [`Error::Closed`] afterwards. A second call does nothing. After an error of the take-in the
    /// file is closed as well, and the records are replayed when it is opened again.
    pub fn close(&self) -> Result<()> {
        if self.layers.read().view.is_none() {
            return Ok(());
        }
        let taken_in = self.take_in();
        let _one = self.take_in.lock();
        self.layers.write().view = None;
        taken_in.and(self.checkpoint.close())
    }
}

/// The epoch and the snapshots that a checkpoint knows.
fn epochs_of(view: &Arc<dyn View>) -> Result<Epochs> {
    let mut epochs = Epochs::default();
    let counters = Key::Counters.encode();
    if let Some(value) = view.get(&counters)? {
        epochs.take(&counters, Some(&value));
    }
    Frozen { view: Arc::clone(view) }.scan(KeyRange::snapshots(), &mut |key, value| {
        epochs.take(key, Some(value));
        ControlFlow::Continue(())
    })?;
    Ok(epochs)
}
