//! `pyramidfs umount`: unmounts, and waits until all is durable and the daemon is gone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::control::{Answer, Client, Request};
use super::error::Error;
use super::progress::Progress;
use super::{FINE, Outcome, place};
use crate::fuse;

/// How long it waits before it shows that it waits.
const QUIET: Duration = Duration::from_secs(2);

/// Arguments of `umount`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Where the volume is mounted
    mountpoint: PathBuf,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Outcome {
    let mount = place::mount_at(&arguments.mountpoint)?;
    // Before the unmount, as the daemon takes no new connections afterwards. Without a daemon (it
    // was killed, or the mount is read-only) there is nothing to wait for.
    let daemon = Client::connect(Path::new(&mount.source));
    let process = daemon.as_ref().and_then(Client::process);
    if let Some(daemon) = &daemon {
        daemon.send(Request::Closed)?;
        // From here on it knows that somebody waits for its last word.
        daemon.answer(None)?;
    }
    fuse::unmount(&mount.mountpoint, false).map_err(|source| refused(arguments, source))?;
    if let Some(daemon) = daemon {
        wait(&daemon)?;
    }
    process.as_ref().map_or(Ok(()), wait_for_end)?;
    Ok(FINE)
}

fn refused(arguments: &Arguments, source: io::Error) -> Error {
    let path = arguments.mountpoint.clone();
    match source.raw_os_error() {
        Some(libc::EBUSY) => Error::Busy(path),
        _ => Error::Path { action: "unmount", path, source },
    }
}

fn wait(daemon: &Client) -> Result<(), Error> {
    let mut progress = Progress::start(true);
    loop {
        match daemon.answer(Some(QUIET))? {
            None | Some(Answer::Waiting) => progress.wait("storing what is left"),
            Some(Answer::Failed { why }) => return Err(Error::NotStored(why)),
            Some(Answer::Done | Answer::Status(_)) => return Ok(()),
        }
    }
}

fn wait_for_end(process: &OwnedFd) -> Result<(), Error> {
    let mut watched = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::Daemon(errno.into())),
        }
    }
}
