//! Values of the transport to values of the volume, and back.
//!
//! Owns no state; each function is a small pure mapping.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, Request, TimeOrNow};

use crate::meta::Ino;
use crate::sys::Timestamp;
use crate::volume::{
    Allocate, Attr, Caller, MODE_TYPE, OpenFlags, RenameFlags, SetTime, XattrMode,
};

/// Block size told to programs: what they best read and write at once.
pub const BLOCK_BYTES: u32 = 4096;

/// Unit of `st_blocks`, fixed by stat(2).
const STAT_BLOCK_BYTES: u64 = 512;

/// Returns the inode number.
pub fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

/// Returns who asks. Only requests that make something come with a umask.
pub fn caller(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), umask }
}

/// Returns the attributes as the transport wants them.
pub fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.filled.div_ceil(STAT_BLOCK_BYTES),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.mode),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// Attributes with inode number 0: as the answer to a lookup they say "there is no such name", and
/// other than ENOENT the kernel may remember it.
pub fn nothing() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// Returns the type of a mode. The volume has no others; an unknown one counts as a regular file,
/// whose reads then fail with a clear error.
pub fn file_type(mode: u32) -> FileType {
    match mode & MODE_TYPE {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

/// Returns how a file is opened. The kernel has judged the permission already.
pub fn open_flags(flags: i32) -> OpenFlags {
    OpenFlags {
        write: flags & libc::O_ACCMODE != libc::O_RDONLY,
        append: flags & libc::O_APPEND != 0,
        truncate: flags & libc::O_TRUNC != 0,
    }
}

/// Whether reading through a handle with these flags counts as access.
pub fn is_access(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_WRONLY && flags & libc::O_NOATIME == 0
}

/// Returns how a name is moved by `caller`; `None` for a flag that nobody here knows.
pub fn rename_flags(flags: fuser::RenameFlags, caller: Caller) -> Option<RenameFlags> {
    use fuser::RenameFlags as Flags;
    let known = Flags::RENAME_NOREPLACE | Flags::RENAME_EXCHANGE | Flags::RENAME_WHITEOUT;
    known.contains(flags).then(|| RenameFlags {
        no_replace: flags.contains(Flags::RENAME_NOREPLACE),
        exchange: flags.contains(Flags::RENAME_EXCHANGE),
        whiteout: flags.contains(Flags::RENAME_WHITEOUT).then_some(caller),
    })
}

/// Whether a list of extended attributes shows `name` to that user: what is trusted only root may
/// know (xattr(7)).
pub fn is_shown(uid: u32, name: &[u8]) -> bool {
    uid == 0 || !name.starts_with(b"trusted.")
}

/// Returns how an extended attribute is set.
pub fn xattr_mode(flags: i32) -> XattrMode {
    match (flags & libc::XATTR_CREATE != 0, flags & libc::XATTR_REPLACE != 0) {
        (true, _) => XattrMode::Create,
        (false, true) => XattrMode::Replace,
        (false, false) => XattrMode::Any,
    }
}

/// Returns the time to set.
pub fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

/// Returns the moment that a request names.
///
/// Before 1970 the transport (fuser 0.18) takes both the seconds and the nanoseconds off, though
/// the nanoseconds count forward. This undoes it exactly; a test holds it against the other way.
pub fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp {
            secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nanos: after.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            let secs = i64::try_from(before.as_secs()).map_or(i64::MIN, |secs| -secs);
            Timestamp { secs, nanos: before.subsec_nanos() }
        }
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    let seconds =
        if time.secs < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    // Out of what the platform can say only at the very ends of 64 bits.
    seconds.and_then(|time| time.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// What fallocate(2) asks for; `None` for modes that are not known.
pub fn allocate(mode: i32) -> Option<Allocate> {
    let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 => Some(Allocate::Reserve { keep_size }),
        libc::FALLOC_FL_PUNCH_HOLE if keep_size => Some(Allocate::Punch),
        libc::FALLOC_FL_ZERO_RANGE => Some(Allocate::Zero { keep_size }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser 0.18 makes of the kernel's seconds and nanoseconds.
    fn as_requested(secs: i64, nanos: u32) -> SystemTime {
        if secs >= 0 {
            UNIX_EPOCH + Duration::new(secs as u64, nanos)
        } else {
            UNIX_EPOCH - Duration::new((-secs) as u64, nanos)
        }
    }

    #[test]
    fn times_of_requests_survive_before_and_after_1970() {
        for (secs, nanos) in [(0, 0), (5, 999_999_999), (-1, 0), (-1, 500_000_000), (-99, 1)] {
            assert_eq!(timestamp(as_requested(secs, nanos)), Timestamp { secs, nanos });
        }
    }

    #[test]
    fn times_of_answers_count_nanoseconds_forward() {
        let time = system_time(Timestamp { secs: -2, nanos: 800_000_000 });
        assert_eq!(UNIX_EPOCH.duration_since(time).unwrap(), Duration::new(1, 200_000_000));
    }

    #[test]
    fn times_at_the_ends_do_not_panic() {
        for secs in [i64::MIN, i64::MIN + 1, i64::MAX] {
            system_time(Timestamp { secs, nanos: 999_999_999 });
        }
    }

    #[test]
    fn types_and_flags() {
        assert_eq!(file_type(0o040_755), FileType::Directory);
        assert_eq!(file_type(0o120_777), FileType::Symlink);
        assert_eq!(file_type(0o100_644), FileType::RegularFile);
        assert_eq!(open_flags(libc::O_RDONLY), OpenFlags::default());
        assert_eq!(
            open_flags(libc::O_RDWR | libc::O_TRUNC),
            OpenFlags { write: true, truncate: true, append: false }
        );
        let caller = Caller { uid: 1, gid: 2, umask: 0 };
        let whiteout = rename_flags(fuser::RenameFlags::RENAME_WHITEOUT, caller);
        assert_eq!(whiteout.and_then(|flags| flags.whiteout), Some(caller));
        assert_eq!(rename_flags(fuser::RenameFlags::from_bits_retain(8), caller), None);
        assert!(is_access(libc::O_RDONLY) && is_access(libc::O_RDWR));
        assert!(!is_access(libc::O_WRONLY) && !is_access(libc::O_RDWR | libc::O_NOATIME));
        assert_eq!(xattr_mode(0), XattrMode::Any);
        assert_eq!(xattr_mode(libc::XATTR_REPLACE), XattrMode::Replace);
    }
}
