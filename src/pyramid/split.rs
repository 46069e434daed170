//! Building trees from readers, bottom-up.
//!
//! Owns [`Pyramid::split`] and the builder that append shares.
//!
//! Invariants: the builder holds fewer than `branches` full nodes of each height, which are the
//! digits of the size in base `branches`; a full node is the same wherever it ends up, so it is
//! put as soon as it is complete, and only the right edge waits for the end. Memory is one batch
//! and those digits, whatever the size.
//!
//! Absent on purpose: knowing the size beforehand.

use std::io::{self, Read};

use super::error::{Error, SplitError};
use super::geometry::Shape;
use super::root::{Link, Pyramid, Root, SIZE_MAX};
use crate::chunk::{Address, Sink, Tree};

impl Pyramid {
    /// Splits all that `reader` gives into chunks and returns the root. The size need not be known.
    ///
    /// A short read is not the end; only a read of 0 bytes is.
    ///
    /// # Errors
    ///
    /// Fails when the reader or the sink fails. Chunks that were put before stay in the sink.
    pub fn split<S: Sink>(
        &self,
        sink: &S,
        reader: &mut dyn Read,
    ) -> Result<Root, SplitError<S::Error>> {
        let mut buffer = vec![0; self.batch_chunks() * self.profile().chunk_bytes()];
        let length = fill(reader, &mut buffer)?;
        Builder::new(self, sink).take_all(reader, buffer, length)
    }
}

/// Fills `buffer` from `reader` as far as it goes; fewer bytes than fit mean the end.
pub(super) fn fill<E: std::error::Error + 'static>(
    reader: &mut dyn Read,
    buffer: &mut [u8],
) -> Result<usize, SplitError<E>> {
    let mut length = 0;
    while length < buffer.len() {
        match reader.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(SplitError::Reader(error)),
        }
    }
    Ok(length)
}

/// A tree that grows at its right end.
pub(super) struct Builder<'a, S> {
    pyramid: &'a Pyramid,
    sink: &'a S,
    /// Bytes in full chunks so far.
    size: u64,
    /// For each height the full nodes that no full parent holds yet.
    levels: Vec<Vec<Link>>,
}

impl<'a, S: Sink> Builder<'a, S> {
    pub fn new(pyramid: &'a Pyramid, sink: &'a S) -> Self {
        Builder { pyramid, sink, size: 0, levels: Vec::new() }
    }

    /// Adds a full node that no full parent holds.
    ///
    /// The caller goes from high nodes to low ones, as the digits of a size do.
    pub fn place(&mut self, height: u32, link: Link) {
        self.size += self.pyramid.geometry().span(height);
        self.level(height).push(link);
    }

    /// Takes the first `length` bytes of `buffer`, then all that `reader` still gives.
    ///
    /// The buffer is a whole number of chunks.
    pub fn take_all(
        mut self,
        reader: &mut dyn Read,
        mut buffer: Vec<u8>,
        mut length: usize,
    ) -> Result<Root, SplitError<S::Error>> {
        let chunk_bytes = self.pyramid.profile().chunk_bytes();
        while length == buffer.len() {
            self.take_chunks(&buffer)?;
            length = fill(reader, &mut buffer)?;
        }
        let (full, tail) = buffer[..length].split_at(length - length % chunk_bytes);
        self.take_chunks(full)?;
        self.finish(tail)
    }

    /// Takes full chunks.
    fn take_chunks(&mut self, bytes: &[u8]) -> Result<(), SplitError<S::Error>> {
        if SIZE_MAX - self.size < bytes.len() as u64 {
            return Err(SplitError::TooLarge);
        }
        let chunk_bytes = self.pyramid.profile().chunk_bytes();
        let chunks: Vec<&[u8]> = bytes.chunks(chunk_bytes).collect();
        for link in put_payloads(self.pyramid, self.sink, &chunks)? {
            self.size += chunk_bytes as u64;
            self.push(link)?;
        }
        Ok(())
    }

    /// Adds a full data chunk, and the tree chunks that it completes.
    fn push(&mut self, link: Link) -> Result<(), Error<S::Error>> {
        let mut link = link;
        let mut height = 0;
        loop {
            let level = self.level(height);
            level.push(link);
            if level.len() < self.pyramid.geometry().branches() {
                return Ok(());
            }
            let children = std::mem::take(self.level(height));
            height += 1;
            let span = self.pyramid.geometry().span(height);
            link = put_tree(self.pyramid, self.sink, Shape { span, height }, children)?;
        }
    }

    /// Ends with a last data chunk of `tail`, which is shorter than a full one or empty.
    fn finish(mut self, tail: &[u8]) -> Result<Root, SplitError<S::Error>> {
        if SIZE_MAX - self.size < tail.len() as u64 {
            return Err(SplitError::TooLarge);
        }
        let size = self.size + tail.len() as u64;
        let link = self.edge(self.pyramid.geometry().root(size), tail)?;
        Ok(Root { address: link.address, size, filled: link.filled })
    }

    /// Builds the node of `shape` at the right edge of the tree.
    fn edge(&mut self, shape: Shape, tail: &[u8]) -> Result<Link, Error<S::Error>> {
        let geometry = self.pyramid.geometry();
        if geometry.is_full(shape)
            && let Some(link) = self.level(shape.height).pop()
        {
            return Ok(link);
        }
        if shape.height == 0 {
            return Ok(put_payloads(self.pyramid, self.sink, &[tail])?[0]);
        }
        let mut children = std::mem::take(self.level(shape.height - 1));
        let rest = shape.span % geometry.piece(shape);
        if 0 < rest {
            children.push(self.edge(geometry.node(rest, shape.height - 1), tail)?);
        }
        put_tree(self.pyramid, self.sink, shape, children)
    }

    fn level(&mut self, height: u32) -> &mut Vec<Link> {
        let index = height as usize;
        if self.levels.len() <= index {
            self.levels.resize_with(index + 1, Vec::new);
        }
        &mut self.levels[index]
    }
}

/// Hashes data chunks and puts those that are not all zeros.
pub(super) fn put_payloads<S: Sink>(
    pyramid: &Pyramid,
    sink: &S,
    payloads: &[&[u8]],
) -> Result<Vec<Link>, Error<S::Error>> {
    let mut links: Vec<Option<Link>> = vec![None; payloads.len()];
    let mut hashed: Vec<(u64, &[u8])> = Vec::with_capacity(payloads.len());
    for (link, payload) in links.iter_mut().zip(payloads) {
        let span = payload.len() as u64;
        if pyramid.is_zero_payload(payload) {
            *link = Some(pyramid.zero_link(Shape { span, height: 0 }));
        } else {
            hashed.push((span, payload));
        }
    }
    let addresses = pyramid.addresses(&hashed);
    let chunks: Vec<(Address, &[u8])> = addresses
        .into_iter()
        .zip(hashed)
        .map(|(address, (_, payload))| (address, payload))
        .collect();
    if !chunks.is_empty() {
        sink.put_data(&chunks)?;
    }
    let mut stored =
        chunks.into_iter().map(|(address, payload)| Link { address, filled: payload.len() as u64 });
    Ok(links.into_iter().filter_map(|link| link.or_else(|| stored.next())).collect())
}

/// Hashes a tree chunk and puts it, unless it is all zeros.
pub(super) fn put_tree<S: Sink>(
    pyramid: &Pyramid,
    sink: &S,
    shape: Shape,
    children: Vec<Link>,
) -> Result<Link, Error<S::Error>> {
    if pyramid.is_zero_tree(shape, &children) {
        return Ok(pyramid.zero_link(shape));
    }
    let tree = tree_of(shape, &children);
    let address = pyramid.profile().address(tree.span, &tree.payload());
    let filled = tree.filled_total();
    sink.put_tree(address, tree)?;
    Ok(Link { address, filled })
}

/// Returns the tree chunk of these children.
pub(super) fn tree_of(shape: Shape, children: &[Link]) -> Tree {
    Tree {
        span: shape.span,
        children: children.iter().map(|child| child.address).collect(),
        filled: children.iter().map(|child| child.filled).collect(),
    }
}
