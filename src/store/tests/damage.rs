//! Damage: it is named, nothing else suffers, and what is derived is derived again.

use super::reader::Lookup;
use super::*;
use crate::sys::sim::Keep;

/// Ten groups of data with a tree each; returns the disk and the positions of the records.
fn volume() -> (SimDisk, Vec<LogPosition>) {
    let disk = new_disk();
    let store = open(&disk).store;
    let mut positions = Vec::new();
    for group in 0..10 {
        let numbers: Vec<u64> = (group * 10..group * 10 + 10).collect();
        for number in &numbers {
            put(&store, *number).unwrap();
        }
        let (address, tree) = tree_of(&numbers);
        store.put_tree(address, tree).unwrap();
        positions.push(commit(&store, &[group as u8]).unwrap());
        if group % 3 == 2 {
            store.save_index().unwrap();
        }
    }
    store.close().unwrap();
    (disk, positions)
}

fn tree_of_group(group: u64) -> Address {
    tree_of(&(group * 10..group * 10 + 10).collect::<Vec<u64>>()).0
}

fn runs(disk: &SimDisk) -> Vec<String> {
    let entries = disk.read_dir(run::INDEX_DIR).unwrap();
    entries.into_iter().map(|entry| format!("{}/{}", run::INDEX_DIR, entry.name)).collect()
}

fn assert_all(store: &Store) {
    assert_reads(store, 0..100);
    for group in 0..10 {
        assert!(store.tree(&tree_of_group(group)).is_ok());
    }
    assert_eq!(store.stats().chunks, 110);
}

/// Where chunk `number` lies.
fn location_of(store: &Store, number: u64) -> Location {
    match store.inner.locate(&address_of(number), true).unwrap() {
        reader::Lookup::Found(location, _) => location,
        _ => panic!("it is there"),
    }
}

#[test]
fn the_index_is_built_again_from_the_packs() {
    let (disk, positions) = volume();
    let from = *positions.last().unwrap();
    let names = runs(&disk);
    assert!(names.len() > 2);
    // All gone; then each one gone; then each one damaged, in its head and in a block.
    let image = disk.crash(Keep::All);
    names.iter().for_each(|name| image.remove_file(name).unwrap());
    let Opened { store, findings, .. } = open_from(&image, small(), from);
    assert_eq!(findings, []);
    assert_all(&store);
    for name in &names {
        for damage in [None, Some(30), Some(4096 + 5)] {
            let image = disk.crash(Keep::All);
            match damage {
                None => image.remove_file(name).unwrap(),
                Some(offset) => image.rot(name, offset, 4).unwrap(),
            }
            let Opened { store, findings, .. } = open_from(&image, small(), from);
            let last_is_missing = damage.is_none() && Some(name) == names.last();
            let expected = if last_is_missing { vec![] } else { vec![Finding::IndexRebuilt] };
            assert_eq!(findings, expected, "{name} {damage:?}");
            assert_all(&store);
            store.close().unwrap();
            drop(store);
            let Opened { store, findings, .. } = open_from(&image, small(), from);
            assert_eq!(findings, []);
            assert_all(&store);
        }
    }
}

#[test]
fn runs_of_commits_that_are_not_there_count_for_nothing() {
    let (disk, positions) = volume();
    let from = positions[4];
    // As if the packs were set back to an older state, and the index not.
    for number in (from.pack + 1)..=positions[9].pack {
        disk.remove_file(&pack::pack_path(number)).unwrap();
    }
    disk.open(&pack::pack_path(from.pack), Access::Write).unwrap().set_len(from.offset).unwrap();
    let Opened { store, findings, .. } = open_from(&disk, small(), from);
    assert_eq!(findings, [Finding::IndexRebuilt]);
    assert_reads(&store, 0..50);
    assert!(!store.contains(&address_of(70)).unwrap());
    put(&store, 70).unwrap();
    commit(&store, b"").unwrap();
    assert_reads(&store, [70]);
}

#[test]
fn a_rebuild_leaves_out_trees_with_missing_children() {
    let (disk, positions) = volume();
    let store = open(&disk).store;
    let location = location_of(&store, 15);
    let (above, tree) = tree_over(vec![tree_of_group(1), tree_of_group(2)], vec![9, 9]);
    store.put_tree(above, tree).unwrap();
    commit(&store, b"").unwrap();
    drop(store);
    runs(&disk).iter().for_each(|name| disk.remove_file(name).unwrap());
    // Without its footer, a damaged header hides the frame.
    let path = pack::pack_path(location.pack);
    disk.rot(&path, location.offset + 45, 1).unwrap();
    let len = file_len(&disk, &path);
    if location.pack < positions[9].pack {
        disk.rot(&path, len - 3, 1).unwrap();
    }
    let Opened { store, findings, .. } = open_from(&disk, small(), positions[9]);
    assert!(findings.iter().any(|one| matches!(one, Finding::FramesDamaged { .. })));
    assert!(findings.contains(&Finding::TreeLeftOut { address: tree_of_group(1) }));
    assert!(findings.contains(&Finding::TreeLeftOut { address: above }));
    assert!(!store.contains(&address_of(15)).unwrap());
    assert!(!store.contains(&tree_of_group(1)).unwrap());
    assert!(!store.contains(&above).unwrap());
    assert!(store.contains(&tree_of_group(2)).unwrap());
    // Stored anew, all is well again.
    for number in 10..20 {
        put(&store, number).unwrap();
    }
    let (address, tree) = tree_of(&(10..20).collect::<Vec<u64>>());
    store.put_tree(address, tree).unwrap();
    commit(&store, b"").unwrap();
    drop(store);
    let Opened { store, .. } = open_from(&disk, small(), positions[9]);
    assert!(store.contains(&tree_of_group(1)).unwrap());
    assert_reads(&store, 0..100);
}

#[test]
fn damage_in_front_of_the_last_record_is_reported_and_nothing_is_thrown_away() {
    let (disk, positions) = volume();
    let store = open(&disk).store;
    let location = location_of(&store, 35);
    drop(store);
    let image = disk.crash(Keep::All);
    let path = pack::pack_path(location.pack);
    image.rot(&path, location.offset + 1, 1).unwrap();
    let Opened { store, records, findings } = open(&image);
    assert_eq!(records.len(), 10);
    assert!(findings.iter().any(|one| matches!(
        one,
        Finding::FramesDamaged { pack, start, .. }
            if (*pack, *start) == (location.pack, location.offset)
    )));
    assert!(findings.iter().any(|one| matches!(one, Finding::GroupDamaged { .. })));
    assert_eq!(commit(&store, b"on").unwrap().sequence, 11);
    drop(store);
    assert_eq!(file_len(&image, &path), file_len(&disk, &path));
    // A record in the middle: its group is lost, and said to be.
    let third = positions[2];
    let image = disk.crash(Keep::All);
    image.rot(&pack::pack_path(third.pack), third.offset - 20, 1).unwrap();
    let Opened { records, findings, .. } = open(&image);
    let sequences: Vec<u64> = records.iter().map(|record| record.position.sequence).collect();
    assert_eq!(sequences, [1, 2, 4, 5, 6, 7, 8, 9, 10]);
    assert!(findings.contains(&Finding::RecordMissing { sequence: 3 }), "{findings:?}");
    // A whole pack of the middle.
    let image = disk.crash(Keep::All);
    image.remove_file(&pack::pack_path(third.pack)).unwrap();
    let Opened { records, findings, .. } = open(&image);
    assert_eq!(records.last().unwrap().position.sequence, 10);
    assert!(findings.contains(&Finding::PackMissing { pack: third.pack }), "{findings:?}");
    assert!(findings.contains(&Finding::RecordMissing { sequence: 3 }));
}

#[test]
fn a_torn_group_behind_a_missing_record_is_damage_and_nothing_is_cut() {
    let (disk, positions) = volume();
    let (ninth, last) = (positions[8], positions[9]);
    let store = open(&disk).store;
    let location = location_of(&store, 95);
    drop(store);
    let torn = |image: &SimDisk| {
        image.rot(&pack::pack_path(location.pack), location.offset + 1, 1).unwrap();
    };
    // Alone, the last group may be torn by a power loss: it goes.
    let image = disk.crash(Keep::All);
    torn(&image);
    let Opened { records, findings, .. } = open(&image);
    assert_eq!(records.last().unwrap().position, ninth);
    assert!(findings.iter().any(|one| matches!(one, Finding::TailCut { .. })), "{findings:?}");
    // The record before it was durable: that one is missing only by damage.
    let image = disk.crash(Keep::All);
    torn(&image);
    image.rot(&pack::pack_path(ninth.pack), ninth.offset - 20, 1).unwrap();
    for from in [LogPosition::default(), positions[7]] {
        let Opened { records, findings, .. } = open_from(&image, small(), from);
        assert_eq!(records.last().unwrap().position, last);
        assert!(findings.contains(&Finding::RecordMissing { sequence: 9 }), "{findings:?}");
        assert!(findings.contains(&Finding::GroupDamaged { sequence: 10 }), "{findings:?}");
        let path = pack::pack_path(last.pack);
        assert_eq!(file_len(&image, &path), file_len(&disk, &path));
    }
}

#[test]
fn a_log_that_ends_before_what_is_asked_for_says_so() {
    let (disk, positions) = volume();
    let (eighth, last) = (positions[7], positions[9]);
    let image = disk.crash(Keep::All);
    let path = pack::pack_path(last.pack);
    image.open(&path, Access::Write).unwrap().set_len(last.offset - 64).unwrap();
    let Opened { store, findings, .. } = open_from(&image, small(), last);
    assert!(findings.contains(&Finding::RecordMissing { sequence: 10 }), "{findings:?}");
    let next = commit(&store, b"on").unwrap();
    assert_eq!(next.sequence, 11);
    assert!(last.pack < next.pack);
    assert_eq!(file_len(&image, &path), last.offset - 64, "nothing is cut or written over");
    drop(store);
    let Opened { records, .. } = open_from(&image, small(), last);
    assert_eq!(records.len(), 1);
    // All packs gone.
    let image = disk.crash(Keep::All);
    for number in 0..=last.pack {
        let _ = image.remove_file(&pack::pack_path(number));
    }
    let Opened { store, records, findings } = open_from(&image, small(), eighth);
    assert!(records.is_empty());
    assert!(findings.contains(&Finding::RecordMissing { sequence: 8 }));
    assert_eq!(commit(&store, b"on").unwrap().sequence, 9);
}

#[test]
fn a_damaged_chunk_is_never_handed_out_and_its_neighbours_are() {
    let (disk, positions) = volume();
    let options = Options { compression: Compression::None, ..small() };
    let store = open_from(&disk, options, positions[9]).store;
    for number in 200..216 {
        put(&store, number).unwrap();
    }
    let position = commit(&store, b"").unwrap();
    let location = location_of(&store, 203);
    let reader::Lookup::Found(_, header) = store.inner.locate(&address_of(203), true).unwrap()
    else {
        panic!("it is there")
    };
    drop(store);
    let start = header.entries[usize::from(location.slot)].start;
    let at = location.offset + header.head_bytes() + u64::from(start) + 3;
    disk.rot(&pack::pack_path(location.pack), at, 1).unwrap();
    let store = open_from(&disk, small(), position).store;
    let is_damaged = |result: Result<Bytes>| {
        matches!(result, Err(Error::Damaged { address, location: found })
            if address == address_of(203) && found == location)
    };
    assert!(is_damaged(store.data(&address_of(203))));
    assert!(is_damaged(store.data(&address_of(203))));
    let addresses: Vec<Address> = (200..216).map(address_of).collect();
    assert!(store.data_many(&addresses, &mut |_, _| {}).is_err());
    assert_reads(&store, (200..216).filter(|number| *number != 203));
    let findings = verify_findings(&store);
    assert!(findings.contains(&Finding::ChunkDamaged { address: address_of(203), location }));
    let (pack, offset) = (location.pack, location.offset);
    assert!(findings.contains(&Finding::PayloadDamaged { pack, offset }));
    assert_eq!(findings.len(), 2);
    // The same in a frame of trees.
    let address = tree_of_group(5);
    let reader::Lookup::Found(at, header) = store.inner.locate(&address, true).unwrap() else {
        panic!("it is there")
    };
    let side = at.offset + header.head_bytes() + 11 * 32;
    disk.rot(&pack::pack_path(at.pack), side, 1).unwrap();
    let store = open_from(&disk, small(), position).store;
    assert!(matches!(store.tree(&address), Err(Error::Damaged { .. })), "counts are no hash");
}

/// Damages chunk `number` where it lies.
fn rot_chunk(disk: &SimDisk, store: &Store, address: Address) -> Location {
    let Lookup::Found(at, header) = store.inner.locate(&address, true).unwrap() else {
        panic!("it is there")
    };
    let inside = u64::from(header.entries[usize::from(at.slot)].start) + 3;
    disk.rot(&pack::pack_path(at.pack), at.offset + header.head_bytes() + inside, 1).unwrap();
    at
}

/// What `verify` counts as healed, with its findings.
fn verified(store: &Store) -> (Vec<BadChunk>, Vec<Finding>) {
    let (mut healed, mut findings) = (Vec::new(), Vec::new());
    let mut each = |step| {
        match step {
            VerifyStep::Healed(bad) => healed.push(bad),
            VerifyStep::Found(finding) => findings.push(finding),
            VerifyStep::Progress { .. } => {}
        }
        ControlFlow::Continue(())
    };
    store.verify(0, false, &mut each).unwrap();
    (healed, findings)
}

#[test]
fn a_damaged_chunk_is_stored_anew_and_heals() {
    let disk = new_disk();
    let options = Options { compression: Compression::None, ..small() };
    let store = open_from(&disk, options.clone(), LogPosition::default()).store;
    (0..10).for_each(|number| assert!(put(&store, number).is_ok()));
    let (tree_address, tree) = tree_of(&(0..10).collect::<Vec<u64>>());
    store.put_tree(tree_address, tree.clone()).unwrap();
    commit(&store, b"").unwrap();
    // The damage is not in the last group, which would be cut off, and the index is not made anew,
    // which would leave out the tree.
    commit(&store, b"").unwrap();
    store.save_index().unwrap();
    let (chunk, tree_place) =
        (rot_chunk(&disk, &store, address_of(4)), rot_chunk(&disk, &store, tree_address));
    drop(store);
    let store = open_from(&disk, options.clone(), LogPosition::default()).store;
    // Nobody knows yet: it is offered, until somebody reads it.
    assert!(store.contains(&address_of(4)).unwrap());
    assert!(matches!(store.data(&address_of(4)), Err(Error::Damaged { .. })));
    assert!(matches!(store.tree(&tree_address), Err(Error::Damaged { .. })));
    let bad = |address, location| BadChunk { address, location };
    let both = vec![bad(address_of(4), chunk), bad(tree_address, tree_place)];
    assert_eq!(store.bad(), both);
    let changes: Vec<(BadChunk, bool)> = both.iter().map(|bad| (*bad, true)).collect();
    assert_eq!(store.bad_changes(9), changes);
    assert_eq!(store.bad_changes(9), []);
    assert!(!store.contains(&address_of(4)).unwrap() && !store.contains(&tree_address).unwrap());
    let (healed, findings) = verified(&store);
    assert_eq!((healed, findings.len()), (vec![], 4));
    // The same content comes along.
    put(&store, 4).unwrap();
    store.put_tree(tree_address, tree.clone()).unwrap();
    assert_reads(&store, 0..10);
    commit(&store, b"").unwrap();
    assert_reads(&store, 0..10);
    assert_eq!(*store.tree(&tree_address).unwrap(), tree);
    assert_eq!(verified(&store), (both.clone(), vec![]));
    let chunks = store.stats().chunks;
    put(&store, 4).unwrap();
    commit(&store, b"").unwrap();
    assert_eq!(store.stats().chunks, chunks, "it is stored once more, not each time");
    store.close().unwrap();
    drop(store);
    // Whether or not anybody kept the places.
    for kept in [both.clone(), vec![]] {
        let store = open_from(&disk, options.clone(), LogPosition::default()).store;
        store.load_bad(kept);
        assert_reads(&store, 0..10);
        assert_eq!(*store.tree(&tree_address).unwrap(), tree);
        assert_eq!(verified(&store), (both.clone(), vec![]));
        assert!(store.contains(&address_of(4)).unwrap());
        drop(store);
        runs(&disk).iter().for_each(|name| disk.remove_file(name).unwrap());
    }
}

#[test]
fn a_place_that_turns_out_right_is_offered_again() {
    let (disk, positions) = volume();
    let store = open_from(&disk, small(), positions[9]).store;
    let bad = BadChunk { address: address_of(7), location: location_of(&store, 7) };
    store.load_bad([bad]);
    assert!(!store.contains(&bad.address).unwrap());
    assert_reads(&store, [7]);
    assert!(store.contains(&bad.address).unwrap());
    assert_eq!(store.bad_changes(9), [(bad, false)]);
    // By a check as well.
    store.load_bad([bad]);
    assert_eq!(verify_findings(&store), []);
    assert_eq!(store.bad(), []);
}

#[test]
fn a_sector_that_cannot_be_read_is_damage_and_heals() {
    let disk = new_disk();
    let options = Options { compression: Compression::None, ..small() };
    let store = open_from(&disk, options, LogPosition::default()).store;
    (0..100).for_each(|number| assert!(put(&store, number).is_ok()));
    let position = commit(&store, b"").unwrap();
    let at = location_of(&store, 33);
    let Some(Lookup::Found(_, header)) = store.inner.locate(&address_of(33), true).ok() else {
        panic!("it is there")
    };
    let payload_at = at.offset + header.head_bytes();
    drop(store);
    let inside = u64::from(header.entries[usize::from(at.slot)].start);
    disk.break_sector(&pack::pack_path(at.pack), payload_at + inside).unwrap();
    let store = open_from(&disk, small(), position).store;
    assert!(matches!(store.data(&address_of(33)), Err(Error::Damaged { .. })));
    let (_, findings) = verified(&store);
    let payload = Finding::PayloadDamaged { pack: at.pack, offset: at.offset };
    assert!(findings.contains(&payload), "{findings:?}");
    let lost: Vec<u64> = (0..100).filter(|n| store.data(&address_of(*n)).is_err()).collect();
    assert!(lost.contains(&33) && lost.len() < header.entries.len(), "{lost:?}");
    lost.iter().for_each(|number| assert!(put(&store, *number).is_ok()));
    commit(&store, b"").unwrap();
    assert_reads(&store, 0..100);
    let (healed, findings) = verified(&store);
    assert_eq!((healed.len(), findings), (lost.len(), vec![]));
}

#[test]
fn the_footer_stands_in_for_damaged_headers_of_frames() {
    let (disk, positions) = volume();
    let first = positions[0].pack;
    assert!(first < positions[9].pack, "it is sealed");
    let store = open_from(&disk, small(), positions[9]).store;
    let frame = location_of(&store, 0);
    drop(store);
    assert_eq!(frame.pack, first);
    for damage in [1, 45] {
        let image = disk.crash(Keep::All);
        image.rot(&pack::pack_path(first), frame.offset + damage, 1).unwrap();
        let store = open_from(&image, small(), positions[9]).store;
        assert_reads(&store, 0..100);
        let findings = verify_findings(&store);
        let gap = |finding: &Finding| {
            matches!(finding, Finding::FramesDamaged { pack, start, .. }
                if (*pack, *start) == (first, frame.offset))
        };
        assert!(findings.iter().any(gap), "{findings:?}");
    }
}

#[test]
fn verify_names_damaged_headers_and_footers_and_can_be_stopped() {
    let (disk, positions) = volume();
    let first = positions[0].pack;
    let path = pack::pack_path(first);
    disk.rot(&path, 30, 1).unwrap();
    disk.rot(&path, file_len(&disk, &path) - 1, 1).unwrap();
    let store = open_from(&disk, small(), positions[9]).store;
    let findings = verify_findings(&store);
    assert!(findings.contains(&Finding::HeaderDamaged { pack: first }));
    assert!(findings.contains(&Finding::FooterDamaged { pack: first }));
    let mut steps = 0;
    let mut once = |_| {
        steps += 1;
        ControlFlow::Break(())
    };
    store.verify(0, false, &mut once).unwrap();
    assert_eq!(steps, 1);
}

#[test]
fn a_newer_pack_is_refused() {
    let (disk, positions) = volume();
    let last = positions[9];
    let life = frame::Life { volume_id: VOLUME, pack: last.pack };
    let mut header = pack::encode_header(life, pack::PackKind::Log);
    header[8] = 2;
    let crc = crc32c::crc32c(&header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    let file = disk.open(&pack::pack_path(last.pack), Access::Write).unwrap();
    file.write_all_at(&header, 0).unwrap();
    let opened = Store::open(shared(&disk), Profile::DEFAULT, VOLUME, small(), last);
    assert!(matches!(opened.map(|_| ()), Err(Error::Newer { version: 2, .. })));
}

#[test]
fn what_follows_from_the_rest_of_a_pack_is_written_again() {
    let (disk, positions) = volume();
    let first = positions[0].pack;
    let path = pack::pack_path(first);
    let store = open_from(&disk, small(), positions[9]).store;
    let frame = location_of(&store, 0);
    assert_eq!(store.mend().unwrap(), []);
    drop(store);
    let len = file_len(&disk, &path);
    let bytes = |disk: &SimDisk| {
        pack::read(&*disk.open(&path, Access::Read).unwrap(), 0, len as usize).unwrap()
    };
    let header = Mended::PackHeader { pack: first };
    let frame_header = Mended::FrameHeader { pack: first, offset: frame.offset };
    let footer = Mended::Footer { pack: first };
    for (places, expected) in [
        (vec![30], vec![header]),
        (vec![frame.offset + 1], vec![frame_header]),
        (vec![len - 1], vec![footer]),
        (vec![len - 40], vec![footer]),
        (vec![30, len - 1], vec![header, footer]),
        (vec![30, frame.offset + 45], vec![header, frame_header]),
        // Nobody has the header of that frame any more.
        (vec![frame.offset + 1, len - 1], vec![]),
    ] {
        let image = disk.crash(Keep::All);
        places.iter().for_each(|at| image.rot(&path, *at, 1).unwrap());
        let store = open_from(&image, small(), positions[9]).store;
        assert_eq!(store.mend().unwrap(), expected, "{places:?}");
        assert_eq!(bytes(&image) == bytes(&disk), !expected.is_empty(), "{places:?}");
        assert_eq!(verify_findings(&store).is_empty(), !expected.is_empty(), "{places:?}");
    }
    // A sector that cannot be read can be written.
    disk.break_sector(&path, frame.offset).unwrap();
    let store = open_from(&disk, small(), positions[9]).store;
    assert!(store.mend().is_ok());
}

#[test]
fn a_frame_with_as_many_chunks_as_one_can_have() {
    let disk = new_disk();
    let options = Options { pack_bytes_max: 1 << 20, ..small() };
    let store = open_from(&disk, options, LogPosition::default()).store;
    for number in 0..600_u32 {
        let payload = number.to_le_bytes();
        let address = Profile::DEFAULT.address(4, &payload);
        store.put_data(&[(address, &payload)]).unwrap();
    }
    commit(&store, b"").unwrap();
    assert_eq!(verify_findings(&store), []);
    let first = Profile::DEFAULT.address(4, &254_u32.to_le_bytes());
    let Lookup::Found(at, header) = store.inner.locate(&first, true).unwrap() else {
        panic!("it is there")
    };
    assert_eq!((header.entries.len(), at.slot), (255, 254));
    disk.rot(&pack::pack_path(at.pack), at.offset + header.head_bytes() + 1, 1).unwrap();
    assert!(!verify_findings(&store).is_empty());
}
