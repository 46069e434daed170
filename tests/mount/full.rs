//! A filesystem below the volume that fills up.

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;

use super::backing::Backing;
use super::harness::{Numbers, Site, errno_of};

#[test]
fn writing_ends_with_enospc_and_loses_nothing() {
    let site = Site::bare();
    let backing = Backing::memory(&site, "96m");
    site.ok(["mkfs".as_ref(), site.volume().as_os_str()]);
    site.mount();
    let kept = Numbers(1).stream(8 << 20);
    fs::write(site.at("kept"), &kept).unwrap();
    File::open(site.at("kept")).unwrap().sync_all().unwrap();
    let mut big = File::create(site.at("big")).unwrap();
    let bytes = Numbers(2).stream(200 << 20);
    // With write-back the answer may come only when the bytes are handed over.
    let written = big.write_all(&bytes).and_then(|()| big.sync_all());
    assert_eq!(errno_of(written), libc::ENOSPC);
    drop(big);
    assert!(fs::read(site.at("kept")).unwrap() == kept);
    fs::remove_file(site.at("big")).unwrap();
    // The first syncfs(2) may report the failure of before once more, as Linux does for a whole
    // filesystem; from then on all is well.
    let _ = Command::new("sync").arg("--file-system").arg(site.mountpoint()).output();
    site.ok(["sync".as_ref(), site.mountpoint().as_os_str()]);
    site.remount();
    assert!(fs::read(site.at("kept")).unwrap() == kept);
    assert!(!site.at("big").exists());
    site.umount_and_check();
    drop(backing);
}

#[test]
fn mkfs_without_room_says_so() {
    let site = Site::bare();
    let _backing = Backing::memory(&site, "16k");
    let line = site.refused(2, ["mkfs".as_ref(), site.volume().as_os_str()]);
    assert!(line.contains("space"), "{line}");
}
