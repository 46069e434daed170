//! Putting, committing, reopening and reading.

use super::*;

#[test]
fn what_was_committed_is_there_after_opening_again() {
    let disk = new_disk();
    let Opened { store, records, findings } = open(&disk);
    assert!(records.is_empty() && findings.is_empty());
    for number in 0..100 {
        put(&store, number).unwrap();
    }
    let (address, tree) = tree_of(&[1, 2, 3]);
    store.put_tree(address, tree.clone()).unwrap();
    assert_reads(&store, 0..100);
    let position = commit(&store, b"first").unwrap();
    assert_eq!(position.sequence, 1);
    let second = commit(&store, b"second").unwrap();
    assert_reads(&store, 0..100);
    assert_eq!(verify_findings(&store), []);
    let stats = store.stats();
    assert_eq!(stats.chunks, 101);
    drop(store);

    let Opened { store, records, findings } = open(&disk);
    assert_eq!(findings, []);
    let entries: Vec<&[u8]> = records.iter().map(|record| record.entries.as_slice()).collect();
    assert_eq!(entries, [b"first".as_slice(), b"second"]);
    assert_eq!(records.last().unwrap().position, second);
    assert_reads(&store, 0..100);
    assert_eq!(*store.tree(&address).unwrap(), tree);
    let again = store.stats();
    assert_eq!((again.chunks, again.unique_bytes), (stats.chunks, stats.unique_bytes));
    assert_eq!((again.stored_bytes, again.packs), (stats.stored_bytes, stats.packs));
    assert!(again.packs > 2, "the small packs were filled");
    assert_eq!(verify_findings(&store), []);
    store.close().unwrap();
    store.close().unwrap();

    let Opened { store, records, findings } = open_from(&disk, small(), second);
    assert_eq!((records.len(), findings.as_slice()), (0, [].as_slice()));
    assert_reads(&store, 0..100);
    assert_eq!(store.stats().chunks, stats.chunks);
    assert_eq!(commit(&store, b"third").unwrap().sequence, 3);
}

#[test]
fn what_was_not_committed_is_gone_and_its_place_is_used_again() {
    let disk = new_disk();
    let store = open(&disk).store;
    put(&store, 1).unwrap();
    let position = commit(&store, b"1").unwrap();
    for number in 2..60 {
        put(&store, number).unwrap();
    }
    let _ = store.flush().unwrap();
    drop(store);
    let Opened { store, records, findings } = open(&disk);
    assert_eq!(records.len(), 1);
    assert!(findings.iter().any(|one| matches!(one, Finding::TailCut { .. })), "{findings:?}");
    assert!(findings.iter().any(|one| matches!(one, Finding::PackSetAside { .. })));
    assert_reads(&store, [1]);
    assert!(!store.contains(&address_of(2)).unwrap());
    assert!(matches!(store.data(&address_of(2)), Err(Error::Missing { .. })));
    put(&store, 2).unwrap();
    let next = commit(&store, b"2").unwrap();
    assert_eq!((next.pack, next.sequence), (position.pack, 2));
    drop(store);
    let Opened { store, findings, .. } = open(&disk);
    assert_eq!(findings, []);
    assert_reads(&store, [1, 2]);
}

#[test]
fn equal_chunks_are_stored_once() {
    let disk = new_disk();
    let store = open(&disk).store;
    for round in 0..3 {
        for number in 0..50 {
            put(&store, number).unwrap();
        }
        let twice = [(address_of(7), payload(7)), (address_of(7), payload(7))];
        let twice: Vec<(Address, &[u8])> = twice.iter().map(|one| (one.0, &*one.1)).collect();
        store.put_data(&twice).unwrap();
        let (address, tree) = tree_of(&[1, 2]);
        store.put_tree(address, tree).unwrap();
        if round == 1 {
            commit(&store, b"").unwrap();
        }
    }
    commit(&store, b"").unwrap();
    assert_eq!(store.stats().chunks, 51);
}

#[test]
fn many_are_read_in_any_order_and_with_repeats() {
    let disk = new_disk();
    let store = open(&disk).store;
    for number in 0..200 {
        put(&store, number).unwrap();
    }
    commit(&store, b"").unwrap();
    let store = open(&disk).store;
    put(&store, 1000).unwrap();
    let numbers: Vec<u64> = (0..200).rev().chain([5, 5, 1000, 0]).collect();
    let addresses: Vec<Address> = numbers.iter().map(|number| address_of(*number)).collect();
    for _ in 0..2 {
        let mut seen = vec![0; numbers.len()];
        store
            .data_many(&addresses, &mut |position, bytes| {
                assert_eq!(bytes, payload(numbers[position]));
                seen[position] += 1;
            })
            .unwrap();
        assert!(seen.iter().all(|count| *count == 1));
    }
    let missing = store.data_many(&[address_of(1), address_of(9999)], &mut |_, _| {});
    assert!(matches!(missing, Err(Error::Missing { .. })));
}

#[test]
fn threads_that_put_the_same_chunks_store_them_once() {
    let disk = new_disk();
    let options = Options { workers: 3, pending_bytes_max: 4096, ..small() };
    let store = open_from(&disk, options, LogPosition::default()).store;
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let store = &store;
            scope.spawn(move || {
                for step in 0..150 {
                    let number = (step + thread * 3) % 150;
                    put(store, number).unwrap();
                    assert_reads(store, [number]);
                    if step % 40 == 0 {
                        let (address, tree) = tree_of(&[number]);
                        store.put_tree(address, tree.clone()).unwrap();
                        assert_eq!(*store.tree(&address).unwrap(), tree);
                        commit(store, b"x").unwrap();
                    }
                }
            });
        }
    });
    commit(&store, b"end").unwrap();
    let trees: std::collections::BTreeSet<u64> =
        (0..4).flat_map(|thread| [0, 40, 80, 120].map(|step| (step + thread * 3) % 150)).collect();
    assert_eq!(store.stats().chunks, 150 + trees.len() as u64);
    store.close().unwrap();
    let Opened { store, records, findings } = open(&disk);
    assert_eq!((findings, records.len()), (vec![], 17));
    let sequences: Vec<u64> = records.iter().map(|record| record.position.sequence).collect();
    assert_eq!(sequences, (1..=17).collect::<Vec<u64>>());
    assert_reads(&store, 0..150);
}

#[test]
fn the_empty_chunk_is_a_chunk() {
    let disk = new_disk();
    let store = open(&disk).store;
    let empty = Profile::DEFAULT.address(0, &[]);
    store.put_data(&[(empty, &[])]).unwrap();
    assert!(store.data(&empty).unwrap().is_empty());
    commit(&store, b"").unwrap();
    put(&store, 1).unwrap();
    store.put_data(&[(empty, &[])]).unwrap();
    commit(&store, b"").unwrap();
    let store = open(&disk).store;
    assert!(store.data(&empty).unwrap().is_empty());
    assert_eq!(store.stats().chunks, 2);
}

/// The index keeps a few bytes of an address; the frame's list has the last word.
#[test]
fn addresses_with_the_same_beginning_are_told_apart() {
    let disk = new_disk();
    let store = open(&disk).store;
    let address = put(&store, 1).unwrap();
    let mut other = address;
    other.0[31] ^= 1;
    for tree in [false, true] {
        commit(&store, b"").unwrap();
        store.save_index().unwrap();
        assert!(!store.contains(&other).unwrap());
        assert!(matches!(store.data(&other), Err(Error::Missing { .. })));
        if tree {
            let tree = Tree { span: 5000, children: vec![address], filled: vec![1] };
            store.put_tree(other, tree).unwrap();
        }
    }
    assert!(store.contains(&other).unwrap());
    assert_reads(&store, [1]);
    assert!(matches!(store.data(&other), Err(Error::Missing { .. })), "it is a tree chunk");
    assert!(store.tree(&address).is_err(), "it is a data chunk");
}

/// Also when a frame of trees is full while their children still wait for theirs to be.
#[test]
fn children_come_first_in_the_log() {
    let disk = new_disk();
    let options = Options { pack_bytes_max: 1 << 20, ..small() };
    let store = open_from(&disk, options, LogPosition::default()).store;
    let trees: Vec<(Address, Tree)> = (1..127)
        .map(|count| {
            tree_over(vec![address_of(count % 3); count as usize], vec![9; count as usize])
        })
        .collect();
    for number in 0..3 {
        put(&store, number).unwrap();
    }
    for (address, tree) in &trees {
        store.put_tree(*address, tree.clone()).unwrap();
    }
    commit(&store, b"").unwrap();
    drop(store);
    let Opened { store, findings, .. } = open(&disk);
    assert_eq!(findings, [], "no tree was left out for want of a child");
    for (address, tree) in &trees {
        assert_eq!(*store.tree(address).unwrap(), *tree);
    }
}
