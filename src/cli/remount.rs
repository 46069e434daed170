//! `mount -o remount,…`: changes flags of a mount in place. No second daemon.
//!
//! The kernel changes its flags without asking the daemon. So the daemon is asked first: it refuses
//! what it cannot change, and opens a volume for writing that it has open for reading. Afterwards
//! it follows the kernel's flags, and commits what the kernel has handed over.

use std::path::Path;

use super::control::{Answer, Client, Request};
use super::error::Error;
use super::options::Options;
use super::{FINE, Outcome, place};
use crate::fuse::mountinfo::MountEntry;
use crate::fuse::{self, Change};

/// Changes the mount on `path` to what `options` say; `list` is their text.
pub fn run(path: &Path, options: &Options, list: &str) -> Outcome {
    let mount = place::mount_at(path)?;
    if place::is_dead(path) {
        return Err(Error::Dead(path.to_owned()));
    }
    let daemon = Client::of_mount(&mount).ok_or(Error::DaemonUnreachable(path.to_owned()))?;
    settle(daemon, Request::Remount { options: list.to_owned() })?;
    change(&mount, &options.change())
}

/// Makes a mount read-only, and what it holds durable.
pub fn make_read_only(mount: &MountEntry) -> Outcome {
    change(mount, &Change { read_only: Some(true), ..Change::default() })
}

fn change(mount: &MountEntry, change: &Change) -> Outcome {
    let path = || mount.mountpoint.clone();
    fuse::remount(mount, change).map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => Error::BusyWriting(path()),
        Some(libc::EPERM) => Error::RemountNotPermitted(path()),
        _ => Error::Path { action: "remount", path: path(), source },
    })?;
    if let Some(daemon) = Client::of_mount(mount) {
        settle(daemon, Request::Remounted)?;
    }
    Ok(FINE)
}

fn settle(daemon: Client, request: Request) -> Result<(), Error> {
    match daemon.ask(request)? {
        Answer::Failed { why } => Err(Error::Reported(why)),
        _ => Ok(()),
    }
}
