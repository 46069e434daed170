//! One simulated file: what is read from it, what is durable, and what lies between.
//!
//! Owns [`FileState`].
//!
//! The model:
//! - A write or a change of length is at once what everybody reads, and durable only after a sync.
//! - A sync that fails leaves all that was unsynced so for ever, as on Linux, where the pages count
//!   as clean afterwards: later syncs bring later writes and not these, though they can be read
//!   until the machine stops.
//! - A power loss keeps any subset of the unsynced operations, in any order; of a write it may keep
//!   any of its 512-byte sectors, and of its length all or what the kept sectors need. Bytes next
//!   to a write are never harmed.
//!
//! Absent on purpose: names.

use super::Keep;
use super::content::{Content, SECTOR_BYTES};
use super::random::SplitMix;

/// A change of a file's content.
#[derive(Debug, Clone)]
enum Operation {
    Write { offset: u64, bytes: Vec<u8> },
    SetLen(u64),
    Allocate(u64),
}

impl Operation {
    fn apply(&self, content: &mut Content) {
        match self {
            Operation::Write { offset, bytes } => content.write(bytes, *offset),
            Operation::SetLen(len) => content.set_len(*len),
            Operation::Allocate(len) => content.allocate(*len),
        }
    }

    /// Applies what a power loss in the middle of it would leave.
    fn apply_torn(&self, content: &mut Content, random: &mut SplitMix) {
        let Operation::Write { offset, bytes } = self else {
            return self.apply(content);
        };
        let mut rest = bytes.as_slice();
        let mut at = *offset;
        while !rest.is_empty() {
            let count = (SECTOR_BYTES - at % SECTOR_BYTES).min(rest.len() as u64);
            let (sector, behind) = rest.split_at(count as usize);
            if random.coin() {
                content.write(sector, at);
            }
            rest = behind;
            at += count;
        }
        if random.coin() {
            content.set_len(content.len().max(at));
        }
    }
}

/// A file of the simulated disk.
#[derive(Debug, Clone, Default)]
pub(super) struct FileState {
    current: Content,
    durable: Content,
    /// Since the last sync, oldest first.
    unsynced: Vec<Operation>,
    /// What the last sync, a failed one, has lost: a power loss may still keep it.
    lost: Vec<Operation>,
    /// Whether a sync has ever lost something, so that `current` is not what a sync makes durable.
    diverged: bool,
    /// Open handles.
    pub(super) handles: u64,
}

impl FileState {
    /// What everybody reads.
    pub(super) fn current(&self) -> &Content {
        &self.current
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        if !bytes.is_empty() {
            self.change(Operation::Write { offset, bytes: bytes.to_vec() });
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        self.change(Operation::SetLen(len));
    }

    pub(super) fn allocate(&mut self, len: u64) {
        self.change(Operation::Allocate(len));
    }

    fn change(&mut self, operation: Operation) {
        operation.apply(&mut self.current);
        self.unsynced.push(operation);
    }

    /// Makes what is unsynced durable.
    pub(super) fn sync(&mut self) {
        self.lost.clear();
        let unsynced = std::mem::take(&mut self.unsynced);
        if self.diverged {
            unsynced.iter().for_each(|operation| operation.apply(&mut self.durable));
        } else if unsynced.iter().any(|operation| !matches!(operation, Operation::Write { .. })) {
            self.durable = self.current.clone();
        } else {
            // Sharing the pages gives the same as writing once more, and costs no memory.
            for operation in &unsynced {
                if let Operation::Write { offset, bytes } = operation {
                    self.durable.share(&self.current, *offset, bytes.len());
                }
            }
        }
    }

    /// Loses what is unsynced, as a failed sync does.
    pub(super) fn fail_sync(&mut self) {
        self.diverged |= !self.unsynced.is_empty();
        self.lost.append(&mut self.unsynced);
    }

    /// Changes a byte on the medium and in the cache.
    pub(super) fn rot(&mut self, offset: u64, xor: u8) {
        self.current.flip(offset, xor);
        self.durable.flip(offset, xor);
    }

    /// The file after a power loss.
    pub(super) fn crash(&self, keep: Keep, random: &mut SplitMix) -> FileState {
        let content = match keep {
            Keep::Nothing => self.durable.clone(),
            Keep::All => self.current.clone(),
            Keep::Random(_) => self.scatter(random),
        };
        FileState { current: content.clone(), durable: content, ..FileState::default() }
    }

    fn scatter(&self, random: &mut SplitMix) -> Content {
        let mut content = self.durable.clone();
        let mut operations: Vec<&Operation> = self.lost.iter().chain(&self.unsynced).collect();
        // Half of the time in order, as what mostly happens must not be rare here.
        if random.coin() {
            for end in (1..operations.len()).rev() {
                operations.swap(end, random.below(end as u64 + 1) as usize);
            }
        }
        let kept_of_four = random.below(3) + 1;
        for operation in operations {
            if random.below(4) >= kept_of_four {
                continue;
            }
            if random.below(4) == 0 {
                operation.apply_torn(&mut content, random);
            } else {
                operation.apply(&mut content);
            }
        }
        content
    }
}
