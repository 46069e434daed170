//! Paths within a volume's directory: the one place that says which are allowed.
//!
//! A path is relative, has `/` between its parts and never leaves the directory: no part is empty,
//! `.` or `..`, and none holds a NUL. The empty path is the directory itself.
//!
//! Absent on purpose: any file I/O.

use std::io;

/// The error that the system call `errno` names.
pub(super) fn os_error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// Fails when `path` is not one that stays in the directory.
pub(super) fn check(path: &str) -> io::Result<()> {
    let allowed = |part: &str| !matches!(part, "" | "." | "..") && !part.as_bytes().contains(&0_u8);
    if path.is_empty() || path.split('/').all(allowed) {
        return Ok(());
    }
    Err(os_error(libc::EINVAL))
}

/// Splits a path into its directory (`""` is the volume's own) and its last part.
///
/// The directory itself has no last part, so the empty path is an error (`EINVAL`).
pub(super) fn split(path: &str) -> io::Result<(&str, &str)> {
    check(path)?;
    if path.is_empty() {
        return Err(os_error(libc::EINVAL));
    }
    Ok(path.rsplit_once('/').unwrap_or(("", path)))
}

/// The path of `name` in the directory `dir`.
pub(super) fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

/// Checks a lock's note and gives the bytes that are kept for it: one line, so that a reader
/// who comes in the middle of a change never takes the rest of an older note for a part of it.
pub(super) fn note_line(note: &str) -> io::Result<Vec<u8>> {
    if note.len() > super::NOTE_BYTES_MAX || note.contains('\n') {
        return Err(os_error(libc::EINVAL));
    }
    Ok(format!("{note}\n").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_never_leave_the_directory() {
        for good in ["", "a", "a/b", "packs/ab/x.pack", "..a", "a.", "ä"] {
            assert!(check(good).is_ok(), "{good:?}");
        }
        for bad in ["/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "a\0b"] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn split_and_join_are_inverse() {
        for (path, dir, name) in [("a", "", "a"), ("a/b", "a", "b"), ("a/b/c", "a/b", "c")] {
            assert_eq!(split(path).unwrap(), (dir, name));
            assert_eq!(join(dir, name), path);
        }
        assert!(split("").is_err());
    }

    #[test]
    fn a_note_is_one_short_line() {
        assert_eq!(note_line("closing").unwrap(), b"closing\n");
        assert!(note_line("a\nb").is_err());
        assert!(note_line(&"x".repeat(super::super::NOTE_BYTES_MAX + 1)).is_err());
    }
}
