//! A crowd: several threads at random work on one volume, with closes and power losses between.
//!
//! Each thread keeps a plain tree ([`Model`]) of what it alone changes: its own directory, its
//! names in directories that all share, its links of a file to which all link, and its region of a
//! file that all write. A [`Diary`] says which of its states was there when.
//!
//! Owns the judgement: after a close all is as it was. After a power loss at any sync each thread's
//! part is as it was at one moment, with all that an fsync of any thread had made durable, and no
//! thread's part is without a change that was over before another began that is there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::Mutex;

use super::crash::{assert_clean, extract};
use super::model::{Body, Entry, Model, Snapshot};
use super::threads::limited;
use super::*;
use crate::sys::Timestamp;
use crate::sys::sim::Keep;

const THREADS: usize = 4;
const ROUNDS: u64 = 4;
const STEPS: usize = 45;
/// A thread's part of the file that all write: not on the borders of chunks.
const REGION_BYTES: usize = 21_000;
const CHUNK_BYTES: usize = 4096;
const IMAGES_MAX: usize = 5;
/// Links of a shared directory: others add and remove some all the time.
const ANY_LINKS: u32 = 1000;

/// What all threads share, and the threads' own directories: inode numbers.
struct Places {
    homes: Vec<u64>,
    shared: [u64; 2],
    hub: u64,
    common: u64,
}

/// A state of a thread's part, and the stamps around the change that made it.
struct Past {
    start: u64,
    end: u64,
    state: Snapshot,
}

/// What one thread saw in one round.
#[derive(Default)]
struct Diary {
    states: Vec<Past>,
    fsyncs: Vec<(u64, u64)>,
}

/// What a power loss left of the disk, and the stamps around it.
struct Image {
    disk: SimDisk,
    before: u64,
    after: u64,
    label: String,
}

/// One thread's work.
struct Worker<'a> {
    number: usize,
    volume: &'a Volume,
    clock: &'a SimClock,
    places: &'a Places,
    stamps: &'a AtomicU64,
    random: SimRng,
    model: Model,
    held: BTreeMap<u64, u64>,
    ghosts: Vec<u64>,
    diary: Diary,
}

/// Limits so small that packs fill, dirty bytes are flushed and the timer commits all the time.
fn crowded() -> OpenOptions {
    OpenOptions {
        background: true,
        pack_bytes_max: 200 << 10,
        dirty_bytes_max: 150_000,
        commit_interval_ms: 4,
        ..options()
    }
}

impl Places {
    fn make(volume: &Volume) -> Places {
        let dir = |name: &str| {
            volume.mkdir(Ino::ROOT, name.as_bytes(), 0o755, ROOT, Wait::Yes).unwrap().ino.0
        };
        let file = |name: &str| {
            let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
            volume.mknod(Ino::ROOT, name.as_bytes(), &make, ROOT, Wait::Yes).unwrap().ino.0
        };
        let places = Places {
            homes: (0..THREADS).map(|number| dir(&format!("home-{number}"))).collect(),
            shared: [dir("shared-0"), dir("shared-1")],
            hub: file("hub"),
            common: file("common"),
        };
        let size = Some((THREADS * REGION_BYTES) as u64);
        let change = SetAttr { size, ..SetAttr::default() };
        volume.setattr(Ino(places.common), &change, ROOT, Wait::Yes).unwrap();
        volume.sync().unwrap();
        places
    }

    /// The part of the volume that one thread changes.
    fn part_of(&self, state: &Snapshot, number: usize) -> Snapshot {
        let prefix = prefix(number);
        let mut part = Snapshot::new();
        let mut hub = state[&self.hub].clone();
        hub.nlink = 1;
        let mut todo = vec![self.homes[number], self.shared[0], self.shared[1]];
        while let Some(ino) = todo.pop() {
            if ino == self.hub {
                hub.nlink += 1;
                continue;
            }
            let mut entry = state[&ino].clone();
            if let Body::Dir(names) = &mut entry.body {
                if self.shared.contains(&ino) {
                    names.retain(|name, _| name.starts_with(&prefix));
                }
                todo.extend(names.values().filter(|&ino| !part.contains_key(ino)));
            }
            part.insert(ino, entry);
        }
        part.insert(self.hub, hub);
        let mut common = state[&self.common].clone();
        let bytes = common.bytes().unwrap();
        assert_eq!(bytes.len(), THREADS * REGION_BYTES);
        let region = bytes[number * REGION_BYTES..(number + 1) * REGION_BYTES].to_vec();
        common.body = Body::File(Arc::new(region));
        part.insert(self.common, common);
        self.blur(&mut part);
        part
    }

    /// Takes out what other threads change all the time.
    fn blur(&self, part: &mut Snapshot) {
        for ino in [self.shared[0], self.shared[1], self.hub, self.common] {
            let entry = part.get_mut(&ino).unwrap();
            (entry.mtime, entry.ctime) = Default::default();
            if entry.is_dir() {
                entry.nlink = ANY_LINKS;
            }
        }
    }

    fn is_shared(&self, ino: u64) -> bool {
        self.shared.contains(&ino) || ino == self.hub || ino == self.common
    }

    /// The parts of all threads, which must be all that there is.
    fn parts(&self, state: &Snapshot, label: &str) -> Vec<Snapshot> {
        let parts: Vec<Snapshot> = (0..THREADS).map(|number| self.part_of(state, number)).collect();
        for ino in state.keys().filter(|&&ino| ino != Ino::ROOT.0) {
            assert!(parts.iter().any(|part| part.contains_key(ino)), "{label}: inode {ino}");
        }
        let links: u32 = parts.iter().map(|part| part[&self.hub].nlink - 1).sum();
        assert_eq!(state[&self.hub].nlink, 1 + links, "{label}: links of the hub");
        parts
    }
}

fn prefix(number: usize) -> String {
    format!("t{number}-")
}

impl<'a> Worker<'a> {
    fn below(&self, end: usize) -> usize {
        (self.random.next_u64() % end as u64) as usize
    }

    fn pick(&self, from: &[u64]) -> Option<u64> {
        if from.is_empty() { None } else { Some(from[self.below(from.len())]) }
    }

    fn name(&self) -> String {
        format!("{}{}", prefix(self.number), self.below(5))
    }

    /// A directory and a name in it.
    fn place(&self) -> (u64, String) {
        (self.pick(&self.model.dirs()).unwrap(), self.name())
    }

    fn file(&self) -> Option<u64> {
        let mut files = self.model.files();
        files.retain(|&ino| !self.places.is_shared(ino));
        self.pick(&files)
    }

    /// Asks, at times without waiting first: that must have changed nothing if it would have to.
    fn ask<T>(&self, call: impl Fn(Wait) -> Result<T, Error>) -> Result<T, Error> {
        if self.below(2) == 0 {
            match call(Wait::No) {
                Err(Error::WouldWait) => {}
                other => return other,
            }
        }
        call(Wait::Yes)
    }

    fn now(&self) -> Timestamp {
        crate::sys::Clock::now(self.clock)
    }

    fn stamp(&self) -> u64 {
        self.stamps.fetch_add(1, SeqCst)
    }

    fn work(mut self, steps: usize) -> Diary {
        for _ in 0..steps {
            self.clock.advance(Duration::from_millis(1));
            let start = self.stamp();
            let synced = self.step();
            let end = self.stamp();
            if synced {
                self.diary.fsyncs.push((start, end));
            }
            self.settle();
            let mut state = self.model.live.clone();
            self.places.blur(&mut state);
            if self.diary.states.last().is_none_or(|last| last.state != state) {
                self.diary.states.push(Past { start, end, state });
            }
        }
        self.diary
    }

    /// Compares attributes with the model's, which takes the times over: the clock is everyone's.
    fn settle(&mut self) {
        for (&ino, entry) in &mut self.model.live {
            if self.places.is_shared(ino) {
                continue;
            }
            let attr = self.volume.getattr(Ino(ino)).unwrap();
            assert_eq!((attr.mode, attr.nlink), (entry.mode, entry.nlink), "inode {ino}");
            if let Body::File(bytes) = &entry.body {
                assert_eq!(attr.size, bytes.len() as u64, "inode {ino}");
            }
            (entry.mtime, entry.ctime) = (attr.mtime, attr.ctime);
        }
    }

    /// Does one step on both sides; answers whether it was an fsync.
    fn step(&mut self) -> bool {
        let file = self.file();
        match (self.below(24), file) {
            (0..=3, _) => self.make(),
            (4..=6, Some(file)) => self.write(file),
            (7, Some(file)) => self.truncate(file),
            (8 | 9, _) => self.rename(),
            (10, _) => self.exchange(),
            (11, Some(file)) => self.link(file),
            (12, _) => self.link(self.places.hub),
            (13 | 14, _) => self.remove(),
            (15, Some(file)) => self.attributes(file),
            (16, Some(file)) => self.copy_whole(file),
            (17, Some(file)) => self.copy_range(file),
            (18, Some(file)) => self.allocate(file),
            (19 | 20, _) => self.write_region(),
            (21, _) => self.use_ghosts(),
            (22, _) => self.compare(),
            (23, _) => {
                let ino = file.unwrap_or(self.places.homes[self.number]);
                self.ask(|wait| self.volume.fsync(Ino(ino), wait)).unwrap();
                return true;
            }
            _ => {}
        }
        false
    }

    fn make(&mut self) {
        let (dir, name) = self.place();
        let (at, bytes, kind) = (Ino(dir), name.as_bytes(), self.below(4));
        let target = format!("to/{}", self.below(1000));
        let (made, body, mode) = match kind {
            0 | 1 => {
                let make = Make { mode: MODE_FILE | 0o640, rdev: 0 };
                let made = self.ask(|wait| self.volume.mknod(at, bytes, &make, ROOT, wait));
                (made, Body::File(Arc::default()), make.mode)
            }
            2 => {
                let made = self.ask(|wait| self.volume.mkdir(at, bytes, 0o750, ROOT, wait));
                (made, Body::Dir(BTreeMap::new()), MODE_DIR | 0o750)
            }
            _ => {
                let link = target.as_bytes();
                let made = self.ask(|wait| self.volume.symlink(at, bytes, link, ROOT, wait));
                (made, Body::Link(target.clone()), MODE_SYMLINK | 0o777)
            }
        };
        let attr = match made {
            Ok(attr) => attr,
            Err(Error::Exists) => return assert!(self.model.find(dir, &name).is_some()),
            Err(error) => panic!("{error}"),
        };
        *self.held.entry(attr.ino.0).or_default() += 1;
        let (now, nlink) = (self.now(), if kind == 2 { 2 } else { 1 });
        let xattrs = BTreeMap::new();
        let entry = Entry { body, mode, uid: 0, nlink, mtime: now, ctime: now, xattrs };
        self.model.add((dir, &name), attr.ino.0, entry);
    }

    fn write(&mut self, file: u64) {
        let (offset, len) = (self.below(50_000), 1 + self.below(16_000));
        let bytes = noise(self.random.next_u64(), len);
        self.ask(|wait| self.volume.write(Ino(file), offset as u64, &bytes, false, wait)).unwrap();
        self.model.write(file, offset, &bytes, Timestamp::default());
    }

    fn truncate(&mut self, file: u64) {
        let size = self.below(60_000);
        let change = SetAttr { size: Some(size as u64), ..SetAttr::default() };
        self.ask(|wait| self.volume.setattr(Ino(file), &change, ROOT, wait)).unwrap();
        self.model.truncate(file, size, Timestamp::default());
    }

    fn rename(&mut self) {
        if self.number == 0 && self.below(3) == 0 {
            return self.move_shared();
        }
        let (from, to) = (self.place(), self.place());
        let (from, to) = ((from.0, from.1.as_str()), (to.0, to.1.as_str()));
        let flags = RenameFlags { no_replace: self.below(4) == 0, ..RenameFlags::default() };
        let moved = self.ask(|wait| {
            let (name, new) = (from.1.as_bytes(), to.1.as_bytes());
            self.volume.rename(Ino(from.0), name, Ino(to.0), new, flags, wait)
        });
        let free = !flags.no_replace || self.model.find(to.0, to.1).is_none();
        assert_eq!(moved.is_ok(), free && self.model.can_rename(from, to), "{moved:?}");
        if moved.is_ok()
            && let Some(gone) = self.model.rename(from, to, Timestamp::default())
        {
            self.forget(gone);
        }
    }

    /// Moves a shared directory into the other or back, below the feet of the others.
    fn move_shared(&self) {
        let (root, other) = (Ino::ROOT, Ino(self.places.shared[0]));
        let name = b"shared-1";
        let flags = RenameFlags::default();
        let there = self.ask(|wait| self.volume.rename(root, name, other, name, flags, wait));
        if there.is_err() {
            assert!(matches!(there, Err(Error::NotFound)), "{there:?}");
            self.ask(|wait| self.volume.rename(other, name, root, name, flags, wait)).unwrap();
        }
    }

    fn exchange(&mut self) {
        let (one, other) = (self.place(), self.place());
        let (one, other) = ((one.0, one.1.as_str()), (other.0, other.1.as_str()));
        let flags = RenameFlags { exchange: true, ..RenameFlags::default() };
        let exchanged = self.ask(|wait| {
            let (name, new) = (one.1.as_bytes(), other.1.as_bytes());
            self.volume.rename(Ino(one.0), name, Ino(other.0), new, flags, wait)
        });
        let possible = self.model.can_exchange(one, other);
        assert_eq!(exchanged.is_ok(), possible, "{exchanged:?}");
        if possible {
            self.model.exchange(one, other, Timestamp::default());
        }
    }

    fn link(&mut self, file: u64) {
        let (dir, name) = self.place();
        let linked = self.ask(|wait| self.volume.link(Ino(file), Ino(dir), name.as_bytes(), wait));
        assert_eq!(linked.is_ok(), self.model.find(dir, &name).is_none(), "{linked:?}");
        if linked.is_ok() {
            *self.held.entry(file).or_default() += 1;
            self.model.link(file, (dir, &name), Timestamp::default());
        }
    }

    /// Removes a name; a file may be held open by it and stay as a ghost.
    fn remove(&mut self) {
        let (dir, name) = self.place();
        let found = self.model.find(dir, &name);
        let is_dir = found.is_some_and(|ino| self.model.live[&ino].is_dir());
        let is_file = found.is_some_and(|ino| self.model.live[&ino].bytes().is_some());
        let ghost = found.filter(|_| is_file && self.below(3) == 0);
        if let Some(ino) = ghost {
            let flags = OpenFlags::default();
            self.ask(|wait| self.volume.open_file(Ino(ino), flags, ROOT, wait)).unwrap();
        }
        let removed = self.ask(|wait| match is_dir {
            true => self.volume.rmdir(Ino(dir), name.as_bytes(), wait),
            false => self.volume.unlink(Ino(dir), name.as_bytes(), wait),
        });
        let possible = found.is_some_and(|ino| !is_dir || self.model.is_empty_dir(ino));
        assert_eq!(removed.is_ok(), possible, "{removed:?}");
        let last = possible && self.model.remove(dir, &name, Timestamp::default());
        match (found, ghost) {
            (Some(ino), Some(_)) if last => self.ghosts.push(ino),
            (_, Some(ino)) => self.volume.release(Ino(ino), false),
            (Some(ino), None) if last => self.forget(ino),
            _ => {}
        }
    }

    fn forget(&mut self, ino: u64) {
        if let Some(count) = self.held.remove(&ino) {
            self.volume.forget(Ino(ino), count);
        }
        self.model.ghosts.remove(&ino);
    }

    /// Removed files that are open can be read and written until they are closed.
    fn use_ghosts(&mut self) {
        let Some(ghost) = self.ghosts.pop() else { return };
        self.write(ghost);
        let wanted = Arc::clone(self.model.get(ghost).bytes().unwrap());
        self.assert_bytes(ghost, 0, &wanted);
        self.volume.release(Ino(ghost), false);
        self.forget(ghost);
    }

    fn attributes(&mut self, file: u64) {
        let (name, number) = (format!("user.{}", self.below(3)), self.below(3000));
        let ino = Ino(file);
        match self.below(3) {
            0 => {
                let mode = Some(number as u32 & 0o777);
                let change = SetAttr { mode, ..SetAttr::default() };
                self.ask(|wait| self.volume.setattr(ino, &change, ROOT, wait)).unwrap();
                let entry = self.model.get(file);
                entry.mode = entry.mode & MODE_TYPE | number as u32 & 0o777;
            }
            1 => {
                let value = noise(number as u64, number);
                let set = |wait| {
                    let (name, any) = (name.as_bytes(), XattrMode::Any);
                    self.volume.setxattr(ino, name, &value, any, wait)
                };
                self.ask(set).unwrap();
                self.model.get(file).xattrs.insert(name, value);
            }
            _ => {
                let removed = self.ask(|wait| self.volume.removexattr(ino, name.as_bytes(), wait));
                let known = self.model.get(file).xattrs.remove(&name).is_some();
                assert_eq!(removed.is_ok(), known, "{removed:?}");
            }
        }
    }

    /// Copies a file over another, or the file that all write: then the own region must be right.
    fn copy_whole(&mut self, to: u64) {
        let common = self.places.common;
        let from = if self.below(3) == 0 { common } else { self.file().unwrap() };
        let copied = self
            .ask(|wait| self.volume.copy_range((Ino(from), 0), (Ino(to), 0), 1 << 40, ROOT, wait));
        if from == to {
            let empty = self.model.get(to).bytes().unwrap().is_empty();
            return assert_eq!(copied.is_ok(), empty, "{copied:?}");
        }
        let mut source = Arc::clone(self.model.get(from).bytes().unwrap());
        if from == common {
            // The rest is as the others have it; from now on it is this file's.
            let found = self.volume.read(Ino(to), 0, THREADS * REGION_BYTES).unwrap();
            let start = self.number * REGION_BYTES;
            assert!(found[start..start + REGION_BYTES] == source[..], "the copied region");
            source = Arc::new(found);
        }
        assert_eq!(copied.unwrap(), source.len() as u64);
        if !source.is_empty() {
            self.model.write(to, 0, &source, Timestamp::default());
        }
    }

    /// Copies a range between own files and the own region of the file that all write.
    fn copy_range(&mut self, file: u64) {
        let common = self.places.common;
        let start = self.number * REGION_BYTES;
        let into_region = self.below(2) == 0;
        let at = self.below(REGION_BYTES - 1);
        let len = 1 + self.below(REGION_BYTES - at - 1);
        let inside = (start + at) % CHUNK_BYTES;
        let other = self.below(8) * CHUNK_BYTES + inside;
        let (region_at, file_at) = ((start + at) as u64, other as u64);
        let copied = self.ask(|wait| match into_region {
            true => {
                let (from, to) = (Ino(file), Ino(common));
                self.volume.copy_range((from, file_at), (to, region_at), len as u64, ROOT, wait)
            }
            false => {
                let (from, to) = (Ino(common), Ino(file));
                self.volume.copy_range((from, region_at), (to, file_at), len as u64, ROOT, wait)
            }
        });
        let copied = copied.unwrap() as usize;
        let source =
            Arc::clone(self.model.get(if into_region { file } else { common }).bytes().unwrap());
        let from = if into_region { other } else { at };
        let wanted = len.min(source.len().saturating_sub(from));
        assert_eq!(copied, wanted);
        if copied != 0 {
            let bytes = &source[from..from + copied];
            let (to, place) = if into_region { (common, at) } else { (file, other) };
            self.model.write(to, place, bytes, Timestamp::default());
        }
    }

    fn allocate(&mut self, file: u64) {
        let (offset, length) = (self.below(50_000), 1 + self.below(20_000));
        let keep_size = self.below(2) == 0;
        let (ino, how) = match self.below(3) {
            0 => (file, Allocate::Punch),
            1 => (file, Allocate::Zero { keep_size }),
            _ => (file, Allocate::Reserve { keep_size }),
        };
        let (at, count) = (offset as u64, length as u64);
        self.ask(|wait| self.volume.allocate(Ino(ino), at, count, how, ROOT, wait)).unwrap();
        self.model.change(file, Timestamp::default(), |bytes| {
            let grows = !matches!(
                how,
                Allocate::Punch
                    | Allocate::Zero { keep_size: true }
                    | Allocate::Reserve { keep_size: true }
            );
            if grows {
                bytes.resize(bytes.len().max(offset + length), 0);
            }
            let end = bytes.len().min(offset + length);
            if !matches!(how, Allocate::Reserve { .. }) && offset < end {
                bytes[offset..end].fill(0);
            }
        });
    }

    /// Writes or punches within the own region of the file that all write.
    fn write_region(&mut self) {
        let common = self.places.common;
        let at = self.below(REGION_BYTES - 1);
        let len = 1 + self.below(REGION_BYTES - at - 1);
        let offset = (self.number * REGION_BYTES + at) as u64;
        let bytes = match self.below(4) {
            0 => {
                let (length, how) = (len as u64, Allocate::Punch);
                let punch =
                    |wait| self.volume.allocate(Ino(common), offset, length, how, ROOT, wait);
                self.ask(punch).unwrap();
                vec![0; len]
            }
            _ => {
                let bytes = noise(self.random.next_u64(), len);
                let write = |wait| self.volume.write(Ino(common), offset, &bytes, false, wait);
                self.ask(write).unwrap();
                bytes
            }
        };
        self.model.write(common, at, &bytes, Timestamp::default());
        let region = Arc::clone(self.model.get(common).bytes().unwrap());
        self.assert_bytes(common, self.number * REGION_BYTES, &region);
    }

    fn assert_bytes(&self, ino: u64, offset: usize, wanted: &[u8]) {
        let found = self.volume.read(Ino(ino), offset as u64, wanted.len()).unwrap();
        assert!(found == wanted, "thread {}: the bytes of inode {ino}", self.number);
    }

    /// Reads all that is the thread's own.
    fn compare(&self) {
        for (&ino, entry) in &self.model.live {
            match &entry.body {
                Body::File(bytes) if !self.places.is_shared(ino) => {
                    self.assert_bytes(ino, 0, bytes)
                }
                Body::Dir(names) => {
                    let mut found = BTreeMap::new();
                    let list = |item: DirItem| {
                        let name = String::from_utf8(item.name).unwrap();
                        if name.starts_with(&prefix(self.number)) {
                            assert!(found.insert(name, item.ino.0).is_none(), "a name twice");
                        }
                        true
                    };
                    let mut list = list;
                    self.volume.readdir(Ino(ino), 0, &mut list).unwrap();
                    assert_eq!(&found, names, "directory {ino}");
                }
                Body::Link(target) => {
                    assert_eq!(self.volume.readlink(Ino(ino)).unwrap(), target.as_bytes());
                }
                Body::File(_) | Body::Node => {}
            }
        }
    }
}

/// Has some syncs leave an image of what a power loss could make of the disk there.
fn watch(disk: &SimDisk, stamps: &Arc<AtomicU64>, seed: u64) -> Arc<Mutex<Vec<Image>>> {
    let images: Arc<Mutex<Vec<Image>>> = Arc::default();
    let (kept, stamps, random) = (Arc::clone(&images), Arc::clone(stamps), SimRng::new(seed));
    disk.set_hook(Some(Box::new(move |disk, event| {
        let number = random.next_u64();
        if !number.is_multiple_of(17) {
            return;
        }
        let keep = match (number >> 8) % 4 {
            0 => Keep::Nothing,
            1 => Keep::All,
            _ => Keep::Random(number),
        };
        let before = stamps.load(SeqCst);
        let disk = disk.crash(keep);
        let after = stamps.fetch_add(1, SeqCst);
        let label = format!("{:?} a sync of {:?}, {keep:?}", event.moment, event.path);
        let mut kept = kept.lock();
        if kept.len() == IMAGES_MAX {
            kept.remove((number >> 16) as usize % IMAGES_MAX);
        }
        kept.push(Image { disk, before, after, label });
    })));
    images
}

/// The numbers of a thread's states that an image may show: equal, begun before the image, and
/// with all that was over when an fsync began that was over before the image.
fn candidates(diary: &Diary, part: &Snapshot, image: &Image, all: &[Diary]) -> Vec<usize> {
    let finished = all.iter().flat_map(|diary| &diary.fsyncs).filter(|sync| sync.1 < image.before);
    let durable = finished.map(|sync| sync.0).max().unwrap_or(0);
    let oldest = diary.states.iter().rposition(|past| past.end < durable).unwrap_or(0);
    let states = diary.states.iter().enumerate().skip(oldest);
    let fitting = states.filter(|(_, past)| past.start <= image.after && past.state == *part);
    fitting.map(|(number, _)| number).collect()
}

/// Judges an image; what is found in it is what the next round begins with.
fn judge(image: &Image, diaries: &[Diary], places: &Places, clock: &SimClock, read_data: bool) {
    let label = &image.label;
    assert_clean(&image.disk, clock, read_data, label);
    let volume = open(&image.disk, clock, options());
    let parts = places.parts(&extract(&volume), label);
    let fitting: Vec<Vec<usize>> = (diaries.iter().zip(&parts))
        .map(|(diary, part)| candidates(diary, part, image, diaries))
        .collect();
    for (number, fitting) in fitting.iter().enumerate() {
        if fitting.is_empty() {
            let newest = &diaries[number].states.last().unwrap().state;
            let ever = diaries[number].states.iter().rposition(|past| past.state == parts[number]);
            let wrong: Vec<_> =
                parts[number].iter().filter(|(ino, e)| newest.get(ino) != Some(e)).collect();
            panic!("{label}: thread {number}: state {ever:?}; unlike the newest: {wrong:.300?}");
        }
    }
    // The oldest states that fit, until none lacks what was over before another's newest began.
    let mut chosen = vec![0; THREADS];
    let state = |number: usize, chosen: &[usize]| fitting[number][chosen[number]];
    while let Some((one, other)) =
        (0..THREADS * THREADS).map(|pair| (pair / THREADS, pair % THREADS)).find(|&(one, other)| {
            let newest = &diaries[one].states[state(one, &chosen)];
            let lacking = diaries[other].states.get(state(other, &chosen) + 1);
            lacking.is_some_and(|lacking| lacking.end < newest.start)
        })
    {
        chosen[other] += 1;
        assert!(
            chosen[other] < fitting[other].len(),
            "{label}: thread {one} is ahead of thread {other} by a change that came first"
        );
    }
}

/// Runs all threads once, and answers what they saw and what the syncs left.
fn round(
    (disk, clock, volume): (&SimDisk, &SimClock, &Volume),
    places: &Places,
    seed: u64,
) -> (Vec<Diary>, Vec<Image>, AtomicU64) {
    let stamps = Arc::new(AtomicU64::new(1));
    let parts = places.parts(&extract(volume), "opened");
    let images = watch(disk, &stamps, seed);
    let diaries = std::thread::scope(|scope| {
        let work = |(number, part): (usize, Snapshot)| {
            let first = Past { start: 0, end: 0, state: part.clone() };
            let worker = Worker {
                number,
                volume,
                clock,
                places,
                stamps: &stamps,
                random: SimRng::new(seed.wrapping_mul(31) + number as u64),
                model: Model::of(part),
                held: BTreeMap::new(),
                ghosts: Vec::new(),
                diary: Diary { states: vec![first], fsyncs: Vec::new() },
            };
            scope.spawn(move || worker.work(STEPS))
        };
        let threads: Vec<_> = parts.into_iter().enumerate().map(work).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    disk.set_hook(None);
    let images = std::mem::take(&mut *images.lock());
    (diaries, images, AtomicU64::new(stamps.load(SeqCst)))
}

/// Some rounds on one volume, each on what the one before has left.
fn rounds(seed: u64) {
    let clock = SimClock::new();
    let mut disk = SimDisk::new();
    create(&disk, &clock);
    let volume = open(&disk, &clock, options());
    let places = Places::make(&volume);
    volume.close().unwrap();
    drop(volume);
    let random = SimRng::new(seed);
    for number in 0..ROUNDS {
        let volume = open(&disk, &clock, crowded());
        let (diaries, mut images, stamps) =
            round((&disk, &clock, &volume), &places, random.next_u64());
        let label = |what: &str| format!("round {number}, {what}");
        let newest: Vec<&Snapshot> =
            diaries.iter().map(|diary| &diary.states.last().unwrap().state).collect();
        let state = extract(&volume);
        let parts = places.parts(&state, &label("running"));
        assert!(parts.iter().eq(newest), "{}", label("running"));
        // One more power loss when all are done, with nothing asked for.
        let keep = Keep::Random(random.next_u64());
        let stamp = stamps.load(SeqCst);
        let crashed = disk.crash(keep);
        images.push(Image { disk: crashed, before: stamp, after: stamp, label: label("done") });
        for (turn, image) in images.iter().enumerate() {
            judge(image, &diaries, &places, &clock, turn % 3 == 0);
        }
        if random.next_u64().is_multiple_of(2) {
            let image = &images[random.next_u64() as usize % images.len()];
            drop(volume);
            disk = image.disk.crash(Keep::All);
            continue;
        }
        volume.close().unwrap();
        drop(volume);
        assert_clean(&disk, &clock, true, &label("closed"));
        let volume = open(&disk, &clock, options());
        assert!(extract(&volume) == state, "{}", label("closed"));
        assert_eq!(volume.status().unwrap().files, state.len() as u64);
        volume.close().unwrap();
    }
}

#[test]
fn a_crowd_leaves_what_its_threads_did() {
    let cases = u64::from(crate::testing::config(10).cases);
    for case in 0..cases {
        let seed = crate::testing::seed().wrapping_mul(1_000_003) + case;
        limited(move || {
            println!("case {case}, seed {seed}");
            rounds(seed);
        });
    }
}
