//! `pyramidfs mount`: starts the daemon and waits until the mount answers.
//!
//! The program starts itself a second time as the daemon, with one end of a pipe (`--ready-fd`).
//! The daemon writes one line into it: that it is ready, or why it is not.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, statfs};
use nix::unistd::pipe2;

use super::error::Error;
use super::options::{self, Options};
use super::progress::Progress;
use super::{FINE, Outcome, daemon};

/// What the daemon says when it is ready.
const READY: &str = "ready";
/// What it says in front of an error.
const ERROR: &str = "error: ";

/// Arguments of `mount`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Directory of the volume
    pub volume: PathBuf,
    /// Where to mount it: an existing directory
    pub mountpoint: PathBuf,
    /// Options as in fstab: ro, allow_other, nosuid, nodev, noexec, sync, cache=SIZE,
    /// index_memory=SIZE, commit=SECONDS, log=FILE
    #[arg(short, value_name = "OPTIONS", value_parser = options::parse)]
    pub options: Vec<Options>,
    /// Make the volume if there is none
    #[arg(long)]
    pub create: bool,
    /// Stay in the foreground
    #[arg(long)]
    pub foreground: bool,
    /// Refuse all changes; neither lock nor socket is needed
    #[arg(long)]
    pub read_only: bool,
    /// Memory for data, as 96MiB
    #[arg(long, value_name = "SIZE", value_parser = options::parse_size)]
    pub cache: Option<u64>,
    /// Memory for the index of chunks, as 96MiB
    #[arg(long, value_name = "SIZE", value_parser = options::parse_size)]
    pub index_memory: Option<u64>,
    /// Where the daemon says that it is ready
    #[arg(long, hide = true, value_name = "NUMBER")]
    pub ready_fd: Option<RawFd>,
}

impl Arguments {
    /// All options in one: what has a flag of its own wins over `-o`.
    pub fn merged(&self) -> Options {
        let mut all = Options::default();
        self.options.iter().for_each(|options| all.merge(options));
        all.merge(&Options {
            read_only: self.read_only.then_some(true),
            cache_bytes: self.cache,
            index_memory_bytes: self.index_memory,
            ..Options::default()
        });
        all
    }
}

/// Runs the command, or the daemon.
pub fn run(arguments: &Arguments) -> Outcome {
    match arguments.ready_fd {
        Some(number) => run_daemon(arguments, number),
        None if arguments.foreground => daemon::serve(arguments, || Ok(())),
        None => start(arguments),
    }
}

/// The daemon's end of the pipe.
fn run_daemon(arguments: &Arguments, number: RawFd) -> Outcome {
    if number <= 2 {
        return Err(Error::Daemon(io::ErrorKind::InvalidInput.into()));
    }
    // SAFETY: the number was passed by the process that started this one, for this only use; the
    // standard streams were ruled out above, and nothing else is open yet.
    let mut pipe = File::from(unsafe { OwnedFd::from_raw_fd(number) });
    // Not passed on to what the daemon itself starts.
    let _ = fcntl(&pipe, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    // Fails only for the leader of a session, which is what it should become.
    let _ = nix::unistd::setsid();
    let mut told = false;
    let outcome = open_log(arguments).and_then(|log| {
        daemon::serve(arguments, || {
            told = true;
            nix::unistd::dup2_stderr(log.as_fd())?;
            writeln!(pipe, "{READY}")
        })
    });
    if let (Err(error), false) = (&outcome, told) {
        // The line is printed by the process that waits; without one nobody reads it.
        let _ = writeln!(pipe, "{ERROR}{}", error.line());
        return Ok(super::FAILED);
    }
    outcome
}

/// Where log lines go once the mount is ready: the log, or nowhere.
fn open_log(arguments: &Arguments) -> Result<File, Error> {
    let path = arguments.merged().log.unwrap_or(PathBuf::from("/dev/null"));
    File::options().create(true).append(true).open(&path).map_err(|source| Error::Path {
        action: "open the log",
        path,
        source,
    })
}

/// Starts the daemon and waits for its word.
fn start(arguments: &Arguments) -> Outcome {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| Error::Daemon(errno.into()))?;
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))
        .map_err(|errno| Error::Daemon(errno.into()))?;
    let mut daemon = Command::new(program())
        .args(super::log::arguments().iter().skip(1))
        .arg("--ready-fd")
        .arg(theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(Error::Daemon)?;
    drop(theirs);
    let said = listen(ours).map_err(Error::Daemon)?;
    match said.trim_end().strip_prefix(ERROR) {
        None if said.trim_end() == READY => answers(&arguments.mountpoint),
        Some(error) => Err(Error::Reported(error.to_owned())),
        None => {
            let status = daemon.wait().map_err(Error::Daemon)?;
            Err(Error::Daemon(io::Error::other(format!("it ended with {status}"))))
        }
    }
}

/// This program: under its own name, as that is what lists of processes show, if it is still there.
fn program() -> PathBuf {
    std::env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .unwrap_or(PathBuf::from("/proc/self/exe"))
}

/// Reads what the daemon says until it closes the pipe, which it does right after its line.
fn listen(pipe: OwnedFd) -> io::Result<String> {
    let mut line = Vec::new();
    let mut pipe = File::from(pipe);
    let mut progress = Progress::start(true);
    let mut byte = [0_u8; 1];
    // Recovery may take a while: the wait shows itself, in steps of what poll(2) allows.
    while line.last() != Some(&b'\n') {
        if !readable(&pipe)? {
            progress.wait("opening the volume");
        } else if pipe.read(&mut byte)? == 0 {
            break;
        } else {
            line.extend_from_slice(&byte);
        }
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

fn readable(pipe: &File) -> io::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut watched = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    match poll(&mut watched, PollTimeout::from(500_u16)) {
        Ok(count) => Ok(count > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Asks the mount from this side, as its users will.
fn answers(mountpoint: &Path) -> Outcome {
    let failed = |source| Error::Path { action: "use", path: mountpoint.to_owned(), source };
    let found = statfs(mountpoint).map_err(|errno| failed(errno.into()))?;
    if found.filesystem_type() != FUSE_SUPER_MAGIC {
        return Err(Error::NotMounted(mountpoint.to_owned()));
    }
    Ok(FINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_list() {
        let arguments = Arguments {
            volume: PathBuf::from("/v"),
            mountpoint: PathBuf::from("/m"),
            options: vec![options::parse("rw,cache=8MiB,commit=9").unwrap()],
            create: false,
            foreground: false,
            read_only: true,
            cache: Some(4 << 20),
            index_memory: None,
            ready_fd: None,
        };
        let merged = arguments.merged();
        assert_eq!(merged.read_only, Some(true));
        assert_eq!(merged.cache_bytes, Some(4 << 20));
        assert_eq!(merged.commit_interval.map(|interval| interval.as_secs()), Some(9));
    }

    #[test]
    fn the_word_of_the_daemon() {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).unwrap();
        File::from(theirs).write_all("error: n\u{f6}\n".as_bytes()).unwrap();
        assert_eq!(listen(ours).unwrap(), "error: n\u{f6}\n");
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).unwrap();
        drop(theirs);
        assert_eq!(listen(ours).unwrap(), "");
    }
}
