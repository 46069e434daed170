//! Where a commit record lies, and what it carries.
//!
//! Absent on purpose: packs and chunks.

/// Right behind a commit record in the log; the default is the start of an empty volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogPosition {
    /// Number of the pack.
    pub pack: u64,
    /// Bytes from the start of the pack.
    pub offset: u64,
    /// Sequence number of the record in front; 0 when there is none.
    pub sequence: u64,
}

/// A commit record.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Record {
    /// Right behind it.
    pub position: LogPosition,
    /// The group's entries.
    pub entries: Vec<u8>,
}
