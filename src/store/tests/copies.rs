//! Second copies of tree chunks: made for each sealed pack, and read where the first is damaged.

use super::pack::PackKind;
use super::*;
use crate::sys::sim::{Keep, Moment};

const GROUPS: u64 = 10;

fn twice() -> Options {
    Options { tree_copies: 2, ..small() }
}

fn open_twice(disk: &SimDisk, from: LogPosition) -> Opened {
    open_from(disk, twice(), from)
}

fn numbers_of(group: u64) -> Vec<u64> {
    (group * 10..group * 10 + 10).collect()
}

fn put_group(store: &Store, group: u64) -> Result<LogPosition> {
    for number in numbers_of(group) {
        put(store, number)?;
    }
    let (address, tree) = tree_of(&numbers_of(group));
    store.put_tree(address, tree)?;
    commit(store, &[group as u8])
}

fn volume(options: Options) -> (SimDisk, LogPosition) {
    let disk = new_disk();
    let store = open_from(&disk, options, LogPosition::default()).store;
    let mut last = LogPosition::default();
    for group in 0..GROUPS {
        last = put_group(&store, group).unwrap();
    }
    store.close().unwrap();
    (disk, last)
}

/// The aux packs, each with its source.
fn aux_packs(disk: &SimDisk) -> Vec<(u64, u64)> {
    let numbers = open::list(disk).unwrap().numbers;
    let header = |number| {
        let life = frame::Life { volume_id: VOLUME, pack: number };
        open::open_pack(disk, life).unwrap().header().unwrap()
    };
    let aux = numbers.into_iter().filter_map(|number| match header(number) {
        pack::PackHeader::Good(PackKind::Aux { source }) => Some((number, source)),
        _ => None,
    });
    aux.collect()
}

/// The location of the tree of a group, and its frame's header.
fn tree_at(store: &Store, group: u64) -> (Location, Arc<frame::Header>) {
    match store.inner.locate(&tree_of(&numbers_of(group)).0, true).unwrap() {
        reader::Lookup::Found(at, header) => (at, header),
        _ => panic!("it is there"),
    }
}

fn tree_is_read(store: &Store, group: u64) -> bool {
    let (address, tree) = tree_of(&numbers_of(group));
    match store.tree(&address) {
        Ok(found) => {
            assert_eq!(*found, tree);
            true
        }
        Err(Error::Damaged { .. } | Error::Missing { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn each_sealed_pack_with_trees_has_one_copy_of_them() {
    let (disk, last) = volume(twice());
    let aux = aux_packs(&disk);
    assert!(3 < aux.len());
    assert!(aux.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1));
    assert!(aux.iter().all(|(_, source)| *source < last.pack), "the open pack waits");
    let Opened { store, findings, .. } = open_twice(&disk, last);
    assert_eq!(findings, []);
    assert_eq!(verify_findings(&store), []);
    for group in 0..GROUPS {
        let (address, tree) = tree_of(&numbers_of(group));
        let is_sealed = tree_at(&store, group).0.pack < last.pack;
        let copy = store.second_copy(&address).unwrap();
        assert_eq!(copy, is_sealed.then_some(tree));
    }
    // Nothing is left to do, and nothing is done twice.
    store.copy_trees().unwrap();
    assert!(!store.wants_copies());
    store.close().unwrap();
    assert_eq!(aux_packs(&disk), aux);
}

#[test]
fn with_one_copy_nothing_is_written() {
    let (disk, last) = volume(small());
    assert_eq!(aux_packs(&disk), []);
    let store = open_from(&disk, small(), last).store;
    assert!(!store.wants_copies());
    assert_eq!(store.second_copy(&tree_of(&numbers_of(0)).0).unwrap(), None);
    drop(store);
    // What was sealed before a restart gets its copies later.
    let store = open_twice(&disk, last).store;
    assert!(store.wants_copies());
    store.copy_trees().unwrap();
    assert!(!store.wants_copies());
    let sources = aux_packs(&disk);
    assert!(3 < sources.len());
    // And what is sealed then goes on from there.
    for group in GROUPS..GROUPS + 3 {
        put_group(&store, group).unwrap();
    }
    assert!(store.wants_copies());
    store.copy_trees().unwrap();
    assert!(sources.len() < aux_packs(&disk).len());
    assert_eq!(aux_packs(&disk)[..sources.len()], sources);
    assert_eq!(verify_findings(&store), []);
}

#[test]
fn copies_take_little() {
    let disk = new_disk();
    let store = open_twice(&disk, LogPosition::default()).store;
    for group in 0..20 {
        let numbers: Vec<u64> = (group * 127..group * 127 + 127).collect();
        for number in &numbers {
            put(&store, *number).unwrap();
        }
        let (address, tree) = tree_of(&numbers);
        store.put_tree(address, tree).unwrap();
        commit(&store, b"").unwrap();
    }
    let before = store.stats().stored_bytes;
    store.copy_trees().unwrap();
    let more = store.stats().stored_bytes - before;
    assert!(0 < more && more * 40 < before, "{more} of {before} bytes");
}

#[test]
fn a_damaged_tree_is_read_from_its_copy() {
    let (disk, last) = volume(twice());
    let store = open_twice(&disk, last).store;
    let (at, header) = tree_at(&store, 2);
    drop(store);
    let path = pack::pack_path(at.pack);
    // The header, the list, the payload; the footer repeats the first two.
    for offset in [1, 45, header.head_bytes() + 5] {
        for rebuilt in [false, true] {
            let image = disk.crash(Keep::All);
            image.rot(&path, at.offset + offset, 1).unwrap();
            if rebuilt {
                for run in image.read_dir(run::INDEX_DIR).unwrap() {
                    image.remove_file(&format!("{}/{}", run::INDEX_DIR, run.name)).unwrap();
                }
            }
            let store = open_twice(&image, last).store;
            assert!(tree_is_read(&store, 2), "byte {offset}, rebuilt {rebuilt}");
            let findings = verify_findings(&store);
            assert!(!findings.is_empty(), "it is a finding all the same");
            drop(store);
            // With the copy damaged as well it is gone, and never wrong.
            let (aux, _) =
                *aux_packs(&image).iter().find(|(_, source)| *source == at.pack).unwrap();
            let life = frame::Life { volume_id: VOLUME, pack: aux };
            let file = open::open_pack(&image, life).unwrap();
            for found in file.footer().unwrap().unwrap() {
                let payload = found.offset + found.header.head_bytes();
                image.rot(&pack::pack_path(aux), payload + 7, 1).unwrap();
            }
            let store = open_twice(&image, last).store;
            let from_footer = offset < header.head_bytes();
            assert_eq!(tree_is_read(&store, 2), from_footer, "byte {offset}, rebuilt {rebuilt}");
        }
    }
}

#[test]
fn the_trees_of_a_lost_pack_are_read_from_their_copies() {
    let (disk, last) = volume(twice());
    let store = open_twice(&disk, last).store;
    let (at, _) = tree_at(&store, 2);
    // A tree over it, in a later pack.
    let (above, over) = tree_over(vec![tree_of(&numbers_of(2)).0], vec![9]);
    store.put_tree(above, over.clone()).unwrap();
    let last = commit(&store, b"").unwrap();
    store.close().unwrap();
    for rebuilt in [false, true] {
        let image = disk.crash(Keep::All);
        image.remove_file(&pack::pack_path(at.pack)).unwrap();
        if rebuilt {
            for run in image.read_dir(run::INDEX_DIR).unwrap() {
                image.remove_file(&format!("{}/{}", run::INDEX_DIR, run.name)).unwrap();
            }
        }
        let store = open_twice(&image, last).store;
        assert!(tree_is_read(&store, 2), "rebuilt {rebuilt}");
        assert_eq!(*store.tree(&above).unwrap(), over, "rebuilt {rebuilt}");
    }
}

#[test]
fn a_power_loss_while_copying_leaves_what_can_be_gone_on_with() {
    let (disk, last) = volume(small());
    let done = {
        let image = disk.crash(Keep::All);
        open_twice(&image, last).store.copy_trees().unwrap();
        aux_packs(&image).into_iter().map(|(_, source)| source).collect::<Vec<u64>>()
    };
    let store = open_twice(&disk, last).store;
    let images = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&images);
    disk.set_hook(Some(Box::new(move |disk: &SimDisk, event| {
        let seed = event.number * 2 + u64::from(event.moment == Moment::After);
        let seed = seed + crate::testing::seed() * 1000;
        for kept in [Keep::Nothing, Keep::All, Keep::Random(seed), Keep::Random(!seed)] {
            keep.lock().push(disk.crash(kept));
        }
    })));
    store.copy_trees().unwrap();
    disk.set_hook(None);
    let images = std::mem::take(&mut *images.lock());
    assert!(40 < images.len());
    for image in images {
        let Opened { store, findings, .. } = open_twice(&image, last);
        assert_eq!(findings, []);
        store.copy_trees().unwrap();
        let sources: Vec<u64> = aux_packs(&image).into_iter().map(|(_, source)| source).collect();
        assert_eq!(sources, done, "each source has one copy");
        assert_eq!(verify_findings(&store), []);
        let (at, header) = tree_at(&store, 3);
        drop(store);
        let payload = at.offset + header.head_bytes();
        image.rot(&pack::pack_path(at.pack), payload + 3, 1).unwrap();
        assert!(tree_is_read(&open_twice(&image, last).store, 3));
    }
}

#[test]
fn copying_that_fails_is_no_harm_and_goes_on() {
    let (disk, last) = volume(small());
    for errno in [libc::EIO, libc::ENOSPC] {
        for call in 1..60 {
            let image = disk.crash(Keep::All);
            let store = open_twice(&image, last).store;
            image.fail_call(call, errno, crate::sys::sim::CallKind::Any);
            let _ = store.copy_trees();
            image.clear_failures();
            put_group(&store, 20).unwrap();
            store.copy_trees().unwrap();
            assert_eq!(verify_findings(&store), []);
            assert!(3 < aux_packs(&image).len());
        }
    }
}

#[test]
fn trees_are_written_again_from_their_copies_and_copies_from_their_trees() {
    let (disk, last) = volume(twice());
    let store = open_twice(&disk, last).store;
    assert_eq!(store.mend().unwrap(), []);
    let (at, header) = tree_at(&store, 0);
    let (aux, _) = aux_packs(&disk).into_iter().find(|(_, source)| *source == at.pack).unwrap();
    drop(store);
    let contents = |disk: &SimDisk, pack: u64| {
        let file = disk.open(&pack::pack_path(pack), Access::Read).unwrap();
        let len = file.len().unwrap() as usize;
        pack::read(&*file, 0, len).unwrap()
    };
    let payload_at = at.offset + header.head_bytes() + 5;
    // The first frame of the copies.
    let copy_at = pack::PACK_HEADER_BYTES + header.head_bytes() + 5;
    for (pack, offset) in [(at.pack, payload_at), (aux, copy_at)] {
        let image = disk.crash(Keep::All);
        image.rot(&pack::pack_path(pack), offset, 1).unwrap();
        let store = open_twice(&image, last).store;
        let findings = verify_findings(&store);
        let damaged = |one: &Finding| match one {
            Finding::PayloadDamaged { pack: found, .. } => *found == pack,
            _ => false,
        };
        assert!(findings.iter().any(damaged), "{findings:?}");
        let mended = store.mend().unwrap();
        let is_it = |one: &Mended| matches!(one, Mended::TreeFrame { pack: at, .. } if *at == pack);
        assert!(mended.len() == 1 && mended.iter().all(is_it), "{mended:?}");
        assert!(contents(&image, pack) == contents(&disk, pack));
        assert_eq!(verify_findings(&store), []);
        assert_eq!(store.bad(), []);
        assert!(tree_is_read(&store, 0));
    }
    // Both are damaged: what nobody has stays as it is.
    disk.rot(&pack::pack_path(at.pack), payload_at, 1).unwrap();
    disk.rot(&pack::pack_path(aux), copy_at, 1).unwrap();
    let store = open_twice(&disk, last).store;
    assert_eq!(store.mend().unwrap(), []);
}
