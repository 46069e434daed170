//! Repair gives back what somebody has, and leaves nothing that does not agree.

use super::*;

/// Files by their content, and other volumes.
#[derive(Default)]
struct Given {
    files: Vec<Vec<u8>>,
    volumes: Vec<Arc<Volume>>,
}

impl Sources for Given {
    fn files(&self, each: &mut EachFile<'_>) -> Result<(), Error> {
        self.files.iter().try_for_each(|bytes| each(&mut bytes.as_slice()))
    }

    fn volumes(&self) -> &[Arc<Volume>] {
        &self.volumes
    }
}

/// Damages the bytes `wanted` wherever they lie in the packs.
fn rot(disk: &SimDisk, wanted: &[u8]) {
    let mut count = 0;
    for dir in disk.read_dir("packs").unwrap() {
        for pack in disk.read_dir(&format!("packs/{}", dir.name)).unwrap() {
            let path = format!("packs/{}/{}", dir.name, pack.name);
            let file = disk.open(&path, Access::Read).unwrap();
            let mut bytes = vec![0; file.len().unwrap() as usize];
            file.read_at(&mut bytes, 0).unwrap();
            let found = bytes.windows(wanted.len()).enumerate().filter(|(_, at)| *at == wanted);
            for (at, _) in found {
                disk.rot(&path, at as u64, 0x10).unwrap();
                count += 1;
            }
        }
    }
    assert!(count > 0, "it is stored as it is");
}

/// A closed volume whose large file has lost a data chunk.
fn without_a_chunk() -> Bench {
    let bench = Bench::new();
    bench.volume.close().unwrap();
    rot(&bench.disk, &noise(1, 50_000)[20_480..20_512]);
    bench
}

/// One whose large file has lost its root, and a data chunk.
fn without_a_tree() -> Bench {
    let bench = without_a_chunk();
    let volume = open(&bench.disk, &bench.clock);
    let content =
        Content::decode(&volume.meta().get(&Key::Content(bench.large)).unwrap().unwrap()).unwrap();
    let tree = volume.store().tree(&content.address).unwrap();
    volume.close().unwrap();
    rot(&bench.disk, &tree.payload());
    bench
}

fn assert_whole(bench: &Bench) {
    assert_eq!(bench.look(true), []);
    let volume = open(&bench.disk, &bench.clock);
    assert_eq!(volume.read(bench.large, 0, 60_000).unwrap(), noise(1, 50_000));
    assert_eq!(volume.read(bench.small, 0, 200).unwrap(), noise(2, 100));
    volume.close().unwrap();
}

#[test]
fn lost_chunks_are_found_in_plain_files() {
    // Beside other content, and only in a part of the file: what is aligned is found.
    let shifted = [noise(7, 8192), noise(1, 50_000)].concat();
    let part = noise(1, 50_000)[20_480..24_576].to_vec();
    for files in [vec![noise(1, 50_000)], vec![noise(9, 100_000), shifted], vec![part]] {
        let bench = without_a_chunk();
        let repaired = bench.repair(&Given { files, ..Given::default() });
        assert_eq!((repaired.chunks_from_sources, repaired.lost), (1, 0));
        assert_eq!(repaired.changes, [""; 0]);
        assert_whole(&bench);
    }
    // A tree chunk, and then what is below it.
    let bench = without_a_tree();
    let repaired = bench.repair(&Given { files: vec![noise(1, 50_000)], ..Given::default() });
    assert_eq!((repaired.chunks_from_sources, repaired.lost), (2, 0));
    assert_whole(&bench);
}

#[test]
fn lost_chunks_are_found_in_other_volumes() {
    for bench in [without_a_chunk(), without_a_tree()] {
        let other = Bench::new();
        let volumes = vec![Arc::clone(&other.volume)];
        let repaired = bench.repair(&Given { volumes, ..Given::default() });
        assert_eq!(repaired.lost, 0);
        assert_whole(&bench);
    }
    // One that has not got them, and a file that has other bytes.
    let bench = without_a_chunk();
    let other = without_a_chunk();
    let mut wrong = noise(1, 50_000);
    wrong[21_000] ^= 1;
    let volumes = vec![open(&other.disk, &other.clock)];
    let repaired = bench.repair(&Given { files: vec![wrong], volumes });
    assert_eq!((repaired.chunks_from_sources, repaired.lost), (0, 1));
}

#[test]
fn what_nobody_has_is_told_and_all_else_can_be_read() {
    let bench = without_a_chunk();
    for _ in 0..2 {
        let repaired = bench.repair(&Nothing);
        assert_eq!((repaired.lost, repaired.chunks_from_sources), (1, 0));
        assert_eq!(repaired.changes, [""; 0]);
    }
    let of_file =
        |one: &&Finding| matches!(one, Finding::ChunkDamaged { ino, .. } if *ino == bench.large.0);
    assert_eq!(bench.look(true).iter().filter(of_file).count(), 1);
    let volume = open(&bench.disk, &bench.clock);
    assert_eq!(volume.read(bench.large, 0, 20_480).unwrap(), noise(1, 50_000)[..20_480]);
    assert!(volume.read(bench.large, 20_480, 10).is_err());
    assert_eq!(volume.read(bench.large, 24_576, 60_000).unwrap(), noise(1, 50_000)[24_576..]);
    // The same content comes along by itself.
    let make = Make { mode: MODE_FILE | 0o644, rdev: 0 };
    let copy = volume.mknod(Ino::ROOT, b"copy", &make, ROOT, Wait::Yes).unwrap().ino;
    volume.write(copy, 0, &noise(1, 50_000), false, Wait::Yes).unwrap();
    volume.sync().unwrap();
    assert_eq!(volume.read(bench.large, 0, 60_000).unwrap(), noise(1, 50_000));
    volume.forget(copy, 1);
    volume.close().unwrap();
    drop(volume);
    assert_whole(&bench);
}

#[test]
fn entries_that_cannot_be_read_are_taken_out() {
    let bench = Bench::new();
    bench.put(&Key::Inode(NOBODY), vec![0xff; 3]);
    bench.volume.meta().enter().change_encoded(&[0x77, 1, 2], Some(b"of no kind".to_vec()));
    assert_eq!(bench.check(false).len(), 2);
    assert_eq!(bench.repair(&Nothing).changes.len(), 2);
    assert_whole(&bench);
}

#[test]
fn a_lost_directory_and_a_lost_root() {
    for lost in [Bench::new().dirs[0], Ino::ROOT] {
        let bench = Bench::new();
        let file = bench.volume.link(bench.small, bench.dirs[0], b"inside", Wait::Yes);
        bench.volume.forget(file.unwrap().ino, 1);
        bench.delete(&Key::Inode(lost));
        assert_ne!(bench.check(false), []);
        let repaired = bench.repair(&Nothing);
        assert!(!repaired.changes.is_empty());
        assert_whole(&bench);
        let volume = open(&bench.disk, &bench.clock);
        assert_eq!(volume.lookup(Ino::ROOT, b"small").unwrap().ino, bench.small);
        volume.forget(bench.small, 1);
        volume.close().unwrap();
    }
}

#[test]
fn inodes_without_names_are_found_in_lost_and_found() {
    let bench = Bench::new();
    bench.delete(&bench.name_key(Ino::ROOT, b"large"));
    bench.delete(&bench.name_key(Ino::ROOT, b"one"));
    assert_ne!(bench.check(false), []);
    let changes = bench.repair(&Nothing).changes;
    assert_eq!(changes.iter().filter(|line| line.contains("had no name")).count(), 2);
    assert_whole(&bench);
    let volume = open(&bench.disk, &bench.clock);
    let dir = volume.lookup(Ino::ROOT, b"lost+found").unwrap();
    assert_eq!(dir.mode, MODE_DIR | 0o700);
    for ino in [bench.large, bench.dirs[0]] {
        let name = format!("#{}", ino.0);
        assert_eq!(volume.lookup(dir.ino, name.as_bytes()).unwrap().ino, ino);
        volume.forget(ino, 1);
    }
    volume.forget(dir.ino, 1);
    volume.close().unwrap();
    // A second loss goes to the same place.
    let volume = open(&bench.disk, &bench.clock);
    let key = Key::Name {
        dir: Ino::ROOT,
        cookie: Cookie::hash(volume.superblock().uuid, b"small").first(),
    };
    volume.meta().enter().delete(&key);
    volume.sync().unwrap();
    volume.close().unwrap();
    drop(volume);
    bench.repair(&Nothing);
    assert_whole(&bench);
    let volume = open(&bench.disk, &bench.clock);
    assert_eq!(
        volume.lookup(dir.ino, format!("#{}", bench.small.0).as_bytes()).unwrap().ino,
        bench.small
    );
    volume.forget(bench.small, 1);
    volume.close().unwrap();
}

/// Any entries are lost, doubled, garbled or exchanged: a repair ends, and leaves nothing that does
/// not agree, except for what is lost.
#[test]
fn any_wrong_entries_are_made_to_agree() {
    let dice = SimRng::new(crate::testing::seed());
    let below = |bound: usize| (dice.next_u64() % bound as u64) as usize;
    for case in 0..150 * crate::testing::factor() {
        let bench = Bench::new();
        let inside = bench.volume.link(bench.small, bench.dirs[0], b"inside", Wait::Yes);
        bench.volume.forget(inside.unwrap().ino, 1);
        let deeper = bench.volume.mkdir(bench.dirs[0], b"deeper", 0o755, ROOT, Wait::Yes);
        bench.volume.forget(deeper.unwrap().ino, 1);
        bench.volume.sync().unwrap();
        let mut all: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut each = |key: &[u8], value: &[u8]| {
            all.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        };
        bench.volume.meta().scan(KeyRange::all(), &mut each).unwrap();
        for _ in 0..=below(4) {
            let (key, value) = all[below(all.len())].clone();
            let (other, other_value) = all[below(all.len())].clone();
            let group = bench.volume.meta().enter();
            match below(5) {
                0 => group.change_encoded(&key, None),
                1 => group.change_encoded(&key, Some(other_value)),
                2 => group.change_encoded(&[&other[..1], &key[1..]].concat(), Some(value)),
                3 => {
                    let mut garbled = value;
                    garbled.push(0);
                    let at = below(garbled.len());
                    garbled[at] ^= 1 << below(8);
                    group.change_encoded(&key, Some(garbled));
                }
                _ => {
                    let mut moved = key;
                    let at = below(moved.len());
                    moved[at] ^= 1 << below(8);
                    group.change_encoded(&moved, Some(value));
                }
            }
        }
        bench.volume.sync().unwrap();
        bench.volume.close().unwrap();
        let repaired = bench.repair(&Nothing);
        let left = bench.look(true);
        let is_loss =
            |one: &Finding| matches!(one, Finding::ChunkMissing { .. } | Finding::Tree { .. });
        assert!(left.iter().all(is_loss), "case {case}: {left:?}\n{repaired:?}");
        let again = bench.repair(&Nothing);
        assert_eq!(again.changes, [""; 0], "case {case}: the first repair was {repaired:?}");
    }
}
