//! Readers beside changes, commits and take-ins: no moment may show an entry in no layer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::{SMALL, commit, new_disk, scan};
use crate::meta::{Cookie, Ino, Key, KeyRange, Meta};

const NAMES: u64 = 300;
const ROUNDS: u64 = 80;

fn key(number: u64) -> Key<'static> {
    Key::Name { dir: Ino(1), cookie: Cookie(256 * (number + 1)) }
}

fn number(value: &[u8]) -> u64 {
    u64::from_le_bytes(value.try_into().unwrap())
}

/// Every name exists all the time, and its number only rises; names that come and go lie between.
#[test]
fn readers_see_every_entry_at_every_moment() {
    let meta = Meta::open(new_disk(), SMALL).unwrap();
    let set_all = |round: u64| {
        for name in 0..NAMES {
            meta.enter().put(&key(name), round.to_le_bytes().to_vec());
            let Key::Name { dir, cookie } = key(name) else { unreachable!() };
            let fleeting = Key::Name { dir, cookie: Cookie(cookie.0 + 1) };
            let group = meta.enter();
            if (round + name).is_multiple_of(2) {
                group.put(&fleeting, round.to_le_bytes().to_vec());
            } else {
                group.delete(&fleeting);
            }
        }
    };
    set_all(0);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            (1..=ROUNDS).for_each(set_all);
            done.store(true, Ordering::Release);
        });
        scope.spawn(|| {
            let mut log = Vec::new();
            while !done.load(Ordering::Acquire) {
                commit(&meta, &mut log);
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                meta.take_in().unwrap();
            }
        });
        scope.spawn(|| {
            let mut last = vec![0; NAMES as usize];
            while !done.load(Ordering::Acquire) {
                for name in 0..NAMES {
                    let now = number(&meta.get(&key(name)).unwrap().expect("always there"));
                    assert!(last[name as usize] <= now);
                    last[name as usize] = now;
                }
            }
        });
        scope.spawn(|| {
            let mut last = vec![0; NAMES as usize];
            while !done.load(Ordering::Acquire) {
                let mut name = 0;
                for (bytes, value) in scan(&meta, KeyRange::names(Ino(1), Cookie(0))) {
                    if name < NAMES && bytes == key(name).encode() {
                        assert!(last[name as usize] <= number(&value));
                        last[name as usize] = number(&value);
                        name += 1;
                    }
                }
                assert_eq!(name, NAMES);
            }
        });
    });
    assert!(meta.position().sequence > 0);
    for name in 0..NAMES {
        assert_eq!(number(&meta.get(&key(name)).unwrap().unwrap()), ROUNDS);
    }
}

/// Nothing is put twice, so what gets lost on its way down stays lost.
#[test]
fn what_is_put_once_stays() {
    const COUNT: u64 = 4000;
    let disk = new_disk();
    let meta = Meta::open(disk.clone(), SMALL).unwrap();
    let put_so_far = AtomicU64::new(0);
    let is_done = || put_so_far.load(Ordering::Acquire) == COUNT;
    let mut log = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..COUNT {
                meta.enter().put(&key(number), number.to_le_bytes().to_vec());
                put_so_far.store(number + 1, Ordering::Release);
                if number.is_multiple_of(8) {
                    thread::yield_now();
                }
            }
        });
        scope.spawn(|| {
            while !is_done() {
                commit(&meta, &mut log);
            }
        });
        scope.spawn(|| {
            while !is_done() {
                meta.take_in().unwrap();
            }
        });
        scope.spawn(|| {
            while !is_done() {
                let least = put_so_far.load(Ordering::Acquire);
                for number in (least.saturating_sub(100)..least).chain((0..least).step_by(97)) {
                    assert!(meta.get(&key(number)).unwrap().is_some(), "{number} of {least}");
                }
                let found = scan(&meta, KeyRange::names(Ino(1), Cookie(0)));
                assert!(least <= found.len() as u64, "{} of {least}", found.len());
            }
        });
    });
    commit(&meta, &mut log);
    assert_eq!(scan(&meta, KeyRange::all()).len() as u64, COUNT);
    meta.close().unwrap();
    let meta = Meta::open(disk, SMALL).unwrap();
    assert_eq!(meta.position(), log.last().unwrap().position);
    assert_eq!(scan(&meta, KeyRange::all()).len() as u64, COUNT);
}

/// A group is all or nothing with regard to the cut: pairs put under one hold are never apart.
#[test]
fn a_cut_never_parts_what_one_hold_put() {
    let meta = Meta::open(new_disk(), SMALL).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..5_000u64 {
                let group = meta.enter();
                group.put(&Key::Inode(Ino(1)), round.to_le_bytes().to_vec());
                group.put(&Key::Inode(Ino(2)), round.to_le_bytes().to_vec());
            }
            done.store(true, Ordering::Release);
        });
        let mut log = Vec::new();
        while !done.load(Ordering::Acquire) {
            commit(&meta, &mut log);
            let entries = crate::meta::record::decode(&log.last().unwrap().entries).unwrap();
            let values: Vec<_> = entries.values().collect();
            assert!(values.is_empty() || values[0] == values[1]);
        }
    });
}
