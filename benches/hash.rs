//! How fast chunks are hashed, on one core: `cargo bench --bench hash`.
//!
//! Prints GB/s for chunks of 4 KiB, one at a time and many side by side.

use std::time::Instant;

use pyramidfs::hash::{self, HashKind};

const CHUNK_BYTES: usize = 4096;
const CHUNKS: usize = 1024;
const ROUNDS: usize = 32;

fn main() {
    let data: Vec<u8> = (0..CHUNK_BYTES * CHUNKS).map(|i| (i * 31 + (i >> 8)) as u8).collect();
    let chunks: Vec<(u64, &[u8])> =
        data.chunks(CHUNK_BYTES).map(|chunk| (CHUNK_BYTES as u64, chunk)).collect();
    for kind in [HashKind::Sha3_256, HashKind::Keccak256, HashKind::Blake3] {
        let one = measure(|| {
            for (span, payload) in &chunks {
                std::hint::black_box(hash::digest(kind, *span, payload));
            }
        });
        let many = measure(|| {
            std::hint::black_box(hash::digest_many(kind, &chunks));
        });
        println!("{kind:?}: one at a time {one:.3} GB/s, many {many:.3} GB/s");
    }
}

/// Returns the best rate of some rounds, as other work on the machine only slows down.
#[allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn measure(mut round: impl FnMut()) -> f64 {
    let bytes = (CHUNK_BYTES * CHUNKS) as f64;
    (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            round();
            bytes / start.elapsed().as_secs_f64() / 1e9
        })
        .fold(0.0, f64::max)
}
