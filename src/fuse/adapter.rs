//! Requests of the kernel as calls of the volume.
//!
//! Owns nothing but the translation: each method makes one call and answers with its result. What
//! would have to wait is asked again on a worker ([`Adapter::ask`]).
//!
//! Before it is said where data lies in a file that somebody has open for writing, the kernel is
//! made to hand over what it holds of it: it does so by write requests, which the reading threads
//! and [`Workers`] must be free to serve. So that waiting has threads of its own.
//!
//! Absent on purpose, each answered with ENOSYS, after which the kernel stops asking: access (the
//! kernel judges the permission bits itself), poll. getlk and setlk never come, as locks are
//! not asked for.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    INodeNo, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::answer::{Answer, GENERATION, Result, answer_sized, remember_in, remembered};
use super::convert::{self, caller, ino};
use super::errno::errno;
use super::groups;
use super::ioctl::{self, Ioctl};
use super::kernel;
use super::workers::Workers;
use crate::meta::Ino;
use crate::volume::{
    Current, DirItem, Error, Make, SNAPSHOTS, Seek, SetAttr, Volume, Wait, is_acl,
};

/// Most bytes that one copy request takes. The reply has 32 bits; a multiple of 128 MiB lets the
/// next request begin where whole subtrees begin.
const COPY_BYTES_MAX: u64 = 31 << 27;

/// Entries of a directory that are looked up at a time.
const ENTRIES_AT_ONCE: usize = 32;

/// A mounted volume as the transport sees it.
pub struct Adapter {
    volume: Arc<Current>,
    /// Threads that ask the kernel for something and wait for it. Ends before `workers`, to which
    /// it hands on.
    askers: Workers,
    workers: Arc<Workers>,
    kernel: Arc<OnceLock<Notifier>>,
}

impl Adapter {
    /// Makes the adapter of `volume`; requests that wait share `workers`, and those that wait for
    /// the kernel `askers`.
    pub fn new(volume: Arc<Current>, workers: Workers, askers: Workers) -> Adapter {
        Adapter { volume, askers, workers: Arc::new(workers), kernel: Arc::default() }
    }

    /// Where the way to the kernel is to be put, once there is one.
    pub fn kernel(&self) -> Arc<OnceLock<Notifier>> {
        Arc::clone(&self.kernel)
    }

    /// Has the kernel hand over what it holds of a file, and asks the volume on a worker then.
    fn hand_over<T, R: Answer<T>>(
        &self,
        reply: R,
        node: Ino,
        operation: impl FnOnce(&Volume, Wait) -> Result<T> + Send + 'static,
    ) {
        let (volume, workers) = (Arc::clone(&self.volume), Arc::clone(&self.workers));
        let kernel = Arc::clone(&self.kernel);
        self.askers.run(move || {
            // From the first byte to the last. A refusal leaves the bytes with the kernel, as if
            // they were written later.
            let asked = kernel.get().map(|kernel| kernel.inval_inode(INodeNo(node.0), 0, 0));
            if let Some(Err(error)) = asked {
                tracing::debug!("the kernel did not hand over inode {}: {error}", node.0);
            }
            workers.run(move || reply.answer(operation(&volume, Wait::Yes)));
        });
    }

    /// Asks the volume on this thread, and on a worker if it would have to wait.
    fn ask<T, R: Answer<T>>(
        &self,
        reply: R,
        operation: impl Fn(&Volume, Wait) -> Result<T> + Send + 'static,
    ) {
        match operation(&self.volume, Wait::No) {
            Err(Error::WouldWait) => self.wait(reply, operation),
            result => reply.answer(result),
        }
    }

    /// Asks the volume on a worker, where it may wait.
    fn wait<T, R: Answer<T>>(
        &self,
        reply: R,
        operation: impl FnOnce(&Volume, Wait) -> Result<T> + Send + 'static,
    ) {
        let volume = Arc::clone(&self.volume);
        self.workers.run(move || reply.answer(operation(&volume, Wait::Yes)));
    }

    /// Returns up to [`ENTRIES_AT_ONCE`] entries of a directory.
    fn entries(&self, dir: Ino, from: u64) -> Result<Vec<DirItem>> {
        let mut items = Vec::with_capacity(ENTRIES_AT_ONCE);
        self.volume.readdir(dir, from, &mut |item| {
            let room = items.len() < ENTRIES_AT_ONCE;
            if room {
                items.push(item);
            }
            room
        })?;
        Ok(items)
    }

    /// Adds entries with their attributes until the reply is full or the directory ends.
    ///
    /// The names are looked up between two looks into the directory, never during one.
    fn fill(&self, dir: Ino, mut from: u64, reply: &mut ReplyDirectoryPlus) -> Result<()> {
        loop {
            let items = self.entries(dir, from)?;
            for item in &items {
                if !self.add(dir, item, reply)? {
                    return Ok(());
                }
                from = item.next;
            }
            if items.len() < ENTRIES_AT_ONCE {
                return Ok(());
            }
        }
    }

    /// Adds one entry; answers whether there was room.
    fn add(&self, dir: Ino, item: &DirItem, reply: &mut ReplyDirectoryPlus) -> Result<bool> {
        let name = OsStr::from_bytes(&item.name);
        // The kernel counts no reference for these two.
        let counted = item.name != b"." && item.name != b"..";
        let found = if counted {
            self.volume.lookup(dir, &item.name)
        } else {
            self.volume.getattr(item.ino)
        };
        let attr = match found {
            Ok(attr) => attr,
            // Removed since the entry was read: it is not there any more.
            Err(Error::NotFound | Error::Stale) => return Ok(true),
            Err(error) => return Err(error),
        };
        let ino = INodeNo(attr.ino.0);
        let (remember, about) = (remember_in(dir), convert::attr(&attr));
        let full = reply.add(ino, item.next, name, &remember, &about, GENERATION);
        if full && counted {
            self.volume.forget(attr.ino, 1);
        }
        Ok(!full)
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        kernel::configure(config)
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let remember = remember_in(ino(parent));
        match self.volume.lookup(ino(parent), name.as_bytes()) {
            Ok(attr) => reply.entry(&remember, &convert::attr(&attr), GENERATION),
            // So the kernel remembers that the name is not there.
            Err(Error::NotFound) => reply.entry(&remember, &convert::nothing(), GENERATION),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn forget(&self, _: &Request, node: INodeNo, count: u64) {
        self.volume.forget(ino(node), count);
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.answer(remembered(&self.volume, self.volume.getattr(ino(node))));
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (node, caller) = (ino(node), caller(request, 0));
        let (atime, mtime) = (atime.map(convert::set_time), mtime.map(convert::set_time));
        let ctime = ctime.map(convert::timestamp);
        let change = SetAttr { mode, uid, gid, size, atime, mtime, ctime };
        self.ask(reply, move |volume, wait| {
            remembered(volume, volume.setattr(node, &change, caller, wait))
        });
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        let target = self.volume.readlink(ino(node));
        self.volume.accessed(ino(node));
        reply.answer(target);
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (dir, name, caller) = (ino(parent), name.as_bytes().to_vec(), caller(request, umask));
        let make = Make { mode, rdev };
        self.ask(reply, move |volume, wait| volume.mknod(dir, &name, &make, caller, wait));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let (dir, name, caller) = (ino(parent), name.as_bytes().to_vec(), caller(request, umask));
        self.ask(reply, move |volume, wait| volume.mkdir(dir, &name, mode, caller, wait));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (dir, name) = (ino(parent), name.as_bytes().to_vec());
        self.ask(reply, move |volume, wait| volume.unlink(dir, &name, wait));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (dir, name) = (ino(parent), name.as_bytes().to_vec());
        self.ask(reply, move |volume, wait| volume.rmdir(dir, &name, wait));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (dir, name, caller) = (ino(parent), name.as_bytes().to_vec(), caller(request, 0));
        let target = target.as_os_str().as_bytes().to_vec();
        self.ask(reply, move |volume, wait| volume.symlink(dir, &name, &target, caller, wait));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (dir, name) = (ino(parent), name.as_bytes().to_vec());
        let (new_dir, new_name) = (ino(new_parent), new_name.as_bytes().to_vec());
        let flags = convert::rename_flags(flags, caller(request, 0));
        let Some(flags) = flags else { return reply.error(Errno::EINVAL) };
        self.ask(reply, move |volume, wait| {
            volume.rename(dir, &name, new_dir, &new_name, flags, wait)
        });
    }

    fn link(
        &self,
        _: &Request,
        node: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let (node, dir, name) = (ino(node), ino(new_parent), new_name.as_bytes().to_vec());
        self.ask(reply, move |volume, wait| volume.link(node, dir, &name, wait));
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (node, caller, access) = (ino(node), caller(request, 0), convert::is_access(flags.0));
        let (flags, kernel) = (convert::open_flags(flags.0), Arc::clone(&self.kernel));
        self.ask(reply, move |volume, wait| {
            volume.open_file(node, flags, caller, wait)?;
            if access {
                count_access(volume, &kernel, node);
            }
            Ok(())
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (dir, name, caller) = (ino(parent), name.as_bytes().to_vec(), caller(request, umask));
        let make = Make { mode: libc::S_IFREG | (mode & !libc::S_IFMT), rdev: 0 };
        // A new file has nothing to truncate, so that opening it has nothing to wait for.
        let flags = crate::volume::OpenFlags { truncate: false, ..convert::open_flags(flags) };
        self.ask(reply, move |volume, wait| {
            let attr = volume.mknod(dir, &name, &make, caller, wait)?;
            let opened = volume.open_file(attr.ino, flags, caller, Wait::Yes);
            opened.map(|()| attr).inspect_err(|_| volume.forget(attr.ino, 1))
        });
    }

    fn read(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let bytes = self.volume.read(ino(node), offset, size as usize);
        // After a read of its own the kernel asks for the time anew.
        if convert::is_access(flags.0) {
            self.volume.accessed(ino(node));
        }
        reply.answer(bytes);
    }

    fn write(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let (node, count) = (ino(node), data.len() as u32);
        match self.volume.write(node, offset, data, kill, Wait::No) {
            // The bytes are copied only here: the buffer belongs to the reading thread.
            Err(Error::WouldWait) => {
                let (data, kernel) = (data.to_vec(), Arc::clone(&self.kernel));
                self.wait(reply, move |volume, wait| {
                    volume.write(node, offset, &data, kill, wait)?;
                    tell_of_write(volume, &kernel, node);
                    Ok(count)
                });
            }
            result => {
                tell_of_write(&self.volume, &self.kernel, node);
                reply.answer(result.map(|()| count));
            }
        }
    }

    fn flush(&self, _: &Request, node: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.answer(self.volume.flush(ino(node)));
    }

    fn release(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        flags: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.volume.release(ino(node), convert::open_flags(flags.0).write);
        reply.ok();
    }

    fn fsync(&self, _: &Request, node: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let node = ino(node);
        self.ask(reply, move |volume, wait| volume.fsync(node, wait));
    }

    fn opendir(&self, _: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if convert::is_access(flags.0) {
            count_access(&self.volume, &self.kernel, ino(node));
        }
        let flags = match ino(node) {
            // Snapshots come and go without the kernel's knowledge.
            SNAPSHOTS => FopenFlags::empty(),
            _ => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
        };
        reply.opened(FileHandle(0), flags);
    }

    fn readdir(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.volume.readdir(ino(node), offset, &mut |item| {
            let kind = convert::file_type(item.mode_type);
            !reply.add(INodeNo(item.ino.0), item.next, kind, OsStr::from_bytes(&item.name))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        match self.fill(ino(node), offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn fsyncdir(&self, _: &Request, node: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let node = ino(node);
        self.ask(reply, move |volume, wait| volume.fsync(node, wait));
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.answer(self.volume.statfs());
    }

    fn setxattr(
        &self,
        request: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let (node, name, value) = (ino(node), name.as_bytes().to_vec(), value.to_vec());
        let mode = convert::xattr_mode(flags);
        if !is_acl(&name) {
            let set = move |volume: &Volume, wait| volume.setxattr(node, &name, &value, mode, wait);
            return self.ask(reply, set);
        }
        let attr = match self.volume.getattr(node) {
            Ok(attr) => attr,
            Err(error) => return reply.error(errno(&error)),
        };
        let outside = !groups::is_member(request, attr.gid);
        self.ask(reply, move |volume, wait| volume.set_acl(node, &name, &value, outside, wait));
    }

    fn getxattr(&self, _: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        answer_sized(reply, size, self.volume.getxattr(ino(node), name.as_bytes()));
    }

    fn listxattr(&self, request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.volume.listxattr(ino(node));
        let shown = |name: &Vec<u8>| convert::is_shown(request.uid(), name);
        let joined = names.map(|names| {
            names
                .into_iter()
                .filter(shown)
                .flat_map(|name| name.into_iter().chain([0]))
                .collect::<Vec<u8>>()
        });
        answer_sized(reply, size, joined);
    }

    fn removexattr(&self, _: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (node, name) = (ino(node), name.as_bytes().to_vec());
        self.ask(reply, move |volume, wait| volume.removexattr(node, &name, wait));
    }

    fn copy_file_range(
        &self,
        request: &Request,
        from: INodeNo,
        _: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _: FileHandle,
        to_offset: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = ((ino(from), from_offset), (ino(to), to_offset));
        let (len, caller) = (len.min(COPY_BYTES_MAX), caller(request, 0));
        self.ask(reply, move |volume, wait| {
            let copied = volume.copy_range(from, to, len, caller, wait)?;
            Ok(u32::try_from(copied).unwrap_or(u32::MAX))
        });
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let wanted = if whence == libc::SEEK_DATA { Seek::Data } else { Seek::Hole };
        let (node, offset) = (ino(node), offset.cast_unsigned());
        let seek = move |volume: &Volume, wait| volume.seek(node, offset, wanted, wait);
        if self.volume.has_writers(node) {
            self.hand_over(reply, node, seek);
        } else {
            self.ask(reply, seek);
        }
    }

    fn ioctl(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        command: u32,
        input: &[u8],
        room: u32,
        reply: ReplyIoctl,
    ) {
        let node = ino(node);
        let Some(wanted) = ioctl::parse(command, input) else { return reply.error(Errno::ENOTTY) };
        self.ask(reply, move |volume, wait| match wanted {
            Ioctl::GetFlags => Ok(ioctl::flags(volume.flags(node)?, room as usize)),
            Ioctl::GetAttributes => Ok(ioctl::attributes(volume.flags(node)?)),
            Ioctl::Set(flags) => volume.set_flags(node, flags, wait).map(|()| Vec::new()),
            Ioctl::Unsupported => Err(Error::Unsupported),
        });
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        request: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (node, caller) = (ino(node), caller(request, 0));
        let Some(how) = convert::allocate(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        self.ask(reply, move |volume, wait| {
            volume.allocate(node, offset, length, how, caller, wait)
        });
    }
}

/// Moves the time of access of what is opened for reading: what the kernel reads from its own
/// memory it does not tell, so that the open counts.
fn count_access(volume: &Volume, kernel: &OnceLock<Notifier>, node: Ino) {
    if volume.accessed(node) {
        forget_attributes(kernel, node);
    }
}

/// Has the kernel ask again for the attributes of a file that is being written.
fn tell_of_write(volume: &Volume, kernel: &OnceLock<Notifier>, node: Ino) {
    if volume.is_news(node) {
        forget_attributes(kernel, node);
    }
}

/// Has the kernel forget the attributes that it remembers. Nothing of that waits for the mount.
fn forget_attributes(kernel: &OnceLock<Notifier>, node: Ino) {
    // A negative offset means the attributes alone.
    if let Some(kernel) = kernel.get()
        && let Err(error) = kernel.inval_inode(INodeNo(node.0), -1, 0)
    {
        tracing::debug!("the kernel remembers old attributes of inode {}: {error}", node.0);
    }
}
