//! Mounting: from an open volume to a mountpoint that answers.
//!
//! Owns the mount's flags, the reading threads and the worker pool.
//!
//! Invariant: once [`mount`] has returned, the kernel's INIT is answered and requests are served;
//! when it fails, nothing stays mounted.
//!
//! The transport's own mounting and unmounting is not used: it loses the error number, and would
//! unmount a second time what has been unmounted and perhaps mounted anew by others.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;

use fuser::{Config, INodeNo, Notifier, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::unistd::{getegid, geteuid};

use super::adapter::Adapter;
use super::mountinfo::{MountEntry, has_word};
use super::workers::Workers;
use super::{fusermount, kernel, mountinfo};
use crate::meta::Ino;
use crate::volume::{Atime, Current};

/// Threads that read requests. Two keep both cores of a small machine busy; with four, two may be
/// reading from the disk.
const READING_THREADS: usize = 4;
/// Threads on which requests may wait.
const WAITING_THREADS: usize = 8;
/// Threads that ask the kernel for something.
const ASKING_THREADS: usize = 2;
/// The kernel's door.
const DEVICE: &str = "/dev/fuse";
/// The number of that prctl(2); since Linux 5.6.
const PR_SET_IO_FLUSHER: libc::c_int = 57;
/// What stands behind `fuse.` in the type of the mount.
const SUBTYPE: &str = "pyramidfs";

/// How a volume is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What mountinfo names as the source: the volume, in the words of the command line.
    pub source: OsString,
    /// Be of the type `fuse.pyramidfs` instead of plain `fuse`.
    pub subtype: bool,
    /// An absolute path without links to an existing directory.
    pub mountpoint: PathBuf,
    /// Refuse all changes.
    pub read_only: bool,
    /// Let other users in; permission bits are always judged.
    pub allow_other: bool,
    /// Honour set-user-id and set-group-id bits.
    pub set_id: bool,
    /// Let device nodes be opened.
    pub devices: bool,
    /// Let programs be executed.
    pub execute: bool,
    /// Make every change durable at once.
    pub synchronous: bool,
    /// When reading moves times of access. The kernel shows it; the volume does it.
    pub atime: Atime,
    /// Whether that goes for directories too.
    pub dir_atime: bool,
}

/// Why a volume could not be mounted. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel has no FUSE, or the container hides it.
    #[error(
        "/dev/fuse is missing: load the kernel module with 'modprobe fuse', or start the container \
         with '--device /dev/fuse'"
    )]
    NoDevice,
    /// FUSE is there, but not for this user.
    #[error("cannot open /dev/fuse: {source}; run as root or give this user the right to")]
    Device { source: io::Error },
    /// Only root may mount, all others need the helper.
    #[error("fusermount3 is missing: run as root, or install the package fuse3")]
    NoHelper,
    /// Root without the capability, as in a container.
    #[error(
        "this process may not mount: it needs root with CAP_SYS_ADMIN, which a container gets with \
         '--cap-add SYS_ADMIN'"
    )]
    NotPermitted,
    /// The helper mounts for ordinary users, and letting others in is not theirs to decide.
    #[error(
        "only root may use allow_other: leave it out, or let root write a line \
         'user_allow_other' into /etc/fuse.conf"
    )]
    AllowOther,
    /// The helper could not be more than its caller.
    #[error("fusermount3 has no right to mount: as root, 'chmod u+s' it, or run as root")]
    HelperNotPermitted,
    /// The kernel refused.
    #[error("cannot mount on {mountpoint}: {source}", mountpoint = mountpoint.display())]
    Mount { mountpoint: PathBuf, source: io::Error },
    /// Mounted, but the first request was not served; it is unmounted again.
    #[error("the kernel does not talk to the mount: {source}")]
    Handshake { source: io::Error },
    /// No thread could be started.
    #[error("cannot start a thread: {source}")]
    Thread { source: io::Error },
}

/// A mount that is being served.
#[derive(Debug)]
pub struct Mounted {
    mountpoint: PathBuf,
    device: Option<String>,
    kernel: Arc<OnceLock<Notifier>>,
}

impl Mounted {
    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Its device number, which no other mount has as long as it is there.
    pub fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// Has the kernel forget a name, what it leads to, and what it remembers of its directory.
    /// To be called with no locks held: the kernel may be in the middle of asking about them.
    pub fn renew(&self, dir: Ino, name: &[u8]) {
        let Some(kernel) = self.kernel.get() else { return };
        let dir = INodeNo(dir.0);
        let forgotten = kernel
            .inval_entry(dir, OsStr::from_bytes(name))
            .and_then(|()| kernel.inval_inode(dir, 0, 0));
        match forgotten {
            // It did not know the name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let _ = kernel.inval_inode(dir, 0, 0);
            }
            Err(error) => tracing::warn!("the kernel remembers an old name: {error}"),
            Ok(()) => {}
        }
    }

    /// Whether the topmost mount on the mountpoint is still this one.
    pub fn is_mounted(&self) -> bool {
        match mountinfo::find(&self.mountpoint) {
            Ok(Some(entry)) => Some(&entry.device) == self.device.as_ref(),
            Ok(None) | Err(_) => false,
        }
    }

    /// What mountinfo says of it, wherever it is mounted by now; none after a lazy unmount.
    pub fn entry(&self) -> Option<MountEntry> {
        mountinfo::find_device(self.device.as_deref()?).ok().flatten()
    }
}

/// Mounts `volume` and serves it on threads of its own; calls `ended` when the mount is gone.
pub fn mount(
    volume: Arc<Current>,
    settings: &Settings,
    ended: impl FnOnce(io::Result<()>) + Send + 'static,
) -> Result<Mounted, MountError> {
    let start = |count| Workers::start(count).map_err(|source| MountError::Thread { source });
    let adapter = Adapter::new(volume, start(WAITING_THREADS)?, start(ASKING_THREADS)?);
    let (kernel, connection) = (adapter.kernel(), connect(settings)?);
    // From here on there is a mount that must go when something fails.
    let served = serve(adapter, connection, settings, ended);
    if served.is_err() {
        let _ = unmount(&settings.mountpoint, Unmount::Lazy);
    }
    served?;
    let device = mountinfo::find(&settings.mountpoint).ok().flatten().map(|entry| entry.device);
    match &device {
        Some(device) => kernel::raise_limits(device),
        None => tracing::info!("the mount is not in mountinfo: its write-back limits stay low"),
    }
    Ok(Mounted { mountpoint: settings.mountpoint.clone(), device, kernel })
}

/// How hard to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmount {
    /// Refused while files are open.
    Plain,
    /// Out of sight at once, and for good when the last file is closed.
    Lazy,
    /// The connection is cut first: what the daemon was not given yet is lost. For a daemon that
    /// hangs.
    Force,
}

/// Unmounts what is on top of `mountpoint`, an absolute path without links.
pub fn unmount(mountpoint: &Path, how: Unmount) -> io::Result<()> {
    let flags = match how {
        Unmount::Plain => MntFlags::empty(),
        Unmount::Lazy => MntFlags::MNT_DETACH,
        Unmount::Force => MntFlags::MNT_FORCE,
    };
    match umount2(mountpoint, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Err(Errno::EPERM) if !geteuid().is_root() => {
            fusermount::unmount(mountpoint, how == Unmount::Lazy)
        }
        result => Ok(result?),
    }
}

/// Flags of a mount that change while it is mounted; what is `None` stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Refuse all changes.
    pub read_only: Option<bool>,
    /// Honour set-user-id and set-group-id bits.
    pub set_id: Option<bool>,
    /// Let device nodes be opened.
    pub devices: Option<bool>,
    /// Let programs be executed.
    pub execute: Option<bool>,
    /// Make every change durable at once.
    pub synchronous: Option<bool>,
    /// When reading moves times of access.
    pub atime: Option<Atime>,
    /// Whether that goes for directories too.
    pub dir_atime: Option<bool>,
}

/// Changes flags of a mount in place. The kernel hands over what it holds before it becomes
/// read-only, and does not ask the daemon.
pub fn remount(entry: &MountEntry, change: &Change) -> io::Result<()> {
    let flags = changed_flags(entry, change) | MsFlags::MS_REMOUNT;
    Ok(nix::mount::mount(None::<&str>, &entry.mountpoint, None::<&str>, flags, None::<&str>)?)
}

/// A remount sets all flags anew.
fn changed_flags(entry: &MountEntry, change: &Change) -> MsFlags {
    let (own, all) = (&entry.options, &entry.super_options);
    let mut flags = MsFlags::empty();
    for (list, word, flag) in [
        (all, "mand", MsFlags::MS_MANDLOCK),
        (all, "dirsync", MsFlags::MS_DIRSYNC),
        (all, "lazytime", MsFlags::MS_LAZYTIME),
    ] {
        flags.set(flag, has_word(list, word));
    }
    // Not in all versions of the C library.
    let no_symlinks = MsFlags::from_bits_retain(256);
    flags.set(no_symlinks, has_word(own, "nosymfollow"));
    flags.set(MsFlags::MS_RDONLY, change.read_only.unwrap_or(entry.is_read_only()));
    let now = has_word(all, "sync");
    flags.set(MsFlags::MS_SYNCHRONOUS, change.synchronous.unwrap_or(now));
    for (allowed, word, flag) in [
        (change.set_id, "nosuid", MsFlags::MS_NOSUID),
        (change.devices, "nodev", MsFlags::MS_NODEV),
        (change.execute, "noexec", MsFlags::MS_NOEXEC),
    ] {
        flags.set(flag, allowed.map_or(has_word(own, word), |allowed| !allowed));
    }
    let (atime, dir_atime) = access_times(entry);
    let atime = change.atime.unwrap_or(atime);
    flags | atime_flags(atime, change.dir_atime.unwrap_or(dir_atime))
}

/// When reading moves times of access, as the flags of a mount say, and whether those of
/// directories too. Nothing moves on what takes no changes.
pub fn access_times(entry: &MountEntry) -> (Atime, bool) {
    let has = |word| has_word(&entry.options, word);
    let atime = match (has("noatime"), has("relatime")) {
        (true, _) => Atime::Never,
        (false, true) => Atime::Relative,
        (false, false) => Atime::Strict,
    };
    (atime, !has("nodiratime"))
}

fn atime_flags(atime: Atime, directories: bool) -> MsFlags {
    let mut flags = match atime {
        Atime::Never => MsFlags::MS_NOATIME,
        Atime::Relative => MsFlags::MS_RELATIME,
        Atime::Strict => MsFlags::MS_STRICTATIME,
    };
    flags.set(MsFlags::MS_NODIRATIME, !directories);
    flags
}

/// Keeps memory pressure from making the daemon wait for its own mount: allocations of this thread
/// and of those that it starts never begin write-back. Needs CAP_SYS_RESOURCE.
pub fn mark_io_flusher() -> io::Result<()> {
    // SAFETY: this prctl takes four plain numbers and touches no memory of ours.
    let answer = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn serve(
    adapter: Adapter,
    connection: OwnedFd,
    settings: &Settings,
    ended: impl FnOnce(io::Result<()>) + Send + 'static,
) -> Result<(), MountError> {
    let acl = if settings.allow_other { SessionACL::All } else { SessionACL::Owner };
    let mut config = Config::default();
    config.n_threads = Some(READING_THREADS);
    let kernel = adapter.kernel();
    let session = Session::from_fd(adapter, connection, acl, config)
        .map_err(|source| MountError::Handshake { source })?;
    // Requests are served from `run` on: nobody has missed it yet.
    let _ = kernel.set(session.notifier());
    thread::Builder::new()
        .name("fuse".to_owned())
        .spawn(move || ended(session.run()))
        .map_err(|source| MountError::Thread { source })?;
    Ok(())
}

/// Mounts and returns the connection to the kernel.
fn connect(settings: &Settings) -> Result<OwnedFd, MountError> {
    let refused = |source| MountError::Mount { mountpoint: settings.mountpoint.clone(), source };
    if !geteuid().is_root() {
        if !Path::new(DEVICE).exists() {
            return Err(MountError::NoDevice);
        }
        let mounted = fusermount::mount(&settings.mountpoint, &helper_options(settings));
        return mounted.map_err(|error| helper_refused(error, &settings.mountpoint));
    }
    let device = match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(device) => device,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(MountError::NoDevice),
        // The node is there, but no driver behind it.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
            return Err(MountError::NoDevice);
        }
        Err(source) => return Err(MountError::Device { source }),
    };
    nix::mount::mount(
        Some(settings.source.as_os_str()),
        &settings.mountpoint,
        Some("fuse"),
        flags(settings),
        Some(kernel_options(settings, device.as_raw_fd()).as_str()),
    )
    .map_err(|errno| match errno {
        Errno::EPERM => MountError::NotPermitted,
        Errno::ENODEV => MountError::NoDevice,
        other => refused(other.into()),
    })?;
    Ok(device.into())
}

/// What the helper prints says more than its exit code.
fn helper_refused(source: io::Error, mountpoint: &Path) -> MountError {
    // A directory of PATH that may not be searched hides it as well.
    if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) {
        return MountError::NoHelper;
    }
    let printed = source.to_string();
    if printed.contains("user_allow_other") {
        MountError::AllowOther
    } else if printed.contains(DEVICE) {
        MountError::Device { source }
    } else if printed.contains("mount failed: Operation not permitted") {
        MountError::HelperNotPermitted
    } else {
        MountError::Mount { mountpoint: mountpoint.to_owned(), source }
    }
}

fn flags(settings: &Settings) -> MsFlags {
    let mut flags = MsFlags::empty();
    flags.set(MsFlags::MS_RDONLY, settings.read_only);
    flags.set(MsFlags::MS_NOSUID, !settings.set_id);
    flags.set(MsFlags::MS_NODEV, !settings.devices);
    flags.set(MsFlags::MS_NOEXEC, !settings.execute);
    flags.set(MsFlags::MS_SYNCHRONOUS, settings.synchronous);
    flags | atime_flags(settings.atime, settings.dir_atime)
}

fn kernel_options(settings: &Settings, connection: i32) -> String {
    let subtype = if settings.subtype { format!(",subtype={SUBTYPE}") } else { String::new() };
    let allow_other = if settings.allow_other { ",allow_other" } else { "" };
    format!(
        "fd={connection},rootmode=40000,user_id={},group_id={},default_permissions\
         {subtype}{allow_other}",
        geteuid(),
        getegid()
    )
}

/// The same for the helper, which takes flags as words and names behind a backslash.
fn helper_options(settings: &Settings) -> OsString {
    let mut options = b"default_permissions,".to_vec();
    if settings.subtype {
        options.extend_from_slice(format!("subtype={SUBTYPE},").as_bytes());
    }
    options.extend_from_slice(b"fsname=");
    for byte in settings.source.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            options.push(b'\\');
        }
        options.push(*byte);
    }
    let words = [
        (settings.read_only, ",ro"),
        (settings.allow_other, ",allow_other"),
        (!settings.execute, ",noexec"),
        (settings.synchronous, ",sync"),
        // It has no words for the other times of access: they hold, and are not shown.
        (settings.atime == Atime::Never, ",noatime"),
    ];
    for (_, word) in words.iter().filter(|(wanted, _)| *wanted) {
        options.extend_from_slice(OsStr::new(word).as_bytes());
    }
    OsString::from_vec(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            source: OsString::from("/a,ro\\b"),
            subtype: true,
            mountpoint: PathBuf::from("/m"),
            read_only: false,
            allow_other: true,
            set_id: true,
            devices: true,
            execute: true,
            synchronous: false,
            atime: Atime::Relative,
            dir_atime: true,
        }
    }

    /// On a thread of its own, as the mark stays.
    #[test]
    fn the_mark_of_an_io_flusher_is_set_and_handed_on() {
        const PR_GET_IO_FLUSHER: libc::c_int = 58;
        // SAFETY: this prctl takes four plain numbers and touches no memory of ours.
        let marked = || unsafe { libc::prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0) };
        let found = thread::spawn(move || {
            mark_io_flusher().map(|()| (marked(), thread::spawn(marked).join().ok()))
        });
        match found.join().unwrap() {
            Ok(found) => assert_eq!(found, (1, Some(1))),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}"),
        }
    }

    #[test]
    fn a_name_cannot_smuggle_options_in() {
        let options = helper_options(&settings());
        assert_eq!(
            options,
            OsStr::new("default_permissions,subtype=pyramidfs,fsname=/a\\,ro\\\\b,allow_other")
        );
        assert!(!kernel_options(&settings(), 3).contains("/a"));
    }

    #[test]
    fn the_plain_type_has_no_subtype() {
        let plain = Settings { subtype: false, ..settings() };
        assert!(!kernel_options(&plain, 3).contains("subtype"));
        assert!(!helper_options(&plain).to_string_lossy().contains("subtype"));
        assert!(kernel_options(&settings(), 3).contains(",subtype=pyramidfs,"));
    }

    #[test]
    fn a_remount_keeps_what_was_not_named() {
        let entry = MountEntry {
            device: "0:9".to_owned(),
            mountpoint: PathBuf::from("/m"),
            options: "rw,nosuid,noexec,relatime".to_owned(),
            filesystem: "fuse.pyramidfs".to_owned(),
            source: OsString::from("v"),
            super_options: "rw,sync,user_id=0".to_owned(),
        };
        let times = MsFlags::MS_RELATIME;
        let kept = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_SYNCHRONOUS | times;
        assert_eq!(changed_flags(&entry, &Change::default()), kept);
        let change =
            Change { atime: Some(Atime::Never), dir_atime: Some(false), ..Change::default() };
        let never = MsFlags::MS_NOATIME | MsFlags::MS_NODIRATIME;
        assert_eq!(changed_flags(&entry, &change), (kept - times) | never);
        let change = Change { read_only: Some(true), execute: Some(true), ..Change::default() };
        let expected = MsFlags::MS_NOSUID | MsFlags::MS_SYNCHRONOUS | MsFlags::MS_RDONLY | times;
        assert_eq!(changed_flags(&entry, &change), expected);
        let read_only = MountEntry { super_options: "ro".to_owned(), ..entry };
        assert!(changed_flags(&read_only, &Change::default()).contains(MsFlags::MS_RDONLY));
        let change = Change { read_only: Some(false), ..Change::default() };
        assert!(!changed_flags(&read_only, &change).contains(MsFlags::MS_RDONLY));
    }

    #[test]
    fn the_helper_is_understood() {
        let told = |text: &str| helper_refused(io::Error::other(text.to_owned()), Path::new("/m"));
        let text = "fusermount3: option allow_other only allowed if 'user_allow_other' is set";
        assert!(matches!(told(text), MountError::AllowOther));
        let text = "fusermount3: failed to open /dev/fuse: Permission denied";
        assert!(matches!(told(text), MountError::Device { .. }));
        let text = "fusermount3: mount failed: Operation not permitted";
        assert!(matches!(told(text), MountError::HelperNotPermitted));
        let text = "fusermount3: user has no write access to mountpoint /m";
        assert!(matches!(told(text), MountError::Mount { .. }));
        let missing = io::ErrorKind::NotFound.into();
        assert!(matches!(helper_refused(missing, Path::new("/m")), MountError::NoHelper));
    }

    #[test]
    fn flags_follow_the_settings() {
        assert_eq!(flags(&settings()), MsFlags::MS_RELATIME);
        let strict = Settings { read_only: true, set_id: false, execute: false, ..settings() };
        let expected = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        assert_eq!(flags(&strict), expected | MsFlags::MS_RELATIME);
    }
}
