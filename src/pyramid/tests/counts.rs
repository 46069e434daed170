//! How many chunks a change loads and puts.

use super::properties::bytes;
use super::store::{Counts, MemoryStore};
use crate::pyramid::geometry::{Geometry, Shape};
use crate::pyramid::{Pyramid, Root, Run, SIZE_MAX, reference};

const TIB: u64 = 1 << 40;

/// Bytes none of which is zero, and no two chunks of which are equal.
fn solid(seed: u64, length: usize) -> Vec<u8> {
    bytes(seed, length)
        .iter()
        .enumerate()
        .map(|(i, byte)| (byte | 1) ^ ((i / 64 * 2) as u8) ^ ((i / 8192 * 6) as u8) | 1)
        .collect()
}

/// Counts the nodes below `shape` at `start` that `touched` says yes to, data and tree chunks.
fn nodes(
    geometry: &Geometry,
    start: u64,
    shape: Shape,
    touched: &dyn Fn(u64, u64) -> bool,
) -> (usize, usize) {
    if !touched(start, start + shape.span) {
        return (0, 0);
    }
    if shape.height == 0 {
        return (1, 0);
    }
    let mut sum = (0, 1);
    for index in 0..geometry.child_count(shape) {
        let child_start = start + index as u64 * geometry.piece(shape);
        let (data, trees) = nodes(geometry, child_start, geometry.child(shape, index), touched);
        sum = (sum.0 + data, sum.1 + trees);
    }
    sum
}

fn assert_append_is_small(pyramid: &Pyramid, old: &Root, new: &Root, counts: &Counts) {
    let geometry = pyramid.geometry();
    let depth = geometry.root(old.size).height as usize;
    assert!(counts.loads() <= depth + 1, "{} loads at {}", counts.loads(), old.size);
    let touched = |start: u64, end: u64| start < new.size && old.size < end;
    let (data, trees) = nodes(geometry, 0, geometry.root(new.size), &touched);
    assert_eq!((counts.data_put.len(), counts.trees_put.len()), (data, trees), "{}", old.size);
}

#[test]
fn append_loads_the_right_edge_and_puts_what_is_new() {
    for branches in [2, 3, 4, 128] {
        let pyramid = reference::pyramid(branches);
        let store = MemoryStore::new(&pyramid);
        let chunk = pyramid.profile().chunk_bytes() as u64;
        let full = pyramid.geometry().span(3);
        for size in [0, 1, chunk, full - 1, full, full + 1, full + chunk, TIB - 1, TIB, TIB + 5] {
            let mut root = pyramid.hole(size);
            store.take_counts();
            for (seed, length) in
                [1, 31, chunk, chunk - 32, 1, 5 * chunk + 7, chunk].iter().enumerate()
            {
                let more = solid(seed as u64 + 1, *length as usize);
                let new = pyramid.append(&store, &root, &mut more.as_slice()).unwrap();
                assert_append_is_small(&pyramid, &root, &new, &store.take_counts());
                root = new;
            }
        }
    }
}

#[test]
fn an_edit_behind_the_end_costs_what_an_append_does() {
    for branches in [2, 4, 128] {
        let pyramid = reference::pyramid(branches);
        let store = MemoryStore::new(&pyramid);
        let chunk = pyramid.profile().chunk_bytes() as u64;
        for size in [0, 1, chunk, pyramid.geometry().span(2), TIB, TIB + chunk + 1] {
            let mut root = pyramid.hole(size);
            store.take_counts();
            for (seed, length) in [1, 40, chunk, 3 * chunk + 7, chunk - 3].iter().enumerate() {
                let more = solid(seed as u64 + 1, *length as usize);
                let runs = [Run::bytes(root.size, &more)];
                let end = root.size + length;
                let new = pyramid.edit(&store, &root, root.size, &runs, end).unwrap();
                assert_append_is_small(&pyramid, &root, &new, &store.take_counts());
                root = new;
            }
        }
    }
}

#[test]
fn overwrite_loads_and_puts_each_touched_tree_chunk_once() {
    for (branches, chunks) in [(2, 200), (3, 300), (4, 600), (8, 1500)] {
        let pyramid = reference::pyramid(branches);
        let store = MemoryStore::new(&pyramid);
        let chunk = pyramid.profile().chunk_bytes();
        let content = solid(1, chunks * chunk + 9);
        let root = pyramid.split(&store, &mut content.as_slice()).unwrap();
        for step in [1, 2, 7, 50] {
            let new = solid(99, chunk * 2);
            let runs: Vec<Run<'_>> = (0..chunks - 1)
                .step_by(step)
                .enumerate()
                .map(|(i, index)| {
                    // Whole chunks, or the middle of one.
                    let (at, length) = if i % 2 == 0 { (0, chunk) } else { (5, chunk / 2) };
                    Run::bytes((index * chunk + at) as u64, &new[i % chunk..i % chunk + length])
                })
                .collect();
            store.take_counts();
            let size = content.len() as u64;
            pyramid.edit(&store, &root, size, &runs, size).unwrap();
            let counts = store.take_counts();
            let touched =
                |start: u64, end: u64| runs.iter().any(|run| run.offset < end && start < run.end());
            let covered = |start: u64, end: u64| {
                runs.iter().any(|run| run.offset <= start && end <= run.end())
            };
            let geometry = pyramid.geometry();
            let (data, trees) = nodes(geometry, 0, geometry.root(size), &touched);
            assert_eq!((counts.data_put.len(), counts.trees_put.len()), (data, trees));
            assert_eq!(counts.trees_loaded.len(), trees, "{branches} branches, step {step}");
            let partial = runs
                .iter()
                .filter(|run| {
                    !covered(
                        run.offset / chunk as u64 * chunk as u64,
                        run.end().next_multiple_of(chunk as u64),
                    )
                })
                .count();
            assert_eq!(counts.data_loaded.len(), partial);
        }
    }
}

#[test]
fn what_is_overwritten_as_a_whole_is_not_loaded() {
    let pyramid = reference::pyramid(4);
    let store = MemoryStore::new(&pyramid);
    let content = solid(1, 128 * 64);
    let root = pyramid.split(&store, &mut content.as_slice()).unwrap();
    store.take_counts();
    let new = solid(2, 128 * 64);
    let (left, right) = new.split_at(1000);
    let runs = [Run::bytes(0, left), Run::bytes(1000, right)];
    pyramid.edit(&store, &root, u64::MAX, &runs, content.len() as u64).unwrap();
    assert_eq!(store.take_counts().loads(), 0);
}

#[test]
fn a_punch_of_a_tebibyte_costs_its_edges() {
    let pyramid = Pyramid::new(crate::chunk::Profile::DEFAULT);
    let store = MemoryStore::new(&pyramid);
    let data = solid(1, 50_000);
    let size = 4 * TIB + 777;
    let runs = [TIB - 20_000, 2 * TIB - 30_000, 4 * TIB - 60_000].map(|at| Run::bytes(at, &data));
    let root = pyramid.edit(&store, &pyramid.empty(), 0, &runs, size).unwrap();
    let depth = pyramid.geometry().root(size).height as usize;
    assert_eq!(root.filled, 3 * 50_000 + filled_around(&runs, 4096));
    store.take_counts();
    let punched = pyramid.edit(&store, &root, size, &[Run::zeros(TIB, TIB)], size).unwrap();
    let counts = store.take_counts();
    assert!(counts.loads() <= 2 * (depth + 1), "{} loads", counts.loads());
    assert!(counts.puts() <= 2 * (depth + 1), "{} puts", counts.puts());
    let mut read = vec![1; 60_000];
    pyramid.read(&store, &punched, TIB - 30_000, &mut read).unwrap();
    assert!(read[..10_000].iter().all(|byte| *byte == 0));
    assert_eq!(read[10_000..30_000], data[..20_000]);
    assert!(read[30_000..].iter().all(|byte| *byte == 0));
}

/// The bytes of the data chunks around runs that the runs themselves do not cover.
fn filled_around(runs: &[Run<'_>], chunk: u64) -> u64 {
    runs.iter()
        .map(|run| run.offset % chunk + (run.end().next_multiple_of(chunk) - run.end()))
        .sum()
}

#[test]
fn growing_and_shrinking_touches_the_edge_only() {
    for branches in [2, 3, 4, 128] {
        let pyramid = reference::pyramid(branches);
        let store = MemoryStore::new(&pyramid);
        let chunk = pyramid.profile().chunk_bytes() as u64;
        for size in [1, chunk, chunk + 1, 9 * chunk, 16 * chunk + 3, 17 * chunk, 130 * chunk] {
            let content = solid(size, size as usize);
            let root = pyramid.split(&store, &mut content.as_slice()).unwrap();
            let depth = pyramid.geometry().root(size).height as usize;
            for more in [1, 31, chunk, 100 * chunk, TIB, SIZE_MAX - size] {
                store.take_counts();
                let long = pyramid.truncate(&store, &root, size + more).unwrap();
                let counts = store.take_counts();
                let depth_long = pyramid.geometry().root(size + more).height as usize;
                assert!(counts.loads() <= depth + 1, "{} loads", counts.loads());
                assert!(counts.puts() <= depth_long + 1, "{} puts", counts.puts());
                let back = pyramid.truncate(&store, &long, size).unwrap();
                let counts = store.take_counts();
                assert_eq!(back, root);
                assert!(counts.loads() <= depth_long + 1, "{} loads back", counts.loads());
                assert!(counts.puts() <= depth + 1, "{} puts back", counts.puts());
            }
        }
    }
}

#[test]
fn holes_are_neither_put_nor_loaded() {
    let pyramid = reference::pyramid(4);
    let store = MemoryStore::new(&pyramid);
    for size in [0, 1, 128, 129, 5000, TIB, TIB + 1, SIZE_MAX] {
        let hole = pyramid.hole(size);
        assert_eq!(pyramid.truncate(&store, &pyramid.empty(), size).unwrap(), hole);
        assert_eq!(pyramid.truncate(&store, &hole, size / 3).unwrap(), pyramid.hole(size / 3));
        let zeros = [0; 1000];
        let runs = [Run::bytes(size / 2, &zeros[..(size / 2).min(1000) as usize])];
        assert_eq!(pyramid.edit(&store, &hole, size, &runs, size).unwrap(), hole);
        let mut read = vec![1; size.min(3000) as usize];
        pyramid.read(&store, &hole, size - read.len() as u64, &mut read).unwrap();
        assert!(read.iter().all(|byte| *byte == 0));
        let mut visits = 0;
        pyramid
            .walk(&store, &hole, &mut |_| {
                visits += 1;
                true
            })
            .unwrap();
        assert_eq!(visits, 0);
    }
    assert_eq!(store.take_counts(), Counts::default());
}

#[test]
fn writing_zeros_over_data_makes_a_hole_again() {
    let pyramid = reference::pyramid(4);
    let store = MemoryStore::new(&pyramid);
    let content = solid(1, 10_000);
    let root = pyramid.split(&store, &mut content.as_slice()).unwrap();
    let zeros = vec![0; 10_000];
    let runs = [Run::bytes(0, &zeros[..3000]), Run::zeros(3000, 7000)];
    store.take_counts();
    assert_eq!(pyramid.edit(&store, &root, 10_000, &runs, 10_000).unwrap(), pyramid.hole(10_000));
    assert_eq!(store.take_counts(), Counts::default());
}

#[test]
fn reading_loads_each_tree_chunk_once_and_only_data_of_the_range() {
    let pyramid = reference::pyramid(4);
    let store = MemoryStore::new(&pyramid);
    let content = solid(1, 128 * 300 + 50);
    let root = pyramid.split(&store, &mut content.as_slice()).unwrap();
    for (start, end) in [(0, content.len()), (100, 101), (127, 129), (5000, 20_000), (7, 7)] {
        store.take_counts();
        let mut read = vec![0; end - start];
        pyramid.read(&store, &root, start as u64, &mut read).unwrap();
        assert_eq!(read, content[start..end]);
        let counts = store.take_counts();
        let touched = |a: u64, b: u64| start < end && a < end as u64 && (start as u64) < b;
        let geometry = pyramid.geometry();
        let expected = nodes(geometry, 0, geometry.root(root.size), &touched);
        assert_eq!((counts.data_loaded.len(), counts.trees_loaded.len()), expected);
    }
}
