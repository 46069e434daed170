//! Moving names: to a free name, over another, or both change places; and what stands in place of
//! a name that an overlay has moved away (a whiteout).
//!
//! Invariants: (1) all entries that one move touches change within one group; (2) all that can
//! fail is read before the first of them changes.

use std::sync::Arc;

use super::charge::ENTRIES_BYTES;
use super::flags::{check_addable, check_removable};
use super::names::{Found, Place, check_name, entry_of};
use super::node::Node;
use super::space::Need;
use super::{Caller, Error, LINKS_MAX, MODE_DIR, MODE_WHITEOUT, RenameFlags, Volume, Wait};
use crate::meta::{Cookie, Group, Ino, Inode, Key};

/// A name in a directory.
#[derive(Clone, Copy)]
struct Spot<'a> {
    dir: Ino,
    cookie: Cookie,
    name: &'a [u8],
}

/// A move of one name.
struct Move<'a> {
    moved: &'a Found,
    from: Spot<'a>,
    to: Spot<'a>,
    /// Whose whiteout takes the old place.
    whiteout: Option<Caller>,
    /// Directories that lose their name by it.
    dirs_replaced: u32,
}

impl Volume {
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
        if flags.exchange && (flags.no_replace || flags.whiteout.is_some()) {
            return Err(Error::Invalid { what: "an exchange replaces, and leaves no place free" });
        }
        self.begin_change(wait)?;
        let _admitted = self.admit(Need::Keep, 2 * ENTRIES_BYTES, wait)?;
        let namespace = self.namespace.write();
        let parent = self.living_directory(dir)?;
        let new_parent = self.living_directory(new_dir)?;
        let moved = self.find(dir, name)?;
        check_removable(&parent, &self.inode(moved.ino)?)?;
        let replaced = match (self.place(new_dir, new_name)?, flags) {
            (Place::Taken(_), RenameFlags { no_replace: true, .. }) => return Err(Error::Exists),
            (Place::Free(_), RenameFlags { exchange: true, .. }) => return Err(Error::NotFound),
            (place, _) => place,
        };
        if moved.mode_type == MODE_DIR {
            self.check_no_circle(moved.ino, new_dir)?;
        }
        let from = Spot { dir, cookie: moved.cookie, name };
        let spot = |cookie| Spot { dir: new_dir, cookie, name: new_name };
        match replaced {
            Place::Taken(found) if found.ino == moved.ino => Ok(()),
            Place::Taken(found) => {
                check_removable(&new_parent, &self.inode(found.ino)?)?;
                let to = spot(found.cookie);
                if flags.exchange {
                    return self.exchange((&moved, from), (&found, to));
                }
                let step =
                    Move { moved: &moved, from, to, whiteout: flags.whiteout, dirs_replaced: 0 };
                let orphan = self.replace(step, &found)?;
                drop(namespace);
                self.destroy_if_orphan(&orphan);
                self.nodes.put(orphan);
                Ok(())
            }
            Place::Free(cookie) => {
                check_addable(&new_parent)?;
                let to = spot(cookie);
                let whiteout = flags.whiteout;
                self.relocate(&Move { moved: &moved, from, to, whiteout, dirs_replaced: 0 })
            }
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

    /// A directory that is about to get another one must have room for its `..`.
    fn check_links(&self, is_dir: bool, dir: Ino, new_dir: Ino) -> Result<(), Error> {
        if is_dir && dir != new_dir && LINKS_MAX <= self.inode(new_dir)?.nlink {
            return Err(Error::TooManyLinks);
        }
        Ok(())
    }

    /// Moves a name to one that was free.
    fn relocate(&self, step: &Move<'_>) -> Result<(), Error> {
        let is_dir = step.moved.mode_type == MODE_DIR;
        self.check_links(is_dir, step.from.dir, step.to.dir)?;
        let node = self.nodes.get(step.moved.ino);
        let result = {
            let _state = node.state.lock();
            let group = self.meta.enter();
            self.move_entry(&group, step)
        };
        self.nodes.put(node);
        result
    }

    /// Moves a name over another, whose inode loses that name; returns the node of that inode.
    fn replace(&self, mut step: Move<'_>, found: &Found) -> Result<Arc<Node>, Error> {
        let is_dir = step.moved.mode_type == MODE_DIR;
        match (is_dir, found.mode_type == MODE_DIR) {
            (true, false) => return Err(Error::NotADirectory),
            (false, true) => return Err(Error::IsADirectory),
            (true, true) if !self.is_empty(found.ino)? => return Err(Error::NotEmpty),
            _ => {}
        }
        step.dirs_replaced = u32::from(is_dir);
        let (node, old) = (self.nodes.get(step.moved.ino), self.nodes.get(found.ino));
        let result = {
            let node_first = node.ino < old.ino;
            let (low, high) = if node_first { (&node, &old) } else { (&old, &node) };
            let _low = low.state.lock();
            let _high = high.state.lock();
            self.inode(found.ino).and_then(|inode| {
                // Both entries must change within one group: the cut stays out until both have.
                let group = self.meta.enter();
                self.move_entry(&group, &step)?;
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

    /// Moves an entry, and keeps times, link counts and the parent. Reads before it changes.
    fn move_entry(&self, group: &Group<'_>, step: &Move<'_>) -> Result<(), Error> {
        let Move { moved, from, to, whiteout, dirs_replaced } = *step;
        let is_dir = u32::from(moved.mode_type == MODE_DIR);
        let now = self.clock.now();
        let mut inode = self.inode(moved.ino)?;
        let mut parent = self.inode(from.dir)?;
        let mut new_parent = self.inode(to.dir)?;
        inode.ctime = now;
        if is_dir == 1 {
            inode.parent = to.dir;
        }
        match whiteout {
            Some(caller) => self.put_whiteout(group, from, caller),
            None => group.delete(&Key::Name { dir: from.dir, cookie: from.cookie }),
        }
        let entry = entry_of(moved.ino, moved.mode_type, to.name);
        group.put(&Key::Name { dir: to.dir, cookie: to.cookie }, entry.encode());
        group.put(&Key::Inode(moved.ino), inode.encode());
        (parent.mtime, parent.ctime) = (now, now);
        if from.dir == to.dir {
            parent.nlink -= dirs_replaced;
        } else {
            parent.nlink -= is_dir;
            (new_parent.mtime, new_parent.ctime) = (now, now);
            new_parent.nlink = new_parent.nlink + is_dir - dirs_replaced;
            group.put(&Key::Inode(to.dir), new_parent.encode());
        }
        group.put(&Key::Inode(from.dir), parent.encode());
        Ok(())
    }

    /// Lets a device node with number 0 take the place of a name: so an overlay hides what lies
    /// below (`WHITEOUT_DEV` of the kernel, Documentation/filesystems/overlayfs.rst).
    fn put_whiteout(&self, group: &Group<'_>, place: Spot<'_>, caller: Caller) {
        let now = self.clock.now();
        let inode = Inode {
            mode: MODE_WHITEOUT,
            uid: caller.uid,
            gid: caller.gid,
            nlink: 1,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            ..Inode::default()
        };
        let ino = self.next_ino();
        let entry = entry_of(ino, MODE_WHITEOUT, place.name);
        group.put(&Key::Inode(ino), inode.encode());
        group.put(&Key::Name { dir: place.dir, cookie: place.cookie }, entry.encode());
    }

    /// Lets two names change places.
    fn exchange(
        &self,
        (one, place): (&Found, Spot<'_>),
        (other, other_place): (&Found, Spot<'_>),
    ) -> Result<(), Error> {
        let dirs = [one.mode_type == MODE_DIR, other.mode_type == MODE_DIR];
        if dirs[1] {
            self.check_no_circle(other.ino, place.dir)?;
        }
        if dirs[0] != dirs[1] {
            self.check_links(dirs[0], place.dir, other_place.dir)?;
            self.check_links(dirs[1], other_place.dir, place.dir)?;
        }
        let (one_node, other_node) = (self.nodes.get(one.ino), self.nodes.get(other.ino));
        let result = {
            let (low, high) = if one.ino < other.ino {
                (&one_node, &other_node)
            } else {
                (&other_node, &one_node)
            };
            let _low = low.state.lock();
            let _high = high.state.lock();
            self.exchange_entries((one, place), (other, other_place))
        };
        self.nodes.put(one_node);
        self.nodes.put(other_node);
        result
    }

    fn exchange_entries(
        &self,
        (one, place): (&Found, Spot<'_>),
        (other, other_place): (&Found, Spot<'_>),
    ) -> Result<(), Error> {
        let now = self.clock.now();
        let (dir, new_dir) = (place.dir, other_place.dir);
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
        let key = Key::Name { dir: new_dir, cookie: other_place.cookie };
        group.put(&key, entry_of(one.ino, one.mode_type, other_place.name).encode());
        let key = Key::Name { dir, cookie: place.cookie };
        group.put(&key, entry_of(other.ino, other.mode_type, place.name).encode());
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
}
