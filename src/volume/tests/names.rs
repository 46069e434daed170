//! Names, links and attributes.

use super::*;

fn list(volume: &Volume, dir: Ino) -> Vec<String> {
    let mut names = Vec::new();
    volume
        .readdir(dir, 0, &mut |item| {
            names.push(String::from_utf8(item.name).unwrap());
            true
        })
        .unwrap();
    names.sort();
    names
}

fn nlink(volume: &Volume, ino: Ino) -> u32 {
    volume.getattr(ino).unwrap().nlink
}

#[test]
fn links_are_counted_and_the_last_name_takes_the_inode() {
    let bench = Bench::new();
    let volume = &bench.volume;
    let ino = bench.create("a");
    volume.link(ino, Ino::ROOT, b"b", Wait::Yes).unwrap();
    assert_eq!(nlink(volume, ino), 2);
    assert!(matches!(volume.link(ino, Ino::ROOT, b"b", Wait::Yes), Err(Error::Exists)));
    volume.unlink(Ino::ROOT, b"a", Wait::Yes).unwrap();
    assert_eq!(nlink(volume, ino), 1);
    assert_eq!(bench.find("b").unwrap(), ino);
    volume.unlink(Ino::ROOT, b"b", Wait::Yes).unwrap();
    volume.forget(ino, 2);
    assert!(matches!(volume.getattr(ino), Err(Error::Stale)));
}

#[test]
fn directories_count_theirs() {
    let bench = Bench::new();
    let volume = &bench.volume;
    let dir = volume.mkdir(Ino::ROOT, b"dir", 0o755, ROOT, Wait::Yes).unwrap().ino;
    let sub = volume.mkdir(dir, b"sub", 0o755, ROOT, Wait::Yes).unwrap().ino;
    assert_eq!([nlink(volume, Ino::ROOT), nlink(volume, dir), nlink(volume, sub)], [3, 3, 2]);
    assert!(matches!(volume.rmdir(Ino::ROOT, b"dir", Wait::Yes), Err(Error::NotEmpty)));
    assert!(matches!(volume.unlink(Ino::ROOT, b"dir", Wait::Yes), Err(Error::IsADirectory)));
    let flags = RenameFlags::default();
    volume.rename(dir, b"sub", Ino::ROOT, b"sub", flags, Wait::Yes).unwrap();
    assert_eq!([nlink(volume, Ino::ROOT), nlink(volume, dir)], [4, 2]);
    assert_eq!(volume.lookup(sub, b"..").unwrap().ino, Ino::ROOT);
    volume.rmdir(Ino::ROOT, b"dir", Wait::Yes).unwrap();
    assert_eq!(nlink(volume, Ino::ROOT), 3);
    assert!(matches!(
        volume.mkdir(dir, b"late", 0o755, ROOT, Wait::Yes),
        Err(Error::NotFound | Error::Stale)
    ));
}

#[test]
fn renames_follow_posix() {
    let bench = Bench::new();
    let volume = &bench.volume;
    let rename = |from: &[u8], to: &[u8], flags| {
        volume.rename(Ino::ROOT, from, Ino::ROOT, to, flags, Wait::Yes)
    };
    let plain = RenameFlags::default();
    let (a, b) = (bench.create("a"), bench.create("b"));
    let no_replace = RenameFlags { no_replace: true, ..plain };
    assert!(matches!(rename(b"a", b"b", no_replace), Err(Error::Exists)));
    let exchange = RenameFlags { exchange: true, ..plain };
    rename(b"a", b"b", exchange).unwrap();
    assert_eq!((bench.find("a").unwrap(), bench.find("b").unwrap()), (b, a));
    rename(b"a", b"b", plain).unwrap();
    assert_eq!(bench.find("b").unwrap(), b);
    assert!(matches!(bench.find("a"), Err(Error::NotFound)));
    volume.forget(a, 1);
    assert!(matches!(volume.getattr(a), Err(Error::Stale)));
    volume.link(b, Ino::ROOT, b"c", Wait::Yes).unwrap();
    rename(b"b", b"c", plain).unwrap();
    assert_eq!(list(volume, Ino::ROOT), [".", "..", "b", "c"], "names of one inode both stay");
    let dir = volume.mkdir(Ino::ROOT, b"dir", 0o755, ROOT, Wait::Yes).unwrap().ino;
    let sub = volume.mkdir(dir, b"sub", 0o755, ROOT, Wait::Yes).unwrap().ino;
    assert!(matches!(
        volume.rename(Ino::ROOT, b"dir", sub, b"x", plain, Wait::Yes),
        Err(Error::Invalid { .. })
    ));
    assert!(matches!(rename(b"b", b"dir", plain), Err(Error::IsADirectory)));
    assert!(matches!(rename(b"dir", b"b", plain), Err(Error::NotADirectory)));
    volume.mkdir(Ino::ROOT, b"empty", 0o755, ROOT, Wait::Yes).unwrap();
    assert!(matches!(rename(b"empty", b"dir", plain), Err(Error::NotEmpty)));
    rename(b"dir", b"empty", plain).unwrap();
    assert_eq!(nlink(volume, Ino::ROOT), 3);
}

#[test]
fn names_are_checked() {
    let bench = Bench::new();
    let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
    let mknod = |name: &[u8]| bench.volume.mknod(Ino::ROOT, name, &make, ROOT, Wait::Yes);
    assert!(mknod(&[0xff; 255]).is_ok());
    assert!(matches!(mknod(&[b'x'; 256]), Err(Error::NameTooLong)));
    for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
        assert!(matches!(mknod(bad), Err(Error::Invalid { .. })));
    }
}

#[test]
fn readdir_goes_on_where_it_stopped_while_entries_come_and_go() {
    let bench = Bench::new();
    for number in 0..500 {
        bench.create(&format!("file-{number}"));
    }
    let (mut seen, mut from) = (Vec::new(), 0);
    loop {
        let before = seen.len();
        let mut room = 7;
        bench
            .volume
            .readdir(Ino::ROOT, from, &mut |item| {
                room -= 1;
                if room < 0 {
                    return false;
                }
                from = item.next;
                seen.push(String::from_utf8(item.name).unwrap());
                true
            })
            .unwrap();
        if seen.len() == before {
            break;
        }
        bench.create(&format!("later-{}", seen.len()));
        if let Some(name) = seen.iter().rev().find(|name| name.starts_with("file-")) {
            let _ = bench.volume.unlink(Ino::ROOT, name.as_bytes(), Wait::Yes);
        }
    }
    let mut files: Vec<_> = seen.iter().filter(|name| name.starts_with("file-")).collect();
    files.sort();
    files.dedup();
    assert_eq!(files.len(), 500, "each entry that was there all the time is seen");
    assert_eq!(seen.iter().filter(|name| name.starts_with("file-")).count(), 500, "and once");
}

#[test]
fn extended_attributes_have_modes_limits_and_an_end() {
    let mut bench = Bench::new();
    let ino = bench.create("file");
    let set = |bench: &Bench, name: &[u8], value: &[u8], mode| {
        bench.volume.setxattr(ino, name, value, mode, Wait::Yes)
    };
    assert!(matches!(set(&bench, b"user.a", b"1", XattrMode::Replace), Err(Error::NoAttribute)));
    set(&bench, b"user.a", b"1", XattrMode::Create).unwrap();
    assert!(matches!(set(&bench, b"user.a", b"2", XattrMode::Create), Err(Error::Exists)));
    set(&bench, b"user.b", &vec![7; 65536], XattrMode::Any).unwrap();
    assert!(matches!(
        set(&bench, b"user.c", &vec![7; 65537], XattrMode::Any),
        Err(Error::AttributeTooLarge)
    ));
    assert!(matches!(set(&bench, &[b'n'; 256], b"", XattrMode::Any), Err(Error::NameTooLong)));
    bench.reopen();
    assert_eq!(bench.volume.listxattr(ino).unwrap(), [b"user.a".to_vec(), b"user.b".to_vec()]);
    bench.volume.removexattr(ino, b"user.b", Wait::Yes).unwrap();
    assert_eq!(bench.volume.getxattr(ino, b"user.a").unwrap(), b"1");
    assert!(matches!(bench.volume.getxattr(ino, b"user.b"), Err(Error::NoAttribute)));
    bench.volume.unlink(Ino::ROOT, b"file", Wait::Yes).unwrap();
    assert!(matches!(bench.volume.getxattr(ino, b"user.a"), Err(Error::NoAttribute)));
}

#[test]
fn extended_attributes_without_effect_are_refused() {
    let bench = Bench::new();
    let ino = bench.create("file");
    let set = |name: &[u8]| bench.volume.setxattr(ino, name, b"1", XattrMode::Any, Wait::Yes);
    for name in ["system.other", "other.name", "user"] {
        assert!(matches!(set(name.as_bytes()), Err(Error::Unsupported)), "{name}");
    }
    for name in ["user.a", "trusted.overlay.opaque", "security.selinux"] {
        set(name.as_bytes()).unwrap();
    }
    assert_eq!(bench.volume.listxattr(ino).unwrap().len(), 3);
}

#[test]
fn special_files_and_links_keep_what_they_are() {
    let mut bench = Bench::new();
    let make = |mode, rdev| Make { mode, rdev };
    for (name, mode, rdev) in
        [("fifo", 0o010_600, 0), ("socket", 0o140_600, 0), ("null", 0o020_666, 0x103)]
    {
        bench.volume.mknod(Ino::ROOT, name.as_bytes(), &make(mode, rdev), ROOT, Wait::Yes).unwrap();
    }
    bench.volume.symlink(Ino::ROOT, b"link", &[b't'; 4095], ROOT, Wait::Yes).unwrap();
    let long = bench.volume.symlink(Ino::ROOT, b"long", &[b't'; 4096], ROOT, Wait::Yes);
    assert!(matches!(long, Err(Error::NameTooLong)));
    bench.reopen();
    let null = bench.find("null").unwrap();
    let attr = bench.volume.getattr(null).unwrap();
    assert_eq!((attr.mode, attr.rdev), (0o020_666, 0x103));
    assert!(matches!(bench.volume.read(null, 0, 1), Err(Error::NotAFile)));
    let link = bench.find("link").unwrap();
    assert_eq!(bench.volume.readlink(link).unwrap(), [b't'; 4095]);
    assert_eq!(bench.volume.getattr(link).unwrap().size, 4095);
}

#[test]
fn set_group_id_directories_hand_their_group_on() {
    let bench = Bench::new();
    let dir = bench.volume.mkdir(Ino::ROOT, b"dir", 0o2775, ROOT, Wait::Yes).unwrap().ino;
    let change = SetAttr { gid: Some(50), ..SetAttr::default() };
    bench.volume.setattr(dir, &change, ROOT, Wait::Yes).unwrap();
    let user = Caller { uid: 7, gid: 7, umask: 0 };
    let sub = bench.volume.mkdir(dir, b"sub", 0o755, user, Wait::Yes).unwrap();
    assert_eq!((sub.uid, sub.gid, sub.mode & 0o7777), (7, 50, 0o2755));
    let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
    let file = bench.volume.mknod(dir, b"file", &make, user, Wait::Yes).unwrap();
    assert_eq!((file.gid, file.mode & 0o7777), (50, 0o644));
}

#[test]
fn a_read_only_volume_changes_nothing() {
    let bench = Bench::new();
    let ino = bench.create("file");
    bench.write(ino, 0, b"kept");
    bench.volume.close().unwrap();
    let overlay = crate::sys::overlay::OverlayDisk::new(Arc::new(bench.disk.clone()));
    let options = OpenOptions { read_only: true, ..options() };
    let volume = Volume::open(Arc::new(overlay), Arc::new(bench.clock.clone()), options).unwrap();
    assert_eq!(volume.read(ino, 0, 10).unwrap(), b"kept");
    let refused = volume.write(ino, 0, b"new", false, Wait::Yes);
    assert!(matches!(refused, Err(Error::ReadOnly)));
    assert!(matches!(volume.unlink(Ino::ROOT, b"file", Wait::Yes), Err(Error::ReadOnly)));
    volume.close().unwrap();
}

#[test]
fn a_closed_volume_answers_nothing_and_a_second_one_is_refused() {
    let bench = Bench::new();
    let again =
        Volume::open(Arc::new(bench.disk.clone()), Arc::new(bench.clock.clone()), options());
    assert!(matches!(again, Err(Error::InUse)));
    bench.volume.close().unwrap();
    bench.volume.close().unwrap();
    assert!(matches!(bench.volume.getattr(Ino::ROOT), Err(Error::Closed)));
    open(&bench.disk, &bench.clock, options()).close().unwrap();
}
