//! The overlay by itself: what is below stays as it is, and memory follows what is written.

use super::*;
use crate::sys::sim::{CallKind, Keep, SimDisk};

/// A disk with two files in it, all of it durable.
fn below() -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir("d").unwrap();
    for (path, byte) in [("a", 1), ("d/b", 2)] {
        let file = disk.open(path, Access::CreateNew).unwrap();
        file.write_all_at(&[byte; 10_000], 0).unwrap();
        file.sync().unwrap();
    }
    disk.sync_dir("d").unwrap();
    disk.sync_dir("").unwrap();
    disk
}

fn overlay(below: &SimDisk) -> OverlayDisk {
    OverlayDisk::new(Arc::new(below.clone()))
}

fn content(disk: &dyn Disk, path: &str) -> Option<Vec<u8>> {
    let file = disk.open(path, Access::Read).ok()?;
    let mut bytes = vec![0; file.len().unwrap() as usize];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    Some(bytes)
}

#[test]
fn the_disk_below_stays_untouched() {
    let below = below();
    let (a, b) = (content(&below, "a"), content(&below, "d/b"));
    let syncs = below.sync_count();
    // Any write to the disk below would fail.
    below.fail_call(1, libc::EROFS, CallKind::Write);
    let disk = overlay(&below);
    let file = disk.open("a", Access::Write).unwrap();
    file.write_all_at(b"changed", 5000).unwrap();
    file.set_len(6000).unwrap();
    file.sync().unwrap();
    disk.rename("d/b", "c").unwrap();
    disk.open("d/new", Access::CreateNew).unwrap().write_all_at(b"x", 0).unwrap();
    disk.create_dir("e").unwrap();
    disk.sync_dir("").unwrap();
    let _lock = disk.lock("lock").unwrap();
    assert_eq!(below.sync_count(), syncs);
    assert_eq!((content(&below, "a"), content(&below, "d/b")), (a, b));
    let names: Vec<String> =
        below.read_dir("").unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["a", "d"]);
    below.clear_failures();
    below.lock("lock").map(drop).expect("the disk below is not locked");
    let image = below.crash(Keep::Nothing);
    assert_eq!(content(&image, "a"), content(&below, "a"));
}

#[test]
fn what_is_written_lies_over_what_is_below() {
    let disk = overlay(&below());
    let file = disk.open("a", Access::Write).unwrap();
    let mut expected = vec![1; 10_000];
    for (offset, count) in [(10, 20), (4090, 10), (8192, 1808), (9990, 100), (20_000, 1)] {
        file.write_all_at(&vec![7; count], offset as u64).unwrap();
        expected.resize(expected.len().max(offset + count), 0);
        expected[offset..offset + count].fill(7);
        assert_eq!(content(&disk, "a").unwrap(), expected);
    }
}

#[test]
fn what_was_cut_off_never_comes_back() {
    let disk = overlay(&below());
    let file = disk.open("a", Access::Write).unwrap();
    file.set_len(5000).unwrap();
    file.set_len(10_000).unwrap();
    file.write_all_at(b"x", 9000).unwrap();
    let mut expected = vec![1; 5000];
    expected.resize(10_000, 0);
    expected[9000] = b'x';
    assert_eq!(content(&disk, "a").unwrap(), expected);
}

#[test]
fn a_file_that_is_open_stays_the_same_when_it_is_moved_or_removed() {
    let disk = overlay(&below());
    let moved = disk.open("a", Access::Write).unwrap();
    let removed = disk.open("d/b", Access::Write).unwrap();
    disk.rename("a", "c").unwrap();
    disk.remove_file("d/b").unwrap();
    moved.write_all_at(b"moved", 0).unwrap();
    removed.write_all_at(b"removed", 0).unwrap();
    assert_eq!(content(&disk, "a"), None);
    assert!(content(&disk, "c").unwrap().starts_with(b"moved"));
    assert_eq!(content(&disk, "d/b"), None);
    let again = disk.open("d/b", Access::CreateNew).unwrap();
    removed.write_all_at(b"removed", 0).unwrap();
    assert_eq!(again.len().unwrap(), 0);
}

#[test]
fn memory_follows_what_is_written() {
    let below = below();
    let disk = overlay(&below);
    let before = disk.used_bytes().unwrap();
    for _ in 0..10 {
        content(&disk, "a").unwrap();
        content(&disk, "d/b").unwrap();
    }
    assert!(disk.shared.names.lock().changed.is_empty(), "reading keeps nothing");
    assert!(disk.shared.names.lock().clean.len() <= 2);
    let file = disk.open("a", Access::Write).unwrap();
    file.set_len(1 << 50).unwrap();
    file.write_all_at(&[1; 10], 1 << 49).unwrap();
    assert_eq!(disk.used_bytes().unwrap() - before, PAGE);
    drop(file);
    assert_eq!(disk.open("a", Access::Read).unwrap().len().unwrap(), 1 << 50, "changes are kept");
}

const PAGE: u64 = 4096;

#[test]
fn names_that_look_alike_are_kept_apart() {
    let disk = overlay(&below());
    for path in ["d-x", "d0", "d.y"] {
        disk.open(path, Access::CreateNew).unwrap();
    }
    let names = |path| -> Vec<String> {
        disk.read_dir(path).unwrap().into_iter().map(|entry| entry.name).collect()
    };
    assert_eq!(names("d"), ["b"]);
    assert_eq!(names(""), ["a", "d", "d-x", "d.y", "d0"]);
}

#[test]
fn a_directory_in_the_place_of_a_removed_file_is_empty() {
    let disk = overlay(&below());
    disk.remove_file("a").unwrap();
    disk.create_dir("a").unwrap();
    assert_eq!(disk.read_dir("a").unwrap(), []);
    disk.open("a/x", Access::CreateNew).unwrap();
    assert_eq!(disk.read_dir("a").unwrap().len(), 1);
}

#[test]
fn an_error_below_is_an_error_here() {
    let below = below();
    let disk = overlay(&below);
    let file = disk.open("a", Access::Write).unwrap();
    below.fail_call(1, libc::EIO, CallKind::Read);
    assert!(file.write_all_at(b"x", 100).is_err(), "the rest of the page cannot be read");
    below.fail_call(1, libc::EIO, CallKind::Read);
    assert!(file.read_at(&mut [0; 10], 0).is_err());
    below.fail_call(1, libc::EMFILE, CallKind::Any);
    assert_eq!(disk.open("d/b", Access::Read).err().unwrap().raw_os_error(), Some(libc::EMFILE));
}
