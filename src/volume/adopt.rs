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

use super::{Error, OpenOptions, Superblock, Volume};
use crate::sys::locks::Mutex;
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
        let lock = super::lock_for(disk.as_ref(), &options)?;
        let mut volume = Volume::assemble(disk, clock, superblock, options, lock)?;
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

#[cfg(test)]
mod tests {
    use super::super::{Caller, MODE_FILE, Make, OpenFlags, Wait};
    use super::*;
    use crate::meta::Ino;
    use crate::sys::overlay::OverlayDisk;
    use crate::sys::sim::{SimClock, SimDisk, SimRng};
    use crate::volume::CreateOptions;

    const ROOT: Caller = Caller { uid: 0, gid: 0, umask: 0 };

    struct Bench {
        disk: SimDisk,
        clock: SimClock,
    }

    impl Bench {
        fn new() -> Bench {
            let bench = Bench { disk: SimDisk::new(), clock: SimClock::new() };
            let (disk, clock) = (bench.disk(), bench.clock());
            Volume::create(&disk, &clock, &SimRng::new(7), &CreateOptions::default()).unwrap();
            bench
        }

        fn disk(&self) -> Arc<dyn Disk> {
            Arc::new(self.disk.clone())
        }

        fn clock(&self) -> Arc<dyn Clock> {
            Arc::new(self.clock.clone())
        }

        fn writable(&self) -> Arc<Volume> {
            Volume::open(self.disk(), self.clock(), options(false)).unwrap()
        }

        fn for_reading(&self) -> Arc<Current> {
            let disk = Arc::new(OverlayDisk::new(self.disk()));
            Current::new(Volume::open(disk, self.clock(), options(true)).unwrap())
        }

        fn make_writable(&self, current: &Current) -> Result<(), Error> {
            current.make_writable(self.disk(), self.clock(), options(false))
        }
    }

    fn options(read_only: bool) -> OpenOptions {
        OpenOptions { read_only, background: false, ..OpenOptions::default() }
    }

    fn create(volume: &Volume, name: &[u8]) -> Result<Ino, Error> {
        let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
        Ok(volume.mknod(Ino::ROOT, name, &make, ROOT, Wait::Yes)?.ino)
    }

    #[test]
    fn what_the_kernel_knows_stays_right() {
        let bench = Bench::new();
        let before = bench.writable();
        let ino = create(&before, b"file").unwrap();
        before.write(ino, 0, b"old", false, Wait::Yes).unwrap();
        before.close().unwrap();

        let current = bench.for_reading();
        assert_eq!(current.lookup(Ino::ROOT, b"file").unwrap().ino, ino);
        let reading = OpenFlags { write: false, truncate: false, append: false };
        current.open_file(ino, reading, ROOT, Wait::Yes).unwrap();
        assert_eq!(current.read(ino, 0, 9).unwrap(), b"old");
        assert!(matches!(create(&current, b"new"), Err(Error::ReadOnly)));
        bench.make_writable(&current).unwrap();
        assert!(current.is_writable());
        bench.make_writable(&current).unwrap();
        // Open before, and without a name now: it is there until it is closed and forgotten.
        current.unlink(Ino::ROOT, b"file", Wait::Yes).unwrap();
        current.sync().unwrap();
        assert_eq!(current.read(ino, 0, 9).unwrap(), b"old");
        current.release(ino, false);
        assert_eq!(current.getattr(ino).unwrap().nlink, 0);
        current.forget(ino, 1);
        assert!(current.getattr(ino).is_err());
        create(&current, b"new").unwrap();
        current.close().unwrap();
        let after = bench.writable();
        assert!(after.lookup(Ino::ROOT, b"new").is_ok());
        after.close().unwrap();
    }

    #[test]
    fn refused_while_in_use_and_after_a_change() {
        let bench = Bench::new();
        let current = bench.for_reading();
        let other = bench.writable();
        assert!(matches!(bench.make_writable(&current), Err(Error::InUse)));
        other.close().unwrap();
        // Nothing was changed by the other.
        let second = bench.for_reading();
        bench.make_writable(&second).unwrap();
        create(&second, b"file").unwrap();
        second.close().unwrap();
        assert!(matches!(bench.make_writable(&current), Err(Error::Changed)));
        assert!(!current.is_writable() && current.getattr(Ino::ROOT).is_ok());
        // The refusal has given the lock back.
        bench.writable().close().unwrap();
        current.close().unwrap();
    }

    #[test]
    fn after_a_crash() {
        let bench = Bench::new();
        let before = bench.writable();
        create(&before, b"kept").unwrap();
        before.sync().unwrap();
        create(&before, b"lost").unwrap();
        drop(before);
        let current = bench.for_reading();
        assert!(current.lookup(Ino::ROOT, b"lost").is_err());
        bench.make_writable(&current).unwrap();
        assert!(current.lookup(Ino::ROOT, b"kept").is_ok());
        create(&current, b"new").unwrap();
        current.close().unwrap();
    }
}
