//! Chunks and their names, and the traits through which trees get, find and put chunks.
//!
//! Owns [`Address`], [`Tree`] (a decoded tree chunk), [`Profile`] and the traits [`Source`] and
//! [`Sink`]. A chunk is an 8-byte little-endian span and a payload; its address is the hash of
//! both. A data chunk's payload is file bytes, exactly as many as its span says; a tree chunk's
//! payload is the addresses of its children.
//!
//! Absent on purpose: where chunks live, and which shape a tree has.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::hash::{self, HashKind};

/// Bytes of an address.
pub const ADDRESS_BYTES: usize = 32;

/// Bytes of the span in front of a chunk's payload.
pub const SPAN_BYTES: usize = 8;

/// The name of a chunk: the hash of its span and payload.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Address(pub [u8; ADDRESS_BYTES]);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The parameters of a volume's pyramids, fixed when the volume is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Profile {
    /// Children of a full tree chunk: at least 2.
    pub branches: u32,
    /// The hash that names chunks.
    pub hash: HashKind,
}

impl Profile {
    /// 128 branches and SHA3-256.
    pub const DEFAULT: Profile = Profile { branches: 128, hash: HashKind::Sha3_256 };
    /// 128 branches and legacy Keccak-256: the roots of Swarm's pyramid chunker.
    pub const SWARM: Profile = Profile { branches: 128, hash: HashKind::Keccak256 };

    /// Bytes of a full chunk's payload, data or tree.
    pub const fn chunk_bytes(&self) -> usize {
        self.branches as usize * ADDRESS_BYTES
    }

    /// Returns the address of the chunk of `span` and `payload`.
    pub fn address(&self, span: u64, payload: &[u8]) -> Address {
        Address(hash::digest(self.hash, span, payload))
    }

    /// Returns the addresses of many chunks, each given as span and payload, in their order.
    ///
    /// Faster than one at a time, as independent chunks are hashed side by side.
    pub fn addresses(&self, chunks: &[(u64, &[u8])]) -> Vec<Address> {
        hash::digest_many(self.hash, chunks).into_iter().map(Address).collect()
    }
}

/// A decoded tree chunk.
///
/// `filled` lies beside the chunk and is not hashed: it follows from the content below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// File bytes below.
    pub span: u64,
    /// Addresses of the children, in file order; 1 to `branches` of them.
    pub children: Vec<Address>,
    /// For each child, the number of its bytes that are not holes; as long as `children`.
    ///
    /// 0 says that the child is all zeros and stored nowhere.
    pub filled: Vec<u64>,
}

impl Tree {
    /// The payload that is hashed: the addresses one after the other.
    pub fn payload(&self) -> Vec<u8> {
        self.children.iter().flat_map(|child| child.0).collect()
    }

    /// The number of bytes below that are not holes.
    pub fn filled_total(&self) -> u64 {
        self.filled.iter().sum()
    }
}

/// Where trees get chunks from. All answers are verified against their address.
pub trait Source: Sync {
    /// Why a chunk could not be had.
    type Error: Error + Send + Sync + 'static;

    /// Returns the tree chunk `address`.
    fn tree(&self, address: &Address) -> Result<Arc<Tree>, Self::Error>;

    /// Returns the payload of the data chunk `address`.
    fn data(&self, address: &Address) -> Result<Bytes, Self::Error>;

    /// Calls `each` with the position in `addresses` and the payload, for every data chunk there.
    ///
    /// The order of the calls is free. After an error some may have been made.
    fn data_many(
        &self,
        addresses: &[Address],
        each: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), Self::Error> {
        for (position, address) in addresses.iter().enumerate() {
            each(position, &self.data(address)?);
        }
        Ok(())
    }
}

/// Where trees put chunks. A chunk that is there already is not stored again.
///
/// Whoever puts a tree chunk has put its children before it: the store stays closed.
pub trait Sink: Source {
    /// Puts data chunks: address and payload. The address is right, the caller made it.
    fn put_data(&self, chunks: &[(Address, &[u8])]) -> Result<(), Self::Error>;

    /// Puts a tree chunk.
    fn put_tree(&self, address: Address, tree: Tree) -> Result<(), Self::Error>;
}
