//! Snapshots to be browsed: `.snapshots` at the root, with a directory for each.
//!
//! Owns the inode numbers of what is seen there, and each operation that reads it. A number has
//! bit 63 set, then 22 bits for the snapshot and 41 for the number that the inode has where it
//! lives; 0 in all of these is `.snapshots` itself.
//!
//! A volume may also show one snapshot alone ([`Alone`]); then the numbers are those of what
//! lives.
//!
//! Invariants: (1) nothing here changes anything: whatever would comes to [`Volume::inode`], which
//! refuses these numbers; (2) no references are counted: what a snapshot sees stays while it is
//! there, and answers [`Error::Stale`] afterwards.

use std::sync::OnceLock;

use super::super::attrs::attr_with;
use super::super::io::regular;
use super::super::names::find_in;
use super::super::xattrs::list_in;
use super::super::{
    Attr, DirItem, Error, MODE_DIR, MODE_SYMLINK, MODE_TYPE, OpenFlags, Seek, Volume, content_root,
};
use super::NUMBER_MAX;
use crate::meta::{Content, Cookie, Ino, Inode, Key, KeyRange, NameEntry, Reading, SnapshotView};
use crate::pyramid::Root;

/// The directory that holds all snapshots, in the root directory.
pub const SNAPSHOTS_NAME: &[u8] = b".snapshots";

/// Its inode number.
pub const SNAPSHOTS: Ino = Ino(1 << 63);

/// Bits of the numbers that inodes have where they live.
const INO_BITS: u32 = 41;

/// Where `readdir` of `.snapshots` goes on behind the snapshot number 0.
const OFFSET_FIRST: u64 = Cookie::COLLISIONS_MAX;

/// The snapshot that a volume shows in place of what lives, if it does.
pub(in super::super) type Alone = OnceLock<u64>;

/// What a snapshot's inode number says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Old {
    snapshot: u64,
    ino: Ino,
}

/// Whether a name in the root belongs to the snapshots.
pub(in super::super) fn is_reserved(dir: Ino, name: &[u8]) -> bool {
    dir == Ino::ROOT && name == SNAPSHOTS_NAME
}

fn outer(old: Old) -> Result<Ino, Error> {
    if old.ino.0 >> INO_BITS != 0 {
        return Err(Error::TooLarge);
    }
    Ok(Ino(SNAPSHOTS.0 | old.snapshot << INO_BITS | old.ino.0))
}

/// The numbers that kernels know, of the inodes of one snapshot.
struct Seen<'a> {
    volume: &'a Volume,
    view: SnapshotView<'a>,
    old: Old,
}

impl Seen<'_> {
    fn inode(&self, ino: Ino) -> Result<Inode, Error> {
        let bytes = self.view.get(&Key::Inode(ino))?.ok_or(Error::Stale)?;
        Ok(Inode::decode(&bytes)?)
    }

    fn directory(&self) -> Result<Inode, Error> {
        let inode = self.inode(self.old.ino)?;
        if inode.mode & MODE_TYPE == MODE_DIR { Ok(inode) } else { Err(Error::NotADirectory) }
    }

    fn outer(&self, ino: Ino) -> Result<Ino, Error> {
        match self.volume.alone.get() {
            Some(_) => Ok(ino),
            None => outer(Old { ino, ..self.old }),
        }
    }

    /// The directory above, of a directory.
    fn above(&self, inode: &Inode) -> Result<Ino, Error> {
        match self.volume.alone.get() {
            None if self.old.ino == Ino::ROOT => Ok(SNAPSHOTS),
            _ => self.outer(inode.parent),
        }
    }

    fn root_of(&self, ino: Ino) -> Result<Root, Error> {
        match self.view.get(&Key::Content(ino))? {
            Some(bytes) => Ok(content_root(&Content::decode(&bytes)?)),
            None => Ok(self.volume.pyramid.empty()),
        }
    }

    fn attr(&self, ino: Ino) -> Result<Attr, Error> {
        let inode = self.inode(ino)?;
        let filled = if inode.size == 0 { 0 } else { self.root_of(ino)?.filled };
        Ok(attr_with(self.outer(ino)?, &inode, filled.min(inode.size)))
    }

    fn lookup(&self, name: &[u8]) -> Result<Attr, Error> {
        match name {
            b"." => self.attr(self.old.ino),
            b".." => match self.above(&self.directory()?)? {
                SNAPSHOTS => self.volume.attr_of_snapshots(),
                _ => self.attr(self.directory()?.parent),
            },
            _ => {
                self.directory()?;
                let uuid = self.volume.superblock.uuid;
                self.attr(find_in(&self.view, uuid, self.old.ino, name)?.ino)
            }
        }
    }

    fn readdir(&self, from: u64, each: &mut dyn FnMut(DirItem) -> bool) -> Result<(), Error> {
        let inode = self.directory()?;
        let dots = [self.outer(self.old.ino)?, self.above(&inode)?];
        if !dot_items(dots, from, each) {
            return Ok(());
        }
        let start = Cookie(from.saturating_add(1).max(Cookie::COLLISIONS_MAX));
        let mut failure = None;
        self.view.scan(KeyRange::names(self.old.ino, start), &mut |key, value| {
            let item = self.item(key, value);
            match item.map(&mut *each) {
                Ok(true) => std::ops::ControlFlow::Continue(()),
                Ok(false) => std::ops::ControlFlow::Break(()),
                Err(error) => {
                    failure = Some(error);
                    std::ops::ControlFlow::Break(())
                }
            }
        })?;
        failure.map_or(Ok(()), Err)
    }

    fn item(&self, key: &[u8], value: &[u8]) -> Result<DirItem, Error> {
        let Key::Name { cookie, .. } = Key::decode(key)? else { return Err(Error::Stale) };
        let entry = NameEntry::decode(value)?;
        Ok(DirItem {
            ino: self.outer(entry.ino)?,
            mode_type: u32::from(entry.kind) << 12,
            next: cookie.0,
            name: entry.name,
        })
    }
}

/// Shows `.` and `..`, as far as they lie behind `from`; answers whether there was room.
fn dot_items(dots: [Ino; 2], from: u64, each: &mut dyn FnMut(DirItem) -> bool) -> bool {
    let names = [(1, b".".to_vec()), (2, b"..".to_vec())];
    names.into_iter().zip(dots).all(|((next, name), ino)| {
        next <= from || each(DirItem { ino, mode_type: MODE_DIR, next, name })
    })
}

/// Operations on what snapshots see. Each is `None` for an inode that lives.
impl Volume {
    /// Shows one snapshot in place of what lives, from now on; nothing can be changed then.
    pub fn show_snapshot(&self, name: &[u8]) -> Result<(), Error> {
        let number = self.snapshot(name)?.number;
        if *self.alone.get_or_init(|| number) == number { Ok(()) } else { Err(Error::Exists) }
    }

    /// Which snapshot an inode number is of.
    pub(in super::super) fn old(&self, ino: Ino) -> Option<Old> {
        if let Some(&snapshot) = self.alone.get() {
            return Some(Old { snapshot, ino });
        }
        if ino.0 & SNAPSHOTS.0 == 0 || ino == SNAPSHOTS {
            return None;
        }
        let snapshot = ino.0 >> INO_BITS & NUMBER_MAX;
        Some(Old { snapshot, ino: Ino(ino.0 & ((1 << INO_BITS) - 1)) })
    }

    /// Whether an inode number is none of what lives.
    pub(in super::super) fn is_old(&self, ino: Ino) -> bool {
        ino == SNAPSHOTS || self.old(ino).is_some()
    }

    fn seen(&self, old: Old) -> Result<Seen<'_>, Error> {
        let view = self.meta.at(old.snapshot).ok_or(Error::Stale)?;
        Ok(Seen { volume: self, view, old })
    }

    /// Attributes of `.snapshots`: it belongs to whom the root belongs to, and changes with the
    /// newest snapshot.
    fn attr_of_snapshots(&self) -> Result<Attr, Error> {
        let root = self.inode(Ino::ROOT)?;
        let newest = self.snapshots().pop().map_or(root.btime, |newest| newest.time);
        let inode = Inode {
            mode: MODE_DIR | 0o555,
            uid: root.uid,
            gid: root.gid,
            nlink: u32::try_from(self.snapshot_count()).unwrap_or(u32::MAX).saturating_add(2),
            atime: newest,
            mtime: newest,
            ctime: newest,
            btime: root.btime,
            ..Inode::default()
        };
        Ok(attr_with(SNAPSHOTS, &inode, 0))
    }

    pub(in super::super) fn old_lookup(
        &self,
        dir: Ino,
        name: &[u8],
    ) -> Option<Result<Attr, Error>> {
        if let Some(old) = self.old(dir) {
            return Some(self.seen(old).and_then(|seen| seen.lookup(name)));
        }
        if is_reserved(dir, name) {
            return Some(self.attr_of_snapshots());
        }
        (dir == SNAPSHOTS).then(|| match name {
            b"." => self.attr_of_snapshots(),
            b".." => self.inode(Ino::ROOT).and_then(|root| self.attr_of(Ino::ROOT, &root)),
            _ => {
                let snapshot = self.snapshot(name)?.number;
                let seen = self.seen(Old { snapshot, ino: Ino::ROOT })?;
                seen.attr(Ino::ROOT)
            }
        })
    }

    pub(in super::super) fn old_readdir(
        &self,
        dir: Ino,
        from: u64,
        each: &mut dyn FnMut(DirItem) -> bool,
    ) -> Option<Result<(), Error>> {
        if let Some(old) = self.old(dir) {
            return Some(self.seen(old).and_then(|seen| seen.readdir(from, each)));
        }
        (dir == SNAPSHOTS).then(|| {
            if !dot_items([SNAPSHOTS, Ino::ROOT], from, each) {
                return Ok(());
            }
            for info in self.snapshots() {
                let next = OFFSET_FIRST + info.number;
                let ino = outer(Old { snapshot: info.number, ino: Ino::ROOT })?;
                let item = DirItem { ino, mode_type: MODE_DIR, next, name: info.name };
                if from < next && !each(item) {
                    return Ok(());
                }
            }
            Ok(())
        })
    }

    pub(in super::super) fn old_getattr(&self, ino: Ino) -> Option<Result<Attr, Error>> {
        match self.old(ino) {
            Some(old) => Some(self.seen(old).and_then(|seen| seen.attr(old.ino))),
            None => (ino == SNAPSHOTS).then(|| self.attr_of_snapshots()),
        }
    }

    pub(in super::super) fn old_readlink(&self, ino: Ino) -> Option<Result<Vec<u8>, Error>> {
        let old = self.old(ino)?;
        Some(self.seen(old).and_then(|seen| {
            let inode = seen.inode(old.ino)?;
            match inode.mode & MODE_TYPE {
                MODE_SYMLINK => Ok(inode.target),
                _ => Err(Error::Invalid { what: "not a symbolic link" }),
            }
        }))
    }

    pub(in super::super) fn old_open(
        &self,
        ino: Ino,
        flags: OpenFlags,
    ) -> Option<Result<(), Error>> {
        let old = self.old(ino)?;
        Some(self.seen(old).and_then(|seen| {
            regular(&seen.inode(old.ino)?)?;
            if flags.write || flags.truncate { Err(Error::ReadOnly) } else { Ok(()) }
        }))
    }

    /// A regular file's inode and root.
    pub(in super::super) fn old_content(&self, ino: Ino) -> Option<Result<(Inode, Root), Error>> {
        let old = self.old(ino)?;
        Some(self.seen(old).and_then(|seen| {
            let inode = seen.inode(old.ino)?;
            regular(&inode)?;
            let root = seen.root_of(old.ino)?;
            Ok((inode, root))
        }))
    }

    pub(in super::super) fn old_read(
        &self,
        ino: Ino,
        offset: u64,
        len: usize,
    ) -> Option<Result<Vec<u8>, Error>> {
        Some(self.old_content(ino)?.and_then(|(inode, root)| {
            let end = inode.size.min(offset.saturating_add(len as u64));
            if end <= offset {
                return Ok(Vec::new());
            }
            let mut bytes = vec![0; (end - offset) as usize];
            let stored = root.size.min(end);
            if offset < stored {
                let place = &mut bytes[..(stored - offset) as usize];
                let read = self.pyramid.read(&self.store, &root, offset, place);
                read.map_err(Error::from_content)?;
            }
            Ok(bytes)
        }))
    }

    pub(in super::super) fn old_seek(
        &self,
        ino: Ino,
        offset: u64,
        wanted: Seek,
    ) -> Option<Result<u64, Error>> {
        Some(self.old_content(ino)?.and_then(|(_, root)| {
            let found = match wanted {
                Seek::Data => self.pyramid.next_data(&self.store, &root, offset),
                Seek::Hole => self.pyramid.next_hole(&self.store, &root, offset),
            };
            found.map_err(Error::from_content)?.ok_or(Error::NoData)
        }))
    }

    pub(in super::super) fn old_xattr(
        &self,
        ino: Ino,
        name: &[u8],
    ) -> Option<Result<Vec<u8>, Error>> {
        if ino == SNAPSHOTS {
            return Some(Err(Error::NoAttribute));
        }
        let old = self.old(ino)?;
        Some(self.seen(old).and_then(|seen| {
            let value = seen.view.get(&Key::Xattr { ino: old.ino, name })?;
            value.ok_or(Error::NoAttribute)
        }))
    }

    pub(in super::super) fn old_xattrs(&self, ino: Ino) -> Option<Result<Vec<Vec<u8>>, Error>> {
        if ino == SNAPSHOTS {
            return Some(Ok(Vec::new()));
        }
        let old = self.old(ino)?;
        Some(self.seen(old).and_then(|seen| {
            seen.inode(old.ino)?;
            list_in(&seen.view, old.ino)
        }))
    }

    pub(in super::super) fn old_flags(&self, ino: Ino) -> Option<Result<u32, Error>> {
        if ino == SNAPSHOTS {
            return Some(Ok(0));
        }
        let old = self.old(ino)?;
        Some(self.seen(old).and_then(|seen| Ok(seen.inode(old.ino)?.flags)))
    }
}
