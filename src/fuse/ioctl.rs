//! The questions about an inode's flags that chattr(1), lsattr(1) and the like ask by ioctl(2), in
//! both forms of the kernel (`FS_IOC_GETFLAGS` and `FS_IOC_FSGETXATTR`, `linux/fs.h`).
//!
//! Owns the numbers and the layouts. All other ioctls answer ENOTTY.

use crate::volume::{FLAG_APPEND, FLAG_IMMUTABLE, FLAG_NO_ATIME, FLAG_NO_DUMP};

const GET_FLAGS: u32 = 0x8008_6601;
const SET_FLAGS: u32 = 0x4008_6602;
const GET_ATTRIBUTES: u32 = 0x801c_581f;
const SET_ATTRIBUTES: u32 = 0x401c_5820;

/// Bytes of `struct fsxattr`: flags, hints for extents, project, padding.
const ATTRIBUTES_BYTES: usize = 28;

/// Each flag in `struct fsxattr`, and as the volume keeps it (`FS_IOC_SETFLAGS`).
const PAIRS: [(u32, u32); 4] =
    [(0x08, FLAG_IMMUTABLE), (0x10, FLAG_APPEND), (0x40, FLAG_NO_ATIME), (0x80, FLAG_NO_DUMP)];

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ioctl {
    /// The flags, as a number.
    GetFlags,
    /// The flags, in a `struct fsxattr`.
    GetAttributes,
    /// To set these flags.
    Set(u32),
    /// To set something that there is not here.
    Unsupported,
}

/// Takes a request apart; `None` for one that is not about flags, or is malformed.
pub fn parse(command: u32, input: &[u8]) -> Option<Ioctl> {
    let number = input.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    match command {
        GET_FLAGS => Some(Ioctl::GetFlags),
        GET_ATTRIBUTES => Some(Ioctl::GetAttributes),
        SET_FLAGS => number.map(Ioctl::Set),
        SET_ATTRIBUTES if input.len() == ATTRIBUTES_BYTES => {
            let wanted = number?;
            let known = PAIRS.iter().fold(0, |bits, (bit, _)| bits | bit);
            // Hints for extents, and projects.
            let plain = input.iter().skip(4).all(|&byte| byte == 0);
            if wanted & !known != 0 || !plain {
                return Some(Ioctl::Unsupported);
            }
            Some(Ioctl::Set(translate(wanted, |&(outer, inner)| (outer, inner))))
        }
        _ => None,
    }
}

/// Returns the answer to [`Ioctl::GetFlags`], in as many bytes as the kernel has room for.
pub fn flags(flags: u32, room: usize) -> Vec<u8> {
    let mut bytes = flags.to_le_bytes().to_vec();
    bytes.resize(room.min(size_of::<u64>()), 0);
    bytes
}

/// Returns the answer to [`Ioctl::GetAttributes`].
pub fn attributes(flags: u32) -> Vec<u8> {
    let outer = translate(flags, |&(outer, inner)| (inner, outer));
    let mut bytes = outer.to_le_bytes().to_vec();
    bytes.resize(ATTRIBUTES_BYTES, 0);
    bytes
}

fn translate(bits: u32, pair: impl Fn(&(u32, u32)) -> (u32, u32)) -> u32 {
    PAIRS.iter().map(pair).filter(|(from, _)| bits & from != 0).fold(0, |bits, (_, to)| bits | to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_the_kernel_has_them() {
        assert_eq!(u64::from(GET_FLAGS), libc::FS_IOC_GETFLAGS);
        assert_eq!(u64::from(SET_FLAGS), libc::FS_IOC_SETFLAGS);
    }

    #[test]
    fn both_forms_say_the_same() {
        let set = FLAG_IMMUTABLE | FLAG_NO_ATIME;
        assert_eq!(parse(SET_FLAGS, &set.to_le_bytes()), Some(Ioctl::Set(set)));
        assert_eq!(parse(SET_ATTRIBUTES, &attributes(set)), Some(Ioctl::Set(set)));
        assert_eq!(flags(set, 4), set.to_le_bytes());
        assert_eq!(flags(set, 8), u64::from(set).to_le_bytes());
    }

    #[test]
    fn what_is_not_about_flags_is_not_taken() {
        assert_eq!(parse(0x5401, &[]), None);
        assert_eq!(parse(SET_FLAGS, &[1, 2]), None);
        assert_eq!(parse(SET_ATTRIBUTES, &[0; 27]), None);
        let mut project = attributes(0);
        project[12] = 1;
        assert_eq!(parse(SET_ATTRIBUTES, &project), Some(Ioctl::Unsupported));
    }
}
