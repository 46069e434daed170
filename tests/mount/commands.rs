//! Every command: what it does, what it says when it cannot, and its exit code.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::harness::{PROGRAM, Site, daemons, errno_of, is_mounted, run, write_random};

const VECTORS: &str = include_str!("../vectors/pyramid-swarm.json");

/// The words of a command line.
fn words<'a>(parts: &'a [&'a dyn AsRef<OsStr>]) -> impl Iterator<Item = &'a OsStr> {
    parts.iter().map(|part| part.as_ref())
}

fn mount_refused(site: &Site, more: &[&str]) -> String {
    let (volume, mountpoint) = (site.volume(), site.mountpoint());
    let mut line = vec![OsStr::new("mount"), volume.as_os_str(), mountpoint.as_os_str()];
    line.extend(more.iter().map(OsStr::new));
    site.refused(2, line)
}

/// Names, lengths and times of all files below `dir`.
fn listing(dir: &Path) -> Vec<String> {
    let text = super::harness::shell(dir, "find . -printf '%P %y %s %T@ %C@\\n' | sort");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn mkfs_makes_a_volume_once() {
    let site = Site::new();
    let before = listing(&site.volume());
    let line = site.refused(2, words(&[&"mkfs", &site.volume()]));
    assert!(line.contains("is a volume already"), "{line}");
    assert_eq!(listing(&site.volume()), before, "the second mkfs has changed something");
    site.mount();
    site.umount_and_check();
}

#[test]
fn mkfs_refuses_what_it_cannot_use() {
    let site = Site::bare();
    fs::create_dir(site.path("full")).unwrap();
    fs::write(site.path("full/file"), "mine").unwrap();
    let line = site.refused(2, words(&[&"mkfs", &site.path("full")]));
    assert!(line.contains("is not empty"), "{line}");
    assert_eq!(fs::read_dir(site.path("full")).unwrap().count(), 1);
    let line = site.refused(2, words(&[&"mkfs", &site.path("full/file")]));
    assert!(line.contains("is not a directory"), "{line}");
    let line = site.refused(2, words(&[&"mkfs", &site.path("no/parent")]));
    assert!(line.contains("parent directory is missing"), "{line}");
    for (option, value) in
        [("--branches", "100"), ("--hash", "md5"), ("--compression", "gzip"), ("--nonsense", "1")]
    {
        let line = site.refused(2, words(&[&"mkfs", &site.volume(), &option, &value]));
        assert!(line.contains(option), "{line}");
    }
    assert!(!site.volume().exists(), "a refused mkfs has made a directory");
    site.refused(2, ["mkfs"]);
    site.refused(2, ["nonsense"]);
}

#[test]
fn every_profile_and_compression_mounts() {
    let options = [
        ["--branches", "512", "--compression", "zstd:5"],
        ["--branches", "2048", "--compression", "none"],
        ["--hash", "keccak-256", "--compression", "zstd"],
        ["--hash", "blake3", "--compression", "lz4"],
    ];
    for option in options {
        let site = Site::bare();
        let mut line = vec![OsStr::new("mkfs")];
        let volume = site.volume();
        line.push(volume.as_os_str());
        line.extend(option.iter().map(OsStr::new));
        site.ok(line);
        site.mount();
        write_random(&site.at("file"), 1, 3_000_001);
        fs::write(site.at("text"), "some text ".repeat(100_000)).unwrap();
        site.remount();
        assert!(fs::read(site.at("file")).unwrap() == super::harness::Numbers(1).stream(3_000_001));
        assert!(fs::read(site.at("text")).unwrap() == "some text ".repeat(100_000).as_bytes());
        let status = site.status();
        assert_eq!(option.contains(&"512"), status["branches"] == 512, "{status}");
        site.umount_and_check();
    }
}

#[test]
fn a_mount_is_ready_when_the_command_returns() {
    let site = Site::new();
    for round in 0..5 {
        site.mount();
        fs::write(site.at(format!("file-{round}")), "at once").unwrap();
        assert_eq!(daemons(&site.volume()).len(), 1);
        site.umount();
        assert!(!is_mounted(&site.path("")));
        assert_eq!(fs::read_dir(site.mountpoint()).unwrap().count(), 0);
    }
    site.mount();
    assert_eq!(fs::read_dir(site.mountpoint()).unwrap().count(), 5);
}

#[test]
fn mount_refuses_a_place_that_is_no_volume() {
    let site = Site::bare();
    let line = mount_refused(&site, &[]);
    assert!(line.contains("is no volume") && line.contains("pyramidfs mkfs"), "{line}");
    fs::create_dir(site.volume()).unwrap();
    let line = mount_refused(&site, &[]);
    assert!(line.contains("is no volume"), "{line}");
    assert_eq!(fs::read_dir(site.volume()).unwrap().count(), 0, "something was made there");
    assert!(!is_mounted(&site.path("")));
}

#[test]
fn mount_with_create_makes_the_volume_only_if_it_is_missing() {
    let site = Site::bare();
    site.mount_with(&["--create"]);
    let uuid = site.status()["uuid"].clone();
    fs::write(site.at("file"), "kept").unwrap();
    site.umount();
    site.mount_with(&["--create"]);
    assert_eq!(site.status()["uuid"], uuid);
    assert_eq!(fs::read(site.at("file")).unwrap(), b"kept");
    site.umount();
    // It never takes a directory with other things in it.
    fs::create_dir(site.path("full")).unwrap();
    fs::write(site.path("full/file"), "mine").unwrap();
    let line =
        site.refused(2, words(&[&"mount", &site.path("full"), &site.mountpoint(), &"--create"]));
    assert!(line.contains("is not empty"), "{line}");
}

#[test]
fn a_volume_is_mounted_once() {
    let site = Site::mounted();
    fs::create_dir(site.path("other")).unwrap();
    let line = site.refused(2, words(&[&"mount", &site.volume(), &site.path("other")]));
    assert!(line.contains("is in use by another process"), "{line}");
    fs::write(site.at("file"), "still served").unwrap();
    // The other way round: another volume on the same mountpoint.
    site.ok(words(&[&"mkfs", &site.path("second")]));
    let line = site.refused(2, words(&[&"mount", &site.path("second"), &site.mountpoint()]));
    assert!(line.contains("is in use") && line.contains("umount"), "{line}");
    site.umount_and_check();
}

#[test]
fn mount_refuses_bad_mountpoints() {
    let site = Site::new();
    let refused = |mountpoint: PathBuf| {
        let line = site.refused(2, words(&[&"mount", &site.volume(), &mountpoint]));
        assert!(!is_mounted(&site.path("")), "{line}");
        line
    };
    assert!(refused(site.path("missing")).contains("is missing"));
    fs::write(site.path("file"), "").unwrap();
    assert!(refused(site.path("file")).contains("is not a directory"));
    assert!(refused(site.volume()).contains("lie one in the other"));
    assert!(refused(site.volume().join("packs")).contains("lie one in the other"));
    // The mountpoint would hide the volume.
    assert!(refused(site.path("")).contains("lie one in the other"));
    // All this has hurt nobody.
    site.mount();
    site.umount_and_check();
}

#[test]
fn mount_refuses_bad_options() {
    let site = Site::new();
    for (word, part) in [
        ("nonsense", "unknown option"),
        ("cache=lots", "is no size"),
        ("commit=0", "give seconds"),
        ("ro,,cahce=1GiB", "unknown option"),
    ] {
        let line = mount_refused(&site, &["-o", word]);
        assert!(line.contains(part), "{line}");
    }
    assert!(mount_refused(&site, &["--cache", "12"]).contains("too little"));
    assert!(!is_mounted(&site.path("")));
    site.mount_with(&["-o", "defaults,noatime,nofail,_netdev,x-systemd.automount,cache=8MiB"]);
    fs::write(site.at("file"), "x").unwrap();
}

#[test]
fn options_reach_the_kernel() {
    let site = Site::new();
    site.mount_with(&["-o", "nosuid,nodev,noexec"]);
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mountpoint = site.mountpoint();
    let line = text.lines().find(|line| line.contains(mountpoint.to_str().unwrap())).unwrap();
    for word in ["nosuid", "nodev", "noexec", "fuse.pyramidfs", site.volume().to_str().unwrap()] {
        assert!(line.contains(word), "{word} is not in {line}");
    }
    fs::copy("/bin/true", site.at("true")).unwrap();
    assert_eq!(errno_of(Command::new(site.at("true")).status()), libc::EACCES);
}

#[test]
fn a_newer_or_damaged_superblock_is_refused() {
    let site = Site::new();
    let path = site.volume().join("superblock");
    let good = fs::read_to_string(&path).unwrap();
    // A newer version may write everything else another way: only its number counts.
    fs::write(&path, "format = 7\nshape = \"new\"\n").unwrap();
    let line = mount_refused(&site, &[]);
    assert!(line.contains("use a newer pyramidfs") && line.contains('7'), "{line}");
    let flipped = good.replacen("branches = 128", "branches = 512", 1);
    assert_ne!(flipped, good);
    for damaged in [flipped.as_str(), "", "format = ", &good[..good.len() / 2], "\u{0}\u{0}"] {
        fs::write(&path, damaged).unwrap();
        let line = mount_refused(&site, &[]);
        assert!(line.contains("superblock") && line.contains("backup"), "{damaged:?}: {line}");
        let line = site.refused(2, words(&[&"status", &site.volume()]));
        assert!(line.contains("superblock"), "{line}");
    }
    fs::write(&path, good).unwrap();
    site.mount();
    site.umount_and_check();
}

#[test]
fn a_dead_mountpoint_is_cleared() {
    let site = Site::mounted();
    fs::write(site.at("file"), "x").unwrap();
    File::open(site.at("file")).unwrap().sync_all().unwrap();
    site.kill_daemon();
    assert_eq!(errno_of(fs::metadata(site.mountpoint())), libc::ENOTCONN);
    site.mount();
    assert_eq!(fs::read(site.at("file")).unwrap(), b"x");
    site.kill_daemon();
    // umount takes a dead one away as well.
    site.umount();
    assert!(!is_mounted(&site.path("")));
}

#[test]
fn mount_waits_for_a_daemon_that_is_closing() {
    let site = Site::mounted();
    for round in 0..3 {
        write_random(&site.at(format!("file-{round}")), round, 8 << 20);
        // Of the system, which returns while the daemon still stores what is left.
        run(Command::new("umount").arg(site.mountpoint()));
        site.mount();
        assert_eq!(fs::metadata(site.at(format!("file-{round}"))).unwrap().len(), 8 << 20);
    }
    site.umount_and_check();
}

#[test]
fn read_only_changes_nothing_on_the_disk() {
    let site = Site::mounted();
    fs::write(site.at("file"), "content").unwrap();
    site.umount();
    let before = listing(&site.volume());
    for more in [["--read-only"].as_slice(), &["-o", "ro"]] {
        site.mount_with(more);
        assert_eq!(fs::read(site.at("file")).unwrap(), b"content");
        assert_eq!(errno_of(fs::write(site.at("new"), "x")), libc::EROFS);
        assert_eq!(errno_of(fs::write(site.at("file"), "x")), libc::EROFS);
        assert_eq!(errno_of(fs::remove_file(site.at("file"))), libc::EROFS);
        assert_eq!(errno_of(fs::create_dir(site.at("dir"))), libc::EROFS);
        assert_eq!(errno_of(fs::rename(site.at("file"), site.at("other"))), libc::EROFS);
        site.umount();
        assert_eq!(listing(&site.volume()), before);
    }
    site.check();
    let without_lock = |lines: Vec<String>| {
        lines.into_iter().filter(|line| !line.starts_with("lock ")).collect::<Vec<_>>()
    };
    // Only the note in the lock says now that it was checked.
    assert_eq!(without_lock(listing(&site.volume())), without_lock(before));
}

#[test]
fn umount_says_why_it_cannot() {
    let site = Site::mounted();
    let open = File::create(site.at("open")).unwrap();
    let line = site.refused(2, words(&[&"umount", &site.mountpoint()]));
    assert!(line.contains("is busy"), "{line}");
    (&open).write_all(b"the mount works on").unwrap();
    drop(open);
    site.umount();
    let line = site.refused(2, words(&[&"umount", &site.mountpoint()]));
    assert!(line.contains("no pyramidfs volume is mounted"), "{line}");
    let line = site.refused(2, words(&[&"umount", &"/proc"]));
    assert!(line.contains("no pyramidfs volume is mounted"), "{line}");
}

#[test]
fn a_busy_umount_leaves_a_mount_that_can_be_unmounted_later() {
    let site = Site::mounted();
    let open = File::create(site.at("open")).unwrap();
    for _ in 0..40 {
        site.refused(2, words(&[&"umount", &site.mountpoint()]));
    }
    drop(open);
    site.status();
    site.umount_and_check();
}

#[test]
fn a_mount_in_the_foreground_ends_with_the_mount() {
    let site = Site::new();
    let mut daemon = Command::new(PROGRAM)
        .args(words(&[&"mount", &"--foreground", &site.volume(), &site.mountpoint()]))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Its log says when it is mounted.
    let log = std::io::BufReader::new(daemon.stderr.take().unwrap());
    let mut lines = std::io::BufRead::lines(log).map(|line| line.unwrap());
    lines.by_ref().find(|line| line.contains("is mounted on")).expect("it says so");
    fs::write(site.at("file"), "x").unwrap();
    site.umount_at(&site.mountpoint());
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
    site.check();
}

#[test]
fn a_signal_unmounts() {
    let site = Site::mounted();
    fs::write(site.at("file"), "x").unwrap();
    let pid = daemons(&site.volume())[0];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    // Mounting waits for the daemon that is closing.
    while is_mounted(&site.path("")) {
        std::thread::yield_now();
    }
    site.mount();
    assert_eq!(fs::read(site.at("file")).unwrap(), b"x");
}

#[test]
fn sync_makes_everything_durable() {
    let site = Site::mounted();
    write_random(&site.at("file"), 4, 5_000_000);
    site.ok(words(&[&"sync", &site.mountpoint()]));
    site.kill_daemon();
    site.mount();
    assert!(fs::read(site.at("file")).unwrap() == super::harness::Numbers(4).stream(5_000_000));
    site.umount();
    let line = site.refused(2, words(&[&"sync", &site.mountpoint()]));
    assert!(line.contains("no pyramidfs volume is mounted"), "{line}");
}

#[test]
fn status_tells_the_figures_of_the_design() {
    let site = Site::mounted();
    write_random(&site.at("one"), 1, 4 << 20);
    fs::copy(site.at("one"), site.at("two")).unwrap();
    File::create(site.at("hole")).unwrap().set_len(1 << 40).unwrap();
    site.ok(words(&[&"sync", &site.mountpoint()]));
    let mounted = site.status();
    let number = |name: &str| mounted[name].as_u64().unwrap_or_else(|| panic!("{name}"));
    assert_eq!(number("logical_bytes"), 8 << 20, "without the hole");
    assert!((4 << 20..5 << 20).contains(&number("unique_bytes")), "{mounted}");
    assert!((4 << 20..6 << 20).contains(&number("stored_bytes")), "{mounted}");
    assert!(number("stored_bytes") <= number("physical_bytes"), "{mounted}");
    // Three files and the root.
    assert_eq!(number("files"), 4);
    assert_eq!(mounted["mounted"], true);
    assert!(mounted.get("garbage_bytes").is_some());
    // By the volume's directory it is the same, mounted or not.
    assert_eq!(site.status_of(&site.volume())["uuid"], mounted["uuid"]);
    let text = site.ok(words(&[&"status", &site.mountpoint()])).stdout;
    assert!(String::from_utf8(text).unwrap().contains("by dedup"));
    site.umount();
    let status = site.status_of(&site.volume());
    assert_eq!(status["mounted"], false);
    for same in ["logical_bytes", "unique_bytes", "files", "uuid"] {
        assert_eq!(status[same], mounted[same], "{same}");
    }
    let line = site.refused(2, words(&[&"status", &site.mountpoint()]));
    assert!(line.contains("is no volume"), "{line}");
}

#[test]
fn check_finds_damage() {
    let site = Site::mounted();
    write_random(&site.at("file"), 1, 2 << 20);
    let line = site.refused(2, words(&[&"check", &"--repair", &site.mountpoint()]));
    assert!(line.contains("is in use: unmount it"), "{line}");
    site.refused(2, words(&[&"check", &"--repair", &site.volume()]));
    site.umount();
    site.check();
    let packs = super::harness::shell(&site.volume(), "find packs -name '*.pack' -printf '%p\\n'");
    let pack = site.volume().join(packs.lines().next().expect("there is a pack"));
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, bytes).unwrap();
    let output = Command::new(PROGRAM)
        .args(words(&[&"check", &"--read-data", &"--json", &site.volume()]))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["clean"], false);
    assert!(!found["findings"].as_array().unwrap().is_empty(), "{found}");
    // Reading what is damaged is an error, not wrong bytes.
    site.mount();
    assert_eq!(errno_of(fs::read(site.at("file"))), libc::EIO);
    let line = site.refused(2, words(&[&"check", &site.path("nowhere")]));
    assert!(line.contains("is no volume"), "{line}");
}

#[test]
fn hash_meets_the_vectors() {
    let site = Site::bare();
    let vectors: serde_json::Value = serde_json::from_str(VECTORS).unwrap();
    let all = vectors["split"].as_array().unwrap();
    for size in [0, 1, 4096, 4097, 128 * 4096, 129 * 4096] {
        let Some(vector) = all.iter().find(|vector| vector["size"] == size && vector["gen"] == 0)
        else {
            continue;
        };
        let seed = vector["seed"].as_u64().unwrap();
        let bytes: Vec<u8> = (0..size)
            .map(|i: u64| (i * 31 + (i >> 8) * 7 + (i >> 16) * 13).wrapping_add(seed) as u8)
            .collect();
        fs::write(site.path("file"), &bytes).unwrap();
        let line = words(&[&"hash", &site.path("file"), &"--profile", &"swarm"])
            .map(OsStr::to_owned)
            .collect::<Vec<_>>();
        let printed = site.ok(line).stdout;
        let expected = vector["root_hex"].as_str().unwrap();
        assert_eq!(String::from_utf8(printed).unwrap().trim_end(), expected, "{size} bytes");
        let mut piped = Command::new(PROGRAM)
            .args(["hash", "-", "--profile", "swarm"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        piped.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = piped.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end(), expected, "{size} bytes");
    }
    let line = site.refused(2, words(&[&"hash", &site.path("missing")]));
    assert!(line.contains("cannot hash"), "{line}");
    site.refused(2, words(&[&"hash", &site.path("file"), &"--profile", &"md5"]));
}
