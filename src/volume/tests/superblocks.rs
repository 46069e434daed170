//! Superblocks: read as written, every damage noticed, what is newer refused by name.

use super::*;
use crate::sys::{Access, DiskFile};

const PATH: &str = "superblock";

fn file(disk: &SimDisk) -> Arc<dyn DiskFile> {
    disk.open(PATH, Access::Write).unwrap()
}

fn text(disk: &SimDisk) -> String {
    let file = file(disk);
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Replaces the superblock by `body` and the checksum that fits.
fn replace(disk: &SimDisk, body: &str) {
    let text = format!("{body}checksum = {}\n", crc32c::crc32c(body.as_bytes()));
    let file = file(disk);
    file.set_len(0).unwrap();
    file.write_all_at(text.as_bytes(), 0).unwrap();
}

fn body(disk: &SimDisk) -> String {
    let text = text(disk);
    text[..text.rfind("checksum = ").unwrap()].to_owned()
}

fn refused(disk: &SimDisk) -> Error {
    let clock = Arc::new(SimClock::new());
    match Volume::open(Arc::new(disk.clone()), clock, options()) {
        Ok(_) => panic!("the superblock was taken"),
        Err(error) => error,
    }
}

#[test]
fn a_superblock_is_read_as_it_was_written() {
    for hash in [crate::hash::HashKind::Sha3_256, crate::hash::HashKind::Blake3] {
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd(7)] {
            let (disk, clock) = (SimDisk::new(), SimClock::new());
            let profile = Profile { branches: 512, hash };
            let create = CreateOptions { profile, compression, ..CreateOptions::default() };
            let (dyn_disk, dyn_clock): (Arc<dyn Disk>, Arc<dyn Clock>) =
                (Arc::new(disk.clone()), Arc::new(clock.clone()));
            Volume::create(&dyn_disk, &dyn_clock, &SimRng::new(3), &create).unwrap();
            let volume = open(&disk, &clock, options());
            let superblock = volume.superblock();
            assert_eq!((superblock.profile, superblock.compression), (profile, compression));
            assert_eq!(superblock.uuid_text().len(), 36);
            assert!(text(&disk).contains(&superblock.uuid_text()));
        }
    }
}

#[test]
fn every_changed_byte_is_noticed() {
    let bench = Bench::new();
    bench.volume.close().unwrap();
    for offset in 0..text(&bench.disk).len() as u64 {
        for xor in [1, 0x20, 0x80] {
            bench.disk.rot(PATH, offset, xor).unwrap();
            let error = refused(&bench.disk);
            assert!(
                matches!(error, Error::BadSuperblock { .. } | Error::NewerFormat { .. }),
                "byte {offset}: {error}"
            );
            bench.disk.rot(PATH, offset, xor).unwrap();
        }
    }
    open(&bench.disk, &bench.clock, options()).close().unwrap();
}

#[test]
fn what_is_newer_is_refused_by_name() {
    let bench = Bench::new();
    bench.volume.close().unwrap();
    let body = body(&bench.disk);
    replace(&bench.disk, &body.replace("format = 1", "format = 2\nlayout = \"other\""));
    let error = refused(&bench.disk);
    assert!(matches!(error, Error::NewerFormat { found: 2, supported: FORMAT_VERSION }));
    replace(&bench.disk, &body.replace("features = []", "features = [\"sharding\"]"));
    let error = refused(&bench.disk);
    assert!(matches!(&error, Error::UnknownFeature { name } if name == "sharding"), "{error}");
    replace(&bench.disk, &body.replace("branches = 128", "branches = 1"));
    assert!(matches!(refused(&bench.disk), Error::BadSuperblock { .. }));
    replace(&bench.disk, &body);
    open(&bench.disk, &bench.clock, options()).close().unwrap();
}

#[test]
fn mkfs_never_overwrites_one() {
    let bench = Bench::new();
    bench.volume.close().unwrap();
    for damage in [0, 1] {
        bench.disk.rot(PATH, 3, damage).unwrap();
        let before = text(&bench.disk);
        let (disk, clock): (Arc<dyn Disk>, Arc<dyn Clock>) =
            (Arc::new(bench.disk.clone()), Arc::new(bench.clock.clone()));
        let made = Volume::create(&disk, &clock, &SimRng::new(9), &CreateOptions::default());
        assert!(matches!(made, Err(Error::AlreadyAVolume)));
        assert_eq!(text(&bench.disk), before);
    }
}

#[test]
fn a_volume_that_another_one_makes_is_left_alone() {
    let (disk, clock) = (SimDisk::new(), SimClock::new());
    let (dyn_disk, dyn_clock): (Arc<dyn Disk>, Arc<dyn Clock>) =
        (Arc::new(disk.clone()), Arc::new(clock.clone()));
    let lock = disk.lock("lock").unwrap();
    // What stands there when the other one is in the middle of it.
    disk.open("superblock.new", Access::CreateNew).unwrap();
    disk.create_dir("packs").unwrap();
    disk.open("packs/one", Access::CreateNew).unwrap();
    let make = || Volume::create(&dyn_disk, &dyn_clock, &SimRng::new(3), &CreateOptions::default());
    assert!(matches!(make(), Err(Error::InUse)));
    assert!(disk.open("packs/one", Access::Read).is_ok(), "it was taken for a remain");
    drop(lock);
    make().unwrap();
    assert!(disk.open("packs/one", Access::Read).is_err());
    assert!(matches!(make(), Err(Error::AlreadyAVolume)));
}
