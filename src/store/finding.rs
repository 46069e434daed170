//! How findings of the store read: one line each.

use std::fmt;

use super::Finding;

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::TailCut { pack, offset, bytes } => {
                write!(
                    f,
                    "pack {pack:016x}: {bytes} bytes behind the last commit were cut off at {offset}"
                )
            }
            Finding::PackSetAside { pack } => {
                write!(f, "pack {pack:016x}: no commit names it, it was set aside")
            }
            Finding::FramesDamaged { pack, start, end } => {
                write!(f, "pack {pack:016x}: frames from {start} to {end} are damaged")
            }
            Finding::PayloadDamaged { pack, offset } => {
                write!(f, "pack {pack:016x}: the payload of the frame at {offset} is damaged")
            }
            Finding::ChunkDamaged { address, location } => {
                write!(f, "chunk {address} is damaged in {location}")
            }
            Finding::HeaderDamaged { pack } => write!(f, "pack {pack:016x}: its header is damaged"),
            Finding::FooterDamaged { pack } => {
                write!(f, "pack {pack:016x}: its footer is missing or damaged")
            }
            Finding::PackMissing { pack } => write!(f, "pack {pack:016x} is missing"),
            Finding::RecordMissing { sequence } => {
                write!(f, "commit record {sequence} is missing: what it changed is lost")
            }
            Finding::GroupDamaged { sequence } => {
                write!(f, "the frames of commit {sequence} are not those that were written")
            }
            Finding::IndexRebuilt => write!(f, "the index was built anew from the packs"),
            Finding::TreeLeftOut { address } => {
                write!(f, "tree chunk {address} lacks a chunk below it")
            }
        }
    }
}
