//! Runs of the index: immutable sorted files, read through `Disk`.
//!
//! Owns the codec of runs, their names, look-ups in them, and writing them.
//!
//! ```text
//! block 0 (4096 bytes)                        blocks 1.. (4096 bytes each)
//! offset size field (little-endian)           offset   size field
//!      0    8 magic "PYRRUN01"                     0 16*255 entries: the first 8 address bytes
//!      8   16 volume id                                     as a big-endian number, location
//!     24    8 count of entries                 4080       12 zeros
//!     32    8 pack where coverage starts       4092        4 crc32c of the 4092 bytes before
//!     40    8 offset there
//!     48    8 pack where coverage ends         The last block is filled up with zeros.
//!     56    8 offset there
//!     64    8 sequence of the last commit record before the end
//!     72    8 chunks stored up to the end
//!     80    8 their bytes, before compression
//!     88 4004 zeros
//!   4092    4 crc32c of the 4092 bytes before
//! ```
//!
//! A location is `pack << 36 | offset / 8 << 8 | slot`. Entries are sorted by prefix, then
//! location.
//!
//! Invariants: (1) a run has its final name only once it is durable; (2) it covers only frames in
//! front of a commit record that is durable.
//!
//! Absent on purpose: what is in memory.

use std::io;
use std::sync::Arc;

use super::frame::{u32_at, u64_at};
use super::{COUNT_MAX, LogPosition, pack};
use crate::sys::{Access, Disk, DiskFile};

/// The directory of runs.
pub const INDEX_DIR: &str = "index";
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;
/// Entries of a block.
pub const BLOCK_ENTRIES: u64 = 255;

const MAGIC: [u8; 8] = *b"PYRRUN01";
const ENTRY_BYTES: usize = 16;
const CRC_AT: usize = BLOCK_BYTES - 4;

/// An entry: prefix of the address and packed location.
pub type RunEntry = (u64, u64);

/// Sums over all chunks of the log up to some place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Chunks that were stored.
    pub chunks: u64,
    /// Their bytes before compression.
    pub bytes: u64,
}

impl Totals {
    /// Takes off what is gone.
    pub fn lower(&mut self, gone: Totals) {
        self.chunks = self.chunks.saturating_sub(gone.chunks);
        self.bytes = self.bytes.saturating_sub(gone.bytes);
    }
}

/// What the first block of a run says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunHead {
    /// How many entries there are.
    pub entries: u64,
    /// Pack and offset of the first frame that may be covered.
    pub from: (u64, u64),
    /// Behind the last frame that is covered; the sequence is of the last record before.
    pub to: LogPosition,
    /// Sums from the start of the log to `to`.
    pub totals: Totals,
}

impl RunHead {
    fn encode(&self, volume_id: &[u8; 16]) -> Vec<u8> {
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        block.extend_from_slice(&MAGIC);
        block.extend_from_slice(volume_id);
        let numbers = [
            self.entries,
            self.from.0,
            self.from.1,
            self.to.pack,
            self.to.offset,
            self.to.sequence,
            self.totals.chunks,
            self.totals.bytes,
        ];
        for number in numbers {
            block.extend_from_slice(&number.to_le_bytes());
        }
        seal_block(&mut block);
        block
    }

    fn decode(block: &[u8], volume_id: &[u8; 16]) -> Option<RunHead> {
        if !is_sound(block) || !block.starts_with(&MAGIC) || block.get(8..24)? != volume_id {
            return None;
        }
        let head = RunHead {
            entries: u64_at(block, 24)?,
            from: (u64_at(block, 32)?, u64_at(block, 40)?),
            to: LogPosition {
                pack: u64_at(block, 48)?,
                offset: u64_at(block, 56)?,
                sequence: u64_at(block, 64)?,
            },
            totals: Totals { chunks: u64_at(block, 72)?, bytes: u64_at(block, 80)? },
        };
        let (pack, offset) = head.from;
        let from = LogPosition { pack, offset, ..head.to };
        let sums = head.totals.chunks < COUNT_MAX && head.totals.bytes < COUNT_MAX;
        (sums && from.is_possible() && head.to.is_possible()).then_some(head)
    }
}

fn seal_block(block: &mut Vec<u8>) {
    block.resize(CRC_AT, 0);
    let crc = crc32c::crc32c(block);
    block.extend_from_slice(&crc.to_le_bytes());
}

fn is_sound(block: &[u8]) -> bool {
    block.len() == BLOCK_BYTES && block.get(..CRC_AT).map(crc32c::crc32c) == u32_at(block, CRC_AT)
}

/// A run that is open.
pub struct Run {
    /// Its name in the directory of runs.
    pub name: String,
    /// What it covers.
    pub head: RunHead,
    file: Arc<dyn DiskFile>,
}

impl Run {
    /// Opens a run; `None` when it is damaged or not of this volume.
    pub fn open(disk: &dyn Disk, name: &str, volume_id: &[u8; 16]) -> io::Result<Option<Run>> {
        let file = disk.open(&format!("{INDEX_DIR}/{name}"), Access::Read)?;
        let block = pack::read(&*file, 0, BLOCK_BYTES)?;
        let Some(head) = RunHead::decode(&block, volume_id) else {
            return Ok(None);
        };
        let blocks = head.entries.div_ceil(BLOCK_ENTRIES);
        let expected = blocks.checked_add(1).and_then(|all| all.checked_mul(BLOCK_BYTES as u64));
        if Some(file.len()?) != expected {
            return Ok(None);
        }
        Ok(Some(Run { name: name.to_string(), head, file }))
    }

    /// Bytes of its file.
    pub fn file_bytes(&self) -> u64 {
        (self.blocks() + 1) * BLOCK_BYTES as u64
    }

    /// Blocks of entries.
    pub fn blocks(&self) -> u64 {
        self.head.entries.div_ceil(BLOCK_ENTRIES)
    }

    /// Reads `count` blocks of entries from `first` on, as one list; `None` when one is damaged.
    pub fn read_blocks(&self, first: u64, count: u64) -> io::Result<Option<Vec<RunEntry>>> {
        let count = count.min(self.blocks().saturating_sub(first));
        let offset = (first + 1) * BLOCK_BYTES as u64;
        let bytes = pack::read(&*self.file, offset, count as usize * BLOCK_BYTES)?;
        if bytes.len() != count as usize * BLOCK_BYTES {
            return Ok(None);
        }
        let mut entries = Vec::with_capacity(count as usize * BLOCK_ENTRIES as usize);
        for (index, block) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
            if !is_sound(block) {
                return Ok(None);
            }
            let before = (first + index as u64) * BLOCK_ENTRIES;
            let here = (self.head.entries - before).min(BLOCK_ENTRIES) as usize;
            let items = block.chunks_exact(ENTRY_BYTES).take(here);
            entries.extend(items.filter_map(|item| Some((u64_at(item, 0)?, u64_at(item, 8)?))));
        }
        Ok(Some(entries))
    }

    /// Returns the locations under `prefix`; `None` when a block on the way is damaged.
    ///
    /// Addresses are evenly spread, so the block is guessed from what is known of its
    /// neighbours; every fourth guess halves the rest, for runs that are not even.
    pub fn find(&self, prefix: u64) -> io::Result<Option<Vec<u64>>> {
        let (mut low, mut high) = (0, self.blocks());
        let (mut low_key, mut high_key) = (0, u64::MAX);
        let mut guesses = 0;
        // Looks for the first block whose last entry is not below the prefix.
        while low < high {
            guesses += 1;
            let guess = match guesses % 4 {
                0 => low.midpoint(high),
                _ => interpolate(prefix, (low_key, high_key), (low, high)),
            };
            let Some(entries) = self.read_blocks(guess, 1)? else {
                return Ok(None);
            };
            let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
                return Ok(None);
            };
            if last.0 < prefix {
                (low, low_key) = (guess + 1, last.0);
            } else if prefix <= first.0 && low < guess {
                (high, high_key) = (guess, first.0);
            } else {
                return self.collect(guess, prefix);
            }
        }
        self.collect(low, prefix)
    }

    fn collect(&self, first: u64, prefix: u64) -> io::Result<Option<Vec<u64>>> {
        let mut found = Vec::new();
        for block in first..self.blocks() {
            let Some(entries) = self.read_blocks(block, 1)? else {
                return Ok(None);
            };
            let start = entries.partition_point(|entry| entry.0 < prefix);
            let behind = entries.get(start..).unwrap_or_default();
            let equal = behind.iter().take_while(|entry| entry.0 == prefix);
            let before = found.len();
            found.extend(equal.map(|entry| entry.1));
            if found.len() - before < behind.len() || behind.is_empty() {
                break;
            }
        }
        Ok(Some(found))
    }
}

/// Guesses in which of the blocks `low..high` the key is, if keys are spread evenly.
fn interpolate(key: u64, keys: (u64, u64), blocks: (u64, u64)) -> u64 {
    let (low, high) = blocks;
    let width = u128::from(keys.1.saturating_sub(keys.0)).max(1);
    let along = u128::from(key.saturating_sub(keys.0)) * u128::from(high - low) / width;
    low + (along as u64).min(high - low - 1)
}

/// Returns the name of the run with this number.
pub fn run_name(number: u64) -> String {
    format!("{number:016x}.run")
}

/// Writes a run of at most `head.entries` entries that come in order, and makes it durable.
pub fn write(
    disk: &dyn Disk,
    number: u64,
    volume_id: &[u8; 16],
    head: RunHead,
    entries: &mut dyn FnMut() -> io::Result<Option<RunEntry>>,
) -> io::Result<Run> {
    let name = run_name(number);
    let path = format!("{INDEX_DIR}/{name}");
    let temporary = format!("{INDEX_DIR}/{number:016x}.tmp");
    let file = disk.open(&temporary, Access::CreateNew)?;
    let written = write_blocks(&*file, &head.encode(volume_id), entries)?;
    // How many there are is known only now: those of packs that are gone are left out.
    let head = RunHead { entries: written, ..head };
    file.write_all_at(&head.encode(volume_id), 0)?;
    file.sync()?;
    disk.rename(&temporary, &path)?;
    disk.sync_dir(INDEX_DIR)?;
    let file = disk.open(&path, Access::Read)?;
    Ok(Run { name, head, file })
}

fn write_blocks(
    file: &dyn DiskFile,
    head: &[u8],
    entries: &mut dyn FnMut() -> io::Result<Option<RunEntry>>,
) -> io::Result<u64> {
    const WRITE_BYTES: usize = 64 * BLOCK_BYTES;
    let mut buffer = head.to_vec();
    let mut offset = 0;
    let mut written = 0;
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    loop {
        let entry = entries()?;
        if let Some((prefix, location)) = entry {
            block.extend_from_slice(&prefix.to_le_bytes());
            block.extend_from_slice(&location.to_le_bytes());
            written += 1;
        }
        let full = block.len() == BLOCK_ENTRIES as usize * ENTRY_BYTES;
        if full || (entry.is_none() && !block.is_empty()) {
            seal_block(&mut block);
            buffer.append(&mut block);
        }
        if buffer.len() >= WRITE_BYTES || entry.is_none() {
            file.write_all_at(&buffer, offset)?;
            offset += buffer.len() as u64;
            buffer.clear();
        }
        if entry.is_none() {
            return Ok(written);
        }
    }
}

/// Gives the entries of a run in order, reading a few blocks at a time.
pub struct RunReader<'a> {
    run: &'a Run,
    next_block: u64,
    buffer: std::vec::IntoIter<RunEntry>,
}

impl<'a> RunReader<'a> {
    /// Starts at the first entry.
    pub fn new(run: &'a Run) -> RunReader<'a> {
        RunReader { run, next_block: 0, buffer: Vec::new().into_iter() }
    }

    /// Returns the next entry; an error of kind `InvalidData` when a block is damaged.
    pub fn next(&mut self) -> io::Result<Option<RunEntry>> {
        const BLOCKS: u64 = 32;
        if self.buffer.len() == 0 && self.next_block < self.run.blocks() {
            let Some(entries) = self.run.read_blocks(self.next_block, BLOCKS)? else {
                let text = "a block of a run of the index is damaged";
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            };
            self.next_block += BLOCKS;
            self.buffer = entries.into_iter();
        }
        Ok(self.buffer.next())
    }
}
