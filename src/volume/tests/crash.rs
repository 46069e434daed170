//! Power losses: random work on a volume, a crash at every sync, and each image opened again.
//!
//! Owns the [`Worker`], which does the same on a volume and on a [`Model`], and the judgement of
//! an image: it opens, `check` finds nothing, its state is the model's at one moment that is
//! neither older than the last finished sync nor in the future, and it can be written again.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::model::{Body, Entry, Model, Snapshot};
use super::*;
use crate::check;
use crate::sys::Timestamp;
use crate::sys::overlay::OverlayDisk;
use crate::sys::sim::{Keep, Moment};

/// How many kinds of steps there are.
pub(super) const KINDS: u8 = 23;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// One step of the work: what to do, and numbers that choose with what.
type Step = (u8, u16, u16, u16);

/// Images that wait to be judged: the disk, what was kept, and the number of the sync.
type Images = Arc<Mutex<Vec<(SimDisk, String)>>>;

/// Work on a volume and on its model.
pub(super) struct Worker {
    pub(super) disk: SimDisk,
    pub(super) clock: SimClock,
    pub(super) volume: Arc<Volume>,
    pub(super) model: Model,
    /// References that the kernel would hold, by inode.
    held: BTreeMap<u64, u64>,
    /// Removed files that are still open.
    ghosts: Vec<u64>,
    /// The states since the last finished sync, that one first.
    history: Vec<Snapshot>,
    /// The states at which snapshots were made, by their names.
    copies: BTreeMap<String, Snapshot>,
    /// The snapshot that this step makes or deletes, and whether it deletes it.
    unsure: Option<(String, bool)>,
    /// Snapshots that were made.
    made: u64,
    images: Images,
    pub(super) judged: u64,
    /// How many more crashes of crashed images to try.
    depth: u32,
}

/// Limits so small that packs fill and dirty bytes are flushed all the time.
fn small() -> OpenOptions {
    OpenOptions { pack_bytes_max: 80 << 10, dirty_bytes_max: 60_000, ..options() }
}

/// The same; with some seeds images of the metadata are made all the time too.
fn small_of(seed: u64) -> OpenOptions {
    let image_bytes_min = if seed.is_multiple_of(3) { 3000 } else { 8 << 20 };
    OpenOptions { image_bytes_min, ..small() }
}

/// All that a volume holds, found by its names.
pub(super) fn extract(volume: &Volume) -> Snapshot {
    extract_below(volume, Ino::ROOT)
}

/// The number that an inode of a snapshot has where it lives.
fn living(ino: Ino) -> u64 {
    if ino.0 & SNAPSHOTS.0 == 0 { ino.0 } else { ino.0 & ((1 << 41) - 1) }
}

/// All that is below a directory, which may be that of a snapshot.
pub(super) fn extract_below(volume: &Volume, root: Ino) -> Snapshot {
    let mut found = Snapshot::new();
    let mut todo = vec![root];
    while let Some(ino) = todo.pop() {
        if found.contains_key(&living(ino)) {
            continue;
        }
        let attr = volume.getattr(ino).unwrap();
        let body = match attr.mode & MODE_TYPE {
            MODE_DIR => {
                let mut names = BTreeMap::new();
                volume
                    .readdir(ino, 0, &mut |item| {
                        let name = String::from_utf8(item.name).unwrap();
                        if name != "." && name != ".." {
                            todo.push(item.ino);
                            assert!(names.insert(name, living(item.ino)).is_none(), "a name twice");
                        }
                        true
                    })
                    .unwrap();
                Body::Dir(names)
            }
            MODE_SYMLINK => Body::Link(String::from_utf8(volume.readlink(ino).unwrap()).unwrap()),
            mode if mode != MODE_FILE => Body::Node,
            _ => {
                let bytes = volume.read(ino, 0, attr.size as usize + 1).unwrap();
                assert_eq!(bytes.len() as u64, attr.size);
                Body::File(Arc::new(bytes))
            }
        };
        let mut xattrs = BTreeMap::new();
        for name in volume.listxattr(ino).unwrap() {
            let value = volume.getxattr(ino, &name).unwrap();
            xattrs.insert(String::from_utf8(name).unwrap(), value);
        }
        let Attr { mode, uid, nlink, mtime, ctime, .. } = attr;
        found.insert(living(ino), Entry { body, mode, uid, nlink, mtime, ctime, xattrs });
    }
    found
}

/// What hangs below an inode, by path, without numbers, counts and the times that a move changes.
fn shape(state: &Snapshot, top: u64) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![(String::new(), top)];
    while let Some((path, ino)) = todo.pop() {
        let Entry { body, mode, uid, mtime, xattrs, .. } = &state[&ino];
        let body = match body {
            Body::Dir(names) => {
                todo.extend(names.iter().map(|(name, &ino)| (format!("{path}/{name}"), ino)));
                "a directory".to_owned()
            }
            other => format!("{other:?}"),
        };
        found.insert(path, format!("{body} {mode:o} {uid} {mtime:?} {xattrs:?}"));
    }
    found
}

/// What a snapshot holds.
pub(super) fn extract_snapshot(volume: &Volume, name: &[u8]) -> Snapshot {
    let root = volume.lookup(SNAPSHOTS, name).unwrap();
    extract_below(volume, root.ino)
}

/// All snapshots of a volume, by name.
fn extract_snapshots(volume: &Volume) -> BTreeMap<String, Snapshot> {
    let name = |info: &SnapshotInfo| String::from_utf8(info.name.clone()).unwrap();
    let snapshots = volume.snapshots();
    snapshots.iter().map(|info| (name(info), extract_snapshot(volume, &info.name))).collect()
}

/// Lets `check` look at a disk, without changing it.
pub(super) fn assert_clean(disk: &SimDisk, clock: &SimClock, read_data: bool, label: &str) {
    let overlay = OverlayDisk::new(Arc::new(disk.clone()));
    let clock = Arc::new(clock.clone());
    let report = check::run(Arc::new(overlay), clock, read_data, &mut |_| {})
        .unwrap_or_else(|error| panic!("{label}: check fails: {error}"));
    assert!(report.findings.is_empty(), "{label}: {:?}", report.findings);
}

/// Has every sync leave images of what a power loss could make of the disk there.
///
/// Nothing kept before a sync is the image after the sync before; all kept after it is that before.
fn watch(disk: &SimDisk, images: &Images, seed: u64) {
    let images = Arc::clone(images);
    disk.set_hook(Some(Box::new(move |disk, event| {
        let random = Keep::Random(seed.wrapping_mul(1_000_003) + event.number);
        let kept = match event.moment {
            Moment::Before => vec![Keep::All, random],
            Moment::After => vec![Keep::Nothing],
        };
        let mut images = images.lock();
        for keep in kept {
            let label = format!("{:?} sync {} of {:?}", event.moment, event.number, event.path);
            images.push((disk.crash(keep), format!("{label}, {keep:?}")));
        }
    })));
}

impl Worker {
    pub(super) fn new(seed: u64) -> Worker {
        let (disk, clock) = (SimDisk::new(), SimClock::new());
        let tree_copies = if seed.is_multiple_of(2) { 2 } else { 1 };
        create_with(&disk, &clock, &CreateOptions { tree_copies, ..CreateOptions::default() });
        Worker::on(disk, clock, seed, 1)
    }

    /// Opens what is on `disk` and goes on from there.
    pub(super) fn on(disk: SimDisk, clock: SimClock, seed: u64, depth: u32) -> Worker {
        let volume = open(&disk, &clock, small_of(seed));
        let state = extract(&volume);
        let copies = extract_snapshots(&volume);
        let images = Images::default();
        watch(&disk, &images, seed);
        Worker {
            disk,
            clock,
            volume,
            model: Model::of(state.clone()),
            held: BTreeMap::new(),
            ghosts: Vec::new(),
            history: vec![state],
            made: copies.len() as u64 * 1000,
            copies,
            unsure: None,
            images,
            judged: 0,
            depth,
        }
    }

    /// One step; afterwards volume and model are in the same state, and all images are judged.
    pub(super) fn step(&mut self, step: Step) {
        self.advance();
        let finished = self.act(step);
        self.settle(finished);
    }

    /// Lets time go on.
    pub(super) fn advance(&self) {
        self.clock.advance(std::time::Duration::from_millis(1500));
    }

    /// Judges all images of a step; `finished` says that it was a sync, and has ended well.
    pub(super) fn settle(&mut self, finished: bool) {
        self.judge_images();
        if let Some((name, true)) = self.unsure.take() {
            self.copies.remove(&name);
        }
        if finished {
            self.history = vec![self.model.live.clone()];
            let image = self.disk.crash(Keep::Nothing);
            self.judge(&image, "behind a finished sync");
        } else if self.history.last() != Some(&self.model.live) {
            self.history.push(self.model.live.clone());
        }
    }

    /// Closes the volume, which is like the model then, and stays so.
    pub(super) fn end(&mut self) {
        assert_eq!(extract(&self.volume), self.model.live);
        self.volume.close().unwrap();
        self.judge_images();
        self.history = vec![self.model.live.clone()];
        let image = self.disk.crash(Keep::Nothing);
        self.judge(&image, "behind a close");
    }

    fn judge_images(&mut self) {
        let images = std::mem::take(&mut *self.images.lock());
        for (image, label) in images {
            self.judge(&image, &label);
        }
    }

    fn judge(&mut self, image: &SimDisk, label: &str) {
        self.judged += 1;
        let turn = self.judged;
        assert_clean(image, &self.clock, turn.is_multiple_of(8), label);
        let volume = open(image, &self.clock, small());
        let state = extract(&volume);
        if !self.history.contains(&state) {
            let newest = self.history.last().unwrap();
            let wrong: Vec<_> =
                state.iter().filter(|(ino, e)| newest.get(ino) != Some(e)).collect();
            let wrong: String = format!("{wrong:?}").chars().take(300).collect();
            panic!("{label}: a state that never was; unlike the newest: {wrong}");
        }
        self.judge_snapshots(&volume, label);
        if turn.is_multiple_of(9) {
            // The packs alone say the same.
            let image = image.crash(Keep::All);
            super::rebuild::lose_metadata(&image);
            let rebuilt = rebuild_metadata(&(Arc::new(image.clone()) as Arc<dyn Disk>)).unwrap();
            assert_eq!(rebuilt.findings, [], "{label}");
            let volume = open(&image, &self.clock, small());
            assert_eq!(extract(&volume), state, "{label}");
            self.judge_snapshots(&volume, label);
        }
        if turn.is_multiple_of(5) {
            let make = Make { mode: MODE_FILE | 0o600, rdev: 0 };
            let new = volume.mknod(Ino::ROOT, b"after", &make, ROOT, Wait::Yes).unwrap().ino;
            assert!(!state.contains_key(&new.0), "{label}: inode {} is used again", new.0);
            volume.write(new, 0, &noise(turn, 9000), false, Wait::Yes).unwrap();
            volume.fsync(new, Wait::Yes).unwrap();
            drop(volume);
            let volume = open(&image.crash(Keep::Nothing), &self.clock, small());
            assert_eq!(volume.read(new, 0, 10_000).unwrap(), noise(turn, 9000), "{label}");
            return;
        }
        drop(volume);
        if 0 < self.depth && turn.is_multiple_of(23) {
            // Another crash, soon after this one.
            let clock = SimClock::new();
            clock.advance(crate::sys::Clock::monotonic(&self.clock));
            let mut again = Worker::on(image.crash(Keep::All), clock, turn, self.depth - 1);
            for number in 0..6 {
                let pick = (turn * 31 + number * 7919) as u16;
                again.step(((pick % 20) as u8, pick, pick / 3, pick / 7));
            }
            again.step((12, 0, 0, 0));
        }
    }

    /// Each snapshot reads as the state at which it was made; none is missing, and none is back.
    fn judge_snapshots(&self, volume: &Volume, label: &str) {
        let mut found = extract_snapshots(volume);
        for (name, copy) in &self.copies {
            match found.remove(name) {
                Some(state) => assert!(state == *copy, "{label}: snapshot {name} is another"),
                None => {
                    let unsure = self.unsure.as_ref().is_some_and(|(unsure, _)| unsure == name);
                    assert!(unsure, "{label}: snapshot {name} is gone");
                }
            }
        }
        assert!(found.is_empty(), "{label}: snapshots that never were: {:?}", found.keys());
    }

    fn snapshot(&mut self) {
        self.made += 1;
        let name = format!("s{}", self.made);
        self.copies.insert(name.clone(), self.model.live.clone());
        self.volume.snapshot_create(name.as_bytes()).unwrap();
        self.unsure = Some((name, false));
    }

    fn delete_snapshot(&mut self, number: u16) -> bool {
        let at = usize::from(number) % self.copies.len().max(1);
        let Some(name) = self.copies.keys().nth(at).cloned() else { return false };
        self.volume.snapshot_delete(name.as_bytes()).unwrap();
        self.unsure = Some((name, true));
        true
    }

    /// Restores the root, or a name in it; what it was is compared, what it is becomes the model.
    fn restore(&mut self, a: u16, b: u16, c: u16) -> bool {
        let at = usize::from(a) % self.copies.len().max(1);
        let Some((snapshot, copy)) = self.copies.iter().nth(at) else { return false };
        let Body::Dir(names) = &copy[&Ino::ROOT.0].body else { panic!("the root") };
        let (path, old) = match names.iter().nth(usize::from(b) % names.len().max(1)) {
            Some((name, ino)) if !c.is_multiple_of(3) => (name.as_str(), *ino),
            _ => ("", Ino::ROOT.0),
        };
        let mut renewed = 0;
        self.volume
            .restore(snapshot.as_bytes(), path.as_bytes(), &mut |_, _| renewed += 1)
            .unwrap();
        assert!(path.is_empty() || renewed == 1);
        let state = extract(&self.volume);
        let new = match path {
            "" => Ino::ROOT.0,
            name => Model::of(state.clone()).find(Ino::ROOT.0, name).unwrap(),
        };
        assert_eq!(shape(&state, new), shape(copy, old));
        let gone: Vec<u64> =
            self.model.live.keys().filter(|ino| !state.contains_key(ino)).copied().collect();
        for ino in gone {
            if let Some(count) = self.held.remove(&ino) {
                self.volume.forget(Ino(ino), count);
            }
        }
        self.history.push(state.clone());
        self.model.live = state;
        true
    }

    fn pick(from: &[u64], number: u16) -> Option<u64> {
        from.get(usize::from(number) % from.len().max(1)).copied()
    }

    /// Does one step on both sides; answers whether a sync finished.
    fn act(&mut self, (what, a, b, c): Step) -> bool {
        let dirs = self.model.dirs();
        let dir = Self::pick(&dirs, a).unwrap();
        let name = NAMES[usize::from(b) % NAMES.len()];
        let file = Self::pick(&self.model.files(), a);
        match (what, file) {
            (0..=2, _) => self.make(dir, name, what, c),
            (3..=5, Some(file)) => self.write(file, b, c),
            (6, Some(file)) => self.truncate(file, b),
            (7..=8, _) => {
                let to = Self::pick(&dirs, c).unwrap();
                let to = (to, NAMES[usize::from(c / 7) % NAMES.len()]);
                match c % 5 {
                    0 => self.exchange((dir, name), to),
                    kind => self.rename((dir, name), to, kind == 1),
                }
            }
            (9, Some(file)) => {
                self.link(file, (Self::pick(&dirs, c).unwrap(), name));
            }
            (10, _) => self.remove(dir, name, c % 3 == 0),
            (11, _) => self.attributes(a, b, c),
            (12, _) => {
                self.volume.sync().unwrap();
                return true;
            }
            (13, Some(file)) => {
                self.volume.fsync(Ino(file), Wait::Yes).unwrap();
                return true;
            }
            (14, Some(from)) => {
                let to = Self::pick(&self.model.files(), c).unwrap();
                self.copy(from, to);
            }
            (15, _) => self.take_in(),
            (16, _) => {
                if let Some(ghost) = self.ghosts.pop() {
                    self.volume.release(Ino(ghost), false);
                    self.forget(ghost);
                }
            }
            (17, _) => {
                if let Some(&ghost) = self.ghosts.last() {
                    self.write(ghost, b, c);
                }
            }
            (18, Some(file)) => self.flush(file),
            (19, _) => {
                self.snapshot();
                return true;
            }
            (20, _) => return self.delete_snapshot(a),
            (21, _) => return self.restore(a, b, c),
            (22, _) => {
                self.volume.collect(Collect { urgent: true, ..Collect::default() }).unwrap();
                return true;
            }
            _ => {}
        }
        false
    }

    pub(super) fn take_in(&self) {
        self.volume.meta.take_in().unwrap();
        self.volume.store.save_index().unwrap();
        self.volume.keep_second_lives();
    }

    pub(super) fn flush(&self, file: u64) {
        let node = self.volume.nodes.get(Ino(file));
        self.volume.flush_soon(&node);
        self.volume.nodes.put(node);
    }

    fn now(&self) -> Timestamp {
        crate::sys::Clock::now(&self.clock)
    }

    fn forget(&mut self, ino: u64) {
        if let Some(count) = self.held.remove(&ino) {
            self.volume.forget(Ino(ino), count);
        }
        self.model.ghosts.remove(&ino);
    }

    pub(super) fn make(&mut self, dir: u64, name: &str, what: u8, number: u16) {
        let (at, bytes) = (Ino(dir), name.as_bytes());
        let (made, body, mode) = match what {
            0 => {
                let make = Make { mode: MODE_FILE | 0o640, rdev: 0 };
                let body = Body::File(Arc::default());
                (self.volume.mknod(at, bytes, &make, ROOT, Wait::Yes), body, make.mode)
            }
            1 => {
                let made = self.volume.mkdir(at, bytes, 0o750, ROOT, Wait::Yes);
                (made, Body::Dir(BTreeMap::new()), MODE_DIR | 0o750)
            }
            _ => {
                let target = format!("to/{number}");
                let made = self.volume.symlink(at, bytes, target.as_bytes(), ROOT, Wait::Yes);
                (made, Body::Link(target), MODE_SYMLINK | 0o777)
            }
        };
        let attr = match made {
            Ok(attr) => attr,
            Err(Error::Exists) => return assert!(self.model.find(dir, name).is_some()),
            Err(error) => panic!("{error}"),
        };
        *self.held.entry(attr.ino.0).or_default() += 1;
        let (now, nlink) = (self.now(), if what == 1 { 2 } else { 1 });
        let xattrs = BTreeMap::new();
        let entry = Entry { body, mode, uid: 0, nlink, mtime: now, ctime: now, xattrs };
        self.model.add((dir, name), attr.ino.0, entry);
    }

    pub(super) fn write(&mut self, ino: u64, b: u16, c: u16) {
        let bytes = noise(u64::from(b ^ c), usize::from(c % 16_000));
        let offset = usize::from(b % 40_000);
        self.volume.write(Ino(ino), offset as u64, &bytes, false, Wait::Yes).unwrap();
        let now = self.now();
        if !bytes.is_empty() {
            self.model.write(ino, offset, &bytes, now);
        }
        let attr = self.volume.getattr(Ino(ino)).unwrap();
        assert_eq!(attr.size, self.model.get(ino).bytes().unwrap().len() as u64);
    }

    pub(super) fn truncate(&mut self, ino: u64, size: u16) {
        let change = SetAttr { size: Some(size.into()), ..SetAttr::default() };
        self.volume.setattr(Ino(ino), &change, ROOT, Wait::Yes).unwrap();
        let now = self.now();
        // A size that stays is no change.
        if self.model.get(ino).bytes().unwrap().len() != usize::from(size) {
            self.model.truncate(ino, size.into(), now);
        }
    }

    pub(super) fn exchange(&mut self, one: (u64, &str), other: (u64, &str)) {
        let flags = RenameFlags { exchange: true, ..RenameFlags::default() };
        let (dir, new_dir) = (Ino(one.0), Ino(other.0));
        let (name, new) = (one.1.as_bytes(), other.1.as_bytes());
        let moved = self.volume.rename(dir, name, new_dir, new, flags, Wait::Yes);
        assert_eq!(moved.is_ok(), self.model.can_exchange(one, other), "{moved:?}");
        if moved.is_ok() {
            let now = self.now();
            self.model.exchange(one, other, now);
        }
    }

    pub(super) fn rename(&mut self, from: (u64, &str), to: (u64, &str), whiteout: bool) {
        let whiteout = whiteout.then_some(ROOT);
        let flags = RenameFlags { whiteout, ..RenameFlags::default() };
        let (dir, new_dir) = (Ino(from.0), Ino(to.0));
        let (name, new) = (from.1.as_bytes(), to.1.as_bytes());
        let moved = self.volume.rename(dir, name, new_dir, new, flags, Wait::Yes);
        assert_eq!(moved.is_ok(), self.model.can_rename(from, to), "{moved:?}");
        if moved.is_ok() {
            let now = self.now();
            let stays = self.model.find(from.0, from.1) == self.model.find(to.0, to.1);
            if let Some(gone) = self.model.rename(from, to, now) {
                self.forget(gone);
            }
            if whiteout.is_some() && !stays {
                let ino = self.volume.lookup(dir, name).unwrap().ino.0;
                *self.held.entry(ino).or_default() += 1;
                let (body, mode, xattrs) = (Body::Node, MODE_WHITEOUT, BTreeMap::new());
                let entry = Entry { body, mode, uid: 0, nlink: 1, mtime: now, ctime: now, xattrs };
                self.model.add(from, ino, entry);
            }
        }
    }

    pub(super) fn link(&mut self, ino: u64, (dir, name): (u64, &str)) {
        let linked = self.volume.link(Ino(ino), Ino(dir), name.as_bytes(), Wait::Yes);
        assert_eq!(linked.is_ok(), self.model.find(dir, name).is_none(), "{linked:?}");
        if linked.is_ok() {
            *self.held.entry(ino).or_default() += 1;
            let now = self.now();
            self.model.link(ino, (dir, name), now);
        }
    }

    /// Removes a name; a file may be held open by it and stay as a ghost.
    pub(super) fn remove(&mut self, dir: u64, name: &str, keep_open: bool) {
        let found = self.model.find(dir, name);
        let is_dir = found.is_some_and(|ino| self.model.live[&ino].is_dir());
        let is_file = found.is_some_and(|ino| self.model.live[&ino].bytes().is_some());
        let ghost = found.filter(|_| keep_open && is_file);
        if let Some(ino) = ghost {
            self.volume.open_file(Ino(ino), OpenFlags::default(), ROOT, Wait::Yes).unwrap();
        }
        let removed = match is_dir {
            true => self.volume.rmdir(Ino(dir), name.as_bytes(), Wait::Yes),
            false => self.volume.unlink(Ino(dir), name.as_bytes(), Wait::Yes),
        };
        let possible = found.is_some_and(|ino| !is_dir || self.model.is_empty_dir(ino));
        assert_eq!(removed.is_ok(), possible, "{removed:?}");
        if !possible {
            return;
        }
        let now = self.now();
        let last = self.model.remove(dir, name, now);
        match (found, ghost) {
            (Some(ino), Some(_)) if last => self.ghosts.push(ino),
            (_, Some(ino)) => self.volume.release(Ino(ino), false),
            (Some(ino), None) if last => self.forget(ino),
            _ => {}
        }
    }

    pub(super) fn attributes(&mut self, a: u16, b: u16, c: u16) {
        let all = self.model.which(|_| true);
        let ino = Self::pick(&all, a).unwrap();
        let now = self.now();
        let name = format!("user.{}", b % 3);
        let volume = Arc::clone(&self.volume);
        let entry = self.model.get(ino);
        if c.is_multiple_of(3) {
            let (mode, uid) = (Some(u32::from(b) & 0o777), Some(c.into()));
            let change = SetAttr { mode, uid, ..SetAttr::default() };
            volume.setattr(Ino(ino), &change, ROOT, Wait::Yes).unwrap();
            entry.mode = entry.mode & MODE_TYPE | u32::from(b) & 0o777;
            entry.uid = c.into();
        } else if c % 3 == 1 {
            let value = noise(c.into(), usize::from(c % 3000));
            let any = XattrMode::Any;
            volume.setxattr(Ino(ino), name.as_bytes(), &value, any, Wait::Yes).unwrap();
            entry.xattrs.insert(name, value);
        } else {
            let removed = volume.removexattr(Ino(ino), name.as_bytes(), Wait::Yes);
            assert_eq!(removed.is_ok(), entry.xattrs.remove(&name).is_some(), "{removed:?}");
            if removed.is_err() {
                return;
            }
        }
        entry.ctime = now;
    }

    pub(super) fn copy(&mut self, from: u64, to: u64) {
        let source = Arc::clone(self.model.get(from).bytes().unwrap());
        let (before, now) = (self.model.get(to).mtime, self.now());
        match self.volume.copy_range((Ino(from), 0), (Ino(to), 0), 1 << 40, ROOT, Wait::Yes) {
            Ok(copied) => {
                assert_eq!(copied, source.len() as u64);
                let mtime = self.volume.getattr(Ino(to)).unwrap().mtime;
                assert_eq!(mtime, if copied == 0 { before } else { now });
                if copied != 0 {
                    self.model.change(to, now, |bytes| {
                        bytes.resize(bytes.len().max(source.len()), 0);
                        bytes[..source.len()].copy_from_slice(&source);
                    });
                }
            }
            Err(Error::Invalid { .. }) => assert_eq!(from, to, "a copy between files was refused"),
            Err(error) => panic!("{error}"),
        }
    }
}

fn steps(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((0..KINDS, any::<u16>(), any::<u16>(), any::<u16>()), count)
}

proptest! {
    #![proptest_config(crate::testing::config(20))]

    #[test]
    fn a_crash_at_any_sync_leaves_one_moment(steps in steps(10..45), seed in any::<u32>()) {
        let mut worker = Worker::new(seed.into());
        // Enough to work on from the start.
        for step in [(1, 0, 0, 0), (0, 0, 1, 0), (0, 1, 2, 0), (3, 0, 5, 12_000)] {
            worker.step(step);
        }
        for step in steps {
            worker.step(step);
        }
        worker.end();
    }
}

#[test]
fn a_crash_during_mkfs_leaves_a_volume_or_a_place_for_one() {
    let (disk, clock) = (SimDisk::new(), SimClock::new());
    let images = Images::default();
    let mut volumes = 0;
    watch(&disk, &images, crate::testing::seed());
    create(&disk, &clock);
    let mut images = std::mem::take(&mut *images.lock());
    images.push((disk.crash(Keep::Nothing), "finished".to_owned()));
    let count = images.len();
    for (image, label) in images {
        match Volume::open(Arc::new(image.clone()), Arc::new(clock.clone()), small()) {
            Ok(_) => volumes += 1,
            Err(Error::NoVolume) => create(&image, &clock),
            Err(error) => panic!("{label}: {error}"),
        }
        assert_clean(&image, &clock, true, &label);
        let volume = open(&image, &clock, small());
        assert_eq!(extract(&volume).len(), 1, "{label}");
    }
    assert!(0 < volumes && volumes < count, "{volumes} of {count} images are volumes");
}
