//! Ranges of files: copies that share chunks, reserving, punching, zeroing, and where data lies.
//!
//! Invariant: whatever its length, a change of a range is one run of a layer. Its cost is paid when
//! the layer is flushed, and there it depends on the tree's depth, not on the length.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::dirty::{Layer, Range};
use super::flags::check_content;
use super::io::{clear_set_id, regular};
use super::node::{Node, NodeState};
use super::space::Need;
use super::{Allocate, Caller, Error, FILE_BYTES_MAX, Seek, Volume, Wait};
use crate::meta::{GroupId, Ino, Inode};
use crate::pyramid::Root;

/// A copy between files: from where, to where, how much, all in bytes.
#[derive(Debug, Clone, Copy)]
struct Copy {
    from: u64,
    to: u64,
    length: u64,
    /// Whether set-id bits of the target go: root's changes spare them.
    clear_set_id: bool,
}

/// How copies went since the volume was opened.
#[derive(Debug, Default)]
pub(super) struct Copies {
    shared_bytes: AtomicU64,
    unshared: AtomicU64,
}

impl Copies {
    pub(super) fn shared_bytes(&self) -> u64 {
        self.shared_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn unshared(&self) -> u64 {
        self.unshared.load(Ordering::Relaxed)
    }

    fn count(&self, copied: &Result<u64, Error>) {
        match copied {
            Ok(bytes) => self.shared_bytes.fetch_add(*bytes, Ordering::Relaxed),
            Err(Error::Unsupported) => self.unshared.fetch_add(1, Ordering::Relaxed),
            Err(_) => 0,
        };
    }
}

impl Volume {
    /// Copies a range of one file into another, or to another place of the same, by sharing chunks.
    /// Returns the bytes copied: fewer only where the source ends.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] where the offsets differ by more than whole chunks: the kernel then
    /// copies by reading and writing.
    pub fn copy_range(
        &self,
        (from, from_offset): (Ino, u64),
        (to, to_offset): (Ino, u64),
        length: u64,
        caller: Caller,
        wait: Wait,
    ) -> Result<u64, Error> {
        self.begin_change(wait)?;
        let source = match self.old_content(from) {
            Some(old) => old?.0,
            None => self.inode(from)?,
        };
        let copied = length.min(source.size.saturating_sub(from_offset));
        let size = self.inode(to)?.size.max(to_offset.saturating_add(copied));
        let cost = self.charges.copy((from_offset, to_offset), copied, size);
        let _admitted = self.admit(Need::Grow, cost, wait)?;
        let clear_set_id = caller.uid != 0;
        let copy = Copy { from: from_offset, to: to_offset, length, clear_set_id };
        let chunk_bytes = self.superblock.profile.chunk_bytes() as u64;
        let copied = if from_offset % chunk_bytes == to_offset % chunk_bytes {
            let _visit = self.store.visit();
            let target = self.nodes.get(to);
            let copied = match self.old_content(from) {
                // What a snapshot sees has no dirty layers and never changes.
                Some(source) => source.and_then(|(inode, root)| {
                    self.share(&target, &mut target.state.lock(), (&inode, root), copy)
                }),
                None => {
                    let source = self.nodes.get(from);
                    let copied = self.copy_nodes(&source, &target, copy, wait);
                    self.nodes.put(source);
                    copied
                }
            };
            self.nodes.put(target);
            copied
        } else {
            Err(Error::Unsupported)
        };
        self.copies.count(&copied);
        copied
    }

    fn copy_nodes(
        &self,
        source: &Arc<Node>,
        target: &Arc<Node>,
        copy: Copy,
        wait: Wait,
    ) -> Result<u64, Error> {
        loop {
            if !source.state.lock().layers.is_empty() {
                if wait == Wait::No {
                    return Err(Error::WouldWait);
                }
                self.flush_node(source, GroupId(u64::MAX))?;
            }
            if source.ino == target.ino {
                let mut state = source.state.lock();
                if state.layers.is_empty() {
                    return self.copy_within(source, &mut state, copy);
                }
                continue;
            }
            let source_first = source.ino < target.ino;
            let (low, high) = if source_first { (source, target) } else { (target, source) };
            let mut low_state = low.state.lock();
            let mut high_state = high.state.lock();
            let (source_state, target_state) = match source_first {
                true => (&mut *low_state, &mut *high_state),
                false => (&mut *high_state, &mut *low_state),
            };
            if source_state.layers.is_empty() {
                let root = self.root_of(source.ino, source_state)?;
                let source_inode = self.inode(source.ino)?;
                return self.share(target, target_state, (&source_inode, root), copy);
            }
        }
    }

    fn copy_within(
        &self,
        node: &Arc<Node>,
        state: &mut NodeState,
        copy: Copy,
    ) -> Result<u64, Error> {
        let inode = self.inode(node.ino)?;
        let length = copy.length.min(inode.size.saturating_sub(copy.from));
        if copy.from.abs_diff(copy.to) < length {
            return Err(Error::Invalid { what: "the ranges of a copy within a file overlap" });
        }
        let root = self.root_of(node.ino, state)?;
        self.share(node, state, (&inode, root), copy)
    }

    /// Lays the source's range over the target. The source has no dirty layers.
    fn share(
        &self,
        target: &Arc<Node>,
        state: &mut NodeState,
        (source, root): (&Inode, Root),
        copy: Copy,
    ) -> Result<u64, Error> {
        regular(source)?;
        let mut file = self.changing(target.ino, state)?;
        let length = copy.length.min(source.size.saturating_sub(copy.from));
        if length == 0 {
            return Ok(0);
        }
        let end = copy.to.checked_add(length).filter(|&end| end <= FILE_BYTES_MAX);
        let end = end.ok_or(Error::TooLarge)?;
        if root.size != source.size {
            return Err(Error::Unsupported);
        }
        if copy.clear_set_id {
            clear_set_id(&mut file.inode);
        }
        let group = self.meta.enter();
        let whole = copy.from == 0 && copy.to == 0 && length == source.size;
        if whole && file.inode.size <= source.size {
            self.mark_dirty(target, state, group.id());
            self.list(target, state);
            let layer = Layer::replacing(group.id(), root);
            self.budget.settle(0, layer.cost());
            state.layers.push_back(Arc::new(layer));
        } else {
            let (before, layer) = self.top_layer(target, state, &group, file.inode.size);
            layer.share(copy.to, Range { root, offset: copy.from, length });
            let after = layer.cost();
            self.budget.settle(before, after);
        }
        file.inode.size = file.inode.size.max(end);
        file.touch();
        file.put(state, &group);
        Ok(length)
    }

    /// Reserves, punches or zeroes a range.
    pub fn allocate(
        &self,
        ino: Ino,
        offset: u64,
        length: u64,
        how: Allocate,
        caller: Caller,
        wait: Wait,
    ) -> Result<(), Error> {
        if length == 0 {
            return Err(Error::Invalid { what: "the range has no bytes" });
        }
        let end = offset.checked_add(length).filter(|&end| end <= FILE_BYTES_MAX);
        let end = end.ok_or(Error::TooLarge)?;
        self.begin_change(wait)?;
        let size = self.inode(ino)?.size.max(end);
        let _admitted = match how {
            // Chunks have no place before they are written: what can be said is whether there is
            // room now. Nothing is promised for longer than this call.
            Allocate::Reserve { .. } => {
                drop(self.admit(Need::Grow, self.charges.content(offset, length, size), wait)?);
                self.admit(Need::Grow, self.charges.content(offset, 1, size), wait)?
            }
            Allocate::Punch | Allocate::Zero { .. } => {
                self.admit(Need::Free, 2 * self.charges.content(offset, 1, size), wait)?
            }
        };
        let node = self.nodes.get(ino);
        let changed = self.allocate_node(&node, offset, end, how, caller);
        self.nodes.put(node);
        changed
    }

    fn allocate_node(
        &self,
        node: &Arc<Node>,
        offset: u64,
        end: u64,
        how: Allocate,
        caller: Caller,
    ) -> Result<(), Error> {
        let mut state = node.state.lock();
        let mut file = self.changing(node.ino, &mut state)?;
        check_content(&file.inode, matches!(how, Allocate::Reserve { .. }))?;
        let size = match how {
            Allocate::Reserve { keep_size: false } | Allocate::Zero { keep_size: false } => {
                file.inode.size.max(end)
            }
            Allocate::Reserve { .. } | Allocate::Zero { .. } | Allocate::Punch => file.inode.size,
        };
        if caller.uid != 0 {
            clear_set_id(&mut file.inode);
        }
        let group = self.meta.enter();
        let (before, layer) = self.top_layer(node, &mut state, &group, file.inode.size);
        if file.inode.size < size {
            layer.truncate(size);
        }
        if !matches!(how, Allocate::Reserve { .. }) && offset < size {
            layer.zero(offset, end.min(size) - offset);
        }
        let after = layer.cost();
        self.budget.settle(before, after);
        file.inode.size = size;
        file.touch();
        file.put(&mut state, &group);
        Ok(())
    }

    /// Returns the next offset from `offset` on that lies in data or in a hole; the end of a file
    /// counts as a hole. Dirty bytes are stored first, as only a tree knows its holes.
    ///
    /// # Errors
    ///
    /// [`Error::NoData`] when there is none before the end.
    pub fn seek(&self, ino: Ino, offset: u64, wanted: Seek, wait: Wait) -> Result<u64, Error> {
        self.check_open()?;
        let _visit = self.store.visit();
        if let Some(found) = self.old_seek(ino, offset, wanted) {
            return found;
        }
        let node = self.nodes.get(ino);
        let found = self.seek_node(&node, offset, wanted, wait);
        self.nodes.put(node);
        found
    }

    fn seek_node(
        &self,
        node: &Arc<Node>,
        offset: u64,
        wanted: Seek,
        wait: Wait,
    ) -> Result<u64, Error> {
        regular(&self.inode(node.ino)?)?;
        let root = loop {
            if !node.state.lock().layers.is_empty() {
                if wait == Wait::No {
                    return Err(Error::WouldWait);
                }
                self.flush_node(node, GroupId(u64::MAX))?;
            }
            let mut state = node.state.lock();
            if state.layers.is_empty() {
                break self.root_of(node.ino, &mut state)?;
            }
        };
        let found = match wanted {
            Seek::Data => self.pyramid.next_data(&self.store, &root, offset),
            Seek::Hole => self.pyramid.next_hole(&self.store, &root, offset),
        };
        found.map_err(Error::from_content)?.ok_or(Error::NoData)
    }

    /// Whether the kernel is to be told that it should ask for the file's attributes anew, after a
    /// write: once for as long as it is open for writing without a break.
    pub fn is_news(&self, ino: Ino) -> bool {
        self.nodes.peek(ino).is_some_and(|node| {
            let mut state = node.state.lock();
            state.writers != 0 && !std::mem::replace(&mut state.told, true)
        })
    }

    /// Whether the kernel may hold bytes of the file that were not handed over.
    pub fn has_writers(&self, ino: Ino) -> bool {
        self.nodes.peek(ino).is_some_and(|node| node.state.lock().writers != 0)
    }
}
