//! Collections of a whole volume: what goes, what stays, beside other work, and what they figure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::crash::{assert_clean, extract};
use super::rebuild::lose_metadata;
use super::*;
use crate::chunk::Address;
use crate::meta::{Content, KeyRange};
use crate::pyramid::Visit;

const NOW: Collect = Collect { dry_run: false, urgent: true };
const LOOK: Collect = Collect { dry_run: true, urgent: true };

fn stored(bench: &Bench) -> u64 {
    bench.volume.store.stats().stored_bytes
}

fn remove(bench: &Bench, name: &str) {
    bench.volume.unlink(Ino::ROOT, name.as_bytes(), Wait::Yes).unwrap();
}

/// A file of `kib` KiB that nothing else has bytes of, written and closed.
fn file(bench: &Bench, name: &str, seed: u64, kib: usize) {
    let ino = bench.create(name);
    bench.write(ino, 0, &noise(seed, kib << 10));
    bench.volume.forget(ino, 1);
}

/// Every chunk that a live file holds: the plain reference.
fn reachable(volume: &Volume) -> BTreeSet<Address> {
    let mut found = BTreeSet::new();
    let mut roots = Vec::new();
    let contents = KeyRange::contents(Ino(0));
    let each = &mut |_: &[u8], value: &[u8]| {
        roots.push(content_root(&Content::decode(value).unwrap()));
        ControlFlow::Continue(())
    };
    volume.meta.scan(contents, each).unwrap();
    for root in roots {
        let each = &mut |visit: Visit<'_>| match visit {
            Visit::Enter { address, .. } | Visit::Data { address, .. } => found.insert(address),
            Visit::Tree { .. } => true,
        };
        volume.pyramid.walk(&volume.store, &root, each).unwrap();
    }
    found
}

#[test]
fn the_space_of_removed_files_comes_back() {
    let mut bench = Bench::new();
    for number in 0..20 {
        file(&bench, &format!("f{number}"), number, 200);
    }
    bench.volume.sync().unwrap();
    let before = stored(&bench);
    for number in (0..20).step_by(2) {
        remove(&bench, &format!("f{number}"));
    }
    bench.volume.sync().unwrap();
    let looked = bench.volume.collect(LOOK).unwrap();
    assert!(before * 4 / 10 < looked.garbage_bytes, "{looked:?} of {before}");
    let now = stored(&bench);
    assert!(now.abs_diff(before) < 40_000, "a look leaves all where it is: {before}, {now}");
    let figures = bench.volume.collect(NOW).unwrap();
    assert!(stored(&bench) < before * 6 / 10, "{} of {before}: {figures:?}", stored(&bench));
    for again in 0..2 {
        for number in (1..20).step_by(2) {
            let ino = bench.find(&format!("f{number}")).unwrap();
            assert!(bench.read_all(ino) == noise(number, 200 << 10), "{again}, {number}");
        }
        assert_clean(&bench.disk, &bench.clock, true, "after a collection");
        bench.reopen();
    }
}

#[test]
fn a_second_collection_finds_little() {
    let bench = Bench::new();
    for number in 0..12 {
        file(&bench, &format!("f{number}"), number, 150);
    }
    for number in 0..6 {
        remove(&bench, &format!("f{}", number * 2));
    }
    bench.volume.collect(NOW).unwrap();
    let after = stored(&bench);
    let second = bench.volume.collect(NOW).unwrap();
    assert!(second.garbage_bytes < after / 4, "{second:?} of {after}");
    assert!(bench.volume.garbage_estimate() < after / 4);
}

#[test]
fn what_a_removed_file_still_holds_open_stays() {
    let bench = Bench::new();
    file(&bench, "open", 1, 600);
    file(&bench, "other", 2, 600);
    let ino = bench.volume.lookup(Ino::ROOT, b"open").unwrap().ino;
    bench.volume.open_file(ino, OpenFlags::default(), ROOT, Wait::Yes).unwrap();
    remove(&bench, "open");
    remove(&bench, "other");
    bench.volume.collect(NOW).unwrap();
    assert!(bench.read_all(ino) == noise(1, 600 << 10));
    bench.volume.release(ino, false);
    bench.volume.forget(ino, 1);
    let before = stored(&bench);
    bench.volume.collect(NOW).unwrap();
    assert!(stored(&bench) + (500 << 10) < before, "closed, it goes");
}

#[test]
fn shared_content_goes_with_its_last_holder() {
    let bench = Bench::new();
    file(&bench, "a", 5, 800);
    let (from, to) = (bench.find("a").unwrap(), bench.create("b"));
    let copied = bench.volume.copy_range((from, 0), (to, 0), 800 << 10, ROOT, Wait::Yes);
    assert_eq!(copied.unwrap(), 800 << 10);
    bench.volume.sync().unwrap();
    remove(&bench, "a");
    bench.volume.collect(NOW).unwrap();
    assert!(bench.read_all(to) == noise(5, 800 << 10));
    bench.volume.forget(to, 1);
    remove(&bench, "b");
    let before = stored(&bench);
    bench.volume.collect(NOW).unwrap();
    assert!(stored(&bench) + (700 << 10) < before);
}

#[test]
fn the_same_content_may_come_again_after_it_went() {
    let mut bench = Bench::new();
    for round in 0..4 {
        file(&bench, "f", 9, 700);
        bench.volume.sync().unwrap();
        assert!(bench.read_all(bench.find("f").unwrap()) == noise(9, 700 << 10), "{round}");
        remove(&bench, "f");
        bench.volume.collect(NOW).unwrap();
        assert!(stored(&bench) < 400 << 10, "{round}: {}", stored(&bench));
        bench.reopen();
    }
}

#[test]
fn the_index_and_the_metadata_can_be_made_again_afterwards() {
    let bench = Bench::new();
    for number in 0..16 {
        file(&bench, &format!("f{number}"), number, 180);
        bench.volume.sync().unwrap();
    }
    for number in 0..16 {
        if number % 3 != 0 {
            remove(&bench, &format!("f{number}"));
        }
    }
    bench.volume.collect(NOW).unwrap();
    file(&bench, "later", 99, 100);
    bench.volume.sync().unwrap();
    let state = extract(&bench.volume);
    bench.volume.close().unwrap();
    for entry in bench.disk.read_dir("index").unwrap() {
        bench.disk.remove_file(&format!("index/{}", entry.name)).unwrap();
    }
    let volume = open(&bench.disk, &bench.clock, options());
    assert_eq!(extract(&volume), state);
    volume.close().unwrap();
    lose_metadata(&bench.disk);
    let disk: Arc<dyn Disk> = Arc::new(bench.disk.clone());
    assert_eq!(rebuild_metadata(&disk).unwrap().findings, []);
    let volume = open(&bench.disk, &bench.clock, options());
    assert_eq!(extract(&volume), state);
    volume.close().unwrap();
    assert_clean(&bench.disk, &bench.clock, true, "made again");
}

#[test]
fn figures_agree_with_a_plain_walk() {
    let bench = Bench::new();
    for number in 0..30 {
        file(&bench, &format!("f{number}"), number / 2, 40 + 7 * number as usize);
    }
    bench.volume.sync().unwrap();
    for number in 0..30 {
        if number % 5 < 2 {
            remove(&bench, &format!("f{number}"));
        }
    }
    bench.volume.collect(NOW).unwrap();
    let wanted = reachable(&bench.volume).len() as u64;
    let stats = bench.volume.store.stats();
    assert!(wanted <= stats.chunks, "{wanted} of {}", stats.chunks);
    // What is left in packs that were not worth it, and in the open one.
    assert!(stats.chunks < wanted * 5 / 4 + 64, "{wanted} of {}", stats.chunks);
}

#[test]
fn small_syncs_are_merged_into_full_frames() {
    let bench = Bench::new();
    let ino = bench.create("log");
    for number in 0..300 {
        bench.write(ino, number * 512, &noise(number, 512));
        bench.volume.fsync(ino, Wait::Yes).unwrap();
    }
    let before = stored(&bench);
    bench.volume.collect(NOW).unwrap();
    assert!(stored(&bench) < before / 2, "{} of {before}", stored(&bench));
    let wanted: Vec<u8> = (0..300).flat_map(|number| noise(number, 512)).collect();
    assert!(bench.read_all(ino) == wanted);
}

#[test]
fn on_a_full_disk_it_makes_room() {
    let bench = Bench::new();
    for number in 0..40 {
        file(&bench, &format!("f{number}"), number, 100);
    }
    bench.volume.sync().unwrap();
    for number in 0..30 {
        remove(&bench, &format!("f{number}"));
    }
    bench.volume.sync().unwrap();
    // Room for little more than the image and one batch.
    let used = bench.disk.used_bytes().unwrap();
    bench.disk.set_space(used + (26 << 20));
    bench.volume.collect(NOW).unwrap();
    assert!(stored(&bench) < 2 << 20, "{}", stored(&bench));
    for number in 30..40 {
        let ino = bench.find(&format!("f{number}")).unwrap();
        assert!(bench.read_all(ino) == noise(number, 100 << 10));
    }
}

/// Threads write, read and remove files of a few contents while collections run without a break:
/// nothing that a file holds may go, and none may stall.
#[test]
fn nothing_is_lost_beside_writers() {
    let limits = OpenOptions {
        background: true,
        collects: false,
        dirty_bytes_max: 600_000,
        commit_interval_ms: 5,
        pack_bytes_max: 256 << 10,
        ..OpenOptions::default()
    };
    let bench = Bench::with(limits);
    let done = AtomicBool::new(false);
    let volume = &bench.volume;
    let work = |thread: u64| {
        let random = SimRng::new(crate::testing::seed() * 31 + thread);
        let mut held: BTreeMap<String, u64> = BTreeMap::new();
        for _ in 0..250 {
            let number = random.next_u64();
            let name = format!("t{thread}-{}", number % 5);
            // Few contents, so that they die and come again all the time, in any thread.
            let content = (number >> 8) % 9;
            let bytes = noise(content, 30_000 + 9_000 * content as usize);
            match held.remove(&name) {
                Some(_) if number.is_multiple_of(3) => {
                    volume.unlink(Ino::ROOT, name.as_bytes(), Wait::Yes).unwrap();
                }
                Some(old) if number % 3 == 1 => {
                    let attr = volume.lookup(Ino::ROOT, name.as_bytes()).unwrap();
                    let wanted = noise(old, 30_000 + 9_000 * old as usize);
                    let read = volume.read(attr.ino, 0, 1 << 20).unwrap();
                    assert!(read == wanted, "{name} holds {old}");
                    volume.forget(attr.ino, 1);
                    held.insert(name, old);
                }
                was => {
                    let ino = match was {
                        Some(_) => volume.lookup(Ino::ROOT, name.as_bytes()).unwrap().ino,
                        None => bench.create(&name),
                    };
                    let cut = SetAttr { size: Some(0), ..SetAttr::default() };
                    volume.setattr(ino, &cut, ROOT, Wait::Yes).unwrap();
                    volume.write(ino, 0, &bytes, false, Wait::Yes).unwrap();
                    volume.forget(ino, 1);
                    held.insert(name, content);
                }
            }
        }
        held
    };
    let (held, runs) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|thread| scope.spawn(move || work(thread))).collect();
        let collecting = scope.spawn(|| {
            let mut runs = 0;
            while !done.load(Ordering::SeqCst) {
                volume.collect(NOW).unwrap();
                runs += 1;
            }
            runs
        });
        let held: Vec<_> = threads.into_iter().map(|one| one.join()).collect();
        done.store(true, Ordering::SeqCst);
        (held, collecting.join().unwrap())
    });
    assert!(runs > 0);
    for (name, content) in held.into_iter().flat_map(|one| one.unwrap()) {
        let ino = bench.find(&name).unwrap();
        assert!(bench.read_all(ino) == noise(content, 30_000 + 9_000 * content as usize), "{name}");
    }
    volume.close().unwrap();
    assert_clean(&bench.disk, &bench.clock, true, "after all");
}

#[test]
fn it_begins_by_itself_and_can_be_asked_for() {
    let limits = OpenOptions { background: true, commit_interval_ms: 5, ..options() };
    let bench = Bench::with(limits);
    for number in 0..8 {
        file(&bench, &format!("f{number}"), number, 4 << 10);
    }
    bench.volume.sync().unwrap();
    let before = stored(&bench);
    for number in 0..6 {
        remove(&bench, &format!("f{number}"));
    }
    let began = std::time::Instant::now();
    while before / 2 < stored(&bench) {
        assert!(began.elapsed() < Duration::from_secs(60), "{} of {before}", stored(&bench));
        std::thread::sleep(Duration::from_millis(20));
    }
    let asked = bench.volume.ask_to_collect(NOW);
    assert!(asked.running);
    while bench.volume.collect_figures().running {
        assert!(began.elapsed() < Duration::from_secs(90));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(bench.volume.collect_figures().failure, None);
    bench.volume.close().unwrap();
    assert_clean(&bench.disk, &bench.clock, true, "by itself");
}
