//! The machine itself: files of a directory, the system's clock and its randomness.
//!
//! Owns [`RealDisk`], [`RealClock`] and [`RealRng`].
//!
//! Invariants: (1) every path is resolved from a descriptor of the volume's directory, one part
//! after the other and never through a symbolic link, so that neither a change of the working
//! directory nor a link planted in the volume leads elsewhere; (2) descriptors are closed on exec;
//! (3) a lock is held by its own open file description and released only by closing it, so that
//! a daemon keeps what its parent took before the fork; (4) what is made is for its owner only:
//! a volume holds the files of many users.
//!
//! Absent on purpose: memory maps, caching, retries of a failed sync.

mod list;
#[cfg(test)]
mod tests;

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::fcntl::{
    AtFlags, OFlag, PosixFadviseAdvice, openat, posix_fadvise, posix_fallocate, renameat,
};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::path::{check, note_line, os_error, split};
use super::{
    Access, Clock, DirEntry, Disk, DiskFile, DiskLock, NOTE_BYTES_MAX, Rng, Space, Timestamp,
};

/// A directory of the machine.
#[derive(Debug)]
pub struct RealDisk {
    root: OwnedFd,
}

impl RealDisk {
    /// Opens the directory at `dir`, which must exist. Links on the way to it are followed.
    pub fn open(dir: &Path) -> io::Result<RealDisk> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(RealDisk { root: nix::fcntl::open(dir, flags, Mode::empty())? })
    }

    /// Opens the directory `path` for reading, part by part.
    fn directory(&self, path: &str) -> io::Result<OwnedFd> {
        check(path)?;
        let mut at = self.root.try_clone()?;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            at = list::open_directory(at.as_fd(), part)?;
        }
        Ok(at)
    }

    /// The directory that holds `path`, and the last part of it.
    fn parent<'a>(&self, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
        let (dir, name) = split(path)?;
        Ok((self.directory(dir)?, name))
    }

    /// Opens a regular file; `extra` says for what.
    fn open_regular(&self, path: &str, extra: OFlag) -> io::Result<File> {
        let (dir, name) = self.parent(path)?;
        // Without O_NONBLOCK a fifo in the place of a file would hang us.
        let flags = extra | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = File::from(openat(&dir, name, flags, owner_only_file())?);
        let kind = file.metadata()?.file_type();
        if kind.is_dir() {
            return Err(os_error(libc::EISDIR));
        }
        if !kind.is_file() {
            return Err(os_error(libc::EINVAL));
        }
        Ok(file)
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &str, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let flags = match access {
            Access::Read => OFlag::O_RDONLY,
            Access::Write => OFlag::O_RDWR,
            Access::CreateNew => OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL,
        };
        Ok(Arc::new(RealFile { file: self.open_regular(path, flags)? }))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        Ok(mkdirat(&dir, name, Mode::S_IRWXU)?)
    }

    /// Entries whose names are not UTF-8 are left out: no path can name them.
    fn read_dir(&self, path: &str) -> io::Result<Vec<DirEntry>> {
        let dir = self.directory(path)?;
        let mut entries: Vec<DirEntry> = list::entries(dir.as_fd())?
            .into_iter()
            .filter_map(|entry| {
                let name = entry.name.into_string().ok()?;
                Some(DirEntry { name, is_dir: entry.is_dir })
            })
            .collect();
        entries.sort();
        Ok(entries)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        split(from).and(split(to))?;
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        if is_directory(from_dir.as_fd(), from_name)? {
            return Err(os_error(libc::EISDIR));
        }
        // The system answers ENOTEMPTY when the directory is one that the file lies in.
        if is_directory(to_dir.as_fd(), to_name).unwrap_or(false) {
            return Err(os_error(libc::EISDIR));
        }
        Ok(renameat(&from_dir, from_name, &to_dir, to_name)?)
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        Ok(unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir)?)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        File::from(self.directory(path)?).sync_all()
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn DiskLock>> {
        let file = self.open_regular(path, OFlag::O_RDWR | OFlag::O_CREAT)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(os_error(libc::EWOULDBLOCK)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // The note of a former holder says nothing about this one.
        file.set_len(0)?;
        Ok(Box::new(RealLock { file }))
    }

    fn space(&self) -> io::Result<Space> {
        let stat = fstatvfs(&self.root)?;
        let unit = stat.fragment_size();
        Ok(Space {
            total_bytes: unit.saturating_mul(stat.blocks()),
            free_bytes: unit.saturating_mul(stat.blocks_free()),
            available_bytes: unit.saturating_mul(stat.blocks_available()),
        })
    }

    /// Walks the whole directory. What vanishes during the walk is not counted.
    fn used_bytes(&self) -> io::Result<u64> {
        let root = self.directory("")?;
        let own = File::from(root.try_clone()?).metadata()?.blocks();
        Ok(own.saturating_add(list::blocks_below(root.as_fd())?).saturating_mul(BLOCK_BYTES))
    }
}

/// The unit in which the system counts the blocks of a file, whatever the filesystem's own.
const BLOCK_BYTES: u64 = 512;

fn owner_only_file() -> Mode {
    Mode::S_IRUSR | Mode::S_IWUSR
}

fn is_directory(dir: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    let mode = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?.st_mode;
    Ok(SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFDIR)
}

/// An open file of the machine.
#[derive(Debug)]
struct RealFile {
    file: File,
}

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        read_full(&self.file, buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        // It goes on after a short write and after a signal.
        self.file.write_all_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let len = i64::try_from(len).map_err(|_| os_error(libc::EFBIG))?;
        // No bytes at all would be an invalid range.
        if len == 0 { Ok(()) } else { Ok(posix_fallocate(&self.file, 0, len)?) }
    }

    fn sync(&self) -> io::Result<()> {
        // A signal interrupts the wait and reports nothing about the writes, so going on after
        // it (as this does) is no retry of a failed sync.
        self.file.sync_data()
    }

    fn drop_cached(&self, offset: u64, len: u64) -> io::Result<()> {
        let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
            return Err(os_error(libc::EINVAL));
        };
        // A length of 0 would mean: to the end of the file.
        if len == 0 {
            return Ok(());
        }
        Ok(posix_fadvise(&self.file, offset, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
    }
}

/// Reads until `buf` is full or the file ends.
fn read_full(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let Some(at) = offset.checked_add(done as u64) else {
            return Err(os_error(libc::EINVAL));
        };
        match file.read_at(rest, at) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// A lock on a file of the machine (flock).
#[derive(Debug)]
struct RealLock {
    file: File,
}

impl DiskLock for RealLock {
    fn set_note(&self, note: &str) -> io::Result<()> {
        let line = note_line(note)?;
        self.file.write_all_at(&line, 0)?;
        self.file.set_len(line.len() as u64)
    }
}

/// Reads the note that the holder of the lock at `path` in the directory `dir` has left.
///
/// Needs no lock. Empty when there is no note; an error when there is no such file.
pub fn read_note(dir: &Path, path: &str) -> io::Result<String> {
    let file = RealDisk::open(dir)?.open_regular(path, OFlag::O_RDONLY)?;
    let mut buf = [0_u8; NOTE_BYTES_MAX + 1];
    let count = read_full(&file, &mut buf, 0)?;
    let line = buf.iter().take(count).copied().take_while(|&byte| byte != b'\n').collect();
    String::from_utf8(line).map_err(|_| os_error(libc::EILSEQ))
}

/// The system's clocks.
#[derive(Debug, Clone, Copy)]
pub struct RealClock {
    start: Instant,
}

impl RealClock {
    /// Makes a clock whose monotonic time begins now.
    #[expect(
        clippy::new_without_default,
        reason = "a default that depends on the moment surprises"
    )]
    pub fn new() -> RealClock {
        RealClock { start: Instant::now() }
    }
}

impl Clock for RealClock {
    fn now(&self) -> Timestamp {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => timestamp_after(since),
            Err(error) => timestamp_before(error.duration()),
        }
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// The moment `since` after 1970; a time that does not fit stops at the largest that does.
fn timestamp_after(since: Duration) -> Timestamp {
    let secs = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp { secs, nanos: since.subsec_nanos() }
}

/// The moment `until` before 1970: seconds are rounded down, so nanoseconds count up.
fn timestamp_before(until: Duration) -> Timestamp {
    let secs = i64::try_from(until.as_secs()).unwrap_or(i64::MAX);
    match until.subsec_nanos() {
        0 => Timestamp { secs: -secs, nanos: 0 },
        nanos => Timestamp { secs: (-secs).saturating_sub(1), nanos: 1_000_000_000 - nanos },
    }
}

/// The system's randomness.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealRng;

impl Rng for RealRng {
    fn fill(&self, buf: &mut [u8]) {
        let mut rest = buf;
        while !rest.is_empty() {
            match random_some(rest) {
                Ok(count) => rest = rest.split_at_mut(count).1,
                Err(error) => assert!(
                    error.kind() == io::ErrorKind::Interrupted,
                    "the system gives no random bytes: {error}"
                ),
            }
        }
    }
}

/// Fills a first part of `buf` with random bytes and returns its length.
fn random_some(buf: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of one exclusively borrowed slice, and the
    // call writes at most that many bytes.
    let count = unsafe { libc::getrandom(buf.as_mut_ptr().cast(), buf.len(), 0) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
