//! Room for what is accepted: on the filesystem below, and within the quota.
//!
//! Owns the reading of free space, the sum of what was promised and is not committed yet, the quota
//! and the reserve.
//!
//! Invariants: (1) a change is accepted only while there is room for the bounds of all that was
//! accepted before and of itself (`charge`); (2) before a change is refused because of what others
//! were promised, that is committed, so that it counts with what it really took; (3) a promise ends
//! only when the group that it went into is durable; (4) what gives space back may use most of the
//! reserve, a collection the rest.
//!
//! Absent on purpose: whether something is really stored: what the filesystem below refuses in
//! spite of all this, a commit meets, and gives the reserve up for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::charge;
use super::reserve::Reserve;
use super::{Error, OpenOptions, StatFs, Volume, Wait};
use crate::sys;
use crate::sys::locks::Mutex;

/// A reading is used for this long: others fill the filesystem below as well.
const REREAD_AFTER: Duration = Duration::from_millis(100);

/// And until this many bytes were admitted on it.
const REREAD_BYTES: u64 = 4 << 20;

/// The reserve has at most this many bytes: a pack that a collection appends anew.
const RESERVE_BYTES_MAX: u64 = 64 << 20;

/// And no more than this, with a share of what is stored: a small volume on a large filesystem
/// needs little for its deletions.
const RESERVE_BYTES_BASE: u64 = 4 << 20;

/// A share of what is stored, and of the filesystem or quota at most: one in so many bytes.
const RESERVE_PART: u64 = 16;

/// Packs are not made smaller than this because of a small disk: a group has to fit.
const PACK_BYTES_MIN: u64 = 4 << 20;

/// What closing writes beside what is to be taken in: pages of the checkpoint, a note in the lock.
const CLOSING_BYTES: u64 = 1 << 20;

/// For what no bound covers: the files of the filesystem below are rounded up, and have their own
/// entries there.
const SLACK_BYTES: u64 = 64 << 10;

/// What the kernel may hold of a mount and has not handed over, and as much again: its own limit
/// (`fuse::kernel`) is not hard.
const LOW_BYTES: u64 = 288 << 20;

/// Of a small filesystem room is low below this share.
const LOW_PART: u64 = 4;

/// What a change is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Something that takes space.
    Grow,
    /// Attributes and names of what is there: half of the reserve is for them.
    Keep,
    /// Something that gives space back: three quarters are.
    Free,
}

impl Need {
    fn allowance(self, reserve: u64) -> u64 {
        match self {
            Need::Grow => 0,
            Need::Keep => reserve / 2,
            Need::Free => reserve / 4 * 3,
        }
    }
}

/// The last reading, the promises and the reserve.
#[derive(Debug, Default)]
pub(super) struct Space {
    state: Mutex<State>,
    /// 0 for none.
    quota: AtomicU64,
    /// What is stored, as last seen.
    stored: AtomicU64,
    /// What was stored when the quota was set: a quota of less than that still takes removals.
    floor: AtomicU64,
    pub(super) reserve: Reserve,
}

#[derive(Debug, Default)]
struct State {
    reading: Option<Reading>,
    promises: Promises,
}

/// Bounds of what was accepted.
#[derive(Debug, Default, Clone, Copy)]
struct Promises {
    /// Of changes that may not have reached their group.
    entering: u64,
    /// Of those in the open group.
    open: u64,
    /// Of those in the group that commits.
    committing: u64,
}

/// What there is room for.
#[derive(Debug, Clone, Copy)]
struct Reading {
    space: sys::Space,
    stored: u64,
    /// What the reserve should have.
    reserve: u64,
    /// What it has not.
    missing: u64,
    /// 0 for none.
    quota: u64,
    /// What was stored when that was set.
    floor: u64,
    /// When it was taken, by the clock that never goes back.
    taken_at: Duration,
    /// What was admitted on it since.
    admitted: u64,
}

impl Reading {
    /// Room on the filesystem below, beyond the reserve. What is missing there is not to be used.
    fn below(&self) -> i128 {
        i128::from(self.space.available_bytes) - i128::from(self.missing)
    }

    /// Room within the quota, beyond the reserve.
    fn within(&self) -> i128 {
        match self.quota {
            0 => i128::MAX,
            quota => i128::from(quota) - i128::from(self.stored) - i128::from(self.reserve),
        }
    }

    fn room(&self) -> i128 {
        self.below().min(self.within())
    }

    /// Room for a change of this kind, the part of the reserve that it may use included.
    fn room_for(&self, need: Need) -> i128 {
        let within = match (need, self.quota) {
            (Need::Grow, _) | (_, 0) => self.within(),
            (Need::Keep | Need::Free, _) => {
                self.within().max(i128::from(self.floor) - i128::from(self.stored))
            }
        };
        self.below().min(within) + i128::from(need.allowance(self.reserve))
    }

    /// Size of what can be filled.
    fn total(&self) -> u64 {
        match self.quota {
            0 => self.space.total_bytes,
            quota => quota.min(self.space.total_bytes),
        }
    }

    fn refusal(&self) -> Error {
        if self.within() < self.below() { Error::QuotaReached } else { Error::NoSpace }
    }
}

/// A promise of room: its change goes into a group while this lives.
#[derive(Debug)]
#[must_use = "the room is promised for as long as the change takes to enter its group"]
pub(super) struct Admitted<'a> {
    space: &'a Space,
    bytes: u64,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        let mut state = self.space.state.lock();
        state.promises.entering -= self.bytes;
        // If a cut came between, it counts for a group longer than it needs to.
        state.promises.open = state.promises.open.saturating_add(self.bytes);
    }
}

impl Space {
    /// With a quota of so many bytes, if there is one.
    pub(super) fn new(quota_bytes: Option<u64>) -> Space {
        Space { quota: AtomicU64::new(quota_bytes.unwrap_or(0)), ..Space::default() }
    }

    /// Lets the next one look anew.
    pub(super) fn forget(&self) {
        self.state.lock().reading = None;
    }

    /// At a cut: what was promised goes with the group.
    pub(super) fn cut(&self) {
        let promises = &mut self.state.lock().promises;
        promises.committing =
            promises.committing.saturating_add(std::mem::take(&mut promises.open));
    }

    /// The group that was cut is durable: what it took counts from now on.
    pub(super) fn committed(&self) {
        let mut state = self.state.lock();
        state.promises.committing = 0;
        state.reading = None;
    }

    /// Sets the quota, with what is stored now.
    fn begin_quota(&self, bytes: u64) {
        self.floor.store(self.stored.load(Ordering::Relaxed), Ordering::Relaxed);
        self.quota.store(bytes, Ordering::Relaxed);
    }

    fn quota(&self) -> u64 {
        self.quota.load(Ordering::Relaxed)
    }
}

impl Volume {
    /// Bytes that the volume may store at most; 0 for none.
    pub fn quota_bytes(&self) -> u64 {
        self.space.quota()
    }

    /// Limits what the volume may store, or takes the limit away with 0. What is stored stays.
    pub fn set_quota(&self, bytes: u64) {
        self.look_at_store(Wait::Yes);
        self.space.begin_quota(bytes);
        self.space.forget();
    }

    /// Refuses a change that may need up to `bytes` when there may be no room to store them.
    ///
    /// What others were promised is committed before that, so a call that may wait holds no locks.
    pub(super) fn admit(&self, need: Need, bytes: u64, wait: Wait) -> Result<Admitted<'_>, Error> {
        // The slack is not promised: it would add up to more than it is for. What gives space back
        // has the reserve for that.
        let slack = if need == Need::Grow { SLACK_BYTES } else { 0 };
        let needed = bytes.saturating_add(slack);
        let (mut settled, mut refused_before) = (false, false);
        loop {
            let reading = self.reading(bytes, wait)?;
            let room = reading.room_for(need);
            let mut state = self.space.state.lock();
            let promised = self.promised(&state.promises);
            if i128::from(needed) + i128::from(promised) <= room {
                state.promises.entering = state.promises.entering.saturating_add(bytes);
                if let Some(reading) = &mut state.reading {
                    reading.admitted = reading.admitted.saturating_add(bytes);
                }
                return Ok(Admitted { space: &self.space, bytes });
            }
            drop(state);
            if room < i128::from(needed) || promised == 0 || settled {
                // What is garbage may make room: whoever may wait is not refused for it.
                if refused_before || need != Need::Grow || !self.may_reclaim(needed) {
                    return Err(reading.refusal());
                }
                if wait == Wait::No {
                    return Err(Error::WouldWait);
                }
                refused_before = !self.reclaim();
                settled = false;
                continue;
            }
            if wait == Wait::No {
                return Err(Error::WouldWait);
            }
            self.settle_promises()?;
            settled = true;
        }
    }

    #[cfg(test)]
    pub(super) fn promised_bytes(&self) -> u64 {
        self.promised(&self.space.state.lock().promises)
    }

    /// Commits what was promised, and lets the checkpoint take it in.
    fn settle_promises(&self) -> Result<(), Error> {
        self.commit_all()?;
        // When that finds no room, its entries go on counting.
        self.take_in();
        self.space.forget();
        Ok(())
    }

    /// The bound of all that was accepted and is not stored.
    fn promised(&self, promises: &Promises) -> u64 {
        let unstored = self.meta.unstored();
        let content = if unstored.changed == 0 {
            // Nothing is dirty: every change of content changes an entry.
            promises.entering
        } else {
            promises.entering.saturating_add(promises.open).saturating_add(promises.committing)
        };
        let checkpoint = self.meta.stored_bytes();
        content.saturating_add(charge::entries(unstored.changed, unstored.committed, checkpoint))
    }

    /// The last reading, or a new one, to admit `bytes`.
    fn reading(&self, bytes: u64, wait: Wait) -> Result<Reading, Error> {
        let now = self.clock.monotonic();
        let last = self.space.state.lock().reading;
        if let Some(reading) = last
            && now.saturating_sub(reading.taken_at) < REREAD_AFTER
            && reading.admitted.saturating_add(bytes) < REREAD_BYTES
        {
            return Ok(reading);
        }
        let known = self.look_at_store(wait);
        if !known && wait == Wait::No && self.space.quota() != 0 {
            return Err(Error::WouldWait);
        }
        let reading = self.read_space()?;
        if known {
            self.space.state.lock().reading = Some(reading);
        }
        Ok(reading)
    }

    /// Notes what is stored; false when that cannot be said without waiting.
    fn look_at_store(&self, wait: Wait) -> bool {
        let stored = match wait {
            Wait::No => self.store.try_stored_bytes(),
            Wait::Yes => {
                let stats = self.store.stats();
                Some(stats.stored_bytes + stats.index_bytes)
            }
        };
        if let Some(stored) = stored {
            self.space.stored.store(stored + self.meta.stored_bytes(), Ordering::Relaxed);
        }
        stored.is_some()
    }

    fn read_space(&self) -> Result<Reading, Error> {
        let space = self.disk.space();
        let space = space.map_err(|source| Error::Io { action: "ask for free space", source })?;
        let (stored, quota) = (self.space.stored.load(Ordering::Relaxed), self.space.quota());
        let total = if quota == 0 { space.total_bytes } else { quota.min(space.total_bytes) };
        let reserve = match self.options.read_only || self.options.repairing {
            true => 0,
            false => reserve_bytes(total, stored),
        };
        let missing = self.space.reserve.missing(reserve);
        let taken_at = self.clock.monotonic();
        let floor = self.space.floor.load(Ordering::Relaxed);
        Ok(Reading { space, stored, reserve, missing, quota, floor, taken_at, admitted: 0 })
    }

    /// Begins with the reserve that is there, and with the quota.
    pub(super) fn begin_space(&self) {
        self.space.reserve.open(self.disk.as_ref());
        self.look_at_store(Wait::Yes);
        self.space.begin_quota(self.space.quota());
    }

    /// Gives room back for the last writes, those of closing, when there is none.
    pub(super) fn make_room_to_close(&self) {
        let full = |space: sys::Space| space.available_bytes < CLOSING_BYTES;
        while self.disk.space().is_ok_and(full) && self.space.reserve.give_up() {}
    }

    /// Makes the reserve as large as it should be, if there is room for that.
    pub(super) fn keep_reserve(&self) {
        if self.options.read_only || self.options.repairing {
            return;
        }
        self.look_at_store(Wait::No);
        let Ok(reading) = self.read_space() else { return };
        let promised = self.promised(&self.space.state.lock().promises);
        let free = reading.space.available_bytes;
        let room = free.saturating_sub(promised.saturating_add(SLACK_BYTES));
        if self.space.reserve.keep(reading.reserve, room) {
            self.space.forget();
        }
    }

    /// Does what may find no room once more, for as long as there is a piece of the reserve to give
    /// up for it.
    pub(super) fn with_reserve<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        loop {
            match attempt() {
                Err(error) if error.is_full() && self.space.reserve.give_up() => {
                    self.space.forget();
                }
                result => return result,
            }
        }
    }

    /// Whether what the kernel may hold could find no room: it is then to hold nothing more.
    pub fn is_room_low(&self) -> bool {
        let Ok(reading) = self.reading(0, Wait::No) else { return false };
        let low = LOW_BYTES.min(reading.total() / LOW_PART);
        !self.options.read_only && reading.room() < i128::from(low)
    }

    /// What the filesystem below or the quota has to give, less the reserve.
    pub fn statfs(&self) -> Result<StatFs, Error> {
        self.check_open()?;
        self.look_at_store(Wait::No);
        let reading = self.read_space()?;
        let promised = self.promised(&self.space.state.lock().promises);
        let taken = i128::from(promised) + i128::from(SLACK_BYTES);
        let left = |bytes: i128| u64::try_from(bytes - taken).unwrap_or(0);
        let free = i128::from(reading.space.free_bytes) - i128::from(reading.missing);
        Ok(StatFs {
            total_bytes: reading.total(),
            free_bytes: left(free.min(reading.within())),
            available_bytes: left(reading.room()),
            inodes: self.counters.lock().files,
        })
    }
}

/// Packs for a volume: at most a part of what can be filled, as a collection appends the living
/// part of one anew before it drops it.
pub(super) fn pack_bytes(disk: &dyn sys::Disk, options: &OpenOptions) -> u64 {
    let total = disk.space().map_or(u64::MAX, |space| space.total_bytes);
    let total = options.quota_bytes.map_or(total, |quota| quota.min(total));
    options.pack_bytes_max.min((total / RESERVE_PART).max(PACK_BYTES_MIN))
}

/// What the reserve should have, with `total` bytes to fill and `stored` of them filled.
fn reserve_bytes(total: u64, stored: u64) -> u64 {
    let wanted = RESERVE_BYTES_BASE.saturating_add(stored / RESERVE_PART);
    wanted.min(RESERVE_BYTES_MAX).min(total / RESERVE_PART)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn reading(available: u64, stored: u64, missing: u64, quota: u64) -> Reading {
        let (free_bytes, available_bytes) = (available, available);
        let space = sys::Space { total_bytes: 100 * MIB, free_bytes, available_bytes };
        let taken_at = Duration::ZERO;
        let (reserve, floor) = (8 * MIB, 60 * MIB);
        Reading { space, stored, reserve, missing, quota, floor, taken_at, admitted: 0 }
    }

    #[test]
    fn the_smaller_of_both_counts() {
        let free = reading(50 * MIB, 10 * MIB, 0, 0);
        assert_eq!((free.room(), free.total()), (i128::from(50 * MIB), 100 * MIB));
        assert!(matches!(free.refusal(), Error::NoSpace));
        let given_up = reading(50 * MIB, 10 * MIB, 8 * MIB, 0);
        assert_eq!(given_up.room(), i128::from(42 * MIB));
        let limited = reading(50 * MIB, 10 * MIB, 0, 40 * MIB);
        assert_eq!((limited.room(), limited.total()), (i128::from(22 * MIB), 40 * MIB));
        assert!(matches!(limited.refusal(), Error::QuotaReached));
        let over = reading(50 * MIB, 60 * MIB, 0, 40 * MIB);
        assert!(over.room() < 0 && over.room_for(Need::Grow) < 0);
        assert_eq!(over.room_for(Need::Free), i128::from(6 * MIB), "what was there may go");
        assert_eq!(limited.room_for(Need::Keep), i128::from(54 * MIB), "more was there once");
        let full = reading(MIB, 10 * MIB, 0, 40 * MIB);
        assert!(matches!(full.refusal(), Error::NoSpace));
    }

    #[test]
    fn the_reserve_grows_with_the_volume_and_stays_small_on_a_small_disk() {
        assert_eq!(reserve_bytes(1 << 40, 0), 4 * MIB);
        assert_eq!(reserve_bytes(1 << 40, 160 * MIB), 14 * MIB);
        assert_eq!(reserve_bytes(1 << 40, 1 << 39), 64 * MIB);
        assert_eq!(reserve_bytes(32 * MIB, 0), 2 * MIB);
        assert!(Need::Grow.allowance(64) < Need::Keep.allowance(64));
        assert!(Need::Keep.allowance(64) < Need::Free.allowance(64));
        assert!(Need::Free.allowance(64) < 64);
    }
}
