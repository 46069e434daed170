//! Splicing, seeking and comparing, against plain byte vectors.

use std::ops::Range;

use proptest::prelude::*;

use super::properties::{bytes, size};
use super::store::{Counts, MemoryStore};
use crate::pyramid::{Pyramid, Root, Run, SIZE_MAX, reference};

const TIB: u64 = 1 << 40;

/// A base of data with wide holes in it, chunk-aligned and not.
fn holey(seed: u64, length: usize, chunk: usize) -> Vec<u8> {
    let mut content = bytes(seed, length);
    for (index, part) in content.chunks_mut(chunk * 3).enumerate() {
        if (seed >> (index % 60)) & 1 == 0 {
            part.fill(0);
        }
    }
    content
}

/// For each byte whether its data chunk is all zeros.
fn holes(content: &[u8], chunk: usize) -> Vec<bool> {
    content
        .chunks(chunk)
        .flat_map(|chunk| vec![chunk.iter().all(|byte| *byte == 0); chunk.len()])
        .collect()
}

fn split(pyramid: &Pyramid, store: &MemoryStore, content: &[u8]) -> Root {
    pyramid.split(store, &mut &content[..]).unwrap()
}

/// The ranges of data chunks that differ, merged, and what only the longer one has.
fn differing(a: &[u8], b: &[u8], chunk: usize) -> Vec<Range<u64>> {
    let common = a.len().min(b.len());
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let chunks = (0..common).step_by(chunk).filter_map(|start| {
        let of = |c: &[u8]| c[start..(start + chunk).min(c.len())].to_vec();
        let (a, b) = (of(a), of(b));
        // Zeros of different lengths are the same where both have them.
        let same = a == b || a.iter().chain(&b).all(|byte| *byte == 0);
        (!same).then(|| start..(start + chunk).min(common))
    });
    let tail = (common < a.len().max(b.len())).then(|| common..a.len().max(b.len()));
    for range in chunks.chain(tail) {
        let range = range.start as u64..range.end as u64;
        match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range),
        }
    }
    ranges
}

fn diff(pyramid: &Pyramid, store: &MemoryStore, a: &Root, b: &Root) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    pyramid.diff(store, a, b, &mut |range| ranges.push(range)).unwrap();
    ranges
}

proptest! {
    #![proptest_config(crate::testing::config(300))]

    #[test]
    fn a_splice_gives_what_splitting_anew_gives(
        branches in 2..5_u32,
        seeds: (u64, u64),
        sizes in (size(3, 9000), size(2, 9000)),
        offsets in (size(4, 9000), size(2, 9000)),
        length in size(2, 9000),
        aligned in 0..3_usize,
    ) {
        let pyramid = reference::pyramid(branches);
        let store = MemoryStore::new(&pyramid);
        let chunk = pyramid.profile().chunk_bytes();
        let (target, source) = (holey(seeds.0, sizes.0, chunk), holey(seeds.1, sizes.1, chunk));
        let from = offsets.1.min(source.len());
        let length = length.min(source.len() - from);
        // Aligned alike as a whole, to chunks, or not at all.
        let to = [from, offsets.0 / chunk * chunk + from % chunk, offsets.0][aligned];
        let roots = [&target, &source].map(|content| split(&pyramid, &store, content));
        let root = pyramid
            .splice(&store, (&roots[0], to as u64), (&roots[1], from as u64), length as u64)
            .unwrap();
        let mut expected = target.clone();
        if 0 < length {
            expected.resize(target.len().max(to + length), 0);
            expected[to..to + length].copy_from_slice(&source[from..from + length]);
        }
        prop_assert_eq!(root, reference::root(pyramid.profile(), &expected));
        store.assert_sound();
    }

    #[test]
    fn seeking_finds_every_border(branches in 2..5_u32, seed: u64, size in size(3, 6000)) {
        let pyramid = reference::pyramid(branches);
        let store = MemoryStore::new(&pyramid);
        let chunk = pyramid.profile().chunk_bytes();
        let content = holey(seed, size, chunk);
        let holes = holes(&content, chunk);
        let root = split(&pyramid, &store, &content);
        for offset in (0..size + 70).step_by(31) {
            let next = |hole: bool| {
                (offset..size).find(|at| holes[*at] == hole).map(|at| at as u64)
            };
            let end = (offset < size).then_some(size as u64);
            let found = pyramid.next_data(&store, &root, offset as u64).unwrap();
            prop_assert_eq!(found, next(false));
            let found = pyramid.next_hole(&store, &root, offset as u64).unwrap();
            prop_assert_eq!(found, next(true).or(end));
        }
    }

    #[test]
    fn a_diff_names_the_chunks_that_differ(
        branches in 2..5_u32,
        seeds: (u64, u64),
        sizes in (size(3, 6000), size(2, 6000)),
        changes in proptest::collection::vec((0..6000_usize, 0..200_usize), 0..4),
        related: bool,
    ) {
        let pyramid = reference::pyramid(branches);
        let store = MemoryStore::new(&pyramid);
        let chunk = pyramid.profile().chunk_bytes();
        let a = holey(seeds.0, sizes.0, chunk);
        let mut b = if related { a.clone() } else { holey(seeds.1, sizes.1, chunk) };
        b.resize(sizes.1, 0);
        for (at, length) in changes {
            let range = at.min(b.len())..(at + length).min(b.len());
            b[range].fill(length as u8);
        }
        let roots = [&a, &b].map(|content| split(&pyramid, &store, content));
        let expected = differing(&a, &b, chunk);
        prop_assert_eq!(diff(&pyramid, &store, &roots[0], &roots[1]), expected.clone());
        prop_assert_eq!(diff(&pyramid, &store, &roots[1], &roots[0]), expected);
        prop_assert_eq!(diff(&pyramid, &store, &roots[0], &roots[0]), vec![]);
    }
}

#[test]
fn a_splice_shares_subtrees_and_costs_its_edges() {
    let pyramid = reference::pyramid(4);
    let store = MemoryStore::new(&pyramid);
    let content: Vec<u8> = bytes(1, 128 * 1000).iter().map(|byte| byte | 1).collect();
    let source = split(&pyramid, &store, &content);
    let size = source.size;
    store.take_counts();
    // All of it: not even the root is loaded.
    let copy = pyramid.splice(&store, (&pyramid.empty(), 0), (&source, 0), size).unwrap();
    assert_eq!((copy, store.take_counts()), (source, Counts::default()));
    // Over a hole, at another offset that agrees modulo S(3) = 8192, at both edges of it.
    let target = pyramid.hole(TIB);
    let root = pyramid.splice(&store, (&target, 8192 * 70), (&source, 8192 * 2), 8192 * 9).unwrap();
    let counts = store.take_counts();
    let depth = pyramid.geometry().root(TIB).height as usize;
    assert!(counts.data_put.is_empty() && counts.data_loaded.is_empty());
    assert!(counts.trees_put.len() <= 2 * depth, "{} put", counts.trees_put.len());
    assert!(counts.trees_loaded.len() <= 12, "{} loaded", counts.trees_loaded.len());
    assert_eq!(root.filled, 8192 * 9);
    // Aligned to chunks only: no data chunk moves.
    pyramid.splice(&store, (&target, 128 * 3), (&source, 128 * 6), 128 * 900).unwrap();
    let counts = store.take_counts();
    assert!(counts.data_put.is_empty() && counts.data_loaded.is_empty());
}

#[test]
fn seeking_and_comparing_do_not_look_below_what_is_clear() {
    let pyramid = reference::pyramid(4);
    let store = MemoryStore::new(&pyramid);
    let data: Vec<u8> = vec![7; 128 * 64];
    let solid = split(&pyramid, &store, &data);
    store.take_counts();
    assert_eq!(pyramid.next_hole(&store, &solid, 5).unwrap(), Some(8192));
    assert_eq!(pyramid.next_data(&store, &solid, 5).unwrap(), Some(5));
    let hole = pyramid.hole(SIZE_MAX);
    assert_eq!(pyramid.next_data(&store, &hole, 5).unwrap(), None);
    assert_eq!(pyramid.next_hole(&store, &hole, 5).unwrap(), Some(5));
    assert_eq!(store.take_counts(), Counts::default());
    let edit = |at: u64| {
        pyramid.edit(&store, &hole, SIZE_MAX, &[Run::bytes(at, &data)], SIZE_MAX).unwrap()
    };
    let (a, b) = (edit(TIB), edit(TIB + 128 * 100));
    let depth = pyramid.geometry().root(SIZE_MAX).height as usize;
    store.take_counts();
    assert_eq!(pyramid.next_data(&store, &a, 0).unwrap(), Some(TIB));
    assert_eq!(pyramid.next_hole(&store, &a, TIB + 3).unwrap(), Some(TIB + 8192));
    assert!(store.take_counts().loads() <= 4 * depth);
    let ranges = diff(&pyramid, &store, &a, &b);
    assert_eq!(ranges, [TIB..TIB + 8192, TIB + 12_800..TIB + 12_800 + 8192]);
    let loads = store.take_counts().loads();
    assert!(loads <= 2 * depth + 60, "{loads} loads");
}
