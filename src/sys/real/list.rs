//! Directories of the machine, listed through their descriptors.
//!
//! Owns the reading of directory entries (readdir) and the walk that counts blocks.
//!
//! Invariants: a listing has its own open file description, so that concurrent listings do not
//! share a position; no symbolic link is followed.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::ptr::NonNull;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstatat};

/// An entry with its name as the system gives it.
#[derive(Debug)]
pub(super) struct RawEntry {
    /// The last part of its path.
    pub(super) name: CString,
    /// Whether it is a directory itself (a link to one is not).
    pub(super) is_dir: bool,
}

/// Opens the directory `name` in `dir` for reading; a symbolic link is an error.
pub(super) fn open_directory<P: NixPath + ?Sized>(
    dir: BorrowedFd<'_>,
    name: &P,
) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    Ok(openat(dir, name, flags, Mode::empty())?)
}

/// Lists `dir` without `.` and `..`, unsorted.
pub(super) fn entries(dir: BorrowedFd<'_>) -> io::Result<Vec<RawEntry>> {
    let stream = Stream::open(open_directory(dir, ".")?)?;
    let mut found = Vec::new();
    while let Some((name, kind)) = stream.next()? {
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let is_dir = match kind {
            libc::DT_DIR => true,
            // Some filesystems do not tell here.
            libc::DT_UNKNOWN => match stat(dir, &name)? {
                Some(stat) => is_directory(stat.st_mode),
                None => continue,
            },
            _ => false,
        };
        found.push(RawEntry { name, is_dir });
    }
    Ok(found)
}

/// The number of 512-byte blocks of all that lies below `dir`, without `dir` itself.
pub(super) fn blocks_below(dir: BorrowedFd<'_>) -> io::Result<u64> {
    let mut blocks = 0_u64;
    for entry in entries(dir)? {
        let Some(stat) = stat(dir, &entry.name)? else { continue };
        blocks = blocks.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0));
        if is_directory(stat.st_mode) {
            let below = open_directory(dir, entry.name.as_c_str())?;
            blocks = blocks.saturating_add(blocks_below(below.as_fd())?);
        }
    }
    Ok(blocks)
}

/// What the system says of `name` in `dir`; nothing when it has vanished.
fn stat(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<libc::stat>> {
    match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_directory(mode: libc::mode_t) -> bool {
    SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

/// A directory stream of the C library, closed when dropped.
struct Stream {
    raw: NonNull<libc::DIR>,
}

impl Stream {
    fn open(dir: OwnedFd) -> io::Result<Stream> {
        let fd = dir.into_raw_fd();
        // SAFETY: `fd` is open and given away; on success the stream owns it.
        match NonNull::new(unsafe { libc::fdopendir(fd) }) {
            Some(raw) => Ok(Stream { raw }),
            None => {
                let error = io::Error::last_os_error();
                // SAFETY: fdopendir has failed and left `fd` to us; nobody else has it.
                unsafe { libc::close(fd) };
                Err(error)
            }
        }
    }

    /// The next entry's name and `d_type`.
    fn next(&self) -> io::Result<Option<(CString, u8)>> {
        Errno::clear();
        // SAFETY: the stream is open, and it is used from this thread alone (it is neither Send
        // nor Sync).
        let entry = unsafe { libc::readdir64(self.raw.as_ptr()) };
        if entry.is_null() {
            return match Errno::last() {
                Errno::UnknownErrno => Ok(None),
                error => Err(error.into()),
            };
        }
        // SAFETY: the entry stays valid until the next call on this stream, the name in it ends
        // with a NUL, and both are copied before we return. References are made only to the two
        // fields, as the record may be shorter than its type.
        unsafe {
            let name = CStr::from_ptr((&raw const (*entry).d_name).cast()).to_owned();
            Ok(Some((name, (*entry).d_type)))
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream is open, and nothing uses it after this.
        unsafe { libc::closedir(self.raw.as_ptr()) };
    }
}
