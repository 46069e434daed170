//! The bytes of a simulated file: sparse, and cheap to copy.
//!
//! Owns [`Content`], the pages of one file at one moment.
//!
//! Invariants: (1) a page that is absent is all zeros; (2) no byte of a page lies behind the length
//! unless it is zero, so extending never uncovers old bytes; (3) pages are shared between copies
//! until one of them changes.
//!
//! Absent on purpose: what is durable.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The unit in which content is kept and space is counted.
pub(super) const PAGE_BYTES: u64 = 4096;

/// The unit in which a disk writes: a power loss tears a write only between sectors.
pub(super) const SECTOR_BYTES: u64 = 512;

type Page = [u8; PAGE_BYTES as usize];

/// The bytes of a file at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    pages: BTreeMap<u64, Arc<Page>>,
    len: u64,
    /// Pages from the start that have their place, whether they were written or not.
    allocated: u64,
}

impl Content {
    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes that the pages occupy.
    pub(super) fn used_bytes(&self) -> u64 {
        let beyond = self.pages.range(self.allocated..).count() as u64;
        (self.allocated + beyond) * PAGE_BYTES
    }

    /// Bytes that taking room for the first `len` would add to that.
    pub(super) fn growth_to(&self, len: u64) -> u64 {
        let wanted = len.div_ceil(PAGE_BYTES);
        let there = match self.allocated < wanted {
            true => self.pages.range(self.allocated..wanted).count() as u64,
            false => 0,
        };
        (wanted.saturating_sub(self.allocated) - there) * PAGE_BYTES
    }

    /// Takes room for the first `len` bytes.
    pub(super) fn allocate(&mut self, len: u64) {
        self.allocated = self.allocated.max(len.div_ceil(PAGE_BYTES));
        self.len = self.len.max(len);
    }

    /// Reads at `offset` until `buf` is full or the content ends; returns how much was read.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let count = self.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        for piece in pieces(offset, count) {
            let target = &mut buf[piece.done..piece.done + piece.count];
            match self.pages.get(&piece.page) {
                Some(page) => target.copy_from_slice(&page[piece.at..piece.at + piece.count]),
                None => target.fill(0),
            }
        }
        count
    }

    /// Writes `bytes` at `offset`; the caller has made sure that the end fits in 64 bits.
    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        for piece in pieces(offset, bytes.len()) {
            self.page_mut(piece.page)[piece.at..piece.at + piece.count]
                .copy_from_slice(&bytes[piece.done..piece.done + piece.count]);
        }
        if !bytes.is_empty() {
            self.len = self.len.max(offset + bytes.len() as u64);
        }
    }

    /// Cuts or extends (with zeros) to `len` bytes.
    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.pages.split_off(&len.div_ceil(PAGE_BYTES));
            self.allocated = self.allocated.min(len.div_ceil(PAGE_BYTES));
            let within = (len % PAGE_BYTES) as usize;
            if within > 0
                && let Some(page) = self.pages.get_mut(&(len / PAGE_BYTES))
            {
                Arc::make_mut(page)[within..].fill(0);
            }
        }
        self.len = len;
    }

    /// Makes the pages that `count` bytes at `offset` touch, and the length, those of `other`.
    pub(super) fn share(&mut self, other: &Content, offset: u64, count: usize) {
        for piece in pieces(offset, count) {
            match other.pages.get(&piece.page) {
                Some(page) => self.pages.insert(piece.page, page.clone()),
                None => self.pages.remove(&piece.page),
            };
        }
        self.len = other.len;
    }

    /// Changes one byte by exclusive or; beyond the end nothing happens.
    pub(super) fn flip(&mut self, offset: u64, xor: u8) {
        if offset < self.len {
            self.page_mut(offset / PAGE_BYTES)[(offset % PAGE_BYTES) as usize] ^= xor;
        }
    }

    /// Bytes of new pages that writing `count` bytes at `offset` would take.
    pub(super) fn growth(&self, offset: u64, count: usize) -> u64 {
        let absent =
            |piece: &Piece| self.allocated <= piece.page && !self.pages.contains_key(&piece.page);
        pieces(offset, count).filter(absent).count() as u64 * PAGE_BYTES
    }

    fn page_mut(&mut self, page: u64) -> &mut Page {
        Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE_BYTES as usize])))
    }
}

/// A part of a range that lies in one page.
struct Piece {
    page: u64,
    /// Where it begins in the page.
    at: usize,
    /// Where it begins in the range.
    done: usize,
    count: usize,
}

/// Cuts a range of bytes at the pages' borders.
fn pieces(offset: u64, count: usize) -> impl Iterator<Item = Piece> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == count {
            return None;
        }
        let position = offset + done as u64;
        let at = (position % PAGE_BYTES) as usize;
        let piece = Piece {
            page: position / PAGE_BYTES,
            at,
            done,
            count: (count - done).min(PAGE_BYTES as usize - at),
        };
        done += piece.count;
        Some(piece)
    })
}
