//! The metadata beside plain maps: any sequence of changes, cuts, commits, take-ins and reopenings.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{SLICED, commit, new_disk, position, put, reopen, scan};
use crate::meta::{Cookie, Error, Ino, Key, KeyRange, Meta};
use crate::store::Record;
use crate::sys::sim::SimDisk;
use crate::sys::{Access, Disk};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;
type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

#[derive(Debug, Clone)]
enum Op {
    Put(u64, Vec<u8>),
    Delete(u64),
    Amend(u64, Option<u8>),
    /// Puts or deletes many keys at once, so that scans take several batches.
    Many {
        from: u64,
        count: u64,
        delete: bool,
    },
    Cut(bool),
    Record,
    Committed,
    TakeIn,
    Crash,
    Close,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..60u64, vec(any::<u8>(), 0..40)).prop_map(|(k, v)| Op::Put(k, v)),
        5 => (0..60u64).prop_map(Op::Delete),
        4 => (0..60u64, any::<Option<u8>>()).prop_map(|(k, v)| Op::Amend(k, v)),
        2 => (0..60u64, 1..200u64, any::<bool>())
            .prop_map(|(from, count, delete)| Op::Many { from, count, delete }),
        5 => any::<bool>().prop_map(Op::Cut),
        5 => Just(Op::Record),
        5 => Just(Op::Committed),
        3 => Just(Op::TakeIn),
        1 => Just(Op::Crash),
        1 => Just(Op::Close),
    ]
}

/// The keys of small numbers lie in three directories, the rest are inodes.
fn key(number: u64) -> Key<'static> {
    match number {
        0..40 => Key::Name { dir: Ino(1 + number % 3), cookie: Cookie(number * 64) },
        number => Key::Inode(Ino(number)),
    }
}

/// The system and what it must look like.
struct Run {
    disk: Arc<dyn Disk>,
    meta: Meta,
    log: Vec<Record>,
    /// What the log holds.
    durable: Map,
    /// Changes of the committing group, with whether it was recorded.
    committing: Option<(Changes, bool)>,
    open: Changes,
}

impl Run {
    fn new() -> Run {
        let disk = new_disk();
        let meta = Meta::open(disk.clone(), SLICED).unwrap();
        let (durable, open) = (Map::new(), BTreeMap::new());
        Run { disk, meta, log: Vec::new(), durable, committing: None, open }
    }

    fn change(&mut self, number: u64, value: Option<Vec<u8>>) {
        let group = self.meta.enter();
        match &value {
            Some(value) => group.put(&key(number), value.clone()),
            None => group.delete(&key(number)),
        }
        self.open.insert(key(number).encode(), value);
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Put(number, value) => self.change(number, Some(value)),
            Op::Delete(number) => self.change(number, None),
            Op::Amend(number, byte) => self.amend(number, byte.map(|byte| vec![byte])),
            Op::Many { from, count, delete } => {
                for number in from..from + count {
                    self.change(number, (!delete).then(|| vec![number as u8; 3]));
                }
            }
            Op::Cut(force) if self.committing.is_none() => self.cut(force),
            Op::Record => {
                if let Some((_, recorded @ false)) = &mut self.committing {
                    *recorded = true;
                    let position = position(self.log.len() as u64 + 1);
                    self.log.push(Record { position, entries: self.meta.record().unwrap() });
                }
            }
            Op::Committed => {
                if let Some((changes, true)) = &self.committing {
                    lay_over(&mut self.durable, changes);
                    self.committing = None;
                    self.meta.committed(position(self.log.len() as u64));
                }
            }
            Op::TakeIn => {
                self.meta.take_in().unwrap();
                assert!(!self.meta.wants_take_in());
            }
            Op::Crash => self.restart(false),
            Op::Close => self.restart(true),
            Op::Cut(_) => {}
        }
    }

    fn amend(&mut self, number: u64, value: Option<Vec<u8>>) {
        let open = self.meta.enter().id();
        let (group, changes) = match &mut self.committing {
            Some((changes, false)) => (super::super::GroupId(open.0 - 1), changes),
            _ => (open, &mut self.open),
        };
        self.meta.amend(group, &key(number), value.clone());
        changes.insert(key(number).encode(), value);
    }

    fn cut(&mut self, force: bool) {
        let open = self.meta.enter().id();
        let closed = self.meta.cut(force, |id| id).map(|(id, inside)| {
            assert_eq!(id, inside);
            id
        });
        let expected = (force || !self.open.is_empty()).then_some(open);
        assert_eq!(closed, expected);
        if closed.is_some() {
            self.committing = Some((std::mem::take(&mut self.open), false));
            assert_eq!(self.meta.dirty_bytes(), 0);
        }
    }

    /// The groups in memory are lost, except one that reached the log.
    fn restart(&mut self, cleanly: bool) {
        if cleanly {
            self.meta.close().unwrap();
            self.meta.close().unwrap();
        }
        if let Some((changes, true)) = self.committing.take() {
            lay_over(&mut self.durable, &changes);
        }
        self.open.clear();
        self.meta = reopen_after(&self.disk, &self.log, &mut self.meta);
        assert!(self.meta.position().sequence <= self.log.len() as u64);
    }

    fn check(&self, from: u64) {
        let mut expected = self.durable.clone();
        if let Some((changes, _)) = &self.committing {
            lay_over(&mut expected, changes);
        }
        lay_over(&mut expected, &self.open);
        for number in 0..60 {
            let found = self.meta.get(&key(number)).unwrap();
            assert_eq!(found.as_ref(), expected.get(&key(number).encode()), "{:?}", key(number));
        }
        let all: Map = scan(&self.meta, KeyRange::all()).into_iter().collect();
        assert_eq!(all, expected);
        let range = KeyRange::names(Ino(2), Cookie(from * 64));
        let names = scan(&self.meta, range.clone());
        assert!(names.is_sorted());
        let part: Map = expected.range(range.start..range.end).map(clone_pair).collect();
        assert_eq!(names.into_iter().collect::<Map>(), part);
    }
}

fn clone_pair((key, value): (&Vec<u8>, &Vec<u8>)) -> (Vec<u8>, Vec<u8>) {
    (key.clone(), value.clone())
}

fn lay_over(map: &mut Map, changes: &Changes) {
    for (key, value) in changes {
        match value {
            Some(value) => drop(map.insert(key.clone(), value.clone())),
            None => drop(map.remove(key)),
        }
    }
}

/// Replaces `meta`, which goes first: two must not have the file open.
fn reopen_after(disk: &Arc<dyn Disk>, log: &[Record], meta: &mut Meta) -> Meta {
    *meta = Meta::open(new_disk(), SLICED).unwrap();
    reopen(disk, log)
}

proptest! {
    #![proptest_config(crate::testing::config(60))]

    #[test]
    fn behaves_as_maps(ops in vec((op(), 0..40u64), 1..80)) {
        let mut run = Run::new();
        for (op, from) in ops {
            run.apply(op);
            run.check(from);
        }
        run.restart(true);
        run.check(0);
    }
}

#[test]
fn a_scan_may_change_and_read_what_it_scans() {
    let meta = Meta::open(new_disk(), SLICED).unwrap();
    (0..500).for_each(|n| put(&meta, &Key::Inode(Ino(n)), b"x"));
    let mut seen = 0;
    meta.scan(KeyRange::inodes(Ino(0)), &mut |bytes, _| {
        let key = Key::decode(bytes).unwrap();
        assert!(meta.get(&key).unwrap().is_some());
        meta.enter().delete(&key);
        meta.cut(true, |_| ()).unwrap();
        meta.record().unwrap();
        seen += 1;
        meta.committed(position(seen));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(seen, 500);
    assert!(scan(&meta, KeyRange::all()).is_empty());
}

#[test]
fn a_scan_stops_when_told() {
    let meta = Meta::open(new_disk(), SLICED).unwrap();
    (0..100).for_each(|n| put(&meta, &Key::Inode(Ino(n)), b"x"));
    let mut seen = 0;
    meta.scan(KeyRange::all(), &mut |_, _| {
        seen += 1;
        if seen == 50 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .unwrap();
    assert_eq!(seen, 50);
}

#[test]
fn the_committed_layer_asks_to_be_taken_in() {
    let disk = new_disk();
    let meta = Meta::open(disk.clone(), SLICED).unwrap();
    let mut log = Vec::new();
    while !meta.wants_take_in() {
        put(&meta, &Key::Inode(Ino(log.len() as u64)), &[7; 1000]);
        commit(&meta, &mut log);
    }
    let share = SLICED.committed_bytes_max as usize / 2 / 1000;
    assert!((share - 5..=share + 1).contains(&log.len()), "{} groups", log.len());
    assert_eq!(meta.position(), position(0));
    meta.take_in().unwrap();
    assert_eq!(meta.position(), log.last().unwrap().position);
    assert!(!meta.wants_take_in());
    assert!((40_000..400_000).contains(&meta.stored_bytes()), "{}", meta.stored_bytes());
}

#[test]
fn replay_takes_in_by_itself_and_keeps_the_order() {
    let disk = new_disk();
    let mut log = Vec::new();
    {
        let meta = Meta::open(disk.clone(), SLICED).unwrap();
        for number in 0..200 {
            put(&meta, &Key::Inode(Ino(number)), &[7; 1000]);
            commit(&meta, &mut log);
        }
    }
    let meta = reopen(&disk, &log);
    assert!(meta.position().sequence > 100, "{:?}", meta.position());
    assert_eq!(scan(&meta, KeyRange::all()).len(), 200);
    let again = meta.replay(&log[150]);
    assert!(matches!(again, Err(Error::RecordOrder { .. })), "{again:?}");
    let broken = Record { position: position(201), entries: vec![1, 0, 3, 1] };
    let broken = meta.replay(&broken);
    assert!(matches!(broken, Err(Error::Record { .. })), "{broken:?}");
}

#[test]
fn an_empty_group_moves_the_position() {
    let disk = new_disk();
    let meta = Meta::open(disk.clone(), SLICED).unwrap();
    assert!(meta.cut(false, |_| ()).is_none());
    let mut log = Vec::new();
    commit(&meta, &mut log);
    meta.close().unwrap();
    assert_eq!(Meta::open(disk, SLICED).unwrap().position(), position(1));
}

#[test]
fn after_close_the_checkpoint_is_closed() {
    let meta = Meta::open(new_disk(), SLICED).unwrap();
    meta.close().unwrap();
    assert!(matches!(meta.get(&Key::Counters), Err(Error::Closed)));
    assert!(matches!(
        meta.scan(KeyRange::all(), &mut |_, _| ControlFlow::Break(())),
        Err(Error::Closed)
    ));
}

#[test]
fn a_missing_or_empty_checkpoint_is_told() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    assert!(matches!(Meta::open(disk.clone(), SLICED), Err(Error::Missing)));
    disk.create_dir("meta").unwrap();
    disk.open("meta/checkpoint.redb", Access::CreateNew).unwrap();
    assert!(matches!(Meta::open(disk.clone(), SLICED), Err(Error::Damaged { .. })));
    let created = Meta::create(&disk);
    assert!(matches!(created, Err(Error::Io { .. })), "{created:?}");
}

#[test]
fn a_scan_takes_values_of_any_size() {
    let meta = Meta::open(new_disk(), SLICED).unwrap();
    let value = |n: u64| vec![n as u8; if n.is_multiple_of(3) { 200_000 } else { n as usize }];
    (0..60).for_each(|n| put(&meta, &Key::Inode(Ino(n)), &value(n)));
    commit(&meta, &mut Vec::new());
    meta.take_in().unwrap();
    let found = scan(&meta, KeyRange::all());
    assert_eq!(found.len(), 60);
    for (n, (key, found)) in (0..).zip(found) {
        assert!(key == Key::Inode(Ino(n)).encode() && found == value(n));
    }
}

#[test]
#[should_panic(expected = "a cut while a group is still committing")]
fn two_groups_cannot_be_committing() {
    let meta = Meta::open(new_disk(), SLICED).unwrap();
    meta.cut(true, |_| ());
    meta.cut(true, |_| ());
}

#[test]
#[should_panic(expected = "changed after its record was made")]
fn a_recorded_group_cannot_be_amended() {
    let meta = Meta::open(new_disk(), SLICED).unwrap();
    let (group, ()) = meta.cut(true, |_| ()).unwrap();
    meta.amend(group, &Key::Counters, None);
    meta.record().unwrap();
    meta.amend(group, &Key::Counters, None);
}

#[test]
#[should_panic(expected = "neither open nor committing")]
fn a_durable_group_cannot_be_amended() {
    let meta = Meta::open(new_disk(), SLICED).unwrap();
    let group = meta.enter().id();
    commit(&meta, &mut Vec::new());
    meta.amend(group, &Key::Counters, None);
}
