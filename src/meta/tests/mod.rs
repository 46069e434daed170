//! Tests of the metadata, and what they share.

mod codec;
mod concurrent;
mod crash;
mod hostile;
mod model;
mod pages;
mod versions;

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::meta::{Key, KeyRange, Meta, Options};
use crate::store::{LogPosition, Record};
use crate::sys::Disk;
use crate::sys::sim::SimDisk;

const SMALL: Options =
    Options { committed_bytes_max: 64 << 10, cache_bytes: 1 << 20, take_in_bytes: 512 << 10 };

/// So small that a part is taken in by many transactions.
const SLICED: Options = Options { take_in_bytes: 150, ..SMALL };

fn new_disk() -> Arc<dyn Disk> {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    Meta::create(&disk).unwrap();
    disk
}

fn position(sequence: u64) -> LogPosition {
    LogPosition { pack: sequence / 5, offset: sequence * 100, sequence }
}

/// Commits what the open group holds, as a log would.
fn commit(meta: &Meta, log: &mut Vec<Record>) {
    meta.cut(true, |_| ()).unwrap();
    let position = position(log.len() as u64 + 1);
    log.push(Record { position, entries: meta.record().unwrap() });
    meta.committed(position);
}

/// Opens and replays, as opening a volume does.
fn reopen(disk: &Arc<dyn Disk>, log: &[Record]) -> Meta {
    let meta = Meta::open(disk.clone(), SMALL).unwrap();
    let from = meta.position().sequence;
    log.iter().filter(|r| from < r.position.sequence).for_each(|r| meta.replay(r).unwrap());
    meta
}

fn scan(meta: &Meta, range: KeyRange) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    meta.scan(range, &mut |key, value| {
        found.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

fn put(meta: &Meta, key: &Key<'_>, value: &[u8]) {
    meta.enter().put(key, value.to_vec());
}
