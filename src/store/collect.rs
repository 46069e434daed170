//! The store's side of a collection: what is found again meanwhile, cleaning packs, dropping them.
//!
//! Owns [`Visit`], [`Collection`], and the hook through which look-ups for dedup pass while one is
//! under way. A pack that is worth it is cleaned as a log-structured filesystem cleans a
//! segment (Rosenblum and Ousterhout, 1992): its living chunks are appended again at the end of
//! the log, the caller's next commit makes them durable, and then the pack goes. Nothing on the
//! disk tells of a collection; one that a crash ended leaves chunks that lie twice, which the next
//! finds.
//!
//! Invariants: (1) from the moment at which a collection begins, whoever is answered "stored" has
//! marked the place, until the switch; after that a place in a victim counts only if it is
//! marked; (2) a pack goes only after all that is marked in it lies elsewhere, and below the
//! position that the caller named; (3) whoever holds a place in a pack that is gone looks again.
//!
//! Lock order: the hook before all others of the store.
//! Absent on purpose: roots, commits, and when a collection is worth it (`volume::collect`).

use std::collections::{BTreeSet, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{RwLock, RwLockReadGuard};

use super::frame::{self, FRAME_HEAD_BYTES, FRAME_PAYLOAD_BYTES, Kind};
use super::marks::Marks;
use super::pack::{self, Found, PACK_HEADER_BYTES, PackFile, PackHeader, PackKind};
use super::reader::Lookup;
use super::run::Totals;
use super::{Error, Inner, Location, LogPosition, Result, Store};
use crate::chunk::Address;
use crate::sys::locks::{Condvar, Mutex};

/// An open pack is sealed for a collection when it has this share of a full one.
const SEAL_PART: u64 = 16;

/// Who follows roots to chunks now.
#[derive(Default)]
struct Visits {
    state: Mutex<VisitCounts>,
    over: Condvar,
}

#[derive(Default)]
struct VisitCounts {
    /// Where those who come now are counted.
    side: usize,
    counts: [u64; 2],
}

/// While it lives, what a root that was read since names is not taken away.
pub struct Visit<'a> {
    visits: &'a Visits,
    side: usize,
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let mut state = self.visits.state.lock();
        if let Some(count) = state.counts.get_mut(self.side) {
            *count -= 1;
            if *count == 0 {
                self.visits.over.notify_all();
            }
        }
    }
}

impl Visits {
    fn begin(&self) -> Visit<'_> {
        let mut state = self.state.lock();
        let side = state.side;
        if let Some(count) = state.counts.get_mut(side) {
            *count += 1;
        }
        Visit { visits: self, side }
    }

    /// Waits until all visits that have begun are over; those who come meanwhile do not wait.
    fn wait(&self) {
        let mut state = self.state.lock();
        // The other side has been empty since the last time.
        let side = state.side;
        state.side = 1 - side;
        while state.counts.get(side).is_some_and(|count| *count > 0) {
            self.over.wait(&mut state);
        }
    }
}

/// Whether a collection is under way, and what it knows.
#[derive(Default)]
pub struct Collecting {
    visits: Visits,
    /// Held by the one collection.
    running: Mutex<()>,
    is_on: AtomicBool,
    run: RwLock<Option<Arc<Run>>>,
}

struct Run {
    marks: Marks,
    /// Packs below this one may be victims; all may, as long as nobody said so.
    below: AtomicU64,
    victims: RwLock<Option<HashSet<u64>>>,
    /// Victims of which all that was marked has been put again.
    clean: Mutex<BTreeSet<u64>>,
}

/// What a look-up for dedup asks whether a place counts.
pub struct Hook<'a>(Option<RwLockReadGuard<'a, Option<Arc<Run>>>>);

impl Collecting {
    #[cfg(test)]
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::SeqCst)
    }

    /// To be held from the look-up until its answer is used.
    pub fn hook(&self) -> Hook<'_> {
        // A collection that begins now waits for the visit of whoever saw it off.
        Hook(self.is_on.load(Ordering::SeqCst).then(|| self.run.read()))
    }
}

impl Hook<'_> {
    /// Whether a chunk may be said to be stored there; then it stays.
    pub fn offers(&self, inner: &Inner, at: Location) -> bool {
        let Some(run) = self.0.as_ref().and_then(|guard| guard.as_ref()) else { return true };
        match run.victims.read().as_ref() {
            Some(victims) => !victims.contains(&at.pack) || run.marks.has(at),
            None if run.below.load(Ordering::Acquire) <= at.pack => true,
            // What cannot be marked is not relied upon.
            None => run.marks.set(inner, at).is_ok() && run.marks.has(at),
        }
    }
}

/// What makes a pack worth cleaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Of its bytes, so many of a hundred are garbage at least.
    pub garbage_percent: u64,
    /// Living bytes that are moved in one collection, at most.
    pub live_bytes_max: u64,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy { garbage_percent: 25, live_bytes_max: 16 << 30 }
    }
}

/// A pack that is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Victim {
    /// Its number.
    pub pack: u64,
    /// Its length.
    pub pack_bytes: u64,
    /// What its living chunks take in it, about.
    pub live_bytes: u64,
}

/// What cleaning did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Packs of which nothing is needed any more, once a commit is durable.
    pub packs: BTreeSet<u64>,
    /// Bytes of chunks that were put again, before compression.
    pub rewritten_bytes: u64,
    /// Whether the caller ended it.
    pub stopped: bool,
}

/// A collection under way. Dropping it ends it, at any time.
pub struct Collection<'a> {
    store: &'a Store,
    run: Arc<Run>,
    _one: crate::sys::locks::MutexGuard<'a, ()>,
}

impl Drop for Collection<'_> {
    fn drop(&mut self) {
        let collecting = &self.store.inner.collecting;
        collecting.is_on.store(false, Ordering::SeqCst);
        *collecting.run.write() = None;
    }
}

impl Store {
    /// Begins a visit: to be held by whoever follows a root to chunks, from reading the root
    /// until a root made from it is where a collection looks for roots.
    pub fn visit(&self) -> Visit<'_> {
        self.inner.collecting.visits.begin()
    }

    /// Begins a collection; waits for one under way, and for all visits that have begun.
    ///
    /// From then on what is found again is marked. The caller commits, and marks all roots that
    /// the metadata names at one moment after that.
    pub fn begin_collection(&self) -> Result<Collection<'_>> {
        let inner = &self.inner;
        let one = inner.collecting.running.lock();
        inner.pipeline.check()?;
        match inner.seal_from(inner.options.pack_bytes_max / SEAL_PART) {
            // What the open pack holds is then left for the next time.
            Ok(()) | Err(Error::NoSpace) => {}
            Err(error) => return Err(error),
        }
        let run = Arc::new(Run {
            marks: Marks::of(inner),
            below: AtomicU64::new(u64::MAX),
            victims: RwLock::new(None),
            clean: Mutex::default(),
        });
        *inner.collecting.run.write() = Some(Arc::clone(&run));
        inner.collecting.is_on.store(true, Ordering::SeqCst);
        let collection = Collection { store: self, run, _one: one };
        inner.collecting.visits.wait();
        Ok(collection)
    }
}

/// What is alive in a pack, and what its chunks add up to.
struct Survey {
    live_bytes: u64,
    sums: Totals,
}

impl<'a> Collection<'a> {
    fn inner(&self) -> &'a Inner {
        &self.store.inner
    }

    /// What can be reached.
    pub fn marks(&self) -> &Marks {
        &self.run.marks
    }

    /// Names the position up to which the caller needs no commit record of the packs any more: only
    /// packs of the log below that one's can go, and of those only what was sealed when the
    /// collection began: others may have chunks of roots that the caller does not know yet.
    ///
    /// Waits for the visits that may follow roots from before that position.
    pub fn candidates_below(&self, position: LogPosition) {
        let below = position.pack.min(self.run.marks.sealed_below());
        self.run.below.store(below, Ordering::Release);
        self.inner().collecting.visits.wait();
    }

    /// Looks at all packs that can go: their garbage in bytes together, and those that are worth
    /// it, the most garbage first.
    pub fn choose(
        &self,
        policy: &Policy,
        each: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(u64, Vec<Victim>)> {
        let inner = self.inner();
        let below = self.run.below.load(Ordering::Acquire);
        let (mut garbage, mut victims) = (0, Vec::new());
        let packs = super::open::list(&*inner.disk)?.numbers;
        for pack in packs.into_iter().filter(|pack| *pack < below) {
            if each(pack).is_break() {
                break;
            }
            let Some(file) = self.log_pack(pack)? else { continue };
            let survey = self.survey(&file)?;
            let live_bytes = survey.live_bytes.min(file.len);
            garbage += file.len - live_bytes;
            let is_worth = file.len * policy.garbage_percent <= (file.len - live_bytes) * 100;
            if is_worth && !self.run.marks.is_kept(pack) {
                victims.push(Victim { pack, pack_bytes: file.len, live_bytes });
            }
        }
        victims.sort_by_key(|victim| victim.live_bytes * 1000 / victim.pack_bytes.max(1));
        let mut live = 0;
        victims.retain(|victim| {
            live += victim.live_bytes;
            live <= policy.live_bytes_max
        });
        Ok((garbage, victims))
    }

    /// A sealed pack of the log, if it is one.
    fn log_pack(&self, pack: u64) -> Result<Option<PackFile>> {
        let Some(file) = self.inner().pack_if_there(pack)? else { return Ok(None) };
        let header = file.header().map_err(Error::io("read a pack"))?;
        // One with a damaged header stays, until it is mended.
        Ok(matches!(header, PackHeader::Good(PackKind::Log)).then_some(file))
    }

    fn survey(&self, file: &PackFile) -> Result<Survey> {
        let (frames, _) = file.frames(u64::MAX).map_err(Error::io("read a pack"))?;
        let mut survey = Survey { live_bytes: 0, sums: Totals::default() };
        let (mut live_raw, mut has_chunks) = (0, false);
        for found in &frames {
            let header = &found.header;
            let item_bytes = u64::from(header.list_bytes) / header.entries.len().max(1) as u64;
            for (slot, entry) in header.entries.iter().enumerate() {
                survey.sums.chunks += 1;
                survey.sums.bytes += entry.hashed_bytes();
                let location = place(file.life.pack, found, slot);
                if self.run.marks.has(location) {
                    has_chunks = true;
                    live_raw += u64::from(entry.len);
                    let stored = u64::from(entry.len) * u64::from(header.stored_bytes);
                    survey.live_bytes += stored / u64::from(header.raw_bytes.max(1));
                    // In the frame's list, and once more in the footer.
                    survey.live_bytes += 2 * item_bytes;
                }
            }
        }
        if has_chunks {
            let frames = live_raw / FRAME_PAYLOAD_BYTES as u64 + 2;
            let overhead = 2 * FRAME_HEAD_BYTES as u64 + 24;
            survey.live_bytes += frames * overhead + PACK_HEADER_BYTES;
        }
        Ok(survey)
    }

    /// From now on what is not marked in these packs is not offered any more.
    pub fn switch(&self, victims: &[Victim]) {
        let packs = victims.iter().map(|victim| victim.pack).collect();
        // Whoever is between a look-up and its answer holds the hook.
        let _all = self.inner().collecting.run.write();
        *self.run.victims.write() = Some(packs);
    }

    fn is_victim(&self, pack: u64) -> bool {
        self.run.victims.read().as_ref().is_some_and(|victims| victims.contains(&pack))
    }

    /// Puts all that lives in some victims again; `each` is told the bytes so far, and may rest or
    /// end it. On a full disk nothing has changed but that some chunks lie twice.
    pub fn clean(
        &self,
        packs: &[u64],
        each: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Cleaned> {
        let mut cleaned = Cleaned { packs: packs.iter().copied().collect(), ..Cleaned::default() };
        let mut trees = Vec::new();
        for pack in packs {
            let Some(file) = self.log_pack(*pack)? else { continue };
            let (frames, _) = file.frames(u64::MAX).map_err(Error::io("read a pack"))?;
            for found in &frames {
                match found.header.kind {
                    Kind::Tree => self.living_trees(*pack, found, &mut trees),
                    Kind::Data => self.move_data(*pack, found, &mut cleaned)?,
                    _ => continue,
                }
                if each(cleaned.rewritten_bytes).is_break() {
                    return Ok(Cleaned { stopped: true, ..cleaned });
                }
            }
        }
        // Children before their parents, as always.
        trees.sort_unstable();
        for (_, at, address) in trees {
            self.move_tree(&address, at, &mut cleaned)?;
            if each(cleaned.rewritten_bytes).is_break() {
                return Ok(Cleaned { stopped: true, ..cleaned });
            }
        }
        self.run.clean.lock().extend(&cleaned.packs);
        Ok(cleaned)
    }

    fn living_trees(&self, pack: u64, found: &Found, trees: &mut Vec<(u64, Location, Address)>) {
        for (slot, entry) in found.header.entries.iter().enumerate() {
            let at = place(pack, found, slot);
            if self.run.marks.has(at) {
                trees.push((entry.span, at, entry.address));
            }
        }
    }

    fn move_data(&self, pack: u64, found: &Found, cleaned: &mut Cleaned) -> Result<()> {
        let inner = self.inner();
        let header = Arc::new(found.header.clone());
        let mut chunks: Vec<(Address, Bytes)> = Vec::new();
        for (slot, entry) in header.entries.iter().enumerate() {
            let at = place(pack, found, slot);
            if !self.run.marks.has(at) || self.is_safe(&entry.address)? {
                continue;
            }
            match inner.verified_at(&entry.address, at, &header)? {
                Some((_, bytes)) => chunks.push((entry.address, bytes)),
                None => self.spare(pack, &entry.address, at, cleaned),
            }
        }
        let put: Vec<(Address, &[u8])> =
            chunks.iter().map(|(address, bytes)| (*address, bytes.as_ref())).collect();
        cleaned.rewritten_bytes += put.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
        let mut rest = put;
        while !rest.is_empty() {
            let count = |chunk: &(Address, &[u8])| inner.index.candidates(&chunk.0).len();
            let seen: Vec<usize> = rest.iter().map(count).collect();
            let again = inner.add_data(&rest, &seen)?;
            // Somebody else has put it just now, or another that looks like it.
            rest = again.into_iter().filter_map(|at| rest.get(at).copied()).collect();
        }
        Ok(())
    }

    fn move_tree(&self, address: &Address, at: Location, cleaned: &mut Cleaned) -> Result<()> {
        let inner = self.inner();
        if self.is_safe(address)? {
            return Ok(());
        }
        let Some(header) = inner.header(at)? else {
            self.spare(at.pack, address, at, cleaned);
            return Ok(());
        };
        let own = inner.verified_at(address, at, &header)?;
        let own = own.and_then(|(entry, bytes)| frame::decode_tree(&entry, &bytes));
        let tree = match own {
            Some(tree) => Some(tree),
            None => inner.second_copy(address)?,
        };
        let Some(tree) = tree else {
            self.spare(at.pack, address, at, cleaned);
            return Ok(());
        };
        cleaned.rewritten_bytes += tree.payload().len() as u64;
        while !inner.add_tree(*address, &tree, inner.index.candidates(address).len())? {}
        Ok(())
    }

    /// Whether a chunk has a place that does not go, or is on its way to one.
    fn is_safe(&self, address: &Address) -> Result<bool> {
        let inner = self.inner();
        if inner.pipeline.contains(address) {
            return Ok(true);
        }
        let places = inner.index.candidates(address);
        if places.len() < 2 && inner.index.is_whole() {
            return Ok(places.iter().any(|at| !self.is_victim(at.pack)));
        }
        match inner.newest(address, u64::MAX)? {
            Lookup::Found(at, _) => Ok(!self.is_victim(at.pack)),
            _ => Ok(false),
        }
    }

    /// Leaves a pack where it is, as a living chunk in it cannot be read: a repair may yet.
    fn spare(&self, pack: u64, address: &Address, at: Location, cleaned: &mut Cleaned) {
        tracing::error!("chunk {address} is damaged: {at} stays; run 'pyramidfs check --repair'");
        self.inner().bad.enter(*address, at);
        cleaned.packs.remove(&pack);
    }

    /// Drops packs that are clean, or have nothing alive, after a commit; returns their bytes.
    /// Others stay: something may have been found again since they were chosen.
    pub fn drop_packs(&self, packs: &[u64]) -> Result<u64> {
        let inner = self.inner();
        let below = self.run.below.load(Ordering::Acquire);
        let (mut going, mut sums) = (BTreeSet::new(), Totals::default());
        let mut lengths = Vec::new();
        for pack in packs.iter().copied().filter(|pack| *pack < below && self.is_victim(*pack)) {
            let Some(file) = self.log_pack(pack)? else { continue };
            let survey = self.survey(&file)?;
            if 0 < survey.live_bytes && !self.run.clean.lock().contains(&pack) {
                continue;
            }
            sums.chunks += survey.sums.chunks;
            sums.bytes += survey.sums.bytes;
            lengths.push((pack, file.len));
            going.insert(pack);
        }
        if going.is_empty() {
            return Ok(0);
        }
        inner.index.remove_packs(&going, sums);
        inner.bad.leave_packs(&|pack| going.contains(&pack));
        let mut freed = 0;
        for (pack, length) in lengths {
            // Without the pack its copies would count as what is left of one that was lost.
            inner.forget_copies(pack)?;
            let removed = inner.disk.remove_file(&pack::pack_path(pack));
            removed.map_err(Error::io("remove a pack"))?;
            // An open handle would keep the space.
            inner.files.lock().pop(&pack);
            let mut log = inner.log.lock();
            log.sealed_bytes = log.sealed_bytes.saturating_sub(length);
            log.packs = log.packs.saturating_sub(1);
            freed += length;
        }
        // Else a crash would have the sums of packs that are gone counted from now on. The index
        // is derived: a failure costs no more than that.
        let _ = self.store.save_index();
        Ok(freed)
    }
}

fn place(pack: u64, found: &Found, slot: usize) -> Location {
    Location { pack, offset: found.offset, slot: slot as u8 }
}
