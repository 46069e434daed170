//! Bytes of files: open, read, write, cut.
//!
//! Invariants: (1) a read takes all dirty bytes and the root below them under the node's lock, and
//! loads chunks without it: a root never changes; (2) a write charges the budget before it copies.

use std::sync::Arc;

use super::dirty::{Gap, LAYER_COST_BYTES, Layer, RUN_COST_BYTES, Range};
use super::flags::check_content;
use super::flush::STREAM_BYTES;
use super::node::{Node, NodeState};
use super::{
    Caller, Error, FILE_BYTES_MAX, MODE_DIR, MODE_FILE, MODE_SET_GID, MODE_SET_UID, MODE_TYPE,
    OpenFlags, Volume, Wait,
};
use crate::meta::{Group, GroupId, Ino, Inode, Key};
use crate::pyramid::Root;
use crate::sys::Timestamp;

/// The attribute that gives a program more rights than its caller has; a write takes it away.
const CAPABILITY: &[u8] = b"security.capability";

/// Executable by the group: only then does the set-group-id bit mean a change of group.
const MODE_GROUP_EXEC: u32 = 0o010;

impl Volume {
    /// Opens a regular file. Each call is followed by one of [`Volume::release`].
    pub fn open_file(
        &self,
        ino: Ino,
        flags: OpenFlags,
        caller: Caller,
        wait: Wait,
    ) -> Result<(), Error> {
        self.check_open()?;
        if let Some(opened) = self.old_open(ino, flags) {
            return opened;
        }
        let inode = self.inode(ino)?;
        regular(&inode)?;
        if flags.write || flags.truncate {
            check_content(&inode, flags.append && !flags.truncate)?;
            self.begin_change(wait)?;
        }
        let node = self.nodes.get(ino);
        let cut =
            if flags.truncate { self.resize(&node, 0, caller, Touch::Always) } else { Ok(()) };
        if cut.is_ok() {
            let mut state = node.state.lock();
            state.opens += 1;
            state.writers += u64::from(flags.write);
        }
        self.nodes.put(node);
        cut
    }

    /// Ends what [`Volume::open_file`] began; `write` is as it was there.
    pub fn release(&self, ino: Ino, write: bool) {
        let Some(node) = self.nodes.peek(ino) else { return };
        let closed = {
            let mut state = node.state.lock();
            state.opens = state.opens.saturating_sub(1);
            state.writers = state.writers.saturating_sub(u64::from(write));
            state.told &= state.writers != 0;
            state.opens == 0 && state.lookups == 0
        };
        if closed {
            self.destroy_if_orphan(&node);
        }
        self.nodes.put(node);
    }

    /// Answers, when a handle of the file is closed, whether all written through it is well so far:
    /// dirty bytes that could not be stored are reported here or by fsync, once.
    pub fn flush(&self, ino: Ino) -> Result<(), Error> {
        self.check_open()?;
        self.take_error(ino)
    }

    /// Reads up to `len` bytes at `offset`; fewer only where the file ends.
    pub fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        self.check_open()?;
        self.collector.note_call();
        let _visit = self.store.visit();
        if let Some(bytes) = self.old_read(ino, offset, len) {
            return bytes;
        }
        let node = self.nodes.get(ino);
        let result = self.read_node(&node, offset, len);
        self.nodes.put(node);
        result
    }

    fn read_node(&self, node: &Node, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let mut state = node.state.lock();
        let inode = self.inode(node.ino)?;
        regular(&inode)?;
        let end = inode.size.min(offset.saturating_add(len as u64));
        if end <= offset {
            return Ok(Vec::new());
        }
        let root = self.root_of(node.ino, &mut state)?;
        let mut buf = vec![0; (end - offset) as usize];
        let loads = read_layers(&state, root, offset, &mut buf);
        drop(state);
        for (start, range) in loads {
            let end = range.root.size.min(range.offset + range.length);
            if range.offset < end {
                let at = (start - offset) as usize;
                let place = &mut buf[at..at + (end - range.offset) as usize];
                let read = self.pyramid.read(&self.store, &range.root, range.offset, place);
                read.map_err(Error::from_content)?;
            }
        }
        Ok(buf)
    }

    /// Writes `bytes` at `offset`, extending the file where needed.
    ///
    /// `kill_set_id` says that the kernel wants set-user-id and set-group-id bits to go.
    pub fn write(
        &self,
        ino: Ino,
        offset: u64,
        bytes: &[u8],
        kill_set_id: bool,
        wait: Wait,
    ) -> Result<(), Error> {
        let end = offset.checked_add(bytes.len() as u64).filter(|&end| end <= FILE_BYTES_MAX);
        let end = end.ok_or(Error::TooLarge)?;
        self.begin_change(wait)?;
        if bytes.is_empty() {
            // It would not extend the file, whatever the offset.
            return regular(&self.inode(ino)?);
        }
        self.admit(bytes.len() as u64)?;
        let charge = bytes.len() as u64 + LAYER_COST_BYTES + 2 * RUN_COST_BYTES;
        self.take_budget(charge, wait)?;
        let node = self.nodes.get(ino);
        let written = self.write_node(&node, offset, end, bytes, kill_set_id);
        match written {
            Ok((before, after)) => self.budget.settle(before + charge, after),
            Err(_) => self.budget.settle(charge, 0),
        }
        let stream = written.as_ref().is_ok_and(|&(_, after)| STREAM_BYTES <= after);
        if stream {
            self.flush_soon(&node);
        }
        self.relieve();
        self.nodes.put(node);
        written.map(|_| ())
    }

    /// Takes `bytes` of the budget, and has others flushed when there are not enough left.
    fn take_budget(&self, bytes: u64, wait: Wait) -> Result<(), Error> {
        match self.budget.take(bytes, Wait::No) {
            Err(Error::WouldWait) => {
                self.budget.count_waiter(true);
                self.relieve();
                let taken = self.budget.take(bytes, wait);
                self.budget.count_waiter(false);
                taken
            }
            other => other,
        }
    }

    /// Returns what the top layer cost before and after.
    fn write_node(
        &self,
        node: &Arc<Node>,
        offset: u64,
        end: u64,
        bytes: &[u8],
        kill_set_id: bool,
    ) -> Result<(u64, u64), Error> {
        let mut state = node.state.lock();
        let mut file = self.changing(node.ino, &mut state)?;
        if kill_set_id {
            clear_set_id(&mut file.inode);
        }
        let group = self.meta.enter();
        let (before, layer) = self.top_layer(node, &mut state, &group, file.inode.size);
        layer.write(offset, bytes);
        let after = layer.cost();
        file.inode.size = file.inode.size.max(end);
        file.touch();
        file.put(&mut state, &group);
        Ok((before, after))
    }

    /// Changes the size of a file; the caller holds no locks.
    pub(super) fn resize(
        &self,
        node: &Arc<Node>,
        size: u64,
        caller: Caller,
        touch: Touch,
    ) -> Result<(), Error> {
        if FILE_BYTES_MAX < size {
            return Err(Error::TooLarge);
        }
        let mut state = node.state.lock();
        let mut file = self.changing(node.ino, &mut state)?;
        check_content(&file.inode, false)?;
        if caller.uid != 0 {
            clear_set_id(&mut file.inode);
        }
        let group = self.meta.enter();
        if size != file.inode.size {
            let (before, layer) = self.top_layer(node, &mut state, &group, file.inode.size);
            layer.truncate(size);
            let after = layer.cost();
            self.budget.settle(before, after);
        }
        if size != file.inode.size || touch == Touch::Always {
            file.inode.size = size;
            file.touch();
        }
        file.put(&mut state, &group);
        Ok(())
    }

    /// Reads all that a change of a file's content needs to know.
    pub(super) fn changing(&self, ino: Ino, state: &mut NodeState) -> Result<Changing, Error> {
        let inode = self.inode(ino)?;
        regular(&inode)?;
        let capability = self.has_capability(ino, state)?;
        self.root_of(ino, state)?;
        let touches = !self.options.times_by_kernel;
        Ok(Changing { ino, inode, capability, touches, now: self.clock.now() })
    }

    /// The layer of the open group that takes changes, and what it costs already.
    ///
    /// A layer that its flusher shares is sealed: a new one goes on top of it.
    pub(super) fn top_layer<'a>(
        &self,
        node: &Arc<Node>,
        state: &'a mut NodeState,
        group: &Group<'_>,
        size: u64,
    ) -> (u64, &'a mut Layer) {
        self.mark_dirty(node, state, group.id());
        let open = state
            .layers
            .back()
            .is_some_and(|top| top.group == group.id() && Arc::strong_count(top) == 1);
        self.list(node, state);
        if !open {
            state.layers.push_back(Arc::new(Layer::new(group.id(), size)));
        }
        let top = state.layers.back_mut().and_then(Arc::get_mut);
        let Some(top) = top else { unreachable!("a layer with one owner is at the top") };
        let before = if open { top.cost() } else { 0 };
        (before, top)
    }

    pub(super) fn mark_dirty(&self, node: &Arc<Node>, state: &mut NodeState, group: GroupId) {
        if state.dirty_in != Some(group) {
            state.dirty_in = Some(group);
            self.commits.add_dirty(group, node);
        }
    }

    /// Lists a node for the time when many bytes are dirty.
    pub(super) fn list(&self, node: &Arc<Node>, state: &mut NodeState) {
        if !state.listed {
            state.listed = true;
            self.commits.list(node);
        }
    }

    fn has_capability(&self, ino: Ino, state: &mut NodeState) -> Result<bool, Error> {
        if state.no_capability {
            return Ok(false);
        }
        let found = self.meta.get(&Key::Xattr { ino, name: CAPABILITY })?.is_some();
        state.no_capability = !found;
        Ok(found)
    }
}

/// A file whose content is about to change.
pub(super) struct Changing {
    ino: Ino,
    pub(super) inode: Inode,
    /// Whether the file gives a program more rights, which the change takes away.
    capability: bool,
    /// Whether the times are ours to move.
    touches: bool,
    now: Timestamp,
}

impl Changing {
    /// Moves the times of a content that changed, unless the kernel does.
    pub(super) fn touch(&mut self) {
        if self.touches {
            self.inode.mtime = self.now;
            self.inode.ctime = self.now;
        }
    }

    /// Writes the entry.
    pub(super) fn put(&self, state: &mut NodeState, group: &Group<'_>) {
        group.put(&Key::Inode(self.ino), self.inode.encode());
        if self.capability {
            group.delete(&Key::Xattr { ino: self.ino, name: CAPABILITY });
            state.no_capability = true;
        }
    }
}

/// Whether a change of size that changes nothing counts as a change of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Touch {
    /// O_TRUNC: the times move even when the file was empty.
    Always,
    /// truncate(2): they stay when the size stays. ftruncate(2) names the time itself.
    IfChanged,
}

/// Copies what the layers hold; returns what must be read of stored content: where it is wanted
/// in the file, and what is wanted. The rest are zeros.
fn read_layers(state: &NodeState, root: Root, offset: u64, buf: &mut [u8]) -> Vec<(u64, Range)> {
    let mut loads = Vec::new();
    let mut below = root;
    let mut gaps = vec![Gap { start: offset, end: offset + buf.len() as u64 }];
    for layer in state.layers.iter().rev() {
        gaps = layer.read(offset, buf, gaps, &mut loads);
        if let Some(base) = layer.base {
            below = base;
            break;
        }
    }
    let load = |gap: Gap| {
        (gap.start, Range { root: below, offset: gap.start, length: gap.end - gap.start })
    };
    loads.extend(gaps.into_iter().map(load));
    loads
}

pub(super) fn regular(inode: &Inode) -> Result<(), Error> {
    match inode.mode & MODE_TYPE {
        MODE_FILE => Ok(()),
        MODE_DIR => Err(Error::IsADirectory),
        _ => Err(Error::NotAFile),
    }
}

/// Takes away what would run a changed program with another's rights.
pub(super) fn clear_set_id(inode: &mut Inode) {
    inode.mode &= !MODE_SET_UID;
    if inode.mode & MODE_GROUP_EXEC != 0 {
        inode.mode &= !MODE_SET_GID;
    }
}
