//! Every sequence of changes gives the bytes, and the root, of the final content split anew.

use std::io::Read;

use proptest::prelude::*;

use super::store::MemoryStore;
use crate::chunk::Profile;
use crate::hash::HashKind;
use crate::pyramid::{Pyramid, Root, Run, RunBytes, Visit, reference};

/// Gives a few bytes at a time.
pub struct Dribble<'a>(pub &'a [u8], pub usize);

impl Read for Dribble<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let count = self.0.len().min(buf.len()).min(self.1);
        buf[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        Ok(count)
    }
}

/// Bytes that follow from `seed`; every third stretch or so is zeros.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let stretch = (next() % 400) as usize;
        let zeros = next() % 3 == 0;
        for _ in 0..stretch.min(length - bytes.len()) {
            bytes.push(if zeros { 0 } else { next() as u8 });
        }
    }
    bytes
}

#[derive(Debug, Clone)]
enum Op {
    Append { seed: u64, length: usize, at_once: usize },
    Truncate { size: usize },
    Edit { keep: usize, runs: Vec<Piece>, size: usize },
}

/// A run behind the end of the one before it.
#[derive(Debug, Clone)]
struct Piece {
    gap: usize,
    length: usize,
    /// None for zeros.
    seed: Option<u64>,
}

/// Sizes at and around the borders of chunks and full subtrees.
pub fn size(branches: u32, size_max: usize) -> impl Strategy<Value = usize> + use<> {
    let chunk = branches as usize * 32;
    let full =
        (0..8u32).prop_map(move |level| chunk.saturating_mul((branches as usize).pow(level)));
    let border =
        (full, 0..4usize, 0..3usize, 0..3usize).prop_map(move |(full, times, chunks, odd)| {
            (full.saturating_mul(times) + chunks * chunk + odd).saturating_sub(1)
        });
    prop_oneof![border, 0..=size_max].prop_map(move |size| size.min(size_max))
}

fn ops(branches: u32, size_max: usize) -> impl Strategy<Value = Vec<Op>> {
    let some_size = move || size(branches, size_max);
    let piece = (some_size(), some_size(), proptest::option::weighted(0.7, any::<u64>()))
        .prop_map(|(gap, length, seed)| Piece { gap, length, seed });
    let op =
        prop_oneof![
            (any::<u64>(), some_size(), 1..5000usize)
                .prop_map(|(seed, length, at_once)| Op::Append { seed, length, at_once }),
            some_size().prop_map(|size| Op::Truncate { size }),
            (some_size(), proptest::collection::vec(piece, 0..4), some_size())
                .prop_map(|(keep, runs, size)| Op::Edit { keep, runs, size }),
        ];
    proptest::collection::vec(op, 1..8)
}

/// A tree and what it must hold.
struct Pair {
    pyramid: Pyramid,
    store: MemoryStore,
    root: Root,
    content: Vec<u8>,
}

impl Pair {
    fn new(branches: u32) -> Pair {
        let pyramid = reference::pyramid(branches);
        let store = MemoryStore::new(&pyramid);
        let root = pyramid.empty();
        Pair { pyramid, store, root, content: Vec::new() }
    }

    fn apply(&mut self, op: &Op, size_max: usize) {
        match op {
            Op::Append { seed, length, at_once } => {
                let more = bytes(*seed, (*length).min(size_max - self.content.len().min(size_max)));
                let mut reader = Dribble(&more, *at_once);
                self.root = self.pyramid.append(&self.store, &self.root, &mut reader).unwrap();
                self.content.extend(more);
            }
            Op::Truncate { size } => {
                self.root = self.pyramid.truncate(&self.store, &self.root, *size as u64).unwrap();
                self.content.resize(*size, 0);
            }
            Op::Edit { keep, runs, size } => self.edit(*keep, runs, *size),
        }
    }

    fn edit(&mut self, keep: usize, pieces: &[Piece], size: usize) {
        self.content.truncate(keep);
        self.content.resize(size, 0);
        let mut laid: Vec<(usize, Vec<u8>, bool)> = Vec::new();
        let mut at = 0;
        for piece in pieces {
            let start = (at + piece.gap).min(size);
            let length = piece.length.min(size - start);
            at = start + length;
            let new = piece.seed.map_or(vec![0; length], |seed| bytes(seed, length));
            self.content[start..at].copy_from_slice(&new);
            laid.push((start, new, piece.seed.is_none()));
        }
        let runs: Vec<Run<'_>> = laid
            .iter()
            .map(|(start, new, zeros)| match zeros {
                true => Run::zeros(*start as u64, new.len() as u64),
                false => Run { offset: *start as u64, bytes: RunBytes::Bytes(new) },
            })
            .collect();
        let (keep, size) = (keep as u64, size as u64);
        self.root = self.pyramid.edit(&self.store, &self.root, keep, &runs, size).unwrap();
    }

    fn check(&self) {
        assert_eq!(self.root, reference::root(self.pyramid.profile(), &self.content));
        let mut read = vec![0xaa; self.content.len()];
        self.pyramid.read(&self.store, &self.root, 0, &mut read).unwrap();
        assert!(read == self.content, "the bytes differ");
    }
}

fn check_ops(branches: u32, size_max: usize, ops: &[Op]) {
    let mut pair = Pair::new(branches);
    for op in ops {
        pair.apply(op, size_max);
        pair.check();
    }
    pair.store.assert_sound();
}

proptest! {
    #![proptest_config(crate::testing::config(150))]

    #[test]
    fn changes_give_what_splitting_anew_gives_2(ops in ops(2, 5000)) {
        check_ops(2, 5000, &ops);
    }

    #[test]
    fn changes_give_what_splitting_anew_gives_3(ops in ops(3, 10_000)) {
        check_ops(3, 10_000, &ops);
    }

    #[test]
    fn changes_give_what_splitting_anew_gives_4(ops in ops(4, 20_000)) {
        check_ops(4, 20_000, &ops);
    }

    #[test]
    fn changes_give_what_splitting_anew_gives_8(ops in ops(8, 40_000)) {
        check_ops(8, 40_000, &ops);
    }

    #[test]
    fn a_range_reads_as_the_vector_does(seed: u64, size in size(4, 20_000), a: u64, b: u64) {
        let pyramid = reference::pyramid(4);
        let store = MemoryStore::new(&pyramid);
        let content = bytes(seed, size);
        let root = pyramid.split(&store, &mut content.as_slice()).unwrap();
        let (a, b) = (a as usize % (size + 1), b as usize % (size + 1));
        let (start, end) = (a.min(b), a.max(b));
        let mut read = vec![0xaa; end - start];
        store.take_counts();
        pyramid.read(&store, &root, start as u64, &mut read).unwrap();
        prop_assert_eq!(&read, &content[start..end]);
    }

    #[test]
    fn a_walk_meets_all_that_was_put(seed: u64, size in size(3, 10_000)) {
        let pyramid = reference::pyramid(3);
        let store = MemoryStore::new(&pyramid);
        let root = pyramid.split(&store, &mut bytes(seed, size).as_slice()).unwrap();
        let counts = store.take_counts();
        let (mut trees, mut data, mut entered) = (Vec::new(), Vec::new(), Vec::new());
        pyramid.walk(&store, &root, &mut |visit| {
            match visit {
                Visit::Enter { address, .. } => entered.push(address),
                Visit::Tree { address, .. } => trees.push(address),
                Visit::Data { address, .. } => data.push(address),
            }
            true
        }).unwrap();
        prop_assert_eq!(&entered, &trees);
        for (mut walked, mut put) in [(trees, counts.trees_put), (data, counts.data_put)] {
            walked.sort();
            put.sort();
            prop_assert_eq!(walked, put);
        }
    }
}

proptest! {
    #![proptest_config(crate::testing::config(6))]

    #[test]
    fn changes_give_what_splitting_anew_gives_128(ops in ops(128, 1_200_000)) {
        check_ops(128, 1_200_000, &ops);
    }
}

/// All sizes up to six levels, of bytes and of zeros.
#[test]
fn every_size_has_the_shape_of_the_rule() {
    for (branches, size_max) in [(2, 64 * 40), (3, 96 * 30), (4, 128 * 20), (5, 160 * 27)] {
        let pyramid = reference::pyramid(branches);
        let store = MemoryStore::new(&pyramid);
        let all: Vec<u8> = bytes(7, size_max).iter().map(|byte| byte | 1).collect();
        let zeros = vec![0; size_max];
        for size in (0..=size_max).filter(|size| size % 32 < 2 || size % 32 == 31) {
            let expected = reference::root(pyramid.profile(), &all[..size]);
            assert_eq!(pyramid.split(&store, &mut &all[..size]).unwrap(), expected, "{size}");
            let hole = reference::root(pyramid.profile(), &zeros[..size]);
            assert_eq!(pyramid.hole(size as u64), hole);
            assert_eq!(pyramid.split(&store, &mut &zeros[..size]).unwrap(), hole);
            assert!(pyramid.is_hole(&hole));
            assert_eq!(pyramid.is_hole(&expected), size == 0);
        }
    }
}

#[test]
fn other_hashes_follow_the_same_rule() {
    let content = bytes(3, 30_000);
    for hash in [HashKind::Keccak256, HashKind::Blake3, HashKind::Sha3_256] {
        let pyramid = Pyramid::new(Profile { branches: 4, hash });
        let store = MemoryStore::new(&pyramid);
        let root = pyramid.split(&store, &mut content.as_slice()).unwrap();
        assert_eq!(root, reference::root(pyramid.profile(), &content));
    }
}
