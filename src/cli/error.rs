//! Why a command could not do its work, in one line that says what to do.

use std::io;
use std::path::PathBuf;

use crate::fuse::{MountError, chain};
use crate::{meta, volume};

/// Errors of the commands. All end with exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation on a volume failed. The line has all causes in it already.
    #[error("{}", advise(path, error))]
    Volume { path: PathBuf, error: volume::Error },
    /// A path of the command line cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Path { action: &'static str, path: PathBuf, source: io::Error },
    /// `mkfs` on a directory with something else in it.
    #[error("{} is not empty and no volume: name an empty or a new directory", .0.display())]
    NotEmpty(PathBuf),
    /// The parent of a new volume is missing.
    #[error("cannot make {}: its parent directory is missing, make that first", .0.display())]
    NoParent(PathBuf),
    /// Neither a directory nor missing.
    #[error("{} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// The mountpoint is missing.
    #[error("mountpoint {path} is missing: make it with 'mkdir {path}'", path = .0.display())]
    NoMountpoint(PathBuf),
    /// A volume is mounted there.
    #[error(
        "{path} is in use: a volume is mounted there already, see 'pyramidfs umount {path}'",
        path = .0.display()
    )]
    MountpointInUse(PathBuf),
    /// One lies in the other.
    #[error(
        "mountpoint {} and volume {} lie one in the other: use another mountpoint",
        mountpoint.display(), volume.display()
    )]
    Nested { mountpoint: PathBuf, volume: PathBuf },
    /// The daemon of a mount was killed.
    #[error(
        "the daemon of {path} is gone: 'pyramidfs umount {path}' takes the dead mount off, as root \
         if root has mounted it",
        path = .0.display()
    )]
    Dead(PathBuf),
    /// The mount is gone, and files on it are still open.
    #[error(
        "{} was unmounted lazily, and files on it are still open: process {pid} serves them until \
         they are closed",
        volume.display()
    )]
    Lingering { volume: PathBuf, pid: u32 },
    /// Files are open for writing on what shall become read-only.
    #[error(
        "{path} has files open for writing: close them ('fuser -vm {path}' lists them) and try \
         again",
        path = .0.display()
    )]
    BusyWriting(PathBuf),
    /// Ordinary users have no helper for that.
    #[error("only root may remount {path}: unmount, and mount again", path = .0.display())]
    RemountNotPermitted(PathBuf),
    /// A remount needs the daemon's word.
    #[error(
        "the daemon of {path} cannot be asked from here: remount as the user who mounted it, in the \
         same container",
        path = .0.display()
    )]
    DaemonUnreachable(PathBuf),
    /// No volume of ours is mounted there.
    #[error("no pyramidfs volume is mounted on {}", .0.display())]
    NotMounted(PathBuf),
    /// No such snapshot.
    #[error(
        "{path} has no snapshot {name:?}: 'pyramidfs snapshot list {path}' names those it has",
        path = volume.display()
    )]
    NoSnapshot { volume: PathBuf, name: String },
    /// Files are open below the mountpoint.
    #[error(
        "{path} is busy: close what is open there ('fuser -vm {path}' lists it) and try again",
        path = .0.display()
    )]
    Busy(PathBuf),
    /// The kernel refused the mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The log cannot be written.
    #[error(
        "cannot open the log {}: {source}; name another file with 'log=', or make its directory",
        path.display()
    )]
    Log { path: PathBuf, source: io::Error },
    /// The mount namespace behind `-N`.
    #[error("cannot enter the mount namespace {}: {source}", path.display())]
    Namespace { path: PathBuf, source: io::Error },
    /// The daemon could not be started or went away before it was ready.
    #[error("the daemon did not start: {0}")]
    Daemon(io::Error),
    /// The daemon was ended before it was ready.
    #[error(
        "the daemon ended before the mount was ready ({0}): mount again; 'mount --foreground' shows \
         what happens"
    )]
    Ended(std::process::ExitStatus),
    /// The daemon said why it failed.
    #[error("{0}")]
    Reported(String),
    /// The daemon ended without a word.
    #[error(
        "the daemon ended before all was stored: mount again, which recovers up to the last sync"
    )]
    DaemonGone,
    /// The last commit failed.
    #[error("unmounted, but not everything could be stored: {0}")]
    NotStored(String),
    /// The control socket does not answer as it should.
    #[error("cannot talk to the daemon of {}: {source}", volume.display())]
    Control { volume: PathBuf, source: io::Error },
    /// A volume that is mounted or otherwise in use cannot be checked.
    #[error("{} is in use: unmount it, then check it", .0.display())]
    CheckInUse(PathBuf),
    /// Reading or hashing failed.
    #[error("cannot hash {}: {source}", path.display())]
    Hash { path: PathBuf, source: io::Error },
    /// The words of the command line make no sense.
    #[error("{0}; see 'pyramidfs --help'")]
    Usage(String),
    /// Standard output is gone.
    #[error("cannot print: {0}")]
    Print(io::Error),
}

impl Error {
    /// The whole error in one line.
    pub fn line(&self) -> String {
        chain(self).replace('\n', " ")
    }
}

/// Says what is wrong with the volume at `path`, and what to do about it.
fn advise(path: &std::path::Path, error: &volume::Error) -> String {
    use volume::Error as E;
    let path = path.display();
    match error {
        E::NoVolume => {
            format!("{path} is no volume: make one with 'pyramidfs mkfs {path}'")
        }
        E::InUse => {
            format!("{path} is in use by another process: unmount it there first")
        }
        E::Changed => {
            format!("{path} has changed since it was mounted: unmount, and mount again")
        }
        E::AlreadyAVolume => format!("{path} is a volume already: mount it, or name another"),
        E::NewerFormat { .. } | E::UnknownFeature { .. } => {
            format!("{path}: {}; use a newer pyramidfs", chain(error))
        }
        E::BadSuperblock { .. } => {
            format!("{path}: {}; put the file 'superblock' back from a backup", chain(error))
        }
        E::Meta(meta::Error::Missing | meta::Error::Damaged { .. }) => {
            format!("{path}: {}; run 'pyramidfs check --repair {path}'", chain(error))
        }
        E::Poisoned { .. } => format!("{path}: {}; unmount and mount again", chain(error)),
        E::NoSpace => no_space(&path.to_string()),
        E::Io { source, .. } if source.raw_os_error() == Some(libc::ENOSPC) => {
            no_space(&path.to_string())
        }
        E::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            format!("{path} lies on a read-only filesystem: mount it with '-o ro'")
        }
        E::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            format!("{path}: {}; mount as its owner or as root", chain(error))
        }
        _ => format!("{path}: {}", chain(error)),
    }
}

fn no_space(path: &str) -> String {
    format!("no space left on the disk of {path}: free some, then try again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_to_do() {
        let error = Error::Volume { path: PathBuf::from("/v"), error: volume::Error::InUse };
        assert_eq!(error.line().lines().count(), 1);
        assert!(error.line().contains("unmount"), "{}", error.line());
        let full = volume::Error::Io {
            action: "write",
            source: io::Error::from_raw_os_error(libc::ENOSPC),
        };
        let error = Error::Volume { path: PathBuf::from("/v"), error: full };
        assert!(error.line().contains("no space left"), "{}", error.line());
    }
}
