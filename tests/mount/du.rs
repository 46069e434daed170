//! What files take: `du` on a mount.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use super::harness::{Numbers, Site, shell, write_random};

const MIB: u64 = 1 << 20;

/// What `du --json` says of paths.
fn du(site: &Site, paths: &[&Path]) -> serde_json::Value {
    let mut words = vec!["du".as_ref(), "--json".as_ref()];
    words.extend(paths.iter().map(|path| path.as_os_str()));
    serde_json::from_slice(&site.ok(words).stdout).expect("du --json prints JSON")
}

/// One of its figures.
fn figure(value: &serde_json::Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {value}"))
}

/// Whether it is so much, with up to a twentieth more for trees.
fn about(found: u64, bytes: u64) -> bool {
    bytes <= found && found <= bytes + bytes / 20
}

#[test]
fn copies_share_and_what_is_their_own_is_unique() {
    let site = Site::mounted();
    fs::create_dir(site.at("a")).unwrap();
    write_random(&site.at("a/one"), 1, 8 * MIB);
    fs::copy(site.at("a/one"), site.at("copy")).unwrap();
    let one = du(&site, &[&site.at("a")]);
    assert_eq!(figure(&one, "files"), 2);
    assert_eq!(figure(&one, "apparent_bytes"), 8 * MIB);
    assert_eq!(figure(&one, "unique_bytes"), 0, "{one}");
    assert!(about(figure(&one, "shared_bytes"), 8 * MIB), "{one}");
    // Both together hold it alone.
    let both = du(&site, &[&site.at("a"), &site.at("copy")]);
    assert!(about(figure(&both, "unique_bytes"), 8 * MIB), "{both}");
    assert_eq!(figure(&both, "apparent_bytes"), 16 * MIB);
    assert_eq!(figure(&both, "shared_bytes"), 0, "{both}");
    // It cannot be compressed.
    assert!(about(figure(&both, "freed_bytes"), 8 * MIB), "{both}");
    // A part that is the copy's own.
    let mut copy = File::options().append(true).open(site.at("copy")).unwrap();
    copy.write_all(&Numbers(2).stream(2 << 20)).unwrap();
    drop(copy);
    let copy = du(&site, &[&site.at("copy")]);
    assert!(about(figure(&copy, "unique_bytes"), 2 * MIB), "{copy}");
    // The mountpoint is all of it.
    let all = du(&site, &[&site.mountpoint()]);
    assert_eq!(figure(&all, "files"), 4);
    assert!(about(figure(&all, "unique_bytes"), 10 * MIB), "{all}");
    let text = String::from_utf8(site.ok(["du".as_ref(), site.mountpoint().as_os_str()]).stdout);
    assert!(text.unwrap().contains("apparent  18.0 MiB"), "it prints columns");
    site.umount_and_check();
}

#[test]
fn a_file_with_a_name_elsewhere_stays() {
    let site = Site::mounted();
    fs::create_dir(site.at("a")).unwrap();
    write_random(&site.at("a/file"), 1, 4 * MIB);
    fs::hard_link(site.at("a/file"), site.at("a/again")).unwrap();
    let inside = du(&site, &[&site.at("a")]);
    assert_eq!((figure(&inside, "files"), figure(&inside, "linked")), (2, 0));
    assert!(about(figure(&inside, "unique_bytes"), 4 * MIB), "{inside}");
    fs::hard_link(site.at("a/file"), site.at("elsewhere")).unwrap();
    let linked = du(&site, &[&site.at("a")]);
    assert_eq!((figure(&linked, "linked"), figure(&linked, "unique_bytes")), (1, 0));
    assert!(about(figure(&linked, "distinct_bytes"), 4 * MIB), "{linked}");
    // One of two names, and a name that is named twice.
    let one = du(&site, &[&site.at("a/file"), &site.at("a/file"), &site.at("a")]);
    assert_eq!(figure(&one, "unique_bytes"), 0, "{one}");
    let both = du(&site, &[&site.at("a"), &site.at("elsewhere")]);
    assert!(about(figure(&both, "unique_bytes"), 4 * MIB), "{both}");
    assert_eq!(figure(&both, "apparent_bytes"), 4 * MIB, "each inode counts once");
    site.umount_and_check();
}

#[test]
fn a_part_in_common_is_shared_and_holes_take_nothing() {
    let site = Site::mounted();
    let (common, own) = (Numbers(1).stream(3 << 20), Numbers(2).stream(1 << 20));
    fs::write(site.at("one"), [&common[..], &own].concat()).unwrap();
    fs::write(site.at("two"), &common).unwrap();
    let mut file = File::create(site.at("hole")).unwrap();
    file.write_all(&own).unwrap();
    file.set_len(1 << 40).unwrap();
    drop(file);
    let one = du(&site, &[&site.at("one")]);
    assert!(about(figure(&one, "shared_bytes"), 4 * MIB), "{one}");
    assert!(figure(&one, "unique_bytes") < MIB / 8, "its tree alone: {one}");
    let hole = du(&site, &[&site.at("hole")]);
    assert_eq!(figure(&hole, "apparent_bytes"), 1 << 40);
    assert_eq!(figure(&hole, "logical_bytes"), MIB);
    fs::remove_file(site.at("hole")).unwrap();
    let one = du(&site, &[&site.at("one")]);
    assert!(figure(&one, "unique_bytes").abs_diff(MIB) < MIB / 8, "{one}");
    // A link is counted and not followed.
    shell(&site.mountpoint(), "ln -s one link");
    let link = du(&site, &[&site.at("link")]);
    assert_eq!((figure(&link, "files"), figure(&link, "unique_bytes")), (1, 0));
    site.umount_and_check();
}

#[test]
fn a_volume_that_is_not_mounted_and_what_is_refused() {
    let site = Site::mounted();
    fs::create_dir_all(site.at("a/b")).unwrap();
    write_random(&site.at("a/b/file"), 1, 2 * MIB);
    let refused = |words: &[&str], part: &str| {
        let line = site.refused(2, words.iter().map(|word| (*word).to_owned()));
        assert!(line.contains(part), "{line}");
    };
    let (volume, outside) = (site.volume(), site.path(""));
    let volume = volume.to_str().unwrap();
    refused(&["du", "--volume", volume], "is mounted");
    refused(&["du", outside.to_str().unwrap()], "no pyramidfs volume is mounted");
    refused(&["du", site.at("nothing").to_str().unwrap()], "cannot find");
    refused(&["du"], "required");
    let mounted = du(&site, &[&site.at("a")]);
    site.umount();
    let output = site.ok(["du", "--json", "--volume", volume, "/a"]);
    let offline: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(offline, mounted);
    let whole = site.ok(["du", "--json", "--volume", volume]);
    let whole: serde_json::Value = serde_json::from_slice(&whole.stdout).unwrap();
    assert_eq!(figure(&whole, "files"), 4);
    refused(&["du", "--volume", volume, "/nothing"], "no such file");
    site.check();
}
