//! Results of the volume as replies of the transport.
//!
//! Owns how long the kernel may remember what it is told.

use std::time::Duration;

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};

use super::convert::{self, BLOCK_BYTES};
use super::errno::errno;
use crate::meta::Ino;
use crate::volume::{Attr, Error, NAME_BYTES_MAX, SNAPSHOTS, StatFs, Volume};

/// How long the kernel may remember names and attributes: nobody else changes them.
pub(super) const REMEMBER: Duration = Duration::from_secs(3600);

/// The same of the attributes of a file that is open for writing: how many bytes are no holes
/// changes as the kernel hands them over, and by itself it would not ask again.
pub(super) const REMEMBER_WRITTEN: Duration = Duration::from_secs(1);

/// Inode numbers are never used twice, so that all are of one generation.
pub(super) const GENERATION: Generation = Generation(0);

pub(super) type Result<T> = std::result::Result<T, Error>;

/// A reply that can tell the result `T`.
pub(super) trait Answer<T>: Send + 'static {
    /// Sends the result, or the errno number of the error.
    fn answer(self, result: Result<T>);
}

/// Attributes, and how long the kernel may remember them.
pub(super) fn remembered(volume: &Volume, attr: Result<Attr>) -> Result<(Attr, Duration)> {
    attr.map(|attr| {
        let written = attr.is_file() && volume.has_writers(attr.ino);
        (attr, if written { REMEMBER_WRITTEN } else { remember_in(attr.ino) })
    })
}

/// How long the kernel may remember the names in a directory. Those of snapshots come and go
/// without its knowledge; what it knows below one that is gone goes with the name.
pub(super) fn remember_in(dir: Ino) -> Duration {
    if dir == SNAPSHOTS { Duration::ZERO } else { REMEMBER }
}

/// Answers with the bytes, or with their number when `size` is 0 and the caller only asks for that.
pub(super) fn answer_sized(reply: ReplyXattr, size: u32, result: Result<Vec<u8>>) {
    match result {
        Ok(bytes) if size == 0 => reply.size(bytes.len() as u32),
        Ok(bytes) if bytes.len() <= size as usize => reply.data(&bytes),
        Ok(_) => reply.error(Errno::ERANGE),
        Err(error) => reply.error(errno(&error)),
    }
}

impl Answer<u64> for ReplyLseek {
    fn answer(self, result: Result<u64>) {
        match result {
            Ok(offset) => self.offset(offset.cast_signed()),
            Err(error) => self.error(errno(&error)),
        }
    }
}

impl Answer<Attr> for ReplyEntry {
    fn answer(self, result: Result<Attr>) {
        match result {
            Ok(attr) => self.entry(&REMEMBER, &convert::attr(&attr), GENERATION),
            Err(error) => self.error(errno(&error)),
        }
    }
}

impl Answer<(Attr, Duration)> for ReplyAttr {
    fn answer(self, result: Result<(Attr, Duration)>) {
        match result {
            Ok((attr, remember)) => self.attr(&remember, &convert::attr(&attr)),
            Err(error) => self.error(errno(&error)),
        }
    }
}

impl Answer<Attr> for ReplyCreate {
    fn answer(self, result: Result<Attr>) {
        match result {
            Ok(attr) => {
                let (attr, keep) = (convert::attr(&attr), FopenFlags::FOPEN_KEEP_CACHE);
                self.created(&REMEMBER, &attr, GENERATION, FileHandle(0), keep);
            }
            Err(error) => self.error(errno(&error)),
        }
    }
}

impl Answer<()> for ReplyOpen {
    fn answer(self, result: Result<()>) {
        match result {
            // What the kernel holds of the file stays right: all changes go through it.
            Ok(()) => self.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => self.error(errno(&error)),
        }
    }
}

impl Answer<()> for ReplyEmpty {
    fn answer(self, result: Result<()>) {
        match result {
            Ok(()) => self.ok(),
            Err(error) => self.error(errno(&error)),
        }
    }
}

impl Answer<Vec<u8>> for ReplyData {
    fn answer(self, result: Result<Vec<u8>>) {
        match result {
            Ok(bytes) => self.data(&bytes),
            Err(error) => self.error(errno(&error)),
        }
    }
}

impl Answer<Vec<u8>> for ReplyIoctl {
    fn answer(self, result: Result<Vec<u8>>) {
        match result {
            Ok(bytes) => self.ioctl(0, &bytes),
            Err(error) => self.error(errno(&error)),
        }
    }
}

impl Answer<u32> for ReplyWrite {
    fn answer(self, result: Result<u32>) {
        match result {
            Ok(count) => self.written(count),
            Err(error) => self.error(errno(&error)),
        }
    }
}

impl Answer<StatFs> for ReplyStatfs {
    fn answer(self, result: Result<StatFs>) {
        let space = match result {
            Ok(space) => space,
            Err(error) => return self.error(errno(&error)),
        };
        let block = u64::from(BLOCK_BYTES);
        let free = space.free_bytes / block;
        // There is no table of inodes that could be full: as many are free as blocks are.
        self.statfs(
            space.total_bytes / block,
            free,
            space.available_bytes / block,
            space.inodes.saturating_add(free),
            free,
            BLOCK_BYTES,
            NAME_BYTES_MAX as u32,
            BLOCK_BYTES,
        );
    }
}
