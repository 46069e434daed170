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
    if place::is_dead(&arguments.mountpoint) {
        return Err(Error::Dead(arguments.mountpoint.clone()));
    }
    let failed = |source| Error::Path { action: "sync", path: mount.mountpoint.clone(), source };
    let root = File::open(&mount.mountpoint).map_err(failed)?;
    nix::unistd::syncfs(&root).map_err(|errno| failed(errno.into()))?;
    match Client::of_mount(&mount) {
        None => no_daemon(&root, &arguments.mountpoint),
        Some(daemon) => match daemon.ask(Request::Sync)? {
            Answer::Failed { why } => Err(Error::Reported(format!("not all is durable: {why}"))),
            _ => Ok(FINE),
        },
    }
}

/// The daemon takes no questions from this user: fsync of the root makes everything durable as
/// well.
fn no_daemon(root: &File, mountpoint: &Path) -> Outcome {
    match root.sync_all() {
        Ok(()) => Ok(FINE),
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(FINE),
        Err(source) => Err(Error::Control { volume: mountpoint.to_owned(), source }),
    }
}
