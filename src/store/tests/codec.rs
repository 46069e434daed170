//! Codecs: what is written is read, any other bytes are refused, and nothing panics.

use proptest::prelude::*;

use super::frame::{Codec, Entry, Header, Kind, Life, Parts};
use super::pack::{self, PackHeader, PackKind};
use super::record::RecordHead;
use super::*;

const LIFE: Life = Life { volume_id: VOLUME, pack: 3 };

fn frame_of(kind: Kind, trees: &[Tree], codec: Codec) -> (Vec<Entry>, Vec<u8>, Vec<u8>) {
    let mut raw = Vec::new();
    let mut entries = Vec::new();
    for tree in trees {
        let start = raw.len() as u32;
        let (span, children) = match kind {
            Kind::Tree => {
                frame::encode_tree(tree, &mut raw);
                (tree.span, tree.children.len() as u16)
            }
            _ => {
                raw.extend_from_slice(&tree.payload());
                (tree.payload().len() as u64, 0)
            }
        };
        let address = Address([entries.len() as u8; 32]);
        let len = raw.len() as u32 - start;
        entries.push(Entry { address, span, children, start, len });
    }
    let compression = match codec {
        Codec::None => Compression::None,
        Codec::Lz4 => Compression::Lz4,
        Codec::Zstd => Compression::Zstd(3),
    };
    let (codec, packed) = frame::compress(compression, &raw);
    let mut bytes = frame::encode(&Parts {
        kind,
        codec,
        count: entries.len() as u32,
        list: &frame::encode_list(kind, &entries),
        payload: packed.as_deref().unwrap_or(&raw),
        raw_bytes: raw.len() as u32,
    });
    frame::place(&mut bytes, LIFE.seed(64));
    (entries, raw, bytes)
}

fn any_tree() -> impl Strategy<Value = Tree> {
    let filled = prop_oneof![Just(0), Just(4096), any::<u64>()];
    let child = (any::<[u8; 32]>().prop_map(Address), filled);
    (any::<u64>(), prop::collection::vec(child, 1..40)).prop_map(|(span, children)| {
        let (children, filled) = children.into_iter().unzip();
        Tree { span, children, filled }
    })
}

fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Tree), Just(Kind::Data)]
}

fn any_codec() -> impl Strategy<Value = Codec> {
    prop_oneof![Just(Codec::None), Just(Codec::Lz4), Just(Codec::Zstd)]
}

fn payload_of<'a>(header: &Header, bytes: &'a [u8]) -> &'a [u8] {
    let start = header.head_bytes() as usize;
    &bytes[start..start + header.stored_bytes as usize]
}

proptest! {
    #![proptest_config(crate::testing::config(64))]

    #[test]
    fn frames_round_trip(
        kind in any_kind(),
        codec in any_codec(),
        trees in prop::collection::vec(any_tree(), 1..20),
    ) {
        let (entries, raw, bytes) = frame_of(kind, &trees, codec);
        let header = frame::decode(&bytes, LIFE.seed(64)).unwrap();
        prop_assert_eq!(header.frame_bytes(), bytes.len() as u64);
        prop_assert_eq!(header.kind, kind);
        prop_assert_eq!(&header.entries, &entries);
        let stored = payload_of(&header, &bytes);
        prop_assert_eq!(crc32c::crc32c(stored), header.payload_crc);
        let decoded = frame::decompress(header.codec, stored, header.raw_bytes).unwrap();
        prop_assert_eq!(&decoded, &raw);
        for (entry, tree) in entries.iter().zip(&trees) {
            let slice = entry.slice(&decoded).unwrap();
            if kind == Kind::Tree {
                prop_assert_eq!(&frame::decode_tree(entry, slice).unwrap(), tree);
            }
            prop_assert_eq!(entry.hashed(slice).unwrap(), tree.payload());
        }
    }

    #[test]
    fn a_flipped_bit_of_a_frame_is_noticed(
        kind in any_kind(),
        trees in prop::collection::vec(any_tree(), 1..5),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        let (_, _, mut bytes) = frame_of(kind, &trees, Codec::None);
        let header = frame::decode(&bytes, LIFE.seed(64)).unwrap();
        let used = header.head_bytes() as usize + header.stored_bytes as usize;
        bytes[at.index(used)] ^= 1 << bit;
        let same = frame::decode(&bytes, LIFE.seed(64)).is_ok_and(|header| {
            crc32c::crc32c(payload_of(&header, &bytes)) == header.payload_crc
        });
        prop_assert!(!same);
    }

    #[test]
    fn a_frame_counts_only_in_its_place(trees in prop::collection::vec(any_tree(), 1..3)) {
        let (_, _, bytes) = frame_of(Kind::Tree, &trees, Codec::None);
        prop_assert!(frame::decode(&bytes, LIFE.seed(72)).is_err());
        let next = Life { pack: 4, ..LIFE };
        prop_assert!(frame::decode(&bytes, next.seed(64)).is_err());
        let other = Life { volume_id: [1; 16], ..LIFE };
        prop_assert!(frame::decode(&bytes, other.seed(64)).is_err());
    }

    #[test]
    fn any_bytes_are_decoded_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        children in any::<u16>(),
        raw_bytes in 0..100_000_u32,
    ) {
        let mut framed = frame::FRAME_MAGIC.to_vec();
        framed.extend_from_slice(&bytes);
        let _ = frame::decode(&framed, 0);
        let _ = RecordHead::decode(&bytes);
        let _ = pack::decode_header(&bytes, LIFE);
        let len = bytes.len() as u32;
        let entry = Entry { address: Address::default(), span: 1, children, start: 0, len };
        let _ = frame::decode_tree(&entry, &bytes);
        for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
            let _ = frame::decompress(codec, &bytes, raw_bytes);
        }
    }

    /// Also lists that lie behind a good checksum.
    #[test]
    fn any_list_is_decoded_without_a_panic(
        kind in any_kind(),
        list in prop::collection::vec(any::<u8>(), 0..300),
        count in 0..10_u32,
        raw_bytes in any::<u32>(),
    ) {
        let parts = Parts { kind, codec: Codec::Lz4, count, list: &list, payload: &[], raw_bytes };
        let mut bytes = frame::encode(&parts);
        frame::place(&mut bytes, 5);
        if let Ok(header) = frame::decode(&bytes, 5) {
            let sum: u64 = header.entries.iter().map(|entry| u64::from(entry.len)).sum();
            prop_assert_eq!(sum, u64::from(header.raw_bytes));
        }
    }

    #[test]
    fn records_round_trip(
        numbers in any::<(u64, u64, u64, u32, u32)>(),
        begun in prop::collection::vec(any::<u64>(), 0..9),
        cut in any::<prop::sample::Index>(),
    ) {
        let (sequence, previous_pack, previous_offset, frames, running_crc) = numbers;
        let head =
            RecordHead { sequence, previous_pack, previous_offset, frames, running_crc, begun };
        let bytes = head.encode();
        prop_assert_eq!(RecordHead::decode(&bytes), Some(head));
        prop_assert_eq!(RecordHead::decode(&bytes[..cut.index(bytes.len())]), None);
    }

    #[test]
    fn locations_round_trip_and_sort(a in any::<(u32, u32, u8)>(), b in any::<(u32, u32, u8)>()) {
        let location = |(pack, offset, slot): (u32, u32, u8)| Location {
            pack: u64::from(pack >> 4),
            offset: u64::from(offset >> 4) * 8,
            slot,
        };
        let (a, b) = (location(a), location(b));
        prop_assert_eq!(Location::unpack(a.pack()), a);
        prop_assert_eq!(a.cmp(&b), a.pack().cmp(&b.pack()));
    }
}

#[test]
fn pack_headers_round_trip_and_notice_every_bit() {
    for kind in [PackKind::Log, PackKind::Aux { source: 0 }, PackKind::Aux { source: 9 }] {
        let bytes = pack::encode_header(LIFE, kind);
        assert_eq!(pack::decode_header(&bytes, LIFE), PackHeader::Good(kind));
        for bit in 0..bytes.len() * 8 {
            let mut other = bytes;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(pack::decode_header(&other, LIFE), PackHeader::Damaged);
        }
    }
    let mut newer = pack::encode_header(LIFE, PackKind::Log);
    newer[8] = 2;
    let crc = crc32c::crc32c(&newer[..60]);
    newer[60..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(pack::decode_header(&newer, LIFE), PackHeader::Newer(2));
}

#[test]
fn names_of_packs_are_read_back() {
    assert_eq!(pack::pack_path(0x1234), "packs/34/0000000000001234.pack");
    assert_eq!(pack::parse_name("0000000000001234.pack", ".pack"), Some(0x1234));
    for name in ["1234.pack", "000000000000123G.pack", "+00000000000123.pack", "x", ""] {
        assert_eq!(pack::parse_name(name, ".pack"), None);
    }
}
