//! As many names as there may be: of one inode, and in one directory.
//!
//! A directory of a million is `PYRAMIDFS_CASES_FACTOR=50 cargo test --release --lib large`.

use std::collections::HashSet;

use super::*;

/// Entries of the large directory, times the factor of the run.
const ENTRIES: u64 = 20_000;

/// Names that are listed between two changes.
const PIECE: usize = 500;

/// With packs that hold the record of a full group.
fn roomy() -> Bench {
    Bench::with(OpenOptions { pack_bytes_max: 16 << 20, ..options() })
}

fn name(number: u64) -> String {
    format!("entry-{number}")
}

/// Lists from an offset on, up to `count` entries.
fn list(volume: &Volume, dir: Ino, from: u64, count: usize) -> Vec<DirItem> {
    let mut items = Vec::new();
    volume
        .readdir(dir, from, &mut |item| {
            items.push(item);
            items.len() < count
        })
        .unwrap();
    items
}

fn make(volume: &Volume, dir: Ino, name: &str) {
    let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
    let attr = volume.mknod(dir, name.as_bytes(), &make, ROOT, Wait::Yes).unwrap();
    volume.forget(attr.ino, 1);
}

#[test]
fn names_keep_their_places_while_others_come_and_go() {
    let entries = ENTRIES * u64::from(crate::testing::config(1).cases);
    let bench = roomy();
    let volume = &bench.volume;
    let dir = volume.mkdir(Ino::ROOT, b"dir", 0o755, ROOT, Wait::Yes).unwrap().ino;
    (0..entries).for_each(|number| make(volume, dir, &name(number)));
    // One listing, in pieces, with something removed and something made between any two.
    let mut seen = HashSet::new();
    let (mut from, mut changes, mut places) = (0, 0, Vec::new());
    loop {
        let items = list(volume, dir, from, PIECE);
        let Some(last) = items.last() else { break };
        from = last.next;
        for item in items {
            assert!(places.last().is_none_or(|&(place, _)| place < item.next));
            if seen.len().is_multiple_of(1_009) {
                places.push((item.next, item.name.clone()));
            }
            assert!(seen.insert(item.name), "a name twice");
        }
        // Every fifth number goes, seen or not, and comes again by another name.
        let piece = PIECE as u64;
        for number in (changes * piece..entries.min((changes + 1) * piece)).step_by(5) {
            volume.unlink(dir, name(number).as_bytes(), Wait::Yes).unwrap();
            make(volume, dir, &format!("late-{number}"));
        }
        changes += 1;
    }
    let stays = |number: &u64| !number.is_multiple_of(5);
    for number in (0..entries).filter(stays) {
        assert!(seen.contains(name(number).as_bytes()), "entry {number} was not seen");
    }
    // Places lead where they led, also in a volume that is opened anew.
    volume.close().unwrap();
    let volume = open(&bench.disk, &bench.clock, options());
    let all = list(&volume, dir, 0, usize::MAX);
    assert_eq!(all.len() as u64, 2 + entries);
    for (place, _) in places {
        let next = list(&volume, dir, place, 1).into_iter().next().map(|item| item.name);
        let at = all.partition_point(|item| item.next <= place);
        assert_eq!(next, all.get(at).map(|item| item.name.clone()));
    }
}

#[test]
fn an_inode_has_a_largest_number_of_names() {
    let bench = roomy();
    let volume = &bench.volume;
    let ino = bench.create("file");
    for number in 1..LINKS_MAX {
        volume.link(ino, Ino::ROOT, name(number.into()).as_bytes(), Wait::Yes).unwrap();
    }
    let refused = volume.link(ino, Ino::ROOT, b"more", Wait::Yes);
    assert!(matches!(refused, Err(Error::TooManyLinks)));
    assert_eq!(volume.getattr(ino).unwrap().nlink, LINKS_MAX);
    volume.unlink(Ino::ROOT, name(1).as_bytes(), Wait::Yes).unwrap();
    volume.link(ino, Ino::ROOT, b"more", Wait::Yes).unwrap();
}

#[test]
fn a_directory_has_a_largest_number_of_directories() {
    let bench = roomy();
    let volume = &bench.volume;
    let mkdir = |dir: Ino, name: &str| volume.mkdir(dir, name.as_bytes(), 0o755, ROOT, Wait::Yes);
    let full = mkdir(Ino::ROOT, "full").unwrap().ino;
    for number in 2..LINKS_MAX {
        mkdir(full, &name(number.into())).unwrap();
    }
    assert!(matches!(mkdir(full, "more"), Err(Error::TooManyLinks)));
    mkdir(Ino::ROOT, "other").unwrap();
    let plain = RenameFlags::default();
    let enter = |to: &[u8], flags| volume.rename(Ino::ROOT, b"other", full, to, flags, Wait::Yes);
    assert!(matches!(enter(b"more", plain), Err(Error::TooManyLinks)));
    // A file has room there, and so has a directory that takes another's place.
    bench.create("file");
    volume.rename(Ino::ROOT, b"file", full, b"file", plain, Wait::Yes).unwrap();
    let exchange = RenameFlags { exchange: true, ..RenameFlags::default() };
    assert!(matches!(enter(b"file", exchange), Err(Error::TooManyLinks)));
    enter(name(2).as_bytes(), plain).unwrap();
    assert_eq!(volume.getattr(full).unwrap().nlink, LINKS_MAX);
    volume.rmdir(full, name(3).as_bytes(), Wait::Yes).unwrap();
    mkdir(full, "more").unwrap();
}
