//! The faults of the original implementation, each shown absent, and trees that are not what they
//! should be. Numbers and letters are those of the list of faults.

use std::io::{self, Read};

use super::properties::{Dribble, bytes};
use super::store::MemoryStore;
use crate::chunk::{Address, Tree};
use crate::pyramid::{Error, Pyramid, Root, Run, SplitError, reference};

/// Splits without zeros in it, compares with the rule and reads back.
fn check_split(branches: u32, sizes: impl IntoIterator<Item = usize>) {
    let pyramid = reference::pyramid(branches);
    for size in sizes {
        let store = MemoryStore::new(&pyramid);
        let content = solid(size);
        let root = pyramid.split(&store, &mut content.as_slice()).unwrap();
        check(&pyramid, &store, &root, &content);
    }
}

fn check(pyramid: &Pyramid, store: &MemoryStore, root: &Root, content: &[u8]) {
    assert_eq!(*root, reference::root(pyramid.profile(), content));
    assert_ne!(root.address, Address::default());
    let mut read = vec![0; content.len()];
    pyramid.read(store, root, 0, &mut read).unwrap();
    assert!(read == content, "the bytes differ");
    store.assert_sound();
}

fn check_append(branches: u32, initial: usize, more: usize) {
    let pyramid = reference::pyramid(branches);
    let store = MemoryStore::new(&pyramid);
    let content = solid(initial + more);
    let old = pyramid.split(&store, &mut &content[..initial]).unwrap();
    let new = pyramid.append(&store, &old, &mut &content[initial..]).unwrap();
    check(&pyramid, &store, &new, &content);
    check(&pyramid, &store, &old, &content[..initial]);
}

fn solid(size: usize) -> Vec<u8> {
    bytes(5, size).iter().map(|byte| byte | 1).collect()
}

/// Gives `good` bytes, `at_once` at a time, then fails.
struct Failing {
    good: usize,
    at_once: usize,
}

impl Read for Failing {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = buf.len().min(self.good).min(self.at_once);
        if count == 0 {
            return Err(io::Error::other("the reader broke"));
        }
        buf[..count].fill(7);
        self.good -= count;
        Ok(count)
    }
}

#[test]
fn split_1_one_chunk_behind_full_tree_chunks_is_not_the_root() {
    check_split(128, [524_289, 528_384, 1_048_577, 1_052_672]);
    check_split(8, (1..20).flat_map(|n| [n * 2048 + 1, n * 2048 + 256]));
}

#[test]
fn split_2_full_tree_chunks_get_no_empty_sibling() {
    check_split(128, [524_288, 1_048_576]);
    check_split(8, (1..20).map(|n| n * 2048));
}

#[test]
fn split_3_the_last_full_tree_chunk_of_a_level_leaves_a_root() {
    check_split(8, [14_336, 14_337, 14_600, 16_383, 16_384 + 14_336, 2 * 16_384 + 16_383]);
}

#[test]
fn split_4_full_levels_are_not_forgotten() {
    check_split(8, [16_384, 16_385, 16_384 + 256, 16_384 + 2047, 2 * 16_384, 2 * 16_384 + 700]);
}

#[test]
fn split_5_trees_of_many_levels_are_right() {
    check_split(2, [511, 512, 513, 4096, 4097, 16_384 + 64, 60_001]);
    check_split(4, [8191, 8192, 8193, 8192 + 128, 32_768, 32_768 + 2048, 131_072 + 1]);
}

#[test]
fn split_6_a_short_read_is_not_the_end() {
    let pyramid = reference::pyramid(128);
    let store = MemoryStore::new(&pyramid);
    let content = solid(10_000);
    for at_once in [1, 1000, 4095, 4096, 4097] {
        let root = pyramid.split(&store, &mut Dribble(&content, at_once)).unwrap();
        check(&pyramid, &store, &root, &content);
    }
}

#[test]
fn split_7_the_bytes_of_the_last_read_count() {
    let pyramid = reference::pyramid(128);
    let store = MemoryStore::new(&pyramid);
    for size in [1, 4096, 5000, 8192, 12_287, 12_288] {
        let content = solid(size);
        for at_once in [size, size.div_ceil(2), 4096] {
            let root = pyramid.split(&store, &mut Dribble(&content, at_once)).unwrap();
            check(&pyramid, &store, &root, &content);
        }
    }
}

#[test]
fn split_8_an_error_of_the_reader_reaches_the_caller() {
    let pyramid = reference::pyramid(4);
    let store = MemoryStore::new(&pyramid);
    let batch = pyramid.batch_chunks() * 128;
    for good in [0, 1, 127, 128, 129, 512, 513, 600, batch, batch + 1, batch + 128] {
        for at_once in [100, 128, 512, usize::MAX] {
            let split = pyramid.split(&store, &mut Failing { good, at_once });
            assert!(matches!(split, Err(SplitError::Reader(_))), "{good} {at_once}");
            let old = pyramid.split(&store, &mut solid(good % 1000).as_slice()).unwrap();
            let append = pyramid.append(&store, &old, &mut Failing { good, at_once });
            assert!(matches!(append, Err(SplitError::Reader(_))), "{good} {at_once}");
        }
    }
}

/// Answers "interrupted" before every read.
struct Interrupted<'a>(Dribble<'a>, bool);

impl Read for Interrupted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 { Err(io::ErrorKind::Interrupted.into()) } else { self.0.read(buf) }
    }
}

#[test]
fn split_9_a_reader_that_takes_its_time_is_read_to_its_end() {
    let pyramid = reference::pyramid(2);
    let store = MemoryStore::new(&pyramid);
    let content = solid(5000);
    let root = pyramid.split(&store, &mut Interrupted(Dribble(&content, 1), false)).unwrap();
    check(&pyramid, &store, &root, &content);
}

#[test]
fn append_a_and_b_a_loaded_tree_chunk_grows_and_old_versions_stay() {
    check_append(128, 20_000, 10_000);
    check_append(8, 5000, 300);
    check_append(4, 1000, 1);
}

#[test]
fn append_c_the_tree_may_get_taller() {
    check_append(128, 20_000, 600_000);
    check_append(8, 1000, 1100);
    check_append(2, 64, 5000);
}

#[test]
fn append_d_a_short_last_chunk_of_a_full_tree_chunk_is_filled_up() {
    for more in [0, 1, 2, 4096, 5000] {
        check_append(128, 524_287, more);
    }
    for more in [0, 1, 2, 256, 3000] {
        check_append(8, 2047, more);
    }
}

#[test]
fn append_e_nothing_appended_changes_nothing() {
    for initial in [0, 1, 256, 300, 2048, 2049, 2047 + 300] {
        check_append(8, initial, 0);
    }
    check_append(128, 5000, 0);
}

#[test]
fn append_f_levels_may_fill_up() {
    check_append(8, 16_000, 1000);
    check_append(8, 16_384, 1);
    check_append(8, 2 * 16_384 - 1, 16_384);
}

/// All pairs of sizes around borders, so each way in which the end state was wrong, also those of
/// initial content that ends in a promoted (j) or wrapped (j) child, or at a border (i).
#[test]
fn append_g_i_and_j_every_end_state_is_right_from_every_initial_state() {
    for (branches, chunks) in [(2, 18), (3, 11), (4, 21)] {
        let chunk = branches as usize * 32;
        let sizes = || (0..chunks).flat_map(|n| [n * chunk, n * chunk + 1, (n + 1) * chunk - 1]);
        let pyramid = reference::pyramid(branches);
        let store = MemoryStore::new(&pyramid);
        let content = solid(chunks * chunk * 2);
        let roots: Vec<Root> = (0..content.len())
            .map(|size| match sizes().any(|a| sizes().any(|b| a + b == size)) {
                true => reference::root(pyramid.profile(), &content[..size]),
                false => pyramid.empty(),
            })
            .collect();
        for initial in sizes() {
            let old = pyramid.split(&store, &mut &content[..initial]).unwrap();
            for more in sizes() {
                let end = initial + more;
                let new = pyramid.append(&store, &old, &mut &content[initial..end]).unwrap();
                assert_eq!(new, roots[end], "{initial} {more}");
            }
        }
        store.assert_sound();
    }
}

#[test]
fn append_h_an_unknown_root_or_a_missing_chunk_is_an_error() {
    let pyramid = reference::pyramid(4);
    let content = solid(1000);
    let unknown = Root { address: Address([9; 32]), size: 1000, filled: 1000 };
    let store = MemoryStore::new(&pyramid);
    let append = pyramid.append(&store, &unknown, &mut &content[..]);
    assert!(matches!(append, Err(SplitError::Tree(Error::Store(_)))));
    let root = pyramid.split(&store, &mut content.as_slice()).unwrap();
    let last = *store.take_counts().data_put.last().unwrap();
    store.remove(&last);
    let append = pyramid.append(&store, &root, &mut &content[..]);
    assert!(matches!(append, Err(SplitError::Tree(Error::Store(missing))) if missing.0 == last));
}

/// Asserts that every way into the tree of `root` gives an error of the kind that `expected` knows.
fn assert_corrupt(
    pyramid: &Pyramid,
    store: &MemoryStore,
    root: &Root,
    expected: fn(&Error<super::store::Missing>) -> bool,
) {
    let mut read = vec![0; root.size as usize];
    assert!(expected(&pyramid.read(store, root, 0, &mut read).unwrap_err()));
    assert!(expected(&pyramid.truncate(store, root, root.size - 1).unwrap_err()));
    let runs = [Run::bytes(root.size - 1, &[1])];
    assert!(expected(&pyramid.edit(store, root, root.size, &runs, root.size).unwrap_err()));
    let append = pyramid.append(store, root, &mut &[1_u8][..]);
    assert!(matches!(append, Err(SplitError::Tree(error)) if expected(&error)));
}

#[test]
fn a_tree_chunk_that_does_not_fit_its_place_is_an_error() {
    let pyramid = reference::pyramid(4);
    let store = MemoryStore::new(&pyramid);
    let root = pyramid.split(&store, &mut solid(1000).as_slice()).unwrap();
    let good = Tree::clone(&store.tree_of(&root.address));
    type Damage = fn(&mut Tree);
    let damages: [Damage; 6] = [
        |tree| tree.span += 1,
        |tree| tree.span = u64::MAX,
        |tree| tree.children.clear(),
        |tree| tree.children.truncate(1),
        |tree| tree.children.push(Address([1; 32])),
        |tree| tree.filled.truncate(1),
    ];
    let shape = |error: &Error<_>| matches!(error, Error::TreeShape { .. });
    for damage in damages {
        let mut tree = good.clone();
        damage(&mut tree);
        store.forge(root.address, tree);
        assert_corrupt(&pyramid, &store, &root, shape);
        let walk = pyramid.walk(&store, &root, &mut |_| true);
        assert!(shape(&walk.unwrap_err()));
    }
}

/// A tree chunk that is its own child ends at the first level whose span cannot be the same.
#[test]
fn a_circle_ends() {
    let pyramid = reference::pyramid(4);
    let store = MemoryStore::new(&pyramid);
    let root = pyramid.split(&store, &mut solid(1000).as_slice()).unwrap();
    let mut tree = Tree::clone(&store.tree_of(&root.address));
    tree.children = vec![root.address; tree.children.len()];
    store.forge(root.address, tree);
    assert_corrupt(&pyramid, &store, &root, |error| matches!(error, Error::TreeShape { .. }));
}

#[test]
fn a_data_chunk_of_another_length_is_an_error() {
    let pyramid = reference::pyramid(4);
    for wrong in [0, 1, 103, 105, 128, 5000] {
        let store = MemoryStore::new(&pyramid);
        let root = pyramid.split(&store, &mut solid(1000).as_slice()).unwrap();
        let last = *store.take_counts().data_put.last().unwrap();
        store.forge_data(last, &solid(wrong));
        let length =
            |error: &Error<_>| matches!(error, Error::DataLength { length_expected: 104, .. });
        assert_corrupt(&pyramid, &store, &root, length);
    }
}

/// Counts of filled bytes lie beside the hashed chunks. Whatever they say, the bytes are right.
#[test]
fn wrong_counts_do_not_change_the_bytes() {
    let pyramid = reference::pyramid(4);
    let content = bytes(3, 9000);
    let count = |lie: u64, right: u64, span: u64| match lie {
        0 => 0,
        1 => span,
        2 => u64::MAX,
        _ => span - right.min(span),
    };
    for size in [600, 8192, 8200, 9000] {
        let mut holey = content[..size].to_vec();
        holey[size / 3..].fill(0);
        for lie in 0..4 {
            let store = MemoryStore::with_wrong_counts(&pyramid);
            let root = pyramid.split(&store, &mut holey.as_slice()).unwrap();
            for address in store.take_counts().trees_put {
                let mut tree = Tree::clone(&store.tree_of(&address));
                let span = tree.span;
                tree.filled.iter_mut().for_each(|filled| *filled = count(lie, *filled, span));
                store.forge(address, tree);
            }
            let root = Root { filled: count(lie, root.filled, root.size), ..root };
            let mut read = vec![1; size];
            pyramid.read(&store, &root, 0, &mut read).unwrap();
            assert!(read == holey, "size {size}, lie {lie}");
            let longer = pyramid.append(&store, &root, &mut &content[..700]).unwrap();
            let shorter = pyramid.truncate(&store, &root, size as u64 - 5).unwrap();
            let holey = [&holey[..], &content[..700]].concat();
            for (new, end) in [(longer, size + 700), (shorter, size - 5)] {
                let expected = reference::root(pyramid.profile(), &holey[..end]);
                assert_eq!((new.address, new.size), (expected.address, expected.size));
            }
        }
    }
}
