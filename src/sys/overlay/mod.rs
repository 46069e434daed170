//! A disk that keeps its changes in memory: for volumes on read-only media, and for checks that
//! must not change anything.
//!
//! Owns [`OverlayDisk`].
//!
//! Invariants: (1) the disk below is only read: files are opened for reading, and nothing is
//! locked, synced or made there; (2) a file of the disk below is named by its path until it is
//! moved, removed or written, and from then on by an entry here; (3) all handles of one file share
//! one [`Layer`]; (4) memory and open files below are in proportion to what is written and what is
//! open now. Lock order: the names, then a layer.
//!
//! Absent on purpose: writing the changes down, and a limit of the memory they take.

mod layer;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::path::{check, note_line, os_error, split};
use super::{Access, DirEntry, Disk, DiskFile, DiskLock, Space};
use layer::Layer;

/// A disk over another one that it does not change.
pub struct OverlayDisk {
    shared: Arc<Shared>,
}

struct Shared {
    under: Arc<dyn Disk>,
    names: Mutex<Names>,
}

/// What differs from the disk below, by path.
#[derive(Default)]
struct Names {
    changed: BTreeMap<String, Entry>,
    /// Files of the disk below that are open and not written yet.
    clean: BTreeMap<String, Weak<Layer>>,
    locked: BTreeSet<String>,
}

/// What a changed path stands for.
#[derive(Clone)]
enum Entry {
    /// Removed or moved away.
    Gone,
    /// Made here; nothing of the disk below is in it.
    Dir,
    File(Arc<Layer>),
}

/// What a path stands for, wherever it is.
enum Found {
    Nothing,
    Dir,
    /// A file of the disk below, just opened.
    Below(Arc<dyn DiskFile>),
    /// A file that is open or changed.
    Here(Arc<Layer>),
}

impl OverlayDisk {
    /// Makes a disk that shows what `under` holds, and keeps all changes to itself.
    pub fn new(under: Arc<dyn Disk>) -> OverlayDisk {
        OverlayDisk { shared: Arc::new(Shared { under, names: Mutex::default() }) }
    }

    fn handle(&self, path: &str, layer: Arc<Layer>, access: Access) -> OverlayFile {
        let shared = self.shared.clone();
        OverlayFile { shared, layer, path: path.to_owned(), writable: access != Access::Read }
    }
}

impl Shared {
    /// What `path` stands for.
    fn find(&self, names: &Names, path: &str) -> io::Result<Found> {
        check(path)?;
        if path.is_empty() {
            return Ok(Found::Dir);
        }
        match names.changed.get(path) {
            Some(Entry::Gone) => return Ok(Found::Nothing),
            Some(Entry::Dir) => return Ok(Found::Dir),
            Some(Entry::File(layer)) => return Ok(Found::Here(layer.clone())),
            None => {}
        }
        if let Some(layer) = names.clean.get(path).and_then(Weak::upgrade) {
            return Ok(Found::Here(layer));
        }
        if !self.is_below(names, split(path)?.0)? {
            return Ok(Found::Nothing);
        }
        match self.under.open(path, Access::Read) {
            Ok(file) => Ok(Found::Below(file)),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound => Ok(Found::Nothing),
                io::ErrorKind::IsADirectory => Ok(Found::Dir),
                _ => Err(error),
            },
        }
    }

    /// Whether the directory `dir` may hold something of the disk below; an error when there is no
    /// such directory.
    fn is_below(&self, names: &Names, dir: &str) -> io::Result<bool> {
        if dir.is_empty() {
            return Ok(true);
        }
        match self.find(names, dir)? {
            Found::Dir => Ok(!matches!(names.changed.get(dir), Some(Entry::Dir))),
            Found::Nothing => Err(os_error(libc::ENOENT)),
            Found::Below(_) | Found::Here(_) => Err(os_error(libc::ENOTDIR)),
        }
    }

    /// The file at `path`.
    fn file(&self, names: &mut Names, path: &str) -> io::Result<Arc<Layer>> {
        split(path)?;
        match self.find(names, path)? {
            Found::Nothing => Err(os_error(libc::ENOENT)),
            Found::Dir => Err(os_error(libc::EISDIR)),
            Found::Here(layer) => Ok(layer),
            Found::Below(file) => {
                let layer = Arc::new(Layer::over(file)?);
                names.clean.retain(|_, layer| layer.strong_count() > 0);
                names.clean.insert(path.to_owned(), Arc::downgrade(&layer));
                Ok(layer)
            }
        }
    }

    /// Makes an empty file at `path`, which must be free.
    fn create(&self, names: &mut Names, path: &str) -> io::Result<Arc<Layer>> {
        self.check_free(names, path)?;
        let layer = Arc::new(Layer::empty());
        names.changed.insert(path.to_owned(), Entry::File(layer.clone()));
        Ok(layer)
    }

    fn check_free(&self, names: &Names, path: &str) -> io::Result<()> {
        self.is_below(names, split(path)?.0)?;
        match self.find(names, path)? {
            Found::Nothing => Ok(()),
            Found::Dir | Found::Below(_) | Found::Here(_) => Err(os_error(libc::EEXIST)),
        }
    }

    /// Keeps a file that is about to be changed, if it is still the one at its path.
    fn keep(&self, path: &str, layer: &Arc<Layer>) {
        let mut names = self.names.lock();
        let is_this = |known: &Weak<Layer>| std::ptr::eq(known.as_ptr(), Arc::as_ptr(layer));
        if names.clean.get(path).is_some_and(is_this) {
            names.clean.remove(path);
            names.changed.insert(path.to_owned(), Entry::File(layer.clone()));
        }
    }
}

impl Disk for OverlayDisk {
    fn open(&self, path: &str, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let mut names = self.shared.names.lock();
        let layer = match access {
            Access::Read | Access::Write => self.shared.file(&mut names, path)?,
            Access::CreateNew => self.shared.create(&mut names, path)?,
        };
        Ok(Arc::new(self.handle(path, layer, access)))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let mut names = self.shared.names.lock();
        self.shared.check_free(&names, path)?;
        names.changed.insert(path.to_owned(), Entry::Dir);
        Ok(())
    }

    fn read_dir(&self, path: &str) -> io::Result<Vec<DirEntry>> {
        check(path)?;
        let names = self.shared.names.lock();
        let mut entries = BTreeMap::new();
        if self.shared.is_below(&names, path)? {
            for entry in self.shared.under.read_dir(path)? {
                entries.insert(entry.name, entry.is_dir);
            }
        }
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let changed = names.changed.range(prefix.clone()..);
        for (full, entry) in changed.take_while(|(full, _)| full.starts_with(&prefix)) {
            // What lies deeper is not of this directory.
            let Some(name) = full.strip_prefix(&prefix).filter(|name| !name.contains('/')) else {
                continue;
            };
            match entry {
                Entry::Gone => entries.remove(name),
                Entry::Dir => entries.insert(name.to_owned(), true),
                Entry::File(_) => entries.insert(name.to_owned(), false),
            };
        }
        Ok(entries.into_iter().map(|(name, is_dir)| DirEntry { name, is_dir }).collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut names = self.shared.names.lock();
        let (from_dir, to_dir) = (split(from)?.0, split(to)?.0);
        // Both directories are looked for before the names in them, as the system does.
        self.shared.is_below(&names, from_dir)?;
        self.shared.is_below(&names, to_dir)?;
        let layer = self.shared.file(&mut names, from)?;
        if let Found::Dir = self.shared.find(&names, to)? {
            return Err(os_error(libc::EISDIR));
        }
        if from == to {
            return Ok(());
        }
        names.clean.remove(from);
        names.clean.remove(to);
        names.changed.insert(from.to_owned(), Entry::Gone);
        names.changed.insert(to.to_owned(), Entry::File(layer));
        Ok(())
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        let mut names = self.shared.names.lock();
        self.shared.file(&mut names, path)?;
        names.clean.remove(path);
        names.changed.insert(path.to_owned(), Entry::Gone);
        Ok(())
    }

    /// Does nothing, but fails when there is no such directory.
    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.shared.is_below(&self.shared.names.lock(), path).map(drop)
    }

    /// Excludes only other users of this overlay; the disk below is not locked.
    fn lock(&self, path: &str) -> io::Result<Box<dyn DiskLock>> {
        let mut names = self.shared.names.lock();
        let layer = match self.shared.find(&names, path)? {
            Found::Nothing => self.shared.create(&mut names, path)?,
            _ => self.shared.file(&mut names, path)?,
        };
        if !names.locked.insert(path.to_owned()) {
            return Err(os_error(libc::EWOULDBLOCK));
        }
        drop(names);
        let lock = OverlayLock { file: self.handle(path, layer, Access::Write) };
        lock.file.set_len(0)?;
        Ok(Box::new(lock))
    }

    /// That of the disk below: what is kept in memory takes none of it.
    fn space(&self) -> io::Result<Space> {
        self.shared.under.space()
    }

    /// Counts what is kept in memory too, and still what is removed or replaced here.
    fn used_bytes(&self) -> io::Result<u64> {
        let names = self.shared.names.lock();
        let own = names.changed.values().map(|entry| match entry {
            Entry::File(layer) => layer.used_bytes(),
            Entry::Gone | Entry::Dir => 0,
        });
        Ok(self.shared.under.used_bytes()?.saturating_add(own.sum()))
    }
}

/// An open file of an overlay.
struct OverlayFile {
    shared: Arc<Shared>,
    layer: Arc<Layer>,
    /// With which it was opened.
    path: String,
    writable: bool,
}

impl OverlayFile {
    /// Comes before every change.
    fn prepare_change(&self, errno: i32) -> io::Result<()> {
        if !self.writable {
            return Err(os_error(errno));
        }
        if self.layer.mark_changed() {
            self.shared.keep(&self.path, &self.layer);
        }
        Ok(())
    }
}

impl DiskFile for OverlayFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.layer.read(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.prepare_change(libc::EBADF)?;
        self.layer.write(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.layer.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.prepare_change(libc::EINVAL)?;
        self.layer.set_len(len)
    }

    /// Memory is taken when it is written: only the length changes.
    fn allocate(&self, len: u64) -> io::Result<()> {
        if len <= self.layer.len() { Ok(()) } else { self.set_len(len) }
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn drop_cached(&self, offset: u64, len: u64) -> io::Result<()> {
        self.layer.drop_cached(offset, len)
    }
}

/// A lock within an overlay.
struct OverlayLock {
    file: OverlayFile,
}

impl DiskLock for OverlayLock {
    fn set_note(&self, note: &str) -> io::Result<()> {
        let line = note_line(note)?;
        self.file.write_all_at(&line, 0)?;
        self.file.set_len(line.len() as u64)
    }
}

impl Drop for OverlayLock {
    fn drop(&mut self) {
        self.file.shared.names.lock().locked.remove(&self.file.path);
    }
}
