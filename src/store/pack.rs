//! The pack: an append-only file of frames.
//!
//! Owns the pack's header, its footer and trailer, its name, and finding frames in it. It is at
//! `packs/ab/<16 hex digits>.pack`: the digits are its number, `ab` the last two of them.
//!
//! ```text
//! offset size field (little-endian)           trailer: the last 16 bytes of a sealed pack
//!      0    8 magic "PYRPACK1"                     0    8 offset of the footer's frame
//!      8    4 format version: 1                    8    4 magic "PEND"
//!     12    4 kind: 1 log, 2 aux                  12    4 crc32c of bytes 0..12, seeded
//!     16    8 number
//!     24   16 volume id
//!     40    8 aux: the pack whose trees are copied
//!     48   12 zeros
//!     60    4 crc32c of bytes 0..60
//!     64      frames
//! ```
//!
//! The footer is a frame whose payload repeats, for every frame before it, its offset (8 bytes),
//! the length of header and list (4), zeros (4), and header and list themselves.
//!
//! Invariant: a number is never used twice, and that of the log's packs rises.
//!
//! Absent on purpose: which pack is written to, and when anything is durable.

use std::io;
use std::sync::Arc;

use super::frame::{
    self, FRAME_HEAD_BYTES, FRAME_MAGIC, Header, Kind, Life, NoHeader, Parts, align, u32_at, u64_at,
};
use crate::sys::{Disk, DiskFile};

/// Bytes of a pack's header.
pub const PACK_HEADER_BYTES: u64 = 64;
/// Bytes of a sealed pack's trailer.
pub const TRAILER_BYTES: u64 = 16;
/// The version that this code writes, and the highest that it reads.
pub const PACK_VERSION: u32 = 1;
/// The directory of all packs.
pub const PACKS_DIR: &str = "packs";

/// Numbers of packs are below this: a location has 28 bits for them.
pub const PACK_NUMBERS: u64 = 1 << 28;

/// What follows the number in the name of an aux pack that is being written.
pub const TEMPORARY: &str = ".pack.tmp";

const MAGIC: [u8; 8] = *b"PYRPACK1";
const TRAILER_MAGIC: [u8; 4] = *b"PEND";
const FOOTER_ITEM_BYTES: usize = 16;
/// How much is read for a header whose length is not known.
const PROBE_BYTES: usize = 4096;

/// What a pack is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackKind {
    /// Part of the log: new chunks and commit records.
    Log,
    /// Beside the log: written under another name and whole once it has its own.
    Aux {
        /// The pack of the log whose trees it has copies of; 0: it holds something else.
        source: u64,
    },
}

/// What the header of a pack says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackHeader {
    /// A pack of this volume, with the number that its name gives.
    Good(PackKind),
    /// A version that this code does not know.
    Newer(u32),
    /// Anything else.
    Damaged,
}

/// Encodes the header of a pack.
pub fn encode_header(life: Life, kind: PackKind) -> [u8; PACK_HEADER_BYTES as usize] {
    let (kind, source): (u32, u64) = match kind {
        PackKind::Log => (1, 0),
        PackKind::Aux { source } => (2, source),
    };
    let mut bytes = Vec::with_capacity(PACK_HEADER_BYTES as usize);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&PACK_VERSION.to_le_bytes());
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&life.pack.to_le_bytes());
    bytes.extend_from_slice(&life.volume_id);
    bytes.extend_from_slice(&source.to_le_bytes());
    bytes.extend_from_slice(&[0; 12]);
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    let mut header = [0; PACK_HEADER_BYTES as usize];
    header.copy_from_slice(&bytes);
    header
}

/// Decodes the header of a pack.
pub fn decode_header(bytes: &[u8], life: Life) -> PackHeader {
    let Some(bytes) = bytes.get(..PACK_HEADER_BYTES as usize) else {
        return PackHeader::Damaged;
    };
    let sound = bytes.get(..60).is_some_and(|head| u32_at(bytes, 60) == Some(crc32c::crc32c(head)));
    if !sound || !bytes.starts_with(&MAGIC) {
        return PackHeader::Damaged;
    }
    match u32_at(bytes, 8) {
        Some(PACK_VERSION) => {}
        Some(version) if version > PACK_VERSION => return PackHeader::Newer(version),
        _ => return PackHeader::Damaged,
    }
    if u64_at(bytes, 16) != Some(life.pack) || bytes.get(24..40) != Some(&life.volume_id) {
        return PackHeader::Damaged;
    }
    match u32_at(bytes, 12) {
        Some(1) => PackHeader::Good(PackKind::Log),
        Some(2) => {
            let source = u64_at(bytes, 40).unwrap_or(0);
            PackHeader::Good(PackKind::Aux { source })
        }
        _ => PackHeader::Damaged,
    }
}

/// Returns the directory of the pack with this number.
pub fn pack_dir(number: u64) -> String {
    format!("{PACKS_DIR}/{:02x}", number & 0xff)
}

/// Makes a directory unless it is there.
pub fn make_dir(disk: &dyn Disk, path: &str) -> io::Result<()> {
    match disk.create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Returns the path of the pack with this number.
pub fn pack_path(number: u64) -> String {
    format!("{}/{number:016x}.pack", pack_dir(number))
}

/// Returns the number in the name of a pack, with `suffix` after the digits.
pub fn parse_name(name: &str, suffix: &str) -> Option<u64> {
    let digits = name.strip_suffix(suffix)?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if digits.len() != 16 || !plain {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

/// Adds a frame that was placed at `offset` to the payload of a footer.
pub fn footer_push(payload: &mut Vec<u8>, offset: u64, head: &[u8]) {
    payload.extend_from_slice(&offset.to_le_bytes());
    payload.extend_from_slice(&(head.len() as u32).to_le_bytes());
    payload.extend_from_slice(&[0; 4]);
    payload.extend_from_slice(head);
}

/// Builds footer and trailer for the end of a pack at `offset`; returns the header checksum too.
pub fn encode_footer(life: Life, offset: u64, payload: &[u8]) -> (Vec<u8>, u32) {
    let mut bytes = frame::encode(&Parts {
        kind: Kind::Footer,
        codec: frame::Codec::None,
        count: 0,
        list: &[],
        payload,
        raw_bytes: payload.len() as u32,
    });
    let crc = frame::place(&mut bytes, life.seed(offset));
    let mut trailer = offset.to_le_bytes().to_vec();
    trailer.extend_from_slice(&TRAILER_MAGIC);
    let trailer_crc = crc32c::crc32c_append(life.seed(u64::MAX), &trailer);
    trailer.extend_from_slice(&trailer_crc.to_le_bytes());
    bytes.extend_from_slice(&trailer);
    (bytes, crc)
}

/// A frame that was found in a pack.
#[derive(Debug, Clone)]
pub struct Found {
    /// Where it starts.
    pub offset: u64,
    /// Its header.
    pub header: Header,
    /// Header and list as they lie there.
    pub head: Vec<u8>,
}

impl Found {
    /// Where the next frame starts.
    pub fn end(&self) -> u64 {
        self.offset + self.header.frame_bytes()
    }

    /// The encoded list.
    pub fn list(&self) -> &[u8] {
        self.head.get(FRAME_HEAD_BYTES..).unwrap_or_default()
    }
}

/// What is at a place of a pack.
#[derive(Debug)]
pub enum At {
    /// A frame that lies wholly in the file.
    Frame(Box<Found>),
    /// The end of the file, or the trailer of a sealed pack.
    End,
    /// Neither.
    Invalid,
}

/// A pack that is being read.
pub struct PackFile {
    /// The file.
    pub file: Arc<dyn DiskFile>,
    /// Its length.
    pub len: u64,
    /// To what its frames are bound.
    pub life: Life,
    /// Whether sectors that the disk cannot read count as zeros, and so as damage.
    forgiving: bool,
}

impl PackFile {
    /// Starts reading the pack of `life` in `file`.
    pub fn new(file: Arc<dyn DiskFile>, life: Life) -> io::Result<PackFile> {
        let len = file.len()?;
        Ok(PackFile { file, len, life, forgiving: false })
    }

    /// The same, for who looks for damage. Never for who decides where the log ends: a disk that
    /// cannot work for a while must not make it shorter.
    pub fn forgiving(self) -> PackFile {
        PackFile { forgiving: true, ..self }
    }

    /// Reads up to `len` bytes; fewer when the file ends before.
    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        match self.forgiving {
            true => read_forgiving(&*self.file, offset, len),
            false => read(&*self.file, offset, len),
        }
    }

    /// Whether it has no frames, as when the disk was full when it was begun.
    pub fn is_empty(&self) -> bool {
        self.len <= PACK_HEADER_BYTES
    }

    /// Reads the pack's header.
    pub fn header(&self) -> io::Result<PackHeader> {
        Ok(decode_header(&self.read(0, PACK_HEADER_BYTES as usize)?, self.life))
    }

    /// Reads the frame header at `offset`; `None` when there is none.
    pub fn probe(&self, offset: u64) -> io::Result<Option<Found>> {
        let mut bytes = self.read(offset, PROBE_BYTES)?;
        let seed = self.life.seed(offset);
        let mut decoded = frame::decode(&bytes, seed);
        if let Err(NoHeader::Short(needed)) = decoded
            && bytes.len() == PROBE_BYTES
        {
            bytes = self.read(offset, needed)?;
            decoded = frame::decode(&bytes, seed);
        }
        Ok(decoded.ok().map(|header| {
            bytes.truncate(header.head_bytes() as usize);
            Found { offset, header, head: bytes }
        }))
    }

    /// Whether it is an aux pack: when its header is damaged its first frame tells.
    pub fn is_aux(&self) -> io::Result<bool> {
        match self.header()? {
            PackHeader::Good(kind) => Ok(kind != PackKind::Log),
            PackHeader::Newer(_) => Ok(false),
            PackHeader::Damaged => {
                let first = match self.at(PACK_HEADER_BYTES)? {
                    At::Frame(found) => Some(found),
                    At::End => None,
                    At::Invalid => self.resync(PACK_HEADER_BYTES)?,
                };
                Ok(first.is_some_and(|found| found.header.flags & frame::FLAG_AUX != 0))
            }
        }
    }

    /// Looks for a frame at `offset`.
    pub fn at(&self, offset: u64) -> io::Result<At> {
        if offset >= self.len {
            return Ok(At::End);
        }
        if let Some(found) = self.probe(offset)? {
            if found.end() <= self.len {
                return Ok(At::Frame(Box::new(found)));
            }
            return Ok(At::Invalid);
        }
        let at_trailer = offset + TRAILER_BYTES == self.len && self.trailer()?.is_some();
        Ok(if at_trailer { At::End } else { At::Invalid })
    }

    /// Looks for the first frame behind `offset`.
    pub fn resync(&self, offset: u64) -> io::Result<Option<Box<Found>>> {
        const WINDOW_BYTES: usize = 1024 * 1024;
        let mut window_start = align(offset + 1);
        while window_start < self.len {
            let window = self.read(window_start, WINDOW_BYTES)?;
            for (index, word) in window.chunks_exact(8).enumerate() {
                if !word.starts_with(&FRAME_MAGIC) {
                    continue;
                }
                if let At::Frame(found) = self.at(window_start + 8 * index as u64)? {
                    return Ok(Some(found));
                }
            }
            window_start += WINDOW_BYTES as u64;
        }
        Ok(None)
    }

    /// Reads the payload of a frame as it is stored; shorter when the file ends before.
    pub fn payload(&self, found: &Found) -> io::Result<Vec<u8>> {
        let offset = found.offset + found.header.head_bytes();
        self.read(offset, found.header.stored_bytes as usize)
    }

    /// Whether the payload of a frame is what its header says.
    pub fn is_sound(&self, found: &Found) -> io::Result<bool> {
        let payload = self.payload(found)?;
        let whole = payload.len() == found.header.stored_bytes as usize;
        Ok(whole && crc32c::crc32c(&payload) == found.header.payload_crc)
    }

    fn trailer(&self) -> io::Result<Option<u64>> {
        let Some(start) = self.len.checked_sub(TRAILER_BYTES) else {
            return Ok(None);
        };
        let bytes = self.read(start, TRAILER_BYTES as usize)?;
        Ok(decode_trailer(&bytes, self.life))
    }

    /// Returns what the footer of a sealed pack repeats; `None` when it has no good one.
    pub fn footer(&self) -> io::Result<Option<Vec<Found>>> {
        let Some(offset) = self.trailer()? else {
            return Ok(None);
        };
        let At::Frame(footer) = self.at(offset)? else {
            return Ok(None);
        };
        if footer.header.kind != Kind::Footer || footer.end() + TRAILER_BYTES != self.len {
            return Ok(None);
        }
        let payload = self.payload(&footer)?;
        let whole = payload.len() == footer.header.stored_bytes as usize;
        if !whole || crc32c::crc32c(&payload) != footer.header.payload_crc {
            return Ok(None);
        }
        Ok(decode_footer(&payload, self.life, footer.offset))
    }

    /// Returns all frames from the start of the pack up to `end`, and the gaps between them.
    ///
    /// By the footer where there is a good one, else frame by frame.
    pub fn frames(&self, end: u64) -> io::Result<(Vec<Found>, Vec<Gap>)> {
        if let Some(mut frames) = self.footer()? {
            frames.retain(|found| found.end() <= end);
            return Ok((frames, Vec::new()));
        }
        self.walk(PACK_HEADER_BYTES, end)
    }

    /// Walks the frames from `start` to `end` (or the end of the file).
    pub fn walk(&self, start: u64, end: u64) -> io::Result<(Vec<Found>, Vec<Gap>)> {
        let mut frames = Vec::new();
        let mut gaps = Vec::new();
        let mut offset = start;
        while offset < end {
            let next = match self.at(offset)? {
                At::Frame(found) => Some(found),
                At::End => break,
                At::Invalid => {
                    let found = self.resync(offset)?;
                    let gap_end = found.as_ref().map_or(self.len, |found| found.offset);
                    gaps.push(Gap { start: offset, end: gap_end.min(end) });
                    found
                }
            };
            match next {
                Some(found) if found.end() <= end => {
                    offset = found.end();
                    frames.push(*found);
                }
                _ => break,
            }
        }
        Ok((frames, gaps))
    }
}

/// A range of a pack in which no frame could be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Where the next frame should have started.
    pub start: u64,
    /// Where the next good frame, or the end, is.
    pub end: u64,
}

impl Gap {
    /// Whether a frame that should start at `offset` lies in it.
    pub fn contains(&self, offset: u64) -> bool {
        (self.start..self.end).contains(&offset)
    }
}

fn decode_trailer(bytes: &[u8], life: Life) -> Option<u64> {
    let crc = crc32c::crc32c_append(life.seed(u64::MAX), bytes.get(..12)?);
    let sound = bytes.get(8..12)? == TRAILER_MAGIC && u32_at(bytes, 12)? == crc;
    sound.then_some(u64_at(bytes, 0)?)
}

/// Decodes what the footer at `end` repeats: frames that lie one behind the other, up to there.
fn decode_footer(payload: &[u8], life: Life, end: u64) -> Option<Vec<Found>> {
    let mut frames = Vec::new();
    let mut rest = payload;
    let mut free_from = PACK_HEADER_BYTES;
    while !rest.is_empty() {
        let offset = u64_at(rest, 0)?;
        if offset < free_from || end <= offset {
            return None;
        }
        let head_end = FOOTER_ITEM_BYTES.checked_add(u32_at(rest, 8)? as usize)?;
        let head = rest.get(FOOTER_ITEM_BYTES..head_end)?;
        let header = frame::decode(head, life.seed(offset)).ok()?;
        free_from = offset.checked_add(header.frame_bytes())?;
        if head.len() as u64 != header.head_bytes() || end < free_from {
            return None;
        }
        frames.push(Found { offset, header, head: head.to_vec() });
        rest = rest.get(head_end..)?;
    }
    Some(frames)
}

/// Whether a disk says that it cannot read a place, rather than that it cannot work at all.
fn is_medium_error(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}

/// Reads up to `len` bytes; where the disk cannot read a sector, zeros stand for it.
pub fn read_forgiving(file: &dyn DiskFile, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    const BLOCK_BYTES: u64 = 512;
    match read(file, offset, len) {
        Err(error) if is_medium_error(&error) => {}
        read => return read,
    }
    let mut bytes = vec![0; len.min(file.len()?.saturating_sub(offset) as usize)];
    let mut rest = bytes.as_mut_slice();
    let mut at = offset;
    while !rest.is_empty() {
        let block = (BLOCK_BYTES - at % BLOCK_BYTES).min(rest.len() as u64) as usize;
        let (head, tail) = rest.split_at_mut(block);
        match file.read_at(head, at) {
            Err(error) if !is_medium_error(&error) => return Err(error),
            _ => {}
        }
        rest = tail;
        at += block as u64;
    }
    Ok(bytes)
}

/// Reads up to `len` bytes; fewer when the file ends before.
pub fn read(file: &dyn DiskFile, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let got = file.read_at(&mut bytes, offset)?;
    bytes.truncate(got);
    Ok(bytes)
}
