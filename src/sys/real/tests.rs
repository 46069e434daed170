//! What only the machine's own disk has: links, descriptors, locks between processes, time.

use super::*;

fn scratch() -> (tempfile::TempDir, RealDisk) {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    (dir, disk)
}

#[test]
fn a_missing_directory_and_a_file_in_its_place_are_errors() {
    let (dir, _disk) = scratch();
    let missing = RealDisk::open(&dir.path().join("missing")).unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    std::fs::write(dir.path().join("file"), b"x").unwrap();
    let file = RealDisk::open(&dir.path().join("file")).unwrap_err();
    assert_eq!(file.kind(), io::ErrorKind::NotADirectory);
}

#[test]
fn links_are_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), b"x").unwrap();
    let (dir, disk) = scratch();
    std::os::unix::fs::symlink(outside.path(), dir.path().join("out")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), dir.path().join("link")).unwrap();
    assert!(disk.open("out/secret", Access::Read).is_err());
    assert!(disk.open("link", Access::Write).is_err());
    assert!(disk.lock("link").is_err());
    assert!(disk.read_dir("out").is_err());
    assert!(disk.create_dir("out/new").is_err());
    assert!(disk.remove_file("out/secret").is_err());
    assert!(disk.rename("out/secret", "stolen").is_err());
    assert!(outside.path().join("secret").exists());
    let used = disk.used_bytes().unwrap();
    std::fs::write(outside.path().join("more"), vec![1_u8; 1 << 20]).unwrap();
    assert_eq!(disk.used_bytes().unwrap(), used);
}

#[test]
fn paths_hang_on_the_descriptor_and_not_on_the_name() {
    let (dir, _disk) = scratch();
    let old = dir.path().join("old");
    std::fs::create_dir(&old).unwrap();
    let disk = RealDisk::open(&old).unwrap();
    std::fs::rename(&old, dir.path().join("new")).unwrap();
    disk.open("file", Access::CreateNew).unwrap();
    assert!(dir.path().join("new/file").exists());
}

#[test]
fn a_fifo_in_the_place_of_a_file_does_not_hang() {
    let (dir, disk) = scratch();
    nix::unistd::mkfifo(&dir.path().join("fifo"), Mode::S_IRWXU).unwrap();
    assert!(disk.open("fifo", Access::Read).is_err());
    assert!(disk.open("fifo", Access::Write).is_err());
}

#[test]
fn files_and_directories_are_for_their_owner_only() {
    let (dir, disk) = scratch();
    disk.open("file", Access::CreateNew).unwrap();
    disk.create_dir("dir").unwrap();
    let mode = |name| std::fs::metadata(dir.path().join(name)).unwrap().mode() & 0o077;
    assert_eq!((mode("file"), mode("dir")), (0, 0));
}

#[test]
fn names_that_are_not_utf8_are_left_out() {
    use std::os::unix::ffi::OsStrExt;
    let (dir, disk) = scratch();
    std::fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"a\xff")), b"x").unwrap();
    assert_eq!(disk.read_dir("").unwrap(), []);
}

#[test]
fn used_bytes_are_what_the_blocks_say() {
    let (_dir, disk) = scratch();
    let empty = disk.used_bytes().unwrap();
    disk.create_dir("dir").unwrap();
    let file = disk.open("dir/file", Access::CreateNew).unwrap();
    file.write_all_at(&vec![7; 1 << 20], 0).unwrap();
    file.set_len(1 << 40).unwrap();
    file.sync().unwrap();
    let used = disk.used_bytes().unwrap() - empty;
    assert!(used >= 1 << 20, "{used} bytes for 1 MiB");
    assert!(used < 2 << 20, "{used} bytes for 1 MiB and a hole");
}

#[test]
fn a_lock_excludes_other_handles_and_its_note_can_be_read_meanwhile() {
    let (dir, disk) = scratch();
    let lock = disk.lock("lock").unwrap();
    let other = RealDisk::open(dir.path()).unwrap();
    assert_eq!(other.lock("lock").err().unwrap().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(read_note(dir.path(), "lock").unwrap(), "");
    lock.set_note("a long note about what is going on").unwrap();
    lock.set_note("closing").unwrap();
    assert_eq!(read_note(dir.path(), "lock").unwrap(), "closing");
    drop(lock);
    let _lock = other.lock("lock").unwrap();
    assert_eq!(read_note(dir.path(), "lock").unwrap(), "", "the note of a former holder is gone");
}

#[test]
fn time_before_and_after_1970() {
    let at = |secs, nanos| Timestamp { secs, nanos };
    assert_eq!(timestamp_after(Duration::new(5, 6)), at(5, 6));
    assert_eq!(timestamp_before(Duration::new(5, 0)), at(-5, 0));
    assert_eq!(timestamp_before(Duration::new(5, 1)), at(-6, 999_999_999));
    assert!(timestamp_before(Duration::MAX) < at(0, 0));
    assert!(timestamp_after(Duration::MAX) > at(0, 0));
}

#[test]
fn the_clock_goes_on() {
    let clock = RealClock::new();
    let before = clock.monotonic();
    assert!(clock.monotonic() >= before);
    assert!(clock.now().secs > 1_700_000_000);
}

#[test]
fn random_bytes_fill_all_of_the_buffer_and_differ() {
    let (mut one, mut two) = ([0_u8; 1024], [0_u8; 1024]);
    RealRng.fill(&mut one);
    RealRng.fill(&mut two);
    assert_ne!(one, two);
    for part in one.chunks(64) {
        assert!(part.iter().any(|&byte| byte != 0));
    }
    RealRng.fill(&mut []);
}
