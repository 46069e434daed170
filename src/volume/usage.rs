//! What files take, and what would be free without them.
//!
//! Owns the walk for `du`: the inodes below some names, then all roots of the volume: first of
//! those that stay, then of those that would go. What only the latter lead to is theirs alone.
//!
//! Invariants: (1) all is told of one moment, a commit; (2) an inode with a name elsewhere stays,
//! and so does what an older version of a file holds for a snapshot; (3) no collection runs
//! meanwhile, so that no chunk moves and is counted twice.
//!
//! Absent on purpose: paths. The caller names directories and inodes.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use super::{Error, MODE_DIR, MODE_TYPE, Volume};
use crate::chunk::Address;
use crate::meta::{
    Content, Cookie, Frozen, Ino, Inode, Key, KeyRange, NameEntry, Reading, Snapshot,
};
use crate::store::{ChunkSize, Marks};

/// A name: an inode in a directory. The root directory is one in itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Named {
    /// The directory.
    pub dir: u64,
    /// The inode that has a name there.
    pub ino: u64,
}

/// What files take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    /// Inodes, each counted once.
    pub files: u64,
    /// Of these, files with names elsewhere as well: they would stay.
    pub linked: u64,
    /// Sizes of the files.
    pub apparent_bytes: u64,
    /// The same without holes.
    pub logical_bytes: u64,
    /// Distinct chunks, before compression.
    pub distinct_bytes: u64,
    /// Of these, what nothing else holds.
    pub unique_bytes: u64,
    /// Of these, what other files or snapshots hold as well.
    pub shared_bytes: u64,
    /// What a collection would give back after removing all of it: the share of the unique chunks
    /// in the packs.
    pub freed_bytes: u64,
}

/// Is told how far the walk is, of how many files, and says whether to go on.
pub type UsageStep<'a> = dyn FnMut(u64, u64) -> ControlFlow<()> + 'a;

/// Is shown a root, and whose content it is now.
type EachRoot<'a> = dyn FnMut(Option<Ino>, &Content) -> Result<(), Error> + 'a;

/// What is below the names.
#[derive(Default)]
struct Below {
    usage: Usage,
    /// Files all of whose names are there.
    whole: HashSet<Ino>,
    /// The other files there.
    linked: HashSet<Ino>,
}

/// The walk over names.
struct Walk<'a> {
    frozen: &'a Frozen,
    dirs: HashSet<Ino>,
    todo: Vec<Ino>,
    names: HashSet<(Ino, Cookie)>,
    /// Names of each file that were met.
    met: HashMap<Ino, u32>,
}

impl Walk<'_> {
    /// Calls `each` with the names in a directory.
    fn names_in(
        &self,
        dir: Ino,
        each: &mut dyn FnMut(Cookie, NameEntry) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut failure = None;
        self.frozen.scan(KeyRange::names(dir, Cookie(0)), &mut |key, value| match (
            Key::decode(key),
            NameEntry::decode(value),
        ) {
            (Ok(Key::Name { cookie, .. }), Ok(entry)) => each(cookie, entry),
            (Err(error), _) | (_, Err(error)) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        })?;
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Notes a name that was met.
    fn meet(&mut self, dir: Ino, cookie: Cookie, entry: &NameEntry) {
        if !self.names.insert((dir, cookie)) {
            return;
        }
        if u32::from(entry.kind) << 12 == MODE_DIR {
            self.meet_directory(entry.ino);
        } else {
            *self.met.entry(entry.ino).or_default() += 1;
        }
    }

    fn meet_directory(&mut self, dir: Ino) {
        if self.dirs.insert(dir) {
            self.todo.push(dir);
        }
    }

    /// Finds one of the names that were asked for.
    fn start(&mut self, named: Named) -> Result<(), Error> {
        let (dir, ino) = (Ino(named.dir), Ino(named.ino));
        if ino == Ino::ROOT {
            self.meet_directory(ino);
            return Ok(());
        }
        let mut found = None;
        self.names_in(dir, &mut |cookie, entry| {
            if entry.ino == ino && !self.names.contains(&(dir, cookie)) {
                found = Some((cookie, entry));
                return ControlFlow::Break(());
            }
            found = found.take().or((entry.ino == ino).then_some((cookie, entry)));
            ControlFlow::Continue(())
        })?;
        let (cookie, entry) = found.ok_or(Error::NotFound)?;
        self.meet(dir, cookie, &entry);
        Ok(())
    }
}

impl Volume {
    /// Tells what the files below `names` take together, and what would be free without them.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] for a name that is not there; [`Error::Closed`] when `step` breaks.
    pub fn usage(&self, names: &[Named], step: &mut UsageStep<'_>) -> Result<Usage, Error> {
        self.sync()?;
        let _no_collection = self.collector.hold();
        let frozen = self.meta.frozen()?;
        let below = self.below(&frozen, names, step)?;
        let mut usage = below.usage;
        let outside = Marks::new(&self.store);
        let newest = newest_snapshot(&frozen)?;
        // What a snapshot sees of a file as it is now would stay for it.
        let goes = |ino: Option<Ino>, content: &Content| {
            let is_live_only = newest.is_none_or(|newest| newest < content.epoch);
            is_live_only && ino.is_some_and(|ino| below.whole.contains(&ino))
        };
        self.each_root(&frozen, step, &mut |ino, content| {
            if !goes(ino, content) {
                self.mark(&outside, &content.address, None)?;
            }
            Ok(())
        })?;
        // Once more for themselves, as what others hold as well is not met anew.
        let inside = Marks::new(&self.store);
        self.each_root(&frozen, step, &mut |ino, content| {
            let (Some(ino), root) = (ino, &content.address) else { return Ok(()) };
            if goes(Some(ino), content) {
                let mut count = |size: ChunkSize| {
                    usage.unique_bytes += size.bytes;
                    usage.freed_bytes += size.stored_bytes;
                };
                self.mark(&outside, root, Some(&mut count))?;
            }
            if below.whole.contains(&ino) || below.linked.contains(&ino) {
                let mut count = |size: ChunkSize| usage.distinct_bytes += size.bytes;
                self.mark(&inside, root, Some(&mut count))?;
            }
            Ok(())
        })?;
        usage.shared_bytes = usage.distinct_bytes.saturating_sub(usage.unique_bytes);
        Ok(usage)
    }

    /// Walks the names and adds up what the inodes say.
    fn below(
        &self,
        frozen: &Frozen,
        names: &[Named],
        step: &mut UsageStep<'_>,
    ) -> Result<Below, Error> {
        let (dirs, todo, known, met) = Default::default();
        let mut walk = Walk { frozen, dirs, todo, names: known, met };
        for &named in names {
            walk.start(named)?;
        }
        while let Some(dir) = walk.todo.pop() {
            self.take_step(step, walk.met.len() as u64, 0)?;
            let mut entries = Vec::new();
            walk.names_in(dir, &mut |cookie, entry| {
                entries.push((cookie, entry));
                ControlFlow::Continue(())
            })?;
            entries.iter().for_each(|(cookie, entry)| walk.meet(dir, *cookie, entry));
        }
        let mut below = Below::default();
        below.usage.files = (walk.met.len() + walk.dirs.len()) as u64;
        for (ino, met) in walk.met {
            let Some(value) = frozen.get(&Key::Inode(ino))? else { continue };
            let inode = Inode::decode(&value)?;
            below.usage.apparent_bytes += inode.size;
            if let Some(value) = frozen.get(&Key::Content(ino))? {
                below.usage.logical_bytes += Content::decode(&value)?.filled;
            }
            if inode.nlink <= met || inode.mode & MODE_TYPE == MODE_DIR {
                below.whole.insert(ino);
            } else {
                below.usage.linked += 1;
                below.linked.insert(ino);
            }
        }
        Ok(below)
    }

    /// Calls `each` with every root that the metadata names, and whose content it is now.
    fn each_root(
        &self,
        frozen: &Frozen,
        step: &mut UsageStep<'_>,
        each: &mut EachRoot<'_>,
    ) -> Result<(), Error> {
        let total = self.counters.lock().files;
        let (mut done, mut failed) = (0, None);
        for range in super::collect::root_ranges() {
            frozen.scan(range, &mut |key, value| {
                done += 1;
                let told = self.take_step(step, done, total.max(done)).and_then(|()| {
                    let ino = match Key::decode(key) {
                        Ok(Key::Content(ino)) => Some(ino),
                        _ => None,
                    };
                    match super::collect::content_of(key, value)? {
                        Some(content) => each(ino, &content),
                        None => Ok(()),
                    }
                });
                match told {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => {
                        failed = Some(error);
                        ControlFlow::Break(())
                    }
                }
            })?;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Marks a root; `count` is told what each chunk takes that was not marked.
    fn mark(
        &self,
        marks: &Marks,
        root: &Address,
        mut count: Option<&mut dyn FnMut(ChunkSize)>,
    ) -> Result<(), Error> {
        let mut failed = None;
        marks.mark(&self.store, root, &mut |marked| {
            let told = self.check_open().and_then(|()| {
                if let Some(count) = count.as_mut() {
                    count(self.store.size_at(marked.location)?.unwrap_or_default());
                }
                Ok(())
            });
            failed = told.err();
            if failed.is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        failed.map_or(Ok(()), Err)
    }

    fn take_step(&self, step: &mut UsageStep<'_>, done: u64, total: u64) -> Result<(), Error> {
        self.check_open()?;
        if step(done, total).is_break() { Err(Error::Closed) } else { Ok(()) }
    }
}

/// The newest snapshot that is not being deleted.
fn newest_snapshot(frozen: &Frozen) -> Result<Option<u64>, Error> {
    let (mut newest, mut failure) = (None, None);
    frozen.scan(KeyRange::snapshots(), &mut |key, value| {
        match (Key::decode(key), Snapshot::decode(value)) {
            (Ok(Key::Snapshot(number)), Ok(snapshot)) if !snapshot.deleting => {
                newest = newest.max(Some(number));
            }
            (Err(error), _) | (_, Err(error)) => failure = Some(error),
            _ => {}
        }
        ControlFlow::Continue(())
    })?;
    failure.map_or(Ok(newest), |error| Err(error.into()))
}
