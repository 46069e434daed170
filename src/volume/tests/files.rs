//! Bytes of files.

use proptest::prelude::*;

use super::*;

#[test]
fn what_is_written_is_read_before_and_after_commit_and_reopen() {
    let mut bench = Bench::new();
    let ino = bench.create("file");
    let bytes = noise(1, 700_001);
    bench.write(ino, 0, &bytes);
    assert_eq!(bench.read_all(ino), bytes);
    bench.volume.fsync(ino, Wait::Yes).unwrap();
    assert_eq!(bench.read_all(ino), bytes);
    bench.reopen();
    let ino = bench.find("file").unwrap();
    assert_eq!(bench.read_all(ino), bytes);
    let attr = bench.volume.getattr(ino).unwrap();
    assert_eq!((attr.size, attr.filled), (700_001, 700_001));
}

#[test]
fn a_second_copy_adds_no_data_chunks() {
    let bench = Bench::new();
    let bytes = noise(2, 500_000);
    let one = bench.create("one");
    bench.write(one, 0, &bytes);
    bench.volume.sync().unwrap();
    let before = bench.volume.status().unwrap();
    let two = bench.create("two");
    bench.write(two, 0, &bytes);
    bench.volume.sync().unwrap();
    let after = bench.volume.status().unwrap();
    assert_eq!(after.chunks, before.chunks);
    assert_eq!(after.logical_bytes, before.logical_bytes + 500_000);
    assert!(after.stored_bytes - before.stored_bytes < 800);
}

#[test]
fn a_sparse_file_costs_next_to_nothing() {
    let bench = Bench::new();
    let ino = bench.create("sparse");
    bench.truncate(ino, 10 << 30);
    bench.write(ino, 5 << 30, b"in the middle");
    bench.volume.sync().unwrap();
    let status = bench.volume.status().unwrap();
    assert_eq!(status.logical_bytes, 4096);
    assert!(status.unique_bytes < 64 << 10, "{} bytes", status.unique_bytes);
    assert_eq!(bench.volume.read(ino, (5 << 30) - 3, 8).unwrap(), b"\0\0\0in th");
    assert_eq!(bench.volume.getattr(ino).unwrap().filled, 4096);
}

#[test]
fn a_whole_file_is_copied_by_its_root() {
    let bench = Bench::new();
    let bytes = noise(3, 300_000);
    let one = bench.create("one");
    bench.write(one, 0, &bytes);
    let two = bench.create("two");
    bench.write(two, 0, b"is replaced");
    let copied = bench.volume.copy_range((one, 0), (two, 0), 1 << 40, ROOT, Wait::Yes).unwrap();
    assert_eq!(copied, 300_000);
    assert_eq!(bench.read_all(two), bytes);
    bench.write(two, 5, b"changed");
    assert_eq!(bench.read_all(one), bytes);
    bench.volume.sync().unwrap();
    assert_eq!(&bench.read_all(two)[5..12], b"changed");
}

#[test]
fn an_open_removed_file_lives_until_it_is_closed() {
    let mut bench = Bench::new();
    let ino = bench.create("doomed");
    bench.volume.open_file(ino, OpenFlags::default(), ROOT, Wait::Yes).unwrap();
    bench.write(ino, 0, b"still here");
    bench.volume.unlink(Ino::ROOT, b"doomed", Wait::Yes).unwrap();
    assert!(matches!(bench.find("doomed"), Err(Error::NotFound)));
    assert_eq!(bench.read_all(ino), b"still here");
    bench.volume.sync().unwrap();
    assert_eq!(bench.read_all(ino), b"still here");
    bench.volume.release(ino, false);
    bench.volume.forget(ino, 1);
    assert!(matches!(bench.volume.getattr(ino), Err(Error::Stale)));
    let status = bench.volume.status().unwrap();
    assert_eq!((status.files, status.logical_bytes), (1, 0));
    bench.reopen();
    let status = bench.volume.status().unwrap();
    assert_eq!((status.files, status.logical_bytes), (1, 0));
}

#[test]
fn set_id_bits_go_with_writes_truncation_and_owners() {
    let bench = Bench::new();
    let user = Caller { uid: 1000, gid: 1000, umask: 0 };
    let mode = |ino| bench.volume.getattr(ino).unwrap().mode & 0o7777;
    let set = |ino, change: SetAttr| bench.volume.setattr(ino, &change, user, Wait::Yes).unwrap();
    let ino = bench.create("program");
    let set_id = SetAttr { mode: Some(0o6755), ..SetAttr::default() };
    set(ino, set_id);
    bench.volume.write(ino, 0, b"x", true, Wait::Yes).unwrap();
    assert_eq!(mode(ino), 0o755);
    set(ino, set_id);
    set(ino, SetAttr { size: Some(0), ..SetAttr::default() });
    assert_eq!(mode(ino), 0o755);
    set(ino, set_id);
    set(ino, SetAttr { uid: Some(5), ..SetAttr::default() });
    assert_eq!(mode(ino), 0o755);
    bench.volume.setxattr(ino, b"security.capability", b"all", XattrMode::Any, Wait::Yes).unwrap();
    bench.write(ino, 0, b"y");
    let gone = bench.volume.getxattr(ino, b"security.capability");
    assert!(matches!(gone, Err(Error::NoAttribute)));
}

#[test]
fn more_is_written_than_may_be_dirty() {
    let bench = Bench::with(OpenOptions { dirty_bytes_max: 100_000, ..options() });
    let (one, two) = (bench.create("one"), bench.create("two"));
    for part in 0..40u64 {
        bench.write(one, part * 20_000, &noise(part, 20_000));
        bench.write(two, part * 777, &noise(part + 99, 777));
    }
    assert!(bench.volume.status().unwrap().dirty_bytes <= 100_000);
    let bytes = bench.read_all(one);
    for part in 0..40 {
        assert_eq!(bytes[part * 20_000..][..20_000], noise(part as u64, 20_000));
    }
}

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    let mut bench = Bench::new();
    let kept = bench.create("kept");
    let bytes = noise(5, 200_000);
    bench.write(kept, 0, &bytes);
    bench.volume.sync().unwrap();
    let used = bench.disk.used_bytes().unwrap();
    bench.disk.set_space(used + (32 << 20));
    let ino = bench.create("grows");
    let mut refused = false;
    for part in 0..400u64 {
        match bench.volume.write(ino, part << 18, &noise(part, 1 << 18), false, Wait::Yes) {
            Ok(()) => {}
            Err(Error::NoSpace) => {
                refused = true;
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused);
    bench.volume.sync().unwrap();
    assert_eq!(bench.read_all(kept), bytes);
    bench.disk.set_space(u64::MAX);
    bench.write(ino, 0, b"room again");
    bench.reopen();
    let ino = bench.find("grows").unwrap();
    assert_eq!(bench.volume.read(ino, 0, 10).unwrap(), b"room again");
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, usize, u8),
    Truncate(u64),
    Flush,
    Sync,
    Reopen,
    CopyTo,
    CopyBack,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u64..60_000, 0usize..20_000, any::<u8>())
            .prop_map(|(offset, len, seed)| Step::Write(offset, len, seed)),
        3 => (0u64..80_000).prop_map(Step::Truncate),
        2 => Just(Step::Flush),
        2 => Just(Step::Sync),
        1 => Just(Step::Reopen),
        1 => Just(Step::CopyTo),
        1 => Just(Step::CopyBack),
    ]
}

proptest! {
    #![proptest_config(crate::testing::config(60))]

    #[test]
    fn content_equals_a_plain_vector(steps in prop::collection::vec(step(), 1..40)) {
        let mut bench = Bench::new();
        let mut files = [bench.create("a"), bench.create("b")];
        let mut plain = [Vec::new(), Vec::new()];
        for step in steps {
            match step {
                Step::Write(offset, len, seed) => {
                    let bytes = noise(seed.into(), len);
                    bench.write(files[0], offset, &bytes);
                    let end = offset as usize + len;
                    if 0 < len && plain[0].len() < end {
                        plain[0].resize(end, 0);
                    }
                    if 0 < len {
                        plain[0][offset as usize..end].copy_from_slice(&bytes);
                    }
                }
                Step::Truncate(size) => {
                    bench.truncate(files[0], size);
                    plain[0].resize(size as usize, 0);
                }
                Step::Flush => {
                    let node = bench.volume.nodes.get(files[0]);
                    bench.volume.flush_soon(&node);
                    bench.volume.nodes.put(node);
                }
                Step::Sync => bench.volume.sync().unwrap(),
                Step::Reopen => {
                    bench.reopen();
                    files = [bench.find("a").unwrap(), bench.find("b").unwrap()];
                }
                Step::CopyTo | Step::CopyBack => {
                    let (from, to) = if matches!(step, Step::CopyTo) { (0, 1) } else { (1, 0) };
                    let (source, target) = ((files[from], 0), (files[to], 0));
                    match bench.volume.copy_range(source, target, 1 << 30, ROOT, Wait::Yes) {
                        Ok(0) => prop_assert!(plain[from].is_empty()),
                        Ok(copied) => {
                            prop_assert_eq!(copied, plain[from].len() as u64);
                            let kept = plain[to].get(plain[from].len()..).unwrap_or(&[]).to_vec();
                            plain[to] = [plain[from].clone(), kept].concat();
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            for (&ino, plain) in files.iter().zip(&plain) {
                prop_assert_eq!(&bench.read_all(ino), plain);
            }
        }
        bench.volume.sync().unwrap();
        let logical = bench.volume.status().unwrap().logical_bytes;
        let filled: u64 =
            files.iter().map(|&ino| bench.volume.getattr(ino).unwrap().filled).sum();
        prop_assert_eq!(logical, filled);
    }
}

#[test]
fn truncating_to_the_same_size_leaves_the_times_alone() {
    let bench = Bench::new();
    let ino = bench.create("file");
    bench.write(ino, 0, b"four");
    let written = bench.volume.getattr(ino).unwrap();
    bench.clock.advance(std::time::Duration::from_secs(1));
    bench.truncate(ino, 4);
    assert_eq!(bench.volume.getattr(ino).unwrap().mtime, written.mtime);
    bench.truncate(ino, 3);
    assert_ne!(bench.volume.getattr(ino).unwrap().mtime, written.mtime);
    bench.truncate(ino, 0);
    let emptied = bench.volume.getattr(ino).unwrap();
    bench.clock.advance(std::time::Duration::from_secs(1));
    // Opening with O_TRUNC counts, as on other filesystems.
    let flags = OpenFlags { truncate: true, ..OpenFlags::default() };
    bench.volume.open_file(ino, flags, ROOT, Wait::Yes).unwrap();
    assert_ne!(bench.volume.getattr(ino).unwrap().mtime, emptied.mtime);
}
