//! Failing I/O: whatever call fails, nobody panics or hangs, and what was acknowledged stays.
//!
//! `PYRAMIDFS_CASES_FACTOR=20 cargo test --release --lib faults` fails each of some thousand calls.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::crash::{assert_clean, extract};
use super::*;
use crate::sys::sim::{CallKind, Keep};

/// Packs that fill within the work.
pub(super) fn small() -> OpenOptions {
    OpenOptions { pack_bytes_max: 80 << 10, dirty_bytes_max: 60_000, ..options() }
}

fn name(number: u64) -> String {
    format!("file-{number}")
}

/// Makes, writes and syncs a file.
fn add(volume: &Volume, number: u64) -> Result<(), Error> {
    let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
    let made = volume.mknod(Ino::ROOT, name(number).as_bytes(), &make, ROOT, Wait::Yes)?;
    volume.forget(made.ino, 1);
    volume.write(made.ino, 0, &noise(number, 40_000), false, Wait::Yes)?;
    volume.fsync(made.ino, Wait::Yes)
}

fn check_file(volume: &Volume, number: u64, label: &str) {
    let ino = volume.lookup(Ino::ROOT, name(number).as_bytes()).unwrap().ino;
    volume.forget(ino, 1);
    let bytes = volume.read(ino, 0, 50_000).unwrap_or_else(|error| panic!("{label}: {error}"));
    assert!(bytes == noise(number, 40_000), "{label}: file {number} has other bytes");
}

/// Fails the `n`-th call while files are added; answers whether anything was met.
fn fail(base: &SimDisk, clock: &SimClock, (n, errno, kind): (u64, i32, CallKind)) -> bool {
    let label = format!("call {n} of {kind:?} fails with {errno}");
    let disk = base.crash(Keep::All);
    disk.fail_call(n, errno, kind);
    let opened = Volume::open(Arc::new(disk.clone()), Arc::new(clock.clone()), small());
    let mut met = opened.is_err();
    let mut kept = vec![0];
    if let Ok(volume) = opened {
        for number in 1..6 {
            match add(&volume, number) {
                Ok(()) => kept.push(number),
                Err(error) => {
                    met = true;
                    assert!(!error.to_string().contains('\n'), "{label}: {error}");
                    let full = matches!(error, Error::NoSpace);
                    assert_eq!(full, errno == libc::ENOSPC, "{label}: {error}");
                }
            }
            if number == 3 {
                met |= volume.meta.take_in().is_err();
            }
        }
        disk.clear_failures();
        for &number in &kept {
            check_file(&volume, number, &label);
        }
        match volume.sync() {
            Ok(()) => assert_eq!(extract(&volume).len(), extract(&volume).len()),
            Err(Error::Poisoned { .. }) => {
                assert_ne!(errno, libc::ENOSPC, "{label}: a full disk poisons");
                assert!(matches!(add(&volume, 9), Err(Error::Poisoned { .. })), "{label}");
            }
            Err(error) => panic!("{label}: {error}"),
        }
    }
    let image = disk.crash(Keep::Nothing);
    assert_clean(&image, clock, true, &label);
    let volume = open(&image, clock, small());
    for &number in &kept {
        check_file(&volume, number, &label);
    }
    add(&volume, 10).unwrap();
    met
}

fn fail_each(errno: i32, kind: CallKind) {
    let (disk, clock) = (SimDisk::new(), SimClock::new());
    create(&disk, &clock);
    let volume = open(&disk, &clock, small());
    add(&volume, 0).unwrap();
    volume.close().unwrap();
    drop(volume);
    let met = (1..50).filter(|&n| fail(&disk, &clock, (n, errno, kind))).count();
    assert!(5 < met, "only {met} failures were met");
}

#[test]
fn failing_reads_are_survived() {
    fail_each(libc::EIO, CallKind::Read);
}

#[test]
fn failing_writes_are_survived() {
    fail_each(libc::EIO, CallKind::Write);
}

#[test]
fn failing_syncs_are_survived() {
    fail_each(libc::EIO, CallKind::Sync);
}

#[test]
fn a_disk_that_is_full_for_a_moment_is_survived() {
    fail_each(libc::ENOSPC, CallKind::Write);
}

#[test]
fn after_a_failed_sync_all_changes_are_refused_until_the_volume_is_opened_again() {
    let bench = Bench::new();
    add(&bench.volume, 1).unwrap();
    let ino = bench.create("late");
    bench.disk.fail_call(1, libc::EIO, CallKind::Sync);
    assert!(bench.volume.fsync(ino, Wait::Yes).is_err());
    let poisoned = |result: Result<(), Error>| matches!(result, Err(Error::Poisoned { .. }));
    assert!(poisoned(bench.volume.fsync(ino, Wait::Yes)));
    assert!(poisoned(bench.volume.write(ino, 0, b"x", false, Wait::Yes)));
    assert!(poisoned(bench.volume.unlink(Ino::ROOT, b"late", Wait::Yes)));
    assert!(bench.volume.status().unwrap().poisoned);
    check_file(&bench.volume, 1, "poisoned");
    assert!(bench.volume.close().is_err());
    let volume = open(&bench.disk.crash(Keep::Nothing), &bench.clock, options());
    check_file(&volume, 1, "opened again");
    add(&volume, 2).unwrap();
}

/// How often the work is done in one case, at most; `PYRAMIDFS_CASES_FACTOR` times otherwise.
const ROUNDS_MAX: u64 = 20;

/// More calls than the work has.
const CALLS_MAX: usize = 3000;

/// Names and bytes of all files.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// Work that touches all there is, with what is known of it.
pub(super) struct Work {
    volume: Arc<Volume>,
    /// The states since the last sync that was acknowledged, that one first.
    states: Vec<Files>,
    /// All states there were.
    all: Vec<Files>,
    /// Whether it was told that bytes written to a file are lost.
    lost: bool,
    /// Changes that were refused for want of room.
    refused: u64,
    label: String,
}

impl Work {
    pub(super) fn new(volume: Arc<Volume>, base: &Files, label: &str) -> Work {
        let states = vec![base.clone()];
        Work {
            volume,
            all: states.clone(),
            states,
            lost: false,
            refused: 0,
            label: label.to_owned(),
        }
    }

    /// Whether it was told that bytes are lost.
    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether a change was refused for want of room.
    pub(super) fn is_refused(&self) -> bool {
        0 < self.refused
    }

    pub(super) fn now(&self) -> Files {
        self.states.last().cloned().unwrap_or_default()
    }

    /// Takes the result of a change, which leads to `next`; answers whether it happened.
    fn told(&mut self, result: Result<(), Error>, next: Files) -> bool {
        match result {
            Ok(()) => {
                self.all.push(next.clone());
                self.states.push(next);
                true
            }
            Err(error) => {
                assert!(!error.to_string().contains('\n'), "{}: {error}", self.label);
                let is_full = matches!(error, Error::NoSpace | Error::QuotaReached);
                self.refused += u64::from(is_full);
                false
            }
        }
    }

    /// Syncs a file; answers whether all is durable.
    fn sync(&mut self, name: &str) -> bool {
        match self.ino(name).and_then(|ino| self.volume.fsync(ino, Wait::Yes)) {
            Ok(()) => {
                self.states = vec![self.now()];
                true
            }
            Err(error) => {
                self.lost |= matches!(error, Error::WriteLost { .. });
                false
            }
        }
    }

    /// Whether a volume may hold this: one of the states, but for bytes that are said to be lost.
    fn may_be(&self, found: &Files, states: &[Files]) -> bool {
        // Of such a file each byte is one that stood there once.
        let once = |at: usize, byte: u8| {
            let mut all = self.all.iter().flat_map(Files::values);
            byte == 0 || all.any(|bytes| bytes.get(at) == Some(&byte))
        };
        let fits = |found: &Vec<u8>, right: &Vec<u8>| {
            found == right
                || (self.lost && found.iter().enumerate().all(|(at, &byte)| once(at, byte)))
        };
        states.iter().any(|state| {
            state.keys().eq(found.keys())
                && state.values().zip(found.values()).all(|(right, found)| fits(found, right))
        })
    }

    /// Reads all files, which may fail and not be wrong.
    fn read(&self) {
        let mut found = self.now();
        for (name, bytes) in &mut found {
            let read = self.ino(name).and_then(|ino| self.volume.read(ino, 0, 100_000));
            *bytes = read.unwrap_or_else(|_| bytes.clone());
        }
        let told = self.lost || self.may_be(&found, &[self.now()]);
        // What a flush has dropped is told at the next sync, and not before.
        let untold = Work {
            volume: Arc::clone(&self.volume),
            lost: true,
            refused: 0,
            label: String::new(),
            states: Vec::new(),
            all: self.all.clone(),
        };
        assert!(told || untold.may_be(&found, &[self.now()]), "{}: wrong bytes", self.label);
    }

    fn ino(&self, name: &str) -> Result<Ino, Error> {
        let ino = self.volume.lookup(Ino::ROOT, name.as_bytes())?.ino;
        self.volume.forget(ino, 1);
        Ok(ino)
    }

    pub(super) fn write(&mut self, name: &str, at: usize, bytes: &[u8]) {
        let mut next = self.now();
        if !next.contains_key(name) {
            let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
            let made = self.volume.mknod(Ino::ROOT, name.as_bytes(), &make, ROOT, Wait::Yes);
            let made = made.map(|attr| self.volume.forget(attr.ino, 1));
            next.insert(name.to_owned(), Vec::new());
            if !self.told(made, next.clone()) {
                return;
            }
        }
        let content = next.get_mut(name).unwrap();
        content.resize(content.len().max(at + bytes.len()), 0);
        content[at..at + bytes.len()].copy_from_slice(bytes);
        let written = self
            .ino(name)
            .and_then(|ino| self.volume.write(ino, at as u64, bytes, false, Wait::Yes));
        self.told(written, next);
    }

    fn truncate(&mut self, name: &str, size: usize) {
        let mut next = self.now();
        let Some(content) = next.get_mut(name) else { return };
        content.resize(size, 0);
        let change = SetAttr { size: Some(size as u64), ..SetAttr::default() };
        let cut = self
            .ino(name)
            .and_then(|ino| self.volume.setattr(ino, &change, ROOT, Wait::Yes).map(|_| ()));
        self.told(cut, next);
    }

    fn rename(&mut self, from: &str, to: &str) {
        let mut next = self.now();
        let Some(content) = next.remove(from) else { return };
        next.insert(to.to_owned(), content);
        let (root, how) = (Ino::ROOT, RenameFlags::default());
        let renamed =
            self.volume.rename(root, from.as_bytes(), root, to.as_bytes(), how, Wait::Yes);
        self.told(renamed, next);
    }

    fn unlink(&mut self, name: &str) {
        let mut next = self.now();
        if next.remove(name).is_some() {
            let gone = self.volume.unlink(Ino::ROOT, name.as_bytes(), Wait::Yes);
            self.told(gone, next);
        }
    }

    fn clone_file(&mut self, from: &str, to: &str) {
        let mut next = self.now();
        let (Some(content), true) = (next.get(from).cloned(), next.contains_key(to)) else {
            return;
        };
        let len = content.len() as u64;
        next.insert(to.to_owned(), content);
        let copied = self.ino(from).and_then(|from| {
            let to = self.ino(to)?;
            self.volume.copy_range((from, 0), (to, 0), len, ROOT, Wait::Yes).map(|_| ())
        });
        self.told(copied, next);
    }

    /// The work; whatever fails, it goes on.
    pub(super) fn run(&mut self, rounds: u64) {
        (0..rounds).for_each(|round| self.round(10 * round));
    }

    fn round(&mut self, seed: u64) {
        self.write("old", 5_000, b"in the middle of a chunk");
        self.sync("old");
        self.write("a", 0, &noise(seed + 1, 30_000));
        self.truncate("old", 33_333);
        self.rename("a", "b");
        self.sync("b");
        self.clone_file("old", "b");
        self.write("b", 100, b"no longer shared");
        self.sync("b");
        let _ = self.volume.meta.take_in();
        let _ = self.volume.store.save_index();
        self.read();
        self.write("c", 0, &noise(seed + 2, 40_000));
        self.unlink("old");
        self.sync("c");
        self.write("d", 0, &noise(seed + 3, 50_000));
        self.truncate("d", 10);
        self.write("d", 30_000, b"behind a hole");
        self.sync("d");
        self.read();
    }
}

pub(super) fn files(volume: &Volume) -> Files {
    let mut names = Vec::new();
    volume
        .readdir(Ino::ROOT, 0, &mut |item| {
            names.push(String::from_utf8(item.name).unwrap());
            true
        })
        .unwrap();
    let content = |name: String| {
        let ino = volume.lookup(Ino::ROOT, name.as_bytes()).unwrap().ino;
        volume.forget(ino, 1);
        let bytes = volume.read(ino, 0, 100_000).unwrap();
        assert_eq!(bytes.len() as u64, volume.getattr(ino).unwrap().size);
        (name, bytes)
    };
    names.into_iter().filter(|name| !name.starts_with('.')).map(content).collect()
}

fn rounds() -> u64 {
    u64::from(crate::testing::factor()).min(ROUNDS_MAX)
}

/// Fails the `n`-th call of the whole work; answers whether there was one.
fn fail_work(base: &SimDisk, clock: &SimClock, (n, errno, kind): (u64, i32, CallKind)) -> bool {
    let label = format!("call {n} of {kind:?} fails with {errno}");
    let disk = base.crash(Keep::All);
    let before = Files::from([("old".to_owned(), noise(0, 40_000))]);
    disk.fail_call(n, errno, kind);
    let opened = Volume::open(Arc::new(disk.clone()), Arc::new(clock.clone()), small());
    let mut states = vec![before.clone()];
    let mut work = None;
    if let Ok(volume) = opened {
        let mut done = Work::new(volume, &before, &label);
        done.run(rounds());
        let left = disk.failures_left();
        disk.clear_failures();
        done.read();
        let mut whole = true;
        for name in done.now().into_keys() {
            whole &= done.sync(&name);
        }
        let poisoned = done.volume.status().unwrap().poisoned;
        assert!(whole || done.lost || poisoned, "{label}: a sync fails on");
        assert!(!poisoned || kind != CallKind::Write || errno != libc::ENOSPC, "{label}");
        assert!(!poisoned || kind != CallKind::Read, "{label}: a read poisons");
        if left == 0 || n % 2 == 0 {
            let _ = done.volume.close();
        }
        states.clone_from(&done.states);
        if left > 0 {
            assert!(whole && !done.lost && !poisoned, "{label}: nothing failed");
            return false;
        }
        work = Some(done);
    }
    for keep in [Keep::Nothing, Keep::All] {
        let image = disk.crash(keep);
        assert_clean(&image, clock, true, &label);
        let volume = open(&image, clock, small());
        let found = files(&volume);
        match &work {
            Some(work) => assert!(work.may_be(&found, &states), "{label}: another state"),
            None => assert!(found == before, "{label}: opening changed something"),
        }
        add(&volume, 10).unwrap();
    }
    true
}

/// Fails one call of the work after another; a plain run leaves most of them out.
fn fail_work_at_each(errno: i32, kind: CallKind) {
    let (disk, clock) = (SimDisk::new(), SimClock::new());
    create(&disk, &clock);
    let volume = open(&disk, &clock, small());
    Work::new(Arc::clone(&volume), &Files::new(), "base").write("old", 0, &noise(0, 40_000));
    volume.close().unwrap();
    drop(volume);
    // A plain run takes every second call.
    let numbers = (1..).step_by(if rounds() == 1 { 2 } else { 1 });
    let mut failed = Vec::new();
    let met = numbers.take_while(|&n| {
        let work = AssertUnwindSafe(|| fail_work(&disk, &clock, (n, errno, kind)));
        catch_unwind(work).unwrap_or_else(|_| {
            failed.push(n);
            true
        })
    });
    let met = met.take(CALLS_MAX).count();
    assert!(failed.is_empty(), "the calls {failed:?} of {kind:?} failing with {errno}");
    println!("{met} calls of {kind:?} failed with {errno}");
    assert!(1 < met, "only {met} failures were met");
}

#[test]
fn any_call_of_the_work_may_fail() {
    fail_work_at_each(libc::EIO, CallKind::Any);
}

#[test]
fn any_call_of_the_work_may_find_no_space() {
    fail_work_at_each(libc::ENOSPC, CallKind::Any);
}

#[test]
fn any_read_of_the_work_may_fail() {
    fail_work_at_each(libc::EIO, CallKind::Read);
}

#[test]
fn any_write_of_the_work_may_be_short() {
    fail_work_at_each(libc::EIO, CallKind::Write);
    fail_work_at_each(libc::ENOSPC, CallKind::Write);
}

#[test]
fn any_sync_of_the_work_may_fail() {
    fail_work_at_each(libc::EIO, CallKind::Sync);
}

#[test]
fn reads_that_fail_in_a_flush_cost_what_was_written_and_not_the_volume() {
    let (disk, clock) = (SimDisk::new(), SimClock::new());
    create(&disk, &clock);
    let volume = open(&disk, &clock, small());
    add(&volume, 0).unwrap();
    volume.close().unwrap();
    drop(volume);
    let mut lost = 0;
    for n in 1..6 {
        let label = format!("read {n}");
        let image = disk.crash(Keep::All);
        let volume = open(&image, &clock, small());
        let ino = volume.lookup(Ino::ROOT, name(0).as_bytes()).unwrap().ino;
        volume.write(ino, 39_000, &[7; 2_000], false, Wait::Yes).unwrap();
        volume.forget(ino, 1);
        // Once is no damage: what cannot be read is read again, sector by sector.
        (n..n + 500).for_each(|call| image.fail_call(call, libc::EIO, CallKind::Read));
        volume.sync().unwrap();
        image.clear_failures();
        if let Err(error) = volume.fsync(ino, Wait::Yes) {
            assert!(matches!(error, Error::WriteLost { .. }), "{label}: {error}");
            lost += 1;
            volume.fsync(ino, Wait::Yes).unwrap();
            let found = volume.read(ino, 0, 50_000).unwrap();
            let old = [noise(0, 40_000), vec![0; 1_000]].concat();
            assert!(found == old[..40_000] || found == old, "{label}: {} bytes", found.len());
            assert_eq!(volume.getattr(ino).unwrap().size, found.len() as u64, "{label}");
        }
        add(&volume, 1).unwrap();
        volume.close().unwrap();
        assert_clean(&image, &clock, true, &label);
    }
    assert!(lost > 0, "no read failed");
}
