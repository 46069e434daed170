//! Flushing: dirty layers become chunks and a new root.
//!
//! Owns the queue of nodes to flush, the threads that work on it, and the step from a layer to a
//! root. Layers are taken from the bottom, one at a time, so a group's root of an inode is built
//! on that inode's finished older root.
//!
//! Invariant: the root of a layer goes into the layer's group, whether that is still open or
//! committing by then; the commit waits for it.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use super::budget::Failure;
use super::dirty::Layer;
use super::node::{Node, NodeState};
use super::{Error, Volume};
use crate::meta::{Content, GroupId, Ino, Inode, Key};
use crate::pyramid::{self, Root};
use crate::store;
use crate::sys::locks::{Condvar, Mutex};

/// A file's layer of this many bytes is flushed without waiting for the commit.
pub(super) const STREAM_BYTES: u64 = 4 << 20;

/// Nodes that wait for a flusher, the longest waiting first.
#[derive(Debug, Default)]
pub(super) struct Queue {
    inner: Arc<QueueInner>,
}

#[derive(Debug, Default)]
struct QueueInner {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    nodes: VecDeque<Arc<Node>>,
    stopped: bool,
}

impl Queue {
    fn push(&self, node: Arc<Node>) {
        self.inner.state.lock().nodes.push_back(node);
        self.inner.changed.notify_one();
    }

    /// Nodes that wait.
    pub(super) fn len(&self) -> usize {
        self.inner.state.lock().nodes.len()
    }

    fn pop(&self) -> Option<Arc<Node>> {
        self.inner.state.lock().nodes.pop_front()
    }

    /// Ends the threads that work on the queue.
    pub(super) fn stop(&self) {
        self.inner.state.lock().stopped = true;
        self.inner.changed.notify_all();
    }

    /// A flusher's life: works on the queue until it is stopped or the volume is gone.
    pub(super) fn worker(&self, volume: Weak<Volume>) -> impl FnOnce() + Send + 'static {
        let inner = Arc::clone(&self.inner);
        move || {
            loop {
                let node = {
                    let mut state = inner.state.lock();
                    while state.nodes.is_empty() && !state.stopped {
                        inner.changed.wait(&mut state);
                    }
                    if state.stopped {
                        return;
                    }
                    state.nodes.pop_front()
                };
                let (Some(node), Some(volume)) = (node, volume.upgrade()) else { return };
                volume.flush_queued(node);
            }
        }
    }
}

impl Volume {
    /// Puts `node` into the flushers' queue, or flushes it here when there are none.
    pub(super) fn flush_soon(&self, node: &Arc<Node>) {
        {
            let mut state = node.state.lock();
            if state.queued || state.layers.is_empty() {
                return;
            }
            state.queued = true;
        }
        self.flushers.push(Arc::clone(node));
        if !self.options.background {
            while let Some(node) = self.flushers.pop() {
                self.flush_queued(node);
            }
        }
    }

    fn flush_queued(&self, node: Arc<Node>) {
        node.state.lock().queued = false;
        // The failure reaches those who wait for dirty space, and the next commit meets it again.
        if let Err(error) = self.flush_node(&node, GroupId(u64::MAX)) {
            tracing::debug!("a flush of inode {} failed: {error}", node.ino.0);
            let mut state = node.state.lock();
            if !state.layers.is_empty() {
                self.list(&node, &mut state);
            }
            drop(state);
            self.nodes.put(node);
            return;
        }
        self.nodes.put(node);
        // As long as too much is dirty, the next ones follow without anybody asking.
        if self.options.background {
            self.relieve();
        }
    }

    /// Flushes the layers of `node` that belong to `through` or an older group.
    ///
    /// # Errors
    ///
    /// What stops the store. Bytes that cannot be stored because the old content around them is
    /// damaged or cannot be read are dropped, and the file's next close or fsync reports it.
    pub(super) fn flush_node(&self, node: &Node, through: GroupId) -> Result<(), Error> {
        let _flush = node.flush.lock();
        loop {
            // Until the new root is in its group.
            let _visit = self.store.visit();
            let (layer, below) = {
                let mut state = node.state.lock();
                let layer = match state.layers.front() {
                    Some(layer) if layer.group <= through => Arc::clone(layer),
                    _ => return Ok(()),
                };
                let root = self.root_of(node.ino, &mut state)?;
                (layer, root)
            };
            match self.store_layer(&layer, &below) {
                Ok(root) => {
                    self.budget.set_failing(None);
                    self.finish_layer(node, &layer, Some(root));
                }
                Err(error) if is_unreadable(&error) => {
                    tracing::error!("bytes written to inode {} are lost: {error}", node.ino.0);
                    node.state.lock().error.get_or_insert(error.to_string());
                    // The inode's entry has the new size already; where the old content allows,
                    // it gets that size too, or else the inode gets back the old one.
                    let base = layer.base.as_ref().unwrap_or(&below);
                    let sized = self.pyramid.edit(&self.store, base, layer.keep, &[], layer.size);
                    let sized = sized.ok();
                    let stays = sized.is_none();
                    self.finish_layer(node, &layer, sized);
                    if stays {
                        self.size_as_content(node, layer.group)?;
                    }
                }
                Err(error) => {
                    self.note_failure(&error);
                    return Err(error);
                }
            }
        }
    }

    /// Gives a file the size of its content again, after a change of both was dropped. A newer
    /// layer sees to that by itself.
    fn size_as_content(&self, node: &Node, group: GroupId) -> Result<(), Error> {
        let mut state = node.state.lock();
        if !state.layers.is_empty() || state.destroyed.is_some() {
            return Ok(());
        }
        let size = self.root_of(node.ino, &mut state)?.size;
        let key = Key::Inode(node.ino);
        let Some(bytes) = self.meta.get(&key)? else { return Ok(()) };
        let inode = Inode { size, ..Inode::decode(&bytes)? };
        self.meta.amend(group, &key, Some(inode.encode()));
        // It may have been changed in a later group as well.
        self.meta.enter().put(&key, inode.encode());
        Ok(())
    }

    fn store_layer(&self, layer: &Layer, below: &Root) -> Result<Root, Error> {
        let base = layer.base.as_ref().unwrap_or(below);
        let edited = self.pyramid.edit(&self.store, base, layer.keep, &layer.runs(), layer.size);
        edited.map_err(Error::from_content)
    }

    /// Takes the lowest layer away; its content is `root` from now on.
    fn finish_layer(&self, node: &Node, layer: &Arc<Layer>, root: Option<Root>) {
        let mut state = node.state.lock();
        let removed = state.layers.pop_front();
        assert!(
            removed.is_some_and(|removed| Arc::ptr_eq(&removed, layer)),
            "layers changed below"
        );
        if let Some(root) = root {
            let before = state.root.map_or(0, |root| root.filled);
            state.root = Some(root);
            self.record_root(node.ino, &state, layer.group, before, &root);
            // What was written and did not make the file grow took the place of something.
            let grown = root.filled as i64 - before as i64;
            let replaced = (layer.bytes() as i64).saturating_sub(grown);
            self.counters.lock().release(u64::try_from(replaced).unwrap_or(0));
        }
        drop(state);
        self.budget.settle(layer.cost(), 0);
    }

    /// Writes the entry of a file's content, and keeps the count of logical bytes.
    fn record_root(&self, ino: Ino, state: &NodeState, group: GroupId, before: u64, root: &Root) {
        if state.destroyed.is_some_and(|destroyed| destroyed <= group) {
            return;
        }
        let value = (root.size != 0).then(|| content_of(root).encode());
        self.meta.amend(group, &Key::Content(ino), value);
        let mut counters = self.counters.lock();
        let change = root.filled as i64 - before as i64;
        counters.add_logical(group, change);
        if let Some(destroyed) = state.destroyed {
            // It was taken off with the older root's figure when the inode was removed.
            counters.add_logical(destroyed, -change);
        }
    }

    /// The content of a file below its dirty layers.
    pub(super) fn root_of(&self, ino: Ino, state: &mut NodeState) -> Result<Root, Error> {
        if let Some(root) = state.root {
            return Ok(root);
        }
        let root = match self.meta.get(&Key::Content(ino))? {
            Some(bytes) => content_root(&Content::decode(&bytes)?),
            None => self.pyramid.empty(),
        };
        state.root = Some(root);
        Ok(root)
    }

    /// Tells those who wait for dirty space, and poisons the volume if the store is.
    pub(super) fn note_failure(&self, error: &Error) {
        match error {
            Error::NoSpace => {
                self.space.forget();
                self.budget.set_failing(Some(Failure::NoSpace));
            }
            Error::WouldWait => {}
            error => {
                self.commits.poison(error.to_string());
                self.budget.set_failing(Some(Failure::Poisoned(error.to_string())));
            }
        }
    }
}

/// Whether only this file's old content is to blame. What the store cannot write poisons it, so
/// that a refusal of the disk by itself was one to read.
fn is_unreadable(error: &Error) -> bool {
    match error {
        Error::Content(pyramid::Error::Store(source)) => {
            matches!(source, store::Error::Damaged { .. } | store::Error::Missing { .. })
        }
        Error::Content(_) | Error::Store(store::Error::Io { .. }) => true,
        _ => false,
    }
}

/// The entry of `root`.
fn content_of(root: &Root) -> Content {
    Content { address: root.address, size: root.size, filled: root.filled, epoch: 0 }
}

/// The root that an entry names.
pub fn content_root(content: &Content) -> Root {
    Root { address: content.address, size: content.size, filled: content.filled }
}
