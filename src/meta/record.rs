//! A group's entries as bytes: the payload of a commit record.
//!
//! A format byte, a method byte (0 plain, 1 lz4), the length of the plain body (varint), the body.
//! The plain body is the number of entries (varint), then the entries by ascending key: bytes
//! shared with the key before (varint), bytes that follow (varint), these; then 0 for a deletion,
//! or the value's length plus one (varint) and the value.
//!
//! Invariants: (1) decode of any bytes answers, and never panics nor takes memory out of
//! proportion to its input; (2) a decoded record's keys ascend strictly.
//!
//! Absent on purpose: a checksum. The log has one for each record.

use std::sync::Arc;

use crate::meta::CodecError;
use crate::meta::codec::{Reader, put_varint};
use crate::meta::groups::{Entries, VALUE_BYTES_MAX};

const FORMAT: u8 = 1;
const METHOD_PLAIN: u8 = 0;
const METHOD_LZ4: u8 = 1;

/// Longest key in a record, with room for the versions' keys of a later format.
const KEY_BYTES_MAX: usize = 512;

/// Longest plain body. A record must fit a pack, so this is far more than any has.
const BODY_BYTES_MAX: usize = 1 << 30;

/// lz4 makes at most 255 bytes of one; what claims more is damage, not data.
const LZ4_RATIO_MAX: usize = 255;

/// Returns the entries as bytes.
pub(super) fn encode(entries: &Entries) -> Vec<u8> {
    let body = encode_body(entries);
    assert!(body.len() <= BODY_BYTES_MAX, "a group is cut before it is {BODY_BYTES_MAX} bytes");
    let packed = lz4_flex::block::compress(&body);
    let (method, payload) =
        if packed.len() < body.len() { (METHOD_LZ4, &packed) } else { (METHOD_PLAIN, &body) };
    let mut out = Vec::with_capacity(payload.len() + 12);
    out.extend_from_slice(&[FORMAT, method]);
    put_varint(&mut out, body.len() as u64);
    out.extend_from_slice(payload);
    out
}

/// Takes a record's bytes apart.
pub(super) fn decode(bytes: &[u8]) -> Result<Entries, CodecError> {
    let mut reader = Reader::new(bytes);
    let format = reader.byte()?;
    if format != FORMAT {
        return Err(CodecError::Format(format));
    }
    let method = reader.byte()?;
    let body_len = reader.length(BODY_BYTES_MAX)?;
    let payload = reader.rest();
    match method {
        METHOD_PLAIN if payload.len() == body_len => decode_body(payload),
        METHOD_LZ4 if body_len / LZ4_RATIO_MAX <= payload.len() => {
            let body = lz4_flex::block::decompress(payload, body_len)
                .map_err(|_| CodecError::Compression)?;
            if body.len() != body_len {
                return Err(CodecError::Compression);
            }
            decode_body(&body)
        }
        _ => Err(CodecError::Compression),
    }
}

pub(super) fn encode_body(entries: &Entries) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, entries.len() as u64);
    let mut before: &[u8] = &[];
    for (key, value) in entries {
        let shared = before.iter().zip(key.iter()).take_while(|(a, b)| a == b).count();
        put_varint(&mut out, shared as u64);
        put_varint(&mut out, (key.len() - shared) as u64);
        out.extend_from_slice(&key[shared..]);
        match value {
            None => put_varint(&mut out, 0),
            Some(value) => {
                put_varint(&mut out, value.len() as u64 + 1);
                out.extend_from_slice(value);
            }
        }
        before = key;
    }
    out
}

pub(super) fn decode_body(body: &[u8]) -> Result<Entries, CodecError> {
    let mut reader = Reader::new(body);
    let count = reader.length(BODY_BYTES_MAX)?;
    let mut entries = Entries::new();
    let mut key = Vec::new();
    for _ in 0..count {
        let shared = reader.length(key.len())?;
        let own = reader.length(KEY_BYTES_MAX.saturating_sub(shared))?;
        let suffix = reader.bytes(own)?;
        // The key before is above this one when it ends here, or goes on with a higher byte.
        if key.get(shared..).is_some_and(|replaced| replaced >= suffix) {
            return Err(CodecError::Order);
        }
        key.truncate(shared);
        key.extend_from_slice(suffix);
        let value = match reader.length(VALUE_BYTES_MAX + 1)? {
            0 => None,
            len => Some(Arc::from(reader.bytes(len - 1)?)),
        };
        entries.insert(Arc::from(key.as_slice()), value);
    }
    reader.finish()?;
    Ok(entries)
}
