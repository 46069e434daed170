//! Flags of inodes, as chattr(1) sets them, and what they forbid.
//!
//! The kernel knows nothing of them on a FUSE mount: it passes the question on, and whoever changes
//! an inode asks here. Who may set them it judges itself (CAP_LINUX_IMMUTABLE, the owner).
//!
//! A handle that was open for writing before a flag was set goes on as it was, as on any other
//! filesystem of Linux.

use super::{Error, MODE_DIR, MODE_FILE, MODE_TYPE, SetAttr, SetTime, Volume, Wait};
use crate::meta::{Ino, Inode, Key};

/// Nothing about the inode changes, and it neither gets nor loses a name (`FS_IMMUTABLE_FL`).
pub const FLAG_IMMUTABLE: u32 = 0x10;
/// A file only grows; a directory only gets new names (`FS_APPEND_FL`).
pub const FLAG_APPEND: u32 = 0x20;
/// dump(8) passes it over (`FS_NODUMP_FL`).
pub const FLAG_NO_DUMP: u32 = 0x40;
/// The time of access stays (`FS_NOATIME_FL`).
pub const FLAG_NO_ATIME: u32 = 0x80;

/// All flags that there are here.
const FLAGS: u32 = FLAG_IMMUTABLE | FLAG_APPEND | FLAG_NO_DUMP | FLAG_NO_ATIME;
/// Those that new inodes get from their directory, as on ext4.
const INHERITED: u32 = FLAG_NO_DUMP | FLAG_NO_ATIME;

impl Volume {
    /// Returns the flags of a file or directory.
    pub fn flags(&self, ino: Ino) -> Result<u32, Error> {
        self.check_open()?;
        if let Some(flags) = self.old_flags(ino) {
            return flags;
        }
        Ok(self.inode(ino)?.flags)
    }

    /// Sets the flags of a file or directory.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a flag that means nothing here.
    pub fn set_flags(&self, ino: Ino, flags: u32, wait: Wait) -> Result<(), Error> {
        if flags & !FLAGS != 0 {
            return Err(Error::Unsupported);
        }
        self.begin_change(wait)?;
        let change = |inode: &Inode| {
            let inode = Inode { flags, ctime: self.clock.now(), ..inode.clone() };
            self.meta.enter().put(&Key::Inode(ino), inode.encode());
        };
        match self.inode(ino)?.mode & MODE_TYPE {
            MODE_DIR => {
                let _namespace = self.namespace.write();
                change(&self.inode(ino)?);
                Ok(())
            }
            MODE_FILE => {
                let node = self.nodes.get(ino);
                let changed = {
                    let _state = node.state.lock();
                    self.inode(ino).map(|inode| change(&inode))
                };
                self.nodes.put(node);
                changed
            }
            _ => Err(Error::Unsupported),
        }
    }
}

/// The flags that a new inode gets in `dir`.
pub(super) fn inherited(dir: &Inode) -> u32 {
    dir.flags & INHERITED
}

/// Whether `dir` takes a new name.
pub(super) fn check_addable(dir: &Inode) -> Result<(), Error> {
    allow(dir.flags & FLAG_IMMUTABLE == 0)
}

/// Whether `dir` may lose a name of `inode`.
pub(super) fn check_removable(dir: &Inode, inode: &Inode) -> Result<(), Error> {
    allow((dir.flags | inode.flags) & (FLAG_IMMUTABLE | FLAG_APPEND) == 0)
}

/// Whether `inode` may get another name, or another attribute.
pub(super) fn check_attributes(inode: &Inode) -> Result<(), Error> {
    allow(inode.flags & (FLAG_IMMUTABLE | FLAG_APPEND) == 0)
}

/// Whether bytes that are there may change or go. `grows` says that none of them does.
pub(super) fn check_content(inode: &Inode, grows: bool) -> Result<(), Error> {
    allow(inode.flags & FLAG_IMMUTABLE == 0 && (grows || inode.flags & FLAG_APPEND == 0))
}

/// Whether attributes may change so. With `writers`, the kernel may be handing over the times of
/// what was written before the flag was set.
pub(super) fn check_setattr(inode: &Inode, change: &SetAttr, writers: bool) -> Result<(), Error> {
    let only_times = change.mode.is_none() && change.uid.is_none() && change.gid.is_none();
    let handed_over = writers && only_times && change.atime.is_none();
    // Whoever may append may also say that he did. With write-back the kernel fills in its own
    // time of change, so that only the time of access tells a touch.
    let touched = only_times && change.atime == Some(SetTime::Now);
    allow(handed_over || inode.flags & FLAG_IMMUTABLE == 0)?;
    allow(handed_over || touched || inode.flags & FLAG_APPEND == 0)
}

fn allow(allowed: bool) -> Result<(), Error> {
    if allowed { Ok(()) } else { Err(Error::NotPermitted) }
}
