//! Writing an aux pack: one that is beside the log.
//!
//! Owns [`AuxWriter`]. An aux pack is written to `packs/ab/<number>.pack.tmp`, with a footer like
//! any sealed pack, synced, and only then given its name: what has such a name is whole.
//! Its number comes from the same row as those of the log. Its frames carry a flag, so that a
//! damaged header never makes it a part of the log.
//!
//! Invariants: (1) a failure leaves the store as it was, and poisons nothing: what aux packs hold
//! is a second life of what is elsewhere; (2) nothing waits for an aux pack.
//!
//! Absent on purpose: what is in the frames.

use std::io;
use std::sync::Arc;

use super::frame::{self, FRAME_HEAD_BYTES, Life, u32_at};
use super::pack::{self, PACK_HEADER_BYTES, PACKS_DIR, PackKind, TEMPORARY};
use super::{Error, Inner, Result};
use crate::sys::{Access, DiskFile};

/// An aux pack that is being written; dropped before its end, it leaves nothing.
pub struct AuxWriter<'a> {
    inner: &'a Inner,
    life: Life,
    file: Arc<dyn DiskFile>,
    end: u64,
    footer: Vec<u8>,
    /// Whether its file still has the name of what is not finished.
    is_temporary: bool,
}

fn temporary_path(number: u64) -> String {
    format!("{}/{number:016x}{TEMPORARY}", pack::pack_dir(number))
}

impl<'a> AuxWriter<'a> {
    /// Begins a pack; `source` is the pack whose trees it gets, or 0.
    pub fn begin(inner: &'a Inner, source: u64) -> Result<AuxWriter<'a>> {
        let action = Error::io("begin an aux pack");
        let taken = {
            let mut log = inner.log.lock();
            log.take_number().map(|number| (number, log.dirs.contains(&pack::pack_dir(number))))
        };
        let (number, has_dir) = taken.map_err(&action)?;
        if !has_dir {
            pack::make_dir(&*inner.disk, &pack::pack_dir(number)).map_err(&action)?;
        }
        let opened = inner.disk.open(&temporary_path(number), Access::CreateNew);
        let file = opened.map_err(&action)?;
        let life = inner.life(number);
        let (end, footer) = (PACK_HEADER_BYTES, Vec::new());
        let writer = AuxWriter { inner, life, file, end, footer, is_temporary: true };
        let header = pack::encode_header(life, PackKind::Aux { source });
        writer.file.write_all_at(&header, 0).map_err(&action)?;
        Ok(writer)
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.life.pack
    }

    /// Its length so far, without the footer.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Appends a frame made by [`frame::encode`]; returns where it lies.
    pub fn append(&mut self, bytes: &mut [u8]) -> Result<u64> {
        let offset = self.end;
        frame::mark_aux(bytes);
        frame::place(bytes, self.life.seed(offset));
        let written = self.file.write_all_at(bytes, offset);
        written.map_err(Error::io("write an aux pack"))?;
        self.end += bytes.len() as u64;
        let head_bytes = FRAME_HEAD_BYTES + u32_at(bytes, 12).unwrap_or(0) as usize;
        let head = bytes.get(..head_bytes).unwrap_or_default();
        pack::footer_push(&mut self.footer, offset, head);
        Ok(offset)
    }

    /// Seals the pack, durably, and gives it its name; returns its number and length.
    pub fn finish(mut self) -> Result<(u64, u64)> {
        let action = Error::io("finish an aux pack");
        let (inner, number) = (self.inner, self.number());
        let (footer, _) = pack::encode_footer(self.life, self.end, &self.footer);
        self.file.write_all_at(&footer, self.end).map_err(&action)?;
        self.end += footer.len() as u64;
        self.file.sync().map_err(&action)?;
        let (dir, path) = (pack::pack_dir(number), pack::pack_path(number));
        if !inner.log.lock().dirs.contains(&dir) {
            inner.disk.sync_dir(PACKS_DIR).map_err(&action)?;
            inner.log.lock().dirs.insert(dir.clone());
        }
        inner.disk.rename(&temporary_path(number), &path).map_err(&action)?;
        self.is_temporary = false;
        if let Err(error) = inner.disk.sync_dir(&dir) {
            // Not durable, perhaps never: nobody may rely on it.
            let _ = inner.disk.remove_file(&path);
            return Err(action(error));
        }
        let mut log = inner.log.lock();
        log.sealed_bytes += self.end;
        log.packs += 1;
        drop(log);
        Ok((number, self.end))
    }
}

impl Drop for AuxWriter<'_> {
    fn drop(&mut self) {
        if self.is_temporary {
            // Best effort: what stays is removed at the next opening.
            let _ = self.inner.disk.remove_file(&temporary_path(self.life.pack));
        }
    }
}

impl Inner {
    /// Removes an aux pack that nothing needs any more.
    pub(super) fn remove_aux(&self, number: u64) -> Result<()> {
        let action = Error::io("remove an aux pack");
        let path = pack::pack_path(number);
        let file = match self.disk.open(&path, Access::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(&action)?,
        };
        let bytes = file.len().map_err(&action)?;
        self.disk.remove_file(&path).map_err(&action)?;
        self.files.lock().pop(&number);
        let mut log = self.log.lock();
        log.sealed_bytes = log.sealed_bytes.saturating_sub(bytes);
        log.packs = log.packs.saturating_sub(1);
        Ok(())
    }
}
