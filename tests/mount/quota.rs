//! A limit of what a volume may store.

use std::fs::{self, File};
use std::io::Write;

use nix::sys::statvfs::statvfs;

use super::harness::{Numbers, Site, errno_of, write_random};

const MIB: u64 = 1 << 20;

/// Size and room of the mount, as df shows them.
fn df(site: &Site) -> (u64, u64) {
    let found = statvfs(&site.mountpoint()).unwrap();
    let unit = found.fragment_size();
    (unit * found.blocks(), unit * found.blocks_available())
}

#[test]
fn a_quota_is_shown_kept_and_changed() {
    let site = Site::new();
    site.mount_with(&["-o", "quota=64MiB"]);
    let (size, room) = df(&site);
    assert_eq!(size, 64 * MIB);
    assert!(50 * MIB < room && room < 64 * MIB, "{room}");
    assert_eq!(site.status()["quota_bytes"], 64 * MIB);
    let kept = Numbers(1).stream(8 << 20);
    fs::write(site.at("kept"), &kept).unwrap();
    File::open(site.at("kept")).unwrap().sync_all().unwrap();
    let mut big = File::create(site.at("big")).unwrap();
    let bytes = Numbers(2).stream(100 << 20);
    let written = big.write_all(&bytes).and_then(|()| big.sync_all());
    assert_eq!(errno_of(written), libc::EDQUOT);
    drop(big);
    let stored = site.status()["stored_bytes"].as_u64().unwrap();
    assert!(40 * MIB < stored && stored <= 64 * MIB, "{stored}");
    assert!(df(&site).1 < 2 * MIB);
    let made = (0..20_000).map(|number| errno_of(fs::create_dir(site.at(format!("d{number}")))));
    assert_eq!(made.into_iter().find(|&errno| errno != 0), Some(libc::EDQUOT));
    // What gives space back works.
    File::options().write(true).open(site.at("big")).unwrap().set_len(MIB).unwrap();
    fs::rename(site.at("big"), site.at("bigger")).unwrap();
    fs::remove_file(site.at("bigger")).unwrap();
    site.ok([
        "mount".as_ref(),
        "-o".as_ref(),
        "remount,quota=1GiB".as_ref(),
        site.mountpoint().as_os_str(),
    ]);
    assert_eq!(df(&site).0, 1 << 30);
    write_random(&site.at("more"), 3, 50 * MIB);
    File::open(site.at("more")).unwrap().sync_all().unwrap();
    assert!(fs::read(site.at("kept")).unwrap() == kept);
    site.ok([
        "mount".as_ref(),
        "-o".as_ref(),
        "remount,quota=0".as_ref(),
        site.mountpoint().as_os_str(),
    ]);
    assert!(site.status()["quota_bytes"].is_null());
    assert_ne!(df(&site).0, 1 << 30);
    // What is stored is more than the next quota: it can be read and removed.
    site.umount();
    site.mount_with(&["-o", "quota=32MiB"]);
    assert!(fs::read(site.at("kept")).unwrap() == kept);
    assert_eq!(df(&site).1, 0);
    assert_eq!(errno_of(fs::write(site.at("new"), b"x")), libc::EDQUOT);
    fs::remove_file(site.at("kept")).unwrap();
    site.umount_and_check();
}

#[test]
fn a_quota_that_is_none_is_refused() {
    let site = Site::new();
    let (volume, mountpoint) = (site.volume(), site.mountpoint());
    for (list, part) in [("quota=1MiB", "16MiB"), ("quota=lots", "no size"), ("quota", "value")] {
        let words = [
            "mount".as_ref(),
            "-o".as_ref(),
            list.as_ref(),
            volume.as_os_str(),
            mountpoint.as_os_str(),
        ];
        let line = site.refused(2, words);
        assert!(line.contains(part), "{line}");
    }
}
