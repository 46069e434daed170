//! Copies and holes cost almost nothing.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use super::harness::{Numbers, Site, run, shell, write_random};

const MIB: u64 = 1 << 20;

/// Copies a whole file with copy_file_range(2); returns in how many calls.
fn copy_whole(from: &Path, to: &Path) -> usize {
    let (from, to) = (File::open(from).unwrap(), File::create(to).unwrap());
    let len = from.metadata().unwrap().len();
    let (mut done, mut calls) = (0, 0);
    while done < len {
        // SAFETY: without offsets the call touches no memory of ours.
        let count = unsafe {
            libc::copy_file_range(
                from.as_raw_fd(),
                std::ptr::null_mut(),
                to.as_raw_fd(),
                std::ptr::null_mut(),
                (len - done) as usize,
                0,
            )
        };
        assert!(0 < count, "{}", std::io::Error::last_os_error());
        done += count as u64;
        calls += 1;
    }
    calls
}

fn same(site: &Site, one: &str, other: &str) {
    run(Command::new("cmp").arg(site.at(one)).arg(site.at(other)));
}

#[test]
fn a_copy_of_a_large_file_is_shared() {
    let site = Site::mounted();
    write_random(&site.at("stored"), 1, 128 * MIB);
    let before = site.figure("unique_bytes");
    run(Command::new("cp").arg(site.at("stored")).arg(site.at("cp")));
    let unique = site.figure("unique_bytes");
    assert!(unique - before < MIB, "the copy took {} bytes", unique - before);
    assert_eq!(copy_whole(&site.at("stored"), &site.at("calls")), 1);
    assert_eq!(site.figure("logical_bytes"), 3 * 128 * MIB);
    same(&site, "stored", "cp");
    site.remount();
    same(&site, "stored", "cp");
    same(&site, "stored", "calls");
    site.umount_and_check();
}

#[test]
fn a_copy_of_what_was_just_written_is_shared_and_whole() {
    let site = Site::mounted();
    // Not synced: most of it is still with the kernel when the copy begins.
    write_random(&site.at("fresh"), 2, 32 * MIB + 4321);
    run(Command::new("cp").arg(site.at("fresh")).arg(site.at("cp")));
    let open = File::options().read(true).write(true).open(site.at("fresh")).unwrap();
    open.write_all_at(b"just now", 17 * MIB + 5).unwrap();
    copy_whole(&site.at("fresh"), &site.at("while open"));
    same(&site, "fresh", "while open");
    drop(open);
    let unique = site.figure("unique_bytes");
    assert!(unique < 34 * MIB, "three files of 32 MiB take {unique} bytes");
    let bytes = fs::read(site.at("cp")).unwrap();
    assert!(bytes == Numbers(2).stream(32 * MIB as usize + 4321));
    // A copy is a file of its own.
    let copy = File::options().write(true).open(site.at("cp")).unwrap();
    copy.write_all_at(b"changed", 5 * MIB).unwrap();
    drop(copy);
    site.remount();
    same(&site, "fresh", "while open");
    let mut expected = bytes;
    expected[5 * MIB as usize..][..7].copy_from_slice(b"changed");
    assert!(fs::read(site.at("cp")).unwrap() == expected);
    let mut expected = Numbers(2).stream(32 * MIB as usize + 4321);
    expected[17 * MIB as usize + 5..][..8].copy_from_slice(b"just now");
    assert!(fs::read(site.at("fresh")).unwrap() == expected);
    site.umount_and_check();
}

#[test]
fn ranges_are_copied_as_bytes_would_be() {
    let site = Site::mounted();
    let mut numbers = Numbers(super::harness::seed());
    let mut content = numbers.bytes(3 << 20);
    content[700_000..1_500_000].fill(0);
    fs::write(site.at("from"), &content).unwrap();
    let mut expected = numbers.bytes(1 << 20);
    fs::write(site.at("to"), &expected).unwrap();
    let from = File::open(site.at("from")).unwrap();
    let to = File::options().read(true).write(true).open(site.at("to")).unwrap();
    for round in 0..60 {
        let align = *numbers.pick(&[1, 4096, 512 << 10]);
        let mut here = (numbers.below(3 << 20) / align * align) as i64;
        let mut there = (numbers.below(3 << 20) / align * align) as i64;
        let len = numbers.below(1 << 20) as usize;
        let (start, target) = (here as usize, there as usize);
        // SAFETY: both offsets live until the call returns.
        let count = unsafe {
            libc::copy_file_range(from.as_raw_fd(), &mut here, to.as_raw_fd(), &mut there, len, 0)
        };
        assert!(0 <= count, "round {round}: {}", std::io::Error::last_os_error());
        let count = count as usize;
        assert!(count <= len && (count > 0 || len == 0 || start >= content.len()));
        if count > 0 {
            expected.resize(expected.len().max(target + count), 0);
            expected[target..target + count].copy_from_slice(&content[start..start + count]);
        }
        if round % 10 == 0 {
            assert!(fs::read(site.at("to")).unwrap() == expected, "round {round}");
        }
    }
    drop((from, to));
    site.remount();
    assert!(fs::read(site.at("to")).unwrap() == expected);
    site.umount_and_check();
}

#[test]
fn a_sparse_file_costs_nothing() {
    let site = Site::mounted();
    let before = site.figure("stored_bytes");
    let file = File::create(site.at("sparse")).unwrap();
    file.set_len(10 << 30).unwrap();
    file.write_all_at(b"in the middle", 5 << 30).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let after = site.figure("stored_bytes");
    assert!(after - before < MIB, "10 GiB of holes take {} bytes", after - before);
    let about = fs::metadata(site.at("sparse")).unwrap();
    assert_eq!(about.len(), 10 << 30);
    assert!(about.blocks() * 512 < MIB, "st_blocks counts the holes: {}", about.blocks());
    site.remount();
    let file = File::open(site.at("sparse")).unwrap();
    let mut bytes = [1; 15];
    file.read_exact_at(&mut bytes, (5 << 30) - 1).unwrap();
    assert_eq!(&bytes, b"\0in the middle\0");
    drop(file);
    // A terabyte, and back again.
    let file = File::options().write(true).open(site.at("sparse")).unwrap();
    file.set_len(1 << 40).unwrap();
    file.set_len((5 << 30) + 2).unwrap();
    drop(file);
    site.remount();
    let mut bytes = [1; 2];
    File::open(site.at("sparse")).unwrap().read_exact_at(&mut bytes, 5 << 30).unwrap();
    assert_eq!(&bytes, b"in");
    site.umount_and_check();
}

#[test]
fn more_than_one_request_copies() {
    let site = Site::mounted();
    let file = File::create(site.at("from")).unwrap();
    file.set_len((5 << 30) + 77).unwrap();
    let places = [0, (1 << 30) + 12_345, (31 << 27) - 5000, 5 << 30];
    for (seed, place) in places.iter().enumerate() {
        let bytes = Numbers(seed as u64).bytes(if *place == 5 << 30 { 77 } else { 1 << 20 });
        file.write_all_at(&bytes, *place).unwrap();
    }
    drop(file);
    let before = site.figure("unique_bytes");
    let calls = copy_whole(&site.at("from"), &site.at("calls"));
    assert!((2..10).contains(&calls), "{calls} calls");
    let after = site.figure("unique_bytes");
    assert!(after - before < MIB, "the copy took {} bytes", after - before);
    site.remount();
    let copy = File::open(site.at("calls")).unwrap();
    assert_eq!(copy.metadata().unwrap().len(), (5 << 30) + 77);
    for (seed, place) in places.iter().enumerate() {
        let expected = Numbers(seed as u64).bytes(if *place == 5 << 30 { 77 } else { 1 << 20 });
        let mut bytes = vec![0; expected.len()];
        copy.read_exact_at(&mut bytes, *place).unwrap();
        assert!(bytes == expected, "at {place}");
    }
    drop(copy);
    site.umount_and_check();
}

#[test]
fn the_second_copy_of_a_tree_adds_no_data() {
    let site = Site::mounted();
    let mut numbers = Numbers(5);
    let source = site.path("tree");
    for dir in 0..20 {
        let dir = source.join(format!("dir-{dir}"));
        fs::create_dir_all(&dir).unwrap();
        for file in 0..40 {
            let len = numbers.below(20_000) as usize;
            fs::write(dir.join(format!("file-{file}")), numbers.bytes(len)).unwrap();
        }
    }
    let copy = |to: &str| {
        shell(&site.path(""), &format!("cp -a tree mnt/{to}"));
        (site.figure("chunks"), site.figure("unique_bytes"))
    };
    let first = copy("one");
    assert_eq!(copy("two"), first, "the second copy has stored chunks");
    // Inside the mount as well.
    shell(&site.mountpoint(), "cp -a one three");
    assert_eq!((site.figure("chunks"), site.figure("unique_bytes")), first);
    site.remount();
    for name in ["one", "two", "three"] {
        shell(&site.path(""), &format!("diff -r tree mnt/{name}"));
    }
    site.umount_and_check();
}
