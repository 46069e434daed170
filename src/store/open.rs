//! Opening: which commit record is the last one, what goes, what stays, and the index.
//!
//! Owns recovery. The steps: list the packs; walk the log behind the position that is asked for,
//! past the page cache; choose the last commit record, one back when the frames of its group are
//! not all there; cut and set aside what lies behind it; sync what is kept; load the index and
//! complete it from the packs.
//!
//! Invariants: (1) only what lies behind the chosen record goes, and never anything up to `from`;
//! (2) nothing is indexed or appended before what is kept is durable; (3) a tree chunk enters the
//! index only when all its children are found.
//!
//! Why one step back is enough: a record is appended after the sync of the one before returned, so
//! only the last group can be torn. Whatever else is amiss is damage, and is reported. So when the
//! record before a torn one is missing, nothing is cut: a power loss cannot do that, and two
//! commits would go.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use lru::LruCache;

use super::bad::BadChunks;
use super::cache::Cache;
use super::collect::Collecting;
use super::copies::Copies;
use super::frame::{self, Kind, Life};
use super::index::Index;
use super::log::{Log, OpenPack};
use super::pack::{
    self, At, Found, Gap, PACK_HEADER_BYTES, PACK_NUMBERS, PACKS_DIR, PackFile, PackHeader,
    PackKind, TEMPORARY,
};
use super::pipeline::Pipeline;
use super::reader::Lookup;
use super::record::{RecordHead, run_on};
use super::{Error, FILES_MAX, Finding, Inner, Location, LogPosition, Options, Record, Result};
use crate::chunk::{Address, Profile, Tree};
use crate::sys::locks::Mutex;
use crate::sys::{Access, Disk};

/// Records that are missing in a row and are named one by one.
const MISSING_MAX: usize = 1000;

/// What opening gives.
pub struct Recovered {
    /// The store, without workers.
    pub inner: Inner,
    /// The records behind the position that was asked for.
    pub records: Vec<Record>,
    /// What was out of order.
    pub findings: Vec<Finding>,
}

/// The packs that are there.
#[derive(Default)]
pub struct Listing {
    /// Their numbers, rising.
    pub numbers: Vec<u64>,
    /// The directories of packs.
    dirs: HashSet<String>,
    /// The highest number that was ever seen in a name.
    number_max: u64,
    /// Aux packs that were never finished.
    unfinished: Vec<String>,
}

/// Lists the packs of a volume.
pub fn list(disk: &dyn Disk) -> Result<Listing> {
    let action = "list the packs";
    let mut listing = Listing::default();
    for dir in disk.read_dir(PACKS_DIR).map_err(Error::io(action))? {
        if !dir.is_dir {
            continue;
        }
        let path = format!("{PACKS_DIR}/{}", dir.name);
        for entry in disk.read_dir(&path).map_err(Error::io(action))? {
            // A number that no pack can have is nobody's, and none to go on from.
            let parse = |suffix| {
                pack::parse_name(&entry.name, suffix).filter(|number| *number < PACK_NUMBERS)
            };
            let number = parse(".pack");
            let aside = parse(".pack.aside");
            let unfinished = parse(TEMPORARY);
            let seen = number.or(aside).or(unfinished).unwrap_or(0);
            listing.number_max = listing.number_max.max(seen);
            if unfinished.is_some() {
                listing.unfinished.push(format!("{path}/{}", entry.name));
            }
            listing.numbers.extend(number.filter(|number| pack::pack_dir(*number) == path));
        }
        listing.dirs.insert(path);
    }
    listing.numbers.sort_unstable();
    Ok(listing)
}

/// A frame of the tail, without its list.
struct Light {
    pack: u64,
    offset: u64,
    end: u64,
    header_crc: u32,
    record: Option<RecordHead>,
}

/// The log behind the position that was asked for.
#[derive(Default)]
struct Tail {
    frames: Vec<Light>,
    /// The highest sequence number so far.
    sequence: u64,
    gaps: Vec<(u64, Gap)>,
    /// Packs without a footer at their end.
    unsealed: Vec<u64>,
    damaged_headers: Vec<u64>,
    /// Packs that are no part of the log.
    aux: HashSet<u64>,
}

struct Recovery {
    disk: Arc<dyn Disk>,
    volume_id: [u8; 16],
    from: LogPosition,
    listing: Listing,
    findings: Vec<Finding>,
    /// Whether what the disk cannot read is as good as wrong.
    forgiving: bool,
}

/// Opens and recovers a store.
pub fn open(
    disk: Arc<dyn Disk>,
    profile: Profile,
    volume_id: [u8; 16],
    options: Options,
    from: LogPosition,
) -> Result<Recovered> {
    assert!(options.pack_bytes_max <= 1 << 31, "a location has room for 2 GiB");
    let listing = list(&*disk)?;
    for path in &listing.unfinished {
        // Best effort: nobody reads it, and its number is used up as long as it is there.
        let _ = disk.remove_file(path);
    }
    let (findings, forgiving) = (Vec::new(), false);
    let mut recovery =
        Recovery { disk: Arc::clone(&disk), volume_id, from, listing, findings, forgiving };
    let tail = recovery.walk_tail()?;
    let chosen = recovery.choose(&tail)?;
    let end = chosen.map_or(from, |chosen| position(&tail, chosen).unwrap_or(from));
    recovery.report(&tail, end);
    let records = recovery.records(&tail, end)?;
    recovery.cut(&tail, end)?;
    let log = recovery.continue_log(&tail, end, options.pack_bytes_max)?;
    let inner = build(disk, profile, volume_id, options, log);
    let new_from = inner.log.lock().next_number;
    inner.index.set_packs(&recovery.listing.numbers, new_from);
    complete(&inner, &recovery.listing.numbers, end, &mut recovery.findings)?;
    Ok(Recovered { inner, records, findings: recovery.findings })
}

fn build(
    disk: Arc<dyn Disk>,
    profile: Profile,
    volume_id: [u8; 16],
    options: Options,
    log: Log,
) -> Inner {
    let header_bytes = (options.index_memory_bytes / 8).clamp(64 * 1024, 32 * 1024 * 1024);
    let table_bytes = options.index_memory_bytes.saturating_sub(header_bytes);
    Inner {
        disk,
        profile,
        volume_id,
        pipeline: Pipeline::new(),
        log: Mutex::new(log),
        index: Index::new(volume_id, table_bytes),
        headers: Cache::new(header_bytes),
        frames: Cache::new(options.cache_bytes),
        trees: Cache::new(options.tree_cache_bytes),
        files: Mutex::new(LruCache::new(FILES_MAX)),
        bad: BadChunks::default(),
        workers: Mutex::new(None),
        commit: Mutex::new(()),
        collecting: Collecting::default(),
        copies: Copies::default(),
        options,
    }
}

fn position(tail: &Tail, chosen: usize) -> Option<LogPosition> {
    let light = tail.frames.get(chosen)?;
    let sequence = light.record.as_ref()?.sequence;
    Some(LogPosition { pack: light.pack, offset: light.end, sequence })
}

impl Recovery {
    fn life(&self, pack: u64) -> Life {
        Life { volume_id: self.volume_id, pack }
    }

    fn pack_file(&self, number: u64) -> Result<PackFile> {
        let file = open_pack(&*self.disk, self.life(number))?;
        Ok(if self.forgiving { file.forgiving() } else { file })
    }

    /// Reads the frame headers of the log from `from` on, past the page cache.
    fn walk_tail(&self) -> Result<Tail> {
        let mut tail = Tail { sequence: self.from.sequence, ..Tail::default() };
        for number in self.numbers_from() {
            self.walk_pack(number, self.from, &mut tail)?;
        }
        Ok(tail)
    }

    /// The packs that may have something behind `from`.
    fn numbers_from(&self) -> Vec<u64> {
        let first = self.listing.numbers.partition_point(|number| *number < self.from.pack);
        self.listing.numbers.iter().skip(first).copied().collect()
    }

    /// Adds what a pack has behind `from` to the tail.
    fn walk_pack(&self, number: u64, from: LogPosition, tail: &mut Tail) -> Result<()> {
        let file = self.pack_file(number)?;
        if file.is_empty() {
            return Ok(());
        }
        let start = if from.sequence > 0 && number == from.pack { from.offset } else { 0 };
        let dropped = file.file.drop_cached(start, file.len.saturating_sub(start));
        dropped.map_err(Error::io("read a pack past the cache"))?;
        match file.header().map_err(Error::io("read a pack"))? {
            PackHeader::Good(PackKind::Log) => {}
            PackHeader::Good(PackKind::Aux { .. }) => {
                tail.aux.insert(number);
                return Ok(());
            }
            PackHeader::Newer(version) => return Err(Error::Newer { pack: number, version }),
            PackHeader::Damaged => {
                tail.damaged_headers.push(number);
                if file.is_aux().map_err(Error::io("read a pack"))? {
                    tail.aux.insert(number);
                    return Ok(());
                }
            }
        }
        let walked = file.walk(start.max(PACK_HEADER_BYTES), u64::MAX);
        let (frames, gaps) = walked.map_err(Error::io("read a pack"))?;
        tail.gaps.extend(gaps.into_iter().map(|gap| (number, gap)));
        if frames.last().is_none_or(|last| last.header.kind != Kind::Footer) {
            tail.unsealed.push(number);
        }
        for found in frames {
            let record = match found.header.kind {
                Kind::Record => RecordHead::decode(found.list()),
                _ => None,
            };
            // A number that does not rise is none of this log's: passed over as damage.
            let known = tail.sequence;
            let record = record.filter(|record| known < record.sequence && record.is_possible());
            tail.sequence = record.as_ref().map_or(known, |record| record.sequence);
            tail.frames.push(Light {
                pack: number,
                offset: found.offset,
                end: found.end(),
                header_crc: found.header.header_crc,
                record,
            });
        }
        Ok(())
    }

    /// Returns which frame of the tail is the last commit record; `None` when that is `from`.
    fn choose(&self, tail: &Tail) -> Result<Option<usize>> {
        let mut records = (0..tail.frames.len())
            .rev()
            .filter_map(|at| position(tail, at).map(|position| (at, position.sequence)));
        let Some((last, sequence)) = records.next() else {
            return Ok(None);
        };
        let before = records.next();
        let known = before.map_or(self.from.sequence, |(_, sequence)| sequence);
        if known + 1 < sequence || self.group_is_whole(tail, last)? {
            return Ok(Some(last));
        }
        Ok(before.map(|(at, _)| at))
    }

    /// Whether the frames that a record vouches for are there, with sound payloads.
    ///
    /// Payloads in earlier packs need no reading: those packs were synced before the record was
    /// written.
    fn group_is_whole(&self, tail: &Tail, record_at: usize) -> Result<bool> {
        let Some((record, head)) = record_with_head(tail, record_at) else {
            return Ok(false);
        };
        let Some(group) = group_of(tail, record_at, head) else {
            return Ok(false);
        };
        let unsynced = group.iter().filter(|light| light.pack == record.pack);
        for light in unsynced.chain([record]) {
            let file = self.pack_file(light.pack)?;
            let action = "read the end of the log";
            let At::Frame(found) = file.at(light.offset).map_err(Error::io(action))? else {
                return Ok(false);
            };
            if !file.is_sound(&found).map_err(Error::io(action))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reports damage in front of `end`.
    fn report(&mut self, tail: &Tail, end: LogPosition) {
        let before = |pack: u64, offset: u64| (pack, offset) < (end.pack, end.offset);
        for (pack, gap) in &tail.gaps {
            if before(*pack, gap.start) {
                let (pack, start, end) = (*pack, gap.start, gap.end);
                self.findings.push(Finding::FramesDamaged { pack, start, end });
            }
        }
        let last = (0..tail.frames.len())
            .filter_map(|at| record_with_head(tail, at))
            .rfind(|(light, _)| (light.pack, light.end) == (end.pack, end.offset));
        let is_new = |pack: u64| last.is_some_and(|(_, head)| head.begun.contains(&pack));
        for pack in tail.damaged_headers.iter().filter(|pack| **pack <= end.pack) {
            if *pack == end.pack && is_new(*pack) {
                continue;
            }
            self.findings.push(Finding::HeaderDamaged { pack: *pack });
        }
        for pack in tail.unsealed.iter().filter(|pack| **pack < end.pack) {
            self.findings.push(Finding::FooterDamaged { pack: *pack });
        }
        let mut named: Vec<u64> = Vec::new();
        for at in 0..tail.frames.len() {
            let Some((light, head)) = record_with_head(tail, at) else { continue };
            if !before(light.pack, light.offset) {
                break;
            }
            named.extend(&head.begun);
            named.extend((self.from.pack <= head.previous_pack).then_some(head.previous_pack));
            if group_of(tail, at, head).is_none() {
                self.findings.push(Finding::GroupDamaged { sequence: head.sequence });
            }
        }
        named.sort_unstable();
        named.dedup();
        for pack in named.into_iter().filter(|pack| 0 < *pack) {
            self.listing.number_max = self.listing.number_max.max(pack);
            if self.listing.numbers.binary_search(&pack).is_err() {
                self.findings.push(Finding::PackMissing { pack });
            }
        }
    }

    /// Reads the entries of all records up to `end`; reports those that cannot be had.
    fn records(&mut self, tail: &Tail, end: LogPosition) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        let mut expected = self.from.sequence + 1;
        for at in 0..tail.frames.len() {
            let Some(position) = position(tail, at).filter(|position| *position <= end) else {
                continue;
            };
            for sequence in (expected..position.sequence).take(MISSING_MAX) {
                self.findings.push(Finding::RecordMissing { sequence });
            }
            expected = position.sequence + 1;
            let offset = tail.frames.get(at).map_or(0, |light| light.offset);
            match self.entries(position.pack, offset)? {
                Some(entries) => records.push(Record { position, entries }),
                None => {
                    self.findings.push(Finding::RecordMissing { sequence: position.sequence });
                }
            }
        }
        Ok(records)
    }

    fn entries(&self, pack: u64, offset: u64) -> Result<Option<Vec<u8>>> {
        let action = "read a commit record";
        let file = self.pack_file(pack)?;
        let At::Frame(found) = file.at(offset).map_err(Error::io(action))? else {
            return Ok(None);
        };
        let entries = file.payload(&found).map_err(Error::io(action))?;
        Ok((crc32c::crc32c(&entries) == found.header.payload_crc).then_some(entries))
    }

    /// Removes what lies behind `end`, and makes durable what is kept.
    fn cut(&mut self, tail: &Tail, end: LogPosition) -> Result<()> {
        let numbers = std::mem::take(&mut self.listing.numbers);
        let mut dirs = HashSet::new();
        for number in numbers {
            if number < self.from.pack || tail.aux.contains(&number) {
                self.listing.numbers.push(number);
                continue;
            }
            dirs.insert(pack::pack_dir(number));
            let path = pack::pack_path(number);
            if end.pack < number {
                let aside = format!("{path}.aside");
                self.disk.rename(&path, &aside).map_err(Error::io("set a pack aside"))?;
                self.findings.push(Finding::PackSetAside { pack: number });
                continue;
            }
            self.listing.numbers.push(number);
            let action = "cut the end of the log";
            let file = self.disk.open(&path, Access::Write).map_err(Error::io(action))?;
            let len = file.len().map_err(Error::io(action))?;
            if number == end.pack && end.offset < len {
                file.set_len(end.offset).map_err(Error::io(action))?;
                let bytes = len - end.offset;
                self.findings.push(Finding::TailCut { pack: number, offset: end.offset, bytes });
            }
            if number == end.pack && tail.damaged_headers.contains(&number) {
                // A power loss may lose it before the first sync of the pack, and keep a whole
                // group behind it. All that it says is known.
                let header = pack::encode_header(self.life(number), PackKind::Log);
                file.write_all_at(&header, 0).map_err(Error::io(action))?;
            }
            file.sync().map_err(Error::io("sync the end of the log"))?;
        }
        for dir in dirs {
            self.disk.sync_dir(&dir).map_err(Error::io("sync a directory of packs"))?;
        }
        self.disk.sync_dir(PACKS_DIR).map_err(Error::io("sync the directory of packs"))
    }

    /// Makes the log go on behind `end`.
    fn continue_log(&mut self, tail: &Tail, end: LogPosition, pack_bytes_max: u64) -> Result<Log> {
        let mut log = Log {
            disk: Arc::clone(&self.disk),
            volume_id: self.volume_id,
            pack_bytes_max,
            open: None,
            next_number: self.listing.number_max.max(self.from.pack) + 1,
            dirs: std::mem::take(&mut self.listing.dirs),
            head: RecordHead { sequence: end.sequence, ..RecordHead::default() },
            sealed_bytes: 0,
            packs: self.listing.numbers.len() as u64,
            last_sealed: self.listing.numbers.last().copied().unwrap_or(0),
        };
        for number in &self.listing.numbers {
            let file = self.pack_file(*number)?;
            if *number != end.pack {
                log.sealed_bytes += file.len;
                continue;
            }
            let walked = file.walk(PACK_HEADER_BYTES, end.offset);
            let (frames, gaps) = walked.map_err(Error::io("read the open pack"))?;
            let ends_well = frames.last().is_some_and(|last| last.end() == end.offset);
            if !ends_well || file.len != end.offset {
                // Damage at the very end: nobody appends to that.
                log.sealed_bytes += file.len;
                continue;
            }
            let in_tail = |gap: &Gap| tail.gaps.contains(&(*number, *gap));
            for Gap { start, end } in gaps.into_iter().filter(|gap| !in_tail(gap)) {
                self.findings.push(Finding::FramesDamaged { pack: *number, start, end });
            }
            let path = pack::pack_path(*number);
            let file = self.disk.open(&path, Access::Write).map_err(Error::io("open a pack"))?;
            let mut footer = Vec::new();
            for found in &frames {
                pack::footer_push(&mut footer, found.offset, &found.head);
            }
            log.head.previous_pack = *number;
            log.head.previous_offset = frames.last().map_or(0, |last| last.offset);
            let sealed = self.listing.numbers.iter().rfind(|sealed| *sealed < number);
            log.last_sealed = sealed.copied().unwrap_or(0);
            log.open = Some(OpenPack { number: *number, file, end: end.offset, footer });
        }
        self.check_from(end)?;
        Ok(log)
    }

    /// Reports when the record that ends at `from` is not there.
    fn check_from(&mut self, end: LogPosition) -> Result<()> {
        let from = self.from;
        if from.sequence == 0 {
            return Ok(());
        }
        assert!(from <= LogPosition { sequence: end.sequence, ..end }, "nothing up to `from` goes");
        let mut found = false;
        if self.listing.numbers.binary_search(&from.pack).is_ok() {
            let file = self.pack_file(from.pack)?;
            let frames = file.frames(from.offset).map_err(Error::io("read a pack"))?.0;
            found = frames.last().is_some_and(|last| {
                let head = RecordHead::decode(last.list());
                last.end() == from.offset
                    && last.header.kind == Kind::Record
                    && head.is_some_and(|head| head.sequence == from.sequence)
            });
        }
        if !found {
            self.findings.push(Finding::RecordMissing { sequence: from.sequence });
        }
        Ok(())
    }
}

/// Hands out the commit records behind `from`, up to the one that opening would take for the last;
/// changes nothing. Returns the position of that record, and which records are missing.
///
/// Beside one pack's frames and records it keeps only the end of the log in memory.
pub fn replay<E: From<Error>>(
    disk: &Arc<dyn Disk>,
    volume_id: [u8; 16],
    from: LogPosition,
    each: &mut dyn FnMut(&Record) -> std::result::Result<(), E>,
) -> std::result::Result<(LogPosition, Vec<Finding>), E> {
    let listing = list(&**disk)?;
    let (disk, findings, forgiving) = (Arc::clone(disk), Vec::new(), true);
    let mut recovery = Recovery { disk, volume_id, from, listing, findings, forgiving };
    let mut tail = Tail { sequence: from.sequence, ..Tail::default() };
    for number in recovery.numbers_from() {
        recovery.walk_pack(number, from, &mut tail)?;
        // The choice is between the last two records: all before them are settled.
        let mut records = (0..tail.frames.len()).rev().filter(|at| position(&tail, *at).is_some());
        if let Some(settled) = records.nth(2)
            && let Some(end) = position(&tail, settled)
        {
            recovery.records(&tail, end)?.iter().try_for_each(&mut *each)?;
            tail.frames.drain(..=settled);
            recovery.from = end;
        }
    }
    let chosen = recovery.choose(&tail)?.and_then(|chosen| position(&tail, chosen));
    let end = chosen.unwrap_or(recovery.from);
    recovery.records(&tail, end)?.iter().try_for_each(each)?;
    Ok((end, recovery.findings))
}

fn record_with_head(tail: &Tail, at: usize) -> Option<(&Light, &RecordHead)> {
    let light = tail.frames.get(at)?;
    Some((light, light.record.as_ref()?))
}

/// Returns the frames that a record vouches for, if its running checksum says they are the same.
fn group_of<'a>(tail: &'a Tail, record_at: usize, head: &RecordHead) -> Option<&'a [Light]> {
    let start = record_at.checked_sub(head.frames as usize)?;
    let group = tail.frames.get(start..record_at)?;
    let crc = group.iter().fold(0, |crc, light| run_on(crc, light.header_crc));
    let whole = crc == head.running_crc && group.iter().all(|light| light.record.is_none());
    whole.then_some(group)
}

/// Opens a pack for reading.
pub fn open_pack(disk: &dyn Disk, life: Life) -> Result<PackFile> {
    let opened: io::Result<PackFile> = disk
        .open(&pack::pack_path(life.pack), Access::Read)
        .and_then(|file| PackFile::new(file, life));
    opened.map_err(Error::io("open a pack"))
}

/// Loads the index, and completes it from the packs up to `end`.
fn complete(
    inner: &Inner,
    numbers: &[u64],
    end: LogPosition,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let damaged = inner.index.load(&*inner.disk, end).map_err(Error::io("load the index"))?;
    if damaged {
        findings.push(Finding::IndexRebuilt);
    }
    let covered = inner.index.covered_to();
    let mut sequence = covered.sequence;
    let mut early = Vec::new();
    for number in numbers.iter().filter(|number| covered.pack <= **number) {
        let pack_end = if *number == end.pack { end.offset } else { u64::MAX };
        // What is to be indexed was decided before: from here on damage is only passed over.
        let file = open_pack(&*inner.disk, inner.life(*number))?.forgiving();
        if file.is_empty() || file.is_aux().map_err(Error::io("read a pack"))? {
            continue;
        }
        let (frames, gaps) = file.frames(pack_end).map_err(Error::io("read a pack"))?;
        for Gap { start, end } in gaps {
            let finding = Finding::FramesDamaged { pack: *number, start, end };
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
        let start = if *number == covered.pack { covered.offset } else { 0 };
        let mut to = start;
        for found in frames.iter().filter(|found| start <= found.offset) {
            to = found.end();
            if found.header.kind == Kind::Record {
                let head = RecordHead::decode(found.list());
                let head = head.filter(RecordHead::is_possible);
                sequence = head.map_or(sequence, |head| head.sequence.max(sequence));
            }
            enter(inner, &file, found, &mut early, findings)?;
        }
        let position = LogPosition { pack: *number, offset: to, sequence };
        inner.index.committed(inner.index.mark(), position);
        // A run must not cover what is not entered yet.
        if early.is_empty() && inner.index.wants_run() {
            inner.index.save(&*inner.disk).map_err(|error| inner.run_failed(error))?;
        }
    }
    enter_early(inner, early, findings)?;
    if covered < end {
        inner.index.committed(inner.index.mark(), end);
    }
    Ok(())
}

/// Enters trees whose children lie behind them, as they do once a collection has moved them: again
/// and again, as long as there are some that have all of theirs.
fn enter_early(inner: &Inner, mut early: Vec<Early>, findings: &mut Vec<Finding>) -> Result<()> {
    loop {
        let before = early.len();
        let mut left = Vec::new();
        for one in early {
            let Early { address, at, bytes } = one;
            let tree = read_early(inner, &address, at)?;
            match is_closed(inner, tree.as_ref())? {
                true => inner.index.insert(&address, at, bytes),
                false => left.push(one),
            }
        }
        if left.is_empty() || left.len() == before {
            let lost = left.iter().map(|one| Finding::TreeLeftOut { address: one.address });
            findings.extend(lost);
            return Ok(());
        }
        early = left;
    }
}

fn read_early(inner: &Inner, address: &Address, at: Location) -> Result<Option<Tree>> {
    let frame = Location { slot: 0, ..at };
    if let Some(header) = inner.header(frame)?
        && let Some((entry, bytes)) = inner.verified_at(address, at, &header)?
    {
        return Ok(frame::decode_tree(&entry, &bytes));
    }
    inner.copy_from(at.pack, address)
}

/// A tree chunk that is met before its children.
struct Early {
    address: Address,
    at: Location,
    bytes: u64,
}

/// Enters the chunks of a frame into the index: tree chunks only with all their children.
fn enter(
    inner: &Inner,
    file: &PackFile,
    found: &Found,
    early: &mut Vec<Early>,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let header = &found.header;
    if !matches!(header.kind, Kind::Data | Kind::Tree) {
        return Ok(());
    }
    let at = Location { pack: file.life.pack, offset: found.offset, slot: 0 };
    inner.keep_header(at, Arc::new(header.clone()));
    let mut payload = Vec::new();
    let mut sound = true;
    if header.kind == Kind::Tree {
        payload = file.payload(found).map_err(Error::io("read a pack"))?;
        sound = crc32c::crc32c(&payload) == header.payload_crc;
        if !sound {
            let (pack, offset) = (at.pack, at.offset);
            findings.push(Finding::PayloadDamaged { pack, offset });
        }
    }
    for (slot, entry) in header.entries.iter().enumerate() {
        let copy = if sound { None } else { inner.copy_from(at.pack, &entry.address)? };
        let tree = copy.or_else(|| frame::decode_tree(entry, entry.slice(&payload)?));
        let location = Location { slot: slot as u8, ..at };
        if entry.children != 0 && !is_closed(inner, tree.as_ref())? {
            let (address, bytes) = (entry.address, entry.hashed_bytes());
            early.push(Early { address, at: location, bytes });
            continue;
        }
        inner.index.insert(&entry.address, location, entry.hashed_bytes());
    }
    Ok(())
}

/// Whether all children of a tree chunk are in the index, or are holes, or trees with a copy.
fn is_closed(inner: &Inner, tree: Option<&Tree>) -> Result<bool> {
    let Some(tree) = tree else {
        return Ok(false);
    };
    for (child, filled) in tree.children.iter().zip(&tree.filled) {
        let found = *filled == 0 || matches!(inner.locate(child, true)?, Lookup::Found(..));
        if !found && inner.second_copy(child)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}
