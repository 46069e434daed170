//! Caches with a limit in bytes that survive a long sequential read.
//!
//! Owns [`Cache`]: two LRU segments. What is new lies on probation; what is asked for again after
//! other things came in between is protected. A scan passes through probation only. Asking for the
//! same thing many times in a row, as a reader of one frame does, counts as once.
//!
//! Invariant: the weights of all that is kept add up to no more than the limit.
//!
//! Absent on purpose: what is cached.

use std::hash::Hash;

use lru::LruCache;
use parking_lot::Mutex;

/// Share of the limit that is protected, in eighths.
const PROTECTED_EIGHTHS: u64 = 6;
/// So many others must have come in before a second use counts.
const APART: u64 = 4;

struct Slot<V> {
    value: V,
    weight: u64,
    touched: u64,
}

struct Segments<K, V> {
    probation: LruCache<K, Slot<V>>,
    protected: LruCache<K, Slot<V>>,
    probation_bytes: u64,
    protected_bytes: u64,
    ticks: u64,
    hits: u64,
    misses: u64,
}

/// Counts of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheStats {
    /// Look-ups that found something.
    pub hits: u64,
    /// Look-ups that did not.
    pub misses: u64,
    /// Bytes kept now.
    pub bytes: u64,
}

/// A cache of values that are cheap to clone.
pub struct Cache<K: Hash + Eq + Copy, V: Clone> {
    segments: Mutex<Segments<K, V>>,
    bytes_max: u64,
}

impl<K: Hash + Eq + Copy, V: Clone> Cache<K, V> {
    /// Makes an empty cache that keeps at most `bytes_max` bytes.
    pub fn new(bytes_max: u64) -> Cache<K, V> {
        let segments = Segments {
            probation: LruCache::unbounded(),
            protected: LruCache::unbounded(),
            probation_bytes: 0,
            protected_bytes: 0,
            ticks: 0,
            hits: 0,
            misses: 0,
        };
        Cache { segments: Mutex::new(segments), bytes_max }
    }

    /// Returns what is kept under `key`.
    pub fn get(&self, key: &K) -> Option<V> {
        let mut guard = self.segments.lock();
        let segments = &mut *guard;
        if let Some(slot) = segments.protected.get_mut(key) {
            slot.touched = segments.ticks;
            segments.hits += 1;
            return Some(slot.value.clone());
        }
        let Some(slot) = segments.probation.get_mut(key) else {
            segments.misses += 1;
            return None;
        };
        segments.hits += 1;
        let value = slot.value.clone();
        let again = segments.ticks - slot.touched >= APART;
        slot.touched = segments.ticks;
        if again && let Some(slot) = segments.probation.pop(key) {
            segments.probation_bytes -= slot.weight;
            segments.protected_bytes += slot.weight;
            segments.protected.put(*key, slot);
            segments.shrink(self.bytes_max);
        }
        Some(value)
    }

    /// Keeps `value`, of `weight` bytes, under `key`, in place of what was there.
    ///
    /// What is heavier than an eighth of the limit is not kept.
    pub fn put(&self, key: K, value: V, weight: u64) {
        let mut segments = self.segments.lock();
        segments.remove(&key);
        if weight > self.bytes_max / 8 {
            return;
        }
        segments.ticks += 1;
        let touched = segments.ticks;
        segments.probation_bytes += weight;
        segments.probation.put(key, Slot { value, weight, touched });
        segments.shrink(self.bytes_max);
    }

    /// Forgets `key`.
    pub fn remove(&self, key: &K) {
        self.segments.lock().remove(key);
    }

    /// Returns its counts.
    pub fn stats(&self) -> CacheStats {
        let segments = self.segments.lock();
        CacheStats { hits: segments.hits, misses: segments.misses, bytes: segments.bytes() }
    }
}

impl<K: Hash + Eq + Copy, V> Segments<K, V> {
    fn bytes(&self) -> u64 {
        self.probation_bytes + self.protected_bytes
    }

    fn remove(&mut self, key: &K) {
        if let Some(slot) = self.probation.pop(key) {
            self.probation_bytes -= slot.weight;
        }
        if let Some(slot) = self.protected.pop(key) {
            self.protected_bytes -= slot.weight;
        }
    }

    fn shrink(&mut self, bytes_max: u64) {
        while self.protected_bytes > bytes_max / 8 * PROTECTED_EIGHTHS {
            let Some((key, mut slot)) = self.protected.pop_lru() else { break };
            self.protected_bytes -= slot.weight;
            self.probation_bytes += slot.weight;
            slot.touched = self.ticks;
            self.probation.put(key, slot);
        }
        while self.bytes() > bytes_max {
            if let Some((_, slot)) = self.probation.pop_lru() {
                self.probation_bytes -= slot.weight;
            } else if let Some((_, slot)) = self.protected.pop_lru() {
                self.protected_bytes -= slot.weight;
            } else {
                break;
            }
        }
    }
}
