//! Failing I/O: whatever call fails, nobody panics or hangs, and what was acknowledged stays.

use super::crash::{assert_clean, extract};
use super::*;
use crate::sys::sim::{CallKind, Keep};

/// Packs that fill within the work.
fn small() -> OpenOptions {
    OpenOptions { pack_bytes_max: 80 << 10, dirty_bytes_max: 60_000, ..options() }
}

fn name(number: u64) -> String {
    format!("file-{number}")
}

/// Makes, writes and syncs a file.
fn add(volume: &Volume, number: u64) -> Result<(), Error> {
    let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
    let made = volume.mknod(Ino::ROOT, name(number).as_bytes(), &make, ROOT, Wait::Yes)?;
    volume.forget(made.ino, 1);
    volume.write(made.ino, 0, &noise(number, 40_000), false, Wait::Yes)?;
    volume.fsync(made.ino, Wait::Yes)
}

fn check_file(volume: &Volume, number: u64, label: &str) {
    let ino = volume.lookup(Ino::ROOT, name(number).as_bytes()).unwrap().ino;
    volume.forget(ino, 1);
    let bytes = volume.read(ino, 0, 50_000).unwrap_or_else(|error| panic!("{label}: {error}"));
    assert!(bytes == noise(number, 40_000), "{label}: file {number} has other bytes");
}

/// Fails the `n`-th call while files are added; answers whether anything was met.
fn fail(base: &SimDisk, clock: &SimClock, (n, errno, kind): (u64, i32, CallKind)) -> bool {
    let label = format!("call {n} of {kind:?} fails with {errno}");
    let disk = base.crash(Keep::All);
    disk.fail_call(n, errno, kind);
    let opened = Volume::open(Arc::new(disk.clone()), Arc::new(clock.clone()), small());
    let mut met = opened.is_err();
    let mut kept = vec![0];
    if let Ok(volume) = opened {
        for number in 1..6 {
            match add(&volume, number) {
                Ok(()) => kept.push(number),
                Err(error) => {
                    met = true;
                    assert!(!error.to_string().contains('\n'), "{label}: {error}");
                    let full = matches!(error, Error::NoSpace);
                    assert_eq!(full, errno == libc::ENOSPC, "{label}: {error}");
                }
            }
            if number == 3 {
                met |= volume.meta.take_in().is_err();
            }
        }
        disk.clear_failures();
        for &number in &kept {
            check_file(&volume, number, &label);
        }
        match volume.sync() {
            Ok(()) => assert_eq!(extract(&volume).len(), extract(&volume).len()),
            Err(Error::Poisoned { .. }) => {
                assert_ne!(errno, libc::ENOSPC, "{label}: a full disk poisons");
                assert!(matches!(add(&volume, 9), Err(Error::Poisoned { .. })), "{label}");
            }
            Err(error) => panic!("{label}: {error}"),
        }
    }
    let image = disk.crash(Keep::Nothing);
    assert_clean(&image, clock, true, &label);
    let volume = open(&image, clock, small());
    for &number in &kept {
        check_file(&volume, number, &label);
    }
    add(&volume, 10).unwrap();
    met
}

fn fail_each(errno: i32, kind: CallKind) {
    let (disk, clock) = (SimDisk::new(), SimClock::new());
    create(&disk, &clock);
    let volume = open(&disk, &clock, small());
    add(&volume, 0).unwrap();
    volume.close().unwrap();
    drop(volume);
    let met = (1..50).filter(|&n| fail(&disk, &clock, (n, errno, kind))).count();
    assert!(5 < met, "only {met} failures were met");
}

#[test]
fn failing_reads_are_survived() {
    fail_each(libc::EIO, CallKind::Read);
}

#[test]
fn failing_writes_are_survived() {
    fail_each(libc::EIO, CallKind::Write);
}

#[test]
fn failing_syncs_are_survived() {
    fail_each(libc::EIO, CallKind::Sync);
}

#[test]
fn a_disk_that_is_full_for_a_moment_is_survived() {
    fail_each(libc::ENOSPC, CallKind::Write);
}

#[test]
fn after_a_failed_sync_all_changes_are_refused_until_the_volume_is_opened_again() {
    let bench = Bench::new();
    add(&bench.volume, 1).unwrap();
    let ino = bench.create("late");
    bench.disk.fail_call(1, libc::EIO, CallKind::Sync);
    assert!(bench.volume.fsync(ino, Wait::Yes).is_err());
    let poisoned = |result: Result<(), Error>| matches!(result, Err(Error::Poisoned { .. }));
    assert!(poisoned(bench.volume.fsync(ino, Wait::Yes)));
    assert!(poisoned(bench.volume.write(ino, 0, b"x", false, Wait::Yes)));
    assert!(poisoned(bench.volume.unlink(Ino::ROOT, b"late", Wait::Yes)));
    assert!(bench.volume.status().unwrap().poisoned);
    check_file(&bench.volume, 1, "poisoned");
    assert!(bench.volume.close().is_err());
    let volume = open(&bench.disk.crash(Keep::Nothing), &bench.clock, options());
    check_file(&volume, 1, "opened again");
    add(&volume, 2).unwrap();
}
