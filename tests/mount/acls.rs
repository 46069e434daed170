//! Access control lists, as setfacl(1) and getfacl(1) see them, and as the kernel judges by them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::harness::{Site, need, shell};
use super::users::{as_nobody, mode, set_mode};

/// What getfacl(1) says of `name`, in one line.
fn list(dir: &Path, name: &str) -> String {
    shell(dir, &format!("getfacl -cEn '{name}'")).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn site() -> Site {
    need("setfacl", "acl");
    Site::mounted()
}

#[test]
fn a_list_lets_a_named_user_in_and_keeps_others_out() {
    let site = site();
    let dir = site.mountpoint();
    fs::write(site.at("file"), "secret").unwrap();
    set_mode(&site.at("file"), 0o600);
    assert!(!as_nobody(&dir, "cat file"));
    shell(&dir, "setfacl -m u:65534:r,g:7:rw file");
    assert!(as_nobody(&dir, "cat file >/dev/null"));
    assert!(!as_nobody(&dir, "echo x >>file"));
    assert_eq!(mode(&site.at("file")), 0o660, "the mask shows as the group");
    // A chmod of the group is one of the mask, and shuts the named user out.
    shell(&dir, "chmod g-r file");
    assert!(!as_nobody(&dir, "cat file"));
    assert_eq!(
        list(&dir, "file"),
        "user::rw- user:65534:r-- group::--- group:7:rw- mask::-w- other::---"
    );
    site.remount();
    assert!(!as_nobody(&dir, "cat file"));
    shell(&dir, "chmod g+r file");
    assert!(as_nobody(&dir, "cat file >/dev/null"));
    // The owner alone may set a list.
    assert!(!as_nobody(&dir, "setfacl -m u:65534:rw file"));
    shell(&dir, "setfacl -b file");
    assert!(!as_nobody(&dir, "cat file"));
    assert_eq!(list(&dir, "file"), "user::rw- group::--- other::---");
    site.umount_and_check();
}

#[test]
fn a_list_may_deny_what_others_may() {
    let site = site();
    let dir = site.mountpoint();
    fs::write(site.at("file"), "known").unwrap();
    set_mode(&site.at("file"), 0o644);
    assert!(as_nobody(&dir, "cat file >/dev/null"));
    shell(&dir, "setfacl -m u:65534:- file");
    assert!(!as_nobody(&dir, "cat file"));
    shell(&dir, "setfacl -x u:65534 file");
    assert!(as_nobody(&dir, "cat file >/dev/null"));
}

#[test]
fn a_default_list_is_inherited_and_the_umask_does_not_count_then() {
    let site = site();
    let dir = site.mountpoint();
    let line = "mkdir top && setfacl -d -m u:65534:rwx,g::rx,o::- top && umask 077 &&
        touch top/file && mkdir top/sub && ln -s file top/link && mkfifo top/pipe && touch top/sub/deep";
    shell(&dir, line);
    for round in ["at once", "after a remount"] {
        let file = "user::rw- user:65534:rwx group::r-x mask::rw- other::---";
        for name in ["top/file", "top/pipe", "top/sub/deep"] {
            assert_eq!(list(&dir, name), file, "{name} {round}");
        }
        let sub = list(&dir, "top/sub");
        assert!(sub.starts_with("user::rwx user:65534:rwx group::r-x mask::rwx other::---"));
        assert!(sub.contains("default:user:65534:rwx"), "{sub}");
        site.remount();
    }
    assert_eq!(mode(&site.at("top/file")), 0o660);
    shell(&dir, "chmod 711 top && chmod 711 top/sub");
    assert!(!as_nobody(&dir, "echo x >top/sub/new"), "chmod has cut the mask of the directory");
    shell(&dir, "chmod 771 top/sub");
    assert!(as_nobody(&dir, "echo x >top/sub/new"));
    shell(&dir, "setfacl -k top && (umask 077; touch top/plain)");
    assert_eq!(list(&dir, "top/plain"), "user::rw- group::--- other::---");
}

#[test]
fn lists_travel_with_cp_and_tar_and_show_among_the_attributes() {
    let site = site();
    let dir = site.mountpoint();
    shell(
        &dir,
        "mkdir one && touch one/file && setfacl -m u:7:rwx one/file && setfacl -dm g:8:r one",
    );
    shell(&dir, "cp -a one two && mkdir three && tar --acls -c one | tar --acls -x -C three");
    for copy in ["two", "three/one"] {
        assert_eq!(list(&dir, &format!("{copy}/file")), list(&dir, "one/file"));
        assert_eq!(list(&dir, copy), list(&dir, "one"));
    }
    assert!(shell(&dir, "ls -l one").contains("+ 1 root"), "ls marks files that have a list");
}

#[test]
fn a_list_keeps_the_set_group_id_bit_only_for_members() {
    let site = site();
    let dir = site.mountpoint();
    shell(&dir, "mkdir open && chmod 777 open && touch open/file && chown 65534:7 open/file");
    let file = site.at("open/file");
    for (groups, grant, kept) in [("--groups=7,9", "r", true), ("--clear-groups", "x", false)] {
        set_mode(&file, 0o2755);
        let user = format!("setpriv --reuid=65534 --regid=65534 {groups}");
        shell(&dir, &format!("{user} setfacl -m u:9:{grant} open/file"));
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o2000 != 0, kept, "{groups}");
    }
}
