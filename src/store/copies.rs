//! Second copies of tree chunks.
//!
//! Owns what is copied (the tree frames of each sealed pack of the log, into one aux pack whose
//! header names it as its source) and how a copy is found again: which aux pack is of which source
//! is asked of their headers, once; which frame has an address, of the aux pack's footer.
//!
//! Invariants: (1) aux packs are made in the order of their sources, so all sealed packs of the log
//! above the highest source are still to do, and nothing has to be stored about it; (2) a copy is
//! verified like any chunk; (3) opening reads none of this.
//!
//! Lock order: `copying` before all others; `known` and `table` are held while packs are read, and
//! no other lock is taken before them.
//! Absent on purpose: copies of data chunks, and repair.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::aux_pack::AuxWriter;
use super::frame::{self, Kind};
use super::pack::{Found, PackFile, PackHeader, PackKind};
use super::{Error, Inner, Location, Result, open};
use crate::chunk::{Address, Tree};

/// What is known of second copies.
#[derive(Default)]
pub struct Copies {
    /// Held by the one who copies.
    copying: Mutex<()>,
    /// Packs of the log up to this one are done; 0 when that was not found out yet.
    done: AtomicU64,
    known: Mutex<Option<Arc<Known>>>,
    /// The trees of the aux pack that was last looked into: damage comes in heaps.
    table: Mutex<Option<(u64, Arc<Table>)>>,
}

/// Which aux pack has copies of which pack.
#[derive(Debug, Clone, Default)]
struct Known {
    by_source: BTreeMap<u64, u64>,
    /// Sources that were gone when this was found out.
    lost: Vec<u64>,
}

/// Where the trees of an aux pack lie.
type Table = HashMap<Address, Location>;

impl Inner {
    /// Whether packs were sealed whose trees have no copies yet.
    pub(super) fn wants_copies(&self) -> bool {
        let done = self.copies.done.load(Ordering::Acquire);
        1 < self.options.tree_copies && done < self.log.lock().last_sealed
    }

    /// Copies the trees of all packs that were sealed since the last time.
    pub(super) fn copy_trees(&self) -> Result<()> {
        if self.options.tree_copies < 2 {
            return Ok(());
        }
        let _one = self.copies.copying.lock();
        self.pipeline.check()?;
        let (open, next, last_sealed) = {
            let log = self.log.lock();
            (log.open.as_ref().map_or(0, |open| open.number), log.next_number, log.last_sealed)
        };
        let mut done = self.copies.done.load(Ordering::Acquire);
        if last_sealed <= done {
            return Ok(());
        }
        let numbers = open::list(&*self.disk)?.numbers;
        if done == 0 {
            done = self.highest_source(&numbers)?;
        }
        for number in numbers.into_iter().filter(|number| done < *number && *number < next) {
            if number == open {
                continue;
            }
            let Some(file) = self.pack_if_there(number)? else { continue };
            if !file.is_empty() && !file.is_aux().map_err(Error::io("read a pack"))? {
                self.copy_pack(&file)?;
                self.copies.done.store(number, Ordering::Release);
            }
        }
        self.copies.done.fetch_max(last_sealed, Ordering::AcqRel);
        Ok(())
    }

    /// Opens a pack; `None` when it is gone, as aux packs may be at any time. What the disk cannot
    /// read of it is as good as wrong.
    pub(super) fn pack_if_there(&self, number: u64) -> Result<Option<PackFile>> {
        match open::open_pack(&*self.disk, self.life(number)) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(|file| Some(file.forgiving())),
        }
    }

    /// The source of an aux pack of copies; `None` for any other pack.
    fn source_of(&self, number: u64) -> Result<Option<u64>> {
        let Some(file) = self.pack_if_there(number)? else { return Ok(None) };
        match file.header().map_err(Error::io("read a pack"))? {
            PackHeader::Good(PackKind::Aux { source }) if 0 < source && source < number => {
                Ok(Some(source))
            }
            _ => Ok(None),
        }
    }

    fn highest_source(&self, numbers: &[u64]) -> Result<u64> {
        for number in numbers.iter().rev() {
            if let Some(source) = self.source_of(*number)? {
                return Ok(source);
            }
        }
        Ok(0)
    }

    /// Copies the tree frames of a pack that can be read; without any there is no aux pack.
    fn copy_pack(&self, file: &PackFile) -> Result<()> {
        let source = file.life.pack;
        let (frames, _) = file.frames(u64::MAX).map_err(Error::io("read a pack"))?;
        let mut writer = None;
        for found in frames.iter().filter(|found| found.header.kind == Kind::Tree) {
            // What cannot be read any more gets no copy; `verify` names it.
            let Some(mut bytes) = verbatim(file, found) else { continue };
            let writer = match &mut writer {
                Some(writer) => writer,
                none => none.insert(AuxWriter::begin(self, source)?),
            };
            writer.append(&mut bytes)?;
        }
        let Some(writer) = writer else { return Ok(()) };
        let (number, _) = writer.finish()?;
        if let Some(known) = self.copies.known.lock().as_mut() {
            Arc::make_mut(known).by_source.insert(source, number);
        }
        Ok(())
    }

    fn known_copies(&self) -> Result<Arc<Known>> {
        let mut slot = self.copies.known.lock();
        if let Some(known) = slot.as_ref() {
            return Ok(Arc::clone(known));
        }
        let numbers = open::list(&*self.disk)?.numbers;
        let mut known = Known::default();
        for number in &numbers {
            if let Some(source) = self.source_of(*number)? {
                known.by_source.insert(source, *number);
            }
        }
        let is_gone = |source: &&u64| numbers.binary_search(source).is_err();
        known.lost = known.by_source.keys().filter(is_gone).copied().collect();
        let known = Arc::new(known);
        *slot = Some(Arc::clone(&known));
        Ok(known)
    }

    /// Returns the second copy of a tree chunk, verified, if there is a good one.
    pub(super) fn second_copy(&self, address: &Address) -> Result<Option<Tree>> {
        let known = self.known_copies()?;
        if known.by_source.is_empty() {
            return Ok(None);
        }
        let mut places = self.index.candidates(address);
        // A damaged run says nothing; what memory knows may do.
        places.extend(self.index.run_candidates(address).unwrap_or_default());
        let mut sources: Vec<u64> = places.iter().map(|at| at.pack).collect();
        // The index may have been built without the packs that are gone.
        sources.extend(&known.lost);
        sources.sort_unstable();
        sources.dedup();
        for source in sources {
            if let Some(tree) = self.copy_from(source, address)? {
                return Ok(Some(tree));
            }
        }
        Ok(None)
    }

    /// Removes the copies of what lay in `source`, which is about to go for good.
    pub(super) fn forget_copies(&self, source: u64) -> Result<()> {
        let Some(&number) = self.known_copies()?.by_source.get(&source) else { return Ok(()) };
        if let Some(known) = self.copies.known.lock().as_mut() {
            Arc::make_mut(known).by_source.remove(&source);
        }
        self.remove_aux(number)
    }

    /// Returns the copy of a tree chunk that lay in `source`.
    pub(super) fn copy_from(&self, source: u64, address: &Address) -> Result<Option<Tree>> {
        let Some(&number) = self.known_copies()?.by_source.get(&source) else { return Ok(None) };
        let Some(&at) = self.table_of(number)?.get(address) else { return Ok(None) };
        let Some(header) = self.header(at)? else { return Ok(None) };
        let read = self.verified_at(address, at, &header)?;
        Ok(read.and_then(|(entry, bytes)| frame::decode_tree(&entry, &bytes)))
    }

    /// Returns the pack that has the same tree frames: the copies of a pack of the log, or the
    /// source of an aux pack.
    pub(super) fn twin_of(&self, number: u64) -> Result<Option<PackFile>> {
        let twin = match self.source_of(number)? {
            Some(source) => Some(source),
            None => self.known_copies()?.by_source.get(&number).copied(),
        };
        twin.map_or(Ok(None), |twin| self.pack_if_there(twin))
    }

    fn table_of(&self, number: u64) -> Result<Arc<Table>> {
        let mut slot = self.copies.table.lock();
        if let Some((of, table)) = slot.as_ref()
            && *of == number
        {
            return Ok(Arc::clone(table));
        }
        let mut table = Table::new();
        if let Some(file) = self.pack_if_there(number)? {
            let (frames, _) = file.frames(u64::MAX).map_err(Error::io("read a pack"))?;
            for found in frames.iter().filter(|found| found.header.kind == Kind::Tree) {
                for (slot, entry) in found.header.entries.iter().enumerate() {
                    let at = Location { pack: number, offset: found.offset, slot: slot as u8 };
                    table.insert(entry.address, at);
                }
            }
        }
        let table = Arc::new(table);
        *slot = Some((number, Arc::clone(&table)));
        Ok(table)
    }
}

/// Returns a frame as it lies in its pack; `None` when it is damaged or cannot be read.
fn verbatim(file: &PackFile, found: &Found) -> Option<Vec<u8>> {
    let payload = file.payload(found).ok()?;
    if crc32c::crc32c(&payload) != found.header.payload_crc {
        return None;
    }
    let mut bytes = found.head.clone();
    bytes.extend_from_slice(&payload);
    let whole =
        bytes.len() as u64 == found.header.head_bytes() + u64::from(found.header.stored_bytes);
    bytes.resize(found.header.frame_bytes() as usize, 0);
    whole.then_some(bytes)
}
