//! `pyramidfs hash`: the root of a file, without storing anything.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use clap::ValueEnum;

use super::error::Error;
use super::progress::Progress;
use super::{FINE, Outcome};
use crate::chunk::{Address, Profile, Sink, Source, Tree};
use crate::pyramid::{Pyramid, SplitError};

/// Arguments of `hash`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The file; '-' reads standard input
    file: PathBuf,
    /// Shape and hash of the pyramid
    #[arg(long, value_enum, default_value = "sha3-256")]
    profile: Named,
}

/// Profiles by name.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Named {
    /// 128 branches, legacy Keccak-256
    #[value(name = "swarm")]
    Swarm,
    /// 128 branches, SHA3-256
    #[value(name = "sha3-256")]
    Sha3,
}

/// Takes chunks and forgets them. Splitting asks for none back.
struct Nowhere;

/// Somebody asked for a chunk of [`Nowhere`].
#[derive(Debug, thiserror::Error)]
#[error("chunk {0} was not kept")]
struct NotKept(Address);

impl Source for Nowhere {
    type Error = NotKept;

    fn tree(&self, address: &Address) -> Result<Arc<Tree>, NotKept> {
        Err(NotKept(*address))
    }

    fn data(&self, address: &Address) -> Result<Bytes, NotKept> {
        Err(NotKept(*address))
    }
}

impl Sink for Nowhere {
    fn put_data(&self, _: &[(Address, &[u8])]) -> Result<(), NotKept> {
        Ok(())
    }

    fn put_tree(&self, _: Address, _: Tree) -> Result<(), NotKept> {
        Ok(())
    }
}

/// Counts what is read.
struct Counted {
    inner: Box<dyn Read>,
    done: u64,
    total: u64,
    progress: Progress,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.done += count as u64;
        self.progress.update(self.done, self.total, "hashing");
        Ok(count)
    }
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Outcome {
    let failed = |source| Error::Hash { path: arguments.file.clone(), source };
    let (inner, total) = open(arguments).map_err(failed)?;
    let profile = match arguments.profile {
        Named::Swarm => Profile::SWARM,
        Named::Sha3 => Profile::DEFAULT,
    };
    let mut reader = Counted { inner, done: 0, total, progress: Progress::start(true) };
    let root = match Pyramid::new(profile).split(&Nowhere, &mut reader) {
        Ok(root) => root,
        Err(SplitError::Reader(source)) => return Err(failed(source)),
        Err(error) => return Err(failed(io::Error::other(error))),
    };
    drop(reader);
    writeln!(io::stdout(), "{}", root.address).map_err(Error::Print)?;
    Ok(FINE)
}

fn open(arguments: &Arguments) -> io::Result<(Box<dyn Read>, u64)> {
    if arguments.file.as_os_str() == "-" {
        return Ok((Box::new(io::stdin()), 0));
    }
    let file = File::open(&arguments.file)?;
    let total = file.metadata()?.len();
    Ok((Box::new(file), total))
}
