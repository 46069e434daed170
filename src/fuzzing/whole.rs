//! A small volume whose files are changed anywhere: it opens and reads, or says why not.
//!
//! The input is a list of edits. Plain ones are damage: no wrong byte is handed out. With the
//! first byte odd, all checksums of ours are made to fit again, as a hostile author would: then
//! content may be any, but nothing panics, hangs, or takes memory out of proportion.

use std::sync::{Arc, OnceLock};

use crate::check;
use crate::meta::Ino;
use crate::store::fuzzing::{seal_pack, seal_run};
use crate::sys::overlay::OverlayDisk;
use crate::sys::sim::{Keep, SimClock, SimDisk, SimRng};
use crate::sys::{Access, Clock, Disk, Rng};
use crate::volume::fuzzing::seal_superblock;
use crate::volume::{
    Caller, CreateOptions, Error, MODE_DIR, MODE_FILE, Make, OpenOptions, Volume, Wait,
};

const ROOT: Caller = Caller { uid: 0, gid: 0, umask: 0 };
/// Bytes of an edit: file, operation, offset (3, little-endian), value.
const EDIT_BYTES: usize = 6;
const EDITS_MAX: usize = 64;
/// No file of the volume is longer than this.
const CONTENT_BYTES_MAX: u64 = 1 << 20;

/// The volume before the edits.
struct Image {
    disk: SimDisk,
    /// Its files, sorted.
    paths: Vec<String>,
    uuid: [u8; 16],
    /// Names and what they hold.
    contents: Vec<(String, Vec<u8>)>,
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(SimClock::new())
}

fn options(read_only: bool) -> OpenOptions {
    OpenOptions { background: false, read_only, ..OpenOptions::default() }
}

fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| match make_image() {
        Ok(image) => image,
        Err(error) => unreachable!("a volume on the simulated disk: {error}"),
    })
}

/// Two packs, a run of the index, a checkpoint, and a commit that is in the log alone.
fn make_image() -> Result<Image, Error> {
    let disk = SimDisk::new();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    Volume::create(&shared, &clock(), &SimRng::new(1), &CreateOptions::default())?;
    let mut contents = Vec::new();
    for (round, close) in [(0, true), (1, false)] {
        let options = OpenOptions { pack_bytes_max: 64 << 10, ..options(false) };
        let volume = Volume::open(Arc::clone(&shared), clock(), options)?;
        for number in 0..3 {
            let name = format!("file{}", 3 * round + number);
            let mut bytes = vec![0; [100, 5000, 40_000][number]];
            SimRng::new(number as u64 + 1).fill(&mut bytes[..]);
            bytes.extend_from_slice(name.as_bytes());
            let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
            let ino = volume.mknod(Ino::ROOT, name.as_bytes(), &make, ROOT, Wait::Yes)?.ino;
            volume.write(ino, 0, &bytes, false, Wait::Yes)?;
            volume.forget(ino, 1);
            contents.push((name, bytes));
        }
        let dir = format!("dir{round}");
        let dir = volume.mkdir(Ino::ROOT, dir.as_bytes(), 0o755, ROOT, Wait::Yes)?.ino;
        volume.symlink(dir, b"link", b"../file0", ROOT, Wait::Yes)?;
        volume.sync()?;
        if close {
            volume.close()?;
        }
    }
    let disk = disk.crash(Keep::All);
    let uuid =
        Volume::open(Arc::new(OverlayDisk::new(Arc::new(disk.clone()))), clock(), options(true))?
            .superblock()
            .uuid;
    let mut paths = Vec::new();
    list(&disk, "", &mut paths);
    Ok(Image { disk, paths, uuid, contents })
}

fn list(disk: &SimDisk, dir: &str, paths: &mut Vec<String>) {
    for entry in disk.read_dir(dir).unwrap_or_default() {
        let path = if dir.is_empty() { entry.name } else { format!("{dir}/{}", entry.name) };
        if entry.is_dir {
            list(disk, &path, paths);
        } else {
            paths.push(path);
        }
    }
}

/// Applies the edits of an input to a volume, opens it in every way, and reads all of it.
pub fn volume(input: &[u8]) {
    let image = image();
    let Some((&mode, edits)) = input.split_first() else { return };
    let is_sealed = mode & 1 == 1;
    let disk = image.disk.crash(Keep::All);
    for edit in edits.as_chunks::<EDIT_BYTES>().0.iter().take(EDITS_MAX) {
        apply(&disk, image, edit);
    }
    if is_sealed {
        image.paths.iter().for_each(|path| seal(&disk, image, path));
    }
    let overlay = Arc::new(OverlayDisk::new(Arc::new(disk.clone())));
    if let Ok(volume) = Volume::open(overlay, clock(), options(true)) {
        read_all(&volume, image, is_sealed);
    }
    let overlay = Arc::new(OverlayDisk::new(Arc::new(disk.clone())));
    let _ = check::run(overlay, clock(), true, &mut |_| {});
    if let Ok(volume) = Volume::open(Arc::new(disk), clock(), options(false)) {
        read_all(&volume, image, is_sealed);
        let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
        if let Ok(attr) = volume.mknod(Ino::ROOT, b"new", &make, ROOT, Wait::Yes) {
            let _ = volume.write(attr.ino, 0, b"new", false, Wait::Yes);
            volume.forget(attr.ino, 1);
        }
        let _ = volume.sync();
        let _ = volume.close();
    }
}

fn apply(disk: &SimDisk, image: &Image, edit: &[u8; EDIT_BYTES]) {
    let [file, operation, low, middle, high, value] = *edit;
    let Some(path) = image.paths.get(usize::from(file) % image.paths.len()) else { return };
    let Ok(file) = disk.open(path, Access::Write) else { return };
    let len = file.len().unwrap_or(0).max(1);
    let offset = u64::from(u32::from_le_bytes([low, middle, high, 0])) % len;
    let _ = match operation % 8 {
        0..=2 => file.write_all_at(&[value], offset),
        3 => disk.rot(path, offset, value),
        4 => file.write_all_at(&[value; 8], offset & !7),
        5 => file.set_len(offset),
        6 => file.set_len(len + u64::from(value)),
        _ => disk.remove_file(path),
    };
}

fn seal(disk: &SimDisk, image: &Image, path: &str) {
    let Ok(file) = disk.open(path, Access::Write) else { return };
    let mut bytes = vec![0; file.len().unwrap_or(0) as usize];
    let _ = file.read_at(&mut bytes, 0);
    if path == "superblock" {
        seal_superblock(&mut bytes);
    } else if path.ends_with(".run") {
        seal_run(&mut bytes);
    } else if path.ends_with(".pack") {
        let digits = path.rsplit('/').next().and_then(|name| name.strip_suffix(".pack"));
        let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        seal_pack(&mut bytes, image.uuid, number.unwrap_or(0));
    } else {
        return;
    }
    let _ = file.set_len(bytes.len() as u64);
    let _ = file.write_all_at(&bytes, 0);
}

fn read_all(volume: &Volume, image: &Image, is_sealed: bool) {
    let mut names = Vec::new();
    let _ = volume.readdir(Ino::ROOT, 0, &mut |item| {
        names.push(item.name);
        true
    });
    for name in &names {
        let Ok(attr) = volume.lookup(Ino::ROOT, name) else { continue };
        let size = attr.size.min(CONTENT_BYTES_MAX);
        let _ = volume.listxattr(attr.ino);
        if attr.mode & MODE_DIR != 0 {
            let _ = volume.readdir(attr.ino, 0, &mut |_| true);
        }
        if let Ok(bytes) = volume.read(attr.ino, 0, size as usize) {
            let own = |(known, _): &&(String, Vec<u8>)| known.as_bytes() == name;
            let expected = image.contents.iter().find(own).map(|(_, bytes)| bytes);
            assert!(is_sealed || expected.is_none_or(|known| *known == bytes), "wrong bytes");
        }
        volume.forget(attr.ino, 1);
    }
    let _ = (volume.status(), volume.statfs());
}

/// Edits to begin with: none, one in each file, and the same with checksums that fit.
pub fn seeds() -> Vec<Vec<u8>> {
    let edits = |mode: u8, operation: u8| {
        let mut bytes = vec![mode];
        for file in 0..image().paths.len() as u8 {
            bytes.extend_from_slice(&[file, operation, 70, file, 0, 0xff]);
        }
        bytes
    };
    vec![vec![0], vec![1], edits(0, 3), edits(1, 3), edits(1, 4)]
}
