//! Extended attributes: namespaces, limits, and who may see and set which.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{chown, symlink};
use std::path::Path;

use super::harness::{Numbers, Site, errno_of};
use super::plain::{get_xattr, set_xattr};
use super::rights::{OWNER, STRANGER, as_user, set_mode};

/// All names, of every namespace.
fn list(path: &Path) -> io::Result<BTreeSet<OsString>> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut room = vec![0; 65_536];
    // SAFETY: the buffer has the length that is told.
    let count = unsafe { libc::llistxattr(path.as_ptr(), room.as_mut_ptr().cast(), room.len()) };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    let names = room[..count as usize].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| OsString::from_vec(name.to_vec())).collect())
}

fn remove(path: &Path, name: &str) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let name = CString::new(name).unwrap();
    // SAFETY: two strings that live until the call returns.
    match unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What getxattr(2) answers with a buffer of `room` bytes: a length, or an errno below 0.
fn sized(path: &Path, name: Option<&str>, room: usize) -> i64 {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut buffer = vec![0_u8; room];
    let name = name.map(|name| CString::new(name).unwrap());
    // SAFETY: strings that live until the call returns, and a buffer of the told length.
    let count = unsafe {
        let place = buffer.as_mut_ptr();
        match &name {
            Some(name) => libc::lgetxattr(path.as_ptr(), name.as_ptr(), place.cast(), room),
            None => libc::llistxattr(path.as_ptr(), place.cast(), room),
        }
    };
    if count < 0 {
        -i64::from(io::Error::last_os_error().raw_os_error().unwrap())
    } else {
        count as i64
    }
}

#[test]
fn attributes_have_the_limits_of_linux() {
    let site = Site::mounted();
    let path = site.at("file");
    fs::write(&path, "x").unwrap();
    let longest = "user.".to_owned() + &"n".repeat(250);
    set_xattr(&path, &longest, b"", 0).unwrap();
    let too_long = longest.clone() + "n";
    assert_eq!(errno_of(set_xattr(&path, &too_long, b"", 0)), libc::ERANGE);
    let value = Numbers(1).bytes(65_536);
    set_xattr(&path, "user.big", &value, 0).unwrap();
    assert_eq!(errno_of(set_xattr(&path, "user.bigger", &[0; 65_537], 0)), libc::E2BIG);
    // How much room is needed is told when none is given.
    assert_eq!(sized(&path, Some("user.big"), 0), 65_536);
    assert_eq!(sized(&path, Some("user.big"), 65_535), -i64::from(libc::ERANGE));
    assert_eq!(sized(&path, Some(&longest), 0), 0);
    assert_eq!(sized(&path, Some("user.none"), 100), -i64::from(libc::ENODATA));
    let listed = longest.len() as i64 + 1 + 9;
    assert_eq!(sized(&path, None, 0), listed);
    assert_eq!(sized(&path, None, listed as usize), listed);
    assert_eq!(sized(&path, None, listed as usize - 1), -i64::from(libc::ERANGE));
    let set = |name, flags| errno_of(set_xattr(&path, name, b"v", flags));
    assert_eq!(set("user.big", libc::XATTR_CREATE), libc::EEXIST);
    assert_eq!(set("user.none", libc::XATTR_REPLACE), libc::ENODATA);
    assert_eq!(set("user.new", libc::XATTR_CREATE), 0);
    assert_eq!(set("user.new", libc::XATTR_REPLACE), 0);
    assert_eq!(errno_of(remove(&path, "user.none")), libc::ENODATA);
    for name in ["nothing", "system.other", "other.name", "userx"] {
        assert_eq!(set(name, 0), libc::EOPNOTSUPP, "{name}");
    }
    site.remount();
    assert!(get_xattr(&path, OsStr::new("user.big")).unwrap() == value);
    assert_eq!(get_xattr(&path, OsStr::new(&longest)).unwrap(), b"");
    assert_eq!(list(&path).unwrap().len(), 3);
    site.umount_and_check();
}

#[test]
fn the_names_of_one_file_fit_the_kernels_list() {
    let site = Site::mounted();
    let path = site.at("file");
    fs::write(&path, "x").unwrap();
    let mut wanted = BTreeSet::new();
    // 256 names of 255 bytes and a NUL each are 64 KiB exactly.
    for number in 0..256 {
        let name = format!("user.{number:0250}");
        set_xattr(&path, &name, format!("{number}").as_bytes(), 0).unwrap();
        wanted.insert(OsString::from(name));
    }
    let refused = errno_of(set_xattr(&path, "user.x", b"", 0));
    assert!([libc::ENOSPC, libc::E2BIG].contains(&refused), "{refused}");
    assert_eq!(list(&path).unwrap(), wanted);
    site.remount();
    assert_eq!(list(&path).unwrap(), wanted);
    remove(&path, &format!("user.{:0250}", 7)).unwrap();
    set_xattr(&path, "user.x", b"", 0).unwrap();
    fs::remove_file(&path).unwrap();
    site.umount_and_check();
}

#[test]
fn attributes_belong_to_the_inode() {
    let site = Site::mounted();
    fs::write(site.at("file"), "x").unwrap();
    fs::create_dir(site.at("dir")).unwrap();
    set_xattr(&site.at("file"), "user.a", b"1", 0).unwrap();
    set_xattr(&site.at("dir"), "user.b", b"2", 0).unwrap();
    fs::hard_link(site.at("file"), site.at("dir/link")).unwrap();
    set_xattr(&site.at("dir/link"), "user.c", b"\0\xff", 0).unwrap();
    fs::rename(site.at("file"), site.at("moved")).unwrap();
    fs::rename(site.at("dir"), site.at("elsewhere")).unwrap();
    // A name of any bytes.
    let odd = OsStr::from_bytes(b"user.\xff\x01 /\xc3");
    let path = CString::new(site.at("moved").as_os_str().as_bytes()).unwrap();
    let name = CString::new(odd.as_bytes()).unwrap();
    // SAFETY: strings that live until the call returns.
    let set = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), b"odd".as_ptr().cast(), 3, 0) };
    assert_eq!(set, 0);
    site.remount();
    assert_eq!(list(&site.at("moved")).unwrap(), list(&site.at("elsewhere/link")).unwrap());
    assert_eq!(get_xattr(&site.at("moved"), OsStr::new("user.c")).unwrap(), b"\0\xff");
    assert_eq!(get_xattr(&site.at("moved"), odd).unwrap(), b"odd");
    assert_eq!(get_xattr(&site.at("elsewhere"), OsStr::new("user.b")).unwrap(), b"2");
    let before = fs::metadata(site.at("moved")).unwrap();
    set_xattr(&site.at("moved"), "user.a", b"new", 0).unwrap();
    let after = fs::metadata(site.at("moved")).unwrap();
    let ctime = |about: &fs::Metadata| {
        use std::os::unix::fs::MetadataExt;
        (about.ctime(), about.ctime_nsec())
    };
    assert!(ctime(&before) < ctime(&after), "a change of an attribute moves ctime");
    assert_eq!(before.modified().unwrap(), after.modified().unwrap());
}

#[test]
fn attributes_of_users_are_for_files_and_directories() {
    let site = Site::mounted();
    symlink("nowhere", site.at("link")).unwrap();
    let path = CString::new(site.at("pipe").as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is a string that lives until the call returns.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o666) }, 0);
    for name in ["link", "pipe"] {
        let path = site.at(name);
        assert_eq!(errno_of(set_xattr(&path, "user.a", b"1", 0)), libc::EPERM, "{name}");
        set_xattr(&path, "trusted.a", b"1", 0).unwrap();
        set_xattr(&path, "security.a", b"2", 0).unwrap();
    }
    site.remount();
    for name in ["link", "pipe"] {
        let path = site.at(name);
        assert_eq!(get_xattr(&path, OsStr::new("trusted.a")).unwrap(), b"1", "{name}");
        assert_eq!(get_xattr(&path, OsStr::new("security.a")).unwrap(), b"2", "{name}");
    }
}

#[test]
fn who_may_see_and_set_which_attributes() {
    let site = Site::mounted();
    let path = site.at("file");
    fs::write(&path, "x").unwrap();
    chown(&path, Some(OWNER.uid), Some(OWNER.gid)).unwrap();
    set_mode(&path, 0o640);
    for name in ["user.a", "trusted.a", "security.a"] {
        set_xattr(&path, name, b"1", 0).unwrap();
    }
    let get = |name: &str| errno_of(get_xattr(&path, OsStr::new(name)));
    let set = |name: &str| errno_of(set_xattr(&path, name, b"2", 0));
    as_user(OWNER, || {
        assert_eq!((get("user.a"), set("user.a")), (0, 0));
        assert_eq!((get("trusted.a"), set("trusted.a")), (libc::ENODATA, libc::EPERM));
        assert_eq!((get("security.a"), set("security.a")), (0, libc::EPERM));
        assert_eq!(errno_of(remove(&path, "trusted.a")), libc::EPERM);
    });
    let seen = as_user(OWNER, || list(&path).unwrap());
    assert_eq!(list(&path).unwrap().len(), 3);
    assert!(seen.len() == 2 && !seen.contains(OsStr::new("trusted.a")), "only root sees it");
    for name in ["user.", "trusted.", "security."] {
        assert_eq!(errno_of(set_xattr(&path, name, b"1", 0)), libc::EINVAL, "{name}");
    }
    as_user(STRANGER, || {
        assert_eq!((get("user.a"), set("user.a")), (libc::EACCES, libc::EACCES));
        assert_eq!(set("security.a"), libc::EPERM);
    });
    // In a sticky directory that others may write, only its owner sets attributes of it.
    fs::create_dir(site.at("sticky")).unwrap();
    set_mode(&site.at("sticky"), 0o1777);
    let sticky = site.at("sticky");
    as_user(STRANGER, || {
        assert_eq!(errno_of(set_xattr(&sticky, "user.a", b"1", 0)), libc::EPERM);
    });
    set_xattr(&sticky, "user.a", b"1", 0).unwrap();
}
