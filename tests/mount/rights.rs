//! Set-id bits and capabilities, sticky and set-group-id directories, as several users.
//!
//! Where Linux has a rule of its own, a tmpfs beside the mount says what it is: the same calls as
//! the same users must leave the same bits on both.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::harness::{Site, errno_of, run};
use super::plain::{get_xattr, map, rename, set_xattr};

const BOTH: i32 = libc::PROT_READ | libc::PROT_WRITE;
const CAPABILITY: &str = "security.capability";
/// Version 2, effective, cap_net_raw: what setcap(8) writes.
const CAPABILITY_VALUE: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Who calls: user, group, and further groups.
#[derive(Clone, Copy, Debug)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: &'static [u32],
}

pub const ROOT: User = User { uid: 0, gid: 0, groups: &[] };
/// Owner of the files of these tests, and their group.
pub const OWNER: User = User { uid: 1234, gid: 1234, groups: &[] };
/// Of the group by the list of further groups.
pub const MEMBER: User = User { uid: 2345, gid: 2345, groups: &[1234] };
pub const STRANGER: User = User { uid: 65534, gid: 65534, groups: &[] };

/// Runs `work` on a thread that is another user, by the bare system calls: those of the C library
/// would change all threads.
pub fn as_user<R: Send>(user: User, work: impl FnOnce() -> R + Send) -> R {
    let become_user = || {
        // SAFETY: numbers, and a list that lives until its call returns.
        unsafe {
            let count = user.groups.len();
            let (uid, gid) = (user.uid, user.gid);
            assert_eq!(libc::syscall(libc::SYS_setgroups, count, user.groups.as_ptr()), 0);
            assert_eq!(libc::syscall(libc::SYS_setresgid, gid, gid, gid), 0);
            assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0);
        }
    };
    let result = std::thread::scope(|scope| {
        let other = move || {
            become_user();
            work()
        };
        scope.spawn(other).join()
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A directory on a tmpfs of its own, which all may write.
struct Twin(PathBuf);

impl Twin {
    fn new(site: &Site) -> Twin {
        let path = site.path("twin");
        fs::create_dir(&path).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "none"]).arg(&path));
        set_mode(&path, 0o777);
        set_mode(&site.mountpoint(), 0o777);
        Twin(path)
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

pub fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn bits_of(path: &Path) -> String {
    format!("{:o}", mode(path))
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn allocate(path: &Path, mode: i32) -> io::Result<()> {
    let file = open(path);
    // SAFETY: the call touches no memory of ours.
    match unsafe { libc::fallocate(file.as_raw_fd(), mode, 0, 20_000) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Copies from the file `source` beside `path`.
fn copy(path: &Path, to: i64) -> io::Result<()> {
    let (from, file) = (File::open(path.with_file_name("source")).unwrap(), open(path));
    let (mut here, mut there) = (0, to);
    let (one, other) = (from.as_raw_fd(), file.as_raw_fd());
    // SAFETY: both offsets live until the call returns.
    let count =
        unsafe { libc::copy_file_range(one, &raw mut here, other, &raw mut there, 5000, 0) };
    if count == 5000 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ways to change a file, by name.
type Way = (&'static str, fn(&Path) -> io::Result<()>);

const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;

const WAYS: [Way; 15] = [
    ("write", |path| open(path).write_all_at(b"x", 3)),
    ("write nothing", |path| open(path).write_all_at(b"", 3)),
    ("write behind the end", |path| open(path).write_all_at(b"x", 50_000)),
    ("append", |path| {
        use std::io::Write;
        OpenOptions::new().append(true).open(path).unwrap().write_all(b"x")
    }),
    ("mmap", |path| map(&open(path), BOTH, |bytes| bytes[3] = 7)),
    ("O_TRUNC", |path| OpenOptions::new().write(true).truncate(true).open(path).map(drop)),
    ("truncate", |path| nix::unistd::truncate(path, 10).map_err(io::Error::from)),
    ("ftruncate", |path| open(path).set_len(20_000)),
    ("ftruncate to the same", |path| open(path).set_len(10_000)),
    ("reserve", |path| allocate(path, 0)),
    ("reserve, keep size", |path| allocate(path, KEEP)),
    ("punch", |path| allocate(path, libc::FALLOC_FL_PUNCH_HOLE | KEEP)),
    ("copy", |path| copy(path, 0)),
    ("copy that shares nothing", |path| copy(path, 7)),
    ("chmod to the same", |path| {
        let same = fs::metadata(path)?.permissions();
        fs::set_permissions(path, same)
    }),
];

fn fresh(path: &Path, mode: u32, capability: bool) {
    fs::write(path, [1; 10_000]).unwrap();
    chown(path, Some(OWNER.uid), Some(OWNER.gid)).unwrap();
    set_mode(path, mode);
    if capability {
        set_xattr(path, CAPABILITY, &CAPABILITY_VALUE, 0).unwrap();
    }
}

fn capable(path: &Path) -> bool {
    match get_xattr(path, OsStr::new(CAPABILITY)) {
        Ok(value) => value == CAPABILITY_VALUE,
        Err(error) if error.raw_os_error() == Some(libc::ENODATA) => false,
        Err(error) => panic!("{error}"),
    }
}

/// What a call left behind: its errno, the mode in octal, whether the capability is there.
type Left = (i32, String, bool);

/// What is left where FUSE does not tell all that Linux itself knows.
fn as_fuse_tells(way: &str, bits: u32, linux: Left) -> Left {
    let (done, mode, capable) = linux;
    let mode = match bits & 0o2010 {
        // It is not told which of its groups a caller has: by the rule of FUSE's protocol the
        // set-group-id bit goes only from what its group may execute, which alone has an effect.
        0o2000 if mode == format!("{:o}", bits & 0o777) => {
            format!("{:o}", bits & 0o2777)
        }
        _ => mode,
    };
    // Pages come back from the kernel's cache alike, whether they were written or mapped.
    (done, mode, capable && way != "mmap")
}

#[test]
fn a_change_takes_away_what_linux_takes_away() {
    let site = Site::mounted();
    let twin = Twin::new(&site);
    for dir in [site.mountpoint(), twin.0.clone()] {
        fs::write(dir.join("source"), [3; 5000]).unwrap();
    }
    let mut wrong = Vec::new();
    let mut names = Vec::new();
    for (way, change) in WAYS {
        for user in [ROOT, OWNER, MEMBER, STRANGER] {
            for bits in [0o6777, 0o6767, 0o2767, 0o4777] {
                for capability in [false, true] {
                    let name = format!("{way}, {}, {bits:o}, {capability}", user.uid);
                    let [here, there] = [site.at(&name), twin.0.join(&name)].map(|path| {
                        fresh(&path, bits, capability);
                        let done = errno_of(as_user(user, || change(&path)));
                        (done, bits_of(&path), capable(&path))
                    });
                    let wanted = as_fuse_tells(way, bits, there);
                    if here != wanted {
                        wrong.push(format!("{name}: {here:?}, and not {wanted:?}"));
                    }
                    names.push((name, wanted));
                }
            }
        }
    }
    site.remount();
    for (name, wanted) in names {
        let path = site.at(&name);
        let here = (bits_of(&path), capable(&path));
        if here != (wanted.1, wanted.2) {
            wrong.push(format!("{name}, after the remount: {here:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_change_of_owner_takes_the_set_id_bits_away() {
    let site = Site::mounted();
    let twin = Twin::new(&site);
    let mut wrong = Vec::new();
    // A call that names neither owner nor group is missing: FUSE tells it as a change of ctime.
    let changes: [(&str, User, Option<u32>, Option<u32>); 5] = [
        ("root gives it away", ROOT, Some(77), Some(77)),
        ("root gives it to its owner", ROOT, Some(OWNER.uid), None),
        ("its owner gives it to a group", User { groups: &[4321], ..OWNER }, None, Some(4321)),
        ("its owner gives it to a strange group", OWNER, None, Some(4321)),
        ("its owner changes nothing", OWNER, Some(OWNER.uid), Some(OWNER.gid)),
    ];
    for (what, user, uid, gid) in changes {
        for bits in [0o6777, 0o6767, 0o2767, 0o4777] {
            for kind in ["file", "dir"] {
                let name = format!("{what}, {bits:o}, {kind}");
                let [here, there] = [site.at(&name), twin.0.join(&name)].map(|path| {
                    if kind == "dir" {
                        fs::create_dir(&path).unwrap();
                        chown(&path, Some(OWNER.uid), Some(OWNER.gid)).unwrap();
                        set_mode(&path, bits);
                    } else {
                        fresh(&path, bits, true);
                    }
                    let done = errno_of(as_user(user, || chown(&path, uid, gid)));
                    (done, bits_of(&path), kind == "file" && capable(&path))
                });
                if here != there {
                    wrong.push(format!("{name}: {here:?}, and not {there:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_set_group_id_bit_is_kept_by_members_only() {
    let site = Site::mounted();
    let twin = Twin::new(&site);
    let mut wrong = Vec::new();
    for user in [ROOT, OWNER, MEMBER, STRANGER] {
        for kind in ["file", "dir"] {
            let name = format!("chmod by {}, {kind}", user.uid);
            let [here, there] = [site.at(&name), twin.0.join(&name)].map(|path| {
                if kind == "dir" { fs::create_dir(&path) } else { fs::write(&path, "x") }.unwrap();
                chown(&path, Some(user.uid), Some(OWNER.gid)).unwrap();
                let wanted = fs::Permissions::from_mode(0o6755);
                let done = errno_of(as_user(user, || fs::set_permissions(&path, wanted)));
                (done, bits_of(&path))
            });
            if here != there {
                wrong.push(format!("{name}: {here:?}, and not {there:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_made_in_a_set_group_id_directory() {
    let site = Site::mounted();
    let twin = Twin::new(&site);
    let mut wrong = Vec::new();
    for user in [ROOT, OWNER, MEMBER, STRANGER] {
        let dirs = [site.at(user.uid.to_string()), twin.0.join(user.uid.to_string())];
        for dir in &dirs {
            fs::create_dir(dir).unwrap();
            chown(dir, Some(0), Some(OWNER.gid)).unwrap();
            set_mode(dir, 0o2777);
        }
        for bits in [0o2777, 0o2767, 0o777, 0o4755] {
            for kind in ["file", "dir", "node", "link"] {
                let name = format!("{kind}-{bits:o}");
                let [here, there] = [0, 1].map(|which| {
                    let path = dirs[which].join(&name);
                    as_user(user, || make(&path, kind, bits));
                    let about = fs::symlink_metadata(&path).unwrap();
                    (about.uid(), about.gid(), format!("{:o}", about.mode()))
                });
                if here != there {
                    wrong.push(format!("{} {name}: {here:?}, and not {there:?}", user.uid));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn make(path: &Path, kind: &str, mode: u32) {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    match kind {
        "file" => drop(File::options().write(true).create_new(true).mode(mode).open(path).unwrap()),
        "dir" => fs::DirBuilder::new().mode(mode).create(path).unwrap(),
        "link" => symlink("target", path).unwrap(),
        _ => {
            let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
            // SAFETY: the path is a string that lives until the call returns.
            assert_eq!(unsafe { libc::mknod(path.as_ptr(), libc::S_IFIFO | mode, 0) }, 0);
        }
    }
}

#[test]
fn a_sticky_directory_protects_the_files_of_others() {
    let site = Site::mounted();
    let (dir, other) = (site.at("sticky"), site.at("open"));
    for (path, bits) in [(&dir, 0o1777), (&other, 0o777)] {
        fs::create_dir(path).unwrap();
        set_mode(path, bits);
    }
    as_user(OWNER, || {
        for name in ["file", "file-2"] {
            fs::write(dir.join(name), "x").unwrap();
            set_mode(&dir.join(name), 0o666);
        }
        fs::create_dir(dir.join("dir")).unwrap();
        set_mode(&dir.join("dir"), 0o777);
    });
    as_user(STRANGER, || {
        fs::write(dir.join("mine"), "y").unwrap();
        fs::write(other.join("mine"), "y").unwrap();
        assert_eq!(errno_of(fs::remove_file(dir.join("file"))), libc::EPERM);
        assert_eq!(errno_of(fs::remove_dir(dir.join("dir"))), libc::EPERM);
        let move_out = fs::rename(dir.join("file"), other.join("file"));
        assert_eq!(errno_of(move_out), libc::EPERM);
        assert_eq!(errno_of(fs::rename(dir.join("file"), dir.join("new"))), libc::EPERM);
        // Over another's file, and against one.
        assert_eq!(errno_of(fs::rename(other.join("mine"), dir.join("file"))), libc::EPERM);
        let exchange = rename(&dir.join("mine"), &dir.join("file"), libc::RENAME_EXCHANGE);
        assert_eq!(errno_of(exchange), libc::EPERM);
        // What may be written may be written, and the own name may go.
        fs::write(dir.join("file"), "changed").unwrap();
        fs::rename(dir.join("mine"), other.join("moved")).unwrap();
        fs::remove_file(other.join("moved")).unwrap();
    });
    as_user(OWNER, || {
        fs::rename(dir.join("file"), dir.join("renamed")).unwrap();
        fs::remove_dir(dir.join("dir")).unwrap();
    });
    // The directory's owner may remove what is not its own.
    chown(&dir, Some(STRANGER.uid), None).unwrap();
    as_user(STRANGER, || fs::remove_file(dir.join("file-2")).unwrap());
    site.remount();
    assert_eq!(mode(&dir), 0o1777);
    assert_eq!(fs::read(dir.join("renamed")).unwrap(), b"changed");
}

#[test]
fn groups_count_as_the_kernel_counts_them() {
    let site = Site::mounted();
    set_mode(&site.mountpoint(), 0o755);
    fs::write(site.at("file"), "group's").unwrap();
    chown(site.at("file"), Some(0), Some(OWNER.gid)).unwrap();
    set_mode(&site.at("file"), 0o060);
    let path = site.at("file");
    as_user(MEMBER, || {
        assert_eq!(fs::read(&path).unwrap(), b"group's");
        OpenOptions::new().write(true).open(&path).unwrap();
    });
    as_user(STRANGER, || {
        assert_eq!(errno_of(fs::read(&path)), libc::EACCES);
        assert_eq!(errno_of(fs::write(site.at("new"), "x")), libc::EACCES);
        assert_eq!(errno_of(fs::remove_file(&path)), libc::EACCES);
        assert_eq!(errno_of(fs::set_permissions(&path, fs::Permissions::from_mode(0o777))), 1);
        assert_eq!(errno_of(chown(&path, Some(STRANGER.uid), None)), libc::EPERM);
        let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        assert!(File::open(&path).is_err());
        set_times(&site.at(""), times);
    });
    // Owner bits go before group bits, group bits before those of all others.
    set_mode(&path, 0o606);
    as_user(MEMBER, || assert_eq!(errno_of(fs::read(&path)), libc::EACCES));
    as_user(STRANGER, || assert_eq!(fs::read(&path).unwrap(), b"group's"));
}

/// A stranger may not set times, of what it can open neither.
fn set_times(dir: &Path, times: fs::FileTimes) {
    assert_eq!(errno_of(File::open(dir).unwrap().set_times(times)), libc::EPERM);
}
