//! The machine as the rest of the crate sees it: files, time and randomness, each behind a trait.
//!
//! Owns [`Disk`] (all file I/O of a volume goes through it), [`Clock`] and [`Rng`], with the real
//! implementations in [`real`], a simulated disk that can lose power in [`sim`], and a disk that
//! keeps its changes in memory in [`overlay`].
//!
//! Invariants: (1) a path is relative to the volume's directory, has `/` between its parts and
//! never leaves it; (2) bytes are durable only after [`DiskFile::sync`], names only after
//! [`Disk::sync_dir`] of their directory; (3) a failed sync is never retried here.
//!
//! Absent on purpose: any file format.

pub(crate) mod locks;
pub mod overlay;
mod path;
pub mod real;
pub mod sim;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

/// The longest note of a lock, in bytes: one line that a waiting process reads with one call.
pub const NOTE_BYTES_MAX: usize = 1024;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading only; the file must exist.
    Read,
    /// Reading and writing; the file must exist.
    Write,
    /// Reading and writing; the file must not exist and is made.
    CreateNew,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// The last part of its path.
    pub name: String,
    /// Whether it is a directory itself.
    pub is_dir: bool,
}

/// What a filesystem has to give, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Size of the filesystem.
    pub total_bytes: u64,
    /// Free for anybody, root included.
    pub free_bytes: u64,
    /// Free for ordinary users.
    pub available_bytes: u64,
}

/// The directory of a volume.
///
/// Every error is the operating system's own, as [`io::Error`].
pub trait Disk: Send + Sync + 'static {
    /// Opens the file at `path`.
    fn open(&self, path: &str, access: Access) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes the directory `path`; its parent must exist.
    fn create_dir(&self, path: &str) -> io::Result<()>;
    /// Lists the directory `path` (`""` is the volume's own), sorted by name.
    fn read_dir(&self, path: &str) -> io::Result<Vec<DirEntry>>;
    /// Moves a file, replacing what was at `to`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file. Files that are open live on until they are closed.
    fn remove_file(&self, path: &str) -> io::Result<()>;
    /// Makes the names in the directory `path` durable.
    fn sync_dir(&self, path: &str) -> io::Result<()>;
    /// Takes an exclusive lock on the file at `path`, which is made if it is missing.
    ///
    /// The lock lasts as long as the answer. [`io::ErrorKind::WouldBlock`] when another holds it.
    fn lock(&self, path: &str) -> io::Result<Box<dyn DiskLock>>;
    /// Tells how much space is left below the volume.
    fn space(&self) -> io::Result<Space>;
    /// Bytes that the volume occupies on the disk, as `du` counts them.
    fn used_bytes(&self) -> io::Result<u64>;
}

/// An open file.
pub trait DiskFile: Send + Sync + 'static {
    /// Reads at `offset` until `buf` is full or the file ends; returns how much was read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf` at `offset`. After an error any part of it may have been written.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends (with zeros) to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Takes room for all of the first `len` bytes, so that writing them finds it, and extends the
    /// file to that length if it is shorter. After an error any part of it may have been taken.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Makes the bytes and the length durable (fdatasync).
    fn sync(&self) -> io::Result<()>;
    /// Drops what the page cache holds of the range, so that the next read comes from the disk.
    ///
    /// Best effort; dirty pages stay.
    fn drop_cached(&self, offset: u64, len: u64) -> io::Result<()>;
}

/// An exclusive lock, released when dropped.
pub trait DiskLock: Send + Sync + 'static {
    /// Replaces the short note that others can read while they wait for the lock.
    ///
    /// It is one line of at most [`NOTE_BYTES_MAX`] bytes (otherwise `EINVAL`), kept in the locked
    /// file with a line feed behind it. Whoever takes the lock finds it empty.
    fn set_note(&self, note: &str) -> io::Result<()>;
}

/// Time.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time.
    fn now(&self) -> Timestamp;
    /// Time since some fixed moment; never goes back.
    fn monotonic(&self) -> Duration;
}

/// A moment of wall-clock time, since 1970-01-01 UTC; before that `secs` is negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub secs: i64,
    /// Nanoseconds within the second, below 1,000,000,000.
    pub nanos: u32,
}

/// Randomness.
pub trait Rng: Send + Sync + 'static {
    /// Fills `buf` with random bytes.
    fn fill(&self, buf: &mut [u8]);
}
