//! The daemon is killed in the middle of work; what fsync acknowledged must be there again.
//!
//! Each writer keeps a list of what it was told is durable, be it by fsync, by the sync of a
//! directory, by O_SYNC or by O_DSYNC. The moments are seeded: the daemon dies when a number of
//! acknowledgements has been reached, which differs from round to round.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use super::harness::{Numbers, Site, seed};
use super::writers::Writers;

const ROUNDS: u64 = 6;
const WRITERS: u64 = 4;

/// What one writer knows to be durable.
#[derive(Default)]
struct Known {
    /// Files that are written once: path and seed of the content.
    once: Vec<(PathBuf, u64)>,
    /// Files that were removed.
    removed: Vec<PathBuf>,
    /// Length of the file that grows.
    grown: u64,
    /// Version of the file that is replaced by rename.
    version: u64,
    /// Bytes of the file that is overwritten in place.
    places: Vec<u8>,
}

const PLACE_BYTES: usize = 3000;
const PLACES: usize = 400;

/// One thread with a directory of its own.
struct Writer {
    dir: PathBuf,
    numbers: Numbers,
    known: Known,
    next: u64,
}

impl Writer {
    fn new(dir: PathBuf, seed: u64) -> Writer {
        Writer { dir, numbers: Numbers(seed), known: Known::default(), next: 0 }
    }

    /// Works until the mount is gone.
    fn work(&mut self, acknowledged: &Sender<()>) {
        loop {
            let done = match self.numbers.below(8) {
                0 | 1 => self.write_once(),
                2 => self.grow(),
                3 => self.replace(),
                4 | 5 => self.overwrite(),
                6 => self.rename(),
                _ => self.remove(),
            };
            match done {
                // Nobody listens any more once the goal is reached.
                Ok(()) => drop(acknowledged.send(())),
                Err(error) => {
                    let number = error.raw_os_error();
                    let gone = [libc::ENOTCONN, libc::ECONNABORTED, libc::EIO].map(Some);
                    assert!(gone.contains(&number), "the daemon was only killed: {error}");
                    return;
                }
            }
        }
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn write_once(&mut self) -> io::Result<()> {
        let seed = self.numbers.next();
        self.next += 1;
        let path = self.dir.join(format!("once-{}", self.next));
        let content = content(seed);
        let mut file = File::create(&path)?;
        for piece in content.chunks(70_000) {
            file.write_all(piece)?;
        }
        file.sync_all()?;
        self.sync_dir()?;
        self.known.once.push((path, seed));
        Ok(())
    }

    fn grow(&mut self) -> io::Result<()> {
        let path = self.dir.join("grown");
        let len = 1 + self.numbers.below(60_000);
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        // What a killed round left behind the acknowledged length stays in front of this.
        let from = file.metadata()?.len();
        file.write_all(&grown_bytes(from, from + len))?;
        file.sync_data()?;
        self.sync_dir()?;
        self.known.grown = from + len;
        Ok(())
    }

    fn replace(&mut self) -> io::Result<()> {
        let version = self.known.version + 1;
        let path = self.dir.join("new");
        let mut file = File::create(&path)?;
        file.write_all(&content(version))?;
        file.sync_all()?;
        fs::rename(path, self.dir.join("replaced"))?;
        self.sync_dir()?;
        self.known.version = version;
        Ok(())
    }

    /// By fsync, or by a write that is durable when it returns.
    fn overwrite(&mut self) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let path = self.dir.join("places");
        let is_new = self.known.places.is_empty();
        let flags = *self.numbers.pick(&[0, libc::O_SYNC, libc::O_DSYNC]);
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).custom_flags(flags);
        let file = file.open(path)?;
        let places = &mut self.known.places;
        places.resize(PLACES, 0);
        let place = self.numbers.below(PLACES as u64) as usize;
        let value = self.numbers.next() as u8;
        // Nothing is known of this place until it is durable.
        places[place] = 0;
        file.write_all_at(&[value; PLACE_BYTES], (place * PLACE_BYTES) as u64)?;
        if flags == 0 {
            file.sync_all()?;
        }
        if is_new {
            self.sync_dir()?;
        }
        self.known.places[place] = value;
        Ok(())
    }

    /// Into another directory, or over another file there; then only that directory is synced.
    fn rename(&mut self) -> io::Result<()> {
        if self.known.once.len() < 3 {
            return self.write_once();
        }
        let index = self.numbers.below(self.known.once.len() as u64) as usize;
        // From here on it may have either name, until the sync has said which.
        let (path, seed) = self.known.once.swap_remove(index);
        self.next += 1;
        let other = self.dir.join(format!("other-{}", self.numbers.below(3)));
        fs::create_dir(&other).or_else(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error),
        })?;
        let mut to = other.join(format!("moved-{}", self.next));
        if self.numbers.below(2) == 0 {
            let over = self.numbers.below(self.known.once.len() as u64) as usize;
            to = self.known.once.swap_remove(over).0;
        }
        fs::rename(&path, &to)?;
        File::open(to.parent().unwrap_or(&self.dir))?.sync_all()?;
        self.known.removed.push(path);
        self.known.once.push((to, seed));
        Ok(())
    }

    fn remove(&mut self) -> io::Result<()> {
        if self.known.once.len() < 3 {
            return self.write_once();
        }
        let index = self.numbers.below(self.known.once.len() as u64) as usize;
        // From here on it may be there or not, until fsync has said that it is gone.
        let (path, _) = self.known.once.swap_remove(index);
        fs::remove_file(&path)?;
        self.sync_dir()?;
        self.known.removed.push(path);
        Ok(())
    }

    fn verify(&self) {
        for (path, seed) in &self.known.once {
            let found = fs::read(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            assert!(found == content(*seed), "{path:?} has lost fsynced bytes");
        }
        for path in &self.known.removed {
            assert!(!path.exists(), "{path:?} is back, and its removal was fsynced");
        }
        if self.known.grown > 0 {
            let found = fs::read(self.dir.join("grown")).unwrap();
            assert!(self.known.grown <= found.len() as u64, "an append is lost");
            let durable = &found[..self.known.grown as usize];
            assert!(durable == grown_bytes(0, self.known.grown), "appended bytes are lost");
        }
        if self.known.version > 0 {
            let found = fs::read(self.dir.join("replaced")).unwrap();
            let version = self.known.version;
            let fits = found == content(version) || found == content(version + 1);
            assert!(fits, "the replaced file is neither version {version} nor the next");
        }
        for (place, value) in self.known.places.iter().enumerate().filter(|(_, value)| **value > 0)
        {
            let found = read_place(&self.dir.join("places"), place);
            assert!(found == vec![*value; PLACE_BYTES], "place {place} has lost fsynced bytes");
        }
    }

    /// Makes the files fit what is known, where a killed round has left more.
    fn settle(&mut self) {
        let path = self.dir.join("grown");
        if path.exists() {
            let file = OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(self.known.grown).unwrap();
        }
        // The version that was under way may have been reached: the next one must be another.
        self.known.version += u64::from(self.known.version > 0);
        if self.known.version > 0 {
            fs::write(self.dir.join("replaced"), content(self.known.version)).unwrap();
            File::open(self.dir.join("replaced")).unwrap().sync_all().unwrap();
        }
    }
}

fn read_place(path: &Path, place: usize) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; PLACE_BYTES];
    File::open(path).unwrap().read_exact_at(&mut bytes, (place * PLACE_BYTES) as u64).unwrap();
    bytes
}

/// Up to 300 KB; one in four compresses well, and one in four has equal chunks with others.
fn content(seed: u64) -> Vec<u8> {
    let mut numbers = Numbers(seed ^ 0x5eed);
    let len = numbers.below(300_000) as usize;
    match numbers.below(4) {
        0 => vec![seed as u8; len],
        1 => Numbers(seed % 3).bytes(len),
        _ => numbers.bytes(len),
    }
}

/// The bytes of the growing file from `from` to `to`: each tells where it stands.
fn grown_bytes(from: u64, to: u64) -> Vec<u8> {
    (from..to).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

#[test]
fn what_fsync_acknowledged_survives_a_kill() {
    let seed = seed();
    println!("PYRAMIDFS_SEED={seed}");
    let mut numbers = Numbers(seed);
    let site = Site::new();
    let mut writers: Vec<Writer> = (0..WRITERS)
        .map(|number| Writer::new(site.at(format!("writer-{number}")), numbers.next()))
        .collect();
    for round in 0..ROUNDS {
        // Also right over the dead mount that the round before has left.
        site.mount();
        for writer in &mut writers {
            if round == 0 {
                fs::create_dir(&writer.dir).unwrap();
            }
            writer.verify();
            writer.settle();
        }
        File::open(site.mountpoint()).unwrap().sync_all().unwrap();
        let goal = 1 + numbers.below(120);
        run_round(&site, &mut writers, goal);
        if round % 2 == 0 {
            // The volume as the kill left it, before anybody has opened it.
            site.check();
        }
    }
    site.mount();
    writers.iter().for_each(Writer::verify);
    site.umount_and_check();
}

/// Lets all writers work until `goal` acknowledgements have come, then kills the daemon.
fn run_round(site: &Site, writers: &mut [Writer], goal: u64) {
    let (told, acknowledged) = channel();
    std::thread::scope(|scope| {
        for writer in writers.iter_mut() {
            let told = told.clone();
            scope.spawn(move || writer.work(&told));
        }
        drop(told);
        // Fewer come only when all writers have failed, which their threads tell.
        let reached = acknowledged.iter().take(goal as usize).count();
        if reached == goal as usize {
            site.kill_daemon();
        }
    });
}

#[test]
fn a_removed_file_that_was_open_at_the_kill_is_gone_for_good() {
    let site = Site::mounted();
    let before = site.figure("files");
    let path = site.at("open");
    super::harness::write_random(&path, 1, 1 << 20);
    let open = File::open(&path).unwrap();
    open.sync_all().unwrap();
    fs::remove_file(&path).unwrap();
    File::open(site.mountpoint()).unwrap().sync_all().unwrap();
    site.kill_daemon();
    drop(open);
    site.mount();
    assert!(!path.exists());
    assert_eq!(site.figure("files"), before, "the orphan is still counted");
    site.umount_and_check();
}

#[test]
fn what_processes_were_told_is_durable_survives_kills() {
    let site = Site::new();
    let mut numbers = Numbers(seed());
    let (mut claims, stall) = (Vec::new(), Duration::from_secs(60));
    for round in 0..4 {
        site.mount();
        let writers = Writers::start(&site.mountpoint(), 8, 1 << 40, round, Command::new);
        for _ in 0..10 + numbers.below(150) {
            claims.push(writers.next(stall).expect("they write for long"));
        }
        site.kill_daemon();
        let (done, rest) = writers.finish();
        assert_eq!(done, 0, "they cannot have written all");
        claims.extend(rest);
        site.check();
    }
    site.mount();
    claims.iter().for_each(|claim| claim.verify());
    site.umount_and_check();
}
