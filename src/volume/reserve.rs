//! The reserve: room on the filesystem below that is taken ahead and held by a file.
//!
//! Owns the file `reserve` in the volume's directory. It is given up piece by piece when something
//! that was accepted finds no room, so that the pending commit, deletions and a collection can
//! still be stored; and made again when there is room.
//!
//! Invariants: (1) nothing waits for it, and its failure harms nothing: without one the volume
//! works until its filesystem is full; (2) it holds no bytes that anybody reads.
//!
//! Absent on purpose: how large it should be (`space`), and syncs: after a crash it is measured
//! anew.

use std::io;
use std::sync::Arc;

use crate::sys::locks::Mutex;
use crate::sys::{Access, Disk, DiskFile};

/// The name of its file.
pub(super) const FILE_NAME: &str = "reserve";

/// It is made and given up in steps of at least this many bytes.
const PIECE_BYTES_MIN: u64 = 64 << 10;

/// In so many pieces it is given up.
const PIECES: u64 = 8;

/// The reserve; of a volume that takes no changes there is none.
#[derive(Default)]
pub(super) struct Reserve {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    file: Option<Arc<dyn DiskFile>>,
    bytes: u64,
    /// What it should have.
    target_bytes: u64,
}

impl Reserve {
    /// Begins with the file that is there, or makes an empty one.
    pub(super) fn open(&self, disk: &dyn Disk) {
        let opened = match disk.open(FILE_NAME, Access::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                disk.open(FILE_NAME, Access::CreateNew)
            }
            opened => opened,
        };
        let opened = opened.and_then(|file| {
            let bytes = file.len()?;
            // What a crash left without its room gets it again, or goes.
            if file.allocate(bytes).is_err() {
                file.set_len(0)?;
            }
            Ok((file.len()?, file))
        });
        match opened {
            Ok((bytes, file)) => {
                let mut state = self.state.lock();
                (state.file, state.bytes) = (Some(file), bytes);
            }
            Err(error) => tracing::warn!("no room is kept in reserve: {error}"),
        }
    }

    /// Bytes that it holds.
    pub(super) fn bytes(&self) -> u64 {
        self.state.lock().bytes
    }

    /// What it should have and has not.
    pub(super) fn missing(&self, target_bytes: u64) -> u64 {
        let state = self.state.lock();
        if state.file.is_some() { target_bytes.saturating_sub(state.bytes) } else { 0 }
    }

    /// Makes it as large as it should be, with `room` bytes to take that from, or smaller. Answers
    /// whether anything changed.
    pub(super) fn keep(&self, target_bytes: u64, room: u64) -> bool {
        let mut state = self.state.lock();
        state.target_bytes = target_bytes;
        let (bytes, Some(file)) = (state.bytes, state.file.clone()) else { return false };
        let piece = (target_bytes / PIECES).max(PIECE_BYTES_MIN);
        if target_bytes.abs_diff(bytes) < piece {
            return false;
        }
        let wanted = target_bytes.min(bytes.saturating_add(room));
        let changed = match wanted.cmp(&bytes) {
            std::cmp::Ordering::Less => file.set_len(wanted),
            std::cmp::Ordering::Equal => return false,
            std::cmp::Ordering::Greater => file.allocate(wanted),
        };
        state.bytes = match changed {
            Ok(()) => wanted,
            Err(error) => {
                tracing::debug!("the reserve stays at {bytes} bytes: {error}");
                // A part of it may have been taken; what stands in the file's length counts.
                file.set_len(bytes).and_then(|()| file.len()).unwrap_or(0)
            }
        };
        state.bytes != bytes
    }

    /// Gives a piece up; false when there is none left.
    pub(super) fn give_up(&self) -> bool {
        let mut state = self.state.lock();
        let (bytes, Some(file)) = (state.bytes, state.file.clone()) else { return false };
        if bytes == 0 {
            return false;
        }
        let piece = (state.target_bytes / PIECES).max(PIECE_BYTES_MIN);
        let left = bytes.saturating_sub(piece);
        if let Err(error) = file.set_len(left) {
            tracing::warn!("the reserve cannot be given up: {error}");
            return false;
        }
        tracing::info!("a piece of the reserve is given up: {left} bytes are left");
        state.bytes = left;
        true
    }
}

/// Gives a piece up of the reserve of a volume that is not open; false when there is none left.
pub(super) fn give_up_on(disk: &dyn Disk) -> bool {
    let Ok(file) = disk.open(FILE_NAME, Access::Write) else { return false };
    let bytes = file.len().unwrap_or(0);
    let left = bytes.saturating_sub((bytes / PIECES).max(PIECE_BYTES_MIN));
    0 < bytes && file.set_len(left).is_ok()
}

impl std::fmt::Debug for Reserve {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reserve").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::sim::{CallKind, Keep, SimDisk};

    const MIB: u64 = 1 << 20;

    #[test]
    fn it_is_made_given_up_and_made_again() {
        let disk = SimDisk::new();
        disk.set_space(2 * MIB);
        let reserve = Reserve::default();
        assert!(!reserve.give_up() && !reserve.keep(MIB, MIB), "it is not open");
        reserve.open(&disk);
        assert!(reserve.keep(MIB, MIB));
        assert_eq!((reserve.bytes(), reserve.missing(MIB)), (MIB, 0));
        assert_eq!(disk.space().unwrap().free_bytes, MIB);
        disk.set_space(0);
        let mut pieces = 0;
        while reserve.give_up() {
            pieces += 1;
        }
        assert_eq!((pieces, reserve.missing(MIB)), (PIECES, MIB));
        assert!(!reserve.keep(MIB, MIB), "the disk is full");
        disk.set_space(MIB);
        assert!(reserve.keep(MIB, MIB / 2) && reserve.keep(MIB, MIB));
        assert_eq!(reserve.bytes(), MIB);
        assert!(reserve.keep(MIB / 4, 0), "it shrinks");
        assert_eq!(disk.used_bytes().unwrap(), MIB / 4);
    }

    #[test]
    fn what_a_crash_left_without_room_gets_it_or_goes() {
        let disk = SimDisk::new();
        let reserve = Reserve::default();
        reserve.open(&disk);
        reserve.keep(MIB, MIB);
        let image = disk.crash(Keep::All);
        let again = Reserve::default();
        again.open(&image);
        assert_eq!(again.bytes(), MIB);
        image.set_space(0);
        image.fail_call(2, libc::ENOSPC, CallKind::Any);
        let full = Reserve::default();
        full.open(&image);
        assert_eq!(full.bytes(), 0);
    }
}
