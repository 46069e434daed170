//! Nodes: what is known of an inode only while it is in use.
//!
//! Owns [`Node`] (references of the kernel, open handles, the root and the dirty layers above it)
//! and [`Nodes`], the table of those in use.
//!
//! Invariants: (1) there is at most one node of an inode: it leaves the table only under the
//! table's lock, when nobody else holds it and nothing in it would be lost; (2) while a node's
//! `root` is known it is newer than any entry; (3) the layers' groups never fall from bottom to
//! top; (4) only the holder of `flush` takes layers away from below.
//!
//! Lock order: `flush`, then `state`, then a group. The table's lock is taken alone.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::dirty::Layer;
use crate::meta::{GroupId, Ino};
use crate::pyramid::Root;
use crate::sys::locks::Mutex;

/// An inode in use.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) ino: Ino,
    /// Held by the one who flushes layers, for as long as that takes.
    pub(super) flush: Mutex<()>,
    /// Guards the inode's entry too when the inode is not a directory.
    pub(super) state: Mutex<NodeState>,
}

/// What changes of a node.
#[derive(Debug, Default)]
pub(super) struct NodeState {
    /// Lookups that the kernel has not forgotten.
    pub(super) lookups: u64,
    /// Open handles.
    pub(super) opens: u64,
    /// Those of them that can write: while there are any, the kernel may hold dirty bytes.
    pub(super) writers: u64,
    /// Whether the kernel knows that the file's attributes change under these writers.
    pub(super) told: bool,
    /// Content below the layers, when it was needed once.
    pub(super) root: Option<Root>,
    /// Dirty layers, the oldest first. Sealed ones are shared with their flusher.
    pub(super) layers: VecDeque<Arc<Layer>>,
    /// The newest group that this node is registered in as dirty.
    pub(super) dirty_in: Option<GroupId>,
    /// Whether the node waits in the flushers' queue.
    pub(super) queued: bool,
    /// Whether the node stands in the list of those that pressure flushes.
    pub(super) listed: bool,
    /// The group in which the inode was removed for good.
    pub(super) destroyed: Option<GroupId>,
    /// Whether `security.capability` may be there: known absent after one look.
    pub(super) no_capability: bool,
    /// The same of the list that new entries of a directory get.
    pub(super) no_default_acl: bool,
    /// The first failure to store dirty bytes that nobody was told of yet.
    pub(super) error: Option<String>,
}

impl NodeState {
    fn is_idle(&self) -> bool {
        // A loss stays known until somebody is told, or the file is gone.
        let owes_nothing = self.error.is_none() || self.destroyed.is_some();
        self.lookups == 0
            && self.opens == 0
            && self.layers.is_empty()
            && !self.queued
            && owes_nothing
    }
}

/// The nodes in use.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    table: Mutex<HashMap<Ino, Arc<Node>>>,
}

impl Nodes {
    /// Returns the node of `ino`, a new one when there is none.
    pub(super) fn get(&self, ino: Ino) -> Arc<Node> {
        let mut table = self.table.lock();
        let node = table.entry(ino).or_insert_with(|| {
            Arc::new(Node { ino, flush: Mutex::default(), state: Mutex::default() })
        });
        Arc::clone(node)
    }

    /// Returns the node of `ino` if there is one.
    pub(super) fn peek(&self, ino: Ino) -> Option<Arc<Node>> {
        self.table.lock().get(&ino).map(Arc::clone)
    }

    /// Gives `node` back: it leaves the table when it is no longer of use.
    pub(super) fn put(&self, node: Arc<Node>) {
        let ino = node.ino;
        drop(node);
        let mut table = self.table.lock();
        let idle = table
            .get(&ino)
            .is_some_and(|node| Arc::strong_count(node) == 1 && node.state.lock().is_idle());
        if idle {
            table.remove(&ino);
        }
    }
}
