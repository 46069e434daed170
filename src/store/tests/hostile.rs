//! What fits its checksums and is not true: nothing panics, and nothing is taken on trust.

use super::frame::{Codec, Kind, Life, Parts};
use super::pack::{PACK_HEADER_BYTES, PackFile, PackKind};
use super::record::RecordHead;
use super::*;

const LIFE: Life = Life { volume_id: VOLUME, pack: 1 };

/// A frame of one chunk, without a place.
fn data_frame() -> Vec<u8> {
    let entry = frame::Entry { address: address_of(1), span: 5, children: 0, start: 0, len: 5 };
    frame::encode(&Parts {
        kind: Kind::Data,
        codec: Codec::None,
        count: 1,
        list: &frame::encode_list(Kind::Data, &[entry]),
        payload: b"hello",
        raw_bytes: 5,
    })
}

/// A sealed pack of two frames whose footer says that they are at these offsets.
fn pack_with_footer(offsets: &[u64]) -> PackFile {
    let mut bytes = pack::encode_header(LIFE, PackKind::Log).to_vec();
    for _ in 0..2 {
        let mut frame = data_frame();
        frame::place(&mut frame, LIFE.seed(bytes.len() as u64));
        bytes.append(&mut frame);
    }
    let mut footer = Vec::new();
    for offset in offsets {
        let mut head = data_frame();
        head.truncate(frame::FRAME_HEAD_BYTES + 36);
        frame::place(&mut head, LIFE.seed(*offset));
        pack::footer_push(&mut footer, *offset, &head);
    }
    bytes.append(&mut pack::encode_footer(LIFE, bytes.len() as u64, &footer).0);
    let file = SimDisk::new().open("pack", Access::CreateNew).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    PackFile::new(file, LIFE).unwrap()
}

#[test]
fn a_footer_counts_only_where_its_frames_can_be() {
    let second = PACK_HEADER_BYTES + data_frame().len() as u64;
    let offsets = |pack: &PackFile| {
        let frames = pack.frames(pack.len).unwrap().0.into_iter();
        frames.filter(|found| found.header.kind == Kind::Data).map(|found| found.offset).collect()
    };
    let true_one = pack_with_footer(&[PACK_HEADER_BYTES, second]);
    assert_eq!(true_one.footer().unwrap().map(|frames| frames.len()), Some(2));
    let lies: [&[u64]; 6] = [
        &[PACK_HEADER_BYTES, PACK_HEADER_BYTES],
        &[second, PACK_HEADER_BYTES],
        &[PACK_HEADER_BYTES, second - 8],
        &[0, second],
        &[PACK_HEADER_BYTES, 1 << 40],
        &[PACK_HEADER_BYTES, u64::MAX - 8],
    ];
    for lie in lies {
        let pack = pack_with_footer(lie);
        assert!(pack.footer().unwrap().is_none(), "{lie:?}");
        let found: Vec<u64> = offsets(&pack);
        assert_eq!(found, [PACK_HEADER_BYTES, second], "frame by frame instead");
    }
}

#[test]
fn a_payload_that_claims_to_be_huge_takes_no_memory() {
    let packed = zstd::bulk::compress(&[0; 1000], 3).unwrap();
    assert_eq!(frame::decompress(Codec::Zstd, &packed, 1000), Some(vec![0; 1000]));
    // 8 MiB of zeros are 300 bytes, and a header may say anything.
    let packed = zstd::bulk::compress(&vec![0; 8 << 20], 3).unwrap();
    for codec in [Codec::Lz4, Codec::Zstd] {
        assert_eq!(frame::decompress(codec, &packed, 8 << 20), None);
        assert_eq!(frame::decompress(codec, &packed, u32::MAX), None);
    }
}

#[test]
fn names_that_no_pack_and_no_run_can_have_change_nothing() {
    let disk = new_disk();
    let store = open(&disk).store;
    put(&store, 1).unwrap();
    let position = commit(&store, b"").unwrap();
    store.close().unwrap();
    drop(store);
    let _ = disk.create_dir("packs/ff");
    for path in ["packs/ff/ffffffffffffffff.pack", "index/ffffffffffffffff.run"] {
        disk.open(path, Access::CreateNew).unwrap().write_all_at(&[1; 100], 0).unwrap();
    }
    let Opened { store, .. } = open_from(&disk, small(), position);
    assert_reads(&store, [1]);
    put(&store, 2).unwrap();
    commit(&store, b"").unwrap();
    store.save_index().unwrap();
}

/// The log with one more record at its end, as a hostile author would put it there.
fn with_record(change: impl Fn(&mut RecordHead)) -> Opened {
    let disk = new_disk();
    let store = open(&disk).store;
    put(&store, 1).unwrap();
    let end = commit(&store, b"").unwrap();
    drop(store);
    let life = Life { pack: end.pack, ..LIFE };
    let mut head = RecordHead { sequence: 2, previous_pack: end.pack, ..RecordHead::default() };
    change(&mut head);
    let mut bytes = frame::encode(&Parts {
        kind: Kind::Record,
        codec: Codec::None,
        count: 0,
        list: &head.encode(),
        payload: b"",
        raw_bytes: 0,
    });
    frame::place(&mut bytes, life.seed(end.offset));
    let file = disk.open(&pack::pack_path(end.pack), Access::Write).unwrap();
    file.write_all_at(&bytes, end.offset).unwrap();
    let opened = open(&disk);
    assert_reads(&opened.store, [1]);
    put(&opened.store, 2).unwrap();
    commit(&opened.store, b"").unwrap();
    opened
}

#[test]
fn a_record_with_impossible_numbers_is_none() {
    assert_eq!(with_record(|_| {}).records.len(), 2);
    assert_eq!(with_record(|head| head.sequence = u64::MAX).records.len(), 1);
    assert_eq!(with_record(|head| head.begun.push(u64::MAX)).records.len(), 1);
    assert_eq!(with_record(|head| head.previous_pack = u64::MAX).records.len(), 1);
    // This one is possible, and so much is missing that nobody wants a list of it.
    let opened = with_record(|head| head.sequence = 1 << 40);
    assert_eq!(opened.records.len(), 2);
    assert!((1..5000).contains(&opened.findings.len()));
}

#[test]
fn a_run_with_impossible_sums_is_made_anew() {
    for at in [40, 48, 56, 72, 80] {
        let disk = new_disk();
        let store = open(&disk).store;
        put(&store, 1).unwrap();
        let position = commit(&store, b"").unwrap();
        store.save_index().unwrap();
        store.close().unwrap();
        drop(store);
        let name = disk.read_dir(run::INDEX_DIR).unwrap().remove(0).name;
        let file = disk.open(&format!("{}/{name}", run::INDEX_DIR), Access::Write).unwrap();
        let mut bytes = pack::read(&*file, 0, 1 << 20).unwrap();
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        fuzzing::seal_run(&mut bytes);
        file.write_all_at(&bytes, 0).unwrap();
        let Opened { store, findings, .. } = open_from(&disk, small(), position);
        assert_eq!(findings, [Finding::IndexRebuilt], "{at}");
        assert_eq!(store.stats().chunks, 1);
        put(&store, 2).unwrap();
        commit(&store, b"").unwrap();
        assert_reads(&store, [1, 2]);
    }
}
