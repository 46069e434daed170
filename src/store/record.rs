//! The commit record: the frame that makes a group durable.
//!
//! Owns the codec of what stands in the place of a record's list; the payload is the group's
//! entries, opaque here, with the frame's payload checksum.
//!
//! ```text
//! offset size field (little-endian)
//!      0    8 sequence number, from 1
//!      8    8 pack of the previous record (0 when there is none)
//!     16    8 offset of the previous record's frame
//!     24    4 count of frames (footers included) between the previous record and this one
//!     28    4 running checksum: crc32c of their header checksums, 4 bytes each, in order
//!     32    4 count of packs begun since the previous record
//!     36    4 zeros
//!     40  8*n their numbers
//! ```
//!
//! Absent on purpose: what entries mean.

use super::LogPosition;
use super::frame::{LIST_BYTES_MAX, u32_at, u64_at};
use super::pack::PACK_NUMBERS;

/// Bytes before the numbers of packs.
pub const RECORD_HEAD_BYTES: usize = 40;
/// Packs begun in one group at most.
pub const RECORD_PACKS_MAX: usize = (LIST_BYTES_MAX - RECORD_HEAD_BYTES) / 8;

/// The head of a commit record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecordHead {
    /// Its number: one more than that of the previous record.
    pub sequence: u64,
    /// Pack of the previous record; 0 when this is the first.
    pub previous_pack: u64,
    /// Where the previous record's frame starts.
    pub previous_offset: u64,
    /// Frames since the previous record.
    pub frames: u32,
    /// Checksum over the headers of those frames.
    pub running_crc: u32,
    /// Packs begun since the previous record.
    pub begun: Vec<u64>,
}

impl RecordHead {
    /// Encodes it for the place of a frame's list.
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.begun.len() <= RECORD_PACKS_MAX, "the log stops a group before that");
        let mut bytes = Vec::with_capacity(RECORD_HEAD_BYTES + 8 * self.begun.len());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.previous_pack.to_le_bytes());
        bytes.extend_from_slice(&self.previous_offset.to_le_bytes());
        bytes.extend_from_slice(&self.frames.to_le_bytes());
        bytes.extend_from_slice(&self.running_crc.to_le_bytes());
        bytes.extend_from_slice(&(self.begun.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for pack in &self.begun {
            bytes.extend_from_slice(&pack.to_le_bytes());
        }
        bytes
    }

    /// Whether a log can have it. Checksums keep out damage, not what was made to fit them.
    pub fn is_possible(&self) -> bool {
        let (pack, offset, sequence) = (self.previous_pack, self.previous_offset, self.sequence);
        LogPosition { pack, offset, sequence }.is_possible()
            && self.begun.iter().all(|pack| *pack < PACK_NUMBERS)
    }

    /// Decodes it; `None` when the bytes are no record's head.
    pub fn decode(bytes: &[u8]) -> Option<RecordHead> {
        let count = u32_at(bytes, 32)? as usize;
        let packs = bytes.get(RECORD_HEAD_BYTES..)?;
        if packs.len() != count.checked_mul(8)? {
            return None;
        }
        Some(RecordHead {
            sequence: u64_at(bytes, 0)?,
            previous_pack: u64_at(bytes, 8)?,
            previous_offset: u64_at(bytes, 16)?,
            frames: u32_at(bytes, 24)?,
            running_crc: u32_at(bytes, 28)?,
            begun: packs.as_chunks::<8>().0.iter().map(|pack| u64::from_le_bytes(*pack)).collect(),
        })
    }
}

/// Adds a frame's header checksum to the running checksum.
pub fn run_on(running_crc: u32, header_crc: u32) -> u32 {
    crc32c::crc32c_append(running_crc, &header_crc.to_le_bytes())
}
