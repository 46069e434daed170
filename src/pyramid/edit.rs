//! Changing trees: one batched change that overwrites, extends, shortens and punches at once.
//!
//! Owns [`Pyramid::edit`]. The new tree is planned from its root down: a node that nothing touches
//! and that the old tree has too is taken over unread; one without any content is the known hole;
//! every other is built from its children. Nodes are built in groups of bounded size, breadth first
//! within a group, so that data chunks and then tree chunks are hashed and put many at a time.
//!
//! Invariants: each old tree chunk is loaded at most once and only if old content below it stays;
//! each new tree chunk is put once, after its children. Old and new tree are aligned, as a node of
//! height h starts at a multiple of `S(h)`: below a new node lies at most one old node of its
//! height or lower, and it starts where the new one does.
//!
//! Absent on purpose: chunks that nothing touches. No work grows with their number.

use std::borrow::Cow;
use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use lru::LruCache;

use super::error::{EditError, Error};
use super::geometry::Shape;
use super::root::{Link, Pyramid, Root, SIZE_MAX, check_length};
use super::split::{put_payloads, tree_of};
use super::spot::Spot;
use crate::chunk::{Address, Sink, Tree};

/// Tree chunks that are remembered of the trees that content is shared from: more than a path.
const SHARED_TREES_MAX: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// New content of one range of a file.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// Where it starts, in bytes from the start of the file.
    pub offset: u64,
    /// What is there from now on.
    pub bytes: RunBytes<'a>,
}

/// What a [`Run`] writes.
#[derive(Debug, Clone, Copy)]
pub enum RunBytes<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// So many zeros, at a cost that does not depend on their number.
    Zeros(u64),
    /// A range of other content, whose chunks are shared as far as both ranges are aligned alike.
    Content {
        /// The content, which the sink has.
        root: &'a Root,
        /// Where the range starts in it.
        offset: u64,
        /// Bytes of the range. It must end inside the content.
        length: u64,
    },
}

impl<'a> Run<'a> {
    /// A run of `bytes` at `offset`.
    pub fn bytes(offset: u64, bytes: &'a [u8]) -> Run<'a> {
        Run { offset, bytes: RunBytes::Bytes(bytes) }
    }

    /// A run of `length` zeros at `offset`.
    pub fn zeros(offset: u64, length: u64) -> Run<'static> {
        Run { offset, bytes: RunBytes::Zeros(length) }
    }

    /// The bytes from the start of the file to the run's end.
    pub fn end(&self) -> u64 {
        let length = match self.bytes {
            RunBytes::Bytes(bytes) => bytes.len() as u64,
            RunBytes::Zeros(length) => length,
            RunBytes::Content { length, .. } => length,
        };
        self.offset.saturating_add(length)
    }
}

impl Pyramid {
    /// Returns the root of changed content: the first `keep` bytes of `root` (or all it has, or
    /// `size`, whichever is least), with `runs` laid over them, and exactly `size` bytes long. What
    /// is neither kept nor written is a hole.
    ///
    /// # Errors
    ///
    /// Fails when the sink fails or a chunk of the old tree does not fit its place.
    ///
    /// # Panics
    ///
    /// When `size` is above [`SIZE_MAX`], or the runs are not sorted, overlap or reach behind
    /// `size`, or shared content is not inside its root.
    pub fn edit<S: Sink>(
        &self,
        sink: &S,
        root: &Root,
        keep: u64,
        runs: &[Run<'_>],
        size: u64,
    ) -> Result<Root, EditError<S::Error>> {
        assert!(size <= SIZE_MAX, "{size} bytes are more than a file can have");
        let mut end = 0;
        for run in runs {
            assert!(end <= run.offset, "runs must be sorted and disjoint");
            end = run.end();
            assert!(end <= size, "a run ends at {end}, behind the size {size}");
            if let RunBytes::Content { root, offset, length } = run.bytes {
                let inside = offset.checked_add(length).is_some_and(|end| end <= root.size);
                assert!(inside, "{length} bytes at {offset} are not inside {}", root.size);
            }
        }
        // An empty run changes nothing, and must not look as if it touched a chunk.
        let runs: Vec<Run<'_>> =
            runs.iter().filter(|run| run.offset < run.end()).copied().collect();
        let keep = keep.min(root.size).min(size);
        let old = self.spot(root);
        let node =
            Node { offset: 0, shape: self.geometry().root(size), runs: &runs, old: Some(old) };
        let shared_trees = RefCell::new(LruCache::new(SHARED_TREES_MAX));
        let edit = Edit { pyramid: self, sink, keep, shared_trees };
        let link = match edit.decide(node)? {
            Decision::Known(link) => link,
            Decision::Build(node) => edit.build_group(vec![node])?[0],
        };
        Ok(Root { address: link.address, size, filled: link.filled })
    }

    /// Returns the root of the first `size` bytes of `root`, with a hole behind them where `root`
    /// has fewer.
    ///
    /// # Errors and panics
    ///
    /// As [`Pyramid::edit`].
    pub fn truncate<S: Sink>(
        &self,
        sink: &S,
        root: &Root,
        size: u64,
    ) -> Result<Root, EditError<S::Error>> {
        self.edit(sink, root, size, &[], size)
    }

    /// Returns the root of `target` with `length` bytes of `source` laid over it at
    /// `target_offset`, from `source_offset` on; it grows where the range ends behind its end.
    ///
    /// Subtrees of height j are shared where the two offsets agree modulo `S(j)`, single chunks
    /// where they agree modulo the chunk size; bytes are copied otherwise.
    ///
    /// # Errors and panics
    ///
    /// As [`Pyramid::edit`].
    pub fn splice<S: Sink>(
        &self,
        sink: &S,
        (target, target_offset): (&Root, u64),
        (source, source_offset): (&Root, u64),
        length: u64,
    ) -> Result<Root, EditError<S::Error>> {
        if length == 0 {
            return Ok(*target);
        }
        let run = Run {
            offset: target_offset,
            bytes: RunBytes::Content { root: source, offset: source_offset, length },
        };
        self.edit(sink, target, target.size, &[run], target.size.max(run.end()))
    }
}

/// A node of the new tree that is to be made.
#[derive(Debug)]
struct Node<'r> {
    offset: u64,
    shape: Shape,
    /// The runs that touch it.
    runs: &'r [Run<'r>],
    /// The old node with the kept content of this one, at the same offset or higher up in the tree.
    /// None when no old content is kept, or when it is a hole.
    old: Option<Spot>,
}

impl Node<'_> {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.shape.span
    }
}

enum Decision<'r> {
    Known(Link),
    Build(Node<'r>),
}

/// A new tree chunk whose children are being made.
struct Draft {
    shape: Shape,
    /// None for each child that is among the nodes to build, in their order.
    children: Vec<Option<Link>>,
}

struct Edit<'a, S> {
    pyramid: &'a Pyramid,
    sink: &'a S,
    /// Bytes of the old content that stay where no run covers them.
    keep: u64,
    /// Tree chunks that content is shared from.
    shared_trees: RefCell<LruCache<Address, Arc<Tree>>>,
}

impl<S: Sink> Edit<'_, S> {
    /// Settles nodes that need no building, and finds the old node beside the others.
    fn decide<'r>(&self, mut node: Node<'r>) -> Result<Decision<'r>, Error<S::Error>> {
        let range = node.range();
        if covered(node.runs, range.start..range.end.min(self.keep)) {
            node.old = None;
        }
        if let Some(old) = node.old {
            let mut load =
                |spot: &Spot| self.pyramid.load_tree(self.sink, &spot.link.address, spot.shape);
            node.old = self.pyramid.descend(old, node.offset, node.shape.height, &mut load)?;
        }
        if let Some(old) = node.old {
            if node.runs.is_empty() && range.end <= self.keep && old.shape == node.shape {
                return Ok(Decision::Known(old.link));
            }
            if self.pyramid.spot_is_zero(&old) {
                node.old = None;
            }
        }
        if let Some(link) = self.shared(&node)? {
            return Ok(Decision::Known(link));
        }
        let written = node.runs.iter().any(|run| !matches!(run.bytes, RunBytes::Zeros(_)));
        if node.old.is_none() && !written {
            return Ok(Decision::Known(self.pyramid.zero_link(node.shape)));
        }
        Ok(Decision::Build(node))
    }

    /// Returns the link of a node that one run of shared content covers, where the tree that the
    /// content comes from has that node too.
    fn shared(&self, node: &Node<'_>) -> Result<Option<Link>, Error<S::Error>> {
        let range = node.range();
        let [run] = node.runs else { return Ok(None) };
        let RunBytes::Content { root, offset, .. } = run.bytes else { return Ok(None) };
        if range.start < run.offset || run.end() < range.end {
            return Ok(None);
        }
        let offset = offset + (range.start - run.offset);
        if !offset.is_multiple_of(self.pyramid.geometry().span(node.shape.height)) {
            return Ok(None);
        }
        let mut load = |spot: &Spot| self.load_shared(spot);
        let top = self.pyramid.spot(root);
        let link = match self.pyramid.descend(top, offset, node.shape.height, &mut load)? {
            Some(spot) if spot.shape == node.shape => Some(spot.link),
            Some(spot) if !self.pyramid.spot_is_zero(&spot) => None,
            _ => Some(self.pyramid.zero_link(node.shape)),
        };
        Ok(link)
    }

    /// Loads a chunk of a tree that content is shared from. Many nodes are looked up under the
    /// same.
    fn load_shared(&self, spot: &Spot) -> Result<Arc<Tree>, Error<S::Error>> {
        let mut cache = self.shared_trees.borrow_mut();
        if let Some(tree) = cache.get(&spot.link.address) {
            return Ok(tree.clone());
        }
        let tree = self.pyramid.load_tree(self.sink, &spot.link.address, spot.shape)?;
        cache.put(spot.link.address, tree.clone());
        Ok(tree)
    }

    /// Builds nodes, a group of bounded size at a time.
    fn build(&self, nodes: Vec<Node<'_>>) -> Result<Vec<Link>, Error<S::Error>> {
        let weight_max = self.pyramid.batch_chunks() as u64;
        let mut links = Vec::with_capacity(nodes.len());
        let mut group = Vec::new();
        let mut weight = 0;
        for node in nodes {
            let more = self.weight(&node);
            if !group.is_empty() && weight_max < weight + more {
                links.extend(self.build_group(std::mem::take(&mut group))?);
                weight = 0;
            }
            weight += more;
            group.push(node);
        }
        links.extend(self.build_group(group)?);
        Ok(links)
    }

    /// An upper bound of the chunks that are written below `node`.
    fn weight(&self, node: &Node<'_>) -> u64 {
        if node.shape.height == 0 {
            return 1;
        }
        let range = node.range();
        let chunks = |run: &Run<'_>| match run.bytes {
            RunBytes::Zeros(_) => 2,
            RunBytes::Bytes(_) | RunBytes::Content { .. } => {
                let length = run.end().min(range.end) - run.offset.max(range.start);
                length / self.pyramid.geometry().chunk_bytes() + 2
            }
        };
        1 + node.runs.iter().map(chunks).sum::<u64>()
    }

    /// Builds nodes: first all that lies below them, then themselves.
    fn build_group(&self, nodes: Vec<Node<'_>>) -> Result<Vec<Link>, Error<S::Error>> {
        let mut links: Vec<Option<Link>> = vec![None; nodes.len()];
        let mut data = Vec::new();
        let mut trees = Vec::new();
        let mut below = Vec::new();
        for (position, node) in nodes.into_iter().enumerate() {
            if node.shape.height == 0 {
                data.push((position, node));
            } else {
                trees.push((position, self.expand(node, &mut below)?));
            }
        }
        if !below.is_empty() {
            let mut built = self.build(below)?.into_iter();
            for (_, draft) in &mut trees {
                for child in draft.children.iter_mut().filter(|child| child.is_none()) {
                    *child = built.next();
                }
            }
        }
        let (positions, nodes): (Vec<usize>, Vec<Node<'_>>) = data.into_iter().unzip();
        for (position, link) in positions.into_iter().zip(self.make_data(&nodes)?) {
            links[position] = Some(link);
        }
        let (positions, drafts): (Vec<usize>, Vec<Draft>) = trees.into_iter().unzip();
        for (position, link) in positions.into_iter().zip(self.make_trees(drafts)?) {
            links[position] = Some(link);
        }
        let count = links.len();
        let links: Vec<Link> = links.into_iter().flatten().collect();
        assert!(links.len() == count, "every node of a group was built");
        Ok(links)
    }

    /// Decides about the children of a tree chunk; those to build go behind `below`.
    fn expand<'r>(
        &self,
        node: Node<'r>,
        below: &mut Vec<Node<'r>>,
    ) -> Result<Draft, Error<S::Error>> {
        let geometry = self.pyramid.geometry();
        let piece = geometry.piece(node.shape);
        let old = match node.old {
            Some(old) if old.shape.height == node.shape.height => {
                Some((old, self.pyramid.load_tree(self.sink, &old.link.address, old.shape)?))
            }
            _ => None,
        };
        let mut children = Vec::with_capacity(geometry.child_count(node.shape));
        for index in 0..geometry.child_count(node.shape) {
            let shape = geometry.child(node.shape, index);
            let offset = node.offset + index as u64 * piece;
            let runs = touching(node.runs, offset..offset + shape.span);
            let old = match &old {
                Some((old, tree)) => self.pyramid.spot_child(old, tree, index),
                // An old node lower than this one is all of the old content here: it starts the
                // first child.
                None => node.old.filter(|_| index == 0),
            };
            match self.decide(Node { offset, shape, runs, old })? {
                Decision::Known(link) => children.push(Some(link)),
                Decision::Build(child) => {
                    children.push(None);
                    below.push(child);
                }
            }
        }
        Ok(Draft { shape: node.shape, children })
    }

    /// Makes data chunks, hashes and puts them.
    fn make_data(&self, nodes: &[Node<'_>]) -> Result<Vec<Link>, Error<S::Error>> {
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let mut payloads: Vec<Cow<'_, [u8]>> = nodes.iter().map(whole_or_zeros).collect();
        self.load_kept(nodes, &mut payloads)?;
        for (node, payload) in nodes.iter().zip(&mut payloads) {
            if let Cow::Owned(payload) = payload {
                self.overlay(node, payload)?;
            }
        }
        let payloads: Vec<&[u8]> = payloads.iter().map(|payload| payload.as_ref()).collect();
        put_payloads(self.pyramid, self.sink, &payloads)
    }

    /// Lays the runs of a data chunk over its payload.
    fn overlay(&self, node: &Node<'_>, payload: &mut [u8]) -> Result<(), Error<S::Error>> {
        let range = node.range();
        for run in node.runs {
            let (start, end) = (run.offset.max(range.start), run.end().min(range.end));
            let target = &mut payload[(start - range.start) as usize..(end - range.start) as usize];
            let from = start - run.offset;
            match run.bytes {
                RunBytes::Zeros(_) => target.fill(0),
                RunBytes::Bytes(bytes) => {
                    target.copy_from_slice(&bytes[from as usize..from as usize + target.len()]);
                }
                RunBytes::Content { root, offset, .. } => {
                    self.pyramid.read(self.sink, root, offset + from, target)?;
                }
            }
        }
        Ok(())
    }

    /// Fetches the old data chunks of which something stays, and lays what stays into the payloads.
    fn load_kept(
        &self,
        nodes: &[Node<'_>],
        payloads: &mut [Cow<'_, [u8]>],
    ) -> Result<(), Error<S::Error>> {
        let kept: Vec<(usize, Spot)> = nodes
            .iter()
            .enumerate()
            .filter_map(|(position, node)| Some((position, node.old?)))
            .collect();
        if kept.is_empty() {
            return Ok(());
        }
        let addresses: Vec<Address> = kept.iter().map(|(_, old)| old.link.address).collect();
        let mut checked = Ok(());
        self.sink.data_many(&addresses, &mut |index, data| {
            let Some((position, old)) = kept.get(index) else { return };
            let check = check_length(&old.link.address, data.len(), old.shape.span);
            if check.is_err() {
                checked = check;
            } else if let Cow::Owned(payload) = &mut payloads[*position] {
                let stays = (self.keep - nodes[*position].offset).min(data.len() as u64) as usize;
                let stays = stays.min(payload.len());
                payload[..stays].copy_from_slice(&data[..stays]);
            }
        })?;
        checked
    }

    /// Hashes and puts tree chunks whose children are made.
    fn make_trees(&self, drafts: Vec<Draft>) -> Result<Vec<Link>, Error<S::Error>> {
        let mut links: Vec<Option<Link>> = vec![None; drafts.len()];
        let mut trees = Vec::new();
        for (position, draft) in drafts.into_iter().enumerate() {
            let count = draft.children.len();
            let children: Vec<Link> = draft.children.into_iter().flatten().collect();
            assert!(children.len() == count, "children are made before their parents");
            if self.pyramid.is_zero_tree(draft.shape, &children) {
                links[position] = Some(self.pyramid.zero_link(draft.shape));
            } else {
                trees.push((position, tree_of(draft.shape, &children)));
            }
        }
        let payloads: Vec<Vec<u8>> = trees.iter().map(|(_, tree)| tree.payload()).collect();
        let chunks: Vec<(u64, &[u8])> = trees
            .iter()
            .zip(&payloads)
            .map(|((_, tree), payload)| (tree.span, payload.as_slice()))
            .collect();
        let addresses = self.pyramid.addresses(&chunks);
        for ((position, tree), address) in trees.into_iter().zip(addresses) {
            links[position] = Some(Link { address, filled: tree.filled_total() });
            self.sink.put_tree(address, tree)?;
        }
        Ok(links.into_iter().flatten().collect())
    }
}

/// Whether `runs`, which are sorted, cover all of `range`.
fn covered(runs: &[Run<'_>], range: Range<u64>) -> bool {
    let mut position = range.start;
    for run in runs {
        if range.end <= position || position < run.offset {
            break;
        }
        position = position.max(run.end());
    }
    range.end <= position
}

/// Returns those of the sorted `runs` that touch `range`.
fn touching<'r>(runs: &'r [Run<'r>], range: Range<u64>) -> &'r [Run<'r>] {
    let start = runs.partition_point(|run| run.end() <= range.start);
    let count = runs[start..].partition_point(|run| run.offset < range.end);
    &runs[start..start + count]
}

/// Returns the payload of a data chunk that one run covers, without a copy; otherwise zeros to lay
/// the old content and the runs into.
fn whole_or_zeros<'r>(node: &Node<'r>) -> Cow<'r, [u8]> {
    let range = node.range();
    if let [run] = node.runs
        && let RunBytes::Bytes(bytes) = run.bytes
        && run.offset <= range.start
        && range.end <= run.end()
    {
        let start = (range.start - run.offset) as usize;
        return Cow::Borrowed(&bytes[start..start + node.shape.span as usize]);
    }
    Cow::Owned(vec![0; node.shape.span as usize])
}
