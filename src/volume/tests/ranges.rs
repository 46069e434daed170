//! Ranges of files beside plain vectors.

use proptest::prelude::*;

use super::*;

const CHUNK: u64 = 4096;

#[derive(Debug, Clone)]
enum Step {
    Write(usize, u64, usize, u8),
    Truncate(usize, u64),
    Punch(usize, u64, u64),
    Zero(usize, u64, u64, bool),
    Reserve(usize, u64, u64, bool),
    /// From, to, chunks into each, bytes into a chunk, length.
    Copy(usize, usize, u64, u64, u64, u64),
    Sync,
}

fn step() -> impl Strategy<Value = Step> {
    let file = || 0usize..2;
    prop_oneof![
        4 => (file(), 0u64..50_000, 0usize..9_000, any::<u8>())
            .prop_map(|(file, offset, len, seed)| Step::Write(file, offset, len, seed)),
        1 => (file(), 0u64..60_000).prop_map(|(file, size)| Step::Truncate(file, size)),
        2 => (file(), 0u64..60_000, 1u64..30_000)
            .prop_map(|(file, offset, length)| Step::Punch(file, offset, length)),
        1 => (file(), 0u64..60_000, 1u64..9_000, any::<bool>())
            .prop_map(|(file, offset, length, keep)| Step::Zero(file, offset, length, keep)),
        1 => (file(), 0u64..60_000, 1u64..9_000, any::<bool>())
            .prop_map(|(file, offset, length, keep)| Step::Reserve(file, offset, length, keep)),
        4 => (file(), file(), 0u64..12, 0u64..12, 0u64..CHUNK, 1u64..40_000)
            .prop_map(|(from, to, a, b, inside, len)| Step::Copy(from, to, a, b, inside, len)),
        1 => Just(Step::Sync),
    ]
}

fn put(plain: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let end = offset as usize + bytes.len();
    if !bytes.is_empty() {
        plain.resize(plain.len().max(end), 0);
        plain[offset as usize..end].copy_from_slice(bytes);
    }
}

/// Clears the range of `plain`, which is extended first unless its size is kept.
fn clear(plain: &mut Vec<u8>, offset: u64, length: u64, keep_size: bool) {
    let end = (offset + length) as usize;
    if !keep_size {
        plain.resize(plain.len().max(end), 0);
    }
    let end = end.min(plain.len());
    if (offset as usize) < end {
        plain[offset as usize..end].fill(0);
    }
}

fn apply(bench: &Bench, files: [Ino; 2], plain: &mut [Vec<u8>; 2], step: &Step) {
    let allocate = |file: usize, offset, length, how| {
        bench.volume.allocate(files[file], offset, length, how, ROOT, Wait::Yes).unwrap();
    };
    match *step {
        Step::Write(file, offset, len, seed) => {
            let bytes = noise(seed.into(), len);
            bench.write(files[file], offset, &bytes);
            put(&mut plain[file], offset, &bytes);
        }
        Step::Truncate(file, size) => {
            bench.truncate(files[file], size);
            plain[file].resize(size as usize, 0);
        }
        Step::Punch(file, offset, length) => {
            allocate(file, offset, length, Allocate::Punch);
            clear(&mut plain[file], offset, length, true);
        }
        Step::Zero(file, offset, length, keep_size) => {
            allocate(file, offset, length, Allocate::Zero { keep_size });
            clear(&mut plain[file], offset, length, keep_size);
        }
        Step::Reserve(file, offset, length, keep_size) => {
            allocate(file, offset, length, Allocate::Reserve { keep_size });
            if !keep_size {
                let size = plain[file].len().max((offset + length) as usize);
                plain[file].resize(size, 0);
            }
        }
        Step::Copy(from, to, a, b, inside, length) => {
            let (a, b) = (a * CHUNK + inside, b * CHUNK + inside);
            let copied =
                bench.volume.copy_range((files[from], a), (files[to], b), length, ROOT, Wait::Yes);
            let start = plain[from].len().min(a as usize);
            let end = plain[from].len().min((a + length) as usize);
            let bytes = plain[from][start..end].to_vec();
            if from == to && a.abs_diff(b) < bytes.len() as u64 {
                assert!(matches!(copied, Err(Error::Invalid { .. })));
            } else {
                assert_eq!(copied.unwrap(), bytes.len() as u64);
                put(&mut plain[to], b, &bytes);
            }
        }
        Step::Sync => bench.volume.sync().unwrap(),
    }
}

/// Data and holes as they can be told from chunks: a chunk of zeros is a hole.
fn next(plain: &[u8], offset: u64, wanted: Seek) -> Option<u64> {
    let len = plain.len() as u64;
    let is_data = |position: u64| {
        let start = (position / CHUNK * CHUNK) as usize;
        let end = plain.len().min(start + CHUNK as usize);
        plain[start..end].iter().any(|&byte| byte != 0)
    };
    let mut position = offset;
    while position < len {
        if is_data(position) == (wanted == Seek::Data) {
            return Some(position);
        }
        position = (position / CHUNK + 1) * CHUNK;
    }
    (wanted == Seek::Hole && offset < len).then_some(len)
}

proptest! {
    #![proptest_config(crate::testing::config(60))]

    #[test]
    fn ranges_equal_plain_vectors(steps in prop::collection::vec(step(), 1..30)) {
        let mut bench = Bench::new();
        let files = [bench.create("a"), bench.create("b")];
        let mut plain = [Vec::new(), Vec::new()];
        for step in &steps {
            apply(&bench, files, &mut plain, step);
            for (&ino, plain) in files.iter().zip(&plain) {
                prop_assert_eq!(&bench.read_all(ino), plain);
            }
        }
        for (&ino, plain) in files.iter().zip(&plain) {
            for offset in (0..plain.len() as u64 + 5_000).step_by(1_777) {
                for wanted in [Seek::Data, Seek::Hole] {
                    let found = match bench.volume.seek(ino, offset, wanted, Wait::Yes) {
                        Ok(found) => Some(found),
                        Err(Error::NoData) => None,
                        Err(error) => panic!("{error}"),
                    };
                    prop_assert_eq!(found, next(plain, offset, wanted));
                }
            }
        }
        bench.volume.sync().unwrap();
        let logical = bench.volume.status().unwrap().logical_bytes;
        let filled: u64 =
            files.iter().map(|&ino| bench.volume.getattr(ino).unwrap().filled).sum();
        prop_assert_eq!(logical, filled);
        bench.reopen();
        for (&ino, plain) in files.iter().zip(&plain) {
            prop_assert_eq!(&bench.read_all(ino), plain);
        }
    }
}

#[test]
fn a_punch_and_a_copy_of_a_terabyte_cost_next_to_nothing() {
    let bench = Bench::new();
    let (one, two) = (bench.create("one"), bench.create("two"));
    bench.truncate(one, 2 << 40);
    bench.write(one, 1 << 40, &noise(1, 100_000));
    bench.volume.sync().unwrap();
    let before = bench.volume.status().unwrap();
    let copied =
        bench.volume.copy_range((one, 1 << 39), (two, 0), 3 << 39, ROOT, Wait::Yes).unwrap();
    assert_eq!(copied, 3 << 39);
    assert_eq!(bench.volume.read(two, 1 << 39, 100_000).unwrap(), noise(1, 100_000));
    bench.volume.sync().unwrap();
    let after = bench.volume.status().unwrap();
    assert!(after.chunks - before.chunks < 10, "{} chunks", after.chunks - before.chunks);
    let seek = |wanted, offset| bench.volume.seek(two, offset, wanted, Wait::Yes);
    assert_eq!(seek(Seek::Data, 0).unwrap(), 1 << 39);
    assert_eq!(seek(Seek::Hole, 1 << 39).unwrap(), (1 << 39) + 25 * CHUNK);
    bench.volume.allocate(two, 0, 3 << 39, Allocate::Punch, ROOT, Wait::Yes).unwrap();
    assert!(matches!(seek(Seek::Data, 0), Err(Error::NoData)));
    bench.volume.sync().unwrap();
    assert_eq!(bench.volume.getattr(two).unwrap().filled, 0);
    assert_eq!(bench.volume.read(one, 1 << 40, 100_000).unwrap(), noise(1, 100_000));
}

#[test]
fn what_does_not_fit_is_refused() {
    let bench = Bench::new();
    let (one, two) = (bench.create("one"), bench.create("two"));
    bench.write(one, 0, &noise(1, 20_000));
    let copy = |from, to| bench.volume.copy_range((one, from), (two, to), 10_000, ROOT, Wait::Yes);
    assert!(matches!(copy(0, 1), Err(Error::Unsupported)));
    let allocate = |offset, length| {
        let how = Allocate::Reserve { keep_size: false };
        bench.volume.allocate(one, offset, length, how, ROOT, Wait::Yes)
    };
    assert!(matches!(allocate(0, 0), Err(Error::Invalid { .. })));
    assert!(matches!(allocate(FILE_BYTES_MAX, 1), Err(Error::TooLarge)));
    bench.disk.set_space(bench.disk.used_bytes().unwrap() + (64 << 20));
    assert!(matches!(allocate(0, 1 << 30), Err(Error::NoSpace)));
    let refused = bench.volume.copy_range((one, 0), (two, 0), 10_000, ROOT, Wait::No);
    assert!(matches!(refused, Err(Error::WouldWait)), "the source has dirty bytes");
}

#[test]
fn set_id_bits_and_capabilities_go_with_ranges() {
    let bench = Bench::new();
    let (from, ino) = (bench.create("from"), bench.create("program"));
    bench.write(from, 0, &noise(1, 20_000));
    bench.write(ino, 0, &noise(2, 20_000));
    let user = Caller { uid: 1000, gid: 1000, umask: 0 };
    let name = b"security.capability";
    let changes: [&dyn Fn(); 4] = [
        &|| {
            let how = Allocate::Reserve { keep_size: true };
            bench.volume.allocate(ino, 0, 4096, how, user, Wait::Yes).unwrap();
        },
        &|| bench.volume.allocate(ino, 0, 4096, Allocate::Punch, user, Wait::Yes).unwrap(),
        &|| {
            let how = Allocate::Zero { keep_size: false };
            bench.volume.allocate(ino, 0, 4096, how, user, Wait::Yes).unwrap();
        },
        &|| {
            bench.volume.copy_range((from, 4096), (ino, 0), 4096, user, Wait::Yes).unwrap();
        },
    ];
    for change in changes {
        let set_id = SetAttr { mode: Some(0o6755), ..SetAttr::default() };
        bench.volume.setattr(ino, &set_id, ROOT, Wait::Yes).unwrap();
        bench.volume.setxattr(ino, name, b"all", XattrMode::Any, Wait::Yes).unwrap();
        change();
        assert_eq!(bench.volume.getattr(ino).unwrap().mode & 0o7777, 0o755);
        assert!(matches!(bench.volume.getxattr(ino, name), Err(Error::NoAttribute)));
    }
}
