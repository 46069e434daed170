//! A plain tree in memory that says what a volume should hold.
//!
//! Owns [`Model`] and its [`Snapshot`]s. It knows POSIX and nothing of the volume's code: inode
//! numbers and times are handed in.
//!
//! Absent on purpose: atime and btime, permissions.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::sys::Timestamp;

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Body {
    Dir(BTreeMap<String, u64>),
    File(Arc<Vec<u8>>),
    Link(String),
    /// A device node, fifo or socket.
    Node,
}

/// An inode, with all that a crash must bring back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) body: Body,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) nlink: u32,
    pub(super) mtime: Timestamp,
    pub(super) ctime: Timestamp,
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
}

/// All inodes that a name leads to, by number.
pub(super) type Snapshot = BTreeMap<u64, Entry>;

/// The tree, and the files that have no name any more but are still in use.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) live: Snapshot,
    pub(super) ghosts: Snapshot,
}

impl Entry {
    fn names(&self) -> Option<&BTreeMap<String, u64>> {
        if let Body::Dir(names) = &self.body { Some(names) } else { None }
    }

    pub(super) fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir(_))
    }

    pub(super) fn bytes(&self) -> Option<&Arc<Vec<u8>>> {
        if let Body::File(bytes) = &self.body { Some(bytes) } else { None }
    }
}

impl Model {
    pub(super) fn of(live: Snapshot) -> Model {
        Model { live, ghosts: Snapshot::new() }
    }

    pub(super) fn dirs(&self) -> Vec<u64> {
        self.which(Entry::is_dir)
    }

    pub(super) fn files(&self) -> Vec<u64> {
        self.which(|entry| entry.bytes().is_some())
    }

    pub(super) fn which(&self, what: impl Fn(&Entry) -> bool) -> Vec<u64> {
        self.live.iter().filter(|(_, entry)| what(entry)).map(|(&ino, _)| ino).collect()
    }

    pub(super) fn find(&self, dir: u64, name: &str) -> Option<u64> {
        self.live.get(&dir)?.names()?.get(name).copied()
    }

    /// The entry of an inode, with a name or without.
    pub(super) fn get(&mut self, ino: u64) -> &mut Entry {
        match self.live.get_mut(&ino) {
            Some(entry) => entry,
            None => self.ghosts.get_mut(&ino).unwrap(),
        }
    }

    fn touch(&mut self, dir: u64, now: Timestamp) -> &mut BTreeMap<String, u64> {
        let entry = self.live.get_mut(&dir).unwrap();
        (entry.mtime, entry.ctime) = (now, now);
        let Body::Dir(names) = &mut entry.body else { panic!("{dir} is no directory") };
        names
    }

    pub(super) fn add(&mut self, (dir, name): (u64, &str), ino: u64, entry: Entry) {
        let now = entry.mtime;
        let is_dir = entry.is_dir();
        assert!(self.touch(dir, now).insert(name.to_owned(), ino).is_none());
        self.get(dir).nlink += u32::from(is_dir);
        assert!(self.live.insert(ino, entry).is_none(), "inode {ino} is used twice");
    }

    pub(super) fn link(&mut self, ino: u64, (dir, name): (u64, &str), now: Timestamp) {
        self.touch(dir, now).insert(name.to_owned(), ino);
        let entry = self.get(ino);
        entry.nlink += 1;
        entry.ctime = now;
    }

    /// Takes a name away; answers whether that was the inode's last one.
    pub(super) fn remove(&mut self, dir: u64, name: &str, now: Timestamp) -> bool {
        let ino = self.touch(dir, now).remove(name).unwrap();
        if self.get(ino).is_dir() {
            self.get(dir).nlink -= 1;
        }
        self.drop_name(ino, now)
    }

    fn drop_name(&mut self, ino: u64, now: Timestamp) -> bool {
        let entry = self.get(ino);
        entry.ctime = now;
        entry.nlink = if entry.is_dir() { 0 } else { entry.nlink - 1 };
        if entry.nlink != 0 {
            return false;
        }
        let entry = self.live.remove(&ino).unwrap();
        self.ghosts.insert(ino, entry);
        true
    }

    pub(super) fn is_empty_dir(&self, ino: u64) -> bool {
        self.live[&ino].names().is_some_and(BTreeMap::is_empty)
    }

    /// Whether `ino` is `dir` or stands below it.
    fn is_below(&self, ino: u64, dir: u64) -> bool {
        let names = self.live.get(&dir).and_then(Entry::names);
        ino == dir || names.is_some_and(|names| names.values().any(|&sub| self.is_below(ino, sub)))
    }

    /// Whether POSIX allows the move.
    pub(super) fn can_rename(&self, from: (u64, &str), to: (u64, &str)) -> bool {
        let Some(moved) = self.find(from.0, from.1) else { return false };
        let is_dir = self.live[&moved].is_dir();
        if is_dir && self.is_below(to.0, moved) {
            return false;
        }
        match self.find(to.0, to.1) {
            None => true,
            Some(found) if found == moved => true,
            Some(found) => {
                self.live[&found].is_dir() == is_dir && (!is_dir || self.is_empty_dir(found))
            }
        }
    }

    /// Moves a name; answers the inode that lost its last name by it.
    pub(super) fn rename(
        &mut self,
        from: (u64, &str),
        to: (u64, &str),
        now: Timestamp,
    ) -> Option<u64> {
        let moved = self.find(from.0, from.1).unwrap();
        let found = self.find(to.0, to.1);
        if found == Some(moved) {
            return None;
        }
        self.touch(from.0, now).remove(from.1);
        self.touch(to.0, now).insert(to.1.to_owned(), moved);
        self.get(moved).ctime = now;
        if self.get(moved).is_dir() {
            self.get(from.0).nlink -= 1;
            self.get(to.0).nlink += u32::from(found.is_none());
        }
        found.filter(|&found| self.drop_name(found, now))
    }

    /// Whether POSIX allows both names to change places.
    pub(super) fn can_exchange(&self, one: (u64, &str), other: (u64, &str)) -> bool {
        let found = (self.find(one.0, one.1), self.find(other.0, other.1));
        let (Some(first), Some(second)) = found else { return false };
        first == second || !self.is_below(other.0, first) && !self.is_below(one.0, second)
    }

    /// Lets two names change places.
    pub(super) fn exchange(&mut self, one: (u64, &str), other: (u64, &str), now: Timestamp) {
        let first = self.find(one.0, one.1).unwrap();
        let second = self.find(other.0, other.1).unwrap();
        if first == second {
            return;
        }
        self.touch(one.0, now).insert(one.1.to_owned(), second);
        self.touch(other.0, now).insert(other.1.to_owned(), first);
        for (moved, from, to) in [(first, one.0, other.0), (second, other.0, one.0)] {
            self.get(moved).ctime = now;
            if self.get(moved).is_dir() {
                self.get(from).nlink -= 1;
                self.get(to).nlink += 1;
            }
        }
    }

    pub(super) fn write(&mut self, ino: u64, offset: usize, new: &[u8], now: Timestamp) {
        self.change(ino, now, |bytes| {
            let end = offset + new.len();
            if bytes.len() < end && !new.is_empty() {
                bytes.resize(end, 0);
            }
            if !new.is_empty() {
                bytes[offset..end].copy_from_slice(new);
            }
        });
    }

    pub(super) fn truncate(&mut self, ino: u64, size: usize, now: Timestamp) {
        self.change(ino, now, |bytes| bytes.resize(size, 0));
    }

    pub(super) fn change(&mut self, ino: u64, now: Timestamp, how: impl FnOnce(&mut Vec<u8>)) {
        let entry = self.get(ino);
        (entry.mtime, entry.ctime) = (now, now);
        let Body::File(bytes) = &mut entry.body else { panic!("{ino} is no file") };
        how(Arc::make_mut(bytes));
    }
}
