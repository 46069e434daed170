//! Names: look up, list, make, link and remove; and the end of inodes without names.
//!
//! Invariants: (1) whoever changes names holds `namespace` for writing, and the state of every
//! inode that is no directory and whose entry changes; (2) a name's cookie stays as long as the
//! name; (3) an inode without names is an orphan until the kernel has forgotten it.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::acl::{self, DEFAULT};
use super::flags::{self, check_addable, check_attributes, check_removable};
use super::node::Node;
use super::snapshots::is_reserved;
use super::{
    Attr, Caller, DirItem, Error, LINKS_MAX, MODE_DIR, MODE_FILE, MODE_SET_GID, MODE_SYMLINK,
    MODE_TYPE, Make, NAME_BYTES_MAX, TARGET_BYTES_MAX, Volume, Wait,
};
use crate::meta::{Cookie, Ino, Inode, Key, KeyRange, NameEntry, Reading};

/// Offsets of `readdir` behind the entries that are no names.
const BEHIND_DOT: u64 = 1;
const BEHIND_DOT_DOT: u64 = 2;

/// A name that was found.
pub(super) struct Found {
    pub(super) cookie: Cookie,
    pub(super) ino: Ino,
    pub(super) mode_type: u32,
}

/// What a look for a name gave: the name, or the cookie that a new one would get.
pub(super) enum Place {
    Taken(Found),
    Free(Cookie),
}

impl Volume {
    /// Finds a name. The kernel holds one more reference of the inode afterwards.
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Attr, Error> {
        self.check_open()?;
        if let Some(found) = self.old_lookup(dir, name) {
            return found;
        }
        let _namespace = self.namespace.read();
        let ino = match name {
            // Asked of anything, for a file handle that outlived what the kernel knew of it.
            b"." => dir,
            b".." => self.directory(dir)?.parent,
            _ => {
                self.directory(dir)?;
                self.find(dir, name)?.ino
            }
        };
        let inode = self.inode(ino)?;
        self.refer(ino, &inode)
    }

    /// Counts one reference of the kernel and returns the attributes.
    fn refer(&self, ino: Ino, inode: &Inode) -> Result<Attr, Error> {
        let attr = self.attr_of(ino, inode)?;
        let node = self.nodes.get(ino);
        node.state.lock().lookups += 1;
        self.nodes.put(node);
        Ok(attr)
    }

    /// Takes references of the kernel away; an inode without names and references is removed.
    pub fn forget(&self, ino: Ino, count: u64) {
        let Some(node) = self.nodes.peek(ino) else { return };
        let forgotten = {
            let mut state = node.state.lock();
            state.lookups = state.lookups.saturating_sub(count);
            state.lookups == 0 && state.opens == 0
        };
        if forgotten {
            self.destroy_if_orphan(&node);
        }
        self.nodes.put(node);
    }

    /// Lists a directory from the offset `from` on (0 is its start): `each` is shown the entries
    /// and answers whether it had room.
    pub fn readdir(
        &self,
        dir: Ino,
        from: u64,
        each: &mut dyn FnMut(DirItem) -> bool,
    ) -> Result<(), Error> {
        self.check_open()?;
        if let Some(listed) = self.old_readdir(dir, from, each) {
            return listed;
        }
        let inode = self.directory(dir)?;
        let dots: [(&[u8], Ino, u64); 2] =
            [(b".", dir, BEHIND_DOT), (b"..", inode.parent, BEHIND_DOT_DOT)];
        for (name, ino, next) in dots {
            if from < next {
                let item = DirItem { ino, mode_type: MODE_DIR, next, name: name.to_vec() };
                if !each(item) {
                    return Ok(());
                }
            }
        }
        let start = Cookie(from.saturating_add(1).max(Cookie::COLLISIONS_MAX));
        scan_names(&self.meta, KeyRange::names(dir, start), &mut |cookie, entry| {
            let item = DirItem {
                ino: entry.ino,
                mode_type: u32::from(entry.kind) << 12,
                next: cookie.0,
                name: entry.name,
            };
            if each(item) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
    }

    /// Returns where a symbolic link points.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        self.check_open()?;
        if let Some(target) = self.old_readlink(ino) {
            return target;
        }
        let inode = self.inode(ino)?;
        if inode.mode & MODE_TYPE != MODE_SYMLINK {
            return Err(Error::Invalid { what: "not a symbolic link" });
        }
        Ok(inode.target)
    }

    /// Makes a file, fifo, socket or device node. The kernel holds one reference of it.
    pub fn mknod(
        &self,
        dir: Ino,
        name: &[u8],
        make: &Make,
        caller: Caller,
        wait: Wait,
    ) -> Result<Attr, Error> {
        let mode_type = make.mode & MODE_TYPE;
        if mode_type == MODE_DIR || mode_type == MODE_SYMLINK {
            return Err(Error::Invalid { what: "not a type that mknod makes" });
        }
        let mode = if mode_type == 0 { make.mode | MODE_FILE } else { make.mode };
        self.make(dir, name, Inode { mode, rdev: make.rdev, ..Inode::default() }, caller, wait)
    }

    /// Makes a directory. The kernel holds one reference of it.
    pub fn mkdir(
        &self,
        dir: Ino,
        name: &[u8],
        mode: u32,
        caller: Caller,
        wait: Wait,
    ) -> Result<Attr, Error> {
        let mode = MODE_DIR | mode & !MODE_TYPE;
        self.make(dir, name, Inode { mode, parent: dir, ..Inode::default() }, caller, wait)
    }

    /// Makes a symbolic link to `target`. The kernel holds one reference of it.
    pub fn symlink(
        &self,
        dir: Ino,
        name: &[u8],
        target: &[u8],
        caller: Caller,
        wait: Wait,
    ) -> Result<Attr, Error> {
        match target.len() {
            0 => return Err(Error::NotFound),
            length if TARGET_BYTES_MAX < length => return Err(Error::NameTooLong),
            _ => {}
        }
        let inode = Inode {
            mode: MODE_SYMLINK | 0o777,
            size: target.len() as u64,
            target: target.to_vec(),
            ..Inode::default()
        };
        self.make(dir, name, inode, caller, wait)
    }

    /// Gives `inode` its owner, times and number, and a name.
    fn make(
        &self,
        dir: Ino,
        name: &[u8],
        mut inode: Inode,
        caller: Caller,
        wait: Wait,
    ) -> Result<Attr, Error> {
        check_name(name)?;
        self.begin_change(wait)?;
        self.admit(0)?;
        let _namespace = self.namespace.write();
        let mut parent = self.living_directory(dir)?;
        let Place::Free(cookie) = self.place(dir, name)? else { return Err(Error::Exists) };
        check_addable(&parent)?;
        let is_dir = inode.mode & MODE_TYPE == MODE_DIR;
        let lists = if inode.mode & MODE_TYPE == MODE_SYMLINK {
            Vec::new()
        } else {
            let default = self.default_list(dir)?;
            let inherited = acl::inherit(default.as_deref(), inode.mode, caller.umask, is_dir)?;
            inode.mode = inherited.mode;
            inherited.lists
        };
        if is_dir && LINKS_MAX <= parent.nlink {
            return Err(Error::TooManyLinks);
        }
        let now = self.clock.now();
        (inode.uid, inode.gid) = (caller.uid, caller.gid);
        if parent.mode & MODE_SET_GID != 0 {
            inode.gid = parent.gid;
            inode.mode |= if is_dir { MODE_SET_GID } else { 0 };
        }
        (inode.atime, inode.mtime, inode.ctime, inode.btime) = (now, now, now, now);
        inode.nlink = if is_dir { 2 } else { 1 };
        inode.flags = flags::inherited(&parent);
        parent.nlink += u32::from(is_dir);
        (parent.mtime, parent.ctime) = (now, now);
        let group = self.meta.enter();
        let ino = self.next_ino();
        group.put(&Key::Inode(ino), inode.encode());
        for (name, list) in lists {
            group.put(&Key::Xattr { ino, name }, list);
        }
        group.put(&Key::Name { dir, cookie }, entry_of(ino, inode.mode, name).encode());
        group.put(&Key::Inode(dir), parent.encode());
        drop(group);
        self.refer(ino, &inode)
    }

    /// A number that no inode had, counted as in use. The caller is in a group.
    pub(super) fn next_ino(&self) -> Ino {
        let mut counters = self.counters.lock();
        counters.files += 1;
        counters.next_ino += 1;
        Ino(counters.next_ino - 1)
    }

    /// The access control list that new entries of a directory get, if it has one.
    fn default_list(&self, dir: Ino) -> Result<Option<Vec<u8>>, Error> {
        let node = self.nodes.get(dir);
        let list = {
            let mut state = node.state.lock();
            if state.no_default_acl {
                Ok(None)
            } else {
                let list = self.meta.get(&Key::Xattr { ino: dir, name: DEFAULT });
                state.no_default_acl = matches!(list, Ok(None));
                list
            }
        };
        self.nodes.put(node);
        Ok(list?)
    }

    /// Gives an inode that is no directory one more name, and the kernel one more reference.
    pub fn link(&self, ino: Ino, dir: Ino, name: &[u8], wait: Wait) -> Result<Attr, Error> {
        check_name(name)?;
        self.begin_change(wait)?;
        self.admit(0)?;
        let _namespace = self.namespace.write();
        let mut parent = self.living_directory(dir)?;
        let Place::Free(cookie) = self.place(dir, name)? else { return Err(Error::Exists) };
        check_addable(&parent)?;
        let node = self.nodes.get(ino);
        let linked = {
            let _state = node.state.lock();
            self.inode(ino).and_then(|mut inode| {
                if inode.mode & MODE_TYPE == MODE_DIR {
                    return Err(Error::NotPermitted);
                }
                if inode.nlink == 0 {
                    return Err(Error::NotFound);
                }
                if LINKS_MAX <= inode.nlink {
                    return Err(Error::TooManyLinks);
                }
                check_attributes(&inode)?;
                let now = self.clock.now();
                inode.nlink += 1;
                inode.ctime = now;
                (parent.mtime, parent.ctime) = (now, now);
                let group = self.meta.enter();
                group.put(&Key::Inode(ino), inode.encode());
                group.put(&Key::Name { dir, cookie }, entry_of(ino, inode.mode, name).encode());
                group.put(&Key::Inode(dir), parent.encode());
                Ok(inode)
            })
        };
        let attr = linked.and_then(|inode| self.refer(ino, &inode));
        self.nodes.put(node);
        attr
    }

    /// Removes a name of anything but a directory.
    pub fn unlink(&self, dir: Ino, name: &[u8], wait: Wait) -> Result<(), Error> {
        self.remove(dir, name, false, wait)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, dir: Ino, name: &[u8], wait: Wait) -> Result<(), Error> {
        match name {
            b"." => Err(Error::Invalid { what: "a directory cannot remove itself" }),
            b".." => Err(Error::NotEmpty),
            _ => self.remove(dir, name, true, wait),
        }
    }

    fn remove(&self, dir: Ino, name: &[u8], want_dir: bool, wait: Wait) -> Result<(), Error> {
        check_name(name)?;
        self.begin_change(wait)?;
        let namespace = self.namespace.write();
        let mut parent = self.directory(dir)?;
        let found = self.find(dir, name)?;
        check_removable(&parent, &self.inode(found.ino)?)?;
        match (found.mode_type == MODE_DIR, want_dir) {
            (true, false) => return Err(Error::IsADirectory),
            (false, true) => return Err(Error::NotADirectory),
            (true, true) if !self.is_empty(found.ino)? => return Err(Error::NotEmpty),
            _ => {}
        }
        let node = self.nodes.get(found.ino);
        let removed = {
            let state = node.state.lock();
            self.inode(found.ino).map(|inode| {
                let now = self.clock.now();
                (parent.mtime, parent.ctime) = (now, now);
                parent.nlink -= u32::from(want_dir);
                let group = self.meta.enter();
                group.delete(&Key::Name { dir, cookie: found.cookie });
                group.put(&Key::Inode(dir), parent.encode());
                self.drop_name(&group, found.ino, inode);
                state.lookups == 0 && state.opens == 0
            })
        };
        drop(namespace);
        if matches!(removed, Ok(true)) {
            self.destroy_if_orphan(&node);
        }
        self.nodes.put(node);
        removed.map(|_| ())
    }

    /// Takes one name from an inode's count; the last one makes it an orphan.
    pub(super) fn drop_name(&self, group: &crate::meta::Group<'_>, ino: Ino, mut inode: Inode) {
        let is_dir = inode.mode & MODE_TYPE == MODE_DIR;
        inode.nlink = if is_dir { 0 } else { inode.nlink.saturating_sub(1) };
        inode.ctime = self.clock.now();
        if inode.nlink == 0 {
            group.put(&Key::Orphan(ino), Vec::new());
        }
        group.put(&Key::Inode(ino), inode.encode());
    }

    /// Removes what is left of an inode that has no names when nobody uses it any more.
    pub(super) fn destroy_if_orphan(&self, node: &Arc<Node>) {
        if let Err(error) = self.destroy(node) {
            // It stays an orphan, and the next opening of the volume removes it.
            tracing::warn!("inode {} without names was not removed: {error}", node.ino.0);
        }
    }

    fn destroy(&self, node: &Arc<Node>) -> Result<(), Error> {
        if self.options.read_only || self.commits.is_poisoned() || self.check_open().is_err() {
            return Ok(());
        }
        let _namespace = self.namespace.write();
        let mut state = node.state.lock();
        let gone = state.destroyed.is_some() || self.meta.get(&Key::Orphan(node.ino))?.is_none();
        if gone || state.lookups != 0 || state.opens != 0 {
            return Ok(());
        }
        // A tree that was replaced: its names go first.
        if !self.is_empty(node.ino)? {
            return Ok(());
        }
        let filled = self.root_of(node.ino, &mut state)?.filled;
        let names = self.listxattr(node.ino)?;
        let group = self.meta.enter();
        state.destroyed = Some(group.id());
        // Layers of the group that commits stay: its record tells of a file that still had a name.
        let mut given_back = 0;
        while let Some(top) = state.layers.back() {
            if top.group != group.id() || 1 < Arc::strong_count(top) {
                break;
            }
            given_back += top.cost();
            state.layers.pop_back();
        }
        for name in &names {
            group.delete(&Key::Xattr { ino: node.ino, name });
        }
        group.delete(&Key::Content(node.ino));
        group.delete(&Key::Orphan(node.ino));
        group.delete(&Key::Inode(node.ino));
        let mut counters = self.counters.lock();
        counters.files = counters.files.saturating_sub(1);
        counters.add_logical(group.id(), -(filled as i64));
        counters.release(filled);
        drop(counters);
        drop(group);
        drop(state);
        self.budget.settle(given_back, 0);
        Ok(())
    }

    /// Removes what a crash left without names.
    pub(super) fn remove_orphans(&self) -> Result<(), Error> {
        let mut orphans = Vec::new();
        self.meta.scan(KeyRange::orphans(), &mut |key, _| {
            if let Ok(Key::Orphan(ino)) = Key::decode(key) {
                orphans.push(ino);
            }
            ControlFlow::Continue(())
        })?;
        for ino in orphans {
            self.remove_tree(ino)?;
            self.make_group_room(Wait::Yes)?;
        }
        Ok(())
    }

    pub(super) fn directory(&self, dir: Ino) -> Result<Inode, Error> {
        let inode = self.inode(dir)?;
        if inode.mode & MODE_TYPE == MODE_DIR { Ok(inode) } else { Err(Error::NotADirectory) }
    }

    /// A directory that takes new names: one that was removed while in use does not.
    pub(super) fn living_directory(&self, dir: Ino) -> Result<Inode, Error> {
        let inode = self.directory(dir)?;
        if inode.nlink == 0 { Err(Error::NotFound) } else { Ok(inode) }
    }

    pub(super) fn is_empty(&self, dir: Ino) -> Result<bool, Error> {
        let mut empty = true;
        self.meta.scan(KeyRange::names(dir, Cookie(0)), &mut |_, _| {
            empty = false;
            ControlFlow::Break(())
        })?;
        Ok(empty)
    }

    pub(super) fn find(&self, dir: Ino, name: &[u8]) -> Result<Found, Error> {
        if is_reserved(dir, name) {
            return Err(Error::ReadOnly);
        }
        find_in(&self.meta, self.superblock.uuid, dir, name)
    }

    /// Looks for a name among those that share its hash.
    pub(super) fn place(&self, dir: Ino, name: &[u8]) -> Result<Place, Error> {
        if is_reserved(dir, name) {
            return Err(Error::ReadOnly);
        }
        place_in(&self.meta, self.superblock.uuid, dir, name)
    }
}

pub(super) fn find_in(
    meta: &dyn Reading,
    uuid: [u8; 16],
    dir: Ino,
    name: &[u8],
) -> Result<Found, Error> {
    if NAME_BYTES_MAX < name.len() {
        return Err(Error::NameTooLong);
    }
    match place_in(meta, uuid, dir, name)? {
        Place::Taken(found) => Ok(found),
        Place::Free(_) => Err(Error::NotFound),
    }
}

fn place_in(meta: &dyn Reading, uuid: [u8; 16], dir: Ino, name: &[u8]) -> Result<Place, Error> {
    let first = Cookie::hash(uuid, name);
    let mut found = None;
    let mut free = first.0;
    scan_names(meta, KeyRange::names_of_hash(dir, first), &mut |cookie, entry| {
        if entry.name == name {
            let mode_type = u32::from(entry.kind) << 12;
            found = Some(Found { cookie, ino: entry.ino, mode_type });
            return ControlFlow::Break(());
        }
        if cookie.0 == free {
            free += 1;
        }
        ControlFlow::Continue(())
    })?;
    match found {
        Some(found) => Ok(Place::Taken(found)),
        None if free <= first.last().0 => Ok(Place::Free(Cookie(free))),
        // 256 names with equal keyed 55-bit hashes: nobody can make them, and chance will not.
        None => Err(Error::TooManyLinks),
    }
}

/// Shows the names in a range of keys, decoded.
pub(super) fn scan_names(
    meta: &dyn Reading,
    range: KeyRange,
    each: &mut dyn FnMut(Cookie, NameEntry) -> ControlFlow<()>,
) -> Result<(), Error> {
    let mut failure = None;
    meta.scan(range, &mut |key, value| match (Key::decode(key), NameEntry::decode(value)) {
        (Ok(Key::Name { cookie, .. }), Ok(entry)) => each(cookie, entry),
        (Err(error), _) | (_, Err(error)) => {
            failure = Some(error);
            ControlFlow::Break(())
        }
        (Ok(_), Ok(_)) => ControlFlow::Continue(()),
    })?;
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

pub(super) fn entry_of(ino: Ino, mode: u32, name: &[u8]) -> NameEntry {
    NameEntry { ino, kind: ((mode & MODE_TYPE) >> 12) as u8, name: name.to_vec(), epoch: 0 }
}

pub(super) fn check_name(name: &[u8]) -> Result<(), Error> {
    if NAME_BYTES_MAX < name.len() {
        return Err(Error::NameTooLong);
    }
    if name.is_empty() || name == b"." || name == b".." {
        return Err(Error::Invalid { what: "not a name that can be made or removed" });
    }
    if name.contains(&b'/') || name.contains(&0) {
        return Err(Error::Invalid { what: "a name has no slash and no NUL" });
    }
    Ok(())
}
