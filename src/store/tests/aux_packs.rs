//! Aux packs: beside the log, whole when they have a name, and nobody's harm when they fail.

use super::aux_pack::AuxWriter;
use super::frame::{Codec, Kind, Parts};
use super::*;
use crate::sys::sim::{CallKind, Keep};

/// Writes an aux pack of two frames.
fn write_aux(store: &Store, source: u64) -> Result<u64> {
    let mut writer = AuxWriter::begin(&store.inner, source)?;
    for payload in [&b"some"[..], &[7; 3000]] {
        let mut bytes = frame::encode(&Parts {
            kind: Kind::Image,
            codec: Codec::None,
            count: 0,
            list: &[],
            payload,
            raw_bytes: payload.len() as u32,
        });
        writer.append(&mut bytes)?;
    }
    Ok(writer.finish()?.0)
}

fn names(disk: &SimDisk) -> Vec<String> {
    let mut names = Vec::new();
    for dir in disk.read_dir(pack::PACKS_DIR).unwrap() {
        let files = disk.read_dir(&format!("{}/{}", pack::PACKS_DIR, dir.name)).unwrap();
        names.extend(files.into_iter().map(|entry| entry.name));
    }
    names
}

fn group(store: &Store, number: u64) -> Result<LogPosition> {
    for chunk in number * 8..number * 8 + 8 {
        put(store, chunk)?;
    }
    commit(store, &[number as u8])
}

#[test]
fn an_aux_pack_is_counted_verified_and_no_part_of_the_log() {
    let disk = new_disk();
    let store = open(&disk).store;
    let mut aux = Vec::new();
    for number in 0..6 {
        group(&store, number).unwrap();
        aux.push(write_aux(&store, number + 1).unwrap());
        assert_eq!(verify_findings(&store), []);
    }
    let stats = store.stats();
    let bytes: u64 = names(&disk).iter().map(|name| file_len(&disk, &path_of(name))).sum();
    assert_eq!((stats.stored_bytes, stats.packs), (bytes, names(&disk).len() as u64));
    drop(store);
    // Opened from the start and from the end, with the last aux pack behind the log's last.
    let Opened { store, records, findings } = open(&disk);
    assert_eq!((records.len(), findings), (6, vec![]));
    assert_eq!((store.stats().stored_bytes, store.stats().packs), (bytes, stats.packs));
    let position = group(&store, 6).unwrap();
    write_aux(&store, 9).unwrap();
    drop(store);
    let Opened { store, findings, .. } = open_from(&disk, small(), position);
    assert_eq!(findings, []);
    assert_reads(&store, 0..56);
    assert_eq!(verify_findings(&store), []);
    for number in &aux {
        let file = open::open_pack(&disk, store.inner.life(*number)).unwrap();
        assert_eq!(file.footer().unwrap().unwrap().len(), 2);
    }
    let before = store.stats();
    store.inner.remove_aux(aux[0]).unwrap();
    store.inner.remove_aux(aux[0]).unwrap();
    assert_eq!(store.stats().packs, before.packs - 1);
    assert!(store.stats().stored_bytes < before.stored_bytes);
}

fn path_of(name: &str) -> String {
    pack::pack_path(pack::parse_name(name, ".pack").unwrap())
}

#[test]
fn damage_to_an_aux_pack_takes_nothing_of_the_log_along() {
    let disk = new_disk();
    let store = open(&disk).store;
    for number in 0..4 {
        // Within a group, and behind all.
        put(&store, 100 + number).unwrap();
        store.flush().map(drop).unwrap();
        write_aux(&store, 1).unwrap();
        group(&store, number).unwrap();
    }
    let last = write_aux(&store, 1).unwrap();
    let count = names(&disk).len();
    drop(store);
    for number in 1..=last {
        let life = frame::Life { volume_id: VOLUME, pack: number };
        let Ok(file) = open::open_pack(&disk, life) else { continue };
        if !file.is_aux().unwrap() {
            continue;
        }
        for at in [3, 14, 70, 200] {
            let image = disk.crash(Keep::All);
            image.rot(&pack::pack_path(number), at, 0x10).unwrap();
            let Opened { store, records, .. } = open(&image);
            assert_eq!(records.len(), 4, "aux pack {number}, byte {at}");
            assert_reads(&store, (0..32).chain(100..104));
            assert_eq!(names(&image).len(), count);
            assert!(names(&image).iter().all(|name| name.ends_with(".pack")));
            assert!(!verify_findings(&store).is_empty());
            group(&store, 9).unwrap();
        }
    }
}

#[test]
fn what_is_left_of_an_unfinished_one_goes_and_its_number_is_not_used() {
    let disk = new_disk();
    let store = open(&disk).store;
    group(&store, 0).unwrap();
    let writer = AuxWriter::begin(&store.inner, 1).unwrap();
    let number = writer.number();
    let image = disk.crash(Keep::All);
    drop(writer);
    drop(store);
    assert!(names(&disk).iter().all(|name| name.ends_with(".pack")), "the writer leaves nothing");
    assert!(names(&image).iter().any(|name| name.ends_with(pack::TEMPORARY)));
    let store = open(&image).store;
    assert!(names(&image).iter().all(|name| name.ends_with(".pack")));
    assert!(number < write_aux(&store, 1).unwrap());
    assert_eq!(verify_findings(&store), []);
}

#[test]
fn a_power_loss_at_any_sync_leaves_it_whole_or_not_there() {
    let disk = new_disk();
    let store = open(&disk).store;
    let images = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&images);
    disk.set_hook(Some(Box::new(move |disk: &SimDisk, event| {
        let seed = event.number + crate::testing::seed() * 1000;
        for keep_what in [Keep::Nothing, Keep::All, Keep::Random(seed), Keep::Random(!seed)] {
            keep.lock().push(disk.crash(keep_what));
        }
    })));
    for number in 0..5 {
        put(&store, 100 + number).unwrap();
        write_aux(&store, number).unwrap();
        group(&store, number).unwrap();
    }
    disk.set_hook(None);
    let images = std::mem::take(&mut *images.lock());
    assert!(60 < images.len());
    for image in images {
        let Opened { store, records, .. } = open(&image);
        assert_eq!(verify_findings(&store), []);
        let named = names(&image);
        let aux =
            named.iter().filter_map(|name| pack::parse_name(name, ".pack")).filter(|number| {
                let file = open::open_pack(&image, store.inner.life(*number)).unwrap();
                let is_aux = file.is_aux().unwrap();
                assert!(!is_aux || file.footer().unwrap().is_some());
                is_aux
            });
        assert!(records.len() <= aux.count());
        assert!(!named.iter().any(|name| name.ends_with(pack::TEMPORARY)));
    }
}

#[test]
fn a_failure_is_no_harm_to_the_store() {
    for errno in [libc::EIO, libc::ENOSPC] {
        for call in 1..30 {
            let disk = new_disk();
            let store = open(&disk).store;
            group(&store, 0).unwrap();
            let before = store.stats();
            disk.fail_call(call, errno, CallKind::Any);
            let written = write_aux(&store, 1);
            let failed = disk.failures_left() == 0;
            disk.clear_failures();
            // The last call of all syncs the name: more calls than there are fail nothing.
            assert_eq!(written.is_err(), failed, "call {call}");
            if failed {
                assert!(names(&disk).iter().all(|name| name.ends_with(".pack")), "call {call}");
                assert_eq!(store.stats().packs, before.packs);
            }
            group(&store, 1).unwrap();
            write_aux(&store, 1).unwrap();
            assert_eq!(verify_findings(&store), []);
            if !failed {
                assert!(7 < call, "too few calls were made to fail");
                break;
            }
        }
    }
}
