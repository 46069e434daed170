//! The store beside a map that forgets what was not committed.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::sys::sim::Keep;

#[derive(Debug, Clone)]
enum Step {
    Put(u64),
    PutMany(u64, u64),
    PutTree(Vec<u64>),
    Commit(Vec<u8>),
    Flush,
    SaveIndex,
    Close,
    Crash(Option<u64>),
    DropIndex,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..120_u64).prop_map(Step::Put),
        4 => (0..120_u64, 1..40_u64).prop_map(|(first, count)| Step::PutMany(first, count)),
        4 => prop::collection::vec(0..120_u64, 1..6).prop_map(Step::PutTree),
        4 => prop::collection::vec(any::<u8>(), 0..300).prop_map(Step::Commit),
        1 => Just(Step::Flush),
        1 => Just(Step::SaveIndex),
        1 => Just(Step::Close),
        2 => proptest::option::of(any::<u64>()).prop_map(Step::Crash),
        1 => Just(Step::DropIndex),
    ]
}

/// What the store must hold.
#[derive(Debug, Clone, Default)]
struct Model {
    chunks: BTreeSet<u64>,
    trees: BTreeSet<Vec<u64>>,
    records: Vec<Vec<u8>>,
}

struct Run {
    disk: SimDisk,
    store: Store,
    options: Options,
    now: Model,
    durable: Model,
}

impl Run {
    fn new(options: Options) -> Run {
        let disk = new_disk();
        let store = open_from(&disk, options.clone(), LogPosition::default()).store;
        Run { disk, store, options, now: Model::default(), durable: Model::default() }
    }

    fn put(&mut self, number: u64) {
        put(&self.store, number).unwrap();
        self.now.chunks.insert(number);
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Put(number) => self.put(number),
            Step::PutMany(first, count) => (first..first + count).for_each(|one| self.put(one)),
            Step::PutTree(numbers) => {
                numbers.iter().for_each(|number| self.put(*number));
                let (address, tree) = tree_of(&numbers);
                self.store.put_tree(address, tree).unwrap();
                self.now.trees.insert(numbers);
            }
            Step::Commit(entries) => {
                let position = commit(&self.store, &entries).unwrap();
                self.now.records.push(entries);
                assert_eq!(position.sequence, self.now.records.len() as u64);
                self.durable = self.now.clone();
            }
            Step::Flush => drop(self.store.flush().unwrap()),
            Step::SaveIndex => self.store.save_index().unwrap(),
            Step::Close => {
                self.store.close().unwrap();
                self.reopen(self.disk.clone());
            }
            Step::Crash(seed) => {
                let keep = seed.map_or(Keep::Nothing, Keep::Random);
                let disk = self.disk.crash(keep);
                self.reopen(disk);
            }
            Step::DropIndex => {
                // Also stops the workers: two stores never share a disk.
                self.store.close().unwrap();
                for entry in self.disk.read_dir(run::INDEX_DIR).unwrap() {
                    self.disk.remove_file(&format!("{}/{}", run::INDEX_DIR, entry.name)).unwrap();
                }
                // Else a power loss may bring some of them back.
                self.disk.sync_dir(run::INDEX_DIR).unwrap();
                let disk = self.disk.clone();
                self.reopen(disk);
            }
        }
    }

    fn reopen(&mut self, disk: SimDisk) {
        let opened = open_from(&disk, self.options.clone(), LogPosition::default());
        let usual =
            |one: &Finding| matches!(one, Finding::TailCut { .. } | Finding::PackSetAside { .. });
        assert!(opened.findings.iter().all(usual), "{:?}", opened.findings);
        let records = opened.records.into_iter().map(|record| record.entries);
        assert_eq!(records.collect::<Vec<_>>(), self.durable.records);
        self.store = opened.store;
        self.disk = disk;
        self.now = self.durable.clone();
        self.check();
        for number in (0..160).filter(|number| !self.now.chunks.contains(number)) {
            assert!(!self.store.contains(&address_of(number)).unwrap(), "{number}");
        }
    }

    fn check(&self) {
        let addresses: Vec<Address> = self.now.chunks.iter().map(|one| address_of(*one)).collect();
        let numbers: Vec<u64> = self.now.chunks.iter().copied().collect();
        let mut seen = 0;
        let mut each = |position: usize, bytes: &[u8]| {
            assert_eq!(bytes, payload(numbers[position]));
            seen += 1;
        };
        self.store.data_many(&addresses, &mut each).unwrap();
        assert_eq!(seen, numbers.len());
        for numbers in &self.now.trees {
            let (address, tree) = tree_of(numbers);
            assert!(self.store.contains(&address).unwrap());
            assert_eq!(*self.store.tree(&address).unwrap(), tree);
        }
    }
}

proptest! {
    #![proptest_config(crate::testing::config(24))]

    #[test]
    fn the_store_is_a_map_that_forgets_what_was_not_committed(
        steps in prop::collection::vec(any_step(), 1..40),
        workers in prop_oneof![3 => Just(0_usize), 1 => Just(2)],
        tiny in any::<bool>(),
    ) {
        let index_memory_bytes = if tiny { 2048 } else { 1 << 20 };
        let mut run = Run::new(Options { workers, index_memory_bytes, ..small() });
        for step in steps {
            run.apply(step);
        }
        run.check();
        prop_assert_eq!(verify_findings(&run.store), []);
        run.apply(Step::Close);
        if !tiny {
            let stored = run.now.chunks.len() + run.now.trees.len();
            prop_assert_eq!(run.store.stats().chunks, stored as u64);
        }
    }
}
