//! Operations on a directory, done the same way on the mount and on a plain directory.
//!
//! Owns [`Step`] and what each of them tells: a value that must be equal on both sides. Times that
//! a step sets lie before the year 2001, so that "now" is told apart without a clock. Left out of
//! the comparison, as filesystems differ: sizes and access times of directories, block counts,
//! access times after reads.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Handles that stay open across steps.
pub const SLOTS: usize = 4;
/// Times from here on are "now".
const NOW_SECONDS: i64 = 1_000_000_000;

/// One operation. Paths are relative to the directory.
#[derive(Debug, Clone)]
pub enum Step {
    Create { path: PathBuf, mode: u32, exclusive: bool },
    Write { path: PathBuf, offset: u64, seed: u64, len: usize },
    Append { path: PathBuf, seed: u64, len: usize },
    Read { path: PathBuf, offset: u64, len: usize },
    Truncate { path: PathBuf, size: u64 },
    Empty { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf, replace: bool },
    Link { from: PathBuf, to: PathBuf },
    Symlink { target: PathBuf, path: PathBuf },
    Readlink { path: PathBuf },
    Unlink { path: PathBuf },
    Mkdir { path: PathBuf, mode: u32 },
    Rmdir { path: PathBuf },
    Mkfifo { path: PathBuf, mode: u32 },
    Chmod { path: PathBuf, mode: u32 },
    Chown { path: PathBuf, uid: u32, gid: u32 },
    Times { path: PathBuf, seconds: i64, nanos: i64 },
    SetXattr { path: PathBuf, name: &'static str, seed: u64, len: usize, flags: i32 },
    GetXattr { path: PathBuf, name: &'static str },
    ListXattr { path: PathBuf },
    RemoveXattr { path: PathBuf, name: &'static str },
    List { path: PathBuf },
    Stat { path: PathBuf, follow: bool },
    MapRead { path: PathBuf },
    MapWrite { path: PathBuf, offset: u64, seed: u64, len: usize },
    Copy { from: PathBuf, to: PathBuf, offset: i64, len: usize },
    Fsync { path: PathBuf },
    Hold { slot: usize, path: PathBuf },
    HeldWrite { slot: usize, offset: u64, seed: u64, len: usize },
    HeldRead { slot: usize, offset: u64, len: usize },
    HeldTruncate { slot: usize, size: u64 },
    HeldStat { slot: usize },
    HeldSync { slot: usize },
    LetGo { slot: usize },
}

/// What a step tells: the errno number of its failure, or something to compare.
pub type Told = Result<String, i32>;

/// A directory and the handles that are open in it.
pub struct Directory {
    root: PathBuf,
    held: [Option<File>; SLOTS],
}

impl Directory {
    /// Steps will work in `root`.
    pub fn new(root: PathBuf) -> Directory {
        Directory { root, held: Default::default() }
    }

    /// Closes all handles.
    pub fn let_go(&mut self) {
        self.held = Default::default();
    }

    /// Does one step.
    pub fn apply(&mut self, step: &Step) -> Told {
        self.names(step)
            .or_else(|| self.attributes(step))
            .or_else(|| self.bytes(step))
            .or_else(|| self.handles(step))
            .expect("each step belongs to one of the families")
            .map_err(|error| error.raw_os_error().unwrap_or(-1))
    }

    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path)
    }

    fn names(&self, step: &Step) -> Option<io::Result<String>> {
        Some(match step {
            Step::Rename { from, to, replace } => {
                let flags = if *replace { 0 } else { libc::RENAME_NOREPLACE };
                rename(&self.at(from), &self.at(to), flags)
            }
            Step::Link { from, to } => fs::hard_link(self.at(from), self.at(to)).map(nothing),
            Step::Symlink { target, path } => {
                std::os::unix::fs::symlink(target, self.at(path)).map(nothing)
            }
            Step::Readlink { path } => fs::read_link(self.at(path)).map(|to| format!("{to:?}")),
            Step::Unlink { path } => fs::remove_file(self.at(path)).map(nothing),
            Step::Mkdir { path, mode } => {
                // SAFETY: the path ends with a zero and lives until the call returns.
                checked(with(&self.at(path), |path| unsafe { libc::mkdir(path, *mode) }))
            }
            Step::Rmdir { path } => fs::remove_dir(self.at(path)).map(nothing),
            Step::Mkfifo { path, mode } => {
                // SAFETY: the path ends with a zero and lives until the call returns.
                checked(with(&self.at(path), |path| unsafe { libc::mkfifo(path, *mode) }))
            }
            Step::List { path } => list(&self.at(path)),
            _ => return None,
        })
    }

    fn attributes(&self, step: &Step) -> Option<io::Result<String>> {
        Some(match step {
            Step::Chmod { path, mode } => {
                // SAFETY: the path ends with a zero and lives until the call returns.
                checked(with(&self.at(path), |path| unsafe { libc::chmod(path, *mode) }))
            }
            Step::Chown { path, uid, gid } => {
                std::os::unix::fs::lchown(self.at(path), Some(*uid), Some(*gid)).map(nothing)
            }
            Step::Times { path, seconds, nanos } => times(&self.at(path), *seconds, *nanos),
            Step::Stat { path, follow: true } => fs::metadata(self.at(path)).map(|m| stat(&m)),
            Step::Stat { path, follow: false } => {
                fs::symlink_metadata(self.at(path)).map(|m| stat(&m))
            }
            Step::SetXattr { path, name, seed, len, flags } => {
                set_xattr(&self.at(path), name, &pattern(*seed, *len), *flags).map(nothing)
            }
            Step::GetXattr { path, name } => {
                get_xattr(&self.at(path), OsStr::new(name)).map(|value| digest(&value))
            }
            Step::ListXattr { path } => {
                list_xattrs(&self.at(path)).map(|names| format!("{names:?}"))
            }
            Step::RemoveXattr { path, name } => {
                let name = CString::new(*name).unwrap();
                // SAFETY: the path, and all else, ends and lives as the call wants it.
                checked(with(&self.at(path), |path| unsafe {
                    libc::lremovexattr(path, name.as_ptr())
                }))
            }
            _ => return None,
        })
    }

    fn bytes(&self, step: &Step) -> Option<io::Result<String>> {
        let writing = |path: &Path| opening().write(true).open(self.at(path));
        Some(match step {
            Step::Create { path, mode, exclusive } => opening()
                .write(true)
                .create(!exclusive)
                .create_new(*exclusive)
                .mode(*mode)
                .open(self.at(path))
                .map(nothing),
            Step::Write { path, offset, seed, len } => writing(path)
                .and_then(|file| file.write_all_at(&pattern(*seed, *len), *offset))
                .map(nothing),
            Step::Append { path, seed, len } => {
                use std::io::Write;
                opening()
                    .append(true)
                    .open(self.at(path))
                    .and_then(|mut file| file.write_all(&pattern(*seed, *len)))
                    .map(nothing)
            }
            Step::Read { path, offset, len } => {
                opening().read(true).open(self.at(path)).and_then(|file| read(&file, *offset, *len))
            }
            Step::Truncate { path, size } => {
                // SAFETY: the path ends with a zero and lives until the call returns.
                checked(with(&self.at(path), |path| unsafe { libc::truncate(path, *size as i64) }))
            }
            Step::Empty { path } => {
                opening().write(true).truncate(true).open(self.at(path)).map(nothing)
            }
            Step::MapRead { path } => {
                opening().read(true).open(self.at(path)).and_then(|file| map_read(&file))
            }
            Step::MapWrite { path, offset, seed, len } => opening()
                .read(true)
                .write(true)
                .open(self.at(path))
                .and_then(|file| map_write(&file, *offset as usize, &pattern(*seed, *len))),
            Step::Copy { from, to, offset, len } => opening()
                .read(true)
                .open(self.at(from))
                .and_then(|from| copy(&from, &writing(to)?, *offset, *len)),
            Step::Fsync { path } => opening()
                .read(true)
                .open(self.at(path))
                .and_then(|file| file.sync_all())
                .map(nothing),
            _ => return None,
        })
    }

    fn handles(&mut self, step: &Step) -> Option<io::Result<String>> {
        if let Step::Hold { slot, path } = step {
            let opened = opening().read(true).write(true).open(self.at(path));
            return Some(opened.map(|file| self.held[*slot] = Some(file)).map(nothing));
        }
        if let Step::LetGo { slot } = step {
            self.held[*slot] = None;
            return Some(Ok(String::new()));
        }
        let (Step::HeldWrite { slot, .. }
        | Step::HeldRead { slot, .. }
        | Step::HeldTruncate { slot, .. }
        | Step::HeldStat { slot }
        | Step::HeldSync { slot }) = step
        else {
            return None;
        };
        let Some(file) = &self.held[*slot] else { return Some(Ok("not held".to_owned())) };
        Some(match step {
            Step::HeldWrite { offset, seed, len, .. } => {
                file.write_all_at(&pattern(*seed, *len), *offset).map(nothing)
            }
            Step::HeldRead { offset, len, .. } => read(file, *offset, *len),
            Step::HeldTruncate { size, .. } => file.set_len(*size).map(nothing),
            Step::HeldStat { .. } => file.metadata().map(|found| stat(&found)),
            _ => file.sync_all().map(nothing),
        })
    }
}

/// Options that never wait: a pipe in the way is then an error, the same on both sides.
fn opening() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(libc::O_NONBLOCK);
    options
}

/// Everything below `root`: a line for each path, with what it holds.
pub fn tree(root: &Path, xattrs: bool) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut first_names = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        let mut entries: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap()).collect();
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let path = entry.path();
            let short = path.strip_prefix(root).unwrap().to_owned();
            let about = fs::symlink_metadata(&path).unwrap();
            let mut line = stat(&about);
            if xattrs && !about.is_symlink() {
                for name in list_xattrs(&path).unwrap() {
                    line += &format!(" {name:?}={}", digest(&get_xattr(&path, &name).unwrap()));
                }
            }
            if about.is_dir() {
                waiting.push(path);
            } else if about.is_file() {
                line += &format!(" {}", digest(&fs::read(&path).unwrap()));
            } else if about.is_symlink() {
                line += &format!(" {:?}", fs::read_link(&path).unwrap());
            }
            if !about.is_dir() {
                first_names.entry(about.ino()).or_insert(Vec::new()).push(short.clone());
            }
            found.insert(short, line);
        }
    }
    // Which names are one file.
    for mut names in first_names.into_values() {
        names.sort();
        let first = names[0].clone();
        for name in names {
            *found.get_mut(&name).unwrap() += &format!(" of {first:?}");
        }
    }
    found
}

/// Whether extended attributes of users can be set on files in `dir`.
pub fn takes_xattrs(dir: &Path) -> bool {
    let file = dir.join("probe");
    fs::write(&file, "").unwrap();
    let taken = set_xattr(&file, "user.probe", b"1", 0).is_ok();
    fs::remove_file(&file).unwrap();
    taken
}

/// Sets an extended attribute.
pub fn set_xattr(path: &Path, name: &str, value: &[u8], flags: i32) -> io::Result<()> {
    let name = CString::new(name).unwrap();
    // SAFETY: the path, and all else, ends and lives as the call wants it.
    checked(with(path, |path| unsafe {
        libc::lsetxattr(path, name.as_ptr(), value.as_ptr().cast(), value.len(), flags)
    }))
    .map(|_| ())
}

/// Returns the value of an extended attribute.
pub fn get_xattr(path: &Path, name: &OsStr) -> io::Result<Vec<u8>> {
    let name = CString::new(name.as_bytes()).unwrap();
    sized(|buffer, room| {
        // SAFETY: the path, and all else, ends and lives as the call wants it.
        with(path, |path| unsafe {
            libc::lgetxattr(path, name.as_ptr(), buffer.cast(), room) as i32
        })
    })
}

/// Returns the names of the attributes of users, sorted.
pub fn list_xattrs(path: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let joined = sized(|buffer, room| {
        // SAFETY: the path, and all else, ends and lives as the call wants it.
        with(path, |path| unsafe { libc::llistxattr(path, buffer.cast(), room) as i32 })
    })?;
    let mut names: Vec<_> = joined
        .split(|&byte| byte == 0)
        .filter(|name| name.starts_with(b"user."))
        .map(|name| std::ffi::OsString::from_vec(name.to_vec()))
        .collect();
    names.sort();
    Ok(names)
}

fn sized(call: impl Fn(*mut u8, usize) -> i32) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 64 << 10];
    let count = call(buffer.as_mut_ptr(), buffer.len());
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    buffer.truncate(count as usize);
    Ok(buffer)
}

/// Renames with the flags of renameat2(2).
pub fn rename(from: &Path, to: &Path, flags: u32) -> io::Result<String> {
    let to = CString::new(to.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path, and all else, ends and lives as the call wants it.
    checked(with(from, |from| unsafe {
        libc::renameat2(libc::AT_FDCWD, from, libc::AT_FDCWD, to.as_ptr(), flags)
    }))
}

/// Sets both times, and tells them as they stand then.
pub fn times(path: &Path, seconds: i64, nanos: i64) -> io::Result<String> {
    let time = libc::timespec { tv_sec: seconds, tv_nsec: nanos };
    let both = [time, time];
    // SAFETY: the path, and all else, ends and lives as the call wants it.
    checked(with(path, |path| unsafe {
        libc::utimensat(libc::AT_FDCWD, path, both.as_ptr(), libc::AT_SYMLINK_NOFOLLOW)
    }))?;
    let found = fs::symlink_metadata(path)?;
    Ok(format!("{}.{} {}.{}", found.atime(), found.atime_nsec(), found.mtime(), found.mtime_nsec()))
}

/// Copies with copy_file_range(2) until `len` or the end; tells how much that was.
fn copy(from: &File, to: &File, offset: i64, len: usize) -> io::Result<String> {
    let (mut here, mut there, mut done) = (offset, offset, 0);
    while done < len {
        // SAFETY: both offsets live until the call returns.
        let count = unsafe {
            libc::copy_file_range(
                from.as_raw_fd(),
                &mut here,
                to.as_raw_fd(),
                &mut there,
                len - done,
                0,
            )
        };
        match count {
            0 => break,
            1.. => done += count as usize,
            _ => return Err(io::Error::last_os_error()),
        }
    }
    Ok(done.to_string())
}

fn read(file: &File, offset: u64, len: usize) -> io::Result<String> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        match file.read_at(&mut bytes[done..], offset + done as u64)? {
            0 => break,
            count => done += count,
        }
    }
    Ok(digest(&bytes[..done]))
}

/// Runs `work` on a shared mapping of the whole file; of an empty file there is none.
pub fn map<R>(file: &File, protection: i32, work: impl FnOnce(&mut [u8]) -> R) -> io::Result<R> {
    let len = file.metadata()?.len() as usize;
    if len == 0 {
        return Ok(work(&mut []));
    }
    // SAFETY: a fresh mapping of the file's length, which nobody truncates meanwhile, and which is
    // used by this function only; `work` writes to it only where the caller asked for PROT_WRITE.
    unsafe {
        let address = libc::mmap(
            std::ptr::null_mut(),
            len,
            protection,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let result = work(std::slice::from_raw_parts_mut(address.cast(), len));
        let synced = if protection & libc::PROT_WRITE != 0 {
            libc::msync(address, len, libc::MS_SYNC)
        } else {
            0
        };
        libc::munmap(address, len);
        if synced != 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }
}

fn map_read(file: &File) -> io::Result<String> {
    if !file.metadata()?.is_file() {
        return Ok("no file".to_owned());
    }
    map(file, libc::PROT_READ, |bytes| digest(bytes))
}

fn map_write(file: &File, offset: usize, bytes: &[u8]) -> io::Result<String> {
    if !file.metadata()?.is_file() {
        return Ok("no file".to_owned());
    }
    map(file, libc::PROT_READ | libc::PROT_WRITE, |mapped| {
        let end = (offset + bytes.len()).min(mapped.len());
        if offset < end {
            mapped[offset..end].copy_from_slice(&bytes[..end - offset]);
        }
        String::new()
    })
}

fn list(path: &Path) -> io::Result<String> {
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        names.push(format!("{:?} {:?}", entry.file_name(), entry.file_type()?));
    }
    names.sort();
    Ok(names.join(", "))
}

fn stat(found: &fs::Metadata) -> String {
    let size = if found.is_dir() { 0 } else { found.len() };
    let mtime = if found.file_type().is_fifo() {
        // What is written to a pipe moves its time only where the kernel keeps it itself.
        "-".to_owned()
    } else if found.mtime() < NOW_SECONDS {
        format!("{}.{:09}", found.mtime(), found.mtime_nsec())
    } else {
        "now".to_owned()
    };
    let kind = found.file_type();
    format!(
        "{:o} size {size} nlink {} owner {}:{} mtime {mtime} fifo {}",
        found.mode(),
        found.nlink(),
        found.uid(),
        found.gid(),
        kind.is_fifo()
    )
}

/// Bytes made of `seed`: of three kinds, so that there are holes and equal chunks as well.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    match seed % 4 {
        0 => vec![0; len],
        1 => (0..len).map(|i| (i / 4096) as u8 ^ seed as u8).collect(),
        _ => super::harness::Numbers(seed).bytes(len),
    }
}

/// Length and a short sum of bytes: enough to tell differences, short enough to print.
fn digest(bytes: &[u8]) -> String {
    let sum = bytes.chunks(8).fold(0xcbf2_9ce4_8422_2325_u64, |sum, piece| {
        let mut word = [0; 8];
        word[..piece.len()].copy_from_slice(piece);
        (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29)
    });
    format!("{}:{sum:016x}", bytes.len())
}

fn nothing<T>(_: T) -> String {
    String::new()
}

fn with(path: &Path, call: impl FnOnce(*const libc::c_char) -> i32) -> i32 {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    call(path.as_ptr())
}

fn checked(result: i32) -> io::Result<String> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(String::new()) }
}
