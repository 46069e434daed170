//! Punching, reserving, copies of ranges, and where data lies, also in files that are written.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use super::harness::{Numbers, Site, errno_of, run, shell, write_random};

const MIB: u64 = 1 << 20;

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

fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

#[test]
fn holes_are_punched_and_found() {
    let site = Site::mounted();
    write_random(&site.at("file"), 1, 8 * MIB);
    let file = open(&site.at("file"));
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, 2 * MIB, 3 * MIB).unwrap();
    assert_eq!(seek(&file, 0, libc::SEEK_HOLE).unwrap(), 2 * MIB);
    assert_eq!(seek(&file, 2 * MIB, libc::SEEK_DATA).unwrap(), 5 * MIB);
    assert_eq!(seek(&file, 6 * MIB, libc::SEEK_HOLE).unwrap(), 8 * MIB);
    assert_eq!(errno_of(seek(&file, 8 * MIB, libc::SEEK_DATA)), libc::ENXIO);
    let mut bytes = vec![1; 3 * MIB as usize];
    file.read_exact_at(&mut bytes, 2 * MIB).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 0));
    fallocate(&file, libc::FALLOC_FL_ZERO_RANGE, 7 * MIB, 2 * MIB).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 9 * MIB);
    assert_eq!(seek(&file, 7 * MIB, libc::SEEK_HOLE).unwrap(), 7 * MIB);
    fallocate(&file, libc::FALLOC_FL_KEEP_SIZE, 0, 20 * MIB).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 9 * MIB);
    fallocate(&file, 0, 0, 10 * MIB).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 10 * MIB);
    let refused = fallocate(&file, libc::FALLOC_FL_COLLAPSE_RANGE, 0, MIB);
    assert_eq!(errno_of(refused), libc::EOPNOTSUPP);
    file.sync_all().unwrap();
    drop(file);
    assert_eq!(fs::metadata(site.at("file")).unwrap().blocks(), 4 * MIB / 512);
    site.umount_and_check();
}

/// The kernel holds dirty pages that the daemon has not seen: a copy must not take them for holes.
#[test]
fn a_file_that_is_being_written_is_copied_whole() {
    let site = Site::mounted();
    let mut file = open(&site.at("open"));
    let bytes: Vec<u8> = (0..MIB).map(|number| (number % 251) as u8 + 1).collect();
    file.set_len(16 * MIB).unwrap();
    file.write_all(&bytes).unwrap();
    file.write_all_at(&bytes, 9 * MIB).unwrap();
    let reader = File::open(site.at("open")).unwrap();
    assert_eq!(seek(&reader, 0, libc::SEEK_DATA).unwrap(), 0);
    assert_eq!(seek(&reader, 0, libc::SEEK_HOLE).unwrap(), MIB);
    assert_eq!(seek(&reader, MIB, libc::SEEK_DATA).unwrap(), 9 * MIB);
    file.write_all_at(&bytes, 4 * MIB).unwrap();
    shell(&site.mountpoint(), "cp --sparse=always open cp && cmp open cp");
    shell(
        &site.mountpoint(),
        "tar --create --sparse --file=t.tar open && mkdir x && tar -C x -xf t.tar",
    );
    shell(&site.mountpoint(), "cmp open x/open");
    drop(file);
}

#[test]
fn a_range_of_a_file_is_shared() {
    let site = Site::mounted();
    write_random(&site.at("from"), 3, 64 * MIB);
    run(Command::new("sync").arg("--file-system").arg(site.mountpoint()));
    let (from, to) = (open(&site.at("from")), open(&site.at("to")));
    to.set_len(5 * MIB).unwrap();
    let before = site.figure("unique_bytes");
    let (mut at, mut place) = (16 * MIB as i64, 4 * MIB as i64);
    let mut left = 40 * MIB as usize + 777;
    while left != 0 {
        // SAFETY: both offsets live as long as the call.
        let count = unsafe {
            libc::copy_file_range(
                from.as_raw_fd(),
                &raw mut at,
                to.as_raw_fd(),
                &raw mut place,
                left,
                0,
            )
        };
        assert!(0 < count, "{}", io::Error::last_os_error());
        left -= count as usize;
    }
    to.sync_all().unwrap();
    let added = site.figure("unique_bytes") - before;
    assert!(added < MIB, "the copy of a range took {added} bytes");
    assert_eq!(to.metadata().unwrap().len(), 44 * MIB + 777);
    let (mut one, mut other) = (vec![0; 40 * MIB as usize + 777], vec![0; 40 * MIB as usize + 777]);
    from.read_exact_at(&mut one, 16 * MIB).unwrap();
    to.read_exact_at(&mut other, 4 * MIB).unwrap();
    assert!(one == other);
    drop((from, to));
    site.umount_and_check();
}

#[test]
fn the_blocks_of_a_file_that_is_being_written_are_what_the_kernel_has_handed_over() {
    let site = Site::mounted();
    let path = site.at("file");
    let file = File::create(&path).unwrap();
    for part in 1..=2_u64 {
        file.write_all_at(&Numbers(part).bytes(MIB as usize), (part - 1) * MIB).unwrap();
        // The kernel hands over what it holds, as it does by itself after a while.
        // SAFETY: plain numbers and a descriptor that is open.
        let handed = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, 7) };
        assert_eq!(handed, 0, "{}", std::io::Error::last_os_error());
        // It may remember for a second what it was told before.
        let seen = (0..50).any(|_| {
            let blocks = fs::metadata(&path).unwrap().blocks();
            let enough = part * MIB / 512 <= blocks;
            if !enough {
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            enough
        });
        assert!(seen, "part {part}: {} blocks", fs::metadata(&path).unwrap().blocks());
    }
}
