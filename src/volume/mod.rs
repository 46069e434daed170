//! The filesystem: names, inodes, handles, dirty runs and commits, on top of `store` and `meta`.
//!
//! Owns [`Volume`]. Its operations stand in `names` and `rename` (create, move, remove), `attrs`,
//! `xattrs` and `flags` (attributes), `io` (read, write), `ranges` (copies, holes), `flush` (dirty
//! layers become roots), `commit` (groups become durable), `collect` (space comes back) and
//! `image`; `rebuild` is for a volume whose metadata is lost; `snapshots` keeps what was; `acl`
//! knows access control lists;
//! `node`, `dirty` and `budget` hold what they share.
//!
//! Invariants: (1) an operation first gets all that it may wait for (dirty space, room in the
//! group, locks), then its group, and never waits while it holds one; (2) it reads all it needs
//! before it changes anything, so that it happens whole or not at all; (3) after a failed sync
//! nothing changes any more, and all can still be read.
//!
//! Locks, in this order: those of `snapshots`, `namespace` (for changes of names and of
//! directories' inodes), a node's `flush`, nodes' `state` by ascending inode number (guards the
//! inode's entry), a group.
//!
//! Absent on purpose: FUSE, errno numbers, permissions (the kernel checks them).

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::meta::{self, Ino, Inode, Key, KeyRange, Meta};
use crate::pyramid::Pyramid;
use crate::store::{self, Store};
use crate::sys::locks::thread::JoinHandle;
use crate::sys::locks::{Mutex, RwLock};
use crate::sys::{Clock, Disk, DiskLock, Rng, Timestamp};

mod access;
mod acl;
mod adopt;
mod attrs;
mod budget;
mod charge;
mod collect;
mod commit;
mod dirty;
mod error;
mod flags;
mod flush;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod image;
mod io;
mod names;
mod node;
mod ranges;
mod rebuild;
mod rename;
mod reserve;
mod snapshots;
mod space;
mod status;
mod superblock;
mod types;
mod usage;
mod xattrs;

#[cfg(test)]
mod tests;

pub use adopt::Current;
pub use collect::{Collect, CollectFigures};
pub use error::Error;
pub use flags::{FLAG_APPEND, FLAG_IMMUTABLE, FLAG_NO_ATIME, FLAG_NO_DUMP};
pub use flush::content_root;
pub use rebuild::{Rebuilt, metadata_damage, rebuild_metadata};
pub use snapshots::{
    Change, Difference, EachDifference, EachName, Keeper, Plan, Policy, Restored, SNAPSHOTS,
    SNAPSHOTS_NAME, SnapshotInfo, utc,
};
pub use superblock::{FORMAT_VERSION, Superblock, compression_text, compression_value, hash_text};
pub use types::*;
pub use usage::{Named, Usage, UsageStep};
pub use xattrs::is_acl;

/// Damaged places that one group takes in at most.
const BAD_CHANGES_MAX: usize = 4096;

/// A volume that is open.
pub struct Volume {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    options: OpenOptions,
    superblock: Superblock,
    pyramid: Pyramid,
    store: Store,
    meta: Meta,
    findings: Vec<store::Finding>,
    /// Held for writing by whoever changes names or a directory's inode.
    namespace: RwLock<()>,
    /// Shared with the volume that this one follows, if it does ([`Current`]).
    nodes: Arc<node::Nodes>,
    budget: budget::Budget,
    access: access::Rule,
    charges: charge::Charges,
    space: space::Space,
    flushers: flush::Queue,
    commits: commit::Commits,
    counters: Mutex<commit::Counts>,
    copies: ranges::Copies,
    collector: Arc<collect::Collector>,
    snapshots: snapshots::Snapshots,
    alone: snapshots::Alone,
    /// Bytes of all commit records when the next image of the metadata is due.
    image_due_at: AtomicU64,
    closed: AtomicBool,
    lock: Mutex<Option<Box<dyn DiskLock>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Volume {
    /// Makes a volume in an empty directory, or in one where that was begun and not finished.
    /// [`Error::InUse`] while another one does.
    ///
    /// The superblock gets its name last: before that, nothing is a volume.
    pub fn create(
        disk: &Arc<dyn Disk>,
        clock: &Arc<dyn Clock>,
        rng: &dyn Rng,
        options: &CreateOptions,
    ) -> Result<(), Error> {
        // From the first look to the last name: another one at the same time would take this one's
        // files for remains.
        let lock = take_lock(disk.as_ref())?;
        if Superblock::exists(disk.as_ref())? {
            return Err(Error::AlreadyAVolume);
        }
        if Superblock::is_begun(disk.as_ref())? {
            let cleared = remove_remains(disk.as_ref());
            cleared
                .map_err(|source| Error::Io { action: "remove an unfinished volume", source })?;
        }
        let superblock = Superblock::new(rng, options);
        superblock.begin(disk.as_ref())?;
        Store::create(disk).map_err(Error::from)?;
        Meta::create(disk)?;
        let open = OpenOptions { background: false, ..OpenOptions::default() };
        let volume = Volume::assemble(Arc::clone(disk), Arc::clone(clock), superblock, open, None)?;
        volume.make_root_directory(options.owner);
        volume.close()?;
        Superblock::finish(disk.as_ref())?;
        drop(lock);
        Ok(())
    }

    /// Opens a volume and recovers what a crash left behind.
    ///
    /// Takes the volume's lock unless it is opened for reading only: then `disk` must be one that
    /// keeps changes in memory ([`crate::sys::overlay::OverlayDisk`]), as recovery writes.
    pub fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: OpenOptions,
    ) -> Result<Arc<Volume>, Error> {
        loop {
            let superblock = Superblock::read(disk.as_ref())?;
            let lock = lock_for(disk.as_ref(), &options)?;
            let (below, clock) = (Arc::clone(&disk), Arc::clone(&clock));
            let opened = Volume::assemble(below, clock, superblock, options, lock);
            match opened.and_then(Volume::begin) {
                // Opened it must be, so that something can be removed.
                Err(error) if error.is_full() && !options.read_only => {
                    if !reserve::give_up_on(disk.as_ref()) {
                        return Err(error);
                    }
                }
                opened => return opened,
            }
        }
    }

    /// Removes what a crash left without a name, and starts the threads.
    fn begin(self) -> Result<Arc<Volume>, Error> {
        let volume = Arc::new(self);
        if !volume.options.read_only && !volume.options.repairing {
            volume.begin_space();
            volume.remove_orphans()?;
            volume.keep_reserve();
        }
        if volume.options.background {
            volume.start_threads();
        }
        if !volume.options.read_only && !volume.options.repairing {
            volume.go_on_purging()?;
        }
        Ok(volume)
    }

    fn assemble(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        superblock: Superblock,
        options: OpenOptions,
        lock: Option<Box<dyn DiskLock>>,
    ) -> Result<Volume, Error> {
        if let Some(lock) = &lock {
            // Others wait only for a volume whose note says that it is closing.
            lock.set_note("open")
                .map_err(|source| Error::Io { action: "note in the lock", source })?;
        }
        let pack_bytes_max = space::pack_bytes(disk.as_ref(), &options);
        let options = OpenOptions { pack_bytes_max, ..options };
        let meta = Meta::open(Arc::clone(&disk), meta::Options::default())?;
        let store_options = store::Options {
            compression: superblock.compression,
            cache_bytes: options.cache_bytes,
            index_memory_bytes: options.index_memory_bytes,
            pack_bytes_max: options.pack_bytes_max,
            workers: if options.background { 2 } else { 0 },
            // One that is open for reading makes no copies; it reads those that are there.
            tree_copies: if options.read_only { 1 } else { superblock.tree_copies },
            ..store::Options::default()
        };
        let opened = Store::open(
            Arc::clone(&disk),
            superblock.profile,
            superblock.uuid,
            store_options,
            meta.position(),
        )?;
        if !options.read_only && !options.repairing {
            refuse_gaps(&opened.findings, meta.position().sequence)?;
        }
        for record in &opened.records {
            meta.replay(record)?;
        }
        opened.store.load_bad(bad_chunks(&meta)?);
        let counters = commit::Counts::load(&meta)?;
        let snapshots = snapshots::Snapshots::load(&meta)?;
        // What cannot be read gets no image, and is no reason to refuse the volume.
        let image_due_at = image::next_due(&meta, options.image_bytes_min).unwrap_or(u64::MAX);
        Ok(Volume {
            pyramid: Pyramid::new(superblock.profile),
            store: opened.store,
            findings: opened.findings,
            namespace: RwLock::default(),
            nodes: Arc::default(),
            budget: budget::Budget::new(options.dirty_bytes_max),
            access: access::Rule::new(&options),
            charges: charge::Charges::new(superblock.profile, superblock.tree_copies),
            space: space::Space::new(options.quota_bytes),
            flushers: flush::Queue::default(),
            commits: commit::Commits::default(),
            counters: Mutex::new(counters),
            copies: ranges::Copies::default(),
            collector: Arc::default(),
            snapshots,
            alone: snapshots::Alone::new(),
            image_due_at: AtomicU64::new(image_due_at),
            closed: AtomicBool::new(false),
            lock: Mutex::new(lock),
            threads: Mutex::default(),
            disk,
            clock,
            options,
            superblock,
            meta,
        })
    }

    /// Enters what the store learnt of damaged chunks into the open group.
    fn note_bad_chunks(&self) {
        let changes = self.store.bad_changes(BAD_CHANGES_MAX);
        if changes.is_empty() {
            return;
        }
        let group = self.meta.enter();
        for (bad, is_damaged) in changes {
            match is_damaged {
                true => group.put(&Key::BadChunk(bad), Vec::new()),
                false => group.delete(&Key::BadChunk(bad)),
            }
        }
    }

    /// What opening found: damage, packs that were set aside, a tail that was cut.
    pub fn findings(&self) -> &[store::Finding] {
        &self.findings
    }

    /// What the volume is.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The time, as the volume knows it.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The metadata, for `check`.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The store, for `check`.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The shape of the volume's trees.
    pub fn pyramid(&self) -> &Pyramid {
        &self.pyramid
    }

    /// Notes in the lock that the volume is about to be closed: who wants it next waits for that.
    pub fn announce_closing(&self) {
        if let Some(lock) = self.lock.lock().as_ref()
            && let Err(error) = lock.set_note("closing")
        {
            tracing::warn!("cannot note in the lock that the volume is closing: {error}");
        }
    }

    /// Commits, lets the checkpoint take all in, saves the index and gives the lock back.
    ///
    /// Whatever is asked afterwards answers [`Error::Closed`]. Closing twice does nothing.
    pub fn close(&self) -> Result<(), Error> {
        if self.closed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.announce_closing();
        self.stop_threads();
        let committed = if self.options.read_only { Ok(()) } else { self.commit_all() };
        if committed.is_ok() && !self.options.read_only {
            self.keep_second_lives();
        }
        let checkpoint = match (&committed, self.options.read_only) {
            (Ok(()), false) => {
                let taken_in = self.with_reserve(|| Ok(self.meta.take_in()?));
                self.make_room_to_close();
                taken_in.and(self.meta.close().map_err(Error::from))
            }
            _ => Ok(()),
        };
        let store = match self.with_reserve(|| Ok(self.store.close()?)) {
            Err(error) if error.is_full() => {
                tracing::warn!("the index is not saved, and will be made anew: {error}");
                Ok(())
            }
            closed => closed,
        };
        self.lock.lock().take();
        committed.and(checkpoint).and(store)
    }

    /// Refuses changes of a volume that takes none, and makes room in the open group.
    fn begin_change(&self, wait: Wait) -> Result<(), Error> {
        self.check_open()?;
        if self.options.read_only {
            return Err(Error::ReadOnly);
        }
        self.collector.note_call();
        self.commits.check_poison()?;
        self.make_group_room(wait)
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::SeqCst) { Err(Error::Closed) } else { Ok(()) }
    }

    /// The entry of an inode that must be there, and lives.
    fn inode(&self, ino: Ino) -> Result<Inode, Error> {
        if self.is_old(ino) {
            return Err(Error::ReadOnly);
        }
        match self.meta.get(&Key::Inode(ino))? {
            Some(bytes) => Ok(Inode::decode(&bytes)?),
            None => Err(Error::Stale),
        }
    }

    fn make_root_directory(&self, (uid, gid): (u32, u32)) {
        let now = self.clock.now();
        let root = Inode {
            mode: MODE_DIR | 0o755,
            uid,
            gid,
            nlink: 2,
            parent: Ino::ROOT,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            ..Inode::default()
        };
        let mut counters = self.counters.lock();
        counters.next_ino = Ino::ROOT.0 + 1;
        counters.files = 1;
        self.meta.enter().put(&Key::Inode(Ino::ROOT), root.encode());
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // A volume that was not closed ends as by a crash: what was committed is safe.
        self.closed.store(true, Ordering::SeqCst);
        self.stop_threads();
    }
}

/// A log with a record missing behind the checkpoint says nothing of what that record changed:
/// going on from there would bury what can still be saved.
fn refuse_gaps(findings: &[store::Finding], held: u64) -> Result<(), Error> {
    findings.iter().try_for_each(|finding| match finding {
        store::Finding::RecordMissing { sequence } if held < *sequence => {
            Err(Error::RecordMissing { sequence: *sequence })
        }
        _ => Ok(()),
    })
}

/// The damaged places of chunks that the metadata knows.
fn bad_chunks(meta: &Meta) -> Result<Vec<store::BadChunk>, Error> {
    let mut found = Vec::new();
    meta.scan(KeyRange::bad_chunks(), &mut |key, _| {
        // What cannot be read is named by `check`; the place will be met again.
        if let Ok(Key::BadChunk(bad)) = Key::decode(key) {
            found.push(bad);
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Removes the files that an unfinished [`Volume::create`] left; directories stay.
fn remove_remains(disk: &dyn Disk) -> std::io::Result<()> {
    let mut todo = vec!["packs".to_owned(), "index".to_owned(), "meta".to_owned()];
    while let Some(dir) = todo.pop() {
        let entries = match disk.read_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let path = format!("{dir}/{}", entry.name);
            if entry.is_dir {
                todo.push(path);
            } else {
                disk.remove_file(&path)?;
            }
        }
        disk.sync_dir(&dir)?;
    }
    Ok(())
}

/// The lock, unless the volume is opened for reading only.
fn lock_for(disk: &dyn Disk, options: &OpenOptions) -> Result<Option<Box<dyn DiskLock>>, Error> {
    if options.read_only { Ok(None) } else { take_lock(disk).map(Some) }
}

fn take_lock(disk: &dyn Disk) -> Result<Box<dyn DiskLock>, Error> {
    match disk.lock("lock") {
        Ok(lock) => Ok(lock),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(Error::InUse),
        Err(source) => Err(Error::Io { action: "lock the volume", source }),
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Error {
        match error {
            store::Error::NoSpace => Error::NoSpace,
            other => Error::Store(other),
        }
    }
}
