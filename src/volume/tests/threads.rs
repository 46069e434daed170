//! Several threads on one volume. Everything has a time limit.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use super::crash::{assert_clean, extract};
use super::*;
use crate::sys::sim::{Keep, Moment};

const LIMIT: Duration = Duration::from_secs(60);

/// Runs `work` on a thread of its own, and fails when it takes too long.
pub(super) fn limited(work: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    match wait.recv_timeout(LIMIT) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the threads hang"),
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}

/// With threads; the timer only where a test wants it.
fn threaded() -> OpenOptions {
    OpenOptions { background: true, commit_interval_ms: 3_600_000, ..options() }
}

fn wait_until(what: impl Fn() -> bool) {
    while !what() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn make_file(volume: &Volume, dir: Ino, name: &str) -> Ino {
    let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
    volume.mknod(dir, name.as_bytes(), &make, ROOT, Wait::Yes).unwrap().ino
}

type Files = BTreeMap<String, Vec<u8>>;

fn list(volume: &Volume, dir: Ino) -> Files {
    let mut files = Files::new();
    let mut items = Vec::new();
    volume
        .readdir(dir, 0, &mut |item| {
            items.push(item);
            true
        })
        .unwrap();
    for item in items.into_iter().filter(|item| item.mode_type == MODE_FILE) {
        let size = volume.getattr(item.ino).unwrap().size as usize;
        let name = String::from_utf8(item.name).unwrap();
        files.insert(name, volume.read(item.ino, 0, size).unwrap());
    }
    files
}

/// Random work in a directory that nobody else works in.
fn work_alone(volume: &Volume, dir: Ino, seed: u64) -> Files {
    let random = SimRng::new(seed);
    let mut files = Files::new();
    for _ in 0..150 {
        let name = format!("f{}", random.next_u64() % 6);
        let found = volume.lookup(dir, name.as_bytes());
        assert_eq!(found.is_ok(), files.contains_key(&name));
        let number = random.next_u64();
        let Ok(attr) = found else {
            let ino = make_file(volume, dir, &name);
            volume.forget(ino, 1);
            files.insert(name, Vec::new());
            continue;
        };
        let bytes = files.get_mut(&name).unwrap();
        match number % 8 {
            0..=2 => {
                let (offset, new) = ((number >> 8) as usize % 30_000, noise(number, 9_000));
                volume.write(attr.ino, offset as u64, &new, false, Wait::Yes).unwrap();
                bytes.resize(bytes.len().max(offset + new.len()), 0);
                bytes[offset..offset + new.len()].copy_from_slice(&new);
            }
            3 => {
                let size = (number >> 8) % 40_000;
                let change = SetAttr { size: Some(size), ..SetAttr::default() };
                volume.setattr(attr.ino, &change, ROOT, Wait::Yes).unwrap();
                bytes.resize(size as usize, 0);
            }
            4 => {
                volume.unlink(dir, name.as_bytes(), Wait::Yes).unwrap();
                assert_eq!(volume.getattr(attr.ino).unwrap().nlink, 0);
                files.remove(&name);
            }
            5 => {
                let to = format!("f{}", (number >> 8) % 6);
                let flags = RenameFlags::default();
                let (from, new) = (name.as_bytes(), to.as_bytes());
                volume.rename(dir, from, dir, new, flags, Wait::Yes).unwrap();
                let bytes = files.remove(&name).unwrap();
                files.insert(to, bytes);
            }
            6 => volume.fsync(attr.ino, Wait::Yes).unwrap(),
            _ => {
                assert_eq!(list(volume, dir), files);
            }
        }
        volume.forget(attr.ino, 1);
    }
    files
}

#[test]
fn threads_in_directories_of_their_own_do_not_disturb_each_other() {
    limited(|| {
        let limits = OpenOptions { dirty_bytes_max: 300_000, commit_interval_ms: 3, ..threaded() };
        let bench = Bench::with(limits);
        let dirs: Vec<Ino> = (0..4)
            .map(|number| {
                let name = format!("dir-{number}");
                let made = bench.volume.mkdir(Ino::ROOT, name.as_bytes(), 0o755, ROOT, Wait::Yes);
                made.unwrap().ino
            })
            .collect();
        let wanted: Vec<Files> = std::thread::scope(|scope| {
            let work = |&dir: &Ino| {
                let volume = Arc::clone(&bench.volume);
                scope.spawn(move || work_alone(&volume, dir, crate::testing::seed() * 77 + dir.0))
            };
            let threads: Vec<_> = dirs.iter().map(work).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let found: Vec<Files> = dirs.iter().map(|&dir| list(&bench.volume, dir)).collect();
        assert_eq!(found, wanted);
        let state = extract(&bench.volume);
        bench.volume.close().unwrap();
        assert_clean(&bench.disk, &bench.clock, true, "closed");
        let volume = open(&bench.disk, &bench.clock, options());
        assert_eq!(extract(&volume), state);
        assert_eq!(volume.status().unwrap().files, state.len() as u64);
    });
}

#[test]
fn concurrent_fsyncs_share_commits() {
    limited(|| {
        let bench = Bench::with(threaded());
        bench.disk.set_hook(Some(Box::new(|_, event| {
            if event.moment == Moment::Before {
                std::thread::sleep(Duration::from_millis(2));
            }
        })));
        let files: Vec<Ino> = (0..8).map(|number| bench.create(&format!("f{number}"))).collect();
        let before = bench.volume.status().unwrap().commits;
        std::thread::scope(|scope| {
            for &ino in &files {
                let volume = &bench.volume;
                scope.spawn(move || {
                    for round in 0..12 {
                        volume.write(ino, round * 10, b"0123456789", false, Wait::Yes).unwrap();
                        volume.fsync(ino, Wait::Yes).unwrap();
                    }
                });
            }
        });
        let commits = bench.volume.status().unwrap().commits - before;
        assert!(commits < 60, "{commits} commits for 96 fsyncs");
        let volume = open(&bench.disk.crash(Keep::Nothing), &bench.clock, options());
        for ino in files {
            assert_eq!(volume.read(ino, 0, 500).unwrap(), b"0123456789".repeat(12));
        }
    });
}

#[test]
fn a_writer_that_waits_for_dirty_space_gets_it() {
    for background in [false, true] {
        limited(move || {
            let limits = OpenOptions { background, dirty_bytes_max: 100_000, ..threaded() };
            let bench = Bench::with(limits);
            // Less than half is dirty, and the next write needs more than the rest.
            let small = bench.create("small");
            bench.write(small, 0, &noise(1, 45_000));
            let large = bench.create("large");
            bench.write(large, 0, &noise(2, 70_000));
            // More than there is at all.
            bench.write(large, 70_000, &noise(3, 300_000));
            // Many files, the first ones long flushed.
            for number in 0..200 {
                let ino = bench.create(&format!("many-{number}"));
                bench.write(ino, 0, &noise(number, 5_000));
            }
            assert_eq!(bench.volume.read(large, 70_000, 400_000).unwrap(), noise(3, 300_000));
            assert_eq!(bench.read_all(small), noise(1, 45_000));
        });
    }
}

#[test]
fn copies_of_a_file_that_changes_are_never_torn() {
    limited(|| {
        let bench = Bench::with(OpenOptions { commit_interval_ms: 2, ..threaded() });
        let source = bench.create("source");
        bench.write(source, 0, &[1; 30_000]);
        std::thread::scope(|scope| {
            let volume = &bench.volume;
            for value in [2u8, 3] {
                scope.spawn(move || {
                    for round in 0..60u64 {
                        let size = Some(if round % 3 == 0 { 0 } else { 10_000 });
                        let change = SetAttr { size, ..SetAttr::default() };
                        volume.setattr(source, &change, ROOT, Wait::Yes).unwrap();
                        volume.write(source, 0, &[value; 30_000], false, Wait::Yes).unwrap();
                    }
                });
            }
            for copier in 0..2 {
                scope.spawn(move || {
                    for round in 0..40 {
                        let to = make_file(volume, Ino::ROOT, &format!("copy-{copier}-{round}"));
                        volume.copy_range((source, 0), (to, 0), 1 << 40, ROOT, Wait::Yes).unwrap();
                        let bytes = volume.read(to, 0, 40_000).unwrap();
                        assert!([0, 10_000, 30_000].contains(&bytes.len()));
                        assert!(bytes.windows(2).all(|two| two[0] == two[1]), "a torn copy");
                        let bytes = volume.read(source, 0, 40_000).unwrap();
                        assert!(bytes.windows(2).all(|two| two[0] == two[1]), "a torn read");
                    }
                });
            }
        });
        bench.volume.close().unwrap();
        assert_clean(&bench.disk, &bench.clock, true, "closed");
    });
}

#[test]
fn a_file_removed_while_its_group_commits_is_counted_once() {
    for again in [false, true] {
        limited(move || {
            let mut bench = Bench::with(threaded());
            let ino = bench.create("doomed");
            bench.write(ino, 0, &noise(1, 50_000));
            if again {
                bench.volume.sync().unwrap();
                bench.write(ino, 30_000, &noise(2, 50_000));
            }
            let node = bench.volume.nodes.get(ino);
            std::thread::scope(|scope| {
                let flush = node.flush.lock();
                let open = bench.volume.meta.enter().id();
                let commit = scope.spawn(|| bench.volume.sync().unwrap());
                // The group is cut, and its layer waits for the lock held here.
                wait_until(|| open < bench.volume.meta.enter().id());
                bench.write(ino, 90_000, &noise(3, 20_000));
                bench.volume.unlink(Ino::ROOT, b"doomed", Wait::Yes).unwrap();
                bench.volume.forget(ino, 1);
                assert!(matches!(bench.volume.getattr(ino), Err(Error::Stale)));
                drop(flush);
                commit.join().unwrap();
            });
            bench.volume.nodes.put(node);
            // Durable by now: a file that had its name still.
            let image = bench.disk.crash(Keep::Nothing);
            assert_clean(&image, &bench.clock, true, "between");
            bench.volume.sync().unwrap();
            let status = bench.volume.status().unwrap();
            assert_eq!((status.files, status.logical_bytes, status.dirty_bytes), (1, 0, 0));
            bench.reopen();
            let status = bench.volume.status().unwrap();
            assert_eq!((status.files, status.logical_bytes), (1, 0));
            bench.volume.close().unwrap();
            assert_clean(&bench.disk, &bench.clock, true, "closed");
        });
    }
}

#[test]
fn a_commit_waits_for_flushers_that_hash_on_all_cores() {
    limited(|| {
        let bench = Bench::with(threaded());
        let count = 2 * rayon::current_num_threads();
        let files: Vec<Ino> = (0..count).map(|n| bench.create(&format!("f{n}"))).collect();
        files.iter().for_each(|&ino| bench.write(ino, 0, &noise(ino.0, 9_000)));
        let open = bench.volume.meta.enter().id();
        let volume = &bench.volume;
        std::thread::scope(|scope| {
            for &ino in &files {
                scope.spawn(move || {
                    let node = volume.nodes.get(ino);
                    let flush = node.flush.lock();
                    wait_until(|| open < volume.meta.enter().id());
                    std::thread::sleep(Duration::from_millis(50));
                    // As a flush does: with the lock held, on the threads that hash.
                    rayon::join(|| (), || ());
                    drop(flush);
                    volume.nodes.put(node);
                });
            }
            std::thread::sleep(Duration::from_millis(50));
            volume.sync().unwrap();
        });
    });
}

#[test]
fn whoever_must_not_wait_changes_nothing() {
    limited(|| {
        let bench = Bench::with(OpenOptions { dirty_bytes_max: 60_000, ..threaded() });
        let volume = &bench.volume;
        let (one, two) = (bench.create("one"), bench.create("two"));
        let node = volume.nodes.get(one);
        let flush = node.flush.lock();
        bench.write(one, 0, &noise(1, 50_000));
        let state = extract(volume);
        let refused = |result: Result<(), Error>| matches!(result, Err(Error::WouldWait));
        assert!(refused(volume.write(two, 0, &noise(2, 20_000), false, Wait::No)));
        assert!(refused(volume.write(one, 9, &noise(2, 20_000), false, Wait::No)));
        assert!(refused(volume.fsync(one, Wait::No)));
        assert!(refused(volume.copy_range((one, 0), (two, 0), 1 << 30, ROOT, Wait::No).map(drop)));
        assert_eq!(extract(volume), state);
        drop(flush);
        volume.nodes.put(node);
        volume.sync().unwrap();
        assert_eq!(volume.status().unwrap().dirty_bytes, 0);
        // A group that is full.
        let value = vec![7; XATTR_VALUE_BYTES_MAX];
        let fill = |number: u32| {
            let name = format!("user.{number}");
            volume.setxattr(one, name.as_bytes(), &value, XattrMode::Any, Wait::No)
        };
        assert!((0..200).any(|number| refused(fill(number))));
        let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
        let made = volume.mknod(Ino::ROOT, b"new", &make, ROOT, Wait::No);
        assert!(refused(made.map(drop)));
        assert!(refused(volume.unlink(Ino::ROOT, b"two", Wait::No)));
        assert!(matches!(bench.find("new"), Err(Error::NotFound)));
        assert!(bench.find("two").is_ok());
        assert!(volume.mknod(Ino::ROOT, b"new", &make, ROOT, Wait::Yes).is_ok());
    });
}

#[test]
fn the_timer_commits_what_nobody_asks_for() {
    limited(|| {
        let bench = Bench::with(OpenOptions { commit_interval_ms: 5, ..threaded() });
        let ino = bench.create("file");
        bench.write(ino, 0, b"left alone");
        wait_until(|| {
            let image = bench.disk.crash(crate::sys::sim::Keep::Nothing);
            let volume = open(&image, &bench.clock, options());
            let found = volume.lookup(Ino::ROOT, b"file");
            found.is_ok_and(|attr| volume.read(attr.ino, 0, 99).unwrap() == b"left alone")
        });
        bench.volume.close().unwrap();
    });
}
