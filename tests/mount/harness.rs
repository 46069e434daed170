//! A volume, a mountpoint and the program, for one test.
//!
//! Owns the time limit: when it is over, the mount's connection is cut, so that whatever hangs on
//! it gets an error, and the test fails. Dropping a [`Site`] unmounts, cuts and kills what is
//! left, in this order. Only processes that name the site's own volume are ever killed.
//!
//! Absent on purpose: sleeps as a wait for readiness. The commands return when they are done.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::Pid;
use tempfile::TempDir;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_pyramidfs");
/// What a test may take at most.
const LIMIT: Duration = Duration::from_secs(150);
/// How long a test has to end by itself once its mount was cut.
const GRACE: Duration = Duration::from_secs(20);
/// Room that makes the memory filesystem the better place.
const ROOM_BYTES: u64 = 3 << 30;

/// A directory with a volume and a mountpoint.
pub struct Site {
    dir: TempDir,
    late: Arc<AtomicBool>,
    done: Option<Sender<()>>,
    watchdog: Option<JoinHandle<()>>,
}

impl Site {
    /// Makes the directory and the mountpoint, but no volume.
    pub fn bare() -> Site {
        Site::within(LIMIT)
    }

    /// The same with another time limit.
    pub fn within(limit: Duration) -> Site {
        assert!(nix::unistd::geteuid().is_root(), "this test mounts: run it as root");
        assert!(Path::new("/dev/fuse").exists(), "this test mounts: it needs /dev/fuse");
        let dir = tempfile::Builder::new().prefix("pyramidfs-test-").tempdir_in(base()).unwrap();
        // Other users have to get through.
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        let late = Arc::new(AtomicBool::new(false));
        let (done, ended) = channel();
        let (path, flag) = (dir.path().to_owned(), Arc::clone(&late));
        let watchdog = std::thread::spawn(move || {
            if ended.recv_timeout(limit) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            flag.store(true, Ordering::SeqCst);
            cut(&path);
            if ended.recv_timeout(GRACE) == Err(RecvTimeoutError::Timeout) {
                eprintln!("a test in {} does not end; giving up", path.display());
                std::process::abort();
            }
        });
        Site { dir, late, done: Some(done), watchdog: Some(watchdog) }
    }

    /// Makes the volume as well.
    pub fn new() -> Site {
        let site = Site::bare();
        site.ok(["mkfs".as_ref(), site.volume().as_os_str()]);
        site
    }

    /// Makes the volume and mounts it.
    pub fn mounted() -> Site {
        let site = Site::new();
        site.mount();
        site
    }

    /// A path in the site's own directory, outside of the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The volume's directory.
    pub fn volume(&self) -> PathBuf {
        self.path("volume")
    }

    /// The mountpoint.
    pub fn mountpoint(&self) -> PathBuf {
        self.path("mnt")
    }

    /// A path in the mount.
    pub fn at(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.mountpoint().join(name.as_ref())
    }

    /// Mounts the volume.
    pub fn mount(&self) {
        self.mount_with(&[]);
    }

    /// Mounts the volume with more arguments.
    pub fn mount_with(&self, more: &[&str]) {
        let (volume, mountpoint) = (self.volume(), self.mountpoint());
        let mut words = vec!["mount".as_ref(), volume.as_os_str(), mountpoint.as_os_str()];
        words.extend(more.iter().map(OsStr::new));
        self.ok(words);
    }

    /// Unmounts, and is sure that the daemon is gone.
    pub fn umount(&self) {
        self.umount_at(&self.mountpoint());
        assert!(daemons(&self.volume()).is_empty(), "umount returned before the daemon was gone");
    }

    /// Unmounts what is mounted at `mountpoint`.
    pub fn umount_at(&self, mountpoint: &Path) {
        let mut command = Command::new(PROGRAM);
        command.arg("umount").arg(mountpoint);
        let output = settled(|| {
            let output = command.output().unwrap();
            let busy = String::from_utf8_lossy(&output.stderr).contains("is busy");
            (!busy).then_some(output)
        });
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Unmounts and mounts again: what the kernel remembers is gone.
    pub fn remount(&self) {
        self.umount();
        self.mount();
    }

    /// Unmounts and verifies every byte of the volume.
    pub fn umount_and_check(&self) {
        self.umount();
        self.check();
    }

    /// Verifies every byte of the volume.
    pub fn check(&self) {
        self.ok(["check".as_ref(), "--read-data".as_ref(), self.volume().as_os_str()]);
    }

    /// `status --json` of the mount.
    pub fn status(&self) -> serde_json::Value {
        self.status_of(&self.mountpoint())
    }

    /// `status --json` of a volume or mountpoint.
    pub fn status_of(&self, path: &Path) -> serde_json::Value {
        let output = self.ok(["status".as_ref(), path.as_os_str(), "--json".as_ref()]);
        serde_json::from_slice(&output.stdout).expect("status --json prints JSON")
    }

    /// One figure of `status --json`, after everything was stored.
    pub fn figure(&self, name: &str) -> u64 {
        self.ok(["sync".as_ref(), self.mountpoint().as_os_str()]);
        self.status()[name].as_u64().unwrap_or_else(|| panic!("status has no number {name}"))
    }

    /// Runs the program; it must answer 0.
    pub fn ok<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, words: I) -> Output {
        let mut command = Command::new(PROGRAM);
        run(command.args(words))
    }

    /// Runs the program, which must end with `code` and one line on standard error, which
    /// is returned.
    pub fn refused<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(
        &self,
        code: i32,
        words: I,
    ) -> String {
        let mut command = Command::new(PROGRAM);
        let output = command.args(words).stdin(Stdio::null()).output().unwrap();
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{command:?}: {line}");
        assert_eq!(line.lines().count(), 1, "{command:?} should say one line: {line}");
        assert!(line.starts_with("pyramidfs: "), "{command:?}: {line}");
        line.trim_end().to_owned()
    }

    /// Kills the daemon at once, as a crash would.
    pub fn kill_daemon(&self) {
        let pids = daemons(&self.volume());
        assert_eq!(pids.len(), 1, "one daemon serves the volume");
        kill_all(&pids);
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // First the gentle way, under the time limit that still runs.
        if is_mounted(self.dir.path()) {
            let _ = Command::new(PROGRAM).arg("umount").arg(self.mountpoint()).output();
        }
        cut(self.dir.path());
        drop(self.done.take());
        if let Some(watchdog) = self.watchdog.take() {
            let _ = watchdog.join();
        }
        if self.late.load(Ordering::SeqCst) && !std::thread::panicking() {
            panic!("the test took too long and its mount was cut");
        }
    }
}

/// Runs a command, which must succeed.
pub fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| {
        panic!("cannot run {command:?}: {error}");
    });
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Tries until it is not busy: a process that another test is just starting holds, until it
/// executes its program, what was open here when it was forked.
pub fn settled<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    for _ in 0..1000 {
        if let Some(done) = attempt() {
            return done;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("it stays busy");
}

/// Runs a line of the shell in `dir`, which must succeed, and returns what it prints.
pub fn shell(dir: &Path, line: &str) -> String {
    let output = run(Command::new("sh").arg("-euc").arg(line).current_dir(dir));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Fails with the name of the package unless the program is installed.
pub fn need(program: &str, package: &str) {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|dir| dir.join(program).is_file());
    assert!(found, "this test needs {program}: apt-get install {package}");
}

/// The number behind a random sequence: PYRAMIDFS_SEED, or 1.
pub fn seed() -> u64 {
    std::env::var("PYRAMIDFS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// A small generator of numbers (splitmix64).
#[derive(Clone)]
pub struct Numbers(pub u64);

impl Numbers {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// One of `items`.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// What [`write_random`] writes with this seed.
    pub fn stream(mut self, count: usize) -> Vec<u8> {
        self.bytes(count)
    }

    /// Bytes that nothing can compress.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        for piece in bytes.chunks_mut(8) {
            piece.copy_from_slice(&self.next().to_le_bytes()[..piece.len()]);
        }
        bytes
    }
}

/// Writes `count` incompressible bytes into a new file.
pub fn write_random(path: &Path, seed: u64, count: u64) {
    let mut numbers = Numbers(seed);
    let mut file = fs::File::create(path).unwrap();
    let mut left = count;
    while left > 0 {
        let step = left.min(1 << 20);
        file.write_all(&numbers.bytes(step as usize)).unwrap();
        left -= step;
    }
}

/// The errno number of a failure.
pub fn errno_of<T>(result: std::io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    }
}

/// Where sites are made: where PYRAMIDFS_TEST_DIR says, or in memory if there is room.
pub fn base() -> PathBuf {
    if let Some(dir) = std::env::var_os("PYRAMIDFS_TEST_DIR") {
        return dir.into();
    }
    let memory = Path::new("/dev/shm");
    match statfs(memory) {
        Ok(found)
            if found.filesystem_type() == TMPFS_MAGIC
                && ROOM_BYTES <= found.blocks_available() * found.block_size() as u64 =>
        {
            memory.to_owned()
        }
        _ => std::env::temp_dir(),
    }
}

/// The mountpoints below `dir` with their minor numbers, topmost first.
fn mounts_below(dir: &Path) -> Vec<(String, PathBuf)> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<(String, PathBuf)> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(2);
            let minor = words.next()?.split(':').nth(1)?.to_owned();
            let mountpoint = PathBuf::from(words.nth(1)?);
            mountpoint.starts_with(dir).then_some((minor, mountpoint))
        })
        .collect();
    found.reverse();
    found
}

/// Whether anything is mounted below `dir`.
pub fn is_mounted(dir: &Path) -> bool {
    !mounts_below(dir).is_empty()
}

/// Takes away what is mounted below `dir`, without asking it, and kills its daemons.
fn cut(dir: &Path) {
    for (minor, mountpoint) in mounts_below(dir) {
        let _ = fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1");
        // The same, where the control filesystem is not mounted.
        let _ = umount2(&mountpoint, MntFlags::MNT_FORCE | MntFlags::UMOUNT_NOFOLLOW);
        let _ = umount2(&mountpoint, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
    kill_all(&daemons(dir));
}

/// Kills processes and waits until each is gone.
fn kill_all(pids: &[i32]) {
    for &pid in pids {
        // SAFETY: pidfd_open takes two numbers and touches no memory of ours.
        let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as i32;
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        if process >= 0 {
            let mut watched = libc::pollfd { fd: process, events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd, as the count says; the descriptor is ours to close.
            unsafe {
                libc::poll(&mut watched, 1, 20_000);
                libc::close(process);
            }
        }
    }
}

/// The processes of the program under test that name a path below `dir`: its daemons.
pub fn daemons(dir: &Path) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = words.split(|&byte| byte == 0).map(OsStr::from_bytes);
            words.next().and_then(|word| Path::new(word).file_name())
                == Path::new(PROGRAM).file_name()
                && words.next() == Some(OsStr::new("mount"))
                && words.any(|word| Path::new(word).starts_with(dir))
        })
        .collect()
}

#[test]
fn a_mount_that_hangs_fails_its_test_and_is_cut() {
    let dir = std::sync::Mutex::new(PathBuf::new());
    let failed = std::panic::catch_unwind(|| {
        let site = Site::within(Duration::from_secs(2));
        *dir.lock().unwrap() = site.path("");
        site.ok(["mkfs".as_ref(), site.volume().as_os_str()]);
        site.mount();
        let pid = Pid::from_raw(daemons(&site.volume())[0]);
        kill(pid, Signal::SIGSTOP).unwrap();
        assert_ne!(errno_of(fs::create_dir(site.at("new"))), 0);
    });
    assert!(failed.is_err(), "the test that hung has not failed");
    let dir = dir.into_inner().unwrap();
    assert!(!is_mounted(&dir) && daemons(&dir).is_empty() && !dir.exists());
}
