//! Log lines: to standard error, filtered by `PYRAMIDFS_LOG`.
//!
//! Also owns the name under which the program was called: as `mount.pyramidfs` (how mount(8) calls
//! a helper) it is `pyramidfs mount`.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// The variable with the filter, as `info`, `pyramidfs=debug`, `fuser=debug`.
const VARIABLE: &str = "PYRAMIDFS_LOG";
/// Flags that mount(8) passes to a helper, and that change nothing here.
const HELPER_FLAGS: [&str; 3] = ["-n", "-s", "-v"];

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

/// The arguments of this process, with the command put in for the name `mount.pyramidfs`.
pub fn arguments() -> Vec<OsString> {
    normalise(std::env::args_os().collect())
}

fn normalise(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let helper = arguments
        .first()
        .and_then(|program| Path::new(program).file_name())
        .is_some_and(|name| name == "mount.pyramidfs");
    if helper {
        arguments.retain(|argument| !HELPER_FLAGS.iter().any(|flag| argument == flag));
        arguments.insert(1, OsString::from("mount"));
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
            words("/sbin/mount.pyramidfs mount /v /m -o rw")
        );
        assert_eq!(normalise(words("pyramidfs mount -n")), words("pyramidfs mount -n"));
    }
}
