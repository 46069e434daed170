//! Room on the filesystem below: whether more bytes can be promised.
//!
//! Owns the reading of free space, taken anew after so many bytes, so long a time, and whenever the
//! store found no space.
//!
//! Invariant: what is written is accepted only while the filesystem below has room for all dirty
//! bytes, for the commit that follows, and for deletions after that.

use std::time::Duration;

use super::{Error, StatFs, Volume};
use crate::sys::locks::Mutex;

/// Kept free for the commit under way, the checkpoint and deletions.
const RESERVE_BYTES: u64 = 24 << 20;

/// A reading is used until this many bytes were admitted on it.
const REREAD_BYTES: u64 = 4 << 20;

/// And for this long: others fill the filesystem below as well.
const REREAD_AFTER: Duration = Duration::from_millis(100);

/// The last reading.
#[derive(Debug, Default)]
pub(super) struct Space {
    reading: Mutex<Option<Reading>>,
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    free_bytes: u64,
    admitted_bytes: u64,
    taken_at: Duration,
}

impl Space {
    /// Lets the next one look anew.
    pub(super) fn forget(&self) {
        *self.reading.lock() = None;
    }
}

impl Volume {
    /// Refuses `bytes` more dirty bytes when there may be no room to store them.
    pub(super) fn admit(&self, bytes: u64) -> Result<(), Error> {
        let mut reading = self.space.reading.lock();
        let now = self.clock.monotonic();
        let is_fresh = |last: &Reading| {
            last.admitted_bytes + bytes < REREAD_BYTES
                && now.saturating_sub(last.taken_at) < REREAD_AFTER
        };
        let fresh = match reading.filter(is_fresh) {
            Some(last) => last,
            None => {
                let space = self.disk.space();
                let space =
                    space.map_err(|source| Error::Io { action: "ask for free space", source })?;
                Reading { free_bytes: space.available_bytes, admitted_bytes: 0, taken_at: now }
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
