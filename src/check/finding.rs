//! What a check can find.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::store;

/// Something out of order in a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// In the packs or the index.
    Store(store::Finding),
    /// An entry of the metadata cannot be read.
    Entry {
        /// The key's bytes.
        key: Vec<u8>,
        /// What is wrong.
        why: String,
    },
    /// An orphan that is no inode.
    OrphanWithoutInode {
        /// Its number.
        ino: u64,
    },
    /// A name does not stand where its hash says, so it is listed but never found.
    NameMisplaced {
        /// The directory.
        dir: u64,
        /// The name.
        name: String,
    },
    /// A name of an inode that is not there, or of another type.
    NameLeadsNowhere {
        /// The directory.
        dir: u64,
        /// The name.
        name: String,
        /// What it should lead to.
        ino: u64,
    },
    /// A name in something that is no directory.
    NameInNoDirectory {
        /// The number of the directory that should be there.
        dir: u64,
    },
    /// A wrong link count, or an inode that is wrongly an orphan or none.
    LinkCount {
        /// The inode.
        ino: u64,
        /// What was counted.
        counted: u32,
        /// What its entry says.
        recorded: u32,
    },
    /// A directory whose name does not stand in its parent alone.
    DirectoryParent {
        /// The directory.
        ino: u64,
        /// What it calls its parent.
        parent: u64,
    },
    /// A directory from which no way leads to the root.
    DirectoryUnreachable {
        /// The directory.
        ino: u64,
    },
    /// Extended attributes of an inode that is not there.
    XattrWithoutInode {
        /// Its number.
        ino: u64,
    },
    /// Content of an inode that is no file.
    ContentWithoutFile {
        /// Its number.
        ino: u64,
    },
    /// The size of a file is not that of its content.
    Size {
        /// The file.
        ino: u64,
        /// What its entry says, bytes.
        recorded: u64,
        /// What its content has, bytes.
        content: u64,
    },
    /// A chunk of a file is not there.
    ChunkMissing {
        /// The file.
        ino: u64,
        /// The chunk.
        address: String,
    },
    /// A chunk of a file is damaged where it is stored.
    ChunkDamaged {
        /// The file.
        ino: u64,
        /// The chunk.
        address: String,
    },
    /// The tree of a file is damaged.
    Tree {
        /// The file.
        ino: u64,
        /// What is wrong.
        why: String,
    },
    /// An old version without its finder, or a finder without its version.
    VersionAlone {
        /// The key that should be there.
        key: Vec<u8>,
    },
    /// A counter of the volume is wrong.
    Counter {
        /// Which.
        what: &'static str,
        /// What it says.
        recorded: u64,
        /// What was counted.
        counted: u64,
    },
}

impl Finding {
    /// What opening found and is no ordinary trace of a crash.
    pub(super) fn at_opening(finding: &store::Finding) -> Option<Finding> {
        match finding {
            // The tail behind the last commit was never promised to anybody, and the index follows
            // from the packs.
            store::Finding::TailCut { .. }
            | store::Finding::PackSetAside { .. }
            | store::Finding::IndexRebuilt => None,
            other => Some(Finding::Store(other.clone())),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Store(finding) => write!(f, "packs: {finding}"),
            Finding::Entry { key, why } => {
                write!(f, "metadata: the entry {key:02x?} cannot be read: {why}")
            }
            Finding::OrphanWithoutInode { ino } => write!(f, "orphan {ino} is no inode"),
            Finding::NameMisplaced { dir, name } => {
                write!(f, "name {name:?} in directory {dir} is not where its hash says")
            }
            Finding::NameLeadsNowhere { dir, name, ino } => {
                write!(
                    f,
                    "name {name:?} in directory {dir} leads to inode {ino}, which is not there or of another type"
                )
            }
            Finding::NameInNoDirectory { dir } => {
                write!(f, "a name stands in inode {dir}, which is no directory")
            }
            Finding::LinkCount { ino, counted, recorded } => {
                write!(f, "inode {ino} has {counted} links and records {recorded}")
            }
            Finding::DirectoryParent { ino, parent } => {
                write!(f, "directory {ino} does not have its one name in its parent {parent}")
            }
            Finding::DirectoryUnreachable { ino } => {
                write!(f, "directory {ino} cannot be reached from the root")
            }
            Finding::XattrWithoutInode { ino } => {
                write!(f, "extended attributes of inode {ino}, which is not there")
            }
            Finding::ContentWithoutFile { ino } => {
                write!(f, "content of inode {ino}, which is no file")
            }
            Finding::Size { ino, recorded, content } => {
                write!(f, "inode {ino} records {recorded} bytes and has {content}")
            }
            Finding::ChunkMissing { ino, address } => {
                write!(f, "inode {ino} needs chunk {address}, which is not there")
            }
            Finding::ChunkDamaged { ino, address } => {
                write!(f, "inode {ino} needs chunk {address}, which is damaged")
            }
            Finding::Tree { ino, why } => write!(f, "the tree of inode {ino} is damaged: {why}"),
            Finding::VersionAlone { key } => {
                write!(f, "metadata: the entry {key:02x?} of an old version is not there")
            }
            Finding::Counter { what, recorded, counted } => {
                write!(f, "the counter of {what} says {recorded}, and {counted} were counted")
            }
        }
    }
}

/// As its line: the fields of a finding are no interface.
impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
