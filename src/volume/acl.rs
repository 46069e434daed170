//! POSIX access control lists: what they say, and how modes and they follow each other.
//!
//! Owns [`Acl`], a list in the form in which programs and the kernel exchange it (the value of the
//! attributes `system.posix_acl_access` and `system.posix_acl_default`), and the rules of POSIX
//! 1003.1e draft 17 for new files and for chmod. The kernel judges access by the lists; the volume
//! keeps the mode and the list in step, as no one else does.
//!
//! Invariants: (1) a list is valid: one entry each for owner, group and others, a mask where
//! entries name users or groups, entries in order and none twice; (2) decode of any bytes answers,
//! and never panics; (3) encode of decode is the same bytes.

use super::{Error, MODE_TYPE};

/// The attribute that holds the list that access is judged by.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute that holds the list that new entries of a directory get.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Version of the form, `POSIX_ACL_XATTR_VERSION` in `linux/posix_acl_xattr.h`.
const VERSION: u32 = 2;
/// Bytes in front of the entries.
const HEAD_BYTES: usize = 4;
/// Bytes of an entry: tag, permissions, id; all little-endian.
const ENTRY_BYTES: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// All permission bits of one entry.
const PERMISSIONS: u16 = 0o7;
/// All permission bits of a mode.
const MODE_PERMISSIONS: u32 = 0o777;

const INVALID: Error = Error::Invalid { what: "not a valid access control list" };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// A valid list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Acl {
    entries: Vec<Entry>,
}

impl Acl {
    /// Takes the value of an attribute apart.
    pub(super) fn decode(bytes: &[u8]) -> Result<Acl, Error> {
        let (head, entries) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or(INVALID)?;
        if u32::from_le_bytes(*head) != VERSION {
            return Err(Error::Unsupported);
        }
        let (entries, rest) = entries.as_chunks::<ENTRY_BYTES>();
        let entries = entries
            .iter()
            .map(|&[tag0, tag1, permissions0, permissions1, id0, id1, id2, id3]| Entry {
                tag: u16::from_le_bytes([tag0, tag1]),
                permissions: u16::from_le_bytes([permissions0, permissions1]),
                id: u32::from_le_bytes([id0, id1, id2, id3]),
            })
            .collect();
        let acl = Acl { entries };
        if rest.is_empty() && acl.is_valid() { Ok(acl) } else { Err(INVALID) }
    }

    /// Returns the value of the attribute.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.tag.to_le_bytes());
            bytes.extend_from_slice(&entry.permissions.to_le_bytes());
            bytes.extend_from_slice(&entry.id.to_le_bytes());
        }
        bytes
    }

    fn is_valid(&self) -> bool {
        let count = |tag| self.entries.iter().filter(|entry| entry.tag == tag).count();
        let named = count(USER) + count(GROUP);
        // Ordered by tag; users and groups are not ordered by id, and may stand twice: the kernel
        // takes the first that fits.
        let in_order = self.entries.is_sorted_by_key(|entry| entry.tag);
        let known = self.entries.iter().all(|entry| {
            entry.permissions & !PERMISSIONS == 0
                && matches!(entry.tag, USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER)
        });
        let once = [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|&tag| count(tag) == 1);
        known && in_order && once && count(MASK) <= 1 && (named == 0 || count(MASK) == 1)
    }

    /// The permission bits of a mode that say the same: the mask stands for the group, if there
    /// is one.
    pub(super) fn permissions(&self) -> u32 {
        let group = if self.has(MASK) { MASK } else { GROUP_OBJ };
        self.of(USER_OBJ) << 6 | self.of(group) << 3 | self.of(OTHER)
    }

    /// Whether a mode says all that the list says.
    pub(super) fn is_mode(&self) -> bool {
        self.entries.iter().all(|entry| matches!(entry.tag, USER_OBJ | GROUP_OBJ | OTHER))
    }

    /// Follows a chmod.
    pub(super) fn set_permissions(&mut self, mode: u32) {
        let group = if self.has(MASK) { MASK } else { GROUP_OBJ };
        for entry in &mut self.entries {
            if let Some(shift) = shift_of(entry.tag, group) {
                entry.permissions = (mode >> shift) as u16 & PERMISSIONS;
            }
        }
    }

    /// Makes a default list that of a new inode, whose creator wants `mode`: it keeps no more
    /// than he wants, and he gets no more than it allows. Returns the mode.
    pub(super) fn inherit(&mut self, mode: u32) -> u32 {
        let group = if self.has(MASK) { MASK } else { GROUP_OBJ };
        for entry in &mut self.entries {
            if let Some(shift) = shift_of(entry.tag, group) {
                entry.permissions &= (mode >> shift) as u16;
            }
        }
        mode & !MODE_PERMISSIONS | self.permissions()
    }

    fn has(&self, tag: u16) -> bool {
        self.entries.iter().any(|entry| entry.tag == tag)
    }

    fn of(&self, tag: u16) -> u32 {
        self.entries
            .iter()
            .find(|entry| entry.tag == tag)
            .map_or(0, |entry| u32::from(entry.permissions))
    }
}

/// Where the bits of an entry stand in a mode, when `group` stands for the group.
fn shift_of(tag: u16, group: u16) -> Option<u32> {
    match tag {
        USER_OBJ => Some(6),
        OTHER => Some(0),
        _ if tag == group => Some(3),
        _ => None,
    }
}

/// What a new inode gets: its mode, and its lists as attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inherited {
    pub(super) mode: u32,
    pub(super) lists: Vec<(&'static [u8], Vec<u8>)>,
}

/// Works out what a new inode gets in a directory with the default list `default`. With a list the
/// umask does not count (acl(5)); without one, only the umask does.
pub(super) fn inherit(
    default: Option<&[u8]>,
    mode: u32,
    umask: u32,
    is_dir: bool,
) -> Result<Inherited, Error> {
    let Some(default) = default else {
        return Ok(Inherited { mode: mode & (!umask | MODE_TYPE), lists: Vec::new() });
    };
    let mut access = Acl::decode(default)?;
    let mode = access.inherit(mode);
    let mut lists = Vec::new();
    if !access.is_mode() {
        lists.push((ACCESS, access.encode()));
    }
    if is_dir {
        lists.push((DEFAULT, default.to_vec()));
    }
    Ok(Inherited { mode, lists })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A list from tags, permissions and ids.
    fn list(entries: &[(u16, u16, u32)]) -> Acl {
        let entries =
            entries.iter().map(|&(tag, permissions, id)| Entry { tag, permissions, id }).collect();
        Acl { entries }
    }

    /// rwx for the owner, r-x for user 7, r-- for the group, rw- as the mask, none for others.
    fn example() -> Acl {
        list(&[
            (USER_OBJ, 7, u32::MAX),
            (USER, 5, 7),
            (GROUP_OBJ, 4, u32::MAX),
            (MASK, 6, u32::MAX),
            (OTHER, 0, u32::MAX),
        ])
    }

    #[test]
    fn bytes_as_the_kernel_has_them() {
        let bytes = [
            2, 0, 0, 0, // version
            1, 0, 6, 0, 255, 255, 255, 255, // user::rw-
            4, 0, 4, 0, 255, 255, 255, 255, // group::r--
            32, 0, 0, 0, 255, 255, 255, 255, // other::---
        ];
        let acl = Acl::decode(&bytes).unwrap();
        assert!(acl.is_mode());
        assert_eq!(acl.permissions(), 0o640);
        assert_eq!(acl.encode(), bytes);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let good = example().encode();
        assert!(Acl::decode(&good).is_ok());
        let mut newer = good.clone();
        newer[0] = 3;
        assert!(matches!(Acl::decode(&newer), Err(Error::Unsupported)));
        let broken = [
            Vec::new(),
            good[..good.len() - 1].to_vec(),
            // No entries; no mask beside a named user; two owners; out of order; unknown bits.
            list(&[]).encode(),
            list(&[(USER_OBJ, 7, 0), (USER, 5, 7), (GROUP_OBJ, 4, 0), (OTHER, 0, 0)]).encode(),
            list(&[(USER_OBJ, 7, 0), (USER_OBJ, 7, 0), (GROUP_OBJ, 4, 0), (OTHER, 0, 0)]).encode(),
            list(&[(GROUP_OBJ, 4, 0), (USER_OBJ, 7, 0), (OTHER, 0, 0)]).encode(),
            list(&[(USER_OBJ, 15, 0), (GROUP_OBJ, 4, 0), (OTHER, 0, 0)]).encode(),
            list(&[(USER_OBJ, 7, 0), (GROUP_OBJ, 4, 0), (OTHER, 0, 0), (64, 0, 0)]).encode(),
        ];
        for bytes in broken {
            assert!(matches!(Acl::decode(&bytes), Err(Error::Invalid { .. })), "{bytes:?}");
        }
    }

    #[test]
    fn the_mask_is_the_group_of_the_mode() {
        let mut acl = example();
        assert_eq!(acl.permissions(), 0o760);
        acl.set_permissions(0o100_711);
        assert_eq!(acl.permissions(), 0o711);
        assert_eq!(acl.of(MASK), 1);
        assert_eq!(acl.of(GROUP_OBJ), 4, "the owning group keeps its own entry");
    }

    #[test]
    fn a_new_file_gets_what_both_sides_grant() {
        let default = example().encode();
        let file = inherit(Some(&default), 0o100_644, 0o077, false).unwrap();
        assert_eq!(file.mode, 0o100_640, "the umask does not count");
        assert_eq!(file.lists.len(), 1);
        let access = Acl::decode(&file.lists[0].1).unwrap();
        assert_eq!((access.of(USER_OBJ), access.of(USER), access.of(MASK)), (6, 5, 4));
        let dir = inherit(Some(&default), 0o042_777, 0, true).unwrap();
        assert_eq!(dir.mode, 0o042_760);
        assert_eq!(dir.lists[1], (DEFAULT, default));
    }

    #[test]
    fn without_a_list_the_umask_counts() {
        let file = inherit(None, 0o106_666, 0o022, false).unwrap();
        assert_eq!(file, Inherited { mode: 0o106_644, lists: Vec::new() });
        // A list that says no more than a mode leaves nothing but the mode.
        let plain = list(&[(USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0), (OTHER, 0, 0)]).encode();
        let file = inherit(Some(&plain), 0o100_666, 0o777, false).unwrap();
        assert_eq!(file, Inherited { mode: 0o100_640, lists: Vec::new() });
    }

    proptest! {
        #![proptest_config(crate::testing::config(256))]

        #[test]
        fn any_bytes_have_an_answer_and_one_form(
            bytes in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            if let Ok(acl) = Acl::decode(&bytes) {
                prop_assert_eq!(acl.encode(), bytes);
            }
        }

        #[test]
        fn a_chmod_is_what_the_mode_says_then(mode in 0_u32..0o1000, named in any::<bool>()) {
            let plain = list(&[(USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0), (OTHER, 1, 0)]);
            let mut acl = if named { example() } else { plain };
            acl.set_permissions(mode);
            prop_assert_eq!(acl.permissions(), mode);
            let mut inherited = example();
            let got = inherited.inherit(mode);
            prop_assert_eq!(got & !mode, 0);
            prop_assert_eq!(got, mode & example().permissions());
        }
    }
}
