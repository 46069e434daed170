//! What the daemon answers to other commands.
//!
//! Owns what a mount was made with, so that a remount can be compared with it, and the change of a
//! mount from read-only to writable: the volume is opened for writing in place.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::control::{Answer, CheckSummary, Figures, Place, Request, Server};
use super::error::Error;
use super::options::{self, Options};
use super::{place, snapshot};
use crate::check::{Schedule, Scrub};
use crate::fuse::{self, Mounted, Settings, chain};
use crate::sys::real::RealClock;
use crate::volume::{Atime, Collect, Current, Keeper, Named, OpenOptions, Status};

/// A mount that is served, as other commands see it.
pub struct Service {
    volume: Arc<Current>,
    path: PathBuf,
    /// As they hold, defaults filled in.
    options: Options,
    mount: OnceLock<Arc<Mounted>>,
    checks: Scrub,
    /// As the last remount left it; 0 for none.
    quota_bytes: AtomicU64,
    /// Held by the one that walks for `du`.
    usage_walk: Mutex<()>,
    /// How far that is, and of how much.
    usage_progress: [AtomicU64; 2],
    /// Makes snapshots by itself, if that was asked for.
    keeper: Mutex<Option<Keeper>>,
}

impl Service {
    /// The service of the volume at `path`.
    pub fn new(
        volume: Arc<Current>,
        path: PathBuf,
        options: &Options,
        settings: &Settings,
    ) -> Result<Service, Error> {
        let open = open_options(options, settings.read_only);
        let options = Options {
            allow_other: settings.allow_other,
            subtype: Some(settings.subtype),
            cache_bytes: Some(open.cache_bytes),
            index_memory_bytes: Some(open.index_memory_bytes),
            commit_interval: Some(std::time::Duration::from_millis(open.commit_interval_ms)),
            collects: Some(open.collects),
            check_interval: Some(options.check_interval.unwrap_or_default()),
            check_rate_bytes: Some(options.check_rate_bytes.unwrap_or(Schedule::RATE_BYTES)),
            ..options.clone()
        };
        let schedule = Schedule {
            interval: options.check_interval.filter(|interval| !interval.is_zero()),
            rate_bytes: options.check_rate_bytes.unwrap_or(Schedule::RATE_BYTES),
        };
        let checks = Scrub::start(&volume, Arc::new(RealClock::new()), schedule);
        let checks = checks.map_err(Error::Daemon)?;
        let quota_bytes = AtomicU64::new(options.quota_bytes.unwrap_or(0));
        Ok(Service {
            volume,
            path,
            options,
            mount: OnceLock::new(),
            checks,
            quota_bytes,
            usage_walk: Mutex::default(),
            usage_progress: Default::default(),
            keeper: Mutex::default(),
        })
    }

    /// Ends a check that is under way, and the making of snapshots: to be called before the volume
    /// is closed.
    pub fn stop_background(&self) {
        self.checks.stop();
        drop(self.keeper.lock().take());
    }

    /// The volume.
    pub fn volume(&self) -> &Arc<Current> {
        &self.volume
    }

    /// Where the volume is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts to answer those who come by the volume's directory, if the volume is locked.
    pub fn start(self: &Arc<Self>) -> Result<Server, Error> {
        let service = Arc::clone(self);
        let server = Server::new(move |server, request| service.answer(server, request));
        if self.volume.is_writable() {
            self.open_door(&server)?;
        }
        Ok(server)
    }

    /// Answers those who come by the mount as well.
    pub fn mounted(&self, mount: &Arc<Mounted>, server: &Server) {
        let mount = self.mount.get_or_init(|| Arc::clone(mount));
        self.keep_snapshots(mount);
        let Some(device) = mount.device() else { return };
        if let Err(error) = server.open_for_mount(device) {
            tracing::info!("no socket in the runtime directory: {error}");
        }
    }

    /// Starts the thread that makes snapshots, if a policy says so.
    fn keep_snapshots(&self, mount: &Mounted) {
        let Some(policy) = self.options.snapshots else { return };
        let mountpoint = mount.mountpoint().to_owned();
        let before = move || {
            if let Err(error) = snapshot::hand_over(&mountpoint) {
                tracing::warn!("the kernel may hold what the snapshot lacks: {}", error.line());
            }
        };
        match Keeper::start(&self.volume, Arc::new(RealClock::new()), policy, before) {
            Ok(keeper) => *self.keeper.lock() = Some(keeper),
            Err(error) => tracing::error!("no snapshots are made: {error}"),
        }
    }

    fn snapshot(&self, wanted: &snapshot::Wanted) -> Answer {
        let done = snapshot::act(&self.volume, wanted.clone(), &mut |dir, name| {
            if let Some(mount) = self.mount.get() {
                mount.renew(dir, name);
            }
        });
        match done {
            Ok(told) => Answer::Snapshot { told: Box::new(told) },
            Err(error) => Answer::Failed { why: chain(&error) },
        }
    }

    fn open_door(&self, server: &Server) -> Result<(), Error> {
        let failed = |source| Error::Control { volume: self.path.clone(), source };
        server.open_in_volume(&self.path).map_err(failed)
    }

    fn answer(&self, server: &Server, request: &Request) -> Answer {
        let done = match request {
            Request::Status => return self.status(),
            Request::Place => return Answer::Place(self.place()),
            Request::Sync => self.volume.sync().map_err(|error| chain(&error)),
            Request::Remount { options } => self.remount(server, options),
            Request::Remounted => self.remounted(),
            Request::Check { read_data, rate_bytes } => {
                return Answer::Check(Box::new(self.checks.ask(*read_data, *rate_bytes)));
            }
            Request::CheckFigures => return Answer::Check(Box::new(self.checks.figures())),
            Request::Collect { .. } if !self.volume.is_writable() => {
                Err("the mount is read-only: nothing can be collected".to_owned())
            }
            Request::Collect { dry_run } => {
                let ask = Collect { dry_run: *dry_run, urgent: true };
                return Answer::Collect(Box::new(self.volume.ask_to_collect(ask)));
            }
            Request::CollectFigures => {
                return Answer::Collect(Box::new(self.volume.collect_figures()));
            }
            Request::Snapshot { wanted } => return self.snapshot(wanted),
            Request::CheckStop => {
                self.checks.cancel();
                Ok(())
            }
            Request::Usage { names } => return self.usage(names),
            Request::UsageProgress => {
                let [done, total] = &self.usage_progress;
                let (done, total) = (done.load(Ordering::Relaxed), total.load(Ordering::Relaxed));
                return Answer::Progress { done, total };
            }
            // The server's own.
            Request::Closed => return Answer::Waiting,
        };
        done.map_or_else(|why| Answer::Failed { why }, |()| Answer::Done)
    }

    fn status(&self) -> Answer {
        match self.volume.status() {
            Ok(status) => Answer::Status(Box::new(Figures {
                status: Status { mounted: true, ..status },
                read_only: self.is_read_only(),
                check: Some(CheckSummary::of(&self.checks.figures())),
                volume: self.path.to_string_lossy().into_owned(),
            })),
            Err(error) => Answer::Failed { why: chain(&error) },
        }
    }

    /// One walk at a time: each has marks for all chunks.
    fn usage(&self, names: &[Named]) -> Answer {
        let _one = self.usage_walk.lock();
        let usage = self.volume.usage(names, &mut |done, total| {
            let [last_done, last_total] = &self.usage_progress;
            last_done.store(done, Ordering::Relaxed);
            last_total.store(total, Ordering::Relaxed);
            ControlFlow::Continue(())
        });
        match usage {
            Ok(usage) => Answer::Usage(usage),
            Err(error) => Answer::Failed { why: chain(&error) },
        }
    }

    fn is_read_only(&self) -> bool {
        let entry = self.mount.get().and_then(|mount| mount.entry());
        entry.map_or(!self.volume.is_writable(), |entry| entry.is_read_only())
    }

    fn place(&self) -> Place {
        let mount = self.mount.get();
        Place {
            volume: self.path.to_string_lossy().into_owned(),
            device: mount.and_then(|mount| mount.device()).map(str::to_owned),
            mounted: mount.is_some_and(|mount| mount.entry().is_some()),
            pid: std::process::id(),
        }
    }

    /// Gets ready for a remount: the kernel's part follows.
    fn remount(&self, server: &Server, list: &str) -> Result<(), String> {
        let asked = options::parse(list)?;
        self.options.refuse_changes(&asked)?;
        if self.options.snapshot.is_some() && asked.read_only == Some(false) {
            return Err("a snapshot is mounted, which cannot be written to".to_owned());
        }
        if let Some(bytes) = asked.quota_bytes {
            self.quota_bytes.store(bytes, Ordering::Relaxed);
            self.volume.set_quota(bytes);
        }
        if asked.read_only == Some(false) && !self.volume.is_writable() {
            self.make_writable(server).map_err(|error| error.line())?;
            tracing::info!("{} is open for writing from here on", self.path.display());
        }
        Ok(())
    }

    /// Follows the kernel's flags after a remount.
    fn remounted(&self) -> Result<(), String> {
        let Some(entry) = self.mount.get().and_then(|mount| mount.entry()) else { return Ok(()) };
        match (entry.is_read_only(), fuse::access_times(&entry)) {
            // Reading moves nothing on it any more.
            (true, _) => self.volume.set_access_times(Atime::Never, false),
            (false, (atime, directories)) => self.volume.set_access_times(atime, directories),
        }
        self.volume.sync().map_err(|error| format!("not all is durable: {}", chain(&error)))
    }

    fn make_writable(&self, server: &Server) -> Result<(), Error> {
        let disk = place::disk(&self.path)?;
        let quota_bytes = Some(self.quota_bytes.load(Ordering::Relaxed));
        let options = open_options(&Options { quota_bytes, ..self.options.clone() }, false);
        self.volume
            .make_writable(disk, Arc::new(RealClock::new()), options)
            .map_err(|error| Error::Volume { path: self.path.clone(), error })?;
        self.open_door(server)
    }
}

/// How the volume is opened with these options.
pub fn open_options(options: &Options, read_only: bool) -> OpenOptions {
    let defaults = OpenOptions::default();
    let commit_ms = options.commit_interval.map(|interval| interval.as_millis() as u64);
    OpenOptions {
        read_only,
        background: true,
        times_by_kernel: true,
        cache_bytes: options.cache_bytes.unwrap_or(defaults.cache_bytes),
        index_memory_bytes: options.index_memory_bytes.unwrap_or(defaults.index_memory_bytes),
        commit_interval_ms: commit_ms.unwrap_or(defaults.commit_interval_ms),
        atime: options.atime.unwrap_or(defaults.atime),
        dir_atime: options.dir_atime.unwrap_or(defaults.dir_atime),
        quota_bytes: options.quota_bytes.filter(|&bytes| bytes != 0),
        collects: options.collects.unwrap_or(defaults.collects),
        ..defaults
    }
}
