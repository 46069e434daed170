//! A long random sequence of operations on the mount and on a plain directory: both must tell the
//! same at each step, and look the same after the mount was unmounted and mounted again.
//!
//! `PYRAMIDFS_SEED` gives another sequence; a failure prints the number and the last steps.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

use super::harness::{Numbers, Site, seed};
use super::plain::{Directory, SLOTS, Step, takes_xattrs, tree};

const STEPS: usize = 10_000;
/// After so many steps both sides are compared as a whole.
const STEPS_BETWEEN_REMOUNTS: usize = 2500;
/// After so many steps the list of existing paths is made anew.
const STEPS_BETWEEN_LOOKS: usize = 25;
/// Steps that a failure shows.
const SHOWN: usize = 25;
/// Writes begin below it.
const OFFSET_MAX: u64 = 700 << 10;

const NAMES: [&str; 9] =
    ["a", "b", "c", "d", "e", "f", "a name with spaces", "\u{fc}\u{2603}", ".hidden"];
const XATTRS: [&str; 3] = ["user.one", "user.two", "user.\u{fc}"];
const MODES: [u32; 7] = [0o644, 0o600, 0o755, 0o777, 0o4755, 0o2750, 0o1777];

#[test]
fn the_mount_behaves_like_a_plain_directory() {
    compare(seed(), STEPS);
}

fn compare(seed: u64, steps: usize) {
    println!("PYRAMIDFS_SEED={seed}");
    // The modes of both sides are then those that the steps name, whatever this process inherited.
    let _ = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let site = Site::mounted();
    let plain = plain_directory(&site);
    let xattrs = takes_xattrs(plain.path());
    if !xattrs {
        println!("{} takes no extended attributes: not compared", plain.path().display());
    }
    fs::create_dir(site.at("top")).unwrap();
    let mut ours = Directory::new(site.at("top"));
    let mut theirs = Directory::new(plain.path().to_owned());
    let mut maker = Maker { numbers: Numbers(seed), paths: Vec::new(), xattrs };
    let mut last = VecDeque::new();
    for number in 0..steps {
        if number % STEPS_BETWEEN_LOOKS == 0 {
            maker.paths = tree_paths(plain.path());
        }
        let step = maker.step();
        if last.len() == SHOWN {
            last.pop_front();
        }
        let (expected, told) = (theirs.apply(&step), ours.apply(&step));
        last.push_back(format!("{number}: {step:?} -> {expected:?}"));
        assert_eq!(
            told,
            expected,
            "step {number} of PYRAMIDFS_SEED={seed}: {step:?}\n{}",
            last.iter().map(|line| format!("{line}\n")).collect::<String>()
        );
        if (number + 1) % STEPS_BETWEEN_REMOUNTS == 0 {
            ours.let_go();
            theirs.let_go();
            same_trees(&site, plain.path(), xattrs, seed, number);
            site.remount();
            same_trees(&site, plain.path(), xattrs, seed, number);
        }
    }
    ours.let_go();
    site.umount_and_check();
}

fn same_trees(site: &Site, plain: &Path, xattrs: bool, seed: u64, number: usize) {
    let (ours, theirs) = (tree(&site.at("top"), xattrs), tree(plain, xattrs));
    for (path, expected) in &theirs {
        let found = ours.get(path);
        assert_eq!(found, Some(expected), "{path:?} at step {number} of PYRAMIDFS_SEED={seed}");
    }
    let more: Vec<_> = ours.keys().filter(|path| !theirs.contains_key(*path)).collect();
    assert!(more.is_empty(), "only in the mount at step {number} of {seed}: {more:?}");
}

/// A directory beside the volume; on the disk if only there extended attributes can be set.
fn plain_directory(site: &Site) -> tempfile::TempDir {
    let near = tempfile::tempdir_in(site.path("")).unwrap();
    if takes_xattrs(near.path()) {
        return near;
    }
    let far = tempfile::tempdir().unwrap();
    if takes_xattrs(far.path()) { far } else { near }
}

fn tree_paths(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                waiting.push(entry.path());
            }
            found.push(entry.path().strip_prefix(root).unwrap().to_owned());
        }
    }
    found.sort();
    found
}

/// Makes steps that mostly find what they need.
struct Maker {
    numbers: Numbers,
    paths: Vec<PathBuf>,
    xattrs: bool,
}

impl Maker {
    /// A path that most likely exists.
    fn there(&mut self) -> PathBuf {
        if self.paths.is_empty() || self.numbers.below(10) == 0 {
            return self.anywhere();
        }
        self.numbers.pick(&self.paths).clone()
    }

    /// A path of one to three names, which may exist.
    fn anywhere(&mut self) -> PathBuf {
        if self.numbers.below(200) == 0 {
            return PathBuf::from("x".repeat(256));
        }
        let depth = 1 + self.numbers.below(3);
        (0..depth).map(|_| *self.numbers.pick(&NAMES)).collect()
    }

    fn len(&mut self) -> usize {
        let most = *self.numbers.pick(&[0, 1, 100, 5000, 40_000, 40_000, 300_000]);
        self.numbers.below(most + 1) as usize
    }

    fn offset(&mut self) -> u64 {
        let offset = self.numbers.below(OFFSET_MAX);
        match self.numbers.below(4) {
            0 => 0,
            1 => offset / 4096 * 4096,
            2 => offset / (512 << 10) * (512 << 10),
            _ => offset,
        }
    }

    fn step(&mut self) -> Step {
        match self.numbers.below(10) {
            0..4 => self.content(),
            4..7 => self.name(),
            7..9 => self.attribute(),
            _ => self.handle(),
        }
    }

    fn content(&mut self) -> Step {
        let (path, offset, len) = (self.there(), self.offset(), self.len());
        let seed = self.numbers.next();
        match self.numbers.below(12) {
            0..3 => Step::Write { path, offset, seed, len },
            3 => Step::Append { path, seed, len },
            4 | 5 => Step::Read { path, offset, len: 2 * len },
            6 => Step::Truncate { path, size: offset },
            7 => Step::MapRead { path },
            8 => Step::MapWrite { path, offset, seed, len },
            9 => {
                let offset = if seed.is_multiple_of(2) { 0 } else { offset as i64 };
                Step::Copy { from: path, to: self.there(), offset, len: 1 << 20 }
            }
            10 if seed.is_multiple_of(4) => Step::Empty { path },
            _ => Step::Fsync { path },
        }
    }

    fn name(&mut self) -> Step {
        let (path, other) = (self.there(), self.anywhere());
        let mode = *self.numbers.pick(&MODES);
        match self.numbers.below(14) {
            0..3 => Step::Create { path: other, mode, exclusive: self.numbers.below(2) == 0 },
            3 | 4 => Step::Mkdir { path: other, mode },
            5 => Step::Rename { from: path, to: other, replace: self.numbers.below(3) > 0 },
            6 => Step::Rename { from: path, to: self.there(), replace: true },
            7 => Step::Link { from: path, to: other },
            8 => Step::Symlink { target: path, path: other },
            9 => Step::Readlink { path },
            10 if self.numbers.below(2) == 0 => Step::Unlink { path },
            11 => Step::Rmdir { path },
            12 if self.numbers.below(3) == 0 => Step::Mkfifo { path: other, mode },
            _ => Step::List { path },
        }
    }

    fn attribute(&mut self) -> Step {
        let path = self.there();
        let name = *self.numbers.pick(&XATTRS);
        let seed = self.numbers.next();
        match self.numbers.below(if self.xattrs { 12 } else { 7 }) {
            0 | 1 => Step::Chmod { path, mode: *self.numbers.pick(&MODES) },
            2 => {
                let (uid, gid) = (seed as u32 % 3 * 1000, (seed >> 32) as u32 % 3 * 1000);
                Step::Chown { path, uid, gid }
            }
            3 => {
                let (seconds, nanos) = (seed % 900_000_000, (seed >> 33) % 1_000_000_000);
                Step::Times { path, seconds: seconds as i64, nanos: nanos as i64 }
            }
            4..7 => Step::Stat { path, follow: seed.is_multiple_of(2) },
            7 | 8 => {
                let flags = *self.numbers.pick(&[0, 0, libc::XATTR_CREATE, libc::XATTR_REPLACE]);
                Step::SetXattr { path, name, seed, len: (seed >> 40) as usize % 200, flags }
            }
            9 => Step::GetXattr { path, name },
            10 => Step::ListXattr { path },
            _ => Step::RemoveXattr { path, name },
        }
    }

    fn handle(&mut self) -> Step {
        let slot = self.numbers.below(SLOTS as u64) as usize;
        let (offset, len, seed) = (self.offset(), self.len(), self.numbers.next());
        match self.numbers.below(12) {
            0..3 => Step::Hold { slot, path: self.there() },
            3..6 => Step::HeldWrite { slot, offset, seed, len },
            6 | 7 => Step::HeldRead { slot, offset, len: 2 * len },
            8 => Step::HeldTruncate { slot, size: offset },
            9 => Step::HeldStat { slot },
            10 => Step::HeldSync { slot },
            _ => Step::LetGo { slot },
        }
    }
}
