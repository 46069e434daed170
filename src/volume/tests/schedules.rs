//! A whole volume with its threads in many orders: dirty space, flushers, and who is served by
//! whose commit.
//!
//! The threads of the volume itself run too; only those of the store do not, which
//! `src/store/tests/schedules.rs` has.

use std::time::Duration;

use shuttle::thread;

use super::*;
use crate::sys::sim::Keep;
use crate::testing::schedules;
use crate::volume::budget::{Budget, Failure};

/// A volume with all its threads, and with so many dirty bytes at most.
fn start(dirty_bytes_max: u64) -> Bench {
    let (disk, clock) = (SimDisk::new(), SimClock::new());
    create(&disk, &clock);
    let options = OpenOptions { dirty_bytes_max, ..options() };
    let (dyn_disk, dyn_clock) = (Arc::new(disk.clone()), Arc::new(clock.clone()));
    let superblock = Superblock::read(&disk).unwrap();
    let lock = lock_for(&disk, &options).unwrap();
    let mut volume = Volume::assemble(dyn_disk, dyn_clock, superblock, options, lock).unwrap();
    volume.options.background = true;
    Bench { disk, clock, volume: volume.begin().unwrap() }
}

/// What stands in the file of this name on the disk as a power loss now would leave it.
fn durable(bench: &(SimDisk, SimClock), name: &str) -> Option<Vec<u8>> {
    let disk = bench.0.crash(Keep::Nothing);
    let volume = open(&disk, &bench.1, options());
    let attr = volume.lookup(Ino::ROOT, name.as_bytes()).ok()?;
    Some(volume.read(attr.ino, 0, attr.size as usize).unwrap())
}

#[test]
fn the_budget_serves_everybody() {
    schedules(20_000, || {
        let budget = Arc::new(Budget::new(10));
        let takers: Vec<_> = [4_u64, 7, 15]
            .into_iter()
            .map(|bytes| {
                let budget = Arc::clone(&budget);
                thread::spawn(move || {
                    for _ in 0..2 {
                        budget.take(bytes, Wait::Yes).unwrap();
                        budget.settle(bytes, bytes - 1);
                        budget.settle(bytes - 1, 0);
                    }
                })
            })
            .collect();
        takers.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(budget.used(), 0);
    });
}

#[test]
fn a_failure_reaches_all_who_wait_for_the_budget() {
    schedules(20_000, || {
        let budget = Arc::new(Budget::new(10));
        budget.take(10, Wait::Yes).unwrap();
        let takers: Vec<_> = (0..3)
            .map(|_| {
                let budget = Arc::clone(&budget);
                thread::spawn(move || match budget.take(5, Wait::Yes) {
                    Ok(()) => budget.settle(5, 0),
                    Err(error) => assert!(matches!(error, Error::NoSpace)),
                })
            })
            .collect();
        budget.set_failing(Some(Failure::NoSpace));
        takers.into_iter().for_each(|thread| thread.join().unwrap());
        budget.settle(10, 0);
        assert_eq!(budget.used(), 0);
    });
}

#[test]
fn what_fsync_answered_for_is_durable_whoever_committed_it() {
    schedules(400, || {
        let bench = start(1 << 20);
        let writers: Vec<_> = (0..3_u64)
            .map(|who| {
                let (volume, disk) = (Arc::clone(&bench.volume), bench.disk.clone());
                let clock = bench.clock.clone();
                thread::spawn(move || {
                    let name = format!("file-{who}");
                    let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
                    let made = volume.mknod(Ino::ROOT, name.as_bytes(), &make, ROOT, Wait::Yes);
                    let ino = made.unwrap().ino;
                    volume.write(ino, 0, &noise(who, 9000), false, Wait::Yes).unwrap();
                    volume.fsync(ino, Wait::Yes).unwrap();
                    assert_eq!(durable(&(disk, clock), &name), Some(noise(who, 9000)));
                })
            })
            .collect();
        writers.into_iter().for_each(|thread| thread.join().unwrap());
        bench.volume.close().unwrap();
    });
}

#[test]
fn writers_who_wait_for_dirty_space_are_served_and_their_bytes_are_right() {
    schedules(400, || {
        // Two writes have no room beside each other.
        let bench = start(20_000);
        let writers: Vec<_> = (0..3_u64)
            .map(|who| {
                let volume = Arc::clone(&bench.volume);
                let ino = bench.create(&format!("file-{who}"));
                thread::spawn(move || {
                    for at in 0..3 {
                        let bytes = noise(who * 10 + at, 13_000);
                        volume.write(ino, at * 10_000, &bytes, false, Wait::Yes).unwrap();
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|thread| thread.join().unwrap());
        for who in 0..3 {
            let ino = bench.find(&format!("file-{who}")).unwrap();
            let mut wanted = vec![0; 33_000];
            for at in 0..3 {
                let place = at as usize * 10_000;
                wanted[place..place + 13_000].copy_from_slice(&noise(who * 10 + at, 13_000));
            }
            assert!(bench.read_all(ino) == wanted, "file {who}");
        }
        bench.volume.close().unwrap();
        assert_eq!(bench.volume.budget.used(), 0);
        let volume = open(&bench.disk, &bench.clock, options());
        assert_eq!(volume.status().unwrap().logical_bytes, 3 * 33_000);
    });
}

#[test]
fn a_full_disk_hangs_no_writer() {
    schedules(400, || {
        let bench = start(20_000);
        let inos: Vec<Ino> = (0..2).map(|who| bench.create(&format!("file-{who}"))).collect();
        bench.volume.sync().unwrap();
        // Of which the volume keeps a part in reserve.
        bench.disk.set_space(25 << 20);
        let writers: Vec<_> = inos
            .iter()
            .map(|&ino| {
                let volume = Arc::clone(&bench.volume);
                thread::spawn(move || {
                    for at in 0..4 {
                        let noise = noise(ino.0 * 10 + at, 13_000);
                        let done = volume.write(ino, at * 13_000, &noise, false, Wait::Yes);
                        let done = done.and_then(|()| volume.fsync(ino, Wait::Yes));
                        assert!(matches!(done, Ok(()) | Err(Error::NoSpace)), "{done:?}");
                    }
                })
            })
            .collect();
        let disk = bench.disk.clone();
        let filler = thread::spawn(move || {
            disk.set_space(0);
            thread::yield_now();
            disk.set_space(u64::MAX);
        });
        writers.into_iter().for_each(|thread| thread.join().unwrap());
        filler.join().unwrap();
        // As the timer would do; no time passes here.
        bench.clock.advance(Duration::from_secs(10));
        bench.volume.sync().unwrap();
        for &ino in &inos {
            bench.volume.write(ino, 0, &noise(ino.0, 13_000), false, Wait::Yes).unwrap();
        }
        bench.volume.close().unwrap();
        let volume = open(&bench.disk, &bench.clock, options());
        for ino in inos {
            assert_eq!(volume.read(ino, 0, 13_000).unwrap(), noise(ino.0, 13_000));
        }
    });
}
