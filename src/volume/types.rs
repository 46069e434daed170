//! What goes in and out of the operations of a volume.
//!
//! Owns the plain values: attributes, requests, options. No behaviour beyond small conversions.

use crate::chunk::Profile;
use crate::meta::Ino;
use crate::store::Compression;
use crate::sys::Timestamp;

/// Longest name of a directory entry, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest target of a symbolic link, in bytes.
pub const TARGET_BYTES_MAX: usize = 4095;
/// Longest name of an extended attribute, in bytes.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Longest value of an extended attribute, in bytes.
pub const XATTR_VALUE_BYTES_MAX: usize = 65536;
/// Most names that an inode can have.
pub const LINKS_MAX: u32 = 65_000;
/// Largest file, in bytes: 8 EiB - 1.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// The bits of a mode that tell the type of an inode.
pub const MODE_TYPE: u32 = 0o170_000;
/// Type bits of a regular file.
pub const MODE_FILE: u32 = 0o100_000;
/// Type bits of a directory.
pub const MODE_DIR: u32 = 0o040_000;
/// Type bits of a symbolic link.
pub const MODE_SYMLINK: u32 = 0o120_000;
/// Type bits of a character device, and no permissions: with device number 0, a whiteout.
pub const MODE_WHITEOUT: u32 = 0o020_000;
/// Set-user-id bit.
pub const MODE_SET_UID: u32 = 0o4000;
/// Set-group-id bit.
pub const MODE_SET_GID: u32 = 0o2000;

/// Whether an operation may wait.
///
/// With [`Wait::No`] an operation that would have to wait changes nothing and answers
/// [`Error::WouldWait`](super::Error::WouldWait); it is then asked again from a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Answer at once.
    No,
    /// Wait as long as it takes.
    Yes,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permission bits that new inodes do not get, unless their directory has a default ACL.
    pub umask: u32,
}

/// Attributes of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Inode number, never used again after the inode is gone.
    pub ino: Ino,
    /// Type and permission bits.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of device nodes, as the kernel encodes it.
    pub rdev: u32,
    /// Size in bytes.
    pub size: u64,
    /// Bytes that are not holes, dirty bytes included.
    pub filled: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
}

impl Attr {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode & MODE_TYPE == MODE_DIR
    }
    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.mode & MODE_TYPE == MODE_FILE
    }
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The volume's present time.
    Now,
    /// That time.
    At(Timestamp),
}

/// Changes of attributes; what is `None` stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits (type bits are ignored).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size: cuts or extends with a hole.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the content.
    pub mtime: Option<SetTime>,
    /// Last change of the inode; otherwise the present time.
    pub ctime: Option<Timestamp>,
}

/// A new inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Make {
    /// Type and permission bits; the caller's umask is taken off here.
    pub mode: u32,
    /// Device number for device nodes, as the kernel encodes it.
    pub rdev: u32,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenFlags {
    /// For writing.
    pub write: bool,
    /// All that is written goes to the end.
    pub append: bool,
    /// Cut to no bytes.
    pub truncate: bool,
}

/// How a name is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RenameFlags {
    /// Fail when the new name exists.
    pub no_replace: bool,
    /// Let both names change places.
    pub exchange: bool,
    /// Leave a device node with number 0 in the old place, owned by that user.
    pub whiteout: Option<Caller>,
}

/// What happens to a range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocate {
    /// Make sure that there is room, and extend the file unless its size is kept.
    Reserve {
        /// Leave the size as it is.
        keep_size: bool,
    },
    /// Make a hole within the file's size.
    Punch,
    /// Make zeros, and extend the file unless its size is kept.
    Zero {
        /// Leave the size as it is.
        keep_size: bool,
    },
}

/// When reading moves an inode's time of access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Atime {
    /// Never.
    Never,
    /// When it lies before the last change, or a day back: `relatime`, as the kernel does it.
    Relative,
    /// Always.
    Strict,
}

/// What is looked for in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// Bytes that are no hole.
    Data,
    /// A hole.
    Hole,
}

/// How an extended attribute is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// Make or replace.
    Any,
    /// Fail when it exists.
    Create,
    /// Fail when it does not exist.
    Replace,
}

/// An entry that `readdir` hands out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirItem {
    /// The inode.
    pub ino: Ino,
    /// Type bits of its mode.
    pub mode_type: u32,
    /// Where `readdir` goes on behind this entry.
    pub next: u64,
    /// The name.
    pub name: Vec<u8>,
}

/// What `statfs` tells, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// Size of the filesystem below the volume, or the quota if that is less.
    pub total_bytes: u64,
    /// Free.
    pub free_bytes: u64,
    /// Free for ordinary users.
    pub available_bytes: u64,
    /// Inodes in use.
    pub inodes: u64,
}

/// Figures about a volume.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Status {
    /// Volume id as text.
    pub uuid: String,
    /// Format version.
    pub format: u32,
    /// Children of a full tree chunk.
    pub branches: u32,
    /// Hash that names chunks.
    pub hash: String,
    /// Compression of new frames.
    pub compression: String,
    /// Whether a daemon has it mounted.
    pub mounted: bool,
    /// Whether it takes no more changes since an I/O failure.
    pub poisoned: bool,
    /// Inodes: files, directories and all others.
    pub files: u64,
    /// Sum of file sizes without holes.
    pub logical_bytes: u64,
    /// Distinct chunks, before compression.
    pub unique_bytes: u64,
    /// Number of distinct chunks, data and tree.
    pub chunks: u64,
    /// All that the volume needs on disk: packs, checkpoint, index.
    pub stored_bytes: u64,
    /// Of these: packs.
    pub pack_bytes: u64,
    /// Of these: the checkpoint of the metadata.
    pub metadata_bytes: u64,
    /// Of these: the index.
    pub index_bytes: u64,
    /// What `du` says of the volume's directory.
    pub physical_bytes: u64,
    /// Of these: room that is kept for deletions and pending commits when all else is full.
    pub reserve_bytes: u64,
    /// What the volume may store at most.
    pub quota_bytes: Option<u64>,
    /// Room for more: on the filesystem below and within the quota.
    pub available_bytes: u64,
    /// Estimate of bytes in packs that nothing needs any more.
    pub garbage_bytes: Option<u64>,
    /// Sequence number of the last commit.
    pub commits: u64,
    /// Bytes that are written but not yet stored.
    pub dirty_bytes: u64,
    /// Bytes that were copied by sharing chunks since the volume was opened.
    pub shared_copy_bytes: u64,
    /// Requests since then to copy that could not share: the kernel copied those by itself.
    pub unshared_copies: u64,
}

/// What is fixed when a volume is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreateOptions {
    /// Shape and hash of the pyramids.
    pub profile: Profile,
    /// Compression of data frames.
    pub compression: Compression,
    /// Copies of each tree chunk, 1 or 2.
    pub tree_copies: u32,
    /// Owner and group of the root directory.
    pub owner: (u32, u32),
}

impl Default for CreateOptions {
    fn default() -> Self {
        CreateOptions {
            profile: Profile::DEFAULT,
            compression: Compression::Lz4,
            tree_copies: 1,
            owner: (0, 0),
        }
    }
}

/// How a volume is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenOptions {
    /// Refuse all changes. The caller hands in a disk that keeps recovery in memory.
    pub read_only: bool,
    /// Threads that flush and commit by themselves. Without them all happens on the caller's
    /// thread, in one fixed order.
    pub background: bool,
    /// Memory for frames, bytes.
    pub cache_bytes: u64,
    /// Memory for the index, bytes.
    pub index_memory_bytes: u64,
    /// Most bytes that are written but not yet stored.
    pub dirty_bytes_max: u64,
    /// Longest time that a change waits for its commit, milliseconds.
    pub commit_interval_ms: u64,
    /// Whether whoever changes the content of files says himself when that was, by `setattr`, as a
    /// kernel does that gathers writes: bytes reach the volume later than they were written. What
    /// the volume put there instead would stay where two writes fall into one tick of the kernel.
    pub times_by_kernel: bool,
    /// When reading moves the time of access.
    pub atime: Atime,
    /// Whether that goes for directories too.
    pub dir_atime: bool,
    /// Size at which a pack is sealed, bytes.
    pub pack_bytes_max: u64,
    /// For repair: changes are taken although commit records are missing, and what has no name is
    /// not removed.
    pub repairing: bool,
    /// Bytes that the volume may store at most.
    pub quota_bytes: Option<u64>,
    /// Whether collections begin by themselves.
    pub collects: bool,
    /// Commit records between two images of the metadata, bytes at least.
    pub image_bytes_min: u64,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            read_only: false,
            background: true,
            cache_bytes: 64 << 20,
            index_memory_bytes: 96 << 20,
            dirty_bytes_max: 48 << 20,
            commit_interval_ms: 5_000,
            times_by_kernel: false,
            atime: Atime::Relative,
            dir_atime: true,
            pack_bytes_max: 64 << 20,
            repairing: false,
            quota_bytes: None,
            collects: true,
            image_bytes_min: 8 << 20,
        }
    }
}
