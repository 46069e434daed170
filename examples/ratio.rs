//! The compression ratio of directories in independent blocks of 64 KiB, as a measure to compare
//! a volume with: `cargo run --release --example ratio -- DIRECTORY…`.
//!
//! Two figures: with the blocks cut from each file alone, and cut from all files one behind the
//! other. A block that does not shrink counts as it is.
#![allow(clippy::disallowed_methods, reason = "a tool beside the filesystem reads plain files")]

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::{env, fs};

const BLOCK_BYTES: usize = 64 << 10;

/// What went in and what came out.
#[derive(Default)]
struct Sum {
    plain_bytes: u64,
    packed_bytes: u64,
}

impl Sum {
    fn add(&mut self, block: &[u8]) {
        let packed = lz4_flex::block::compress(block).len();
        self.plain_bytes += block.len() as u64;
        self.packed_bytes += packed.min(block.len()) as u64;
    }

    fn ratio(&self) -> f64 {
        self.plain_bytes as f64 / self.packed_bytes.max(1) as f64
    }
}

/// The blocks of all files in a row: what is not yet a block waits in `rest`.
#[derive(Default)]
struct Row {
    rest: Vec<u8>,
    sum: Sum,
}

impl Row {
    fn add(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        while self.rest.len() >= BLOCK_BYTES {
            self.sum.add(&self.rest[..BLOCK_BYTES]);
            self.rest.drain(..BLOCK_BYTES);
        }
    }

    fn finish(mut self) -> Sum {
        self.sum.add(&self.rest);
        self.sum
    }
}

fn main() -> io::Result<()> {
    let mut directories: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    if directories.is_empty() {
        directories.push(PathBuf::from("src"));
    }
    let (mut alone, mut row, mut files) = (Sum::default(), Row::default(), 0_u64);
    for file in
        directories.iter().map(|directory| list(directory)).collect::<Result<Vec<_>, _>>()?.concat()
    {
        files += 1;
        let mut reader = fs::File::open(&file)?;
        loop {
            let mut block = Vec::with_capacity(BLOCK_BYTES);
            reader.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut block)?;
            if block.is_empty() {
                break;
            }
            alone.add(&block);
            row.add(&block);
        }
    }
    println!("files       {files}");
    println!("bytes       {}", alone.plain_bytes);
    println!("each_file   {:.3}", alone.ratio());
    println!("all_files   {:.3}", row.finish().ratio());
    Ok(())
}

/// All regular files below `directory`, in order of their names.
fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::path);
    let mut files = Vec::new();
    for entry in entries {
        let kind = entry.file_type()?;
        if kind.is_dir() {
            files.extend(list(&entry.path())?);
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}
