//! The write pipeline with its threads in many orders: tickets, who appends, who waits for whom.
//!
//! All threads take hold of what the store shares and wait for each other only through its own
//! locks, so that shuttle finds a thread that nobody wakes.

use shuttle::thread;

use super::*;
use crate::sys::sim::CallKind;
use crate::testing::schedules;

/// So little room for closed frames that almost everybody waits for it.
fn tight() -> Options {
    Options { pending_bytes_max: 1, cache_bytes: 0, compression: Compression::None, ..small() }
}

fn start(options: Options) -> (SimDisk, Arc<Store>) {
    let disk = new_disk();
    let store = open_from(&disk, options, LogPosition::default()).store;
    (disk, Arc::new(store))
}

/// A worker of the store, which ends when the store stops.
fn worker(store: &Store, receiver: crossbeam_channel::Receiver<Job>) -> thread::JoinHandle<()> {
    let inner = Arc::clone(&store.inner);
    thread::spawn(move || {
        loop {
            match receiver.try_recv() {
                Ok(job) => drop(inner.work(job)),
                Err(crossbeam_channel::TryRecvError::Empty) => thread::yield_now(),
                Err(crossbeam_channel::TryRecvError::Disconnected) => return,
            }
        }
    })
}

/// Whether it is what a full or broken disk answers.
fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::NoSpace | Error::Poisoned { .. })
}

/// Everything that is there behind the log's records, after closing without a word.
fn assert_recovers(disk: &SimDisk, records: usize, numbers: &[u64]) {
    let Opened { store, records: found, findings } = open(disk);
    assert_eq!((found.len(), findings.len()), (records, 0), "{findings:?}");
    assert_reads(&store, numbers.iter().copied());
    assert_eq!(verify_findings(&store), []);
}

#[test]
fn many_put_the_same_and_all_of_it_is_there() {
    schedules(2000, || {
        let (disk, store) = start(tight());
        let (sender, receiver) = crossbeam_channel::unbounded();
        *store.inner.workers.lock() = Some(sender);
        let workers: Vec<_> = (0..2).map(|_| worker(&store, receiver.clone())).collect();
        drop(receiver);
        let putters: Vec<_> = (0..3_u64)
            .map(|who| {
                let store = Arc::clone(&store);
                thread::spawn(move || {
                    // Two of three are shared with another one.
                    for number in who..who + 3 {
                        put(&store, number).unwrap();
                    }
                    let (address, tree) = tree_of(&[who, who + 1]);
                    store.put_tree(address, tree).unwrap();
                    commit(&store, &[who as u8]).unwrap();
                })
            })
            .collect();
        putters.into_iter().for_each(|thread| thread.join().unwrap());
        let totals = store.stats();
        assert_eq!((totals.chunks, totals.pending_bytes, totals.sequence), (5 + 3, 0, 3));
        *store.inner.workers.lock() = None;
        workers.into_iter().for_each(|thread| thread.join().unwrap());
        assert_reads(&store, 0..5);
        assert_recovers(&disk.crash(crate::sys::sim::Keep::Nothing), 3, &[0, 1, 2, 3, 4]);
    });
}

#[test]
fn a_full_disk_hangs_nobody_and_all_goes_on_when_there_is_room() {
    schedules(2000, || {
        let (disk, store) = start(tight());
        put(&store, 0).unwrap();
        commit(&store, b"").unwrap();
        disk.set_space(0);
        let putters: Vec<_> = (1..4_u64)
            .map(|who| {
                let store = Arc::clone(&store);
                thread::spawn(move || {
                    let put_all = || (who..who + 2).try_for_each(|n| put(&store, n).map(drop));
                    let done = put_all().and_then(|()| commit(&store, &[who as u8]));
                    done.map_err(|error| assert!(is_refusal(&error), "{error}")).is_ok()
                })
            })
            .collect();
        let room = disk.clone();
        let helper = thread::spawn(move || {
            thread::yield_now();
            room.set_space(u64::MAX);
        });
        let done = putters.into_iter().map(|thread| thread.join().unwrap());
        let records = done.filter(|done| *done).count();
        helper.join().unwrap();
        // What was refused stays in flight, and comes with the next.
        let numbers: Vec<u64> = (0..5).collect();
        for number in &numbers {
            put(&store, *number).unwrap();
        }
        commit(&store, b"").unwrap();
        assert_eq!(store.stats().pending_bytes, 0);
        assert_recovers(&disk.crash(crate::sys::sim::Keep::Nothing), 1 + records + 1, &numbers);
    });
}

#[test]
fn a_broken_disk_hangs_nobody() {
    for failing in 1..5 {
        schedules(500, move || {
            let (disk, store) = start(tight());
            let (sender, receiver) = crossbeam_channel::unbounded();
            *store.inner.workers.lock() = Some(sender);
            let worker = worker(&store, receiver);
            put(&store, 0).unwrap();
            commit(&store, b"").unwrap();
            disk.fail_call(failing, libc::EIO, CallKind::Write);
            let putters: Vec<_> = (1..4_u64)
                .map(|who| {
                    let store = Arc::clone(&store);
                    thread::spawn(move || {
                        let done = put(&store, who).and_then(|_| commit(&store, &[who as u8]));
                        done.map_err(|error| assert!(is_refusal(&error), "{error}")).is_ok()
                    })
                })
                .collect();
            let done = putters.into_iter().map(|thread| thread.join().unwrap());
            let records = done.filter(|done| *done).count();
            *store.inner.workers.lock() = None;
            worker.join().unwrap();
            drop(store);
            let Opened { store, records: found, .. } =
                open(&disk.crash(crate::sys::sim::Keep::Nothing));
            assert!(records < found.len(), "acknowledged records are there");
            assert_reads(&store, [0]);
        });
    }
}
