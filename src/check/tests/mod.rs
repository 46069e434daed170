//! A check finds nothing in a volume in order, and each kind of damage that is made here.

mod repair;
mod scrub;

use super::*;
use crate::sys::overlay::OverlayDisk;
use crate::sys::sim::{SimClock, SimDisk, SimRng};
use crate::sys::{Access, Rng};
use crate::volume::{Caller, CreateOptions, Make, Wait};

const ROOT: Caller = Caller { uid: 0, gid: 0, umask: 0 };

/// A number that no inode has.
const NOBODY: Ino = Ino(999);

/// A volume with a file of 50,000 bytes, a small one of 100, and two directories.
struct Bench {
    disk: SimDisk,
    clock: Arc<dyn Clock>,
    volume: Arc<Volume>,
    large: Ino,
    small: Ino,
    dirs: [Ino; 2],
    /// Given back: the number of a file that was removed.
    free: Ino,
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    SimRng::new(seed).fill(&mut bytes);
    bytes
}

fn open(disk: &SimDisk, clock: &Arc<dyn Clock>) -> Arc<Volume> {
    let options = OpenOptions { background: false, ..OpenOptions::default() };
    Volume::open(Arc::new(disk.clone()), Arc::clone(clock), options).unwrap()
}

impl Bench {
    fn new() -> Bench {
        let disk = SimDisk::new();
        let clock: Arc<dyn Clock> = Arc::new(SimClock::new());
        let plain: Arc<dyn Disk> = Arc::new(disk.clone());
        Volume::create(&plain, &clock, &SimRng::new(1), &CreateOptions::default()).unwrap();
        let volume = open(&disk, &clock);
        let file = |name: &[u8], bytes: &[u8]| {
            let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
            let ino = volume.mknod(Ino::ROOT, name, &make, ROOT, Wait::Yes).unwrap().ino;
            volume.write(ino, 0, bytes, false, Wait::Yes).unwrap();
            volume.forget(ino, 1);
            ino
        };
        let large = file(b"large", &noise(1, 50_000));
        let small = file(b"small", &noise(2, 100));
        let free = file(b"free", b"");
        volume.unlink(Ino::ROOT, b"free", Wait::Yes).unwrap();
        let dirs = [&b"one"[..], b"two"]
            .map(|name| volume.mkdir(Ino::ROOT, name, 0o755, ROOT, Wait::Yes).unwrap().ino);
        volume.sync().unwrap();
        Bench { disk, clock, volume, large, small, dirs, free }
    }

    fn inode(&self, ino: Ino) -> Inode {
        Inode::decode(&self.volume.meta().get(&Key::Inode(ino)).unwrap().unwrap()).unwrap()
    }

    fn content(&self, ino: Ino) -> Content {
        Content::decode(&self.volume.meta().get(&Key::Content(ino)).unwrap().unwrap()).unwrap()
    }

    fn name_key(&self, dir: Ino, name: &[u8]) -> Key<'static> {
        Key::Name { dir, cookie: Cookie::hash(self.volume.superblock().uuid, name).first() }
    }

    fn put(&self, key: &Key<'_>, value: Vec<u8>) {
        self.volume.meta().enter().put(key, value);
    }

    fn delete(&self, key: &Key<'_>) {
        self.volume.meta().enter().delete(key);
    }

    fn name(&self, dir: Ino, name: &[u8], ino: Ino, mode: u32) {
        let entry = NameEntry { ino, kind: (mode >> 12) as u8, name: name.to_vec(), epoch: 0 };
        self.put(&self.name_key(dir, name), entry.encode());
    }

    fn change(&self, ino: Ino, how: impl FnOnce(&mut Inode)) {
        let mut inode = self.inode(ino);
        how(&mut inode);
        self.put(&Key::Inode(ino), inode.encode());
    }

    /// Makes the damage durable and checks.
    fn check(&self, read_data: bool) -> Vec<Finding> {
        self.volume.sync().unwrap();
        self.volume.close().unwrap();
        self.look(read_data)
    }

    fn repair(&self, sources: &dyn Sources) -> Repaired {
        let disk = Arc::new(self.disk.clone());
        super::repair(disk, Arc::clone(&self.clock), sources, &mut |_| {}).unwrap()
    }

    fn look(&self, read_data: bool) -> Vec<Finding> {
        let overlay = OverlayDisk::new(Arc::new(self.disk.clone()));
        run(Arc::new(overlay), Arc::clone(&self.clock), read_data, &mut |_| {}).unwrap().findings
    }
}

/// Makes damage, and sees exactly the findings that it should give, and that a repair leaves none
/// of them but what is lost.
fn damage(make: impl FnOnce(&Bench), expected: &[Finding]) {
    let bench = Bench::new();
    make(&bench);
    let mut found = bench.check(true);
    found.sort_by_key(ToString::to_string);
    assert_eq!(found, expected);
    let (lost, wrong): (Vec<Finding>, Vec<Finding>) = found
        .into_iter()
        .partition(|one| matches!(one, Finding::ChunkMissing { .. } | Finding::Tree { .. }));
    let repaired = bench.repair(&Nothing);
    assert_eq!(repaired.changes.is_empty(), wrong.is_empty(), "{repaired:?}");
    assert_eq!(repaired.lost, lost.len() as u64);
    assert_eq!(bench.look(true), lost, "{repaired:?}");
    // What can be read is never removed.
    let volume = open(&bench.disk, &bench.clock);
    assert!(volume.getattr(bench.large).is_ok() && volume.getattr(bench.small).is_ok());
}

/// No sources.
struct Nothing;

impl Sources for Nothing {
    fn files(&self, _: &mut EachFile<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn volumes(&self) -> &[Arc<Volume>] {
        &[]
    }
}

#[test]
fn a_volume_in_order_is_clean() {
    damage(|_| {}, &[]);
    let bench = Bench::new();
    assert_eq!(bench.look(false), [], "of a volume that was not closed");
}

#[test]
fn entries_that_cannot_be_read_are_found() {
    let bench = Bench::new();
    bench.put(&Key::Inode(NOBODY), vec![0xff; 3]);
    let found = bench.check(false);
    let key = Key::Inode(NOBODY).encode();
    assert!(
        matches!(&found[..], [Finding::Entry { key: found, .. }] if *found == key),
        "{found:?}"
    );
}

#[test]
fn wrong_names_are_found() {
    let (dir, ino) = (Ino::ROOT.0, NOBODY.0);
    damage(
        |bench| {
            bench.delete(&bench.name_key(Ino::ROOT, b"small"));
            let kind = (MODE_FILE >> 12) as u8;
            let entry = NameEntry { ino: bench.small, kind, name: b"small".to_vec(), epoch: 0 };
            bench.put(&bench.name_key(Ino::ROOT, b"elsewhere"), entry.encode());
        },
        &[Finding::NameMisplaced { dir, name: "small".to_owned() }],
    );
    damage(
        |bench| bench.name(Ino::ROOT, b"lost", NOBODY, MODE_FILE),
        &[Finding::NameLeadsNowhere { dir, name: "lost".to_owned(), ino }],
    );
    damage(
        |bench| {
            bench.name(NOBODY, b"small", bench.small, MODE_FILE);
            bench.change(bench.small, |inode| inode.nlink = 2);
        },
        &[Finding::NameInNoDirectory { dir: ino }],
    );
}

#[test]
fn wrong_counts_and_orphans_are_found() {
    let small = Bench::new().small.0;
    damage(
        |bench| bench.change(bench.small, |inode| inode.nlink = 5),
        &[Finding::LinkCount { ino: small, counted: 1, recorded: 5 }],
    );
    damage(
        |bench| bench.put(&Key::Orphan(bench.small), Vec::new()),
        &[Finding::LinkCount { ino: small, counted: 1, recorded: 1 }],
    );
    damage(
        |bench| bench.put(&Key::Orphan(NOBODY), Vec::new()),
        &[Finding::OrphanWithoutInode { ino: NOBODY.0 }],
    );
    damage(
        |bench| {
            let orphan = Inode { mode: MODE_FILE, ..Inode::default() };
            bench.put(&Key::Inode(bench.free), orphan.encode());
            bench.put(&Key::Orphan(bench.free), Vec::new());
        },
        &[Finding::Counter { what: "inodes", recorded: 5, counted: 6 }],
    );
}

#[test]
fn wrong_directories_are_found() {
    let [one, two] = Bench::new().dirs;
    damage(
        |bench| bench.change(one, |inode| inode.parent = two),
        &[Finding::DirectoryParent { ino: one.0, parent: two.0 }],
    );
    damage(
        |bench| {
            for (dir, name, other) in [(one, b"one", two), (two, b"two", one)] {
                bench.delete(&bench.name_key(Ino::ROOT, name));
                bench.name(other, name, dir, MODE_DIR);
                bench.change(dir, |inode| (inode.parent, inode.nlink) = (other, 3));
            }
            bench.change(Ino::ROOT, |inode| inode.nlink = 2);
        },
        &[
            Finding::DirectoryUnreachable { ino: one.0 },
            Finding::DirectoryUnreachable { ino: two.0 },
        ],
    );
}

#[test]
fn what_belongs_to_no_inode_is_found() {
    damage(
        |bench| bench.put(&Key::Xattr { ino: NOBODY, name: b"user.x" }, b"1".to_vec()),
        &[Finding::XattrWithoutInode { ino: NOBODY.0 }],
    );
    let dir = Bench::new().dirs[0];
    damage(
        |bench| {
            let hole = bench.volume.pyramid().hole(4096);
            let content = Content { address: hole.address, size: 4096, filled: 0, epoch: 0 };
            bench.put(&Key::Content(dir), content.encode());
        },
        &[Finding::ContentWithoutFile { ino: dir.0 }],
    );
}

#[test]
fn wrong_contents_are_found() {
    let bench = Bench::new();
    let (large, small) = (bench.large.0, bench.small.0);
    damage(
        |bench| bench.change(bench.small, |inode| inode.size = 101),
        &[Finding::Size { ino: small, recorded: 101, content: 100 }],
    );
    let address = Address([0xab; 32]);
    damage(
        |bench| {
            let content = Content { address, ..bench.content(bench.small) };
            bench.put(&Key::Content(bench.small), content.encode());
        },
        &[Finding::ChunkMissing { ino: small, address: address.to_string() }],
    );
    let why = store::Error::Missing { address }.to_string();
    damage(
        |bench| {
            let content = Content { address, ..bench.content(bench.large) };
            bench.put(&Key::Content(bench.large), content.encode());
        },
        &[Finding::Tree { ino: large, why }],
    );
}

#[test]
fn rot_in_a_pack_is_found_and_never_handed_out() {
    let bench = Bench::new();
    bench.volume.close().unwrap();
    let wanted = &noise(1, 50_000)[20_000..20_032];
    let mut rotted = None;
    for dir in bench.disk.read_dir("packs").unwrap() {
        for pack in bench.disk.read_dir(&format!("packs/{}", dir.name)).unwrap() {
            let path = format!("packs/{}/{}", dir.name, pack.name);
            let file = bench.disk.open(&path, Access::Read).unwrap();
            let mut bytes = vec![0; file.len().unwrap() as usize];
            file.read_at(&mut bytes, 0).unwrap();
            if let Some(at) = bytes.windows(32).position(|window| window == wanted) {
                bench.disk.rot(&path, at as u64, 0x10).unwrap();
                rotted = Some(path);
            }
        }
    }
    assert!(rotted.is_some(), "noise is stored as it is");
    let found = bench.look(true);
    assert!(!found.is_empty());
    let large = bench.large.0;
    let names_file =
        |finding: &Finding| matches!(finding, Finding::ChunkDamaged { ino, .. } if *ino == large);
    assert_eq!(found.iter().filter(|finding| names_file(finding)).count(), 1, "{found:?}");
    let others = |finding: &&Finding| !names_file(finding);
    let of_store = |finding: &Finding| matches!(finding, Finding::Store(_));
    assert!(found.iter().filter(others).all(of_store), "{found:?}");
    let volume = open(&bench.disk, &bench.clock);
    assert!(volume.read(bench.large, 18_000, 6_000).is_err(), "damaged bytes were handed out");
    assert_eq!(volume.read(bench.small, 0, 200).unwrap(), noise(2, 100));
}
