//! Checks of mounted volumes, healing, and repair.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use super::harness::{Numbers, PROGRAM, Site, errno_of, settled, shell};

/// Runs `check`, which ends with `code`, and returns what it prints as JSON.
fn check(site: &Site, code: i32, arguments: &[&str]) -> serde_json::Value {
    let at = [site.mountpoint(), site.volume()];
    let at = at.iter().find(|path| path.join("superblock").exists() || is_mountpoint(path));
    let mut command = Command::new(PROGRAM);
    command.args(["check", "--json"]).args(arguments).arg(at.expect("a volume"));
    let output: Output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn is_mountpoint(path: &std::path::Path) -> bool {
    super::harness::is_mounted(path)
}

fn packs(site: &Site) -> Vec<PathBuf> {
    let listed = shell(&site.volume(), "find packs -name '*.pack' -printf '%p\\n'");
    listed.lines().map(|name| site.volume().join(name)).collect()
}

/// Damages the place where these bytes lie in the packs.
fn rot(site: &Site, wanted: &[u8]) {
    let mut count = 0;
    for pack in packs(site) {
        let mut bytes = fs::read(&pack).unwrap();
        while let Some(at) = bytes.windows(wanted.len()).position(|window| window == wanted) {
            bytes[at] ^= 1;
            count += 1;
            use std::os::unix::fs::FileExt;
            let file = fs::OpenOptions::new().write(true).open(&pack).unwrap();
            file.write_all_at(&bytes[at..=at], at as u64).unwrap();
        }
    }
    assert!(count > 0, "noise is stored as it is");
}

fn drop_caches(site: &Site) {
    site.ok(["sync".as_ref(), site.mountpoint().as_os_str()]);
    site.remount();
}

#[test]
fn a_mounted_volume_is_checked_and_heals() {
    let site = Site::mounted();
    let bytes = Numbers(1).bytes(2 << 20);
    fs::write(site.at("file"), &bytes).unwrap();
    fs::write(site.at("other"), Numbers(2).bytes(300_000)).unwrap();
    drop_caches(&site);
    assert_eq!(check(&site, 0, &["--read-data"])["clean"], true);
    rot(&site, &bytes[500_000..500_100]);
    let found = check(&site, 1, &["--read-data", "--rate", "0"]);
    let lines = found["findings"].to_string();
    assert!(lines.contains("inode") && lines.contains("damaged"), "{lines}");
    assert_eq!(errno_of(fs::read(site.at("file"))), libc::EIO);
    assert_eq!(fs::read(site.at("other")).unwrap(), Numbers(2).bytes(300_000));
    let status = site.status();
    assert!(status["check"]["findings"].as_u64().unwrap() > 0, "{status}");
    // The same content comes along, in another file.
    fs::write(site.at("copy"), &bytes).unwrap();
    site.ok(["sync".as_ref(), site.mountpoint().as_os_str()]);
    let healed = check(&site, 0, &["--read-data"]);
    assert!(healed["healed"].as_u64().unwrap() > 0, "{healed}");
    site.remount();
    assert!(fs::read(site.at("file")).unwrap() == bytes, "it is whole again");
    site.umount_and_check();
}

#[test]
fn what_is_lost_is_restored_from_a_file_or_another_volume() {
    let site = Site::mounted();
    let bytes = Numbers(3).bytes(1 << 20);
    fs::write(site.at("file"), &bytes).unwrap();
    site.umount();
    let kept = site.path("kept");
    fs::create_dir_all(kept.join("below")).unwrap();
    fs::write(kept.join("below/copy"), &bytes).unwrap();
    fs::write(kept.join("stranger"), Numbers(4).bytes(100_000)).unwrap();
    shell(&site.path(""), "cp -a volume second");
    for from in ["kept", "second"] {
        rot(&site, &bytes[700_000..700_100]);
        check(&site, 1, &["--read-data"]);
        let without = check(&site, 1, &["--repair"]);
        assert!(without["repairs"].to_string().contains("--from"), "{without}");
        let from = site.path(from);
        let repaired = check(&site, 0, &["--repair", "--from", from.to_str().unwrap()]);
        assert!(repaired["repairs"].to_string().contains("restored 1 chunks"), "{repaired}");
        site.mount();
        assert!(fs::read(site.at("file")).unwrap() == bytes);
        site.umount_and_check();
    }
}

#[test]
fn a_check_begins_by_itself_and_an_unmount_ends_it() {
    let site = Site::new();
    site.mount_with(&["-o", "check=1s"]);
    fs::write(site.at("file"), Numbers(5).bytes(5 << 20)).unwrap();
    site.ok(["sync".as_ref(), site.mountpoint().as_os_str()]);
    settled(|| {
        let status = site.status();
        (status["check"]["finished"].as_u64().unwrap() > 0).then_some(())
    });
    site.umount();
    // So slow that it would take a while.
    site.mount_with(&["-o", "check_rate=1MiB"]);
    let asked = Command::new(PROGRAM)
        .args(["check", "--read-data"])
        .arg(site.mountpoint())
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    settled(|| (site.status()["check"]["running"] == true).then_some(()));
    let began = Instant::now();
    site.umount();
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let output = asked.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    site.mount();
    assert_eq!(check(&site, 0, &["--read-data", "--rate", "0"])["clean"], true);
    // And one that is ended.
    site.ok(["check".as_ref(), "--stop".as_ref(), site.mountpoint().as_os_str()]);
    site.umount_and_check();
}
