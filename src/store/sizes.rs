//! What a stored chunk takes.
//!
//! Owns [`ChunkSize`]: the bytes of a chunk, and its share of the frame that it lies in.
//!
//! Absent on purpose: whose chunk it is.

use super::{Location, Result, Store};

/// What a chunk takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChunkSize {
    /// Its bytes, before compression.
    pub bytes: u64,
    /// Its share of its frame, after compression.
    pub stored_bytes: u64,
}

impl Store {
    /// Returns what the chunk in this place takes; `None` when there is none.
    pub fn size_at(&self, at: Location) -> Result<Option<ChunkSize>> {
        let Some(header) = self.inner.header(at)? else { return Ok(None) };
        let entry = header.entries.get(usize::from(at.slot));
        Ok(entry.map(|entry| {
            let (bytes, raw) = (u64::from(entry.len), u64::from(header.raw_bytes).max(1));
            let whole = u128::from(header.frame_bytes()) * u128::from(bytes);
            let share = u64::try_from(whole / u128::from(raw)).unwrap_or(u64::MAX);
            ChunkSize { bytes, stored_bytes: share.min(header.frame_bytes()) }
        }))
    }
}
