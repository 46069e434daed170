//! Extending trees at their right end.
//!
//! Owns [`Pyramid::append`]: it hands the builder what the old tree has on its right edge, and the
//! builder goes on as if it had split the old content itself.
//!
//! Invariants: what is loaded is the rightmost unfinished tree chunk of each level and the last
//! partial data chunk, so at most depth + 1 chunks; nothing when nothing is appended. Old chunks
//! never change.
//!
//! Absent on purpose: holes at the end (see [`Pyramid::truncate`]).

use std::io::Read;

use super::error::{Error, SplitError};
use super::root::{Link, Pyramid, Root};
use super::split::{Builder, fill};
use crate::chunk::Sink;

impl Pyramid {
    /// Returns the root of the content of `root` followed by all that `reader` gives.
    ///
    /// A short read is not the end; only a read of 0 bytes is.
    ///
    /// # Errors
    ///
    /// Fails when the reader or the sink fails, or a chunk of the old tree does not fit its place.
    pub fn append<S: Sink>(
        &self,
        sink: &S,
        root: &Root,
        reader: &mut dyn Read,
    ) -> Result<Root, SplitError<S::Error>> {
        let chunk_bytes = self.profile().chunk_bytes();
        let tail = (root.size % chunk_bytes as u64) as usize;
        let mut buffer = vec![0; self.batch_chunks() * chunk_bytes];
        let length = fill(reader, &mut buffer[tail..])?;
        if length == 0 {
            return Ok(*root);
        }
        let mut builder = Builder::new(self, sink);
        self.reopen(sink, root, &mut builder, &mut buffer[..tail])?;
        builder.take_all(reader, buffer, tail + length)
    }

    /// Gives the full nodes of the right edge to `builder`, the bytes of a partial chunk to `tail`.
    fn reopen<S: Sink>(
        &self,
        sink: &S,
        root: &Root,
        builder: &mut Builder<'_, S>,
        tail: &mut [u8],
    ) -> Result<(), Error<S::Error>> {
        let geometry = self.geometry();
        let mut shape = geometry.root(root.size);
        let mut link = Link { address: root.address, filled: root.filled.min(root.size) };
        loop {
            if shape.span == 0 {
                return Ok(());
            }
            if geometry.is_full(shape) {
                builder.place(shape.height, link);
                return Ok(());
            }
            let zero = self.is_zero_link(&link, shape);
            if shape.height == 0 {
                if !zero {
                    tail.copy_from_slice(&self.load_data(sink, &link.address, shape.span)?);
                }
                return Ok(());
            }
            let full = (shape.span / geometry.piece(shape)) as usize;
            let tree =
                if zero { None } else { Some(self.load_tree(sink, &link.address, shape)?) };
            let child = |index: usize| {
                let shape = geometry.child(shape, index);
                match &tree {
                    Some(tree) => Link {
                        address: tree.children[index],
                        // The counts are not hashed: a wrong one must not make sums overflow.
                        filled: tree.filled[index].min(shape.span),
                    },
                    None => self.zero_link(shape),
                }
            };
            for index in 0..full {
                builder.place(shape.height - 1, child(index));
            }
            if geometry.child_count(shape) == full {
                return Ok(());
            }
            link = child(full);
            shape = geometry.child(shape, full);
        }
    }
}
