//! Which chunks of the packs can be reached from some roots.
//!
//! Owns [`Marks`]: one bit for each chunk of a sealed pack, and a table of the pack's frames, so
//! that a place finds its bit; together about five bits a chunk. The table of a pack is made, from
//! its footer, when the first of its chunks is marked.
//!
//! Invariants: (1) a tree is walked once, however many share it; (2) what is marked stays marked;
//! (3) where it is not certain that a chunk lies in a place, too much is marked rather than too
//! little; (4) of several places of one chunk in sealed packs the newest good one is marked, so
//! that the others are found to be garbage; one in a pack that still grows counts only when there
//! is no other, as it may not be durable yet.
//!
//! Absent on purpose: what follows from a mark (`collect`).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::frame::{FRAME_ALIGN, Kind};
use super::pack::Found;
use super::reader::Lookup;
use super::{Error, Inner, Location, Result, Store};
use crate::chunk::{Address, Tree};

/// A place that was just marked for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marked {
    /// The chunk.
    pub address: Address,
    /// Where it lies.
    pub location: Location,
}

/// A frame of a sealed pack: where it begins, and how many chunks the frames before it have.
#[derive(Debug, Clone, Copy)]
struct FrameAt {
    offset: u32,
    first: u32,
}

/// The marks of a sealed pack.
struct PackMarks {
    frames: Vec<FrameAt>,
    count: u32,
    bits: Vec<AtomicU64>,
}

impl PackMarks {
    fn new(found: &[Found]) -> PackMarks {
        let (mut frames, mut count) = (Vec::with_capacity(found.len()), 0);
        for found in found.iter().filter(|found| !found.header.entries.is_empty()) {
            let offset = (found.offset / FRAME_ALIGN) as u32;
            frames.push(FrameAt { offset, first: count });
            count += found.header.entries.len() as u32;
        }
        let bits = (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        PackMarks { frames, count, bits }
    }

    fn bit(&self, at: Location) -> Option<u32> {
        let offset = (at.offset / FRAME_ALIGN) as u32;
        let frame = self.frames.binary_search_by_key(&offset, |frame| frame.offset).ok()?;
        let bit = self.frames.get(frame)?.first + u32::from(at.slot);
        let end = self.frames.get(frame + 1).map_or(self.count, |next| next.first);
        (bit < end).then_some(bit)
    }

    fn set(&self, at: Location) -> bool {
        let Some(bit) = self.bit(at) else { return false };
        let mask = 1 << (bit % 64);
        let word = self.bits.get(bit as usize / 64);
        word.is_some_and(|word| word.fetch_or(mask, Ordering::AcqRel) & mask == 0)
    }

    fn has(&self, at: Location) -> bool {
        let Some(bit) = self.bit(at) else { return false };
        let word = self.bits.get(bit as usize / 64);
        word.is_some_and(|word| word.load(Ordering::Acquire) >> (bit % 64) & 1 == 1)
    }
}

/// What can be reached.
pub struct Marks {
    /// Packs below this one do not change any more.
    sealed_below: u64,
    packs: RwLock<BTreeMap<u64, Arc<PackMarks>>>,
    /// Places in packs that still grow.
    loose: Mutex<HashSet<u64>>,
    /// Places of trees that were walked.
    walked: Mutex<HashSet<u64>>,
    /// Packs in which something may be that cannot be told.
    kept: Mutex<BTreeSet<u64>>,
    missing: AtomicU64,
}

/// Where a chunk is, and what it is.
enum Place {
    /// In this place; a tree when it has children.
    At(Location, bool),
    /// On its way into a pack.
    InFlight(bool),
    /// Nowhere, or it cannot be told.
    Nowhere,
}

impl Marks {
    /// Makes marks for what is in the packs now; nothing is marked.
    pub fn new(store: &Store) -> Marks {
        Marks::of(&store.inner)
    }

    pub(super) fn of(inner: &Inner) -> Marks {
        let log = inner.log.lock();
        let sealed_below = log.open.as_ref().map_or(log.next_number, |open| open.number);
        drop(log);
        Marks {
            sealed_below,
            packs: RwLock::default(),
            loose: Mutex::default(),
            walked: Mutex::default(),
            kept: Mutex::default(),
            missing: AtomicU64::new(0),
        }
    }

    /// Chunks that were asked for and are nowhere.
    pub fn missing(&self) -> u64 {
        self.missing.load(Ordering::Relaxed)
    }

    /// Whether a place is marked.
    pub fn has(&self, at: Location) -> bool {
        if self.sealed_below <= at.pack {
            return self.loose.lock().contains(&at.pack());
        }
        self.packs.read().get(&at.pack).is_some_and(|pack| pack.has(at))
    }

    /// Whether a pack must stay, whatever is marked in it.
    pub(super) fn is_kept(&self, pack: u64) -> bool {
        self.kept.lock().contains(&pack)
    }

    /// Packs below this one do not change any more, and did not when these marks were made.
    pub(super) fn sealed_below(&self) -> u64 {
        self.sealed_below
    }

    /// Marks a place; says whether it was not marked before.
    pub(super) fn set(&self, inner: &Inner, at: Location) -> Result<bool> {
        if self.sealed_below <= at.pack {
            return Ok(self.loose.lock().insert(at.pack()));
        }
        if let Some(pack) = self.packs.read().get(&at.pack) {
            return Ok(pack.set(at));
        }
        let frames = match inner.pack_if_there(at.pack)? {
            Some(file) => file.frames(u64::MAX).map_err(Error::io("read a pack"))?.0,
            None => Vec::new(),
        };
        let fresh = Arc::new(PackMarks::new(&frames));
        let pack = Arc::clone(self.packs.write().entry(at.pack).or_insert(fresh));
        Ok(pack.set(at))
    }

    /// Marks a chunk and all below it. `each` sees what is marked for the first time, and may rest,
    /// or break: then the rest stays unmarked.
    ///
    /// # Errors
    ///
    /// A tree chunk that cannot be read: what is below it is not known.
    pub fn mark(
        &self,
        store: &Store,
        root: &Address,
        each: &mut dyn FnMut(Marked) -> ControlFlow<()>,
    ) -> Result<()> {
        self.mark_below(&store.inner, root, each)
    }

    fn mark_below(
        &self,
        inner: &Inner,
        root: &Address,
        each: &mut dyn FnMut(Marked) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut todo = vec![*root];
        while let Some(address) = todo.pop() {
            let (location, is_tree) = match self.place(inner, &address, false)? {
                Place::At(location, is_tree) => (Some(location), is_tree),
                Place::InFlight(is_tree) => (None, is_tree),
                Place::Nowhere => continue,
            };
            if let Some(location) = location
                && self.set(inner, location)?
                && each(Marked { address, location }).is_break()
            {
                return Ok(());
            }
            let walked = location.is_some_and(|at| !self.walked.lock().insert(at.pack()));
            if !is_tree || walked {
                continue;
            }
            let tree = inner.tree_in_passing(&address)?;
            if self.mark_data(inner, &tree, each)?.is_break() {
                return Ok(());
            }
            if !self.is_above_data(inner, &tree) {
                let links = tree.children.iter().zip(&tree.filled);
                todo.extend(links.filter(|(_, filled)| **filled > 0).map(|(child, _)| *child));
            }
        }
        Ok(())
    }

    /// Whether all children of a tree are sure to be data chunks: it spans no more than that many.
    /// One child alone tells nothing, as it may be a tree that is as long.
    fn is_above_data(&self, inner: &Inner, tree: &Tree) -> bool {
        let chunk_bytes = inner.profile.chunk_bytes() as u64;
        tree.children.len() > 1 && tree.span <= chunk_bytes * u64::from(inner.profile.branches)
    }

    /// Marks the children of a tree that has only data chunks below it.
    fn mark_data(
        &self,
        inner: &Inner,
        tree: &Tree,
        each: &mut dyn FnMut(Marked) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        if !self.is_above_data(inner, tree) {
            return Ok(ControlFlow::Continue(()));
        }
        let whole = inner.index.is_whole();
        for (child, filled) in tree.children.iter().zip(&tree.filled) {
            if *filled == 0 {
                continue;
            }
            let location = match (whole, inner.index.candidates(child).as_slice()) {
                // One candidate is enough: were it another's, garbage would stay.
                (true, [only]) => *only,
                _ => match self.place(inner, child, true)? {
                    Place::At(location, _) => location,
                    _ => continue,
                },
            };
            let marked = Marked { address: *child, location };
            if self.set(inner, location)? && each(marked).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn place(&self, inner: &Inner, address: &Address, is_data: bool) -> Result<Place> {
        let in_flight = inner.pipeline.get(address);
        // A newer place that still grows may not be durable yet.
        if let Lookup::Found(at, header) = inner.newest(address, self.sealed_below)? {
            return Ok(Place::At(at, header.kind == Kind::Tree));
        }
        if let Some((entry, _)) = in_flight {
            return Ok(Place::InFlight(entry.children != 0));
        }
        match inner.newest(address, u64::MAX)? {
            Lookup::Found(at, header) | Lookup::Bad(at, header) => {
                Ok(Place::At(at, header.kind == Kind::Tree))
            }
            Lookup::Unreadable(at) => {
                self.kept.lock().insert(at.pack);
                if is_data {
                    return Ok(Place::Nowhere);
                }
                // A tree may lie there, and second copies tell what is below it.
                match inner.second_copy(address)? {
                    Some(_) => Ok(Place::InFlight(true)),
                    None => Err(Error::Damaged { address: *address, location: at }),
                }
            }
            Lookup::Unknown => {
                self.missing.fetch_add(1, Ordering::Relaxed);
                Ok(Place::Nowhere)
            }
        }
    }
}
