//! `pyramidfs status`: what a volume holds, and the space that it saves.
//!
//! A mounted volume is asked through its daemon; any other is opened for a look, which changes
//! nothing on its disk.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytesize::ByteSize;

use super::control::{Answer, CheckSummary, Client, Figures, Request};
use super::error::Error;
use super::{FINE, Outcome, place};
use crate::fuse::mountinfo::{self, MountEntry};
use crate::sys::Clock;
use crate::sys::real::RealClock;
use crate::volume::Status;

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Directory of a volume, or where it is mounted
    volume: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Outcome {
    let figures = match place::find_mount(&arguments.volume)? {
        Some(mount) => of_mount(&arguments.volume, &mount)?,
        None => of_volume(&arguments.volume)?,
    };
    let text = if arguments.json {
        json(&figures).map_err(|error| Error::Print(error.into()))?
    } else {
        table(&figures, u64::try_from(RealClock::new().now().secs).unwrap_or(0))
    };
    writeln!(io::stdout(), "{}", text.trim_end()).map_err(Error::Print)?;
    Ok(FINE)
}

fn of_mount(path: &Path, mount: &MountEntry) -> Result<Figures, Error> {
    match Client::of_mount(mount) {
        Some(daemon) => ask(daemon),
        None if place::is_dead(path) => Err(Error::Dead(path.to_owned())),
        // The daemon takes no questions from this user.
        None => {
            let mut figures = look(Path::new(&mount.source))?;
            figures.status.mounted = true;
            figures.read_only = mount.is_read_only();
            Ok(figures)
        }
    }
}

fn of_volume(path: &Path) -> Result<Figures, Error> {
    if let Some(daemon) = Client::of_volume(path) {
        return ask(daemon);
    }
    // Mounts for reading only have no socket in the volume.
    let name = std::fs::canonicalize(path).unwrap_or_default();
    let mounts = mountinfo::read().unwrap_or_default();
    for mount in mounts.iter().filter(|mount| place::is_ours(mount)) {
        let there = || std::fs::canonicalize(place::volume_of(mount));
        if let Some(daemon) = Client::of_mount(mount)
            && there().is_ok_and(|there| there == name)
        {
            return ask(daemon);
        }
    }
    look(path)
}

fn ask(daemon: Client) -> Result<Figures, Error> {
    match daemon.ask(Request::Status)? {
        Answer::Status(figures) => Ok(*figures),
        Answer::Failed { why } => Err(Error::Reported(why)),
        _ => Err(Error::DaemonGone),
    }
}

fn look(path: &Path) -> Result<Figures, Error> {
    let status = place::open_read_only(path)?
        .status()
        .map_err(|error| Error::Volume { path: path.to_owned(), error })?;
    let volume = path.to_string_lossy().into_owned();
    Ok(Figures { status, read_only: false, check: None, volume })
}

/// The figures, and the two ratios that follow from them.
fn json(figures: &Figures) -> serde_json::Result<String> {
    let mut value = serde_json::to_value(figures)?;
    let status = &figures.status;
    let ratios = [
        ("dedup_ratio", status.logical_bytes, status.unique_bytes),
        ("compression_ratio", status.unique_bytes, status.pack_bytes),
    ];
    if let Some(object) = value.as_object_mut() {
        for (name, before, after) in ratios {
            let ratio = (before != 0 && after != 0).then(|| before as f64 / after as f64);
            object.insert(name.to_owned(), ratio.into());
        }
    }
    serde_json::to_string_pretty(&value)
}

/// How the last check ended, `now` being the time in seconds since 1970.
fn checked(check: &CheckSummary, now: u64) -> String {
    let found = match check.findings {
        0 => "clean".to_owned(),
        1 => "1 finding".to_owned(),
        more => format!("{more} findings"),
    };
    let hours = now.saturating_sub(check.finished) / 3600;
    match (check.running, check.finished) {
        (true, _) => "under way".to_owned(),
        (false, 0) => "never: see 'pyramidfs check'".to_owned(),
        _ if hours < 48 => format!("{found}, {hours} hours ago"),
        _ => format!("{found}, {} days ago", hours / 24),
    }
}

fn table(figures: &Figures, now: u64) -> String {
    let status: &Status = &figures.status;
    let size = |bytes| ByteSize(bytes).display().iec().to_string();
    let state = match (status.mounted, status.poisoned) {
        (_, true) => "takes no more changes since an I/O failure: unmount and mount again",
        (true, false) if figures.read_only => "mounted (read-only)",
        (true, false) => "mounted",
        (false, false) => "not mounted",
    };
    let dedup = ratio(status.logical_bytes, status.unique_bytes);
    let packed = ratio(status.unique_bytes, status.pack_bytes);
    let garbage = status.garbage_bytes.map_or("not measured".to_owned(), size);
    let copies = format!(
        "{:<11}  shared since the mount; {} requests could not share",
        size(status.shared_copy_bytes),
        status.unshared_copies
    );
    let rows = [
        ("volume", format!("{} ({})", figures.volume, status.uuid)),
        ("state", state.to_owned()),
        (
            "format",
            format!(
                "{}: {} branches, {}, {}",
                status.format, status.branches, status.hash, status.compression
            ),
        ),
        ("files", status.files.to_string()),
        ("chunks", status.chunks.to_string()),
        ("logical", format!("{:<11}  without holes", size(status.logical_bytes))),
        ("unique", format!("{:<11}  {dedup} by dedup", size(status.unique_bytes))),
        ("stored", format!("{:<11}  {packed} by compression", size(status.stored_bytes))),
        ("  packs", size(status.pack_bytes)),
        ("  metadata", size(status.metadata_bytes)),
        ("  index", size(status.index_bytes)),
        (
            "saved",
            format!(
                "{:<11}  {} in all",
                size(status.logical_bytes.saturating_sub(status.stored_bytes)),
                ratio(status.logical_bytes, status.stored_bytes)
            ),
        ),
        ("on disk", size(status.physical_bytes)),
        (
            "  reserve",
            format!("{:<11}  for removals when all else is full", size(status.reserve_bytes)),
        ),
        ("garbage", garbage),
        ("quota", status.quota_bytes.map_or("none".to_owned(), size)),
        ("room", size(status.available_bytes)),
        ("unstored", size(status.dirty_bytes)),
        ("copies", copies),
        ("commits", status.commits.to_string()),
        ("checked", figures.check.map_or("not mounted".to_owned(), |check| checked(&check, now))),
    ];
    rows.iter().map(|(name, value)| format!("{name:<10} {value}\n")).collect()
}

/// How many times smaller it became, as `2.50x`.
fn ratio(before: u64, after: u64) -> String {
    if before == 0 || after == 0 {
        return "-".to_owned();
    }
    format!("{:.2}x", before as f64 / after as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        let status = Status {
            uuid: "0-1".to_owned(),
            format: 1,
            branches: 128,
            hash: "sha3-256".to_owned(),
            compression: "lz4".to_owned(),
            mounted: true,
            poisoned: false,
            files: 3,
            logical_bytes: 4 << 20,
            unique_bytes: 2 << 20,
            chunks: 512,
            stored_bytes: 1 << 20,
            pack_bytes: 900 << 10,
            metadata_bytes: 100 << 10,
            index_bytes: 24 << 10,
            physical_bytes: 2 << 20,
            reserve_bytes: 1 << 20,
            quota_bytes: Some(1 << 30),
            available_bytes: 1 << 29,
            garbage_bytes: None,
            commits: 7,
            dirty_bytes: 0,
            shared_copy_bytes: 1 << 30,
            unshared_copies: 2,
        };
        Figures { status, read_only: false, check: None, volume: "/v".to_owned() }
    }

    #[test]
    fn the_table_shows_what_is_saved() {
        let text = table(&figures(), 0);
        let read_only = Figures { read_only: true, ..figures() };
        assert!(table(&read_only, 0).contains("mounted (read-only)"));
        for part in [
            "/v (0-1)",
            "2.00x by dedup",
            "2.28x by compression",
            "4.00x in all",
            "1.0 GiB",
            "2 requests",
            "  reserve  1.0 MiB",
            "  packs    900.0 KiB",
            "quota      1.0 GiB",
            "room       512.0 MiB",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn ratios_go_to_programs_too() {
        let value: serde_json::Value = serde_json::from_str(&json(&figures()).unwrap()).unwrap();
        assert_eq!(
            (&value["dedup_ratio"], &value["quota_bytes"]),
            (&2.0.into(), &(1 << 30).into())
        );
        let mut empty = figures();
        empty.status.unique_bytes = 0;
        let value: serde_json::Value = serde_json::from_str(&json(&empty).unwrap()).unwrap();
        assert!(value["compression_ratio"].is_null());
    }

    #[test]
    fn the_last_check() {
        let check = |running, finished, findings| {
            checked(&CheckSummary { running, finished, findings }, 1_000_000)
        };
        assert_eq!(check(false, 0, 0), "never: see 'pyramidfs check'");
        assert_eq!(check(true, 0, 0), "under way");
        assert_eq!(check(false, 996_400, 0), "clean, 1 hours ago");
        assert_eq!(check(false, 1, 2), "2 findings, 11 days ago");
    }

    #[test]
    fn an_empty_volume_has_no_ratio() {
        assert_eq!(ratio(0, 5), "-");
        assert_eq!(ratio(5, 0), "-");
    }
}
