//! The index: where the chunk of an address may lie.
//!
//! Owns the table in memory (12 bytes a slot: a fingerprint of the address and a packed location),
//! the list of what no run covers yet, and the runs. Answers are candidates: whoever asks confirms
//! them against the frame's own list of addresses.
//!
//! Invariants: (1) only chunks whose frame is in a pack are here, a tree chunk after its children;
//! (2) a slot leaves the memory only when a durable run covers it; (3) the table holds at most
//! `slots_max` slots, plus what no run covers yet.
//!
//! Absent on purpose: reading packs.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hashbrown::HashTable;
use parking_lot::{Mutex, RwLock};

use super::run::{self, INDEX_DIR, Run, RunEntry, RunHead, RunReader, Totals};
use super::{Location, LogPosition};
use crate::chunk::Address;
use crate::sys::Disk;

const SHARDS: usize = 16;
/// Bytes of a slot in the table: 12, and one of control.
const SLOT_BYTES: u64 = 13;
/// With more runs than this, runs are merged.
const RUNS_MAX: usize = 8;
/// After so many packs without a chunk a run without entries says that they have none.
const EMPTY_PACKS_MAX: u64 = 16;

/// Fingerprint, then the location's low and high half: 12 bytes without padding.
type Slot = [u32; 3];

fn location_of(slot: &Slot) -> u64 {
    let [_, low, high] = *slot;
    u64::from(high) << 32 | u64::from(low)
}

fn spread(fingerprint: u32) -> u64 {
    // An odd constant moves the fingerprint's bits to both ends, from which the table takes its
    // own.
    u64::from(fingerprint).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Returns the part of an address by which the index sorts.
pub fn prefix_of(address: &Address) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = address.0;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// What no run covers yet, in the order of the log.
#[derive(Default)]
struct Recent {
    entries: Vec<RunEntry>,
    /// So many were here before the first of `entries` and are in runs now.
    before: u64,
    totals: Totals,
    /// What is in front of the last durable record.
    mark: Mark,
    to: LogPosition,
}

/// How far the index had come at some moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mark {
    count: u64,
    totals: Totals,
}

/// Which packs are there.
#[derive(Default)]
struct Packs {
    /// Those that were there when the store was opened, and did not go since.
    old: BTreeSet<u64>,
    /// All packs from this one on were begun since.
    new_from: u64,
    /// Of those, the ones that went.
    gone: BTreeSet<u64>,
    /// Chunks of packs that went since runs were last written without them.
    gone_chunks: u64,
    /// Whether sums were lowered since a run was last saved.
    lowered: bool,
}

impl Packs {
    fn has(&self, pack: u64) -> bool {
        match pack < self.new_from {
            true => self.old.contains(&pack),
            false => !self.gone.contains(&pack),
        }
    }
}

/// The index of a store.
pub struct Index {
    shards: Vec<RwLock<HashTable<Slot>>>,
    slots: AtomicU64,
    slots_max: u64,
    recent_max: u64,
    recent: Mutex<Recent>,
    runs: RwLock<Arc<Vec<Arc<Run>>>>,
    /// Whether slots were ever left out, so that runs must be asked too.
    dropped: AtomicBool,
    /// Locations below this are covered by a durable run.
    covered: AtomicU64,
    /// Slots of locations below this were dropped.
    dropped_below: AtomicU64,
    packs: RwLock<Packs>,
    /// How often packs were taken out.
    removals: AtomicU64,
    /// Held while runs are written; the number of the next run.
    saving: Mutex<u64>,
    volume_id: [u8; 16],
}

impl Index {
    /// Makes an empty index that may take `memory_bytes`.
    pub fn new(volume_id: [u8; 16], memory_bytes: u64) -> Index {
        // A table's buckets are a power of two, seven eighths of them usable.
        let shard_bytes = memory_bytes / 4 * 3 / SHARDS as u64;
        let buckets = 1_u64 << (shard_bytes / SLOT_BYTES).max(4).ilog2();
        Index {
            shards: (0..SHARDS).map(|_| RwLock::new(HashTable::new())).collect(),
            slots: AtomicU64::new(0),
            slots_max: buckets / 8 * 7 * SHARDS as u64,
            recent_max: (memory_bytes / 4 / size_of::<RunEntry>() as u64).max(16),
            recent: Mutex::new(Recent::default()),
            runs: RwLock::new(Arc::new(Vec::new())),
            dropped: AtomicBool::new(false),
            covered: AtomicU64::new(0),
            dropped_below: AtomicU64::new(0),
            packs: RwLock::default(),
            removals: AtomicU64::new(0),
            saving: Mutex::new(1),
            volume_id,
        }
    }

    fn shard(&self, prefix: u64) -> &RwLock<HashTable<Slot>> {
        let number = (prefix >> 60) as usize % SHARDS;
        &self.shards[number]
    }

    /// Returns where the chunk may lie, by what is in memory.
    pub fn candidates(&self, address: &Address) -> Vec<Location> {
        let prefix = prefix_of(address);
        let fingerprint = prefix as u32;
        let shard = self.shard(prefix).read();
        shard
            .iter_hash(spread(fingerprint))
            .filter(|slot| slot[0] == fingerprint)
            .map(|slot| Location::unpack(location_of(slot)))
            .collect()
    }

    /// Returns where the chunk may lie, by the runs, when not all of them are in memory.
    pub fn run_candidates(&self, address: &Address) -> Result<Vec<Location>, RunError> {
        if !self.dropped.load(Ordering::Acquire) {
            return Ok(Vec::new());
        }
        let runs = Arc::clone(&self.runs.read());
        let mut found = Vec::new();
        for run in runs.iter().rev() {
            match run.find(prefix_of(address)) {
                Ok(Some(locations)) => found.extend(locations.into_iter().map(Location::unpack)),
                Ok(None) => return Err(RunError::Damaged(run.name.clone())),
                Err(source) => return Err(RunError::Io(source)),
            }
        }
        let packs = self.packs.read();
        found.retain(|at| packs.has(at.pack));
        Ok(found)
    }

    /// Whether all chunks are in memory, so that what it does not name is not stored.
    pub fn is_whole(&self) -> bool {
        !self.dropped.load(Ordering::Acquire)
    }

    /// Tells which packs there are: `numbers`, and all that will be begun from `new_from` on.
    pub fn set_packs(&self, numbers: &[u64], new_from: u64) {
        let mut packs = self.packs.write();
        packs.old = numbers.iter().copied().collect();
        packs.new_from = new_from;
    }

    /// Whether a pack is there, as far as the index knows.
    pub fn has_pack(&self, pack: u64) -> bool {
        self.packs.read().has(pack)
    }

    /// How often packs were taken out.
    pub fn removals(&self) -> u64 {
        self.removals.load(Ordering::Acquire)
    }

    /// Takes all chunks of some packs out, which have `sums` together.
    pub fn remove_packs(&self, gone: &BTreeSet<u64>, sums: Totals) {
        {
            let mut packs = self.packs.write();
            packs.old.retain(|pack| !gone.contains(pack));
            packs.gone.extend(gone);
            packs.gone_chunks += sums.chunks;
            packs.lowered = true;
            // Under the lock: who finds a pack gone finds this, too.
            self.removals.fetch_add(1, Ordering::AcqRel);
        }
        for shard in &self.shards {
            let mut shard = shard.write();
            let before = shard.len();
            shard.retain(|slot| !gone.contains(&Location::unpack(location_of(slot)).pack));
            self.slots.fetch_sub((before - shard.len()) as u64, Ordering::Relaxed);
            if shard.len() < shard.capacity() / 4 {
                shard.shrink_to_fit(|slot| spread(slot[0]));
            }
        }
        let mut recent = self.recent.lock();
        recent.totals.lower(sums);
        recent.mark.totals.lower(sums);
    }

    /// Enters a chunk that is in a pack now and in no run.
    pub fn insert(&self, address: &Address, location: Location, bytes: u64) {
        let prefix = prefix_of(address);
        self.insert_slot(prefix, location.pack());
        {
            let mut recent = self.recent.lock();
            recent.entries.push((prefix, location.pack()));
            recent.totals.chunks += 1;
            recent.totals.bytes += bytes;
        }
        self.shrink_if_full();
    }

    fn insert_slot(&self, prefix: u64, location: u64) {
        let slot = [prefix as u32, location as u32, (location >> 32) as u32];
        let mut shard = self.shard(prefix).write();
        shard.insert_unique(spread(slot[0]), slot, |slot| spread(slot[0]));
        self.slots.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how far the index has come: what is entered later is behind the mark.
    pub fn mark(&self) -> Mark {
        let recent = self.recent.lock();
        Mark { count: recent.before + recent.entries.len() as u64, totals: recent.totals }
    }

    /// Counts what is in front of `mark` as committed, by a durable record that ends at `to`.
    pub fn committed(&self, mark: Mark, to: LogPosition) {
        let mut recent = self.recent.lock();
        recent.mark = mark;
        recent.to = to;
    }

    /// Whether a run should be saved now, so that the memory stays within its limit.
    pub fn wants_run(&self) -> bool {
        let recent = self.recent.lock();
        recent.mark.count.saturating_sub(recent.before) >= self.recent_max
    }

    /// Returns sums over all chunks of the log.
    pub fn totals(&self) -> Totals {
        self.recent.lock().totals
    }

    /// Returns up to where runs cover the log.
    pub fn covered_to(&self) -> LogPosition {
        self.runs.read().last().map_or(LogPosition::default(), |run| run.head.to)
    }

    /// Bytes of all runs on the disk.
    pub fn file_bytes(&self) -> u64 {
        self.runs.read().iter().map(|run| run.file_bytes()).sum()
    }

    /// Bytes that the index takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        let tables: usize = self.shards.iter().map(|shard| shard.read().allocation_size()).sum();
        let recent = self.recent.lock().entries.capacity() * size_of::<RunEntry>();
        (tables + recent) as u64
    }

    fn shrink_if_full(&self) {
        let slots = self.slots.load(Ordering::Relaxed);
        let covered = self.covered.load(Ordering::Acquire);
        if slots <= self.slots_max || covered <= self.dropped_below.load(Ordering::Acquire) {
            return;
        }
        let excess = slots - self.slots_max / 4 * 3;
        let mut by_pack: BTreeMap<u64, u64> = BTreeMap::new();
        for shard in &self.shards {
            for location in shard.read().iter().map(location_of) {
                if location < covered {
                    *by_pack.entry(Location::unpack(location).pack).or_default() += 1;
                }
            }
        }
        let mut cutoff = covered;
        let mut below = 0;
        for (pack, count) in by_pack {
            below += count;
            if below >= excess {
                cutoff = Location { pack: pack + 1, offset: 0, slot: 0 }.pack().min(covered);
                break;
            }
        }
        self.drop_below(cutoff);
    }

    fn drop_below(&self, cutoff: u64) {
        self.dropped.store(true, Ordering::Release);
        self.dropped_below.fetch_max(cutoff, Ordering::AcqRel);
        for shard in &self.shards {
            let mut shard = shard.write();
            let before = shard.len();
            shard.retain(|slot| cutoff <= location_of(slot));
            self.slots.fetch_sub((before - shard.len()) as u64, Ordering::Relaxed);
            shard.shrink_to_fit(|slot| spread(slot[0]));
        }
    }

    /// Saves what is committed and in no run yet as a run; merges runs when there are many.
    ///
    /// Look-ups and entries go on meanwhile. After an error nothing is lost.
    pub fn save(&self, disk: &dyn Disk) -> Result<(), RunError> {
        let mut number = self.saving.lock();
        let (mut entries, head) = {
            let recent = self.recent.lock();
            let count = recent.mark.count.saturating_sub(recent.before) as usize;
            let entries = recent.entries.get(..count).unwrap_or_default().to_vec();
            let from = self.covered_to();
            let head = RunHead {
                entries: entries.len() as u64,
                from: (from.pack, from.offset),
                to: recent.to,
                totals: recent.mark.totals,
            };
            (entries, head)
        };
        // Records alone need a run only when many packs are full of them.
        let is_small = head.to.pack < head.from.0 + EMPTY_PACKS_MAX;
        let lowered = self.packs.read().lowered
            && (head.from.0, head.from.1) != (head.to.pack, head.to.offset);
        if entries.is_empty() && is_small && !lowered {
            return Ok(());
        }
        let count = entries.len();
        self.keep_living(&mut entries);
        let head = RunHead { entries: entries.len() as u64, ..head };
        entries.sort_unstable();
        let mut rest = entries.into_iter();
        let run = self.write(disk, &mut number, head, &mut || Ok(rest.next()))?;
        let mut runs = self.runs.read().as_ref().clone();
        runs.push(Arc::new(run));
        *self.runs.write() = Arc::new(runs);
        {
            let mut recent = self.recent.lock();
            recent.entries.drain(..count);
            recent.entries.shrink_to(self.recent_max as usize);
            recent.before += count as u64;
        }
        self.packs.write().lowered = false;
        self.cover(head.to);
        self.shrink_if_full();
        self.merge(disk, &mut number)
    }

    fn keep_living(&self, entries: &mut Vec<RunEntry>) {
        let packs = self.packs.read();
        entries.retain(|(_, location)| packs.has(Location::unpack(*location).pack));
    }

    fn cover(&self, to: LogPosition) {
        let covered = Location { pack: to.pack, offset: to.offset, slot: 0 }.pack();
        self.covered.fetch_max(covered, Ordering::AcqRel);
    }

    fn write(
        &self,
        disk: &dyn Disk,
        number: &mut u64,
        head: RunHead,
        entries: &mut dyn FnMut() -> io::Result<Option<RunEntry>>,
    ) -> Result<Run, RunError> {
        let mine = *number;
        *number += 1;
        run::write(disk, mine, &self.volume_id, head, entries).map_err(|source| {
            // What is left of it is removed at the next opening at the latest.
            let _ = disk.remove_file(&format!("{INDEX_DIR}/{mine:016x}.tmp"));
            RunError::Io(source)
        })
    }

    /// Merges the newest runs, and older ones that are not much larger than those together.
    fn merge(&self, disk: &dyn Disk, number: &mut u64) -> Result<(), RunError> {
        let runs = Arc::clone(&self.runs.read());
        let all: u64 = runs.iter().map(|run| run.head.entries).sum();
        let mostly_gone = all < 4 * self.packs.read().gone_chunks;
        if runs.len() <= RUNS_MAX && !mostly_gone {
            return Ok(());
        }
        let mut first = if mostly_gone { 0 } else { RUNS_MAX / 2 };
        let mut sum: u64 = runs.iter().skip(first).map(|run| run.head.entries).sum();
        while let Some(older) = first.checked_sub(1).and_then(|older| runs.get(older)) {
            if older.head.entries > 2 * sum {
                break;
            }
            sum += older.head.entries;
            first -= 1;
        }
        let (kept, merged) = runs.split_at(first);
        let (Some(oldest), Some(newest)) = (merged.first(), merged.last()) else {
            return Ok(());
        };
        let head = RunHead { entries: sum, from: oldest.head.from, ..newest.head };
        if mostly_gone {
            self.packs.write().gone_chunks = 0;
        }
        let mut readers: Vec<RunReader<'_>> =
            merged.iter().map(|run| RunReader::new(run)).collect();
        let mut heads = Vec::new();
        for reader in &mut readers {
            heads.push(reader.next().map_err(RunError::Io)?);
        }
        let run = self.write(disk, number, head, &mut || {
            loop {
                let entry = least(&mut readers, &mut heads)?;
                match entry {
                    Some((_, at)) if !self.has_pack(Location::unpack(at).pack) => {}
                    entry => return Ok(entry),
                }
            }
        })?;
        let mut all = kept.to_vec();
        all.push(Arc::new(run));
        *self.runs.write() = Arc::new(all);
        for old in merged {
            remove_run(disk, &old.name).map_err(RunError::Io)?;
        }
        Ok(())
    }

    /// Takes in the runs of the disk that follow one another from the start of the log up to `end`
    /// at most, and as many of their entries as there is room for; removes all other runs.
    ///
    /// Returns whether a run was damaged or missing: then the rest of the log is to be scanned.
    pub fn load(&self, disk: &dyn Disk, end: LogPosition) -> io::Result<bool> {
        let mut number = self.saving.lock();
        let mut found = Vec::new();
        let mut damaged = false;
        for entry in disk.read_dir(INDEX_DIR)? {
            let this = super::pack::parse_name(&entry.name, ".run");
            let Some(this) = this.filter(|this| *this < super::COUNT_MAX) else {
                disk.remove_file(&format!("{INDEX_DIR}/{}", entry.name))?;
                continue;
            };
            *number = (*number).max(this + 1);
            match Run::open(disk, &entry.name, &self.volume_id)? {
                Some(run) if run.head.to.sequence <= end.sequence => found.push(Arc::new(run)),
                _ => {
                    damaged = true;
                    remove_run(disk, &entry.name)?;
                }
            }
        }
        let mut chain = follow(&found);
        damaged |= self.take_in(&mut chain)?;
        for run in found.iter().filter(|run| !chain.iter().any(|kept| kept.name == run.name)) {
            damaged |= chain.last().is_none_or(|last| last.head.to < run.head.to);
            remove_run(disk, &run.name)?;
        }
        // A run that was removed must not come back when the log has grown past what it covers.
        disk.sync_dir(INDEX_DIR)?;
        let last = chain.last().map(|run| run.head);
        *self.runs.write() = Arc::new(chain);
        if let Some(head) = last {
            let mut recent = self.recent.lock();
            recent.totals = head.totals;
            recent.mark.totals = head.totals;
            recent.to = head.to;
            drop(recent);
            self.cover(head.to);
        }
        Ok(damaged)
    }

    /// Enters what there is room for, the newest first; cuts the chain at a damaged run.
    fn take_in(&self, chain: &mut Vec<Arc<Run>>) -> io::Result<bool> {
        for position in (0..chain.len()).rev() {
            let Some(run) = chain.get(position).cloned() else { break };
            let room = (self.slots_max / 4 * 3).saturating_sub(self.slots.load(Ordering::Relaxed));
            let cutoff = cutoff_for(&run.head, room);
            if 0 < cutoff {
                self.dropped.store(true, Ordering::Release);
                self.dropped_below.fetch_max(cutoff, Ordering::AcqRel);
            }
            if room == 0 {
                break;
            }
            let mut first = 0;
            while first < run.blocks() {
                let Some(entries) = run.read_blocks(first, 64)? else {
                    for shard in &self.shards {
                        shard.write().clear();
                    }
                    self.slots.store(0, Ordering::Relaxed);
                    chain.truncate(position);
                    return self.take_in(chain).map(|_| true);
                };
                let mut entries = entries;
                self.keep_living(&mut entries);
                for (prefix, location) in entries {
                    if cutoff <= location {
                        self.insert_slot(prefix, location);
                    }
                }
                first += 64;
            }
        }
        Ok(false)
    }
}

/// Returns from which location on a run's entries are taken in, when there is room for `room`.
fn cutoff_for(head: &RunHead, room: u64) -> u64 {
    // Without room, what lies in front of an empty run is left out, too.
    if 0 < room && head.entries <= room {
        return 0;
    }
    // As if chunks were evenly spread over packs, with a tenth to spare.
    let packs = u128::from((head.to.pack + 1).saturating_sub(head.from.0));
    let share = packs * u128::from(room) * 9 / 10 / u128::from(head.entries.max(1));
    let pack = (head.to.pack + 1).saturating_sub(share as u64);
    Location { pack, offset: 0, slot: 0 }.pack().max(1)
}

/// Picks runs each of which starts where the one before ends.
fn follow(runs: &[Arc<Run>]) -> Vec<Arc<Run>> {
    let mut chain: Vec<Arc<Run>> = Vec::new();
    loop {
        let at = chain.last().map_or((0, 0), |run| (run.head.to.pack, run.head.to.offset));
        let next = runs
            .iter()
            .filter(|run| run.head.from == at && at < (run.head.to.pack, run.head.to.offset))
            .max_by_key(|run| run.head.to);
        match next {
            Some(run) => chain.push(Arc::clone(run)),
            None => return chain,
        }
    }
}

/// Takes the least of the entries at the heads of `readers`.
fn least(
    readers: &mut [RunReader<'_>],
    heads: &mut [Option<RunEntry>],
) -> io::Result<Option<RunEntry>> {
    let mut best: Option<(usize, RunEntry)> = None;
    for (position, head) in heads.iter().enumerate() {
        if let Some(entry) = head
            && best.is_none_or(|(_, least)| *entry < least)
        {
            best = Some((position, *entry));
        }
    }
    let Some((position, entry)) = best else {
        return Ok(None);
    };
    if let (Some(reader), Some(head)) = (readers.get_mut(position), heads.get_mut(position)) {
        *head = reader.next()?;
    }
    Ok(Some(entry))
}

/// Removes the file of a run.
pub fn remove_run(disk: &dyn Disk, name: &str) -> io::Result<()> {
    match disk.remove_file(&format!("{INDEX_DIR}/{name}")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Why runs could not answer.
#[derive(Debug)]
pub enum RunError {
    /// This run is damaged: it should be removed, and the index rebuilt.
    Damaged(String),
    /// The disk refused.
    Io(io::Error),
}
