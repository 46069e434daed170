//! The ends of what numbers can say: times, sizes, room, and the error numbers there.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

use nix::sys::statvfs::{FsFlags, Statvfs, statvfs};

use super::harness::{Numbers, Site, errno_of, run, shell, write_random};
use super::plain::times;

const MIB: u64 = 1 << 20;
/// 8 EiB - 1: the largest size that Linux knows.
const LARGEST: u64 = i64::MAX as u64;

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn fallocate(file: &File, mode: i32, offset: u64, length: u64) -> io::Result<()> {
    // SAFETY: the call touches no memory of ours.
    match unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, length as i64) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn seek(file: &File, offset: u64, whence: i32) -> io::Result<u64> {
    // SAFETY: the call touches no memory of ours.
    match unsafe { libc::lseek(file.as_raw_fd(), offset as i64, whence) } {
        -1 => Err(io::Error::last_os_error()),
        found => Ok(found as u64),
    }
}

#[test]
fn times_of_any_age() {
    let site = Site::mounted();
    let cases = [
        (0, 0),
        (-1, 999_999_999),
        (-2_208_988_800, 1),
        (i64::from(i32::MAX) + 1, 123_456_789),
        (i64::from(u32::MAX) + 1, 5),
        (253_402_300_800, 0),
        (1 << 40, 999_999_999),
        (-(1 << 40), 999_999_999),
        (i64::MAX - 1, 999_999_999),
        (i64::MIN + 1, 999_999_999),
        // Here the kernel itself takes the nanoseconds away.
        (i64::MAX, 0),
        (i64::MIN, 0),
    ];
    for (number, (seconds, nanos)) in cases.into_iter().enumerate() {
        let path = site.at(number.to_string());
        fs::write(&path, "x").unwrap();
        times(&path, seconds, nanos).unwrap();
    }
    let verify = || {
        for (number, wanted) in cases.into_iter().enumerate() {
            let about = fs::metadata(site.at(number.to_string())).unwrap();
            assert_eq!((about.mtime(), about.mtime_nsec()), wanted);
            assert_eq!((about.atime(), about.atime_nsec()), wanted);
        }
    };
    verify();
    site.remount();
    verify();
    site.umount_and_check();
}

#[test]
fn one_time_alone_is_set() {
    let site = Site::mounted();
    fs::write(site.at("file"), "x").unwrap();
    times(&site.at("file"), 1000, 7).unwrap();
    let set = |atime: i64, mtime: i64| {
        // For writing only: opening for reading counts as an access.
        let file = OpenOptions::new().write(true).open(site.at("file")).unwrap();
        let time = |nanos| libc::timespec { tv_sec: 0, tv_nsec: nanos };
        let both = [time(atime), time(mtime)];
        // SAFETY: two times, as the call wants them.
        assert_eq!(unsafe { libc::futimens(file.as_raw_fd(), both.as_ptr()) }, 0);
        let about = file.metadata().unwrap();
        ((about.atime(), about.atime_nsec()), (about.mtime(), about.mtime_nsec()))
    };
    assert_eq!(set(libc::UTIME_OMIT, libc::UTIME_OMIT), ((1000, 7), (1000, 7)));
    assert_eq!(set(500, libc::UTIME_OMIT), ((0, 500), (1000, 7)));
    assert_eq!(set(libc::UTIME_OMIT, 600), ((0, 500), (0, 600)));
    let (atime, mtime) = set(libc::UTIME_OMIT, libc::UTIME_NOW);
    assert_eq!(atime, (0, 500));
    assert!(1_600_000_000 < mtime.0, "{mtime:?}");
    site.remount();
    let about = fs::metadata(site.at("file")).unwrap();
    assert_eq!((about.atime_nsec(), (about.mtime(), about.mtime_nsec())), (500, mtime));
}

#[test]
fn the_largest_file() {
    let site = Site::mounted();
    let file = open(&site.at("file"));
    file.set_len(LARGEST).unwrap();
    assert_eq!(file.metadata().unwrap().len(), LARGEST);
    assert_eq!(file.metadata().unwrap().blocks(), 0);
    assert_eq!(errno_of(seek(&file, 0, libc::SEEK_DATA)), libc::ENXIO);
    file.write_all_at(b"the end", LARGEST - 7).unwrap();
    file.write_all_at(b"middle", 1 << 62).unwrap();
    file.sync_all().unwrap();
    assert_eq!(seek(&file, 0, libc::SEEK_DATA).unwrap(), 1 << 62);
    assert_eq!(seek(&file, 1 << 62, libc::SEEK_HOLE).unwrap(), (1 << 62) + 4096);
    assert_eq!(seek(&file, (1 << 62) + 4096, libc::SEEK_DATA).unwrap(), LARGEST - 4095);
    assert!(file.metadata().unwrap().blocks() <= 16);
    // Past the end: the kernel's own answers, and the volume's.
    let mut appender = OpenOptions::new().append(true).open(site.at("file")).unwrap();
    assert_eq!(errno_of(io::Write::write(&mut appender, b"x")), libc::EFBIG);
    assert_eq!(errno_of(fallocate(&file, 0, LARGEST - 10, 11)), libc::EFBIG);
    fallocate(&file, 0, LARGEST - 10, 10).unwrap();
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, 1, LARGEST - 1 - 7).unwrap();
    assert_eq!(seek(&file, 0, libc::SEEK_DATA).unwrap(), LARGEST - 4095);
    drop((file, appender));
    site.remount();
    let file = open(&site.at("file"));
    let mut bytes = [0; 7];
    file.read_exact_at(&mut bytes, LARGEST - 7).unwrap();
    assert_eq!(&bytes, b"the end");
    file.set_len(3).unwrap();
    assert_eq!(fs::read(site.at("file")).unwrap(), [0; 3]);
    drop(file);
    site.umount_and_check();
}

#[test]
fn the_limit_of_a_process_is_kept() {
    let site = Site::mounted();
    // 8 blocks of 512 bytes: the write stops there, and the next one fails.
    let line = "ulimit -f 8; trap '' XFSZ; head -c 5000 /dev/zero > file || true; wc -c < file";
    assert_eq!(shell(&site.mountpoint(), line).trim(), "4096");
}

#[test]
fn numbers_of_errors() {
    let site = Site::mounted();
    let dir = site.mountpoint();
    fs::write(site.at("file"), "x").unwrap();
    fs::create_dir(site.at("dir")).unwrap();
    // Of paths.
    let long = "n".repeat(256);
    assert_eq!(errno_of(fs::create_dir(site.at(&long))), libc::ENAMETOOLONG);
    assert_eq!(errno_of(fs::rename(site.at("file"), site.at(&long))), libc::ENAMETOOLONG);
    assert_eq!(errno_of(fs::hard_link(site.at("file"), site.at(&long))), libc::ENAMETOOLONG);
    assert_eq!(errno_of(symlink("x", site.at(&long))), libc::ENAMETOOLONG);
    assert_eq!(errno_of(fs::metadata(site.at(&long))), libc::ENAMETOOLONG);
    assert_eq!(errno_of(fs::remove_file(site.at(&long))), libc::ENAMETOOLONG);
    assert_eq!(errno_of(fs::create_dir(site.at("file/below"))), libc::ENOTDIR);
    assert_eq!(errno_of(fs::rename(site.at("file"), site.at("file/below"))), libc::ENOTDIR);
    symlink("two", site.at("one")).unwrap();
    symlink("one", site.at("two")).unwrap();
    assert_eq!(errno_of(fs::read(site.at("one"))), libc::ELOOP);
    assert_eq!(errno_of(fs::create_dir(site.at("one/below"))), libc::ELOOP);
    (0..41).for_each(|n| symlink(format!("l{}", n + 1), site.at(format!("l{n}"))).unwrap());
    fs::write(site.at("l41"), "found").unwrap();
    assert_eq!(errno_of(fs::read(site.at("l0"))), libc::ELOOP);
    assert_eq!(fs::read(site.at("l1")).unwrap(), b"found");
    // Of names that cannot go.
    assert_eq!(errno_of(fs::remove_dir(&dir)), libc::EBUSY);
    assert_eq!(errno_of(fs::remove_dir(site.at("dir/."))), libc::EINVAL);
    assert_eq!(errno_of(fs::rename(site.at("dir"), site.at("dir/."))), libc::EBUSY);
    assert_eq!(errno_of(fs::hard_link(site.at("file"), site.path("other"))), libc::EXDEV);
    // Of a filesystem that is mounted for reading.
    site.umount();
    site.mount_with(&["-o", "ro"]);
    let opened = OpenOptions::new().write(true).open(site.at("file"));
    assert_eq!(errno_of(opened), libc::EROFS);
    assert_eq!(errno_of(fs::write(site.at("new"), "x")), libc::EROFS);
    assert_eq!(errno_of(fs::create_dir(site.at("new"))), libc::EROFS);
    assert_eq!(errno_of(fs::remove_file(site.at("file"))), libc::EROFS);
    assert_eq!(errno_of(fs::rename(site.at("file"), site.at("new"))), libc::EROFS);
    assert_eq!(errno_of(times(&site.at("file"), 1, 1)), libc::EROFS);
    let set = super::plain::set_xattr(&site.at("file"), "user.a", b"1", 0);
    assert_eq!(errno_of(set), libc::EROFS);
    assert_eq!(fs::read(site.at("file")).unwrap(), b"x");
    assert!(statvfs(&dir).unwrap().flags().contains(FsFlags::ST_RDONLY));
}

/// A filesystem below that nobody else uses, so that figures can be compared.
struct Quiet(std::path::PathBuf);

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

#[test]
fn room_adds_up() {
    let site = Site::bare();
    fs::create_dir(site.volume()).unwrap();
    let mut mount = std::process::Command::new("mount");
    run(mount.args(["-t", "tmpfs", "-o", "size=256m", "none"]).arg(site.volume()));
    let _below = Quiet(site.volume());
    site.ok(["mkfs".as_ref(), site.volume().as_os_str()]);
    site.mount();
    let look = || statvfs(&site.mountpoint()).unwrap();
    let free = |found: &Statvfs| found.blocks_free() * found.fragment_size();
    let sync = || site.ok(["sync".as_ref(), site.mountpoint().as_os_str()]);
    sync();
    let empty = look();
    assert_eq!((empty.name_max(), empty.fragment_size(), empty.block_size()), (255, 4096, 4096));
    assert_eq!(empty.blocks() * 4096, 256 * MIB);
    assert!(empty.blocks_available() <= empty.blocks_free());
    assert!(empty.blocks_free() < empty.blocks());
    assert!(empty.files_free() <= empty.files());
    assert!(empty.files_available() <= empty.files_free());
    // What is written is missing afterwards, and a copy of it is not.
    write_random(&site.at("file"), 1, 40 * MIB);
    sync();
    let written = look();
    let taken = free(&empty) - free(&written);
    assert!((40 * MIB..44 * MIB).contains(&taken), "40 MiB took {taken} bytes");
    shell(&site.mountpoint(), "cp file copy");
    sync();
    let taken = free(&written).saturating_sub(free(&look()));
    assert!(taken < MIB, "a copy took {taken} bytes");
    // So does what only waits to be stored.
    let file = open(&site.at("dirty"));
    file.write_all_at(&Numbers(2).bytes(8 << 20), 0).unwrap();
    drop(file);
    let dirty = free(&written) - free(&look());
    assert!(7 * MIB < dirty, "8 MiB that are dirty took {dirty} bytes");
    // Inodes count as they come and go.
    let used = |found: &Statvfs| found.files() - found.files_free();
    sync();
    let before = used(&look());
    (0..100).for_each(|number| drop(File::create(site.at(format!("n{number}"))).unwrap()));
    assert_eq!(used(&look()), before + 100);
    // Room that others take below is missing here, and comes back here.
    sync();
    let before = free(&look());
    write_random(&site.volume().join("else"), 3, 30 * MIB);
    assert!(free(&look()) + 29 * MIB < before);
    fs::remove_file(site.volume().join("else")).unwrap();
    let after = free(&look());
    assert!(before < after + 4 * MIB, "{before} bytes were free, and now {after}");
    let seen = shell(&site.mountpoint(), "df --output=size,avail --block-size=1 . | tail -n 1");
    let figures: Vec<u64> = seen.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!(figures[0], 256 * MIB);
    site.umount_and_check();
}

/// What changes the content of a file that was just written, within the same tick of the clock.
const AGAIN: [&str; 7] = [
    "echo b >FILE",
    "echo b >>FILE",
    "chmod 600 FILE; echo b >>FILE",
    "mv FILE other; echo b >>other; mv other FILE",
    "truncate -s 1 FILE",
    "fallocate -l 9999 FILE",
    "cp --reflink=never source FILE",
];

#[test]
fn the_times_of_a_change_are_those_that_were_seen() {
    let site = Site::mounted();
    let dir = site.mountpoint();
    shell(&dir, "seq 3000 >source");
    for (number, again) in AGAIN.iter().enumerate() {
        for round in 0..5 {
            let name = format!("{number}-{round}");
            shell(&dir, &format!("echo a >{name}; {}", again.replace("FILE", &name)));
        }
    }
    let seen = || shell(&dir, "stat -c '%n %s %y %z' -- *");
    let before = seen();
    site.remount();
    assert_eq!(seen(), before);
    site.umount_and_check();
}
