//! `pyramidfs check`: verifies a volume; with `--repair` it restores what can be restored first.
//!
//! A mounted volume is checked by its daemon, beside its use; this command asks for it and follows.
//! Of any other nothing on the disk changes, unless it is to be repaired, and the lock is held for
//! the time, so that nobody mounts it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Serialize;

use super::control::{Answer, Client, Request};
use super::error::Error;
use super::options::parse_rate;
use super::progress::Progress;
use super::{FINDINGS, FINE, Outcome, place, repair};
use crate::check;
use crate::fuse::mountinfo::MountEntry;
use crate::sys::overlay::OverlayDisk;
use crate::sys::real::RealClock;
use crate::sys::{Access, Disk, DiskLock};
use crate::volume;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Directory of the volume, or where it is mounted
    volume: PathBuf,
    /// Read all data and verify every hash
    #[arg(long)]
    read_data: bool,
    /// Restore what can be restored; reads all data
    #[arg(long)]
    repair: bool,
    /// A file, a directory of files or another volume that may hold what was lost; may be repeated
    #[arg(long, value_name = "PATH", requires = "repair")]
    from: Vec<PathBuf>,
    /// Of a mounted volume: read that much in a second, as 64MiB; 0 is no limit
    #[arg(long, value_name = "SIZE", value_parser = parse_rate, conflicts_with = "repair")]
    rate: Option<u64>,
    /// Of a mounted volume: end the check under way
    #[arg(long, conflicts_with_all = ["repair", "read_data"])]
    stop: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How often a daemon is asked how far it is.
const POLL: Duration = Duration::from_millis(200);

/// What is printed.
#[derive(Serialize)]
struct Printed {
    clean: bool,
    files: u64,
    chunks: u64,
    bytes: u64,
    healed: u64,
    repairs: Vec<String>,
    findings: Vec<String>,
    /// Of the findings, when there are more than are listed.
    #[serde(skip)]
    count: u64,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Outcome {
    let daemon = Daemon::of(&arguments.volume)?;
    let printed = match &daemon {
        Some(daemon) if !arguments.repair => daemon.check(arguments)?,
        None if arguments.stop => {
            return Err(Error::NotMounted(arguments.volume.clone()));
        }
        _ => Some(offline(arguments)?),
    };
    let Some(printed) = printed else { return Ok(FINE) };
    print(&printed, arguments.json).map_err(Error::Print)?;
    Ok(if printed.clean { FINE } else { FINDINGS })
}

/// The daemon of a mounted volume.
struct Daemon {
    path: PathBuf,
    mount: Option<MountEntry>,
}

impl Daemon {
    /// The daemon of the volume at `path`, or mounted there, if it can be asked.
    fn of(path: &Path) -> Result<Option<Daemon>, Error> {
        let daemon = Daemon { path: path.to_owned(), mount: place::find_mount(path)? };
        Ok(daemon.connect().is_some().then_some(daemon))
    }

    fn connect(&self) -> Option<Client> {
        match &self.mount {
            Some(mount) => Client::of_mount(mount),
            None => Client::of_volume(&self.path),
        }
    }

    fn ask(&self, request: Request) -> Result<Answer, Error> {
        self.connect().ok_or(Error::DaemonGone)?.ask(request)
    }

    /// Asks for a check and follows it; none when one was only to be ended.
    fn check(&self, arguments: &Arguments) -> Result<Option<Printed>, Error> {
        if arguments.stop {
            return self.ask(Request::CheckStop).map(|_| None);
        }
        let (read_data, rate_bytes) = (arguments.read_data, arguments.rate);
        let mut answer = self.ask(Request::Check { read_data, rate_bytes })?;
        let mut progress = Progress::start(true);
        loop {
            let figures = match answer {
                Answer::Check(figures) => *figures,
                Answer::Failed { why } => return Err(Error::Reported(why)),
                _ => return Err(Error::DaemonGone),
            };
            if !figures.running {
                drop(progress);
                return match figures.failure {
                    Some(why) => Err(Error::Reported(format!("the check did not end: {why}"))),
                    None => Ok(Some(Printed::of_figures(figures))),
                };
            }
            progress.update(figures.done_bytes, figures.total_bytes, &figures.what);
            thread::sleep(POLL);
            answer = self.ask(Request::CheckFigures)?;
        }
    }
}

impl Printed {
    fn of_figures(figures: check::Figures) -> Printed {
        Printed {
            clean: figures.finding_count == 0,
            files: figures.files,
            chunks: figures.chunks,
            bytes: figures.bytes,
            healed: figures.healed,
            repairs: Vec::new(),
            count: figures.finding_count,
            findings: figures.findings,
        }
    }
}

/// Checks a volume that nobody has open.
fn offline(arguments: &Arguments) -> Result<Printed, Error> {
    let path = place::find_mount(&arguments.volume)?
        .map_or(arguments.volume.clone(), |mount| place::volume_of(&mount));
    let disk = place::disk(&path)?;
    let of_volume = |error| Error::Volume { path: path.clone(), error };
    let mut progress = Progress::start(true);
    let mut repairs = Vec::new();
    let mut lost = Vec::new();
    if arguments.repair {
        let lock = lock(&disk, &path)?;
        if lock.is_none() {
            return Err(of_volume(volume::Error::ReadOnly));
        }
        lost = repair_metadata(&disk, &mut repairs).map_err(of_volume)?;
        // What follows takes it by itself.
        drop(lock);
        let repaired = repair::repair(&path, &arguments.from, &mut progress)?;
        lost.extend(repaired.opening.iter().map(ToString::to_string));
        repairs.extend(repair::lines(&repaired));
    }
    let _lock = lock(&disk, &path)?;
    let overlay: Arc<dyn Disk> = Arc::new(OverlayDisk::new(disk));
    let report = check::run(
        overlay,
        Arc::new(RealClock::new()),
        arguments.read_data,
        &mut |step: check::Progress| {
            progress.update(step.done_bytes, step.total_bytes, step.what);
        },
    )
    .map_err(of_volume)?;
    let mut findings = lost;
    findings.extend(report.findings.iter().map(ToString::to_string));
    Ok(Printed {
        clean: findings.is_empty(),
        files: report.files,
        chunks: report.chunks,
        bytes: report.bytes,
        healed: report.healed,
        repairs,
        count: findings.len() as u64,
        findings,
    })
}

/// Makes the metadata again if it cannot be used, and says so. Returns what is lost for good.
fn repair_metadata(
    disk: &Arc<dyn Disk>,
    repairs: &mut Vec<String>,
) -> Result<Vec<String>, volume::Error> {
    let Some(damage) = volume::metadata_damage(disk)? else { return Ok(Vec::new()) };
    let rebuilt = volume::rebuild_metadata(disk)?;
    let aside = rebuilt.aside.map_or(String::new(), |path| format!("; the old one is {path}"));
    repairs.push(format!("{damage}: made again up to commit {}{aside}", rebuilt.sequence));
    Ok(rebuilt.findings.into_iter().map(|one| check::Finding::Store(one).to_string()).collect())
}

/// Keeps others from mounting it. Read-only media need no lock.
fn lock(disk: &Arc<dyn Disk>, path: &Path) -> Result<Option<Box<dyn DiskLock>>, Error> {
    // First, as the lock would make its file in any directory.
    if let Err(source) = disk.open("superblock", Access::Read) {
        return Err(if source.kind() == io::ErrorKind::NotFound {
            let error = volume::Error::NoVolume;
            Error::Volume { path: path.to_owned(), error }
        } else {
            Error::Path { action: "open", path: path.join("superblock"), source }
        });
    }
    match disk.lock("lock") {
        Ok(lock) => {
            // An empty note would make a mount wait, as if the check were over soon.
            let noted = lock.set_note("checking");
            noted.map_err(|source| Error::Path {
                action: "lock",
                path: path.to_owned(),
                source,
            })?;
            Ok(Some(lock))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(Error::CheckInUse(path.to_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(None),
        Err(source) => Err(Error::Path { action: "lock", path: path.to_owned(), source }),
    }
}

fn print(printed: &Printed, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, printed)?;
        return writeln!(out);
    }
    for line in printed.repairs.iter().chain(&printed.findings) {
        writeln!(out, "{line}")?;
    }
    let result = match printed.count {
        0 => "clean".to_owned(),
        1 => "1 finding".to_owned(),
        more => format!("{more} findings"),
    };
    if printed.healed > 0 {
        writeln!(out, "{} damaged places hold chunks that were stored anew", printed.healed)?;
    }
    let size = ByteSize(printed.bytes).display().iec();
    writeln!(out, "{result}: {} files, {} chunks, {size}", printed.files, printed.chunks)
}
