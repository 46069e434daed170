//! Tests of a volume without FUSE, mostly on the simulated disk.

use std::sync::Arc;

use super::*;
use crate::chunk::Profile;
use crate::store::Compression;
use crate::sys::Disk;
use crate::sys::sim::{SimClock, SimDisk, SimRng};

mod attributes;
mod collect;
mod crash;
mod crowd;
mod damage;
mod faults;
mod files;
mod format;
mod large;
mod model;
mod names;
mod ranges;
mod rebuild;
#[cfg(shuttle)]
mod schedules;
mod small;
mod snapshots;
mod soak;
mod superblocks;
mod threads;

/// The caller of most tests.
const ROOT: Caller = Caller { uid: 0, gid: 0, umask: 0 };

/// A volume on a simulated disk, with all that is needed to open it again.
struct Bench {
    disk: SimDisk,
    clock: SimClock,
    volume: Arc<Volume>,
}

/// Small packs, so that tests fill some.
fn options() -> OpenOptions {
    OpenOptions { background: false, pack_bytes_max: 256 << 10, ..OpenOptions::default() }
}

fn create(disk: &SimDisk, clock: &SimClock) {
    create_with(disk, clock, &CreateOptions::default());
}

fn create_with(disk: &SimDisk, clock: &SimClock, options: &CreateOptions) {
    let (disk, clock): (Arc<dyn Disk>, Arc<dyn Clock>) =
        (Arc::new(disk.clone()), Arc::new(clock.clone()));
    Volume::create(&disk, &clock, &SimRng::new(7), options).unwrap();
}

fn open(disk: &SimDisk, clock: &SimClock, options: OpenOptions) -> Arc<Volume> {
    Volume::open(Arc::new(disk.clone()), Arc::new(clock.clone()), options).unwrap()
}

impl Bench {
    fn new() -> Bench {
        Bench::with(options())
    }

    fn with(options: OpenOptions) -> Bench {
        let (disk, clock) = (SimDisk::new(), SimClock::new());
        create(&disk, &clock);
        let volume = open(&disk, &clock, options);
        Bench { disk, clock, volume }
    }

    /// Closes the volume and opens it again.
    fn reopen(&mut self) {
        self.volume.close().unwrap();
        self.volume = open(&self.disk, &self.clock, options());
    }

    fn create(&self, name: &str) -> Ino {
        let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
        let attr = self.volume.mknod(Ino::ROOT, name.as_bytes(), &make, ROOT, Wait::Yes).unwrap();
        attr.ino
    }

    fn write(&self, ino: Ino, offset: u64, bytes: &[u8]) {
        self.volume.write(ino, offset, bytes, false, Wait::Yes).unwrap();
    }

    fn read_all(&self, ino: Ino) -> Vec<u8> {
        let size = self.volume.getattr(ino).unwrap().size;
        self.volume.read(ino, 0, size as usize).unwrap()
    }

    fn find(&self, name: &str) -> Result<Ino, Error> {
        let attr = self.volume.lookup(Ino::ROOT, name.as_bytes())?;
        self.volume.forget(attr.ino, 1);
        Ok(attr.ino)
    }

    fn truncate(&self, ino: Ino, size: u64) {
        let change = SetAttr { size: Some(size), ..SetAttr::default() };
        self.volume.setattr(ino, &change, ROOT, Wait::Yes).unwrap();
    }
}

/// Bytes that do not repeat.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    SimRng::new(seed).fill(&mut bytes);
    bytes
}
