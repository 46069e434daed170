//! What an application developer expects of files and directories, beyond the random sequence.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;

use super::harness::{Numbers, Site, errno_of};
use super::plain::{rename, times};

#[test]
fn names_are_any_bytes() {
    let site = Site::mounted();
    // All bytes but the two that no name can have, in names of 255 bytes.
    let bytes: Vec<u8> = (1..=255_u8).filter(|&byte| byte != b'/').collect();
    for turn in 0..20 {
        let mut name = bytes.clone();
        name.push(b'x');
        name.rotate_left(turn * 13);
        fs::write(site.at(OsStr::from_bytes(&name)), [turn as u8]).unwrap();
        name.push(b'x');
        let too_long = errno_of(fs::write(site.at(OsStr::from_bytes(&name)), ""));
        assert_eq!(too_long, libc::ENAMETOOLONG);
    }
    for name in ["a", "A", "\u{e4}", "a\u{308}", " ", "...", "new\nline"] {
        fs::write(site.at(name), name).unwrap();
    }
    site.remount();
    assert_eq!(fs::read_dir(site.mountpoint()).unwrap().count(), 27);
    for entry in fs::read_dir(site.mountpoint()).unwrap() {
        let name = entry.unwrap().file_name();
        let content = fs::read(site.at(&name)).unwrap();
        if name.len() < 255 {
            assert_eq!(name.into_vec(), content);
        } else {
            assert_eq!(name.len(), 255);
            assert_eq!(
                name.as_bytes()[0],
                bytes.iter().chain(b"x").nth(content[0] as usize * 13 % 255).copied().unwrap()
            );
        }
    }
    let deep = (0..60).fold(site.mountpoint(), |path, _| path.join("d".repeat(60)));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "deep").unwrap();
    assert_eq!(fs::read(deep.join("file")).unwrap(), b"deep");
    fs::remove_dir_all(site.at("d".repeat(60))).unwrap();
}

#[test]
fn symbolic_links_hold_4095_bytes() {
    let site = Site::mounted();
    let target = "t".repeat(4095);
    symlink(&target, site.at("long")).unwrap();
    assert_eq!(errno_of(symlink("t".repeat(4096), site.at("longer"))), libc::ENAMETOOLONG);
    symlink("long", site.at("short")).unwrap();
    symlink("loop", site.at("loop")).unwrap();
    site.remount();
    assert_eq!(fs::read_link(site.at("long")).unwrap().as_os_str().len(), 4095);
    let about = fs::symlink_metadata(site.at("long")).unwrap();
    assert_eq!((about.len(), about.is_symlink()), (4095, true));
    assert_eq!(errno_of(File::open(site.at("loop"))), libc::ELOOP);
    let flags = libc::O_NOFOLLOW;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(site.at("short"));
    assert_eq!(errno_of(opened), libc::ELOOP);
    symlink("../file", site.at("relative")).unwrap();
    fs::write(site.path("file"), "outside").unwrap();
    assert_eq!(fs::read(site.at("relative")).unwrap(), b"outside");
}

#[test]
fn device_nodes_pipes_and_sockets() {
    let site = Site::mounted();
    let mknod = |name: &str, mode: u32, device: u64| {
        let path = CString::new(site.at(name).as_os_str().as_bytes()).unwrap();
        // SAFETY: the path is a string that lives until the call returns.
        assert_eq!(unsafe { libc::mknod(path.as_ptr(), mode, device) }, 0);
    };
    mknod("null", libc::S_IFCHR | 0o666, libc::makedev(1, 3));
    mknod("block", libc::S_IFBLK | 0o600, libc::makedev(259, 70_000));
    mknod("pipe", libc::S_IFIFO | 0o640, 0);
    mknod("plain", libc::S_IFREG | 0o640, 0);
    drop(std::os::unix::net::UnixListener::bind(site.at("socket")).unwrap());
    site.remount();
    let kind = |name: &str| fs::symlink_metadata(site.at(name)).unwrap();
    assert!(kind("null").file_type().is_char_device());
    assert_eq!(kind("null").rdev(), libc::makedev(1, 3));
    assert!(kind("block").file_type().is_block_device());
    assert_eq!(kind("block").rdev(), libc::makedev(259, 70_000));
    assert!(kind("socket").file_type().is_socket());
    assert!(kind("plain").is_file());
    OpenOptions::new().write(true).open(site.at("null")).unwrap().write_all(b"gone").unwrap();
    let mut bytes = [0; 4];
    assert_eq!(File::open(site.at("null")).unwrap().read(&mut bytes).unwrap(), 0);
    let pipe = site.at("pipe");
    let writer = std::thread::spawn(move || fs::write(pipe, "through the pipe"));
    assert_eq!(fs::read(site.at("pipe")).unwrap(), b"through the pipe");
    writer.join().unwrap().unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(site.at("live")).unwrap();
    std::os::unix::net::UnixStream::connect(site.at("live")).unwrap();
}

#[test]
fn times_are_kept_to_the_nanosecond() {
    let site = Site::mounted();
    fs::write(site.at("file"), "x").unwrap();
    fs::create_dir(site.at("dir")).unwrap();
    symlink("file", site.at("link")).unwrap();
    let cases = [
        ("file", 1, 1),
        ("dir", 999_999_999, 999_999_999),
        ("link", -1, 500_000_000),
        ("file", 5_000_000_000, 123_456_789),
    ];
    for (name, seconds, nanos) in cases {
        times(&site.at(name), seconds, nanos).unwrap();
        site.remount();
        let about = fs::symlink_metadata(site.at(name)).unwrap();
        assert_eq!((about.mtime(), about.mtime_nsec()), (seconds, nanos), "{name}");
        assert_eq!((about.atime(), about.atime_nsec()), (seconds, nanos), "{name}");
    }
    // Every change moves the times that it should, and never back.
    let before = fs::metadata(site.at("dir")).unwrap();
    fs::write(site.at("dir/new"), "x").unwrap();
    let after = fs::metadata(site.at("dir")).unwrap();
    assert_ne!(before.mtime(), after.mtime());
    let file = fs::metadata(site.at("file")).unwrap();
    fs::set_permissions(site.at("file"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .unwrap();
    let changed = fs::metadata(site.at("file")).unwrap();
    assert!((file.ctime(), file.ctime_nsec()) < (changed.ctime(), changed.ctime_nsec()));
    assert_eq!((file.mtime(), file.mtime_nsec()), (changed.mtime(), changed.mtime_nsec()));
    OpenOptions::new().append(true).open(site.at("file")).unwrap().write_all(b"y").unwrap();
    let written = fs::metadata(site.at("file")).unwrap();
    assert_ne!(written.mtime(), changed.mtime());
    site.remount();
    let kept = fs::metadata(site.at("file")).unwrap();
    assert_eq!((kept.mtime(), kept.mtime_nsec()), (written.mtime(), written.mtime_nsec()));
}

#[test]
fn hard_links_are_one_file() {
    let site = Site::mounted();
    fs::write(site.at("first"), "one").unwrap();
    for number in 0..300 {
        fs::hard_link(site.at("first"), site.at(format!("link-{number}"))).unwrap();
    }
    fs::write(site.at("link-7"), "two").unwrap();
    assert_eq!(fs::read(site.at("first")).unwrap(), b"two");
    site.remount();
    let (first, link) =
        (fs::metadata(site.at("first")).unwrap(), fs::metadata(site.at("link-9")).unwrap());
    assert_eq!((first.ino(), first.nlink()), (link.ino(), 301));
    for number in 0..300 {
        fs::remove_file(site.at(format!("link-{number}"))).unwrap();
    }
    assert_eq!(fs::metadata(site.at("first")).unwrap().nlink(), 1);
    fs::create_dir(site.at("dir")).unwrap();
    assert_eq!(errno_of(fs::hard_link(site.at("dir"), site.at("no"))), libc::EPERM);
    // Both names are one file: rename(2) then does nothing.
    fs::hard_link(site.at("first"), site.at("second")).unwrap();
    fs::rename(site.at("first"), site.at("second")).unwrap();
    assert!(site.at("first").exists() && site.at("second").exists());
}

#[test]
fn a_removed_file_can_be_used_while_it_is_open() {
    let site = Site::mounted();
    let mut file =
        OpenOptions::new().read(true).write(true).create_new(true).open(site.at("gone")).unwrap();
    let content = Numbers(1).bytes(300_000);
    file.write_all(&content).unwrap();
    fs::remove_file(site.at("gone")).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    fs::write(site.at("gone"), "another").unwrap();
    file.sync_all().unwrap();
    file.write_all(b"more").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut found = Vec::new();
    file.read_to_end(&mut found).unwrap();
    assert!(found == [content.as_slice(), b"more"].concat());
    file.set_len(10).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 10);
    drop(file);
    assert_eq!(fs::read(site.at("gone")).unwrap(), b"another");
    // The root and one file: nothing is left of the other.
    assert_eq!(site.figure("files"), 2);
    site.umount_and_check();
}

#[test]
fn rename_over_an_open_file_leaves_the_old_one_to_its_users() {
    let site = Site::mounted();
    fs::write(site.at("target"), "old").unwrap();
    let mut old = File::open(site.at("target")).unwrap();
    fs::write(site.at("new"), "new").unwrap();
    fs::rename(site.at("new"), site.at("target")).unwrap();
    assert_eq!(fs::read(site.at("target")).unwrap(), b"new");
    let mut found = String::new();
    old.read_to_string(&mut found).unwrap();
    assert_eq!(found, "old");
    fs::write(site.at("new"), "third").unwrap();
    let refused = rename(&site.at("new"), &site.at("target"), libc::RENAME_NOREPLACE);
    assert_eq!(errno_of(refused), libc::EEXIST);
    fs::create_dir_all(site.at("dir/below")).unwrap();
    assert_eq!(errno_of(fs::rename(site.at("dir"), site.at("dir/below/x"))), libc::EINVAL);
    assert_eq!(errno_of(fs::rename(site.at("new"), site.at("dir"))), libc::EISDIR);
    assert_eq!(errno_of(fs::rename(site.at("dir"), site.at("new"))), libc::ENOTDIR);
    fs::create_dir(site.at("empty")).unwrap();
    fs::rename(site.at("dir/below"), site.at("empty")).unwrap();
    fs::create_dir(site.at("other")).unwrap();
    fs::write(site.at("other/file"), "").unwrap();
    assert_eq!(errno_of(fs::rename(site.at("empty"), site.at("other"))), libc::ENOTEMPTY);
    assert_eq!(errno_of(fs::rename(site.at("other"), site.path("outside"))), libc::EXDEV);
}

#[test]
fn a_directory_is_listed_while_it_is_emptied() {
    const ENTRIES: usize = 20_000;
    let site = Site::mounted();
    fs::create_dir(site.at("dir")).unwrap();
    for number in 0..ENTRIES {
        File::create(site.at(format!("dir/file-{number}"))).unwrap();
    }
    site.remount();
    let mut names = std::collections::HashSet::new();
    for (number, entry) in fs::read_dir(site.at("dir")).unwrap().enumerate() {
        let entry = entry.unwrap();
        assert!(names.insert(entry.file_name()), "{:?} twice", entry.file_name());
        // Every entry that is not removed must be seen, whatever goes around it.
        if number % 3 != 0 {
            fs::remove_file(entry.path()).unwrap();
        }
        if number % 100 == 0 {
            File::create(site.at(format!("dir/late-{number}"))).unwrap();
        }
    }
    let seen = (0..ENTRIES).filter(|number| names.contains(OsStr::new(&format!("file-{number}"))));
    assert_eq!(seen.count(), ENTRIES);
    assert_eq!(errno_of(fs::remove_dir(site.at("dir"))), libc::ENOTEMPTY);
    fs::remove_dir_all(site.at("dir")).unwrap();
    assert_eq!(fs::read_dir(site.mountpoint()).unwrap().count(), 0);
    assert_eq!(site.figure("files"), 1);
}

#[test]
fn a_listing_goes_on_where_it_was() {
    let site = Site::mounted();
    for number in 0..500 {
        File::create(site.at(format!("file-{number}"))).unwrap();
    }
    let path = CString::new(site.mountpoint().as_os_str().as_bytes()).unwrap();
    // SAFETY: the stream is open between opendir and closedir, and each entry is read before the
    // next call on the stream.
    unsafe {
        let dir = libc::opendir(path.as_ptr());
        assert!(!dir.is_null());
        let mut places = Vec::new();
        loop {
            let place = libc::telldir(dir);
            let entry = libc::readdir(dir);
            if entry.is_null() {
                break;
            }
            places.push((place, std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()).to_owned()));
        }
        assert_eq!(places.len(), 502);
        for (place, name) in places.iter().rev().step_by(37) {
            libc::seekdir(dir, *place);
            let entry = libc::readdir(dir);
            assert_eq!(std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()), name.as_c_str());
        }
        libc::closedir(dir);
    }
}

#[test]
fn fsync_on_what_is_open_for_reading() {
    let site = Site::mounted();
    fs::write(site.at("file"), "content").unwrap();
    File::open(site.at("file")).unwrap().sync_all().unwrap();
    File::open(site.at("file")).unwrap().sync_data().unwrap();
    File::open(site.mountpoint()).unwrap().sync_all().unwrap();
    nix::unistd::syncfs(File::open(site.mountpoint()).unwrap()).unwrap();
    site.kill_daemon();
    site.mount();
    assert_eq!(fs::read(site.at("file")).unwrap(), b"content");
}

#[test]
fn statfs_tells_the_room_of_the_disk_below() {
    let site = Site::mounted();
    let ours = nix::sys::statvfs::statvfs(&site.mountpoint()).unwrap();
    let below = nix::sys::statvfs::statvfs(&site.path("")).unwrap();
    assert_eq!(ours.name_max(), 255);
    let bytes =
        |found: &nix::sys::statvfs::Statvfs| found.blocks_available() * found.fragment_size();
    assert!(bytes(&ours) > 0);
    assert!(bytes(&ours) <= bytes(&below) + (64 << 20), "more room than the disk has");
    assert!(ours.blocks_free() <= ours.blocks());
    assert!(ours.files() > 0);
}

#[test]
fn errors_have_their_usual_numbers() {
    let site = Site::mounted();
    fs::create_dir(site.at("dir")).unwrap();
    fs::write(site.at("file"), "x").unwrap();
    fs::write(site.at("dir/file"), "x").unwrap();
    let write = |path: &Path| OpenOptions::new().write(true).open(path);
    assert_eq!(errno_of(write(&site.at("dir"))), libc::EISDIR);
    assert_eq!(errno_of(fs::read(site.at("dir"))), libc::EISDIR);
    assert_eq!(errno_of(fs::read(site.at("file/below"))), libc::ENOTDIR);
    assert_eq!(errno_of(fs::read(site.at("missing"))), libc::ENOENT);
    assert_eq!(errno_of(fs::create_dir(site.at("dir"))), libc::EEXIST);
    assert_eq!(errno_of(File::create_new(site.at("file"))), libc::EEXIST);
    assert_eq!(errno_of(fs::remove_dir(site.at("dir"))), libc::ENOTEMPTY);
    assert_eq!(errno_of(fs::remove_dir(site.at("file"))), libc::ENOTDIR);
    assert_eq!(errno_of(fs::remove_file(site.at("dir"))), libc::EISDIR);
    assert_eq!(errno_of(fs::read_link(site.at("file"))), libc::EINVAL);
    assert_eq!(errno_of(fs::read_dir(site.at("file"))), libc::ENOTDIR);
    let file = write(&site.at("file")).unwrap();
    assert_eq!(errno_of(file.read_at(&mut [0], 0)), libc::EBADF);
    assert_eq!(errno_of(File::open(site.at("file")).unwrap().write_at(b"x", 0)), libc::EBADF);
    let long = "user.".to_owned() + &"n".repeat(251);
    assert_eq!(errno_of(super::plain::set_xattr(&site.at("file"), &long, b"", 0)), libc::ERANGE);
    let set = |value: &[u8]| super::plain::set_xattr(&site.at("file"), "user.big", value, 0);
    assert_eq!(errno_of(set(&[1; 65_537])), libc::E2BIG);
    assert_eq!(errno_of(set(&[1; 65_536])), 0);
    let value = super::plain::get_xattr(&site.at("file"), OsStr::new("user.big")).unwrap();
    assert_eq!(value, vec![1; 65_536]);
    // The working directory of a process may be removed under it.
    let removed = File::open(site.at("dir")).unwrap();
    fs::remove_dir_all(site.at("dir")).unwrap();
    let below = format!("/proc/self/fd/{}/new", removed.as_raw_fd());
    assert_eq!(errno_of(File::create(below)), libc::ENOENT);
}

#[test]
fn o_trunc_empties_and_o_append_adds() {
    let site = Site::mounted();
    fs::write(site.at("file"), Numbers(1).bytes(100_000)).unwrap();
    let reader = File::open(site.at("file")).unwrap();
    drop(OpenOptions::new().write(true).truncate(true).open(site.at("file")).unwrap());
    assert_eq!(reader.metadata().unwrap().len(), 0);
    assert_eq!(reader.read_at(&mut [0; 10], 0).unwrap(), 0);
    let mut one = OpenOptions::new().append(true).open(site.at("file")).unwrap();
    let mut other = OpenOptions::new().append(true).open(site.at("file")).unwrap();
    for _ in 0..3 {
        one.write_all(b"1").unwrap();
        other.write_all(b"2").unwrap();
    }
    assert_eq!(fs::read(site.at("file")).unwrap(), b"121212");
    drop((reader, one, other));
    // A shorter file that grows again shows zeros, not what was there.
    fs::write(site.at("shrunk"), [7; 10_000]).unwrap();
    let shrunk = OpenOptions::new().write(true).open(site.at("shrunk")).unwrap();
    shrunk.set_len(5).unwrap();
    shrunk.set_len(9000).unwrap();
    shrunk.write_at(b"end", 8000).unwrap();
    drop(shrunk);
    site.remount();
    let mut expected = vec![0; 9000];
    expected[..5].fill(7);
    expected[8000..8003].copy_from_slice(b"end");
    assert!(fs::read(site.at("shrunk")).unwrap() == expected);
}
