//! What happens below the volume: its filesystem goes away, turns read-only, or others fill it; and
//! a signal in the middle of the work.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::channel;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::harness::{Numbers, PROGRAM, Site, daemons, errno_of, is_mounted, need, run};

/// `FS_IOC_SHUTDOWN` of ext4 and others: from now on every call fails, as when a disk is gone.
const SHUTDOWN: libc::Ioctl = 0x8004_587d_u32 as libc::Ioctl;
/// Without writing the journal out: what was not synced is lost, as when power fails.
const WITHOUT_FLUSH: u32 = 2;

/// Whether this machine has loop devices; says so when it has none.
pub fn has_loop_devices() -> bool {
    let has = Path::new("/dev/loop-control").exists();
    if !has {
        eprintln!("left out: this machine has no loop devices for a filesystem of its own");
    }
    has
}

/// A filesystem of its own for the volume, gone with the value.
pub struct Backing {
    dir: PathBuf,
    image: PathBuf,
}

impl Backing {
    /// An ext4 on a loop device.
    pub fn ext4(site: &Site, mib: u64) -> Backing {
        need("mkfs.ext4", "e2fsprogs");
        let backing = Backing { dir: site.volume(), image: site.path("image") };
        File::create(&backing.image).unwrap().set_len(mib << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&backing.image));
        fs::create_dir(&backing.dir).unwrap();
        backing.mount();
        fs::remove_dir(backing.dir.join("lost+found")).unwrap();
        backing
    }

    /// Takes all the room that the image can need, so that none has to be found later.
    pub fn preallocate(&self) {
        let len = fs::metadata(&self.image).unwrap().len();
        let len = len.to_string();
        run(Command::new("fallocate").args(["--keep-size", "-l", &len]).arg(&self.image));
    }

    /// The numbers of the device below, as 7:3.
    pub fn device(&self) -> String {
        let device = fs::metadata(&self.dir).unwrap().dev();
        format!("{}:{}", libc::major(device), libc::minor(device))
    }

    /// What makes this ext4 believe that it has met an error of its own.
    fn error_trigger(&self) -> PathBuf {
        let named = fs::read_link(format!("/sys/dev/block/{}", self.device())).unwrap();
        Path::new("/sys/fs/ext4").join(named.file_name().unwrap()).join("trigger_fs_error")
    }

    /// A filesystem in memory of that size.
    pub fn memory(site: &Site, size: &str) -> Backing {
        let backing = Backing { dir: site.volume(), image: PathBuf::new() };
        fs::create_dir(&backing.dir).unwrap();
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        run(mount.args(["-t", "tmpfs", "-o", &options, "none"]).arg(&backing.dir));
        backing
    }

    fn mount(&self) {
        let options = "loop,errors=remount-ro";
        run(Command::new("mount").args(["-o", options]).args([&self.image, &self.dir]));
    }

    /// Remounts it, which the kernel refuses while a file is open for writing.
    fn remount(&self, how: &str) -> bool {
        let options = format!("remount,{how}");
        Command::new("mount").args(["-o", &options]).arg(&self.dir).status().unwrap().success()
    }

    /// Cuts the power, and mounts again: the journal brings back what was synced.
    fn lose_power(&self) {
        let (dir, how) = (File::open(&self.dir).unwrap(), WITHOUT_FLUSH);
        // SAFETY: the call reads one number, which lives until it returns.
        let down = unsafe { libc::ioctl(dir.as_raw_fd(), SHUTDOWN, &raw const how) };
        assert_eq!(down, 0, "{}", std::io::Error::last_os_error());
    }

    fn mount_again(&self) {
        run(Command::new("umount").arg(&self.dir));
        self.mount();
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.dir).output();
    }
}

fn written(path: &Path, seed: u64, count: usize) -> Vec<u8> {
    let bytes = Numbers(seed).bytes(count);
    let mut file = File::create(path).unwrap();
    file.write_all(&bytes).unwrap();
    file.sync_all().unwrap();
    bytes
}

#[test]
fn what_was_acknowledged_survives_a_power_loss_of_the_filesystem_below() {
    if !has_loop_devices() {
        return;
    }
    let site = Site::bare();
    let backing = Backing::ext4(&site, 512);
    site.ok(["mkfs".as_ref(), site.volume().as_os_str()]);
    let mut kept = Vec::new();
    for round in 0..4_u64 {
        site.mount();
        for (name, bytes) in &kept {
            assert!(&fs::read(site.at(name)).unwrap() == bytes, "{name} in round {round}");
        }
        for number in 0..5 {
            let name = format!("kept-{round}-{number}");
            let bytes = written(&site.at(&name), round * 10 + number, 300_000);
            kept.push((name, bytes));
        }
        // Neither durable nor forbidden to be: its bytes are right or not there.
        let mut loose = File::create(site.at(format!("loose-{round}"))).unwrap();
        loose.write_all(&Numbers(99).bytes(5 << 20)).unwrap();
        backing.lose_power();
        let refused = loose.sync_all().and_then(|()| loose.sync_all());
        assert_eq!(errno_of(refused), libc::EIO, "nothing can be durable now");
        drop(loose);
        let late = File::create(site.at("late")).and_then(|file| file.sync_all());
        assert_ne!(errno_of(late), 0, "the volume takes no more changes");
        site.kill_daemon();
        run(Command::new("umount").arg("--lazy").arg(site.mountpoint()));
        backing.mount_again();
        site.check();
    }
    site.mount();
    for (name, bytes) in &kept {
        assert!(&fs::read(site.at(name)).unwrap() == bytes, "{name}");
    }
    site.umount_and_check();
}

/// Appends records and syncs each, until it is refused; returns how many were acknowledged.
fn records_until_refused(path: &Path, mut each: impl FnMut(u64)) -> (u64, i32) {
    let mut file = File::create(path).unwrap();
    for number in 0_u64.. {
        let written = file.write_all(&Numbers(number).bytes(40_000));
        match written.and_then(|()| file.sync_data()) {
            Ok(()) => each(number + 1),
            refused => return (number, errno_of(refused)),
        }
    }
    unreachable!("it is never refused")
}

fn assert_records(path: &Path, acknowledged: u64) {
    let bytes = fs::read(path).unwrap();
    for number in 0..acknowledged {
        let at = number as usize * 40_000;
        assert!(bytes[at..at + 40_000] == Numbers(number).bytes(40_000), "record {number}");
    }
}

#[test]
fn a_filesystem_that_turns_read_only_below_a_busy_volume_loses_nothing() {
    if !has_loop_devices() {
        return;
    }
    let site = Site::bare();
    let backing = Backing::ext4(&site, 512);
    if !backing.error_trigger().exists() {
        eprintln!("left out: this kernel's ext4 cannot be told to fail");
        return;
    }
    site.ok(["mkfs".as_ref(), site.volume().as_os_str()]);
    let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
    let mut logs: Vec<(String, u64)> = Vec::new();
    for round in 0..3_u64 {
        site.mount();
        for number in 0..3 {
            let name = format!("kept-{round}-{number}");
            let bytes = written(&site.at(&name), round * 10 + number, 300_000);
            kept.push((name, bytes));
        }
        let (told, acknowledged) = channel();
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let name = format!("log-{round}-{writer}");
                let (path, told) = (site.at(&name), told.clone());
                let tell = move |count| told.send((writer, count)).unwrap_or_default();
                let work = move || records_until_refused(&path, tell);
                (name, std::thread::spawn(work))
            })
            .collect();
        drop(told);
        let goal = 10 + 7 * round as usize;
        // What counts is acknowledged by now: a sync that ext4 has under way while it fails may be
        // acknowledged for nothing, by ext4 alone as well (docs/consistency.md).
        let mut before = [0; 2];
        acknowledged.iter().take(goal).for_each(|(writer, count)| before[writer] = count);
        assert_eq!(before.iter().sum::<u64>(), goal as u64);
        // The call itself may be told that the filesystem is read-only by now.
        let _ = fs::write(backing.error_trigger(), "1");
        for ((name, writer), count) in writers.into_iter().zip(before) {
            let (acknowledged, refused) = writer.join().unwrap();
            assert!([libc::EIO, libc::EROFS].contains(&refused), "errno {refused}");
            assert!(count <= acknowledged, "{count} of {acknowledged}");
            // Without a record not even the name was acknowledged.
            logs.extend((0 < count).then_some((name, count)));
        }
        for _ in 0..2 {
            let late = File::create(site.at("late")).and_then(|file| file.sync_all());
            let refused = errno_of(late);
            assert!([libc::EIO, libc::EROFS].contains(&refused), "errno {refused}");
        }
        for (name, bytes) in &kept {
            assert!(&fs::read(site.at(name)).unwrap() == bytes, "reading {name} goes on");
        }
        assert_eq!(site.status()["mounted"], true);
        // It ends, if not well; and says why when it is to be mounted for writing.
        let ended = Command::new(PROGRAM).arg("umount").arg(site.mountpoint()).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(said.contains("not everything could be stored"), "{said}");
        assert!(daemons(&site.volume()).is_empty() && !is_mounted(&site.mountpoint()));
        let (volume, mountpoint) = (site.volume(), site.mountpoint());
        let line = site.refused(2, ["mount".as_ref(), volume.as_os_str(), mountpoint.as_os_str()]);
        assert!(line.contains("read-only"), "{line}");
        site.mount_with(&["-o", "ro"]);
        for (name, bytes) in &kept {
            assert!(&fs::read(site.at(name)).unwrap() == bytes, "{name} on a read-only filesystem");
        }
        site.umount();
        backing.mount_again();
        site.check();
    }
    site.mount();
    for (name, bytes) in &kept {
        assert!(&fs::read(site.at(name)).unwrap() == bytes, "{name}");
    }
    for (name, count) in &logs {
        assert_records(&site.at(name), *count);
    }
    site.umount_and_check();
}

#[test]
fn no_filesystem_turns_read_only_by_wish_while_a_volume_on_it_is_mounted() {
    let site = Site::bare();
    let backing = Backing::memory(&site, "64m");
    site.ok(["mkfs".as_ref(), site.volume().as_os_str()]);
    site.mount();
    let kept = written(&site.at("kept"), 1, 1 << 20);
    assert!(!backing.remount("ro"), "the open files of the volume keep it writable");
    written(&site.at("more"), 2, 1 << 20);
    site.umount();
    assert!(backing.remount("ro"), "nothing is open any more");
    let (volume, mountpoint) = (site.volume(), site.mountpoint());
    let line = site.refused(2, ["mount".as_ref(), volume.as_os_str(), mountpoint.as_os_str()]);
    assert!(line.contains("read-only filesystem"), "{line}");
    site.mount_with(&["-o", "ro"]);
    assert!(fs::read(site.at("kept")).unwrap() == kept);
    assert_eq!(errno_of(File::create(site.at("new"))), libc::EROFS);
    site.umount_and_check();
    assert!(backing.remount("rw"));
    site.mount();
    written(&site.at("new"), 3, 1 << 20);
    assert!(fs::read(site.at("kept")).unwrap() == kept);
    site.umount_and_check();
}

#[test]
fn a_filesystem_that_others_fill_to_the_last_byte_loses_nothing() {
    let site = Site::bare();
    let _backing = Backing::memory(&site, "96m");
    site.ok(["mkfs".as_ref(), site.volume().as_os_str()]);
    site.mount();
    let kept = written(&site.at("kept"), 1, 8 << 20);
    let mut open = File::create(site.at("open")).unwrap();
    open.write_all(&Numbers(2).bytes(6 << 20)).unwrap();
    // Also the room that the volume had set its eyes on.
    let stranger = site.volume().join("stranger");
    let filled = File::create(&stranger).and_then(|mut file| {
        loop {
            file.write_all(&[7; 65536])?;
        }
    });
    assert_eq!(errno_of::<()>(filled), libc::ENOSPC);
    // More bytes than what is left over in the last page of a pack, whatever was stored by now.
    let refused = open.write_all(&Numbers(4).bytes(1 << 20)).and_then(|()| open.sync_all());
    assert_eq!(errno_of(refused), libc::ENOSPC);
    assert!(fs::read(site.at("kept")).unwrap() == kept, "reading goes on");
    assert_eq!(errno_of(File::create(site.at("new"))), libc::ENOSPC);
    fs::remove_file(&stranger).unwrap();
    // The failed fsync said that bytes are lost: whoever wants them writes them again.
    let stored = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let again = open.write_all_at(&Numbers(2).bytes(6 << 20), 0);
        again.and_then(|()| open.sync_all()).is_ok()
    });
    assert!(stored, "the volume goes on when there is room");
    let more = written(&site.at("more"), 3, 1 << 20);
    drop(open);
    site.remount();
    assert!(fs::read(site.at("kept")).unwrap() == kept);
    assert!(fs::read(site.at("open")).unwrap()[..6 << 20] == Numbers(2).bytes(6 << 20));
    assert!(fs::read(site.at("more")).unwrap() == more);
    site.umount_and_check();
}

#[test]
fn a_signal_in_the_middle_of_writing_stores_what_was_acknowledged() {
    let site = Site::mounted();
    let pid = Pid::from_raw(daemons(&site.volume())[0]);
    let path = site.at("log");
    let writer = std::thread::spawn(move || {
        let (acknowledged, _) = records_until_refused(&path, |number| {
            if number == 20 {
                kill(pid, Signal::SIGTERM).unwrap();
            }
        });
        acknowledged
    });
    let acknowledged = writer.join().unwrap();
    assert!(20 < acknowledged);
    while is_mounted(&site.path("")) {
        std::thread::yield_now();
    }
    // Waits for the daemon, which waits for the file.
    site.mount();
    assert_records(&site.at("log"), acknowledged);
    site.umount_and_check();
}
