//! Space that comes back, on a real mount.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::harness::{Numbers, Site, write_random};

/// Longer than anybody has to wait for space that nobody asked for.
const LIMIT: Duration = Duration::from_secs(120);

fn gc(site: &Site, more: &[&str]) -> serde_json::Value {
    let mountpoint = site.mountpoint();
    let mut words = vec!["gc".as_ref(), mountpoint.as_os_str(), "--json".as_ref()];
    words.extend(more.iter().map(|word| AsRef::<std::ffi::OsStr>::as_ref(*word)));
    serde_json::from_slice(&site.ok(words).stdout).unwrap()
}

/// Bytes of the volume's directory.
fn used(site: &Site) -> u64 {
    site.figure("physical_bytes")
}

fn fill(site: &Site, files: u64, mib: u64) {
    (0..files).for_each(|n| write_random(&site.at(format!("f{n}")), 100 + n, mib << 20));
    site.ok(["sync".as_ref(), site.mountpoint().as_os_str()]);
}

fn assert_files(site: &Site, numbers: impl Iterator<Item = u64>, mib: usize) {
    for n in numbers {
        let bytes = fs::read(site.at(format!("f{n}"))).unwrap();
        assert!(bytes == Numbers(100 + n).stream(mib << 20), "f{n}");
    }
}

#[test]
fn half_of_a_volume_comes_back_without_anybody_asking() {
    let site = Site::mounted();
    fill(&site, 16, 16);
    let before = used(&site);
    for n in (0..16).step_by(2) {
        fs::remove_file(site.at(format!("f{n}"))).unwrap();
    }
    let began = Instant::now();
    while before * 6 / 10 < used(&site) {
        assert!(began.elapsed() < LIMIT, "{} of {before} bytes", used(&site));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_files(&site, (1..16).step_by(2), 16);
    site.umount_and_check();
}

#[test]
fn gc_gives_back_what_was_removed() {
    let site = Site::new();
    site.mount_with(&["-o", "nogc"]);
    fill(&site, 6, 12);
    let before = used(&site);
    (0..4).for_each(|n| fs::remove_file(site.at(format!("f{n}"))).unwrap());
    let looked = gc(&site, &["--dry-run"]);
    assert!(40 << 20 < looked["garbage_bytes"].as_u64().unwrap(), "{looked}");
    assert_eq!(looked["freed_bytes"], 0, "{looked}");
    let estimate = site.figure("garbage_bytes");
    assert!((40 << 20..60 << 20).contains(&estimate), "{estimate}");
    let figures = gc(&site, &[]);
    assert!(used(&site) < before / 2, "{figures}");
    assert!(site.figure("garbage_bytes") < 8 << 20);
    assert_files(&site, 4..6, 12);
    site.umount();
    site.check();
    let again = site.ok(["gc".as_ref(), site.volume().as_os_str()]);
    assert!(String::from_utf8(again.stdout).unwrap().starts_with("garbage"));
    site.mount();
    assert_files(&site, 4..6, 12);
    site.umount_and_check();
}

#[test]
fn a_kill_within_a_collection_loses_nothing() {
    let site = Site::new();
    site.mount_with(&["-o", "nogc"]);
    for round in 0..4 {
        fill(&site, 8, 6);
        // Every other block: each pack has as much garbage as live chunks.
        for n in 0..8 {
            let file = File::options().write(true).open(site.at(format!("f{n}"))).unwrap();
            let bytes = Numbers(100 + n).stream(6 << 20);
            for block in (round % 2..48).step_by(2) {
                let at = block * (128 << 10);
                let fresh = Numbers(round * 1000 + block).bytes(4096);
                file.write_all_at(&fresh, at).unwrap();
                file.write_all_at(&bytes[at as usize..at as usize + 4096], at).unwrap();
            }
            file.sync_all().unwrap();
        }
        fs::write(site.at("gone"), Numbers(7 + round).stream(40 << 20)).unwrap();
        site.ok(["sync".as_ref(), site.mountpoint().as_os_str()]);
        fs::remove_file(site.at("gone")).unwrap();
        let mountpoint = site.mountpoint();
        let mut asked = std::process::Command::new(super::harness::PROGRAM)
            .arg("gc")
            .arg(&mountpoint)
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(20 + 60 * round));
        site.kill_daemon();
        asked.wait().unwrap();
        site.mount_with(&["-o", "nogc"]);
        assert_files(&site, 0..8, 6);
        let _ = fs::remove_file(site.at("gone"));
    }
    gc(&site, &[]);
    assert_files(&site, 0..8, 6);
    site.umount_and_check();
}

#[test]
fn an_open_file_without_a_name_keeps_its_bytes() {
    let site = Site::new();
    site.mount_with(&["-o", "nogc"]);
    write_random(&site.at("f"), 5, 24 << 20);
    let file = File::open(site.at("f")).unwrap();
    fs::remove_file(site.at("f")).unwrap();
    gc(&site, &[]);
    let mut bytes = vec![0; 24 << 20];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == Numbers(5).stream(24 << 20));
    drop(file);
    site.umount_and_check();
}
