//! `pyramidfs snapshot`: what a volume was at some moments.
//!
//! A mounted volume is asked through its daemon, after the kernel has handed over what it holds;
//! any other is opened.
//!
//! Owns both ends of that: what is asked for ([`Wanted`]), what is answered ([`Told`]), and how a
//! volume does it ([`act`]).

use std::fs::File;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::control::{Answer, Client, Request};
use super::error::Error;
use super::{FINE, Outcome, place};
use crate::fuse::mountinfo::{self, MountEntry};
use crate::meta::Ino;
use crate::sys::real::RealClock;
use crate::volume::{self, Change, Difference, MODE_DIR, OpenOptions, SnapshotInfo, Volume, utc};

/// Differences that are told at most.
const DIFFERENCES_MAX: usize = 500_000;

/// Arguments of `snapshot`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a snapshot of the whole volume, as it is now
    Create {
        /// Directory of a volume, or where it is mounted
        volume: PathBuf,
        /// Its name
        name: String,
    },
    /// List the snapshots, the oldest first
    List {
        /// Directory of a volume, or where it is mounted
        volume: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete a snapshot
    Delete {
        /// Directory of a volume, or where it is mounted
        volume: PathBuf,
        /// Its name
        name: String,
    },
    /// Show what differs between two snapshots, or between one and the present
    Diff {
        /// Directory of a volume, or where it is mounted
        volume: PathBuf,
        /// The older snapshot
        from: String,
        /// The newer one; left out: the present
        to: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a path become what it was
    Restore {
        /// Directory of a volume, or where it is mounted
        volume: PathBuf,
        /// The snapshot
        name: String,
        /// The path from the root of the volume; / is all of it
        path: PathBuf,
    },
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub enum Wanted {
    /// Make one.
    Create { name: String },
    /// List all.
    List,
    /// Delete one.
    Delete { name: String },
    /// Compare; without `to` with the present.
    Diff { from: String, to: Option<String> },
    /// Restore a path.
    Restore { name: String, path: Vec<u8> },
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "told", rename_all = "lowercase")]
pub enum Told {
    /// It is done.
    Done,
    /// Snapshots.
    Snapshots { list: Vec<Line> },
    /// Differences, and whether there are more.
    Differences { list: Vec<Differing>, more: bool },
    /// Inodes and bytes that were restored.
    Restored { files: u64, bytes: u64 },
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    number: u64,
    name: String,
    /// When it was made, as ISO 8601 has it.
    time: String,
    files: u64,
    logical_bytes: u64,
}

/// A difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differing {
    change: String,
    path: String,
    directory: bool,
    size_before: u64,
    size_after: u64,
    content_bytes: u64,
    attributes: bool,
    xattrs: bool,
}

impl Line {
    fn of(info: SnapshotInfo) -> Line {
        Line {
            number: info.number,
            name: String::from_utf8_lossy(&info.name).into_owned(),
            time: utc(info.time.secs),
            files: info.files,
            logical_bytes: info.logical_bytes,
        }
    }
}

impl Differing {
    fn of(difference: &Difference) -> Differing {
        let (change, content_bytes, attributes, xattrs) = match difference.change {
            Change::Added => ("added", 0, false, false),
            Change::Removed => ("removed", 0, false, false),
            Change::Changed { content_bytes, attributes, xattrs } => {
                ("changed", content_bytes, attributes, xattrs)
            }
        };
        Differing {
            change: change.to_owned(),
            path: format!("/{}", String::from_utf8_lossy(&difference.path)),
            directory: difference.mode_type == MODE_DIR,
            size_before: difference.size_before,
            size_after: difference.size_after,
            content_bytes,
            attributes,
            xattrs,
        }
    }

    fn line(&self) -> String {
        let size = |bytes| ByteSize(bytes).display().iec().to_string();
        let slash = if self.directory && self.path != "/" { "/" } else { "" };
        let path = format!("{}{slash}", self.path.escape_debug());
        match self.change.as_str() {
            "added" if self.directory => format!("+ {path}"),
            "added" => format!("+ {path}  {}", size(self.size_after)),
            "removed" if self.directory => format!("- {path}"),
            "removed" => format!("- {path}  {}", size(self.size_before)),
            _ => {
                let mut what = Vec::new();
                if self.content_bytes != 0 {
                    what.push(format!("{} of content", size(self.content_bytes)));
                }
                if self.size_before != self.size_after && !self.directory {
                    what.push(format!("{} → {}", size(self.size_before), size(self.size_after)));
                }
                if self.attributes {
                    what.push("attributes".to_owned());
                }
                if self.xattrs {
                    what.push("extended attributes".to_owned());
                }
                format!("M {path}  {}", what.join(", "))
            }
        }
    }
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Outcome {
    let (path, wanted, json) = match &arguments.action {
        Action::Create { volume, name } => (volume, Wanted::Create { name: name.clone() }, false),
        Action::List { volume, json } => (volume, Wanted::List, *json),
        Action::Delete { volume, name } => (volume, Wanted::Delete { name: name.clone() }, false),
        Action::Diff { volume, from, to, json } => {
            (volume, Wanted::Diff { from: from.clone(), to: to.clone() }, *json)
        }
        Action::Restore { volume, name, path } => {
            let path = path.as_os_str().as_bytes().to_vec();
            (volume, Wanted::Restore { name: name.clone(), path }, false)
        }
    };
    let told = match place::find_mount(path)? {
        Some(mount) if place::is_dead(path) => return Err(Error::Dead(mount.mountpoint)),
        Some(mount) => of_mount(&mount, wanted)?,
        None => of_volume(path, wanted)?,
    };
    print(told, json)
}

fn of_mount(mount: &MountEntry, wanted: Wanted) -> Result<Told, Error> {
    let unreachable = || Error::DaemonUnreachable(mount.mountpoint.clone());
    let daemon = Client::of_mount(mount).ok_or_else(unreachable)?;
    // The point that is kept, compared or replaced has all that programs wrote before.
    if wanted != Wanted::List {
        hand_over(&mount.mountpoint)?;
    }
    ask(daemon, wanted)
}

fn of_volume(path: &Path, wanted: Wanted) -> Result<Told, Error> {
    if let Some(device) = Client::of_volume(path).and_then(Client::place) {
        let mount = device.device.and_then(|device| mountinfo::find_device(&device).ok()?);
        return match mount {
            Some(mount) => of_mount(&mount, wanted),
            None => Err(Error::DaemonGone),
        };
    }
    let failed = |error| Error::Volume { path: path.to_owned(), error };
    if matches!(wanted, Wanted::List | Wanted::Diff { .. }) {
        return act(&*place::open_read_only(path)?, wanted, &mut |_, _| {}).map_err(failed);
    }
    let options = OpenOptions { background: false, ..OpenOptions::default() };
    let volume = Volume::open(place::disk(path)?, Arc::new(RealClock::new()), options);
    let volume = volume.map_err(failed)?;
    let told = act(&volume, wanted, &mut |_, _| {});
    volume.close().map_err(failed)?;
    told.map_err(failed)
}

/// Has the kernel hand over what it holds.
pub fn hand_over(mountpoint: &Path) -> Result<(), Error> {
    let failed = |source| Error::Path { action: "sync", path: mountpoint.to_owned(), source };
    let root = File::open(mountpoint).map_err(failed)?;
    nix::unistd::syncfs(&root).map_err(|errno| failed(errno.into()))
}

fn ask(daemon: Client, wanted: Wanted) -> Result<Told, Error> {
    match daemon.ask(Request::Snapshot { wanted })? {
        Answer::Snapshot { told } => Ok(*told),
        Answer::Failed { why } => Err(Error::Reported(why)),
        _ => Err(Error::DaemonGone),
    }
}

/// Does it. `renewed` is told of names that lead elsewhere by now.
pub fn act(
    volume: &Volume,
    wanted: Wanted,
    renewed: &mut dyn FnMut(Ino, &[u8]),
) -> Result<Told, volume::Error> {
    Ok(match wanted {
        Wanted::Create { name } => {
            volume.snapshot_create(name.as_bytes())?;
            Told::Done
        }
        Wanted::List => {
            Told::Snapshots { list: volume.snapshots().into_iter().map(Line::of).collect() }
        }
        Wanted::Delete { name } => {
            volume.snapshot_delete(name.as_bytes())?;
            Told::Done
        }
        Wanted::Diff { from, to } => {
            let (mut list, mut more) = (Vec::new(), false);
            let to = to.as_ref().map(String::as_bytes);
            volume.snapshot_diff(from.as_bytes(), to, &mut |difference| {
                more = DIFFERENCES_MAX <= list.len();
                if more {
                    return ControlFlow::Break(());
                }
                list.push(Differing::of(&difference));
                ControlFlow::Continue(())
            })?;
            list.sort_by(|one: &Differing, other| one.path.cmp(&other.path));
            Told::Differences { list, more }
        }
        Wanted::Restore { name, path } => {
            let restored = volume.restore(name.as_bytes(), &path, renewed)?;
            Told::Restored { files: restored.files, bytes: restored.bytes }
        }
    })
}

fn print(told: Told, json: bool) -> Outcome {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let printed = match &told {
        Told::Done => Ok(()),
        Told::Snapshots { list } if json => print_json(&mut out, list),
        Told::Snapshots { list } => list.iter().try_for_each(|line| {
            let Line { name, time, files, logical_bytes, .. } = line;
            let size = ByteSize(*logical_bytes).display().iec().to_string();
            writeln!(out, "{:<36} {time}  {files:>10} files  {size:>11}", name.escape_debug())
        }),
        Told::Differences { list, .. } if json => print_json(&mut out, list),
        Told::Differences { list, .. } => {
            list.iter().try_for_each(|differing| writeln!(out, "{}", differing.line()))
        }
        Told::Restored { files, bytes } => {
            let size = ByteSize(*bytes).display().iec().to_string();
            writeln!(out, "restored {files} files, {size}")
        }
    };
    printed.and_then(|()| out.flush()).map_err(Error::Print)?;
    match told {
        Told::Differences { more: true, .. } => Err(Error::Reported(format!(
            "there are more than {DIFFERENCES_MAX} differences: compare snapshots that are closer"
        ))),
        _ => Ok(FINE),
    }
}

fn print_json<T: Serialize>(out: &mut impl Write, list: &T) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, list)?;
    writeln!(out)
}
