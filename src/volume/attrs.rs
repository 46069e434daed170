//! Attributes of inodes: asked for, set, and the time of access that reading moves.

use super::acl::{ACCESS, Acl};
use super::flags::{FLAG_NO_ATIME, check_setattr};
use super::io::{Touch, clear_set_id};
use super::node::NodeState;
use super::{Atime, Attr, Caller, Error, MODE_DIR, MODE_TYPE, SetAttr, SetTime, Volume, Wait};
use crate::meta::{Content, Ino, Inode, Key};
use crate::sys::Timestamp;

/// After how long a time of access counts as old, though nothing changed since.
const ATIME_SECONDS_MAX: i64 = 24 * 60 * 60;

impl Volume {
    /// Returns the attributes of an inode.
    pub fn getattr(&self, ino: Ino) -> Result<Attr, Error> {
        self.check_open()?;
        if let Some(attr) = self.old_getattr(ino) {
            return attr;
        }
        let inode = self.inode(ino)?;
        self.attr_of(ino, &inode)
    }

    /// Makes attributes from an inode's entry and what is dirty of it.
    pub(super) fn attr_of(&self, ino: Ino, inode: &Inode) -> Result<Attr, Error> {
        Ok(attr_with(ino, inode, self.filled(ino, inode)?))
    }

    /// Bytes that are not holes: exact once all is stored, an upper bound while bytes are dirty.
    fn filled(&self, ino: Ino, inode: &Inode) -> Result<u64, Error> {
        if inode.size == 0 {
            return Ok(0);
        }
        if let Some(node) = self.nodes.peek(ino) {
            let filled = filled_of(&node.state.lock());
            self.nodes.put(node);
            if let Some(filled) = filled {
                return Ok(filled.min(inode.size));
            }
        }
        match self.meta.get(&Key::Content(ino))? {
            Some(bytes) => Ok(Content::decode(&bytes)?.filled.min(inode.size)),
            None => Ok(0),
        }
    }

    /// Changes attributes, and the size first when that is one of them.
    pub fn setattr(
        &self,
        ino: Ino,
        change: &SetAttr,
        caller: Caller,
        wait: Wait,
    ) -> Result<Attr, Error> {
        self.begin_change(wait)?;
        let is_dir = self.inode(ino)?.mode & MODE_TYPE == MODE_DIR;
        if let Some(size) = change.size {
            if is_dir {
                return Err(Error::IsADirectory);
            }
            let node = self.nodes.get(ino);
            let resized = self.resize(&node, size, caller, Touch::IfChanged);
            self.nodes.put(node);
            self.relieve();
            resized?;
        }
        let change = SetAttr { size: None, ..*change };
        if change == SetAttr::default() {
            return self.getattr(ino);
        }
        if is_dir {
            let _namespace = self.namespace.write();
            self.change_inode(ino, &change, false)?;
        } else {
            let node = self.nodes.get(ino);
            let changed = {
                let state = node.state.lock();
                self.change_inode(ino, &change, state.writers != 0)
            };
            self.nodes.put(node);
            changed?;
        }
        self.getattr(ino)
    }

    fn change_inode(&self, ino: Ino, change: &SetAttr, writers: bool) -> Result<(), Error> {
        let mut inode = self.inode(ino)?;
        check_setattr(&inode, change, writers)?;
        let now = self.clock.now();
        if let Some(mode) = change.mode {
            inode.mode = inode.mode & MODE_TYPE | mode & !MODE_TYPE;
        }
        let acl = if change.mode.is_some() { self.access_list(ino)? } else { None };
        if change.uid.is_some() || change.gid.is_some() {
            inode.uid = change.uid.unwrap_or(inode.uid);
            inode.gid = change.gid.unwrap_or(inode.gid);
            if inode.mode & MODE_TYPE != MODE_DIR && change.mode.is_none() {
                clear_set_id(&mut inode);
            }
        }
        if let Some(atime) = change.atime {
            inode.atime = time(atime, now);
        }
        if let Some(mtime) = change.mtime {
            inode.mtime = time(mtime, now);
        }
        inode.ctime = change.ctime.unwrap_or(now);
        let group = self.meta.enter();
        group.put(&Key::Inode(ino), inode.encode());
        if let Some(mut acl) = acl {
            acl.set_permissions(inode.mode);
            group.put(&Key::Xattr { ino, name: ACCESS }, acl.encode());
        }
        Ok(())
    }

    /// The list that access to an inode is judged by, if its mode does not say it all.
    fn access_list(&self, ino: Ino) -> Result<Option<Acl>, Error> {
        let value = self.meta.get(&Key::Xattr { ino, name: ACCESS })?;
        value.map(|value| Acl::decode(&value)).transpose()
    }

    /// Moves the time of access of an inode that is read, if that is due; answers whether it did.
    ///
    /// What would have to wait, or cannot be kept, is left out: reading goes on without it.
    pub fn accessed(&self, ino: Ino) -> bool {
        if self.access.atime() == Atime::Never || self.options.read_only || self.is_old(ino) {
            return false;
        }
        let Ok(inode) = self.inode(ino) else { return false };
        let is_dir = inode.mode & MODE_TYPE == MODE_DIR;
        if !self.is_access_due(&inode) || is_dir && !self.access.directories() {
            return false;
        }
        if self.begin_change(Wait::No).and_then(|()| self.admit(0)).is_err() {
            return false;
        }
        if is_dir {
            let _namespace = self.namespace.write();
            return self.put_access(ino);
        }
        let node = self.nodes.get(ino);
        let moved = {
            let _state = node.state.lock();
            self.put_access(ino)
        };
        self.nodes.put(node);
        moved
    }

    /// Moves the time of access, under the lock of the inode's entry.
    fn put_access(&self, ino: Ino) -> bool {
        match self.inode(ino) {
            Ok(inode) if self.is_access_due(&inode) => {
                let inode = Inode { atime: self.clock.now(), ..inode };
                self.meta.enter().put(&Key::Inode(ino), inode.encode());
                true
            }
            _ => false,
        }
    }

    fn is_access_due(&self, inode: &Inode) -> bool {
        let (atime, now) = (inode.atime, self.clock.now());
        let unseen = atime <= inode.mtime || atime <= inode.ctime;
        let old = ATIME_SECONDS_MAX <= now.secs.saturating_sub(atime.secs);
        let due = match self.access.atime() {
            Atime::Never => false,
            Atime::Relative => unseen || old,
            Atime::Strict => atime != now,
        };
        due && inode.flags & FLAG_NO_ATIME == 0
    }
}

/// Makes attributes from an inode's entry and the number of its bytes that are not holes.
pub(super) fn attr_with(ino: Ino, inode: &Inode, filled: u64) -> Attr {
    Attr {
        ino,
        mode: inode.mode,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        size: inode.size,
        filled,
        atime: inode.atime,
        mtime: inode.mtime,
        ctime: inode.ctime,
        btime: inode.btime,
    }
}

/// Bytes that are not holes, when the root is known.
fn filled_of(state: &NodeState) -> Option<u64> {
    let mut filled = state.root?.filled;
    for layer in &state.layers {
        filled = layer.base.map_or(filled.min(layer.keep), |base| base.filled);
        filled += layer.bytes();
    }
    Some(filled)
}

fn time(set: SetTime, now: Timestamp) -> Timestamp {
    match set {
        SetTime::Now => now,
        SetTime::At(time) => time,
    }
}
