//! `pyramidfs du`: what files take, and what would be free without them.
//!
//! The daemon of a mount walks; this command tells it inode numbers and follows. A volume that is
//! not mounted is opened for a look, which changes nothing on its disk.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;

use super::control::{Answer, Client, Request};
use super::error::Error;
use super::progress::Progress;
use super::{FINE, Outcome, place};
use crate::fuse::mountinfo::{self, MountEntry};
use crate::meta::Ino;
use crate::volume::{Named, Usage, Volume};

/// How often a daemon is asked how far it is.
const POLL: Duration = Duration::from_millis(200);

/// A request has room for so many names.
const NAMES_MAX: usize = 1000;

/// Arguments of `du`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Files and directories, taken together; below a mountpoint, or in VOLUME
    #[arg(required_unless_present = "volume")]
    paths: Vec<PathBuf>,
    /// Directory of a volume that is not mounted: paths begin at its root
    #[arg(long, value_name = "VOLUME")]
    volume: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Outcome {
    let usage = match &arguments.volume {
        Some(volume) => of_volume(volume, &arguments.paths)?,
        None => of_mount(&arguments.paths)?,
    };
    let text = if arguments.json {
        serde_json::to_string_pretty(&usage).map_err(|error| Error::Print(error.into()))?
    } else {
        table(&usage)
    };
    writeln!(io::stdout(), "{}", text.trim_end()).map_err(Error::Print)?;
    Ok(FINE)
}

fn of_mount(paths: &[PathBuf]) -> Result<Usage, Error> {
    if NAMES_MAX < paths.len() {
        let why = format!("more than {NAMES_MAX} paths: name the directory that they are in");
        return Err(Error::Reported(why));
    }
    let (mut names, mut mount) = (Vec::new(), None::<MountEntry>);
    for path in paths {
        let (named, device) = named(path)?;
        let of = mountinfo::find_device(&device).ok().flatten().filter(place::is_ours);
        let of = of.ok_or_else(|| Error::NotMounted(path.clone()))?;
        if mount.as_ref().is_some_and(|mount| mount.device != of.device) {
            let why = format!("{} is on another mount: ask for one at a time", path.display());
            return Err(Error::Reported(why));
        }
        mount = Some(of);
        names.push(named);
    }
    let Some(mount) = mount else { return Ok(Usage::default()) };
    ask(&mount, names)
}

/// The directory and the inode of a path, and the device number that it is on. A link at its end is
/// not followed.
fn named(path: &Path) -> Result<(Named, String), Error> {
    let failed = |source| Error::Path { action: "find", path: path.to_owned(), source };
    let whole = match path.file_name() {
        Some(name) => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            fs::canonicalize(parent.unwrap_or(Path::new("."))).map_err(failed)?.join(name)
        }
        None => fs::canonicalize(path).map_err(failed)?,
    };
    let about = fs::symlink_metadata(&whole).map_err(failed)?;
    let above = whole.parent().unwrap_or(&whole);
    let above = fs::symlink_metadata(above).map_err(failed)?;
    let device = format!("{}:{}", libc::major(about.dev()), libc::minor(about.dev()));
    let root = Ino::ROOT.0;
    // The mountpoint: its directory belongs to another filesystem.
    let dir = if above.dev() == about.dev() { above.ino() } else { root };
    Ok((Named { dir, ino: about.ino() }, device))
}

fn ask(mount: &MountEntry, names: Vec<Named>) -> Result<Usage, Error> {
    let unreachable = || Error::DaemonUnreachable(mount.mountpoint.clone());
    let asking = Client::of_mount(mount).ok_or_else(unreachable)?;
    asking.send(Request::Usage { names })?;
    let mut progress = Progress::start(true);
    loop {
        match asking.answer(Some(POLL))? {
            Some(Answer::Usage(usage)) => return Ok(usage),
            Some(Answer::Failed { why }) => return Err(Error::Reported(why)),
            Some(_) => return Err(Error::DaemonGone),
            None => {}
        }
        let asked = Client::of_mount(mount).map(|client| client.ask(Request::UsageProgress));
        if let Some(Ok(Answer::Progress { done, total })) = asked {
            progress.update(done, total, "files");
        }
    }
}

fn of_volume(path: &Path, paths: &[PathBuf]) -> Result<Usage, Error> {
    if Client::of_volume(path).is_some() {
        let why = format!("{} is mounted: name paths below its mountpoint", path.display());
        return Err(Error::Reported(why));
    }
    let failed = |error| Error::Volume { path: path.to_owned(), error };
    let volume = place::open_read_only(path)?;
    let root = [PathBuf::from("/")];
    let paths = if paths.is_empty() { &root } else { paths };
    let names: Result<Vec<Named>, Error> = paths.iter().map(|path| find(&volume, path)).collect();
    let mut progress = Progress::start(true);
    let usage = volume.usage(&names?, &mut |done, total| {
        progress.update(done, total, "files");
        ControlFlow::Continue(())
    });
    usage.map_err(failed)
}

/// Finds a path in a volume; no link is followed.
fn find(volume: &Volume, path: &Path) -> Result<Named, Error> {
    let failed = |error| Error::Volume { path: path.to_owned(), error };
    let mut named = Named { dir: Ino::ROOT.0, ino: Ino::ROOT.0 };
    for part in path.components() {
        let name: &OsStr = match part {
            Component::Normal(name) => name,
            Component::RootDir | Component::CurDir => continue,
            Component::ParentDir | Component::Prefix(_) => part.as_os_str(),
        };
        let attr = volume.lookup(Ino(named.ino), name.as_bytes()).map_err(failed)?;
        volume.forget(attr.ino, 1);
        named = Named { dir: named.ino, ino: attr.ino.0 };
    }
    Ok(named)
}

fn table(usage: &Usage) -> String {
    let size = |bytes| ByteSize(bytes).display().iec().to_string();
    let linked = match usage.linked {
        0 => String::new(),
        1 => "  1 of them has names elsewhere".to_owned(),
        more => format!("  {more} of them have names elsewhere"),
    };
    let rows = [
        ("files", format!("{:<11}{linked}", usage.files)),
        (
            "apparent",
            format!(
                "{:<11}  {} without holes",
                size(usage.apparent_bytes),
                size(usage.logical_bytes)
            ),
        ),
        ("distinct", format!("{:<11}  before compression", size(usage.distinct_bytes))),
        ("shared", format!("{:<11}  of that is held elsewhere too", size(usage.shared_bytes))),
        (
            "unique",
            format!(
                "{:<11}  of that is held nowhere else: {} on disk would be free without",
                size(usage.unique_bytes),
                size(usage.freed_bytes)
            ),
        ),
    ];
    rows.iter().map(|(name, value)| format!("{name:<9} {}\n", value.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        let usage = Usage {
            files: 3,
            linked: 1,
            apparent_bytes: 3 << 20,
            logical_bytes: 2 << 20,
            distinct_bytes: 1 << 20,
            unique_bytes: 256 << 10,
            shared_bytes: 768 << 10,
            freed_bytes: 128 << 10,
        };
        let text = table(&usage);
        for part in ["3 ", "1 of them", "2.0 MiB without holes", "768.0 KiB", "128.0 KiB on disk"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert_eq!(text.lines().count(), 5);
    }
}
