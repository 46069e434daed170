//! Snapshots: what is seen in them, what is refused, and what is left of deleted ones.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::crash::{assert_clean, extract, extract_snapshot};
use super::*;
use crate::sys::overlay::OverlayDisk;

const FILE: Make = Make { mode: MODE_FILE | 0o644, rdev: 0 };

/// A volume with one of each kind.
fn furnished() -> Bench {
    let bench = Bench::new();
    let volume = &bench.volume;
    let file = bench.create("file");
    bench.write(file, 0, &noise(1, 30_000));
    bench.write(file, 600_000, b"behind a hole");
    let dir = volume.mkdir(Ino::ROOT, b"dir", 0o750, ROOT, Wait::Yes).unwrap().ino;
    volume.link(file, dir, b"other name", Wait::Yes).unwrap();
    volume.symlink(dir, b"link", b"../file", ROOT, Wait::Yes).unwrap();
    let fifo = Make { mode: libc::S_IFIFO | 0o600, rdev: 0 };
    volume.mknod(dir, b"fifo", &fifo, ROOT, Wait::Yes).unwrap();
    volume.setxattr(file, b"user.x", b"old", XattrMode::Any, Wait::Yes).unwrap();
    for number in 0..100 {
        volume.mknod(dir, format!("n{number}").as_bytes(), &FILE, ROOT, Wait::Yes).unwrap();
    }
    bench
}

/// Old versions that are kept.
fn versions(volume: &Volume) -> usize {
    let mut count = 0;
    for range in [KeyRange::all_versions(), KeyRange::version_ends(0, u64::MAX)] {
        volume
            .meta
            .scan(range, &mut |_, _| {
                count += 1;
                ControlFlow::Continue(())
            })
            .unwrap();
    }
    count
}

fn names(volume: &Volume, dir: Ino) -> Vec<String> {
    let mut names = Vec::new();
    volume
        .readdir(dir, 0, &mut |item| {
            names.push(String::from_utf8(item.name).unwrap());
            true
        })
        .unwrap();
    names
}

/// Changes all that there is.
fn upset(bench: &Bench) {
    let volume = &bench.volume;
    let (file, dir) = (bench.find("file").unwrap(), bench.find("dir").unwrap());
    bench.clock.advance(std::time::Duration::from_secs(60));
    bench.write(file, 5_000, &noise(2, 5_000));
    bench.truncate(file, 40_000);
    volume.setxattr(file, b"user.x", b"new", XattrMode::Any, Wait::Yes).unwrap();
    volume.setxattr(file, b"user.y", b"new", XattrMode::Any, Wait::Yes).unwrap();
    let change = SetAttr { mode: Some(0o600), uid: Some(7), ..SetAttr::default() };
    volume.setattr(file, &change, ROOT, Wait::Yes).unwrap();
    for name in ["link", "fifo", "n3", "n50", "other name"] {
        volume.unlink(dir, name.as_bytes(), Wait::Yes).unwrap();
    }
    let flags = RenameFlags::default();
    volume.rename(dir, b"n4", Ino::ROOT, b"moved", flags, Wait::Yes).unwrap();
    volume.rename(Ino::ROOT, b"dir", Ino::ROOT, b"renamed", flags, Wait::Yes).unwrap();
    bench.create("new");
}

#[test]
fn a_snapshot_shows_what_was() {
    let mut bench = furnished();
    let before = extract(&bench.volume);
    let info = bench.volume.snapshot_create(b"first").unwrap();
    assert_eq!((info.number, info.files), (1, 105));
    assert_eq!(extract_snapshot(&bench.volume, b"first"), before);
    upset(&bench);
    assert_eq!(extract_snapshot(&bench.volume, b"first"), before, "open changes");
    bench.volume.sync().unwrap();
    assert_eq!(extract_snapshot(&bench.volume, b"first"), before, "committed ones");
    let middle = extract(&bench.volume);
    assert_ne!(middle, before);
    bench.volume.snapshot_create(b"second").unwrap();
    bench.volume.unlink(Ino::ROOT, b"file", Wait::Yes).unwrap();
    bench.reopen();
    for _ in 0..2 {
        assert_eq!(extract_snapshot(&bench.volume, b"first"), before);
        assert_eq!(extract_snapshot(&bench.volume, b"second"), middle);
        bench.volume.meta.take_in().unwrap();
    }
    assert_eq!(bench.volume.snapshots().len(), 2);
    assert_eq!(bench.volume.snapshots()[0], info);
    bench.volume.sync().unwrap();
    assert_clean(&bench.disk, &bench.clock, true, "with snapshots");
}

#[test]
fn the_directory_of_snapshots_is_found_and_not_listed() {
    let bench = furnished();
    let volume = &bench.volume;
    let dir = volume.lookup(Ino::ROOT, SNAPSHOTS_NAME).unwrap();
    assert_eq!((dir.ino, dir.mode, dir.nlink), (SNAPSHOTS, MODE_DIR | 0o555, 2));
    assert_eq!(names(volume, SNAPSHOTS), [".", ".."]);
    for name in ["b", "a"] {
        bench.clock.advance(std::time::Duration::from_secs(1));
        volume.snapshot_create(name.as_bytes()).unwrap();
    }
    assert!(matches!(volume.snapshot_create(b"a"), Err(Error::Exists)));
    assert!(matches!(volume.snapshot_create(b".."), Err(Error::Invalid { .. })));
    assert!(matches!(volume.snapshot_create(b"a/b"), Err(Error::Invalid { .. })));
    assert!(matches!(volume.snapshot_create(&[b'x'; 256]), Err(Error::NameTooLong)));
    assert_eq!(names(volume, SNAPSHOTS), [".", "..", "b", "a"]);
    assert_eq!(volume.getattr(SNAPSHOTS).unwrap().nlink, 4);
    assert_eq!(volume.getattr(SNAPSHOTS).unwrap().mtime, volume.snapshot(b"a").unwrap().time);
    assert!(!names(volume, Ino::ROOT).contains(&".snapshots".to_owned()));
    assert!(matches!(volume.lookup(SNAPSHOTS, b"c"), Err(Error::NotFound)));
    let root = volume.lookup(SNAPSHOTS, b"a").unwrap().ino;
    let dir = volume.lookup(root, b"dir").unwrap().ino;
    assert_eq!(volume.lookup(dir, b"..").unwrap().ino, root);
    assert_eq!(volume.lookup(root, b"..").unwrap().ino, SNAPSHOTS);
    assert_eq!(volume.lookup(SNAPSHOTS, b"..").unwrap().ino, Ino::ROOT);
    // A listing goes on where it was, whatever happens to what lives.
    let mut all = Vec::new();
    let mut from = 0;
    loop {
        let mut more = false;
        volume
            .readdir(dir, from, &mut |item| {
                let room = !more;
                if room {
                    from = item.next;
                    all.push(item.name);
                }
                more = true;
                room
            })
            .unwrap();
        if !more {
            break;
        }
        let number = all.len();
        let live = bench.find("dir").unwrap();
        let _ = volume.unlink(live, format!("n{number}").as_bytes(), Wait::Yes);
    }
    assert_eq!(all.len(), 105);
}

#[test]
fn every_change_of_a_snapshot_is_refused() {
    let bench = furnished();
    let volume = &bench.volume;
    volume.snapshot_create(b"s").unwrap();
    let root = volume.lookup(SNAPSHOTS, b"s").unwrap().ino;
    let file = volume.lookup(root, b"file").unwrap().ino;
    let live = bench.find("file").unwrap();
    let (any, write) = (XattrMode::Any, OpenFlags { write: true, ..OpenFlags::default() });
    let mode = SetAttr { mode: Some(0), ..SetAttr::default() };
    let size = SetAttr { size: Some(0), ..SetAttr::default() };
    let flags = RenameFlags::default();
    let hole = Allocate::Punch;
    let yes = Wait::Yes;
    for dir in [root, SNAPSHOTS] {
        let refused: Vec<Result<(), Error>> = vec![
            volume.mknod(dir, b"x", &FILE, ROOT, yes).map(drop),
            volume.mkdir(dir, b"x", 0o700, ROOT, yes).map(drop),
            volume.symlink(dir, b"x", b"y", ROOT, yes).map(drop),
            volume.link(live, dir, b"x", yes).map(drop),
            volume.unlink(dir, b"file", yes),
            volume.rmdir(dir, b"dir", yes),
            volume.rename(dir, b"file", Ino::ROOT, b"x", flags, yes),
            volume.rename(Ino::ROOT, b"file", dir, b"x", flags, yes),
            volume.setattr(dir, &mode, ROOT, yes).map(drop),
            volume.setxattr(dir, b"user.x", b"", any, yes),
            volume.set_flags(dir, 0, yes),
        ];
        for (number, answer) in refused.into_iter().enumerate() {
            assert!(matches!(answer, Err(Error::ReadOnly)), "{number} in {dir:?}: {answer:?}");
        }
    }
    let refused: Vec<Result<(), Error>> = vec![
        volume.open_file(file, write, ROOT, yes),
        volume.write(file, 0, b"x", false, yes),
        volume.setattr(file, &mode, ROOT, yes).map(drop),
        volume.setattr(file, &size, ROOT, yes).map(drop),
        volume.setxattr(file, b"user.x", b"", any, yes),
        volume.removexattr(file, b"user.x", yes),
        volume.allocate(file, 0, 1, hole, ROOT, yes),
        volume.copy_range((live, 0), (file, 0), 1, ROOT, yes).map(drop),
        volume.link(file, Ino::ROOT, b"x", yes).map(drop),
        volume.mkdir(Ino::ROOT, SNAPSHOTS_NAME, 0o700, ROOT, yes).map(drop),
        volume.rmdir(Ino::ROOT, SNAPSHOTS_NAME, yes),
        volume.rename(Ino::ROOT, SNAPSHOTS_NAME, Ino::ROOT, b"x", flags, yes),
        volume.rename(Ino::ROOT, b"file", Ino::ROOT, SNAPSHOTS_NAME, flags, yes),
    ];
    for (number, answer) in refused.into_iter().enumerate() {
        assert!(matches!(answer, Err(Error::ReadOnly)), "{number}: {answer:?}");
    }
    assert!(!volume.accessed(file) && !volume.accessed(root));
    assert_eq!(volume.budget.used(), 0, "what was refused gave its space back");
    assert_clean(&bench.disk, &bench.clock, false, "after refusals");
}

#[test]
fn files_are_read_sought_and_copied_out_of_it() {
    let bench = furnished();
    let volume = &bench.volume;
    volume.snapshot_create(b"s").unwrap();
    upset(&bench);
    volume.sync().unwrap();
    let root = volume.lookup(SNAPSHOTS, b"s").unwrap().ino;
    let old = volume.lookup(root, b"file").unwrap();
    assert_eq!((old.nlink, old.size, old.mode & 0o777), (2, 600_013, 0o644));
    volume.open_file(old.ino, OpenFlags::default(), ROOT, Wait::Yes).unwrap();
    assert_eq!(volume.read(old.ino, 0, 30_000).unwrap(), noise(1, 30_000));
    assert_eq!(volume.read(old.ino, 599_999, 100).unwrap(), b"\0behind a hole");
    assert_eq!(volume.read(old.ino, 600_013, 100).unwrap(), b"");
    assert_eq!(volume.seek(old.ino, 0, Seek::Hole, Wait::No).unwrap(), 32_768);
    assert_eq!(volume.seek(old.ino, 40_000, Seek::Data, Wait::No).unwrap(), 598_016);
    assert_eq!(volume.getxattr(old.ino, b"user.x").unwrap(), b"old");
    assert!(matches!(volume.getxattr(old.ino, b"user.y"), Err(Error::NoAttribute)));
    let link = volume.lookup(root, b"dir").unwrap().ino;
    let link = volume.lookup(link, b"link").unwrap().ino;
    assert_eq!(volume.readlink(link).unwrap(), b"../file");
    volume.release(old.ino, false);
    let (chunks, copy) = (volume.status().unwrap().chunks, bench.create("copy"));
    let copied = volume.copy_range((old.ino, 0), (copy, 0), 1 << 40, ROOT, Wait::Yes).unwrap();
    assert_eq!(copied, 600_013);
    volume.sync().unwrap();
    assert_eq!(volume.status().unwrap().chunks, chunks, "it shares all");
    assert_eq!(bench.read_all(copy), volume.read(old.ino, 0, 700_000).unwrap());
}

#[test]
fn a_deleted_snapshot_leaves_nothing() {
    let mut bench = furnished();
    bench.volume.snapshot_create(b"one").unwrap();
    upset(&bench);
    bench.volume.snapshot_create(b"two").unwrap();
    let two = extract(&bench.volume);
    bench.volume.unlink(Ino::ROOT, b"moved", Wait::Yes).unwrap();
    bench.volume.sync().unwrap();
    let both = versions(&bench.volume);
    let root = bench.volume.lookup(SNAPSHOTS, b"one").unwrap().ino;
    let file = bench.volume.lookup(root, b"file").unwrap().ino;
    bench.volume.snapshot_delete(b"one").unwrap();
    assert!(matches!(bench.volume.read(file, 0, 1), Err(Error::Stale)));
    assert!(matches!(bench.volume.getattr(root), Err(Error::Stale)));
    assert!(matches!(bench.volume.lookup(SNAPSHOTS, b"one"), Err(Error::NotFound)));
    assert!(matches!(bench.volume.snapshot_delete(b"one"), Err(Error::NotFound)));
    let one = versions(&bench.volume);
    assert!(0 < one && one < both, "{one} of {both}");
    assert_eq!(extract_snapshot(&bench.volume, b"two"), two);
    bench.reopen();
    assert_eq!(extract_snapshot(&bench.volume, b"two"), two);
    bench.volume.snapshot_create(b"one").unwrap();
    for name in [b"two", b"one"] {
        bench.volume.snapshot_delete(name).unwrap();
    }
    assert_eq!(versions(&bench.volume), 0);
    bench.reopen();
    // Numbers are not used again, though no snapshot is left to tell.
    assert_eq!(bench.volume.snapshot_create(b"last").unwrap().number, 4);
    assert_clean(&bench.disk, &bench.clock, false, "without snapshots");
}

/// With threads, what is left goes in the background, and a close in between ends that.
#[test]
fn a_purge_that_was_cut_short_goes_on() {
    let mut bench = furnished();
    bench.volume.snapshot_create(b"s").unwrap();
    upset(&bench);
    bench.volume.close().unwrap();
    let threads = OpenOptions { background: true, ..options() };
    bench.volume = open(&bench.disk, &bench.clock, threads);
    let purging = bench.volume.snapshots.hold_purge();
    bench.volume.snapshot_delete(b"s").unwrap();
    assert!(bench.volume.snapshots().is_empty());
    assert_ne!(versions(&bench.volume), 0);
    let image = bench.disk.crash(crate::sys::sim::Keep::Nothing);
    drop(purging);
    bench.volume.close().unwrap();
    let volume = open(&image, &bench.clock, options());
    assert!(volume.snapshots().is_empty());
    assert_eq!(versions(&volume), 0);
    volume.close().unwrap();
    assert_clean(&image, &bench.clock, false, "after the purge");
}

#[test]
fn one_snapshot_can_be_shown_alone() {
    let bench = furnished();
    let before = extract(&bench.volume);
    bench.volume.snapshot_create(b"s").unwrap();
    upset(&bench);
    bench.volume.close().unwrap();
    let read_only = OpenOptions { read_only: true, ..options() };
    let overlay = OverlayDisk::new(Arc::new(bench.disk.clone()));
    let clock = Arc::new(bench.clock.clone());
    let volume = Volume::open(Arc::new(overlay), clock, read_only).unwrap();
    assert!(matches!(volume.show_snapshot(b"t"), Err(Error::NotFound)));
    volume.show_snapshot(b"s").unwrap();
    assert_eq!(extract(&volume), before);
    assert!(matches!(volume.lookup(Ino::ROOT, SNAPSHOTS_NAME), Err(Error::NotFound)));
    assert_eq!(volume.lookup(Ino::ROOT, b"..").unwrap().ino, Ino::ROOT);
    let made = volume.mkdir(Ino::ROOT, b"x", 0o700, ROOT, Wait::Yes);
    assert!(matches!(made, Err(Error::ReadOnly)), "{made:?}");
}

#[test]
fn many_snapshots_are_kept_apart() {
    let mut bench = Bench::new();
    let file = bench.create("file");
    let mut copies = BTreeMap::new();
    for number in 0..300u64 {
        bench.write(file, 0, &number.to_be_bytes());
        let name = format!("s{number:03}").into_bytes();
        bench.volume.snapshot_create(&name).unwrap();
        copies.insert(name, number);
        if number % 3 == 2 {
            let gone = format!("s{:03}", number - 1).into_bytes();
            bench.volume.snapshot_delete(&gone).unwrap();
            copies.remove(&gone);
        }
    }
    bench.reopen();
    assert_eq!(bench.volume.snapshots().len(), copies.len());
    for (name, number) in copies {
        let root = bench.volume.lookup(SNAPSHOTS, &name).unwrap().ino;
        let file = bench.volume.lookup(root, b"file").unwrap().ino;
        assert_eq!(bench.volume.read(file, 0, 8).unwrap(), number.to_be_bytes());
    }
    assert_clean(&bench.disk, &bench.clock, false, "with many");
}

/// A snapshot that finds no space comes with the group that it ended, once there is some.
#[test]
fn without_space_the_snapshot_waits_with_its_group() {
    let bench = furnished();
    bench.volume.sync().unwrap();
    let file = bench.find("file").unwrap();
    bench.write(file, 0, &noise(9, 200_000));
    let copy = extract(&bench.volume);
    for call in 1..4 {
        bench.disk.fail_call(call, libc::ENOSPC, crate::sys::sim::CallKind::Write);
    }
    let made = bench.volume.snapshot_create(b"s");
    bench.disk.clear_failures();
    if let Err(error) = made {
        assert!(matches!(error, Error::NoSpace), "{error}");
    }
    bench.write(file, 0, b"later");
    bench.volume.sync().unwrap();
    assert_eq!(extract_snapshot(&bench.volume, b"s"), copy);
    assert_clean(&bench.disk, &bench.clock, false, "after a lack of space");
}

fn diff(volume: &Volume, from: &str, to: Option<&str>) -> BTreeMap<String, Difference> {
    let mut found = BTreeMap::new();
    volume
        .snapshot_diff(from.as_bytes(), to.map(str::as_bytes), &mut |difference| {
            let path = String::from_utf8(difference.path.clone()).unwrap();
            let kind = if difference.change == Change::Removed { "-" } else { "+" };
            assert!(found.insert(format!("{kind}{path}"), difference).is_none(), "{path} twice");
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

#[test]
fn a_diff_names_what_was_added_removed_and_changed() {
    let bench = furnished();
    let volume = &bench.volume;
    volume.snapshot_create(b"one").unwrap();
    assert!(diff(volume, "one", None).is_empty());
    upset(&bench);
    let live = diff(volume, "one", None);
    volume.snapshot_create(b"two").unwrap();
    let found = diff(volume, "one", Some("two"));
    assert_eq!(live, found);
    assert_eq!(diff(volume, "two", None).len(), 0);
    assert_eq!(diff(volume, "two", Some("one")).len(), found.len());
    let file = &found["+file"];
    assert_eq!((file.size_before, file.size_after), (600_013, 40_000));
    let Change::Changed { content_bytes, attributes: true, xattrs: true } = file.change else {
        panic!("{file:?}")
    };
    // Of the head the chunks that were written; behind the cut all.
    assert!((560_013..590_000).contains(&content_bytes), "{content_bytes}");
    assert_eq!(found["+moved"].change, Change::Added);
    assert_eq!(found["-dir/fifo"].change, Change::Removed);
    assert_eq!(found["-dir/n99"].change, Change::Removed);
    assert_eq!(found["+renamed/n99"].change, Change::Added);
    assert!(!found.contains_key("+renamed/n50") && found.contains_key("+"));
    assert!(matches!(
        volume.snapshot_diff(b"x", None, &mut |_| ControlFlow::Break(())),
        Err(Error::NotFound)
    ));
    let mut shown = 0;
    volume
        .snapshot_diff(b"one", None, &mut |_| {
            shown += 1;
            if shown == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(shown, 3);
}

#[test]
fn a_path_is_restored_and_shares_its_chunks() {
    let mut bench = furnished();
    bench.volume.snapshot_create(b"s").unwrap();
    upset(&bench);
    let volume = Arc::clone(&bench.volume);
    volume.sync().unwrap();
    let chunks = volume.status().unwrap().chunks;
    let mut renewed = Vec::new();
    let restored =
        volume.restore(b"s", b"file", &mut |dir, name| renewed.push((dir, name.to_vec())));
    assert_eq!(restored.unwrap().files, 1);
    assert_eq!(renewed, [(Ino::ROOT, b"file".to_vec())]);
    let dir = volume.restore(b"s", b"/dir/", &mut |_, _| {}).unwrap();
    assert_eq!(dir.files, 104, "the second name of the file is a file of its own");
    assert_eq!(volume.status().unwrap().chunks, chunks);
    let changed = diff(&volume, "s", None);
    let names: Vec<&str> = changed.keys().map(String::as_str).collect();
    let renamed = names.iter().filter(|name| name.starts_with("+renamed")).count();
    // The directory above tells of its changes.
    assert_eq!(renamed + 3, names.len(), "{names:?}");
    assert!(["+", "+moved", "+new"].iter().all(|name| names.contains(name)));
    assert!(matches!(volume.restore(b"s", b"new", &mut |_, _| {}), Err(Error::NotFound)));
    assert!(matches!(volume.restore(b"t", b"file", &mut |_, _| {}), Err(Error::NotFound)));
    drop(volume);
    bench.reopen();
    assert_clean(&bench.disk, &bench.clock, true, "after a restore");
}

#[test]
fn the_whole_volume_is_restored() {
    let mut bench = furnished();
    let root = Ino::ROOT;
    let (any, yes) = (XattrMode::Any, Wait::Yes);
    bench.volume.setxattr(root, b"user.root", b"1", any, yes).unwrap();
    bench.volume.snapshot_create(b"s").unwrap();
    upset(&bench);
    bench.volume.setxattr(root, b"user.root", b"2", any, yes).unwrap();
    bench.volume.setxattr(root, b"user.more", b"2", any, yes).unwrap();
    let files = bench.volume.snapshots()[0].files;
    let restored = bench.volume.restore(b"s", b"", &mut |dir, _| assert_eq!(dir, root)).unwrap();
    assert_eq!(restored.files, files);
    assert_eq!(diff(&bench.volume, "s", None), BTreeMap::new());
    // The bench held references of all that was there.
    bench.reopen();
    assert_eq!(bench.volume.status().unwrap().files, files, "nothing is left of what was there");
    let file = bench.find("file").unwrap();
    assert_eq!(bench.volume.getattr(file).unwrap().nlink, 2);
    bench.volume.snapshot_delete(b"s").unwrap();
    bench.reopen();
    assert_eq!(bench.read_all(file)[..30_000], noise(1, 30_000));
    assert_clean(&bench.disk, &bench.clock, true, "after a restore of all");
}

/// What the kernel still holds of a tree that was replaced stays until it is forgotten.
#[test]
fn what_is_replaced_stays_as_long_as_it_is_used() {
    let bench = furnished();
    let volume = &bench.volume;
    volume.snapshot_create(b"s").unwrap();
    let dir = volume.lookup(Ino::ROOT, b"dir").unwrap().ino;
    let file = volume.lookup(dir, b"other name").unwrap().ino;
    volume
        .open_file(file, OpenFlags { write: true, ..OpenFlags::default() }, ROOT, Wait::Yes)
        .unwrap();
    volume.unlink(Ino::ROOT, b"file", Wait::Yes).unwrap();
    volume.restore(b"s", b"", &mut |_, _| {}).unwrap();
    bench.write(file, 0, b"still there");
    assert_eq!(volume.read(file, 0, 11).unwrap(), b"still there");
    assert_eq!((volume.getattr(file).unwrap().nlink, volume.getattr(dir).unwrap().nlink), (0, 0));
    assert!(matches!(volume.lookup(dir, b"n1"), Err(Error::NotFound)));
    volume.sync().unwrap();
    assert_clean(&bench.disk, &bench.clock, false, "in use");
    volume.release(file, true);
    volume.forget(file, 9);
    volume.forget(dir, 9);
    volume.sync().unwrap();
    assert!(matches!(volume.getattr(file), Err(Error::Stale)));
    assert!(matches!(volume.getattr(dir), Err(Error::Stale)));
    assert_clean(&bench.disk, &bench.clock, false, "forgotten");
}

#[test]
fn a_policy_is_kept_to_over_days_and_remounts() {
    let mut bench = furnished();
    bench.volume.snapshot_create(b"by hand").unwrap();
    let policy = Policy::parse("hourly:3+daily:2").unwrap();
    let mut handed_over = 0;
    for hour in 0..60 {
        bench.clock.advance(std::time::Duration::from_secs(3600));
        let count = std::cell::Cell::new(0);
        for _ in 0..2 {
            bench.volume.keep_snapshots(&policy, &|| count.set(count.get() + 1)).unwrap();
        }
        assert_eq!(count.get(), 1, "hour {hour}");
        handed_over += count.get();
        if hour % 20 == 7 {
            bench.reopen();
        }
    }
    assert_eq!(handed_over, 60);
    let now = bench.volume.now().secs;
    let names: Vec<String> = bench
        .volume
        .snapshots()
        .into_iter()
        .map(|info| String::from_utf8(info.name).unwrap())
        .collect();
    assert_eq!(names.len(), 6, "{names:?}");
    assert_eq!(names[0], "by hand");
    let newest = format!("hourly-{}", utc(now.div_euclid(3600) * 3600));
    assert!(names.contains(&newest), "{names:?}");
}
