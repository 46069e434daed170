//! Checking a volume that is in use.

use std::time::Duration;

use super::*;
use crate::meta::CheckState;
use crate::sys::real::RealClock;
use crate::volume::Current;

const ASKED: Schedule = Schedule { interval: None, rate_bytes: 0 };

/// A volume with small packs: files of 40,000 bytes each, by number.
fn volume(files: u64) -> (SimDisk, Arc<Current>) {
    let disk = SimDisk::new();
    let clock: Arc<dyn Clock> = Arc::new(SimClock::new());
    let plain: Arc<dyn Disk> = Arc::new(disk.clone());
    Volume::create(&plain, &clock, &SimRng::new(1), &CreateOptions::default()).unwrap();
    let volume = open_again(&disk);
    for number in 0..files {
        write(&volume, "file", number);
    }
    (disk, volume)
}

fn open_again(disk: &SimDisk) -> Arc<Current> {
    let clock: Arc<dyn Clock> = Arc::new(SimClock::new());
    let options =
        OpenOptions { background: false, pack_bytes_max: 64 << 10, ..OpenOptions::default() };
    Current::new(Volume::open(Arc::new(disk.clone()), clock, options).unwrap())
}

fn write(volume: &Volume, prefix: &str, number: u64) {
    let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
    let name = format!("{prefix}-{number}");
    let ino = volume.mknod(Ino::ROOT, name.as_bytes(), &make, ROOT, Wait::Yes).unwrap().ino;
    volume.write(ino, 0, &noise(number, 40_000), false, Wait::Yes).unwrap();
    volume.forget(ino, 1);
    volume.sync().unwrap();
}

fn start(volume: &Arc<Current>, schedule: Schedule) -> Scrub {
    Scrub::start(volume, Arc::new(RealClock::new()), schedule).unwrap()
}

/// Waits for the end of the check under way.
fn ended(scrub: &Scrub) -> Figures {
    for _ in 0..10_000 {
        let figures = scrub.figures();
        if !figures.running {
            return figures;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("the check does not end");
}

fn rot_pack(disk: &SimDisk, pack: u64) {
    let path = format!("packs/{pack:02x}/{pack:016x}.pack");
    disk.rot(&path, 20_000, 1).unwrap();
}

#[test]
fn a_volume_in_use_is_checked() {
    let (disk, volume) = volume(8);
    let scrub = start(&volume, ASKED);
    assert_eq!(scrub.figures().finished, 0);
    assert!(scrub.ask(true, None).running);
    // Meanwhile it is used.
    (8..12).for_each(|number| write(&volume, "file", number));
    let figures = ended(&scrub);
    assert_eq!((figures.finding_count, figures.failure.clone()), (0, None));
    assert!(figures.finished > 0 && figures.files >= 9 && figures.bytes > 0, "{figures:?}");
    // Damage is found, is not offered any more, and heals.
    rot_pack(&disk, 2);
    scrub.ask(true, None);
    let figures = ended(&scrub);
    assert!(figures.finding_count > 0, "{figures:?}");
    assert!(figures.findings.iter().any(|line| line.contains("inode")), "{figures:?}");
    (0..12).for_each(|number| write(&volume, "again", number));
    scrub.ask(true, None);
    let figures = ended(&scrub);
    assert_eq!(figures.finding_count, 0, "{figures:?}");
    assert!(figures.healed > 0);
    let finished = figures.finished;
    scrub.stop();
    volume.close().unwrap();
    drop((scrub, volume));
    // What was known is known at the next mount.
    let volume = open_again(&disk);
    let scrub = start(&volume, ASKED);
    assert_eq!((scrub.figures().finished, scrub.figures().finding_count), (finished, 0));
    scrub.stop();
    volume.close().unwrap();
}

#[test]
fn a_check_that_was_cut_short_goes_on_where_it_was() {
    let (disk, volume) = volume(8);
    let scrub = start(&volume, Schedule { interval: None, rate_bytes: 1 });
    scrub.ask(true, None);
    // At this rate it would take a day: somebody ends it.
    while scrub.figures().done_bytes == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    scrub.cancel();
    let figures = ended(&scrub);
    assert!(figures.failure.is_some() && figures.finished == 0, "{figures:?}");
    scrub.stop();
    volume.close().unwrap();
    drop((scrub, volume));
    // As if it had come that far.
    let volume = open_again(&disk);
    let state = CheckState { next_pack: 4, finished: 0, findings: 3 };
    volume.meta().enter().put(&Key::Check, state.encode());
    volume.sync().unwrap();
    rot_pack(&disk, 2);
    let scrub = start(&volume, ASKED);
    scrub.ask(false, None);
    let figures = ended(&scrub);
    assert_eq!((figures.finding_count, figures.failure), (3, None), "the second pack was done");
    scrub.ask(false, None);
    assert!(ended(&scrub).finding_count > 0);
    scrub.stop();
    volume.close().unwrap();
}

#[test]
fn a_check_begins_by_itself_when_it_is_time() {
    let (_disk, volume) = volume(1);
    let scrub = start(&volume, Schedule { interval: Some(Duration::from_millis(50)), ..ASKED });
    for _ in 0..10_000 {
        if scrub.figures().finished > 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(scrub.figures().finished > 0);
    scrub.stop();
    volume.close().unwrap();
}

#[test]
fn a_check_that_was_ended_does_not_begin_again_by_itself_at_once() {
    let (_disk, volume) = volume(4);
    let schedule = Schedule { interval: Some(Duration::from_millis(10)), rate_bytes: 1 };
    let scrub = start(&volume, schedule);
    while scrub.figures().done_bytes == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    scrub.cancel();
    assert!(ended(&scrub).failure.is_some());
    std::thread::sleep(Duration::from_millis(200));
    assert!(!scrub.figures().running);
    scrub.stop();
    volume.close().unwrap();
}
