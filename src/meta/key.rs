//! Every key byte of the metadata.
//!
//! A key is a one-byte tag, then numbers of 8 bytes each, big-endian, so that keys sort as their
//! numbers do; an extended attribute's name comes last and needs no length. All names of a
//! directory are contiguous and sorted by cookie, and so are all attributes of an inode.
//!
//! Invariants: (1) a tag is never given a second meaning; (2) no tag is 0xff, so every prefix has
//! a successor; (3) decode takes exactly what encode makes.

use std::hash::Hasher;

use siphasher::sip::SipHasher24;

use crate::chunk::Address;
use crate::meta::CodecError;
use crate::meta::codec::Reader;
use crate::store::{BadChunk, Location};

const TAG_COUNTERS: u8 = 0x01;
const TAG_CHECK: u8 = 0x02;
const TAG_COLLECTION: u8 = 0x03;
const TAG_INODE: u8 = 0x10;
const TAG_CONTENT: u8 = 0x11;
const TAG_NAME: u8 = 0x12;
const TAG_XATTR: u8 = 0x13;
const TAG_ORPHAN: u8 = 0x20;
const TAG_SNAPSHOT: u8 = 0x30;
const TAG_VERSION: u8 = 0x31;
const TAG_VERSION_END: u8 = 0x32;
const TAG_BAD_CHUNK: u8 = 0x40;
const TAG_IMAGE: u8 = 0x43;

/// Tags that later formats fill; a key with one of them is refused until then.
pub mod reserved {
    /// State of a pack (bitmap of its dead chunks, rewritten, dropped): tag, pack.
    pub const PACK: u8 = 0x41;
    /// An unfinished receive or repair and the packs it made: tag, number.
    pub const UNFINISHED: u8 = 0x42;
}

/// Bytes of the longest name, of a file or of an extended attribute (the kernel's NAME_MAX and
/// XATTR_NAME_MAX).
pub const NAME_BYTES_MAX: usize = 255;

/// Bytes of the longest key of something that lives: tag, inode, attribute name.
const LIVE_KEY_BYTES_MAX: usize = 1 + 8 + NAME_BYTES_MAX;

/// Bytes of the longest key of this format: that of an old version of one.
pub const KEY_BYTES_MAX: usize = 1 + LIVE_KEY_BYTES_MAX + 8;

/// What the end of a version begins with: epochs stay far below 2^56 (a snapshot has 22 bits). No
/// attribute's name has such a byte, so that versions sort as their live keys do.
const END_FIRST: u8 = 0;

/// Number of an inode: the FUSE node id, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory.
    pub const ROOT: Ino = Ino(1);
}

/// Where a name stands in its directory, fixed for life: look-up key, readdir offset, NFS cookie.
///
/// 55 bits of a keyed hash of the name, then 8 bits that tell names of equal hash apart. Always
/// below 2^63, so that it fits a signed offset; 0 to 255 are for `.`, `..` and the like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie(pub u64);

impl Cookie {
    /// Cookies that share a hash: names of equal hash that one directory can hold.
    pub const COLLISIONS_MAX: u64 = 256;

    /// The first of the 256 cookies that `name` may have; `key` is the volume's id.
    ///
    /// SipHash-2-4 is keyed, so nobody who lacks the key can make names collide.
    pub fn hash(key: [u8; 16], name: &[u8]) -> Cookie {
        let mut hasher = SipHasher24::new_with_key(&key);
        hasher.write(name);
        // Hash 0 would be the range of `.` and `..`: it shares the range of hash 1.
        Cookie((hasher.finish() >> 9).max(1) << 8)
    }

    /// The first of the 256 cookies that share this one's hash.
    pub fn first(self) -> Cookie {
        Cookie(self.0 & !(Cookie::COLLISIONS_MAX - 1))
    }

    /// The last of the 256 cookies that share this one's hash.
    pub fn last(self) -> Cookie {
        Cookie(self.0 | (Cookie::COLLISIONS_MAX - 1))
    }
}

/// The name of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key<'a> {
    /// [`Counters`](crate::meta::Counters) of the volume.
    Counters,
    /// The [`CheckState`](crate::meta::CheckState) of the volume.
    Check,
    /// The [`CollectionState`](crate::meta::CollectionState) of the volume.
    Collection,
    /// An [`Inode`](crate::meta::Inode).
    Inode(Ino),
    /// The root of an inode's content, when that is not empty: a [`Content`](crate::meta::Content).
    Content(Ino),
    /// A name in a directory: a [`NameEntry`](crate::meta::NameEntry).
    Name {
        /// The directory.
        dir: Ino,
        /// The name's place in it.
        cookie: Cookie,
    },
    /// An extended attribute; its value is the entry's value as it is.
    Xattr {
        /// The inode that has it.
        ino: Ino,
        /// Its name, at most [`NAME_BYTES_MAX`] bytes.
        name: &'a [u8],
    },
    /// An inode without names that the kernel has not forgotten; the value is empty.
    Orphan(Ino),
    /// A place of the packs where a chunk is damaged; the value is empty.
    BadChunk(BadChunk),
    /// An epoch that is kept for reading: a [`Snapshot`](crate::meta::Snapshot).
    Snapshot(u64),
    /// What something was before an epoch; its value as [`version`](crate::meta::version) reads it.
    Version {
        /// The encoded key of an inode, a content, a name or an extended attribute.
        live: &'a [u8],
        /// The epoch in which it ended.
        end: u64,
    },
    /// Finds old versions by the epoch in which they ended; the value is empty.
    VersionEnd {
        /// That epoch.
        end: u64,
        /// As in [`Key::Version`].
        live: &'a [u8],
    },
    /// The image of the metadata with this number: an [`Image`](crate::meta::Image).
    Image(u64),
}

impl<'a> Key<'a> {
    /// Returns the key's bytes.
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            Key::Counters => vec![TAG_COUNTERS],
            Key::Check => vec![TAG_CHECK],
            Key::Collection => vec![TAG_COLLECTION],
            Key::Inode(ino) => numbers(TAG_INODE, &[ino.0]),
            Key::Content(ino) => numbers(TAG_CONTENT, &[ino.0]),
            Key::Name { dir, cookie } => numbers(TAG_NAME, &[dir.0, cookie.0]),
            Key::Xattr { ino, name } => {
                assert!(name.len() <= NAME_BYTES_MAX, "the caller checks a name's length");
                let mut bytes = numbers(TAG_XATTR, &[ino.0]);
                bytes.extend_from_slice(name);
                bytes
            }
            Key::Orphan(ino) => numbers(TAG_ORPHAN, &[ino.0]),
            Key::BadChunk(BadChunk { address, location }) => {
                let mut bytes = vec![TAG_BAD_CHUNK];
                bytes.extend_from_slice(&address.0);
                bytes.extend_from_slice(&location.pack().to_be_bytes());
                bytes
            }
            Key::Snapshot(epoch) => numbers(TAG_SNAPSHOT, &[epoch]),
            Key::Version { live, end } => [&[TAG_VERSION], live, &end.to_be_bytes()[..]].concat(),
            Key::VersionEnd { end, live } => {
                [&[TAG_VERSION_END], &end.to_be_bytes()[..], live].concat()
            }
            Key::Image(image) => numbers(TAG_IMAGE, &[image]),
        }
    }

    /// Takes a key's bytes apart; every byte string is either exactly one key or an error.
    pub fn decode(bytes: &'a [u8]) -> Result<Key<'a>, CodecError> {
        let mut reader = Reader::new(bytes);
        let key = match reader.byte()? {
            TAG_COUNTERS => Key::Counters,
            TAG_CHECK => Key::Check,
            TAG_COLLECTION => Key::Collection,
            TAG_INODE => Key::Inode(ino(&mut reader)?),
            TAG_CONTENT => Key::Content(ino(&mut reader)?),
            TAG_NAME => Key::Name { dir: ino(&mut reader)?, cookie: Cookie(number(&mut reader)?) },
            TAG_XATTR => {
                let ino = ino(&mut reader)?;
                let name = reader.rest();
                if name.len() > NAME_BYTES_MAX {
                    return Err(CodecError::TooLong);
                }
                Key::Xattr { ino, name }
            }
            TAG_ORPHAN => Key::Orphan(ino(&mut reader)?),
            TAG_BAD_CHUNK => {
                let address = Address(reader.array()?);
                let location = Location::unpack(number(&mut reader)?);
                Key::BadChunk(BadChunk { address, location })
            }
            TAG_SNAPSHOT => Key::Snapshot(number(&mut reader)?),
            TAG_VERSION => {
                let rest = reader.rest();
                let (live, end) = rest.split_last_chunk::<8>().ok_or(CodecError::Short)?;
                Key::Version { live: versioned(live)?, end: u64::from_be_bytes(*end) }
            }
            TAG_VERSION_END => {
                let end = number(&mut reader)?;
                Key::VersionEnd { end, live: versioned(reader.rest())? }
            }
            TAG_IMAGE => Key::Image(number(&mut reader)?),
            tag => return Err(CodecError::Tag(tag)),
        };
        reader.finish()?;
        Ok(key)
    }
}

/// Keys from `start` up to, but not including, `end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    pub(super) start: Vec<u8>,
    pub(super) end: Vec<u8>,
}

impl KeyRange {
    /// Every key.
    pub fn all() -> KeyRange {
        KeyRange { start: Vec::new(), end: vec![0xff] }
    }

    /// The names of `dir` whose cookie is `from` or higher, by cookie.
    pub fn names(dir: Ino, from: Cookie) -> KeyRange {
        let start = Key::Name { dir, cookie: from }.encode();
        KeyRange { start, end: successor(numbers(TAG_NAME, &[dir.0])) }
    }

    /// The at most 256 names of `dir` that share the hash of `cookie`: to look a name up.
    pub fn names_of_hash(dir: Ino, cookie: Cookie) -> KeyRange {
        let start = Key::Name { dir, cookie: cookie.first() }.encode();
        let end = successor(Key::Name { dir, cookie: cookie.last() }.encode());
        KeyRange { start, end }
    }

    /// The extended attributes of `ino`, by name.
    pub fn xattrs(ino: Ino) -> KeyRange {
        KeyRange::of_prefix(numbers(TAG_XATTR, &[ino.0]))
    }

    /// The inodes numbered `from` or higher, by number.
    pub fn inodes(from: Ino) -> KeyRange {
        KeyRange { start: Key::Inode(from).encode(), end: vec![TAG_INODE + 1] }
    }

    /// The contents of inodes numbered `from` or higher, by number.
    pub fn contents(from: Ino) -> KeyRange {
        KeyRange { start: Key::Content(from).encode(), end: vec![TAG_CONTENT + 1] }
    }

    /// The names of all directories, by directory, then by cookie.
    pub fn all_names() -> KeyRange {
        KeyRange::of_prefix(vec![TAG_NAME])
    }

    /// The extended attributes of all inodes, by inode, then by name.
    pub fn all_xattrs() -> KeyRange {
        KeyRange::of_prefix(vec![TAG_XATTR])
    }

    /// All orphans, by number.
    pub fn orphans() -> KeyRange {
        KeyRange::of_prefix(vec![TAG_ORPHAN])
    }

    /// All that stands in none of the ranges of inodes, contents, names, attributes and orphans.
    pub fn others() -> [KeyRange; 3] {
        let range = |start: u8, end: u8| KeyRange { start: vec![start], end: vec![end] };
        let behind = TAG_XATTR + 1;
        [range(0, TAG_INODE), range(behind, TAG_ORPHAN), range(TAG_ORPHAN + 1, 0xff)]
    }

    /// All snapshots, by number.
    pub fn snapshots() -> KeyRange {
        KeyRange::of_prefix(vec![TAG_SNAPSHOT])
    }

    /// All old versions, by live key, then by the epoch in which they ended.
    pub fn all_versions() -> KeyRange {
        KeyRange::of_prefix(vec![TAG_VERSION])
    }

    /// The finders of all old versions that ended after one epoch and not after another.
    pub fn version_ends(after: u64, through: u64) -> KeyRange {
        let start = numbers(TAG_VERSION_END, &[after.saturating_add(1)]);
        KeyRange { start, end: successor(numbers(TAG_VERSION_END, &[through])) }
    }

    /// The versions of one live key that ended after an epoch.
    pub(super) fn versions_after(live: &[u8], epoch: u64) -> KeyRange {
        let start = Key::Version { live, end: epoch.saturating_add(1) }.encode();
        KeyRange { start, end: behind_versions(live) }
    }

    /// All damaged chunks, by address.
    pub fn bad_chunks() -> KeyRange {
        KeyRange::of_prefix(vec![TAG_BAD_CHUNK])
    }

    /// All images of the metadata, by number.
    pub fn images() -> KeyRange {
        KeyRange::of_prefix(vec![TAG_IMAGE])
    }

    fn of_prefix(prefix: Vec<u8>) -> KeyRange {
        KeyRange { start: prefix.clone(), end: successor(prefix) }
    }
}

/// Where versions of `live` and of all keys above it lie, as a key.
pub(super) fn versions_from(live: &[u8]) -> Vec<u8> {
    [&[TAG_VERSION], live].concat()
}

/// A key behind all versions of `live`, and in front of those of every key above it.
pub(super) fn behind_versions(live: &[u8]) -> Vec<u8> {
    [&[TAG_VERSION], live, &[END_FIRST + 1]].concat()
}

/// Keys of what has versions.
pub(super) const VERSIONED: std::ops::Range<u8> = TAG_INODE..TAG_XATTR + 1;

/// Refuses a key of what has no versions.
fn versioned(live: &[u8]) -> Result<&[u8], CodecError> {
    match live.first() {
        Some(tag) if VERSIONED.contains(tag) => Key::decode(live).map(|_| live),
        Some(&tag) => Err(CodecError::Tag(tag)),
        None => Err(CodecError::Short),
    }
}

fn numbers(tag: u8, numbers: &[u64]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + 8 * numbers.len());
    bytes.push(tag);
    numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_be_bytes()));
    bytes
}

fn number(reader: &mut Reader<'_>) -> Result<u64, CodecError> {
    reader.array().map(u64::from_be_bytes)
}

fn ino(reader: &mut Reader<'_>) -> Result<Ino, CodecError> {
    number(reader).map(Ino)
}

/// The least key that is above every key with this prefix.
fn successor(mut prefix: Vec<u8>) -> Vec<u8> {
    while let Some(last) = prefix.pop() {
        if last != 0xff {
            prefix.push(last + 1);
            return prefix;
        }
    }
    unreachable!("a tag is never 0xff");
}
