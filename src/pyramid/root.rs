//! Roots, and the table of what is all zeros.
//!
//! Owns [`Root`], [`Pyramid`] with its addresses of zeros, and the checked loading of chunks.
//!
//! Invariants: the address of a full all-zero node comes from a table; that of a partial one is
//! computed (one hash for each height) and kept in a small cache.
//!
//! Absent on purpose: building and changing trees.

use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use rayon::prelude::*;

use super::error::Error;
use super::geometry::{Geometry, Shape};
use crate::chunk::{Address, Profile, Source, Tree};

/// The largest size of content, in bytes: what a file offset can reach.
pub const SIZE_MAX: u64 = i64::MAX as u64;

/// Addresses of partial all-zero nodes that are kept: all lengths of one data chunk of 4 KiB.
const ZERO_CACHE_MAX: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Bytes that are hashed and put as one batch, unless chunks are large.
const BATCH_BYTES: usize = 1 << 20;

/// Chunks that a batch has at least, however large they are: hashing goes eight at a time on each
/// core.
const BATCH_CHUNKS_MIN: usize = 16;

/// Chunks that one task of parallel hashing gets.
const TASK_CHUNKS: usize = 8;

/// The value of a file's content. Equality of address and size is equality of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Root {
    /// The address of the topmost chunk.
    pub address: Address,
    /// Bytes of the content.
    pub size: u64,
    /// Bytes of the content that are not holes: those of data chunks that are not all zeros.
    pub filled: u64,
}

/// A node as its parent sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub address: Address,
    pub filled: u64,
}

/// The trees of one profile: their shape, and the addresses of zeros. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pyramid {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    profile: Profile,
    geometry: Geometry,
    /// The payload of a full data chunk of zeros.
    zeros: Vec<u8>,
    /// For each height, the address of a full node of zeros.
    zero_full: Vec<Address>,
    zero_partial: Mutex<LruCache<Shape, Address>>,
}

impl Pyramid {
    /// Makes the pyramid of `profile`, which must have at least 2 branches.
    pub fn new(profile: Profile) -> Pyramid {
        let geometry = Geometry::new(profile);
        let zeros = vec![0; profile.chunk_bytes()];
        let mut zero_full = vec![profile.address(geometry.chunk_bytes(), &zeros)];
        for height in 1..geometry.heights() {
            let payload = zero_full[height as usize - 1].0.repeat(geometry.branches());
            zero_full.push(profile.address(geometry.span(height), &payload));
        }
        let zero_partial = Mutex::new(LruCache::new(ZERO_CACHE_MAX));
        Pyramid { inner: Arc::new(Inner { profile, geometry, zeros, zero_full, zero_partial }) }
    }

    /// The profile that it was made with.
    pub fn profile(&self) -> Profile {
        self.inner.profile
    }

    /// Returns the root of no bytes at all.
    pub fn empty(&self) -> Root {
        self.hole(0)
    }

    /// Returns the root of `size` zeros: computed, and stored nowhere.
    pub fn hole(&self, size: u64) -> Root {
        Root { address: self.zero(self.geometry().root(size)), size, filled: 0 }
    }

    /// Whether all of the content is zeros.
    pub fn is_hole(&self, root: &Root) -> bool {
        self.is_zero(&root.address, self.geometry().root(root.size))
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.inner.geometry
    }

    /// Chunks that are hashed and put at once.
    pub(crate) fn batch_chunks(&self) -> usize {
        (BATCH_BYTES / self.profile().chunk_bytes()).max(BATCH_CHUNKS_MIN)
    }

    /// Returns the address of a node of zeros.
    pub(crate) fn zero(&self, shape: Shape) -> Address {
        if self.geometry().is_full(shape)
            && let Some(address) = self.inner.zero_full.get(shape.height as usize)
        {
            return *address;
        }
        if let Some(address) = self.inner.zero_partial.lock().get(&shape) {
            return *address;
        }
        let address = self.zero_compute(shape);
        self.inner.zero_partial.lock().put(shape, address);
        address
    }

    /// Whether `address` names the zeros of its place.
    pub(crate) fn is_zero(&self, address: &Address, shape: Shape) -> bool {
        self.zero(shape) == *address
    }

    /// Whether all below a node is zeros. May answer no about zeros whose count says otherwise,
    /// which then are loaded, and [`Pyramid::load_tree`] knows them.
    ///
    /// The address decides. Only that of a partial tree chunk costs hashes to compare with, again
    /// for every new size of a file that grows; where its count says that there is data they are
    /// saved.
    pub(crate) fn is_zero_link(&self, link: &Link, shape: Shape) -> bool {
        let costly = 0 < shape.height && !self.geometry().is_full(shape);
        !(costly && 0 < link.filled) && self.is_zero(&link.address, shape)
    }

    /// Whether a data chunk's payload is all zeros.
    pub(crate) fn is_zero_payload(&self, payload: &[u8]) -> bool {
        self.inner.zeros.get(..payload.len()) == Some(payload)
    }

    /// Returns the link to a node of zeros.
    pub(crate) fn zero_link(&self, shape: Shape) -> Link {
        Link { address: self.zero(shape), filled: 0 }
    }

    /// Whether a tree chunk of these children is all zeros. Looks at the addresses, the first of
    /// which decides for nearly all trees with data in them.
    pub(crate) fn is_zero_tree(&self, shape: Shape, children: &[Link]) -> bool {
        children
            .iter()
            .enumerate()
            .all(|(index, child)| self.is_zero(&child.address, self.geometry().child(shape, index)))
    }

    /// Returns the addresses of many chunks, hashed on all cores when they are many.
    pub(crate) fn addresses(&self, chunks: &[(u64, &[u8])]) -> Vec<Address> {
        if chunks.len() < 2 * TASK_CHUNKS {
            return self.profile().addresses(chunks);
        }
        let profile = self.profile();
        let parts: Vec<Vec<Address>> =
            chunks.par_chunks(TASK_CHUNKS).map(|part| profile.addresses(part)).collect();
        parts.concat()
    }

    /// Loads a tree chunk and compares it with its place. One of zeros, which no source has, is
    /// made.
    pub(crate) fn load_tree<S: Source>(
        &self,
        source: &S,
        address: &Address,
        shape: Shape,
    ) -> Result<Arc<Tree>, Error<S::Error>> {
        let children_expected = self.geometry().child_count(shape);
        let tree = match source.tree(address) {
            Ok(tree) => tree,
            Err(_) if self.is_zero(address, shape) => {
                let children = (0..children_expected)
                    .map(|index| self.zero(self.geometry().child(shape, index)))
                    .collect();
                let filled = vec![0; children_expected];
                return Ok(Arc::new(Tree { span: shape.span, children, filled }));
            }
            Err(error) => return Err(error.into()),
        };
        let (children, filled) = (tree.children.len(), tree.filled.len());
        if (tree.span, children, filled) == (shape.span, children_expected, children_expected) {
            return Ok(tree);
        }
        Err(Error::TreeShape {
            address: *address,
            span: tree.span,
            children,
            filled,
            span_expected: shape.span,
            children_expected,
        })
    }

    /// Loads a data chunk and compares its length with its place.
    pub(crate) fn load_data<S: Source>(
        &self,
        source: &S,
        address: &Address,
        span: u64,
    ) -> Result<Bytes, Error<S::Error>> {
        let data = source.data(address)?;
        check_length(address, data.len(), span)?;
        Ok(data)
    }

    fn zero_compute(&self, shape: Shape) -> Address {
        let profile = self.profile();
        if shape.height == 0 {
            return profile.address(shape.span, &self.inner.zeros[..shape.span as usize]);
        }
        let payload: Vec<u8> = (0..self.geometry().child_count(shape))
            .flat_map(|index| self.zero(self.geometry().child(shape, index)).0)
            .collect();
        profile.address(shape.span, &payload)
    }
}

/// Compares the length of a data chunk with what its place asks for.
pub(crate) fn check_length<E: std::error::Error + 'static>(
    address: &Address,
    length: usize,
    length_expected: u64,
) -> Result<(), Error<E>> {
    if length as u64 == length_expected {
        return Ok(());
    }
    Err(Error::DataLength { address: *address, length, length_expected })
}
