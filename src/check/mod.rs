//! Checking a volume: one function for each invariant, findings as values.
//!
//! Owns [`run`] and [`online`], and [`repair`] in files of its own. The first opens the volume for
//! reading over a disk that keeps changes in memory, so that nothing on the disk changes; the
//! second takes one that is in use. Both look at the packs, the metadata and the trees, in this
//! order.
//!
//! Memory: about 40 bytes an inode and 32 bytes a tree chunk.
//!
//! Absent on purpose: how findings are printed.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::chunk::{Address, Source};
use crate::meta::{
    CodecError, Content, Cookie, Counters, Ino, Inode, Key, KeyRange, NameEntry, Reading, version,
};
use crate::pyramid::{self, Visit};
use crate::store::{self, VerifyStep};
use crate::sys::{Clock, Disk};
use crate::volume::{Error, MODE_DIR, MODE_FILE, MODE_TYPE, OpenOptions, Volume, content_root};

mod entries;
mod finding;
mod repair;
mod scrub;
#[cfg(test)]
mod tests;

pub use finding::Finding;
pub use repair::{EachFile, Repaired, Sources, repair};
pub use scrub::{Figures, Schedule, Scrub};

/// How far a check has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Done so far, in the unit of `total_bytes`.
    pub done_bytes: u64,
    /// All there is to do in this part.
    pub total_bytes: u64,
    /// The pack that is looked at; 0 in other parts.
    pub pack: u64,
    /// The part.
    pub what: &'static str,
}

/// What a check found.
#[derive(Debug)]
pub struct Report {
    /// What is out of order; empty for a volume in order.
    pub findings: Vec<Finding>,
    /// Inodes that were looked at.
    pub files: u64,
    /// Chunks in the packs.
    pub chunks: u64,
    /// Bytes of the packs.
    pub bytes: u64,
    /// Damaged places whose chunks were stored anew elsewhere: nothing needs them.
    pub healed: u64,
    /// Whether it was ended before all was looked at.
    pub stopped: bool,
}

/// Told how far a check has come; may end it.
pub type Step<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// Checks the volume on `disk`, which keeps changes in memory. With `read_data` every chunk is
/// read and hashed.
///
/// # Errors
///
/// When the volume cannot be opened at all, or the disk fails in a way that is no damage.
pub fn run(
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    read_data: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, Error> {
    let options = OpenOptions { read_only: true, background: false, ..OpenOptions::default() };
    let volume = Volume::open(disk, clock, options)?;
    let findings = volume.findings().iter().filter_map(Finding::at_opening).collect();
    let mut step = |at| {
        progress(at);
        ControlFlow::Continue(())
    };
    let report = Check::new(&volume, volume.meta(), findings).all(0, read_data, &mut step)?;
    volume.close()?;
    Ok(report)
}

/// Checks a volume while it is in use: its packs from number `first` on, and its metadata as it
/// stands when they are done.
///
/// What is damaged is entered among the damaged places on the way, so that it is not offered for
/// dedup any more.
///
/// # Errors
///
/// When the disk fails in a way that is no damage, and when the volume is closed meanwhile.
pub fn online(
    volume: &Volume,
    first: u64,
    read_data: bool,
    step: &mut Step<'_>,
) -> Result<Report, Error> {
    let mut packs = Check::new(volume, volume.meta(), Vec::new());
    packs.packs(first, read_data, step)?;
    let (findings, bytes, healed) = (packs.findings, packs.bytes, packs.healed);
    if packs.stopped {
        let chunks = volume.store().stats().chunks;
        return Ok(Report { findings, files: 0, chunks, bytes, healed, stopped: true });
    }
    volume.sync()?;
    // What it names stays where it is, whatever is removed meanwhile.
    let _visit = volume.store().visit();
    let frozen = volume.meta().frozen()?;
    let doubts = !findings.is_empty();
    let check = Check { bytes, healed, doubts, ..Check::new(volume, &frozen, findings) };
    check.metadata(step)
}

/// What the metadata says of an inode, and what was counted.
struct Known {
    mode: u32,
    nlink: u32,
    size: u64,
    parent: Ino,
    names: u32,
    /// Where its last name stands.
    named_in: Ino,
    subdirs: u32,
    orphan: bool,
}

/// Looks at one entry; the error says why it cannot be read.
type EachEntry<'a, C> = dyn FnMut(&mut C, &Key<'_>, &[u8]) -> Result<(), CodecError> + 'a;

struct Check<'a> {
    volume: &'a Volume,
    meta: &'a dyn Reading,
    findings: Vec<Finding>,
    inodes: HashMap<Ino, Known>,
    logical: u64,
    /// Whether chunks are read once more, to name the files: something is amiss in the packs, and
    /// the index may say where a chunk lay that is no longer there.
    doubts: bool,
    healed: u64,
    /// Of the packs.
    bytes: u64,
    /// The highest epoch that an entry names.
    epochs: u64,
    stopped: bool,
}

/// What trees showed so far.
#[derive(Default)]
struct Trees {
    /// Tree chunks that were walked.
    seen: HashSet<Address>,
    /// Those of them with damage below: walked again for each file that shares them.
    hurt: HashSet<Address>,
}

impl<'a> Check<'a> {
    fn new(volume: &'a Volume, meta: &'a dyn Reading, findings: Vec<Finding>) -> Check<'a> {
        Check {
            volume,
            meta,
            findings,
            inodes: HashMap::new(),
            logical: 0,
            doubts: false,
            healed: 0,
            bytes: 0,
            epochs: 0,
            stopped: false,
        }
    }

    fn all(mut self, first: u64, read_data: bool, step: &mut Step<'_>) -> Result<Report, Error> {
        self.packs(first, read_data, step)?;
        self.metadata(step)
    }

    /// All but the packs.
    fn metadata(mut self, step: &mut Step<'_>) -> Result<Report, Error> {
        self.inodes()?;
        self.names()?;
        self.link_counts();
        self.directories();
        self.xattrs()?;
        let mut trees = Trees::default();
        self.contents(&mut trees, step)?;
        if !self.stopped {
            self.versions(&mut trees, step)?;
        }
        // Of these it is enough that they can be read.
        KeyRange::others()
            .into_iter()
            .try_for_each(|range| self.scan(range, &mut |_, _, _| Ok(())))?;
        if !self.stopped {
            self.counters()?;
        }
        Ok(Report {
            files: self.inodes.len() as u64,
            chunks: self.volume.store().stats().chunks,
            bytes: self.bytes,
            healed: self.healed,
            findings: self.findings,
            stopped: self.stopped,
        })
    }

    /// Packs: headers, footers, checksums and, when asked for, the hash of every chunk.
    fn packs(&mut self, first: u64, read_data: bool, step: &mut Step<'_>) -> Result<(), Error> {
        self.volume.store().verify(first, read_data, &mut |found| {
            match found {
                VerifyStep::Progress { pack, bytes, bytes_total } => {
                    self.bytes = bytes_total;
                    let what = if read_data { "packs and hashes" } else { "packs" };
                    let at = Progress { done_bytes: bytes, total_bytes: bytes_total, pack, what };
                    self.stopped = step(at).is_break();
                }
                VerifyStep::Found(finding) => self.findings.push(Finding::Store(finding)),
                VerifyStep::Healed(_) => self.healed += 1,
            }
            if self.stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        self.doubts = !self.findings.is_empty();
        Ok(())
    }

    fn scan(&mut self, range: KeyRange, each: &mut EachEntry<'_, Self>) -> Result<(), Error> {
        let meta = self.meta;
        meta.scan(range, &mut |key, value| {
            let taken = Key::decode(key).and_then(|key| each(self, &key, value));
            if let Err(error) = taken {
                self.findings.push(Finding::Entry { key: key.to_vec(), why: error.to_string() });
            }
            ControlFlow::Continue(())
        })?;
        Ok(())
    }

    /// Every inode can be read; those without names are orphans and only those.
    fn inodes(&mut self) -> Result<(), Error> {
        self.scan(KeyRange::inodes(Ino(0)), &mut |check, key, value| {
            let (Key::Inode(ino), inode) = (key, Inode::decode(value)?) else { return Ok(()) };
            check.epochs = check.epochs.max(inode.epoch);
            let known = Known {
                mode: inode.mode,
                nlink: inode.nlink,
                size: inode.size,
                parent: inode.parent,
                names: 0,
                named_in: Ino(0),
                subdirs: 0,
                orphan: false,
            };
            check.inodes.insert(*ino, known);
            Ok(())
        })?;
        self.scan(KeyRange::orphans(), &mut |check, key, _| {
            if let Key::Orphan(ino) = key {
                match check.inodes.get_mut(ino) {
                    Some(known) => known.orphan = true,
                    None => check.findings.push(Finding::OrphanWithoutInode { ino: ino.0 }),
                }
            }
            Ok(())
        })
    }

    /// Every name leads to an inode of its type, and stands where its hash says.
    fn names(&mut self) -> Result<(), Error> {
        let key = self.volume.superblock().uuid;
        self.scan(KeyRange::all_names(), &mut |check, name_key, value| {
            let (Key::Name { dir, cookie }, entry) = (name_key, NameEntry::decode(value)?) else {
                return Ok(());
            };
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            if Cookie::hash(key, &entry.name) != cookie.first() {
                check.findings.push(Finding::NameMisplaced { dir: dir.0, name: name.clone() });
            }
            let is_dir = u32::from(entry.kind) << 12 == MODE_DIR;
            match check.inodes.get_mut(&entry.ino) {
                Some(known) if known.mode & MODE_TYPE == u32::from(entry.kind) << 12 => {
                    known.names += 1;
                    known.named_in = *dir;
                }
                _ => {
                    let finding = Finding::NameLeadsNowhere { dir: dir.0, name, ino: entry.ino.0 };
                    check.findings.push(finding);
                }
            }
            match check.inodes.get_mut(dir) {
                Some(known) if known.mode & MODE_TYPE == MODE_DIR => {
                    known.subdirs += u32::from(is_dir);
                }
                _ => check.findings.push(Finding::NameInNoDirectory { dir: dir.0 }),
            }
            Ok(())
        })
    }

    /// Link counts are the number of names; directories count their own.
    fn link_counts(&mut self) {
        for (&ino, known) in &self.inodes {
            let is_dir = known.mode & MODE_TYPE == MODE_DIR;
            let expected = match is_dir {
                true if known.names == 0 && ino != Ino::ROOT => 0,
                true => 2 + known.subdirs,
                false => known.names,
            };
            if known.nlink != expected || known.orphan != (expected == 0) {
                self.findings.push(Finding::LinkCount {
                    ino: ino.0,
                    counted: expected,
                    recorded: known.nlink,
                });
            }
        }
    }

    /// Every directory has one name, in the directory that it calls its parent, up to the root.
    fn directories(&mut self) {
        let mut reached: HashSet<Ino> = HashSet::from([Ino::ROOT]);
        let mut findings = Vec::new();
        for (&ino, known) in &self.inodes {
            if known.mode & MODE_TYPE != MODE_DIR || known.orphan || ino == Ino::ROOT {
                continue;
            }
            if known.names != 1 || known.named_in != known.parent {
                findings.push(Finding::DirectoryParent { ino: ino.0, parent: known.parent.0 });
            }
            let (mut path, mut above) = (Vec::new(), ino);
            let mut seen = HashSet::new();
            while !reached.contains(&above) && seen.insert(above) {
                path.push(above);
                match self.inodes.get(&above) {
                    Some(known) => above = known.parent,
                    None => break,
                }
            }
            if reached.contains(&above) {
                reached.extend(path);
            } else {
                findings.push(Finding::DirectoryUnreachable { ino: ino.0 });
            }
        }
        self.findings.append(&mut findings);
    }

    /// Extended attributes belong to inodes.
    fn xattrs(&mut self) -> Result<(), Error> {
        self.scan(KeyRange::all_xattrs(), &mut |check, key, _| {
            if let Key::Xattr { ino, .. } = key
                && !check.inodes.contains_key(ino)
            {
                check.findings.push(Finding::XattrWithoutInode { ino: ino.0 });
            }
            Ok(())
        })
    }

    /// Every content belongs to a file of its size, and all chunks below it are there.
    fn contents(&mut self, trees: &mut Trees, step: &mut Step<'_>) -> Result<(), Error> {
        let total_bytes = self.inodes.len() as u64;
        let mut done_bytes = 0;
        let mut with_content = HashSet::new();
        let mut failure = None;
        self.scan(KeyRange::contents(Ino(0)), &mut |check, key, value| {
            let (Key::Content(ino), content) = (key, Content::decode(value)?) else {
                return Ok(());
            };
            if check.stopped {
                return Ok(());
            }
            done_bytes += 1;
            let at = Progress { done_bytes, total_bytes, pack: 0, what: "trees" };
            check.stopped = step(at).is_break();
            with_content.insert(*ino);
            check.logical += content.filled;
            match check.inodes.get(ino) {
                Some(known) if known.mode & MODE_TYPE == MODE_FILE => {
                    if known.size != content.size {
                        check.findings.push(Finding::Size {
                            ino: ino.0,
                            recorded: known.size,
                            content: content.size,
                        });
                    }
                }
                _ => check.findings.push(Finding::ContentWithoutFile { ino: ino.0 }),
            }
            if failure.is_none() {
                failure = check.tree(*ino, &content, trees).err();
            }
            Ok(())
        })?;
        if self.stopped {
            return failure.map_or(Ok(()), Err);
        }
        for (&ino, known) in &self.inodes {
            let bare = known.mode & MODE_TYPE == MODE_FILE && !with_content.contains(&ino);
            if bare && known.size != 0 {
                let finding = Finding::Size { ino: ino.0, recorded: known.size, content: 0 };
                self.findings.push(finding);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Old versions can be read, the chunks below their contents are there, each has its finder.
    fn versions(&mut self, trees: &mut Trees, step: &mut Step<'_>) -> Result<(), Error> {
        let meta = self.meta;
        let mut failure: Option<Error> = None;
        let mut done_bytes = 0;
        self.scan(KeyRange::all_versions(), &mut |check, key, value| {
            let Key::Version { live, end } = key else { return Ok(()) };
            if check.stopped || failure.is_some() {
                return Ok(());
            }
            done_bytes += 1;
            let at = Progress { done_bytes, total_bytes: done_bytes, pack: 0, what: "versions" };
            check.stopped = step(at).is_break();
            let finder = Key::VersionEnd { end: *end, live };
            match meta.get(&finder) {
                Ok(Some(_)) => {}
                Ok(None) => {
                    check.findings.push(Finding::VersionAlone { key: finder.encode() });
                }
                Err(error) => failure = Some(error.into()),
            }
            check.epochs = check.epochs.max(*end);
            let Some(value) = version(value)? else { return Ok(()) };
            match Key::decode(live)? {
                Key::Inode(_) => drop(Inode::decode(value)?),
                Key::Name { .. } => drop(NameEntry::decode(value)?),
                Key::Content(ino) => {
                    let content = Content::decode(value)?;
                    failure = failure.take().or(check.tree(ino, &content, trees).err());
                }
                _ => {}
            }
            Ok(())
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        if self.stopped { Ok(()) } else { self.finders() }
    }

    /// Each finder has its version.
    fn finders(&mut self) -> Result<(), Error> {
        let meta = self.meta;
        let mut failure: Option<Error> = None;
        self.scan(KeyRange::version_ends(0, u64::MAX), &mut |check, key, _| {
            let Key::VersionEnd { live, end } = key else { return Ok(()) };
            let version = Key::Version { live, end: *end };
            match meta.get(&version) {
                Ok(Some(_)) => {}
                Ok(None) => {
                    check.findings.push(Finding::VersionAlone { key: version.encode() });
                }
                Err(error) => failure = Some(error.into()),
            }
            Ok(())
        })?;
        failure.map_or(Ok(()), Err)
    }

    /// Walks one tree; what another file showed to be whole is not walked again.
    fn tree(&mut self, ino: Ino, content: &Content, trees: &mut Trees) -> Result<(), Error> {
        let volume = self.volume;
        let mut findings = Vec::new();
        let mut failure = None;
        // The tree chunks from the root down to where the walk is, with their levels.
        let mut path: Vec<(u32, Address)> = Vec::new();
        let walked =
            volume.pyramid().walk(
                volume.store(),
                &content_root(content),
                &mut |visit| match visit {
                    Visit::Enter { address, level, .. } => {
                        path.retain(|(above, _)| level < *above);
                        path.push((level, address));
                        trees.seen.insert(address) || trees.hurt.contains(&address)
                    }
                    Visit::Data { address, .. } => {
                        match self.chunk(ino, address) {
                            Ok(None) => {}
                            Ok(Some(finding)) => {
                                trees.hurt.extend(path.iter().map(|(_, address)| *address));
                                findings.push(finding);
                            }
                            Err(error) => failure = Some(error),
                        }
                        failure.is_none()
                    }
                    Visit::Tree { .. } => failure.is_none(),
                },
            );
        self.findings.append(&mut findings);
        let why = match walked {
            Ok(()) => return failure.map_or(Ok(()), Err),
            Err(pyramid::Error::Store(
                error @ (store::Error::Missing { .. } | store::Error::Damaged { .. }),
            )) => error.to_string(),
            Err(pyramid::Error::Store(error)) => return Err(error.into()),
            Err(error) => error.to_string(),
        };
        trees.hurt.extend(path.iter().map(|(_, address)| *address));
        self.findings.push(Finding::Tree { ino: ino.0, why });
        Ok(())
    }

    /// A data chunk is there, and can be had if it is damaged somewhere.
    fn chunk(&self, ino: Ino, address: Address) -> Result<Option<Finding>, Error> {
        let store = self.volume.store();
        if !self.doubts && store.contains(&address)? {
            return Ok(None);
        }
        let (ino, hex) = (ino.0, address.to_string());
        match store.data(&address) {
            Ok(_) => Ok(None),
            Err(store::Error::Missing { .. }) => {
                Ok(Some(Finding::ChunkMissing { ino, address: hex }))
            }
            Err(store::Error::Damaged { .. }) => {
                Ok(Some(Finding::ChunkDamaged { ino, address: hex }))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The counters are what was counted.
    fn counters(&mut self) -> Result<(), Error> {
        let counters = match self.meta.get(&Key::Counters)? {
            Some(bytes) => Counters::decode(&bytes)?,
            None => Counters::default(),
        };
        let highest = self.inodes.keys().map(|ino| ino.0).max().unwrap_or(0);
        let counted = [
            ("inodes", counters.files, self.inodes.len() as u64),
            ("logical bytes", counters.logical_bytes, self.logical),
            ("free inode numbers", counters.next_ino, counters.next_ino.max(highest + 1)),
            ("epochs", counters.epoch, counters.epoch.max(self.epochs)),
        ];
        for (what, recorded, counted) in counted {
            if recorded != counted {
                self.findings.push(Finding::Counter { what, recorded, counted });
            }
        }
        Ok(())
    }
}
