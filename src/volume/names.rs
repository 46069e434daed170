//! Names: look up, list, make, link, move and remove; and the end of inodes without names.
//!
//! Invariants: (1) whoever changes names holds `namespace` for writing, and the state of every
//! inode that is no directory and whose entry changes; (2) a name's cookie stays as long as the
//! name; (3) an inode without names is an orphan until the kernel has forgotten it.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::node::Node;
use super::{
    Attr, Caller, DirItem, Error, LINKS_MAX, MODE_DIR, MODE_FILE, MODE_SET_GID, MODE_SYMLINK,
    MODE_TYPE, Make, NAME_BYTES_MAX, RenameFlags, TARGET_BYTES_MAX, Volume, Wait,
};
use crate::meta::{Cookie, Ino, Inode, Key, KeyRange, NameEntry};

/// Offsets of `readdir` behind the entries that are no names.
const BEHIND_DOT: u64 = 1;
const BEHIND_DOT_DOT: u64 = 2;

/// A name that was found.
struct Found {
    cookie: Cookie,
    ino: Ino,
    mode_type: u32,
}

/// What a look for a name gave: the name, or the cookie that a new one would get.
enum Place {
    Taken(Found),
    Free(Cookie),
}

impl Volume {
    /// Finds a name. The kernel holds one more reference of the inode afterwards.
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Attr, Error> {
        self.check_open()?;
        let _namespace = self.namespace.read();
        let parent = self.directory(dir)?;
        let ino = match name {
            b"." => dir,
            b".." => parent.parent,
            _ => self.find(dir, name)?.ino,
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
        self.scan_names(KeyRange::names(dir, start), &mut |cookie, entry| {
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
        let is_dir = inode.mode & MODE_TYPE == MODE_DIR;
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
        parent.nlink += u32::from(is_dir);
        (parent.mtime, parent.ctime) = (now, now);
        let group = self.meta.enter();
        let ino = {
            let mut counters = self.counters.lock();
            counters.files += 1;
            counters.next_ino += 1;
            Ino(counters.next_ino - 1)
        };
        group.put(&Key::Inode(ino), inode.encode());
        group.put(&Key::Name { dir, cookie }, entry_of(ino, inode.mode, name).encode());
        group.put(&Key::Inode(dir), parent.encode());
        drop(group);
        self.refer(ino, &inode)
    }

    /// Gives an inode that is no directory one more name, and the kernel one more reference.
    pub fn link(&self, ino: Ino, dir: Ino, name: &[u8], wait: Wait) -> Result<Attr, Error> {
        check_name(name)?;
        self.begin_change(wait)?;
        self.admit(0)?;
        let _namespace = self.namespace.write();
        let mut parent = self.living_directory(dir)?;
        let Place::Free(cookie) = self.place(dir, name)? else { return Err(Error::Exists) };
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
    fn drop_name(&self, group: &crate::meta::Group<'_>, ino: Ino, mut inode: Inode) {
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
            let node = self.nodes.get(ino);
            let destroyed = self.destroy(&node);
            self.nodes.put(node);
            destroyed?;
            self.make_group_room(Wait::Yes)?;
        }
        Ok(())
    }

    /// Moves a name.
    pub fn rename(
        &self,
        dir: Ino,
        name: &[u8],
        new_dir: Ino,
        new_name: &[u8],
        flags: RenameFlags,
        wait: Wait,
    ) -> Result<(), Error> {
        check_name(name)?;
        check_name(new_name)?;
        if flags.no_replace && flags.exchange {
            return Err(Error::Invalid { what: "an exchange replaces" });
        }
        self.begin_change(wait)?;
        self.admit(0)?;
        let namespace = self.namespace.write();
        self.living_directory(dir)?;
        self.living_directory(new_dir)?;
        let moved = self.find(dir, name)?;
        let replaced = match (self.place(new_dir, new_name)?, flags) {
            (Place::Taken(_), RenameFlags { no_replace: true, .. }) => return Err(Error::Exists),
            (Place::Free(_), RenameFlags { exchange: true, .. }) => return Err(Error::NotFound),
            (place, _) => place,
        };
        if moved.mode_type == MODE_DIR {
            self.check_no_circle(moved.ino, new_dir)?;
        }
        match replaced {
            Place::Taken(found) if found.ino == moved.ino => Ok(()),
            Place::Taken(found) if flags.exchange => {
                if found.mode_type == MODE_DIR {
                    self.check_no_circle(found.ino, dir)?;
                }
                self.exchange((dir, name, moved), (new_dir, new_name, found))
            }
            Place::Taken(found) => {
                let orphan = self.replace((dir, moved), (new_dir, new_name), found)?;
                drop(namespace);
                self.destroy_if_orphan(&orphan);
                self.nodes.put(orphan);
                Ok(())
            }
            Place::Free(cookie) => self.relocate((dir, moved), (new_dir, new_name, cookie)),
        }
    }

    /// A directory must not be moved below itself.
    fn check_no_circle(&self, moved: Ino, new_dir: Ino) -> Result<(), Error> {
        let mut above = new_dir;
        loop {
            if above == moved {
                return Err(Error::Invalid { what: "a directory cannot be moved into itself" });
            }
            if above == Ino::ROOT {
                return Ok(());
            }
            let parent = self.inode(above)?.parent;
            if parent == above {
                return Ok(());
            }
            above = parent;
        }
    }

    /// Moves a name to one that was free.
    fn relocate(
        &self,
        (dir, moved): (Ino, Found),
        (new_dir, new_name, cookie): (Ino, &[u8], Cookie),
    ) -> Result<(), Error> {
        let is_dir = moved.mode_type == MODE_DIR;
        if is_dir && dir != new_dir && LINKS_MAX <= self.inode(new_dir)?.nlink {
            return Err(Error::TooManyLinks);
        }
        let node = self.nodes.get(moved.ino);
        let result = {
            let _state = node.state.lock();
            self.move_entry((dir, moved.cookie), (new_dir, cookie), &moved, new_name, 0)
        };
        self.nodes.put(node);
        result
    }

    /// Moves a name over another, whose inode loses that name; returns the node of that inode.
    fn replace(
        &self,
        (dir, moved): (Ino, Found),
        (new_dir, new_name): (Ino, &[u8]),
        found: Found,
    ) -> Result<Arc<Node>, Error> {
        let is_dir = moved.mode_type == MODE_DIR;
        match (is_dir, found.mode_type == MODE_DIR) {
            (true, false) => return Err(Error::NotADirectory),
            (false, true) => return Err(Error::IsADirectory),
            (true, true) if !self.is_empty(found.ino)? => return Err(Error::NotEmpty),
            _ => {}
        }
        let (node, old) = (self.nodes.get(moved.ino), self.nodes.get(found.ino));
        let result = {
            let (low, high) = if moved.ino < found.ino { (&node, &old) } else { (&old, &node) };
            let _low = low.state.lock();
            let _high = high.state.lock();
            self.inode(found.ino).and_then(|inode| {
                let (from, to) = ((dir, moved.cookie), (new_dir, found.cookie));
                // Both entries must change within one group: the cut stays out until both have.
                let group = self.meta.enter();
                self.move_entry_in(&group, from, to, &moved, new_name, u32::from(is_dir))?;
                self.drop_name(&group, found.ino, inode);
                Ok(())
            })
        };
        self.nodes.put(node);
        match result {
            Ok(()) => Ok(old),
            Err(error) => {
                self.nodes.put(old);
                Err(error)
            }
        }
    }

    fn move_entry(
        &self,
        from: (Ino, Cookie),
        to: (Ino, Cookie),
        moved: &Found,
        new_name: &[u8],
        dirs_replaced: u32,
    ) -> Result<(), Error> {
        let group = self.meta.enter();
        self.move_entry_in(&group, from, to, moved, new_name, dirs_replaced)
    }

    /// Moves an entry, and keeps times, link counts and the parent. Reads before it changes.
    fn move_entry_in(
        &self,
        group: &crate::meta::Group<'_>,
        (dir, cookie): (Ino, Cookie),
        (new_dir, new_cookie): (Ino, Cookie),
        moved: &Found,
        new_name: &[u8],
        dirs_replaced: u32,
    ) -> Result<(), Error> {
        let is_dir = u32::from(moved.mode_type == MODE_DIR);
        let now = self.clock.now();
        let mut inode = self.inode(moved.ino)?;
        let mut parent = self.inode(dir)?;
        let mut new_parent = self.inode(new_dir)?;
        inode.ctime = now;
        if is_dir == 1 {
            inode.parent = new_dir;
        }
        group.delete(&Key::Name { dir, cookie });
        let entry = entry_of(moved.ino, moved.mode_type, new_name);
        group.put(&Key::Name { dir: new_dir, cookie: new_cookie }, entry.encode());
        group.put(&Key::Inode(moved.ino), inode.encode());
        (parent.mtime, parent.ctime) = (now, now);
        if dir == new_dir {
            parent.nlink -= dirs_replaced;
        } else {
            parent.nlink -= is_dir;
            (new_parent.mtime, new_parent.ctime) = (now, now);
            new_parent.nlink = new_parent.nlink + is_dir - dirs_replaced;
            group.put(&Key::Inode(new_dir), new_parent.encode());
        }
        group.put(&Key::Inode(dir), parent.encode());
        Ok(())
    }

    /// Lets two names change places.
    fn exchange(
        &self,
        (dir, name, one): (Ino, &[u8], Found),
        (new_dir, new_name, other): (Ino, &[u8], Found),
    ) -> Result<(), Error> {
        let (one_node, other_node) = (self.nodes.get(one.ino), self.nodes.get(other.ino));
        let result = {
            let (low, high) = if one.ino < other.ino {
                (&one_node, &other_node)
            } else {
                (&other_node, &one_node)
            };
            let _low = low.state.lock();
            let _high = high.state.lock();
            self.exchange_entries((dir, name, &one), (new_dir, new_name, &other))
        };
        self.nodes.put(one_node);
        self.nodes.put(other_node);
        result
    }

    fn exchange_entries(
        &self,
        (dir, name, one): (Ino, &[u8], &Found),
        (new_dir, new_name, other): (Ino, &[u8], &Found),
    ) -> Result<(), Error> {
        let now = self.clock.now();
        let mut inodes = [self.inode(one.ino)?, self.inode(other.ino)?];
        let mut parents = [self.inode(dir)?, self.inode(new_dir)?];
        let dirs = [u32::from(one.mode_type == MODE_DIR), u32::from(other.mode_type == MODE_DIR)];
        for (inode, (is_dir, home)) in inodes.iter_mut().zip(dirs.into_iter().zip([new_dir, dir])) {
            inode.ctime = now;
            if is_dir == 1 {
                inode.parent = home;
            }
        }
        for parent in &mut parents {
            (parent.mtime, parent.ctime) = (now, now);
        }
        let group = self.meta.enter();
        let key = Key::Name { dir: new_dir, cookie: other.cookie };
        group.put(&key, entry_of(one.ino, one.mode_type, new_name).encode());
        let key = Key::Name { dir, cookie: one.cookie };
        group.put(&key, entry_of(other.ino, other.mode_type, name).encode());
        group.put(&Key::Inode(one.ino), inodes[0].encode());
        group.put(&Key::Inode(other.ino), inodes[1].encode());
        if dir != new_dir {
            parents[0].nlink = parents[0].nlink + dirs[1] - dirs[0];
            parents[1].nlink = parents[1].nlink + dirs[0] - dirs[1];
            group.put(&Key::Inode(new_dir), parents[1].encode());
        }
        group.put(&Key::Inode(dir), parents[0].encode());
        Ok(())
    }

    fn directory(&self, dir: Ino) -> Result<Inode, Error> {
        let inode = self.inode(dir)?;
        if inode.mode & MODE_TYPE == MODE_DIR { Ok(inode) } else { Err(Error::NotADirectory) }
    }

    /// A directory that takes new names: one that was removed while in use does not.
    fn living_directory(&self, dir: Ino) -> Result<Inode, Error> {
        let inode = self.directory(dir)?;
        if inode.nlink == 0 { Err(Error::NotFound) } else { Ok(inode) }
    }

    fn is_empty(&self, dir: Ino) -> Result<bool, Error> {
        let mut empty = true;
        self.meta.scan(KeyRange::names(dir, Cookie(0)), &mut |_, _| {
            empty = false;
            ControlFlow::Break(())
        })?;
        Ok(empty)
    }

    fn find(&self, dir: Ino, name: &[u8]) -> Result<Found, Error> {
        if NAME_BYTES_MAX < name.len() {
            return Err(Error::NameTooLong);
        }
        match self.place(dir, name)? {
            Place::Taken(found) => Ok(found),
            Place::Free(_) => Err(Error::NotFound),
        }
    }

    /// Looks for a name among those that share its hash.
    fn place(&self, dir: Ino, name: &[u8]) -> Result<Place, Error> {
        let first = Cookie::hash(self.superblock.uuid, name);
        let mut found = None;
        let mut free = first.0;
        self.scan_names(KeyRange::names_of_hash(dir, first), &mut |cookie, entry| {
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
    fn scan_names(
        &self,
        range: KeyRange,
        each: &mut dyn FnMut(Cookie, NameEntry) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut failure = None;
        self.meta.scan(
            range,
            &mut |key, value| match (Key::decode(key), NameEntry::decode(value)) {
                (Ok(Key::Name { cookie, .. }), Ok(entry)) => each(cookie, entry),
                (Err(error), _) | (_, Err(error)) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
                (Ok(_), Ok(_)) => ControlFlow::Continue(()),
            },
        )?;
        match failure {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}

fn entry_of(ino: Ino, mode: u32, name: &[u8]) -> NameEntry {
    NameEntry { ino, kind: ((mode & MODE_TYPE) >> 12) as u8, name: name.to_vec() }
}

fn check_name(name: &[u8]) -> Result<(), Error> {
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
