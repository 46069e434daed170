//! The budget of dirty bytes: what may be written and not yet be stored.
//!
//! Owns the count and the waiting. Bytes are taken before they are copied and given back when they
//! are stored; nobody holds a lock while waiting.
//!
//! Invariant: when storing fails for want of space, waiters are told instead of left waiting.

use super::{Error, Wait};
use crate::sys::locks::{Condvar, Mutex};

/// The budget.
#[derive(Debug)]
pub(super) struct Budget {
    max: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    /// Those who found too little left and wait, or are about to.
    waiters: u64,
    /// Why storing fails at present.
    failing: Option<Failure>,
}

/// Why dirty bytes cannot be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    NoSpace,
    Poisoned(String),
}

impl Budget {
    /// Makes a budget of `max` bytes.
    pub(super) fn new(max: u64) -> Budget {
        Budget { max, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Bytes taken.
    pub(super) fn used(&self) -> u64 {
        self.state.lock().used
    }

    /// Whether it is time to store without being asked.
    pub(super) fn is_pressed(&self) -> bool {
        let state = self.state.lock();
        self.max / 2 < state.used || 0 < state.waiters
    }

    /// Counts one who waits, or no longer does: until then others have dirty bytes stored for it.
    pub(super) fn count_waiter(&self, waits: bool) {
        let mut state = self.state.lock();
        state.waiters = if waits { state.waiters + 1 } else { state.waiters - 1 };
    }

    /// Takes `bytes`. What is larger than the whole budget waits until nothing else is taken.
    pub(super) fn take(&self, bytes: u64, wait: Wait) -> Result<(), Error> {
        let mut state = self.state.lock();
        while self.max < state.used + bytes && state.used != 0 {
            match (&state.failing, wait) {
                (Some(Failure::NoSpace), _) => return Err(Error::NoSpace),
                (Some(Failure::Poisoned(why)), _) => {
                    return Err(Error::Poisoned { why: why.clone() });
                }
                (None, Wait::No) => return Err(Error::WouldWait),
                (None, Wait::Yes) => self.changed.wait(&mut state),
            }
        }
        state.used += bytes;
        Ok(())
    }

    /// Corrects what was taken: `was` bytes became `is` bytes. Never waits.
    pub(super) fn settle(&self, was: u64, is: u64) {
        let mut state = self.state.lock();
        // A flusher may give back what a writer settles only after it.
        assert!(was <= state.used + is, "{was} of {} dirty bytes given back", state.used);
        state.used = state.used + is - was;
        if is < was {
            self.changed.notify_all();
        }
    }

    /// Tells that storing fails, or works again.
    pub(super) fn set_failing(&self, failure: Option<Failure>) {
        let mut state = self.state.lock();
        if state.failing != failure {
            state.failing = failure;
            self.changed.notify_all();
        }
    }
}
