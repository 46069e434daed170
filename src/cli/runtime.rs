//! The directory in which each mount has its control socket, named by the mount's device number.
//!
//! `/run/pyramidfs` for root, `/run/user/UID/pyramidfs` for others; where that cannot be had,
//! `/tmp/pyramidfs-UID`. Of mode 0700. So a mount finds its daemon whatever its source is called,
//! and also when the volume lies on read-only media. No variable of the environment moves it, as
//! root has to find the daemons of others.
//!
//! Invariants: (1) the directory belongs to the user and to nobody else, or it is not used; (2) a
//! socket here is made, replaced and removed only by who holds the lock of the directory, and
//! removed only by who made it: device numbers are given out again soon.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::unistd::geteuid;

use crate::fuse::mountinfo::{self, MountEntry};

/// What is behind the device number in a socket's name.
const ENDING: &str = ".sock";

/// Opens the directory of this user, which is made if it is missing.
pub fn prepare() -> io::Result<File> {
    let user = geteuid().as_raw();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for path in places(user) {
        let made = match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => open(&path, user),
        };
        match made {
            Ok(directory) => return Ok(directory),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The directories of the user who serves that mount, as far as this user may look into them.
pub fn directories(mount: &MountEntry) -> Vec<File> {
    let Some(user) = mount.user() else { return Vec::new() };
    places(user).iter().filter_map(|path| open(path, user).ok()).collect()
}

/// Whether a daemon has made a socket for that mount.
pub fn has_socket(mount: &MountEntry) -> bool {
    let name = socket_name(&mount.device);
    let user = mount.user().unwrap_or(u32::MAX);
    places(user).iter().any(|path| fs::symlink_metadata(path.join(&name)).is_ok())
}

/// The name of the socket for the mount with that device number.
pub fn socket_name(device: &str) -> String {
    format!("{}{ENDING}", device.replace(':', "-"))
}

/// Whether the mount that a socket was made for is gone.
pub fn is_left_behind(name: &str) -> bool {
    let Some(device) = name.strip_suffix(ENDING) else { return false };
    matches!(mountinfo::find_device(&device.replace('-', ":")), Ok(None))
}

/// Where the directory of a user may be, the best place first.
fn places(user: u32) -> [PathBuf; 2] {
    let best = match user {
        0 => PathBuf::from("/run/pyramidfs"),
        _ => PathBuf::from(format!("/run/user/{user}/pyramidfs")),
    };
    [best, PathBuf::from(format!("/tmp/pyramidfs-{user}"))]
}

/// In /tmp anybody could have made it: then it is refused.
fn open(path: &PathBuf, user: u32) -> io::Result<File> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let directory = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let about = directory.metadata()?;
    if about.uid() == user && about.mode() & 0o077 == 0 {
        Ok(directory)
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_a_private_directory_of_the_user_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let own = geteuid().as_raw();
        let path = dir.path().join("sockets");
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        assert!(open(&path, own).is_ok());
        assert!(open(&path, own + 1).is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(open(&path, own).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(open(&link, own).is_err());
    }

    #[test]
    fn names_follow_device_numbers() {
        assert_eq!(socket_name("0:47"), "0-47.sock");
        assert!(is_left_behind("0-99999999.sock"));
        let here = mountinfo::read().unwrap();
        assert!(!is_left_behind(&socket_name(&here[0].device)));
        assert!(!is_left_behind("other"));
    }
}
