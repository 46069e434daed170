//! `pyramidfs check --repair`: restores what can be restored, and tells what was done.
//!
//! Owns the sources of `--from`: files, directories of files, and other volumes. What of them
//! cannot be read is named and left out.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Error;
use super::place;
use super::progress::Progress;
use crate::check::{self, EachFile, Repaired, Sources};
use crate::sys::real::RealClock;
use crate::volume::{self, Volume};

/// What `--from` names.
struct Given {
    files: Vec<PathBuf>,
    volumes: Vec<Arc<Volume>>,
}

impl Given {
    fn of(paths: &[PathBuf]) -> Result<Given, Error> {
        let mut given = Given { files: Vec::new(), volumes: Vec::new() };
        for path in paths {
            let failed = |source| Error::Path { action: "read", path: path.clone(), source };
            fs::metadata(path).map_err(failed)?;
            if path.join("superblock").is_file() {
                given.volumes.push(place::open_read_only(path)?);
            } else {
                given.files.push(path.clone());
            }
        }
        Ok(given)
    }
}

impl Sources for Given {
    fn files(&self, each: &mut EachFile<'_>) -> Result<(), volume::Error> {
        let mut todo = self.files.clone();
        while let Some(path) = todo.pop() {
            // What a symbolic link leads to is named by itself, if it is meant.
            let about = fs::symlink_metadata(&path);
            let read = about.and_then(|about| {
                if about.is_dir() {
                    let inside = fs::read_dir(&path)?;
                    todo.extend(inside.collect::<Result<Vec<_>, _>>()?.iter().map(|e| e.path()));
                    return Ok(None);
                }
                if about.is_file() { File::open(&path).map(Some) } else { Ok(None) }
            });
            match read {
                Ok(Some(mut file)) => each(&mut file)?,
                Ok(None) => {}
                Err(error) => eprintln!("left out {}: {error}", path.display()),
            }
        }
        Ok(())
    }

    fn volumes(&self) -> &[Arc<Volume>] {
        &self.volumes
    }
}

/// Repairs the volume at `path`, which nobody has open.
pub fn repair(path: &Path, from: &[PathBuf], progress: &mut Progress) -> Result<Repaired, Error> {
    let given = Given::of(from)?;
    let disk = place::disk(path)?;
    let clock = Arc::new(RealClock::new());
    check::repair(disk, clock, &given, &mut |step| {
        progress.update(step.done_bytes, step.total_bytes, step.what);
    })
    .map_err(|error| Error::Volume { path: path.to_owned(), error })
}

/// What was done, line by line.
pub fn lines(repaired: &Repaired) -> Vec<String> {
    let mut lines: Vec<String> =
        repaired.mended.iter().map(|mended| format!("wrote again {mended}")).collect();
    let counted = [
        (repaired.trees_from_copies, "tree chunks from their second copies"),
        (repaired.chunks_from_sources, "chunks from what --from names"),
    ];
    lines.extend(
        counted
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(n, what)| format!("restored {n} {what}")),
    );
    lines.extend(repaired.changes.iter().cloned());
    if repaired.lost > 0 {
        let lost = repaired.lost;
        lines.push(format!(
            "{lost} chunks are lost: name files or volumes that hold the same bytes with --from"
        ));
    }
    lines
}
