//! The process that serves a mount, from opening the volume to closing it.
//!
//! Invariants: (1) whatever ends the mount, the volume is closed and the exit code tells whether
//! all was stored; (2) a panic anywhere ends the process at once: the volume survives that as it
//! survives a crash, while a mount that is served by half of its threads would hang its users.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::geteuid;

use super::control::{Answer, Server};
use super::error::Error;
use super::mount::Arguments;
use super::options::Options;
use super::{FINDINGS, FINE, Outcome, mkfs, place};
use crate::fuse::{self, Mounted, Settings, chain, mountinfo};
use crate::sys::overlay::OverlayDisk;
use crate::sys::real::{RealClock, read_note};
use crate::sys::{Clock, Disk};
use crate::volume::{self, CreateOptions, OpenOptions, Volume};

/// How long to wait for a daemon that says it is closing.
const CLOSING_WAIT: Duration = Duration::from_secs(60);
/// How long to wait for one that does not say so yet, when its mount is nowhere to be seen: it
/// has just been unmounted (or is mounted out of sight, and stays).
const UNSEEN_WAIT: Duration = Duration::from_secs(3);
/// How often to look whether it has closed.
const CLOSING_STEP: Duration = Duration::from_millis(50);
/// The file of the lock.
const LOCK: &str = "lock";
/// What the note of the lock says then.
const CLOSING: &str = "closing";
/// What it says before.
const OPEN: &str = "open";
/// After a signal: how long the kernel may take to hand over what it holds.
const HAND_OVER_WAIT: Duration = Duration::from_secs(5);
/// After a signal, with files still open: how long their users have to close them.
const GRACE: Duration = Duration::from_secs(10);

/// Why the daemon stops serving.
enum Event {
    /// The mount is gone.
    Ended(io::Result<()>),
    /// A signal came, and files were still open when the grace was over.
    GraceOver,
}

/// Has all threads allocate from two arenas. By default each thread gets its own, up to eight a
/// core, and what is freed in one is not used by the others: after 4 GiB of mixed work the daemon
/// held 631 MiB, beside caches and buffers of less than 400.
fn share_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number inside the allocator; valid at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Serves a mount until it ends; calls `ready` once it can be used.
///
/// An error of `ready` says that nobody waits any more, and ends the mount again.
pub fn serve(arguments: &Arguments, ready: impl FnOnce() -> io::Result<()>) -> Outcome {
    let signals = block_signals();
    abort_on_panic();
    share_arenas();
    if let Err(error) = fuse::mark_io_flusher() {
        tracing::debug!("not marked as an I/O flusher: {error}");
    }
    let options = arguments.merged();
    let failed = |source| Error::Path { action: "find", path: arguments.volume.clone(), source };
    let path = std::path::absolute(&arguments.volume).map_err(failed)?;
    let mountpoint = place::prepare_mountpoint(&arguments.mountpoint, &path)?;
    let volume = open(&path, &options, arguments.create)?;
    for finding in volume.findings() {
        tracing::warn!("{}: {finding:?}", path.display());
    }
    let outcome = run(&volume, &path, &settings(&path, mountpoint, &options), signals, ready);
    // After an error of the mount the volume is still open.
    if outcome.is_err()
        && let Err(error) = volume.close()
    {
        tracing::error!("cannot close {}: {}", path.display(), chain(&error));
    }
    outcome
}

fn run(
    volume: &Arc<Volume>,
    path: &Path,
    settings: &Settings,
    signals: SigSet,
    ready: impl FnOnce() -> io::Result<()>,
) -> Outcome {
    let (sender, events) = unbounded();
    let server = start_control(volume, path, settings.read_only)?;
    let on_end = sender.clone();
    let mounted = fuse::mount(Arc::clone(volume), settings, move |result| {
        let _ = on_end.send(Event::Ended(result));
    });
    let mounted = match mounted {
        Ok(mounted) => Arc::new(mounted),
        Err(error) => {
            if let Some(server) = &server {
                server.leave();
            }
            return Err(error.into());
        }
    };
    watch_signals(signals, &mounted, volume, sender.clone());
    // The working directory would keep another filesystem busy.
    let _ = std::env::set_current_dir("/");
    if let Err(error) = ready() {
        tracing::error!("nobody waits for this mount: {error}");
        end(&mounted, volume, &sender);
    }
    tracing::info!("{} is mounted on {}", path.display(), settings.mountpoint.display());
    wait(&events, volume);
    Ok(close(volume, path, server.as_ref()))
}

/// Opens the volume, waiting for a daemon that is closing it; makes it first if asked to.
fn open(path: &Path, options: &Options, create: bool) -> Result<Arc<Volume>, Error> {
    let clock = Arc::new(RealClock::new());
    let started = clock.monotonic();
    let mut may_create = create;
    loop {
        let error = match try_open(path, options, &clock) {
            Ok(volume) => return Ok(volume),
            Err(error) => error,
        };
        match &error {
            Error::Volume { error: volume::Error::NoVolume, .. } if may_create => {
                may_create = false;
                mkfs::make(path, &CreateOptions::default())?;
            }
            Error::Volume { error: volume::Error::InUse, .. }
                if may_close(path, clock.monotonic().saturating_sub(started)) =>
            {
                thread::sleep(CLOSING_STEP);
            }
            _ => return Err(error),
        }
    }
}

/// Whether to go on waiting for the holder of the lock, after `waited`: it says that it is closing,
/// or it will, as its mount is gone. An empty note counts as well: the lock changes hands between
/// two looks.
fn may_close(path: &Path, waited: Duration) -> bool {
    let Ok(note) = read_note(path, LOCK) else { return false };
    match note.trim() {
        "" | CLOSING => waited < CLOSING_WAIT,
        OPEN => waited < UNSEEN_WAIT && !is_seen(path),
        _ => false,
    }
}

/// Whether the volume at `path` is mounted where this process can see it.
fn is_seen(path: &Path) -> bool {
    match mountinfo::read() {
        Ok(mounts) => {
            mounts.iter().any(|mount| mount.is_ours() && Path::new(&mount.source) == path)
        }
        Err(_) => true,
    }
}

fn try_open(path: &Path, options: &Options, clock: &Arc<RealClock>) -> Result<Arc<Volume>, Error> {
    let defaults = OpenOptions::default();
    let read_only = options.read_only.unwrap_or(false);
    let commit_ms = options.commit_interval.map(|interval| interval.as_millis() as u64);
    let open = OpenOptions {
        read_only,
        background: true,
        cache_bytes: options.cache_bytes.unwrap_or(defaults.cache_bytes),
        index_memory_bytes: options.index_memory_bytes.unwrap_or(defaults.index_memory_bytes),
        commit_interval_ms: commit_ms.unwrap_or(defaults.commit_interval_ms),
        ..defaults
    };
    let disk = place::disk(path)?;
    let disk: Arc<dyn Disk> = if read_only { Arc::new(OverlayDisk::new(disk)) } else { disk };
    Volume::open(disk, Arc::clone(clock) as Arc<dyn Clock>, open)
        .map_err(|error| Error::Volume { path: path.to_owned(), error })
}

fn settings(path: &Path, mountpoint: PathBuf, options: &Options) -> Settings {
    // Only root can let programs be more than their caller, and is trusted with its own volume.
    let root = geteuid().is_root();
    Settings {
        source: path.as_os_str().to_owned(),
        mountpoint,
        read_only: options.read_only.unwrap_or(false),
        allow_other: options.allow_other || root,
        set_id: options.set_id.unwrap_or(root),
        devices: options.devices.unwrap_or(root),
        execute: options.execute.unwrap_or(true),
        synchronous: options.synchronous,
    }
}

/// A read-only mount holds no lock, so that the socket may be another daemon's.
fn start_control(
    volume: &Arc<Volume>,
    path: &Path,
    read_only: bool,
) -> Result<Option<Server>, Error> {
    if read_only {
        return Ok(None);
    }
    match Server::start(path, Arc::clone(volume)) {
        Ok(server) => Ok(Some(server)),
        Err(source) => Err(Error::Control { volume: path.to_owned(), source }),
    }
}

fn wait(events: &Receiver<Event>, volume: &Volume) {
    match events.recv() {
        Ok(Event::Ended(Ok(()))) => {}
        Ok(Event::Ended(Err(error))) => tracing::error!("the mount ended: {error}"),
        Ok(Event::GraceOver) => tracing::warn!("closing the volume while files are open"),
        // Each sender sends before it goes; were all gone, nothing would be left to serve.
        Err(_) => tracing::error!("nothing serves the mount any more"),
    }
    volume.announce_closing();
    // What a slow end still holds is made durable before the longer work of closing.
    if let Err(error) = volume.sync() {
        tracing::error!("the last commit failed: {}", chain(&error));
    }
}

fn close(volume: &Volume, path: &Path, server: Option<&Server>) -> u8 {
    if let Some(server) = server {
        server.leave();
    }
    let (answer, code) = match volume.close() {
        Ok(()) => (Answer::Done, FINE),
        Err(error) => {
            tracing::error!("cannot close {}: {}", path.display(), chain(&error));
            (Answer::Failed { why: chain(&error) }, FINDINGS)
        }
    };
    if let Some(server) = server {
        server.closed(&answer);
    }
    tracing::info!("{} is closed", path.display());
    code
}

/// Blocks the signals that end the daemon; all threads that start later have them blocked too.
fn block_signals() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGHUP);
    if let Err(errno) = signals.thread_block() {
        tracing::warn!("cannot block signals: {errno}");
    }
    signals
}

fn watch_signals(
    signals: SigSet,
    mounted: &Arc<Mounted>,
    volume: &Arc<Volume>,
    sender: Sender<Event>,
) {
    let (mounted, volume) = (Arc::clone(mounted), Arc::clone(volume));
    let started = thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while let Ok(signal) = signals.wait() {
            tracing::info!("{signal}: unmounting");
            end(&mounted, &volume, &sender);
        }
    });
    if let Err(error) = started {
        tracing::warn!("signals are not watched: {error}");
    }
}

/// Ends the mount. With files open it goes out of sight at once, and for good after a grace.
fn end(mounted: &Mounted, volume: &Volume, sender: &Sender<Event>) {
    if !mounted.is_mounted() {
        return;
    }
    let mountpoint = mounted.mountpoint();
    let error = match fuse::unmount(mountpoint, false) {
        Ok(()) => return,
        Err(error) => error,
    };
    tracing::warn!("{} is busy ({error}): unmounting lazily", mountpoint.display());
    hand_over(mountpoint);
    if let Err(error) = fuse::unmount(mountpoint, true) {
        tracing::error!("cannot unmount {}: {error}", mountpoint.display());
    }
    if let Err(error) = volume.sync() {
        tracing::error!("cannot sync: {}", chain(&error));
    }
    thread::sleep(GRACE);
    let _ = sender.send(Event::GraceOver);
}

/// Has the kernel hand over what it holds of open files. On a thread of its own, as it asks the
/// mount, which this process serves.
fn hand_over(mountpoint: &Path) {
    let (done, wait) = bounded(1);
    let path = mountpoint.to_owned();
    let started = thread::Builder::new().name("hand-over".to_owned()).spawn(move || {
        let synced = std::fs::File::open(path)
            .and_then(|root| nix::unistd::syncfs(root).map_err(io::Error::from));
        let _ = done.send(synced);
    });
    if started.is_ok() && !matches!(wait.recv_timeout(HAND_OVER_WAIT), Ok(Ok(()))) {
        tracing::warn!("the kernel may not have handed over everything");
    }
}

fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("{panic}");
        std::process::abort();
    }));
}
