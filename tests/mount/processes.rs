//! Several processes at one file: appends, locks, mappings, pipes, sockets, direct I/O.
//!
//! Children are forked and use bare system calls only, as the test's own process has threads.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use super::harness::{Numbers, Site, errno_of, need, run, shell};

const BOTH: i32 = libc::PROT_READ | libc::PROT_WRITE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const PAGE: usize = 4096;

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// A forked process that ends with what `work` returns. `work` may make system calls, and no more.
struct Child(i32);

impl Child {
    fn fork(work: impl FnOnce() -> i32) -> Child {
        // SAFETY: the child makes system calls and ends; it takes no locks and allocates nothing.
        unsafe {
            match libc::fork() {
                0 => libc::_exit(work()),
                -1 => panic!("cannot fork"),
                pid => Child(pid),
            }
        }
    }

    /// The exit code, or 1000 and the number of the signal.
    fn wait(self) -> i32 {
        let mut status = 0;
        // SAFETY: the status lives until the call returns.
        assert_eq!(unsafe { libc::waitpid(self.0, &raw mut status, 0) }, self.0);
        match libc::WIFEXITED(status) {
            true => libc::WEXITSTATUS(status),
            false => 1000 + libc::WTERMSIG(status),
        }
    }
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
    const RECORDS: usize = 150;
    let site = Site::mounted();
    let path = site.at("log");
    File::create(&path).unwrap();
    // Records of many lengths, over the borders of pages; the last byte tells the end.
    let record = |who: u8, number: usize| {
        let len = 3 + (number * 2_677 + usize::from(who) * 977) % 10_000;
        let mut bytes = vec![who; len];
        bytes[0] = b'>';
        bytes[len - 1] = b'\n';
        bytes
    };
    let children: Vec<Child> = b"abcd"
        .iter()
        .map(|&who| {
            let records: Vec<Vec<u8>> = (0..RECORDS).map(|number| record(who, number)).collect();
            let flags = if who == b'd' { libc::O_SYNC } else { 0 };
            let file = OpenOptions::new().append(true).custom_flags(flags).open(&path).unwrap();
            Child::fork(move || {
                for bytes in &records {
                    // SAFETY: the buffer has that many bytes.
                    let count = unsafe {
                        libc::write(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len())
                    };
                    if count != bytes.len() as isize {
                        return 1;
                    }
                }
                0
            })
        })
        .collect();
    assert!(children.into_iter().all(|child| child.wait() == 0));
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
    let child = Child::fork(|| {
        let fd = file.as_raw_fd();
        let mut bytes = [0u8; 2];
        // SAFETY: buffers of the told lengths.
        unsafe {
            libc::pread(fd, bytes.as_mut_ptr().cast(), 2, PAGE as i64 + 5);
            libc::pwrite(fd, b"written".as_ptr().cast(), 7, 3 * PAGE as i64 - 3);
        }
        // Through its own mapping, which is the same.
        mapping.set(2, 8);
        i32::from(bytes != [9, 7])
    });
    assert_eq!(child.wait(), 0);
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
    let child = Child::fork(|| i32::from(mapping.get(6 * PAGE)));
    assert_eq!(child.wait(), 1000 + libc::SIGBUS, "a page behind the end");
    file.set_len(8 * PAGE as u64).unwrap();
    assert_eq!([mapping.get(5 * PAGE + 20), mapping.get(7 * PAGE)], [0, 0]);
    mapping.set(7 * PAGE, 4);
    let mut wanted = vec![7; 8 * PAGE];
    wanted[2] = 8;
    wanted[3 * PAGE - 3..3 * PAGE + 4].copy_from_slice(b"written");
    wanted[PAGE + 100..PAGE + 8100].fill(0);
    wanted[2 * PAGE] = 5;
    wanted[5 * PAGE + 10..].fill(0);
    wanted[7 * PAGE] = 4;
    assert!(fs::read(site.at("file")).unwrap() == wanted);
    drop((mapping, file));
    site.remount();
    assert!(fs::read(site.at("file")).unwrap() == wanted);
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
    let (file, again) = (open(&site.at("file")), open(&site.at("file")));
    let child =
        |command, kind, start, len| Child::fork(|| lock(&again, command, kind, start, len)).wait();
    let (read, write) = (libc::F_RDLCK, libc::F_WRLCK);
    for set in [libc::F_SETLK, libc::F_OFD_SETLK] {
        assert_eq!(lock(&file, set, write, 100, 50), 0);
        assert_eq!(lock(&file, set, read, 200, 50), 0);
        // Another process, by either kind of lock; and it does not matter where the file ends.
        for other in [libc::F_SETLK, libc::F_OFD_SETLK] {
            assert_eq!(child(other, write, 149, 1), libc::EAGAIN);
            assert_eq!(child(other, read, 0, 0), libc::EAGAIN);
            assert_eq!(child(other, write, 150, 50), 0);
            assert_eq!(child(other, read, 220, 5), 0);
            assert_eq!(child(other, write, 220, 5), libc::EAGAIN);
            lock(&again, libc::F_OFD_SETLK, libc::F_UNLCK, 0, 0);
        }
        assert_eq!(lock(&file, set, libc::F_UNLCK, 120, 10), 0);
        assert_eq!(child(libc::F_SETLK, write, 120, 10), 0);
        assert_eq!(child(libc::F_SETLK, write, 120, 11), libc::EAGAIN);
        assert_eq!(lock(&file, set, libc::F_UNLCK, 0, 0), 0);
    }
    // Who waits gets the lock when it is given back.
    assert_eq!(lock(&file, libc::F_OFD_SETLK, write, 0, 0), 0);
    let waiter = Child::fork(|| lock(&again, libc::F_OFD_SETLKW, write, 0, 0));
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(lock(&file, libc::F_OFD_SETLK, libc::F_UNLCK, 0, 0), 0);
    assert_eq!(waiter.wait(), 0);
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
    // The lock goes with the last handle, whoever has it: here a process that ends.
    let copy = two.try_clone().unwrap();
    let child = Child::fork(move || i32::from(copy.as_raw_fd() < 0));
    drop(two);
    assert_eq!(child.wait(), 0);
    one.try_lock().unwrap_or_else(|_| panic!("the lock of closed handles is still held"));
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
    let refused = UnixStream::connect(site.at("renamed"));
    assert_eq!(errno_of(refused), libc::ECONNREFUSED);
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
