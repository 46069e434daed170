//! What can go wrong in the metadata. Each message is one line; causes are kept as sources.

use std::io;

use crate::store::LogPosition;

/// Result of the metadata's calls.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the metadata.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk refused.
    #[error("cannot {action} the checkpoint in meta/")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The disk's answer.
        source: io::Error,
    },
    /// There is no checkpoint file.
    #[error("the checkpoint in meta/ is missing")]
    Missing,
    /// The checkpoint's bytes make no sense. The records in the packs are its second life.
    #[error("the checkpoint in meta/ is damaged")]
    Damaged {
        /// What was found.
        source: Damage,
    },
    /// A write to the checkpoint failed earlier; after that nothing more is asked of the file, as
    /// nobody knows what reached the disk. Opening the volume again recovers.
    #[error("an earlier write to the checkpoint in meta/ failed; mount the volume again")]
    PreviousFailure,
    /// The checkpoint was closed.
    #[error("the checkpoint in meta/ is closed")]
    Closed,
    /// A commit record cannot be decoded, although its checksum holds.
    #[error("the entries of commit record {} cannot be read", position.sequence)]
    Record {
        /// Right behind the record.
        position: LogPosition,
        /// What is wrong with it.
        source: CodecError,
    },
    /// A part of an image cannot be decoded, although its checksum holds.
    #[error("the entries of an image of the metadata cannot be read")]
    Image {
        /// What is wrong with it.
        source: CodecError,
    },
    /// A record was replayed that is not newer than what is already there.
    #[error("commit record {} comes after commit record {}", position.sequence, last.sequence)]
    RecordOrder {
        /// Right behind the record.
        position: LogPosition,
        /// Right behind the record before.
        last: LogPosition,
    },
}

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// The embedded store says so.
    #[error(transparent)]
    Store(Box<redb::Error>),
    /// A page does not fit its checksum.
    #[error("page {page} does not fit its checksum")]
    Page {
        /// Its number.
        page: u64,
    },
    /// The embedded store met bytes that it never wrote, and panicked.
    #[error("a page holds what was never written")]
    Panic,
    /// The header of a file that was closed names the older of its two states.
    #[error("its header names an older state")]
    Header,
    /// The file is there, but has no bytes.
    #[error("the file is empty")]
    Empty,
    /// The position of the last record is not there.
    #[error("the position in the log is missing")]
    NoPosition,
    /// The position of the last record makes no sense.
    #[error("the position in the log cannot be read")]
    Position(#[source] CodecError),
}

/// Why bytes are not the encoding of anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// They end too early.
    #[error("the bytes end too early")]
    Short,
    /// Bytes are left over.
    #[error("bytes are left over")]
    Trailing,
    /// A later format, or damage.
    #[error("format {0} is not known")]
    Format(u8),
    /// A key of a later format, or damage.
    #[error("key tag {0:#04x} is not known")]
    Tag(u8),
    /// A number is out of its range, or not in its shortest form.
    #[error("a number is out of its range")]
    Number,
    /// A name or link target is longer than any can be.
    #[error("a name is too long")]
    TooLong,
    /// Keys that do not ascend.
    #[error("the keys do not ascend")]
    Order,
    /// The compressed body does not unpack to what it says.
    #[error("the compressed entries cannot be unpacked")]
    Compression,
}
