//! Power losses in all small workloads: every sequence of up to three operations on a small tree,
//! with a crash at every sync of it.
//!
//! That is where crash bugs of filesystems have been found: "Finding Crash-Consistency Bugs with
//! Bounded Black-Box Crash Testing" (OSDI 2018). The judgement is that of `crash`.

use super::crash::Worker;
use super::*;

/// One operation, on fixed names. `/a` holds the files `a` (some chunks) and `b` (some bytes), `/b`
/// nothing.
#[derive(Debug, Clone, Copy)]
enum Op {
    MakeFile,
    MakeDir,
    Symlink,
    Append,
    Overwrite,
    Cut,
    Grow,
    Rename,
    RenameOver,
    RenameAcross,
    RenameDir,
    Whiteout,
    Exchange,
    ExchangeAcross,
    Link,
    Unlink,
    UnlinkOpen,
    Rmdir,
    Attributes,
    Clone,
    Flush,
    Fsync,
    TakeIn,
}

const ALL: [Op; 23] = [
    Op::MakeFile,
    Op::MakeDir,
    Op::Symlink,
    Op::Append,
    Op::Overwrite,
    Op::Cut,
    Op::Grow,
    Op::Rename,
    Op::RenameOver,
    Op::RenameAcross,
    Op::RenameDir,
    Op::Whiteout,
    Op::Exchange,
    Op::ExchangeAcross,
    Op::Link,
    Op::Unlink,
    Op::UnlinkOpen,
    Op::Rmdir,
    Op::Attributes,
    Op::Clone,
    Op::Flush,
    Op::Fsync,
    Op::TakeIn,
];

/// How many of the longest sequences a plain run leaves out for each that it takes; all of them
/// are taken when `PYRAMIDFS_CASES_FACTOR` is this or more.
const STRIDE: u64 = 64;

/// Does `op` where its names are there; answers whether a sync finished.
fn act(worker: &mut Worker, op: Op) -> Option<bool> {
    let root = Ino::ROOT.0;
    let (one, two) = (worker.model.find(root, "a")?, worker.model.find(root, "b"));
    let (file, other) = (worker.model.find(one, "a"), worker.model.find(one, "b"));
    let file = file.filter(|ino| worker.model.live[ino].bytes().is_some());
    let other = other.filter(|ino| worker.model.live[ino].bytes().is_some());
    let two = two.filter(|ino| worker.model.live[ino].is_dir());
    match op {
        Op::MakeFile => worker.make(two?, "c", 0, 0),
        Op::MakeDir => worker.make(one, "c", 1, 0),
        Op::Symlink => worker.make(one, "d", 2, 7),
        Op::Append => worker.write(file?, 9000, 5000),
        Op::Overwrite => worker.write(file?, 100, 4500),
        Op::Cut => worker.truncate(file?, 4000),
        Op::Grow => worker.truncate(other?, 9000),
        Op::Rename => worker.rename((one, "a"), (one, "e"), false),
        Op::RenameOver => worker.rename((one, "b"), (one, "a"), false),
        Op::RenameAcross => worker.rename((one, "a"), (two?, "a"), false),
        Op::RenameDir => worker.rename((root, "b"), (one, "sub"), false),
        Op::Whiteout => worker.rename((one, "a"), (one, "e"), true),
        Op::Exchange => worker.exchange((one, "a"), (one, "b")),
        Op::ExchangeAcross => worker.exchange((one, "b"), (root, "b")),
        Op::Link => worker.link(other?, (root, "more")),
        Op::Unlink => worker.remove(one, "a", false),
        Op::UnlinkOpen => worker.remove(one, "b", true),
        Op::Rmdir => worker.remove(root, "b", false),
        Op::Attributes => worker.attributes(1, 0, 4),
        Op::Clone => worker.copy(file?, other?),
        Op::Flush => worker.flush(file?),
        Op::Fsync => {
            worker.volume.fsync(Ino::ROOT, Wait::Yes).unwrap();
            return Some(true);
        }
        Op::TakeIn => worker.take_in(),
    }
    Some(false)
}

/// Names the sequence that failed.
struct Told<'a>(&'a [Op]);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the sequence was {:?}", self.0);
        }
    }
}

/// The tree that each sequence begins with.
fn base() -> (SimDisk, SimClock) {
    let mut worker = Worker::new(crate::testing::seed());
    let root = Ino::ROOT.0;
    worker.make(root, "a", 1, 0);
    worker.make(root, "b", 1, 0);
    let one = worker.model.find(root, "a").unwrap();
    for (name, count) in [("a", 9000), ("b", 20)] {
        worker.make(one, name, 0, 0);
        let file = worker.model.find(one, name).unwrap();
        worker.write(file, 0, count);
    }
    worker.volume.close().unwrap();
    (worker.disk.crash(crate::sys::sim::Keep::All), worker.clock.clone())
}

/// Runs one sequence with all its crashes; answers how many images were judged.
fn run(base: &(SimDisk, SimClock), sequence: &[Op]) -> u64 {
    let clock = SimClock::new();
    clock.advance(crate::sys::Clock::monotonic(&base.1));
    let disk = base.0.crash(crate::sys::sim::Keep::All);
    let mut worker = Worker::on(disk, clock, crate::testing::seed(), 0);
    for &op in sequence {
        worker.advance();
        // What cannot be done is a shorter sequence, which has its own turn.
        let Some(finished) = act(&mut worker, op) else { return 0 };
        worker.settle(finished);
    }
    worker.volume.sync().unwrap();
    worker.settle(true);
    worker.judged
}

#[test]
fn every_small_workload_survives_a_crash_at_every_sync() {
    let base = base();
    let stride = (STRIDE / u64::from(crate::testing::factor())).max(1);
    let (mut sequences, mut images) = (0_u64, 0);
    let mut take = |sequence: &[Op]| {
        let told = Told(sequence);
        let judged = run(&base, sequence);
        drop(told);
        sequences += u64::from(judged != 0);
        images += judged;
    };
    let mut turn = crate::testing::seed();
    for one in ALL {
        take(&[one]);
        for two in ALL {
            take(&[one, two]);
            for three in ALL {
                turn += 1;
                if turn.is_multiple_of(stride) {
                    take(&[one, two, three]);
                }
            }
        }
    }
    eprintln!("{sequences} sequences, {images} crashes");
    assert!(300 < sequences && sequences * 3 < images);
}
