//! What can be reached, beside a collector that is plain sets.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::forest::{ALL, ANY, Forest, Shape};
use super::*;

/// Which addresses have a marked place in a sealed pack.
fn marked(forest: &Forest, marks: &Marks) -> BTreeSet<Address> {
    let places = forest.places(forest.sealed_below());
    places.into_iter().filter(|(_, at)| marks.has(*at)).map(|(address, _)| address).collect()
}

fn mark_all(forest: &Forest) -> (Marks, Vec<Marked>) {
    let (marks, mut seen) = (Marks::new(&forest.store), Vec::new());
    for shape in forest.roots.lock().values() {
        let each = &mut |one| {
            seen.push(one);
            ControlFlow::Continue(())
        };
        marks.mark(&forest.store, &shape.root(), each).unwrap();
    }
    (marks, seen)
}

fn any_shape() -> impl Strategy<Value = Shape> {
    let numbers = prop::collection::vec(0..200_u64, 1..20);
    prop::collection::vec(numbers, 1..5).prop_map(Shape)
}

proptest! {
    #![proptest_config(crate::testing::config(24))]

    #[test]
    fn marked_is_what_plain_sets_say(
        shapes in prop::collection::vec(any_shape(), 1..8),
        kept in prop::collection::vec(any::<bool>(), 8),
        tiny in any::<bool>(),
    ) {
        let index_memory_bytes = if tiny { 2048 } else { 1 << 20 };
        let forest = Forest::new(Options { index_memory_bytes, ..small() });
        for (name, shape) in (0..).zip(shapes) {
            forest.plant(name, shape);
            forest.commit().unwrap();
            forest.store.save_index().unwrap();
        }
        (0..8).zip(kept).filter(|(_, kept)| !kept).for_each(|(name, _)| drop(forest.fell(name)));
        let reach = forest.reach();
        let (marks, seen) = mark_all(&forest);
        prop_assert_eq!(marks.missing(), 0);
        let told: BTreeSet<Address> = seen.iter().map(|one| one.address).collect();
        prop_assert_eq!(&told, &reach);
        prop_assert_eq!(seen.len(), told.len(), "each is told once");
        let below = forest.sealed_below();
        let newest = newest(&forest.places(u64::MAX), below);
        for Marked { address, location } in seen {
            prop_assert_eq!(newest[&address], location);
            prop_assert!(marks.has(location));
        }
        let sealed = newest.iter().filter(|(one, at)| at.pack < below && reach.contains(one));
        let sealed: BTreeSet<Address> = sealed.map(|(address, _)| *address).collect();
        prop_assert_eq!(marked(&forest, &marks), sealed);
    }
}

/// A tree over one tree that is as long: so a pyramid wraps a last piece that is exactly full.
#[test]
fn a_wrapped_tree_is_not_above_data() {
    let forest = Forest::new(small());
    for number in 0..128 {
        put(&forest.store, number).unwrap();
    }
    let span = 128 * 4096;
    let children: Vec<Address> = (0..128).map(address_of).collect();
    let below = Tree { span, children, filled: vec![4096; 128] };
    let below_address = Profile::DEFAULT.address(span, &below.payload());
    forest.store.put_tree(below_address, below).unwrap();
    let above = Tree { span, children: vec![below_address], filled: vec![span] };
    let address = Profile::DEFAULT.address(span, &above.payload());
    forest.store.put_tree(address, above).unwrap();
    forest.commit().unwrap();
    let marks = Marks::new(&forest.store);
    let mut count = 0;
    let each = &mut |_| {
        count += 1;
        ControlFlow::Continue(())
    };
    marks.mark(&forest.store, &address, each).unwrap();
    assert_eq!(count, 130);
}

#[test]
fn one_chunk_alone_is_a_root_too() {
    let forest = Forest::new(small());
    put(&forest.store, 5).unwrap();
    let each = &mut |_| ControlFlow::Continue(());
    let in_flight = Marks::new(&forest.store);
    in_flight.mark(&forest.store, &address_of(5), each).unwrap();
    assert_eq!(in_flight.missing(), 0);
    forest.commit().unwrap();
    let mut seen = Vec::new();
    let each = &mut |one: Marked| {
        seen.push(one.address);
        ControlFlow::Continue(())
    };
    Marks::new(&forest.store).mark(&forest.store, &address_of(5), each).unwrap();
    assert_eq!(seen, [address_of(5)]);
}

#[test]
fn marking_ends_where_it_is_told_to() {
    let forest = Forest::new(small());
    forest.plant(0, Shape(vec![(0..20).collect(), (20..40).collect()]));
    forest.commit().unwrap();
    for end in 1..10 {
        let marks = Marks::new(&forest.store);
        let mut count = 0;
        let each = &mut |_| {
            count += 1;
            if count < end { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        marks.mark(&forest.store, &forest.roots.lock()[&0].root(), each).unwrap();
        assert_eq!(count, end);
    }
}

#[test]
fn what_is_nowhere_is_counted() {
    let forest = Forest::new(small());
    forest.plant(0, Shape::of(0..10));
    forest.commit().unwrap();
    let marks = Marks::new(&forest.store);
    let each = &mut |_| ControlFlow::Continue(());
    marks.mark(&forest.store, &address_of(77), each).unwrap();
    assert_eq!(marks.missing(), 1);
}

/// Of two places the newer counts, so that the older one is garbage.
#[test]
fn of_two_places_the_newer_is_marked() {
    let forest = Forest::new(small());
    forest.plant(0, Shape::of(0..80));
    forest.commit().unwrap();
    // A collection that ends before its packs go.
    let collection = forest.store.begin_collection().unwrap();
    forest.commit().unwrap();
    collection.candidates_below(*forest.position.lock());
    let on = &mut |_| ControlFlow::Continue(());
    collection.marks().mark(&forest.store, &forest.roots.lock()[&0].root(), on).unwrap();
    let on = &mut |_| ControlFlow::Continue(());
    let (_, victims) = collection.choose(&ALL, on).unwrap();
    collection.switch(&victims);
    let packs: Vec<u64> = victims.iter().map(|victim| victim.pack).collect();
    assert!(0 < collection.clean(&packs, on).unwrap().rewritten_bytes);
    drop(collection);
    forest.commit().unwrap();
    let places = forest.places(u64::MAX);
    let newest = newest(&places, forest.sealed_below());
    assert!(newest.len() < places.len(), "some lie twice");
    let (marks, _) = mark_all(&forest);
    for (address, at) in &places {
        assert_eq!(marks.has(*at), newest[address] == *at, "{at}");
    }
    let done = forest.collect(ANY).unwrap();
    assert!(packs.iter().all(|pack| !forest.has_pack(*pack)), "{done:?}");
    forest.assert_sound();
}

/// Where each chunk counts: in the newest pack that is sealed, or else in the newest.
fn newest(places: &[(Address, Location)], sealed_below: u64) -> BTreeMap<Address, Location> {
    let mut newest = BTreeMap::new();
    for (address, at) in places {
        let counts = |at: &Location| (at.pack < sealed_below, *at);
        let newer = newest.entry(*address).or_insert(*at);
        if counts(newer) < counts(at) {
            *newer = *at;
        }
    }
    newest
}
