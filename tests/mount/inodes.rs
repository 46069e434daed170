//! What belongs to an inode beside its mode: flags of chattr(1), times of access, handles by
//! number, and whiteouts.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::harness::{Site, errno_of, need, shell};

/// A handle of a file, as name_to_handle_at(2) gives it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u8; 128],
}

fn handle_of(path: &Path) -> Handle {
    let mut handle = Handle { bytes: 128, kind: 0, handle: [0; 128] };
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut mount = 0_i32;
    // SAFETY: the name ends with NUL, the handle has the layout and the room that it says, and all
    // live until the call returns.
    let answer = unsafe {
        let handle = (&raw mut handle).cast::<libc::c_void>();
        let (call, at) = (libc::SYS_name_to_handle_at, libc::AT_FDCWD);
        libc::syscall(call, at, name.as_ptr(), handle, &raw mut mount, 0)
    };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
    handle
}

fn open_handle(mount: &Path, handle: &Handle, flags: i32) -> std::io::Result<File> {
    let (mount, flags) = (File::open(mount).unwrap(), flags | libc::O_CLOEXEC);
    // SAFETY: as above; the call only reads the handle. A descriptor that it returns is ours.
    unsafe {
        let (call, handle) = (libc::SYS_open_by_handle_at, (&raw const *handle));
        let number = libc::syscall(call, mount.as_raw_fd(), handle.cast::<libc::c_void>(), flags);
        if number < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(File::from(OwnedFd::from_raw_fd(number as i32)))
    }
}

#[test]
fn handles_stay_valid_over_eviction_and_remount_and_end_with_the_file() {
    let site = Site::mounted();
    let root = site.mountpoint();
    shell(&root, "mkdir -p a/b && echo text >a/b/file && mkdir a/dir && echo gone >a/gone");
    let [file, dir, gone] = ["a/b/file", "a/dir", "a/gone"].map(|name| handle_of(&site.at(name)));
    let read = |handle| {
        let mut text = String::new();
        open_handle(&root, &handle, libc::O_RDONLY)?.read_to_string(&mut text).map(|_| text)
    };
    assert_eq!(read(file).unwrap(), "text\n");
    for round in 0..2 {
        // So the kernel forgets what no one holds.
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        assert_eq!(read(file).unwrap(), "text\n", "round {round}");
        let found = open_handle(&root, &dir, libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
        assert_eq!(found.metadata().unwrap().ino(), fs::metadata(site.at("a/dir")).unwrap().ino());
        drop(found);
        site.remount();
    }
    // The path of what a handle opened is known again.
    let found = open_handle(&root, &dir, libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
    let path = fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).unwrap();
    assert_eq!(path, site.at("a/dir"));
    drop(found);
    fs::rename(site.at("a/b/file"), site.at("moved")).unwrap();
    assert_eq!(read(file).unwrap(), "text\n");
    fs::remove_file(site.at("a/gone")).unwrap();
    site.remount();
    fs::write(site.at("a/gone"), "another").unwrap();
    assert_eq!(errno_of(read(gone)), libc::ESTALE);
    site.umount_and_check();
}

#[test]
fn an_immutable_file_is_as_chattr_says() {
    need("chattr", "e2fsprogs");
    let site = Site::mounted();
    let root = site.mountpoint();
    shell(&root, "echo kept >file && mkdir dir && echo in >dir/in && chattr +i file dir");
    for _ in 0..2 {
        assert!(shell(&root, "lsattr file").starts_with("----i"));
        let file = site.at("file");
        let write = |path: &Path| OpenOptions::new().append(true).open(path);
        let refused = [
            errno_of(write(&file)),
            errno_of(fs::remove_file(&file)),
            errno_of(fs::rename(&file, site.at("other"))),
            errno_of(fs::hard_link(&file, site.at("other"))),
            errno_of(fs::set_permissions(&file, fs::metadata(&root).unwrap().permissions())),
            errno_of(fs::write(site.at("dir/new"), "x")),
            errno_of(fs::remove_file(site.at("dir/in"))),
            errno_of(fs::remove_dir(site.at("dir"))),
        ];
        assert_eq!(refused, [libc::EPERM; 8]);
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept\n");
        fs::write(site.at("dir/in"), "a directory says nothing of what is in it").unwrap();
        site.remount();
    }
    // Who may set it the kernel knows.
    shell(&root, "chmod 777 . && touch mine && chown 65534 mine");
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let line = format!("! {user} chattr +i mine 2>/dev/null && {user} chattr +d mine");
    shell(&root, &line);
    assert!(shell(&root, "lsattr mine").contains('d'));
    shell(&root, "chattr -i file dir && rm file dir/in && rmdir dir");
    assert!(!shell(&root, "chattr +c mine 2>&1 || true").is_empty(), "compression is no flag here");
    site.umount_and_check();
}

#[test]
fn a_file_that_only_grows_is_as_chattr_says() {
    need("chattr", "e2fsprogs");
    let site = Site::mounted();
    let root = site.mountpoint();
    shell(&root, "echo one >log && chattr +a log && echo two >>log");
    let log = site.at("log");
    assert_eq!(errno_of(OpenOptions::new().write(true).open(&log)), libc::EPERM);
    assert_eq!(errno_of(File::create(&log)), libc::EPERM);
    assert_eq!(errno_of(fs::remove_file(&log)), libc::EPERM);
    let file = OpenOptions::new().append(true).open(&log).unwrap();
    assert_eq!(errno_of(file.set_len(0)), libc::EPERM);
    // SAFETY: plain numbers and a descriptor that is open.
    let punched = unsafe { libc::fallocate(file.as_raw_fd(), 3, 0, 1) };
    assert_eq!(
        (punched, errno_of(Err::<(), _>(std::io::Error::last_os_error()))),
        (-1, libc::EPERM)
    );
    drop(file);
    site.remount();
    shell(&root, "echo three >>log");
    assert_eq!(fs::read_to_string(&log).unwrap(), "one\ntwo\nthree\n");
    let before = fs::metadata(&log).unwrap().mtime();
    shell(&root, "touch log");
    assert!(before <= fs::metadata(&log).unwrap().mtime());
    shell(&root, "chattr -a log && rm log");
}

fn set_times(path: &Path, atime: SystemTime, mtime: SystemTime) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_times(fs::FileTimes::new().set_accessed(atime).set_modified(mtime)).unwrap();
}

#[test]
fn reading_moves_the_time_of_access_as_relatime_says() {
    let site = Site::mounted();
    let path = site.at("file");
    fs::write(&path, "text").unwrap();
    let (long_ago, ago) = (Duration::from_secs(1 << 30), Duration::from_secs(1 << 29));
    let start = SystemTime::UNIX_EPOCH;
    let atime = || fs::metadata(&path).unwrap().accessed().unwrap();
    // Read from the kernel's memory, where the bytes still are, and then from the volume.
    for _ in 0..2 {
        set_times(&path, start + ago, start + long_ago);
        assert_eq!(atime(), start + ago);
        fs::read(&path).unwrap();
        let moved = atime();
        assert!(moved.elapsed().unwrap() < Duration::from_secs(60), "it was not read since");
        fs::read(&path).unwrap();
        assert_eq!(atime(), moved, "nothing changed since it was read");
        site.remount();
        assert_eq!(atime(), moved);
    }
    set_times(&path, start + ago, start + long_ago);
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(&path).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), atime()), ("text", start + ago), "O_NOATIME leaves no trace");
    // Writing is no reading.
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"x").unwrap();
    assert_eq!(atime(), start + ago);
}

#[test]
fn listing_a_directory_and_following_a_link_move_their_times_too() {
    let site = Site::mounted();
    let root = site.mountpoint();
    shell(
        &root,
        "mkdir dir && touch dir/a && ln -s a link && touch -h -d @5 link && touch -d @5 dir",
    );
    let atime = |name: &str| fs::symlink_metadata(site.at(name)).unwrap().atime();
    assert_eq!((atime("dir"), atime("link")), (5, 5));
    shell(&root, "ls dir >/dev/null && readlink link >/dev/null");
    assert!(5 < atime("dir") && 5 < atime("link"));
    shell(&root, "touch -a -d @5 dir && ls dir >/dev/null");
    assert!(5 < atime("dir"), "also when the kernel still knows the names");
}

#[test]
fn a_whiteout_takes_the_place_of_a_name_that_an_overlay_moved() {
    let site = Site::mounted();
    fs::write(site.at("one"), "text").unwrap();
    let name = |name: &str| CString::new(site.at(name).as_os_str().as_bytes()).unwrap();
    let (one, two) = (name("one"), name("two"));
    // SAFETY: two names that end with NUL and outlive the call.
    let moved = unsafe {
        let (call, at) = (libc::SYS_renameat2, libc::AT_FDCWD);
        libc::syscall(call, at, one.as_ptr(), at, two.as_ptr(), libc::RENAME_WHITEOUT)
    };
    assert_eq!(moved, 0, "{}", std::io::Error::last_os_error());
    for _ in 0..2 {
        let about = fs::symlink_metadata(site.at("one")).unwrap();
        assert!(about.file_type().is_char_device());
        assert_eq!(about.rdev(), 0);
        assert_eq!(fs::read_to_string(site.at("two")).unwrap(), "text");
        site.remount();
    }
    fs::remove_file(site.at("one")).unwrap();
    site.umount_and_check();
}
