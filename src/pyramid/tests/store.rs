//! A store in memory that counts, and that refuses what the real one may rely on not to happen.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::chunk::{Address, Sink, Source, Tree};
use crate::pyramid::Pyramid;

#[derive(Debug, thiserror::Error)]
#[error("no chunk {0}")]
pub struct Missing(pub Address);

/// What was asked of a store since the last [`MemoryStore::take_counts`].
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    pub trees_loaded: Vec<Address>,
    pub data_loaded: Vec<Address>,
    pub trees_put: Vec<Address>,
    pub data_put: Vec<Address>,
}

impl Counts {
    pub fn loads(&self) -> usize {
        self.trees_loaded.len() + self.data_loaded.len()
    }

    pub fn puts(&self) -> usize {
        self.trees_put.len() + self.data_put.len()
    }
}

#[derive(Default)]
struct State {
    data: HashMap<Address, Bytes>,
    trees: HashMap<Address, Arc<Tree>>,
    counts: Counts,
}

pub struct MemoryStore {
    pyramid: Pyramid,
    state: Mutex<State>,
    /// Whether counts of filled bytes are taken for right.
    counts_are_right: bool,
}

impl MemoryStore {
    pub fn new(pyramid: &Pyramid) -> MemoryStore {
        MemoryStore { pyramid: pyramid.clone(), state: Mutex::default(), counts_are_right: true }
    }

    /// A store for tests that forge counts.
    pub fn with_wrong_counts(pyramid: &Pyramid) -> MemoryStore {
        MemoryStore { counts_are_right: false, ..MemoryStore::new(pyramid) }
    }

    pub fn take_counts(&self) -> Counts {
        std::mem::take(&mut self.state.lock().counts)
    }

    pub fn remove(&self, address: &Address) {
        let mut state = self.state.lock();
        state.data.remove(address);
        state.trees.remove(address);
    }

    /// Stores a tree chunk under an address that is not its own.
    pub fn forge(&self, address: Address, tree: Tree) {
        self.state.lock().trees.insert(address, Arc::new(tree));
    }

    pub fn forge_data(&self, address: Address, data: &[u8]) {
        self.state.lock().data.insert(address, Bytes::copy_from_slice(data));
    }

    pub fn tree_of(&self, address: &Address) -> Arc<Tree> {
        self.state.lock().trees[address].clone()
    }

    /// All chunks hash to their addresses: nobody wrote into an old version.
    pub fn assert_sound(&self) {
        let profile = self.pyramid.profile();
        let state = self.state.lock();
        for (address, data) in &state.data {
            assert_eq!(*address, profile.address(data.len() as u64, data));
        }
        for (address, tree) in &state.trees {
            assert_eq!(*address, profile.address(tree.span, &tree.payload()));
        }
    }
}

impl Source for MemoryStore {
    type Error = Missing;

    fn tree(&self, address: &Address) -> Result<Arc<Tree>, Missing> {
        let mut state = self.state.lock();
        state.counts.trees_loaded.push(*address);
        state.trees.get(address).cloned().ok_or(Missing(*address))
    }

    fn data(&self, address: &Address) -> Result<Bytes, Missing> {
        let mut state = self.state.lock();
        state.counts.data_loaded.push(*address);
        state.data.get(address).cloned().ok_or(Missing(*address))
    }
}

impl Sink for MemoryStore {
    fn put_data(&self, chunks: &[(Address, &[u8])]) -> Result<(), Missing> {
        assert!(!chunks.is_empty());
        let mut state = self.state.lock();
        for (address, data) in chunks {
            assert!(data.iter().any(|byte| *byte != 0), "a hole was put");
            assert_eq!(*address, self.pyramid.profile().address(data.len() as u64, data));
            state.counts.data_put.push(*address);
            state.data.insert(*address, Bytes::copy_from_slice(data));
        }
        Ok(())
    }

    fn put_tree(&self, address: Address, tree: Tree) -> Result<(), Missing> {
        assert_eq!(address, self.pyramid.profile().address(tree.span, &tree.payload()));
        assert_eq!(tree.children.len(), tree.filled.len());
        assert!(!self.counts_are_right || 0 < tree.filled_total(), "a hole was put");
        let mut state = self.state.lock();
        for (child, filled) in tree.children.iter().zip(&tree.filled) {
            let there = state.data.contains_key(child) || state.trees.contains_key(child);
            let fits = !self.counts_are_right || there == (0 < *filled);
            assert!(fits, "children are put before their parents, holes never");
        }
        state.counts.trees_put.push(address);
        state.trees.insert(address, Arc::new(tree));
        Ok(())
    }
}
