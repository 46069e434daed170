//! Roots above the store, and a collector that is plain sets.
//!
//! Owns [`Shape`], a small tree of which everything is known, [`Forest`], a store with the roots
//! that some metadata would name, and the whole of a collection as a volume runs it.
//! Absent on purpose: what the tests expect.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::store::{Cleaned, Collection, Policy, Victim};

/// A root: one tree over data chunks for each list of numbers, and a tree above when there are
/// several.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape(pub Vec<Vec<u64>>);

impl Shape {
    pub fn of(numbers: impl IntoIterator<Item = u64>) -> Shape {
        Shape(vec![numbers.into_iter().collect()])
    }

    fn trees(&self) -> Vec<(Address, Tree)> {
        let mut trees: Vec<(Address, Tree)> =
            self.0.iter().map(|numbers| tree_of(numbers)).collect();
        if trees.len() > 1 {
            let children = trees.iter().map(|(address, _)| *address).collect();
            let filled: Vec<u64> = trees.iter().map(|(_, tree)| tree.span).collect();
            // Longer than what a tree over data chunks can span.
            let tree = Tree { span: (1 << 20) + filled.iter().sum::<u64>(), children, filled };
            trees.push((Profile::DEFAULT.address(tree.span, &tree.payload()), tree));
        }
        trees
    }

    pub fn root(&self) -> Address {
        self.trees().last().expect("a shape has a tree").0
    }

    pub fn numbers(&self) -> BTreeSet<u64> {
        self.0.iter().flatten().copied().collect()
    }

    /// All that can be reached from it.
    pub fn reach(&self) -> BTreeSet<Address> {
        let trees = self.trees().into_iter().map(|(address, _)| address);
        self.numbers().into_iter().map(address_of).chain(trees).collect()
    }

    pub fn put(&self, store: &Store) -> Result<()> {
        self.put_data(store)?;
        self.put_trees(store)
    }

    pub fn put_data(&self, store: &Store) -> Result<()> {
        self.numbers().into_iter().try_for_each(|number| put(store, number).map(drop))
    }

    pub fn put_trees(&self, store: &Store) -> Result<()> {
        self.trees().into_iter().try_for_each(|(address, tree)| store.put_tree(address, tree))
    }

    pub fn assert_reads(&self, store: &Store) {
        assert_reads(store, self.numbers());
        for (address, tree) in self.trees() {
            assert!(store.contains(&address).unwrap(), "{self:?}");
            assert_eq!(*store.tree(&address).unwrap(), tree, "{self:?}");
        }
    }
}

/// What a collection is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The hook is on, and nothing is committed since.
    Begun,
    /// The view of the roots is made, nothing is marked.
    Viewed,
    Marked,
    Chosen,
    Switched,
    Cleaned,
    Committed,
}

/// What a collection did.
#[derive(Debug, Default)]
pub struct Done {
    pub garbage: u64,
    pub victims: Vec<Victim>,
    pub cleaned: Cleaned,
    pub freed: u64,
}

/// A store, and roots that are to be kept.
pub struct Forest {
    pub disk: SimDisk,
    pub store: Store,
    pub options: Options,
    pub roots: Mutex<BTreeMap<u64, Shape>>,
    /// What a checkpoint would hold.
    pub position: Arc<Mutex<LogPosition>>,
}

/// Every pack with garbage.
pub const ANY: Policy = Policy { garbage_percent: 1, live_bytes_max: u64::MAX };
/// Every pack.
pub const ALL: Policy = Policy { garbage_percent: 0, live_bytes_max: u64::MAX };

impl Forest {
    pub fn new(options: Options) -> Forest {
        let disk = new_disk();
        Forest::open(&disk, options, LogPosition::default())
    }

    /// Opens what is there, without roots.
    pub fn open(disk: &SimDisk, options: Options, from: LogPosition) -> Forest {
        let opened = open_from(disk, options.clone(), from);
        let usual =
            |one: &Finding| matches!(one, Finding::TailCut { .. } | Finding::PackSetAside { .. });
        assert!(opened.findings.iter().all(usual), "{:?}", opened.findings);
        let disk = disk.clone();
        let (roots, position) = (Mutex::new(BTreeMap::new()), Arc::new(Mutex::new(from)));
        Forest { disk, store: opened.store, options, roots, position }
    }

    /// Opens another from the same roots and checkpoint.
    pub fn again(&self, disk: &SimDisk) -> Forest {
        let forest = Forest::open(disk, self.options.clone(), *self.position.lock());
        *forest.roots.lock() = self.roots.lock().clone();
        forest
    }

    /// Closes it, and opens what is on the disk.
    pub fn reopen(self) -> Forest {
        self.store.close().unwrap();
        let disk = self.disk.clone();
        self.again(&disk)
    }

    /// The same, and the index has to be built anew.
    pub fn rebuilt(self) -> Forest {
        self.store.close().unwrap();
        for entry in self.disk.read_dir(run::INDEX_DIR).unwrap() {
            self.disk.remove_file(&format!("{}/{}", run::INDEX_DIR, entry.name)).unwrap();
        }
        self.disk.sync_dir(run::INDEX_DIR).unwrap();
        let disk = self.disk.clone();
        self.again(&disk)
    }

    pub fn plant(&self, name: u64, shape: Shape) {
        let _visit = self.store.visit();
        shape.put(&self.store).unwrap();
        self.roots.lock().insert(name, shape);
    }

    pub fn fell(&self, name: u64) -> Option<Shape> {
        self.roots.lock().remove(&name)
    }

    pub fn commit(&self) -> Result<()> {
        let position = commit(&self.store, b"roots")?;
        let mut last = self.position.lock();
        *last = (*last).max(position);
        Ok(())
    }

    pub fn reach(&self) -> BTreeSet<Address> {
        self.roots.lock().values().flat_map(Shape::reach).collect()
    }

    pub fn assert_reads(&self) {
        let roots = self.roots.lock().clone();
        roots.values().for_each(|shape| shape.assert_reads(&self.store));
    }

    /// All that is well: what is reachable is there, and the packs are sound.
    pub fn assert_sound(&self) {
        self.assert_reads();
        assert_eq!(verify_findings(&self.store), []);
    }

    pub fn collect(&self, policy: Policy) -> Result<Done> {
        self.collect_with(policy, &mut |_, _| {})
    }

    /// Collects as a volume does; `at` may do something at every stage.
    pub fn collect_with(
        &self,
        policy: Policy,
        at: &mut dyn FnMut(Stage, &Collection<'_>),
    ) -> Result<Done> {
        let collection = self.store.begin_collection()?;
        at(Stage::Begun, &collection);
        // The cut: what is entered from now on is in the next group.
        let view = self.roots.lock().clone();
        self.commit()?;
        collection.candidates_below(*self.position.lock());
        at(Stage::Viewed, &collection);
        for shape in view.values() {
            let each = &mut |_| ControlFlow::Continue(());
            collection.marks().mark(&self.store, &shape.root(), each)?;
        }
        at(Stage::Marked, &collection);
        let on = &mut |_| ControlFlow::Continue(());
        let (garbage, victims) = collection.choose(&policy, on)?;
        at(Stage::Chosen, &collection);
        collection.switch(&victims);
        at(Stage::Switched, &collection);
        let packs: Vec<u64> = victims.iter().map(|victim| victim.pack).collect();
        let cleaned = collection.clean(&packs, on)?;
        at(Stage::Cleaned, &collection);
        self.commit()?;
        at(Stage::Committed, &collection);
        let going: Vec<u64> = cleaned.packs.iter().copied().collect();
        let freed = collection.drop_packs(&going)?;
        Ok(Done { garbage, victims, cleaned, freed })
    }

    /// The packs below this one do not change any more.
    pub fn sealed_below(&self) -> u64 {
        let log = self.store.inner.log.lock();
        log.open.as_ref().map_or(log.next_number, |open| open.number)
    }

    /// Every chunk in the packs of the log below `below`, by the packs' own word.
    pub fn places(&self, below: u64) -> Vec<(Address, Location)> {
        let mut places = Vec::new();
        for number in open::list(&self.disk).unwrap().numbers {
            let Some(file) = self.store.inner.pack_if_there(number).unwrap() else { continue };
            if below <= number || file.is_aux().unwrap() {
                continue;
            }
            for found in file.frames(u64::MAX).unwrap().0 {
                for (slot, entry) in found.header.entries.iter().enumerate() {
                    let at = Location { pack: number, offset: found.offset, slot: slot as u8 };
                    places.push((entry.address, at));
                }
            }
        }
        places
    }

    /// The packs of the log whose trees have second copies.
    pub fn copied(&self) -> BTreeSet<u64> {
        let mut sources = BTreeSet::new();
        for number in open::list(&self.disk).unwrap().numbers {
            let file = self.disk.open(&pack::pack_path(number), Access::Read).unwrap();
            let mut head = [0; 48];
            file.read_at(&mut head, 0).unwrap();
            if head[12] == 2 {
                sources.insert(u64::from_le_bytes(head[40..].try_into().unwrap()));
            }
        }
        sources.remove(&0);
        sources
    }

    pub fn has_pack(&self, number: u64) -> bool {
        open::list(&self.disk).unwrap().numbers.contains(&number)
    }
}

/// Where a chunk lies that is in a pack.
pub fn place_of(store: &Store, address: &Address) -> Location {
    match store.inner.locate(address, true).unwrap() {
        reader::Lookup::Found(at, _) => at,
        _ => panic!("{address} is not in a pack"),
    }
}
