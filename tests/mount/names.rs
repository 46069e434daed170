//! Names: renames of every kind, links, long paths, and listings while entries come and go.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use super::harness::{Numbers, Site, errno_of, seed};
use super::plain::rename;

const EXCHANGE: u32 = libc::RENAME_EXCHANGE;
const NOREPLACE: u32 = libc::RENAME_NOREPLACE;

/// Makes a thing of that kind; a directory with something in it when it is "full".
fn make(path: &Path, kind: &str) {
    match kind {
        "file" => fs::write(path, "content").unwrap(),
        "link" => symlink("target", path).unwrap(),
        "empty" => fs::create_dir(path).unwrap(),
        "full" => {
            fs::create_dir(path).unwrap();
            fs::write(path.join("in"), "x").unwrap();
        }
        _ => {
            let path = CString::new(path.as_os_str().as_bytes()).unwrap();
            // SAFETY: the path is a string that lives until the call returns.
            assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o644) }, 0);
        }
    }
}

fn ino(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|about| about.ino())
}

const KINDS: [&str; 5] = ["file", "link", "pipe", "empty", "full"];

#[test]
fn a_name_replaces_another_of_its_kind() {
    let site = Site::mounted();
    for from in KINDS {
        for to in KINDS {
            for same_dir in [true, false] {
                let home = site.at(format!("{from}-{to}-{same_dir}"));
                let other = if same_dir { home.clone() } else { home.join("other") };
                fs::create_dir_all(&other).unwrap();
                let (old, new) = (home.join("old"), other.join("new"));
                make(&old, from);
                make(&new, to);
                let (moved, links) = (ino(&old), fs::metadata(&home).unwrap().nlink());
                assert_eq!(errno_of(rename(&old, &new, NOREPLACE)), libc::EEXIST);
                let is_dir = |kind| kind == "empty" || kind == "full";
                let wanted = match (is_dir(from), is_dir(to)) {
                    (true, false) => libc::ENOTDIR,
                    (false, true) => libc::EISDIR,
                    (true, true) if to == "full" => libc::ENOTEMPTY,
                    _ => 0,
                };
                assert_eq!(errno_of(fs::rename(&old, &new)), wanted, "{from} over {to}");
                let done = wanted == 0;
                assert_eq!((ino(&old).is_none(), ino(&new) == moved), (done, done));
                let fewer = u64::from(done && is_dir(from));
                assert_eq!(fs::metadata(&home).unwrap().nlink(), links - fewer);
            }
        }
    }
    site.umount_and_check();
}

#[test]
fn any_two_names_change_places() {
    let site = Site::mounted();
    for from in KINDS {
        for to in KINDS {
            let (left, right) =
                (site.at(format!("{from}-{to}-l")), site.at(format!("{from}-{to}-r")));
            fs::create_dir(&left).unwrap();
            fs::create_dir(&right).unwrap();
            let (one, other) = (left.join("one"), right.join("other"));
            make(&one, from);
            assert_eq!(errno_of(rename(&one, &other, EXCHANGE)), libc::ENOENT);
            make(&other, to);
            let before = (ino(&one), ino(&other));
            rename(&one, &other, EXCHANGE).unwrap();
            assert_eq!((ino(&other), ino(&one)), before, "{from} and {to}");
            let links = |kind| if kind == "empty" || kind == "full" { 3 } else { 2 };
            assert_eq!(fs::metadata(&left).unwrap().nlink(), links(to));
            assert_eq!(fs::metadata(&right).unwrap().nlink(), links(from));
            if from == "full" {
                assert_eq!(ino(&other.join("..")), ino(&right));
                assert_eq!(fs::read(other.join("in")).unwrap(), b"x");
            }
        }
    }
    // Not with what is below, nor with itself to any effect, and not both ways at once.
    let full = site.at("full-full-l/one");
    assert_eq!(errno_of(rename(&full, &full.join("in"), EXCHANGE)), libc::EINVAL);
    assert_eq!(errno_of(rename(&full.join("in"), &full, EXCHANGE)), libc::EINVAL);
    rename(&full, &full, EXCHANGE).unwrap();
    let both = rename(&full, &site.at("full-full-r/other"), EXCHANGE | NOREPLACE);
    assert_eq!(errno_of(both), libc::EINVAL);
    site.remount();
    assert_eq!(fs::read(full.join("in")).unwrap(), b"x");
    site.umount_and_check();
}

#[test]
fn directories_move_with_those_who_stand_in_them() {
    let site = Site::mounted();
    fs::create_dir_all(site.at("a/b/c")).unwrap();
    fs::create_dir_all(site.at("x/empty")).unwrap();
    let inside = File::open(site.at("a/b/c")).unwrap();
    let gone = File::open(site.at("x/empty")).unwrap();
    fs::rename(site.at("a/b"), site.at("x/empty")).unwrap();
    let path = |file: &File, name: &str| {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}/{name}", file.as_raw_fd()))
    };
    fs::write(path(&inside, "new"), "through the handle").unwrap();
    assert_eq!(fs::read(site.at("x/empty/c/new")).unwrap(), b"through the handle");
    assert_eq!(ino(&path(&inside, "../..")), ino(&site.at("x")));
    // The directory that was replaced is still there for its user, empty and without links.
    assert_eq!(fs::metadata(path(&gone, "")).unwrap().nlink(), 0);
    assert_eq!(errno_of(fs::write(path(&gone, "new"), "x")), libc::ENOENT);
    assert_eq!(fs::read_dir(path(&gone, ".")).map_or(0, Iterator::count), 0);
    // A directory cannot come to stand below itself, however long the way is.
    let deep = site.at("x/empty/c/d/e/f");
    fs::create_dir_all(&deep).unwrap();
    assert_eq!(errno_of(fs::rename(site.at("x"), deep.join("g"))), libc::EINVAL);
    assert_eq!(errno_of(fs::rename(&deep, site.at("x"))), libc::ENOTEMPTY);
    assert_eq!(fs::metadata(site.at("a")).unwrap().nlink(), 2);
    drop((inside, gone));
    site.umount_and_check();
}

#[test]
fn links_of_directories_are_counted_and_a_lost_file_gets_no_new_name() {
    let site = Site::mounted();
    let links = |name: &str| fs::symlink_metadata(site.at(name)).unwrap().nlink();
    for name in ["dir", "dir/one", "dir/two", "dir/one/deep"] {
        fs::create_dir(site.at(name)).unwrap();
    }
    fs::write(site.at("dir/file"), "x").unwrap();
    symlink("one", site.at("dir/link")).unwrap();
    assert_eq!((links("dir"), links("dir/one"), links("dir/link")), (4, 3, 1));
    fs::rename(site.at("dir/one/deep"), site.at("deep")).unwrap();
    fs::remove_dir(site.at("dir/two")).unwrap();
    fs::hard_link(site.at("dir/link"), site.at("link")).unwrap();
    site.remount();
    assert_eq!((links("dir"), links("dir/one"), links(""), links("link")), (3, 2, 4, 2));
    // What no longer has a name cannot get one by its handle.
    fs::rename(site.at("dir/file"), site.at("file")).unwrap();
    let file = File::open(site.at("file")).unwrap();
    fs::remove_file(site.at("file")).unwrap();
    use std::os::fd::AsRawFd;
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    let to = CString::new(site.at("again").as_os_str().as_bytes()).unwrap();
    let follow = libc::AT_SYMLINK_FOLLOW;
    // SAFETY: two strings that live until the call returns.
    let linked =
        unsafe { libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), follow) };
    assert_eq!((linked, errno_of::<()>(Err(std::io::Error::last_os_error()))), (-1, libc::ENOENT));
    drop(file);
    assert_eq!(site.figure("files"), 5);
    site.umount_and_check();
}

#[test]
fn names_are_bytes_of_any_value() {
    let site = Site::mounted();
    let mut wanted = BTreeSet::new();
    // Each byte alone, and filling a whole name; broken UTF-8; what looks like a path or an option.
    for byte in (1..=255_u8).filter(|&byte| byte != b'/') {
        for count in [1, 255] {
            let name = vec![byte; count];
            if name != b"." {
                wanted.insert(name);
            }
        }
    }
    for name in [&b"\xc3"[..], b"\xe2\x82", b"\xed\xa0\x80", b"...", b".. ", b"-rf", b"a\\b"] {
        wanted.insert(name.to_vec());
    }
    for name in &wanted {
        fs::write(site.at(OsStr::from_bytes(name)), name).unwrap();
    }
    site.remount();
    let list = || -> BTreeSet<Vec<u8>> {
        let entries = fs::read_dir(site.mountpoint()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_vec()).collect()
    };
    assert_eq!(list(), wanted);
    for name in &wanted {
        assert_eq!(&fs::read(site.at(OsStr::from_bytes(name))).unwrap(), name);
        fs::rename(site.at(OsStr::from_bytes(name)), site.at("moved")).unwrap();
        fs::remove_file(site.at("moved")).unwrap();
    }
    assert!(list().is_empty());
}

#[test]
fn paths_reach_as_far_as_the_kernel_lets_them() {
    let site = Site::mounted();
    // Deeper than any one path: step by step, and back.
    let here = File::open(site.mountpoint()).unwrap();
    let name = "d".repeat(255);
    let mut dirs = vec![here];
    for _ in 0..40 {
        use nix::fcntl::{OFlag, openat};
        use nix::sys::stat::{Mode, mkdirat};
        let last = dirs.last().unwrap();
        mkdirat(last, name.as_str(), Mode::from_bits_truncate(0o755)).unwrap();
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY;
        dirs.push(File::from(openat(last, name.as_str(), flags, Mode::empty()).unwrap()));
    }
    use std::os::fd::AsRawFd;
    let deepest = PathBuf::from(format!("/proc/self/fd/{}/file", dirs[40].as_raw_fd()));
    fs::write(&deepest, "deep down").unwrap();
    // The longest path that the kernel takes: PATH_MAX with its NUL.
    let mut longest = site.mountpoint().into_os_string().into_vec();
    while longest.len() + 1 + name.len() < 4095 {
        longest.push(b'/');
        longest.extend(name.bytes());
    }
    let left = 4095 - longest.len() - 1;
    longest.push(b'/');
    longest.extend(vec![b'f'; left]);
    let longest = OsString::from_vec(longest);
    assert_eq!(longest.len(), 4095);
    fs::write(&longest, "at the end").unwrap();
    assert_eq!(fs::read(&longest).unwrap(), b"at the end");
    let mut longer = longest.clone();
    longer.push("f");
    assert_eq!(errno_of(fs::read(&longer)), libc::ENAMETOOLONG);
    // Link targets are as long as paths.
    for count in [1, 59, 60, 255, 4094, 4095] {
        let target = "t".repeat(count);
        symlink(&target, site.at(format!("link-{count}"))).unwrap();
    }
    symlink(&longest, site.at("to-the-end")).unwrap();
    drop(dirs);
    site.remount();
    for count in [1, 59, 60, 255, 4094, 4095] {
        let link = site.at(format!("link-{count}"));
        assert_eq!(fs::read_link(&link).unwrap().as_os_str().len(), count);
        assert_eq!(fs::symlink_metadata(&link).unwrap().len(), count as u64);
    }
    assert_eq!(fs::read(site.at("to-the-end")).unwrap(), b"at the end");
    super::harness::shell(&site.mountpoint(), &format!("rm -r {name}"));
    site.umount_and_check();
}

/// A stream of opendir(3).
struct Stream(*mut libc::DIR);

impl Stream {
    fn open(path: &Path) -> Stream {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: the path is a string that lives until the call returns.
        let stream = unsafe { libc::opendir(path.as_ptr()) };
        assert!(!stream.is_null());
        Stream(stream)
    }

    /// The next name, and where it stands.
    fn next(&mut self) -> Option<(libc::c_long, String)> {
        // SAFETY: the stream is open, and the entry is read before the next call on it.
        unsafe {
            let place = libc::telldir(self.0);
            let entry = libc::readdir(self.0);
            if entry.is_null() {
                return None;
            }
            let name = CStr::from_ptr((*entry).d_name.as_ptr()).to_str().unwrap();
            Some((place, name.to_owned()))
        }
    }

    fn seek(&mut self, place: libc::c_long) {
        // SAFETY: the stream is open, and the place came from it or another of the directory.
        unsafe { libc::seekdir(self.0, place) };
    }

    fn rewind(&mut self) {
        // SAFETY: the stream is open.
        unsafe { libc::rewinddir(self.0) };
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream is open, and nobody uses it afterwards.
        unsafe { libc::closedir(self.0) };
    }
}

#[test]
fn places_in_a_listing_outlive_changes_and_remounts() {
    const ENTRIES: u64 = 10_000;
    let site = Site::mounted();
    let dir = site.at("dir");
    fs::create_dir(&dir).unwrap();
    let name = |number: u64| format!("entry-{number}");
    (0..ENTRIES).for_each(|number| drop(File::create(dir.join(name(number))).unwrap()));
    let mut stream = Stream::open(&dir);
    let mut places = Vec::new();
    while let Some(entry) = stream.next() {
        places.push(entry);
    }
    assert_eq!(places.len() as u64, ENTRIES + 2);
    let distinct: BTreeSet<_> = places.iter().map(|(place, _)| place).collect();
    assert_eq!(distinct.len(), places.len());
    // Every third goes, as many others come: the rest stand where they stood.
    let mut numbers = Numbers(seed());
    for number in (0..ENTRIES).step_by(3) {
        fs::remove_file(dir.join(name(number))).unwrap();
        if numbers.below(2) == 0 {
            File::create(dir.join(format!("late-{number}"))).unwrap();
        }
    }
    let stays = |name: &str| {
        let number = name.strip_prefix("entry-").and_then(|number| number.parse::<u64>().ok());
        number.is_some_and(|number| !number.is_multiple_of(3))
    };
    let verify = |stream: &mut Stream| {
        for (place, name) in places.iter().filter(|(_, name)| stays(name)).step_by(97) {
            stream.seek(*place);
            let found = std::iter::from_fn(|| stream.next()).find(|(_, name)| stays(name));
            assert_eq!(found.map(|(_, name)| name).as_ref(), Some(name));
        }
        stream.rewind();
        let names: Vec<String> = std::iter::from_fn(|| stream.next()).map(|(_, n)| n).collect();
        let kept: Vec<&String> = names.iter().filter(|name| stays(name)).collect();
        let wanted: Vec<&String> =
            places.iter().map(|(_, name)| name).filter(|name| stays(name)).collect();
        assert!(kept == wanted, "{} and {} names", kept.len(), wanted.len());
        assert_eq!(names.len(), names.iter().collect::<BTreeSet<_>>().len());
    };
    verify(&mut stream);
    drop(stream);
    site.remount();
    verify(&mut Stream::open(&dir));
}

#[test]
fn a_listing_starts_anew_where_it_is_rewound() {
    let site = Site::mounted();
    let mut stream = Stream::open(&site.mountpoint());
    let count = |stream: &mut Stream| std::iter::from_fn(|| stream.next()).count();
    assert_eq!(count(&mut stream), 2);
    fs::write(site.at("new"), "x").unwrap();
    stream.rewind();
    assert_eq!(count(&mut stream), 3);
    fs::remove_file(site.at("new")).unwrap();
    stream.rewind();
    assert_eq!(count(&mut stream), 2);
}
