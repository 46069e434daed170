//! The names of a simulated disk: what they are, and what they would be after a power loss.
//!
//! Owns [`Names`]: all directories, each with its current names, its durable names and, for every
//! name that has changed since its directory was last synced, the values it has had since.
//!
//! The model:
//! - A directory is never moved or removed, so its path is its identity.
//! - A name is durable once its directory is synced; so is a directory's own name, in its parent.
//!   A file or directory below one whose own name is lost is lost with it.
//! - After a power loss a changed name has its durable value or any of the later ones, each name
//!   by itself, in no order. As the one limit, a file that was durable and has not been removed
//!   keeps at least one of its names: a rename is one step of the filesystem's journal. It may have
//!   both, and they are names of one file.
//! - For the same reason, syncing the directory that a durable file was moved out of also makes
//!   its new name durable; syncing the one it was moved into says nothing about the old name.
//! - A failed sync of a directory changes nothing: its names stay as unsynced as they were.
//!
//! Absent on purpose: content, and errors other than those of names.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::sys::path::{join, os_error, split};

use super::random::SplitMix;

/// The identity of a file, whatever its name.
pub(super) type FileId = u64;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    File(FileId),
    Dir,
}

impl Node {
    fn file(self) -> Option<FileId> {
        match self {
            Node::File(id) => Some(id),
            Node::Dir => None,
        }
    }
}

/// Names of a directory and what they stand for.
type Entries = BTreeMap<String, Node>;

#[derive(Debug, Clone, Default)]
struct Directory {
    current: Entries,
    durable: Entries,
    /// The values of each changed name since the last sync, oldest first; the last is current.
    pending: BTreeMap<String, Vec<Option<Node>>>,
}

impl Directory {
    fn set(&mut self, name: &str, node: Option<Node>) {
        match node {
            Some(node) => self.current.insert(name.to_owned(), node),
            None => self.current.remove(name),
        };
        self.pending.entry(name.to_owned()).or_default().push(node);
    }
}

/// Which of the unsynced names a power loss keeps.
pub(super) enum Choice<'a> {
    Durable,
    Current,
    Random(&'a mut SplitMix),
}

/// All directories of a disk, by path.
#[derive(Debug, Clone)]
pub(super) struct Names {
    directories: BTreeMap<String, Directory>,
}

impl Names {
    /// The names of an empty disk.
    pub(super) fn new() -> Names {
        Names { directories: BTreeMap::from([(String::new(), Directory::default())]) }
    }

    /// What `path` stands for now.
    pub(super) fn get(&self, path: &str) -> io::Result<Option<Node>> {
        if path.is_empty() {
            return Ok(Some(Node::Dir));
        }
        let (dir, name) = split(path)?;
        Ok(self.directory(dir)?.current.get(name).copied())
    }

    /// The names in the directory `path` now, sorted.
    pub(super) fn list(&self, path: &str) -> io::Result<impl Iterator<Item = (&String, &Node)>> {
        Ok(self.directory(path)?.current.iter())
    }

    /// Gives the free name `path` to a file.
    pub(super) fn add_file(&mut self, path: &str, id: FileId) -> io::Result<()> {
        self.add(path, Node::File(id))
    }

    /// Makes a directory at the free name `path`.
    pub(super) fn add_dir(&mut self, path: &str) -> io::Result<()> {
        self.add(path, Node::Dir)?;
        self.directories.insert(path.to_owned(), Directory::default());
        Ok(())
    }

    /// Moves a file to another name; returns the file that it has replaced there.
    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<Option<FileId>> {
        let (from_dir, from_name) = split(from)?;
        let (to_dir, to_name) = split(to)?;
        // Both directories are looked for before the names in them, as the system does.
        self.directory(from_dir)?;
        self.directory(to_dir)?;
        let moved = self.file(from)?;
        let replaced = match self.get(to)? {
            Some(Node::Dir) => return Err(os_error(libc::EISDIR)),
            Some(Node::File(id)) => Some(id),
            None => None,
        };
        // As the system does with two names of one file.
        if replaced == Some(moved) {
            return Ok(None);
        }
        self.directory_mut(to_dir)?.set(to_name, Some(Node::File(moved)));
        self.directory_mut(from_dir)?.set(from_name, None);
        Ok(replaced)
    }

    /// Takes a file's name away and returns the file.
    pub(super) fn remove(&mut self, path: &str) -> io::Result<FileId> {
        let id = self.file(path)?;
        let (dir, name) = split(path)?;
        self.directory_mut(dir)?.set(name, None);
        Ok(id)
    }

    /// The file at `path`.
    pub(super) fn file(&self, path: &str) -> io::Result<FileId> {
        split(path)?;
        match self.get(path)? {
            Some(Node::File(id)) => Ok(id),
            Some(Node::Dir) => Err(os_error(libc::EISDIR)),
            None => Err(os_error(libc::ENOENT)),
        }
    }

    /// Files that have a name now, with the number of their names.
    pub(super) fn current_files(&self) -> BTreeMap<FileId, u32> {
        let mut files = BTreeMap::new();
        for id in self.directories.values().flat_map(|dir| files_in(&dir.current)) {
            *files.entry(id).or_default() += 1;
        }
        files
    }

    /// Files that have a name now or may have one after a power loss.
    pub(super) fn possible_files(&self) -> BTreeSet<FileId> {
        let mut files = BTreeSet::new();
        for dir in self.directories.values() {
            files.extend(files_in(&dir.current));
            files.extend(files_in(&dir.durable));
            files.extend(
                dir.pending.values().flatten().filter_map(|node| node.and_then(Node::file)),
            );
        }
        files
    }

    /// Makes the names in the directory `path` durable.
    pub(super) fn sync(&mut self, path: &str) -> io::Result<()> {
        let changed: Vec<String> = self.directory(path)?.pending.keys().cloned().collect();
        let mut displaced = Vec::new();
        for name in &changed {
            displaced.extend(self.settle(path, name));
        }
        // A file that was moved out takes its new name along.
        while let Some(id) = displaced.pop() {
            if self.durable_files().contains(&id) {
                continue;
            }
            let Some(mut place) = self.find(id) else { continue };
            loop {
                let (dir, name) = split(&place)?;
                displaced.extend(self.settle(dir, name));
                if dir.is_empty() {
                    break;
                }
                place = dir.to_owned();
            }
        }
        Ok(())
    }

    /// The names after a power loss; all of them durable.
    pub(super) fn crash(&self, mut choice: Choice<'_>) -> Names {
        let mut image: BTreeMap<String, Entries> = BTreeMap::new();
        for (path, dir) in &self.directories {
            let mut entries = dir.durable.clone();
            for (name, history) in &dir.pending {
                let picked = match &mut choice {
                    Choice::Durable => continue,
                    Choice::Current => history.len(),
                    Choice::Random(random) => random.below(history.len() as u64 + 1) as usize,
                };
                let Some(&node) = picked.checked_sub(1).and_then(|at| history.get(at)) else {
                    continue;
                };
                match node {
                    Some(node) => entries.insert(name.clone(), node),
                    None => entries.remove(name),
                };
            }
            image.insert(path.clone(), entries);
        }
        if let Choice::Random(_) = choice {
            self.restore_lost(&mut image);
        }
        let reachable = reachable(&image);
        let directories = image
            .into_iter()
            .filter(|(path, _)| reachable.contains(path))
            .map(|(path, entries)| {
                let durable = entries.clone();
                (path, Directory { current: entries, durable, pending: BTreeMap::new() })
            })
            .collect();
        Names { directories }
    }

    /// Gives files that were durable and are not removed their durable name back, where a choice of
    /// names has left them none.
    fn restore_lost(&self, image: &mut BTreeMap<String, Entries>) {
        let current = self.current_files();
        let durable = self.durable_names();
        // Each round takes at least one name back for good, so this ends.
        loop {
            let reachable = reachable(image);
            let present: BTreeSet<FileId> = image
                .iter()
                .filter(|(path, _)| reachable.contains(*path))
                .flat_map(|(_, entries)| files_in(entries))
                .collect();
            let lost =
                durable.iter().find(|(id, _)| current.contains_key(id) && !present.contains(id));
            let Some((&id, (dir, name))) = lost else { return };
            image.entry(dir.clone()).or_default().insert(name.clone(), Node::File(id));
        }
    }

    /// A durable name of each file that has one: directory and name.
    fn durable_names(&self) -> BTreeMap<FileId, (String, String)> {
        let durable =
            self.directories.iter().map(|(path, dir)| (path.clone(), dir.durable.clone()));
        let durable: BTreeMap<String, Entries> = durable.collect();
        let reachable = reachable(&durable);
        let mut names = BTreeMap::new();
        for (path, entries) in durable.iter().filter(|(path, _)| reachable.contains(*path)) {
            for (name, node) in entries {
                if let Node::File(id) = node {
                    names.insert(*id, (path.clone(), name.clone()));
                }
            }
        }
        names
    }

    fn durable_files(&self) -> BTreeSet<FileId> {
        self.durable_names().into_keys().collect()
    }

    /// Makes one name durable; returns the file that had it in the durable state before.
    fn settle(&mut self, dir: &str, name: &str) -> Option<FileId> {
        let dir = self.directories.get_mut(dir)?;
        dir.pending.remove(name);
        let before = match dir.current.get(name) {
            Some(&node) => dir.durable.insert(name.to_owned(), node),
            None => dir.durable.remove(name),
        };
        before.filter(|before| dir.current.get(name) != Some(before)).and_then(Node::file)
    }

    /// A path at which the file is now.
    fn find(&self, id: FileId) -> Option<String> {
        self.directories.iter().find_map(|(path, dir)| {
            let (name, _) = dir.current.iter().find(|(_, node)| **node == Node::File(id))?;
            Some(join(path, name))
        })
    }

    fn add(&mut self, path: &str, node: Node) -> io::Result<()> {
        let (dir, name) = split(path)?;
        if self.get(path)?.is_some() {
            return Err(os_error(libc::EEXIST));
        }
        self.directory_mut(dir)?.set(name, Some(node));
        Ok(())
    }

    fn directory(&self, path: &str) -> io::Result<&Directory> {
        crate::sys::path::check(path)?;
        self.directories.get(path).ok_or_else(|| self.no_directory(path))
    }

    fn directory_mut(&mut self, path: &str) -> io::Result<&mut Directory> {
        let error = self.no_directory(path);
        self.directories.get_mut(path).ok_or(error)
    }

    /// Why `path` is no directory: a file stands at it or above it, or nothing does.
    fn no_directory(&self, path: &str) -> io::Error {
        let mut rest = path;
        while let Some((dir, name)) = (!rest.is_empty()).then(|| split(rest).ok()).flatten() {
            let node = self.directories.get(dir).and_then(|dir| dir.current.get(name));
            if let Some(Node::File(_)) = node {
                return os_error(libc::ENOTDIR);
            }
            rest = dir;
        }
        os_error(libc::ENOENT)
    }
}

fn files_in(entries: &Entries) -> impl Iterator<Item = FileId> {
    entries.values().filter_map(|node| node.file())
}

/// The directories to which a chain of names leads.
fn reachable(directories: &BTreeMap<String, Entries>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![String::new()];
    while let Some(path) = open.pop() {
        let Some(entries) = directories.get(&path) else { continue };
        for (name, node) in entries {
            if *node == Node::Dir {
                open.push(join(&path, name));
            }
        }
        found.insert(path);
    }
    found
}
