//! A path, or all of the volume, becomes what a snapshot has.
//!
//! Owns [`Volume::restore`], and the removal of whole trees, which it leaves behind. New inodes
//! that share the contents are built below one without a name (an orphan), in as many groups as it
//! takes; one group puts them in the place of what is there, which has no name from then on; that
//! is removed bit by bit. After a crash anywhere an orphan is left at most, with names in it, and
//! the next opening removes it: either what was not finished, or what was replaced.
//!
//! Invariants: (1) link counts are right at the end of every group; (2) the snapshot is not deleted
//! meanwhile.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::super::names::{Place, entry_of, find_in, scan_names};
use super::super::xattrs::list_in;
use super::super::{Error, MODE_DIR, MODE_TYPE, Volume, Wait};
use crate::meta::{
    Content, Cookie, Group, Ino, Inode, Key, KeyRange, NameEntry, Reading, SnapshotView,
};

/// Names of a directory that are copied at a time.
const NAMES_AT_ONCE: usize = 1000;

/// Most names in the root directory, old and new together, that change places within one group.
const ROOT_NAMES_MAX: usize = 100_000;

/// What was restored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Restored {
    /// Inodes that were made.
    pub files: u64,
    /// Bytes of their contents that are no holes.
    pub bytes: u64,
}

/// Is told of names that lead elsewhere by now, so that nobody goes on remembering them.
pub type EachName<'a> = dyn FnMut(Ino, &[u8]) + 'a;

/// Copies inodes out of a snapshot.
struct Copier<'a> {
    volume: &'a Volume,
    view: SnapshotView<'a>,
    /// New numbers of inodes with several names.
    links: HashMap<Ino, Ino>,
    restored: Restored,
}

/// Where a copy gets its name.
struct Spot<'a> {
    dir: Ino,
    cookie: Cookie,
    name: &'a [u8],
}

impl Volume {
    /// Makes the file or directory at `path` (from the root, no slash in front; empty: the whole
    /// volume) what it was in the snapshot; `renewed` is told once that is durable.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when the snapshot has no such path, or the directory above is missing
    /// now.
    pub fn restore(
        &self,
        snapshot: &[u8],
        path: &[u8],
        renewed: &mut EachName<'_>,
    ) -> Result<Restored, Error> {
        self.begin_change(Wait::Yes)?;
        self.admit(0)?;
        let _used = self.snapshots.in_use.read();
        let number = self.snapshot(snapshot)?.number;
        let view = self.meta.at(number).ok_or(Error::NotFound)?;
        let parts: Vec<&[u8]> =
            path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
        let old = self.walk(&view, &parts)?;
        let mut copier =
            Copier { volume: self, view, links: HashMap::new(), restored: Restored::default() };
        let left = match parts.split_last() {
            None => {
                let made = copier.tree(old, Ino::ROOT)?;
                self.exchange_root(&copier.view, made, renewed)?
            }
            Some((name, above)) => {
                let dir = self.walk(&self.meta, above)?;
                let made = copier.tree(old, dir)?;
                self.put_in_place(dir, name, made, renewed)?
            }
        };
        if let Some(left) = left {
            self.remove_tree(left)?;
        }
        self.commit_all()?;
        Ok(copier.restored)
    }

    /// Follows names from the root.
    fn walk(&self, meta: &dyn Reading, parts: &[&[u8]]) -> Result<Ino, Error> {
        parts.iter().try_fold(Ino::ROOT, |dir, name| {
            Ok(find_in(meta, self.superblock.uuid, dir, name)?.ino)
        })
    }

    /// Lets `made`, which has no name, take the place of a name; returns what had that and has
    /// none any more.
    fn put_in_place(
        &self,
        dir: Ino,
        name: &[u8],
        made: Ino,
        renewed: &mut EachName<'_>,
    ) -> Result<Option<Ino>, Error> {
        self.begin_change(Wait::Yes)?;
        let namespace = self.namespace.write();
        let mut parent = self.living_directory(dir)?;
        let place = self.place(dir, name)?;
        let (cookie, found) = match &place {
            Place::Taken(found) => (found.cookie, Some(found.ino)),
            Place::Free(cookie) => (*cookie, None),
        };
        let mut inode = self.inode(made)?;
        let is_dir = inode.mode & MODE_TYPE == MODE_DIR;
        inode.nlink = if is_dir { 2 + self.subdirectories(made)? } else { 1 };
        if is_dir {
            inode.parent = dir;
        }
        let node = found.map(|ino| self.nodes.get(ino));
        let replaced = {
            let _state = node.as_ref().map(|node| node.state.lock());
            found.map(|ino| self.inode(ino)).transpose().map(|old| {
                let was_dir = old.as_ref().is_some_and(|old| old.mode & MODE_TYPE == MODE_DIR);
                let now = self.clock.now();
                (parent.mtime, parent.ctime) = (now, now);
                parent.nlink = parent.nlink + u32::from(is_dir) - u32::from(was_dir);
                let group = self.meta.enter();
                let entry = entry_of(made, inode.mode, name);
                group.put(&Key::Name { dir, cookie }, entry.encode());
                group.put(&Key::Inode(dir), parent.encode());
                group.put(&Key::Inode(made), inode.encode());
                group.delete(&Key::Orphan(made));
                if let (Some(ino), Some(old)) = (found, old) {
                    self.drop_name(&group, ino, old);
                }
            })
        };
        if let Some(node) = node {
            self.nodes.put(node);
        }
        drop(namespace);
        replaced?;
        self.commit_all()?;
        renewed(dir, name);
        Ok(found)
    }

    fn subdirectories(&self, dir: Ino) -> Result<u32, Error> {
        let mut count = 0;
        scan_names(&self.meta, KeyRange::names(dir, Cookie(0)), &mut |_, entry| {
            count += u32::from(u32::from(entry.kind) << 12 == MODE_DIR);
            ControlFlow::Continue(())
        })?;
        Ok(count)
    }

    /// Lets the names in the root and those in `made` change places, and gives the root what the
    /// snapshot says of it; returns `made`.
    fn exchange_root(
        &self,
        view: &SnapshotView<'_>,
        made: Ino,
        renewed: &mut EachName<'_>,
    ) -> Result<Option<Ino>, Error> {
        self.begin_change(Wait::Yes)?;
        let namespace = self.namespace.write();
        let (olds, news) = (self.all_names(Ino::ROOT)?, self.all_names(made)?);
        if ROOT_NAMES_MAX < olds.len() + news.len() {
            let what = "the root has too many names: restore its directories one by one";
            return Err(Error::Invalid { what });
        }
        let moved = [(&olds, Ino::ROOT, made), (&news, made, Ino::ROOT)];
        let mut inodes = Vec::new();
        for (names, _, to) in moved {
            for (_, entry) in names.iter().filter(|(_, entry)| is_dir(entry)) {
                inodes.push((entry.ino, Inode { parent: to, ..self.inode(entry.ino)? }));
            }
        }
        let bytes = view.get(&Key::Inode(Ino::ROOT))?.ok_or(Error::Stale)?;
        let nlink = 2 + news.iter().filter(|(_, entry)| is_dir(entry)).count() as u32;
        let root = Inode { nlink, parent: Ino::ROOT, ..Inode::decode(&bytes)? };
        let gone = list_in(&self.meta, Ino::ROOT)?;
        let xattrs = xattrs_of(view, Ino::ROOT)?;
        let node = self.nodes.get(Ino::ROOT);
        {
            let mut state = node.state.lock();
            (state.no_capability, state.no_default_acl) = (false, false);
            let group = self.meta.enter();
            for (names, from, _) in moved {
                for (cookie, _) in names {
                    group.delete(&Key::Name { dir: from, cookie: *cookie });
                }
            }
            for (names, _, to) in moved {
                for (cookie, entry) in names {
                    group.put(&Key::Name { dir: to, cookie: *cookie }, entry.encode());
                }
            }
            inodes.iter().for_each(|(ino, inode)| group.put(&Key::Inode(*ino), inode.encode()));
            group.put(&Key::Inode(Ino::ROOT), root.encode());
            for name in &gone {
                group.delete(&Key::Xattr { ino: Ino::ROOT, name });
            }
            put_xattrs(&group, Ino::ROOT, xattrs);
        }
        self.nodes.put(node);
        drop(namespace);
        self.commit_all()?;
        olds.iter().chain(&news).for_each(|(_, entry)| renewed(Ino::ROOT, &entry.name));
        Ok(Some(made))
    }

    fn all_names(&self, dir: Ino) -> Result<Vec<(Cookie, NameEntry)>, Error> {
        let mut names = Vec::new();
        scan_names(&self.meta, KeyRange::names(dir, Cookie(0)), &mut |cookie, entry| {
            names.push((cookie, entry));
            if names.len() <= ROOT_NAMES_MAX {
                return ControlFlow::Continue(());
            }
            ControlFlow::Break(())
        })?;
        Ok(names)
    }

    /// Removes an inode that has no name, and all below it, one name after the other.
    pub(in super::super) fn remove_tree(&self, top: Ino) -> Result<(), Error> {
        // Nothing gets a name there any more: what is behind each step is empty.
        let mut todo = vec![(top, Cookie(0))];
        while let Some((ino, from)) = todo.last_mut() {
            let dir = *ino;
            match self.first_name(dir, *from)? {
                Some((cookie, entry)) => {
                    *from = Cookie(cookie.0 + 1);
                    if self.remove_below(&Key::Name { dir, cookie }, entry.ino)? {
                        todo.push((entry.ino, Cookie(0)));
                    }
                }
                None => {
                    let node = self.nodes.get(dir);
                    self.destroy_if_orphan(&node);
                    self.nodes.put(node);
                    todo.pop();
                }
            }
        }
        Ok(())
    }

    fn first_name(&self, dir: Ino, from: Cookie) -> Result<Option<(Cookie, NameEntry)>, Error> {
        let mut first = None;
        scan_names(&self.meta, KeyRange::names(dir, from), &mut |cookie, entry| {
            first = Some((cookie, entry));
            ControlFlow::Break(())
        })?;
        Ok(first)
    }

    /// Removes a name in a directory that has none; answers whether it was that of a directory.
    fn remove_below(&self, key: &Key<'_>, ino: Ino) -> Result<bool, Error> {
        self.begin_change(Wait::Yes)?;
        let namespace = self.namespace.write();
        let node = self.nodes.get(ino);
        let removed = {
            let _state = node.state.lock();
            self.inode(ino).map(|inode| {
                let is_dir = inode.mode & MODE_TYPE == MODE_DIR;
                let group = self.meta.enter();
                group.delete(key);
                self.drop_name(&group, ino, inode);
                is_dir
            })
        };
        drop(namespace);
        if matches!(removed, Ok(false)) {
            self.destroy_if_orphan(&node);
        }
        self.nodes.put(node);
        removed
    }
}

impl Copier<'_> {
    /// Copies an inode and all below it; the copy has no name. `parent` is where it will stand.
    fn tree(&mut self, old: Ino, parent: Ino) -> Result<Ino, Error> {
        let (top, is_dir) = self.inode(old, parent, None)?;
        let mut todo = if is_dir { vec![(old, top)] } else { Vec::new() };
        while let Some((from, to)) = todo.pop() {
            let mut next = Cookie(0);
            loop {
                let batch = self.names(from, next)?;
                for (cookie, entry) in &batch {
                    let spot = Spot { dir: to, cookie: *cookie, name: &entry.name };
                    let (made, is_dir) = self.inode(entry.ino, to, Some(spot))?;
                    if is_dir {
                        todo.push((entry.ino, made));
                    }
                }
                match batch.last() {
                    Some((last, _)) if batch.len() == NAMES_AT_ONCE => next = Cookie(last.0 + 1),
                    _ => break,
                }
            }
        }
        Ok(top)
    }

    fn names(&self, dir: Ino, from: Cookie) -> Result<Vec<(Cookie, NameEntry)>, Error> {
        let mut batch = Vec::new();
        scan_names(&self.view, KeyRange::names(dir, from), &mut |cookie, entry| {
            batch.push((cookie, entry));
            if batch.len() < NAMES_AT_ONCE {
                return ControlFlow::Continue(());
            }
            ControlFlow::Break(())
        })?;
        Ok(batch)
    }

    /// Copies one inode, or gives its copy another name; answers the copy's number, and whether it
    /// is a directory. Without a place for a name the copy is an orphan.
    fn inode(
        &mut self,
        old: Ino,
        parent: Ino,
        spot: Option<Spot<'_>>,
    ) -> Result<(Ino, bool), Error> {
        let volume = self.volume;
        volume.begin_change(Wait::Yes)?;
        let bytes = self.view.get(&Key::Inode(old))?.ok_or(Error::Stale)?;
        let inode = Inode::decode(&bytes)?;
        let is_dir = inode.mode & MODE_TYPE == MODE_DIR;
        if let (Some(&made), Some(spot)) = (self.links.get(&old), &spot) {
            let mut inode = volume.inode(made)?;
            inode.nlink += 1;
            let group = volume.meta.enter();
            put_name(&group, spot, made, inode.mode);
            group.put(&Key::Inode(made), inode.encode());
            return Ok((made, false));
        }
        let content = self.view.get(&Key::Content(old))?;
        let filled = match &content {
            Some(bytes) => Content::decode(bytes)?.filled,
            None => 0,
        };
        let xattrs = xattrs_of(&self.view, old)?;
        // A directory without a name has no count, whatever is in it.
        let above = match &spot {
            Some(spot) if is_dir => Some(volume.inode(spot.dir)?).filter(|dir| dir.nlink != 0),
            _ => None,
        };
        let nlink = match (&spot, is_dir) {
            (None, _) => 0,
            (Some(_), true) => 2,
            (Some(_), false) => 1,
        };
        let has_more = !is_dir && 1 < inode.nlink;
        let parent = if is_dir { parent } else { inode.parent };
        let copy = Inode { nlink, parent, ..inode };
        let group = volume.meta.enter();
        let made = volume.next_ino();
        group.put(&Key::Inode(made), copy.encode());
        if let Some(content) = content {
            group.put(&Key::Content(made), content);
            volume.counters.lock().add_logical(group.id(), filled as i64);
        }
        put_xattrs(&group, made, xattrs);
        match &spot {
            Some(spot) => put_name(&group, spot, made, copy.mode),
            None => group.put(&Key::Orphan(made), Vec::new()),
        }
        if let (Some(mut above), Some(spot)) = (above, &spot) {
            above.nlink += 1;
            group.put(&Key::Inode(spot.dir), above.encode());
        }
        drop(group);
        if has_more {
            self.links.insert(old, made);
        }
        self.restored.files += 1;
        self.restored.bytes += filled;
        Ok((made, is_dir))
    }
}

fn is_dir(entry: &NameEntry) -> bool {
    u32::from(entry.kind) << 12 == MODE_DIR
}

fn put_name(group: &Group<'_>, spot: &Spot<'_>, ino: Ino, mode: u32) {
    let entry = entry_of(ino, mode, spot.name);
    group.put(&Key::Name { dir: spot.dir, cookie: spot.cookie }, entry.encode());
}

/// Extended attributes with their values.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

fn xattrs_of(meta: &dyn Reading, ino: Ino) -> Result<Xattrs, Error> {
    let mut found = Vec::new();
    for name in list_in(meta, ino)? {
        if let Some(value) = meta.get(&Key::Xattr { ino, name: &name })? {
            found.push((name, value));
        }
    }
    Ok(found)
}

fn put_xattrs(group: &Group<'_>, ino: Ino, xattrs: Xattrs) {
    for (name, value) in xattrs {
        group.put(&Key::Xattr { ino, name: &name }, value);
    }
}
