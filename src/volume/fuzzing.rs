//! What fuzzing and its tests do with superblocks and access control lists.
//!
//! Owns one function for each: any bytes have an answer without a panic, and what is read is
//! written as the same again.

use super::acl::{self, Acl};
use super::superblock::Superblock;
use super::{CreateOptions, MODE_DIR};
use crate::sys::sim::SimRng;

/// Takes bytes as a superblock, as they are and with the checksum that fits.
pub fn superblock(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    seal_superblock(&mut sealed);
    for bytes in [bytes, &sealed] {
        if let Ok(superblock) = Superblock::parse(bytes) {
            let again = Superblock::parse(superblock.format().as_bytes());
            assert_eq!(again.ok(), Some(superblock));
        }
    }
}

/// Gives a superblock the checksum that fits.
pub fn seal_superblock(bytes: &mut Vec<u8>) {
    let mark = b"checksum = ";
    let end = bytes.windows(mark.len()).rposition(|window| window == mark);
    bytes.truncate(end.unwrap_or(bytes.len()));
    let checksum = crc32c::crc32c(bytes);
    bytes.extend_from_slice(format!("checksum = {checksum}\n").as_bytes());
}

/// Takes bytes as an access control list, and makes a new inode's from it.
pub fn access_list(bytes: &[u8]) {
    let inherited = acl::inherit(Some(bytes), MODE_DIR | 0o751, 0o022, true);
    let Ok(mut acl) = Acl::decode(bytes) else {
        assert!(inherited.is_err());
        return;
    };
    assert_eq!(acl.encode(), bytes);
    for (_, list) in inherited.map(|inherited| inherited.lists).unwrap_or_default() {
        assert!(Acl::decode(&list).is_ok(), "an inherited list is one");
    }
    for mode in [0, 0o751, 0o777] {
        acl.set_permissions(mode);
        assert_eq!(acl.permissions(), mode);
        assert!(Acl::decode(&acl.encode()).is_ok());
    }
}

/// Valid bytes of each record, by the name of its target.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let text = Superblock::new(&SimRng::new(7), &CreateOptions::default()).format();
    let zstd = text.replace("lz4", "zstd:7").replace("sha3-256", "blake3").into_bytes();
    let mut sealed = zstd;
    seal_superblock(&mut sealed);
    let list = |entries: &[[u8; 4]]| {
        let mut bytes = vec![2, 0, 0, 0];
        for [tag, permissions, id, rest] in entries {
            bytes.extend_from_slice(&[*tag, 0, *permissions, 0, *id, *rest, *rest, *rest]);
        }
        bytes
    };
    let plain = list(&[[1, 6, 255, 255], [4, 4, 255, 255], [32, 0, 255, 255]]);
    let named = [[1, 7, 255, 255], [2, 5, 7, 0], [4, 4, 255, 255], [16, 6, 255, 255]];
    let named = list(&[named.as_slice(), &[[32, 0, 255, 255]]].concat());
    vec![
        ("superblock", text.into_bytes()),
        ("superblock", sealed),
        ("access_list", plain),
        ("access_list", named),
    ]
}
