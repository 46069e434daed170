//! The rule of shape, straight from its words: slow, and compared with everything else.

use super::root::{Pyramid, Root};
use crate::chunk::{Address, Profile};

/// Returns the root of `data`.
pub fn root(profile: Profile, data: &[u8]) -> Root {
    let mut depth = 0;
    while span(profile, depth) < data.len() as u128 {
        depth += 1;
    }
    let (address, filled) = node(profile, data, depth);
    Root { address, size: data.len() as u64, filled }
}

fn span(profile: Profile, level: u32) -> u128 {
    profile.chunk_bytes() as u128 * u128::from(profile.branches).pow(level)
}

fn node(profile: Profile, data: &[u8], cap: u32) -> (Address, u64) {
    let mut height = 0;
    while height < cap && span(profile, height) <= data.len() as u128 {
        height += 1;
    }
    let length = data.len() as u64;
    if height == 0 {
        let hole = data.iter().all(|byte| *byte == 0);
        return (profile.address(length, data), if hole { 0 } else { length });
    }
    let piece = span(profile, height - 1) as usize;
    let children: Vec<(Address, u64)> =
        data.chunks(piece).map(|piece| node(profile, piece, height - 1)).collect();
    let payload: Vec<u8> = children.iter().flat_map(|(address, _)| address.0).collect();
    (profile.address(length, &payload), children.iter().map(|(_, filled)| filled).sum())
}

/// Returns a pyramid with few branches, for deep trees of few bytes.
pub fn pyramid(branches: u32) -> Pyramid {
    Pyramid::new(Profile { branches, hash: crate::hash::HashKind::Sha3_256 })
}
