//! A long life on a small disk: files are made, overwritten, removed, kept in snapshots and brought
//! back, while a plain list beside it says what every file and every snapshot holds. What is
//! alive is at most a part of the disk, and the rest must come back by itself, again and again:
//! nothing may fill up, stall or be lost.
//!
//! `mount-scripts/life` runs the same for long and draws what was measured.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::backing::{Backing, has_loop_devices};
use super::harness::{Numbers, Site, errno_of, seed};

/// Content is made of blocks that are the same or have nothing in common.
const BLOCK_BYTES: usize = 32 << 10;
/// Snapshots that are kept at a time.
const SNAPSHOTS: usize = 4;
/// Longer than a writer may ever wait for room that garbage takes.
const STALL: Duration = Duration::from_secs(120);

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// What a file holds: the seed of each of its blocks.
type Blocks = Vec<u64>;

/// What all files hold.
type Files = BTreeMap<String, Blocks>;

/// Takes one number of a look.
type Figure = fn(&Sample) -> u64;

/// One look at the volume.
struct Sample {
    seconds: f64,
    live_bytes: u64,
    held_bytes: u64,
    stored_bytes: u64,
    disk_bytes: u64,
}

struct Life {
    site: Site,
    numbers: Numbers,
    files: Files,
    snapshots: BTreeMap<String, Files>,
    next: u64,
    began: Instant,
    samples: Vec<Sample>,
    refused: u64,
    longest: Duration,
    written_bytes: u64,
    steps: u64,
}

fn block(seed: u64) -> Vec<u8> {
    Numbers(seed).stream(BLOCK_BYTES)
}

fn distinct<'a>(files: impl Iterator<Item = &'a Files>) -> u64 {
    let blocks: BTreeSet<u64> = files.flat_map(|one| one.values().flatten().copied()).collect();
    blocks.len() as u64 * BLOCK_BYTES as u64
}

impl Life {
    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next << 20 | seed() & 0xf_ffff
    }

    fn live_bytes(&self) -> u64 {
        distinct(std::iter::once(&self.files))
    }

    fn held_bytes(&self) -> u64 {
        distinct(std::iter::once(&self.files).chain(self.snapshots.values()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.at(name)
    }

    /// Does something that may find no room; it must, before long.
    fn patiently(&mut self, mut attempt: impl FnMut() -> std::io::Result<()>) {
        let began = Instant::now();
        loop {
            let done = attempt();
            self.longest = self.longest.max(began.elapsed());
            let Err(error) = done else { return };
            let errno = errno_of::<()>(Err(error));
            assert!([libc::ENOSPC, libc::EDQUOT].contains(&errno), "errno {errno}");
            self.refused += 1;
            assert!(began.elapsed() < STALL, "no room for {:?}", began.elapsed());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn write(&mut self, name: &str, from: usize, blocks: &[u64]) {
        let path = self.path(name);
        let bytes: Vec<u8> = blocks.iter().flat_map(|seed| block(*seed)).collect();
        self.written_bytes += bytes.len() as u64;
        self.patiently(|| {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
            file.write_all_at(&bytes, (from * BLOCK_BYTES) as u64)?;
            file.sync_all()
        });
        let held = self.files.entry(name.to_owned()).or_default();
        held.resize(held.len().max(from + blocks.len()), 0);
        held[from..from + blocks.len()].copy_from_slice(blocks);
    }

    fn make(&mut self) {
        let name = format!("d{}/f{}", self.numbers.below(8), self.numbers.below(10_000));
        let blocks: Blocks = (0..1 + self.numbers.below(64)).map(|_| self.fresh()).collect();
        if !self.files.contains_key(&name) {
            self.write(&name, 0, &blocks);
        }
    }

    fn some(&mut self) -> Option<String> {
        let names: Vec<String> = self.files.keys().cloned().collect();
        (!names.is_empty()).then(|| self.numbers.pick(&names).clone())
    }

    fn overwrite(&mut self) {
        let Some(name) = self.some() else { return };
        let len = self.files[&name].len() as u64;
        let from = self.numbers.below(len);
        let count = 1 + self.numbers.below(8.min(len - from));
        let blocks: Blocks = (0..count).map(|_| self.fresh()).collect();
        self.write(&name, from as usize, &blocks);
    }

    fn remove(&mut self) {
        let Some(name) = self.some() else { return };
        let path = self.path(&name);
        self.patiently(|| fs::remove_file(&path));
        self.files.remove(&name);
    }

    fn copy(&mut self) {
        let Some(name) = self.some() else { return };
        let to = format!("d{}/c{}", self.numbers.below(8), self.numbers.below(10_000));
        let (from, path) = (self.path(&name), self.path(&to));
        self.patiently(|| fs::copy(&from, &path).map(drop));
        let held = self.files[&name].clone();
        self.files.insert(to, held);
    }

    fn snapshot(&mut self) {
        if SNAPSHOTS <= self.snapshots.len() {
            let oldest = self.snapshots.keys().next().unwrap().clone();
            self.command(&["delete", &oldest]);
            self.snapshots.remove(&oldest);
        }
        let name = format!("s{:08}", self.steps);
        self.command(&["create", &name]);
        self.snapshots.insert(name, self.files.clone());
    }

    fn command(&self, words: &[&str]) {
        let mountpoint = self.site.mountpoint();
        let (verb, rest) = words.split_first().unwrap();
        let mut all = vec!["snapshot".as_ref(), (*verb).as_ref(), mountpoint.as_os_str()];
        all.extend(rest.iter().map(|word| AsRef::<std::ffi::OsStr>::as_ref(*word)));
        self.site.ok(all);
    }

    /// Brings a directory back as it was in a snapshot.
    fn restore(&mut self) {
        let names: Vec<String> = self.snapshots.keys().cloned().collect();
        if names.is_empty() {
            return;
        }
        let name = self.numbers.pick(&names).clone();
        let dir = format!("d{}", self.numbers.below(8));
        self.command(&["restore", &name, &dir]);
        let is_below = |path: &str| path.starts_with(&format!("{dir}/"));
        self.files.retain(|path, _| !is_below(path));
        let old = self.snapshots[&name].iter().filter(|(path, _)| is_below(path));
        self.files.extend(old.map(|(path, blocks)| (path.clone(), blocks.clone())));
    }

    fn step(&mut self, most_bytes: u64) {
        self.steps += 1;
        if most_bytes < self.held_bytes() {
            // Snapshots hold what was removed: the oldest goes too.
            if self.steps.is_multiple_of(4)
                && let Some(oldest) = self.snapshots.keys().next().cloned()
            {
                self.command(&["delete", &oldest]);
                self.snapshots.remove(&oldest);
            }
            return self.remove();
        }
        match self.numbers.below(100) {
            0..=34 => self.make(),
            35..=69 => self.overwrite(),
            70..=89 => self.remove(),
            90..=95 => self.copy(),
            96..=97 => self.snapshot(),
            _ => self.restore(),
        }
    }

    fn sample(&mut self) {
        let status = self.site.status();
        let below = nix::sys::statvfs::statvfs(&self.site.volume()).unwrap();
        let used = (below.blocks() - below.blocks_free()) as u64 * below.fragment_size() as u64;
        let sample = Sample {
            seconds: self.began.elapsed().as_secs_f64(),
            live_bytes: self.live_bytes(),
            held_bytes: self.held_bytes(),
            stored_bytes: status["stored_bytes"].as_u64().unwrap(),
            disk_bytes: used,
        };
        self.samples.push(sample);
    }

    fn assert_holds(&self, root: &Path, files: &Files) {
        for (name, blocks) in files {
            let bytes = fs::read(root.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
            let wanted: Vec<u8> = blocks.iter().flat_map(|seed| block(*seed)).collect();
            assert!(bytes == wanted, "{} in {}", name, root.display());
        }
    }

    fn assert_all(&self) {
        self.assert_holds(&self.site.mountpoint(), &self.files);
        for (name, files) in &self.snapshots {
            self.assert_holds(&self.site.at(".snapshots").join(name), files);
        }
    }
}

#[test]
fn what_is_removed_makes_room_for_what_comes() {
    if !has_loop_devices() {
        return;
    }
    let seconds = number("PYRAMIDFS_LIFE_SECONDS", 20);
    let mib = number("PYRAMIDFS_LIFE_MIB", 384);
    let site = Site::within(Duration::from_secs(seconds * 2 + 400));
    let backing = Backing::ext4(&site, mib);
    backing.preallocate();
    site.ok(["mkfs".as_ref(), site.volume().as_os_str()]);
    site.mount();
    let mut life = Life {
        site,
        numbers: Numbers(seed()),
        files: Files::new(),
        snapshots: BTreeMap::new(),
        next: 0,
        began: Instant::now(),
        samples: Vec::new(),
        refused: 0,
        longest: Duration::ZERO,
        written_bytes: 0,
        steps: 0,
    };
    (0..8).for_each(|dir| fs::create_dir(life.site.at(format!("d{dir}"))).unwrap());
    // Between half and two thirds of the disk are held.
    let most = (mib << 20) * 5 / 9;
    let mut looked = Instant::now();
    life.sample();
    while life.began.elapsed() < Duration::from_secs(seconds) {
        life.step(most);
        if Duration::from_secs(seconds / 600 + 1) < looked.elapsed() {
            looked = Instant::now();
            life.sample();
        }
    }
    life.sample();
    life.assert_all();
    life.site.remount();
    life.assert_all();
    life.site.umount_and_check();
    report(&life, mib << 20);
    drop(backing);
}

fn report(life: &Life, size: u64) {
    println!(
        "{} steps, {} MiB written, {} refusals for want of room, longest step {:.1} s",
        life.steps,
        life.written_bytes >> 20,
        life.refused,
        life.longest.as_secs_f64()
    );
    let Some(dir) = std::env::var_os("PYRAMIDFS_LIFE_OUT").map(PathBuf::from) else { return };
    let mut csv = String::from("seconds,live_bytes,held_bytes,stored_bytes,disk_bytes\n");
    for one in &life.samples {
        let Sample { seconds, live_bytes, held_bytes, stored_bytes, disk_bytes } = one;
        let bytes = format!("{live_bytes},{held_bytes},{stored_bytes},{disk_bytes}");
        writeln!(csv, "{seconds:.1},{bytes}").unwrap();
    }
    fs::write(dir.join("life.csv"), csv).unwrap();
    fs::write(dir.join("life.svg"), plot(&life.samples, size)).unwrap();
}

/// Lines over time, in a drawing of its own.
fn plot(samples: &[Sample], size: u64) -> String {
    const WIDTH: f64 = 800.0;
    const HEIGHT: f64 = 360.0;
    let end = samples.last().map_or(1.0, |last| last.seconds.max(1.0));
    let x = |seconds: f64| 60.0 + seconds / end * (WIDTH - 80.0);
    let y = |bytes: u64| 320.0 - bytes as f64 / size as f64 * 290.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for part in 0..=4 {
        let bytes = size * part / 4;
        let (at, mib) = (y(bytes), bytes >> 20);
        writeln!(
            out,
            "<path d=\"M60 {at:.1}H{:.0}\" stroke=\"#ddd\"/>\
             <text x=\"52\" y=\"{:.1}\" text-anchor=\"end\">{mib}</text>",
            WIDTH - 20.0,
            at + 4.0
        )
        .unwrap();
    }
    let lines: [(&str, &str, Figure); 4] = [
        ("live files", "#2a9d3a", |one| one.live_bytes),
        ("with snapshots", "#1f6fd0", |one| one.held_bytes),
        ("stored", "#e08a00", |one| one.stored_bytes),
        ("used on the disk", "#c0302b", |one| one.disk_bytes),
    ];
    for (place, (name, colour, of)) in lines.iter().enumerate() {
        let points: Vec<String> =
            samples.iter().map(|one| format!("{:.1},{:.1}", x(one.seconds), y(of(one)))).collect();
        let (left, points) = (70 + place * 170, points.join(" "));
        writeln!(
            out,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\"/>\
             <text x=\"{left}\" y=\"20\" fill=\"{colour}\">{name}</text>"
        )
        .unwrap();
    }
    writeln!(
        out,
        "<text x=\"{:.0}\" y=\"345\" text-anchor=\"end\">MiB over {:.0} minutes</text>\n</svg>",
        WIDTH - 20.0,
        end / 60.0
    )
    .unwrap();
    out
}
