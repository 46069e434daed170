//! `pyramidfs umount`: unmounts, and waits until all is durable and the daemon is gone.
//!
//! Also what umount(8) calls under the name `umount.fuse.pyramidfs`, with flags of its own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::control::{Answer, Client, Request};
use super::error::Error;
use super::progress::Progress;
use super::{FINE, Outcome, mount, place, remount};
use crate::fuse::mountinfo::{self, MountEntry};
use crate::fuse::{self, Unmount};

/// How long it waits before it shows that it waits.
const QUIET: Duration = Duration::from_secs(2);

/// Arguments of `umount`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Where the volume is mounted
    mountpoint: PathBuf,
    /// Take it out of sight at once, and do not wait: it ends when the last open file is closed
    #[arg(short, long)]
    lazy: bool,
    /// Cut the connection of a daemon that hangs: what it was not given yet is lost
    #[arg(short, long)]
    force: bool,
    /// Make it read-only when it is busy
    #[arg(short, hide = true)]
    read_only: bool,
    /// Of umount(8): changes nothing
    #[arg(short, hide = true)]
    no_mtab: bool,
    /// Of umount(8): changes nothing
    #[arg(short, hide = true)]
    verbose: bool,
    /// Of umount(8): the mount namespace to work in
    #[arg(short = 'N', hide = true, value_name = "NAMESPACE")]
    namespace: Option<PathBuf>,
    /// Of umount(8): changes nothing
    #[arg(short = 't', hide = true, value_name = "TYPE")]
    kind: Option<String>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Outcome {
    if let Some(namespace) = &arguments.namespace {
        mount::enter(namespace)?;
    }
    let mount = place::mount_at(&arguments.mountpoint)?;
    let unmounted = match (arguments.force, arguments.lazy) {
        // Whom should one wait for? The daemon hangs, or has open files to serve.
        (true, _) => fuse::unmount(&mount.mountpoint, Unmount::Force)
            .map_err(|source| refused(arguments, source)),
        (false, true) => fuse::unmount(&mount.mountpoint, Unmount::Lazy)
            .map_err(|source| refused(arguments, source)),
        (false, false) => unmount(arguments, &mount),
    };
    match unmounted {
        Err(Error::Busy(_)) if arguments.read_only => remount::make_read_only(&mount),
        Err(error) => Err(error),
        Ok(()) => Ok(FINE),
    }
}

fn unmount(arguments: &Arguments, mount: &MountEntry) -> Result<(), Error> {
    // Before the unmount, as the daemon takes no new connections afterwards. Without a daemon (it
    // was killed) there is nothing to wait for.
    let daemon = Client::of_mount(mount);
    let process = daemon.as_ref().and_then(Client::process);
    if let Some(daemon) = &daemon {
        daemon.send(Request::Closed)?;
        // From here on it knows that somebody waits for its last word.
        daemon.answer(None)?;
    }
    fuse::unmount(&mount.mountpoint, Unmount::Plain)
        .map_err(|source| refused(arguments, source))?;
    if matches!(mountinfo::find_device(&mount.device), Ok(Some(_))) {
        // It is mounted elsewhere too (mount --bind), and goes on there.
        return Ok(());
    }
    let stored = daemon.as_ref().map_or(Ok(()), wait);
    // Also when not all was stored: whoever mounts it next must not meet the daemon.
    let ended = process.as_ref().map_or(Ok(()), wait_for_end);
    stored.and(ended)
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
            Some(_) => return Ok(()),
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
