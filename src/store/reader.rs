//! The way of chunks out of the packs.
//!
//! Owns finding a chunk (in flight, then in the index, each candidate confirmed), reading and
//! decoding frames, and verifying chunks against their addresses before they are handed out.
//!
//! Invariant: a chunk is handed out only when its hash was verified since its frame came into the
//! cache; chunks in flight were named by those who put them. Where a chunk is damaged, every other
//! place that has it is tried before the caller hears of it.
//!
//! Absent on purpose: writing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::frame::{self, Codec, Entry, Header, Kind, Life};
use super::pack::{self, PackFile};
use super::{Error, Inner, Location, Result};
use crate::chunk::{Address, Tree};
use crate::sys::{Access, DiskFile};

/// Frames of one pack are read with one call when they lie this close together.
const GAP_BYTES_MAX: u64 = 64 * 1024;
/// One call reads at most this much, unless one frame alone is longer.
const READ_BYTES_MAX: u64 = 1024 * 1024;

/// A decoded frame in the cache.
pub struct CachedFrame {
    header: Arc<Header>,
    payload: Bytes,
    /// One bit for each chunk that was verified.
    verified: [AtomicU64; 4],
}

impl CachedFrame {
    fn new(header: Arc<Header>, payload: Bytes) -> CachedFrame {
        CachedFrame { header, payload, verified: Default::default() }
    }

    fn chunk(&self, slot: u8) -> Option<(Entry, Bytes)> {
        let entry = *self.header.entries.get(usize::from(slot))?;
        let start = entry.start as usize;
        let end = start.checked_add(entry.len as usize)?;
        (end <= self.payload.len()).then(|| (entry, self.payload.slice(start..end)))
    }

    fn is_verified(&self, slot: u8) -> bool {
        let word = self.verified[usize::from(slot / 64)].load(Ordering::Acquire);
        word >> (slot % 64) & 1 == 1
    }

    fn set_verified(&self, slot: u8) {
        self.verified[usize::from(slot / 64)].fetch_or(1 << (slot % 64), Ordering::AcqRel);
    }
}

/// What is known about an address.
pub enum Lookup {
    /// It lies here, says the frame's own list.
    Found(Location, Arc<Header>),
    /// It lies here alone, and is known to be damaged.
    Bad(Location, Arc<Header>),
    /// It may lie here, but the frame's header cannot be read.
    Unreadable(Location),
    /// It is not stored.
    Unknown,
}

impl Inner {
    /// Returns the file of a pack; `None` when it is gone.
    pub(super) fn file(&self, number: u64) -> io::Result<Option<Arc<dyn DiskFile>>> {
        if let Some(file) = self.files.lock().get(&number) {
            return Ok(Some(Arc::clone(file)));
        }
        match self.disk.open(&pack::pack_path(number), Access::Read) {
            Ok(file) => {
                self.files.lock().put(number, Arc::clone(&file));
                Ok(Some(file))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn life(&self, pack: u64) -> Life {
        Life { volume_id: self.volume_id, pack }
    }

    /// Keeps the header of a frame that was just appended.
    pub(super) fn remember_header(&self, at: Location, bytes: &[u8]) {
        if let Ok(header) = frame::decode(bytes, self.life(at.pack).seed(at.offset)) {
            self.keep_header(at, Arc::new(header));
        }
    }

    pub(super) fn keep_header(&self, at: Location, header: Arc<Header>) {
        let weight = header.memory_bytes();
        self.headers.put(at.frame(), header, weight);
    }

    /// Returns the header of the frame at a location; `None` when there is none.
    pub(super) fn header(&self, at: Location) -> Result<Option<Arc<Header>>> {
        if let Some(header) = self.headers.get(&at.frame()) {
            return Ok(Some(header));
        }
        let Some(file) = self.file(at.pack).map_err(Error::io("open a pack"))? else {
            return Ok(None);
        };
        let pack = PackFile::new(file, self.life(at.pack)).map_err(Error::io("read a pack"))?;
        let pack = pack.forgiving();
        // One that reaches behind the end of the file was cut off there.
        let found = pack.probe(at.offset).map_err(Error::io("read a pack"))?;
        if let Some(found) = found.filter(|found| found.end() <= pack.len) {
            let header = Arc::new(found.header);
            self.keep_header(at, Arc::clone(&header));
            return Ok(Some(header));
        }
        self.repeated_header(&pack, at)
    }

    /// Returns what the footer of a sealed pack repeats of a frame whose header is damaged.
    fn repeated_header(&self, pack: &PackFile, at: Location) -> Result<Option<Arc<Header>>> {
        let frames = pack.footer().map_err(Error::io("read a pack"))?;
        let mut wanted = None;
        for found in frames.unwrap_or_default() {
            let place = Location { offset: found.offset, ..at };
            let header = Arc::new(found.header);
            if found.offset == at.offset {
                wanted = Some(Arc::clone(&header));
            }
            // The pack's other frames may be as bad: the footer is not read for each of them.
            self.keep_header(place, header);
        }
        Ok(wanted)
    }

    /// Confirms candidates, of which `offered` says whether they count; the first whose frame names
    /// the address is the answer, unless it is known to be damaged there.
    fn confirm(
        &self,
        address: &Address,
        candidates: &[Location],
        offered: &mut dyn FnMut(Location) -> bool,
    ) -> Result<Lookup> {
        let mut second = Lookup::Unknown;
        for at in candidates {
            match self.header(*at)? {
                Some(header) => {
                    let entry = header.entries.get(usize::from(at.slot));
                    if entry.is_none_or(|entry| entry.address != *address) || !offered(*at) {
                        continue;
                    }
                    if !self.bad.has(*at) {
                        return Ok(Lookup::Found(*at, header));
                    }
                    second = Lookup::Bad(*at, header);
                }
                None if matches!(second, Lookup::Bad(..)) || !self.index.has_pack(at.pack) => {}
                None => second = Lookup::Unreadable(*at),
            }
        }
        Ok(second)
    }

    /// Finds a chunk that is not in flight; with `runs`, on the disk too when memory has not all.
    pub(super) fn locate(&self, address: &Address, runs: bool) -> Result<Lookup> {
        loop {
            let removals = self.index.removals();
            let found = self.locate_once(address, runs)?;
            // Its pack may have gone after it was named, and before it was opened.
            if matches!(found, Lookup::Found(..)) || removals == self.index.removals() {
                return Ok(found);
            }
        }
    }

    fn locate_once(&self, address: &Address, runs: bool) -> Result<Lookup> {
        let all = &mut |_| true;
        let first = self.confirm(address, &self.index.candidates(address), all)?;
        if matches!(first, Lookup::Found(..)) || !runs {
            return Ok(first);
        }
        let candidates =
            self.index.run_candidates(address).map_err(|error| self.run_failed(error))?;
        match self.confirm(address, &candidates, all)? {
            Lookup::Unknown => Ok(first),
            Lookup::Unreadable(_) if matches!(first, Lookup::Bad(..)) => Ok(first),
            second => Ok(second),
        }
    }

    /// Finds the newest good place of a chunk in a pack below `below`.
    pub(super) fn newest(&self, address: &Address, below: u64) -> Result<Lookup> {
        let mut candidates = self.index.candidates(address);
        let on_disk = self.index.run_candidates(address).map_err(|error| self.run_failed(error))?;
        candidates.extend(on_disk);
        candidates.retain(|at| at.pack < below);
        candidates.sort_unstable();
        candidates.dedup();
        candidates.reverse();
        self.confirm(address, &candidates, &mut |_| true)
    }

    /// Returns a tree chunk for somebody who passes by all of them: the cache keeps what it has.
    pub(super) fn tree_in_passing(&self, address: &Address) -> Result<Arc<Tree>> {
        match self.trees.get(address) {
            Some(tree) => Ok(tree),
            None => self.tree_of_packs(address),
        }
    }

    fn tree_of_packs(&self, address: &Address) -> Result<Arc<Tree>> {
        let tree = self.first_copy(address).or_else(|error| match self.second_copy(address) {
            Ok(Some(tree)) => Ok(tree),
            _ => Err(error),
        })?;
        Ok(Arc::new(tree))
    }

    /// Puts what is not stored yet of some data chunks.
    pub(super) fn put_data(&self, chunks: &[(Address, &[u8])]) -> Result<()> {
        let mut rest = chunks.to_vec();
        while !rest.is_empty() {
            let mut fresh = Vec::with_capacity(rest.len());
            let mut seen = Vec::with_capacity(rest.len());
            let hook = self.collecting.hook();
            for (address, payload) in rest {
                let candidates = self.index.candidates(&address);
                let offered = &mut |at| hook.offers(self, at);
                if !matches!(self.confirm(&address, &candidates, offered)?, Lookup::Found(..)) {
                    fresh.push((address, payload));
                    seen.push(candidates.len());
                }
            }
            drop(hook);
            if fresh.is_empty() {
                return Ok(());
            }
            let again = self.add_data(&fresh, &seen)?;
            rest = again.into_iter().filter_map(|position| fresh.get(position).copied()).collect();
        }
        Ok(())
    }

    /// Puts a tree chunk unless it is stored.
    pub(super) fn put_tree(&self, address: Address, tree: Tree) -> Result<()> {
        assert_eq!(tree.children.len(), tree.filled.len(), "a count for each child");
        let children = tree.children.len();
        assert!(0 < children && children <= usize::from(u16::MAX), "a tree chunk has children");
        loop {
            let hook = self.collecting.hook();
            let candidates = self.index.candidates(&address);
            let found = self.confirm(&address, &candidates, &mut |at| hook.offers(self, at))?;
            drop(hook);
            if matches!(found, Lookup::Found(..)) {
                return Ok(());
            }
            if self.add_tree(address, &tree, candidates.len())? {
                self.keep_tree(address, Arc::new(tree));
                return Ok(());
            }
        }
    }

    fn keep_tree(&self, address: Address, tree: Arc<Tree>) {
        let weight = 128 + tree.children.len() * (size_of::<Address>() + size_of::<u64>());
        self.trees.put(address, tree, weight as u64);
    }

    /// Returns a tree chunk.
    pub(super) fn tree(&self, address: &Address) -> Result<Arc<Tree>> {
        if let Some(tree) = self.trees.get(address) {
            return Ok(tree);
        }
        let tree = self.tree_of_packs(address)?;
        self.keep_tree(*address, Arc::clone(&tree));
        Ok(tree)
    }

    fn first_copy(&self, address: &Address) -> Result<Tree> {
        let (entry, bytes, location) = self.chunk_at(address)?;
        let decoded = if entry.children == 0 { None } else { frame::decode_tree(&entry, &bytes) };
        match (decoded, location) {
            (Some(tree), _) => Ok(tree),
            (None, Some(location)) => Err(Error::Damaged { address: *address, location }),
            (None, None) => Err(Error::Missing { address: *address }),
        }
    }

    /// Returns a data chunk: its item of the list and its bytes.
    pub(super) fn chunk(&self, address: &Address) -> Result<(Entry, Bytes)> {
        let (entry, bytes, _) = self.chunk_at(address)?;
        if entry.children != 0 {
            return Err(Error::Missing { address: *address });
        }
        Ok((entry, bytes))
    }

    fn chunk_at(&self, address: &Address) -> Result<(Entry, Bytes, Option<Location>)> {
        if let Some((entry, bytes)) = self.pipeline.get(address) {
            return Ok((entry, bytes, None));
        }
        let (at, header) = self.require(address)?;
        self.verified(address, at, &header)
    }

    fn require(&self, address: &Address) -> Result<(Location, Arc<Header>)> {
        match self.locate(address, true)? {
            Lookup::Found(at, header) | Lookup::Bad(at, header) => Ok((at, header)),
            Lookup::Unreadable(location) => Err(Error::Damaged { address: *address, location }),
            Lookup::Unknown => Err(Error::Missing { address: *address }),
        }
    }

    /// Returns a chunk, verified, from this place or, where it is damaged, from any other.
    fn verified(
        &self,
        address: &Address,
        at: Location,
        header: &Arc<Header>,
    ) -> Result<(Entry, Bytes, Option<Location>)> {
        let (mut at, mut header) = (at, Arc::clone(header));
        loop {
            let was_bad = self.bad.has(at);
            if let Some((entry, bytes)) = self.verified_at(address, at, &header)? {
                self.bad.leave(at);
                return Ok((entry, bytes, Some(at)));
            }
            let is_gone = !self.index.has_pack(at.pack);
            if !is_gone {
                self.bad.enter(*address, at);
            }
            match self.locate(address, true)? {
                // Each round makes one more place bad; were the set full, this one came again.
                Lookup::Found(next, other) if !was_bad && next != at => {
                    (at, header) = (next, other);
                }
                _ => return Err(Error::Damaged { address: *address, location: at }),
            }
        }
    }

    /// Whether a chunk can be read from another place than this one.
    pub(super) fn is_elsewhere(&self, address: &Address, damaged: Location) -> Result<bool> {
        match self.locate(address, true)? {
            Lookup::Found(at, header) if at != damaged => {
                Ok(self.verified(address, at, &header).is_ok())
            }
            _ => Ok(false),
        }
    }

    /// Returns a chunk from its frame, if it is right there; a second try goes past the page cache.
    ///
    /// A sector that the disk cannot read is as good as a wrong one.
    pub(super) fn verified_at(
        &self,
        address: &Address,
        at: Location,
        header: &Arc<Header>,
    ) -> Result<Option<(Entry, Bytes)>> {
        let cached = self.frames.get(&at.frame());
        for attempt in 0..2 {
            let frame = match (&cached, attempt) {
                (Some(frame), 0) => Some(Arc::clone(frame)),
                _ => self.load(at, header, attempt > 0)?,
            };
            let Some(frame) = frame else { continue };
            let Some((entry, bytes)) = frame.chunk(at.slot) else { continue };
            if frame.is_verified(at.slot) || self.matches(address, &entry, &bytes) {
                frame.set_verified(at.slot);
                return Ok(Some((entry, bytes)));
            }
        }
        self.frames.remove(&at.frame());
        Ok(None)
    }

    fn matches(&self, address: &Address, entry: &Entry, bytes: &[u8]) -> bool {
        entry
            .hashed(bytes)
            .is_some_and(|hashed| self.profile.address(entry.span, hashed) == *address)
    }

    /// Reads one frame into the cache; `None` when it cannot be decoded.
    fn load(
        &self,
        at: Location,
        header: &Arc<Header>,
        fresh: bool,
    ) -> Result<Option<Arc<CachedFrame>>> {
        let Some(file) = self.file(at.pack).map_err(Error::io("open a pack"))? else {
            return Ok(None);
        };
        let offset = at.offset + header.head_bytes();
        if fresh {
            let dropped = file.drop_cached(at.offset, header.frame_bytes());
            dropped.map_err(Error::io("read a pack past the cache"))?;
        }
        let stored = pack::read_forgiving(&*file, offset, header.stored_bytes as usize);
        let stored = stored.map_err(Error::io("read a pack"))?;
        Ok(self.keep_frame(at, header, stored))
    }

    fn keep_frame(
        &self,
        at: Location,
        header: &Arc<Header>,
        stored: Vec<u8>,
    ) -> Option<Arc<CachedFrame>> {
        let payload = decode_payload(header, stored)?;
        let weight = payload.len() as u64 + header.memory_bytes();
        let frame = Arc::new(CachedFrame::new(Arc::clone(header), payload));
        self.frames.put(at.frame(), Arc::clone(&frame), weight);
        Some(frame)
    }

    /// Hands out many data chunks, frame by frame.
    pub(super) fn data_many(
        &self,
        addresses: &[Address],
        each: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<()> {
        let mut wanted: Vec<Wanted> = Vec::with_capacity(addresses.len());
        for (position, address) in addresses.iter().enumerate() {
            if let Some((entry, bytes)) = self.pipeline.get(address) {
                if entry.children != 0 {
                    return Err(Error::Missing { address: *address });
                }
                each(position, &bytes);
                continue;
            }
            let (at, header) = self.require(address)?;
            if header.kind != Kind::Data {
                return Err(Error::Missing { address: *address });
            }
            wanted.push(Wanted { at, header, position, address: *address });
        }
        wanted.sort_by_key(|wanted| wanted.at);
        for reach in reaches(&wanted) {
            self.read_reach(reach, each)?;
        }
        Ok(())
    }

    /// Reads what lies close together, with one call when more than one frame is not cached.
    fn read_reach(&self, reach: &[Wanted], each: &mut dyn FnMut(usize, &[u8])) -> Result<()> {
        let groups: Vec<&[Wanted]> = reach.chunk_by(|a, b| a.at.frame() == b.at.frame()).collect();
        let mut frames: Vec<Option<Arc<CachedFrame>>> = groups
            .iter()
            .map(|group| group.first().and_then(|wanted| self.frames.get(&wanted.at.frame())))
            .collect();
        self.fill(&groups, &mut frames)?;
        for (group, frame) in groups.iter().zip(frames) {
            self.hand_out(group, frame, each)?;
        }
        Ok(())
    }

    fn fill(&self, groups: &[&[Wanted]], frames: &mut [Option<Arc<CachedFrame>>]) -> Result<()> {
        let missing: Vec<usize> = (0..frames.len())
            .filter(|position| matches!(frames.get(*position), Some(None)))
            .collect();
        let wanted = |position: &usize| groups.get(*position).and_then(|group| group.first());
        let (Some(first), Some(last)) =
            (missing.first().and_then(wanted), missing.last().and_then(wanted))
        else {
            return Ok(());
        };
        let Some(file) = self.file(first.at.pack).map_err(Error::io("open a pack"))? else {
            return Ok(());
        };
        let start = first.at.offset + first.header.head_bytes();
        let end = last.at.offset + last.header.head_bytes() + u64::from(last.header.stored_bytes);
        let bytes = pack::read_forgiving(&*file, start, (end - start) as usize);
        let bytes = Bytes::from(bytes.map_err(Error::io("read a pack"))?);
        for position in missing {
            let (Some(wanted), Some(frame)) = (wanted(&position), frames.get_mut(position)) else {
                continue;
            };
            let from = (wanted.at.offset + wanted.header.head_bytes() - start) as usize;
            let to = from + wanted.header.stored_bytes as usize;
            if let Some(stored) = bytes.get(from..to) {
                *frame = self.keep_frame(wanted.at, &wanted.header, stored.to_vec());
            }
        }
        Ok(())
    }

    /// Verifies the wanted chunks of one frame side by side, and hands them out.
    fn hand_out(
        &self,
        group: &[Wanted],
        frame: Option<Arc<CachedFrame>>,
        each: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<()> {
        let mut good = vec![None; group.len()];
        if let Some(frame) = &frame {
            let chunks: Vec<Option<(Entry, Bytes)>> =
                group.iter().map(|wanted| frame.chunk(wanted.at.slot)).collect();
            let unverified: Vec<usize> = (0..group.len())
                .filter(|at| group.get(*at).is_some_and(|one| !frame.is_verified(one.at.slot)))
                .filter(|at| matches!(chunks.get(*at), Some(Some(_))))
                .collect();
            let to_hash: Vec<(u64, &[u8])> = unverified
                .iter()
                .filter_map(|at| chunks.get(*at)?.as_ref())
                .map(|(entry, bytes)| (entry.span, bytes.as_ref()))
                .collect();
            let hashes = self.profile.addresses(&to_hash);
            for (at, hash) in unverified.iter().zip(hashes) {
                if let Some(wanted) = group.get(*at)
                    && wanted.address == hash
                {
                    frame.set_verified(wanted.at.slot);
                }
            }
            for ((wanted, chunk), good) in group.iter().zip(chunks).zip(&mut good) {
                if frame.is_verified(wanted.at.slot) {
                    *good = chunk.map(|(_, bytes)| bytes);
                }
            }
        }
        for (wanted, good) in group.iter().zip(good) {
            match good {
                Some(bytes) => each(wanted.position, &bytes),
                None => {
                    let again = self.verified(&wanted.address, wanted.at, &wanted.header)?;
                    each(wanted.position, &again.1);
                }
            }
        }
        Ok(())
    }
}

/// A chunk that was asked for, and where it lies.
struct Wanted {
    at: Location,
    header: Arc<Header>,
    position: usize,
    address: Address,
}

/// Cuts sorted chunks into what is read with one call.
fn reaches(wanted: &[Wanted]) -> Vec<&[Wanted]> {
    let mut reaches = Vec::new();
    let mut rest = wanted;
    while let Some(first) = rest.first() {
        let mut end = first.at.offset + first.header.frame_bytes();
        let fits = |one: &&Wanted| {
            let one_end = one.at.offset + one.header.frame_bytes();
            let close = one.at.pack == first.at.pack
                && one.at.offset <= end + GAP_BYTES_MAX
                && (one_end - first.at.offset <= READ_BYTES_MAX
                    || one.at.offset == first.at.offset);
            end = end.max(one_end);
            close
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (reach, behind) = rest.split_at(count);
        reaches.push(reach);
        rest = behind;
    }
    reaches
}

/// Decodes the payload of a frame; `None` when it cannot be.
///
/// The side data of tree chunks is not hashed, so the frame's checksum has to vouch for it; data
/// chunks have their own hashes, and one damaged chunk does not take the others with it.
fn decode_payload(header: &Header, stored: Vec<u8>) -> Option<Bytes> {
    if stored.len() != header.stored_bytes as usize {
        return None;
    }
    if header.kind == Kind::Tree && crc32c::crc32c(&stored) != header.payload_crc {
        return None;
    }
    if header.codec == Codec::None {
        return Some(Bytes::from(stored));
    }
    frame::decompress(header.codec, &stored, header.raw_bytes).map(Bytes::from)
}
