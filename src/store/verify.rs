//! Walking all packs and reporting what is damaged.
//!
//! Owns the check of packs: headers, footers, checksums and, when asked for, every chunk's hash.
//! A damaged place whose chunk is right elsewhere is healed: nothing needs it, and it is counted
//! and not reported. What is found is entered among the damaged places, or taken out of them.
//!
//! Absent on purpose: repair, and whether chunks are referred to.

use std::ops::ControlFlow;

use super::frame::{self, Entry, Header, Kind};
use super::pack::{Found, Gap, PACK_HEADER_BYTES, PackFile, PackHeader};
use super::{BadChunk, Error, Finding, Inner, Location, Result, open};
use crate::chunk::Address;

/// What [`super::Store::verify`] has to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyStep {
    /// So far it has come, in bytes of packs.
    Progress {
        /// In this pack; all in front of it are done.
        pack: u64,
        /// Bytes that were checked.
        bytes: u64,
        /// Bytes that there are.
        bytes_total: u64,
    },
    /// Something is damaged.
    Found(Finding),
    /// A chunk is damaged in this place, and was stored anew in another.
    Healed(BadChunk),
}

/// How to tell somebody, and be told to stop.
type Step<'a> = &'a mut dyn FnMut(VerifyStep) -> ControlFlow<()>;

/// The caller wants no more, or an error ends it.
enum Stop {
    Asked,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Failed(error)
    }
}

type Walk<T> = std::result::Result<T, Stop>;

fn tell(step: Step<'_>, what: VerifyStep) -> Walk<()> {
    match step(what) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Stop::Asked),
    }
}

/// Walks all packs from number `first` on that are there now.
pub fn verify(inner: &Inner, first: u64, read_data: bool, step: Step<'_>) -> Result<()> {
    match walk(inner, first, read_data, step) {
        Ok(()) | Err(Stop::Asked) => Ok(()),
        Err(Stop::Failed(error)) => Err(error),
    }
}

fn walk(inner: &Inner, first: u64, read_data: bool, step: Step<'_>) -> Walk<()> {
    let (open_pack, open_end, next_number) = {
        let log = inner.log.lock();
        let open = log.open.as_ref().map_or((0, 0), |open| (open.number, open.end));
        (open.0, open.1, log.next_number)
    };
    let numbers = open::list(&*inner.disk)?.numbers;
    let mut packs = Vec::new();
    let mut bytes_total = 0;
    // Behind that number are packs that were begun since; an aux pack may go at any time.
    for number in numbers.into_iter().filter(|number| *number < next_number) {
        let Some(file) = inner.pack_if_there(number)? else { continue };
        let end = if number == open_pack { open_end } else { file.len };
        bytes_total += end;
        packs.push((number, end));
    }
    let mut bytes_before = 0;
    let mut last = 0;
    for (number, end) in packs {
        last = number;
        if number < first {
            bytes_before += end;
            continue;
        }
        let Some(file) = inner.pack_if_there(number)? else { continue };
        let mut check = Check { inner, file, read_data, bytes_before, bytes_total };
        check.pack(end, number == open_pack, step)?;
        bytes_before += end;
    }
    tell(step, VerifyStep::Progress { pack: last, bytes: bytes_total, bytes_total })
}

/// The check of one pack.
struct Check<'a> {
    inner: &'a Inner,
    file: PackFile,
    read_data: bool,
    bytes_before: u64,
    bytes_total: u64,
}

impl Check<'_> {
    fn pack(&mut self, end: u64, is_open: bool, step: Step<'_>) -> Walk<()> {
        let pack = self.file.life.pack;
        let read = Error::io("read a pack");
        if self.file.is_empty() {
            return Ok(());
        }
        match self.file.header().map_err(&read)? {
            PackHeader::Good(_) => {}
            PackHeader::Newer(version) => return Err(Error::Newer { pack, version }.into()),
            PackHeader::Damaged => {
                tell(step, VerifyStep::Found(Finding::HeaderDamaged { pack }))?;
            }
        }
        let (frames, gaps) = self.file.walk(PACK_HEADER_BYTES, end).map_err(&read)?;
        for Gap { start, end } in gaps.iter().copied() {
            tell(step, VerifyStep::Found(Finding::FramesDamaged { pack, start, end }))?;
        }
        let footer = self.file.footer().map_err(&read)?.unwrap_or_default();
        if !is_open {
            // The footer has to repeat exactly what is in front of it.
            let is_other = |found: &&Found| found.header.kind != Kind::Footer;
            let heads = frames.iter().filter(is_other).map(|found| (found.offset, &found.head));
            if !heads.eq(footer.iter().map(|found| (found.offset, &found.head))) {
                tell(step, VerifyStep::Found(Finding::FooterDamaged { pack }))?;
            }
        }
        // In a gap it is the footer that says what was there.
        let in_gap = |found: &&Found| gaps.iter().any(|gap| gap.contains(found.offset));
        for found in frames.iter().chain(footer.iter().filter(in_gap)) {
            self.frame(found, step)?;
            let (bytes, bytes_total) = (self.bytes_before + found.end(), self.bytes_total);
            tell(step, VerifyStep::Progress { pack, bytes, bytes_total })?;
        }
        Ok(())
    }

    fn frame(&self, found: &Found, step: Step<'_>) -> Walk<()> {
        let (pack, offset) = (self.file.life.pack, found.offset);
        let header = &found.header;
        let (stored, sound) = self.payload(found)?;
        if header.entries.is_empty() {
            if !sound {
                tell(step, VerifyStep::Found(Finding::PayloadDamaged { pack, offset }))?;
            }
            return Ok(());
        }
        if sound && !self.read_data {
            return Ok(());
        }
        let raw = frame::decompress(header.codec, &stored, header.raw_bytes);
        // The side data of trees is in no hash.
        let wrong: Vec<(u8, Address)> = match header.kind == Kind::Tree && !sound {
            true => slots(header).map(|(slot, entry)| (slot, entry.address)).collect(),
            false => self.wrong_chunks(header, raw.as_deref().unwrap_or_default()),
        };
        // Its copies are read through no index, and what they are for is not to be needed.
        let is_aux = self.file.is_aux().map_err(Error::io("read a pack"))?;
        let mut in_use = false;
        for (slot, entry) in slots(header) {
            let location = Location { pack, offset, slot };
            let address = entry.address;
            let is_wrong = wrong.contains(&(slot, address));
            match (is_wrong, is_aux) {
                (false, _) => self.inner.bad.leave(location),
                (true, false) => self.inner.bad.enter(address, location),
                (true, true) => {}
            }
            if !is_wrong {
                continue;
            }
            let told = match !is_aux && self.inner.is_elsewhere(&address, location)? {
                true => VerifyStep::Healed(BadChunk { address, location }),
                false => VerifyStep::Found(Finding::ChunkDamaged { address, location }),
            };
            in_use |= matches!(told, VerifyStep::Found(_));
            tell(step, told)?;
        }
        if !sound && (in_use || wrong.is_empty()) {
            tell(step, VerifyStep::Found(Finding::PayloadDamaged { pack, offset }))?;
        }
        Ok(())
    }

    /// Returns the payload of a frame as it is stored, and whether its checksum fits; read a
    /// second time, past the page cache, when it does not.
    fn payload(&self, found: &Found) -> Walk<(Vec<u8>, bool)> {
        let (header, file) = (&found.header, &self.file);
        let mut stored = Vec::new();
        for attempt in 0..2 {
            if attempt > 0 {
                let dropped = file.file.drop_cached(found.offset, header.frame_bytes());
                dropped.map_err(Error::io("read a pack past the cache"))?;
            }
            stored = file.payload(found).map_err(Error::io("read a pack"))?;
            let whole = stored.len() == header.stored_bytes as usize;
            if whole && crc32c::crc32c(&stored) == header.payload_crc {
                return Ok((stored, true));
            }
        }
        Ok((stored, false))
    }

    fn wrong_chunks(&self, header: &Header, raw: &[u8]) -> Vec<(u8, Address)> {
        let hashed: Vec<Option<(u64, &[u8])>> = header
            .entries
            .iter()
            .map(|entry| Some((entry.span, entry.hashed(entry.slice(raw)?)?)))
            .collect();
        let present: Vec<(u64, &[u8])> = hashed.iter().flatten().copied().collect();
        let mut addresses = self.inner.profile.addresses(&present).into_iter();
        let mut wrong = Vec::new();
        for ((slot, entry), hashed) in slots(header).zip(&hashed) {
            let address = hashed.and_then(|_| addresses.next());
            if address != Some(entry.address) {
                wrong.push((slot, entry.address));
            }
        }
        wrong
    }
}

/// The items of a frame's list, at most 255, with their slots.
fn slots(header: &Header) -> impl Iterator<Item = (u8, &Entry)> {
    header.entries.iter().enumerate().map(|(slot, entry)| (slot as u8, entry))
}
