//! Reading ranges of content.
//!
//! Owns [`Pyramid::read`]. Invariants: each tree chunk on the way is loaded once; data chunks are
//! fetched together; holes are recognised by their address and cost nothing.
//!
//! Absent on purpose: caches and read-ahead.

use super::error::{Error, ReadError};
use super::root::{Pyramid, Root, check_length};
use super::spot::Spot;
use crate::chunk::{Address, Source};

/// Data chunks that are fetched with one call: 1 MiB of default chunks, and 8 bytes of work for
/// each byte of an address.
const FETCH_MAX: usize = 256;

impl Pyramid {
    /// Fills `buf` with the content of `root` from `offset` on.
    ///
    /// # Errors
    ///
    /// Fails when the source fails or a chunk does not fit its place. `buf` then holds anything.
    ///
    /// # Panics
    ///
    /// When the range reaches behind the end of `root`.
    pub fn read<S: Source>(
        &self,
        source: &S,
        root: &Root,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), ReadError<S::Error>> {
        let inside = offset.checked_add(buf.len() as u64).is_some_and(|end| end <= root.size);
        assert!(inside, "{} bytes at {offset} are not inside {}", buf.len(), root.size);
        if buf.is_empty() {
            return Ok(());
        }
        let mut join = Join { pyramid: self, source, offset, buf, parts: Vec::new() };
        join.node(&self.spot(root))?;
        join.fetch()
    }
}

/// A data chunk that is to be fetched.
struct Part {
    address: Address,
    /// Where it starts in the file.
    offset: u64,
    span: u64,
}

struct Join<'a, S> {
    pyramid: &'a Pyramid,
    source: &'a S,
    /// Where `buf` starts in the file.
    offset: u64,
    buf: &'a mut [u8],
    parts: Vec<Part>,
}

impl<S: Source> Join<'_, S> {
    /// Takes the part of the node that lies in the range. The two overlap.
    fn node(&mut self, spot: &Spot) -> Result<(), Error<S::Error>> {
        let Spot { offset: start, shape, link } = *spot;
        if self.pyramid.spot_is_zero(spot) {
            let (_, range) = cut(self.offset, self.buf.len(), start, shape.span);
            self.buf[range].fill(0);
            return Ok(());
        }
        if shape.height == 0 {
            self.parts.push(Part { address: link.address, offset: start, span: shape.span });
            return if self.parts.len() < FETCH_MAX { Ok(()) } else { self.fetch() };
        }
        let tree = self.pyramid.load_tree(self.source, &link.address, shape)?;
        let piece = self.pyramid.geometry().piece(shape);
        let end = self.offset + self.buf.len() as u64;
        let first = (self.offset.saturating_sub(start) / piece) as usize;
        let children = (first..).map_while(|index| self.pyramid.spot_child(spot, &tree, index));
        for child in children.take_while(|child| child.offset < end) {
            self.node(&child)?;
        }
        Ok(())
    }

    /// Fetches the data chunks that wait.
    fn fetch(&mut self) -> Result<(), Error<S::Error>> {
        if self.parts.is_empty() {
            return Ok(());
        }
        let parts = std::mem::take(&mut self.parts);
        let addresses: Vec<Address> = parts.iter().map(|part| part.address).collect();
        let (offset, buf) = (self.offset, &mut *self.buf);
        let mut checked = Ok(());
        self.source.data_many(&addresses, &mut |index, data| {
            let Some(part) = parts.get(index) else { return };
            let check = check_length(&part.address, data.len(), part.span);
            if check.is_err() {
                checked = check;
                return;
            }
            let (skip, range) = cut(offset, buf.len(), part.offset, part.span);
            let length = range.len();
            buf[range].copy_from_slice(&data[skip..skip + length]);
        })?;
        checked
    }
}

/// Returns how the node of `span` bytes at `start` overlaps a buffer at `offset`: the bytes of the
/// node in front of the buffer, and the range of the buffer.
fn cut(offset: u64, length: usize, start: u64, span: u64) -> (usize, std::ops::Range<usize>) {
    let from = start.max(offset);
    let to = (start + span).min(offset + length as u64);
    ((from - start) as usize, (from - offset) as usize..(to - offset) as usize)
}
