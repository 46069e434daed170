//! The targets without a fuzzer: over their corpus, over changed valid inputs, over any bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

fn names() -> impl Iterator<Item = &'static str> {
    TARGETS.iter().chain(&SLOW_TARGETS).map(|(name, _)| *name)
}

/// The seeds of each target.
fn by_target() -> BTreeMap<&'static str, Vec<Vec<u8>>> {
    let mut seeds: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (name, bytes) in super::seeds() {
        seeds.entry(name).or_default().push(bytes);
    }
    seeds
}

/// `PYRAMIDFS_WRITE_CORPUS=1` writes the seeds anew.
#[test]
fn the_corpus_has_the_seeds_of_every_target() {
    let seeds = by_target();
    assert!(seeds.keys().copied().eq({
        let mut names: Vec<_> = names().collect();
        names.sort_unstable();
        names
    }));
    for (name, seeds) in &seeds {
        for (number, bytes) in seeds.iter().enumerate() {
            let path = corpus().join(name).join(format!("seed-{number}"));
            if std::env::var_os("PYRAMIDFS_WRITE_CORPUS").is_some() {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, bytes).unwrap();
            }
            assert!(fs::read(&path).unwrap() == *bytes, "{} is another", path.display());
        }
    }
}

/// The seeds, and what a fuzzer has found once.
#[test]
fn the_corpus_has_an_answer() {
    for name in names() {
        for entry in fs::read_dir(corpus().join(name)).unwrap() {
            run(name, &fs::read(entry.unwrap().path()).unwrap());
        }
    }
}

#[test]
fn every_target_has_its_program() {
    let manifest = corpus().parent().unwrap().join("Cargo.toml");
    let manifest = fs::read_to_string(manifest).unwrap();
    let programs = manifest.lines().filter_map(|line| line.strip_prefix("path = \"targets/"));
    let programs: Vec<_> = programs.filter_map(|rest| rest.strip_suffix(".rs\"")).collect();
    let mut names: Vec<_> = names().collect();
    names.sort_unstable();
    assert_eq!(programs, names);
}

/// A change of an input: bytes set, cut off, put in, repeated.
#[derive(Debug, Clone)]
enum Change {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Word(prop::sample::Index, u32),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Repeat(prop::sample::Index, u8),
}

fn any_change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    let edge = prop_oneof![Just(0), Just(u32::MAX), Just(1 << 31), 0..300u32, any::<u32>()];
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        4 => (at(), 0..8u8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        2 => (at(), edge).prop_map(|(at, word)| Change::Word(at, word)),
        1 => at().prop_map(Change::Cut),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..20))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        1 => (at(), 1..32u8).prop_map(|(at, count)| Change::Repeat(at, count)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    if bytes.is_empty() {
        bytes.push(0);
    }
    let len = bytes.len();
    match change {
        Change::Set(at, byte) => bytes[at.index(len)] = *byte,
        Change::Flip(at, bit) => bytes[at.index(len)] ^= 1 << bit,
        Change::Word(at, word) => {
            let at = at.index(len) & !3;
            let end = len.min(at + 4);
            bytes[at..end].copy_from_slice(&word.to_le_bytes()[..end - at]);
        }
        Change::Cut(at) => bytes.truncate(at.index(len)),
        Change::Insert(at, new) => {
            let at = at.index(len);
            drop(bytes.splice(at..at, new.clone()));
        }
        Change::Repeat(at, count) => {
            let at = at.index(len);
            let part = bytes[at..len.min(at + usize::from(*count))].to_vec();
            drop(bytes.splice(at..at, part));
        }
    }
}

/// Runs targets over their seeds with changes.
fn run_changed(targets: &[(&'static str, Target)], cases: u32) {
    let seeds = by_target();
    for (name, target) in targets {
        let seed = prop::sample::select(seeds[name].clone());
        let input = (seed, prop::collection::vec(any_change(), 0..6));
        let mut runner = proptest::test_runner::TestRunner::new(crate::testing::config(cases));
        let checked = runner.run(&input, |(mut bytes, changes)| {
            changes.iter().for_each(|change| apply(&mut bytes, change));
            target(&bytes);
            Ok(())
        });
        assert!(checked.is_ok(), "{name}: {checked:?}");
    }
}

#[test]
fn changed_inputs_have_an_answer() {
    run_changed(&TARGETS, 300);
}

#[test]
fn changed_volumes_have_an_answer() {
    run_changed(&SLOW_TARGETS, 60);
}

#[test]
fn any_bytes_have_an_answer() {
    let mut runner = proptest::test_runner::TestRunner::new(crate::testing::config(200));
    let input = prop::collection::vec(any::<u8>(), 0..600);
    let checked = runner.run(&input, |bytes| {
        TARGETS.iter().for_each(|(_, target)| target(&bytes));
        Ok(())
    });
    assert!(checked.is_ok(), "{checked:?}");
}
