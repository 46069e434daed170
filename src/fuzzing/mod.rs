//! Hostile input: what is read from a disk, a socket or a command line, as any bytes.
//!
//! Owns the table of targets. `fuzz/` runs each under libFuzzer (`mount-scripts/fuzz`); the tests
//! here run each over the files of `fuzz/corpus` and over changed valid inputs. Compiled only for
//! these two.

mod whole;

use crate::{cli, meta, store, volume};

/// A target: takes any bytes, and panics when an answer is wrong.
type Target = fn(&[u8]);

/// All targets by name.
const TARGETS: [(&str, Target); 13] = [
    ("access_list", volume::fuzzing::access_list),
    ("control", cli::fuzzing::control),
    ("frame", store::fuzzing::frame),
    ("index_run", store::fuzzing::index_run),
    ("meta_key", meta::fuzzing::key),
    ("meta_record", meta::fuzzing::entries),
    ("meta_value", meta::fuzzing::value),
    ("mount_options", cli::fuzzing::mount_options),
    ("pack", store::fuzzing::whole_pack),
    ("pack_header", store::fuzzing::pack_header),
    ("pages", meta::fuzzing::pages),
    ("record_head", store::fuzzing::record_head),
    ("superblock", volume::fuzzing::superblock),
];

/// The targets that take far longer than the others.
const SLOW_TARGETS: [(&str, Target); 1] = [("whole_volume", whole::volume)];

/// Runs the target of this name.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().chain(&SLOW_TARGETS).find(|(known, _)| *known == name);
    assert!(target.is_some(), "there is no target {name}");
    if let Some((_, target)) = target {
        target(bytes);
    }
}

/// Valid inputs, by the name of their target.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let parts = [store::fuzzing::seeds(), meta::fuzzing::seeds(), volume::fuzzing::seeds()];
    let mut seeds: Vec<_> = parts.into_iter().flatten().collect();
    seeds.extend(cli::fuzzing::seeds());
    seeds.extend(whole::seeds().into_iter().map(|edits| ("whole_volume", edits)));
    seeds
}

#[cfg(test)]
mod tests;
