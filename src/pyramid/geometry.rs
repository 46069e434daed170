//! The shape of pyramids: pure arithmetic, no chunks.
//!
//! Owns the rule of shape. With `S(j) = chunk bytes × branches^j`, `node(m, c)` (m bytes under a
//! cap c) has the largest height `h <= c` for which `h = 0` or `S(h - 1) <= m`: a data chunk when
//! `h = 0`, otherwise a tree chunk over pieces of `S(h - 1)` bytes, each `node(piece, h - 1)`. The
//! root of n bytes is `node(n, D)`, D the least with `S(D) >= n`. So a short last piece is
//! promoted, and one of exactly `S(j)` bytes under a cap above j is wrapped in one tree chunk of
//! one child.
//!
//! Invariants: a node of height h starts at a multiple of `S(h)` and spans at most `S(h)` bytes.
//! All sizes that a u64 holds are fine: `S` saturates.
//!
//! Absent on purpose: addresses, stores.

use crate::chunk::Profile;

/// What decides how a node looks: the bytes below it and its height.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// File bytes below.
    pub span: u64,
    /// 0 for a data chunk.
    pub height: u32,
}

/// The spans of full nodes of one profile.
#[derive(Debug)]
pub(crate) struct Geometry {
    branches: u64,
    /// `S(j)`, up to and including the first one that saturates.
    spans: Vec<u64>,
}

impl Geometry {
    /// Makes the geometry of `profile`, which must have at least 2 branches.
    pub fn new(profile: Profile) -> Geometry {
        assert!(2 <= profile.branches, "a pyramid has at least 2 branches");
        let branches = u64::from(profile.branches);
        let mut spans = vec![profile.chunk_bytes() as u64];
        let mut span = spans[0];
        while span < u64::MAX {
            span = span.saturating_mul(branches);
            spans.push(span);
        }
        Geometry { branches, spans }
    }

    /// Bytes of a full data chunk.
    pub fn chunk_bytes(&self) -> u64 {
        self.span(0)
    }

    /// Children of a full tree chunk.
    pub fn branches(&self) -> usize {
        self.branches as usize
    }

    /// Returns `S(height)`, saturated.
    pub fn span(&self, height: u32) -> u64 {
        self.spans.get(height as usize).copied().unwrap_or(u64::MAX)
    }

    /// Whether `shape` is a full node, which looks the same wherever it lies.
    pub fn is_full(&self, shape: Shape) -> bool {
        self.span(shape.height) == shape.span
    }

    /// The number of heights whose full span is below 2^64 - 1.
    pub fn heights(&self) -> u32 {
        self.spans.len() as u32 - 1
    }

    /// Returns the shape of the root of `size` bytes.
    pub fn root(&self, size: u64) -> Shape {
        Shape { span: size, height: self.spans.partition_point(|span| *span < size) as u32 }
    }

    /// Returns the shape of `span` bytes under the cap `cap`.
    pub fn node(&self, span: u64, cap: u32) -> Shape {
        let height = self.spans.partition_point(|full| *full <= span) as u32;
        Shape { span, height: height.min(cap) }
    }

    /// Returns the bytes of all children of a tree chunk but its last.
    pub fn piece(&self, shape: Shape) -> u64 {
        assert!(0 < shape.height, "a data chunk has no children");
        self.span(shape.height - 1)
    }

    /// Returns the number of children of a tree chunk.
    pub fn child_count(&self, shape: Shape) -> usize {
        shape.span.div_ceil(self.piece(shape)) as usize
    }

    /// Returns the shape of the child at `index`, which starts `index` × [`Geometry::piece`] bytes
    /// behind its parent.
    pub fn child(&self, shape: Shape, index: usize) -> Shape {
        let piece = self.piece(shape);
        let start = index as u64 * piece;
        assert!(start < shape.span, "child {index} lies behind the end of {shape:?}");
        self.node(piece.min(shape.span - start), shape.height - 1)
    }
}
