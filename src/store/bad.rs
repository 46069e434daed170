//! Chunks that are damaged where they lie.
//!
//! Owns the set of damaged places and the list of its changes that nobody has kept yet. A chunk in
//! such a place is not offered for dedup, so whoever writes the same content next stores it anew;
//! from then on all files that hold it read the new one. Places count, not addresses: the new
//! place of a chunk is as good as any.
//!
//! Invariants: (1) a place enters the set only after its chunk was wrong twice, the second time
//! past the page cache, and leaves it when its chunk is found right; (2) the set holds at most
//! [`PLACES_MAX`] places: more of them are met again by whoever reads them.
//!
//! Absent on purpose: how the set outlives the process; the caller keeps it with its own data.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};

use super::Location;
use crate::chunk::Address;

/// Places that are remembered at most: beyond, a whole disk is damaged.
const PLACES_MAX: usize = 1 << 20;

/// A place of a chunk, as a caller keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BadChunk {
    /// The chunk's name.
    pub address: Address,
    /// Where it is damaged.
    pub location: Location,
}

/// The damaged places of a store.
#[derive(Default)]
pub struct BadChunks {
    /// Whether there are any: the common case costs one load.
    some: AtomicBool,
    places: RwLock<HashMap<u64, Address>>,
    /// By place, what was handed to nobody yet: whether it was last found damaged or right. A
    /// store whose caller keeps nothing has no more of them than places.
    changes: Mutex<BTreeMap<u64, (Address, bool)>>,
}

impl BadChunks {
    /// Whether the chunk at this place is known to be damaged.
    pub fn has(&self, location: Location) -> bool {
        self.some.load(Ordering::Acquire) && self.places.read().contains_key(&location.pack())
    }

    /// Takes over what the caller kept.
    pub fn load(&self, kept: impl IntoIterator<Item = BadChunk>) {
        let mut places = self.places.write();
        places.extend(kept.into_iter().map(|bad| (bad.location.pack(), bad.address)));
        self.some.store(!places.is_empty(), Ordering::Release);
    }

    /// Enters a place whose chunk was wrong twice.
    pub fn enter(&self, address: Address, location: Location) {
        let mut places = self.places.write();
        if PLACES_MAX <= places.len() || places.insert(location.pack(), address).is_some() {
            return;
        }
        self.some.store(true, Ordering::Release);
        tracing::error!("chunk {address} is damaged where it lies: {location}");
        self.changes.lock().insert(location.pack(), (address, true));
    }

    /// Takes a place out whose chunk is right after all.
    pub fn leave(&self, location: Location) {
        if !self.has(location) {
            return;
        }
        let mut places = self.places.write();
        if let Some(address) = places.remove(&location.pack()) {
            self.some.store(!places.is_empty(), Ordering::Release);
            self.changes.lock().insert(location.pack(), (address, false));
        }
    }

    /// Forgets the places of packs that are gone.
    pub fn leave_packs(&self, is_gone: &dyn Fn(u64) -> bool) {
        if !self.some.load(Ordering::Acquire) {
            return;
        }
        let mut places = self.places.write();
        let gone = places.extract_if(|place, _| is_gone(Location::unpack(*place).pack));
        let mut changes = self.changes.lock();
        changes.extend(gone.map(|(place, address)| (place, (address, false))));
        self.some.store(!places.is_empty(), Ordering::Release);
    }

    /// Hands out up to `count` changes that were handed to nobody: the place, and whether it is
    /// damaged now.
    pub fn changes(&self, count: usize) -> Vec<(BadChunk, bool)> {
        let mut changes = self.changes.lock();
        let handed = std::iter::from_fn(|| changes.pop_first()).take(count);
        handed.map(|(place, (address, is_damaged))| (bad(place, address), is_damaged)).collect()
    }

    /// All places, in the order of the log.
    pub fn all(&self) -> Vec<BadChunk> {
        let places = self.places.read();
        let mut all: Vec<BadChunk> =
            places.iter().map(|(place, address)| bad(*place, *address)).collect();
        all.sort_unstable_by_key(|bad| bad.location);
        all
    }
}

fn bad(place: u64, address: Address) -> BadChunk {
    BadChunk { address, location: Location::unpack(place) }
}
