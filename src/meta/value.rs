//! What entries say: inodes, contents, names, counters and the like, as compact values.
//!
//! A value starts with a format byte, so that a later format can change it; then come varints and
//! byte strings. docs/format.md has them to the byte.
//!
//! Invariants: (1) decode of encode is the same value; (2) encode of decode is the same bytes:
//! there is one encoding of each value; (3) decode of any bytes answers, and never panics.

use crate::chunk::{ADDRESS_BYTES, Address};
use crate::meta::codec::{Reader, put_signed, put_varint};
use crate::meta::key::NAME_BYTES_MAX;
use crate::meta::{CodecError, Ino};
use crate::store::LogPosition;
use crate::sys::Timestamp;

/// The format byte in front of every value of this version.
const FORMAT: u8 = 1;

/// The same of a content or name that began after the first snapshot: its epoch follows.
const FORMAT_EPOCH: u8 = 2;

/// Bytes of the longest symbolic link target (the kernel's PATH_MAX, without its final zero).
pub const TARGET_BYTES_MAX: usize = 4095;

const NANOS_PER_SEC: u32 = 1_000_000_000;

/// What is known of a file, whatever its names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inode {
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Number of names (directories: 2 and one for each directory in them).
    pub nlink: u32,
    /// Device number, for device nodes.
    pub rdev: u32,
    /// Length in bytes.
    pub size: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of anything.
    pub ctime: Timestamp,
    /// Birth.
    pub btime: Timestamp,
    /// Flags as `chattr` sets them.
    pub flags: u32,
    /// The directory that holds this directory; 0 for all other types.
    pub parent: Ino,
    /// Tells files apart that have the same number at different times; 0, as numbers are not
    /// reused.
    pub generation: u32,
    /// Where a symbolic link points; empty for all other types.
    pub target: Vec<u8>,
    /// The epoch in which this version began.
    pub epoch: u64,
}

impl Inode {
    /// Returns the value's bytes. The nanoseconds of every time are below 1,000,000,000.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.target.len());
        out.push(FORMAT);
        for number in [self.mode, self.uid, self.gid, self.nlink, self.rdev] {
            put_varint(&mut out, number.into());
        }
        put_varint(&mut out, self.size);
        // The times of a file are mostly equal or close: each is told by its distance from ctime.
        put_time(&mut out, self.ctime, Timestamp::default());
        for time in [self.atime, self.mtime, self.btime] {
            put_time(&mut out, time, self.ctime);
        }
        put_varint(&mut out, self.flags.into());
        put_varint(&mut out, self.parent.0);
        put_varint(&mut out, self.generation.into());
        put_varint(&mut out, self.epoch);
        out.extend_from_slice(&self.target);
        out
    }

    /// Takes the value's bytes apart.
    pub fn decode(bytes: &[u8]) -> Result<Inode, CodecError> {
        let mut reader = open(bytes)?;
        let mode = reader.varint_u32()?;
        let uid = reader.varint_u32()?;
        let gid = reader.varint_u32()?;
        let nlink = reader.varint_u32()?;
        let rdev = reader.varint_u32()?;
        let size = reader.varint()?;
        let ctime = time(&mut reader, Timestamp::default())?;
        let atime = time(&mut reader, ctime)?;
        let mtime = time(&mut reader, ctime)?;
        let btime = time(&mut reader, ctime)?;
        let flags = reader.varint_u32()?;
        let parent = Ino(reader.varint()?);
        let generation = reader.varint_u32()?;
        let epoch = reader.varint()?;
        let target = reader.rest();
        if target.len() > TARGET_BYTES_MAX {
            return Err(CodecError::TooLong);
        }
        let target = target.to_vec();
        Ok(Inode {
            mode,
            uid,
            gid,
            nlink,
            rdev,
            size,
            atime,
            mtime,
            ctime,
            btime,
            flags,
            parent,
            generation,
            target,
            epoch,
        })
    }
}

/// The root of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Address of the topmost chunk.
    pub address: Address,
    /// Bytes under it.
    pub size: u64,
    /// Bytes that are not holes.
    pub filled: u64,
    /// The epoch in which this version began.
    pub epoch: u64,
}

impl Content {
    /// Returns the value's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1 + ADDRESS_BYTES + 12);
        put_epoch(&mut out, self.epoch);
        out.extend_from_slice(&self.address.0);
        put_varint(&mut out, self.size);
        put_varint(&mut out, self.filled);
        out
    }

    /// Takes the value's bytes apart.
    pub fn decode(bytes: &[u8]) -> Result<Content, CodecError> {
        let (mut reader, epoch) = open_epoch(bytes)?;
        let content = Content {
            address: Address(reader.array()?),
            size: reader.varint()?,
            filled: reader.varint()?,
            epoch,
        };
        reader.finish()?;
        Ok(content)
    }
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameEntry {
    /// The inode it names.
    pub ino: Ino,
    /// Type bits of the inode's mode, shifted right by 12 (as in `d_type`).
    pub kind: u8,
    /// The name, at most [`NAME_BYTES_MAX`] bytes.
    pub name: Vec<u8>,
    /// The epoch in which this version began.
    pub epoch: u64,
}

impl NameEntry {
    /// Returns the value's bytes.
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.name.len() <= NAME_BYTES_MAX, "the caller checks a name's length");
        let mut out = Vec::with_capacity(14 + self.name.len());
        put_epoch(&mut out, self.epoch);
        put_varint(&mut out, self.ino.0);
        out.push(self.kind);
        out.extend_from_slice(&self.name);
        out
    }

    /// Takes the value's bytes apart.
    pub fn decode(bytes: &[u8]) -> Result<NameEntry, CodecError> {
        let (mut reader, epoch) = open_epoch(bytes)?;
        let ino = Ino(reader.varint()?);
        let kind = reader.byte()?;
        let name = reader.rest();
        if name.len() > NAME_BYTES_MAX {
            return Err(CodecError::TooLong);
        }
        Ok(NameEntry { ino, kind, name: name.to_vec(), epoch })
    }
}

/// Numbers of the whole volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// The number that the next inode gets.
    pub next_ino: u64,
    /// Inodes.
    pub files: u64,
    /// Sum of the contents' bytes that are not holes.
    pub logical_bytes: u64,
    /// The current epoch: rises with each snapshot.
    pub epoch: u64,
}

impl Counters {
    /// Returns the value's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        for number in [self.next_ino, self.files, self.logical_bytes, self.epoch] {
            put_varint(&mut out, number);
        }
        out
    }

    /// Takes the value's bytes apart.
    pub fn decode(bytes: &[u8]) -> Result<Counters, CodecError> {
        let mut reader = open(bytes)?;
        let counters = Counters {
            next_ino: reader.varint()?,
            files: reader.varint()?,
            logical_bytes: reader.varint()?,
            epoch: reader.varint()?,
        };
        reader.finish()?;
        Ok(counters)
    }
}

/// An epoch that is kept for reading.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Whether it is on its way out: nothing reads it any more.
    pub deleting: bool,
    /// When it was made.
    pub time: Timestamp,
    /// Inodes then.
    pub files: u64,
    /// Sum of the contents' bytes that are not holes, then.
    pub logical_bytes: u64,
    /// Its name, at most [`NAME_BYTES_MAX`] bytes.
    pub name: Vec<u8>,
}

impl Snapshot {
    /// Returns the value's bytes.
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.name.len() <= NAME_BYTES_MAX, "the caller checks a name's length");
        let mut out = vec![FORMAT, u8::from(self.deleting)];
        put_time(&mut out, self.time, Timestamp::default());
        put_varint(&mut out, self.files);
        put_varint(&mut out, self.logical_bytes);
        out.extend_from_slice(&self.name);
        out
    }

    /// Takes the value's bytes apart.
    pub fn decode(bytes: &[u8]) -> Result<Snapshot, CodecError> {
        let mut reader = open(bytes)?;
        let deleting = match reader.byte()? {
            0 => false,
            1 => true,
            _ => return Err(CodecError::Number),
        };
        let time = time(&mut reader, Timestamp::default())?;
        let (files, logical_bytes) = (reader.varint()?, reader.varint()?);
        let name = reader.rest();
        if name.len() > NAME_BYTES_MAX {
            return Err(CodecError::TooLong);
        }
        Ok(Snapshot { deleting, time, files, logical_bytes, name: name.to_vec() })
    }
}

/// How far the check of a mounted volume has come, and how the last one ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CheckState {
    /// The pack with which one that was cut short goes on; 0: none was.
    pub next_pack: u64,
    /// When the last one ended that looked at everything: seconds since 1970, 0 for never.
    pub finished: u64,
    /// What that one found, or what the one that was cut short had found by then.
    pub findings: u64,
}

impl CheckState {
    /// Returns the value's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        for number in [self.next_pack, self.finished, self.findings] {
            put_varint(&mut out, number);
        }
        out
    }

    /// Takes the value's bytes apart.
    pub fn decode(bytes: &[u8]) -> Result<CheckState, CodecError> {
        let mut reader = open(bytes)?;
        let state = CheckState {
            next_pack: reader.varint()?,
            finished: reader.varint()?,
            findings: reader.varint()?,
        };
        reader.finish()?;
        Ok(state)
    }
}

/// What is known of garbage, and what collections have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CollectionState {
    /// When the last collection ended: seconds since 1970, 0 for never.
    pub finished: u64,
    /// Bytes of the packs that it found to be garbage and left where they are.
    pub garbage_bytes: u64,
    /// Bytes that left files since, before dedup and compression.
    pub released_bytes: u64,
    /// Of a million bytes that leave files, so many were found to be garbage of the packs; 0 when
    /// nothing was learnt yet.
    pub learnt: u64,
    /// Bytes of packs that all collections together have given back.
    pub freed_bytes: u64,
    /// Bytes that they have written for that.
    pub rewritten_bytes: u64,
}

impl CollectionState {
    /// Returns the value's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        for number in [
            self.finished,
            self.garbage_bytes,
            self.released_bytes,
            self.learnt,
            self.freed_bytes,
            self.rewritten_bytes,
        ] {
            put_varint(&mut out, number);
        }
        out
    }

    /// Takes the value's bytes apart.
    pub fn decode(bytes: &[u8]) -> Result<CollectionState, CodecError> {
        let mut reader = open(bytes)?;
        let state = CollectionState {
            finished: reader.varint()?,
            garbage_bytes: reader.varint()?,
            released_bytes: reader.varint()?,
            learnt: reader.varint()?,
            freed_bytes: reader.varint()?,
            rewritten_bytes: reader.varint()?,
        };
        reader.finish()?;
        Ok(state)
    }
}

/// An image of the metadata, in packs beside the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    /// It has the entries of all records up to here.
    pub position: LogPosition,
    /// Bytes of all commit records up to there.
    pub record_bytes: u64,
    /// Bytes of its packs.
    pub bytes: u64,
    /// Its packs.
    pub packs: Vec<u64>,
}

impl Image {
    /// Returns the value's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let LogPosition { pack, offset, sequence } = self.position;
        let mut out = vec![FORMAT];
        let count = self.packs.len() as u64;
        for number in [pack, offset, sequence, self.record_bytes, self.bytes, count] {
            put_varint(&mut out, number);
        }
        self.packs.iter().for_each(|pack| put_varint(&mut out, *pack));
        out
    }

    /// Takes the value's bytes apart.
    pub fn decode(bytes: &[u8]) -> Result<Image, CodecError> {
        let mut reader = open(bytes)?;
        let (pack, offset) = (reader.varint()?, reader.varint()?);
        let position = LogPosition { pack, offset, sequence: reader.varint()? };
        let (record_bytes, bytes_stored) = (reader.varint()?, reader.varint()?);
        // A pack's number takes a byte at least.
        let count = reader.length(bytes.len())?;
        let packs =
            (0..count).map(|_| reader.varint()).collect::<Result<Vec<u64>, CodecError>>()?;
        reader.finish()?;
        Ok(Image { position, record_bytes, bytes: bytes_stored, packs })
    }
}

fn open(bytes: &[u8]) -> Result<Reader<'_>, CodecError> {
    let mut reader = Reader::new(bytes);
    match reader.byte()? {
        FORMAT => Ok(reader),
        format => Err(CodecError::Format(format)),
    }
}

/// Starts a value that may have begun after the first snapshot.
fn open_epoch(bytes: &[u8]) -> Result<(Reader<'_>, u64), CodecError> {
    let mut reader = Reader::new(bytes);
    match reader.byte()? {
        FORMAT => Ok((reader, 0)),
        FORMAT_EPOCH => match reader.varint()? {
            0 => Err(CodecError::Number),
            epoch => Ok((reader, epoch)),
        },
        format => Err(CodecError::Format(format)),
    }
}

fn put_epoch(out: &mut Vec<u8>, epoch: u64) {
    if epoch == 0 {
        out.push(FORMAT);
    } else {
        out.push(FORMAT_EPOCH);
        put_varint(out, epoch);
    }
}

fn put_time(out: &mut Vec<u8>, time: Timestamp, base: Timestamp) {
    assert!(time.nanos < NANOS_PER_SEC, "a timestamp's nanoseconds are below one second");
    put_signed(out, time.secs.wrapping_sub(base.secs));
    put_signed(out, i64::from(time.nanos) - i64::from(base.nanos));
}

fn time(reader: &mut Reader<'_>, base: Timestamp) -> Result<Timestamp, CodecError> {
    let secs = base.secs.wrapping_add(reader.signed()?);
    let nanos = i64::from(base.nanos).checked_add(reader.signed()?).ok_or(CodecError::Number)?;
    match u32::try_from(nanos) {
        Ok(nanos) if nanos < NANOS_PER_SEC => Ok(Timestamp { secs, nanos }),
        _ => Err(CodecError::Number),
    }
}
