//! Little memory and a slow disk: the daemon and those who write share a control group that has
//! room for neither all they write nor all they hold, and the disk below takes little at a time.
//!
//! `mount-scripts/pressure` runs the same with gigabytes. PYRAMIDFS_PRESSURE_MIB is how much is
//! written in all.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::backing::{Backing, has_loop_devices};
use super::harness::{PROGRAM, Site, daemons, run};
use super::writers::{Claim, Writers};

const WRITERS: u64 = 4;
/// What all of them may use together, page cache included.
const MEMORY_BYTES: u64 = 160 << 20;
/// What the disk takes in a second.
const DISK_BYTES: u64 = 24 << 20;
/// Longer than any single step can take.
const STALL: Duration = Duration::from_secs(60);

/// A control group for memory, and where there is one for disks, one that slows a disk down.
struct Pen {
    memory: PathBuf,
    disk: Option<PathBuf>,
    is_v1: bool,
}

impl Pen {
    /// Makes them, if this machine has a memory controller that can be used.
    fn new(name: &str) -> Option<Pen> {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        if v1.join("memory.limit_in_bytes").exists() {
            // Below the group of the test itself, which may have a limit too.
            let memory = v1.join(own_group("memory")?).join(name);
            fs::create_dir(&memory).ok()?;
            let disk = own_group("blkio").map(|own| Path::new("/sys/fs/cgroup/blkio").join(own));
            let disk = disk.map(|own| own.join(name)).filter(|dir| fs::create_dir(dir).is_ok());
            return Some(Pen { memory, disk, is_v1: true });
        }
        let v2 = Path::new("/sys/fs/cgroup");
        let given = fs::read_to_string(v2.join("cgroup.subtree_control")).unwrap_or_default();
        if !given.split_whitespace().any(|word| word == "memory") {
            return None;
        }
        let memory = v2.join(name);
        fs::create_dir(&memory).ok()?;
        Some(Pen { disk: Some(memory.clone()), memory, is_v1: false })
    }

    fn limit_memory(&self, bytes: u64) {
        let file = if self.is_v1 { "memory.limit_in_bytes" } else { "memory.max" };
        fs::write(self.memory.join(file), bytes.to_string()).unwrap();
    }

    /// Whether writing to the device is slow from now on.
    fn slow_down(&self, device: &str, bytes: u64) -> bool {
        let (file, line) = match self.is_v1 {
            true => ("blkio.throttle.write_bps_device", format!("{device} {bytes}")),
            false => ("io.max", format!("{device} wbps={bytes}")),
        };
        self.disk.as_ref().is_some_and(|dir| fs::write(dir.join(file), line).is_ok())
    }

    /// A command that runs `program` in there.
    fn command(&self, program: OsString) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-euc", "for dir in $PENS; do echo 0 > $dir/cgroup.procs; done; exec \"$@\""]);
        let dirs = [Some(&self.memory), self.disk.as_ref()].into_iter().flatten();
        let dirs: Vec<String> = dirs.map(|dir| dir.display().to_string()).collect();
        command.arg("sh").arg(program).env("PENS", dirs.join(" "));
        command
    }

    /// How many processes the kernel has ended for want of memory.
    fn killed(&self) -> u64 {
        let file = if self.is_v1 { "memory.oom_control" } else { "memory.events" };
        let text = fs::read_to_string(self.memory.join(file)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.map_or(0, |number| number.parse().unwrap())
    }

    fn peak_bytes(&self) -> String {
        let file = if self.is_v1 { "memory.max_usage_in_bytes" } else { "memory.peak" };
        fs::read_to_string(self.memory.join(file)).unwrap_or_default().trim().to_owned()
    }
}

impl Drop for Pen {
    fn drop(&mut self) {
        for dir in [Some(&self.memory), self.disk.as_ref()].into_iter().flatten() {
            // Whoever was in there may be on its way out.
            let gone = |_| {
                let left = fs::remove_dir(dir).is_err() && dir.exists();
                left.then(|| std::thread::sleep(Duration::from_millis(20))).is_none()
            };
            if !(0..250).any(gone) {
                eprintln!("{} is left behind", dir.display());
            }
        }
    }
}

/// The group of this process for a controller of the first version, without a slash in front.
fn own_group(controller: &str) -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let line = text.lines().find(|line| line.split(':').nth(1) == Some(controller))?;
    Some(line.splitn(3, ':').nth(2)?.trim_start_matches('/').into())
}

/// MiB that are written in all.
fn amount_mib() -> u64 {
    std::env::var("PYRAMIDFS_PRESSURE_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(160)
}

#[test]
fn with_little_memory_and_a_slow_disk_nothing_stalls_and_nothing_is_lost() {
    let mib = amount_mib();
    let pen = Pen::new(&format!("pyramidfs-test-{}", std::process::id()));
    let (Some(pen), true) = (pen, has_loop_devices()) else {
        eprintln!("left out: no memory controller for control groups, or no loop devices");
        return;
    };
    let site = Site::within(Duration::from_secs(150 + mib / 4));
    let backing = Backing::ext4(&site, 512 + mib * 5 / 4);
    // On a disk in memory nobody in the pen is charged for the image then.
    backing.preallocate();
    pen.limit_memory(MEMORY_BYTES);
    if !pen.slow_down(&backing.device(), DISK_BYTES) {
        eprintln!("the disk is as fast as it is: no controller for disks");
    }
    site.ok(["mkfs".as_ref(), site.volume().as_os_str()]);
    let mut mount = pen.command(PROGRAM.into());
    mount.arg("mount").args([site.volume(), site.mountpoint()]);
    run(mount.args(["--cache", "8MiB", "--index-memory", "8MiB"]));
    let daemon = daemons(&site.volume());

    let started = Instant::now();
    let share = (mib << 20) / WRITERS;
    let writers =
        Writers::start(&site.mountpoint(), WRITERS, share, 0, |program| pen.command(program));
    let mut claims: Vec<Claim> = Vec::new();
    let mut longest = Duration::ZERO;
    loop {
        let before = Instant::now();
        let Some(claim) = writers.next(STALL) else { break };
        longest = longest.max(before.elapsed());
        claims.push(claim);
    }
    let (done, rest) = writers.finish();
    claims.extend(rest);
    let written: u64 = claims.iter().map(|claim| claim.len).sum();
    println!(
        "{} MiB in {:.1} s, {} acknowledged; the longest without one {:.1} s; peak {} bytes",
        written >> 20,
        started.elapsed().as_secs_f64(),
        claims.len(),
        longest.as_secs_f64(),
        pen.peak_bytes()
    );
    assert_eq!(pen.killed(), 0, "somebody was killed for want of memory");
    assert_eq!(done as u64, WRITERS, "a writer has failed");
    assert_eq!(written, share * WRITERS);
    assert_eq!(daemons(&site.volume()), daemon, "the daemon is the same");
    site.umount();
    site.mount();
    claims.iter().for_each(Claim::verify);
    site.umount_and_check();
}
