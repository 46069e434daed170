//! Many at once against one at a time (the `sha3` and `blake3` crates), and known digests.

use proptest::prelude::*;

use super::{HashKind, digest, digest_many};

const KINDS: [HashKind; 3] = [HashKind::Sha3_256, HashKind::Keccak256, HashKind::Blake3];

fn payload(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| ((i + seed) * 167 + ((i * seed) >> 5)) as u8).collect()
}

fn check(kind: HashKind, chunks: &[(u64, &[u8])]) {
    let expected: Vec<_> = chunks.iter().map(|(span, data)| digest(kind, *span, data)).collect();
    assert!(digest_many(kind, chunks) == expected, "{kind:?}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_empty_chunk_has_the_known_keccak_digest() {
    let expected = "011b4d03dd8c01f1049143cf9c4c817e4b167f1d1b83e5c6f0f10d89ba1e7bce";
    assert_eq!(hex(&digest(HashKind::Keccak256, 0, &[])), expected);
    for digest in digest_many(HashKind::Keccak256, &[(0, &[][..]); 4]) {
        assert_eq!(hex(&digest), expected);
    }
}

#[test]
fn four_of_every_length_hash_as_one_does() {
    // Under Miri, which is slow: around the words and blocks of the sponge.
    let lengths: Vec<usize> = match cfg!(miri) {
        true => vec![0, 1, 7, 8, 127, 128, 129, 265, 4096],
        false => (0..=600).chain([4095, 4096, 4097, 16_384]).collect(),
    };
    for length in lengths {
        let data: Vec<Vec<u8>> = (0..4).map(|seed| payload(seed, length)).collect();
        let chunks: Vec<(u64, &[u8])> = data
            .iter()
            .zip([length as u64, u64::MAX, 0, 1 << 40])
            .map(|(data, span)| (span, data.as_slice()))
            .collect();
        for kind in KINDS {
            check(kind, &chunks);
        }
    }
}

#[test]
fn none_at_all_is_fine() {
    for kind in KINDS {
        assert!(digest_many(kind, &[]).is_empty());
    }
}

proptest! {
    #![proptest_config(crate::testing::config(200))]

    /// Few lengths, so that equal ones meet in groups of all sizes, in any order.
    #[test]
    fn many_hash_as_one_does(
        chunks in proptest::collection::vec(
            (any::<u64>(), prop_oneof![Just(4096_usize), Just(128), Just(129), 0..300_usize])
                .prop_flat_map(|(span, length)| {
                    (Just(span), proptest::collection::vec(any::<u8>(), length))
                }),
            0..14,
        )
    ) {
        let chunks: Vec<(u64, &[u8])> =
            chunks.iter().map(|(span, data)| (*span, data.as_slice())).collect();
        for kind in KINDS {
            check(kind, &chunks);
        }
    }
}
