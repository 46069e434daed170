//! The checkpoint's file as redb sees it, beside a plain vector.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use redb::StorageBackend;

use crate::meta::checkpoint::backend::{Backend, PageFile, ReadingBackend};
use crate::sys::sim::SimDisk;
use crate::sys::{Access, Disk, DiskFile};

const PAGE: u64 = 4096;

fn new_file() -> (SimDisk, Arc<dyn DiskFile>) {
    let disk = SimDisk::new();
    let file = disk.open("file", Access::CreateNew).unwrap();
    (disk, file)
}

#[derive(Debug, Clone)]
enum Op {
    Write(u64, Vec<u8>),
    Read(u64, usize),
    SetLen(u64),
}

fn op() -> impl Strategy<Value = Op> {
    // Whole pages, as redb mostly does, and any ranges.
    let offset = || prop_oneof![(0..6u64).prop_map(|page| page * PAGE), 0..6 * PAGE];
    let len = || prop_oneof![(0..4usize).prop_map(|count| count * 4096), 0..9000usize];
    prop_oneof![
        3 => (offset(), len(), any::<u8>()).prop_map(|(at, len, byte)| {
            Op::Write(at, (0..len).map(|i| byte.wrapping_add((i % 251) as u8)).collect())
        }),
        3 => (offset(), len()).prop_map(|(at, len)| Op::Read(at, len)),
        1 => (0..12u64).prop_map(|pages| Op::SetLen(pages * PAGE)),
    ]
}

/// Runs the operations on a backend and on a vector that starts as its content.
fn run(backend: &dyn StorageBackend, mut model: Vec<u8>, ops: &[Op]) -> Vec<u8> {
    for op in ops {
        assert_eq!(backend.len().unwrap(), model.len() as u64);
        match op {
            Op::Write(at, bytes) => {
                let at = *at as usize;
                if at + bytes.len() <= model.len() {
                    backend.write(at as u64, bytes).unwrap();
                    model[at..at + bytes.len()].copy_from_slice(bytes);
                }
            }
            Op::Read(at, len) => {
                let mut found = vec![9; *len];
                let read = backend.read(*at, &mut found);
                match model.get(*at as usize..*at as usize + len) {
                    Some(expected) => assert!(read.is_ok() && found == expected),
                    None => assert!(read.is_err() || *len == 0),
                }
            }
            Op::SetLen(len) => {
                backend.set_len(*len).unwrap();
                model.resize(*len as usize, 0);
            }
        }
    }
    let mut all = vec![9; model.len()];
    backend.read(0, &mut all).unwrap();
    assert!(all == model);
    model
}

proptest! {
    #![proptest_config(crate::testing::config(150))]

    #[test]
    fn a_paged_file_is_a_file(ops in vec(op(), 1..30), later in vec(op(), 1..20)) {
        let (_, file) = new_file();
        let file = Arc::new(PageFile::new(file).unwrap());
        let model = run(&Backend(file.clone()), Vec::new(), &ops);
        // Changes for reading only stay in memory.
        run(&ReadingBackend::new(file.clone()).unwrap(), model.clone(), &later);
        run(&Backend(file), model, &[]);
    }

    #[test]
    fn a_changed_page_is_never_handed_out(at in 0..10 * 4104u64, xor in 1..=255u8) {
        let (disk, file) = new_file();
        let backend = Backend(Arc::new(PageFile::new(file).unwrap()));
        backend.set_len(10 * PAGE).unwrap();
        // Pages 1 to 6 are written, 7 to 9 are not.
        let bytes: Vec<u8> = (0..6 * PAGE).map(|i| (i % 255) as u8).collect();
        backend.write(PAGE, &bytes).unwrap();
        disk.rot("file", at, xor).unwrap();
        for page in 1..10 {
            let read = backend.read(page * PAGE, &mut [0; PAGE as usize]);
            prop_assert_eq!(read.is_ok(), page != at / 4104, "page {}", page);
        }
    }
}

#[test]
fn a_page_in_the_wrong_place_is_refused() {
    let (_, file) = new_file();
    let backend = Backend(Arc::new(PageFile::new(file.clone()).unwrap()));
    backend.set_len(4 * PAGE).unwrap();
    backend.write(PAGE, &[7; 2 * PAGE as usize]).unwrap();
    let mut stored = vec![0; 4104];
    file.read_at(&mut stored, 4104).unwrap();
    file.write_all_at(&stored, 2 * 4104).unwrap();
    assert!(backend.read(PAGE, &mut [0; 4096]).is_ok());
    assert!(backend.read(2 * PAGE, &mut [0; 4096]).is_err());
}
