//! What differs between two snapshots, or between one and what lives.
//!
//! Owns [`Volume::snapshot_diff`]: it walks both trees of names side by side. Contents are compared
//! by their roots, and below them only where addresses differ.
//!
//! Memory: the directories that are still to be compared.
//!
//! Absent on purpose: names that were moved; they show as removed and added.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::super::names::{find_in, scan_names};
use super::super::xattrs::list_in;
use super::super::{Error, MODE_DIR, MODE_TYPE, Volume, content_root};
use crate::meta::{Content, Cookie, Ino, Inode, Key, KeyRange, Reading};
use crate::pyramid::Root;

/// Names of a directory that are compared at a time.
const NAMES_AT_ONCE: usize = 1000;

/// How something differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is only in the newer one.
    Added,
    /// It is only in the older one.
    Removed,
    /// It is in both, and not the same.
    Changed {
        /// Bytes in the ranges that may differ, in whole chunks.
        content_bytes: u64,
        /// Whether owner, mode, time of change, target or the like differ.
        attributes: bool,
        /// Whether extended attributes differ.
        xattrs: bool,
    },
}

/// One name at which two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The path from the root, without a slash in front.
    pub path: Vec<u8>,
    /// How it differs.
    pub change: Change,
    /// Type bits of its mode.
    pub mode_type: u32,
    /// Bytes in the older one; 0 if it is not there.
    pub size_before: u64,
    /// Bytes in the newer one; 0 if it is not there.
    pub size_after: u64,
}

/// Is shown each difference, and says whether to go on.
pub type EachDifference<'a> = dyn FnMut(Difference) -> ControlFlow<()> + 'a;

/// Compares one name of a directory.
type EachName<'a, D> = dyn FnMut(&mut D, &[u8], Ino) -> Result<(), Error> + 'a;

/// A directory on both sides; missing on one, all in it differs.
struct Pair {
    path: Vec<u8>,
    old: Option<Ino>,
    new: Option<Ino>,
}

struct Diff<'a, 'b> {
    volume: &'a Volume,
    old: &'a dyn Reading,
    new: &'a dyn Reading,
    each: &'a mut EachDifference<'b>,
    todo: Vec<Pair>,
    stopped: bool,
}

impl Volume {
    /// Shows what differs between the snapshot `from` and the snapshot `to`, or what lives.
    pub fn snapshot_diff(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        each: &mut EachDifference<'_>,
    ) -> Result<(), Error> {
        let _used = self.snapshots.in_use.read();
        let _visit = self.store.visit();
        let old = self.meta.at(self.snapshot(from)?.number).ok_or(Error::NotFound)?;
        let snapshot = match to {
            Some(name) => Some(self.meta.at(self.snapshot(name)?.number).ok_or(Error::NotFound)?),
            None => {
                // So that the roots are those of all that was written.
                self.sync()?;
                None
            }
        };
        let new: &dyn Reading = match &snapshot {
            Some(view) => view,
            None => &self.meta,
        };
        let root = Pair { path: Vec::new(), old: Some(Ino::ROOT), new: Some(Ino::ROOT) };
        let todo = vec![root];
        let mut diff = Diff { volume: self, old: &old, new, each, todo, stopped: false };
        while let Some(pair) = diff.todo.pop()
            && !diff.stopped
        {
            diff.directory(&pair)?;
        }
        Ok(())
    }
}

impl Diff<'_, '_> {
    fn directory(&mut self, pair: &Pair) -> Result<(), Error> {
        if pair.path.is_empty() {
            self.both(&pair.path, Ino::ROOT, Ino::ROOT)?;
        }
        let (old, new) = (self.old, self.new);
        if let Some(dir) = pair.old {
            self.names(old, dir, &mut |diff, name, ino| {
                let path = below(&pair.path, name);
                match diff.find(new, pair.new, name)? {
                    Some(other) => diff.compare(path, ino, other),
                    None => diff.only(path, ino, Change::Removed),
                }
            })?;
        }
        if let Some(dir) = pair.new {
            self.names(new, dir, &mut |diff, name, ino| match diff.find(old, pair.old, name)? {
                Some(_) => Ok(()),
                None => diff.only(below(&pair.path, name), ino, Change::Added),
            })?;
        }
        Ok(())
    }

    /// Shows all names of a directory.
    fn names(
        &mut self,
        side: &dyn Reading,
        dir: Ino,
        each: &mut EachName<'_, Self>,
    ) -> Result<(), Error> {
        let mut from = Cookie(0);
        loop {
            let (mut batch, mut last) = (Vec::new(), None);
            scan_names(side, KeyRange::names(dir, from), &mut |cookie, entry| {
                batch.push((entry.name, entry.ino));
                last = Some(cookie);
                if batch.len() < NAMES_AT_ONCE {
                    return ControlFlow::Continue(());
                }
                ControlFlow::Break(())
            })?;
            for (name, ino) in &batch {
                if self.stopped {
                    return Ok(());
                }
                each(self, name, *ino)?;
            }
            match last {
                Some(last) if batch.len() == NAMES_AT_ONCE => from = Cookie(last.0 + 1),
                _ => return Ok(()),
            }
        }
    }

    fn find(
        &self,
        side: &dyn Reading,
        dir: Option<Ino>,
        name: &[u8],
    ) -> Result<Option<Ino>, Error> {
        let Some(dir) = dir else { return Ok(None) };
        match find_in(side, self.volume.superblock.uuid, dir, name) {
            Ok(found) => Ok(Some(found.ino)),
            Err(Error::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What is on one side only, with all below it.
    fn only(&mut self, path: Vec<u8>, ino: Ino, change: Change) -> Result<(), Error> {
        let is_new = change == Change::Added;
        let inode = inode_in(if is_new { self.new } else { self.old }, ino)?;
        // Removed while what lives was being looked at.
        let Some(inode) = inode else { return Ok(()) };
        let mode_type = inode.mode & MODE_TYPE;
        if mode_type == MODE_DIR {
            let (old, new) = if is_new { (None, Some(ino)) } else { (Some(ino), None) };
            self.todo.push(Pair { path: path.clone(), old, new });
        }
        let (size_before, size_after) = if is_new { (0, inode.size) } else { (inode.size, 0) };
        self.show(Difference { path, change, mode_type, size_before, size_after });
        Ok(())
    }

    fn show(&mut self, difference: Difference) {
        self.stopped |= (self.each)(difference).is_break();
    }

    fn compare(&mut self, path: Vec<u8>, old: Ino, new: Ino) -> Result<(), Error> {
        let types = [inode_in(self.old, old)?, inode_in(self.new, new)?];
        let types = types.map(|inode| inode.map(|inode| inode.mode & MODE_TYPE));
        if types[0] != types[1] {
            self.only(path.clone(), old, Change::Removed)?;
            return self.only(path, new, Change::Added);
        }
        self.both(&path, old, new)?;
        if types[0] == Some(MODE_DIR) {
            self.todo.push(Pair { path, old: Some(old), new: Some(new) });
        }
        Ok(())
    }

    /// Compares two inodes of one type.
    fn both(&mut self, path: &[u8], old: Ino, new: Ino) -> Result<(), Error> {
        let (Some(before), Some(after)) = (inode_in(self.old, old)?, inode_in(self.new, new)?)
        else {
            return Ok(());
        };
        let content_bytes = self.content(old, new)?;
        let told = |inode: &Inode| {
            let Inode { mode, uid, gid, rdev, flags, mtime, .. } = *inode;
            (mode, uid, gid, rdev, flags, mtime, inode.target.clone())
        };
        let attributes = told(&before) != told(&after);
        // Whatever changes one of those moves the time too.
        let may_differ = old != new || before.ctime != after.ctime;
        let xattrs = may_differ && xattrs_in(self.old, old)? != xattrs_in(self.new, new)?;
        if content_bytes != 0 || attributes || xattrs || before.size != after.size {
            self.show(Difference {
                path: path.to_vec(),
                change: Change::Changed { content_bytes, attributes, xattrs },
                mode_type: after.mode & MODE_TYPE,
                size_before: before.size,
                size_after: after.size,
            });
        }
        Ok(())
    }

    /// Bytes in the ranges in which two contents may differ.
    fn content(&self, old: Ino, new: Ino) -> Result<u64, Error> {
        let volume = self.volume;
        let root = |side: &dyn Reading, ino| match side.get(&Key::Content(ino))? {
            Some(bytes) => Ok::<Root, Error>(content_root(&Content::decode(&bytes)?)),
            None => Ok(volume.pyramid.empty()),
        };
        let (old, new) = (root(self.old, old)?, root(self.new, new)?);
        if old.address == new.address && old.size == new.size {
            return Ok(0);
        }
        let mut bytes = 0;
        let compared = volume.pyramid.diff(&volume.store, &old, &new, &mut |range| {
            bytes += range.end - range.start;
        });
        compared.map_err(Error::from_content)?;
        Ok(bytes)
    }
}

fn below(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

fn inode_in(side: &dyn Reading, ino: Ino) -> Result<Option<Inode>, Error> {
    let bytes = side.get(&Key::Inode(ino))?;
    Ok(bytes.map(|bytes| Inode::decode(&bytes)).transpose()?)
}

fn xattrs_in(side: &dyn Reading, ino: Ino) -> Result<BTreeMap<Vec<u8>, Option<Vec<u8>>>, Error> {
    let value = |name: Vec<u8>| {
        let value = side.get(&Key::Xattr { ino, name: &name })?;
        Ok((name, value))
    };
    list_in(side, ino)?.into_iter().map(value).collect()
}
