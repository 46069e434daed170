//! Checkpoints whose pages were changed and have checksums that fit again, so that redb itself
//! meets nonsense when it opens and reads: never a panic out of this layer, never a hang, never an
//! endless scan.
//!
//! Absent on purpose: writing into such a file. redb may panic in there once more while it unwinds
//! from a panic, which ends the process, as a crash does, whatever is caught around it.
//!
//! What such pages hold is not judged: whoever can make checksums fit can also make entries. The
//! cases run on a thread of their own, as one that hangs has to be noticed from outside.

use std::ops::ControlFlow;
use std::sync::Arc;

use std::time::Duration;

use super::{SMALL, commit, new_disk, put};
use crate::meta::checkpoint::backend::seal_pages;
use crate::meta::{Error, Ino, Key, KeyRange, Meta, Options};
use crate::store::Record;
use crate::sys::sim::{SimDisk, SimRng};
use crate::sys::{Access, Disk, Rng};
use crate::testing;

const FILE: &str = "meta/checkpoint.redb";
const STORED: usize = 4104;
const PAGE: usize = 4096;
const KEYS: u64 = 400;
/// Every read goes to the pages.
const UNCACHED: Options = Options { cache_bytes: 0, ..SMALL };
/// What one case may take; a plain one takes a few milliseconds.
const CASE_LIMIT: Duration = Duration::from_secs(20);

/// A checkpoint that has pages of all kinds, some of them freed: closed, or as it is when open.
fn image(closed: bool) -> Vec<u8> {
    let disk = new_disk();
    let meta = Meta::open(disk.clone(), UNCACHED).unwrap();
    let mut log: Vec<Record> = Vec::new();
    for round in 0..4 {
        for number in (0..KEYS).filter(|number| number % 4 <= round) {
            put(&meta, &Key::Inode(Ino(number)), &vec![round as u8; 20 + number as usize % 300]);
        }
        put(&meta, &Key::Inode(Ino(KEYS + round)), &vec![7; 9000]);
        meta.enter().delete(&Key::Inode(Ino(round * 3)));
        commit(&meta, &mut log);
        meta.take_in().unwrap();
    }
    if closed {
        meta.close().unwrap();
    }
    let file = disk.open(FILE, Access::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    // redb grows the file ahead: what was never written is left out of the choice.
    let used = bytes.chunks(STORED).rposition(|page| page.iter().any(|&byte| byte != 0));
    assert!(used.is_some_and(|used| 20 < used), "the pages were found");
    bytes
}

fn below(random: &SimRng, bound: usize) -> usize {
    (random.next_u64() % bound as u64) as usize
}

/// Changes a few places of pages, and makes all checksums fit.
fn damage(bytes: &mut [u8], random: &SimRng) {
    let used: Vec<usize> = (0..bytes.len() / STORED)
        .filter(|page| bytes[page * STORED..][..PAGE].iter().any(|&byte| byte != 0))
        .collect();
    let page_at = |random: &SimRng| used[below(random, used.len())] * STORED;
    for _ in 0..1 + below(random, 4) {
        let page = page_at(random);
        match below(random, 8) {
            // The heads of pages, where kinds, counts and offsets stand.
            0..=2 => bytes[page + below(random, 64)] = random.next_u64() as u8,
            3 => bytes[page + below(random, PAGE)] ^= 1 << below(random, 8),
            4 => {
                let at = page + below(random, PAGE - 8);
                let numbers = [0, 1, u64::MAX, u64::MAX >> 1, random.next_u64() % 64, 1 << 32];
                let number = numbers[below(random, numbers.len())];
                bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
            }
            5 => random.fill(&mut bytes[page..page + PAGE]),
            6 => bytes[page..page + PAGE].fill(0),
            // Another page's content: a tree that leads to itself, or to another's leaves.
            _ => {
                let other = page_at(random);
                bytes.copy_within(other..other + PAGE, page);
            }
        }
    }
    seal_pages(bytes);
    // The first page has no checksum of its own.
    bytes[PAGE..STORED].fill(0);
}

/// How far one case came.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    cases: u32,
    not_opened: u32,
    not_read: u32,
}

/// Reads all there is, twice, and asks for keys; the first failure is the answer.
fn read(meta: &Meta) -> Result<(), Error> {
    for _ in 0..2 {
        let mut visited = 0_u64;
        let all = KeyRange { start: Vec::new(), end: vec![0xff; 8] };
        meta.scan(all, &mut |_, _| {
            visited += 1;
            assert!(visited < 1_000_000, "the scan does not end");
            ControlFlow::Continue(())
        })?;
    }
    (0..KEYS + 8).step_by(7).try_for_each(|n| meta.get(&Key::Inode(Ino(n))).map(drop))
}

fn case(image: &[u8], seed: u64, counts: &mut Counts) {
    let random = SimRng::new(seed);
    let mut bytes = image.to_vec();
    damage(&mut bytes, &random);
    let disk = SimDisk::new();
    disk.create_dir("meta").unwrap();
    disk.open(FILE, Access::CreateNew).unwrap().write_all_at(&bytes, 0).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(disk);
    counts.cases += 1;
    for _ in 0..2 {
        let Ok(meta) = Meta::open(disk.clone(), UNCACHED) else {
            counts.not_opened += 1;
            return;
        };
        counts.not_read += u32::from(read(&meta).is_err());
        // Or it is dropped as it is.
        if random.next_u64().is_multiple_of(2) {
            let _ = meta.close();
        }
    }
}

#[test]
fn nonsense_with_fitting_checksums_never_gets_out_of_this_layer() {
    let count = 150 * u64::from(testing::factor());
    let first = testing::seed().wrapping_mul(1_000_003);
    let counts = testing::watched(CASE_LIMIT, move |told| {
        let mut counts = Counts::default();
        for closed in [true, false] {
            let image = image(closed);
            for seed in (first..).take(count as usize) {
                let _ = told.send(format!("seed {seed}, closed {closed}, {counts:?}"));
                case(&image, seed, &mut counts);
            }
        }
        counts
    });
    println!("{counts:?}");
    assert_eq!(u64::from(counts.cases), 2 * count);
    // Otherwise redb has met nothing.
    assert!(0 < counts.not_opened && 0 < counts.not_read && counts.not_opened < counts.cases);
}
