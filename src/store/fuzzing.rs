//! What fuzzing and its tests do with the records of packs and of the index.
//!
//! Owns one function for each record: any bytes have an answer without a panic, what is decoded is
//! encoded to the same again, and nothing is handed out that does not fit. Checksums keep nobody
//! out who knows how to make them: every function also takes the bytes with checksums that fit.

use std::sync::Arc;

use super::frame::{self, Codec, Header, Kind, Life, NoHeader, u32_at};
use super::image::ImageHead;
use super::pack::{self, PackFile, PackHeader, PackKind};
use super::record::RecordHead;
use super::run::{self, BLOCK_BYTES, INDEX_DIR, Run, RunReader};
use super::{Location, LogPosition};
use crate::chunk::Tree;
use crate::sys::sim::SimDisk;
use crate::sys::{Access, Disk, DiskFile};

/// The pack in which records are looked at.
const LIFE: Life = Life { volume_id: *b"0123456789abcdef", pack: 1 };

/// Where a frame alone is looked at.
const OFFSET: u64 = 64;

/// Takes bytes as the header of a pack.
pub fn pack_header(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    seal_pack_header(&mut sealed);
    for bytes in [bytes, &sealed] {
        if let PackHeader::Good(kind) = pack::decode_header(bytes, LIFE) {
            let encoded = pack::encode_header(LIFE, kind);
            let known = if kind == PackKind::Log { 40 } else { 48 };
            assert_eq!(bytes.get(..known), encoded.get(..known), "the rest is reserved");
        }
    }
}

/// Takes bytes as a frame: header, list, payload, the trees in it.
pub fn frame(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    seal_frame(&mut sealed, LIFE, OFFSET);
    for bytes in [bytes, &sealed] {
        match frame::decode(bytes, LIFE.seed(OFFSET)) {
            Ok(header) => decoded_frame(&header, bytes),
            Err(NoHeader::Short(needed)) => assert!(bytes.len() < needed),
            Err(NoHeader::Invalid) => {}
        }
    }
}

fn decoded_frame(header: &Header, bytes: &[u8]) {
    let sum: u64 = header.entries.iter().map(|entry| u64::from(entry.len)).sum();
    if matches!(header.kind, Kind::Data | Kind::Tree) {
        assert_eq!(sum, u64::from(header.raw_bytes));
        let list = frame::encode_list(header.kind, &header.entries);
        assert_eq!(list.len(), header.list_bytes as usize);
    }
    let stored = bytes.get(header.head_bytes() as usize..).unwrap_or_default();
    let stored = stored.get(..header.stored_bytes as usize);
    let raw = stored.and_then(|stored| frame::decompress(header.codec, stored, header.raw_bytes));
    let Some(raw) = raw else { return };
    assert_eq!(raw.len(), header.raw_bytes as usize);
    for entry in &header.entries {
        let slice = entry.slice(&raw);
        assert!(slice.is_some(), "the lengths add up");
        let slice = slice.unwrap_or_default();
        assert!(entry.hashed(slice).is_some_and(|part| part.len() as u64 == entry.hashed_bytes()));
        if entry.children == 0 {
            continue;
        }
        let Some(tree) = frame::decode_tree(entry, slice) else { continue };
        assert_eq!(tree.children.len(), usize::from(entry.children));
        let mut again = Vec::new();
        frame::encode_tree(&tree, &mut again);
        assert_eq!(frame::decode_tree(entry, &again), Some(tree));
    }
}

/// Takes bytes as the head of a commit record, of a part of an image, and as a location.
pub fn record_head(bytes: &[u8]) {
    if let Some(head) = RecordHead::decode(bytes) {
        let encoded = head.encode();
        assert_eq!(encoded.len(), bytes.len());
        assert_eq!(RecordHead::decode(&encoded), Some(head));
    }
    if let Some(head) = ImageHead::decode(bytes) {
        assert_eq!(ImageHead::decode(&head.encode()), Some(head));
    }
    if let Some(number) = frame::u64_at(bytes, 0) {
        assert_eq!(Location::unpack(number).pack(), number);
    }
}

/// Takes bytes as a whole pack: by its footer, and frame by frame.
pub fn whole_pack(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    seal_pack(&mut sealed, LIFE.volume_id, LIFE.pack);
    for bytes in [bytes, &sealed] {
        let file = file_of(&SimDisk::new(), "pack", bytes);
        let Ok(pack) = PackFile::new(file, LIFE) else { continue };
        let _ = pack.header();
        let by_footer = pack.footer().ok().flatten().unwrap_or_default();
        let (walked, gaps) = pack.walk(pack::PACK_HEADER_BYTES, u64::MAX).unwrap_or_default();
        let listed = pack.frames(bytes.len() as u64).unwrap_or_default().0;
        for gap in gaps {
            assert!(gap.start < gap.end && gap.end <= pack.len, "{gap:?}");
        }
        for frames in [&by_footer, &walked, &listed] {
            assert!(frames.is_sorted_by(|one, next| one.end() <= next.offset), "frames overlap");
        }
        for found in by_footer.iter().chain(&walked).chain(&listed) {
            assert!(found.end() <= pack.len, "a frame behind the end");
            let _ = pack.is_sound(found);
            if found.header.kind == Kind::Record {
                record_head(found.list());
            }
        }
    }
}

/// Takes bytes as a run of the index.
pub fn index_run(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    seal_run(&mut sealed);
    for bytes in [bytes, &sealed] {
        let disk = SimDisk::new();
        let _ = disk.create_dir(INDEX_DIR);
        let name = run::run_name(1);
        file_of(&disk, &format!("{INDEX_DIR}/{name}"), bytes);
        let Ok(Some(run)) = Run::open(&disk, &name, &LIFE.volume_id) else { continue };
        assert_eq!(run.file_bytes(), bytes.len() as u64);
        let mut reader = RunReader::new(&run);
        let mut entries = Vec::new();
        while let Ok(Some(entry)) = reader.next() {
            entries.push(entry);
        }
        let is_whole = entries.len() as u64 == run.head.entries && entries.is_sorted();
        for &(prefix, location) in entries.iter().step_by(1 + entries.len() / 8) {
            let found = run.find(prefix).ok().flatten().unwrap_or_default();
            assert!(!is_whole || found.contains(&location), "an entry is not found");
        }
        for prefix in [0, 1, u64::MAX / 3, u64::MAX] {
            let _ = run.find(prefix);
        }
    }
}

fn file_of(disk: &SimDisk, path: &str, bytes: &[u8]) -> Arc<dyn DiskFile> {
    let file = disk.open(path, Access::CreateNew).and_then(|file| {
        file.write_all_at(bytes, 0)?;
        Ok(file)
    });
    file.unwrap_or_else(|error| unreachable!("the simulated disk has room: {error}"))
}

fn seal_pack_header(bytes: &mut [u8]) {
    if let Some((head, crc)) = bytes.get_mut(..64).and_then(|head| head.split_at_mut_checked(60)) {
        crc.copy_from_slice(&crc32c::crc32c(head).to_le_bytes());
    }
}

/// Gives a frame the checksums that fit; returns how long it says to be.
fn seal_frame(bytes: &mut [u8], life: Life, offset: u64) -> Option<usize> {
    let list_bytes = u32_at(bytes, 12)? as usize;
    let stored_bytes = u32_at(bytes, 16)? as usize;
    let head_bytes = frame::FRAME_HEAD_BYTES.checked_add(list_bytes)?;
    let end = head_bytes.checked_add(stored_bytes)?;
    if let Some(payload) = bytes.get_mut(head_bytes..end) {
        let crc = crc32c::crc32c(payload);
        bytes.get_mut(24..28)?.copy_from_slice(&crc.to_le_bytes());
    }
    frame::place(bytes, life.seed(offset));
    Some(frame::align(end as u64) as usize)
}

/// Gives everything in a pack the checksums that fit.
pub fn seal_pack(bytes: &mut [u8], volume_id: [u8; 16], pack: u64) {
    let life = Life { volume_id, pack };
    seal_pack_header(bytes);
    let mut offset = pack::PACK_HEADER_BYTES as usize;
    while let Some(rest) = bytes.get_mut(offset..).filter(|rest| !rest.is_empty()) {
        if !rest.starts_with(&frame::FRAME_MAGIC) {
            offset += frame::FRAME_ALIGN as usize;
            continue;
        }
        if rest.get(4) == Some(&4) {
            seal_footer(rest, life);
        }
        let length = seal_frame(rest, life, offset as u64).filter(|length| *length < rest.len());
        offset += length.unwrap_or(frame::FRAME_ALIGN as usize);
    }
    let Some(start) = bytes.len().checked_sub(pack::TRAILER_BYTES as usize) else { return };
    if let Some((trailer, crc)) =
        bytes.get_mut(start..).and_then(|end| end.split_at_mut_checked(12))
    {
        let fitting = crc32c::crc32c_append(life.seed(u64::MAX), trailer);
        crc.copy_from_slice(&fitting.to_le_bytes());
    }
}

/// Gives the headers that a footer repeats the checksums that fit.
fn seal_footer(bytes: &mut [u8], life: Life) {
    let list_bytes = u32_at(bytes, 12).unwrap_or(0) as usize;
    let mut rest = bytes.get_mut(frame::FRAME_HEAD_BYTES.saturating_add(list_bytes)..);
    while let Some(item) = rest {
        let (Some(offset), Some(length)) = (frame::u64_at(item, 0), u32_at(item, 8)) else {
            return;
        };
        let Some((head, behind)) =
            item.get_mut(16..).and_then(|item| item.split_at_mut_checked(length as usize))
        else {
            return;
        };
        frame::place(head, life.seed(offset));
        rest = Some(behind);
    }
}

/// Gives every block of a run the checksum that fits.
pub fn seal_run(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(BLOCK_BYTES) {
        if let Some((content, crc)) = block.split_at_mut_checked(BLOCK_BYTES - 4) {
            crc.copy_from_slice(&crc32c::crc32c(content).to_le_bytes());
        }
    }
}

/// Valid bytes of each record, by the name of its target.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = vec![
        ("pack_header", pack::encode_header(LIFE, PackKind::Log).to_vec()),
        ("pack_header", pack::encode_header(LIFE, PackKind::Aux { source: 7 }).to_vec()),
    ];
    let tree = Tree {
        span: 3 * 4096,
        children: (1..4).map(|byte| crate::chunk::Address([byte; 32])).collect(),
        filled: vec![4096, 4096, 0],
    };
    for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
        seeds.push(("frame", a_frame(Kind::Data, codec, &tree)));
        seeds.push(("frame", a_frame(Kind::Tree, codec, &tree)));
    }
    let head =
        RecordHead { sequence: 7, frames: 2, running_crc: 9, begun: vec![1, 2], ..default() };
    seeds.push(("record_head", head.encode()));
    seeds.push(("record_head", RecordHead::default().encode()));
    let mut pack = pack::encode_header(LIFE, PackKind::Log).to_vec();
    let mut footer = Vec::new();
    let mut frames = vec![a_frame(Kind::Data, Codec::Lz4, &tree)];
    frames.push(a_frame(Kind::Tree, Codec::None, &tree));
    frames.push(frame::encode(&frame::Parts {
        kind: Kind::Record,
        codec: Codec::None,
        count: 0,
        list: &head.encode(),
        payload: b"entries",
        raw_bytes: 7,
    }));
    for mut bytes in frames {
        let offset = pack.len() as u64;
        frame::place(&mut bytes, LIFE.seed(offset));
        let list_bytes = u32_at(&bytes, 12).unwrap_or(0) as usize;
        let head = bytes.get(..frame::FRAME_HEAD_BYTES + list_bytes).unwrap_or_default();
        pack::footer_push(&mut footer, offset, head);
        pack.append(&mut bytes);
    }
    seeds.push(("pack", pack.clone()));
    let (mut end, _) = pack::encode_footer(LIFE, pack.len() as u64, &footer);
    pack.append(&mut end);
    seeds.push(("pack", pack));
    seeds.extend([1, 300].map(|entries| ("index_run", a_run(entries))));
    seeds
}

fn default<T: Default>() -> T {
    T::default()
}

fn a_frame(kind: Kind, codec: Codec, tree: &Tree) -> Vec<u8> {
    let address = crate::chunk::Address([5; 32]);
    let mut raw = Vec::new();
    let (span, children) = match kind {
        Kind::Tree => {
            frame::encode_tree(tree, &mut raw);
            (tree.span, tree.children.len() as u16)
        }
        _ => {
            raw.resize(300, 1);
            (300, 0)
        }
    };
    let entry = frame::Entry { address, span, children, start: 0, len: raw.len() as u32 };
    let packed = match codec {
        Codec::None => raw.clone(),
        Codec::Lz4 => lz4_flex::block::compress(&raw),
        Codec::Zstd => zstd::bulk::compress(&raw, 3).unwrap_or_default(),
    };
    let mut bytes = frame::encode(&frame::Parts {
        kind,
        codec,
        count: 1,
        list: &frame::encode_list(kind, &[entry]),
        payload: &packed,
        raw_bytes: raw.len() as u32,
    });
    frame::place(&mut bytes, LIFE.seed(OFFSET));
    bytes
}

fn a_run(count: u64) -> Vec<u8> {
    let disk = SimDisk::new();
    let _ = disk.create_dir(INDEX_DIR);
    let to = LogPosition { pack: 1, offset: 4096, sequence: 3 };
    let totals = run::Totals { chunks: count, bytes: 4096 * count };
    let head = run::RunHead { entries: count, from: (1, 64), to, totals };
    let mut numbers = 0..count;
    let mut each = || {
        let entry = |number: u64| (number * (u64::MAX / count), number << 8);
        Ok(numbers.next().map(entry))
    };
    let _ = run::write(&disk, 1, &LIFE.volume_id, head, &mut each);
    let file = disk.open(&format!("{INDEX_DIR}/{}", run::run_name(1)), Access::Read);
    let bytes = file.and_then(|file| pack::read(&*file, 0, file.len()? as usize));
    bytes.unwrap_or_default()
}
