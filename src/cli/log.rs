//! Log lines: to standard error, filtered by `PYRAMIDFS_LOG`.
//!
//! Also owns the name under which the program was called: as `mount.pyramidfs` or
//! `mount.fuse.pyramidfs` (how mount(8) calls a helper) it is `pyramidfs mount`, as
//! `umount.fuse.pyramidfs` `pyramidfs umount`.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// The variable with the filter, as `info`, `pyramidfs=debug`, `fuser=debug`.
const VARIABLE: &str = "PYRAMIDFS_LOG";

/// Starts the log: by default from `info` up for the daemon, from `warn` up for others.
pub fn start(daemon: bool) {
    let default = if daemon { "warn,pyramidfs=info" } else { "warn" };
    let text = std::env::var(VARIABLE).unwrap_or_else(|_| default.to_owned());
    let filter: Targets = text.parse().or_else(|_| default.parse()).unwrap_or_default();
    // The transport logs each request at debug level: it is asked to do so only when named.
    let transport = if text.contains("fuser") {
        tracing_log::log::LevelFilter::Debug
    } else {
        tracing_log::log::LevelFilter::Warn
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(false);
    let subscriber = tracing_subscriber::registry().with(lines).with(filter);
    // Both fail only when a log is there already, as in tests.
    let _ = tracing::subscriber::set_global_default(subscriber);
    let _ = tracing_log::LogTracer::builder().with_max_level(transport).init();
}

/// The arguments of this process, with the command put in for the name of a helper.
pub fn arguments() -> Vec<OsString> {
    normalise(std::env::args_os().collect())
}

fn normalise(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let name = arguments.first().and_then(|program| Path::new(program).file_name());
    let command = match name.and_then(|name| name.to_str()) {
        Some("mount.pyramidfs" | "mount.fuse.pyramidfs") => Some("mount"),
        Some("umount.pyramidfs" | "umount.fuse.pyramidfs") => Some("umount"),
        // `/sbin/mount.fuse`, of libfuse, calls the program behind `fuse.` with a source.
        _ if arguments.get(1).is_some_and(|first| Path::new(first).is_absolute()) => Some("mount"),
        _ => None,
    };
    if let Some(command) = command {
        arguments.insert(1, OsString::from(command));
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn called_by_mount() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(
            normalise(words("/sbin/mount.pyramidfs /v /m -n -o rw")),
            words("/sbin/mount.pyramidfs mount /v /m -n -o rw")
        );
        assert_eq!(
            normalise(words("/sbin/mount.fuse.pyramidfs v /m")),
            words("/sbin/mount.fuse.pyramidfs mount v /m")
        );
        assert_eq!(
            normalise(words("/sbin/umount.fuse.pyramidfs /m -n")),
            words("/sbin/umount.fuse.pyramidfs umount /m -n")
        );
        assert_eq!(normalise(words("pyramidfs /v /m -o rw")), words("pyramidfs mount /v /m -o rw"));
        assert_eq!(normalise(words("pyramidfs mount -n")), words("pyramidfs mount -n"));
    }
}
