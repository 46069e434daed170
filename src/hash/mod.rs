//! Digests of chunks.
//!
//! Owns the hash functions: which there are, and the fastest way to many digests at once.
//!
//! Absent on purpose: what is hashed, beyond that it is a span and a payload.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(test)]
mod tests;

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
///
/// Faster than one at a time where chunks of one length come together: those are hashed side by
/// side as far as the processor can.
pub fn digest_many(kind: HashKind, chunks: &[(u64, &[u8])]) -> Vec<[u8; DIGEST_BYTES]> {
    #[cfg(target_arch = "x86_64")]
    match kind {
        HashKind::Sha3_256 => return digest_fours(kind, 0x06, chunks),
        HashKind::Keccak256 => return digest_fours(kind, 0x01, chunks),
        HashKind::Blake3 => {}
    }
    chunks.iter().map(|(span, payload)| digest(kind, *span, payload)).collect()
}

/// Hashes chunks of equal length four at a time. The padding byte is that of `kind`.
#[cfg(target_arch = "x86_64")]
fn digest_fours(kind: HashKind, padding: u8, chunks: &[(u64, &[u8])]) -> Vec<[u8; DIGEST_BYTES]> {
    let mut digests = vec![[0; DIGEST_BYTES]; chunks.len()];
    let mut order: Vec<usize> = (0..chunks.len()).collect();
    order.sort_by_key(|position| chunks[*position].1.len());
    for equal in order.chunk_by(|a, b| chunks[*a].1.len() == chunks[*b].1.len()) {
        for positions in equal.chunks(avx2::LANES) {
            // Two or three are filled up with copies of the first: four cost less than two alone.
            let message = |lane: usize| chunks[*positions.get(lane).unwrap_or(&positions[0])];
            let messages = [message(0), message(1), message(2), message(3)];
            let four =
                if 1 < positions.len() { avx2::digest_four(padding, &messages) } else { None };
            for (lane, position) in positions.iter().enumerate() {
                let (span, payload) = chunks[*position];
                digests[*position] = match &four {
                    Some(four) => four[lane],
                    None => digest(kind, span, payload),
                };
            }
        }
    }
    digests
}
