//! Repair of the metadata: its entries are made to agree with one another.
//!
//! Owns [`repair`]. What all others hang on is decided first: which inodes there are, then which
//! name of a directory counts, then what is reached from the root. Whatever is left without a name
//! gets one in `lost+found`; counts and counters follow.
//!
//! Invariants: (1) an inode that can be read is never removed; (2) each entry that is removed or
//! changed gives one line; (3) entries that agree are not touched.
//!
//! Memory: about 120 bytes for each inode, each name and each old version.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;

use crate::meta::{
    CodecError, Content, Cookie, Counters, Ino, Inode, Key, KeyRange, NameEntry, Snapshot, version,
};
use crate::volume::{Error, MODE_DIR, MODE_FILE, MODE_TYPE, Volume};

/// The directory for what has lost its names.
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// Entries that are changed within one commit.
const BATCH: usize = 10_000;

/// A name, and where it stands.
#[derive(Debug, Clone)]
struct Name {
    dir: Ino,
    cookie: Cookie,
    entry: NameEntry,
}

/// The metadata of a volume, and what is to be changed in it.
struct Entries<'a> {
    volume: &'a Volume,
    inodes: BTreeMap<Ino, Inode>,
    orphans: BTreeSet<Ino>,
    names: Vec<Name>,
    /// Places of names, with the names that stand there.
    places: HashMap<(Ino, Cookie), Vec<u8>>,
    contents: BTreeMap<Ino, Content>,
    xattrs: Vec<(Ino, Vec<u8>)>,
    counters: Counters,
    /// The highest epoch that an entry names.
    epoch: u64,
    /// Finders that the old versions need and that were not met yet.
    finders: BTreeSet<Vec<u8>>,
    changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    lines: Vec<String>,
}

/// Makes the entries of the volume agree; returns a line for each change.
pub(super) fn repair(volume: &Volume) -> Result<Vec<String>, Error> {
    let mut entries = Entries::read(volume)?;
    entries.root();
    entries.names();
    entries.one_name_for_each_directory();
    entries.reach();
    entries.orphans();
    entries.attach();
    entries.counts();
    entries.belongings();
    entries.write()
}

impl<'a> Entries<'a> {
    fn read(volume: &'a Volume) -> Result<Entries<'a>, Error> {
        let mut entries = Entries {
            volume,
            inodes: BTreeMap::new(),
            orphans: BTreeSet::new(),
            names: Vec::new(),
            places: HashMap::new(),
            contents: BTreeMap::new(),
            xattrs: Vec::new(),
            counters: Counters::default(),
            epoch: 0,
            finders: BTreeSet::new(),
            changes: Vec::new(),
            lines: Vec::new(),
        };
        volume.meta().scan(KeyRange::all(), &mut |key, value| {
            if let Err(error) = entries.take(key, value) {
                let line = format!("removed the entry {key:02x?}, which cannot be read: {error}");
                entries.lines.push(line);
                entries.changes.push((key.to_vec(), None));
            }
            ControlFlow::Continue(())
        })?;
        Ok(entries)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), CodecError> {
        match Key::decode(key)? {
            Key::Counters => self.counters = Counters::decode(value)?,
            Key::Inode(ino) => {
                let inode = Inode::decode(value)?;
                self.epoch = self.epoch.max(inode.epoch);
                self.inodes.insert(ino, inode);
            }
            Key::Content(ino) => {
                let content = Content::decode(value)?;
                self.epoch = self.epoch.max(content.epoch);
                self.contents.insert(ino, content);
            }
            Key::Name { dir, cookie } => {
                let entry = NameEntry::decode(value)?;
                self.epoch = self.epoch.max(entry.epoch);
                self.places.insert((dir, cookie), entry.name.clone());
                self.names.push(Name { dir, cookie, entry });
            }
            Key::Xattr { ino, name } => self.xattrs.push((ino, name.to_vec())),
            Key::Orphan(ino) => drop(self.orphans.insert(ino)),
            // Old versions are as they were: nothing in them has to agree with what lives.
            Key::Version { live, end } => {
                version(value)?;
                self.epoch = self.epoch.max(end);
                self.finders.insert(Key::VersionEnd { end, live }.encode());
            }
            Key::Snapshot(number) => {
                Snapshot::decode(value)?;
                self.epoch = self.epoch.max(number.saturating_add(1));
            }
            // All versions come before all finders.
            Key::VersionEnd { .. } => {
                if !self.finders.remove(key) {
                    self.changes.push((key.to_vec(), None));
                    self.lines.push("removed what found an old version that is gone".to_owned());
                }
            }
            Key::BadChunk(_) | Key::Check | Key::Collection | Key::Image(_) => {}
        }
        Ok(())
    }

    fn remove(&mut self, key: &Key<'_>, line: String) {
        self.changes.push((key.encode(), None));
        self.lines.push(line);
    }

    fn is_dir(&self, ino: Ino) -> bool {
        self.inodes.get(&ino).is_some_and(|inode| inode.mode & MODE_TYPE == MODE_DIR)
    }

    /// A root directory is there.
    fn root(&mut self) {
        if !self.is_dir(Ino::ROOT) {
            self.lines.push("made the root directory anew".to_owned());
            let inode = Inode { mode: MODE_DIR | 0o755, nlink: 2, ..Inode::default() };
            self.put_inode(Ino::ROOT, inode);
        }
    }

    fn put_inode(&mut self, ino: Ino, inode: Inode) {
        self.changes.push((Key::Inode(ino).encode(), Some(inode.encode())));
        self.inodes.insert(ino, inode);
    }

    /// Every name stands in a directory, where its hash says, and leads to an inode of its type.
    fn names(&mut self) {
        for name in std::mem::take(&mut self.names) {
            let Name { dir, cookie, entry } = &name;
            let key = Key::Name { dir: *dir, cookie: *cookie };
            let text = String::from_utf8_lossy(&entry.name).into_owned();
            let target = self.inodes.get(&entry.ino).map(|inode| (inode.mode >> 12) as u8);
            let why = match target {
                _ if !self.is_dir(*dir) => "which stood in no directory",
                None => "which led to no inode",
                Some(_) if entry.ino == Ino::ROOT => "which led to the root directory",
                Some(_) => "",
            };
            if !why.is_empty() {
                self.remove(
                    &key,
                    format!("removed the name {text:?} in directory {}, {why}", dir.0),
                );
                self.places.remove(&(*dir, *cookie));
                continue;
            }
            let kind = target.unwrap_or(entry.kind);
            let first = Cookie::hash(self.volume.superblock().uuid, &entry.name).first();
            if kind == entry.kind && first == cookie.first() {
                self.names.push(name);
                continue;
            }
            let line = format!("entered the name {text:?} in directory {} anew", dir.0);
            self.remove(&key, line);
            self.places.remove(&(*dir, *cookie));
            self.add_name(*dir, &entry.name, entry.ino, kind);
        }
    }

    /// Enters a name; one that is there already, or finds no place, is left out.
    fn add_name(&mut self, dir: Ino, name: &[u8], ino: Ino, kind: u8) -> bool {
        let first = Cookie::hash(self.volume.superblock().uuid, name).first();
        let mut free = None;
        for cookie in (0..Cookie::COLLISIONS_MAX).map(|step| Cookie(first.0 + step)) {
            match self.places.get(&(dir, cookie)) {
                Some(other) if other == name => return false,
                Some(_) => {}
                None => free = free.or(Some(cookie)),
            }
        }
        let Some(cookie) = free else { return false };
        let entry = NameEntry { ino, kind, name: name.to_vec(), epoch: 0 };
        self.changes.push((Key::Name { dir, cookie }.encode(), Some(entry.encode())));
        self.places.insert((dir, cookie), entry.name.clone());
        self.names.push(Name { dir, cookie, entry });
        true
    }

    /// Of several names of a directory the one in its parent counts, or else the first.
    fn one_name_for_each_directory(&mut self) {
        let mut kept: HashMap<Ino, usize> = HashMap::new();
        let mut dropped = BTreeSet::new();
        for (at, name) in self.names.iter().enumerate() {
            let ino = name.entry.ino;
            if !self.is_dir(ino) {
                continue;
            }
            let is_parent = self.inodes.get(&ino).is_some_and(|inode| inode.parent == name.dir);
            match kept.get(&ino).copied() {
                None => drop(kept.insert(ino, at)),
                Some(before) if is_parent && self.names[before].dir != name.dir => {
                    dropped.insert(before);
                    kept.insert(ino, at);
                }
                Some(_) => drop(dropped.insert(at)),
            }
        }
        self.drop_names(&dropped, "a second name of a directory");
    }

    fn drop_names(&mut self, dropped: &BTreeSet<usize>, why: &str) {
        for (at, name) in std::mem::take(&mut self.names).into_iter().enumerate() {
            if !dropped.contains(&at) {
                self.names.push(name);
                continue;
            }
            let text = String::from_utf8_lossy(&name.entry.name).into_owned();
            let key = Key::Name { dir: name.dir, cookie: name.cookie };
            let line = format!("removed the name {text:?} in directory {}: {why}", name.dir.0);
            self.remove(&key, line);
            self.places.remove(&(name.dir, name.cookie));
        }
    }

    /// From every directory with a name a way leads to the root, or to one without a name: rings
    /// are cut open.
    fn reach(&mut self) {
        let above: HashMap<Ino, (Ino, usize)> = self
            .names
            .iter()
            .enumerate()
            .filter(|(_, name)| self.is_dir(name.entry.ino))
            .map(|(at, name)| (name.entry.ino, (name.dir, at)))
            .collect();
        let mut done: HashSet<Ino> = HashSet::from([Ino::ROOT]);
        let mut dropped = BTreeSet::new();
        for &start in above.keys() {
            let (mut path, mut ino) = (HashSet::new(), start);
            while !done.contains(&ino) {
                let Some((dir, name)) = above.get(&ino) else { break };
                if !path.insert(ino) {
                    dropped.insert(*name);
                    break;
                }
                ino = *dir;
            }
            done.extend(path);
        }
        self.drop_names(&dropped, "the directory was in itself");
    }

    /// Orphans are inodes without names.
    fn orphans(&mut self) {
        let named: HashSet<Ino> = self.names.iter().map(|name| name.entry.ino).collect();
        let holders: HashSet<Ino> = self.names.iter().map(|name| name.dir).collect();
        for ino in std::mem::take(&mut self.orphans) {
            if !self.inodes.contains_key(&ino) {
                self.remove(&Key::Orphan(ino), format!("removed the orphan {}: no inode", ino.0));
            } else if ino == Ino::ROOT || named.contains(&ino) || holders.contains(&ino) {
                let line = format!("inode {} is no orphan any more: it is in use", ino.0);
                self.remove(&Key::Orphan(ino), line);
            } else {
                self.orphans.insert(ino);
            }
        }
    }

    /// Whatever has no name gets one in `lost+found`.
    fn attach(&mut self) {
        let named: HashSet<Ino> = self.names.iter().map(|name| name.entry.ino).collect();
        let nameless: Vec<(Ino, u32)> = self
            .inodes
            .iter()
            .filter(|(ino, _)| **ino != Ino::ROOT)
            .filter(|(ino, _)| !named.contains(ino) && !self.orphans.contains(ino))
            .map(|(ino, inode)| (*ino, inode.mode))
            .collect();
        if nameless.is_empty() {
            return;
        }
        let dir = self.lost_and_found();
        for (ino, mode) in nameless {
            let name = format!("#{}", ino.0);
            if self.add_name(dir, name.as_bytes(), ino, (mode >> 12) as u8) {
                self.lines
                    .push(format!("inode {} had no name: it is lost+found/{name} now", ino.0));
            }
        }
    }

    fn lost_and_found(&mut self) -> Ino {
        let is_it = |name: &&Name| name.dir == Ino::ROOT && name.entry.name == LOST_AND_FOUND;
        if let Some(name) = self.names.iter().find(is_it)
            && self.is_dir(name.entry.ino)
        {
            return name.entry.ino;
        }
        let highest = self.inodes.keys().next_back().map_or(0, |ino| ino.0);
        let ino = Ino(self.counters.next_ino.max(highest + 1));
        let now = self.volume.now();
        let (mode, parent) = (MODE_DIR | 0o700, Ino::ROOT);
        let (atime, mtime, ctime, btime) = (now, now, now, now);
        let inode =
            Inode { mode, parent, nlink: 2, atime, mtime, ctime, btime, ..Inode::default() };
        self.put_inode(ino, inode);
        let mut name = LOST_AND_FOUND.to_vec();
        // Something else may have the name.
        while !self.add_name(Ino::ROOT, &name, ino, (MODE_DIR >> 12) as u8) {
            name.push(b'_');
        }
        ino
    }

    /// Link counts, parents of directories, and the volume's counters.
    fn counts(&mut self) {
        let mut names: HashMap<Ino, u32> = HashMap::new();
        let mut subdirs: HashMap<Ino, u32> = HashMap::new();
        let mut parents: HashMap<Ino, Ino> = HashMap::new();
        for name in &self.names {
            *names.entry(name.entry.ino).or_default() += 1;
            if self.is_dir(name.entry.ino) {
                *subdirs.entry(name.dir).or_default() += 1;
                parents.insert(name.entry.ino, name.dir);
            }
        }
        let mut changed = Vec::new();
        for (&ino, inode) in &self.inodes {
            let is_dir = inode.mode & MODE_TYPE == MODE_DIR;
            let nlink = match is_dir {
                _ if self.orphans.contains(&ino) => 0,
                true => 2 + subdirs.get(&ino).copied().unwrap_or(0),
                false => names.get(&ino).copied().unwrap_or(0),
            };
            let parent = match is_dir && ino != Ino::ROOT {
                true => parents.get(&ino).copied().unwrap_or(inode.parent),
                false => inode.parent,
            };
            let size = match inode.mode & MODE_TYPE == MODE_FILE {
                true => self.contents.get(&ino).map_or(0, |content| content.size),
                false => inode.size,
            };
            let mended = Inode { nlink, parent, size, ..inode.clone() };
            if mended != *inode {
                changed.push((ino, mended));
            }
        }
        for (ino, inode) in changed {
            let line = format!(
                "inode {} has {} links, {} bytes{}",
                ino.0,
                inode.nlink,
                inode.size,
                if self.is_dir(ino) {
                    format!(", parent {}", inode.parent.0)
                } else {
                    String::new()
                }
            );
            self.lines.push(line);
            self.put_inode(ino, inode);
        }
    }

    /// Contents and attributes belong to inodes.
    fn belongings(&mut self) {
        let is_file = |ino: &Ino| {
            self.inodes.get(ino).is_some_and(|inode| inode.mode & MODE_TYPE == MODE_FILE)
        };
        let (kept, homeless): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.contents).into_iter().partition(|(ino, _)| is_file(ino));
        self.contents = kept;
        for ino in homeless.keys() {
            let line = format!("removed the content of inode {}, which is no file", ino.0);
            self.remove(&Key::Content(*ino), line);
        }
        for (ino, name) in std::mem::take(&mut self.xattrs) {
            if !self.inodes.contains_key(&ino) {
                let text = String::from_utf8_lossy(&name).into_owned();
                let line = format!("removed attribute {text:?} of inode {}: no inode", ino.0);
                self.remove(&Key::Xattr { ino, name: &name }, line);
            }
        }
        for key in std::mem::take(&mut self.finders) {
            self.changes.push((key, Some(Vec::new())));
            self.lines.push("entered what finds an old version".to_owned());
        }
        let highest = self.inodes.keys().next_back().map_or(0, |ino| ino.0);
        let counters = Counters {
            epoch: self.counters.epoch.max(self.epoch),
            next_ino: self.counters.next_ino.max(highest + 1),
            files: self.inodes.len() as u64,
            logical_bytes: self.contents.values().map(|content| content.filled).sum(),
        };
        if counters != self.counters {
            self.lines.push(format!(
                "counted {} inodes and {} bytes anew",
                counters.files, counters.logical_bytes
            ));
            self.counters = counters;
            self.changes.push((Key::Counters.encode(), Some(counters.encode())));
        }
    }

    /// Makes the changes, in the order in which they were decided.
    fn write(self) -> Result<Vec<String>, Error> {
        self.volume.recount(&self.counters);
        for batch in self.changes.chunks(BATCH) {
            let group = self.volume.meta().enter();
            for (key, value) in batch {
                group.change_encoded(key, value.clone());
            }
            drop(group);
            self.volume.sync()?;
        }
        Ok(self.lines)
    }
}
