//! `pyramidfs mount`: starts the daemon and waits until the mount answers.
//!
//! The program starts itself a second time as the daemon, with one end of a pipe (`--ready-fd`).
//! The daemon writes one line into it: that it is ready, or why it is not.
//!
//! Also what mount(8) calls under the name `mount.pyramidfs`, with flags of its own.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, statfs};
use nix::unistd::pipe2;

use super::error::Error;
use super::options::{self, Options};
use super::progress::Progress;
use super::{FINE, Outcome, daemon, place, remount};

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
    pub mountpoint: Option<PathBuf>,
    /// Options as in fstab: ro, allow_other, nosuid, nodev, noexec, sync, cache=SIZE,
    /// index_memory=SIZE, commit=SECONDS, check=TIME, check_rate=SIZE, log=FILE, subtype=none,
    /// snapshot=NAME, snapshots=hourly:24+daily:7+weekly:4;
    /// remount,ro and remount,rw
    #[arg(short, value_name = "OPTIONS", value_parser = Given::parse)]
    pub options: Vec<Given>,
    /// Make the volume if there is none
    #[arg(long)]
    pub create: bool,
    /// Stay in the foreground
    #[arg(long)]
    pub foreground: bool,
    /// Refuse all changes; no lock is needed
    #[arg(long)]
    pub read_only: bool,
    /// Memory for data, as 96MiB
    #[arg(long, value_name = "SIZE", value_parser = options::parse_size)]
    pub cache: Option<u64>,
    /// Memory for the index of chunks, as 96MiB
    #[arg(long, value_name = "SIZE", value_parser = options::parse_size)]
    pub index_memory: Option<u64>,
    /// Type in /proc/mounts: fuse.pyramidfs, or plain fuse
    #[arg(short = 't', value_name = "TYPE", value_parser = options::parse_type)]
    pub subtype: Option<bool>,
    /// Of mount(8): take unknown options for good
    #[arg(short, hide = true)]
    pub sloppy: bool,
    /// Of mount(8): look at the arguments and mount nothing
    #[arg(short, hide = true)]
    pub fake: bool,
    /// Of mount(8): changes nothing
    #[arg(short, hide = true)]
    pub no_mtab: bool,
    /// Of mount(8): say what was done
    #[arg(short, hide = true)]
    pub verbose: bool,
    /// Of mount(8): the mount namespace to work in, with all paths
    #[arg(short = 'N', hide = true, value_name = "NAMESPACE")]
    pub namespace: Option<PathBuf>,
    /// Where the daemon says that it is ready
    #[arg(long, hide = true, value_name = "NUMBER")]
    pub ready_fd: Option<RawFd>,
}

/// One list behind `-o`.
#[derive(Debug, Clone)]
pub struct Given {
    text: String,
    options: Options,
}

impl Given {
    fn parse(text: &str) -> Result<Given, String> {
        Ok(Given { text: text.to_owned(), options: options::parse(text)? })
    }
}

impl Arguments {
    /// All options in one: what has a flag of its own wins over `-o`.
    pub fn merged(&self) -> Result<Options, Error> {
        let mut all = Options::default();
        self.options.iter().for_each(|given| all.merge(&given.options));
        all.check(self.sloppy).map_err(Error::Usage)?;
        all.merge(&Options {
            read_only: self.read_only.then_some(true),
            cache_bytes: self.cache,
            index_memory_bytes: self.index_memory,
            subtype: self.subtype,
            ..Options::default()
        });
        if all.snapshot.is_some() && !all.remount {
            if all.read_only == Some(false) {
                let what = "a snapshot cannot be written to: leave out 'rw'";
                return Err(Error::Usage(what.to_owned()));
            }
            all.read_only = Some(true);
        }
        Ok(all)
    }

    /// Where to mount.
    pub fn mountpoint(&self) -> Result<&Path, Error> {
        let missing = || Error::Usage("the mountpoint is missing: name it last".to_owned());
        self.mountpoint.as_deref().ok_or_else(missing)
    }

    /// What the lists behind `-o` said, in one.
    fn list(&self) -> String {
        self.options.iter().map(|given| given.text.as_str()).collect::<Vec<_>>().join(",")
    }
}

/// Runs the command, or the daemon.
pub fn run(arguments: &Arguments) -> Outcome {
    if let Some(number) = arguments.ready_fd {
        return run_daemon(arguments, number);
    }
    let options = arguments.merged()?;
    if let Some(namespace) = &arguments.namespace {
        enter(namespace)?;
    }
    if options.remount {
        // mount(8) names the source as well, a person need not.
        let path = arguments.mountpoint.as_ref().unwrap_or(&arguments.volume);
        return match arguments.fake {
            true => Ok(FINE),
            false => remount::run(path, &options, &arguments.list()),
        };
    }
    let mountpoint = arguments.mountpoint()?;
    if arguments.fake {
        return Ok(FINE);
    }
    if arguments.foreground {
        return daemon::serve(arguments, || Ok(()));
    }
    start(mountpoint)?;
    if arguments.verbose {
        println!("pyramidfs: {} mounted on {}.", arguments.volume.display(), mountpoint.display());
    }
    Ok(FINE)
}

/// Enters another mount namespace: a file as `/proc/PID/ns/mnt`, or the number of a process.
///
/// To be called while this is the only thread. The daemon is started inside.
pub fn enter(namespace: &Path) -> Result<(), Error> {
    let path = match namespace.to_str().and_then(|text| text.parse::<u32>().ok()) {
        Some(pid) => PathBuf::from(format!("/proc/{pid}/ns/mnt")),
        None => namespace.to_owned(),
    };
    File::open(&path)
        .and_then(|file| Ok(setns(file, CloneFlags::CLONE_NEWNS)?))
        .map_err(|source| Error::Namespace { path, source })
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
    let path = arguments.merged()?.log.unwrap_or(PathBuf::from("/dev/null"));
    let opened = File::options().create(true).append(true).open(&path);
    opened.map_err(|source| Error::Log { path, source })
}

/// Starts the daemon and waits for its word.
fn start(mountpoint: &Path) -> Result<(), Error> {
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
        None if said.trim_end() == READY => answers(mountpoint),
        Some(error) => Err(Error::Reported(error.to_owned())),
        None => {
            let status = daemon.wait().map_err(Error::Daemon)?;
            // It may have come as far as the mount.
            place::clear_dead_mounts(mountpoint)?;
            Err(Error::Ended(status))
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
fn answers(mountpoint: &Path) -> Result<(), Error> {
    let failed = |source| Error::Path { action: "use", path: mountpoint.to_owned(), source };
    let found = statfs(mountpoint).map_err(|errno| failed(errno.into()))?;
    if found.filesystem_type() != FUSE_SUPER_MAGIC {
        return Err(Error::NotMounted(mountpoint.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_list() {
        let arguments = Arguments {
            volume: PathBuf::from("/v"),
            mountpoint: Some(PathBuf::from("/m")),
            options: vec![Given::parse("rw,cache=8MiB,commit=9").unwrap()],
            create: false,
            foreground: false,
            read_only: true,
            cache: Some(4 << 20),
            index_memory: None,
            subtype: None,
            sloppy: false,
            fake: false,
            no_mtab: false,
            verbose: false,
            namespace: None,
            ready_fd: None,
        };
        let merged = arguments.merged().unwrap();
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
