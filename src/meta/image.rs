//! Images of the metadata: the checkpoint taken apart and put together again.
//!
//! Owns the content of an image's parts (entries as in the plain body of a commit record), the
//! building of a new checkpoint beside an old one, and their exchange.
//!
//! Invariants: (1) memory holds one part at a time; (2) the old checkpoint is set aside under a
//! name that was free, and never removed.
//!
//! Absent on purpose: where images lie, and which one is taken.

use std::io;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use crate::meta::checkpoint::{self, Held};
use crate::meta::error::{Error, Result};
use crate::meta::groups::Entries;
use crate::meta::key::KeyRange;
use crate::meta::layers::Slice;
use crate::meta::{Meta, Options, SCAN_MAX, record};
use crate::store::LogPosition;
use crate::sys::{Access, Disk};

/// Where a new checkpoint is built.
const NEW_DIR: &str = "meta.new";
/// Where an old one is set aside, with a number behind it from the second on.
const ASIDE_DIR: &str = "meta.aside";

/// A part of an image.
pub struct Part {
    /// Entries in it.
    pub entries: u64,
    /// The entries.
    pub body: Vec<u8>,
    /// Whether no part comes behind it.
    pub last: bool,
}

/// The metadata at one position, in parts.
pub struct ImageReader {
    view: Arc<dyn checkpoint::View>,
    held: Held,
    behind: Option<Vec<u8>>,
    is_over: bool,
}

impl Meta {
    /// Starts to read what the checkpoint holds now.
    pub fn image(&self) -> Result<ImageReader> {
        let layers = self.layers.read();
        let (view, held) = (layers.view()?, layers.viewed_to);
        Ok(ImageReader { view, held, behind: None, is_over: false })
    }

    /// Reads all that the checkpoint holds, and writes nothing to it, so that damage shows.
    pub fn probe(disk: &Arc<dyn Disk>) -> Result<()> {
        let meta = Meta::open(Arc::clone(disk), Options::default())?;
        meta.scan(KeyRange::all(), &mut |_, _| ControlFlow::Continue(()))?;
        let held = meta.layers.read().viewed_to;
        meta.checkpoint.take_in(&Entries::new(), held)?;
        meta.close()
    }
}

impl ImageReader {
    /// The position that the image is of.
    pub fn position(&self) -> LogPosition {
        self.held.position
    }

    /// Bytes of all commit records up to there.
    pub fn record_bytes(&self) -> u64 {
        self.held.record_bytes
    }

    /// Returns the next part, of about `bytes`; `None` behind the last.
    pub fn next(&mut self, bytes: usize) -> Result<Option<Part>> {
        if self.is_over {
            return Ok(None);
        }
        let (mut entries, mut taken) = (Entries::new(), 0);
        while !self.is_over && taken < bytes {
            let from = match &self.behind {
                Some(key) => Bound::Excluded(key.as_slice()),
                None => Bound::Unbounded,
            };
            let slice: Slice = self.view.slice(from, &KeyRange::all().end, SCAN_MAX)?;
            self.is_over = !slice.is_cut;
            self.behind = slice.entries.last().map(|(key, _)| key.to_vec()).or(self.behind.take());
            for (key, value) in slice.entries {
                taken += key.len() + value.as_ref().map_or(0, |value| value.len());
                entries.insert(key, value);
            }
        }
        let body = record::encode_body(&entries);
        Ok(Some(Part { entries: entries.len() as u64, body, last: self.is_over }))
    }
}

/// A checkpoint that is being built beside the volume's own.
pub struct Rebuild {
    disk: Arc<dyn Disk>,
    /// The new one; nothing reads it before it is whole.
    pub meta: Meta,
}

impl Rebuild {
    /// Begins with nothing; what an earlier try left is removed.
    pub fn begin(disk: &Arc<dyn Disk>) -> Result<Rebuild> {
        let file = checkpoint::file_in(NEW_DIR);
        match disk.remove_file(&file) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Io { action: "remove an unfinished copy of", source });
            }
            _ => {}
        }
        checkpoint::create(disk, NEW_DIR)?;
        let meta = Meta::open_in(disk, NEW_DIR, Options::default())?;
        Ok(Rebuild { disk: Arc::clone(disk), meta })
    }

    /// Takes in the body of an image's part.
    pub fn restore(&self, body: &[u8]) -> Result<()> {
        let entries = record::decode_body(body).map_err(|source| Error::Image { source })?;
        // An older view keeps the pages that are replaced from being used again.
        self.meta.layers.write().view = None;
        self.meta.checkpoint.take_in(&entries, Held::default())
    }

    /// Names the position that all restored parts are of: records from behind it may follow.
    pub fn restored(&self, position: LogPosition, record_bytes: u64) -> Result<()> {
        let held = Held { position, record_bytes };
        self.meta.checkpoint.take_in(&Entries::new(), held)?;
        let (view, _) = self.meta.checkpoint.view()?;
        let mut layers = self.meta.layers.write();
        layers.view = Some(view);
        (layers.viewed_to, layers.filled_to) = (held, held);
        Ok(())
    }

    /// Puts the new checkpoint, which ends at `position`, in the place of the old one; returns
    /// where that lies now, if there was one.
    pub fn finish(self, position: LogPosition) -> Result<Option<String>> {
        let record_bytes = self.meta.record_bytes();
        self.meta.take_in()?;
        // The last record may be one whose entries cannot be read.
        self.meta.checkpoint.take_in(&Entries::new(), Held { position, record_bytes })?;
        self.meta.close()?;
        let io = |source| Error::Io { action: "put in its place", source };
        match self.disk.create_dir(checkpoint::DIR) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io(source));
            }
            _ => self.disk.sync_dir("").map_err(io)?,
        }
        let own = checkpoint::file_in(checkpoint::DIR);
        let aside = match is_there(&self.disk, &own)? {
            true => Some(self.set_aside(&own)?),
            false => None,
        };
        self.disk.rename(&checkpoint::file_in(NEW_DIR), &own).map_err(io)?;
        self.disk.sync_dir(checkpoint::DIR).map_err(io)?;
        self.disk.sync_dir(NEW_DIR).map_err(io)?;
        Ok(aside)
    }

    fn set_aside(&self, own: &str) -> Result<String> {
        let io = |source| Error::Io { action: "set aside", source };
        let mut dir = ASIDE_DIR.to_owned();
        let mut number = 1;
        while is_there(&self.disk, &checkpoint::file_in(&dir))? {
            number += 1;
            dir = format!("{ASIDE_DIR}.{number}");
        }
        match self.disk.create_dir(&dir) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io(source));
            }
            _ => self.disk.sync_dir("").map_err(io)?,
        }
        let path = checkpoint::file_in(&dir);
        self.disk.rename(own, &path).map_err(io)?;
        self.disk.sync_dir(&dir).map_err(io)?;
        self.disk.sync_dir(checkpoint::DIR).map_err(io)?;
        Ok(path)
    }
}

fn is_there(disk: &Arc<dyn Disk>, path: &str) -> Result<bool> {
    match disk.open(path, Access::Read) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::Io { action: "look for", source }),
    }
}
