//! A volume that is open for reading, opened for writing in its place.
//!
//! Owns [`Current`], what a mount serves: one volume at first, and its successor from the moment
//! at which the mount becomes writable.
//!
//! Invariants: (1) a successor is at the same commit as the volume that it follows, so that inode
//! numbers, attributes and contents that the kernel remembers stay right; (2) both share one table
//! of nodes, so that lookups and opens are counted once, whichever of the two a request began on;
//! (3) the one for reading has no dirty layers and never gets any: nothing else passes on.
//!
//! Absent on purpose: the way back. A mount that became writable keeps the volume's lock; what
//! makes it read-only again is the kernel.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::{Error, OpenOptions, Superblock, Volume};
use crate::sys::{Clock, Disk};

/// The volume that a mount serves.
pub struct Current {
    first: Arc<Volume>,
    successor: OnceLock<Arc<Volume>>,
    /// Held by the one who opens the successor.
    opening: Mutex<()>,
}

impl Current {
    /// Begins with `volume`.
    pub fn new(volume: Arc<Volume>) -> Arc<Current> {
        let opening = Mutex::default();
        Arc::new(Current { first: volume, successor: OnceLock::new(), opening })
    }

    /// Whether it takes changes.
    pub fn is_writable(&self) -> bool {
        !self.options.read_only
    }

    /// Opens the volume for writing, unless it is so already.
    ///
    /// # Errors
    ///
    /// [`Error::Changed`] when it is at another commit by now, [`Error::InUse`] when another
    /// process has it open for writing. The volume for reading is served on then.
    pub fn make_writable(
        &self,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: OpenOptions,
    ) -> Result<(), Error> {
        let _opening = self.opening.lock();
        if self.is_writable() {
            return Ok(());
        }
        let opened = self.first.open_in_place(disk, clock, options)?;
        self.successor.get_or_init(|| opened);
        Ok(())
    }

    /// Closes the volume, and the one before it.
    pub fn close(&self) -> Result<(), Error> {
        // One that is just being opened for writing is closed as well.
        let _opening = self.opening.lock();
        let closed = Volume::close(self);
        let first = self.first.close();
        closed.and(first)
    }
}

impl Deref for Current {
    type Target = Volume;

    fn deref(&self) -> &Volume {
        self.successor.get().unwrap_or(&self.first)
    }
}

impl Volume {
    fn open_in_place(
        &self,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: OpenOptions,
    ) -> Result<Arc<Volume>, Error> {
        let superblock = Superblock::read(disk.as_ref())?;
        if superblock.uuid != self.superblock.uuid {
            return Err(Error::Changed);
        }
        let mut volume = Volume::assemble(disk, clock, superblock, options)?;
        if volume.store.stats().sequence != self.store.stats().sequence {
            if let Err(error) = volume.close() {
                tracing::warn!("cannot close the volume after a look: {error}");
            }
            return Err(Error::Changed);
        }
        volume.nodes = Arc::clone(&self.nodes);
        volume.begin()
    }
}
