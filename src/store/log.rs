//! The end of the log: the one open pack, and what the next commit record will say.
//!
//! Owns appending frames, sealing a full pack and beginning the next, and commit records.
//!
//! Invariants: (1) what is behind `end` of the open pack is no part of the log, and after a failed
//! write the next one goes to the same place; (2) a pack is sealed and synced, and the next pack's
//! name is durable, before anything is appended to the next; (3) no sync is tried twice: after
//! [`LogError::Fatal`] nobody may use the log any more.
//!
//! Absent on purpose: locks, the index, and who waits for what.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use super::LogPosition;
use super::frame::{self, FRAME_HEAD_BYTES, Kind, Life, Parts, u32_at};
use super::pack::{self, PACK_HEADER_BYTES, PACKS_DIR, PackKind};
use super::record::{RECORD_PACKS_MAX, RecordHead, run_on};
use crate::sys::{Access, Disk, DiskFile};

/// What a pack has beside the entries of a record that fills it, with some packs begun in its
/// group.
const RECORD_OVERHEAD_BYTES: u64 = 1024;

/// Why something could not be appended.
#[derive(Debug)]
pub enum LogError {
    /// The disk is full; the log is as it was, and the same may be tried again.
    NoSpace,
    /// The record is longer than a pack.
    TooLarge {
        /// Its length.
        bytes: u64,
        /// What a record may have.
        bytes_max: u64,
    },
    /// Anything else: the log must not be used any more.
    Fatal {
        /// What failed.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Tells a full disk from all other failures of a write.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

fn failed(action: &'static str) -> impl Fn(io::Error) -> LogError {
    move |source| match is_full(&source) {
        true => LogError::NoSpace,
        false => LogError::Fatal { action, source },
    }
}

fn fatal(action: &'static str) -> impl Fn(io::Error) -> LogError {
    move |source| LogError::Fatal { action, source }
}

/// The pack that is being appended to.
pub struct OpenPack {
    /// Its number.
    pub number: u64,
    /// Its file.
    pub file: Arc<dyn DiskFile>,
    /// Where the next frame goes.
    pub end: u64,
    /// The payload of its footer so far.
    pub footer: Vec<u8>,
}

/// The end of the log.
pub struct Log {
    /// Where packs are.
    pub disk: Arc<dyn Disk>,
    /// The volume that headers are bound to.
    pub volume_id: [u8; 16],
    /// A pack without its footer is at most this long.
    pub pack_bytes_max: u64,
    /// The pack that is being appended to, when there is one.
    pub open: Option<OpenPack>,
    /// The number of the next pack.
    pub next_number: u64,
    /// Directories of packs that are known to be durable.
    pub dirs: HashSet<String>,
    /// What the next record will say; its sequence is that of the last one.
    pub head: RecordHead,
    /// Bytes of all packs but the open one.
    pub sealed_bytes: u64,
    /// Packs, the open one included.
    pub packs: u64,
    /// The highest number of a sealed pack of the log, or more than that of an aux pack before it.
    pub last_sealed: u64,
}

impl Log {
    /// Bytes of all packs.
    pub fn stored_bytes(&self) -> u64 {
        self.sealed_bytes + self.open.as_ref().map_or(0, |open| open.end)
    }

    /// Appends a frame made by [`frame::encode`]; returns where it lies.
    pub fn append(&mut self, bytes: &mut [u8]) -> Result<(u64, u64), LogError> {
        let place = self.write(bytes)?;
        let header_crc = u32_at(bytes, 36).unwrap_or(0);
        self.head.running_crc = run_on(self.head.running_crc, header_crc);
        self.head.frames += 1;
        Ok(place)
    }

    /// Appends the commit record of `entries`; returns the file to sync and where it ends.
    pub fn record(&mut self, entries: &[u8]) -> Result<(Arc<dyn DiskFile>, LogPosition), LogError> {
        let bytes_max = self.pack_bytes_max.saturating_sub(RECORD_OVERHEAD_BYTES);
        if entries.len() as u64 > bytes_max {
            return Err(LogError::TooLarge { bytes: entries.len() as u64, bytes_max });
        }
        // Making room may begin a pack, which the record then has to name.
        let sequence = self.head.sequence + 1;
        let length = |head: &RecordHead| {
            let list_bytes = super::record::RECORD_HEAD_BYTES + 8 * head.begun.len();
            frame::align((FRAME_HEAD_BYTES + list_bytes + entries.len()) as u64)
        };
        self.make_room(length(&self.head))?;
        let head = RecordHead { sequence, ..self.head.clone() };
        let mut bytes = frame::encode(&Parts {
            kind: Kind::Record,
            codec: frame::Codec::None,
            count: 0,
            list: &head.encode(),
            payload: entries,
            raw_bytes: entries.len() as u32,
        });
        let (pack, offset) = self.write(&mut bytes)?;
        self.head = RecordHead {
            sequence,
            previous_pack: pack,
            previous_offset: offset,
            ..RecordHead::default()
        };
        match &self.open {
            Some(open) => {
                let position = LogPosition { pack, offset: open.end, sequence };
                Ok((Arc::clone(&open.file), position))
            }
            None => Err(fatal("find the open pack")(io::ErrorKind::NotFound.into())),
        }
    }

    /// Makes room, then writes a frame at the end of the open pack.
    fn write(&mut self, bytes: &mut [u8]) -> Result<(u64, u64), LogError> {
        let volume_id = self.volume_id;
        let open = self.make_room(bytes.len() as u64)?;
        let life = Life { volume_id, pack: open.number };
        let offset = open.end;
        frame::place(bytes, life.seed(offset));
        open.file.write_all_at(bytes, offset).map_err(failed("append to a pack"))?;
        open.end = offset + bytes.len() as u64;
        let head_bytes = FRAME_HEAD_BYTES + u32_at(bytes, 12).unwrap_or(0) as usize;
        pack::footer_push(&mut open.footer, offset, bytes.get(..head_bytes).unwrap_or_default());
        Ok((open.number, offset))
    }

    /// Returns a pack with room for `length` bytes; seals the open one and begins another if
    /// needed.
    ///
    /// A pack without frames has room for anything.
    fn make_room(&mut self, length: u64) -> Result<&mut OpenPack, LogError> {
        let full = self.open.as_ref().is_some_and(|open| {
            PACK_HEADER_BYTES < open.end && self.pack_bytes_max < open.end + length
        });
        if full {
            self.seal()?;
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => self.begin()?,
        };
        Ok(self.open.insert(open))
    }

    /// Seals the open pack if it is at least so long: what is appended next begins another.
    pub fn seal_from(&mut self, bytes: u64) -> Result<(), LogError> {
        match &self.open {
            Some(open) if bytes <= open.end => self.seal(),
            _ => Ok(()),
        }
    }

    fn seal(&mut self) -> Result<(), LogError> {
        let Some(open) = &self.open else {
            return Ok(());
        };
        let life = Life { volume_id: self.volume_id, pack: open.number };
        let (bytes, header_crc) = pack::encode_footer(life, open.end, &open.footer);
        open.file.write_all_at(&bytes, open.end).map_err(failed("write the footer of a pack"))?;
        open.file.sync().map_err(fatal("sync a full pack"))?;
        self.head.running_crc = run_on(self.head.running_crc, header_crc);
        self.head.frames += 1;
        self.sealed_bytes += open.end + bytes.len() as u64;
        self.last_sealed = open.number;
        self.open = None;
        Ok(())
    }

    /// Takes the next number for a pack.
    ///
    /// It is used up by trying, so a name left behind by a failure is never met again.
    pub fn take_number(&mut self) -> io::Result<u64> {
        if self.next_number >= pack::PACK_NUMBERS {
            return Err(io::Error::other("all numbers of packs are used up"));
        }
        self.next_number += 1;
        Ok(self.next_number - 1)
    }

    fn begin(&mut self) -> Result<OpenPack, LogError> {
        if self.head.begun.len() >= RECORD_PACKS_MAX {
            let text = "too many packs in one group";
            return Err(fatal("begin a pack")(io::Error::other(text)));
        }
        let number = self.take_number().map_err(fatal("begin a pack"))?;
        let dir = pack::pack_dir(number);
        if !self.dirs.contains(&dir) {
            pack::make_dir(&*self.disk, &dir).map_err(failed("make a directory of packs"))?;
            self.disk.sync_dir(PACKS_DIR).map_err(fatal("sync the directory of packs"))?;
            self.dirs.insert(dir.clone());
        }
        let path = pack::pack_path(number);
        let file = self.disk.open(&path, Access::CreateNew).map_err(failed("begin a pack"))?;
        let life = Life { volume_id: self.volume_id, pack: number };
        let written = file.write_all_at(&pack::encode_header(life, PackKind::Log), 0);
        if let Err(error) = written {
            // Best effort: what stays is set aside at the next opening.
            let _ = self.disk.remove_file(&path);
            return Err(failed("begin a pack")(error));
        }
        self.disk.sync_dir(&dir).map_err(fatal("sync a directory of packs"))?;
        self.head.begun.push(number);
        self.packs += 1;
        Ok(OpenPack { number, file, end: PACK_HEADER_BYTES, footer: Vec::new() })
    }
}
