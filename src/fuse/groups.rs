//! Whether a caller belongs to a group: the kernel tells one group of his, /proc knows the others.

use std::fs;

use fuser::Request;

/// Whether the caller belongs to `group`, or may do as if (as root).
///
/// A caller in another PID namespace, or one that is gone, counts with the group that the request
/// carries alone: he loses a set-group-id bit that he could have kept, and gets none.
pub fn is_member(request: &Request, group: u32) -> bool {
    if request.uid() == 0 || request.gid() == group {
        return true;
    }
    let status = fs::read_to_string(format!("/proc/{}/status", request.pid()));
    status.is_ok_and(|status| lists(&status, group))
}

/// Whether the line `Groups:` of a status (proc_pid_status(5)) lists `group`.
fn lists(status: &str, group: u32) -> bool {
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    groups.is_some_and(|groups| groups.split_whitespace().any(|word| word.parse() == Ok(group)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found_and_read_whole() {
        let status = "Name:\tsh\nGid:\t7\t7\t7\t7\nGroups:\t4 27 1000 \nNStgid:\t1\n";
        assert!(lists(status, 27));
        assert!(lists(status, 1000));
        assert!(!lists(status, 7));
        assert!(!lists(status, 2));
        assert!(!lists("", 0));
    }
}
