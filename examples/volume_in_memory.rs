//! A volume without a mount, on the simulated disk: writes a file twice, shows that the second
//! costs nothing, loses power, and finds what was synced: `cargo run --example volume_in_memory`.

use std::sync::Arc;

use pyramidfs::meta::Ino;
use pyramidfs::sys::sim::{Keep, SimClock, SimDisk, SimRng};
use pyramidfs::sys::{Clock, Disk};
use pyramidfs::volume::{Caller, CreateOptions, Error, MODE_FILE, Make, OpenOptions, Volume, Wait};

const CALLER: Caller = Caller { uid: 1000, gid: 1000, umask: 0 };
const SIZE_BYTES: usize = 8 << 20;

fn main() -> Result<(), Error> {
    let disk = SimDisk::new();
    let clock: Arc<dyn Clock> = Arc::new(SimClock::new());
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    Volume::create(&shared, &clock, &SimRng::new(1), &CreateOptions::default())?;

    // Without threads in the background everything happens on this one, in a fixed order.
    let options = OpenOptions { background: false, ..OpenOptions::default() };
    let volume = Volume::open(shared, Arc::clone(&clock), options)?;
    let content = content();
    for name in ["one", "two"] {
        write(&volume, name, &content)?;
        volume.sync()?;
        let status = volume.status()?;
        println!(
            "{name}: {} bytes in files, {} in distinct chunks, {} stored",
            status.logical_bytes, status.unique_bytes, status.stored_bytes
        );
    }
    write(&volume, "three", b"never synced")?;
    drop(volume);

    // Power goes, and takes along what was not synced.
    let image: Arc<dyn Disk> = Arc::new(disk.crash(Keep::Nothing));
    let volume = Volume::open(image, clock, options)?;
    for name in ["one", "two"] {
        assert_eq!(read(&volume, name)?, content, "{name} is whole");
    }
    assert!(matches!(read(&volume, "three"), Err(Error::NotFound)), "it was never synced");
    println!("after the crash: one and two are whole, three was never synced");
    volume.close()
}

/// Numbers that do not repeat.
fn content() -> Vec<u8> {
    (0..SIZE_BYTES as u64 / 8).flat_map(|number| (number * number).to_le_bytes()).collect()
}

fn write(volume: &Volume, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
    let file = volume.mknod(Ino::ROOT, name.as_bytes(), &make, CALLER, Wait::Yes)?;
    for (index, part) in bytes.chunks(1 << 20).enumerate() {
        volume.write(file.ino, (index << 20) as u64, part, false, Wait::Yes)?;
    }
    // What mknod and lookup hand out is remembered until it is given back.
    volume.forget(file.ino, 1);
    Ok(())
}

fn read(volume: &Volume, name: &str) -> Result<Vec<u8>, Error> {
    let file = volume.lookup(Ino::ROOT, name.as_bytes())?;
    let bytes = volume.read(file.ino, 0, file.size as usize);
    volume.forget(file.ino, 1);
    bytes
}
