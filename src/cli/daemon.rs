//! The process that serves a mount, from opening the volume to closing it.
//!
//! Invariants: (1) whatever ends the mount, the volume is closed and the exit code tells whether
//! all was stored; (2) a panic anywhere ends the process at once: the volume survives that as it
//! survives a crash, while a mount that is served by half of its threads would hang its users.
//!
//! What it answers to other commands stands in `service`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::geteuid;

use super::control::{Answer, Client, Server};
use super::error::Error;
use super::mount::Arguments;
use super::options::Options;
use super::service::{Service, open_options};
use super::{FINDINGS, FINE, Outcome, mkfs, place};
use crate::fuse::{self, Mounted, Settings, Unmount, chain};
use crate::sys::overlay::OverlayDisk;
use crate::sys::real::{RealClock, read_note};
use crate::sys::{Clock, Disk};
use crate::volume::{self, Atime, CreateOptions, Current, Volume};

/// How long to wait for a daemon that says it is closing.
const CLOSING_WAIT: Duration = Duration::from_secs(60);
/// How long to wait for one whose mount was taken out of sight while files are open.
const LINGERING_WAIT: Duration = Duration::from_secs(5);
/// How long to wait for one that says nothing: it is just beginning or ending, or is no daemon.
const SILENT_WAIT: Duration = Duration::from_secs(3);
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
    let options = arguments.merged()?;
    let failed = |source| Error::Path { action: "find", path: arguments.volume.clone(), source };
    let path = std::path::absolute(&arguments.volume).map_err(failed)?;
    let mountpoint = place::prepare_mountpoint(arguments.mountpoint()?, &path)?;
    let volume = open(&path, &options, arguments.create)?;
    if let Some(name) = &options.snapshot {
        let no = |_| Error::NoSnapshot { volume: path.clone(), name: name.clone() };
        volume.show_snapshot(name.as_bytes()).map_err(no)?;
    }
    for finding in volume.findings() {
        tracing::warn!("{}: {finding:?}", path.display());
    }
    let volume = Current::new(volume);
    let settings = settings(arguments, mountpoint, &options);
    let service = Service::new(Arc::clone(&volume), path.clone(), &options, &settings)?;
    let service = Arc::new(service);
    let outcome = run(&service, &settings, signals, ready);
    // After an error of the mount the volume is still open.
    if outcome.is_err()
        && let Err(error) = volume.close()
    {
        tracing::error!("cannot close {}: {}", path.display(), chain(&error));
    }
    outcome
}

fn run(
    service: &Arc<Service>,
    settings: &Settings,
    signals: SigSet,
    ready: impl FnOnce() -> io::Result<()>,
) -> Outcome {
    let (volume, path) = (service.volume(), service.path());
    let (sender, events) = unbounded();
    let server = service.start()?;
    let on_end = sender.clone();
    let mounted = fuse::mount(Arc::clone(volume), settings, move |result| {
        let _ = on_end.send(Event::Ended(result));
    });
    let mounted = match mounted {
        Ok(mounted) => Arc::new(mounted),
        Err(error) => {
            server.leave();
            return Err(error.into());
        }
    };
    service.mounted(&mounted, &server);
    watch_signals(signals, &mounted, volume, sender.clone());
    // The working directory would keep another filesystem busy.
    let _ = std::env::set_current_dir("/");
    if let Err(error) = ready() {
        tracing::error!("nobody waits for this mount: {error}");
        end(&mounted, volume, &sender);
    }
    tracing::info!("{} is mounted on {}", path.display(), settings.mountpoint.display());
    wait(&events, volume);
    service.stop_background();
    Ok(close(volume, path, &server))
}

/// Opens the volume, waiting for a daemon that is closing it; makes it first if asked to.
fn open(path: &Path, options: &Options, create: bool) -> Result<Arc<Volume>, Error> {
    let clock = Arc::new(RealClock::new());
    let started = clock.monotonic();
    let waited = || clock.monotonic().saturating_sub(started);
    let mut lingering = None;
    // Without a lock of its own, it would show what stood there before the last commit.
    while options.read_only == Some(true) && is_locked(path) {
        if !may_close(path, waited(), &mut lingering) {
            break;
        }
        thread::sleep(CLOSING_STEP);
    }
    loop {
        let error = match try_open_or_make(path, options, create, &clock) {
            Ok(volume) => return Ok(volume),
            Err(error) => error,
        };
        match &error {
            Error::Volume { error: volume::Error::InUse, .. } => {
                if !may_close(path, waited(), &mut lingering) {
                    let volume = path.to_owned();
                    return Err(lingering.map_or(error, |pid| Error::Lingering { volume, pid }));
                }
                thread::sleep(CLOSING_STEP);
            }
            _ => return Err(error),
        }
    }
}

/// Whether somebody holds the lock of the volume. Nothing is changed for that.
fn is_locked(path: &Path) -> bool {
    let Ok(file) = File::open(path.join(LOCK)) else { return false };
    matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock))
}

/// Whether to go on waiting for the holder of the lock, after `waited`: it says that it is closing,
/// or it will, as its mount is gone. An empty note counts as well: the lock changes hands between
/// two looks. In `lingering` stands a daemon that goes on for the sake of open files.
fn may_close(path: &Path, waited: Duration, lingering: &mut Option<u32>) -> bool {
    *lingering = None;
    let Ok(note) = read_note(path, LOCK) else { return false };
    match note.trim() {
        "" | CLOSING => waited < CLOSING_WAIT,
        OPEN => match Client::of_volume(path).and_then(Client::place) {
            Some(place) if place.mounted => false,
            // One that has no number yet is not mounted yet.
            Some(place) if place.device.is_some() => {
                *lingering = Some(place.pid);
                waited < LINGERING_WAIT
            }
            _ => waited < SILENT_WAIT,
        },
        _ => false,
    }
}

fn try_open_or_make(
    path: &Path,
    options: &Options,
    create: bool,
    clock: &Arc<RealClock>,
) -> Result<Arc<Volume>, Error> {
    match try_open(path, options, clock) {
        Err(Error::Volume { error: volume::Error::NoVolume, .. }) if create => {}
        opened => return opened,
    }
    match mkfs::make(path, &CreateOptions::default()) {
        // Another one may have been faster.
        Ok(()) | Err(Error::Volume { error: volume::Error::AlreadyAVolume, .. }) => {
            try_open(path, options, clock)
        }
        Err(error) => Err(error),
    }
}

fn try_open(path: &Path, options: &Options, clock: &Arc<RealClock>) -> Result<Arc<Volume>, Error> {
    let read_only = options.read_only.unwrap_or(false);
    let disk = place::disk(path)?;
    let disk: Arc<dyn Disk> = if read_only { Arc::new(OverlayDisk::new(disk)) } else { disk };
    let clock = Arc::clone(clock) as Arc<dyn Clock>;
    Volume::open(disk, clock, open_options(options, read_only))
        .map_err(|error| Error::Volume { path: path.to_owned(), error })
}

fn settings(arguments: &Arguments, mountpoint: PathBuf, options: &Options) -> Settings {
    // Only root can let programs be more than their caller, and is trusted with its own volume.
    let root = geteuid().is_root();
    Settings {
        source: arguments.volume.as_os_str().to_owned(),
        subtype: options.subtype.unwrap_or(true),
        mountpoint,
        read_only: options.read_only.unwrap_or(false),
        allow_other: options.allow_other || root,
        set_id: options.set_id.unwrap_or(root),
        devices: options.devices.unwrap_or(root),
        execute: options.execute.unwrap_or(true),
        synchronous: options.synchronous.unwrap_or(false),
        atime: options.atime.unwrap_or(Atime::Relative),
        dir_atime: options.dir_atime.unwrap_or(true),
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

fn close(volume: &Current, path: &Path, server: &Server) -> u8 {
    server.leave();
    let (answer, code) = match volume.close() {
        Ok(()) => (Answer::Done, FINE),
        Err(error) => {
            tracing::error!("cannot close {}: {}", path.display(), chain(&error));
            (Answer::Failed { why: chain(&error) }, FINDINGS)
        }
    };
    server.closed(&answer);
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
    volume: &Arc<Current>,
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
    let error = match fuse::unmount(mountpoint, Unmount::Plain) {
        Ok(()) => return,
        Err(error) => error,
    };
    tracing::warn!("{} is busy ({error}): unmounting lazily", mountpoint.display());
    hand_over(mountpoint);
    if let Err(error) = fuse::unmount(mountpoint, Unmount::Lazy) {
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
