//! Room: what is accepted can be stored, what gives space back works on a full disk, and nothing
//! is lost wherever the disk or the quota ends.
//!
//! `PYRAMIDFS_CASES_FACTOR=20 cargo test --release --lib space` ends them at every page.

use super::crash::assert_clean;
use super::faults::{Files, Work, files, small};
use super::*;
use crate::meta::GroupId;
use crate::sys::sim::Keep;

/// What the volume stores.
fn stored(volume: &Volume) -> u64 {
    let stats = volume.store.stats();
    stats.stored_bytes + stats.index_bytes + volume.meta.stored_bytes()
}

fn make(volume: &Volume, name: &str) -> Result<Ino, Error> {
    let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
    let made = volume.mknod(Ino::ROOT, name.as_bytes(), &make, ROOT, Wait::Yes)?;
    volume.forget(made.ino, 1);
    Ok(made.ino)
}

fn is_full(error: &Error) -> bool {
    matches!(error, Error::NoSpace | Error::QuotaReached)
}

/// Does `work`, and holds what it took against what was promised for it.
fn measure(bench: &Bench, what: &str, work: impl FnOnce(&Bench)) {
    let volume = &bench.volume;
    volume.sync().unwrap();
    volume.meta.take_in().unwrap();
    let before = stored(volume);
    work(bench);
    let promised = volume.promised_bytes();
    volume.sync().unwrap();
    volume.meta.take_in().unwrap();
    let took = stored(volume) - before;
    println!("{what}: {took} bytes of {promised} promised ({:.1}x)", promised as f64 / took as f64);
    assert!(0 < took && took <= promised, "{what} took {took} bytes, {promised} were promised");
}

#[test]
fn nothing_takes_more_than_was_promised() {
    for tree_copies in [1, 2] {
        let (disk, clock) = (SimDisk::new(), SimClock::new());
        let made = CreateOptions { tree_copies, ..CreateOptions::default() };
        create_with(&disk, &clock, &made);
        let volume = open(&disk, &clock, OpenOptions { dirty_bytes_max: 1 << 30, ..options() });
        let bench = Bench { disk, clock, volume };
        let count = 1500;
        measure(&bench, "files of one byte", |bench| {
            (0..count).for_each(|n| bench.write(bench.create(&format!("one-{n}")), 0, b"1"));
        });
        measure(&bench, "files of one chunk", |bench| {
            for n in 0..200 {
                bench.write(bench.create(&format!("chunk-{n}")), 0, &noise(n, 4096));
            }
        });
        measure(&bench, "long names", |bench| {
            for n in 0..count {
                bench.create(&format!("{n:0>250}"));
            }
        });
        let big = bench.create("big");
        measure(&bench, "a large file", |bench| {
            (0..24).for_each(|n| bench.write(big, n << 20, &noise(n, 1 << 20)));
        });
        measure(&bench, "overwrites of chunks", |bench| {
            (0..400).for_each(|n| bench.write(big, (n * 7919 % 6144) << 12, &noise(n, 4096)));
        });
        measure(&bench, "overwrites across chunks", |bench| {
            (0..300).for_each(|n| bench.write(big, (n * 7919 % 6000) * 4111, &noise(n, 5000)));
        });
        measure(&bench, "bytes far away", |bench| {
            let far = bench.create("far");
            (0..30).for_each(|n| bench.write(far, 7 << n, &noise(n, 10)));
            bench.truncate(far, 5 << 40);
        });
        measure(&bench, "copies", |bench| {
            for n in 0..40 {
                let copy = bench.create(&format!("copy-{n}"));
                let (from, to) = ((big, n << 12), (copy, (n % 3) << 14));
                bench.volume.copy_range(from, to, 3 << 20, ROOT, Wait::Yes).unwrap();
            }
        });
        measure(&bench, "holes and cuts", |bench| {
            for n in 0..20 {
                let (at, how) = ((n << 20) + 777, Allocate::Punch);
                bench.volume.allocate(big, at, 99_999, how, ROOT, Wait::Yes).unwrap();
            }
            bench.truncate(big, (20 << 20) + 17);
        });
        measure(&bench, "attributes", |bench| {
            for n in 0..100u64 {
                let name = format!("user.{n}");
                let (value, mode) = (noise(n, 2000), XattrMode::Any);
                bench.volume.setxattr(big, name.as_bytes(), &value, mode, Wait::Yes).unwrap();
            }
        });
        measure(&bench, "one byte again and again, each kept", |bench| {
            for n in 0..30 {
                bench.write(big, 99, &noise(n, 1));
                bench.volume.flush_node(&bench.volume.nodes.get(big), GroupId(u64::MAX)).unwrap();
            }
        });
        measure(&bench, "removed files", |bench| {
            for n in 0..count {
                let name = format!("one-{n}");
                bench.volume.unlink(Ino::ROOT, name.as_bytes(), Wait::Yes).unwrap();
            }
        });
        bench.volume.close().unwrap();
    }
}

/// Writes files until one is refused; returns how many there are, and the refusal.
fn fill(volume: &Volume, prefix: &str, size: usize) -> (u64, Error) {
    for number in 0..100_000 {
        let done = make(volume, &format!("{prefix}-{number}"))
            .and_then(|ino| volume.write(ino, 0, &noise(number, size), false, Wait::Yes));
        if let Err(error) = done {
            return (number, error);
        }
    }
    panic!("it never fills up");
}

/// What must work on a full volume.
fn give_back(volume: &Volume, count: u64, label: &str) {
    let name = |number: u64| format!("fill-{number}");
    let find = |number: u64| {
        let found = volume.lookup(Ino::ROOT, name(number).as_bytes()).unwrap();
        volume.forget(found.ino, 1);
        found.ino
    };
    assert!(4 < count, "{label}: {count} files");
    let size = SetAttr { size: Some(5), ..SetAttr::default() };
    let changed = volume.setattr(find(0), &size, ROOT, Wait::Yes);
    changed.unwrap_or_else(|error| panic!("{label}: truncate: {error}"));
    let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    let changed = volume.setattr(find(0), &mode, ROOT, Wait::Yes);
    changed.unwrap_or_else(|error| panic!("{label}: chmod: {error}"));
    let (from, to, how) = (name(1), name(2), RenameFlags::default());
    let moved = volume.rename(Ino::ROOT, from.as_bytes(), Ino::ROOT, to.as_bytes(), how, Wait::Yes);
    moved.unwrap_or_else(|error| panic!("{label}: rename over: {error}"));
    for number in 2..count {
        let removed = volume.unlink(Ino::ROOT, name(number).as_bytes(), Wait::Yes);
        removed.unwrap_or_else(|error| panic!("{label}: unlink {number}: {error}"));
        if number % 64 == 3 {
            volume.sync().unwrap_or_else(|error| panic!("{label}: sync at {number}: {error}"));
        }
    }
    volume.sync().unwrap_or_else(|error| panic!("{label}: sync: {error}"));
}

#[test]
fn a_quota_ends_writing_and_nothing_else() {
    let (disk, clock) = (SimDisk::new(), SimClock::new());
    create(&disk, &clock);
    let quota = 24 << 20;
    let limited = OpenOptions { quota_bytes: Some(quota), ..options() };
    let volume = open(&disk, &clock, limited);
    assert_eq!(volume.statfs().unwrap().total_bytes, quota);
    let (count, error) = fill(&volume, "fill", 50_000);
    assert!(matches!(error, Error::QuotaReached), "{error}");
    volume.sync().unwrap();
    let (full, space) = (stored(&volume), volume.statfs().unwrap());
    assert!(quota * 8 / 10 < full && full < quota, "{full} bytes of {quota}");
    assert!(space.available_bytes < 1 << 20, "{space:?}");
    give_back(&volume, count, "quota");
    assert!(stored(&volume) < quota);
    // Until its space is collected what was removed counts.
    let (_, error) = fill(&volume, "more", 1 << 20);
    assert!(matches!(error, Error::QuotaReached), "{error}");
    volume.set_quota(quota + (8 << 20));
    let ino = make(&volume, "new").unwrap();
    volume.write(ino, 0, &noise(1, 100_000), false, Wait::Yes).unwrap();
    volume.set_quota(1 << 20);
    let more = volume.write(ino, 0, &noise(2, 100_000), false, Wait::Yes);
    assert!(matches!(more, Err(Error::QuotaReached)));
    assert_eq!(volume.statfs().unwrap().available_bytes, 0);
    volume.set_quota(0);
    volume.write(ino, 0, &noise(2, 100_000), false, Wait::Yes).unwrap();
    volume.close().unwrap();
    assert_clean(&disk, &clock, true, "quota");
}

#[test]
fn what_gives_space_back_works_on_a_disk_that_others_filled() {
    let (disk, clock) = (SimDisk::new(), SimClock::new());
    create(&disk, &clock);
    disk.set_space(32 << 20);
    let volume = open(&disk, &clock, options());
    let (count, error) = fill(&volume, "fill", 50_000);
    assert!(matches!(error, Error::NoSpace), "{error}");
    volume.sync().unwrap();
    let reserve = volume.space.reserve.bytes();
    assert!(1 << 20 <= reserve, "{reserve} bytes in reserve");
    // Not a byte is left but those.
    disk.set_space(disk.used_bytes().unwrap());
    give_back(&volume, count, "full");
    let left = volume.space.reserve.bytes();
    assert!(0 < left && left < reserve, "{left} of {reserve} bytes in reserve");
    assert!(matches!(make(&volume, "new"), Err(Error::NoSpace)));
    // Opened again, it gives back as well.
    volume.close().unwrap();
    let volume = open(&disk, &clock, options());
    volume.unlink(Ino::ROOT, b"fill-0", Wait::Yes).unwrap();
    volume.sync().unwrap();
    disk.set_space(64 << 20);
    let ino = make(&volume, "new").unwrap();
    volume.write(ino, 0, &noise(1, 100_000), false, Wait::Yes).unwrap();
    volume.sync().unwrap();
    assert!(reserve <= volume.space.reserve.bytes(), "the reserve is made again");
    volume.close().unwrap();
    assert_clean(&disk, &clock, true, "full");
}

#[test]
fn many_small_changes_on_a_full_volume_leave_room_for_deletions() {
    let (disk, clock) = (SimDisk::new(), SimClock::new());
    create(&disk, &clock);
    disk.set_space(24 << 20);
    let volume = open(&disk, &clock, options());
    let (count, _) = fill(&volume, "fill", 50_000);
    let mut refused = false;
    'all: for round in 0..100_000u32 {
        for number in 0..count.min(50) {
            let ino = volume.lookup(Ino::ROOT, format!("fill-{number}").as_bytes()).unwrap().ino;
            volume.forget(ino, 1);
            let change = SetAttr { mode: Some(round % 512), ..SetAttr::default() };
            match volume.setattr(ino, &change, ROOT, Wait::Yes) {
                Ok(_) => {}
                Err(error) => {
                    assert!(is_full(&error), "{error}");
                    refused = true;
                    break 'all;
                }
            }
        }
        volume.sync().unwrap();
    }
    assert!(refused, "attributes may change for ever");
    for number in 0..count {
        volume.unlink(Ino::ROOT, format!("fill-{number}").as_bytes(), Wait::Yes).unwrap();
    }
    volume.sync().unwrap();
    volume.close().unwrap();
    assert_clean(&disk, &clock, true, "small changes");
}

/// Where the space ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Disk,
    Quota,
}

/// Does the work with so much more room than is used; answers whether any of it was refused.
fn work_within(base: &SimDisk, clock: &SimClock, end: End, room: u64) -> bool {
    let label = format!("{end:?} ends after {room} bytes");
    let disk = base.crash(Keep::All);
    let before = Files::from([("old".to_owned(), noise(0, 40_000))]);
    if let End::Disk = end {
        // What others have there makes it large enough for a reserve, which is there already.
        let others = disk.open("others", crate::sys::Access::CreateNew).unwrap();
        others.allocate(12 << 20).unwrap();
        let reserve = disk.open("reserve", crate::sys::Access::Write).unwrap();
        reserve.set_len(768 << 10).unwrap();
        disk.set_space(disk.used_bytes().unwrap() + room);
    }
    let volume = open(&disk, clock, small());
    let mut limit = 0;
    if let End::Quota = end {
        let before = stored(&volume);
        volume.set_quota(before + room);
        // Where there was no room for a reserve, removals take a little all the same.
        limit = (before + room).max(before + (64 << 10));
    }
    let mut work = Work::new(Arc::clone(&volume), &before, &label);
    work.run(1);
    // All that was accepted can be stored.
    volume.sync().unwrap_or_else(|error| panic!("{label}: {error}"));
    assert!(!work.is_lost(), "{label}: bytes are lost");
    assert_eq!(files(&volume), work.now(), "{label}");
    if let End::Quota = end {
        let stored = stored(&volume);
        assert!(stored <= limit, "{label}: {stored} bytes are stored, of {limit}");
    }
    let kept = work.now();
    for keep in [Keep::Nothing, Keep::Random(room), Keep::All] {
        let image = disk.crash(keep);
        assert_clean(&image, clock, true, &label);
        let volume = open(&image, clock, small());
        assert_eq!(files(&volume), kept, "{label}, {keep:?}");
        // Never stuck.
        for name in kept.keys() {
            let removed = volume.unlink(Ino::ROOT, name.as_bytes(), Wait::Yes);
            removed.unwrap_or_else(|error| panic!("{label}, {keep:?}: unlink: {error}"));
            volume.sync().unwrap_or_else(|error| panic!("{label}, {keep:?}: sync: {error}"));
        }
        image.set_space(u64::MAX);
        volume.set_quota(0);
        let ino = make(&volume, "new").unwrap();
        volume.write(ino, 0, &noise(1, 10_000), false, Wait::Yes).unwrap();
        volume.close().unwrap();
        assert_clean(&image, clock, true, &label);
    }
    work.is_refused()
}

fn end_everywhere(end: End) {
    let (disk, clock) = (SimDisk::new(), SimClock::new());
    create(&disk, &clock);
    let volume = open(&disk, &clock, small());
    Work::new(Arc::clone(&volume), &Files::new(), "base").write("old", 0, &noise(0, 40_000));
    volume.close().unwrap();
    drop(volume);
    let step = if crate::testing::factor() == 1 { 15 << 10 } else { 4 << 10 };
    let (mut room, mut refused) = (0, 0);
    while work_within(&disk, &clock, end, room) {
        refused += 1;
        room += step;
        assert!(room < 64 << 20, "something is always refused");
    }
    println!("{end:?}: refused something up to {room} bytes of room, in {refused} cases");
    assert!(10 < refused, "{end:?}: only {refused} cases were refused something");
}

#[test]
fn the_disk_may_end_anywhere_in_the_work() {
    end_everywhere(End::Disk);
}

#[test]
fn the_quota_may_end_anywhere_in_the_work() {
    end_everywhere(End::Quota);
}
