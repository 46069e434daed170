//! Replaying the log without opening it: the same choice, the same records, and nothing changes.

use super::*;
use crate::sys::sim::Keep;

/// What a store says of its log behind `from`: the end, the records, and which are missing.
type Said = (LogPosition, Vec<Record>, Vec<u64>);

fn missing(findings: &[Finding]) -> Vec<u64> {
    let sequences = findings.iter().filter_map(|finding| match finding {
        Finding::RecordMissing { sequence } => Some(*sequence),
        _ => None,
    });
    sequences.collect()
}

fn replayed(disk: &SimDisk, from: LogPosition) -> Said {
    let mut records = Vec::new();
    let (end, findings) = replay::<Error>(&shared(disk), VOLUME, from, &mut |record| {
        records.push(record.clone());
        Ok(())
    })
    .unwrap();
    (end, records, missing(&findings))
}

fn opened(disk: &SimDisk, from: LogPosition) -> Said {
    let Opened { store, records, findings } = open_from(disk, small(), from);
    let end = records.last().map_or(from, |record| record.position);
    assert!(end.sequence <= store.stats().sequence);
    // Opening also misses the record that it starts from, should that be gone.
    let missing = missing(&findings).into_iter().filter(|number| from.sequence < *number);
    (end, records, missing.collect())
}

/// The end that both mean: a last record without readable entries is none of the records.
fn assert_same(disk: &SimDisk, from: LogPosition, label: &str) {
    let (end, records, lost) = replayed(disk, from);
    let (opened_end, opened_records, opened_lost) = opened(&disk.crash(Keep::All), from);
    assert_eq!(records, opened_records, "{label}");
    assert_eq!(lost, opened_lost, "{label}");
    assert!(opened_end <= end, "{label}");
    assert!(opened_end == end || lost.contains(&end.sequence), "{label}");
    assert_eq!(disk.sync_count(), 0, "{label}: nothing was written");
    // What opening takes for the last is there still when it starts from there.
    let (again, none, _) = opened(&disk.crash(Keep::All), end);
    assert_eq!((again, none.len()), (end, 0), "{label}");
}

fn volume() -> (SimDisk, Vec<LogPosition>) {
    let disk = new_disk();
    let store = open(&disk).store;
    let mut positions = Vec::new();
    for group in 0..14 {
        for number in group * 7..group * 7 + 7 {
            put(&store, number).unwrap();
        }
        positions.push(commit(&store, &[group as u8; 200]).unwrap());
    }
    // A group that was never committed.
    put(&store, 500).unwrap();
    store.flush().map(drop).unwrap();
    drop(store);
    (disk.crash(Keep::All), positions)
}

#[test]
fn the_choice_is_that_of_opening_whatever_is_damaged() {
    let (disk, positions) = volume();
    let starts = [LogPosition::default(), positions[4], positions[12], positions[13]];
    for from in starts {
        assert_same(&disk, from, "sound");
    }
    let random = crate::sys::sim::SimRng::new(crate::testing::seed() + 5);
    let last = positions[13].pack;
    for turn in 0..200 {
        let image = disk.crash(Keep::All);
        let mut label = format!("turn {turn}:");
        for _ in 0..1 + turn % 3 {
            // Often in the last pack, where the choice is made.
            let pack = if random.next_u64().is_multiple_of(2) {
                last
            } else {
                1 + random.next_u64() % last
            };
            let path = pack::pack_path(pack);
            let Ok(file) = image.open(&path, Access::Write) else { continue };
            let at = random.next_u64() % file.len().unwrap();
            label += &format!(" pack {pack}, byte {at};");
            if turn % 10 == 9 {
                file.set_len(at).unwrap();
            } else {
                image.rot(&path, at, 1 << (random.next_u64() % 8)).unwrap();
            }
        }
        for from in starts {
            assert_same(&image, from, &label);
        }
    }
}
