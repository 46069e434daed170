//! Snapshots beside full copies of a plain map: any sequence of changes, cuts, commits, take-ins,
//! reopenings, and of snapshots that are made, deleted and purged.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{SLICED, SMALL, commit, new_disk, position, put, reopen};
use crate::chunk::Address;
use crate::meta::{
    Content, Cookie, Counters, GroupId, Ino, Inode, Key, KeyRange, Meta, NameEntry, Reading,
    Snapshot, version,
};
use crate::store::Record;
use crate::sys::Disk;

type Map = BTreeMap<Vec<u8>, Vec<u8>>;
type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Keys of which a run has that many.
const KEYS: u64 = 60;

const XATTRS: [&[u8]; 6] = [b"user.a", b"user.a\x01", b"user.ab", b"user.b", b"user.aa", b"u"];

fn key(number: u64) -> Key<'static> {
    match number {
        0..20 => Key::Name { dir: Ino(1 + number % 3), cookie: Cookie(256 + number * 64) },
        20..35 => Key::Inode(Ino(number)),
        35..48 => Key::Content(Ino(number)),
        number => Key::Xattr { ino: Ino(1 + number % 2), name: XATTRS[number as usize / 2 % 6] },
    }
}

fn value(key: &Key<'_>, number: u64) -> Vec<u8> {
    match key {
        Key::Name { .. } => {
            let name = number.to_string().into_bytes();
            NameEntry { ino: Ino(number), kind: 8, name, epoch: 0 }.encode()
        }
        Key::Inode(_) => Inode { size: number, ..Inode::default() }.encode(),
        Key::Content(_) => {
            let address = Address([number as u8; 32]);
            Content { address, size: number, filled: 0, epoch: 0 }.encode()
        }
        _ => vec![number as u8; (number % 9) as usize],
    }
}

/// A value without the epoch in which it began.
fn plain(key: &[u8], value: &[u8]) -> Vec<u8> {
    match Key::decode(key).unwrap() {
        Key::Name { .. } => NameEntry { epoch: 0, ..NameEntry::decode(value).unwrap() }.encode(),
        Key::Inode(_) => Inode { epoch: 0, ..Inode::decode(value).unwrap() }.encode(),
        Key::Content(_) => Content { epoch: 0, ..Content::decode(value).unwrap() }.encode(),
        _ => value.to_vec(),
    }
}

/// All ranges of what has versions.
fn ranges() -> [KeyRange; 4] {
    let (inodes, contents) = (KeyRange::inodes(Ino(0)), KeyRange::contents(Ino(0)));
    [inodes, contents, KeyRange::all_names(), KeyRange::all_xattrs()]
}

fn scan(from: &dyn Reading, range: KeyRange) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    from.scan(range, &mut |key, value| {
        found.push((key.to_vec(), plain(key, value)));
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

fn everything(from: &dyn Reading) -> Vec<(Vec<u8>, Vec<u8>)> {
    ranges().into_iter().flat_map(|range| scan(from, range)).collect()
}

#[derive(Debug, Clone)]
enum Op {
    Put(u64, u64),
    Delete(u64),
    /// Puts or deletes many inodes and names at once.
    Many(u64, u64, bool),
    Amend(u64, u64),
    Snapshot,
    /// Flags the snapshot at that place in the list.
    DeleteSnapshot(usize),
    /// Goes on with the purge of what was flagged.
    Purge(usize),
    Cut,
    Record,
    Committed,
    Commit,
    TakeIn,
    Crash,
    Close,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (0..KEYS, 0..200u64).prop_map(|(key, value)| Op::Put(key, value)),
        6 => (0..KEYS).prop_map(Op::Delete),
        1 => (0..KEYS, 1..150u64, any::<bool>()).prop_map(|(a, b, c)| Op::Many(a, b, c)),
        3 => (0..KEYS, 0..200u64).prop_map(|(key, value)| Op::Amend(key, value)),
        4 => Just(Op::Snapshot),
        3 => any::<usize>().prop_map(Op::DeleteSnapshot),
        4 => (1..20usize).prop_map(Op::Purge),
        2 => Just(Op::Cut),
        2 => Just(Op::Record),
        2 => Just(Op::Committed),
        6 => Just(Op::Commit),
        2 => Just(Op::TakeIn),
        1 => Just(Op::Crash),
        1 => Just(Op::Close),
    ]
}

/// A group that is cut.
#[derive(Default)]
struct Cut {
    group: u64,
    changes: Changes,
    flagged: Vec<u64>,
    /// Whether it ends with a snapshot, and its number once the record is made.
    snapshot: Option<Option<u64>>,
    recorded: bool,
}

struct Run {
    disk: Arc<dyn Disk>,
    meta: Meta,
    log: Vec<Record>,
    durable: Map,
    /// The snapshots that live, with the copies.
    copies: BTreeMap<u64, Map>,
    /// Snapshots that are flagged, and where their purge goes on.
    flagged: BTreeMap<u64, Option<Vec<u8>>>,
    committing: Option<Cut>,
    open: Cut,
}

impl Run {
    fn new() -> Run {
        let disk = new_disk();
        let meta = Meta::open(disk.clone(), SLICED).unwrap();
        Run {
            disk,
            meta,
            log: Vec::new(),
            durable: Map::new(),
            copies: BTreeMap::new(),
            flagged: BTreeMap::new(),
            committing: None,
            open: Cut::default(),
        }
    }

    fn change(&mut self, key: &Key<'_>, value: Option<Vec<u8>>) {
        let group = self.meta.enter();
        match &value {
            Some(value) => group.put(key, value.clone()),
            None => group.delete(key),
        }
        self.open.changes.insert(key.encode(), value);
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Put(number, with) => self.change(&key(number), Some(value(&key(number), with))),
            Op::Delete(number) => self.change(&key(number), None),
            Op::Many(from, count, deletes) => {
                for number in 1000 + from..1000 + from + count {
                    let name = Key::Name { dir: Ino(2), cookie: Cookie(number * 256) };
                    for key in [Key::Inode(Ino(number)), name] {
                        self.change(&key, (!deletes).then(|| value(&key, from)));
                    }
                }
            }
            Op::Amend(number, with) => self.amend(&key(number), with),
            Op::Snapshot => self.open.snapshot = Some(None),
            Op::DeleteSnapshot(at) => self.flag(at),
            Op::Purge(count) => self.purge(count),
            Op::Cut => self.cut(),
            Op::Record => self.record(),
            Op::Committed => self.committed(),
            Op::Commit => {
                self.cut();
                self.record();
                self.committed();
            }
            Op::TakeIn => self.meta.take_in().unwrap(),
            Op::Crash => self.restart(false),
            Op::Close => self.restart(true),
        }
    }

    fn amend(&mut self, key: &Key<'_>, with: u64) {
        let (value, open) = (value(key, with), self.meta.enter().id());
        match &mut self.committing {
            Some(cut) if !cut.recorded => {
                self.meta.amend(GroupId(cut.group), key, Some(value.clone()));
                cut.changes.insert(key.encode(), Some(value));
            }
            _ => {
                self.meta.amend(open, key, Some(value.clone()));
                self.open.changes.insert(key.encode(), Some(value));
            }
        }
    }

    fn flag(&mut self, at: usize) {
        let Some(&number) = self.copies.keys().nth(at % self.copies.len().max(1)) else { return };
        let entry = Snapshot { deleting: true, ..Snapshot::default() };
        self.meta.enter().put(&Key::Snapshot(number), entry.encode());
        self.open.flagged.push(number);
    }

    fn purge(&mut self, count: usize) {
        let Some((&number, from)) = self.flagged.iter_mut().next() else { return };
        let found = self.meta.unneeded_versions(number, from.clone(), count).unwrap();
        let group = self.meta.enter();
        found.keys.iter().for_each(|key| group.change_encoded(key, None));
        *from = found.behind;
        if from.is_none() {
            group.delete(&Key::Snapshot(number));
            self.flagged.remove(&number);
        }
    }

    fn cut(&mut self) {
        if self.committing.is_none() {
            let (group, ()) = self.meta.cut(true, |_| ()).unwrap();
            let cut = std::mem::take(&mut self.open);
            self.committing = Some(Cut { group: group.0, ..cut });
        }
    }

    fn record(&mut self) {
        let Some(cut) = self.committing.as_mut().filter(|cut| !cut.recorded) else { return };
        if cut.snapshot.is_some() {
            let number = self.meta.next_snapshot();
            cut.snapshot = Some(Some(number));
            let entry = Snapshot { name: b"x".to_vec(), ..Snapshot::default() };
            self.meta.amend(GroupId(cut.group), &Key::Snapshot(number), Some(entry.encode()));
            let counters = Counters { epoch: number + 1, ..Counters::default() };
            self.meta.amend(GroupId(cut.group), &Key::Counters, Some(counters.encode()));
        }
        cut.recorded = true;
        let position = position(self.log.len() as u64 + 1);
        self.log.push(Record { position, entries: self.meta.record().unwrap() });
    }

    fn committed(&mut self) {
        if self.committing.as_ref().is_some_and(|cut| cut.recorded) {
            self.meta.committed(position(self.log.len() as u64));
            self.in_log();
        }
    }

    /// The committing group is durable.
    fn in_log(&mut self) {
        let Some(cut) = self.committing.take() else { return };
        for (key, value) in &cut.changes {
            match value {
                Some(value) => drop(self.durable.insert(key.clone(), value.clone())),
                None => drop(self.durable.remove(key)),
            }
        }
        for number in cut.flagged {
            if self.copies.remove(&number).is_some() {
                self.flagged.insert(number, None);
            }
        }
        if let Some(Some(number)) = cut.snapshot {
            self.copies.insert(number, self.durable.clone());
        }
    }

    fn restart(&mut self, cleanly: bool) {
        if cleanly {
            self.meta.close().unwrap();
        }
        match self.committing.take() {
            Some(cut) if cut.recorded => {
                self.committing = Some(cut);
                self.in_log();
            }
            _ => {}
        }
        self.open = Cut::default();
        self.meta = Meta::open(new_disk(), SLICED).unwrap();
        self.meta = reopen(&self.disk, &self.log);
        // A purge begins anew; what was flagged is known from the entries.
        self.flagged.clear();
        let meta = &self.meta;
        meta.scan(KeyRange::snapshots(), &mut |key, value| {
            if let Ok(Key::Snapshot(number)) = Key::decode(key)
                && Snapshot::decode(value).unwrap().deleting
            {
                self.flagged.insert(number, None);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    }

    fn check(&self) {
        let living: Vec<u64> = self.copies.keys().copied().collect();
        assert_eq!(self.meta.living_snapshots(), living);
        for (number, copy) in &self.copies {
            let view = self.meta.at(*number).unwrap();
            assert_eq!(everything(&view), Vec::from_iter(copy.clone()), "snapshot {number}");
            for number in 0..KEYS {
                let key = key(number);
                let found = view.get(&key).unwrap().map(|value| plain(&key.encode(), &value));
                assert_eq!(found.as_ref(), copy.get(&key.encode()), "{key:?}");
            }
        }
        assert!(self.meta.at(living.last().map_or(1, |last| last + 1)).is_none());
    }

    /// With all purged, there are exactly the versions that some snapshot sees.
    fn finish(&mut self) {
        // What is cut already, and what is open.
        self.apply(Op::Commit);
        self.apply(Op::Commit);
        while !self.flagged.is_empty() {
            self.purge(7);
        }
        self.apply(Op::Commit);
        self.check();
        let mut seen = BTreeSet::new();
        let (mut versions, mut finders) = (BTreeSet::new(), BTreeSet::new());
        self.meta
            .scan(KeyRange::all_versions(), &mut |key, value| {
                let Ok(Key::Version { live, end }) = Key::decode(key) else { panic!("{key:?}") };
                version(value).unwrap();
                versions.insert((live.to_vec(), end));
                ControlFlow::Continue(())
            })
            .unwrap();
        self.meta
            .scan(KeyRange::version_ends(0, u64::MAX), &mut |key, _| {
                let Ok(Key::VersionEnd { live, end }) = Key::decode(key) else { panic!("{key:?}") };
                finders.insert((live.to_vec(), end));
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(versions, finders);
        for number in self.copies.keys() {
            let lives: BTreeSet<&Vec<u8>> = versions.iter().map(|(live, _)| live).collect();
            for live in lives {
                let from = (live.clone(), number + 1);
                if let Some(found) = versions.range(from..=(live.clone(), u64::MAX)).next() {
                    seen.insert(found.clone());
                }
            }
        }
        assert_eq!(versions, seen);
    }
}

proptest! {
    #![proptest_config(crate::testing::config(120))]

    #[test]
    fn a_snapshot_reads_as_a_copy(ops in vec(op(), 1..150)) {
        let mut run = Run::new();
        for op in ops {
            run.apply(op);
            run.check();
        }
        run.finish();
        run.restart(true);
        run.check();
        // Without snapshots nothing of them is left.
        while !run.copies.is_empty() {
            run.flag(0);
            run.apply(Op::Commit);
        }
        run.finish();
        let left = super::scan(&run.meta, KeyRange::all_versions());
        assert!(left.is_empty() && super::scan(&run.meta, KeyRange::snapshots()).is_empty());
    }
}

fn snapshot(meta: &Meta, log: &mut Vec<Record>) -> u64 {
    let number = meta.next_snapshot();
    put(meta, &Key::Snapshot(number), &Snapshot::default().encode());
    put(meta, &Key::Counters, &Counters { epoch: number + 1, ..Counters::default() }.encode());
    commit(meta, log);
    number
}

#[test]
fn without_a_snapshot_nothing_more_is_written() {
    let meta = Meta::open(new_disk(), SMALL).unwrap();
    let mut log = Vec::new();
    for round in 0..3 {
        put(&meta, &key(21), &value(&key(21), round));
        put(&meta, &key(40), &value(&key(40), round));
        commit(&meta, &mut log);
    }
    let found = super::scan(&meta, KeyRange::all());
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|(key, found)| *found == value(&Key::decode(key).unwrap(), 2)));
}

#[test]
fn a_large_old_attribute_counts_for_the_group() {
    let meta = Meta::open(new_disk(), SMALL).unwrap();
    let (mut log, key) = (Vec::new(), Key::Xattr { ino: Ino(1), name: b"user.large" });
    put(&meta, &key, &[7; 60_000]);
    commit(&meta, &mut log);
    meta.enter().delete(&key);
    assert!(meta.dirty_bytes() < 1000);
    put(&meta, &key, &[8; 60_000]);
    snapshot(&meta, &mut log);
    meta.enter().delete(&key);
    assert!(60_000 < meta.dirty_bytes());
    commit(&meta, &mut log);
    let kept = meta.at(1).unwrap().get(&key).unwrap();
    assert_eq!(kept, Some(vec![8; 60_000]));
}

/// A scan of a snapshot sees the same while all that it sees is changed in between.
#[test]
fn readers_of_a_snapshot_see_no_change() {
    const NAMES: u64 = 400;
    let name = |number| Key::Name { dir: Ino(1), cookie: Cookie(256 * (number + 1)) };
    let meta = Meta::open(new_disk(), SMALL).unwrap();
    let mut log = Vec::new();
    (0..NAMES).for_each(|number| put(&meta, &name(number), &value(&name(number), number)));
    let first = snapshot(&meta, &mut log);
    let expected = everything(&meta.at(first).unwrap());
    assert_eq!(expected.len() as u64, NAMES);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..60 {
                for number in (0..NAMES).filter(|number| (number + round) % 3 != 0) {
                    put(&meta, &name(number), &value(&name(number), number + round));
                    meta.enter().delete(&name((number * 7 + round) % NAMES));
                }
                if round % 20 == 0 {
                    snapshot(&meta, &mut log);
                }
                commit(&meta, &mut log);
            }
            done.store(true, Ordering::Release);
        });
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                meta.take_in().unwrap();
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let view = meta.at(first).unwrap();
                    assert_eq!(everything(&view), expected);
                    for number in (0..NAMES).step_by(17) {
                        assert!(view.get(&name(number)).unwrap().is_some(), "name {number}");
                    }
                }
            });
        }
    });
}
