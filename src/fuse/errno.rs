//! The one table from errors of the volume to errno numbers.
//!
//! Every match is exhaustive, so that a new error asks for a decision here. Where more than one
//! number would do, the line says why this one.

use std::io;

use fuser::Errno;

use crate::volume::Error;
use crate::{meta, pyramid, store};

/// Returns the number that the calling program gets for `error`.
///
/// What says that something is broken is logged as well: a number alone would hide where.
pub fn errno(error: &Error) -> Errno {
    let errno = table(error);
    if errno == Errno::EIO {
        tracing::error!("a request failed: {}", chain(error));
    }
    errno
}

/// An error and all its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        // Some errors show their cause themselves: it is not said twice.
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = error.source();
    }
    text
}

#[deny(clippy::wildcard_enum_match_arm)]
fn table(error: &Error) -> Errno {
    match error {
        Error::NotFound => Errno::ENOENT,
        Error::Exists => Errno::EEXIST,
        Error::NotADirectory => Errno::ENOTDIR,
        Error::IsADirectory => Errno::EISDIR,
        Error::NotEmpty => Errno::ENOTEMPTY,
        // The kernel keeps reads and writes of pipes and devices to itself; what is left is
        // truncate(2) and the like, for which POSIX names EINVAL.
        Error::NotAFile => Errno::EINVAL,
        Error::NameTooLong => Errno::ENAMETOOLONG,
        Error::Invalid { .. } => Errno::EINVAL,
        Error::TooLarge => Errno::EFBIG,
        Error::TooManyLinks => Errno::EMLINK,
        // EPERM, not EACCES: permission bits are judged by the kernel, what is left is forbidden by
        // the operation's own rules (link(2) to a directory, and the like).
        Error::NotPermitted => Errno::EPERM,
        // What Linux calls ENOATTR.
        Error::NoAttribute => Errno::ENODATA,
        // setxattr(2) names E2BIG for a value beyond the limit of the kernel, and ENOSPC for one
        // beyond that of the filesystem. The kernel's own limit is the same, so E2BIG.
        Error::AttributeTooLarge => Errno::E2BIG,
        Error::NoData => Errno::ENXIO,
        Error::Unsupported => Errno::EOPNOTSUPP,
        // The kernel names an inode that is gone: lookups by handle retry on ESTALE.
        Error::Stale => Errno::ESTALE,
        Error::ReadOnly => Errno::EROFS,
        Error::NoSpace => Errno::ENOSPC,
        // Not ENOSPC: it says which of the two limits was met, as other filesystems do.
        Error::QuotaReached => Errno::EDQUOT,
        // Never reaches a program (it is asked again on a worker); EAGAIN is the honest word.
        Error::WouldWait => Errno::EAGAIN,
        // The daemon is going away under an open file: what the kernel itself says afterwards.
        Error::Closed => Errno::ENOTCONN,
        // EROFS would be as true, but programs read EIO as "data may be lost", and it may.
        Error::Poisoned { .. } => Errno::EIO,
        Error::WriteLost { .. } | Error::Entry(_) => Errno::EIO,
        // These come from opening a volume, never from a request. EIO, as nothing else fits.
        Error::NoVolume
        | Error::InUse
        | Error::Changed
        | Error::NewerFormat { .. }
        | Error::UnknownFeature { .. }
        | Error::BadSuperblock { .. }
        | Error::RecordMissing { .. }
        | Error::NothingToRebuild
        | Error::AlreadyAVolume => Errno::EIO,
        Error::Content(error) => of_pyramid(error),
        Error::Store(error) => of_store(error),
        Error::Meta(error) => of_meta(error),
        Error::Io { source, .. } => of_io(source),
    }
}

#[deny(clippy::wildcard_enum_match_arm)]
fn of_pyramid(error: &pyramid::Error<store::Error>) -> Errno {
    match error {
        pyramid::Error::Store(error) => of_store(error),
        // A tree that does not fit its root: damage.
        pyramid::Error::TreeShape { .. } | pyramid::Error::DataLength { .. } => Errno::EIO,
    }
}

#[deny(clippy::wildcard_enum_match_arm)]
fn of_store(error: &store::Error) -> Errno {
    match error {
        // Bytes that cannot be had, or not be trusted.
        store::Error::Missing { .. }
        | store::Error::Damaged { .. }
        | store::Error::Newer { .. }
        | store::Error::IndexDamaged { .. } => Errno::EIO,
        // As for the volume: data may be lost, and programs read EIO so.
        store::Error::Poisoned { .. } => Errno::EIO,
        store::Error::NoSpace => Errno::ENOSPC,
        // The volume keeps its groups below that: a fault of ours, and nothing the file can help.
        store::Error::RecordTooLarge { .. } => Errno::EIO,
        store::Error::Io { source, .. } => of_io(source),
    }
}

#[deny(clippy::wildcard_enum_match_arm)]
fn of_meta(error: &meta::Error) -> Errno {
    match error {
        meta::Error::Io { source, .. } => of_io(source),
        meta::Error::Closed => Errno::ENOTCONN,
        meta::Error::Missing
        | meta::Error::Damaged { .. }
        | meta::Error::PreviousFailure
        | meta::Error::Record { .. }
        | meta::Error::Image { .. }
        | meta::Error::RecordOrder { .. } => Errno::EIO,
    }
}

/// An error of the disk below. Only "full" is passed on as it is: ENOENT or EACCES of a pack file
/// would tell the program something untrue about its own file.
fn of_io(error: &io::Error) -> Errno {
    match error.raw_os_error() {
        Some(libc::ENOSPC) => Errno::ENOSPC,
        Some(libc::EDQUOT) => Errno::EDQUOT,
        Some(libc::EROFS) => Errno::EROFS,
        Some(libc::ENOMEM) => Errno::ENOMEM,
        _ => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_programs_rely_on() {
        let expected = [
            (Error::NotFound, libc::ENOENT),
            (Error::Exists, libc::EEXIST),
            (Error::NotEmpty, libc::ENOTEMPTY),
            (Error::NoSpace, libc::ENOSPC),
            (Error::QuotaReached, libc::EDQUOT),
            (Error::NoAttribute, libc::ENODATA),
            (Error::ReadOnly, libc::EROFS),
            (Error::NameTooLong, libc::ENAMETOOLONG),
            (Error::NotPermitted, libc::EPERM),
            (Error::TooManyLinks, libc::EMLINK),
            (Error::TooLarge, libc::EFBIG),
        ];
        for (error, number) in expected {
            assert_eq!(errno(&error).code(), number, "{error:?}");
        }
    }

    #[test]
    fn errors_of_the_disk_do_not_pose_as_errors_of_the_file() {
        let io = |number| Error::Io { action: "x", source: io::Error::from_raw_os_error(number) };
        assert_eq!(errno(&io(libc::ENOENT)), Errno::EIO);
        assert_eq!(errno(&io(libc::EACCES)), Errno::EIO);
        assert_eq!(errno(&io(libc::ENOSPC)), Errno::ENOSPC);
    }

    #[test]
    fn no_answer_is_one_that_the_kernel_takes_for_a_missing_operation() {
        // ENOSYS makes the kernel stop asking for good: only the adapter may say it.
        for error in [Error::Unsupported, Error::Stale, Error::WouldWait, Error::Closed] {
            assert_ne!(errno(&error), Errno::ENOSYS);
        }
    }
}
