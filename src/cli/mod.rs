//! The command line: arguments, progress, output, exit codes, the daemon.
//!
//! One file for each command. A command answers an exit code: 0 fine, 1 findings, 2 usage or
//! environment. An error is one line on standard error that says what to do.
//!
//! Absent on purpose: anything that is worth a test below this layer.

mod check;
mod control;
mod daemon;
mod du;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod gc;
mod hash;
mod log;
mod mkfs;
mod mount;
mod options;
mod place;
mod progress;
mod remount;
mod repair;
mod runtime;
mod service;
mod snapshot;
mod status;
mod sync;
mod umount;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use error::Error;

/// Everything is fine.
const FINE: u8 = 0;
/// The command worked and found something wrong.
const FINDINGS: u8 = 1;
/// The command could not do its work.
const FAILED: u8 = 2;

/// Without any word the parser shows the help; its exit code is 2.
const HELP_FOR_NOTHING: ErrorKind = ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;

/// A read/write filesystem that stores equal content once.
#[derive(Debug, Parser)]
#[command(name = "pyramidfs", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a volume
    Mkfs(mkfs::Arguments),
    /// Mount a volume
    Mount(mount::Arguments),
    /// Unmount, and wait until everything is durable
    Umount(umount::Arguments),
    /// Make everything written so far durable
    Sync(sync::Arguments),
    /// Show what a volume holds, and the space that it saves
    Status(status::Arguments),
    /// Keep what a volume is now, see and bring back what it was
    Snapshot(snapshot::Arguments),
    /// Verify a volume that is not mounted
    Check(check::Arguments),
    /// Show what files take, and what would be free without them
    Du(du::Arguments),
    /// Give the space of deleted data back now
    Gc(gc::Arguments),
    /// Print the root of a file
    Hash(hash::Arguments),
}

/// Runs the program with its own arguments.
pub fn run() -> ExitCode {
    let result = match Arguments::try_parse_from(log::arguments()) {
        Ok(arguments) => dispatch(&arguments.command),
        Err(error) if error.use_stderr() && error.kind() != HELP_FOR_NOTHING => {
            Err(Error::Usage(one_line(&error.to_string())))
        }
        // Help and the version, which are no errors.
        Err(error) => error.exit(),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("pyramidfs: {}", error.line());
            ExitCode::from(FAILED)
        }
    }
}

/// What the parser says first, without the usage behind it.
fn one_line(text: &str) -> String {
    let first = text.lines().take_while(|line| !line.trim().is_empty());
    let words = first.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ");
    words.strip_prefix("error: ").unwrap_or(&words).to_owned()
}

fn dispatch(command: &Command) -> Outcome {
    log::start(matches!(command, Command::Mount(_)));
    match command {
        Command::Mkfs(arguments) => mkfs::run(arguments),
        Command::Mount(arguments) => mount::run(arguments),
        Command::Umount(arguments) => umount::run(arguments),
        Command::Sync(arguments) => sync::run(arguments),
        Command::Status(arguments) => status::run(arguments),
        Command::Snapshot(arguments) => snapshot::run(arguments),
        Command::Check(arguments) => check::run(arguments),
        Command::Du(arguments) => du::run(arguments),
        Command::Gc(arguments) => gc::run(arguments),
        Command::Hash(arguments) => hash::run(arguments),
    }
}

/// What a command answers: an exit code.
type Outcome = Result<u8, Error>;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn commands_as_documented() {
        for line in [
            "pyramidfs mkfs /v --branches 512 --hash keccak-256 --compression zstd:7",
            "pyramidfs mkfs /v --tree-copies 1 --compression none",
            "pyramidfs mount /v /m -o ro,noatime --create --foreground --read-only",
            "pyramidfs mount /v /m --cache 64MiB --index-memory 1GiB",
            "pyramidfs mount /v /m -s -n -v -f -N /proc/1/ns/mnt -o ro -t fuse.pyramidfs",
            "pyramidfs mount /m -o remount,ro",
            "pyramidfs umount /m",
            "pyramidfs umount /m -l -n -v -r -N /proc/1/ns/mnt -t fuse.pyramidfs",
            "pyramidfs sync /m",
            "pyramidfs status /v --json",
            "pyramidfs check /v --read-data --json",
            "pyramidfs gc /v --dry-run --json",
            "pyramidfs du /m/a /m/b --json",
            "pyramidfs du --volume /v a/b",
            "pyramidfs hash - --profile swarm",
            "pyramidfs snapshot create /m before",
            "pyramidfs snapshot list /v --json",
            "pyramidfs snapshot delete /m before",
            "pyramidfs snapshot diff /m before after --json",
            "pyramidfs snapshot diff /m before",
            "pyramidfs snapshot restore /m before /some/path",
            "pyramidfs mount /v /m -o snapshot=before,snapshots=hourly:24+daily:7",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn bad_usage_is_told_in_one_line() {
        let line = |words| one_line(&parse(words).unwrap_err().to_string());
        assert!(line("pyramidfs mount /v /m -o cache=lots").contains("is no size"));
        assert!(line("pyramidfs mkfs").ends_with("not provided: <VOLUME>"));
        assert!(!line("pyramidfs collect /v").starts_with("error"));
    }

    #[test]
    fn bad_usage_has_exit_code_2() {
        for line in [
            "pyramidfs",
            "pyramidfs mkfs",
            "pyramidfs mkfs /v --hash md5",
            "pyramidfs mkfs /v --compression gzip",
            "pyramidfs mkfs /v --branches 100",
            "pyramidfs mkfs /v --tree-copies 3",
            "pyramidfs mount /v /m --cache lots",
            "pyramidfs mount /v /m -o cache=lots",
            "pyramidfs mount /v /m -t ext4",
            "pyramidfs collect /v",
            "pyramidfs gc",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
