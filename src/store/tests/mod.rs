//! Tests of the store, on the simulated disk.
//!
//! Owns what they share: small chunks by number, a store with small limits, and reading back.

mod aux_packs;
mod basic;
mod codec;
mod collect;
mod copies;
mod crash;
mod damage;
mod forest;
mod format;
mod hostile;
mod limits;
mod lives;
mod marks;
mod model;
mod replay;
#[cfg(shuttle)]
mod schedules;

use std::ops::ControlFlow;
use std::sync::Arc;

use super::*;
use crate::chunk::{Sink, Source};
use crate::sys::Access;
use crate::sys::sim::SimDisk;

const VOLUME: [u8; 16] = *b"0123456789abcdef";

/// Everything inline, and so deterministic; packs of a few frames.
fn small() -> Options {
    Options {
        cache_bytes: 1 << 20,
        tree_cache_bytes: 1 << 16,
        index_memory_bytes: 1 << 20,
        pack_bytes_max: 32 * 1024,
        pending_bytes_max: 1 << 20,
        workers: 0,
        tree_copies: 1,
        compression: Compression::Lz4,
    }
}

fn new_disk() -> SimDisk {
    let disk = SimDisk::new();
    Store::create(&shared(&disk)).unwrap();
    disk
}

fn shared(disk: &SimDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

fn open_from(disk: &SimDisk, options: Options, from: LogPosition) -> Opened {
    Store::open(shared(disk), Profile::DEFAULT, VOLUME, options, from).unwrap()
}

fn open(disk: &SimDisk) -> Opened {
    open_from(disk, small(), LogPosition::default())
}

/// The payload of chunk `number`: half of it compresses.
fn payload(number: u64) -> Vec<u8> {
    let len = 1 + (number * 677) % 4096;
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|at| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if at % 2 == 0 { state as u8 } else { 0 }
        })
        .collect()
}

fn address_of(number: u64) -> Address {
    let payload = payload(number);
    Profile::DEFAULT.address(payload.len() as u64, &payload)
}

fn put(store: &Store, number: u64) -> Result<Address> {
    let payload = payload(number);
    let address = address_of(number);
    store.put_data(&[(address, &payload)])?;
    Ok(address)
}

/// A tree over the data chunks of these numbers, with one hole at its end.
fn tree_of(numbers: &[u64]) -> (Address, Tree) {
    let mut children: Vec<Address> = numbers.iter().map(|number| address_of(*number)).collect();
    let mut filled: Vec<u64> = numbers.iter().map(|number| payload(*number).len() as u64).collect();
    children.push(Address([7; 32]));
    filled.push(0);
    tree_over(children, filled)
}

fn tree_over(children: Vec<Address>, filled: Vec<u64>) -> (Address, Tree) {
    let tree = Tree { span: filled.iter().sum::<u64>() + 4096, children, filled };
    (Profile::DEFAULT.address(tree.span, &tree.payload()), tree)
}

fn commit(store: &Store, entries: &[u8]) -> Result<LogPosition> {
    store.commit(store.flush()?, entries)
}

fn assert_reads(store: &Store, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        let found = store.data(&address_of(number));
        assert_eq!(found.expect("it is stored").as_ref(), payload(number), "chunk {number}");
    }
}

fn verify_findings(store: &Store) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut each = |step| {
        if let VerifyStep::Found(finding) = step {
            findings.push(finding);
        }
        ControlFlow::Continue(())
    };
    store.verify(0, true, &mut each).unwrap();
    findings
}

fn file_len(disk: &SimDisk, path: &str) -> u64 {
    disk.open(path, Access::Read).unwrap().len().unwrap()
}
