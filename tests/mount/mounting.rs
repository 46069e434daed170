//! Mounting as other tools do it: mount(8) and its helpers, fstab, remounts, read-only mounts, and
//! every way in which setting up can go wrong.
//!
//! What changes the machine (helpers in /sbin, another /dev) is done in a mount namespace of its
//! own, which ends with its last process.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::harness::{PROGRAM, Site, daemons, errno_of, is_mounted, run, settled, shell};

const NOBODY: u32 = 65534;

/// The words of a command line.
fn words<'a>(parts: &'a [&'a dyn AsRef<OsStr>]) -> impl Iterator<Item = &'a OsStr> {
    parts.iter().map(|part| part.as_ref())
}

fn refused(site: &Site, parts: &[&dyn AsRef<OsStr>]) -> String {
    site.refused(2, words(parts))
}

fn remount(site: &Site, options: &str) {
    let list = format!("remount,{options}");
    let mut command = Command::new(PROGRAM);
    command.args(["mount", "-o", &list]).arg(site.mountpoint());
    let output = settled(|| {
        let output = command.output().unwrap();
        let busy = String::from_utf8_lossy(&output.stderr).contains("open for writing");
        (!busy).then_some(output)
    });
    assert!(output.status.success(), "{list}: {}", String::from_utf8_lossy(&output.stderr));
}

fn remount_refused(site: &Site, options: &str) -> String {
    refused(site, &[&"mount", &"-o", &format!("remount,{options}"), &site.mountpoint()])
}

/// The line of /proc/self/mounts for a mountpoint: source, mountpoint, type, options.
fn mount_line(mountpoint: &Path) -> Vec<String> {
    let text = fs::read("/proc/self/mounts").unwrap();
    let text = String::from_utf8_lossy(&text).into_owned();
    let mountpoint = mountpoint.to_str().unwrap();
    let mut lines = text.lines().map(|line| line.split(' ').map(str::to_owned));
    let found = lines.find_map(|line| {
        let line: Vec<String> = line.collect();
        (line[1] == mountpoint).then_some(line)
    });
    found.unwrap_or_else(|| panic!("{mountpoint} is not mounted"))
}

/// Runs a script in a mount namespace of its own, with the helpers of mount(8) installed.
/// It finds the site's paths in V, M and D, and must succeed.
fn with_helpers(site: &Site, script: &str) -> String {
    let prepare = r#"
        sbin=$(readlink -f /sbin)
        mkdir "$D/old" "$D/new"
        mount --bind "$sbin" "$D/old"
        ln -s "$D"/old/* "$D/new/"
        rm -f "$D"/new/mount.fuse* "$D"/new/umount.fuse*
        for name in mount.pyramidfs mount.fuse.pyramidfs umount.fuse.pyramidfs; do
            ln -s "$HELPER" "$D/new/$name"
        done
        mount --bind "$D/new" "$sbin"
        cd "$D"
        # A negated command does not end the script when it succeeds: this does.
        fails() { if "$@" 2>error; then echo "should fail: $*" >&2; exit 8; fi; }
    "#;
    let helper = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-scripts/mount.pyramidfs");
    let script = format!("{prepare}\n{script}");
    let output = in_namespace(site, &script).env("HELPER", helper).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{shown}{errors}", output.status);
    assert!(daemons(&site.path("")).is_empty(), "a daemon is left");
    shown
}

/// A shell with mounts of its own. It lets go of the mounts of other tests, which were copied with
/// all others: their daemons would live for as long as it does.
fn in_namespace(site: &Site, script: &str) -> Command {
    let prepare = r#"
        awk -v own="$D/" 'index($2, "/pyramidfs-test-") && !index($2, own) { print $2 }' \
            /proc/self/mounts | xargs -r -n 1 umount --lazy 2>/dev/null || true
    "#;
    let script = format!("{prepare}\n{script}");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-euc", &script]);
    command.env("PYRAMIDFS", PROGRAM).env("D", site.path("").canonicalize().unwrap());
    command.env("V", site.volume()).env("M", site.mountpoint()).stdin(Stdio::null());
    command
}

/// The end of a command that should have failed with one line.
fn one_line(output: &Output) -> String {
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

#[test]
fn read_only_mounts_have_daemons_that_answer() {
    let site = Site::mounted();
    fs::write(site.at("file"), "content").unwrap();
    site.umount();
    let other = site.path("other");
    fs::create_dir(&other).unwrap();
    site.mount_with(&["-o", "ro"]);
    site.ok(words(&[&"mount", &"-o", &"ro", &site.volume(), &other]));
    assert_eq!(daemons(&site.volume()).len(), 2, "one daemon for each");
    for path in [site.mountpoint(), other.clone(), site.volume()] {
        let status = site.status_of(&path);
        assert_eq!((&status["mounted"], &status["read_only"]), (&true.into(), &true.into()));
        assert_eq!(status["volume"], site.volume().to_str().unwrap());
        let text = site.ok(words(&[&"status", &path])).stdout;
        assert!(String::from_utf8(text).unwrap().contains("mounted (read-only)"));
    }
    site.ok(words(&[&"sync", &site.mountpoint()]));
    let runtime = fs::metadata("/run/pyramidfs").unwrap();
    assert_eq!((runtime.mode() & 0o777, runtime.uid()), (0o700, 0));
    let device = fs::metadata(&other).unwrap().dev();
    let socket = PathBuf::from(format!("/run/pyramidfs/0-{}.sock", nix::sys::stat::minor(device)));
    assert_eq!(fs::symlink_metadata(&socket).unwrap().mode() & 0o777, 0o600);
    site.umount_at(&other);
    assert_eq!(daemons(&site.volume()).len(), 1, "umount returned before the daemon was gone");
    assert_eq!(fs::read(site.at("file")).unwrap(), b"content");
    site.umount();
    assert_eq!(site.status_of(&site.volume())["mounted"], false);
    assert!(!site.volume().join("control.sock").exists());
}

#[test]
fn a_remount_to_read_only_makes_all_durable() {
    let site = Site::mounted();
    let pid = daemons(&site.volume());
    let open = File::create(site.at("open")).unwrap();
    let line = remount_refused(&site, "ro");
    assert!(line.contains("open for writing") && line.contains("fuser"), "{line}");
    (&open).write_all(b"still writable").unwrap();
    drop(open);
    remount(&site, "ro");
    assert_eq!(errno_of(fs::write(site.at("new"), "x")), libc::EROFS);
    assert_eq!(site.status()["read_only"], true);
    assert_eq!(daemons(&site.volume()), pid, "no second daemon");
    site.kill_daemon();
    site.mount();
    assert_eq!(fs::read(site.at("open")).unwrap(), b"still writable");
    remount(&site, "ro");
    remount(&site, "ro");
    remount(&site, "rw");
    fs::write(site.at("new"), "x").unwrap();
    assert_eq!(site.status()["read_only"], false);
    site.umount_and_check();
}

#[test]
fn the_kernel_may_remount_without_asking() {
    let site = Site::mounted();
    let flip = |flags: MsFlags| {
        let flags = flags | MsFlags::MS_REMOUNT;
        settled(|| {
            let none = None::<&str>;
            match mount(none, &site.mountpoint(), none, flags, none) {
                Err(nix::errno::Errno::EBUSY) => None,
                done => {
                    done.unwrap();
                    Some(())
                }
            }
        });
    };
    for round in 0..3 {
        let name = format!("file-{round}");
        fs::write(site.at(&name), "x").unwrap();
        flip(MsFlags::MS_RDONLY);
        assert_eq!(errno_of(fs::remove_file(site.at(&name))), libc::EROFS);
        assert_eq!(site.status()["read_only"], true);
        flip(MsFlags::empty());
    }
    flip(MsFlags::MS_RDONLY);
    site.umount_and_check();
    site.mount();
    assert_eq!(fs::read_dir(site.mountpoint()).unwrap().count(), 3);
}

#[test]
fn a_read_only_mount_becomes_writable_in_place() {
    let site = Site::mounted();
    shell(&site.mountpoint(), "mkdir dir; echo old > dir/file; ln dir/file dir/link; touch gone");
    site.umount();
    site.mount_with(&["-o", "ro"]);
    let pid = daemons(&site.volume());
    let mut open = File::open(site.at("dir/file")).unwrap();
    let inode = open.metadata().unwrap().ino();
    remount(&site, "rw");
    assert_eq!(daemons(&site.volume()), pid, "no second daemon");
    assert_eq!(site.status()["read_only"], false);
    assert_eq!(site.status_of(&site.volume())["mounted"], true);
    // What was open before stays open, and is the same inode.
    fs::remove_file(site.at("dir/file")).unwrap();
    shell(&site.mountpoint(), "echo new >> dir/link; rm gone; mkdir more; sync -f .");
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "old\nnew\n");
    assert_eq!(fs::metadata(site.at("dir/link")).unwrap().ino(), inode);
    fs::remove_file(site.at("dir/link")).unwrap();
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    drop(open);
    let other = site.path("other");
    fs::create_dir(&other).unwrap();
    let line = refused(&site, &[&"mount", &site.volume(), &other]);
    assert!(line.contains("is in use"), "it holds the lock now: {line}");
    remount(&site, "ro");
    remount(&site, "rw");
    fs::write(site.at("last"), "x").unwrap();
    site.umount_and_check();
    site.mount();
    assert_eq!(shell(&site.mountpoint(), "find . | sort"), ".\n./dir\n./last\n./more\n");
}

#[test]
fn a_remount_to_writable_is_refused_where_it_would_be_wrong() {
    let site = Site::mounted();
    fs::write(site.at("file"), "one").unwrap();
    site.umount();
    let other = site.path("other");
    fs::create_dir(&other).unwrap();
    site.mount_with(&["-o", "ro"]);
    site.ok(words(&[&"mount", &site.volume(), &other]));
    let line = remount_refused(&site, "rw");
    assert!(line.contains("is in use by another process"), "{line}");
    fs::write(other.join("file"), "two").unwrap();
    site.umount_at(&other);
    let line = remount_refused(&site, "rw");
    assert!(line.contains("has changed since") && line.contains("mount again"), "{line}");
    // What was mounted is still served, read-only.
    assert_eq!(fs::read(site.at("file")).unwrap(), b"one");
    assert_eq!(errno_of(fs::write(site.at("file"), "x")), libc::EROFS);
    site.umount();
    // Nobody has changed anything this time.
    site.mount_with(&["-o", "ro"]);
    assert_eq!(fs::read(site.at("file")).unwrap(), b"two");
    remount(&site, "rw");
    site.umount_and_check();
}

#[test]
fn read_only_media() {
    let site = Site::mounted();
    fs::write(site.at("file"), "content").unwrap();
    site.umount();
    let media = site.path("media");
    fs::create_dir(&media).unwrap();
    let bind = |flags| mount(Some(&site.volume()), &media, None::<&str>, flags, None::<&str>);
    bind(MsFlags::MS_BIND).unwrap();
    bind(MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY).unwrap();
    let line = refused(&site, &[&"mount", &media, &site.mountpoint()]);
    assert!(line.contains("read-only filesystem") && line.contains("-o ro"), "{line}");
    site.ok(words(&[&"mount", &"-o", &"ro", &media, &site.mountpoint()]));
    assert_eq!(fs::read(site.at("file")).unwrap(), b"content");
    assert_eq!(site.status()["read_only"], true);
    let line = remount_refused(&site, "rw");
    assert!(line.contains("read-only filesystem"), "{line}");
    site.umount_at(&site.mountpoint());
    umount2(&media, MntFlags::empty()).unwrap();
}

#[test]
fn a_remount_changes_flags_and_nothing_else() {
    let site = Site::new();
    site.mount_with(&["-o", "nosuid,cache=8MiB"]);
    remount(&site, "nodev,noexec,cache=8MiB,commit=5,defaults,noatime,allow_other,user_id=0");
    let options = mount_line(&site.mountpoint())[3].clone();
    for word in ["rw", "nosuid", "nodev", "noexec", "noatime"] {
        assert!(options.split(',').any(|other| other == word), "{word} is not in {options}");
    }
    remount(&site, "suid,exec");
    let options = mount_line(&site.mountpoint())[3].clone();
    assert!(!options.contains("nosuid") && !options.contains("noexec"), "{options}");
    assert!(options.contains("nodev"), "{options}");
    for word in ["cache=9MiB", "commit=6", "log=/dev/null", "subtype=none"] {
        let line = remount_refused(&site, &format!("ro,{word}"));
        assert!(line.contains("a remount cannot change") && line.contains("unmount"), "{line}");
    }
    assert!(remount_refused(&site, "ro,nonsense").contains("unknown option 'nonsense'"));
    fs::write(site.at("file"), "nothing of that has made it read-only").unwrap();
    let line = refused(&site, &[&"mount", &"-o", &"remount,ro", &site.path("")]);
    assert!(line.contains("no pyramidfs volume is mounted"), "{line}");
    site.kill_daemon();
    assert!(remount_refused(&site, "ro").contains("is gone"));
}

#[test]
fn times_of_access_follow_the_flags() {
    let site = Site::new();
    let moved = |name: &str| {
        let before = fs::metadata(site.at(name)).unwrap();
        // Past the page cache, so that the daemon sees that it is read.
        shell(&site.mountpoint(), &format!("dd if={name} of=/dev/null iflag=direct bs=4096 2>&1"));
        let after = fs::metadata(site.at(name)).unwrap();
        (before.atime(), before.atime_nsec()) != (after.atime(), after.atime_nsec())
    };
    let shows = |word: &str| mount_line(&site.mountpoint())[3].split(',').any(|one| one == word);
    site.mount_with(&["-o", "noatime,nodiratime"]);
    assert!(shows("noatime") && shows("nodiratime"));
    fs::write(site.at("file"), [1; 4096]).unwrap();
    site.ok(words(&[&"sync", &site.mountpoint()]));
    assert!(!moved("file"));
    // As mount(8) asks: with what is shown in front of it.
    remount(&site, "noatime,strictatime");
    assert!(!shows("noatime") && !shows("relatime") && shows("nodiratime"));
    assert!(moved("file") && moved("file"));
    remount(&site, "ro");
    assert!(!moved("file"), "a mount that takes no changes has moved a time");
    remount(&site, "rw,diratime");
    assert!(moved("file") && !shows("nodiratime"));
    remount(&site, "relatime");
    assert!(shows("relatime") && !moved("file"));
    fs::write(site.at("file"), [2; 4096]).unwrap();
    assert!(moved("file") && !moved("file"));
    site.umount_and_check();
    site.mount_with(&["-o", "ro,strictatime"]);
    assert!(!moved("file"));
    remount(&site, "rw");
    assert!(moved("file"));
}

#[test]
fn a_mount_bound_elsewhere_outlives_the_first() {
    let site = Site::mounted();
    let other = site.path("other");
    fs::create_dir(&other).unwrap();
    let none = None::<&str>;
    mount(Some(&site.mountpoint()), &other, none, MsFlags::MS_BIND, none).unwrap();
    fs::write(site.at("file"), "x").unwrap();
    site.umount_at(&site.mountpoint());
    assert_eq!(daemons(&site.volume()).len(), 1);
    assert_eq!(fs::read(other.join("file")).unwrap(), b"x");
    assert_eq!(site.status_of(&other)["mounted"], true);
    site.umount_at(&other);
    assert!(daemons(&site.volume()).is_empty(), "the last one waits for the daemon");
    site.check();
}

#[test]
fn the_source_is_shown_as_it_was_given() {
    let names: [(&[u8], &str); 4] = [
        (b"volume", "volume"),
        (b"a b,ro\\c\td\ne#f", "a\\040b,ro\\134c\\011d\\012e"),
        (b"./dots/../volume", "./dots/../volume"),
        (b"n\xc3\xb6", "n\u{f6}"),
    ];
    let site = Site::bare();
    fs::create_dir(site.path("dots")).unwrap();
    for (name, shown) in names {
        let name = OsStr::from_bytes(name);
        let mut command = Command::new(PROGRAM);
        command.args(["mount", "--create"]).arg(name).arg("mnt");
        run(command.current_dir(site.path("")));
        let line = mount_line(&site.mountpoint());
        assert!(line[0].starts_with(shown), "{line:?}");
        assert_eq!(line[2], "fuse.pyramidfs");
        assert_eq!(site.status()["read_only"], false);
        fs::write(site.at("file"), "x").unwrap();
        site.ok(words(&[&"sync", &site.mountpoint()]));
        let line = refused(&site, &[&"check", &"--repair", &site.mountpoint()]);
        assert!(line.contains("is in use"), "{line}");
        site.umount_at(&site.mountpoint());
        site.ok(words(&[&"check", &site.path("").join(name)]));
    }
}

#[test]
fn the_plain_type_on_request() {
    let site = Site::new();
    for more in [["-o", "subtype=none"], ["-t", "fuse"]] {
        site.mount_with(&more);
        assert_eq!(mount_line(&site.mountpoint())[2], "fuse");
        assert_eq!(site.status()["mounted"], true);
        site.ok(words(&[&"sync", &site.mountpoint()]));
        remount(&site, "ro,subtype=none");
        site.umount();
    }
    for more in [["-o", "subtype=pyramidfs"], ["-t", "fuse.pyramidfs"], ["-t", "pyramidfs"]] {
        site.mount_with(&more);
        assert_eq!(mount_line(&site.mountpoint())[2], "fuse.pyramidfs");
        site.umount();
    }
    // A dead one is cleared as well.
    site.mount_with(&["-t", "fuse"]);
    site.kill_daemon();
    site.mount_with(&["-t", "fuse"]);
    site.kill_daemon();
    site.umount();
    for more in [["-t", "ext4"], ["-o", "subtype=ext4"]] {
        let (volume, mountpoint) = (site.volume(), site.mountpoint());
        let line = refused(&site, &[&"mount", &volume, &mountpoint, &more[0], &more[1]]);
        assert!(line.contains("ext4"), "{line}");
    }
}

#[test]
fn flags_of_a_helper() {
    let site = Site::new();
    let (volume, mountpoint) = (site.volume(), site.mountpoint());
    site.ok(words(&[&"mount", &volume, &mountpoint, &"-s", &"-f", &"-n", &"-v", &"-o", &"rw"]));
    assert!(!is_mounted(&site.path("")), "a fake mount mounts nothing");
    let line = refused(&site, &[&"mount", &volume, &mountpoint, &"-f", &"-o", &"nonsense"]);
    assert!(line.contains("unknown option"), "{line}");
    let line = refused(&site, &[&"mount", &volume, &mountpoint, &"-n", &"-o", &"a=1,ro"]);
    assert!(line.contains("unknown option 'a=…'"), "{line}");
    let output = site.ok(words(&[&"mount", &volume, &mountpoint, &"-nsv", &"-o", &"nonsense,a=1"]));
    assert!(String::from_utf8(output.stdout).unwrap().contains("mounted on"), "-v says so");
    fs::write(site.at("file"), "x").unwrap();
    site.umount();
    let line = refused(&site, &[&"mount", &volume]);
    assert!(line.contains("mountpoint is missing"), "{line}");
}

/// A process in a mount namespace of its own, until it is dropped.
struct Namespace(Child);

impl Namespace {
    fn new(site: &Site) -> Namespace {
        let mut command = in_namespace(site, "echo ready; read word");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Namespace(child)
    }

    fn mounts(&self) -> String {
        fs::read_to_string(format!("/proc/{}/mounts", self.0.id())).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn another_mount_namespace() {
    let site = Site::new();
    let namespace = Namespace::new(&site);
    let pid = namespace.0.id().to_string();
    let path = format!("/proc/{pid}/ns/mnt");
    let mountpoint = site.mountpoint();
    site.ok(words(&[&"mount", &"-N", &path, &site.volume(), &mountpoint]));
    assert!(!is_mounted(&site.path("")));
    assert!(namespace.mounts().contains(mountpoint.to_str().unwrap()));
    // It is mounted, but out of sight from here.
    let line = refused(&site, &[&"mount", &site.volume(), &mountpoint]);
    assert!(line.contains("is in use by another process"), "{line}");
    site.ok(words(&[&"umount", &"-N", &pid, &mountpoint]));
    assert!(!namespace.mounts().contains(mountpoint.to_str().unwrap()));
    assert!(daemons(&site.volume()).is_empty());
    let line = refused(&site, &[&"mount", &"-N", &"/nowhere", &site.volume(), &mountpoint]);
    assert!(line.contains("namespace"), "{line}");
}

#[test]
fn mount_8_mounts_remounts_and_unmounts() {
    let site = Site::new();
    let shown = with_helpers(
        &site,
        r#"
        line() { awk -v at="$M" '$2 == at { print $1, $3 }' /proc/self/mounts; }
        mount -t fuse.pyramidfs "$V" "$M" -o nosuid,cache=8MiB
        echo one > "$M/file"; line
        mount -o remount,ro "$M"
        fails touch "$M/file"
        mount -o remount,rw "$M"
        mount -o remount,noexec,cache=8MiB "$M"
        grep -q "$M fuse.pyramidfs rw,nosuid,noexec" /proc/self/mounts
        fails mount -o remount,cache=9MiB "$M"
        grep -q 'cannot change' error
        umount -c "$M"
        test ! -e "$V/control.sock"   # it has waited, by its helper
        mount -t fuse.pyramidfs "$V" "$M" -o uhelper=fuse.pyramidfs
        umount "$M"
        test ! -e "$V/control.sock"
        mount -t pyramidfs "$V" "$M" -o ro; line
        fails touch "$M/file"
        mount -o remount,rw "$M"
        echo two >> "$M/file"
        umount "$M"
        mount -c -t pyramidfs volume mnt; line; umount "$M"
        mount -t pyramidfs volume mnt -o subtype=none; line; umount "$M"
        fails mount -i -t fuse.pyramidfs "$V" "$M"
        fails mount -t fuse.pyramidfs "$V" "$M" -o nonsense
        grep -q "unknown option 'nonsense'" error
        mount -s -t fuse.pyramidfs "$V" "$M" -o nonsense; umount -c "$M"
        mount -f -t fuse.pyramidfs "$V" "$M"; test -z "$(line)"
        fails mount -t fuse.pyramidfs "$D/nothing" "$M"
        grep -q 'is no volume' error
        "#,
    );
    let volume = site.volume();
    let volume = volume.display();
    let expected = format!(
        "{volume} fuse.pyramidfs\n{volume} fuse.pyramidfs\nvolume fuse.pyramidfs\n{volume} fuse\n"
    );
    assert_eq!(shown, expected);
    site.mount();
    assert_eq!(fs::read(site.at("file")).unwrap(), b"one\ntwo\n");
}

#[test]
fn fstab() {
    let site = Site::new();
    with_helpers(
        &site,
        r#"
        mkdir "a b" off; "$PYRAMIDFS" mkfs second
        cat > fstab <<END
$V  $M  fuse.pyramidfs  nosuid,nodev,commit=9,nofail,x-systemd.requires-mounts-for=$V,_netdev  0 0
$D/second  $D/a\040b  pyramidfs  defaults,ro  0 0
$D/second  $D/off  pyramidfs  noauto  0 0
END
        mount -a -T fstab
        echo kept > "$M/file"
        fails touch "a b/file"
        test "$(grep -c "$D.*fuse.pyramidfs" /proc/self/mounts)" = 2
        mount -a -T fstab     # what is mounted stays
        test "$(grep -c "$D.*fuse.pyramidfs" /proc/self/mounts)" = 2
        mount -o remount,ro -T fstab "$M"
        fails touch "$M/file"
        umount -c "$M" "a b"
        "#,
    );
    site.mount();
    assert_eq!(fs::read(site.at("file")).unwrap(), b"kept\n");
}

#[test]
fn a_mount_waits_for_the_daemon_of_a_lazy_umount() {
    let site = Site::mounted();
    for round in 0..3 {
        let open = File::create(site.at(format!("file-{round}"))).unwrap();
        (&open).write_all(b"content").unwrap();
        run(Command::new("umount").arg("-l").arg(site.mountpoint()));
        let closing = std::thread::spawn(move || {
            // Its user takes a while.
            std::thread::sleep(Duration::from_millis(300));
            drop(open);
        });
        site.mount();
        closing.join().unwrap();
        assert_eq!(fs::read(site.at(format!("file-{round}"))).unwrap(), b"content");
    }
    // Nobody closes it this time: the line says what to do.
    let open = File::create(site.at("open")).unwrap();
    site.ok(words(&[&"umount", &"--lazy", &site.mountpoint()]));
    let pid = daemons(&site.volume())[0];
    let line = refused(&site, &[&"mount", &site.volume(), &site.mountpoint()]);
    assert!(line.contains("unmounted lazily") && line.contains(&pid.to_string()), "{line}");
    (&open).write_all(b"served until the end").unwrap();
    drop(open);
    site.mount();
    assert_eq!(fs::read(site.at("open")).unwrap(), b"served until the end");
    site.umount_and_check();
}

#[test]
fn a_read_only_mount_waits_for_the_last_commit() {
    let site = Site::mounted();
    for round in 0..5 {
        let name = format!("file-{round}");
        fs::write(site.at(&name), vec![round; 3 << 20]).unwrap();
        run(Command::new("umount").arg(site.mountpoint()));
        site.mount_with(&["-o", "ro"]);
        assert_eq!(fs::read(site.at(&name)).unwrap(), vec![round; 3 << 20]);
        remount(&site, "rw");
    }
    site.umount_and_check();
}

#[test]
fn a_daemon_that_hangs_is_cut_off_by_force() {
    let site = Site::mounted();
    fs::write(site.at("file"), "x").unwrap();
    site.ok(words(&[&"sync", &site.mountpoint()]));
    let pid = Pid::from_raw(daemons(&site.volume())[0]);
    kill(pid, Signal::SIGSTOP).unwrap();
    site.ok(words(&[&"umount", &"--force", &site.mountpoint()]));
    assert!(!is_mounted(&site.path("")));
    kill(pid, Signal::SIGCONT).unwrap();
    site.mount();
    assert_eq!(fs::read(site.at("file")).unwrap(), b"x");
}

#[test]
fn no_device_and_no_right() {
    let site = Site::new();
    let private = |script: &str| {
        let script = format!(
            "mount --bind /dev/shm /mnt; mount -t tmpfs none /dev; mkdir /dev/shm; \
             mount --move /mnt /dev/shm; mknod -m 666 /dev/null c 1 3; {script}; \
             exec $TRIED \"$PYRAMIDFS\" mount \"$V\" \"$M\""
        );
        one_line(&in_namespace(&site, &script).env("TRIED", "env").output().unwrap())
    };
    let line = private("true");
    assert!(line.contains("/dev/fuse is missing") && line.contains("modprobe"), "{line}");
    // A node without a driver behind it.
    let line = private("mknod /dev/fuse c 10 250");
    assert!(line.contains("/dev/fuse is missing"), "{line}");
    // A directory is in its place: whatever the reason, the line names the device.
    let line = private("mkdir /dev/fuse");
    assert!(line.contains("cannot open /dev/fuse"), "{line}");
    let line = "exec setpriv --bounding-set -sys_admin \"$PYRAMIDFS\" mount \"$V\" \"$M\"";
    let line = one_line(&in_namespace(&site, line).output().unwrap());
    assert!(line.contains("CAP_SYS_ADMIN"), "{line}");
    site.mount();
}

#[test]
fn the_root_of_a_new_volume_belongs_to_who_made_it() {
    let site = site_of_nobody();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(site.path("pyramidfs"));
    run(command.arg("mkfs").arg(site.path("bin/own")));
    site.ok(words(&[&"mount", &site.path("bin/own"), &site.mountpoint()]));
    let about = fs::metadata(site.mountpoint()).unwrap();
    assert_eq!((about.uid(), about.gid(), about.mode() & 0o777), (NOBODY, NOBODY, 0o755));
    site.umount_at(&site.mountpoint());
    site.mount();
    assert_eq!(fs::metadata(site.mountpoint()).unwrap().uid(), 0);
}

/// The program where an ordinary user may start it, and a volume that is the user's.
fn site_of_nobody() -> Site {
    let site = Site::new();
    fs::copy(PROGRAM, site.path("pyramidfs")).unwrap();
    run(Command::new("chown").args(["-R", "65534:65534"]).arg(site.volume()));
    chown(site.mountpoint(), Some(NOBODY), Some(NOBODY)).unwrap();
    fs::create_dir(site.path("bin")).unwrap();
    chown(site.path("bin"), Some(NOBODY), Some(NOBODY)).unwrap();
    site
}

fn as_nobody(site: &Site, more: &[&str]) -> String {
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "env"])
        .arg(format!("PATH={}", site.path("bin").display()))
        .arg(site.path("pyramidfs"))
        .arg("mount")
        .args([site.volume(), site.mountpoint()])
        .args(more)
        .output()
        .unwrap();
    one_line(&output)
}

#[test]
fn an_ordinary_user_is_told_what_is_missing() {
    let site = site_of_nobody();
    let line = as_nobody(&site, &[]);
    assert!(line.contains("fusermount3 is missing") && line.contains("fuse3"), "{line}");
    // What the helper says is understood, or passed on.
    let helper = site.path("bin/fusermount3");
    for (says, told) in [
        ("option allow_other only allowed if 'user_allow_other' is set", "/etc/fuse.conf"),
        ("failed to open /dev/fuse: Permission denied", "give this user the right"),
        ("mount failed: Operation not permitted", "chmod u+s"),
        ("user has no write access to mountpoint /m", "user has no write access"),
    ] {
        let script = format!("#!/bin/sh\necho \"fusermount3: {says}\" >&2\nexit 1\n");
        fs::write(&helper, script).unwrap();
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
        let line = as_nobody(&site, &["-o", "allow_other"]);
        assert!(line.contains(told), "{line}");
    }
    // A volume of somebody else.
    run(Command::new("chown").args(["-R", "0:0"]).arg(site.volume()));
    let line = as_nobody(&site, &[]);
    assert!(line.contains("Permission denied") && line.contains("as root"), "{line}");
    fs::set_permissions(site.volume(), fs::Permissions::from_mode(0o700)).unwrap();
    let line = as_nobody(&site, &["-o", "ro"]);
    assert!(line.contains("Permission denied"), "{line}");
}

#[test]
fn a_log_that_cannot_be_opened() {
    let site = Site::new();
    let option = format!("log={}", site.path("no/such/log").display());
    let line = refused(&site, &[&"mount", &site.volume(), &site.mountpoint(), &"-o", &option]);
    assert!(line.contains("cannot open the log") && line.contains("log="), "{line}");
    assert!(!is_mounted(&site.path("")));
    site.mount_with(&["-o", &format!("log={}", site.path("log").display())]);
    site.umount();
    let log = fs::read_to_string(site.path("log")).unwrap();
    assert!(log.contains("is mounted on") && log.contains("is closed"), "{log}");
}

#[test]
fn a_daemon_that_is_killed_while_it_starts() {
    let site = Site::new();
    // It waits for a lock whose holder says that it is closing.
    let lock = File::options().read(true).write(true).open(site.volume().join("lock")).unwrap();
    lock.lock().unwrap();
    fs::write(site.volume().join("lock"), "closing\n").unwrap();
    let child = Command::new(PROGRAM)
        .args(words(&[&"mount", &site.volume(), &site.mountpoint()]))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let daemon = loop {
        let parent = child.id() as i32;
        match daemons(&site.volume()).into_iter().find(|pid| *pid != parent) {
            Some(pid) => break pid,
            None => std::thread::yield_now(),
        }
    };
    kill(Pid::from_raw(daemon), Signal::SIGKILL).unwrap();
    let line = one_line(&child.wait_with_output().unwrap());
    assert!(line.contains("ended before the mount was ready") && line.contains('9'), "{line}");
    drop(lock);
    site.mount();
    site.umount_and_check();
}

#[test]
fn a_dead_mount_is_named_with_the_way_out() {
    let site = Site::mounted();
    site.kill_daemon();
    for command in ["status", "sync"] {
        let line = refused(&site, &[&command, &site.mountpoint()]);
        assert!(line.contains("is gone") && line.contains("pyramidfs umount"), "{line}");
    }
    site.umount();
    assert!(!is_mounted(&site.path("")));
}

#[test]
fn a_mountpoint_with_files_in_it_is_hidden_and_comes_back() {
    let site = Site::new();
    fs::write(site.at("below"), "x").unwrap();
    site.mount();
    assert!(!site.at("below").exists());
    site.umount();
    assert!(site.at("below").exists());
    // Other filesystems below are none of its business.
    let flags = MsFlags::empty();
    mount(Some("none"), &site.mountpoint(), Some("tmpfs"), flags, None::<&str>).unwrap();
    site.mount();
    fs::write(site.at("file"), "x").unwrap();
    site.umount();
    umount2(&site.mountpoint(), MntFlags::empty()).unwrap();
}
