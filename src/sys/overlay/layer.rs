//! One file of an overlay: changed pages in memory over what the disk below holds.
//!
//! Owns [`Layer`].
//!
//! Invariants: (1) a page that is kept is complete: whatever of it was not written came from below;
//! (2) bytes from `visible` on, which only falls, are never taken from below: they were cut off
//! once; (3) kept pages hold zeros behind the length.
//!
//! Absent on purpose: names.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use crate::sys::DiskFile;
use crate::sys::path::os_error;

/// The unit in which changes are kept.
const PAGE_BYTES: u64 = 4096;

/// A file with its changes.
pub(super) struct Layer {
    below: Option<Arc<dyn DiskFile>>,
    /// Set before the first change.
    changed: AtomicBool,
    state: RwLock<State>,
}

struct State {
    len: u64,
    /// How much of the file below can still be seen.
    visible: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl Layer {
    /// A new file.
    pub(super) fn empty() -> Layer {
        let state = State { len: 0, visible: 0, pages: BTreeMap::new() };
        Layer { below: None, changed: AtomicBool::new(true), state: RwLock::new(state) }
    }

    /// A file that shows what `below` holds.
    pub(super) fn over(below: Arc<dyn DiskFile>) -> io::Result<Layer> {
        let len = below.len()?;
        let state = State { len, visible: len, pages: BTreeMap::new() };
        let changed = AtomicBool::new(false);
        Ok(Layer { below: Some(below), changed, state: RwLock::new(state) })
    }

    /// Notes that the file is about to be changed; true the first time.
    pub(super) fn mark_changed(&self) -> bool {
        !self.changed.swap(true, Ordering::SeqCst)
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.state.read().len
    }

    /// Bytes of memory that the changes take.
    pub(super) fn used_bytes(&self) -> u64 {
        self.state.read().pages.len() as u64 * PAGE_BYTES
    }

    /// Reads at `offset` until `buf` is full or the file ends; returns how much was read.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.state.read();
        let count = state.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut rest = buf.split_at_mut(count).0;
        let mut at = offset;
        while !rest.is_empty() {
            let page = at / PAGE_BYTES;
            let within = (at % PAGE_BYTES) as usize;
            let kept = state.pages.get(&page);
            // What is not kept is read with one call up to the next page that is.
            let room = match kept {
                Some(_) => PAGE_BYTES - within as u64,
                None => match state.pages.range(page..).next() {
                    Some((next, _)) => next * PAGE_BYTES - at,
                    None => u64::MAX,
                },
            };
            let (part, behind) = rest.split_at_mut(room.min(rest.len() as u64) as usize);
            match kept {
                Some(kept) => part.copy_from_slice(&kept[within..within + part.len()]),
                None => self.read_below(&state, part, at)?,
            }
            at += part.len() as u64;
            rest = behind;
        }
        Ok(count)
    }

    /// Fills `buf` with what can be seen of the file below, and with zeros behind it.
    fn read_below(&self, state: &State, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let count = state.visible.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (seen, mut zeros) = buf.split_at_mut(count);
        if let (Some(below), false) = (&self.below, seen.is_empty()) {
            let got = below.read_at(seen, offset)?;
            zeros.fill(0);
            zeros = seen.split_at_mut(got).1;
        }
        zeros.fill(0);
        Ok(())
    }

    /// Writes all of `bytes` at `offset`.
    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = check_end(offset, bytes.len() as u64)?;
        let mut state = self.state.write();
        let mut rest = bytes;
        let mut at = offset;
        while !rest.is_empty() {
            let within = (at % PAGE_BYTES) as usize;
            let (part, behind) = rest.split_at((PAGE_BYTES as usize - within).min(rest.len()));
            let page = self.page(&mut state, at / PAGE_BYTES, part.len())?;
            page[within..within + part.len()].copy_from_slice(part);
            at += part.len() as u64;
            rest = behind;
        }
        if !bytes.is_empty() {
            state.len = state.len.max(end);
        }
        Ok(())
    }

    /// The page that is kept for `number`, taken from below unless all of it will be written.
    fn page<'a>(
        &self,
        state: &'a mut State,
        number: u64,
        written: usize,
    ) -> io::Result<&'a mut Box<[u8]>> {
        let mut fresh = None;
        if !state.pages.contains_key(&number) {
            let mut page = vec![0; PAGE_BYTES as usize].into_boxed_slice();
            if written < page.len() {
                self.read_below(state, &mut page, number * PAGE_BYTES)?;
            }
            fresh = Some(page);
        }
        Ok(state.pages.entry(number).or_insert_with(|| fresh.unwrap_or_default()))
    }

    /// Cuts or extends (with zeros) to `len` bytes.
    pub(super) fn set_len(&self, len: u64) -> io::Result<()> {
        check_end(len, 0)?;
        let mut state = self.state.write();
        state.visible = state.visible.min(len);
        state.pages.split_off(&len.div_ceil(PAGE_BYTES));
        let within = (len % PAGE_BYTES) as usize;
        if within > 0
            && let Some(page) = state.pages.get_mut(&(len / PAGE_BYTES))
        {
            page[within..].fill(0);
        }
        state.len = len;
        Ok(())
    }

    /// Passes the wish on to the file below.
    pub(super) fn drop_cached(&self, offset: u64, len: u64) -> io::Result<()> {
        self.below.as_ref().map_or(Ok(()), |below| below.drop_cached(offset, len))
    }
}

/// The end of a range; an error when a file would be longer than the system allows.
fn check_end(offset: u64, count: u64) -> io::Result<u64> {
    match offset.checked_add(count) {
        Some(end) if end <= i64::MAX as u64 => Ok(end),
        _ => Err(os_error(libc::EFBIG)),
    }
}
