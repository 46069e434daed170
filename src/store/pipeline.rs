//! The way of new chunks into the log.
//!
//! Owns what is in flight: the two frames that are being filled (data and tree), the closed ones
//! that wait for compression or for their turn, and the table of all their addresses, through
//! which they are found and read meanwhile.
//!
//! Invariants: (1) frames are appended in the order of their tickets, and a tree frame's ticket
//! comes after those of all its children; (2) a chunk leaves the table after it has entered the
//! index, so whoever asks the table first and then the index misses nothing; (3) closed frames
//! hold at most `pending_bytes_max` (and one batch of each caller); (4) whoever waits is woken by
//! progress, by a full disk and by poison.
//!
//! Lock order: `front`, then `tail`, then `log`; none is held while a frame is compressed.
//! Absent on purpose: what chunks mean, and reading packs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::frame::{self, Entry, FRAME_CHUNKS_MAX, FRAME_PAYLOAD_BYTES, Kind, Parts};
use super::log::LogError;
use super::{Error, Inner, Location, Result};
use crate::chunk::{ADDRESS_BYTES, Address, Tree};
use crate::sys::locks::atomic::{AtomicBool, AtomicU64};
use crate::sys::locks::{Condvar, Mutex, MutexGuard};

/// A frame that is closed and not in the index yet.
pub struct RawFrame {
    id: u64,
    kind: Kind,
    entries: Vec<Entry>,
    payload: Bytes,
}

/// A closed frame with its place in the order of the log.
pub struct Job {
    ticket: u64,
    frame: Arc<RawFrame>,
}

/// A frame that is ready to be appended.
struct Ready {
    frame: Arc<RawFrame>,
    bytes: Vec<u8>,
}

/// A frame that is being filled.
struct Builder {
    id: u64,
    kind: Kind,
    entries: Vec<Entry>,
    payload: Vec<u8>,
}

impl Builder {
    fn new(id: u64, kind: Kind) -> Builder {
        Builder { id, kind, entries: Vec::new(), payload: Vec::with_capacity(FRAME_PAYLOAD_BYTES) }
    }

    fn has_room(&self, len: usize) -> bool {
        self.entries.is_empty()
            || (self.entries.len() < FRAME_CHUNKS_MAX
                && self.payload.len() + len <= FRAME_PAYLOAD_BYTES)
    }
}

/// Where a chunk in flight is: frame and slot.
type InFlight = (u64, u8);

/// What new chunks meet first.
pub struct Front {
    table: HashMap<Address, InFlight>,
    frames: HashMap<u64, Arc<RawFrame>>,
    data: Builder,
    tree: Builder,
    next_id: u64,
    next_ticket: u64,
}

/// The turn in which frames are appended.
#[derive(Default)]
pub struct Tail {
    ready: BTreeMap<u64, Ready>,
    /// The ticket whose turn it is.
    next: u64,
    /// Whether somebody appends now.
    busy: bool,
    /// Whether the last append met a full disk.
    stalled: bool,
}

/// All that is in flight.
pub struct Pipeline {
    front: Mutex<Front>,
    tail: Mutex<Tail>,
    moved: Condvar,
    /// Bytes of closed frames.
    pending_bytes: AtomicU64,
    poisoned: AtomicBool,
    poison: Mutex<Option<Arc<str>>>,
}

impl Pipeline {
    /// Makes an empty pipeline.
    pub fn new() -> Pipeline {
        let front = Front {
            table: HashMap::new(),
            frames: HashMap::new(),
            data: Builder::new(0, Kind::Data),
            tree: Builder::new(1, Kind::Tree),
            next_id: 2,
            next_ticket: 0,
        };
        Pipeline {
            front: Mutex::new(front),
            tail: Mutex::new(Tail::default()),
            moved: Condvar::new(),
            pending_bytes: AtomicU64::new(0),
            poisoned: AtomicBool::new(false),
            poison: Mutex::new(None),
        }
    }

    /// Stops all writing for ever; the first cause stays. Wakes whoever waits.
    pub fn set_poison(&self, cause: &str) -> Error {
        let cause = {
            let mut poison = self.poison.lock();
            Arc::clone(poison.get_or_insert_with(|| Arc::from(cause)))
        };
        self.poisoned.store(true, Ordering::Release);
        drop(self.tail.lock());
        self.moved.notify_all();
        Error::Poisoned { cause }
    }

    /// Fails when the store is poisoned.
    pub fn check(&self) -> Result<()> {
        if !self.poisoned.load(Ordering::Acquire) {
            return Ok(());
        }
        let cause = self.poison.lock().clone().unwrap_or_else(|| Arc::from("unknown"));
        Err(Error::Poisoned { cause })
    }

    /// Bytes of closed frames that wait.
    pub fn pending_bytes(&self) -> u64 {
        self.pending_bytes.load(Ordering::Acquire)
    }

    /// Whether a chunk is in flight.
    pub fn contains(&self, address: &Address) -> bool {
        self.front.lock().table.contains_key(address)
    }

    /// Returns the chunk if it is in flight: its item of the list, and its bytes.
    pub fn get(&self, address: &Address) -> Option<(Entry, Bytes)> {
        let front = self.front.lock();
        let (id, slot) = *front.table.get(address)?;
        for builder in [&front.data, &front.tree] {
            if builder.id == id {
                let entry = *builder.entries.get(usize::from(slot))?;
                return Some((entry, Bytes::copy_from_slice(entry.slice(&builder.payload)?)));
            }
        }
        let frame = front.frames.get(&id)?;
        let entry = *frame.entries.get(usize::from(slot))?;
        let start = entry.start as usize;
        Some((entry, frame.payload.slice(start..start + entry.len as usize)))
    }
}

impl Front {
    fn builder(&mut self, kind: Kind) -> &mut Builder {
        if kind == Kind::Tree { &mut self.tree } else { &mut self.data }
    }

    /// Closes the frame of `kind`, if there is anything in it.
    fn close(&mut self, kind: Kind, jobs: &mut Vec<Job>) {
        let id = self.next_id;
        let builder = self.builder(kind);
        if builder.entries.is_empty() {
            return;
        }
        let full = std::mem::replace(builder, Builder::new(id, kind));
        self.next_id += 1;
        let frame = Arc::new(RawFrame {
            id: full.id,
            kind: full.kind,
            entries: full.entries,
            payload: Bytes::from(full.payload),
        });
        self.frames.insert(frame.id, Arc::clone(&frame));
        jobs.push(Job { ticket: self.next_ticket, frame });
        self.next_ticket += 1;
    }

    /// Closes the frame of `kind` when `len` more bytes have no room in it.
    fn make_room(&mut self, kind: Kind, len: usize, jobs: &mut Vec<Job>) {
        if !self.builder(kind).has_room(len) {
            if kind == Kind::Tree {
                // Children that are still being collected come first.
                self.close(Kind::Data, jobs);
            }
            self.close(kind, jobs);
        }
    }

    fn add(&mut self, kind: Kind, mut entry: Entry, fill: impl FnOnce(&mut Vec<u8>)) {
        let builder = self.builder(kind);
        entry.start = builder.payload.len() as u32;
        fill(&mut builder.payload);
        entry.len = builder.payload.len() as u32 - entry.start;
        let at = (builder.id, builder.entries.len() as u8);
        builder.entries.push(entry);
        self.table.insert(entry.address, at);
    }
}

impl Inner {
    /// Puts data chunks that the index did not know a moment ago.
    ///
    /// `seen` says how many candidates the index had for each: with more of them now, a chunk may
    /// have got there meanwhile, and its position is returned to be looked up once more.
    pub(super) fn add_data(
        &self,
        chunks: &[(Address, &[u8])],
        seen: &[usize],
    ) -> Result<Vec<usize>> {
        self.wait_for_room()?;
        let mut jobs = Vec::new();
        let mut again = Vec::new();
        {
            let mut front = self.pipeline.front.lock();
            for (position, (address, payload)) in chunks.iter().enumerate() {
                if front.table.contains_key(address) {
                    continue;
                }
                if seen.get(position) != Some(&self.index.candidates(address).len()) {
                    again.push(position);
                    continue;
                }
                front.make_room(Kind::Data, payload.len(), &mut jobs);
                let span = payload.len() as u64;
                let entry = Entry { address: *address, span, children: 0, start: 0, len: 0 };
                front.add(Kind::Data, entry, |bytes| bytes.extend_from_slice(payload));
            }
            self.count_pending(&jobs);
        }
        self.run(jobs)?;
        Ok(again)
    }

    /// Puts a tree chunk that the index did not know a moment ago; false as in [`Self::add_data`].
    pub(super) fn add_tree(&self, address: Address, tree: &Tree, seen: usize) -> Result<bool> {
        self.wait_for_room()?;
        let mut bytes = Vec::with_capacity(tree.children.len() * ADDRESS_BYTES + 16);
        frame::encode_tree(tree, &mut bytes);
        let mut jobs = Vec::new();
        {
            let mut front = self.pipeline.front.lock();
            if front.table.contains_key(&address) {
                return Ok(true);
            }
            if self.index.candidates(&address).len() != seen {
                return Ok(false);
            }
            front.make_room(Kind::Tree, bytes.len(), &mut jobs);
            let children = tree.children.len() as u16;
            let entry = Entry { address, span: tree.span, children, start: 0, len: 0 };
            front.add(Kind::Tree, entry, |payload| payload.extend_from_slice(&bytes));
            self.count_pending(&jobs);
        }
        self.run(jobs)?;
        Ok(true)
    }

    fn count_pending(&self, jobs: &[Job]) {
        let bytes: usize = jobs.iter().map(|job| job.frame.payload.len()).sum();
        self.pipeline.pending_bytes.fetch_add(bytes as u64, Ordering::AcqRel);
    }

    fn wait_for_room(&self) -> Result<()> {
        let pipeline = &self.pipeline;
        pipeline.check()?;
        let mut tail = pipeline.tail.lock();
        if tail.stalled {
            tail = self.drain(tail, true)?;
        }
        while pipeline.pending_bytes() >= self.options.pending_bytes_max {
            pipeline.check()?;
            if tail.stalled {
                return Err(Error::NoSpace);
            }
            pipeline.moved.wait(&mut tail);
        }
        drop(tail);
        pipeline.check()
    }

    /// Hands closed frames to the workers, or does their work here when there are none.
    ///
    /// After a failure the others still take their places: they stay in flight.
    fn run(&self, jobs: Vec<Job>) -> Result<()> {
        let mut result = Ok(());
        for job in jobs {
            let sender = self.workers.lock().clone();
            let here = match sender {
                Some(sender) => sender.send(job).err().map(|unsent| unsent.0),
                None => Some(job),
            };
            if let Some(job) = here {
                result = result.and(self.work(job));
            }
        }
        result
    }

    /// Compresses a frame, and appends whatever has its turn then.
    pub(super) fn work(&self, job: Job) -> Result<()> {
        let compression = match job.frame.kind {
            Kind::Data => self.options.compression,
            _ => super::Compression::None,
        };
        let (codec, packed) = frame::compress(compression, &job.frame.payload);
        let bytes = frame::encode(&Parts {
            kind: job.frame.kind,
            codec,
            count: job.frame.entries.len() as u32,
            list: &frame::encode_list(job.frame.kind, &job.frame.entries),
            payload: packed.as_deref().unwrap_or(&job.frame.payload),
            raw_bytes: job.frame.payload.len() as u32,
        });
        let mut tail = self.pipeline.tail.lock();
        tail.ready.insert(job.ticket, Ready { frame: job.frame, bytes });
        self.drain(tail, false).map(drop)
    }

    /// Appends all frames that have their turn, unless somebody else does already.
    ///
    /// On a full disk it stops; only with `retry` it tries again after that.
    fn drain<'a>(
        &'a self,
        mut tail: MutexGuard<'a, Tail>,
        retry: bool,
    ) -> Result<MutexGuard<'a, Tail>> {
        if tail.busy {
            return Ok(tail);
        }
        if tail.stalled && !retry {
            return Err(Error::NoSpace);
        }
        tail.stalled = false;
        tail.busy = true;
        let result = loop {
            let next = tail.next;
            let Some(mut ready) = tail.ready.remove(&next) else { break Ok(()) };
            let appended = MutexGuard::unlocked(&mut tail, || {
                self.pipeline.check()?;
                self.append(&mut ready)
            });
            match appended {
                Ok(()) => tail.next += 1,
                Err(error) => {
                    tail.ready.insert(next, ready);
                    tail.stalled = matches!(error, Error::NoSpace);
                    break Err(error);
                }
            }
            self.pipeline.moved.notify_all();
        };
        tail.busy = false;
        self.pipeline.moved.notify_all();
        result.map(|()| tail)
    }

    /// Appends one frame, enters its chunks into the index, and takes it out of the table.
    fn append(&self, ready: &mut Ready) -> Result<()> {
        let placed = self.log.lock().append(&mut ready.bytes);
        let (pack, offset) = placed.map_err(|error| self.log_failed(error))?;
        let at = Location { pack, offset, slot: 0 };
        self.remember_header(at, &ready.bytes);
        for (slot, entry) in ready.frame.entries.iter().enumerate() {
            let location = Location { slot: slot as u8, ..at };
            self.index.insert(&entry.address, location, entry.hashed_bytes());
        }
        let mut front = self.pipeline.front.lock();
        for entry in &ready.frame.entries {
            front.table.remove(&entry.address);
        }
        front.frames.remove(&ready.frame.id);
        drop(front);
        let bytes = ready.frame.payload.len() as u64;
        self.pipeline.pending_bytes.fetch_sub(bytes, Ordering::AcqRel);
        Ok(())
    }

    /// Turns a failure of the log into an error; poisons the store unless the disk is just full.
    fn log_failed(&self, error: LogError) -> Error {
        match error {
            LogError::NoSpace => Error::NoSpace,
            LogError::TooLarge { bytes, bytes_max } => Error::RecordTooLarge { bytes, bytes_max },
            LogError::Fatal { action, source } => {
                self.pipeline.set_poison(&format!("cannot {action}: {source}"))
            }
        }
    }

    /// Closes both frames and waits until all that was put before is appended.
    pub(super) fn flush_all(&self) -> Result<()> {
        self.pipeline.check()?;
        let mut jobs = Vec::new();
        let target = {
            let mut front = self.pipeline.front.lock();
            front.close(Kind::Data, &mut jobs);
            front.close(Kind::Tree, &mut jobs);
            self.count_pending(&jobs);
            front.next_ticket
        };
        match self.run(jobs) {
            // The retry below decides.
            Ok(()) | Err(Error::NoSpace) => {}
            Err(error) => return Err(error),
        }
        let mut tail = self.pipeline.tail.lock();
        let mut retry = true;
        while tail.next < target {
            self.pipeline.check()?;
            if tail.stalled {
                if !retry {
                    return Err(Error::NoSpace);
                }
                retry = false;
                tail = self.drain(tail, true)?;
                continue;
            }
            self.pipeline.moved.wait(&mut tail);
        }
        drop(tail);
        self.pipeline.check()
    }

    /// Seals the open pack between two frames, if it is at least so long.
    pub(super) fn seal_from(&self, bytes: u64) -> Result<()> {
        self.take_turn()?;
        let sealed = self.log.lock().seal_from(bytes).map_err(|error| self.log_failed(error));
        self.end_turn();
        sealed
    }

    /// Waits until nobody appends, and keeps others from it.
    fn take_turn(&self) -> Result<()> {
        let mut tail = self.pipeline.tail.lock();
        self.pipeline.check()?;
        while tail.busy {
            self.pipeline.moved.wait(&mut tail);
            self.pipeline.check()?;
        }
        tail.busy = true;
        Ok(())
    }

    /// Lets others append again, and appends the frames that came meanwhile: their failure is for
    /// those who put them.
    fn end_turn(&self) {
        let mut tail = self.pipeline.tail.lock();
        tail.busy = false;
        self.pipeline.moved.notify_all();
        drop(self.drain(tail, false));
    }

    /// Appends a commit record between two frames, and syncs it.
    pub(super) fn append_record(&self, entries: &[u8]) -> Result<super::LogPosition> {
        self.take_turn()?;
        let mark = self.index.mark();
        let appended = self.log.lock().record(entries).map_err(|error| self.log_failed(error));
        self.end_turn();
        let (file, position) = appended?;
        if let Err(source) = file.sync() {
            return Err(self
                .pipeline
                .set_poison(&format!("cannot sync a commit record: {source}")));
        }
        self.pipeline.check()?;
        self.index.committed(mark, position);
        Ok(position)
    }
}
