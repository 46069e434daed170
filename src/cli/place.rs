//! Paths of the command line: which is a volume, which a mountpoint.
//!
//! Mountpoints are found in mountinfo, so that a dead or hanging mount is never touched.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::statvfs::statvfs;

use super::control::Client;
use super::error::Error;
use super::runtime;
use crate::fuse;
use crate::fuse::Unmount;
use crate::fuse::mountinfo::{self, MountEntry, PLAIN_TYPE};
use crate::sys::Disk;
use crate::sys::overlay::OverlayDisk;
use crate::sys::real::{RealClock, RealDisk};
use crate::volume::{self, OpenOptions, Volume};

/// How often a dead mount is taken off a mountpoint: mounts may lie one upon the other.
const DEAD_MOUNTS_MAX: usize = 16;

/// Opens the directory of a volume; a missing one is no volume.
pub fn disk(path: &Path) -> Result<Arc<dyn Disk>, Error> {
    let failed = |error| Error::Volume { path: path.to_owned(), error };
    match RealDisk::open(path) {
        Ok(disk) => Ok(Arc::new(disk)),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Err(failed(volume::Error::NoVolume))
        }
        Err(source) => Err(Error::Path { action: "open", path: path.to_owned(), source }),
    }
}

/// Opens a volume for a look: nothing on its disk changes.
pub fn open_read_only(path: &Path) -> Result<Arc<Volume>, Error> {
    let disk: Arc<dyn Disk> = Arc::new(OverlayDisk::new(disk(path)?));
    let options = OpenOptions { read_only: true, background: false, ..OpenOptions::default() };
    Volume::open(disk, Arc::new(RealClock::new()), options)
        .map_err(|error| Error::Volume { path: path.to_owned(), error })
}

/// Returns the mount of ours on `path`, or none.
pub fn find_mount(path: &Path) -> Result<Option<MountEntry>, Error> {
    let failed = |source| Error::Path { action: "find", path: path.to_owned(), source };
    let mounts = mountinfo::read().map_err(failed)?;
    let on_top = |path: &Path| mounts.iter().rfind(|entry| entry.mountpoint == path).cloned();
    // The path itself without following its last part: that would ask the mount, perhaps a dead
    // one.
    let mut found = resolve_parent(path).ok().and_then(|path| on_top(&path));
    if found.as_ref().is_none_or(|entry| !is_ours(entry)) {
        found = fs::canonicalize(path).ok().and_then(|path| on_top(&path));
    }
    Ok(found.filter(is_ours))
}

/// Whether it is a mount of ours. One of the plain type is known by the socket of its daemon.
pub fn is_ours(mount: &MountEntry) -> bool {
    mount.is_ours() || (mount.filesystem == PLAIN_TYPE && runtime::has_socket(mount))
}

/// The directory of the volume that is mounted there: what the daemon says, or the source.
pub fn volume_of(mount: &MountEntry) -> PathBuf {
    let place = Client::of_mount(mount).and_then(Client::place);
    place.map_or_else(|| PathBuf::from(&mount.source), |place| PathBuf::from(place.volume))
}

/// Whether the daemon of the mount on `path` is gone.
pub fn is_dead(path: &Path) -> bool {
    // Not stat(2): the kernel would answer from what it remembers of the dead mount's root.
    statvfs(path).err() == Some(Errno::ENOTCONN)
}

/// Returns the mount of ours on `path`; anything else is an error.
pub fn mount_at(path: &Path) -> Result<MountEntry, Error> {
    find_mount(path)?.ok_or_else(|| Error::NotMounted(path.to_owned()))
}

/// Makes `path` ready as a mountpoint and returns it as the kernel will name it.
///
/// A dead mount there is taken off.
pub fn prepare_mountpoint(path: &Path, volume: &Path) -> Result<PathBuf, Error> {
    clear_dead_mounts(path)?;
    if find_mount(path)?.is_some() {
        return Err(Error::MountpointInUse(path.to_owned()));
    }
    let mountpoint = match fs::canonicalize(path) {
        Ok(mountpoint) => mountpoint,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NoMountpoint(path.to_owned()));
        }
        Err(source) => return Err(Error::Path { action: "use", path: path.to_owned(), source }),
    };
    if !mountpoint.is_dir() {
        return Err(Error::NotADirectory(path.to_owned()));
    }
    // A volume that is still to be made cannot lie below an existing mountpoint by accident only.
    let volume = fs::canonicalize(volume)
        .or_else(|_| resolve_parent(volume))
        .unwrap_or_else(|_| volume.to_owned());
    if mountpoint.starts_with(&volume) || volume.starts_with(&mountpoint) {
        return Err(Error::Nested { mountpoint, volume });
    }
    Ok(mountpoint)
}

/// Takes mounts off `path` whose daemons are gone.
pub fn clear_dead_mounts(path: &Path) -> Result<(), Error> {
    for _ in 0..DEAD_MOUNTS_MAX {
        if !is_dead(path) {
            break;
        }
        let cleared = resolve_parent(path).and_then(|path| fuse::unmount(&path, Unmount::Lazy));
        if cleared.is_err() {
            return Err(Error::Dead(path.to_owned()));
        }
    }
    Ok(())
}

/// Makes `path` absolute and free of links, except for its last part, which is not touched.
fn resolve_parent(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(fs::canonicalize(parent)?.join(name)),
        _ => fs::canonicalize(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountpoints_that_cannot_be() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("volume/inside")).unwrap();
        fs::create_dir(at("mountpoint")).unwrap();
        fs::write(at("file"), "").unwrap();
        let refused =
            |mountpoint: &str| prepare_mountpoint(&at(mountpoint), &at("volume")).unwrap_err();
        assert!(matches!(refused("missing"), Error::NoMountpoint(_)));
        assert!(matches!(refused("file"), Error::NotADirectory(_)));
        assert!(matches!(refused("volume"), Error::Nested { .. }));
        assert!(matches!(refused("volume/inside"), Error::Nested { .. }));
        assert!(matches!(refused("."), Error::Nested { .. }));
        assert!(prepare_mountpoint(&at("mountpoint"), &at("volume")).is_ok());
        assert!(prepare_mountpoint(&at("mountpoint"), &at("new")).is_ok());
    }

    #[test]
    fn a_plain_directory_is_no_mount_of_ours() {
        assert!(matches!(mount_at(Path::new("/proc")), Err(Error::NotMounted(_))));
        assert!(matches!(mount_at(Path::new("/nowhere/at/all")), Err(Error::NotMounted(_))));
    }
}
