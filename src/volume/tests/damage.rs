//! Damage to the files of a whole volume: it is harmless or told, and never believed.
//!
//! Owns two volumes, one that was closed and one that was not, thousands of ways to damage them,
//! and the judgement: nobody panics or hangs; each answer of a damaged volume is right or an error;
//! what cannot be had is reported by opening or by `check --read-data`, with the files that are
//! hurt; all others read on; the index is only derived; a repair that may ask a whole volume leaves
//! one that is at peace with itself, in which every byte is right.
//!
//! `PYRAMIDFS_CASES_FACTOR=20 cargo test --release --lib damage` is the campaign.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::super::acl::ACCESS;
use super::crash::extract;
use super::model::{Body, Snapshot};
use super::*;
use crate::check;
use crate::store::Finding;
use crate::sys::overlay::OverlayDisk;
use crate::sys::sim::Keep;
use crate::sys::{Access, Rng};

/// Damages of each kind of volume in a plain run.
const CASES: u64 = 300;

/// No case takes as long as this unless it hangs.
const HANG: Duration = Duration::from_secs(60);

/// A volume with some of everything, and what it holds.
struct Sample {
    disk: SimDisk,
    clock: SimClock,
    /// Its state at each commit that opening can find, the newest last.
    states: Vec<Snapshot>,
    /// Files whose bytes were stored first and last, and are shared with nobody.
    alone: [u64; 2],
    /// Whether the checkpoint holds all.
    closed: bool,
}

/// Packs that fill, and chunks so small that a file of some bytes is a tree of several levels.
fn small() -> OpenOptions {
    OpenOptions { pack_bytes_max: 80 << 10, dirty_bytes_max: 60_000, ..options() }
}

fn add(volume: &Volume, dir: Ino, name: &str, bytes: &[u8]) -> Ino {
    let make = Make { mode: MODE_FILE | 0o640, rdev: 0 };
    let ino = volume.mknod(dir, name.as_bytes(), &make, ROOT, Wait::Yes).unwrap().ino;
    volume.forget(ino, 1);
    volume.write(ino, 0, bytes, false, Wait::Yes).unwrap();
    ino
}

/// What the volume holds in the checkpoint, closed or not. Answers the first file.
fn fill(volume: &Volume) -> Ino {
    let first = add(volume, Ino::ROOT, "first", &noise(1, 30_000));
    volume.sync().unwrap();
    let shared = noise(2, 20_000);
    let one = add(volume, Ino::ROOT, "one", &shared);
    add(volume, Ino::ROOT, "other", &[&shared[..], b"and more"].concat());
    let clone = add(volume, Ino::ROOT, "clone", b"");
    volume.copy_range((one, 0), (clone, 0), 20_000, ROOT, Wait::Yes).unwrap();
    volume.write(clone, 7_000, b"changed", false, Wait::Yes).unwrap();
    let dir = volume.mkdir(Ino::ROOT, b"dir", 0o755, ROOT, Wait::Yes).unwrap().ino;
    add(volume, dir, "text", "the same line again\n".repeat(1500).as_bytes());
    let holes = add(volume, dir, "holes", &noise(3, 700));
    volume.write(holes, 150_000, &noise(4, 3000), false, Wait::Yes).unwrap();
    let deep = add(volume, dir, "deep", &noise(5, 150_000));
    volume.link(deep, Ino::ROOT, b"linked", Wait::Yes).unwrap();
    volume.symlink(dir, b"symlink", b"../one", ROOT, Wait::Yes).unwrap();
    volume.setxattr(one, b"user.note", &noise(6, 900), XattrMode::Any, Wait::Yes).unwrap();
    volume.setxattr(dir, b"user.kind", b"some", XattrMode::Any, Wait::Yes).unwrap();
    let list =
        super::attributes::list(&[(1, 7, !0), (2, 7, 7), (4, 4, !0), (16, 5, !0), (32, 0, !0)]);
    volume.set_acl(deep, ACCESS, &list, false, Wait::Yes).unwrap();
    let many = volume.mkdir(dir, b"many", 0o700, ROOT, Wait::Yes).unwrap().ino;
    for number in 0..120 {
        let bytes = if number % 3 == 0 { noise(100 + number, 60) } else { Vec::new() };
        add(volume, many, &format!("a name that is not so short {number}"), &bytes);
    }
    volume.sync().unwrap();
    first
}

fn sample(closed: bool) -> Sample {
    let (disk, clock) = (SimDisk::new(), SimClock::new());
    let options = CreateOptions {
        profile: Profile { branches: 16, ..Profile::DEFAULT },
        ..CreateOptions::default()
    };
    let shared: (Arc<dyn Disk>, Arc<dyn Clock>) = (Arc::new(disk.clone()), Arc::new(clock.clone()));
    Volume::create(&shared.0, &shared.1, &SimRng::new(7), &options).unwrap();
    let volume = open(&disk, &clock, small());
    let first = fill(&volume);
    volume.meta.take_in().unwrap();
    volume.store.save_index().unwrap();
    let mut states = vec![extract(&volume)];
    let mut last = first;
    for number in 0..4 {
        clock.advance(Duration::from_secs(1));
        last = add(&volume, Ino::ROOT, &format!("late-{number}"), &noise(50 + number, 25_000));
        volume.write(last, 90_000, b"end", false, Wait::Yes).unwrap();
        volume.unlink(Ino::ROOT, b"clone", Wait::Yes).ok();
        volume.sync().unwrap();
        states.push(extract(&volume));
    }
    if closed {
        volume.close().unwrap();
        states = states.split_off(states.len() - 1);
    }
    drop(volume);
    // As after a power loss: whoever damages the files next finds no lock.
    let disk = disk.crash(Keep::All);
    Sample { disk, clock, states, alone: [first.0, last.0], closed }
}

/// Random numbers of one case.
struct Dice(SimRng);

impl Dice {
    fn below(&self, bound: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % bound.max(1)
    }

    fn bytes(&self, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.0.fill(&mut bytes);
        bytes
    }
}

/// What was done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Bit,
    Zeroed,
    Garbage,
    Cut,
    CopiedOver,
    Removed,
    Swapped,
}

const WAYS: [How; 7] =
    [How::Bit, How::Zeroed, How::Garbage, How::Cut, How::CopiedOver, How::Removed, How::Swapped];

/// All files of a volume below `dir`, but for its lock.
fn files(disk: &SimDisk, dir: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in disk.read_dir(dir).unwrap() {
        let path = if dir.is_empty() { entry.name } else { format!("{dir}/{}", entry.name) };
        match entry.is_dir {
            true => found.extend(files(disk, &path)),
            false if path == "lock" => {}
            false => found.push(path),
        }
    }
    found.sort();
    found
}

fn content(disk: &SimDisk, path: &str) -> Vec<u8> {
    let file = disk.open(path, Access::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn put(disk: &SimDisk, path: &str, bytes: &[u8]) {
    let file = disk.open(path, Access::Write).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    file.write_all_at(bytes, 0).unwrap();
}

/// Damages a file; answers what was done, and to which.
fn hurt(disk: &SimDisk, dice: &Dice) -> (How, String) {
    let all = files(disk, "");
    let kind =
        ["packs", "packs", "packs", "meta", "meta", "index", "superblock"][dice.below(7) as usize];
    let of_kind: Vec<&String> = all.iter().filter(|path| path.starts_with(kind)).collect();
    let path = of_kind[dice.below(of_kind.len() as u64) as usize];
    let mut bytes = content(disk, path);
    let len = bytes.len() as u64;
    // Heads of files are small and matter most.
    let reach = if dice.below(4) == 0 { len.min(600) } else { len };
    let at = dice.below(reach);
    let how = WAYS[dice.below(WAYS.len() as u64) as usize];
    let sector = (at / 512 * 512) as usize..((at / 512 + 1) * 512).min(len) as usize;
    match how {
        How::Bit => bytes[at as usize] ^= 1 << dice.below(8),
        How::Zeroed => bytes[sector].fill(0),
        How::Garbage => {
            let garbage = dice.bytes(sector.len() as u64);
            bytes[sector].copy_from_slice(&garbage);
        }
        How::Cut => bytes.truncate(at as usize),
        How::CopiedOver => {
            let from = content(disk, &all[dice.below(all.len() as u64) as usize]);
            let start = dice.below(from.len() as u64);
            let count = (1 + dice.below(8192)).min(from.len() as u64 - start).min(len - at);
            let (start, at, count) = (start as usize, at as usize, count as usize);
            bytes[at..at + count].copy_from_slice(&from[start..start + count]);
        }
        How::Removed => {
            disk.remove_file(path).unwrap();
            return (how, path.clone());
        }
        How::Swapped => {
            let other = of_kind[dice.below(of_kind.len() as u64) as usize];
            put(disk, path, &content(disk, other));
            put(disk, other, &bytes);
            return (how, format!("{path} and {other}"));
        }
    }
    put(disk, path, &bytes);
    (how, path.clone())
}

/// What a volume cannot answer.
#[derive(Default)]
struct Silence {
    /// Files with bytes that cannot be read.
    contents: BTreeSet<u64>,
    /// How many questions of names and attributes got an error.
    others: u64,
}

impl Silence {
    fn is_none(&self) -> bool {
        self.contents.is_empty() && self.others == 0
    }

    /// Takes an answer apart: right, an error of the disk, or wrong.
    fn hear<T: PartialEq>(
        &mut self,
        answer: Result<T, Error>,
        right: &T,
        what: &str,
    ) -> Result<(), String> {
        match answer {
            Ok(found) if found == *right => Ok(()),
            Ok(_) => Err(format!("{what} is another")),
            Err(Error::NotFound | Error::Stale | Error::NoAttribute) => {
                Err(format!("{what} is gone"))
            }
            Err(error) => {
                assert!(!error.to_string().contains('\n'), "{error}");
                self.others += 1;
                Ok(())
            }
        }
    }
}

fn names(volume: &Volume, ino: Ino) -> Result<std::collections::BTreeMap<String, u64>, Error> {
    let mut names = std::collections::BTreeMap::new();
    volume.readdir(ino, 0, &mut |item| {
        let name = String::from_utf8_lossy(&item.name).into_owned();
        if name != "." && name != ".." {
            names.insert(name, item.ino.0);
        }
        true
    })?;
    Ok(names)
}

/// Reads a file as a whole, and by pieces when that fails: whatever is answered is right.
fn read(volume: &Volume, ino: u64, right: &[u8], silence: &mut Silence) -> Result<(), String> {
    match volume.read(Ino(ino), 0, right.len() + 1) {
        Ok(found) if found == right => return Ok(()),
        Ok(_) => return Err(format!("inode {ino} has other bytes")),
        Err(_) => silence.contents.insert(ino),
    };
    for (at, piece) in (0..).step_by(512).zip(right.chunks(512)) {
        if volume.read(Ino(ino), at, 512).is_ok_and(|found| found != piece) {
            return Err(format!("inode {ino} has other bytes at {at}"));
        }
    }
    Ok(())
}

/// Asks for all of a state: what cannot be answered, or what is answered wrong.
fn ask(volume: &Volume, state: &Snapshot) -> Result<Silence, String> {
    let mut silence = Silence::default();
    for (&number, entry) in state {
        let ino = Ino(number);
        let attributes =
            volume.getattr(ino).map(|attr| (attr.mode, attr.uid, attr.mtime, attr.nlink));
        let right = (entry.mode, entry.uid, entry.mtime, entry.nlink);
        silence.hear(attributes, &right, &format!("inode {number}"))?;
        match &entry.body {
            Body::Dir(right) => {
                silence.hear(names(volume, ino), right, &format!("directory {number}"))?;
                for (name, to) in right {
                    let found = volume.lookup(ino, name.as_bytes()).map(|attr| attr.ino.0);
                    silence.hear(found, to, name)?;
                }
            }
            Body::File(right) => read(volume, number, right, &mut silence)?,
            Body::Link(right) => {
                silence.hear(volume.readlink(ino), &right.clone().into_bytes(), "a link")?;
            }
            Body::Node => {}
        }
        let listed = volume.listxattr(ino).map(|names| names.len());
        silence.hear(listed, &entry.xattrs.len(), "a list of attributes")?;
        for (name, right) in &entry.xattrs {
            silence.hear(volume.getxattr(ino, name.as_bytes()), right, name)?;
        }
    }
    Ok(silence)
}

/// The files that a report names.
fn named(report: &check::Report) -> BTreeSet<u64> {
    let name = |finding: &check::Finding| match finding {
        check::Finding::Size { ino, .. }
        | check::Finding::ChunkMissing { ino, .. }
        | check::Finding::ChunkDamaged { ino, .. }
        | check::Finding::Tree { ino, .. } => Some(*ino),
        _ => None,
    };
    report.findings.iter().filter_map(name).collect()
}

/// What came of the cases.
#[derive(Debug, Default)]
struct Tally {
    cases: u64,
    harmless: u64,
    refused: u64,
    older: u64,
    hurt_files: u64,
    /// Volumes as whole after the repair as before the damage.
    restored: u64,
    /// Those that no repair could open.
    beyond: u64,
}

/// Judges a damaged image.
fn judge(sample: &Sample, disk: &SimDisk, how: How, path: &str, tally: &mut Tally) {
    tally.cases += 1;
    let clock: Arc<dyn Clock> = Arc::new(sample.clock.clone());
    let image = || Arc::new(OverlayDisk::new(Arc::new(disk.clone())));
    let report = check::run(image(), Arc::clone(&clock), true, &mut |_| {});
    let is_clean = report.as_ref().is_ok_and(|report| report.findings.is_empty());
    let volume = match Volume::open(image(), clock, small()) {
        Ok(volume) => volume,
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "{error}");
            assert!(!is_clean, "check finds nothing, and opening fails: {error}");
            assert!(!path.starts_with("index"), "an index in the way: {error}");
            tally.refused += 1;
            return;
        }
    };
    let mut wrong = Vec::new();
    let mut found = None;
    for (age, state) in sample.states.iter().rev().enumerate() {
        match ask(&volume, state) {
            Ok(silence) => {
                found = Some((age, silence));
                break;
            }
            Err(why) => wrong.push(why),
        }
    }
    let findings = volume.findings();
    let Some((age, silence)) = found else {
        // A record may be lost in front of the last, and that is told; the mount refuses it.
        panic!("a wrong volume: {wrong:?}, told {findings:?}")
    };
    assert!(silence.is_none() || !is_clean, "check finds nothing, and reads fail");
    if age != 0 {
        // The end of the log is as good as torn: nobody can tell. But opening says what it cut.
        let cut = |finding: &Finding| {
            matches!(finding, Finding::TailCut { .. } | Finding::PackSetAside { .. })
        };
        let shortened = matches!(how, How::Cut | How::Removed | How::Swapped);
        assert!(!sample.closed, "what the checkpoint holds is not older");
        assert!(shortened || findings.iter().any(cut), "{age} back, told {findings:?}");
        assert!(shortened || age == 1, "{age} commits are gone, told {findings:?}");
        tally.older += 1;
    }
    if let Ok(report) = &report {
        let (named, hurt) = (named(report), &silence.contents);
        assert!(
            hurt.is_subset(&named) || silence.others > 0,
            "{hurt:?} are hurt, and {named:?} named: {:?}",
            report.findings
        );
    }
    if path.starts_with("index") {
        assert!(silence.is_none() && age == 0 && is_clean, "the index is not derived");
    }
    if how == How::Bit && path.starts_with("packs") {
        assert!(!sample.alone.iter().all(|ino| silence.contents.contains(ino)), "all are hurt");
    }
    tally.harmless += u64::from(silence.is_none() && age == 0);
    tally.hurt_files += silence.contents.len() as u64;
    write_on(&volume);
}

/// A whole volume to take lost chunks from.
struct Whole([Arc<Volume>; 1]);

impl check::Sources for Whole {
    fn files(&self, _: &mut check::EachFile<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn volumes(&self) -> &[Arc<Volume>] {
        &self.0
    }
}

/// Repairs a damaged image, and judges what comes out.
fn judge_repair(sample: &Sample, whole: &Whole, disk: &SimDisk, tally: &mut Tally) {
    let clock: Arc<dyn Clock> = Arc::new(sample.clock.clone());
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut told = Vec::new();
    let rebuilt = match metadata_damage(&disk) {
        Ok(Some(_)) => rebuild_metadata(&disk).map(|rebuilt| told.extend(rebuilt.findings)),
        damage => damage.map(|_| ()),
    };
    let repaired = rebuilt
        .and_then(|()| check::repair(Arc::clone(&disk), Arc::clone(&clock), whole, &mut |_| {}));
    let repaired = match repaired {
        Ok(repaired) => repaired,
        Err(error) => {
            // Without its superblock nobody knows how a volume is read.
            assert!(!error.to_string().contains('\n'), "{error}");
            tally.beyond += 1;
            return;
        }
    };
    let volume = Volume::open(Arc::clone(&disk), Arc::clone(&clock), small());
    let volume = volume.unwrap_or_else(|error| panic!("after a repair: {error}; {repaired:?}"));
    // The newest state that it can be, unless commits are lost: then it may be one that never was.
    let commits_are_lost = !repaired.opening.is_empty() || !told.is_empty();
    let states = sample.states.iter().rev();
    let silence = states.filter_map(|state| ask(&volume, state).ok()).next();
    if !commits_are_lost {
        let silence = silence.as_ref().expect("a wrong volume after a repair");
        assert!(0 < repaired.lost || silence.is_none(), "lost, and not told: {repaired:?}");
    }
    tally.restored += u64::from(silence.is_some_and(|silence| silence.is_none()));
    volume.close().unwrap();
    drop(volume);
    let image = Arc::new(OverlayDisk::new(disk));
    let report = check::run(image, clock, true, &mut |_| {}).unwrap();
    let in_place = |one: &check::Finding| matches!(one, check::Finding::Store(_));
    let left: Vec<_> = report.findings.iter().filter(|one| !in_place(one)).take(3).collect();
    assert!(left.is_empty() || 0 < repaired.lost, "{left:?} after {repaired:?}");
}

/// The volume may take changes or not: it says which, and keeps what it took. Bytes that it holds
/// already may be damaged where they lie, which is told when they are read.
fn write_on(volume: &Volume) {
    for (name, bytes) in [("new", noise(99, 20_000)), ("again", noise(2, 20_000))] {
        let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
        let made = volume.mknod(Ino::ROOT, name.as_bytes(), &make, ROOT, Wait::Yes);
        let Ok(attr) = made else { continue };
        let written = volume.write(attr.ino, 0, &bytes, false, Wait::Yes);
        if written.and_then(|()| volume.fsync(attr.ino, Wait::Yes)).is_ok() {
            match volume.read(attr.ino, 0, bytes.len() + 1) {
                Ok(found) => assert!(found == bytes, "other bytes than were just written"),
                Err(error) => assert!(name == "again", "what was just written: {error}"),
            }
        }
    }
    let _ = volume.close();
}

/// Runs cases, each with a time limit.
fn campaign(closed: bool) {
    let cases = CASES * u64::from(crate::testing::factor());
    let seed = crate::testing::seed() << 32;
    let tally = crate::testing::watched(HANG, move |told| {
        let sample = sample(closed);
        let image = Arc::new(OverlayDisk::new(Arc::new(sample.disk.crash(Keep::All))));
        let whole = Whole([Volume::open(image, Arc::new(sample.clock.clone()), small()).unwrap()]);
        let (mut tally, mut failed) = (Tally::default(), Vec::new());
        for case in seed..seed + cases {
            let disk = sample.disk.crash(Keep::All);
            let (how, path) = hurt(&disk, &Dice(SimRng::new(case)));
            let _ = told.send(format!("case {case}, {path}: {how:?}"));
            let judged = AssertUnwindSafe(|| {
                judge(&sample, &disk, how, &path, &mut tally);
                judge_repair(&sample, &whole, &disk, &mut tally);
            });
            if catch_unwind(judged).is_err() {
                failed.push(format!("case {case}, {path}: {how:?}"));
            }
        }
        assert!(failed.is_empty(), "{} failed: {failed:#?}", failed.len());
        tally
    });
    println!("{tally:?}");
    assert_eq!(tally.cases, cases);
    assert!(0 < tally.harmless && 0 < tally.refused && 0 < tally.hurt_files, "{tally:?}");
    assert!(tally.cases < 2 * tally.restored && 0 < tally.beyond, "{tally:?}");
}

#[test]
fn damage_to_a_closed_volume_is_told_and_never_believed() {
    campaign(true);
}

#[test]
fn damage_to_a_volume_that_was_not_closed_is_told_and_never_believed() {
    campaign(false);
}

#[test]
fn a_volume_without_its_index_is_the_same() {
    for closed in [true, false] {
        let sample = sample(closed);
        for path in files(&sample.disk, "index") {
            sample.disk.remove_file(&path).unwrap();
        }
        judge(&sample, &sample.disk, How::Removed, "index", &mut Tally::default());
    }
}
