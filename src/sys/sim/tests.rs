//! The simulated disk by itself: power losses, failing calls, space, rot, locks, hooks.

use std::collections::BTreeSet;

use super::*;
use crate::testing;

fn create(disk: &SimDisk, path: &str, bytes: &[u8]) -> Arc<dyn DiskFile> {
    let file = disk.open(path, Access::CreateNew).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

/// A file whose name and content are durable.
fn create_durable(disk: &SimDisk, path: &str, bytes: &[u8]) -> Arc<dyn DiskFile> {
    let file = create(disk, path, bytes);
    file.sync().unwrap();
    disk.sync_dir(super::super::path::split(path).unwrap().0).unwrap();
    file
}

fn content(disk: &SimDisk, path: &str) -> Option<Vec<u8>> {
    let file = disk.open(path, Access::Read).ok()?;
    let mut bytes = vec![0; file.len().unwrap() as usize];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    Some(bytes)
}

fn seeds() -> std::ops::Range<u64> {
    let first = testing::seed() * 1_000_000;
    first..first + 500
}

fn random_images(disk: &SimDisk) -> impl Iterator<Item = SimDisk> {
    seeds().map(|seed| disk.crash(Keep::Random(seed)))
}

#[test]
fn a_name_needs_its_directory_synced_and_content_its_file() {
    let disk = SimDisk::new();
    let file = create(&disk, "a", b"one");
    file.sync().unwrap();
    assert_eq!(content(&disk.crash(Keep::Nothing), "a"), None);
    assert_eq!(content(&disk.crash(Keep::All), "a").unwrap(), b"one");
    disk.sync_dir("").unwrap();
    assert_eq!(content(&disk.crash(Keep::Nothing), "a").unwrap(), b"one");
    create(&disk, "b", b"two");
    disk.sync_dir("").unwrap();
    assert_eq!(content(&disk.crash(Keep::Nothing), "b").unwrap(), b"");
    file.write_all_at(b"ONE and more", 0).unwrap();
    assert_eq!(content(&disk, "a").unwrap(), b"ONE and more");
    assert_eq!(content(&disk.crash(Keep::Nothing), "a").unwrap(), b"one");
    assert_eq!(content(&disk.crash(Keep::All), "a").unwrap(), b"ONE and more");
}

#[test]
fn a_directory_that_is_lost_takes_all_in_it_along() {
    let disk = SimDisk::new();
    disk.create_dir("d").unwrap();
    create_durable(&disk, "d/a", b"x");
    assert_eq!(disk.crash(Keep::Nothing).read_dir("").unwrap(), []);
    assert_eq!(
        disk.crash(Keep::Nothing).read_dir("d").unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
    disk.sync_dir("").unwrap();
    assert_eq!(content(&disk.crash(Keep::Nothing), "d/a").unwrap(), b"x");
}

#[test]
fn a_change_of_length_is_an_unsynced_operation_too() {
    let disk = SimDisk::new();
    let file = create_durable(&disk, "a", b"0123456789");
    file.set_len(4).unwrap();
    assert_eq!(content(&disk.crash(Keep::Nothing), "a").unwrap(), b"0123456789");
    file.sync().unwrap();
    file.set_len(6).unwrap();
    assert_eq!(content(&disk.crash(Keep::Nothing), "a").unwrap(), b"0123");
    assert_eq!(content(&disk.crash(Keep::All), "a").unwrap(), b"0123\0\0");
    let lengths: BTreeSet<usize> =
        random_images(&disk).map(|image| content(&image, "a").unwrap().len()).collect();
    assert_eq!(lengths, BTreeSet::from([4, 6]));
}

#[test]
fn random_losses_are_subsets_in_any_order_torn_between_sectors() {
    let disk = SimDisk::new();
    let file = create_durable(&disk, "a", &[b'.'; 2048]);
    file.write_all_at(&[b'x'; 1000], 100).unwrap();
    file.write_all_at(&[b'y'; 1000], 600).unwrap();
    let mut found = BTreeSet::new();
    for image in random_images(&disk) {
        let bytes = content(&image, "a").unwrap();
        assert_eq!(bytes.len(), 2048);
        // Where writes and sectors begin and end: between these nothing may change.
        let borders = [0, 100, 512, 600, 1024, 1100, 1536, 1600, 2048];
        let mut parts = String::new();
        for range in borders.windows(2) {
            let part = &bytes[range[0]..range[1]];
            assert!(part.iter().all(|&byte| byte == part[0]), "torn within {range:?}");
            parts.push(part[0] as char);
        }
        assert!(parts.starts_with('.') && parts.ends_with('.'), "bytes beside the writes changed");
        found.insert(parts);
    }
    let whole = ["........", ".xxyyyy.", ".xxxx...", "...yyyy.", ".xxxxyy."];
    for expected in whole {
        assert!(found.contains(expected), "{expected} not in {found:?}");
    }
    assert!(found.len() > whole.len(), "none was torn");
    assert!(!found.contains(".xx....."), "torn within a sector");
}

#[test]
fn random_losses_never_touch_what_is_synced() {
    let disk = SimDisk::new();
    let file = create(&disk, "a", &[1; 5000]);
    file.set_len(3000).unwrap();
    file.write_all_at(&[2; 5000], 1000).unwrap();
    file.sync().unwrap();
    disk.sync_dir("").unwrap();
    let synced = content(&disk, "a").unwrap();
    create(&disk, "b", &[3; 5000]);
    for image in random_images(&disk) {
        assert_eq!(content(&image, "a").unwrap(), synced);
    }
}

#[test]
fn the_same_seed_gives_the_same_image() {
    let disk = SimDisk::new();
    let file = create_durable(&disk, "a", b"");
    for at in 0..20 {
        file.write_all_at(&[at as u8; 700], at * 300).unwrap();
    }
    let image = |seed| content(&disk.crash(Keep::Random(seed)), "a");
    assert!(seeds().take(50).all(|seed| image(seed) == image(seed)));
    assert!(seeds().take(50).any(|seed| image(seed) != image(seed + 1)));
}

#[test]
fn a_replacing_rename_leaves_the_old_file_or_the_new_one() {
    let disk = SimDisk::new();
    create_durable(&disk, "a", b"old");
    create_durable(&disk, "t", b"new");
    disk.rename("t", "a").unwrap();
    assert_eq!(content(&disk.crash(Keep::Nothing), "a").unwrap(), b"old");
    assert_eq!(content(&disk.crash(Keep::Nothing), "t").unwrap(), b"new");
    let mut found = BTreeSet::new();
    for image in random_images(&disk) {
        found.insert((content(&image, "a").unwrap(), content(&image, "t")));
    }
    let (old, new) = (b"old".to_vec(), b"new".to_vec());
    let expected = [(new.clone(), None), (new.clone(), Some(new.clone())), (old, Some(new))];
    assert_eq!(found, BTreeSet::from(expected));
    disk.sync_dir("").unwrap();
    assert_eq!(content(&disk.crash(Keep::Nothing), "a").unwrap(), b"new");
    assert_eq!(content(&disk.crash(Keep::Nothing), "t"), None);
}

#[test]
fn a_name_that_changed_twice_may_keep_the_state_between() {
    let disk = SimDisk::new();
    create_durable(&disk, "a", b"1");
    for (name, bytes) in [("t", b"2"), ("u", b"3")] {
        create(&disk, name, bytes).sync().unwrap();
        disk.rename(name, "a").unwrap();
    }
    let found: BTreeSet<_> =
        random_images(&disk).map(|image| content(&image, "a").unwrap()).collect();
    assert_eq!(found, BTreeSet::from([b"1".to_vec(), b"2".to_vec(), b"3".to_vec()]));
}

#[test]
fn syncing_the_directory_a_file_has_left_keeps_the_file() {
    let disk = SimDisk::new();
    create_durable(&disk, "a", b"x");
    disk.create_dir("d").unwrap();
    disk.create_dir("d/e").unwrap();
    disk.rename("a", "d/e/b").unwrap();
    disk.sync_dir("").unwrap();
    let image = disk.crash(Keep::Nothing);
    assert_eq!(content(&image, "a"), None);
    assert_eq!(content(&image, "d/e/b").unwrap(), b"x");
}

#[test]
fn two_names_after_a_crash_are_one_file() {
    let disk = SimDisk::new();
    disk.create_dir("d").unwrap();
    create_durable(&disk, "a", b"x");
    disk.rename("a", "d/a").unwrap();
    disk.sync_dir("d").unwrap();
    let image = disk.crash(Keep::Nothing);
    image.open("a", Access::Write).unwrap().write_all_at(b"y", 0).unwrap();
    assert_eq!(content(&image, "d/a").unwrap(), b"y");
    image.rename("a", "d/a").unwrap();
    assert!(content(&image, "a").is_some(), "as the system does with two names of one file");
    image.remove_file("a").unwrap();
    image.sync_dir("").unwrap();
    assert_eq!(content(&image, "d/a").unwrap(), b"y");
}

proptest::proptest! {
    #![proptest_config(testing::config(200))]

    /// Random renames, removals and directory syncs: whatever a power loss picks, no durable file
    /// vanishes that has not been removed, and an image crashes into itself.
    #[test]
    fn durable_files_never_vanish(
        steps in proptest::collection::vec((0..10_u8, 0..8_usize, 0..8_usize), 1..40),
        seed: u64,
    ) {
        const PATHS: [&str; 8] = ["a", "b", "c", "d/a", "d/b", "d/e/a", "d/e/b", "d/e/c"];
        let disk = SimDisk::new();
        for dir in ["d", "d/e"] {
            disk.create_dir(dir).unwrap();
        }
        // Files that are durable under some name, by their content.
        let mut durable = BTreeSet::new();
        for (number, (step, from, to)) in steps.into_iter().enumerate() {
            let (from, to) = (PATHS[from], PATHS[to]);
            match step {
                0..=2 => {
                    if let Ok(file) = disk.open(from, Access::CreateNew) {
                        file.write_all_at(&[number as u8], 0).unwrap();
                        file.sync().unwrap();
                    }
                }
                3..=6 => {
                    let replaced = content(&disk, to);
                    if from != to && disk.rename(from, to).is_ok() {
                        durable.retain(|content| Some(content) != replaced.as_ref());
                    }
                }
                7 => {
                    let removed = content(&disk, from);
                    let _ = disk.remove_file(from);
                    durable.retain(|content| Some(content) != removed.as_ref());
                }
                _ => disk.sync_dir(["", "d", "d/e"][number % 3]).unwrap(),
            }
            let all = |image: &SimDisk| -> BTreeSet<Vec<u8>> {
                PATHS.iter().filter_map(|path| content(image, path)).collect()
            };
            let nothing = all(&disk.crash(Keep::Nothing));
            let current = all(&disk);
            // What has been durable stays so until it is removed.
            for content in &durable {
                assert!(nothing.contains(content), "{content:?} lost with nothing kept");
            }
            durable = nothing.intersection(&current).cloned().collect();
            let image = disk.crash(Keep::Random(seed.wrapping_add(number as u64)));
            for content in &durable {
                assert!(all(&image).contains(content), "{content:?} lost in a random image");
            }
            for keep in [Keep::Nothing, Keep::All, Keep::Random(seed)] {
                assert_eq!(all(&image.crash(keep)), all(&image));
            }
            assert_eq!(all(&disk.crash(Keep::All)), current);
        }
    }
}

#[test]
fn the_nth_call_fails_and_the_next_does_not() {
    let disk = SimDisk::new();
    let file = create(&disk, "a", b"0123456789");
    let mut buf = [0; 4];
    disk.fail_call(2, libc::EIO, CallKind::Read);
    assert!(file.read_at(&mut buf, 0).is_ok());
    file.write_all_at(b"0", 0).unwrap();
    assert_eq!(file.read_at(&mut buf, 0).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(file.read_at(&mut buf, 0).is_ok());
    disk.fail_call(3, libc::EDQUOT, CallKind::Any);
    file.sync().unwrap();
    disk.sync_dir("").unwrap();
    assert_eq!(disk.create_dir("d").unwrap_err().raw_os_error(), Some(libc::EDQUOT));
    disk.create_dir("d").unwrap();
    disk.fail_call(1, libc::EIO, CallKind::Any);
    disk.clear_failures();
    disk.read_dir("").unwrap();
}

#[test]
fn a_failed_write_has_written_a_part() {
    let disk = SimDisk::new();
    let file = create(&disk, "a", b"0123456789");
    disk.fail_call(1, libc::EIO, CallKind::Write);
    assert!(file.write_all_at(b"abcdefghij", 0).is_err());
    assert_eq!(content(&disk, "a").unwrap(), b"abcde56789");
    disk.fail_call(1, libc::EIO, CallKind::Write);
    assert!(file.set_len(0).is_err());
    assert_eq!(file.len().unwrap(), 10);
}

#[test]
fn what_a_failed_sync_has_lost_no_later_one_brings_back() {
    let disk = SimDisk::new();
    let file = create_durable(&disk, "a", b"....");
    file.write_all_at(b"xx", 0).unwrap();
    disk.fail_call(1, libc::EIO, CallKind::Sync);
    assert_eq!(file.sync().unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(content(&disk, "a").unwrap(), b"xx..", "it can be read until the machine stops");
    let found: BTreeSet<_> =
        random_images(&disk).map(|image| content(&image, "a").unwrap()).collect();
    assert_eq!(found, BTreeSet::from([b"....".to_vec(), b"xx..".to_vec()]));
    file.write_all_at(b"y", 3).unwrap();
    file.sync().unwrap();
    assert_eq!(content(&disk, "a").unwrap(), b"xx.y");
    for image in random_images(&disk).chain([disk.crash(Keep::Nothing)]) {
        assert_eq!(content(&image, "a").unwrap(), b"...y");
    }
}

#[test]
fn a_failed_sync_of_a_directory_leaves_its_names_unsynced() {
    let disk = SimDisk::new();
    create(&disk, "a", b"x").sync().unwrap();
    disk.fail_call(1, libc::EIO, CallKind::Sync);
    assert!(disk.sync_dir("").is_err());
    assert_eq!(content(&disk.crash(Keep::Nothing), "a"), None);
}

#[test]
fn room_that_was_taken_ahead_is_there_when_the_disk_is_full() {
    let disk = SimDisk::new();
    disk.set_space(16 << 10);
    let file = create(&disk, "a", b"x");
    file.allocate(16 << 10).unwrap();
    assert_eq!(disk.space().unwrap().free_bytes, 0);
    file.write_all_at(&[1; 16 << 10], 0).unwrap();
    assert!(file.allocate(17 << 10).is_err() && file.write_all_at(b"x", 16 << 10).is_err());
    file.set_len(4 << 10).unwrap();
    assert_eq!(disk.space().unwrap().free_bytes, 12 << 10);
    // As with every unsynced change, a power loss may undo it.
    let second = create(&disk, "b", b"");
    second.sync().unwrap();
    disk.sync_dir("").unwrap();
    second.allocate(8 << 10).unwrap();
    assert_eq!(disk.crash(Keep::Nothing).used_bytes().unwrap(), 0);
    assert_eq!(disk.crash(Keep::All).used_bytes().unwrap(), 12 << 10);
}

#[test]
fn space_is_limited_and_comes_back() {
    let disk = SimDisk::new();
    disk.set_space(16 << 10);
    let file = create(&disk, "a", &[1; 12 << 10]);
    assert_eq!(disk.space().unwrap().free_bytes, 4 << 10);
    let full = file.write_all_at(&[2; 8 << 10], 12 << 10).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    file.write_all_at(&[2; 4 << 10], 12 << 10).unwrap();
    file.write_all_at(&[3; 16 << 10], 0).unwrap();
    disk.remove_file("a").unwrap();
    assert_eq!(disk.used_bytes().unwrap(), 16 << 10, "an open file lives on");
    drop(file);
    assert_eq!(disk.used_bytes().unwrap(), 0);
    create(&disk, "b", &[4; 16 << 10]);
    assert!(
        disk.crash(Keep::All)
            .open("b", Access::Write)
            .unwrap()
            .write_all_at(b"x", 1 << 20)
            .is_err()
    );
}

#[test]
fn huge_sparse_files_cost_nothing() {
    let disk = SimDisk::new();
    let file = create(&disk, "a", b"x");
    file.set_len(1 << 50).unwrap();
    file.write_all_at(b"y", (1 << 60) - 1).unwrap();
    assert_eq!(file.len().unwrap(), 1 << 60);
    assert_eq!(disk.used_bytes().unwrap(), 8192);
    file.sync().unwrap();
    file.set_len(1).unwrap();
    assert_eq!(disk.used_bytes().unwrap(), 4096);
}

#[test]
fn rot_stays_on_the_medium() {
    let disk = SimDisk::new();
    create_durable(&disk, "a", b"0123");
    disk.rot("a", 2, 0xff).unwrap();
    let damaged = vec![b'0', b'1', b'2' ^ 0xff, b'3'];
    assert_eq!(content(&disk, "a").unwrap(), damaged);
    assert_eq!(content(&disk.crash(Keep::Nothing), "a").unwrap(), damaged);
    assert!(disk.rot("a", 4, 1).is_err());
    assert!(disk.rot("b", 0, 1).is_err());
}

#[test]
fn a_lock_is_exclusive_and_a_crash_image_has_none() {
    let disk = SimDisk::new();
    let lock = disk.lock("lock").unwrap();
    assert_eq!(disk.clone().lock("lock").err().unwrap().kind(), io::ErrorKind::WouldBlock);
    lock.set_note("busy").unwrap();
    assert_eq!(content(&disk, "lock").unwrap(), b"busy\n");
    let image = disk.crash(Keep::All);
    let _lock = image.lock("lock").unwrap();
    drop(lock);
    let _lock = disk.lock("lock").unwrap();
    assert_eq!(content(&disk, "lock").unwrap(), b"");
}

#[test]
fn the_hook_sees_every_sync_and_can_crash_the_disk_meanwhile() {
    let disk = SimDisk::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    disk.set_hook(Some(Box::new(move |disk, event| {
        let image = disk.crash(Keep::Nothing);
        // A sync of its own neither recurses nor deadlocks.
        disk.open("other", Access::Write).unwrap().sync().unwrap();
        log.lock().push((event, content(&image, "a")));
    })));
    let other = disk.open("other", Access::CreateNew).unwrap();
    let file = create(&disk, "a", b"x");
    file.sync().unwrap();
    disk.sync_dir("").unwrap();
    disk.fail_call(1, libc::EIO, CallKind::Sync);
    disk.set_hook(None);
    assert!(other.sync().is_err());
    let seen = seen.lock();
    let short: Vec<_> = seen
        .iter()
        .map(|(event, bytes)| (event.moment, event.path.as_str(), event.is_dir, bytes.as_deref()))
        .collect();
    let expected: [(Moment, &str, bool, Option<&[u8]>); 4] = [
        (Moment::Before, "a", false, None),
        (Moment::After, "a", false, None),
        (Moment::Before, "", true, None),
        (Moment::After, "", true, Some(b"x")),
    ];
    assert_eq!(short, expected);
    assert_eq!(disk.sync_count(), 7, "2 of the test, 4 of the hook, and the one that failed");
    assert_eq!(seen[0].0.number, seen[1].0.number);
}

#[test]
fn removed_files_are_forgotten_once_no_crash_can_bring_them_back() {
    let disk = SimDisk::new();
    for number in 0..10 {
        create_durable(&disk, &format!("{number}"), &[1; 100]);
        disk.remove_file(&format!("{number}")).unwrap();
    }
    disk.sync_dir("").unwrap();
    assert_eq!(disk.shared.state.lock().files.len(), 0);
}

#[test]
fn a_broken_sector_cannot_be_read_until_it_is_written() {
    let disk = SimDisk::new();
    let file = disk.open("file", Access::CreateNew).unwrap();
    file.write_all_at(&[7; 4096], 0).unwrap();
    disk.break_sector("file", 1000).unwrap();
    let read = |offset, len| file.read_at(&mut vec![0; len], offset).map_err(|e| e.raw_os_error());
    assert_eq!(read(0, 512), Ok(512));
    assert_eq!(read(0, 513), Err(Some(libc::EIO)));
    assert_eq!(read(1023, 1), Err(Some(libc::EIO)));
    assert_eq!(read(1024, 512), Ok(512));
    let image = disk.crash(Keep::All);
    let kept = image.open("file", Access::Read).unwrap();
    assert!(kept.read_at(&mut [0; 8], 600).is_err(), "a power loss mends nothing");
    file.write_all_at(&[8; 512], 512).unwrap();
    assert_eq!(read(0, 4096), Ok(4096));
}
