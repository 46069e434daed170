//! Power losses and failing calls.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::sys::sim::{CallKind, Event, Keep, Moment};

/// Chunks of the group with this number: some are new, some are of the group before.
fn group(number: u64) -> Vec<u64> {
    (number * 6..number * 6 + 9).collect()
}

fn entries(number: u64) -> Vec<u8> {
    (0..number * 40).map(|at| (at + number) as u8).collect()
}

fn put_group(store: &Store, number: u64) -> Result<()> {
    for chunk in group(number) {
        put(store, chunk)?;
    }
    let (address, tree) = tree_of(&group(number));
    store.put_tree(address, tree)
}

fn assert_group(store: &Store, number: u64) {
    assert_reads(store, group(number));
    let (address, tree) = tree_of(&group(number));
    assert_eq!(*store.tree(&address).unwrap(), tree);
}

/// Opens a crash image; checks that the records are those of groups 1 to some number, at least
/// `acknowledged` of them and at most one more, and that all they need is there.
fn assert_recovers(image: &SimDisk, from: LogPosition, acknowledged: u64) {
    let Opened { store, records, findings } = open_from(image, small(), from);
    let usual =
        |one: &Finding| matches!(one, Finding::TailCut { .. } | Finding::PackSetAside { .. });
    assert!(findings.iter().all(usual), "{findings:?}");
    let count = from.sequence + records.len() as u64;
    assert!(acknowledged <= count && count <= acknowledged + 1, "{acknowledged} {count}");
    for (record, number) in records.iter().zip(from.sequence + 1..) {
        assert_eq!(record.position.sequence, number);
        assert_eq!(record.entries, entries(number));
    }
    for number in 1..=count {
        assert_group(&store, number);
    }
    assert_eq!(verify_findings(&store), []);
    // Work goes on, also when the next power loss keeps only what is durable.
    put_group(&store, count + 1).unwrap();
    commit(&store, &entries(count + 1)).unwrap();
    drop(store);
    let Opened { store, records, findings } =
        open_from(&image.crash(Keep::Nothing), small(), LogPosition::default());
    assert_eq!((findings, records.len() as u64), (vec![], count + 1));
    (1..=count + 1).for_each(|number| assert_group(&store, number));
    assert_eq!(verify_findings(&store), []);
}

#[test]
fn every_sync_may_be_the_last() {
    let disk = new_disk();
    let store = open(&disk).store;
    let acknowledged = Arc::new(AtomicU64::new(0));
    let from = Arc::new(Mutex::new(LogPosition::default()));
    let tried = Arc::new(AtomicU64::new(0));
    let hook = {
        let (acknowledged, from, tried) = (acknowledged.clone(), from.clone(), tried.clone());
        move |disk: &SimDisk, event: Event| {
            let seed = event.number * 2 + u64::from(event.moment == Moment::After);
            let seed = seed + crate::testing::seed() * 1000;
            let keeps = [Keep::Nothing, Keep::All, Keep::Random(seed), Keep::Random(!seed)];
            for keep in keeps {
                let known = acknowledged.load(Ordering::Relaxed);
                assert_recovers(&disk.crash(keep), *from.lock(), known);
                tried.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    disk.set_hook(Some(Box::new(hook)));
    for number in 1..=9 {
        put_group(&store, number).unwrap();
        let position = commit(&store, &entries(number)).unwrap();
        acknowledged.store(number, Ordering::Relaxed);
        if number % 3 == 0 {
            store.save_index().unwrap();
            *from.lock() = position;
        }
    }
    store.close().unwrap();
    disk.set_hook(None);
    assert!(tried.load(Ordering::Relaxed) > 100);
    assert!(store.stats().packs > 3);
}

/// Packs that hold all that these tests write.
fn one_pack() -> Options {
    Options { pack_bytes_max: 1 << 20, ..small() }
}

#[test]
fn any_cut_of_the_unsynced_tail_gives_the_last_durable_record() {
    let disk = new_disk();
    let store = open_from(&disk, one_pack(), LogPosition::default()).store;
    put_group(&store, 1).unwrap();
    let first = commit(&store, &entries(1)).unwrap();
    put_group(&store, 2).unwrap();
    let second = commit(&store, &entries(2)).unwrap();
    assert_eq!(first.pack, second.pack);
    let path = pack::pack_path(first.pack);
    let mut step = 0;
    for len in first.offset..=second.offset {
        step += 1;
        if step % 97 != 0 && second.offset - len > 40 && len - first.offset > 40 {
            continue;
        }
        let image = disk.crash(Keep::All);
        image.open(&path, Access::Write).unwrap().set_len(len).unwrap();
        let Opened { store, records, .. } = open(&image);
        let whole = len == second.offset;
        assert_eq!(records.len(), if whole { 2 } else { 1 }, "cut at {len}");
        assert_group(&store, 1);
        drop(store);
        assert_eq!(file_len(&image, &path), if whole { len } else { first.offset });
    }
}

#[test]
fn a_damaged_payload_in_the_last_group_takes_its_record_along() {
    let disk = new_disk();
    let store = open_from(&disk, one_pack(), LogPosition::default()).store;
    put_group(&store, 1).unwrap();
    let first = commit(&store, &entries(1)).unwrap();
    put_group(&store, 2).unwrap();
    commit(&store, &entries(2)).unwrap();
    drop(store);
    let image = disk.crash(Keep::All);
    image.rot(&pack::pack_path(first.pack), first.offset + 1200, 1).unwrap();
    let Opened { store, records, .. } = open(&image);
    assert_eq!(records.len(), 1);
    assert_group(&store, 1);
    // The same with a header.
    let image = disk.crash(Keep::All);
    image.rot(&pack::pack_path(first.pack), first.offset + 50, 1).unwrap();
    assert_eq!(open(&image).records.len(), 1);
    // But never behind what is asked for.
    let image = disk.crash(Keep::All);
    image.rot(&pack::pack_path(first.pack), first.offset - 8, 1).unwrap();
    let Opened { records, findings, .. } = open_from(&image, small(), first);
    assert_eq!((records.len(), findings), (1, vec![]));
}

#[test]
fn a_failed_sync_poisons_for_ever() {
    let disk = new_disk();
    let store = open(&disk).store;
    put_group(&store, 1).unwrap();
    commit(&store, &entries(1)).unwrap();
    put_group(&store, 2).unwrap();
    let flushed = store.flush().unwrap();
    disk.fail_call(1, libc::EIO, CallKind::Sync);
    let Err(Error::Poisoned { cause }) = store.commit(flushed, &entries(2)) else {
        panic!("the sync failed");
    };
    assert!(cause.contains("sync"), "{cause}");
    let syncs = disk.sync_count();
    assert!(matches!(put(&store, 999), Err(Error::Poisoned { .. })));
    assert!(matches!(store.flush(), Err(Error::Poisoned { .. })));
    assert_group(&store, 1);
    drop(store);
    assert_eq!(disk.sync_count(), syncs, "a failed sync is not tried again");
    assert_recovers(&disk.crash(Keep::Nothing), LogPosition::default(), 1);
}

#[test]
fn a_failed_append_poisons_and_hangs_nobody() {
    for workers in [0, 2] {
        for call in 1..8 {
            let disk = new_disk();
            let options = Options { workers, pending_bytes_max: 64 * 1024, ..small() };
            let store = open_from(&disk, options, LogPosition::default()).store;
            put_group(&store, 1).unwrap();
            commit(&store, &entries(1)).unwrap();
            disk.fail_call(call, libc::EIO, CallKind::Write);
            let failed = (100..400).any(|number| put(&store, number).is_err());
            assert!(failed, "the failure reaches a later call");
            assert!(matches!(store.flush(), Err(Error::Poisoned { .. })));
            assert_group(&store, 1);
            drop(store);
            assert_recovers(&disk.crash(Keep::All), LogPosition::default(), 1);
        }
    }
}

#[test]
fn a_full_disk_is_no_end() {
    for workers in [0, 2] {
        for extra in 0..12 {
            let disk = new_disk();
            let options = Options { workers, ..small() };
            let store = open_from(&disk, options, LogPosition::default()).store;
            put_group(&store, 1).unwrap();
            commit(&store, &entries(1)).unwrap();
            let used = disk.used_bytes().unwrap();
            disk.set_space(used + extra * 4096);
            let _ = put_group(&store, 2);
            let mut committed = commit(&store, &entries(2));
            for number in 1000..1100 {
                if committed.is_err() {
                    break;
                }
                let _ = put(&store, number);
                committed = store.flush().map(|_| LogPosition::default());
            }
            assert!(matches!(committed, Err(Error::NoSpace)), "{committed:?}");
            assert!(matches!(store.flush(), Err(Error::NoSpace)));
            assert_group(&store, 1);
            assert_recovers(&disk_with_room(&disk), LogPosition::default(), 1);
            disk.set_space(u64::MAX);
            put_group(&store, 2).unwrap();
            put_group(&store, 3).unwrap();
            commit(&store, &entries(3)).unwrap();
            (1..=3).for_each(|number| assert_group(&store, number));
            drop(store);
            let Opened { store, records, .. } = open(&disk.crash(Keep::Nothing));
            assert!(records.len() >= 2);
            (1..=3).for_each(|number| assert_group(&store, number));
            assert_eq!(verify_findings(&store), []);
        }
    }
}

fn disk_with_room(disk: &SimDisk) -> SimDisk {
    let image = disk.crash(Keep::All);
    image.set_space(u64::MAX);
    image
}

/// A process that died between append and sync leaves a record in the page cache alone.
#[test]
fn what_opening_keeps_is_synced_before_it_is_used() {
    let disk = new_disk();
    let store = open(&disk).store;
    for number in 1..=8 {
        put_group(&store, number).unwrap();
        commit(&store, &entries(number)).unwrap();
    }
    let packs = store.stats().packs;
    drop(store);
    let synced = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&synced);
    disk.set_hook(Some(Box::new(move |_, event: Event| {
        if event.moment == Moment::After {
            list.lock().push(event.path);
        }
    })));
    let store = open(&disk).store;
    disk.set_hook(None);
    for number in 1..=packs {
        assert!(synced.lock().contains(&pack::pack_path(number)), "{number}");
        assert!(synced.lock().contains(&pack::pack_dir(number)), "{number}");
    }
    assert_eq!(store.stats().packs, packs);
}
