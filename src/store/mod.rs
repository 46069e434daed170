//! The store: where chunks lie, and when they and the commit records among them are durable.
//!
//! Owns packs (files to which frames of chunks and commit records are appended), the index that is
//! derived from them, the caches in front of them, and recovery. `docs/format.md` has every
//! structure to the byte.
//!
//! Invariants: (1) packs are the truth, the index follows from them; (2) the store is closed: what
//! the index answers for, it answers for all chunks below it; (3) a commit record stands behind all
//! chunks that were flushed before it, and [`Store::commit`] returns once it is durable; (4) no
//! chunk is handed out before its hash was verified; (5) a failed sync, or a failed append that is
//! not for want of space, poisons the store: reads go on, writes fail until it is opened anew.
//!
//! Absent on purpose: files, inodes, what a record means, and the shape of trees.

mod aux_pack;
mod bad;
mod cache;
mod collect;
mod copies;
mod finding;
mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod image;
mod index;
mod log;
mod marks;
mod mend;
mod open;
mod pack;
mod pipeline;
mod reader;
mod record;
mod run;
mod sizes;
#[cfg(test)]
mod tests;
mod verify;

use std::io;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use crossbeam_channel::Sender;
use lru::LruCache;

use crate::chunk::{self, Address, Profile, Tree};
use crate::sys::locks::Mutex;
use crate::sys::{Disk, DiskFile};

pub use bad::BadChunk;
pub use cache::CacheStats;
pub use collect::{Cleaned, Collection, Policy, Victim, Visit};
pub use image::{FoundImage, IMAGE_PART_BYTES, ImageWriter, WrittenImage, find_images};
pub use marks::{Marked, Marks};
pub use mend::Mended;
pub use open::replay;
pub use sizes::ChunkSize;
pub use verify::VerifyStep;

use index::{Index, RunError};
use pipeline::{Job, Pipeline};

/// Packs with an open file handle at most.
const FILES_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(255);
/// Chunks that are put under one lock.
const PUT_BATCH: usize = 64;

/// Results of the store.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No chunk of this address is stored.
    #[error("chunk {address} is missing")]
    Missing {
        /// Its address.
        address: Address,
    },
    /// The bytes where the chunk lies are not its own, past the page cache too.
    #[error("chunk {address} is damaged in {location}")]
    Damaged {
        /// Its address.
        address: Address,
        /// Where it lies.
        location: Location,
    },
    /// A write or sync failed earlier: nothing can be written until the store is opened anew.
    #[error("the volume takes no more writes since an error ({cause}): mount it again")]
    Poisoned {
        /// The first failure.
        cause: Arc<str>,
    },
    /// The disk is full. What was put stays in flight and is tried again.
    #[error("no space left on the disk of the volume")]
    NoSpace,
    /// The entries of a group do not fit a pack.
    #[error("a commit record of {bytes} bytes is too large: at most {bytes_max}")]
    RecordTooLarge {
        /// Bytes of the entries.
        bytes: u64,
        /// What fits.
        bytes_max: u64,
    },
    /// A pack was written by a later version.
    #[error("pack {pack:016x} has format version {version}: a newer pyramidfs is needed")]
    Newer {
        /// The pack's number.
        pack: u64,
        /// Its version.
        version: u32,
    },
    /// A run of the index is damaged. It was removed, and the next opening builds the index anew.
    #[error("run {name} of the index is damaged: mount the volume again to rebuild it")]
    IndexDamaged {
        /// The name of its file.
        name: String,
    },
    /// The disk refused.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    fn io(action: &'static str) -> impl Fn(io::Error) -> Error {
        move |source| match log::is_full(&source) {
            true => Error::NoSpace,
            false => Error::Io { action, source },
        }
    }
}

/// How frames of data chunks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// Fast.
    Lz4,
    /// Dense, at this level.
    Zstd(i32),
}

/// Settings of an open store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How new data frames are compressed.
    pub compression: Compression,
    /// Limit of the cache of frames, in bytes.
    pub cache_bytes: u64,
    /// Limit of the cache of tree chunks, in bytes.
    pub tree_cache_bytes: u64,
    /// Limit of what the index takes in memory, in bytes.
    pub index_memory_bytes: u64,
    /// A pack without its footer is at most this long; at most 2 GiB.
    pub pack_bytes_max: u64,
    /// Chunks in flight, in bytes, before whoever puts has to wait.
    pub pending_bytes_max: u64,
    /// Threads that compress and append; with 0 all is done by those who put.
    pub workers: usize,
    /// Copies of each tree chunk: with 2, [`Store::copy_trees`] makes second ones.
    pub tree_copies: u32,
}

impl Default for Options {
    fn default() -> Options {
        const MIB: u64 = 1024 * 1024;
        Options {
            compression: Compression::Lz4,
            cache_bytes: 96 * MIB,
            tree_cache_bytes: 32 * MIB,
            index_memory_bytes: 96 * MIB,
            pack_bytes_max: 64 * MIB,
            pending_bytes_max: 32 * MIB,
            workers: 2,
            tree_copies: 1,
        }
    }
}

/// Where a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The pack's number, below 2^28.
    pub pack: u64,
    /// Where its frame starts: a multiple of 8 below 2^31.
    pub offset: u64,
    /// Its place in the frame's list.
    pub slot: u8,
}

impl Location {
    /// Packs it into a number that sorts like the log.
    pub(crate) fn pack(self) -> u64 {
        self.pack << 36 | (self.offset / frame::FRAME_ALIGN) << 8 | u64::from(self.slot)
    }

    /// The location of a number; every number is one.
    pub(crate) fn unpack(number: u64) -> Location {
        let offset = (number >> 8 & ((1 << 28) - 1)) * frame::FRAME_ALIGN;
        Location { pack: number >> 36, offset, slot: number as u8 }
    }

    /// Returns a number for the frame alone.
    fn frame(self) -> u64 {
        Location { slot: 0, ..self }.pack()
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pack {:016x}, offset {}, slot {}", self.pack, self.offset, self.slot)
    }
}

/// Right behind a commit record in the log; with sequence 0, the start of an empty volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogPosition {
    /// The pack's number.
    pub pack: u64,
    /// Where the record's frame ends.
    pub offset: u64,
    /// The record's sequence number.
    pub sequence: u64,
}

/// No log has as many records, or chunks, or bytes: what claims to is none.
const COUNT_MAX: u64 = 1 << 62;

impl LogPosition {
    /// Whether a log can be there. Checksums keep out damage, not what was made to fit them.
    pub(crate) fn is_possible(&self) -> bool {
        self.pack < pack::PACK_NUMBERS && self.offset < 1 << 32 && self.sequence < COUNT_MAX
    }
}

/// A commit record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Right behind it.
    pub position: LogPosition,
    /// What it holds: opaque to the store.
    pub entries: Vec<u8>,
}

/// What was found out of order when a store was opened, or when it was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Bytes behind the last valid commit record were cut off, as after any crash.
    TailCut {
        /// The pack.
        pack: u64,
        /// Where it ends now.
        offset: u64,
        /// How much was cut off.
        bytes: u64,
    },
    /// A pack that no commit record names was set aside: its file got the ending `.aside`.
    PackSetAside {
        /// The pack.
        pack: u64,
    },
    /// In this range of a pack no frame could be found, though commit records come later.
    FramesDamaged {
        /// The pack.
        pack: u64,
        /// Where it begins.
        start: u64,
        /// Where the next good frame, or the end of the pack, is.
        end: u64,
    },
    /// The payload of this frame is not what was written.
    PayloadDamaged {
        /// The pack.
        pack: u64,
        /// Where the frame starts.
        offset: u64,
    },
    /// A chunk does not hash to its address.
    ChunkDamaged {
        /// Its address.
        address: Address,
        /// Where it lies.
        location: Location,
    },
    /// The header of a pack is damaged; its frames can be read all the same.
    HeaderDamaged {
        /// The pack.
        pack: u64,
    },
    /// The footer of a pack is missing or damaged; its frames can be read all the same.
    FooterDamaged {
        /// The pack.
        pack: u64,
    },
    /// A pack that a commit record names is not there.
    PackMissing {
        /// The pack.
        pack: u64,
    },
    /// A commit record cannot be had: what it changed is lost.
    RecordMissing {
        /// Its sequence number.
        sequence: u64,
    },
    /// The frames in front of this record are not those that were there when it was written.
    GroupDamaged {
        /// The record's sequence number.
        sequence: u64,
    },
    /// Runs of the index were damaged or missing; it was built anew from the packs.
    IndexRebuilt,
    /// A tree chunk was left out of the index, as a chunk below it is missing. Told beside other
    /// damage only: collections take the children of dead trees.
    TreeLeftOut {
        /// Its address.
        address: Address,
    },
}

/// A store that was opened, and what its log says.
pub struct Opened {
    /// The store.
    pub store: Store,
    /// The commit records behind the position that was asked for, in order. A gap in their
    /// sequence numbers is named by a [`Finding::RecordMissing`].
    pub records: Vec<Record>,
    /// What was out of order.
    pub findings: Vec<Finding>,
}

/// Proof that all chunks put before it are in the log. Only [`Store::flush`] makes one.
#[derive(Debug)]
#[must_use = "a root may enter a commit record only behind its chunks"]
pub struct Flushed {
    _private: (),
}

/// Counts of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Chunks in the packs.
    pub chunks: u64,
    /// Their bytes, before compression.
    pub unique_bytes: u64,
    /// Bytes of all packs: frames, records, footers.
    pub stored_bytes: u64,
    /// Bytes of the runs of the index on the disk.
    pub index_bytes: u64,
    /// Bytes that the index takes in memory.
    pub index_memory_bytes: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes of closed frames that wait to be appended.
    pub pending_bytes: u64,
    /// The sequence number of the last commit record.
    pub sequence: u64,
    /// The cache of tree chunks.
    pub tree_cache: CacheStats,
    /// The cache of frames.
    pub frame_cache: CacheStats,
}

/// What all threads of a store share.
struct Inner {
    disk: Arc<dyn Disk>,
    profile: Profile,
    volume_id: [u8; 16],
    options: Options,
    pipeline: Pipeline,
    log: Mutex<log::Log>,
    index: Index,
    headers: cache::Cache<u64, Arc<frame::Header>>,
    frames: cache::Cache<u64, Arc<reader::CachedFrame>>,
    trees: cache::Cache<Address, Arc<Tree>>,
    files: Mutex<LruCache<u64, Arc<dyn DiskFile>>>,
    bad: bad::BadChunks,
    /// The way to the workers, while there are any.
    workers: Mutex<Option<Sender<Job>>>,
    /// One commit at a time.
    commit: Mutex<()>,
    collecting: collect::Collecting,
    copies: copies::Copies,
}

/// The chunks of a volume, and its log. Shared by any number of threads.
pub struct Store {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Store {
    /// Makes the directories of an empty store, durably.
    pub fn create(disk: &Arc<dyn Disk>) -> Result<()> {
        for dir in [pack::PACKS_DIR, run::INDEX_DIR] {
            let made = pack::make_dir(&**disk, dir);
            made.map_err(Error::io("make a directory of the volume"))?;
            disk.sync_dir(dir).map_err(Error::io("sync a directory of the volume"))?;
        }
        disk.sync_dir("").map_err(Error::io("sync the directory of the volume"))
    }

    /// Opens the store, and recovers it when it was not closed.
    ///
    /// `from` is the position that the caller's own data has come to: the answer has all commit
    /// records behind it. Nothing up to `from` is ever cut off.
    pub fn open(
        disk: Arc<dyn Disk>,
        profile: Profile,
        volume_id: [u8; 16],
        options: Options,
        from: LogPosition,
    ) -> Result<Opened> {
        let workers = options.workers;
        let recovered = open::open(disk, profile, volume_id, options, from)?;
        let store = Store { inner: Arc::new(recovered.inner), threads: Mutex::new(Vec::new()) };
        store.start(workers)?;
        Ok(Opened { store, records: recovered.records, findings: recovered.findings })
    }

    fn start(&self, workers: usize) -> Result<()> {
        if workers == 0 {
            return Ok(());
        }
        // Bounded by the bytes that may be in flight, not by the channel.
        let (sender, receiver) = crossbeam_channel::unbounded::<Job>();
        *self.inner.workers.lock() = Some(sender);
        for number in 0..workers {
            let inner = Arc::clone(&self.inner);
            let receiver = receiver.clone();
            let body = move || {
                let guard = PoisonOnPanic(&inner);
                for job in receiver {
                    // A failure is kept in the pipeline, where the next caller meets it.
                    let _ = inner.work(job);
                }
                drop(guard);
            };
            let thread = std::thread::Builder::new().name(format!("store-{number}")).spawn(body);
            self.threads.lock().push(thread.map_err(Error::io("start a thread"))?);
        }
        Ok(())
    }

    fn stop(&self) {
        *self.inner.workers.lock() = None;
        for thread in self.threads.lock().drain(..) {
            // A panic of a worker has poisoned the store already.
            let _ = thread.join();
        }
    }

    /// Appends all chunks that were put before, without syncing them.
    pub fn flush(&self) -> Result<Flushed> {
        self.inner.flush_all()?;
        Ok(Flushed { _private: () })
    }

    /// Appends a commit record of `entries` behind what was flushed; returns when it is durable.
    ///
    /// One sync, unless packs were filled since the last commit. When the disk is full nothing has
    /// happened, and the caller may flush and commit again.
    pub fn commit(&self, flushed: Flushed, entries: &[u8]) -> Result<LogPosition> {
        let Flushed { _private: () } = flushed;
        let _one = self.inner.commit.lock();
        self.inner.pipeline.check()?;
        let position = self.inner.append_record(entries)?;
        if self.inner.index.wants_run() {
            // The index is derived: a failure costs memory now or time at the next opening.
            let _ = self.save_index();
        }
        Ok(position)
    }

    /// Whether a chunk is stored or in flight, and not known to be damaged. Of a tree chunk this
    /// says nothing about the chunks below.
    pub fn contains(&self, address: &Address) -> Result<bool> {
        if self.inner.pipeline.contains(address) {
            return Ok(true);
        }
        let found = self.inner.locate(address, true)?;
        Ok(matches!(found, reader::Lookup::Found(..)))
    }

    /// Takes over the damaged places that an earlier store told of.
    pub fn load_bad(&self, kept: impl IntoIterator<Item = BadChunk>) {
        self.inner.bad.load(kept);
    }

    /// Hands out what changed of the damaged places, up to `count` of them and each once: the
    /// place, and whether its chunk is damaged now. Whoever keeps them gives them to
    /// [`Store::load_bad`] next time.
    pub fn bad_changes(&self, count: usize) -> Vec<(BadChunk, bool)> {
        self.inner.bad.changes(count)
    }

    /// The damaged places that are known, in the order of the log.
    pub fn bad(&self) -> Vec<BadChunk> {
        self.inner.bad.all()
    }

    /// Saves a run of what is committed, so that the next opening need not read those packs.
    pub fn save_index(&self) -> Result<()> {
        self.inner.index.save(&*self.inner.disk).map_err(|error| self.inner.run_failed(error))
    }

    /// Whether packs were sealed whose tree chunks have no second copies yet.
    pub fn wants_copies(&self) -> bool {
        self.inner.wants_copies()
    }

    /// Makes second copies of the tree chunks of all packs that were sealed since the last time.
    ///
    /// A failure harms nothing, and the next call goes on from there.
    pub fn copy_trees(&self) -> Result<()> {
        self.inner.copy_trees()
    }

    /// Returns the second copy of a tree chunk, if there is a good one.
    pub fn second_copy(&self, address: &Address) -> Result<Option<Tree>> {
        self.inner.second_copy(address)
    }

    /// Stops the workers, makes second copies and saves the index; once is enough.
    ///
    /// What was not committed is lost, as after a crash.
    pub fn close(&self) -> Result<()> {
        self.stop();
        // What fails here is made up for when the volume is open again.
        let _ = self.copy_trees();
        self.save_index()
    }

    /// Returns counts.
    pub fn stats(&self) -> Stats {
        let inner = &self.inner;
        let totals = inner.index.totals();
        let log = inner.log.lock();
        Stats {
            chunks: totals.chunks,
            unique_bytes: totals.bytes,
            stored_bytes: log.stored_bytes(),
            index_bytes: inner.index.file_bytes(),
            index_memory_bytes: inner.index.memory_bytes(),
            packs: log.packs,
            pending_bytes: inner.pipeline.pending_bytes(),
            sequence: log.head.sequence,
            tree_cache: inner.trees.stats(),
            frame_cache: inner.frames.stats(),
        }
    }

    /// Bytes of all packs and of the index on the disk, unless somebody is just writing to the log.
    pub fn try_stored_bytes(&self) -> Option<u64> {
        let packs = self.inner.log.try_lock()?.stored_bytes();
        Some(packs + self.inner.index.file_bytes())
    }

    /// Walks all packs from number `first` on and reports what is damaged; `step` may end it.
    ///
    /// Checks headers, footers, and payloads against their checksums; with `read_data` every chunk
    /// against its address. Frames behind the last commit record are read as they are.
    pub fn verify(
        &self,
        first: u64,
        read_data: bool,
        step: &mut dyn FnMut(VerifyStep) -> ControlFlow<()>,
    ) -> Result<()> {
        verify::verify(&self.inner, first, read_data, step)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Poisons the store when a worker dies, so that nobody waits for it.
struct PoisonOnPanic<'a>(&'a Inner);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.pipeline.set_poison("a worker of the store died");
        }
    }
}

impl Inner {
    fn run_failed(&self, error: RunError) -> Error {
        match error {
            RunError::Io(source) => Error::io("use the index")(source),
            RunError::Damaged(name) => {
                // Without it the next opening reads the packs instead.
                let _ = index::remove_run(&*self.disk, &name);
                Error::IndexDamaged { name }
            }
        }
    }
}

impl chunk::Source for Store {
    type Error = Error;

    fn tree(&self, address: &Address) -> Result<Arc<Tree>> {
        self.inner.tree(address)
    }

    fn data(&self, address: &Address) -> Result<Bytes> {
        self.inner.chunk(address).map(|found| found.1)
    }

    fn data_many(&self, addresses: &[Address], each: &mut dyn FnMut(usize, &[u8])) -> Result<()> {
        self.inner.data_many(addresses, each)
    }
}

impl chunk::Sink for Store {
    fn put_data(&self, chunks: &[(Address, &[u8])]) -> Result<()> {
        for batch in chunks.chunks(PUT_BATCH) {
            self.inner.put_data(batch)?;
        }
        Ok(())
    }

    fn put_tree(&self, address: Address, tree: Tree) -> Result<()> {
        self.inner.put_tree(address, tree)
    }
}
