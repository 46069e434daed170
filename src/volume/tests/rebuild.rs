//! The metadata made again from images and commit records.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use super::crash::{assert_clean, extract};
use super::model::Snapshot;
use super::*;
use crate::store::{self, Finding};
use crate::sys::Access;
use crate::sys::sim::{CallKind, Keep};

const FILE: &str = "meta/checkpoint.redb";
/// A page and its trailer.
const PAGE_BYTES: u64 = 4104;

/// Takes the checkpoint away.
pub(super) fn lose_metadata(disk: &SimDisk) {
    disk.remove_file(FILE).unwrap();
}

fn dynamic(disk: &SimDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

/// Images as often as there is something for one.
fn often() -> OpenOptions {
    OpenOptions { image_bytes_min: 1, pack_bytes_max: 128 << 10, ..super::options() }
}

fn round(bench: &Bench, number: u64) {
    for file in 0..6 {
        let name = format!("file {}", (number * 3 + file) % 20);
        let ino = match bench.find(&name) {
            Ok(ino) => ino,
            Err(_) => bench.create(&name),
        };
        bench.write(ino, number * 100, &noise(number * 7 + file, 3000));
    }
    if let Ok(ino) = bench.find(&format!("file {}", number % 20)) {
        let any = XattrMode::Any;
        let value = noise(number, 5000);
        bench.volume.setxattr(ino, b"user.x", &value, any, Wait::Yes).unwrap();
    }
    if number % 4 == 3 {
        let name = format!("file {}", (number * 3) % 20);
        bench.volume.unlink(Ino::ROOT, name.as_bytes(), Wait::Yes).unwrap();
    }
    bench.volume.sync().unwrap();
}

/// Goes on until another image is due.
fn until_due(bench: &Bench) {
    let mut numbers = 30..60;
    while !bench.volume.image_is_due() {
        round(bench, numbers.next().expect("records make an image due"));
    }
}

/// A volume with some commits, and what it holds; with `images` there are images too.
fn volume(images: bool) -> (Bench, Snapshot) {
    let bench = Bench::with(if images { often() } else { options() });
    for number in 0..12 {
        round(&bench, number);
        if images && number % 4 == 2 {
            bench.volume.keep_second_lives();
        }
    }
    let state = extract(&bench.volume);
    (bench, state)
}

/// Rebuilds a disk's metadata; all is there afterwards.
fn assert_rebuilds(disk: &SimDisk, clock: &SimClock, state: &Snapshot, label: &str) -> Rebuilt {
    let rebuilt = rebuild_metadata(&dynamic(disk)).unwrap_or_else(|e| panic!("{label}: {e}"));
    assert_eq!(rebuilt.findings, [], "{label}");
    assert!(metadata_damage(&dynamic(disk)).unwrap().is_none(), "{label}");
    assert_clean(disk, clock, true, label);
    let volume = open(disk, clock, options());
    assert_eq!(&extract(&volume), state, "{label}");
    let make = Make { mode: MODE_FILE | 0o600, rdev: 0 };
    let new = volume.mknod(Ino::ROOT, b"after", &make, ROOT, Wait::Yes).unwrap().ino;
    assert!(!state.contains_key(&new.0), "{label}: a number is used again");
    volume.close().unwrap();
    rebuilt
}

fn image_packs(disk: &SimDisk) -> BTreeSet<u64> {
    let volume = Superblock::read(disk).unwrap().uuid;
    let images = store::find_images(&dynamic(disk), volume).unwrap();
    images.into_iter().map(|image| image.head.image).collect()
}

#[test]
fn lost_or_cut_metadata_is_made_again_with_and_without_an_image() {
    for images in [false, true] {
        for closed in [false, true] {
            let (bench, state) = volume(images);
            if closed {
                bench.volume.close().unwrap();
            }
            let disk = bench.disk.crash(Keep::All);
            let len = disk.open(FILE, Access::Read).unwrap().len().unwrap();
            for cut in [None, Some(0), Some(len / 2), Some(len - 3)] {
                let label = format!("images {images}, closed {closed}, cut {cut:?}");
                let image = disk.crash(Keep::All);
                match cut {
                    None => lose_metadata(&image),
                    Some(cut) => {
                        image.open(FILE, Access::Write).unwrap().set_len(cut).unwrap();
                    }
                }
                let damage = metadata_damage(&dynamic(&image)).unwrap();
                if cut != Some(len - 3) {
                    assert!(damage.is_some(), "{label}");
                    let opened =
                        Volume::open(dynamic(&image), Arc::new(bench.clock.clone()), often());
                    assert!(matches!(opened.map(drop), Err(Error::Meta(_))), "{label}");
                }
                let rebuilt = assert_rebuilds(&image, &bench.clock, &state, &label);
                assert_eq!(rebuilt.image.is_some(), images, "{label}");
                assert!(0 < rebuilt.sequence && (closed || 0 < rebuilt.records));
                let aside = rebuilt.aside;
                assert_eq!(aside.is_some(), cut.is_some(), "{label}");
                if let (Some(path), Some(cut)) = (aside, cut) {
                    assert_eq!(image.open(&path, Access::Read).unwrap().len().unwrap(), cut);
                }
            }
        }
    }
}

#[test]
fn a_rotten_page_anywhere_is_harmless_or_found_and_mended() {
    let (bench, state) = volume(true);
    bench.volume.close().unwrap();
    let disk = bench.disk.crash(Keep::All);
    let pages = disk.open(FILE, Access::Read).unwrap().len().unwrap() / PAGE_BYTES;
    let mut mended = 0;
    for page in (0..pages).step_by(3) {
        let label = format!("page {page}");
        let image = disk.crash(Keep::All);
        let at = page * PAGE_BYTES + (page * 617 + crate::testing::seed()) % 4096;
        image.rot(FILE, at, 0x20).unwrap();
        if metadata_damage(&dynamic(&image)).unwrap().is_some() {
            assert_rebuilds(&image, &bench.clock, &state, &label);
            mended += 1;
        } else {
            let volume = open(&image, &bench.clock, options());
            assert_eq!(extract(&volume), state, "{label}");
            round(&Bench { disk: image, clock: bench.clock.clone(), volume }, 50);
        }
    }
    assert!(5 < mended, "only {mended} of {pages} pages");
}

#[test]
fn a_newer_image_takes_the_place_of_the_older_ones() {
    let (bench, _) = volume(true);
    for number in 12..30 {
        round(&bench, number);
        let is_due = bench.volume.image_is_due();
        let before = image_packs(&bench.disk);
        bench.volume.keep_second_lives();
        let after = image_packs(&bench.disk);
        assert_eq!(after.len(), 1);
        assert_eq!(is_due, before != after, "one is made when it is due");
        assert!(!bench.volume.image_is_due());
    }
    let state = extract(&bench.volume);
    // Removed packs are no longer counted, and nothing else is gone.
    let stats = bench.volume.store().stats();
    bench.volume.close().unwrap();
    let volume = open(&bench.disk, &bench.clock, options());
    assert_eq!(volume.store().stats().packs, stats.packs);
    volume.close().unwrap();
    let image = bench.disk.crash(Keep::All);
    lose_metadata(&image);
    let rebuilt = assert_rebuilds(&image, &bench.clock, &state, "after many images");
    assert!(rebuilt.image.unwrap() + rebuilt.records == rebuilt.sequence);
    // Twice: the one set aside first stays.
    for number in 2..4 {
        let rebuilt = rebuild_metadata(&dynamic(&image)).unwrap();
        let suffix = if number == 2 { String::new() } else { format!(".{}", number - 1) };
        assert_eq!(rebuilt.aside.unwrap(), format!("meta.aside{suffix}/checkpoint.redb"));
    }
}

#[test]
fn an_image_of_several_parts_and_packs() {
    let bench = Bench::with(often());
    for number in 0..40 {
        let ino = bench.create(&format!("{number}"));
        for name in [&b"user.a"[..], b"user.b"] {
            let value = noise(number, 40_000);
            bench.volume.setxattr(ino, name, &value, XattrMode::Any, Wait::Yes).unwrap();
        }
        bench.volume.sync().unwrap();
    }
    bench.volume.keep_second_lives();
    round(&bench, 1);
    let state = extract(&bench.volume);
    let disk = bench.disk.crash(Keep::All);
    let packs = bench.volume.store().stats().packs;
    assert_eq!(image_packs(&disk).len(), 1);
    let image = disk.crash(Keep::All);
    lose_metadata(&image);
    assert!(assert_rebuilds(&image, &bench.clock, &state, "parts").image.is_some());
    // With any byte of it damaged, or a pack of it gone, the log alone is enough.
    let first = *image_packs(&disk).first().unwrap();
    for number in first..first + 3 {
        let path = format!("packs/{:02x}/{number:016x}.pack", number & 0xff);
        let len = disk.open(&path, Access::Read).unwrap().len().unwrap();
        assert!(100_000 < len, "{packs} packs");
        for damage in [None, Some(len / 2)] {
            let image = disk.crash(Keep::All);
            lose_metadata(&image);
            match damage {
                None => image.remove_file(&path).unwrap(),
                Some(at) => image.rot(&path, at, 1).unwrap(),
            }
            let rebuilt = rebuild_metadata(&dynamic(&image)).unwrap();
            assert_eq!((rebuilt.image, rebuilt.findings), (None, vec![]));
            assert_eq!(extract(&open(&image, &bench.clock, options())), state);
        }
    }
}

/// Keeps what a power loss at every sync would leave.
fn watch(disk: &SimDisk) -> Arc<Mutex<Vec<SimDisk>>> {
    let images = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&images);
    disk.set_hook(Some(Box::new(move |disk: &SimDisk, event| {
        let seed = event.number + crate::testing::seed() * 1000;
        for kept in [Keep::Nothing, Keep::All, Keep::Random(seed), Keep::Random(!seed)] {
            keep.lock().push(disk.crash(kept));
        }
    })));
    images
}

#[test]
fn a_power_loss_while_an_image_is_made_or_exchanged_loses_nothing() {
    let (bench, _) = volume(true);
    until_due(&bench);
    let state = extract(&bench.volume);
    let images = watch(&bench.disk);
    bench.volume.keep_second_lives();
    bench.disk.set_hook(None);
    assert!(!bench.volume.image_is_due());
    let images = std::mem::take(&mut *images.lock());
    assert!(20 < images.len());
    for (number, image) in images.into_iter().enumerate() {
        let label = format!("image {number}");
        assert_clean(&image, &bench.clock, false, &label);
        let lost = image.crash(Keep::All);
        lose_metadata(&lost);
        let rebuilt = assert_rebuilds(&lost, &bench.clock, &state, &label);
        assert!(rebuilt.image.is_some(), "{label}: the older or the newer image is whole");
        // What was left over goes with the next image.
        let volume = open(&image, &bench.clock, often());
        let next = Bench { disk: image, clock: bench.clock.clone(), volume };
        until_due(&next);
        next.volume.keep_second_lives();
        assert_eq!(image_packs(&next.disk).len(), 1, "{label}");
    }
}

#[test]
fn a_power_loss_while_rebuilding_leaves_the_old_or_the_new_or_can_be_done_again() {
    for damage in [false, true] {
        let (bench, state) = volume(true);
        bench.volume.close().unwrap();
        let disk = bench.disk.crash(Keep::All);
        let old = disk.open(FILE, Access::Read).unwrap().len().unwrap();
        if damage {
            (0..old / PAGE_BYTES).for_each(|page| disk.rot(FILE, page * PAGE_BYTES, 1).unwrap());
        } else {
            lose_metadata(&disk);
        }
        let disk = disk.crash(Keep::All);
        let images = watch(&disk);
        rebuild_metadata(&dynamic(&disk)).unwrap();
        disk.set_hook(None);
        let images = std::mem::take(&mut *images.lock());
        assert!(30 < images.len());
        let mut whole = 0;
        for (number, image) in images.into_iter().enumerate() {
            let label = format!("damage {damage}, image {number}");
            if metadata_damage(&dynamic(&image)).unwrap().is_some() {
                assert_rebuilds(&image, &bench.clock, &state, &label);
            } else {
                assert_eq!(extract(&open(&image, &bench.clock, options())), state, "{label}");
                whole += 1;
            }
            let dirs = image.read_dir("").unwrap().into_iter().map(|entry| entry.name);
            let aside = dirs.filter(|name| name.starts_with("meta.aside")).count();
            assert!(!damage || 0 < aside, "{label}: the old one is set aside");
        }
        assert!(0 < whole);
    }
}

#[test]
fn a_missing_record_is_named_and_all_others_are_there() {
    for images in [false, true] {
        let (bench, _) = volume(images);
        let before = bench.volume.store().stats().sequence;
        let name = format!("{}", 99);
        let kept = bench.create("kept");
        bench.volume.sync().unwrap();
        let first = bench.volume.store().stats();
        // Its record alone: the file `99` is made in it and never touched again.
        bench.create(&name);
        bench.volume.sync().unwrap();
        bench.write(kept, 0, b"later");
        bench.volume.sync().unwrap();
        bench.write(kept, 5, b" and last");
        bench.volume.sync().unwrap();
        let disk = bench.disk.crash(Keep::All);
        assert_eq!(first.sequence, before + 1);
        damage_record(&disk, first.sequence + 1);
        lose_metadata(&disk);
        let rebuilt = rebuild_metadata(&dynamic(&disk)).unwrap();
        let missing = Finding::RecordMissing { sequence: first.sequence + 1 };
        assert_eq!(rebuilt.findings, [missing], "images {images}");
        let volume = open(&disk, &bench.clock, options());
        assert_eq!(volume.read(kept, 0, 100).unwrap(), b"later and last");
        assert!(volume.lookup(Ino::ROOT, name.as_bytes()).is_err());
        assert!(volume.lookup(Ino::ROOT, b"kept").is_ok());
    }
}

/// Flips a bit in the entries of a commit record, found by its number in its head.
fn damage_record(disk: &SimDisk, sequence: u64) {
    for dir in disk.read_dir("packs").unwrap() {
        let dir = format!("packs/{}", dir.name);
        for pack in disk.read_dir(&dir).unwrap() {
            let path = format!("{dir}/{}", pack.name);
            let file = disk.open(&path, Access::Read).unwrap();
            let mut bytes = vec![0; file.len().unwrap() as usize];
            file.read_at(&mut bytes, 0).unwrap();
            let record = (0..bytes.len().saturating_sub(48)).step_by(8).find(|&at| {
                bytes[at..].starts_with(b"PYRF\x03")
                    && bytes[at + 40..at + 48] == sequence.to_le_bytes()
            });
            if let Some(at) = record {
                let list = u32::from_le_bytes(bytes[at + 12..at + 16].try_into().unwrap());
                disk.rot(&path, at as u64 + 40 + u64::from(list) + 1, 1).unwrap();
                return;
            }
        }
    }
    panic!("record {sequence} was not found");
}

#[test]
fn without_a_record_or_an_image_nothing_is_exchanged() {
    let bench = Bench::new();
    bench.volume.close().unwrap();
    for dir in bench.disk.read_dir("packs").unwrap() {
        for pack in bench.disk.read_dir(&format!("packs/{}", dir.name)).unwrap() {
            bench.disk.remove_file(&format!("packs/{}/{}", dir.name, pack.name)).unwrap();
        }
    }
    let rebuilt = rebuild_metadata(&dynamic(&bench.disk));
    assert!(matches!(rebuilt, Err(Error::NothingToRebuild)), "{rebuilt:?}");
    assert!(
        metadata_damage(&dynamic(&bench.disk)).unwrap().is_none(),
        "the old one is in its place"
    );
}

#[test]
fn an_image_that_fails_is_no_harm() {
    for errno in [libc::EIO, libc::ENOSPC] {
        for kind in [CallKind::Write, CallKind::Sync] {
            let (bench, _) = volume(true);
            until_due(&bench);
            // The take-in that comes first is none of the image.
            bench.volume.take_in();
            let state = extract(&bench.volume);
            bench.disk.fail_call(1, errno, kind);
            bench.volume.keep_second_lives();
            assert_eq!(bench.disk.failures_left(), 0);
            assert!(!bench.volume.image_is_due(), "not again at once");
            bench.create("more");
            bench.volume.sync().unwrap();
            bench.volume.unlink(Ino::ROOT, b"more", Wait::Yes).unwrap();
            bench.volume.sync().unwrap();
            assert_eq!(image_packs(&bench.disk).len(), 1);
            let image = bench.disk.crash(Keep::Nothing);
            lose_metadata(&image);
            let rebuilt = rebuild_metadata(&dynamic(&image)).unwrap();
            assert_eq!(rebuilt.findings, []);
            let after = extract(&open(&image, &bench.clock, options()));
            assert_eq!(after.len(), state.len());
        }
    }
}
