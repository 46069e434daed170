//! `pyramidfs check`: verifies a volume that is not mounted.
//!
//! Nothing on its disk changes, unless `--repair` is given and there is something to repair. The
//! lock is held for the time, so that nobody mounts it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytesize::ByteSize;
use serde::Serialize;

use super::error::Error;
use super::progress::Progress;
use super::{FINDINGS, FINE, Outcome, place};
use crate::check::{self, Report};
use crate::sys::overlay::OverlayDisk;
use crate::sys::real::RealClock;
use crate::sys::{Access, Disk, DiskLock};
use crate::volume;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Directory of the volume
    volume: PathBuf,
    /// Read all data and verify every hash
    #[arg(long)]
    read_data: bool,
    /// Repair what can be repaired: metadata that is lost or damaged is made again from the packs
    #[arg(long)]
    repair: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Printed<'a> {
    clean: bool,
    files: u64,
    chunks: u64,
    bytes: u64,
    findings: &'a [check::Finding],
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Outcome {
    let path = place::find_mount(&arguments.volume)?
        .map_or(arguments.volume.clone(), |mount| place::volume_of(&mount));
    let disk = place::disk(&path)?;
    let lock = lock(&disk, &path)?;
    let of_volume = |error| Error::Volume { path: path.clone(), error };
    let lost = match arguments.repair {
        true => repair_metadata(&disk, lock.is_some()).map_err(of_volume)?,
        false => Vec::new(),
    };
    let overlay: Arc<dyn Disk> = Arc::new(OverlayDisk::new(disk));
    let mut progress = Progress::start(true);
    let mut report = check::run(
        overlay,
        Arc::new(RealClock::new()),
        arguments.read_data,
        &mut |step: check::Progress| {
            progress.update(step.done_bytes, step.total_bytes, step.what);
        },
    )
    .map_err(of_volume)?;
    drop(progress);
    report.findings.extend(lost);
    print(&report, arguments.json).map_err(Error::Print)?;
    Ok(if report.findings.is_empty() { FINE } else { FINDINGS })
}

/// Makes the metadata again if it cannot be used, and says so. Returns what is lost for good.
fn repair_metadata(
    disk: &Arc<dyn Disk>,
    is_locked: bool,
) -> Result<Vec<check::Finding>, volume::Error> {
    let Some(damage) = volume::metadata_damage(disk)? else { return Ok(Vec::new()) };
    if !is_locked {
        return Err(volume::Error::ReadOnly);
    }
    let rebuilt = volume::rebuild_metadata(disk)?;
    let aside = rebuilt.aside.map_or(String::new(), |path| format!("; the old one is {path}"));
    eprintln!("{damage}: made again up to commit {}{aside}", rebuilt.sequence);
    Ok(rebuilt.findings.into_iter().map(check::Finding::Store).collect())
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

fn print(report: &Report, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        let printed = Printed {
            clean: report.findings.is_empty(),
            files: report.files,
            chunks: report.chunks,
            bytes: report.bytes,
            findings: &report.findings,
        };
        serde_json::to_writer_pretty(&mut out, &printed)?;
        return writeln!(out);
    }
    for finding in &report.findings {
        writeln!(out, "{finding}")?;
    }
    let result = match report.findings.len() {
        0 => "clean".to_owned(),
        1 => "1 finding".to_owned(),
        more => format!("{more} findings"),
    };
    let size = ByteSize(report.bytes).display().iec();
    writeln!(out, "{result}: {} files, {} chunks, {size}", report.files, report.chunks)
}
