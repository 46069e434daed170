//! Several processes at one file: appends, locks, mappings, pipes, sockets, direct I/O.
//!
//! Another process is this test binary once more: [`the_other_process`] then does what its
//! environment says. A process that was only forked would hold the files of all tests that run
//! beside it.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::harness::{Numbers, Site, errno_of, need, run, shell};

const BOTH: i32 = libc::PROT_READ | libc::PROT_WRITE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const PAGE: usize = 4096;

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// The variable that tells what another process is to do.
const WORK: &str = "PYRAMIDFS_TEST_WORK";
/// The records that each process appends.
const RECORDS: usize = 150;

/// Starts another process.
fn start(work: &str, path: &Path, numbers: &[i64]) -> Child {
    let numbers: Vec<String> = numbers.iter().map(i64::to_string).collect();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "processes::the_other_process", "--nocapture"]);
    command.env(WORK, format!("{work} {} {}", path.display(), numbers.join(" ")));
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

/// Starts another process and waits: its exit code, or 1000 and the number of the signal.
fn other(work: &str, path: &Path, numbers: &[i64]) -> i32 {
    let status = start(work, path, numbers).wait().unwrap();
    status.code().or(status.signal().map(|signal| 1000 + signal)).unwrap()
}

/// Does nothing unless it is started by [`start`].
#[test]
fn the_other_process() {
    let Ok(work) = std::env::var(WORK) else { return };
    let mut words = work.split_whitespace();
    let (work, path) = (words.next().unwrap(), Path::new(words.next().unwrap()));
    let numbers: Vec<i64> = words.map(|word| word.parse().unwrap()).collect();
    let code = match work {
        "append" => append(path, numbers[0] as u8),
        "map" => map_and_write(path),
        "look" => i32::from(Mapping::new(&open(path), 8 * PAGE).get(numbers[0] as usize)),
        _ => lock(&open(path), numbers[0] as i32, numbers[1] as i32, numbers[2], numbers[3]),
    };
    std::process::exit(code);
}

/// Of many lengths, over the borders of pages; the last byte tells the end.
fn record(who: u8, number: usize) -> Vec<u8> {
    let len = 3 + (number * 2_677 + usize::from(who) * 977) % 10_000;
    let mut bytes = vec![who; len];
    bytes[0] = b'>';
    bytes[len - 1] = b'\n';
    bytes
}

fn append(path: &Path, who: u8) -> i32 {
    let flags = if who == b'd' { libc::O_SYNC } else { 0 };
    let mut file = OpenOptions::new().append(true).custom_flags(flags).open(path).unwrap();
    for number in 0..RECORDS {
        let bytes = record(who, number);
        assert_eq!(file.write(&bytes).unwrap(), bytes.len());
    }
    0
}

/// Sees what the first process has put into its mapping, writes, and puts something in itself.
fn map_and_write(path: &Path) -> i32 {
    let file = open(path);
    let mut bytes = [0; 2];
    file.read_exact_at(&mut bytes, PAGE as u64 + 5).unwrap();
    file.write_all_at(b"written", 3 * PAGE as u64 - 3).unwrap();
    Mapping::new(&file, 8 * PAGE).set(2, 8);
    i32::from(bytes != [9, 7])
}

/// Whether it holds soon: processes that other tests start have this one's files for a moment.
fn soon(what: impl Fn() -> bool) -> bool {
    (0..1000).any(|_| {
        let holds = what();
        if !holds {
            std::thread::sleep(Duration::from_millis(5));
        }
        holds
    })
}

/// A shared mapping of the first `len` bytes of a file.
struct Mapping {
    address: *mut u8,
    len: usize,
}

impl Mapping {
    fn new(file: &File, len: usize) -> Mapping {
        let (null, fd) = (std::ptr::null_mut(), file.as_raw_fd());
        // SAFETY: a fresh mapping, of which only the methods below make use.
        let address = unsafe { libc::mmap(null, len, BOTH, libc::MAP_SHARED, fd, 0) };
        assert_ne!(address, libc::MAP_FAILED);
        Mapping { address: address.cast(), len }
    }

    fn get(&self, at: usize) -> u8 {
        assert!(at < self.len);
        // SAFETY: within the mapping; others may change the byte, so it is read as it is now.
        unsafe { self.address.add(at).read_volatile() }
    }

    fn set(&self, at: usize, byte: u8) {
        assert!(at < self.len);
        // SAFETY: within the mapping.
        unsafe { self.address.add(at).write_volatile(byte) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { libc::munmap(self.address.cast(), self.len) };
    }
}

#[test]
fn records_that_processes_append_are_whole() {
    let site = Site::mounted();
    let path = site.at("log");
    File::create(&path).unwrap();
    let children: Vec<Child> =
        b"abcd".iter().map(|&who| start("append", &path, &[who.into()])).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let verify = || {
        let log = fs::read(&path).unwrap();
        let mut counts = [0; 4];
        for found in log.split_inclusive(|&byte| byte == b'\n') {
            let who = found[1];
            let number = &mut counts[usize::from(who - b'a')];
            assert!(found == record(who, *number), "record {number} of {}", char::from(who));
            *number += 1;
        }
        assert_eq!(counts, [RECORDS; 4]);
    };
    verify();
    site.remount();
    verify();
    site.umount_and_check();
}

#[test]
fn processes_share_a_mapping_with_writes_and_cuts() {
    let site = Site::mounted();
    let file = open(&site.at("file"));
    file.write_all_at(&[7; 8 * PAGE], 0).unwrap();
    let mapping = Mapping::new(&file, 8 * PAGE);
    // Another process's write is seen here, and what is put here is seen by its read.
    mapping.set(PAGE + 5, 9);
    assert_eq!(other("map", &site.at("file"), &[]), 0);
    let seen: Vec<u8> = (0..7).map(|n| mapping.get(3 * PAGE - 3 + n)).collect();
    assert_eq!((seen.as_slice(), mapping.get(2)), (&b"written"[..], 8));
    // A punch shows zeros, a cut and a growth too, and what is put in afterwards stays.
    // SAFETY: the call touches no memory of ours.
    let punched = unsafe { libc::fallocate(file.as_raw_fd(), PUNCH, 4096 + 100, 8000) };
    assert_eq!(punched, 0);
    assert_eq!([mapping.get(PAGE + 99), mapping.get(PAGE + 100)], [7, 0]);
    assert_eq!([mapping.get(PAGE + 8099), mapping.get(PAGE + 8100)], [0, 7]);
    mapping.set(2 * PAGE, 5);
    file.set_len(5 * PAGE as u64 + 10).unwrap();
    assert_eq!([mapping.get(5 * PAGE + 9), mapping.get(5 * PAGE + 10)], [7, 0]);
    let behind = other("look", &site.at("file"), &[6 * PAGE as i64]);
    assert_eq!(behind, 1000 + libc::SIGBUS, "a page behind the end");
    file.set_len(8 * PAGE as u64).unwrap();
    assert_eq!([mapping.get(5 * PAGE + 20), mapping.get(7 * PAGE)], [0, 0]);
    mapping.set(7 * PAGE, 4);
    let mut wanted = vec![7; 8 * PAGE];
    wanted[2] = 8;
    wanted[PAGE + 5] = 9;
    wanted[3 * PAGE - 3..3 * PAGE + 4].copy_from_slice(b"written");
    wanted[PAGE + 100..PAGE + 8100].fill(0);
    wanted[2 * PAGE] = 5;
    wanted[5 * PAGE + 10..].fill(0);
    wanted[7 * PAGE] = 4;
    let verify = || {
        let found = fs::read(site.at("file")).unwrap();
        let wrong = found.iter().zip(&wanted).position(|(one, other)| one != other);
        assert_eq!((found.len(), wrong), (wanted.len(), None));
    };
    verify();
    drop((mapping, file));
    site.remount();
    verify();
    site.umount_and_check();
}

/// Bytes that begin on a page, as direct I/O wants them.
struct Aligned(Vec<u8>, usize);

impl Aligned {
    fn new(len: usize) -> Aligned {
        let room = vec![0; len + PAGE];
        let start = room.as_ptr().align_offset(PAGE);
        Aligned(room, start)
    }

    fn bytes(&mut self, from: usize, len: usize) -> &mut [u8] {
        &mut self.0[self.1 + from..self.1 + from + len]
    }
}

#[test]
fn direct_io_agrees_with_the_page_cache() {
    let site = Site::mounted();
    let path = site.at("file");
    let mut wanted = Numbers(3).bytes(64 * PAGE + 777);
    fs::write(&path, &wanted).unwrap();
    let buffered = open(&path);
    let flags = libc::O_DIRECT;
    let direct = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path).unwrap();
    let mapping = Mapping::new(&buffered, 64 * PAGE);
    let mut numbers = Numbers(4);
    let mut room = Aligned::new(9 * PAGE);
    for turn in 0..200 {
        // Half of them at borders of pages, the others anywhere.
        let unit = if turn % 2 == 0 { PAGE } else { 1 };
        let at = numbers.below((56 * PAGE / unit) as u64) as usize * unit;
        let len = (1 + numbers.below((8 * PAGE / unit) as u64 - 1) as usize) * unit;
        let new = numbers.bytes(len);
        match numbers.below(5) {
            0 => {
                buffered.write_all_at(&new, at as u64).unwrap();
                wanted[at..at + len].copy_from_slice(&new);
            }
            1 => {
                new.iter().enumerate().for_each(|(n, &byte)| mapping.set(at + n, byte));
                wanted[at..at + len].copy_from_slice(&new);
            }
            2 => {
                let bytes = room.bytes(at % PAGE, len);
                bytes.copy_from_slice(&new);
                direct.write_all_at(bytes, at as u64).unwrap();
                wanted[at..at + len].copy_from_slice(&new);
            }
            3 => {
                let bytes = room.bytes(at % PAGE, len);
                direct.read_exact_at(bytes, at as u64).unwrap();
                assert!(bytes == &wanted[at..at + len], "a direct read in turn {turn}");
            }
            _ => {
                assert!((at..at + len).all(|n| mapping.get(n) == wanted[n]), "turn {turn}");
                let mut bytes = vec![0; len];
                buffered.read_exact_at(&mut bytes, at as u64).unwrap();
                assert!(bytes == wanted[at..at + len], "a read in turn {turn}");
            }
        }
    }
    // Over the end, to it, and behind it.
    let end = wanted.len() as u64;
    let bytes = room.bytes(0, 2 * PAGE);
    assert_eq!(direct.read_at(bytes, end - 777).unwrap(), 777);
    assert_eq!(direct.read_at(bytes, end + 5).unwrap(), 0);
    bytes.fill(6);
    direct.write_all_at(bytes, 70 * PAGE as u64).unwrap();
    wanted.resize(70 * PAGE, 0);
    wanted.resize(72 * PAGE, 6);
    let mut appender = OpenOptions::new().append(true).custom_flags(flags).open(&path).unwrap();
    appender.write_all(room.bytes(0, PAGE)).unwrap();
    wanted.resize(73 * PAGE, 6);
    drop((mapping, appender, direct));
    assert!(fs::read(&path).unwrap() == wanted);
    drop(buffered);
    site.remount();
    assert!(fs::read(&path).unwrap() == wanted);
    site.umount_and_check();
}

/// Asks for a lock of `fcntl`; answers 0 or the errno number.
fn lock(file: &File, command: i32, kind: i32, start: i64, len: i64) -> i32 {
    // SAFETY: zeros are a lock; it lives until the call returns.
    let mut what: libc::flock = unsafe { std::mem::zeroed() };
    what.l_type = kind as i16;
    what.l_whence = libc::SEEK_SET as i16;
    (what.l_start, what.l_len) = (start, len);
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut what) } {
        -1 => io::Error::last_os_error().raw_os_error().unwrap_or(-1),
        _ => 0,
    }
}

#[test]
fn locks_of_ranges_hold_between_processes() {
    let site = Site::mounted();
    let path = site.at("file");
    let file = open(&path);
    let child = |command: i32, kind: i32, start, len| {
        other("lock", &path, &[command.into(), kind.into(), start, len])
    };
    let (read, write) = (libc::F_RDLCK, libc::F_WRLCK);
    for set in [libc::F_SETLK, libc::F_OFD_SETLK] {
        assert_eq!(lock(&file, set, write, 100, 50), 0);
        assert_eq!(lock(&file, set, read, 200, 50), 0);
        // Another process, by either kind of lock; and it does not matter where the file ends.
        for theirs in [libc::F_SETLK, libc::F_OFD_SETLK] {
            assert_eq!(child(theirs, write, 149, 1), libc::EAGAIN);
            assert_eq!(child(theirs, read, 0, 0), libc::EAGAIN);
            assert_eq!(child(theirs, write, 150, 50), 0);
            assert_eq!(child(theirs, read, 220, 5), 0);
            assert_eq!(child(theirs, write, 220, 5), libc::EAGAIN);
        }
        assert_eq!(lock(&file, set, libc::F_UNLCK, 120, 10), 0);
        assert_eq!(child(libc::F_SETLK, write, 120, 10), 0);
        assert_eq!(child(libc::F_SETLK, write, 120, 11), libc::EAGAIN);
        assert_eq!(lock(&file, set, libc::F_UNLCK, 0, 0), 0);
    }
    // Who waits gets the lock when it is given back.
    assert_eq!(lock(&file, libc::F_OFD_SETLK, write, 0, 0), 0);
    let mut waiter = start("lock", &path, &[libc::F_OFD_SETLKW.into(), write.into(), 0, 0]);
    std::thread::sleep(Duration::from_millis(50));
    assert!(waiter.try_wait().unwrap().is_none());
    assert_eq!(lock(&file, libc::F_OFD_SETLK, libc::F_UNLCK, 0, 0), 0);
    assert!(waiter.wait().unwrap().success());
}

#[test]
fn whole_file_locks_are_shared_or_not() {
    let site = Site::mounted();
    let [one, two] = [0, 1].map(|_| open(&site.at("file")));
    one.lock_shared().unwrap();
    two.try_lock_shared().unwrap();
    assert!(two.try_lock().is_err());
    one.unlock().unwrap();
    two.try_lock().unwrap();
    assert!(one.try_lock_shared().is_err());
    // The lock goes with the last handle, whoever has it.
    let mut holder = Command::new("cat");
    holder.arg("-").arg(site.at("pipe")).stdin(Stdio::from(two)).stdout(Stdio::null());
    let pipe = CString::new(site.at("pipe").as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is a string that lives until the call returns.
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
    let mut child = holder.spawn().unwrap();
    drop(holder);
    assert!(one.try_lock().is_err());
    // It ends when the pipe does.
    drop(OpenOptions::new().write(true).open(site.at("pipe")).unwrap());
    assert!(child.wait().unwrap().success());
    assert!(soon(|| one.try_lock().is_ok()), "the lock of closed handles is still held");
}

#[test]
fn pipes_and_sockets_join_processes() {
    let site = Site::mounted();
    let pipe = CString::new(site.at("pipe").as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is a string that lives until the call returns.
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
    let mut writer = Command::new("sh");
    writer.args(["-c", "seq 1 20000 > pipe"]).current_dir(site.mountpoint());
    let mut writer = writer.spawn().unwrap();
    let sum = shell(&site.mountpoint(), "awk '{ sum += $1 } END { print sum }' pipe");
    assert_eq!(sum.trim(), "200010000");
    assert!(writer.wait().unwrap().success());
    let flags = libc::O_NONBLOCK;
    let unread = OpenOptions::new().write(true).custom_flags(flags).open(site.at("pipe"));
    assert_eq!(errno_of(unread), libc::ENXIO);
    assert_eq!(fs::metadata(site.at("pipe")).unwrap().len(), 0);
    // A socket's name, by another name of it too, until nobody listens.
    let listener = UnixListener::bind(site.at("socket")).unwrap();
    fs::hard_link(site.at("socket"), site.at("other")).unwrap();
    fs::rename(site.at("socket"), site.at("renamed")).unwrap();
    let path = site.at("other");
    let client = std::thread::spawn(move || {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(b"question").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let (mut stream, _) = listener.accept().unwrap();
    let mut question = String::new();
    stream.read_to_string(&mut question).unwrap();
    stream.write_all(format!("{question} answered").as_bytes()).unwrap();
    drop(stream);
    assert_eq!(client.join().unwrap(), "question answered");
    drop(listener);
    let refused = || errno_of(UnixStream::connect(site.at("renamed"))) == libc::ECONNREFUSED;
    assert!(soon(refused), "a socket that nobody listens to takes connections");
    assert_eq!(errno_of(UnixListener::bind(site.at("renamed"))), libc::EADDRINUSE);
    assert_eq!(errno_of(File::open(site.at("renamed"))), libc::ENXIO);
}

/// The kernel holds bytes that the volume has not seen, and nobody has asked about them before.
#[test]
fn a_file_that_is_open_and_dirty_is_archived_whole() {
    need("rsync", "rsync");
    let site = Site::mounted();
    let bytes: Vec<u8> = (0..1_000_000u32).map(|number| (number % 251) as u8 + 1).collect();
    for (number, line) in [
        "tar --create --sparse --file=t.tar dirty && mkdir x && tar -C x -xf t.tar",
        "mkdir x && cp --sparse=always dirty x/dirty",
        "mkdir x && cp --sparse=auto dirty x/dirty",
        "mkdir x && rsync --sparse dirty x/dirty",
    ]
    .into_iter()
    .enumerate()
    {
        let dir = site.at(number.to_string());
        fs::create_dir(&dir).unwrap();
        let file = File::create(dir.join("dirty")).unwrap();
        file.set_len(20_000_000).unwrap();
        file.write_all_at(&bytes, 9_000_000).unwrap();
        shell(&dir, line);
        run(Command::new("cmp").arg(dir.join("dirty")).arg(dir.join("x/dirty")));
        drop(file);
    }
}
