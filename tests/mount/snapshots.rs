//! Snapshots on a real mount, with the programs that people use.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::harness::{Site, errno_of, settled, shell, write_random};

const MIB: u64 = 1 << 20;

/// Runs `pyramidfs snapshot` with these words behind the mountpoint; returns what it printed.
fn snapshot(site: &Site, action: &str, words: &[&str]) -> String {
    let mut line = vec!["snapshot".to_owned(), action.to_owned()];
    line.push(site.mountpoint().to_string_lossy().into_owned());
    line.extend(words.iter().map(|word| (*word).to_owned()));
    String::from_utf8(site.ok(line).stdout).unwrap()
}

fn old(site: &Site, name: &str) -> PathBuf {
    site.at(".snapshots").join(name)
}

/// Fills the mount with one of each kind, and returns what programs see of all of it.
fn furnish(site: &Site) {
    let line = "mkdir -p a/b; echo one > a/one; ln a/one a/b/second; ln -s ../one a/b/link; \
        mkfifo a/fifo; mknod a/null c 1 3; chmod 640 a/one; chown 7:8 a/b; \
        setfattr -n user.x -v 1 a/one; truncate -s 10M a/hole; echo end >> a/hole; \
        for i in $(seq 300); do echo $i > a/b/n$i; done";
    shell(&site.mountpoint(), line);
}

/// What programs see below a directory: names, types, modes, owners, sizes, times, contents.
fn seen(site: &Site, dir: &str) -> String {
    let line = format!(
        "cd {dir} && find . -mindepth 1 -printf '%P %y %m %U:%G %s %n %T@ %l\\n' | sort && \
         getfattr -R -d -m - . && find . -type f -print0 | sort -z | xargs -0 sha256sum"
    );
    shell(&site.mountpoint(), &line)
}

#[test]
fn what_was_can_be_browsed_compared_and_copied() {
    let site = Site::mounted();
    furnish(&site);
    let before = seen(&site, "a");
    snapshot(&site, "create", &["first"]);
    assert!(!shell(&site.mountpoint(), "ls -A").contains(".snapshots"));
    assert_eq!(shell(&site.mountpoint(), "ls .snapshots").trim(), "first");
    let changes = "echo two > a/one; setfattr -n user.x -v 2 a/one; rm a/b/n3 a/hole; mv a/b a/c; \
        chmod 600 a/c/n5; echo new > a/new";
    shell(&site.mountpoint(), changes);
    for _ in 0..2 {
        assert_eq!(seen(&site, ".snapshots/first/a"), before);
        site.remount();
    }
    let (unique, logical) = (site.figure("unique_bytes"), site.figure("logical_bytes"));
    shell(
        &site.mountpoint(),
        "cp -a .snapshots/first/a back && diff -r .snapshots/first/a/b back/b",
    );
    assert!(seen(&site, "back") == before);
    assert!(logical <= site.figure("logical_bytes"));
    assert!(site.figure("unique_bytes") - unique < MIB, "the copy shares");
    let diff = snapshot(&site, "diff", &["first"]);
    for line in ["M /a/one", "- /a/b/n3", "- /a/hole", "+ /a/c/n5", "+ /a/new", "+ /back/"] {
        assert!(diff.lines().any(|found| found.starts_with(line)), "{line} of\n{diff}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&snapshot(&site, "list", &["--json"])).unwrap();
    assert_eq!((json[0]["name"].as_str(), json.as_array().map(Vec::len)), (Some("first"), Some(1)));
    site.umount_and_check();
}

#[test]
fn nothing_in_it_can_be_changed() {
    let site = Site::mounted();
    furnish(&site);
    snapshot(&site, "create", &["s"]);
    let dir = old(&site, "s").join("a");
    let rofs = libc::EROFS;
    assert_eq!(errno_of(fs::write(dir.join("one"), "x")), rofs);
    assert_eq!(errno_of(File::create(dir.join("new"))), rofs);
    assert_eq!(errno_of(fs::remove_file(dir.join("one"))), rofs);
    assert_eq!(errno_of(fs::create_dir(dir.join("new"))), rofs);
    assert_eq!(errno_of(fs::rename(dir.join("one"), dir.join("two"))), rofs);
    assert_eq!(errno_of(fs::hard_link(dir.join("one"), site.at("two"))), rofs);
    assert_eq!(errno_of(fs::create_dir(site.at(".snapshots/new"))), rofs);
    assert_eq!(errno_of(fs::remove_dir(site.at(".snapshots/s"))), rofs);
    assert_eq!(errno_of(fs::create_dir(site.at(".snapshots"))), libc::EEXIST);
    assert_eq!(errno_of(fs::remove_dir(site.at(".snapshots"))), rofs);
    assert_eq!(errno_of(fs::rename(site.at("a"), site.at(".snapshots"))), rofs);
    let access = fs::metadata(dir.join("one")).unwrap();
    let live = fs::metadata(site.at("a/one")).unwrap();
    assert_eq!((access.nlink(), access.mode()), (live.nlink(), live.mode()));
    assert_ne!(access.ino(), live.ino());
    assert_eq!(access.ino(), fs::metadata(dir.join("b/second")).unwrap().ino());
    site.umount_and_check();
}

#[test]
fn names_come_and_go_while_the_kernel_looks_on() {
    let site = Site::mounted();
    fs::write(site.at("file"), "one").unwrap();
    // What is not there is not remembered.
    assert!(!old(&site, "s").exists());
    snapshot(&site, "create", &["s"]);
    let read = || fs::read_to_string(old(&site, "s").join("file"));
    assert_eq!(read().unwrap(), "one");
    let mut open = File::open(old(&site, "s").join("file")).unwrap();
    let line = ["snapshot", "create", &site.mountpoint().to_string_lossy(), "s"].map(str::to_owned);
    assert!(site.refused(2, line).contains("exists already"));
    fs::write(site.at("file"), "two").unwrap();
    snapshot(&site, "delete", &["s"]);
    assert_eq!(errno_of(read()), libc::ENOENT);
    assert_eq!(fs::read_dir(site.at(".snapshots")).unwrap().count(), 0);
    // Another of that name is another.
    snapshot(&site, "create", &["s"]);
    assert_eq!(read().unwrap(), "two");
    assert_eq!(fs::read_dir(site.at(".snapshots")).unwrap().count(), 1);
    // A handle of what is gone does no harm.
    let mut text = String::new();
    open.seek(SeekFrom::Start(0)).unwrap();
    let _ = open.read_to_string(&mut text);
    drop(open);
    site.umount_and_check();
}

#[test]
fn a_path_and_all_can_be_brought_back() {
    let site = Site::mounted();
    furnish(&site);
    let before = seen(&site, ".");
    snapshot(&site, "create", &["s"]);
    // The kernel knows the names that are going to lead elsewhere.
    let mut open = OpenOptions::new().append(true).open(site.at("a/b/n7")).unwrap();
    shell(&site.mountpoint(), "rm -r a/b/n1*; echo x > a/one; mkdir more; echo y > more/y");
    open.write_all(b"more").unwrap();
    snapshot(&site, "restore", &["s", "/a/one"]);
    assert_eq!(fs::read_to_string(site.at("a/one")).unwrap(), "one\n");
    snapshot(&site, "restore", &["s", "a/b"]);
    assert_eq!(fs::read_to_string(site.at("a/b/n7")).unwrap(), "7\n");
    assert_eq!(fs::read_dir(site.at("a/b")).unwrap().count(), 302);
    assert!(site.at("more/y").exists());
    snapshot(&site, "restore", &["s", "/"]);
    assert_eq!(seen(&site, "."), before);
    assert!(!site.at("more").exists());
    open.write_all(b"still its own").unwrap();
    drop(open);
    site.remount();
    assert_eq!(seen(&site, "."), before);
    site.umount_and_check();
}

/// Two files that are always written one after the other: no snapshot may have the second write
/// without the first.
#[test]
fn a_snapshot_among_writers_is_one_moment_and_survives_a_kill() {
    let site = Site::mounted();
    let (first, second) = (site.at("first"), site.at("second"));
    let done = AtomicBool::new(false);
    let write = || {
        let open = |path| OpenOptions::new().create(true).write(true).truncate(false).open(path);
        let (one, other) = (open(&first).unwrap(), open(&second).unwrap());
        let mut round = 0u64;
        while !done.load(Ordering::Relaxed) {
            round += 1;
            for file in [&one, &other] {
                file.write_all_at(&round.to_be_bytes(), 0).unwrap();
                file.sync_data().unwrap();
            }
        }
    };
    let number = |path: PathBuf| {
        let bytes = fs::read(path).unwrap_or_default();
        bytes.try_into().map_or(0, u64::from_be_bytes)
    };
    let pair = |name: &str| {
        (number(old(&site, name).join("first")), number(old(&site, name).join("second")))
    };
    let mut kept = Vec::new();
    thread::scope(|scope| {
        scope.spawn(write);
        for count in 0..12 {
            let name = format!("s{count}");
            snapshot(&site, "create", &[&name]);
            let (one, other) = pair(&name);
            assert!(one == other || one == other + 1, "{name}: {one} and {other}");
            kept.push((name, (one, other)));
        }
        done.store(true, Ordering::Relaxed);
    });
    for (name, expected) in &kept {
        assert_eq!(pair(name), *expected, "{name}");
    }
    site.kill_daemon();
    site.ok(["umount".into(), site.mountpoint().into_os_string()]);
    site.mount();
    for (name, expected) in &kept {
        assert_eq!(pair(name), *expected, "{name}, after a kill");
    }
    site.umount_and_check();
}

#[test]
fn one_can_be_mounted_alone() {
    let site = Site::mounted();
    furnish(&site);
    let before = seen(&site, "a");
    snapshot(&site, "create", &["s"]);
    shell(&site.mountpoint(), "rm -r a");
    site.umount();
    site.mount_with(&["-o", "snapshot=s"]);
    assert_eq!(seen(&site, "a"), before);
    assert_eq!(errno_of(File::create(site.at("new"))), libc::EROFS);
    assert!(!site.at(".snapshots").exists());
    site.umount();
    let words =
        ["mount".into(), site.volume().into_os_string(), site.mountpoint().into_os_string()];
    let more = ["-o".into(), "snapshot=t".into()];
    let line = site.refused(2, words.into_iter().chain(more));
    assert!(line.contains("has no snapshot \"t\""), "{line}");
    site.mount();
    assert!(!site.at("a").exists());
    site.umount_and_check();
}

#[test]
fn a_policy_makes_them_by_itself() {
    let site = Site::new();
    let policy = ["-o", "snapshots=hourly:2+daily:7"];
    site.mount_with(&policy);
    let names = || shell(&site.mountpoint(), "ls .snapshots");
    settled(|| (names().lines().count() == 2).then_some(()));
    let made = names();
    assert!(made.starts_with("daily-20") && made.contains("T00:00:00Z\nhourly-20"), "{made}");
    site.umount();
    site.mount_with(&policy);
    // Unless an hour has just ended, there is nothing to make.
    assert!(names().contains(made.lines().next().unwrap()));
    site.umount_and_check();
}

#[test]
fn a_thousand_are_no_burden() {
    let site = Site::new();
    let words = |name: &str| {
        ["snapshot".into(), "create".into(), site.volume().into_os_string(), name.into()]
    };
    site.mount();
    write_random(&site.at("large"), 3, 4 * MIB);
    let file = OpenOptions::new().write(true).open(site.at("large")).unwrap();
    for number in 0..1000u64 {
        file.write_all_at(&number.to_be_bytes(), 0).unwrap();
        // By the volume's own directory as well as by the mount.
        match number % 100 {
            0 => drop(site.ok(words(&format!("s{number}")))),
            _ => drop(snapshot(&site, "create", &[&format!("s{number}")])),
        }
    }
    drop(file);
    site.remount();
    assert_eq!(fs::read_dir(site.at(".snapshots")).unwrap().count(), 1000);
    for number in [0u64, 1, 499, 500, 999] {
        let mut head = [0; 8];
        let file = File::open(old(&site, &format!("s{number}")).join("large")).unwrap();
        file.read_exact_at(&mut head, 0).unwrap();
        assert_eq!(u64::from_be_bytes(head), number);
    }
    // Each costs its metadata, and the chunk and the tree above it that were written anew.
    assert!(site.figure("unique_bytes") < 40 * MIB, "{}", site.figure("unique_bytes"));
    site.umount_and_check();
}
