//! `pyramidfs mkfs`: makes a volume.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;

use nix::unistd::{getegid, geteuid};

use super::error::Error;
use super::{FINE, Outcome};
use crate::chunk::Profile;
use crate::hash::HashKind;
use crate::store::Compression;
use crate::sys::real::{RealClock, RealDisk, RealRng};
use crate::sys::{Clock, Disk};
use crate::volume::{self, CreateOptions, Volume};

/// Level of zstd when none is named: fast, and denser than lz4.
const ZSTD_LEVEL_DEFAULT: i32 = 3;
/// What a volume's directory has at least.
const SUPERBLOCK: &str = "superblock";
/// Tells that an earlier mkfs was not finished.
const UNFINISHED: &str = "superblock.new";
/// Held by whoever makes or serves the volume; the first that mkfs makes.
const LOCK: &str = "lock";
/// What an unfinished mkfs may have left beside it.
const REMAINS: [&str; 4] = [UNFINISHED, "packs", "index", "meta"];
/// What a filesystem puts into its root by itself.
const LOST_AND_FOUND: &str = "lost+found";

/// Arguments of `mkfs`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Directory of the new volume; it is made if it is missing
    volume: PathBuf,
    /// Children of a full tree chunk: 128, 512 or 2048 (4, 16 or 64 KiB chunks)
    #[arg(long, default_value_t = Profile::DEFAULT.branches, value_parser = parse_branches)]
    branches: u32,
    /// Hash that names chunks
    #[arg(long, value_enum, default_value = "sha3-256")]
    hash: Hash,
    /// Compression of new data: lz4, zstd, zstd:LEVEL or none
    #[arg(long, default_value = "lz4", value_parser = parse_compression)]
    compression: Compression,
    /// Copies of each tree chunk: 1, or 2 to survive damage to one (about 1 % more space)
    #[arg(long, default_value_t = 1, value_parser = parse_tree_copies)]
    tree_copies: u32,
}

/// Hashes by name.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Hash {
    /// SHA3-256 of FIPS 202
    #[value(name = "sha3-256")]
    Sha3,
    /// Keccak-256 as Swarm and Ethereum use it
    #[value(name = "keccak-256")]
    Keccak,
    /// BLAKE3
    #[value(name = "blake3")]
    Blake3,
}

impl Hash {
    fn kind(self) -> HashKind {
        match self {
            Hash::Sha3 => HashKind::Sha3_256,
            Hash::Keccak => HashKind::Keccak256,
            Hash::Blake3 => HashKind::Blake3,
        }
    }
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Outcome {
    let options = CreateOptions {
        profile: Profile { branches: arguments.branches, hash: arguments.hash.kind() },
        compression: arguments.compression,
        tree_copies: arguments.tree_copies,
        ..CreateOptions::default()
    };
    make(&arguments.volume, &options)?;
    println!("made volume {}", arguments.volume.display());
    Ok(FINE)
}

/// Makes a volume in `path`, a directory that is empty or missing. Its root directory belongs to
/// the caller, who could not write into it otherwise.
pub fn make(path: &Path, options: &CreateOptions) -> Result<(), Error> {
    let failed = |action| move |source| Error::Path { action, path: path.to_owned(), source };
    let options = &CreateOptions { owner: (geteuid().as_raw(), getegid().as_raw()), ..*options };
    let made = make_directory(path)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(path).map_err(failed("open"))?);
    let entries = disk.read_dir("").map_err(failed("read"))?;
    let of_volume = |error| Error::Volume { path: path.to_owned(), error };
    if entries.iter().any(|entry| entry.name == SUPERBLOCK) {
        return Err(of_volume(volume::Error::AlreadyAVolume));
    }
    let unfinished = entries.iter().any(|entry| entry.name == UNFINISHED);
    let always = [LOST_AND_FOUND, LOCK];
    let allowed = |name: &str| always.contains(&name) || unfinished && REMAINS.contains(&name);
    if entries.iter().any(|entry| !allowed(&entry.name)) {
        // Another mkfs may have finished while this one looked.
        return Err(match path.join(SUPERBLOCK).exists() {
            true => of_volume(volume::Error::AlreadyAVolume),
            false => Error::NotEmpty(path.to_owned()),
        });
    }
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    Volume::create(&disk, &clock, &RealRng, options).map_err(of_volume)?;
    if made {
        sync_parent(path).map_err(failed("sync the parent of"))?;
    }
    Ok(())
}

/// Makes the directory if it is missing; answers whether it was.
fn make_directory(path: &Path) -> Result<bool, Error> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if path.is_dir() {
                Ok(false)
            } else {
                Err(Error::NotADirectory(path.to_owned()))
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::NoParent(path.to_owned()))
        }
        Err(source) => Err(Error::Path { action: "make", path: path.to_owned(), source }),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    path.parent().map_or(Ok(()), |parent| fs::File::open(parent)?.sync_all())
}

fn parse_branches(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(branches @ (128 | 512 | 2048)) => Ok(branches),
        _ => Err("give 128, 512 or 2048".to_owned()),
    }
}

fn parse_compression(text: &str) -> Result<Compression, String> {
    match text.split_once(':') {
        None if text == "none" => Ok(Compression::None),
        None if text == "lz4" => Ok(Compression::Lz4),
        None if text == "zstd" => Ok(Compression::Zstd(ZSTD_LEVEL_DEFAULT)),
        Some(("zstd", level)) => match level.parse() {
            Ok(level @ 1..=19) => Ok(Compression::Zstd(level)),
            _ => Err("zstd has levels from 1 to 19".to_owned()),
        },
        _ => Err("give lz4, zstd, zstd:LEVEL or none".to_owned()),
    }
}

fn parse_tree_copies(text: &str) -> Result<u32, String> {
    match text {
        "1" => Ok(1),
        "2" => Ok(2),
        _ => Err("give 1 or 2".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressions() {
        assert_eq!(parse_compression("lz4"), Ok(Compression::Lz4));
        assert_eq!(parse_compression("none"), Ok(Compression::None));
        assert_eq!(parse_compression("zstd"), Ok(Compression::Zstd(3)));
        assert_eq!(parse_compression("zstd:19"), Ok(Compression::Zstd(19)));
        for text in ["", "zstd:", "zstd:0", "zstd:20", "lz4:3", "none:1", "ZSTD"] {
            assert!(parse_compression(text).is_err(), "{text}");
        }
    }

    #[test]
    fn directories_that_cannot_become_volumes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "").unwrap();
        assert!(matches!(make_directory(&at("file")), Err(Error::NotADirectory(_))));
        assert!(matches!(make_directory(&at("a/b")), Err(Error::NoParent(_))));
        assert!(make_directory(&at("new")).unwrap());
        assert!(!make_directory(&at("new")).unwrap());
    }
}
