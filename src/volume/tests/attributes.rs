//! Access control lists, flags, times of access: what follows from what.

use super::super::acl::{ACCESS, DEFAULT};
use super::*;
use crate::sys::Timestamp;

const USER: Caller = Caller { uid: 1000, gid: 1000, umask: 0o077 };

/// A list in the form of the kernel: tags, permissions, ids.
pub(super) fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0];
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// Owner and user 7 may do all, the group may read, the mask is `mask`, others may nothing.
fn named(mask: u16) -> Vec<u8> {
    list(&[(1, 7, !0), (2, 7, 7), (4, 4, !0), (16, mask, !0), (32, 0, !0)])
}

fn mode(bench: &Bench, ino: Ino) -> u32 {
    bench.volume.getattr(ino).unwrap().mode & 0o7777
}

fn chmod(bench: &Bench, ino: Ino, mode: u32) -> Result<Attr, Error> {
    let change = SetAttr { mode: Some(mode), ..SetAttr::default() };
    bench.volume.setattr(ino, &change, ROOT, Wait::Yes)
}

fn forbidden<T: std::fmt::Debug>(result: Result<T, Error>) {
    assert!(matches!(result, Err(Error::NotPermitted)), "{result:?}");
}

#[test]
fn a_list_and_the_mode_follow_each_other() {
    let mut bench = Bench::new();
    let ino = bench.create("file");
    bench.volume.set_acl(ino, ACCESS, &named(5), false, Wait::Yes).unwrap();
    assert_eq!(mode(&bench, ino), 0o750);
    chmod(&bench, ino, 0o630).unwrap();
    bench.reopen();
    let expected = list(&[(1, 6, !0), (2, 7, 7), (4, 4, !0), (16, 3, !0), (32, 0, !0)]);
    assert_eq!(bench.volume.getxattr(ino, ACCESS).unwrap(), expected);
    assert_eq!(bench.volume.listxattr(ino).unwrap(), [ACCESS.to_vec()]);
    // A list that a mode can say is no list.
    let plain = list(&[(1, 6, !0), (4, 4, !0), (32, 4, !0)]);
    bench.volume.set_acl(ino, ACCESS, &plain, false, Wait::Yes).unwrap();
    assert_eq!(mode(&bench, ino), 0o644);
    assert!(matches!(bench.volume.getxattr(ino, ACCESS), Err(Error::NoAttribute)));
}

#[test]
fn a_list_set_from_outside_the_group_takes_the_set_group_id_bit() {
    let bench = Bench::new();
    let ino = bench.create("file");
    chmod(&bench, ino, 0o2755).unwrap();
    bench.volume.set_acl(ino, ACCESS, &named(5), false, Wait::Yes).unwrap();
    assert_eq!(mode(&bench, ino), 0o2750);
    bench.volume.set_acl(ino, ACCESS, &named(5), true, Wait::Yes).unwrap();
    assert_eq!(mode(&bench, ino), 0o750);
}

#[test]
fn lists_that_make_no_sense_are_refused() {
    let bench = Bench::new();
    let ino = bench.create("file");
    let link = bench.volume.symlink(Ino::ROOT, b"link", b"file", ROOT, Wait::Yes).unwrap().ino;
    let set = |ino, name, value: &[u8]| bench.volume.set_acl(ino, name, value, false, Wait::Yes);
    assert!(matches!(set(ino, ACCESS, b"rwx"), Err(Error::Invalid { .. })));
    assert!(matches!(set(link, ACCESS, &named(7)), Err(Error::Unsupported)));
    forbidden(set(ino, DEFAULT, &named(7)));
    assert!(bench.volume.listxattr(ino).unwrap().is_empty());
}

#[test]
fn new_entries_get_what_the_default_list_says_and_the_umask_counts_only_without_one() {
    let mut bench = Bench::new();
    let dir = bench.volume.mkdir(Ino::ROOT, b"dir", 0o777, USER, Wait::Yes).unwrap();
    assert_eq!(dir.mode & 0o7777, 0o700);
    let make = Make { mode: MODE_FILE | 0o666, rdev: 0 };
    let before = bench.volume.mknod(dir.ino, b"before", &make, USER, Wait::Yes).unwrap();
    assert_eq!(before.mode & 0o7777, 0o600);
    bench.volume.set_acl(dir.ino, DEFAULT, &named(7), false, Wait::Yes).unwrap();
    assert_eq!(mode(&bench, dir.ino), 0o700, "a default list says nothing of its directory");
    for round in 0..2 {
        let name = |kind: &str| format!("{kind}-{round}").into_bytes();
        let file = bench.volume.mknod(dir.ino, &name("file"), &make, USER, Wait::Yes).unwrap();
        assert_eq!(file.mode & 0o7777, 0o660);
        let access = list(&[(1, 6, !0), (2, 7, 7), (4, 4, !0), (16, 6, !0), (32, 0, !0)]);
        assert_eq!(bench.volume.getxattr(file.ino, ACCESS).unwrap(), access);
        let sub = bench.volume.mkdir(dir.ino, &name("sub"), 0o755, USER, Wait::Yes).unwrap();
        assert_eq!(sub.mode & 0o7777, 0o750);
        assert_eq!(bench.volume.getxattr(sub.ino, DEFAULT).unwrap(), named(7));
        let link = bench.volume.symlink(dir.ino, &name("link"), b"x", USER, Wait::Yes).unwrap();
        assert_eq!(link.mode & 0o7777, 0o777);
        assert!(bench.volume.listxattr(link.ino).unwrap().is_empty());
        bench.reopen();
    }
    bench.volume.removexattr(dir.ino, DEFAULT, Wait::Yes).unwrap();
    let after = bench.volume.mknod(dir.ino, b"after", &make, USER, Wait::Yes).unwrap();
    assert_eq!(after.mode & 0o7777, 0o600);
}

#[test]
fn nothing_about_an_immutable_inode_changes() {
    let mut bench = Bench::new();
    let volume = &bench.volume;
    let ino = bench.create("file");
    bench.write(ino, 0, b"kept");
    volume.set_flags(ino, FLAG_IMMUTABLE, Wait::Yes).unwrap();
    let dir = volume.mkdir(Ino::ROOT, b"dir", 0o755, ROOT, Wait::Yes).unwrap().ino;
    let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
    volume.mknod(dir, b"inside", &make, ROOT, Wait::Yes).unwrap();
    volume.set_flags(dir, FLAG_IMMUTABLE, Wait::Yes).unwrap();
    bench.reopen();
    let volume = &bench.volume;
    let plain = RenameFlags::default();
    let write = OpenFlags { write: true, append: true, ..OpenFlags::default() };
    forbidden(volume.open_file(ino, write, ROOT, Wait::Yes));
    forbidden(chmod(&bench, ino, 0o600));
    let cut = SetAttr { size: Some(0), ..SetAttr::default() };
    forbidden(volume.setattr(ino, &cut, ROOT, Wait::Yes));
    forbidden(volume.setxattr(ino, b"user.a", b"1", XattrMode::Any, Wait::Yes));
    forbidden(volume.set_acl(ino, ACCESS, &named(7), false, Wait::Yes));
    let reserve = Allocate::Reserve { keep_size: true };
    forbidden(volume.allocate(ino, 0, 1, reserve, ROOT, Wait::Yes));
    forbidden(volume.link(ino, Ino::ROOT, b"more", Wait::Yes));
    forbidden(volume.unlink(Ino::ROOT, b"file", Wait::Yes));
    forbidden(volume.rename(Ino::ROOT, b"file", Ino::ROOT, b"other", plain, Wait::Yes));
    forbidden(volume.mknod(dir, b"new", &make, ROOT, Wait::Yes));
    forbidden(volume.unlink(dir, b"inside", Wait::Yes));
    forbidden(volume.rename(dir, b"inside", Ino::ROOT, b"out", plain, Wait::Yes));
    forbidden(volume.rmdir(Ino::ROOT, b"dir", Wait::Yes));
    let other = bench.create("other");
    for exchange in [false, true] {
        let flags = RenameFlags { exchange, ..plain };
        forbidden(volume.rename(Ino::ROOT, b"other", Ino::ROOT, b"file", flags, Wait::Yes));
    }
    forbidden(volume.rename(Ino::ROOT, b"other", dir, b"in", plain, Wait::Yes));
    assert_eq!((bench.read_all(ino), bench.find("other").unwrap()), (b"kept".to_vec(), other));
    // Reading goes on, and the flag can be taken away.
    volume.open_file(ino, OpenFlags::default(), ROOT, Wait::Yes).unwrap();
    volume.release(ino, false);
    volume.set_flags(ino, 0, Wait::Yes).unwrap();
    volume.unlink(Ino::ROOT, b"file", Wait::Yes).unwrap();
}

#[test]
fn what_may_only_grow_only_grows() {
    let bench = Bench::new();
    let volume = &bench.volume;
    let ino = bench.create("log");
    volume.set_flags(ino, FLAG_APPEND, Wait::Yes).unwrap();
    let append = OpenFlags { write: true, append: true, truncate: false };
    forbidden(volume.open_file(ino, OpenFlags { append: false, ..append }, ROOT, Wait::Yes));
    forbidden(volume.open_file(ino, OpenFlags { truncate: true, ..append }, ROOT, Wait::Yes));
    let at = SetTime::At(Timestamp::default());
    let times = |atime| SetAttr { atime: Some(atime), mtime: Some(at), ..SetAttr::default() };
    volume.setattr(ino, &times(SetTime::Now), ROOT, Wait::Yes).unwrap();
    forbidden(volume.setattr(ino, &times(at), ROOT, Wait::Yes));
    volume.open_file(ino, append, ROOT, Wait::Yes).unwrap();
    bench.write(ino, 0, b"line");
    // The kernel hands the times of what it wrote over by itself.
    let over = SetAttr { mtime: Some(at), ..SetAttr::default() };
    volume.setattr(ino, &over, ROOT, Wait::Yes).unwrap();
    forbidden(chmod(&bench, ino, 0o600));
    forbidden(volume.allocate(ino, 0, 2, Allocate::Punch, ROOT, Wait::Yes));
    volume.allocate(ino, 0, 9, Allocate::Reserve { keep_size: true }, ROOT, Wait::Yes).unwrap();
    volume.release(ino, true);
    forbidden(volume.setattr(ino, &over, ROOT, Wait::Yes));
    forbidden(volume.unlink(Ino::ROOT, b"log", Wait::Yes));
    let dir = volume.mkdir(Ino::ROOT, b"dir", 0o755, ROOT, Wait::Yes).unwrap().ino;
    volume.set_flags(dir, FLAG_APPEND, Wait::Yes).unwrap();
    let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
    volume.mknod(dir, b"new", &make, ROOT, Wait::Yes).unwrap();
    forbidden(volume.unlink(dir, b"new", Wait::Yes));
}

#[test]
fn flags_are_kept_and_handed_on() {
    let mut bench = Bench::new();
    let dir = bench.volume.mkdir(Ino::ROOT, b"dir", 0o755, ROOT, Wait::Yes).unwrap().ino;
    bench.volume.set_flags(dir, FLAG_NO_DUMP | FLAG_NO_ATIME | FLAG_APPEND, Wait::Yes).unwrap();
    bench.reopen();
    let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
    let ino = bench.volume.mknod(dir, b"new", &make, ROOT, Wait::Yes).unwrap().ino;
    assert_eq!(bench.volume.flags(ino).unwrap(), FLAG_NO_DUMP | FLAG_NO_ATIME);
    let unknown = bench.volume.set_flags(ino, 0x0080_0000, Wait::Yes);
    assert!(matches!(unknown, Err(Error::Unsupported)));
    let make = Make { mode: 0o010_600, rdev: 0 };
    let fifo = bench.volume.mknod(Ino::ROOT, b"fifo", &make, ROOT, Wait::Yes).unwrap().ino;
    let flagged = bench.volume.set_flags(fifo, FLAG_NO_DUMP, Wait::Yes);
    assert!(matches!(flagged, Err(Error::Unsupported)));
}

#[test]
fn the_time_of_access_moves_as_relatime_says() {
    let bench = Bench::new();
    let ino = bench.create("file");
    let atime = || bench.volume.getattr(ino).unwrap().atime;
    let after = |seconds: u64| bench.clock.advance(std::time::Duration::from_secs(seconds));
    after(1);
    assert!(bench.volume.accessed(ino), "it was not read since it was made");
    let first = atime();
    after(60);
    assert!(!bench.volume.accessed(ino), "nothing has changed since");
    assert_eq!(atime(), first);
    bench.write(ino, 0, b"new");
    after(1);
    assert!(bench.volume.accessed(ino));
    after(24 * 60 * 60);
    assert!(bench.volume.accessed(ino), "a day is over");
    bench.volume.set_flags(ino, FLAG_NO_ATIME, Wait::Yes).unwrap();
    after(1);
    assert!(!bench.volume.accessed(ino));
    let dir = bench.volume.mkdir(Ino::ROOT, b"dir", 0o755, ROOT, Wait::Yes).unwrap().ino;
    after(1);
    assert!(bench.volume.accessed(dir));
}

#[test]
fn the_time_of_access_follows_the_options() {
    let never = OpenOptions { atime: Atime::Never, ..options() };
    let bench = Bench::with(never);
    let ino = bench.create("file");
    bench.clock.advance(std::time::Duration::from_secs(1));
    assert!(!bench.volume.accessed(ino));
    let strict = OpenOptions { atime: Atime::Strict, dir_atime: false, ..options() };
    let bench = Bench::with(strict);
    let ino = bench.create("file");
    for _ in 0..3 {
        bench.clock.advance(std::time::Duration::from_secs(1));
        assert!(bench.volume.accessed(ino));
    }
    assert!(!bench.volume.accessed(Ino::ROOT));
}

#[test]
fn a_whiteout_stands_where_the_name_was() {
    let mut bench = Bench::new();
    let (one, two) = (bench.create("one"), bench.create("two"));
    let flags = RenameFlags { whiteout: Some(USER), ..RenameFlags::default() };
    let files = bench.volume.status().unwrap().files;
    let volume = &bench.volume;
    volume.rename(Ino::ROOT, b"one", Ino::ROOT, b"free", flags, Wait::Yes).unwrap();
    volume.rename(Ino::ROOT, b"free", Ino::ROOT, b"two", flags, Wait::Yes).unwrap();
    let exchange = RenameFlags { exchange: true, ..flags };
    let refused = volume.rename(Ino::ROOT, b"one", Ino::ROOT, b"two", exchange, Wait::Yes);
    assert!(matches!(refused, Err(Error::Invalid { .. })));
    bench.reopen();
    assert_eq!(bench.find("two").unwrap(), one);
    for name in ["one", "free"] {
        let attr = bench.volume.getattr(bench.find(name).unwrap()).unwrap();
        assert_eq!((attr.mode, attr.rdev, attr.nlink, attr.uid), (MODE_WHITEOUT, 0, 1, 1000));
    }
    assert!(matches!(bench.volume.getattr(two), Err(Error::Stale)));
    assert_eq!(bench.volume.status().unwrap().files, files + 2 - 1);
}

#[test]
fn an_inode_is_found_by_its_number_alone() {
    let mut bench = Bench::new();
    let ino = bench.create("file");
    bench.reopen();
    assert_eq!(bench.volume.lookup(ino, b".").unwrap().ino, ino);
    bench.volume.unlink(Ino::ROOT, b"file", Wait::Yes).unwrap();
    bench.volume.forget(ino, 1);
    assert!(matches!(bench.volume.lookup(ino, b"."), Err(Error::Stale)));
}

#[test]
fn copies_are_counted_as_shared_or_not() {
    let bench = Bench::new();
    let (one, two) = (bench.create("one"), bench.create("two"));
    bench.write(one, 0, &noise(1, 10_000));
    assert_eq!(
        bench.volume.copy_range((one, 0), (two, 0), 1 << 20, ROOT, Wait::Yes).unwrap(),
        10_000
    );
    let odd = bench.volume.copy_range((one, 1), (two, 0), 100, ROOT, Wait::Yes);
    assert!(matches!(odd, Err(Error::Unsupported)));
    let status = bench.volume.status().unwrap();
    assert_eq!((status.shared_copy_bytes, status.unshared_copies), (10_000, 1));
}
