//! What is mounted where, as `/proc/self/mountinfo` tells.
//!
//! Owns the parser, octal escapes included. Asking here instead of stat(2) never touches a mount,
//! so it works for dead ones and inside the daemon that serves it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The type that a mount of ours has.
pub const FILESYSTEM_TYPE: &str = "fuse.pyramidfs";
/// The type that it has when that was asked for.
pub const PLAIN_TYPE: &str = "fuse";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Major and minor device number, as `MAJOR:MINOR`.
    pub device: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Flags of the mount, with commas: `rw,nosuid,relatime`.
    pub options: String,
    /// The type, with the subtype behind a dot.
    pub filesystem: String,
    /// What is mounted: for ours the volume, in the words of whoever mounted it.
    pub source: OsString,
    /// Options of the filesystem, whichever of its mounts is looked at.
    pub super_options: String,
}

impl MountEntry {
    /// Whether its type says that it is a pyramidfs.
    pub fn is_ours(&self) -> bool {
        self.filesystem == FILESYSTEM_TYPE
    }

    /// Whether it takes no changes: this mount of it, or the filesystem as a whole.
    pub fn is_read_only(&self) -> bool {
        has_word(&self.options, "ro") || has_word(&self.super_options, "ro")
    }

    /// The user who serves it, if it is a FUSE.
    pub fn user(&self) -> Option<u32> {
        let mut words = self.super_options.split(',');
        words.find_map(|word| word.strip_prefix("user_id="))?.parse().ok()
    }
}

/// Whether `word` stands in a list with commas.
pub fn has_word(list: &str, word: &str) -> bool {
    list.split(',').any(|other| other == word)
}

/// Reads all mounts, in the kernel's order: of several on one mountpoint the last is on top.
pub fn read() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// Returns what is mounted exactly at `mountpoint`, an absolute path without links.
pub fn find(mountpoint: &Path) -> io::Result<Option<MountEntry>> {
    Ok(read()?.into_iter().rfind(|entry| entry.mountpoint == mountpoint))
}

/// Returns a mount of the filesystem with that device number, wherever it is mounted.
pub fn find_device(device: &str) -> io::Result<Option<MountEntry>> {
    Ok(read()?.into_iter().rfind(|entry| entry.device == device))
}

/// Parses the text of mountinfo. Lines of an unknown form are left out.
pub fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    // 36 35 98:0 /root /mountpoint options [optional fields] - type source super-options
    let mut fields = line.split(|byte| *byte == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let mountpoint = unescape(fields.nth(1)?);
    let options = String::from_utf8_lossy(fields.next()?).into_owned();
    fields.find(|field| *field == b"-")?;
    let filesystem = String::from_utf8(unescape(fields.next()?)).ok()?;
    let source = unescape(fields.next()?);
    let super_options = String::from_utf8_lossy(fields.next().unwrap_or_default()).into_owned();
    Some(MountEntry {
        device,
        mountpoint: PathBuf::from(OsString::from_vec(mountpoint)),
        options,
        filesystem,
        source: OsStr::from_bytes(&source).to_owned(),
        super_options,
    })
}

/// Undoes `\040` and the like: a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        match (*first, octal(tail)) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            (byte, _) => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

fn octal(digits: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(digits.get(..3)?).ok()?;
    u8::from_str_radix(digits, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_ours() {
        let text = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
            91 27 0:47 / /mnt/a\\040b rw,nosuid shared:5 master:2 - fuse.pyramidfs \
            /v\\134o\\011l rw,user_id=1000,allow_other\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert!(!mounts[0].is_ours());
        assert_eq!(
            mounts[1],
            MountEntry {
                device: "0:47".to_owned(),
                mountpoint: PathBuf::from("/mnt/a b"),
                options: "rw,nosuid".to_owned(),
                filesystem: "fuse.pyramidfs".to_owned(),
                source: OsString::from("/v\\o\tl"),
                super_options: "rw,user_id=1000,allow_other".to_owned(),
            }
        );
        assert!(mounts[1].is_ours() && !mounts[1].is_read_only());
        assert_eq!((mounts[0].user(), mounts[1].user()), (None, Some(1000)));
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape(b"a\\012b"), b"a\nb");
        assert_eq!(unescape(b"\\04"), b"\\04");
        assert_eq!(unescape(b"\\9zz\\"), b"\\9zz\\");
        assert_eq!(unescape(b"\\303\\244"), "\u{e4}".as_bytes());
    }

    #[test]
    fn lines_of_an_unknown_form_are_left_out() {
        assert!(parse(b"\n1 2 3\nnonsense - x\n").is_empty());
    }

    #[test]
    fn this_machine() {
        assert!(read().unwrap().iter().any(|entry| entry.mountpoint == Path::new("/proc")));
    }
}
