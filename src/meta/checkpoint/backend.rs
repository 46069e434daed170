//! The checkpoint's file as redb sees it: pages of 4096 bytes, each verified when it is read.
//!
//! Layout: page p lies at p × 4104 and is followed by its trailer: CRC-32C (over the page's number,
//! 8 bytes little-endian, and the page) and the number 1, 4 bytes each, little-endian. A page that
//! was never written is all zeros, trailer included. Page 0 is redb's header, whose slots have
//! checksums of their own and which is written in parts: its trailer stays 0 and is not looked at.
//!
//! Invariants: (1) writing a page changes no byte of another; (2) a page that does not fit its
//! trailer is never handed out.
//!
//! Absent on purpose: what pages hold, and which of them belong together.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use redb::StorageBackend;

use crate::sys::DiskFile;

/// Bytes of a page; redb's own default.
const PAGE_BYTES: usize = 4096;
const TRAILER_BYTES: usize = 8;
const STORED_BYTES: usize = PAGE_BYTES + TRAILER_BYTES;
const _: () = assert!(STORED_BYTES == 4104, "docs/format.md says 4104");

/// The second half of the trailer of a page that was written.
const WRITTEN: u32 = 1;

/// redb's header: its flags, and behind it two slots, each with the number of its transaction.
const FLAGS_AT: usize = 9;
const SECOND_IS_CURRENT: u8 = 1;
const IS_OPEN: u8 = 2;
const TRANSACTIONS_AT: [usize; 2] = [64 + 104, 64 + 128 + 104];
const HEADER_BYTES: usize = 64 + 2 * 128;

/// A page does not fit its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("page {page} does not fit its checksum")]
pub(super) struct BadPage {
    /// Its number; page p lies at p × 4104 in the file.
    pub(super) page: u64,
}

/// The file, with what must be known of it from outside redb.
pub(in crate::meta) struct PageFile {
    file: Arc<dyn DiskFile>,
    /// End of the last byte that was ever written: redb doubles the file long before it needs to,
    /// and what lies behind this is a hole.
    written_to: AtomicU64,
    sync_failed: AtomicBool,
}

impl PageFile {
    /// Takes over a file that is a checkpoint, or empty.
    pub(in crate::meta) fn new(file: Arc<dyn DiskFile>) -> io::Result<PageFile> {
        let written_to = AtomicU64::new(file.len()?);
        Ok(PageFile { file, written_to, sync_failed: AtomicBool::new(false) })
    }

    /// Bytes up to the last one that was written.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written_to.load(Ordering::Relaxed)
    }

    /// Whether a sync failed: then nobody knows what of the last writes is on the disk.
    pub(super) fn has_failed_sync(&self) -> bool {
        self.sync_failed.load(Ordering::Relaxed)
    }

    fn len(&self) -> io::Result<u64> {
        let stored = self.file.len()?;
        let (pages, rest) = (stored / STORED_BYTES as u64, stored % STORED_BYTES as u64);
        Ok(pages * PAGE_BYTES as u64 + rest.min(PAGE_BYTES as u64))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let (pages, rest) = (len / PAGE_BYTES as u64, len % PAGE_BYTES as u64);
        let stored = stored_at(pages)?.checked_add(rest).ok_or(io::ErrorKind::FileTooLarge)?;
        self.file.set_len(stored)?;
        self.written_to.fetch_min(stored, Ordering::Relaxed);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync().inspect_err(|_| self.sync_failed.store(true, Ordering::Relaxed))
    }

    /// Reads a run of whole pages and verifies each.
    fn read_pages(&self, first: u64, out: &mut [u8]) -> io::Result<()> {
        let count = out.len() / PAGE_BYTES;
        let mut stored = vec![0; count * STORED_BYTES];
        let read = self.file.read_at(&mut stored, stored_at(first)?)?;
        if read < stored.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let pages = stored.chunks_exact(STORED_BYTES).zip(out.chunks_exact_mut(PAGE_BYTES));
        for (page, (stored, out)) in (first..).zip(pages) {
            let (bytes, trailer) = stored.split_at(PAGE_BYTES);
            let is_unwritten = || stored.iter().all(|&byte| byte == 0);
            if page > 0 && trailer != trailer_of(page, bytes) && !is_unwritten() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, BadPage { page }));
            }
            out.copy_from_slice(bytes);
        }
        Ok(())
    }

    /// Writes a run of whole pages, page 0 not among them.
    fn write_pages(&self, first: u64, bytes: &[u8]) -> io::Result<()> {
        let mut stored = Vec::with_capacity(bytes.len() / PAGE_BYTES * STORED_BYTES);
        for (page, bytes) in (first..).zip(bytes.chunks_exact(PAGE_BYTES)) {
            stored.extend_from_slice(bytes);
            stored.extend_from_slice(&trailer_of(page, bytes));
        }
        self.write_stored(stored_at(first)?, &stored)
    }

    fn write_stored(&self, offset: u64, stored: &[u8]) -> io::Result<()> {
        let end = offset.saturating_add(stored.len() as u64);
        self.written_to.fetch_max(end, Ordering::Relaxed);
        self.file.write_all_at(stored, offset)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        for piece in pieces(offset, out.len()) {
            let Some(out) = out.get_mut(piece.at..piece.at + piece.len) else { break };
            if piece.is_whole() {
                self.read_pages(piece.page, out)?;
            } else if piece.page == 0 {
                // The header, which may be read before the file is a page long.
                if self.file.read_at(out, piece.skip as u64)? < out.len() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            } else {
                let mut page = [0; PAGE_BYTES];
                self.read_pages(piece.page, &mut page)?;
                out.copy_from_slice(page.get(piece.skip..piece.skip + piece.len).unwrap_or(&[]));
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        for piece in pieces(offset, data.len()) {
            let Some(data) = data.get(piece.at..piece.at + piece.len) else { break };
            if piece.page == 0 {
                self.write_stored(piece.skip as u64, data)?;
            } else if piece.is_whole() {
                self.write_pages(piece.page, data)?;
            } else {
                let mut page = [0; PAGE_BYTES];
                self.read_pages(piece.page, &mut page)?;
                page[piece.skip..piece.skip + piece.len].copy_from_slice(data);
                self.write_pages(piece.page, &page)?;
            }
        }
        Ok(())
    }
}

/// A part of a range of bytes: inside one page, or a run of whole pages.
struct Piece {
    /// Where it begins in the range.
    at: usize,
    len: usize,
    page: u64,
    /// Bytes of the page in front of it.
    skip: usize,
}

impl Piece {
    fn is_whole(&self) -> bool {
        self.skip == 0 && self.len.is_multiple_of(PAGE_BYTES)
    }

    /// The same, page by page.
    fn pages(self) -> impl Iterator<Item = Piece> {
        let count = if self.is_whole() { self.len / PAGE_BYTES } else { 1 };
        let len = self.len / count;
        (0..count).map(move |index| Piece {
            at: self.at + index * PAGE_BYTES,
            len,
            page: self.page + index as u64,
            skip: self.skip,
        })
    }
}

/// Cuts a range at the borders of the page it begins in and the page it ends in; page 0 is alone.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = Piece> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = len.checked_sub(at).filter(|&rest| rest > 0)?;
        let place = offset.saturating_add(at as u64);
        let page = place / PAGE_BYTES as u64;
        let skip = (place % PAGE_BYTES as u64) as usize;
        let len = if 0 < skip || page == 0 || rest < PAGE_BYTES {
            rest.min(PAGE_BYTES - skip)
        } else {
            rest - rest % PAGE_BYTES
        };
        let piece = Piece { at, len, page, skip };
        at += len;
        Some(piece)
    })
}

/// Whether the header of a file that was closed cleanly names the older of its two slots.
///
/// No checksum covers the flags that choose the slot, and pages of the older state may be in use
/// again, each with a checksum that fits. While a file is open its newer slot is written before it
/// is chosen, so of one that was not closed nothing can be said.
pub(super) fn names_older_state(file: &dyn DiskFile) -> io::Result<bool> {
    let mut header = [0; HEADER_BYTES];
    if file.read_at(&mut header, 0)? < HEADER_BYTES {
        return Ok(false);
    }
    let [first, second] = TRANSACTIONS_AT.map(|at| {
        let bytes = header.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        u64::from_le_bytes(bytes.unwrap_or_default())
    });
    let flags = header.get(FLAGS_AT).copied().unwrap_or_default();
    let (current, other) =
        if flags & SECOND_IS_CURRENT != 0 { (second, first) } else { (first, second) };
    Ok(flags & IS_OPEN == 0 && current < other)
}

fn stored_at(page: u64) -> io::Result<u64> {
    page.checked_mul(STORED_BYTES as u64).ok_or(io::ErrorKind::FileTooLarge.into())
}

fn trailer_of(page: u64, bytes: &[u8]) -> [u8; TRAILER_BYTES] {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&page.to_le_bytes()), bytes);
    ((u64::from(WRITTEN) << 32) | u64::from(crc)).to_le_bytes()
}

/// Gives every whole page of a file the trailer that fits.
#[cfg(any(test, fuzzing))]
pub(in crate::meta) fn seal_pages(stored: &mut [u8]) {
    for (page, stored) in stored.chunks_exact_mut(STORED_BYTES).enumerate() {
        let (bytes, trailer) = stored.split_at_mut(PAGE_BYTES);
        trailer.copy_from_slice(&trailer_of(page as u64, bytes));
    }
}

/// redb's way to the file.
pub(in crate::meta) struct Backend(pub(in crate::meta) Arc<PageFile>);

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the checkpoint's file")
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

/// redb's way to a file that is only read from now on: what redb writes to mark it as open, or to
/// recover it, stays in memory.
pub(in crate::meta) struct ReadingBackend {
    file: Arc<PageFile>,
    changes: Mutex<Changes>,
}

struct Changes {
    len: u64,
    /// Bytes from here on are no longer the file's: the length was less for a while.
    file_len: u64,
    /// Pages that differ from the file, by number.
    pages: BTreeMap<u64, Box<[u8; PAGE_BYTES]>>,
}

impl ReadingBackend {
    /// Begins with the file as it is.
    pub(in crate::meta) fn new(file: Arc<PageFile>) -> io::Result<ReadingBackend> {
        let len = file.len()?;
        let changes = Changes { len, file_len: len, pages: BTreeMap::new() };
        Ok(ReadingBackend { file, changes: Mutex::new(changes) })
    }

    /// Reads what the first `len` bytes of the file have of a range; the rest is zeros.
    fn read_file(&self, len: u64, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let in_file = len.saturating_sub(offset).min(out.len() as u64) as usize;
        let (head, tail) = out.split_at_mut(in_file);
        tail.fill(0);
        self.file.read(offset, head)
    }
}

impl fmt::Debug for ReadingBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the checkpoint's file, for reading")
    }
}

impl StorageBackend for ReadingBackend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.changes.lock().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let changes = self.changes.lock();
        if changes.len < offset.saturating_add(out.len() as u64) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for piece in pieces(offset, out.len()).flat_map(Piece::pages) {
            let Some(out) = out.get_mut(piece.at..piece.at + piece.len) else { break };
            match changes.pages.get(&piece.page) {
                Some(page) => out.copy_from_slice(&page[piece.skip..piece.skip + piece.len]),
                None => {
                    self.read_file(changes.file_len, offset.saturating_add(piece.at as u64), out)?
                }
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut changes = self.changes.lock();
        changes.len = len;
        changes.file_len = changes.file_len.min(len);
        changes.pages.split_off(&len.div_ceil(PAGE_BYTES as u64));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut changes = self.changes.lock();
        for piece in pieces(offset, data.len()).flat_map(Piece::pages) {
            let Some(data) = data.get(piece.at..piece.at + piece.len) else { break };
            if !changes.pages.contains_key(&piece.page) {
                let mut page = Box::new([0; PAGE_BYTES]);
                if piece.len < PAGE_BYTES {
                    let start = piece.page.saturating_mul(PAGE_BYTES as u64);
                    self.read_file(changes.file_len, start, page.as_mut_slice())?;
                }
                changes.pages.insert(piece.page, page);
            }
            if let Some(page) = changes.pages.get_mut(&piece.page) {
                page[piece.skip..piece.skip + piece.len].copy_from_slice(data);
            }
        }
        Ok(())
    }
}
