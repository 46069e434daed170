//! Digests of chunks.
//!
//! Owns the hash functions: which there are, and the fastest way to many digests at once.
//!
//! Absent on purpose: what is hashed, beyond that it is a span and a payload.

use sha3::Digest;

/// Bytes of a digest.
pub const DIGEST_BYTES: usize = 32;

/// A hash function that names chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum HashKind {
    /// SHA3-256 of FIPS 202: the default.
    #[serde(rename = "sha3-256")]
    Sha3_256,
    /// Keccak-256 as it was before FIPS 202 (padding byte 0x01): the hash of Swarm.
    #[serde(rename = "keccak-256")]
    Keccak256,
    /// BLAKE3 with 32 bytes of output.
    #[serde(rename = "blake3")]
    Blake3,
}

/// Returns the digest of `span` (8 bytes, little-endian) followed by `payload`.
pub fn digest(kind: HashKind, span: u64, payload: &[u8]) -> [u8; DIGEST_BYTES] {
    let span = span.to_le_bytes();
    match kind {
        HashKind::Sha3_256 => {
            sha3::Sha3_256::new().chain_update(span).chain_update(payload).finalize().into()
        }
        HashKind::Keccak256 => {
            sha3::Keccak256::new().chain_update(span).chain_update(payload).finalize().into()
        }
        HashKind::Blake3 => {
            *blake3::Hasher::new().update(&span).update(payload).finalize().as_bytes()
        }
    }
}

/// Returns the digests of many chunks, each given as span and payload, in their order.
pub fn digest_many(kind: HashKind, chunks: &[(u64, &[u8])]) -> Vec<[u8; DIGEST_BYTES]> {
    chunks.iter().map(|(span, payload)| digest(kind, *span, payload)).collect()
}
