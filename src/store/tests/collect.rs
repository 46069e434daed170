//! Collections, one rule at a time: what may go, and what is found again meanwhile.

use super::forest::{ALL, ANY, Done, Forest, Shape, Stage, place_of};
use super::*;

/// A forest of 6 roots of 40 chunks, of which every other one was felled.
fn half(options: Options) -> Forest {
    let forest = Forest::new(options);
    for name in 0..6 {
        forest.plant(name, Shape::of(name * 100..name * 100 + 40));
        forest.commit().unwrap();
    }
    [0, 2, 4].into_iter().for_each(|name| drop(forest.fell(name)));
    forest
}

fn is_stored(forest: &Forest, number: u64) -> bool {
    forest.store.contains(&address_of(number)).unwrap()
}

#[test]
fn what_nobody_needs_goes_and_all_else_stays() {
    let forest = half(small());
    let before = forest.store.stats();
    let done = forest.collect(ANY).unwrap();
    forest.assert_sound();
    assert!((0..40).all(|number| !is_stored(&forest, number)));
    assert!(before.stored_bytes * 2 / 5 < done.freed && done.freed <= before.stored_bytes);
    let after = forest.store.stats();
    assert!(after.stored_bytes < before.stored_bytes * 2 / 3, "{before:?} {after:?}");
    assert!(done.victims.iter().all(|victim| !forest.has_pack(victim.pack)));
    // What was marked is what there is, but for what lies in the packs that stay.
    assert!(after.chunks < before.chunks);
    // A second one finds nothing to do.
    let again = forest.collect(ANY).unwrap();
    assert!(again.freed < done.freed / 4, "{again:?}");
    forest.assert_sound();
}

#[test]
fn nothing_is_a_victim_that_is_all_alive() {
    let forest = Forest::new(small());
    (0..6).for_each(|name| forest.plant(name, Shape::of(name * 100..name * 100 + 40)));
    forest.commit().unwrap();
    let done = forest.collect(Policy::default()).unwrap();
    assert_eq!((done.victims, done.freed), (vec![], 0));
    assert!(done.garbage < forest.store.stats().stored_bytes / 20, "{}", done.garbage);
}

#[test]
fn opening_finds_what_a_collection_has_left() {
    let forest = half(small());
    forest.store.save_index().unwrap();
    forest.collect(ANY).unwrap();
    let forest = forest.reopen();
    forest.assert_sound();
    let chunks = forest.store.stats().chunks;
    let forest = forest.rebuilt();
    forest.assert_sound();
    assert_eq!(forest.store.stats().chunks, chunks);
    assert!((0..40).all(|number| !is_stored(&forest, number)));
}

/// A tree that stays where it is, while its children move behind it, and then goes the other way.
#[test]
fn a_tree_may_lie_in_front_of_its_children() {
    let forest = Forest::new(small());
    let shape = Shape(vec![(0..30).collect(), (30..60).collect()]);
    forest.plant(0, shape.clone());
    forest.commit().unwrap();
    // All but the trees is moved.
    let tree_packs: Vec<u64> =
        [shape.root()].iter().map(|root| place_of(&forest.store, root).pack).collect();
    let collection = forest.store.begin_collection().unwrap();
    forest.commit().unwrap();
    collection.candidates_below(*forest.position.lock());
    let on = &mut |_| ControlFlow::Continue(());
    collection.marks().mark(&forest.store, &shape.root(), on).unwrap();
    let on = &mut |_| ControlFlow::Continue(());
    let (_, mut victims) = collection.choose(&ALL, on).unwrap();
    victims.retain(|victim| !tree_packs.contains(&victim.pack));
    assert!(!victims.is_empty());
    collection.switch(&victims);
    let packs: Vec<u64> = victims.iter().map(|victim| victim.pack).collect();
    collection.clean(&packs, on).unwrap();
    forest.commit().unwrap();
    assert!(0 < collection.drop_packs(&packs).unwrap());
    drop(collection);
    let root = place_of(&forest.store, &shape.root());
    assert!(root < place_of(&forest.store, &address_of(0)));
    for options in [small(), Options { index_memory_bytes: 2048, ..small() }] {
        forest.store.close().unwrap();
        let image = forest.disk.crash(crate::sys::sim::Keep::All);
        let other = Forest { options, ..forest.again(&image) }.rebuilt();
        other.assert_sound();
        assert_eq!(place_of(&other.store, &shape.root()), root);
        other.collect(ALL).unwrap();
        other.assert_sound();
        other.rebuilt().assert_sound();
    }
}

/// A dead tree in a pack that stays has lost children: nobody needs to hear of that.
#[test]
fn a_dead_tree_without_children_is_no_damage() {
    let forest = Forest::new(small());
    let dead = Shape::of(0..3);
    dead.put_data(&forest.store).unwrap();
    forest.plant(0, Shape::of(100..200));
    dead.put_trees(&forest.store).unwrap();
    forest.plant(1, Shape::of(200..220));
    forest.commit().unwrap();
    let tree_pack = place_of(&forest.store, &dead.root()).pack;
    let collection = forest.store.begin_collection().unwrap();
    forest.commit().unwrap();
    collection.candidates_below(*forest.position.lock());
    for shape in forest.roots.lock().values() {
        let on = &mut |_| ControlFlow::Continue(());
        collection.marks().mark(&forest.store, &shape.root(), on).unwrap();
    }
    let on = &mut |_| ControlFlow::Continue(());
    let (_, mut victims) = collection.choose(&ALL, on).unwrap();
    victims.retain(|victim| victim.pack != tree_pack);
    collection.switch(&victims);
    let packs: Vec<u64> = victims.iter().map(|victim| victim.pack).collect();
    collection.clean(&packs, on).unwrap();
    forest.commit().unwrap();
    collection.drop_packs(&packs).unwrap();
    drop(collection);
    assert!(!is_stored(&forest, 0) && forest.has_pack(tree_pack));
    let forest = forest.rebuilt();
    forest.assert_sound();
    // Its content comes again, chunk by chunk.
    forest.plant(2, dead.clone());
    forest.commit().unwrap();
    forest.collect(ALL).unwrap();
    forest.rebuilt().assert_sound();
}

/// What is found again at some stage of a collection is there after it.
fn found_again(stage: Stage, again: &dyn Fn(&Store)) -> Forest {
    let forest = half(small());
    let done = forest
        .collect_with(ANY, &mut |at, _| {
            if at == stage {
                let _visit = forest.store.visit();
                again(&forest.store);
            }
        })
        .unwrap();
    assert!(0 < done.freed, "{stage:?}");
    forest.commit().unwrap();
    forest
}

const STAGES: [Stage; 7] = [
    Stage::Begun,
    Stage::Viewed,
    Stage::Marked,
    Stage::Chosen,
    Stage::Switched,
    Stage::Cleaned,
    Stage::Committed,
];

#[test]
fn a_dying_chunk_that_is_found_again_stays() {
    for stage in STAGES {
        let forest = found_again(stage, &|store| assert_eq!(put(store, 3).unwrap(), address_of(3)));
        assert_reads(&forest.store, [3]);
        let forest = forest.rebuilt();
        assert_reads(&forest.store, [3]);
    }
}

#[test]
fn a_dying_tree_that_is_found_again_stays_with_all_below_it() {
    for stage in STAGES {
        let shape = Shape::of(200..240);
        let forest = found_again(stage, &|store| shape.put(store).unwrap());
        forest.roots.lock().insert(2, shape.clone());
        forest.assert_sound();
        let forest = forest.rebuilt();
        forest.assert_sound();
        forest.collect(ALL).unwrap();
        forest.rebuilt().assert_sound();
    }
}

/// Until the switch it is answered from where it lies, behind it it is stored anew.
#[test]
fn what_is_not_marked_is_stored_anew_behind_the_switch() {
    for (stage, anew) in [(Stage::Marked, false), (Stage::Switched, true)] {
        let forest = half(small());
        let old = place_of(&forest.store, &address_of(3));
        let mut is_anew = false;
        forest
            .collect_with(ANY, &mut |at, collection| {
                if at == stage {
                    let _visit = forest.store.visit();
                    put(&forest.store, 3).unwrap();
                    is_anew = forest.store.inner.pipeline.contains(&address_of(3));
                    assert_eq!(collection.marks().has(old), !is_anew);
                }
            })
            .unwrap();
        assert_eq!(is_anew, anew);
        assert_ne!(place_of(&forest.store, &address_of(3)), old);
        assert_reads(&forest.store, [3]);
    }
}

/// Whoever comes after the hook is on may have no root in the view yet.
#[test]
fn what_is_stored_anew_while_a_collection_runs_is_no_victim() {
    for stage in STAGES {
        let late = Shape::of(900..1100);
        let forest = found_again(stage, &|store| late.put(store).unwrap());
        forest.roots.lock().insert(9, late.clone());
        forest.assert_sound();
        forest.rebuilt().assert_sound();
    }
}

/// A visit that began before a collection found something without the hook: its root counts.
#[test]
fn a_collection_waits_for_visits() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let forest = half(small());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let visit = forest.store.visit();
        let collecting = scope.spawn(|| {
            forest.collect_with(ANY, &mut |stage, _| {
                assert!(stage != Stage::Begun || over.load(Ordering::Acquire));
            })
        });
        while !forest.store.inner.collecting.is_on() {
            std::thread::yield_now();
        }
        // Those who come now are not waited for, and do not wait.
        drop(forest.store.visit());
        forest.roots.lock().insert(0, Shape::of(0..40));
        over.store(true, Ordering::Release);
        drop(visit);
        collecting.join().unwrap().unwrap();
    });
    forest.assert_sound();
}

#[test]
fn a_full_disk_ends_it_and_loses_nothing() {
    let mut ended = 0;
    for extra in 0..24 {
        let forest = half(small());
        forest.store.save_index().unwrap();
        let used = forest.disk.used_bytes().unwrap();
        forest.disk.set_space(used + extra * 16384);
        match forest.collect(ALL) {
            Ok(_) => {}
            Err(Error::NoSpace) => ended += 1,
            Err(error) => panic!("{error}"),
        }
        forest.assert_reads();
        let image = forest.disk.crash(crate::sys::sim::Keep::All);
        image.set_space(u64::MAX);
        forest.again(&image).assert_sound();
        forest.disk.set_space(u64::MAX);
        let before = forest.store.stats().stored_bytes;
        let done = forest.collect(ANY).unwrap();
        assert!(!forest.store.inner.collecting.is_on());
        assert!(forest.store.stats().stored_bytes <= before, "{done:?}");
        forest.assert_sound();
        assert!((0..40).all(|number| !is_stored(&forest, number)), "{extra}");
        forest.rebuilt().assert_sound();
    }
    assert!((8..24).contains(&ended), "{ended}");
}

#[test]
fn a_damaged_tree_ends_it_before_anything_goes() {
    let forest = half(small());
    let root = forest.roots.lock()[&1].root();
    let at = place_of(&forest.store, &root);
    let packs = forest.store.stats().packs;
    let forest = forest.reopen();
    forest.disk.rot(&pack::pack_path(at.pack), at.offset + 100, 1).unwrap();
    let ended = forest.collect(ANY);
    assert!(matches!(ended, Err(Error::Damaged { address, .. }) if address == root), "{ended:?}");
    assert!(packs <= forest.store.stats().packs);
    assert_reads(&forest.store, 100..140);
    // Whoever stores it anew heals it, and then it goes on.
    forest.plant(1, Shape::of(100..140));
    forest.commit().unwrap();
    assert!(0 < forest.collect(ANY).unwrap().freed);
    forest.assert_reads();
}

#[test]
fn a_pack_with_a_damaged_living_chunk_stays() {
    let forest = half(Options { compression: Compression::None, ..small() });
    let at = place_of(&forest.store, &address_of(120));
    let forest = forest.reopen();
    let head = forest.store.inner.header(at).unwrap().unwrap();
    let start = u64::from(head.entries[usize::from(at.slot)].start);
    let offset = at.offset + head.head_bytes() + start;
    forest.disk.rot(&pack::pack_path(at.pack), offset, 1).unwrap();
    let Done { victims, cleaned, .. } = forest.collect(ALL).unwrap();
    assert!(victims.iter().any(|victim| victim.pack == at.pack));
    assert!(!cleaned.packs.contains(&at.pack) && forest.has_pack(at.pack));
    assert_eq!(forest.store.bad(), [BadChunk { address: address_of(120), location: at }]);
    assert_reads(&forest.store, (100..140).filter(|number| *number != 120));
    // It heals, and then the pack goes, and what was known of the place with it.
    put(&forest.store, 120).unwrap();
    forest.commit().unwrap();
    assert!(cleaned.packs.len() < victims.len());
    forest.collect(ALL).unwrap();
    assert!(!forest.has_pack(at.pack));
    assert_eq!(forest.store.bad(), []);
    forest.assert_sound();
}

#[test]
fn second_copies_go_with_their_pack() {
    let forest = half(Options { tree_copies: 2, ..small() });
    forest.store.copy_trees().unwrap();
    let before = forest.copied().len();
    assert!(3 < before);
    forest.collect(ALL).unwrap();
    forest.plant(7, Shape::of(700..760));
    forest.commit().unwrap();
    forest.store.copy_trees().unwrap();
    let forest = forest.reopen();
    let copied = forest.copied();
    assert!(copied.iter().all(|source| forest.has_pack(*source)));
    assert!(!copied.is_empty());
    forest.assert_sound();
    // They are good for reading: the first copies are damaged, and a collection reads them, too.
    let root = forest.roots.lock()[&1].root();
    let at = place_of(&forest.store, &root);
    assert!(copied.contains(&at.pack));
    let forest = forest.reopen();
    forest.disk.rot(&pack::pack_path(at.pack), at.offset + 100, 1).unwrap();
    forest.collect(ALL).unwrap();
    forest.assert_reads();
    assert!(!forest.has_pack(at.pack));
    forest.rebuilt().assert_sound();
}

/// After a power loss the name of a removed pack may be back.
#[test]
fn a_pack_that_comes_back_is_garbage() {
    let forest = half(small());
    forest.store.save_index().unwrap();
    let mut packs = Vec::new();
    let done = forest
        .collect_with(ANY, &mut |stage, _| {
            if stage == Stage::Committed {
                packs = (1..forest.position.lock().pack)
                    .filter_map(|number| Some((number, bytes_of(&forest.disk, number)?)))
                    .collect();
            }
        })
        .unwrap();
    forest.store.close().unwrap();
    let gone = |number: &u64| done.victims.iter().any(|victim| victim.pack == *number);
    for (number, bytes) in packs.iter().filter(|(number, _)| gone(number)) {
        let path = pack::pack_path(*number);
        let file = forest.disk.open(&path, Access::CreateNew).unwrap();
        file.write_all_at(bytes, 0).unwrap();
    }
    let forest = forest.reopen();
    forest.assert_sound();
    let again = forest.collect(ANY).unwrap();
    assert!(done.freed <= again.freed, "{done:?} {again:?}");
    let forest = forest.rebuilt();
    forest.assert_sound();
    assert!(done.victims.iter().all(|victim| !forest.has_pack(victim.pack)));
}

fn bytes_of(disk: &SimDisk, pack: u64) -> Option<Vec<u8>> {
    let file = disk.open(&pack::pack_path(pack), Access::Read).ok()?;
    let mut bytes = vec![0; file.len().unwrap() as usize];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    Some(bytes)
}

/// Chunks may be stored twice, when the index has not all in memory: the second time may not be
/// durable when the first would go.
#[test]
fn a_place_that_is_not_durable_is_no_reason_to_drop_another() {
    let forest = half(small());
    let collection = forest.store.begin_collection().unwrap();
    forest.commit().unwrap();
    collection.candidates_below(*forest.position.lock());
    let shape = forest.roots.lock()[&1].clone();
    let inner = &forest.store.inner;
    for number in shape.numbers() {
        let address = address_of(number);
        let seen = inner.index.candidates(&address).len();
        assert_eq!(inner.add_data(&[(address, &payload(number))], &[seen]).unwrap(), [0; 0]);
    }
    let _flushed = forest.store.flush().unwrap();
    for shape in forest.roots.lock().values() {
        let on = &mut |_| ControlFlow::Continue(());
        collection.marks().mark(&forest.store, &shape.root(), on).unwrap();
    }
    let on = &mut |_| ControlFlow::Continue(());
    let (_, victims) = collection.choose(&ANY, on).unwrap();
    collection.switch(&victims);
    let packs: Vec<u64> = victims.iter().map(|victim| victim.pack).collect();
    assert!(0 < collection.drop_packs(&packs).unwrap());
    let image = forest.disk.crash(crate::sys::sim::Keep::Nothing);
    forest.again(&image).assert_sound();
}

#[test]
fn only_what_is_clean_is_dropped() {
    let forest = half(small());
    let collection = forest.store.begin_collection().unwrap();
    forest.commit().unwrap();
    collection.candidates_below(*forest.position.lock());
    for shape in forest.roots.lock().values() {
        let on = &mut |_| ControlFlow::Continue(());
        collection.marks().mark(&forest.store, &shape.root(), on).unwrap();
    }
    let on = &mut |_| ControlFlow::Continue(());
    let (_, victims) = collection.choose(&ALL, on).unwrap();
    collection.switch(&victims);
    let packs: Vec<u64> = victims.iter().map(|victim| victim.pack).collect();
    let dead = victims.iter().filter(|victim| victim.live_bytes == 0).count() as u64;
    let before = forest.store.stats().packs;
    collection.drop_packs(&packs).unwrap();
    drop(collection);
    assert!(0 < dead);
    assert_eq!(before - forest.store.stats().packs, dead);
    forest.assert_sound();
}
