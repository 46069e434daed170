//! Repair: what can be restored is restored, and the rest is told.
//!
//! Owns [`repair`]. In this order: packs get back what follows from the rest of them; damaged and
//! missing tree chunks are stored anew from their second copies; what is lost after that is looked
//! for in the caller's sources; the entries of the metadata are made to agree ([`super::entries`]).
//!
//! Invariants: (1) nothing is stored under an address that it does not hash to; (2) what is taken
//! out of the metadata is told, entry by entry; (3) all of it is one or more ordinary commits: a
//! crash in between leaves a volume that can be repaired again.
//!
//! Memory: as for a check, and 40 bytes for each lost chunk.
//!
//! Absent on purpose: making the metadata again from the packs ([`crate::volume`]), and reading
//! the caller's files.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Finding, Progress, entries};
use crate::chunk::{Address, Sink, Source, Tree};
use crate::meta::{Content, Ino, KeyRange};
use crate::pyramid::{self, SplitError, Visit};
use crate::store::{self, Mended, VerifyStep};
use crate::sys::{Clock, Disk};
use crate::volume::{Error, OpenOptions, Volume, content_root};

/// Where bytes may lie that a volume has lost.
pub trait Sources {
    /// Hands the content of every file to `each`, one after the other.
    ///
    /// # Errors
    ///
    /// What cannot be read is for the caller to tell; an error ends the repair.
    fn files(&self, each: &mut EachFile<'_>) -> Result<(), Error>;

    /// Other volumes, open for reading.
    fn volumes(&self) -> &[Arc<Volume>];
}

/// Takes the content of one file.
pub type EachFile<'a> = dyn FnMut(&mut dyn Read) -> Result<(), Error> + 'a;

/// What a repair did.
#[derive(Debug, Default)]
pub struct Repaired {
    /// What opening found, and what only a repair passes over: commits that are lost.
    pub opening: Vec<Finding>,
    /// What was written again in its place.
    pub mended: Vec<Mended>,
    /// Tree chunks that were stored anew from their second copies.
    pub trees_from_copies: u64,
    /// Chunks that were found in the sources.
    pub chunks_from_sources: u64,
    /// Chunks that files need and nobody has.
    pub lost: u64,
    /// Changes of the metadata, one line each.
    pub changes: Vec<String>,
}

/// Repairs the volume on `disk`, which nobody else has open.
///
/// # Errors
///
/// When the volume cannot be opened at all, or the disk fails in a way that is no damage.
pub fn repair(
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    sources: &dyn Sources,
    progress: &mut dyn FnMut(Progress),
) -> Result<Repaired, Error> {
    let options = OpenOptions { background: false, repairing: true, ..OpenOptions::default() };
    let volume = Volume::open(disk, clock, options)?;
    let is_lost = |one: &store::Finding| matches!(one, store::Finding::RecordMissing { .. });
    let opening = volume.findings().iter().filter(|one| is_lost(one));
    let opening = opening.map(|one| Finding::Store(one.clone())).collect();
    let mended = volume.store().mend()?;
    let mut repaired = Repaired { opening, mended, ..Repaired::default() };
    volume.store().verify(0, true, &mut |step| {
        if let VerifyStep::Progress { bytes, bytes_total, .. } = step {
            let (done_bytes, total_bytes) = (bytes, bytes_total);
            progress(Progress { done_bytes, total_bytes, pack: 0, what: "packs and hashes" });
        }
        ControlFlow::Continue(())
    })?;
    let mut lost = Lost::of(&volume)?;
    repaired.trees_from_copies = lost.renew(&volume)?;
    // What was below a tree chunk shows only when that one is found.
    while !lost.chunks.is_empty() {
        let found = scavenge(&volume, &lost.chunks, sources)?;
        if found == 0 {
            break;
        }
        repaired.chunks_from_sources += found;
        volume.commit_chunks()?;
        lost = Lost::of(&volume)?;
        repaired.trees_from_copies += lost.renew(&volume)?;
    }
    repaired.lost = lost.chunks.len() as u64;
    repaired.changes = entries::repair(&volume)?;
    volume.commit_chunks()?;
    volume.close()?;
    Ok(repaired)
}

/// What files need and cannot have.
#[derive(Default)]
struct Lost {
    /// Lost chunks; whether they are tree chunks.
    chunks: BTreeMap<Address, bool>,
    /// Tree chunks that can be read, but not from a place that is offered.
    to_renew: HashSet<Address>,
}

impl Lost {
    /// Walks the trees of all files. The packs were verified before: whatever is damaged is known.
    fn of(volume: &Volume) -> Result<Lost, Error> {
        let mut lost = Lost::default();
        let mut seen = HashSet::new();
        let mut contents = Vec::new();
        volume.meta().scan(KeyRange::contents(Ino(0)), &mut |_, value| {
            // What cannot be read is taken out later.
            contents.extend(Content::decode(value));
            ControlFlow::Continue(())
        })?;
        for content in contents {
            lost.walk(volume, &content, &mut seen)?;
        }
        Ok(lost)
    }

    fn walk(
        &mut self,
        volume: &Volume,
        content: &Content,
        seen: &mut HashSet<Address>,
    ) -> Result<(), Error> {
        let store = volume.store();
        loop {
            let mut entered = HashSet::new();
            let mut failure = None;
            let walked =
                volume.pyramid().walk(store, &content_root(content), &mut |visit| match visit {
                    Visit::Enter { address, .. } => {
                        let skip = seen.contains(&address)
                            || self.chunks.contains_key(&address)
                            || !entered.insert(address);
                        match store.contains(&address) {
                            _ if skip => return false,
                            Ok(true) => {}
                            Ok(false) => drop(self.to_renew.insert(address)),
                            Err(error) => failure = Some(error),
                        }
                        failure.is_none()
                    }
                    Visit::Tree { .. } => failure.is_none(),
                    Visit::Data { address, .. } => {
                        match store.contains(&address) {
                            Ok(true) => {}
                            Ok(false) => drop(self.chunks.insert(address, false)),
                            Err(error) => failure = Some(error),
                        }
                        true
                    }
                });
            if let Some(error) = failure {
                return Err(error.into());
            }
            match walked {
                Ok(()) => {
                    seen.extend(entered);
                    return Ok(());
                }
                Err(pyramid::Error::Store(
                    store::Error::Missing { address } | store::Error::Damaged { address, .. },
                )) => {
                    self.to_renew.remove(&address);
                    if self.chunks.insert(address, true).is_some() {
                        return Ok(());
                    }
                }
                Err(pyramid::Error::Store(error)) => return Err(error.into()),
                // A tree of another shape: `check` names the file.
                Err(_) => return Ok(()),
            }
        }
    }

    /// Stores tree chunks anew that only their second copies have.
    fn renew(&mut self, volume: &Volume) -> Result<u64, Error> {
        let store = volume.store();
        let mut count = 0;
        for address in self.to_renew.drain() {
            let tree = store.tree(&address)?;
            store.put_tree(address, Tree::clone(&tree))?;
            count += 1;
        }
        Ok(count)
    }
}

/// Looks for lost chunks; returns how many were found and stored.
fn scavenge(
    volume: &Volume,
    lost: &BTreeMap<Address, bool>,
    sources: &dyn Sources,
) -> Result<u64, Error> {
    let scavenger = Scavenger { volume, lost, found: Mutex::default() };
    for other in sources.volumes() {
        for (address, is_tree) in lost {
            scavenger.ask(other.store(), address, *is_tree)?;
        }
    }
    sources.files(&mut |reader| {
        if scavenger.found.lock().len() == lost.len() {
            return Ok(());
        }
        match volume.pyramid().split(&scavenger, reader) {
            // A file that cannot be read to its end has given what it could.
            Ok(_) | Err(SplitError::Reader(_) | SplitError::TooLarge) => Ok(()),
            Err(SplitError::Tree(pyramid::Error::Store(error))) => Err(error.into()),
            Err(SplitError::Tree(_)) => Ok(()),
        }
    })?;
    let found = scavenger.found.lock().len() as u64;
    Ok(found)
}

/// Stores those of the chunks that come along which were lost.
struct Scavenger<'a> {
    volume: &'a Volume,
    lost: &'a BTreeMap<Address, bool>,
    found: Mutex<HashSet<Address>>,
}

impl Scavenger<'_> {
    fn wants(&self, address: &Address, is_tree: bool) -> bool {
        self.lost.get(address) == Some(&is_tree) && !self.found.lock().contains(address)
    }

    /// Asks another volume, whose answers are verified there.
    fn ask(&self, other: &store::Store, address: &Address, is_tree: bool) -> Result<(), Error> {
        if !self.wants(address, is_tree) {
            return Ok(());
        }
        let had = match is_tree {
            true => other.tree(address).and_then(|tree| {
                self.put_tree(*address, Tree::clone(&tree))?;
                Ok(())
            }),
            false => other.data(address).and_then(|bytes| self.put_data(&[(*address, &bytes)])),
        };
        match had {
            Err(store::Error::Missing { .. } | store::Error::Damaged { .. }) => Ok(()),
            had => Ok(had?),
        }
    }
}

impl Source for Scavenger<'_> {
    type Error = store::Error;

    fn tree(&self, address: &Address) -> Result<Arc<Tree>, store::Error> {
        Err(store::Error::Missing { address: *address })
    }

    fn data(&self, address: &Address) -> Result<Bytes, store::Error> {
        Err(store::Error::Missing { address: *address })
    }
}

impl Sink for Scavenger<'_> {
    fn put_data(&self, chunks: &[(Address, &[u8])]) -> Result<(), store::Error> {
        let profile = self.volume.superblock().profile;
        for (address, payload) in chunks.iter().filter(|(address, _)| self.wants(address, false)) {
            // Another volume may have another hash.
            if profile.address(payload.len() as u64, payload) == *address {
                self.volume.store().put_data(&[(*address, *payload)])?;
                self.found.lock().insert(*address);
            }
        }
        Ok(())
    }

    fn put_tree(&self, address: Address, tree: Tree) -> Result<(), store::Error> {
        let profile = self.volume.superblock().profile;
        let is_it = profile.address(tree.span, &tree.payload()) == address;
        if is_it && self.wants(&address, true) {
            self.volume.store().put_tree(address, tree)?;
            self.found.lock().insert(address);
        }
        Ok(())
    }
}
