//! Keys, values and records: round trips, order, and bytes that nobody encoded.

use std::sync::Arc;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use crate::chunk::Address;
use crate::meta::groups::Entries;
use crate::meta::key::reserved;
use crate::meta::{
    CodecError, Content, Cookie, Counters, Image, Ino, Inode, Key, KeyRange, NameEntry, Snapshot,
    record, version,
};
use crate::store::{BadChunk, Location, LogPosition};
use crate::sys::Timestamp;

fn edge() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), Just(u64::MAX), 0..400u64, any::<u64>()]
}

fn time() -> impl Strategy<Value = Timestamp> {
    let secs = prop_oneof![Just(i64::MIN), Just(i64::MAX), -2..2i64, any::<i64>()];
    (secs, 0..1_000_000_000u32).prop_map(|(secs, nanos)| Timestamp { secs, nanos })
}

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..=max)
}

/// A key that owns its name.
#[derive(Debug, Clone)]
struct OwnedKey(u8, u64, u64, Vec<u8>);

impl OwnedKey {
    fn key(&self) -> Key<'_> {
        match self.0 {
            0 if self.1.is_multiple_of(3) => Key::Counters,
            0 if self.1 % 3 == 1 => Key::Check,
            0 => Key::Collection,
            1 => Key::Inode(Ino(self.1)),
            2 => Key::Content(Ino(self.1)),
            3 => Key::Name { dir: Ino(self.1), cookie: Cookie(self.2) },
            4 => Key::Xattr { ino: Ino(self.1), name: &self.3 },
            5 => Key::Orphan(Ino(self.1)),
            6 => {
                let mut address = [0; 32];
                address.iter_mut().zip(&self.3).for_each(|(to, from)| *to = *from);
                let location = Location::unpack(self.2);
                Key::BadChunk(BadChunk { address: Address(address), location })
            }
            7 => Key::Image(self.1),
            8 => Key::Snapshot(self.1),
            _ => unreachable!("a version's key needs another"),
        }
    }

    /// The key of a version of what this one names, if it can have one, or of its finder.
    fn version(&self, end: u64, of: impl Fn(Key<'_>)) {
        let live = self.key().encode();
        if (1..=4).contains(&self.0) {
            of(Key::Version { live: &live, end });
            of(Key::VersionEnd { end, live: &live });
        }
    }
}

fn any_key() -> impl Strategy<Value = OwnedKey> {
    (0..9u8, edge(), edge(), bytes(255)).prop_map(|(a, b, c, d)| OwnedKey(a, b, c, d))
}

prop_compose! {
    fn inode()(
        words in any::<[u32; 7]>(),
        numbers in (edge(), edge(), edge()),
        times in [time(), time(), time(), time()],
        target in bytes(100),
    ) -> Inode {
        let [mode, uid, gid, nlink, rdev, flags, generation] = words;
        let (size, parent, epoch) = numbers;
        let [atime, mtime, ctime, btime] = times;
        let parent = Ino(parent);
        Inode { mode, uid, gid, nlink, rdev, size, atime, mtime, ctime, btime, flags, parent,
            generation, target, epoch }
    }
}

fn entries() -> impl Strategy<Value = Entries> {
    let key = prop_oneof![any_key().prop_map(|key| key.key().encode()), vec(0..3u8, 1..6)];
    btree_map(key, option::of(bytes(300)), 0..40)
        .prop_map(|map| map.into_iter().map(|(k, v)| (Arc::from(k), v.map(Arc::from))).collect())
}

proptest! {
    #![proptest_config(crate::testing::config(300))]

    #[test]
    fn keys_round_trip(owned in any_key()) {
        let bytes = owned.key().encode();
        prop_assert_eq!(Key::decode(&bytes), Ok(owned.key()));
    }

    #[test]
    fn keys_of_versions_round_trip(owned in any_key(), end in edge(), from in edge()) {
        let end = end >> 8;
        owned.version(end, |key| {
            let bytes = key.encode();
            assert_eq!(Key::decode(&bytes), Ok(key));
            let holds = |range: KeyRange| range.start <= bytes && bytes < range.end;
            let is_version = matches!(key, Key::Version { .. });
            assert_eq!(holds(KeyRange::all_versions()), is_version);
            let ended = !is_version && from < end;
            assert_eq!(holds(KeyRange::version_ends(from, u64::MAX)), ended);
            assert_eq!(holds(KeyRange::version_ends(0, from)), !is_version && end != 0 && !ended);
            let live = owned.key().encode();
            assert_eq!(holds(KeyRange::versions_after(&live, from)), is_version && from < end);
            assert!(KeyRange::others().into_iter().any(holds));
            // Neither does a version have versions, nor what has none.
            let nested = Key::Version { live: &bytes, end };
            assert!(Key::decode(&nested.encode()).is_err());
        });
        if owned.0 == 0 || 4 < owned.0 {
            let live = owned.key().encode();
            let bytes = Key::VersionEnd { end, live: &live }.encode();
            prop_assert!(Key::decode(&bytes).is_err());
        }
    }

    #[test]
    fn versions_sort_as_their_live_keys(
        (a, b) in (any_key(), any_key()), (from, to) in (edge(), edge()),
    ) {
        let named = |key: &OwnedKey| {
            let name = key.3.iter().map(|byte| byte.max(&1)).copied().collect();
            OwnedKey(key.0, key.1, key.2, name)
        };
        let sorted = |key: &OwnedKey, end: u64| {
            let mut bytes = None;
            let live = key.key().encode();
            if (1..=4).contains(&key.0) {
                bytes = Some(Key::Version { live: &live, end }.encode());
            }
            bytes.map(|bytes| (bytes, (live, end)))
        };
        if let (Some((one, of)), Some((other, like))) =
            (sorted(&named(&a), from >> 8), sorted(&named(&b), to >> 8))
        {
            prop_assert_eq!(one.cmp(&other), of.cmp(&like));
        }
    }

    #[test]
    fn keys_sort_as_their_numbers(a in any_key(), b in any_key()) {
        let order = |k: &OwnedKey| match k.key() {
            Key::Counters => (0, 0, 0, vec![]),
            Key::Check => (0, 1, 0, vec![]),
            Key::Collection => (0, 2, 0, vec![]),
            Key::Inode(ino) => (1, ino.0, 0, vec![]),
            Key::Content(ino) => (2, ino.0, 0, vec![]),
            Key::Name { dir, cookie } => (3, dir.0, cookie.0, vec![]),
            Key::Xattr { ino, name } => (4, ino.0, 0, name.to_vec()),
            Key::Orphan(ino) => (5, ino.0, 0, vec![]),
            Key::BadChunk(BadChunk { address, location }) => {
                (6, 0, 0, [&address.0[..], &location.pack().to_be_bytes()].concat())
            }
            Key::Image(image) => (7, image, 0, vec![]),
            Key::Snapshot(number) => (5, u64::MAX, number, vec![0]),
            Key::Version { .. } | Key::VersionEnd { .. } => unreachable!("none is made"),
        };
        prop_assert_eq!(a.key().encode().cmp(&b.key().encode()), order(&a).cmp(&order(&b)));
    }

    #[test]
    fn a_range_holds_exactly_its_keys(owned in any_key(), number in edge(), from in edge()) {
        let key = owned.key();
        let bytes = key.encode();
        let holds = |range: KeyRange| range.start <= bytes && bytes < range.end;
        let (ino, cookie) = (Ino(number), Cookie(from));
        let is_name = |least: u64, most: u64| matches!(key, Key::Name { dir, cookie }
            if dir == ino && (least..=most).contains(&cookie.0));
        prop_assert!(holds(KeyRange::all()));
        prop_assert_eq!(holds(KeyRange::names(ino, cookie)), is_name(from, u64::MAX));
        let hash = (from & !255, from | 255);
        prop_assert_eq!(holds(KeyRange::names_of_hash(ino, cookie)), is_name(hash.0, hash.1));
        prop_assert_eq!(holds(KeyRange::all_names()), matches!(key, Key::Name { .. }));
        prop_assert_eq!(holds(KeyRange::all_xattrs()), matches!(key, Key::Xattr { .. }));
        prop_assert_eq!(holds(KeyRange::orphans()), matches!(key, Key::Orphan(_)));
        let is_other = matches!(
            key,
            Key::Counters
                | Key::Check
                | Key::Collection
                | Key::BadChunk(_)
                | Key::Image(_)
                | Key::Snapshot(_)
        );
        prop_assert_eq!(KeyRange::others().into_iter().any(holds), is_other);
        prop_assert_eq!(holds(KeyRange::bad_chunks()), matches!(key, Key::BadChunk(_)));
        prop_assert_eq!(holds(KeyRange::snapshots()), matches!(key, Key::Snapshot(_)));
        prop_assert_eq!(holds(KeyRange::images()), matches!(key, Key::Image(_)));
        let of_ino = matches!(key, Key::Xattr { ino: of, .. } if of == ino);
        prop_assert_eq!(holds(KeyRange::xattrs(ino)), of_ino);
        prop_assert_eq!(holds(KeyRange::inodes(ino)), matches!(key, Key::Inode(of) if ino <= of));
        let content = matches!(key, Key::Content(of) if ino <= of);
        prop_assert_eq!(holds(KeyRange::contents(ino)), content);
    }

    #[test]
    fn values_round_trip(
        inode in inode(), address in any::<[u8; 32]>(), numbers in [edge(), edge(), edge(), edge()],
        kind in any::<u8>(), name in bytes(255),
    ) {
        prop_assert_eq!(Inode::decode(&inode.encode()), Ok(inode));
        let [next_ino, files, logical_bytes, epoch] = numbers;
        let content = Content { address: Address(address), size: files, filled: epoch, epoch };
        prop_assert_eq!(Content::decode(&content.encode()), Ok(content));
        let entry = NameEntry { ino: Ino(next_ino), kind, name: name.clone(), epoch };
        prop_assert_eq!(NameEntry::decode(&entry.encode()), Ok(entry));
        let counters = Counters { next_ino, files, logical_bytes, epoch };
        prop_assert_eq!(Counters::decode(&counters.encode()), Ok(counters));
        let time = Timestamp { secs: next_ino.cast_signed(), nanos: 7 };
        let deleting = kind.is_multiple_of(2);
        let snapshot = Snapshot { deleting, time, files, logical_bytes, name };
        prop_assert_eq!(Snapshot::decode(&snapshot.encode()), Ok(snapshot));
        let position = LogPosition { pack: next_ino, offset: files, sequence: epoch };
        let packs = vec![epoch; usize::from(kind % 9)];
        let image = Image { position, record_bytes: files, bytes: logical_bytes, packs };
        prop_assert_eq!(Image::decode(&image.encode()), Ok(image));
    }

    #[test]
    fn any_bytes_are_answered_and_have_one_encoding(mut bytes in bytes(80), force in 0..3u8) {
        if force > 0 && let Some(first) = bytes.first_mut() {
            *first = force;
        }
        if let Ok(inode) = Inode::decode(&bytes) {
            prop_assert_eq!(inode.encode(), bytes.clone());
        }
        if let Ok(content) = Content::decode(&bytes) {
            prop_assert_eq!(content.encode(), bytes.clone());
        }
        if let Ok(entry) = NameEntry::decode(&bytes) {
            prop_assert_eq!(entry.encode(), bytes.clone());
        }
        if let Ok(counters) = Counters::decode(&bytes) {
            prop_assert_eq!(counters.encode(), bytes.clone());
        }
        if let Ok(snapshot) = Snapshot::decode(&bytes) {
            prop_assert_eq!(snapshot.encode(), bytes.clone());
        }
        let _ = version(&bytes);
        if let Ok(image) = Image::decode(&bytes) {
            prop_assert_eq!(image.encode(), bytes.clone());
        }
        if let Ok(key) = Key::decode(&bytes) {
            prop_assert_eq!(key.encode(), bytes.clone());
        }
        let _ = record::decode(&bytes);
    }

    #[test]
    fn a_changed_value_is_answered(inode in inode(), at in any::<usize>(), byte in any::<u8>()) {
        let mut bytes = inode.encode();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(other) = Inode::decode(&bytes) {
            prop_assert_eq!(other.encode(), bytes.clone());
        }
        bytes.truncate(at);
        let _ = Inode::decode(&bytes);
    }

    #[test]
    fn records_round_trip(entries in entries()) {
        prop_assert_eq!(record::decode(&record::encode(&entries)), Ok(entries));
    }

    #[test]
    fn a_changed_record_is_answered(
        entries in entries(), at in any::<usize>(), byte in any::<u8>(), plain in any::<bool>(),
    ) {
        let mut bytes = record::encode(&entries);
        if plain {
            // The same body without compression, so that the change meets the body's decoder.
            bytes = plain_record(&record::encode_body(&entries));
        }
        let at = at % bytes.len();
        bytes[at] = byte;
        let ascend = |entries: Entries| entries.keys().is_sorted();
        prop_assert!(record::decode(&bytes).map_or(true, ascend));
        bytes.truncate(at);
        prop_assert!(record::decode(&bytes).is_err());
    }

    #[test]
    fn cookies_fit_a_signed_offset(key in any::<[u8; 16]>(), name in bytes(255)) {
        let cookie = Cookie::hash(key, &name);
        prop_assert_eq!(cookie, cookie.first());
        prop_assert_eq!(cookie.last().0 - cookie.0, 255);
        prop_assert!(256 <= cookie.0 && cookie.last().0 < 1 << 63);
    }
}

fn plain_record(body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1, 0];
    crate::meta::codec::put_varint(&mut bytes, body.len() as u64);
    bytes.extend_from_slice(body);
    bytes
}

#[test]
fn a_cookie_is_siphash_2_4() {
    // The reference vector of SipHash-2-4: key 00..0f, message 00..0e.
    let key = std::array::from_fn(|i| i as u8);
    let name: Vec<u8> = (0..15).collect();
    assert_eq!(Cookie::hash(key, &name), Cookie(0xa129_ca61_49be_45e5 >> 9 << 8));
}

#[test]
fn a_record_refuses_what_is_out_of_bounds() {
    let decode = |body: &[u8]| record::decode(&plain_record(body));
    assert_eq!(decode(&[1, 0, 1, b'a', 0]).unwrap().len(), 1);
    // The same key twice, a lower key, an empty key, more shared than there is.
    assert_eq!(decode(&[2, 0, 1, b'b', 0, 1, 0, 0]), Err(CodecError::Order));
    assert_eq!(decode(&[2, 0, 1, b'b', 0, 0, 1, b'a', 0]), Err(CodecError::Order));
    assert_eq!(decode(&[1, 0, 0, 0]), Err(CodecError::Order));
    assert_eq!(decode(&[1, 1, 1, b'a', 0]), Err(CodecError::Number));
    assert_eq!(decode(&[1, 0, 1, b'a', 5, 1]), Err(CodecError::Short));
    assert_eq!(decode(&[1, 0, 1, b'a', 0, 0]), Err(CodecError::Trailing));
    // A count, and an unpacked length, that would take all memory.
    assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff, 1]), Err(CodecError::Short));
    assert_eq!(record::decode(&[1, 1, 0xff, 0xff, 0xff, 0xff, 3]), Err(CodecError::Compression));
    assert_eq!(record::decode(&[2, 0, 1, 0]), Err(CodecError::Format(2)));
    // A number that is not in its shortest form, and one beyond 64 bits.
    assert_eq!(decode(&[0x80, 0]), Err(CodecError::Number));
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2];
    assert_eq!(Counters::decode(&[&[1][..], &huge].concat()), Err(CodecError::Number));
}

#[test]
fn later_keys_are_refused() {
    for tag in [reserved::UNFINISHED, reserved::PACK] {
        assert_eq!(Key::decode(&[tag, 0]), Err(CodecError::Tag(tag)));
    }
}

#[test]
fn a_usual_inode_is_small() {
    let now = Timestamp { secs: 1_790_000_000, nanos: 987_654_321 };
    let inode = Inode {
        mode: 0o100644,
        uid: 1000,
        gid: 1000,
        nlink: 1,
        rdev: 0,
        size: 5000,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        flags: 0,
        parent: Ino(0),
        generation: 0,
        target: vec![],
        epoch: 0,
    };
    assert_eq!(inode.encode().len(), 32);
}

/// The example of docs/format.md.
#[test]
fn the_example_of_a_record_is_true() {
    let text = include_str!("../../../docs/format-meta.md");
    let example = text.split("```").nth(1).unwrap().lines().flat_map(|line| {
        line.split("  ").next().unwrap().split_whitespace().map(|hex| u8::from_str_radix(hex, 16))
    });
    let example: Vec<u8> = example.map(Result::unwrap).collect();
    let counters = Counters { next_ino: 2, files: 1, logical_bytes: 0, epoch: 0 };
    let mut entries = Entries::new();
    entries.insert(Key::Counters.encode().into(), Some(counters.encode().into()));
    entries.insert(Key::Orphan(Ino(3)).encode().into(), None);
    assert_eq!(record::decode(&example), Ok(entries.clone()));
    assert_eq!(record::encode(&entries), example);
}
