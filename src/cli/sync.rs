//! `pyramidfs sync`: makes everything written so far durable.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::control::{Answer, Client, Request};
use super::error::Error;
use super::{FINE, Outcome, place};

/// Arguments of `sync`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Where the volume is mounted
    mountpoint: PathBuf,
}

/// Runs the command: first the kernel hands over what it holds, then the daemon commits.
pub fn run(arguments: &Arguments) -> Outcome {
    let mount = place::mount_at(&arguments.mountpoint)?;
    let failed = |source| Error::Path { action: "sync", path: mount.mountpoint.clone(), source };
    let root = File::open(&mount.mountpoint).map_err(failed)?;
    nix::unistd::syncfs(&root).map_err(|errno| failed(errno.into()))?;
    let volume = Path::new(&mount.source);
    match Client::connect(volume) {
        None => no_daemon(&root, volume),
        Some(daemon) => match daemon.ask(Request::Sync)? {
            Answer::Failed { why } => Err(Error::Reported(format!("not all is durable: {why}"))),
            Answer::Done | Answer::Waiting | Answer::Status(_) => Ok(FINE),
        },
    }
}

/// The daemon takes no questions from this user, or the mount is read-only: fsync of the
/// root makes everything durable as well.
fn no_daemon(root: &File, volume: &Path) -> Outcome {
    match root.sync_all() {
        Ok(()) => Ok(FINE),
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(FINE),
        Err(source) => Err(Error::Control { volume: volume.to_owned(), source }),
    }
}
