//! Integers and byte strings in values and records: the one place of `meta` that packs bytes.
//!
//! Owns the varint (LEB128: seven bits a byte, lowest first, the top bit set on all but the last
//! byte; the shortest form only), the zigzag of signed numbers, and [`Reader`], which decodes any
//! bytes without a panic.
//!
//! Absent on purpose: what the numbers mean.

use crate::meta::CodecError;

/// Bytes of the longest varint of 64 bits.
const VARINT_BYTES_MAX: usize = 10;

/// Appends `number` as a varint.
pub(super) fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number as u8) | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a signed number: zigzag, so that small ones of either sign are short.
pub(super) fn put_signed(out: &mut Vec<u8>, number: i64) {
    put_varint(out, ((number << 1) ^ (number >> 63)) as u64);
}

/// Takes an encoding apart from its front.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the front of `bytes`.
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// Takes one byte.
    pub(super) fn byte(&mut self) -> Result<u8, CodecError> {
        let (&first, rest) = self.rest.split_first().ok_or(CodecError::Short)?;
        self.rest = rest;
        Ok(first)
    }

    /// Takes `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(CodecError::Short)?;
        self.rest = rest;
        Ok(head)
    }

    /// Takes `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(CodecError::Short)?;
        self.rest = rest;
        Ok(*head)
    }

    /// Takes all that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Takes a varint; only the shortest form is one.
    pub(super) fn varint(&mut self) -> Result<u64, CodecError> {
        let mut number = 0u64;
        for index in 0..VARINT_BYTES_MAX {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * index as u32;
            if bits << shift >> shift != bits {
                return Err(CodecError::Number);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                let is_shortest = byte != 0 || index == 0;
                return if is_shortest { Ok(number) } else { Err(CodecError::Number) };
            }
        }
        Err(CodecError::Number)
    }

    /// Takes a varint of at most 32 bits.
    pub(super) fn varint_u32(&mut self) -> Result<u32, CodecError> {
        u32::try_from(self.varint()?).map_err(|_| CodecError::Number)
    }

    /// Takes a varint that is a length of at most `max`.
    pub(super) fn length(&mut self, max: usize) -> Result<usize, CodecError> {
        let length = usize::try_from(self.varint()?).map_err(|_| CodecError::Number)?;
        if length <= max { Ok(length) } else { Err(CodecError::Number) }
    }

    /// Takes a zigzag number.
    pub(super) fn signed(&mut self) -> Result<i64, CodecError> {
        let number = self.varint()?;
        Ok(((number >> 1) as i64) ^ -((number & 1) as i64))
    }

    /// Ends the decoding: nothing may be left.
    pub(super) fn finish(self) -> Result<(), CodecError> {
        if self.rest.is_empty() { Ok(()) } else { Err(CodecError::Trailing) }
    }
}
