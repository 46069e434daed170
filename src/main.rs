//! The program: hands the command line to [`pyramidfs::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    pyramidfs::cli::run()
}
