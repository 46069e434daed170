//! What fuzzing and its tests do with keys, values, records and the checkpoint's pages.
//!
//! Owns one function for each: any bytes have an answer without a panic, and what is decoded is
//! encoded to the same bytes again, as the format promises.

use std::sync::Arc;

use redb::StorageBackend;

use super::checkpoint::backend::{Backend, PageFile, ReadingBackend, seal_pages};
use super::checkpoint::{decode_position, encode_position};
use super::groups::Entries;
use super::{
    CollectionState, Content, Cookie, Counters, Image, Ino, Inode, Key, NameEntry, Snapshot,
    record, version,
};
use crate::chunk::Address;
use crate::store::LogPosition;
use crate::sys::sim::SimDisk;
use crate::sys::{Access, Disk, Timestamp};

const PAGE_BYTES: usize = 4096;
const STORED_BYTES: usize = 4104;

/// Takes bytes as a key.
pub fn key(bytes: &[u8]) {
    if let Ok(key) = Key::decode(bytes) {
        assert_eq!(key.encode(), bytes);
    }
}

/// Takes bytes as a value of each kind.
pub fn value(bytes: &[u8]) {
    if let Ok(inode) = Inode::decode(bytes) {
        assert_eq!(inode.encode(), bytes);
    }
    if let Ok(content) = Content::decode(bytes) {
        assert_eq!(content.encode(), bytes);
    }
    if let Ok(name) = NameEntry::decode(bytes) {
        assert_eq!(name.encode(), bytes);
    }
    if let Ok(counters) = Counters::decode(bytes) {
        assert_eq!(counters.encode(), bytes);
    }
    if let Ok(snapshot) = Snapshot::decode(bytes) {
        assert_eq!(snapshot.encode(), bytes);
    }
    if let Ok(Some(value)) = version(bytes) {
        assert_eq!(bytes.get(1..), Some(value));
    }
    if let Ok(image) = Image::decode(bytes) {
        assert_eq!(image.encode(), bytes);
    }
    if let Ok(state) = CollectionState::decode(bytes) {
        assert_eq!(state.encode(), bytes);
    }
    if let Ok(position) = decode_position(bytes) {
        assert_eq!(encode_position(position), bytes);
    }
}

/// Takes bytes as the entries of a commit record.
pub fn entries(bytes: &[u8]) {
    if let Ok(entries) = record::decode(bytes) {
        assert_eq!(record::decode(&record::encode(&entries)), Ok(entries));
    }
}

/// Takes bytes as the checkpoint's file: no page is handed out that does not fit its checksum.
pub fn pages(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    seal_pages(&mut sealed);
    for bytes in [bytes, &sealed] {
        let disk = SimDisk::new();
        let Ok(file) = disk.open("file", Access::CreateNew) else { continue };
        if file.write_all_at(bytes, 0).is_err() {
            continue;
        }
        let Ok(file) = PageFile::new(file).map(Arc::new) else { continue };
        let Ok(reading) = ReadingBackend::new(Arc::clone(&file)) else { continue };
        let backend = Backend(file);
        let len = backend.len().unwrap_or(0);
        assert!(len <= bytes.len() as u64);
        for (page, stored) in bytes.chunks(STORED_BYTES).enumerate() {
            let mut fitting = stored.to_vec();
            fitting.resize(STORED_BYTES, 0);
            let mut whole = bytes.get(..page * STORED_BYTES).unwrap_or_default().to_vec();
            whole.extend_from_slice(&fitting);
            seal_pages(&mut whole);
            let fits = stored.len() == STORED_BYTES && whole.ends_with(stored);
            let unwritten = stored.iter().all(|&byte| byte == 0);
            let mut out = vec![0; PAGE_BYTES];
            let read = backend.read((page * PAGE_BYTES) as u64, &mut out);
            if read.is_ok() {
                assert!(page == 0 || fits || unwritten, "page {page} does not fit");
                assert_eq!(Some(out.as_slice()), stored.get(..PAGE_BYTES));
            }
            let mut other = vec![0; PAGE_BYTES];
            let also = reading.read((page * PAGE_BYTES) as u64, &mut other);
            assert_eq!((read.is_ok(), &out), (also.is_ok(), &other));
        }
        let mut all = vec![0; len as usize];
        let _ = backend.read(0, &mut all);
        let _ = backend.read(7, &mut all);
    }
}

/// Valid bytes of each record, by the name of its target.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let now = Timestamp { secs: 1_790_000_000, nanos: 987_654_321 };
    let inode = Inode {
        mode: 0o120_777,
        uid: 1000,
        nlink: 1,
        size: 7,
        ctime: now,
        mtime: now,
        target: b"../target".to_vec(),
        ..Inode::default()
    };
    let content = Content { address: Address([7; 32]), size: 1 << 40, filled: 4096, epoch: 3 };
    let name = NameEntry { ino: Ino(300), kind: 8, name: b"name".to_vec(), epoch: 0 };
    let counters = Counters { next_ino: 301, files: 7, logical_bytes: 1 << 33, epoch: 0 };
    let position = encode_position(LogPosition { pack: 3, offset: 70_000, sequence: 9 });
    let cookie = Cookie(0x1234_5678_0000);
    let xattr = Key::Xattr { ino: Ino(300), name: b"user.x" }.encode();
    let keys = [
        Key::Counters,
        Key::Inode(Ino(300)),
        Key::Name { dir: Ino::ROOT, cookie },
        Key::Xattr { ino: Ino(300), name: b"user.x" },
        Key::Snapshot(7),
        Key::Version { live: &xattr, end: 8 },
        Key::VersionEnd { end: 8, live: &xattr },
    ];
    let mut entries = Entries::new();
    for number in 2..6 {
        entries.insert(Key::Inode(Ino(number)).encode().into(), Some(inode.encode().into()));
        entries.insert(Key::Orphan(Ino(number)).encode().into(), None);
    }
    let body = record::encode_body(&entries);
    let mut plain = vec![1, 0];
    super::codec::put_varint(&mut plain, body.len() as u64);
    plain.extend_from_slice(&body);
    let mut seeds: Vec<_> = keys.iter().map(|key| ("meta_key", key.encode())).collect();
    let snapshot = Snapshot { time: now, files: 7, name: b"daily".to_vec(), ..Snapshot::default() };
    let values = [
        inode.encode(),
        content.encode(),
        name.encode(),
        counters.encode(),
        position,
        snapshot.encode(),
        [&[1], &name.encode()[..]].concat(),
    ];
    seeds.extend(values.map(|value| ("meta_value", value)));
    seeds.extend([record::encode(&entries), plain].map(|record| ("meta_record", record)));
    let mut pages = vec![0; 4 * STORED_BYTES];
    for (at, byte) in pages.iter_mut().enumerate().take(3 * STORED_BYTES) {
        *byte = (at % 7) as u8;
    }
    seal_pages(&mut pages);
    seeds.push(("pages", pages));
    seeds
}
