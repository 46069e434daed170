//! Why an operation of a volume failed.
//!
//! Owns [`Error`]. The FUSE layer gives each its errno, the command line prints it as one line.

use std::io;

use crate::{meta, pyramid, store};

/// Errors of a volume. Each says what to do where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such name.
    #[error("no such file or directory")]
    NotFound,
    /// The inode is gone.
    #[error("the file is gone")]
    Stale,
    /// The name is taken.
    #[error("the name exists already")]
    Exists,
    /// A directory was wanted.
    #[error("not a directory")]
    NotADirectory,
    /// Anything but a directory was wanted.
    #[error("is a directory")]
    IsADirectory,
    /// A regular file was wanted.
    #[error("not a regular file")]
    NotAFile,
    /// The directory has entries.
    #[error("the directory is not empty")]
    NotEmpty,
    /// The name, target or attribute name is too long.
    #[error("the name is too long")]
    NameTooLong,
    /// The arguments make no sense.
    #[error("{what}")]
    Invalid {
        /// What is wrong with them.
        what: &'static str,
    },
    /// The file would be longer than any can be.
    #[error("the file would be larger than {} bytes", super::FILE_BYTES_MAX)]
    TooLarge,
    /// The inode has as many names as it can have.
    #[error("too many links")]
    TooManyLinks,
    /// Not allowed for this kind of inode.
    #[error("not permitted")]
    NotPermitted,
    /// No such extended attribute.
    #[error("no such extended attribute")]
    NoAttribute,
    /// The value of an extended attribute is too large.
    #[error("the extended attribute is too large")]
    AttributeTooLarge,
    /// There is no data, or no hole, behind this offset.
    #[error("nothing of that kind behind this offset")]
    NoData,
    /// Not done by this filesystem; callers have another way.
    #[error("not supported")]
    Unsupported,
    /// The volume is open for reading only.
    #[error("the volume is read-only")]
    ReadOnly,
    /// The filesystem below the volume is full.
    #[error("no space left on the filesystem that holds the volume: free some there")]
    NoSpace,
    /// The volume stores as much as it may.
    #[error("the volume's quota is reached: remove files, or mount it with a larger quota")]
    QuotaReached,
    /// The operation would have to wait and was asked not to. Nothing has changed.
    #[error("the operation would have to wait")]
    WouldWait,
    /// The volume was closed.
    #[error("the volume is closed")]
    Closed,
    /// An I/O failure left it unknown what is durable, so nothing may change until a remount.
    ///
    /// After a failed fsync the kernel has forgotten which pages were dirty ("Can Applications
    /// Recover from fsync Failures?", USENIX ATC 2020): asking again would lie.
    #[error("the volume takes no more changes since a failure ({why}); mount it again to recover")]
    Poisoned {
        /// The first failure.
        why: String,
    },
    /// Dirty bytes of this file could not be stored and are lost.
    #[error("bytes written to the file could not be stored: {why}")]
    WriteLost {
        /// Why.
        why: String,
    },
    /// No volume at this place.
    #[error("there is no pyramidfs volume here; make one with `pyramidfs mkfs`")]
    NoVolume,
    /// There is a volume already.
    #[error("there is a pyramidfs volume here already; nothing was changed")]
    AlreadyAVolume,
    /// Another process has the volume open.
    #[error("the volume is in use by another process; unmount it there first")]
    InUse,
    /// Another process changed the volume since it was opened for reading.
    #[error("the volume has changed since it was opened for reading; unmount and mount it again")]
    Changed,
    /// The volume has a format that this version does not know.
    #[error(
        "the volume has format {found}, and this version reads up to {supported}; use a newer pyramidfs"
    )]
    NewerFormat {
        /// The volume's format.
        found: u32,
        /// The newest known.
        supported: u32,
    },
    /// The volume needs a feature that this version does not know.
    #[error("the volume needs the feature {name:?}; use a newer pyramidfs")]
    UnknownFeature {
        /// Its name.
        name: String,
    },
    /// The superblock cannot be understood.
    #[error("the superblock is damaged ({why}); restore the file `superblock` from a copy")]
    BadSuperblock {
        /// What is wrong.
        why: String,
    },
    /// A commit record is damaged that the checkpoint does not hold.
    #[error(
        "commit record {sequence} is damaged: mount with --read-only to save what is there; \
         'pyramidfs check --repair' goes on without it"
    )]
    RecordMissing {
        /// Its sequence number.
        sequence: u64,
    },
    /// The metadata is gone, and the packs have nothing to make it from.
    #[error("the packs hold no commit record and no image of the metadata: restore a backup")]
    NothingToRebuild,
    /// A tree is damaged or a chunk cannot be had.
    #[error(transparent)]
    Content(pyramid::Error<store::Error>),
    /// The store failed.
    #[error(transparent)]
    Store(store::Error),
    /// The metadata failed.
    #[error(transparent)]
    Meta(meta::Error),
    /// An entry of the metadata makes no sense.
    #[error("an entry of the metadata is damaged ({0}); run `pyramidfs check`")]
    Entry(#[from] meta::CodecError),
    /// The disk refused.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl From<meta::Error> for Error {
    fn from(error: meta::Error) -> Error {
        match error {
            meta::Error::Io { source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                ) =>
            {
                Error::NoSpace
            }
            other => Error::Meta(other),
        }
    }
}

impl Error {
    /// Whether it is for want of space below the volume.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Error::NoSpace => true,
            Error::Io { source, .. } | Error::Store(store::Error::Io { source, .. }) => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }

    /// Takes the store's own failures out of those of a tree.
    pub(super) fn from_content(error: pyramid::Error<store::Error>) -> Error {
        match error {
            pyramid::Error::Store(
                source @ (store::Error::Damaged { .. } | store::Error::Missing { .. }),
            ) => Error::Content(pyramid::Error::Store(source)),
            pyramid::Error::Store(source) => Error::from(source),
            other => Error::Content(other),
        }
    }
}
