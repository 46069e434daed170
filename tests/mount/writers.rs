//! Processes that write and say what they were told is durable; the test keeps the account.
//!
//! Each is this test binary once more ([`a_writer`]). It tells over a pipe which bytes of which
//! file are acknowledged, by fsync, by O_SYNC or O_DSYNC, or by the sync of a directory after a
//! rename, so that the account survives whatever happens to the mount.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::harness::Numbers;

/// The variable that tells a writer where, which of them it is, and how many bytes.
const WORK: &str = "PYRAMIDFS_TEST_WRITER";
/// In front of each line of the account.
const MARK: &str = "acknowledged ";

/// Bytes that were acknowledged: they stand at `from` of `path` and come from `seed`.
pub struct Claim {
    pub path: PathBuf,
    pub from: u64,
    pub len: u64,
    seed: u64,
}

impl Claim {
    fn parse(dir: &Path, line: &str) -> Option<Claim> {
        let mut words = line.split(MARK).nth(1)?.split(' ');
        let path = dir.join(words.next()?);
        let mut number = || words.next()?.trim().parse().ok();
        Some(Claim { path, from: number()?, len: number()?, seed: number()? })
    }

    /// Fails unless the bytes are there.
    pub fn verify(&self) {
        let mut found = vec![0; self.len as usize];
        let read =
            File::open(&self.path).and_then(|file| file.read_exact_at(&mut found, self.from));
        let place = format!("{} at {}", self.path.display(), self.from);
        read.unwrap_or_else(|error| panic!("{place}: acknowledged, and now {error}"));
        assert!(found == Numbers(self.seed).bytes(found.len()), "{place}: other bytes");
    }
}

/// Writers that are at work.
pub struct Writers {
    children: Vec<Child>,
    readers: Vec<JoinHandle<()>>,
    told: Receiver<Claim>,
}

impl Writers {
    /// Starts `count` of them in `dir`, to write `bytes` each; `command` makes the one that runs a
    /// program.
    pub fn start(
        dir: &Path,
        count: u64,
        bytes: u64,
        round: u64,
        command: impl Fn(OsString) -> Command,
    ) -> Writers {
        let (tell, told) = channel();
        let (mut children, mut readers) = (Vec::new(), Vec::new());
        for number in 0..count {
            let mut command = command(std::env::current_exe().unwrap().into());
            command.args(["--exact", "writers::a_writer", "--nocapture"]);
            command.env(WORK, format!("{} {number} {bytes} {round}", dir.display()));
            command.stdin(Stdio::null()).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let (tell, dir) = (tell.clone(), dir.to_owned());
            readers.push(std::thread::spawn(move || {
                let claims = lines.map_while(Result::ok);
                claims.filter_map(|line| Claim::parse(&dir, &line)).for_each(|claim| {
                    let _ = tell.send(claim);
                });
            }));
            children.push(child);
        }
        Writers { children, readers, told }
    }

    /// The next claim; none when all writers have ended. Fails when there is none for so long.
    pub fn next(&self, stall: Duration) -> Option<Claim> {
        match self.told.recv_timeout(stall) {
            Ok(claim) => Some(claim),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no writer has got on for {stall:?}"),
        }
    }

    /// Waits until all have ended: how many did all their work, and what was still acknowledged.
    pub fn finish(mut self) -> (usize, Vec<Claim>) {
        let ended = self.children.iter_mut().filter_map(|child| child.wait().ok());
        let done = ended.filter(|status| status.success()).count();
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        (done, self.told.try_iter().collect())
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        for child in &mut self.children {
            if matches!(child.try_wait(), Ok(None)) {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// Does nothing unless it is started by [`Writers::start`].
#[test]
fn a_writer() {
    let Ok(work) = std::env::var(WORK) else { return };
    let words: Vec<&str> = work.split(' ').collect();
    let number = |at: usize| words[at].parse::<u64>().unwrap();
    let (dir, who, bytes, round) = (Path::new(words[0]), number(1), number(2), number(3));
    let mut writer = Writer { dir, who, round, left: bytes, numbers: Numbers(who * 1000 + round) };
    let done = match who % 4 {
        0 => writer.replace_files(),
        1 => writer.append(libc::O_DSYNC, 64 << 10, 0),
        2 => writer.append(libc::O_SYNC, 300 << 10, 0),
        // The kernel has to hold much of it back for a while.
        _ => writer.append(0, 1 << 20, 16),
    };
    std::process::exit(i32::from(done.is_err()));
}

struct Writer<'a> {
    dir: &'a Path,
    who: u64,
    round: u64,
    left: u64,
    numbers: Numbers,
}

impl Writer<'_> {
    /// Tells what is durable now. Whoever reads it may be gone: then there is nothing more to do.
    fn tell(&self, name: &str, from: u64, len: u64, seed: u64) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{MARK}{name} {from} {len} {seed}")
    }

    fn take(&mut self, most: u64) -> Option<u64> {
        let len = (1 + self.numbers.below(most)).min(self.left);
        self.left -= len;
        (len > 0).then_some(len)
    }

    /// Files that are written aside, synced, renamed into a directory of their own, and that one
    /// synced.
    fn replace_files(&mut self) -> io::Result<()> {
        for count in 0.. {
            let Some(len) = self.take(2 << 20) else { break };
            let dir = format!("{}-{}-dir-{}", self.who, self.round, count / 8);
            let _ = fs::create_dir(self.dir.join(&dir));
            let (aside, seed) = (self.dir.join(format!("{}-aside", self.who)), self.numbers.next());
            let mut file = File::create(&aside)?;
            file.write_all(&Numbers(seed).bytes(len as usize))?;
            file.sync_all()?;
            let name = format!("{dir}/file-{count}");
            fs::rename(&aside, self.dir.join(&name))?;
            File::open(self.dir.join(&dir))?.sync_all()?;
            self.tell(&name, 0, len, seed)?;
        }
        Ok(())
    }

    /// One file that grows; with `batch`, so many writes are synced together.
    fn append(&mut self, flags: i32, most: u64, batch: usize) -> io::Result<()> {
        let name = format!("{}-{}-grows", self.who, self.round);
        let (path, mut at) = (self.dir.join(&name), 0);
        let mut file =
            OpenOptions::new().create(true).append(true).custom_flags(flags).open(path)?;
        let mut loose = Vec::new();
        loop {
            let len = self.take(most);
            if let Some(len) = len {
                let seed = self.numbers.next();
                file.write_all(&Numbers(seed).bytes(len as usize))?;
                loose.push((at, len, seed));
                at += len;
            }
            if loose.len() >= batch || len.is_none() {
                if batch > 0 {
                    file.sync_data()?;
                }
                for (from, len, seed) in loose.drain(..) {
                    self.tell(&name, from, len, seed)?;
                }
            }
            if len.is_none() {
                return Ok(());
            }
        }
    }
}
