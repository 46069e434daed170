//! Room on the filesystem below: whether more bytes can be promised.
//!
//! Owns the reading of free space, taken anew after every so many bytes.
//!
//! Invariant: what is written is accepted only while the filesystem below has room for all dirty
//! bytes, for the commit that follows, and for deletions after that.

use parking_lot::Mutex;

use super::{Error, StatFs, Volume};

/// Kept free for the commit under way, the checkpoint and deletions.
const RESERVE_BYTES: u64 = 24 << 20;

/// A reading is used until this many bytes were admitted on it.
const REREAD_BYTES: u64 = 4 << 20;

/// The last reading.
#[derive(Debug, Default)]
pub(super) struct Space {
    reading: Mutex<Option<Reading>>,
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    free_bytes: u64,
    admitted_bytes: u64,
}

impl Volume {
    /// Refuses `bytes` more dirty bytes when there may be no room to store them.
    pub(super) fn admit(&self, bytes: u64) -> Result<(), Error> {
        let mut reading = self.space.reading.lock();
        let fresh = match *reading {
            Some(last) if last.admitted_bytes + bytes < REREAD_BYTES => last,
            _ => {
                let space = self.disk.space();
                let space =
                    space.map_err(|source| Error::Io { action: "ask for free space", source })?;
                Reading { free_bytes: space.available_bytes, admitted_bytes: 0 }
            }
        };
        let needed = self.budget.used() + fresh.admitted_bytes + bytes + RESERVE_BYTES;
        if fresh.free_bytes < needed {
            *reading = None;
            return Err(Error::NoSpace);
        }
        *reading = Some(Reading { admitted_bytes: fresh.admitted_bytes + bytes, ..fresh });
        Ok(())
    }

    /// What the filesystem below has to give, less the reserve.
    pub fn statfs(&self) -> Result<StatFs, Error> {
        self.check_open()?;
        let space = self.disk.space();
        let space = space.map_err(|source| Error::Io { action: "ask for free space", source })?;
        let taken = RESERVE_BYTES + self.budget.used();
        Ok(StatFs {
            total_bytes: space.total_bytes,
            free_bytes: space.free_bytes.saturating_sub(taken),
            available_bytes: space.available_bytes.saturating_sub(taken),
            inodes: self.counters.lock().files,
        })
    }
}
