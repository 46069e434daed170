//! Limits: memory of the index, caches, packs, records.

use super::cache::Cache;
use super::index::{Index, prefix_of};
use super::*;
use crate::testing;

#[test]
fn a_tiny_index_still_answers_for_everything() {
    let disk = new_disk();
    let options =
        Options { index_memory_bytes: 4096, cache_bytes: 0, tree_cache_bytes: 0, ..small() };
    let mut position = LogPosition::default();
    for round in 0..20 {
        let store = open_from(&disk, options.clone(), position).store;
        for number in round * 40..round * 40 + 40 {
            put(&store, number).unwrap();
        }
        let (address, tree) = tree_of(&[round * 40, 0]);
        store.put_tree(address, tree).unwrap();
        position = commit(&store, b"").unwrap();
        store.save_index().unwrap();
        for old in 0..=round {
            assert!(store.contains(&tree_of(&[old * 40, 0]).0).unwrap());
        }
        assert_reads(&store, 0..round * 40 + 40);
    }
    let Opened { store, findings, .. } = open_from(&disk, options, position);
    assert_eq!(findings, []);
    assert_reads(&store, 0..800);
    assert!(!store.contains(&address_of(801)).unwrap());
    let stats = store.stats();
    assert!(stats.index_memory_bytes < 8192, "{stats:?}");
    assert_eq!(stats.chunks, 820);
    let runs = disk.read_dir(run::INDEX_DIR).unwrap();
    assert!(runs.len() <= 8, "{runs:?}");
}

#[test]
fn one_long_session_with_a_tiny_index_stays_small() {
    let disk = new_disk();
    let options = Options { index_memory_bytes: 4096, ..small() };
    let store = open_from(&disk, options, LogPosition::default()).store;
    for number in 0..1500 {
        put(&store, number).unwrap();
        if number % 50 == 0 {
            commit(&store, b"").unwrap();
        }
    }
    commit(&store, b"").unwrap();
    let stats = store.stats();
    assert!(stats.index_memory_bytes < 16 * 1024, "{stats:?}");
    assert_reads(&store, (0..1500).step_by(7));
}

#[test]
fn a_record_that_no_pack_can_hold_is_refused_and_harms_nothing() {
    let disk = new_disk();
    let store = open(&disk).store;
    put(&store, 1).unwrap();
    let large = vec![1; 40 * 1024];
    assert!(matches!(commit(&store, &large), Err(Error::RecordTooLarge { .. })));
    let fitting = vec![2; 31 * 1024];
    commit(&store, &fitting).unwrap();
    commit(&store, &fitting).unwrap();
    let Opened { store, records, findings } = open(&disk);
    assert_eq!((records.len(), findings.len()), (2, 0));
    assert!(records.iter().all(|record| record.entries == fitting));
    assert_reads(&store, [1]);
}

#[test]
fn a_cache_stays_within_its_limit_and_survives_a_scan() {
    let cache: Cache<u64, u64> = Cache::new(1000);
    for round in 0..3 {
        for hot in 0..40 {
            if cache.get(&hot).is_none() {
                cache.put(hot, hot, 10);
            }
        }
        assert!(cache.stats().bytes <= 1000, "{round}");
    }
    for cold in 1000..5000 {
        cache.put(cold, cold, 10);
        for _ in 0..16 {
            assert_eq!(cache.get(&cold), Some(cold));
        }
        assert!(cache.stats().bytes <= 1000);
    }
    let kept = (0..40).filter(|hot| cache.get(hot) == Some(*hot)).count();
    // The last four were not asked for again with enough others in between.
    assert!(kept >= 36, "{kept}");
    cache.put(1, 1, 900);
    assert_eq!(cache.get(&1), None, "too heavy to keep, and the old value is gone");
}

/// Runs of many sizes, with equal prefixes in neighbouring blocks, give what was put into them.
#[test]
fn runs_give_back_what_was_put_into_them() {
    let disk = new_disk();
    let mut state = testing::seed();
    let mut random = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state ^ state >> 29
    };
    for (number, count) in [1_u64, 254, 255, 256, 700, 5000].into_iter().enumerate() {
        let mut entries: Vec<(u64, u64)> = (0..count).map(|at| (random(), at)).collect();
        let equal = random() >> 3;
        entries.iter_mut().step_by(3).filter(|_| count == 5000).for_each(|one| one.0 = equal);
        // Not evenly spread at all.
        entries.iter_mut().step_by(5).for_each(|one| one.0 >>= 40);
        entries.sort_unstable();
        let to = LogPosition { pack: 1, offset: 8, sequence: 1 };
        let head = run::RunHead { entries: count, from: (0, 0), to, totals: Default::default() };
        let mut rest = entries.clone().into_iter();
        let run = run::write(&disk, number as u64, &VOLUME, head, &mut || Ok(rest.next())).unwrap();
        let run = run::Run::open(&disk, &run.name, &VOLUME).unwrap().unwrap();
        assert_eq!(run.head, head);
        for (prefix, _) in entries.iter().step_by(1 + entries.len() / 300) {
            let expected: Vec<u64> =
                entries.iter().filter(|one| one.0 == *prefix).map(|one| one.1).collect();
            assert_eq!(run.find(*prefix).unwrap().unwrap(), expected);
        }
        for absent in [0, 1, u64::MAX, equal + 1] {
            let expected = entries.iter().filter(|one| one.0 == absent).count();
            assert_eq!(run.find(absent).unwrap().unwrap().len(), expected);
        }
        assert!(run::Run::open(&disk, &run.name, &[0; 16]).unwrap().is_none());
    }
}

#[test]
fn slots_take_no_more_memory_than_they_may() {
    let index = Index::new(VOLUME, 1 << 20);
    let disk = new_disk();
    for number in 0..60_000_u64 {
        let address = Profile::DEFAULT.address(number, &[]);
        let offset = 64 + number % 1000 * 8;
        let location = Location { pack: 1 + number / 1000, offset, slot: number as u8 };
        index.insert(&address, location, 1);
        let to = LogPosition { pack: location.pack, offset: offset + 8, sequence: number + 1 };
        index.committed(index.mark(), to);
        if index.wants_run() {
            index.save(&disk).unwrap();
        }
        assert!(index.candidates(&address).contains(&location));
        assert_ne!(prefix_of(&address), 0);
    }
    assert!(index.memory_bytes() <= 1 << 20, "{}", index.memory_bytes());
    for number in (0..60_000_u64).step_by(977) {
        let address = Profile::DEFAULT.address(number, &[]);
        let found = [index.candidates(&address), index.run_candidates(&address).unwrap()].concat();
        assert!(found.iter().any(|one| one.pack == 1 + number / 1000), "{number}");
    }
    assert_eq!(index.totals().chunks, 60_000);
}

#[test]
fn packs_of_records_alone_get_a_run_too() {
    let disk = new_disk();
    let store = open(&disk).store;
    put(&store, 1).unwrap();
    for _ in 0..30 {
        commit(&store, &[0; 20_000]).unwrap();
        store.save_index().unwrap();
    }
    let runs = disk.read_dir(run::INDEX_DIR).unwrap();
    assert_eq!(runs.len(), 2, "one with the chunk, and one without any");
    let Opened { store, findings, .. } = open(&disk);
    assert_eq!(findings, []);
    assert_reads(&store, [1]);
    assert_eq!(store.stats().chunks, 1);
}
