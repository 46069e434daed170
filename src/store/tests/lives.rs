//! Long lives: roots come and go, collections in between, threads beside them, and crashes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;

use super::forest::{ALL, ANY, Forest, Shape};
use super::*;
use crate::store::Policy;
use crate::sys::sim::{Event, Keep, Moment};

#[derive(Debug, Clone)]
enum Step {
    Plant(u64, Shape),
    Fell(u64),
    Commit,
    /// With these shapes put at these stages, as the next group would.
    Collect(u64, Vec<(usize, u64, Shape)>),
    SaveIndex,
    Reopen,
    Rebuild,
    Crash(Option<u64>),
}

fn any_shape() -> impl Strategy<Value = Shape> {
    let numbers = prop::collection::vec(0..150_u64, 1..25);
    prop::collection::vec(numbers, 1..4).prop_map(Shape)
}

fn any_percent() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0_u64), Just(1), Just(25), Just(60)]
}

fn any_step() -> impl Strategy<Value = Step> {
    let late = (0..7_usize, 0..10_u64, any_shape());
    prop_oneof![
        6 => (0..10_u64, any_shape()).prop_map(|(name, shape)| Step::Plant(name, shape)),
        4 => (0..10_u64).prop_map(Step::Fell),
        2 => Just(Step::Commit),
        4 => (any_percent(), prop::collection::vec(late, 0..4))
            .prop_map(|(percent, late)| Step::Collect(percent, late)),
        1 => Just(Step::SaveIndex),
        1 => Just(Step::Reopen),
        1 => Just(Step::Rebuild),
        2 => proptest::option::of(any::<u64>()).prop_map(Step::Crash),
    ]
}

struct Life {
    forest: Forest,
    durable: BTreeMap<u64, Shape>,
}

impl Life {
    fn apply(mut self, step: Step) -> Life {
        match step {
            Step::Plant(name, shape) => self.forest.plant(name, shape),
            Step::Fell(name) => drop(self.forest.fell(name)),
            Step::Commit => self.commit(),
            Step::Collect(percent, late) => self.collect(percent, &late),
            Step::SaveIndex => self.forest.store.save_index().unwrap(),
            Step::Reopen | Step::Rebuild => {
                self.commit();
                self.forest = match step {
                    Step::Reopen => self.forest.reopen(),
                    _ => self.forest.rebuilt(),
                };
                self.forest.assert_sound();
            }
            Step::Crash(seed) => {
                let image = self.forest.disk.crash(seed.map_or(Keep::Nothing, Keep::Random));
                self.forest = self.forest.again(&image);
                *self.forest.roots.lock() = self.durable.clone();
                self.forest.assert_sound();
            }
        }
        self
    }

    fn commit(&mut self) {
        self.forest.commit().unwrap();
        self.durable = self.forest.roots.lock().clone();
    }

    fn collect(&mut self, percent: u64, late: &[(usize, u64, Shape)]) {
        let mut kept = self.forest.reach();
        kept.extend(late.iter().flat_map(|(.., shape)| shape.reach()));
        let from = self.forest.sealed_below();
        let policy = Policy { garbage_percent: percent, live_bytes_max: u64::MAX };
        let done = self.forest.collect_with(policy, &mut |stage, _| {
            for (_, name, shape) in late.iter().filter(|(at, ..)| *at == stage as usize) {
                self.forest.plant(*name, shape.clone());
            }
        });
        let done = done.unwrap();
        self.commit();
        self.forest.assert_reads();
        assert!(done.victims.iter().all(|victim| !self.forest.has_pack(victim.pack)));
        if percent == 0 {
            // All that lies in older packs was reachable, or is gone.
            for (address, at) in self.forest.places(from) {
                assert!(kept.contains(&address), "{at}");
            }
        }
    }
}

proptest! {
    #![proptest_config(crate::testing::config(24))]

    #[test]
    fn what_is_reachable_lives_through_all_of_it(
        steps in prop::collection::vec(any_step(), 1..40),
        workers in prop_oneof![3 => Just(0_usize), 1 => Just(2)],
        tiny in any::<bool>(),
        tree_copies in 1..=2_u32,
    ) {
        let index_memory_bytes = if tiny { 2048 } else { 1 << 20 };
        let tree_copies = tree_copies as _;
        let options = Options { workers, index_memory_bytes, tree_copies, ..small() };
        let mut life = Life { forest: Forest::new(options), durable: Default::default() };
        for step in steps {
            life = life.apply(step);
        }
        life.forest.assert_reads();
        life = life.apply(Step::Rebuild);
        life.collect(0, &[]);
        life.forest.assert_sound();
    }
}

/// At every sync of a collection the power may go; then another one may begin.
fn every_sync_may_be_the_last(options: Options) {
    let forest = Forest::new(options);
    for name in 0..6 {
        forest.plant(
            name,
            Shape(vec![
                (name * 60..name * 60 + 25).collect(),
                (name * 60 + 25..name * 60 + 50).collect(),
            ]),
        );
        forest.commit().unwrap();
        if name == 3 {
            forest.store.save_index().unwrap();
        }
        forest.store.copy_trees().unwrap();
    }
    [0, 2, 4].into_iter().for_each(|name| drop(forest.fell(name)));
    forest.commit().unwrap();
    let (roots, tried) = (forest.roots.lock().clone(), Arc::new(AtomicU64::new(0)));
    let from = Arc::clone(&forest.position);
    let (options, count) = (forest.options.clone(), Arc::clone(&tried));
    forest.disk.set_hook(Some(Box::new(move |disk: &SimDisk, event: Event| {
        let seed = event.number * 2 + u64::from(event.moment == Moment::After);
        let seed = seed + crate::testing::seed() * 1000;
        for keep in [Keep::Nothing, Keep::All, Keep::Random(seed)] {
            let image = Forest::open(&disk.crash(keep), options.clone(), *from.lock());
            *image.roots.lock() = roots.clone();
            image.assert_sound();
            if count.fetch_add(1, Ordering::Relaxed) % 4 == 0 {
                image.collect(ALL).unwrap();
                image.assert_sound();
                image.rebuilt().assert_sound();
            }
        }
    })));
    for policy in [ANY, ALL] {
        forest.collect(policy).unwrap();
        forest.store.copy_trees().unwrap();
        forest.store.save_index().unwrap();
    }
    forest.disk.set_hook(None);
    forest.assert_sound();
    assert!(30 < tried.load(Ordering::Relaxed), "{tried:?}");
}

#[test]
fn a_crash_within_a_collection_loses_nothing() {
    every_sync_may_be_the_last(small());
}

#[test]
fn nor_with_a_tiny_index_and_second_copies() {
    every_sync_may_be_the_last(Options { index_memory_bytes: 2048, tree_copies: 2, ..small() });
}

/// Threads plant and fell what the others do, and read, while one collects all the time.
#[test]
fn many_work_while_one_collects() {
    for (index_memory_bytes, cache_bytes) in [(1 << 20, 1 << 20), (2048, 1)] {
        let options = Options {
            workers: 2,
            index_memory_bytes,
            cache_bytes,
            tree_cache_bytes: cache_bytes,
            ..small()
        };
        let forest = Forest::new(options);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (forest, over) = (&forest, &over);
                scope.spawn(move || {
                    let _over = Over(over);
                    for round in 0..60_u64 {
                        work(forest, thread, round);
                    }
                });
            }
            while !over.load(Ordering::Acquire) {
                forest
                    .collect(if forest.store.stats().sequence.is_multiple_of(3) {
                        ALL
                    } else {
                        ANY
                    })
                    .unwrap();
            }
        });
        forest.commit().unwrap();
        forest.assert_sound();
        forest.collect(ALL).unwrap();
        forest.rebuilt().assert_sound();
    }
}

/// Says that a thread is over, however it ends.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn work(forest: &Forest, thread: u64, round: u64) {
    let mut state = (thread << 32 | round).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let first = random(90);
    let numbers = |from: u64| (from..from + 20).collect::<Vec<u64>>();
    forest.plant(thread * 10 + random(3), Shape(vec![numbers(first), numbers(random(90))]));
    let visit = forest.store.visit();
    let own = forest.roots.lock().get(&(thread * 10)).cloned();
    if let Some(shape) = own {
        shape.assert_reads(&forest.store);
        // A root made from another: only what is new is put.
        let mut changed = shape;
        changed.0[0].push(100 + random(50));
        put(&forest.store, *changed.0[0].last().unwrap()).unwrap();
        changed.put_trees(&forest.store).unwrap();
        forest.roots.lock().insert(thread * 10, changed);
    }
    drop(visit);
    if random(3) == 0 {
        forest.fell(thread * 10 + 1 + random(2));
    }
    if random(4) == 0 {
        let position = commit(&forest.store, b"roots").unwrap();
        let mut last = forest.position.lock();
        *last = (*last).max(position);
    }
}
