//! The frame: the one form in which anything lies in a pack.
//!
//! Owns the codec of frame headers, of the lists in them and of the side data of tree chunks.
//!
//! ```text
//! offset size field (little-endian)
//!      0    4 magic "PYRF"
//!      4    1 kind: 1 data, 2 tree, 3 record, 4 footer, 5 image part; 6 bitmap is reserved
//!      5    1 codec of the payload: 0 none, 1 lz4 (block), 2 zstd
//!      6    2 flags: bit 0 is reserved for location hints in the side data of tree chunks;
//!             bit 1: the frame lies in an aux pack
//!      8    4 count of the list's items (0 in records and footers)
//!     12    4 bytes of the list
//!     16    4 bytes of the payload as stored
//!     20    4 bytes of the payload when decoded
//!     24    4 crc32c of the payload as stored
//!     28    8 zeros
//!     36    4 crc32c of bytes 0..36 and of the list, seeded with volume, pack and offset
//!     40      the list, the payload, then zeros up to a multiple of 8
//! ```
//!
//! Invariants: (1) a header that decodes was written for this volume, this pack and this offset;
//! (2) the lengths in a decoded list add up to the decoded payload; (3) decoding any bytes ends
//! with a value or an error, and allocates no more than they hold.
//!
//! Absent on purpose: files, and what an address means.

use crate::chunk::{ADDRESS_BYTES, Address, Tree};

/// Bytes of a frame header without its list.
pub const FRAME_HEAD_BYTES: usize = 40;
/// Frames start at multiples of this.
pub const FRAME_ALIGN: u64 = 8;
/// Chunks of one frame at most: a slot is one byte.
pub const FRAME_CHUNKS_MAX: usize = 255;
/// A builder is closed before its payload passes this, unless one chunk alone is longer.
pub const FRAME_PAYLOAD_BYTES: usize = 64 * 1024;
/// A list is never longer: what claims to be is no header.
pub const LIST_BYTES_MAX: usize = 1024 * 1024;

/// Compressed payloads are never longer when decoded: what claims to be is damaged. It is far more
/// than [`FRAME_PAYLOAD_BYTES`] and the longest chunk.
const PACKED_BYTES_MAX: u32 = 4 * 1024 * 1024;

/// The flag of all frames in aux packs but the footer: so that one whose header is damaged is
/// not taken for a part of the log.
pub const FLAG_AUX: u16 = 2;

/// The first bytes of every frame.
pub const FRAME_MAGIC: [u8; 4] = *b"PYRF";
const DATA_ITEM_BYTES: usize = 36;
const TREE_ITEM_BYTES: usize = 48;

const _: () = assert!(FRAME_HEAD_BYTES.is_multiple_of(FRAME_ALIGN as usize));
const _: () = assert!(FRAME_CHUNKS_MAX * TREE_ITEM_BYTES <= LIST_BYTES_MAX);

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Data chunks.
    Data,
    /// Tree chunks.
    Tree,
    /// A commit record.
    Record,
    /// The footer of a sealed pack.
    Footer,
    /// A part of an image of the metadata.
    Image,
    /// Something that this version passes over.
    Other(u8),
}

impl Kind {
    fn to_byte(self) -> u8 {
        match self {
            Kind::Data => 1,
            Kind::Tree => 2,
            Kind::Record => 3,
            Kind::Footer => 4,
            Kind::Image => 5,
            Kind::Other(byte) => byte,
        }
    }

    fn from_byte(byte: u8) -> Kind {
        match byte {
            1 => Kind::Data,
            2 => Kind::Tree,
            3 => Kind::Record,
            4 => Kind::Footer,
            5 => Kind::Image,
            other => Kind::Other(other),
        }
    }
}

/// How the payload of a frame is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    None,
    /// An lz4 block without its length.
    Lz4,
    /// A zstd frame.
    Zstd,
}

impl Codec {
    fn to_byte(self) -> u8 {
        match self {
            Codec::None => 0,
            Codec::Lz4 => 1,
            Codec::Zstd => 2,
        }
    }

    fn from_byte(byte: u8) -> Option<Codec> {
        match byte {
            0 => Some(Codec::None),
            1 => Some(Codec::Lz4),
            2 => Some(Codec::Zstd),
            _ => None,
        }
    }
}

/// One chunk of a frame's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub address: Address,
    /// File bytes below it; the length of a data chunk.
    pub span: u64,
    /// Children of a tree chunk; 0 for a data chunk.
    pub children: u16,
    /// Where it starts in the decoded payload.
    pub start: u32,
    /// Bytes in the decoded payload, side data included.
    pub len: u32,
}

impl Entry {
    /// Returns the bytes of the chunk, side data included, in its frame's decoded payload.
    pub fn slice<'a>(&self, payload: &'a [u8]) -> Option<&'a [u8]> {
        let start = self.start as usize;
        payload.get(start..start.checked_add(self.len as usize)?)
    }

    /// Bytes of [`Self::hashed`].
    pub fn hashed_bytes(&self) -> u64 {
        match self.children {
            0 => u64::from(self.len),
            children => u64::from(children) * ADDRESS_BYTES as u64,
        }
    }

    /// Returns the part of [`Self::slice`] that is hashed.
    pub fn hashed<'a>(&self, slice: &'a [u8]) -> Option<&'a [u8]> {
        match self.children {
            0 => Some(slice),
            children => slice.get(..usize::from(children) * ADDRESS_BYTES),
        }
    }
}

/// A decoded frame header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the frame holds.
    pub kind: Kind,
    /// How its payload is stored.
    pub codec: Codec,
    /// Bits of the format's later versions.
    pub flags: u16,
    /// Bytes of the list.
    pub list_bytes: u32,
    /// Bytes of the payload as stored.
    pub stored_bytes: u32,
    /// Bytes of the payload when decoded.
    pub raw_bytes: u32,
    /// Checksum of the payload as stored.
    pub payload_crc: u32,
    /// Checksum of the header and its list.
    pub header_crc: u32,
    /// The chunks, for data and tree frames.
    pub entries: Vec<Entry>,
}

impl Header {
    /// Bytes from the start of the frame to its payload.
    pub fn head_bytes(&self) -> u64 {
        FRAME_HEAD_BYTES as u64 + u64::from(self.list_bytes)
    }

    /// Bytes from the start of the frame to the start of the next.
    pub fn frame_bytes(&self) -> u64 {
        align(self.head_bytes() + u64::from(self.stored_bytes))
    }

    /// Bytes that the decoded header takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        (size_of::<Header>() + self.entries.len() * size_of::<Entry>()) as u64
    }
}

/// Rounds up to where a frame may start.
pub fn align(offset: u64) -> u64 {
    offset.next_multiple_of(FRAME_ALIGN)
}

/// To what a header is bound, so that bytes of another life never pass for a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// The volume.
    pub volume_id: [u8; 16],
    /// The pack in it.
    pub pack: u64,
}

impl Life {
    /// Returns the seed of checksums at `offset` of the pack.
    pub fn seed(&self, offset: u64) -> u32 {
        let crc = crc32c::crc32c(&self.volume_id);
        let crc = crc32c::crc32c_append(crc, &self.pack.to_le_bytes());
        crc32c::crc32c_append(crc, &offset.to_le_bytes())
    }
}

/// What a frame consists of, before it has a place.
pub struct Parts<'a> {
    /// What it holds.
    pub kind: Kind,
    /// How `payload` is stored.
    pub codec: Codec,
    /// Items of the list.
    pub count: u32,
    /// The encoded list.
    pub list: &'a [u8],
    /// The payload as stored.
    pub payload: &'a [u8],
    /// Bytes of the payload when decoded.
    pub raw_bytes: u32,
}

/// Builds a frame, padding included, whose header checksum is still missing: see [`place`].
///
/// List and payload must be shorter than 4 GiB.
pub fn encode(parts: &Parts<'_>) -> Vec<u8> {
    assert!(parts.list.len() <= LIST_BYTES_MAX, "lists are bounded by the builders");
    assert!(parts.payload.len() <= u32::MAX as usize, "payloads are bounded by the pack");
    let length = FRAME_HEAD_BYTES + parts.list.len() + parts.payload.len();
    let mut bytes = Vec::with_capacity(align(length as u64) as usize);
    bytes.extend_from_slice(&FRAME_MAGIC);
    bytes.extend_from_slice(&[parts.kind.to_byte(), parts.codec.to_byte(), 0, 0]);
    bytes.extend_from_slice(&parts.count.to_le_bytes());
    bytes.extend_from_slice(&(parts.list.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(parts.payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&parts.raw_bytes.to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(parts.payload).to_le_bytes());
    bytes.extend_from_slice(&[0; 12]);
    bytes.extend_from_slice(parts.list);
    bytes.extend_from_slice(parts.payload);
    bytes.resize(align(length as u64) as usize, 0);
    bytes
}

/// Marks a frame made by [`encode`] as one of an aux pack, before it is placed.
pub fn mark_aux(frame: &mut [u8]) {
    if let Some(low) = frame.get_mut(6) {
        *low |= FLAG_AUX as u8;
    }
}

/// Writes the header checksum for a place into a frame made by [`encode`]; returns it.
pub fn place(frame: &mut [u8], seed: u32) -> u32 {
    let list_bytes = u32_at(frame, 12).unwrap_or(0) as usize;
    let crc = header_crc(frame, list_bytes, seed).unwrap_or(0);
    if let Some(field) = frame.get_mut(36..40) {
        field.copy_from_slice(&crc.to_le_bytes());
    }
    crc
}

fn header_crc(frame: &[u8], list_bytes: usize, seed: u32) -> Option<u32> {
    let crc = crc32c::crc32c_append(seed, frame.get(..36)?);
    let list = frame.get(FRAME_HEAD_BYTES..FRAME_HEAD_BYTES.checked_add(list_bytes)?)?;
    Some(crc32c::crc32c_append(crc, list))
}

/// Why bytes are no frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoHeader {
    /// They may be one, but this many bytes are needed to tell.
    Short(usize),
    /// They are none.
    Invalid,
}

/// Decodes the header and list at the start of `bytes`.
pub fn decode(bytes: &[u8], seed: u32) -> Result<Header, NoHeader> {
    if bytes.len() < FRAME_HEAD_BYTES {
        return Err(NoHeader::Short(FRAME_HEAD_BYTES));
    }
    if !bytes.starts_with(&FRAME_MAGIC) {
        return Err(NoHeader::Invalid);
    }
    let list_bytes = u32_at(bytes, 12).ok_or(NoHeader::Invalid)?;
    if list_bytes as usize > LIST_BYTES_MAX {
        return Err(NoHeader::Invalid);
    }
    let head_bytes = FRAME_HEAD_BYTES + list_bytes as usize;
    if bytes.len() < head_bytes {
        return Err(NoHeader::Short(head_bytes));
    }
    decode_checked(bytes, list_bytes, seed).ok_or(NoHeader::Invalid)
}

fn decode_checked(bytes: &[u8], list_bytes: u32, seed: u32) -> Option<Header> {
    let crc = u32_at(bytes, 36)?;
    if header_crc(bytes, list_bytes as usize, seed)? != crc {
        return None;
    }
    let kind = Kind::from_byte(*bytes.get(4)?);
    let codec = Codec::from_byte(*bytes.get(5)?)?;
    let count = u32_at(bytes, 8)? as usize;
    let (stored_bytes, raw_bytes) = (u32_at(bytes, 16)?, u32_at(bytes, 20)?);
    if codec == Codec::None && stored_bytes != raw_bytes {
        return None;
    }
    let list = bytes.get(FRAME_HEAD_BYTES..FRAME_HEAD_BYTES + list_bytes as usize)?;
    let entries = match kind {
        Kind::Data => decode_list(list, count, raw_bytes, DATA_ITEM_BYTES, data_item)?,
        Kind::Tree => decode_list(list, count, raw_bytes, TREE_ITEM_BYTES, tree_item)?,
        Kind::Record | Kind::Footer | Kind::Image | Kind::Other(_) => Vec::new(),
    };
    Some(Header {
        kind,
        codec,
        flags: u16::from_le_bytes(bytes.get(6..8)?.try_into().ok()?),
        list_bytes,
        stored_bytes,
        raw_bytes,
        payload_crc: u32_at(bytes, 24)?,
        header_crc: crc,
        entries,
    })
}

fn decode_list(
    list: &[u8],
    count: usize,
    raw_bytes: u32,
    item_bytes: usize,
    item: fn(&[u8]) -> Option<Entry>,
) -> Option<Vec<Entry>> {
    if count == 0 || count > FRAME_CHUNKS_MAX || list.len() != count * item_bytes {
        return None;
    }
    let mut entries = Vec::with_capacity(count);
    let mut start = 0_u32;
    for bytes in list.chunks_exact(item_bytes) {
        let mut entry = item(bytes)?;
        entry.start = start;
        start = start.checked_add(entry.len)?;
        entries.push(entry);
    }
    (start == raw_bytes).then_some(entries)
}

fn data_item(bytes: &[u8]) -> Option<Entry> {
    let len = u32_at(bytes, 32)?;
    let address = Address(bytes.get(..32)?.try_into().ok()?);
    Some(Entry { address, span: u64::from(len), children: 0, start: 0, len })
}

fn tree_item(bytes: &[u8]) -> Option<Entry> {
    let children = u16::from_le_bytes(bytes.get(40..42)?.try_into().ok()?);
    let side_bytes = u32_at(bytes, 44)?;
    if children == 0 {
        return None;
    }
    Some(Entry {
        address: Address(bytes.get(..32)?.try_into().ok()?),
        span: u64_at(bytes, 32)?,
        children,
        start: 0,
        len: side_bytes.checked_add(u32::from(children) * ADDRESS_BYTES as u32)?,
    })
}

/// Encodes the list of a frame of `kind`.
pub fn encode_list(kind: Kind, entries: &[Entry]) -> Vec<u8> {
    let mut list = Vec::with_capacity(entries.len() * TREE_ITEM_BYTES);
    for entry in entries {
        list.extend_from_slice(&entry.address.0);
        if kind == Kind::Tree {
            let side_bytes = entry.len - u32::from(entry.children) * ADDRESS_BYTES as u32;
            list.extend_from_slice(&entry.span.to_le_bytes());
            list.extend_from_slice(&entry.children.to_le_bytes());
            list.extend_from_slice(&[0; 2]);
            list.extend_from_slice(&side_bytes.to_le_bytes());
        } else {
            list.extend_from_slice(&entry.len.to_le_bytes());
        }
    }
    list
}

/// Appends what lies in a tree frame for `tree`: the children, then the side data.
///
/// The side data is `filled`, run-length encoded: (count, value) as LEB128 numbers, repeated.
pub fn encode_tree(tree: &Tree, out: &mut Vec<u8>) {
    for child in &tree.children {
        out.extend_from_slice(&child.0);
    }
    let mut rest = tree.filled.as_slice();
    while let Some(&value) = rest.first() {
        let run = rest.iter().take_while(|other| **other == value).count();
        put_varint(out, run as u64);
        put_varint(out, value);
        rest = rest.get(run..).unwrap_or_default();
    }
}

/// Decodes a tree chunk of `entry` from its bytes; `None` when they make no sense.
pub fn decode_tree(entry: &Entry, bytes: &[u8]) -> Option<Tree> {
    let children_bytes = entry.hashed(bytes)?;
    let mut side = bytes.get(children_bytes.len()..)?;
    let children: Vec<Address> = children_bytes
        .as_chunks::<ADDRESS_BYTES>()
        .0
        .iter()
        .map(|address| Address(*address))
        .collect();
    let mut filled = Vec::with_capacity(children.len());
    while filled.len() < children.len() {
        let run = get_varint(&mut side)?;
        let value = get_varint(&mut side)?;
        if run == 0 || run > (children.len() - filled.len()) as u64 {
            return None;
        }
        filled.resize(filled.len() + run as usize, value);
    }
    Some(Tree { span: entry.span, children, filled })
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn get_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Reads a little-endian number.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Reads a little-endian number.
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Returns the smaller of `raw` compressed and `raw` itself, and which it is.
///
/// What does not shrink by a sixteenth stays as it is, so that one chunk can be read alone.
pub fn compress(compression: super::Compression, raw: &[u8]) -> (Codec, Option<Vec<u8>>) {
    let (codec, packed) = match compression {
        super::Compression::None => return (Codec::None, None),
        super::Compression::Lz4 => (Codec::Lz4, Some(lz4_flex::block::compress(raw))),
        super::Compression::Zstd(level) => (Codec::Zstd, zstd::bulk::compress(raw, level).ok()),
    };
    match packed {
        Some(packed) if packed.len() + raw.len() / 16 <= raw.len() => (codec, Some(packed)),
        _ => (Codec::None, None),
    }
}

/// Decodes a payload; `None` when it is not `raw_bytes` long in the end.
pub fn decompress(codec: Codec, stored: &[u8], raw_bytes: u32) -> Option<Vec<u8>> {
    if codec != Codec::None && PACKED_BYTES_MAX < raw_bytes {
        return None;
    }
    let raw = match codec {
        Codec::None => stored.to_vec(),
        Codec::Lz4 => lz4_flex::block::decompress(stored, raw_bytes as usize).ok()?,
        Codec::Zstd => zstd::bulk::decompress(stored, raw_bytes as usize).ok()?,
    };
    (raw.len() == raw_bytes as usize).then_some(raw)
}
