//! What every disk must do, whichever it is, and that all of them do the same.
//!
//! Each test of the suite runs on the real disk, on the simulated one, on a crash image of that, on
//! an empty overlay and on an overlay over files that were there before.

use std::io::ErrorKind;
use std::sync::Arc;

use proptest::prelude::*;

use super::overlay::OverlayDisk;
use super::real::RealDisk;
use super::sim::{Keep, SimDisk};
use super::{Access, DirEntry, Disk, DiskFile};
use crate::testing;

/// A disk of each sort, all empty, with what keeps it alive.
fn disks() -> Vec<(&'static str, Arc<dyn Disk>, Option<tempfile::TempDir>)> {
    let dir = tempfile::tempdir().unwrap();
    let real = Arc::new(RealDisk::open(dir.path()).unwrap());
    let below = SimDisk::new();
    let over_real = tempfile::tempdir().unwrap();
    let real_below = Arc::new(RealDisk::open(over_real.path()).unwrap());
    vec![
        ("real", real, Some(dir)),
        ("sim", Arc::new(SimDisk::new()), None),
        ("crash image", Arc::new(SimDisk::new().crash(Keep::All)), None),
        ("overlay", Arc::new(OverlayDisk::new(Arc::new(below))), None),
        ("overlay over real", Arc::new(OverlayDisk::new(real_below)), Some(over_real)),
    ]
}

/// Runs `test` on every disk. What `prepare` does is there before: below an overlay, and before
/// the power loss of a crash image.
fn on_all(prepare: impl Fn(&dyn Disk), test: impl Fn(&dyn Disk)) {
    for (name, disk, _keep) in disks() {
        eprintln!("on {name}");
        prepare(&*disk);
        test(&*disk);
    }
    let before = SimDisk::new();
    prepare(&before);
    eprintln!("on a crash image of what was there before");
    test(&before.crash(Keep::All));
    eprintln!("on an overlay over what was there before");
    test(&OverlayDisk::new(Arc::new(before.clone())));
    eprintln!("on an overlay over an overlay");
    test(&OverlayDisk::new(Arc::new(OverlayDisk::new(Arc::new(before)))));
}

fn create(disk: &dyn Disk, path: &str, bytes: &[u8]) -> Arc<dyn DiskFile> {
    let file = disk.open(path, Access::CreateNew).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn content(disk: &dyn Disk, path: &str) -> Vec<u8> {
    all_of(&*disk.open(path, Access::Read).unwrap())
}

fn all_of(file: &dyn DiskFile) -> Vec<u8> {
    let len = file.len().unwrap() as usize;
    let mut bytes = vec![0xee; len + 10];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), len, "a read goes on to the end");
    bytes.truncate(len);
    bytes
}

fn kind<T>(result: std::io::Result<T>) -> ErrorKind {
    result.err().expect("it must fail").kind()
}

fn nothing(_: &dyn Disk) {}

fn two_files(disk: &dyn Disk) {
    disk.create_dir("d").unwrap();
    create(disk, "a", b"content of a");
    create(disk, "d/b", b"content of b");
}

#[test]
fn files_are_opened_as_asked() {
    on_all(two_files, |disk| {
        assert_eq!(kind(disk.open("missing", Access::Read)), ErrorKind::NotFound);
        assert_eq!(kind(disk.open("missing", Access::Write)), ErrorKind::NotFound);
        assert_eq!(kind(disk.open("missing/a", Access::CreateNew)), ErrorKind::NotFound);
        assert_eq!(kind(disk.open("a", Access::CreateNew)), ErrorKind::AlreadyExists);
        assert_eq!(kind(disk.open("d", Access::CreateNew)), ErrorKind::AlreadyExists);
        assert_eq!(kind(disk.open("d", Access::Read)), ErrorKind::IsADirectory);
        assert_eq!(kind(disk.open("d", Access::Write)), ErrorKind::IsADirectory);
        assert_eq!(kind(disk.open("a/x", Access::Read)), ErrorKind::NotADirectory);
        assert_eq!(kind(disk.open("a/x", Access::CreateNew)), ErrorKind::NotADirectory);
        let reader = disk.open("a", Access::Read).unwrap();
        assert!(reader.write_all_at(b"x", 0).is_err());
        assert!(reader.set_len(0).is_err());
        assert_eq!(content(disk, "a"), b"content of a");
        let writer = disk.open("a", Access::Write).unwrap();
        assert_eq!(all_of(&*writer), b"content of a");
        writer.write_all_at(b"CONTENT", 0).unwrap();
        assert_eq!(all_of(&*reader), b"CONTENT of a", "all handles show the same");
        let made = disk.open("d/new", Access::CreateNew).unwrap();
        assert!(made.is_empty().unwrap());
    });
}

#[test]
fn paths_that_leave_the_directory_are_refused() {
    on_all(two_files, |disk| {
        for path in ["/", "/a", "../a", "d/../a", ".", "d/.", "d//b", "d/", "a\0"] {
            assert_eq!(kind(disk.open(path, Access::Read)), ErrorKind::InvalidInput, "{path:?}");
            assert!(disk.open(path, Access::CreateNew).is_err(), "{path:?}");
            assert!(disk.create_dir(path).is_err(), "{path:?}");
            assert!(disk.read_dir(path).is_err(), "{path:?}");
            assert!(disk.sync_dir(path).is_err(), "{path:?}");
            assert!(disk.rename("a", path).is_err(), "{path:?}");
            assert!(disk.rename(path, "x").is_err(), "{path:?}");
            assert!(disk.remove_file(path).is_err(), "{path:?}");
            assert!(disk.lock(path).is_err(), "{path:?}");
        }
        assert!(disk.open("", Access::Read).is_err());
        assert!(disk.create_dir("").is_err());
    });
}

#[test]
fn bytes_are_where_they_were_written() {
    on_all(nothing, |disk| {
        let file = create(disk, "a", b"");
        file.write_all_at(b"hello", 3).unwrap();
        file.write_all_at(b"", 100).unwrap();
        assert_eq!(all_of(&*file), b"\0\0\0hello");
        let mut buf = [0xee; 4];
        assert_eq!(file.read_at(&mut buf, 5).unwrap(), 3);
        assert_eq!(&buf, b"llo\xee", "nothing behind the end is touched");
        assert_eq!(file.read_at(&mut buf, 8).unwrap(), 0);
        assert_eq!(file.read_at(&mut buf, 1 << 40).unwrap(), 0);
        assert_eq!(file.read_at(&mut [], 0).unwrap(), 0);
        let long: Vec<u8> = (0..20_000_u32).map(|number| number as u8 ^ 0x5a).collect();
        file.write_all_at(&long, 4095).unwrap();
        let mut back = vec![0; long.len()];
        assert_eq!(file.read_at(&mut back, 4095).unwrap(), back.len());
        assert_eq!(back, long);
        file.sync().unwrap();
        file.drop_cached(0, 1 << 20).unwrap();
        file.drop_cached(0, 0).unwrap();
        assert_eq!(file.read_at(&mut back, 4095).unwrap(), back.len());
        assert_eq!(back, long);
    });
}

#[test]
fn lengths_are_cut_and_extended_with_zeros() {
    on_all(nothing, |disk| {
        let file = create(disk, "a", &[7; 10_000]);
        for len in [9000, 8192, 5000, 4096, 1, 0] {
            file.set_len(len).unwrap();
            assert_eq!(all_of(&*file), vec![7; len as usize]);
            file.set_len(10_000).unwrap();
            let mut expected = vec![7; len as usize];
            expected.resize(10_000, 0);
            assert_eq!(all_of(&*file), expected, "cut to {len} and extended");
            file.write_all_at(&[7; 10_000], 0).unwrap();
        }
        file.set_len(1 << 40).unwrap();
        assert_eq!(file.len().unwrap(), 1 << 40);
        let mut buf = [1; 100];
        assert_eq!(file.read_at(&mut buf, 1 << 39).unwrap(), 100);
        assert_eq!(buf, [0; 100]);
        assert!(file.set_len(u64::MAX).is_err());
        assert!(file.write_all_at(b"x", u64::MAX).is_err());
        assert!(file.write_all_at(b"x", i64::MAX as u64).is_err());
    });
}

#[test]
fn directories_are_listed_by_name() {
    on_all(two_files, |disk| {
        let entry = |name: &str, is_dir| DirEntry { name: name.to_owned(), is_dir };
        assert_eq!(disk.read_dir("").unwrap(), [entry("a", false), entry("d", true)]);
        assert_eq!(disk.read_dir("d").unwrap(), [entry("b", false)]);
        disk.create_dir("d/e").unwrap();
        create(disk, "d/a", b"");
        let expected = [entry("a", false), entry("b", false), entry("e", true)];
        assert_eq!(disk.read_dir("d").unwrap(), expected);
        assert_eq!(disk.read_dir("d/e").unwrap(), []);
        assert_eq!(kind(disk.create_dir("d")), ErrorKind::AlreadyExists);
        assert_eq!(kind(disk.create_dir("a")), ErrorKind::AlreadyExists);
        assert_eq!(kind(disk.create_dir("x/y")), ErrorKind::NotFound);
        assert_eq!(kind(disk.create_dir("a/y")), ErrorKind::NotADirectory);
        assert_eq!(kind(disk.read_dir("x")), ErrorKind::NotFound);
        assert_eq!(kind(disk.read_dir("a")), ErrorKind::NotADirectory);
        assert_eq!(kind(disk.sync_dir("x")), ErrorKind::NotFound);
        assert_eq!(kind(disk.sync_dir("a")), ErrorKind::NotADirectory);
        for path in ["", "d", "d/e"] {
            disk.sync_dir(path).unwrap();
        }
    });
}

#[test]
fn files_are_moved_and_replaced() {
    on_all(two_files, |disk| {
        let open = disk.open("a", Access::Write).unwrap();
        let replaced = disk.open("d/b", Access::Read).unwrap();
        disk.rename("a", "d/b").unwrap();
        assert_eq!(kind(disk.open("a", Access::Read)), ErrorKind::NotFound);
        assert_eq!(content(disk, "d/b"), b"content of a");
        assert_eq!(all_of(&*replaced), b"content of b", "open files live on");
        open.write_all_at(b"C", 0).unwrap();
        assert_eq!(content(disk, "d/b"), b"Content of a");
        disk.rename("d/b", "d/b").unwrap();
        disk.rename("d/b", "c").unwrap();
        assert_eq!(content(disk, "c"), b"Content of a");
        assert_eq!(disk.read_dir("d").unwrap(), []);
        assert_eq!(kind(disk.rename("a", "x")), ErrorKind::NotFound);
        assert_eq!(kind(disk.rename("c", "x/y")), ErrorKind::NotFound);
        assert_eq!(kind(disk.rename("c", "d")), ErrorKind::IsADirectory);
        assert_eq!(kind(disk.rename("d", "x")), ErrorKind::IsADirectory);
        assert_eq!(content(disk, "c"), b"Content of a");
    });
}

#[test]
fn files_are_removed_and_live_on_while_they_are_open() {
    on_all(two_files, |disk| {
        let open = disk.open("d/b", Access::Write).unwrap();
        disk.remove_file("d/b").unwrap();
        disk.sync_dir("d").unwrap();
        assert_eq!(kind(disk.remove_file("d/b")), ErrorKind::NotFound);
        assert_eq!(kind(disk.remove_file("d")), ErrorKind::IsADirectory);
        open.write_all_at(b"C", 0).unwrap();
        open.sync().unwrap();
        assert_eq!(all_of(&*open), b"Content of b");
        let again = create(disk, "d/b", b"new");
        assert_eq!(all_of(&*open), b"Content of b");
        assert_eq!(all_of(&*again), b"new");
    });
}

#[test]
fn locks_exclude_and_carry_a_note() {
    on_all(two_files, |disk| {
        let lock = disk.lock("lock").unwrap();
        assert_eq!(kind(disk.lock("lock")), ErrorKind::WouldBlock);
        let _other = disk.lock("d/lock").unwrap();
        lock.set_note("a long note about it").unwrap();
        lock.set_note("short").unwrap();
        assert_eq!(content(disk, "lock"), b"short\n");
        assert!(lock.set_note("two\nlines").is_err());
        drop(lock);
        let _again = disk.lock("lock").unwrap();
        assert_eq!(content(disk, "lock"), b"");
        assert_eq!(kind(disk.lock("d")), ErrorKind::IsADirectory);
    });
}

#[test]
fn space_and_use_are_told() {
    on_all(nothing, |disk| {
        let before = disk.used_bytes().unwrap();
        create(disk, "a", &[1; 100_000]).sync().unwrap();
        let used = disk.used_bytes().unwrap() - before;
        assert!((100_000..200_000).contains(&used), "{used}");
        let space = disk.space().unwrap();
        assert!(space.available_bytes <= space.free_bytes);
        assert!(space.free_bytes <= space.total_bytes);
        assert!(space.available_bytes > 0);
    });
}

#[test]
fn room_that_is_taken_ahead_is_counted_and_given_back() {
    on_all(nothing, |disk| {
        let file = create(disk, "a", b"first");
        file.allocate(100_000).unwrap();
        file.allocate(50_000).unwrap();
        file.allocate(0).unwrap();
        assert_eq!(file.len().unwrap(), 100_000);
        let bytes = content(disk, "a");
        assert_eq!((&bytes[..5], bytes.len()), (&b"first"[..], 100_000));
        assert!(bytes[5..].iter().all(|&byte| byte == 0));
        file.set_len(3).unwrap();
        assert_eq!(content(disk, "a"), b"fir");
    });
}

#[derive(Debug, Clone)]
enum Step {
    Open(usize, Access),
    Close(usize),
    Write { handle: usize, offset: u64, count: usize, byte: u8 },
    Read { handle: usize, offset: u64, count: usize },
    SetLen { handle: usize, len: u64 },
    Sync(usize),
    CreateDir(usize),
    ReadDir(usize),
    Rename(usize, usize),
    Remove(usize),
    SyncDir(usize),
}

const PATHS: [&str; 8] = ["a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", ""];

fn any_step() -> impl Strategy<Value = Step> {
    let path = 0..PATHS.len();
    let access = prop_oneof![
        1 => Just(Access::Read),
        2 => Just(Access::Write),
        3 => Just(Access::CreateNew),
    ];
    let (handle, offset, count) = (any::<usize>(), 0..20_000_u64, 0..9000_usize);
    prop_oneof![
        4 => (path.clone(), access).prop_map(|(path, access)| Step::Open(path, access)),
        1 => handle.prop_map(Step::Close),
        6 => (handle, offset.clone(), count.clone(), any::<u8>()).prop_map(
            |(handle, offset, count, byte)| Step::Write { handle, offset, count, byte }
        ),
        4 => (handle, offset.clone(), count)
            .prop_map(|(handle, offset, count)| Step::Read { handle, offset, count }),
        3 => (handle, offset).prop_map(|(handle, len)| Step::SetLen { handle, len }),
        1 => handle.prop_map(Step::Sync),
        2 => path.clone().prop_map(Step::CreateDir),
        1 => path.clone().prop_map(Step::ReadDir),
        3 => (path.clone(), path.clone()).prop_map(|(from, to)| Step::Rename(from, to)),
        1 => path.clone().prop_map(Step::Remove),
        1 => path.prop_map(Step::SyncDir),
    ]
}

/// A disk with the handles that a run of steps has opened.
struct Player<'a> {
    disk: &'a dyn Disk,
    handles: Vec<Arc<dyn DiskFile>>,
}

impl Player<'_> {
    /// Does a step and tells what came of it.
    fn play(&mut self, step: &Step) -> String {
        let show = |result: std::io::Result<String>| match result {
            Ok(text) => text,
            Err(error) => format!("{:?}", error.kind()),
        };
        let unit = |result: std::io::Result<()>| show(result.map(|()| "done".to_owned()));
        let pick = |number: &usize| self.handles.get(number % self.handles.len().max(1)).cloned();
        match step {
            Step::Open(path, access) => show(self.disk.open(PATHS[*path], *access).map(|file| {
                self.handles.push(file);
                "open".to_owned()
            })),
            Step::Close(handle) => {
                if !self.handles.is_empty() {
                    self.handles.swap_remove(handle % self.handles.len());
                }
                String::new()
            }
            Step::Write { handle, offset, count, byte } => pick(handle)
                .map(|file| unit(file.write_all_at(&vec![*byte; *count], *offset)))
                .unwrap_or_default(),
            Step::Read { handle, offset, count } => pick(handle)
                .map(|file| {
                    let mut buf = vec![0xee; *count];
                    let got = file.read_at(&mut buf, *offset).unwrap();
                    format!("{got}: {:?} {:?}", crc32c::crc32c(&buf), file.len().unwrap())
                })
                .unwrap_or_default(),
            Step::SetLen { handle, len } => {
                pick(handle).map(|file| unit(file.set_len(*len))).unwrap_or_default()
            }
            Step::Sync(handle) => pick(handle).map(|file| unit(file.sync())).unwrap_or_default(),
            Step::CreateDir(path) => unit(self.disk.create_dir(PATHS[*path])),
            Step::ReadDir(path) => {
                show(self.disk.read_dir(PATHS[*path]).map(|entries| format!("{entries:?}")))
            }
            Step::Rename(from, to) => unit(self.disk.rename(PATHS[*from], PATHS[*to])),
            Step::Remove(path) => unit(self.disk.remove_file(PATHS[*path])),
            Step::SyncDir(path) => unit(self.disk.sync_dir(PATHS[*path])),
        }
    }
}

/// All that can be read, by name.
fn everything(disk: &dyn Disk, dir: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in disk.read_dir(dir).unwrap() {
        let path = super::path::join(dir, &entry.name);
        if entry.is_dir {
            found.push((path.clone(), Vec::new()));
            found.extend(everything(disk, &path));
        } else {
            let bytes = content(disk, &path);
            found.push((path, bytes));
        }
    }
    found
}

proptest! {
    #![proptest_config(testing::config(150))]

    /// The same steps give the same answers and the same files on every disk.
    #[test]
    fn all_disks_do_the_same(
        before in proptest::collection::vec(any_step(), 0..20),
        steps in proptest::collection::vec(any_step(), 1..80),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let real = RealDisk::open(dir.path()).unwrap();
        let sim = SimDisk::new();
        for disk in [&real as &dyn Disk, &sim] {
            let mut player = Player { disk, handles: Vec::new() };
            before.iter().for_each(|step| drop(player.play(step)));
        }
        let image = sim.crash(Keep::All);
        let below = sim.crash(Keep::All);
        let untouched = everything(&below, "");
        let overlay = OverlayDisk::new(Arc::new(below.clone()));
        let disks: [&dyn Disk; 4] = [&real, &sim, &image, &overlay];
        let mut players = disks.map(|disk| Player { disk, handles: Vec::new() });
        for step in &steps {
            let answers = players.each_mut().map(|player| player.play(step));
            for answer in &answers {
                prop_assert_eq!(answer, &answers[0], "{:?}: {:?}", step, answers);
            }
        }
        let expected = everything(&real, "");
        for disk in disks {
            prop_assert_eq!(&everything(disk, ""), &expected);
        }
        prop_assert_eq!(everything(&sim.crash(Keep::All), ""), expected);
        prop_assert_eq!(everything(&below, ""), untouched);
    }
}
