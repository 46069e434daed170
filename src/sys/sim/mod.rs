//! A simulated machine: a disk that can lose power, a clock that is moved by hand, and randomness
//! from a seed.
//!
//! Owns [`SimDisk`]; its models of names and of content stand at the head of `names` and of `file`.
//! In short: a new file keeps its name in a power loss once its directory is synced, and its
//! content once the file is; unsynced writes and names are kept or lost as [`Keep`] says.
//!
//! Invariants: (1) the same calls give the same disk and the same crash images; (2) no lock is
//! held while a hook runs, except the one that keeps other threads' hooks out; (3) a crash image
//! shares nothing that can change with the disk it comes from, and has no locks, hook or planned
//! failures.
//!
//! Absent on purpose: a page cache that could differ from the medium, and time that I/O takes.

mod content;
mod file;
mod names;
mod random;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::{Mutex, ReentrantMutex};

pub use random::{SimClock, SimRng};

use super::path::{note_line, os_error};
use super::{Access, DirEntry, Disk, DiskFile, DiskLock, Space};
use file::FileState;
use names::{Choice, FileId, Names, Node};
use random::SplitMix;

/// What a power loss keeps of the unsynced writes and names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// None of them.
    Nothing,
    /// All of them, as if only the process had died.
    All,
    /// Any of them, by this seed: writes in any order and torn between sectors, each name with its
    /// durable value or any later one.
    Random(u64),
}

/// When a hook is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Right before the sync takes effect.
    Before,
    /// Right after it has taken effect; a sync that fails has no such moment.
    After,
}

/// A sync, as a hook sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Before or after it takes effect.
    pub moment: Moment,
    /// Whether names are synced and not a file.
    pub is_dir: bool,
    /// The directory, or the file by the path with which it was opened.
    pub path: String,
    /// The number of the sync on this disk, from 1.
    pub number: u64,
}

/// Called around every sync.
pub type Hook = Box<dyn FnMut(&SimDisk, Event) + Send>;

/// Which calls a planned failure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallKind {
    /// All of those below, and also opening and locking files, listing and changing names.
    Any,
    /// [`DiskFile::read_at`].
    Read,
    /// [`DiskFile::write_all_at`], [`DiskFile::set_len`], [`DiskFile::allocate`] and
    /// [`DiskLock::set_note`].
    Write,
    /// [`DiskFile::sync`] and [`Disk::sync_dir`].
    Sync,
}

/// A simulated disk. Clones are handles of the same disk.
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    hook: ReentrantMutex<RefCell<Option<Hook>>>,
}

struct State {
    names: Names,
    files: BTreeMap<FileId, FileState>,
    next_id: FileId,
    locked: BTreeSet<FileId>,
    space_bytes: Option<u64>,
    syncs: u64,
    failures: Vec<Failure>,
    /// Sectors that cannot be read, by file and number, until they are written.
    broken: BTreeSet<(FileId, u64)>,
}

struct Failure {
    /// Calls until then, from 1.
    calls: u64,
    errno: i32,
    kind: CallKind,
}

/// Bytes of a sector.
const SECTOR_BYTES: u64 = 512;

/// The sectors of a range of bytes.
fn sectors(offset: u64, len: usize) -> Range<u64> {
    offset / SECTOR_BYTES..offset.saturating_add(len as u64).div_ceil(SECTOR_BYTES)
}

/// The size that a disk without a limit claims to have: 1 TiB.
const UNLIMITED_BYTES: u64 = 1 << 40;

impl SimDisk {
    /// Makes an empty disk without a limit of space.
    #[expect(clippy::new_without_default, reason = "an empty disk is made on purpose")]
    pub fn new() -> SimDisk {
        SimDisk::with(State {
            names: Names::new(),
            files: BTreeMap::new(),
            next_id: 1,
            locked: BTreeSet::new(),
            space_bytes: None,
            syncs: 0,
            failures: Vec::new(),
            broken: BTreeSet::new(),
        })
    }

    fn with(state: State) -> SimDisk {
        let hook = ReentrantMutex::new(RefCell::new(None));
        SimDisk { shared: Arc::new(Shared { state: Mutex::new(state), hook }) }
    }

    /// Makes the disk as it would be after a power loss at this moment. This disk goes on
    /// unchanged.
    ///
    /// The image has the same limit of space; its syncs are counted from 0.
    pub fn crash(&self, keep: Keep) -> SimDisk {
        let state = self.shared.state.lock();
        let mut random = SplitMix::new(if let Keep::Random(seed) = keep { seed } else { 0 });
        let names = state.names.crash(match keep {
            Keep::Nothing => Choice::Durable,
            Keep::All => Choice::Current,
            Keep::Random(_) => Choice::Random(&mut random),
        });
        let kept = names.current_files();
        let mut files = BTreeMap::new();
        for (&id, file) in state.files.iter().filter(|(id, _)| kept.contains_key(id)) {
            files.insert(id, file.crash(keep, &mut random));
        }
        SimDisk::with(State {
            names,
            files,
            next_id: state.next_id,
            locked: BTreeSet::new(),
            space_bytes: state.space_bytes,
            syncs: 0,
            failures: Vec::new(),
            broken: state.broken.clone(),
        })
    }

    /// Sets what is called before and after every sync of a file or directory, or nothing.
    ///
    /// The hook may use the disk in every way; syncs that it makes itself call no hook. While it
    /// runs, syncs of other threads wait. It cannot set another hook (asserted).
    pub fn set_hook(&self, hook: Option<Hook>) {
        let slot = self.shared.hook.lock();
        let mut slot = slot.try_borrow_mut();
        let slot = slot.as_mut();
        assert!(slot.is_ok(), "a hook cannot replace itself");
        if let Ok(slot) = slot {
            **slot = hook;
        }
    }

    /// The number of syncs, of files and directories, that have begun.
    pub fn sync_count(&self) -> u64 {
        self.shared.state.lock().syncs
    }

    /// Plans a failure: the `n`-th call of this kind from now (1 is the next) fails with `errno`.
    ///
    /// A write that fails so has written the first half of its bytes. A failed sync of a file
    /// loses what was unsynced; a failed sync of a directory changes nothing. Plans add up.
    pub fn fail_call(&self, n: u64, errno: i32, kind: CallKind) {
        assert!(n > 0, "the next call is number 1");
        self.shared.state.lock().failures.push(Failure { calls: n, errno, kind });
    }

    /// The number of planned failures that have not come yet.
    pub fn failures_left(&self) -> usize {
        self.shared.state.lock().failures.len()
    }

    /// Forgets the planned failures that have not come yet.
    pub fn clear_failures(&self) {
        self.shared.state.lock().failures.clear();
    }

    /// Limits the space to `bytes`, counted in pages of 4 KiB: beyond it writes fail with `ENOSPC`.
    pub fn set_space(&self, bytes: u64) {
        self.shared.state.lock().space_bytes = Some(bytes);
    }

    /// Damages the byte at `offset` of a file by exclusive or with `xor`, on the medium.
    ///
    /// `EINVAL` when the file is shorter.
    pub fn rot(&self, path: &str, offset: u64, xor: u8) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let id = state.names.file(path)?;
        let file = state.file_mut(id)?;
        if file.current().len() <= offset {
            return Err(os_error(libc::EINVAL));
        }
        file.rot(offset, xor);
        Ok(())
    }

    /// Breaks the sector at `offset` of a file: reading it fails with `EIO` until it is written.
    pub fn break_sector(&self, path: &str, offset: u64) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let id = state.names.file(path)?;
        state.broken.insert((id, offset / SECTOR_BYTES));
        Ok(())
    }

    /// One sync: counts it, calls the hook around it, and fails it when that is planned.
    fn sync_with(
        &self,
        path: &str,
        is_dir: bool,
        effect: impl FnOnce(&mut State, io::Result<()>) -> io::Result<()>,
    ) -> io::Result<()> {
        let number = {
            let mut state = self.shared.state.lock();
            state.syncs += 1;
            state.syncs
        };
        let event = |moment| Event { moment, is_dir, path: path.to_owned(), number };
        self.call_hook(event(Moment::Before));
        {
            let mut state = self.shared.state.lock();
            let allowed = state.begin(CallKind::Sync);
            effect(&mut state, allowed)?;
        }
        self.call_hook(event(Moment::After));
        Ok(())
    }

    fn call_hook(&self, event: Event) {
        let slot = self.shared.hook.lock();
        // Borrowed already: this is a sync of the hook itself.
        if let Ok(mut slot) = slot.try_borrow_mut()
            && let Some(hook) = slot.as_mut()
        {
            hook(self, event);
        }
    }

    fn handle(&self, state: &mut State, id: FileId, access: Access, path: &str) -> SimFile {
        if let Some(file) = state.files.get_mut(&id) {
            file.handles += 1;
        }
        SimFile { disk: self.clone(), id, writable: access != Access::Read, path: path.to_owned() }
    }
}

impl State {
    /// Counts a call and fails it when that is planned.
    fn begin(&mut self, kind: CallKind) -> io::Result<()> {
        let mut due = None;
        self.failures.retain_mut(|failure| {
            if failure.kind != CallKind::Any && failure.kind != kind {
                return true;
            }
            failure.calls -= 1;
            if failure.calls == 0 {
                due = due.or(Some(failure.errno));
            }
            failure.calls > 0
        });
        due.map_or(Ok(()), |errno| Err(os_error(errno)))
    }

    fn file_mut(&mut self, id: FileId) -> io::Result<&mut FileState> {
        self.files.get_mut(&id).ok_or_else(|| os_error(libc::EBADF))
    }

    fn file(&self, id: FileId) -> io::Result<&FileState> {
        self.files.get(&id).ok_or_else(|| os_error(libc::EBADF))
    }

    fn create(&mut self, path: &str) -> io::Result<FileId> {
        let id = self.next_id;
        self.names.add_file(path, id)?;
        self.next_id += 1;
        self.files.insert(id, FileState::default());
        Ok(id)
    }

    fn used_bytes(&self) -> u64 {
        let named = self.names.current_files();
        let live =
            self.files.iter().filter(|(id, file)| file.handles > 0 || named.contains_key(id));
        live.map(|(_, file)| file.current().used_bytes()).sum()
    }

    /// Fails when the limit leaves no room for `count` bytes at `offset`.
    fn reserve(&self, id: FileId, offset: u64, count: usize) -> io::Result<()> {
        let Some(limit) = self.space_bytes else { return Ok(()) };
        let growth = self.file(id)?.current().growth(offset, count);
        if growth > 0 && self.used_bytes().saturating_add(growth) > limit {
            return Err(os_error(libc::ENOSPC));
        }
        Ok(())
    }

    fn write(&mut self, id: FileId, bytes: &[u8], offset: u64) -> io::Result<()> {
        check_end(offset, bytes.len() as u64)?;
        self.reserve(id, offset, bytes.len())?;
        let allowed = self.begin(CallKind::Write);
        let written = if allowed.is_ok() { bytes } else { bytes.split_at(bytes.len() / 2).0 };
        self.file_mut(id)?.write(written, offset);
        let sectors = sectors(offset, written.len());
        self.broken.retain(|(file, sector)| *file != id || !sectors.contains(sector));
        allowed
    }

    fn set_len(&mut self, id: FileId, len: u64) -> io::Result<()> {
        check_end(len, 0)?;
        self.begin(CallKind::Write)?;
        self.file_mut(id)?.set_len(len);
        Ok(())
    }

    fn allocate(&mut self, id: FileId, len: u64) -> io::Result<()> {
        check_end(len, 0)?;
        let growth = self.file(id)?.current().growth_to(len);
        let full = |limit| growth > 0 && self.used_bytes().saturating_add(growth) > limit;
        if self.space_bytes.is_some_and(full) {
            return Err(os_error(libc::ENOSPC));
        }
        self.begin(CallKind::Write)?;
        self.file_mut(id)?.allocate(len);
        Ok(())
    }

    /// Forgets files that no name and no handle leads to, now or after a power loss.
    fn forget_dead(&mut self) {
        let possible = self.names.possible_files();
        self.files.retain(|id, file| file.handles > 0 || possible.contains(id));
    }
}

/// Fails when a file would be longer than the system allows.
fn check_end(offset: u64, count: u64) -> io::Result<()> {
    match offset.checked_add(count) {
        Some(end) if end <= i64::MAX as u64 => Ok(()),
        _ => Err(os_error(libc::EFBIG)),
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &str, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.shared.state.lock();
        state.begin(CallKind::Any)?;
        let id = match access {
            Access::Read | Access::Write => state.names.file(path)?,
            Access::CreateNew => state.create(path)?,
        };
        Ok(Arc::new(self.handle(&mut state, id, access, path)))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.begin(CallKind::Any)?;
        state.names.add_dir(path)
    }

    fn read_dir(&self, path: &str) -> io::Result<Vec<DirEntry>> {
        let mut state = self.shared.state.lock();
        state.begin(CallKind::Any)?;
        let entry = |(name, node): (&String, &Node)| DirEntry {
            name: name.clone(),
            is_dir: *node == Node::Dir,
        };
        Ok(state.names.list(path)?.map(entry).collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.begin(CallKind::Any)?;
        state.names.rename(from, to)?;
        Ok(())
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.begin(CallKind::Any)?;
        state.names.remove(path)?;
        Ok(())
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.sync_with(path, true, |state, allowed| {
            allowed?;
            state.names.sync(path)?;
            state.forget_dead();
            Ok(())
        })
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn DiskLock>> {
        let mut state = self.shared.state.lock();
        state.begin(CallKind::Any)?;
        let id = match state.names.get(path)? {
            Some(_) => state.names.file(path)?,
            None => state.create(path)?,
        };
        if !state.locked.insert(id) {
            return Err(os_error(libc::EWOULDBLOCK));
        }
        let lock = SimLock { file: self.handle(&mut state, id, Access::Write, path) };
        if let Some(file) = state.files.get_mut(&id)
            && file.current().len() > 0
        {
            file.set_len(0);
        }
        Ok(Box::new(lock))
    }

    fn space(&self) -> io::Result<Space> {
        let state = self.shared.state.lock();
        let total_bytes = state.space_bytes.unwrap_or(UNLIMITED_BYTES);
        let free_bytes = total_bytes.saturating_sub(state.used_bytes());
        Ok(Space { total_bytes, free_bytes, available_bytes: free_bytes })
    }

    fn used_bytes(&self) -> io::Result<u64> {
        Ok(self.shared.state.lock().used_bytes())
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").finish_non_exhaustive()
    }
}

/// An open file of a simulated disk.
struct SimFile {
    disk: SimDisk,
    id: FileId,
    writable: bool,
    /// With which it was opened.
    path: String,
}

impl SimFile {
    fn check_writable(&self, errno: i32) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(os_error(errno)) }
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.shared.state.lock();
        state.begin(CallKind::Read)?;
        let sectors = sectors(offset, buf.len());
        if state.broken.iter().any(|(file, at)| *file == self.id && sectors.contains(at)) {
            return Err(os_error(libc::EIO));
        }
        Ok(state.file(self.id)?.current().read(buf, offset))
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check_writable(libc::EBADF)?;
        self.disk.shared.state.lock().write(self.id, buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.shared.state.lock().file(self.id)?.current().len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable(libc::EINVAL)?;
        self.disk.shared.state.lock().set_len(self.id, len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.check_writable(libc::EBADF)?;
        self.disk.shared.state.lock().allocate(self.id, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.sync_with(&self.path, false, |state, allowed| {
            let file = state.file_mut(self.id)?;
            if allowed.is_ok() {
                file.sync()
            } else {
                file.fail_sync()
            }
            allowed
        })
    }

    fn drop_cached(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if let Some(file) = self.disk.shared.state.lock().files.get_mut(&self.id) {
            file.handles -= 1;
        }
    }
}

/// A lock on a file of a simulated disk.
struct SimLock {
    file: SimFile,
}

impl DiskLock for SimLock {
    fn set_note(&self, note: &str) -> io::Result<()> {
        let line = note_line(note)?;
        self.file.write_all_at(&line, 0)?;
        let mut state = self.file.disk.shared.state.lock();
        state.file_mut(self.file.id)?.set_len(line.len() as u64);
        Ok(())
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.file.disk.shared.state.lock().locked.remove(&self.file.id);
    }
}
