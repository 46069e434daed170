//! Second lives on a real mount: metadata that is lost is made again, trees have copies.

use std::fs;
use std::process::Command;

use super::harness::{PROGRAM, Site, run, shell, write_random};

/// A tree of files of all sizes, links and attributes.
fn fill(site: &Site) {
    for number in 0..40 {
        fs::create_dir_all(site.at(format!("dir {}", number % 5))).unwrap();
        let file = site.at(format!("dir {}/file {number}", number % 5));
        write_random(&file, number, 1 << (number % 20));
    }
    fs::hard_link(site.at("dir 0/file 5"), site.at("linked")).unwrap();
    std::os::unix::fs::symlink("dir 1", site.at("symbolic")).unwrap();
}

/// Names, attributes and sums of all that is mounted.
fn listing(site: &Site) -> String {
    let names = "find . -printf '%p %m %n %u %s %T@ %l\\n' | sort";
    let sums = "find . -type f -print0 | sort -z | xargs -0 sha256sum";
    shell(&site.mountpoint(), names) + &shell(&site.mountpoint(), sums)
}

#[test]
fn lost_metadata_is_made_again_by_check_repair() {
    let site = Site::mounted();
    fill(&site);
    let before = listing(&site);
    site.umount();
    fs::remove_dir_all(site.volume().join("meta")).unwrap();
    let words = ["mount".as_ref(), site.volume().as_os_str(), site.path("mnt").as_os_str()]
        .map(std::ffi::OsStr::to_owned);
    let line = site.refused(2, words);
    assert!(line.contains("run 'pyramidfs check --repair"), "{line}");
    site.refused(2, ["check".as_ref(), site.volume().as_os_str()]);
    let repair = || {
        let mut command = Command::new(PROGRAM);
        let output = run(command.args(["check", "--read-data", "--repair"]).arg(site.volume()));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(repair().contains("made again up to commit"));
    assert!(!repair().contains("made again"), "there is nothing to do any more");
    site.mount();
    assert_eq!(listing(&site), before);
    site.umount();
    // The same with a damaged one, which is kept.
    let file = site.volume().join("meta/checkpoint.redb");
    let mut bytes = fs::read(&file).unwrap();
    bytes.iter_mut().skip(9000).step_by(1000).for_each(|byte| *byte ^= 1);
    fs::write(&file, &bytes).unwrap();
    let said = repair();
    assert!(said.contains("the old one is meta.aside/checkpoint.redb"), "{said}");
    assert!(fs::read(site.volume().join("meta.aside/checkpoint.redb")).unwrap() == bytes);
    site.mount();
    assert_eq!(listing(&site), before);
    site.umount_and_check();
}

#[test]
fn a_volume_with_two_copies_of_trees_reads_on_when_one_is_damaged() {
    let site = Site::bare();
    let volume = site.volume();
    site.ok(["mkfs".as_ref(), volume.as_os_str(), "--tree-copies".as_ref(), "2".as_ref()]);
    site.mount();
    // More than a pack, so that one is sealed.
    write_random(&site.at("file"), 1, 80 << 20);
    let before = listing(&site);
    site.umount_and_check();
    // All tree frames of the first pack: kind 2 behind the magic. Their payload follows the list.
    let pack = volume.join("packs/01/0000000000000001.pack");
    let mut bytes = fs::read(&pack).unwrap();
    let frames: Vec<usize> = (64..bytes.len() - 40)
        .step_by(8)
        .filter(|&at| bytes[at..].starts_with(b"PYRF\x02\0"))
        .collect();
    assert!(1 < frames.len());
    for at in frames {
        let list = u32::from_le_bytes(bytes[at + 12..at + 16].try_into().unwrap()) as usize;
        bytes[at + 40 + list + 3] ^= 1;
    }
    fs::write(&pack, bytes).unwrap();
    site.mount();
    assert_eq!(listing(&site), before);
    site.umount();
    let output = Command::new(PROGRAM).arg("check").arg(&volume).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "the damage is named");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(!said.contains("inode "), "no file is hurt: {said}");
    let repaired = run(Command::new(PROGRAM).args(["check", "--repair"]).arg(&volume)).stdout;
    let said = String::from_utf8(repaired).unwrap();
    assert!(said.contains("wrote again the tree chunks"), "{said}");
    site.check();
}
