//! The checkpoint after a power loss at every sync, after every error of the disk, and after rot.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{SMALL, commit, put, reopen, scan};
use crate::meta::checkpoint::backend::{Backend, PageFile};
use crate::meta::{Damage, Error, Ino, Key, KeyRange, Meta, Options};
use crate::store::Record;
use crate::sys::sim::{CallKind, Keep, Moment, SimDisk};
use crate::sys::{Access, Disk};
use crate::testing;

const FILE: &str = "meta/checkpoint.redb";
const KEYS: u64 = 150;

/// Every read goes to the disk.
const UNCACHED: Options = Options { cache_bytes: 0, ..SMALL };

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// A history with a small checkpoint: the model after each record, by sequence number.
#[derive(Default)]
struct History {
    log: Vec<Record>,
    models: Vec<Map>,
}

impl History {
    fn new() -> History {
        History { log: Vec::new(), models: vec![Map::new()] }
    }

    /// Commits a group that changes a third of the keys.
    fn step(&mut self, meta: &Meta) {
        let sequence = self.models.len() as u64;
        let mut model = self.models.last().unwrap().clone();
        for number in
            (0..KEYS).filter(|n| (n * 7 + sequence * 5 + testing::seed()).is_multiple_of(3))
        {
            let key = Key::Inode(Ino(number));
            if (number + sequence).is_multiple_of(4) {
                meta.enter().delete(&key);
                model.remove(&key.encode());
            } else {
                let value = vec![sequence as u8; 20 + (number * sequence % 400) as usize];
                put(meta, &key, &value);
                model.insert(key.encode(), value);
            }
        }
        commit(meta, &mut self.log);
        self.models.push(model);
    }

    /// Opens an image whose checkpoint must name one of two records, and replays the rest.
    fn check(&self, image: SimDisk, allowed: [u64; 2], log_end: u64) {
        let disk: Arc<dyn Disk> = Arc::new(image);
        let meta = Meta::open(disk.clone(), SMALL).unwrap();
        let found = meta.position().sequence;
        assert!(allowed.contains(&found), "record {found}, not one of {allowed:?}");
        self.check_content(&meta, found);
        drop(meta);
        let meta = reopen(&disk, &self.log[..log_end as usize]);
        self.check_content(&meta, log_end);
        meta.take_in().unwrap();
        self.check_content(&meta, log_end);
    }

    fn check_content(&self, meta: &Meta, sequence: u64) {
        let all: Map = scan(meta, KeyRange::all()).into_iter().collect();
        assert!(all == self.models[sequence as usize], "content after record {sequence}");
    }
}

/// Whether redb would walk the whole file to open it.
fn needs_repair(image: &SimDisk) -> bool {
    let file = image.open(FILE, Access::Write).unwrap();
    let backend = Backend(Arc::new(PageFile::new(file).unwrap()));
    let mut builder = redb::Builder::new();
    builder.set_repair_callback(|session| session.abort());
    match builder.create_with_backend(backend) {
        Ok(_) => false,
        Err(redb::DatabaseError::RepairAborted) => true,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_power_loss_at_any_sync_leaves_one_transaction_or_the_next() {
    let sim = SimDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    Meta::create(&disk).unwrap();
    let meta = Meta::open(disk.clone(), SMALL).unwrap();
    let mut history = History::new();
    // The records that the checkpoint may name now, the end of the log, and the images so far.
    let now = Arc::new(Mutex::new(([0, 0], 0)));
    let images = Arc::new(Mutex::new(Vec::new()));
    let (hook_now, hook_images) = (now.clone(), images.clone());
    let mut seed = testing::seed() * 1000;
    sim.set_hook(Some(Box::new(move |sim, event| {
        let random = [Keep::Random(seed), Keep::Random(seed + 1), Keep::Random(seed + 2)];
        seed += 3;
        let keeps = [Keep::Nothing, Keep::All].into_iter().chain(random);
        let keeps = keeps.take(if event.moment == Moment::Before { 5 } else { 1 });
        hook_images.lock().extend(keeps.map(|keep| (sim.crash(keep), *hook_now.lock())));
    })));
    for round in 0..8 {
        (0..1 + round % 3).for_each(|_| history.step(&meta));
        let end = history.log.len() as u64;
        *now.lock() = ([meta.position().sequence, end], end);
        meta.take_in().unwrap();
        *now.lock() = ([end, end], end);
    }
    meta.close().unwrap();
    sim.set_hook(None);
    let images = std::mem::take(&mut *images.lock());
    assert!(images.len() > 100, "{} images", images.len());
    for (image, (allowed, log_end)) in images {
        assert!(!needs_repair(&image.crash(Keep::All)), "opening must be quick");
        history.check(image, allowed, log_end);
    }
}

#[test]
fn what_create_made_survives_a_power_loss() {
    let sim = SimDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    Meta::create(&disk).unwrap();
    let image: Arc<dyn Disk> = Arc::new(sim.crash(Keep::Nothing));
    assert_eq!(Meta::open(image, SMALL).unwrap().position().sequence, 0);
}

/// Fails the n-th call of a take-in, for every n, and returns how many calls it has.
fn fail_every_call(errno: i32, kind: CallKind) -> u64 {
    for n in 1.. {
        let sim = SimDisk::new();
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        Meta::create(&disk).unwrap();
        let meta = Meta::open(disk.clone(), SMALL).unwrap();
        let mut history = History::new();
        history.step(&meta);
        meta.take_in().unwrap();
        let before = sim.crash(Keep::All);
        let meta = Meta::open(Arc::new(before.clone()), UNCACHED).unwrap();
        history.step(&meta);
        before.fail_call(n, errno, kind);
        let taken_in = meta.take_in();
        if taken_in.is_ok() {
            assert!(n > 1);
            return n - 1;
        }
        assert!(matches!(taken_in, Err(Error::Io { .. })), "call {n}: {taken_in:?}");
        // Reading goes on, whatever it was, and so do commits.
        history.check_content(&meta, 2);
        history.step(&meta);
        history.check_content(&meta, 3);
        let again = meta.take_in();
        if kind == CallKind::Sync {
            assert!(matches!(again, Err(Error::PreviousFailure)), "call {n}: {again:?}");
            history.check_content(&meta, 3);
            history.check(before.crash(Keep::Nothing), [1, 2], 3);
            history.check(before.crash(Keep::All), [1, 2], 3);
            assert!(meta.close().is_err());
        } else {
            again.unwrap();
            assert_eq!(meta.position().sequence, 3);
            history.check(before.crash(Keep::Nothing), [3, 3], 3);
            meta.close().unwrap();
        }
    }
    unreachable!()
}

#[test]
fn reading_goes_on_after_any_error_of_a_take_in() {
    assert!(fail_every_call(libc::EIO, CallKind::Write) > 2);
    assert!(fail_every_call(libc::ENOSPC, CallKind::Write) > 2);
    assert!(fail_every_call(libc::EIO, CallKind::Sync) >= 2);
    assert!(fail_every_call(libc::EIO, CallKind::Read) >= 1);
}

#[test]
fn a_failed_read_fails_once() {
    let sim = SimDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    Meta::create(&disk).unwrap();
    let meta = Meta::open(disk.clone(), SMALL).unwrap();
    let mut history = History::new();
    history.step(&meta);
    meta.close().unwrap();
    let meta = Meta::open(disk, UNCACHED).unwrap();
    sim.fail_call(1, libc::EIO, CallKind::Read);
    let stop = &mut |_: &[u8], _: &[u8]| ControlFlow::Break(());
    let failed = meta.scan(KeyRange::all(), stop);
    assert!(matches!(failed, Err(Error::Io { .. })), "{failed:?}");
    // And once more while the file is opened anew.
    sim.fail_call(1, libc::EIO, CallKind::Read);
    assert!(matches!(meta.scan(KeyRange::all(), stop), Err(Error::Io { .. })));
    history.check_content(&meta, 1);
    history.step(&meta);
    meta.close().unwrap();
}

/// No byte of the file that changes makes wrong metadata, or a panic: it is told, or meaningless.
#[test]
fn rot_is_found_and_never_believed() {
    let sim = SimDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    Meta::create(&disk).unwrap();
    let meta = Meta::open(disk, SMALL).unwrap();
    let mut history = History::new();
    history.step(&meta);
    history.step(&meta);
    meta.close().unwrap();
    drop(meta);
    let len = sim.open(FILE, Access::Read).unwrap().len().unwrap();
    // The header's bytes one by one, then steps through the pages.
    let offsets = (0..320).chain((4104..len).step_by(1511));
    let mut found = 0;
    // The flags of the header choose the state, and no checksum covers them.
    let flags = (0..8).map(|bit| (9, 1 << bit));
    for (offset, xor) in offsets.map(|offset| (offset, 0x10)).chain(flags) {
        let image = sim.crash(Keep::All);
        image.rot(FILE, offset, xor).unwrap();
        let meta = match Meta::open(Arc::new(image), SMALL) {
            Ok(meta) => meta,
            Err(Error::Damaged { .. }) => {
                found += 1;
                continue;
            }
            Err(error) => panic!("byte {offset}: {error:?}"),
        };
        let mut all = Map::new();
        let scanned = meta.scan(KeyRange::all(), &mut |key, value| {
            all.insert(key.to_vec(), value.to_vec());
            ControlFlow::Continue(())
        });
        match scanned {
            Ok(()) => assert!(all == history.models[2], "byte {offset} was believed"),
            Err(Error::Damaged { source: Damage::Page { .. } }) => found += 1,
            Err(error) => panic!("byte {offset}: {error:?}"),
        }
    }
    assert!(found > 20, "{found}");
}
