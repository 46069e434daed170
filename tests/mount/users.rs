//! Other users: what the kernel's permission checks and the set-id rules need from the mount.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use super::harness::{Site, need, run, shell};

const NOBODY: u32 = 65534;

/// Runs a line of the shell as a user without rights; answers whether it succeeded.
pub fn as_nobody(dir: &Path, line: &str) -> bool {
    need("setpriv", "util-linux");
    Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-uc", line])
        .current_dir(dir)
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap()
        .success()
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

pub fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn permission_bits_are_judged() {
    let site = Site::mounted();
    let dir = site.mountpoint();
    fs::write(site.at("private"), "secret").unwrap();
    set_mode(&site.at("private"), 0o600);
    fs::write(site.at("public"), "known").unwrap();
    set_mode(&site.at("public"), 0o644);
    assert!(!as_nobody(&dir, "cat private"));
    assert!(as_nobody(&dir, "test \"$(cat public)\" = known"));
    assert!(!as_nobody(&dir, "echo x >> public"));
    assert!(!as_nobody(&dir, "echo x > new"), "the root of a new volume is root's");
    assert!(!as_nobody(&dir, "chmod 777 private || chown 65534 private || touch -d @5 public"));
    fs::create_dir(site.at("closed")).unwrap();
    fs::write(site.at("closed/file"), "x").unwrap();
    set_mode(&site.at("closed"), 0o700);
    assert!(!as_nobody(&dir, "cat closed/file"));
    assert!(!as_nobody(&dir, "ls closed"));
    set_mode(&site.at("closed"), 0o711);
    assert!(as_nobody(&dir, "cat closed/file > /dev/null"));
    assert!(!as_nobody(&dir, "ls closed"));
}

#[test]
fn what_a_user_makes_is_the_users() {
    let site = Site::mounted();
    fs::create_dir(site.at("open")).unwrap();
    set_mode(&site.at("open"), 0o1777);
    let line = "umask 027; echo x > file; mkdir dir; ln -s file link; mkfifo pipe; touch dir/in";
    assert!(as_nobody(&site.at("open"), line));
    site.remount();
    for (name, expected) in [("file", 0o640), ("dir", 0o750), ("pipe", 0o640), ("dir/in", 0o640)] {
        let path = site.at("open").join(name);
        let about = fs::metadata(&path).unwrap();
        assert_eq!((about.uid(), about.gid(), mode(&path)), (NOBODY, NOBODY, expected), "{name}");
    }
    assert_eq!(fs::symlink_metadata(site.at("open/link")).unwrap().uid(), NOBODY);
    // The sticky bit keeps others' files from being removed.
    fs::write(site.at("open/roots"), "x").unwrap();
    assert!(!as_nobody(&site.at("open"), "rm -f roots"));
    assert!(!as_nobody(&site.at("open"), "mv roots mine"));
    assert!(as_nobody(&site.at("open"), "rm file && touch -d @77 dir/in && chmod 600 dir/in"));
    assert_eq!(fs::metadata(site.at("open/dir/in")).unwrap().mtime(), 77);
}

#[test]
fn a_directory_with_the_set_group_id_bit_hands_on_its_group() {
    let site = Site::mounted();
    fs::create_dir(site.at("team")).unwrap();
    chown(site.at("team"), Some(0), Some(4321)).unwrap();
    set_mode(&site.at("team"), 0o2777);
    assert!(as_nobody(&site.at("team"), "mkdir dir && touch file dir/file"));
    for name in ["dir", "file", "dir/file"] {
        let about = fs::metadata(site.at("team").join(name)).unwrap();
        assert_eq!((about.uid(), about.gid()), (NOBODY, 4321), "{name}");
    }
    assert_eq!(mode(&site.at("team/dir")) & 0o2000, 0o2000);
    assert_eq!(mode(&site.at("team/file")) & 0o2000, 0);
}

#[test]
fn a_write_by_others_clears_the_set_id_bits() {
    let site = Site::mounted();
    let fresh = |name: &str| {
        let path = site.at(name);
        fs::write(&path, "#!/bin/true\n").unwrap();
        set_mode(&path, 0o6777);
        assert_eq!(mode(&path), 0o6777);
        path
    };
    let ways = [
        ("appended", "echo x >> appended"),
        ("overwritten", "echo x 1<> overwritten"),
        ("emptied", ": > emptied"),
        ("truncated", "truncate -s 3 truncated"),
    ];
    for (name, line) in ways {
        let path = fresh(name);
        assert!(as_nobody(&site.mountpoint(), line), "{line}");
        assert_eq!(mode(&path), 0o777, "{name}");
    }
    // Root keeps them when it writes, and loses them when it gives the file away.
    let path = fresh("roots");
    shell(&site.mountpoint(), "echo x >> roots");
    assert_eq!(mode(&path), 0o6777);
    chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    assert_eq!(mode(&path), 0o777);
    site.remount();
    assert_eq!(mode(&path), 0o777);
    for (name, _) in ways {
        assert_eq!(mode(&site.at(name)), 0o777, "{name} after the remount");
    }
}

#[test]
fn a_set_user_id_program_runs_as_its_owner() {
    let site = Site::mounted();
    run(Command::new("cp").args(["/usr/bin/id"]).arg(site.at("id")));
    chown(site.at("id"), Some(1234), Some(0)).unwrap();
    set_mode(&site.at("id"), 0o4755);
    assert!(as_nobody(&site.mountpoint(), "test \"$(./id -u)\" = 1234"));
}

#[test]
fn a_file_without_write_permission_is_still_written_by_who_made_it() {
    let site = Site::mounted();
    set_mode(&site.mountpoint(), 0o777);
    let line = "umask 777; exec 3> file; echo through >&3; exec 3>&-; ! cat file";
    assert!(as_nobody(&site.mountpoint(), line));
    assert_eq!(fs::read(site.at("file")).unwrap(), b"through\n");
    assert_eq!(mode(&site.at("file")), 0);
    let kept = File::open(site.at("file")).unwrap();
    assert_eq!(kept.metadata().unwrap().uid(), NOBODY);
}

#[test]
fn the_volume_and_its_control_socket_are_their_owners() {
    let site = Site::mounted();
    set_mode(&site.mountpoint(), 0o777);
    fs::write(site.at("file"), "x").unwrap();
    site.ok(["sync".as_ref(), site.mountpoint().as_os_str()]);
    // The directory may be seen, and nothing that is in it.
    let open = shell(&site.volume(), "find . -mindepth 1 -perm /077");
    assert_eq!(open, "");
    let volume = site.volume();
    assert!(as_nobody(&site.path(""), "test -d volume && ls volume"));
    for line in [
        "cat superblock",
        "cat lock",
        "ls packs",
        "ls meta",
        "ls index",
        "cat meta/checkpoint.redb",
        "echo x > control.sock",
        "touch new",
        "rm superblock",
    ] {
        assert!(!as_nobody(&volume, line), "{line}");
    }
    // By the socket neither: the daemon goes on as it was.
    let program = site.path("program");
    fs::copy(super::harness::PROGRAM, &program).unwrap();
    assert!(as_nobody(&site.path(""), "./program --version"));
    for command in ["umount", "check --stop", "check --repair", "mount -o remount,ro"] {
        let line = format!("./program {command} mnt");
        assert!(!as_nobody(&site.path(""), &line), "{command}");
    }
    assert_eq!(fs::read(site.at("file")).unwrap(), b"x");
    site.umount_and_check();
}
