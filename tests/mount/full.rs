//! A filesystem below the volume that fills up, and a quota that is reached: in the middle of
//! writes and of commits.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::backing::Backing;
use super::harness::{Numbers, Site, errno_of};

/// What ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Disk,
    Quota,
}

impl End {
    fn errno(self) -> i32 {
        match self {
            End::Disk => libc::ENOSPC,
            End::Quota => libc::EDQUOT,
        }
    }

    /// A mounted volume that ends after `mib` MiB.
    fn mounted(self, mib: u64) -> (Site, Option<Backing>) {
        let site = Site::bare();
        let backing = match self {
            End::Disk => Some(Backing::memory(&site, &format!("{mib}m"))),
            End::Quota => None,
        };
        site.ok(["mkfs".as_ref(), site.volume().as_os_str()]);
        self.mount(&site, mib);
        (site, backing)
    }

    fn mount(self, site: &Site, mib: u64) {
        match self {
            End::Disk => site.mount(),
            End::Quota => site.mount_with(&["-o", &format!("quota={mib}MiB")]),
        }
    }
}

/// The first syncfs(2) may report the failure of before once more, as Linux does for a whole
/// filesystem; from then on all is well.
fn forget_errors(site: &Site) {
    let _ = Command::new("sync").arg("--file-system").arg(site.mountpoint()).output();
}

/// Writes whole files until one is refused; returns those that an fsync acknowledged, by number.
fn fill(site: &Site, from: u64, bytes: usize) -> (Vec<u64>, i32) {
    let mut kept = Vec::new();
    for number in from..from + 10_000 {
        let written = File::create(site.at(format!("file-{number}"))).and_then(|mut file| {
            file.write_all(&Numbers(number).stream(bytes))?;
            file.sync_all()
        });
        match written {
            Ok(()) => kept.push(number),
            failed => return (kept, errno_of(failed)),
        }
    }
    panic!("it never fills up");
}

/// Makes names until one is refused, and returns why.
fn fill_names(site: &Site) -> i32 {
    let made = (0..20_000).map(|number| errno_of(fs::create_dir(site.at(format!("d{number}")))));
    made.into_iter().find(|&errno| errno != 0).expect("it never fills up")
}

fn check_files(site: &Site, kept: &[u64], bytes: usize) {
    for &number in kept {
        let found = fs::read(site.at(format!("file-{number}"))).unwrap();
        assert!(found == Numbers(number).stream(bytes), "file {number} has other bytes");
    }
}

fn writing_ends_and_loses_nothing(end: End) {
    let (site, backing) = end.mounted(96);
    let kept = Numbers(1).stream(8 << 20);
    fs::write(site.at("kept"), &kept).unwrap();
    File::open(site.at("kept")).unwrap().sync_all().unwrap();
    let mut big = File::create(site.at("big")).unwrap();
    let bytes = Numbers(2).stream(200 << 20);
    // With write-back the answer may come only when the bytes are handed over.
    let written = big.write_all(&bytes).and_then(|()| big.sync_all());
    assert_eq!(errno_of(written), end.errno());
    drop(big);
    assert!(fs::read(site.at("kept")).unwrap() == kept);
    fs::remove_file(site.at("big")).unwrap();
    forget_errors(&site);
    site.ok(["sync".as_ref(), site.mountpoint().as_os_str()]);
    site.umount();
    end.mount(&site, 96);
    assert!(fs::read(site.at("kept")).unwrap() == kept);
    assert!(!site.at("big").exists());
    site.umount_and_check();
    drop(backing);
}

#[test]
fn writing_ends_with_enospc_and_loses_nothing() {
    writing_ends_and_loses_nothing(End::Disk);
}

#[test]
fn writing_ends_with_edquot_and_loses_nothing() {
    writing_ends_and_loses_nothing(End::Quota);
}

/// What an fsync acknowledged stays; removing works; and what was removed is gone for good.
fn whole_files_until_the_end(end: End) {
    let (site, backing) = end.mounted(64);
    let bytes = 700_000;
    let (kept, errno) = fill(&site, 0, bytes);
    assert_eq!(errno, end.errno());
    assert!(30 < kept.len(), "only {} files", kept.len());
    check_files(&site, &kept, bytes);
    // Nothing that takes space is let in, and everything else is.
    assert_eq!(fill_names(&site), end.errno());
    let first = site.at(format!("file-{}", kept[0]));
    assert_eq!(errno_of(fs::hard_link(&first, site.at("link"))), end.errno());
    fs::rename(&first, site.at("renamed")).unwrap();
    fs::rename(site.at("renamed"), &first).unwrap();
    File::open(&first).unwrap().sync_all().unwrap();
    forget_errors(&site);
    let (gone, rest) = kept.split_at(kept.len() / 2);
    for number in gone {
        fs::remove_file(site.at(format!("file-{number}"))).unwrap();
    }
    site.ok(["sync".as_ref(), site.mountpoint().as_os_str()]);
    site.kill_daemon();
    let _ = Command::new("umount").arg("--lazy").arg(site.mountpoint()).output();
    end.mount(&site, 64);
    check_files(&site, rest, bytes);
    assert!(gone.iter().all(|number| !site.at(format!("file-{number}")).exists()));
    site.umount_and_check();
    drop(backing);
}

#[test]
fn a_full_disk_keeps_what_was_acknowledged_and_takes_removals() {
    whole_files_until_the_end(End::Disk);
}

#[test]
fn a_full_quota_keeps_what_was_acknowledged_and_takes_removals() {
    whole_files_until_the_end(End::Quota);
}

/// When room is low write(2) itself fails: all that it took before is there after the fsync.
fn write_itself_fails(end: End) {
    let (site, backing) = end.mounted(64);
    // Until little is left.
    let (_, _) = fill(&site, 0, 4 << 20);
    fs::remove_file(site.at("file-0")).unwrap();
    forget_errors(&site);
    let Some(mut file) = File::create(site.at("last")).ok() else {
        // Not even a name has room.
        return site.umount_and_check();
    };
    // No two pieces are the same: what is stored already takes no room.
    let bytes = Numbers(9).stream(64 << 20);
    let mut taken = 0;
    let errno = loop {
        match file.write(&bytes[taken..taken + (16 << 10)]) {
            Ok(count) => taken += count,
            failed => break errno_of(failed),
        }
        assert!(taken < bytes.len(), "it takes more than there is");
    };
    assert_eq!(errno, end.errno());
    assert_eq!(errno_of(file.sync_all()), 0, "what write(2) took was stored");
    assert_eq!(file.metadata().unwrap().len(), taken as u64);
    // A file that bypasses the cache can be mapped, and both show the same.
    let mut mapped = Command::new("python3");
    let program = "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\n\
                   sys.exit(m[:9]!=open(sys.argv[1],'rb').read(9))";
    if 9 < taken {
        let done = mapped.args(["-c", program]).arg(site.at("last")).output();
        assert!(done.is_err() || done.is_ok_and(|done| done.status.success()));
    }
    drop(file);
    site.umount();
    end.mount(&site, 64);
    assert!(fs::read(site.at("last")).unwrap() == bytes[..taken]);
    site.umount_and_check();
    drop(backing);
}

#[test]
fn on_a_full_disk_write_itself_fails() {
    write_itself_fails(End::Disk);
}

#[test]
fn on_a_full_quota_write_itself_fails() {
    write_itself_fails(End::Quota);
}

/// A collection on a volume that is full to the brim gives back what was removed, and writing goes
/// on.
fn collect_when_full(end: End) {
    let (site, backing) = end.mounted(96);
    let bytes = 700_000;
    let (kept, errno) = fill(&site, 0, bytes);
    assert_eq!(errno, end.errno());
    assert_eq!(fill_names(&site), end.errno());
    forget_errors(&site);
    // Every pack keeps something.
    let (gone, rest): (Vec<u64>, Vec<u64>) = kept.iter().partition(|&number| number % 3 != 0);
    for number in &gone {
        fs::remove_file(site.at(format!("file-{number}"))).unwrap();
    }
    site.ok(["gc".as_ref(), site.mountpoint().as_os_str()]);
    check_files(&site, &rest, bytes);
    let (more, errno) = fill(&site, 10_000, bytes);
    assert_eq!(errno, end.errno());
    assert!(gone.len() / 2 < more.len(), "{} files again, of {}", more.len(), gone.len());
    check_files(&site, &more, bytes);
    site.umount_and_check();
    drop(backing);
}

#[test]
fn a_collection_works_on_a_full_disk() {
    collect_when_full(End::Disk);
}

#[test]
fn a_collection_works_at_the_quota() {
    collect_when_full(End::Quota);
}

/// Others take the last byte while files are written and committed, and give it back, again and
/// again: each fsync tells the truth, and it goes on whenever there is room.
#[test]
fn others_fill_the_disk_during_commits() {
    let site = Site::bare();
    let backing = Backing::memory(&site, "160m");
    site.ok(["mkfs".as_ref(), site.volume().as_os_str()]);
    site.mount();
    let (stop, bytes) = (AtomicBool::new(false), 60_000);
    let mut kept = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fill_below(&site.volume().join("filler"));
                thread::sleep(Duration::from_millis(30));
                let _ = fs::remove_file(site.volume().join("filler"));
                thread::sleep(Duration::from_millis(30));
            }
        });
        for number in 0..300 {
            let written = File::create(site.at(format!("file-{number}"))).and_then(|mut file| {
                file.write_all(&Numbers(number).stream(bytes))?;
                file.sync_all()
            });
            match errno_of(written) {
                0 => kept.push(number),
                // Not all of them are to fall into one time without room.
                libc::ENOSPC => thread::sleep(Duration::from_millis(5)),
                other => panic!("errno {other} of file {number}"),
            }
            if number % 7 == 6
                && let Some(gone) = kept.pop()
            {
                fs::remove_file(site.at(format!("file-{gone}"))).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let _ = fs::remove_file(site.volume().join("filler"));
    assert!(20 < kept.len(), "only {} files were kept", kept.len());
    check_files(&site, &kept, bytes);
    assert_eq!(site.status()["poisoned"], false);
    forget_errors(&site);
    // It goes on.
    fs::write(site.at("after"), b"room again").unwrap();
    site.ok(["sync".as_ref(), site.mountpoint().as_os_str()]);
    site.umount();
    site.mount();
    check_files(&site, &kept, bytes);
    assert_eq!(fs::read(site.at("after")).unwrap(), b"room again");
    site.umount_and_check();
    drop(backing);
}

/// Takes all room of the filesystem that `path` lies on.
fn fill_below(path: &Path) {
    let Ok(mut file) = File::create(path) else { return };
    let zeros = vec![0; 1 << 20];
    while file.write_all(&zeros).is_ok() {}
    while file.write_all(&zeros[..4096]).is_ok() {}
}

/// Pages that are mapped and written after the disk is full have to be stored at msync or be
/// reported; overwriting in place is a change like any other here.
#[test]
fn an_old_file_that_is_overwritten_on_a_full_disk_stays_whole() {
    let (site, backing) = End::Disk.mounted(64);
    let old = Numbers(77).stream(1 << 20);
    fs::write(site.at("old"), &old).unwrap();
    File::open(site.at("old")).unwrap().sync_all().unwrap();
    let (_, errno) = fill(&site, 0, 700_000);
    assert_eq!(errno, libc::ENOSPC);
    let file = OpenOptions::new().read(true).write(true).open(site.at("old")).unwrap();
    let before = file.metadata().unwrap().mtime_nsec();
    thread::sleep(Duration::from_millis(20));
    let new = Numbers(78).stream(1 << 20);
    let written = file.write_all_at(&new, 0).and_then(|()| file.sync_all());
    assert!(matches!(errno_of(written), 0 | libc::ENOSPC));
    assert_ne!(file.metadata().unwrap().mtime_nsec(), before, "the change can be seen");
    drop(file);
    forget_errors(&site);
    for number in 0..10 {
        let _ = fs::remove_file(site.at(format!("file-{number}")));
    }
    site.ok(["sync".as_ref(), site.mountpoint().as_os_str()]);
    site.umount();
    site.mount();
    let mut found = Vec::new();
    File::open(site.at("old")).unwrap().read_to_end(&mut found).unwrap();
    assert_eq!(found.len(), old.len());
    let whole = found.chunks(4096).zip(old.chunks(4096)).zip(new.chunks(4096));
    assert!(whole.into_iter().all(|((found, old), new)| found == old || found == new));
    site.umount_and_check();
    drop(backing);
}

#[test]
fn mkfs_without_room_says_so() {
    let site = Site::bare();
    let _backing = Backing::memory(&site, "16k");
    let line = site.refused(2, ["mkfs".as_ref(), site.volume().as_os_str()]);
    assert!(line.contains("space"), "{line}");
}
