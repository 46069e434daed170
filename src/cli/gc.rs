//! `pyramidfs gc`: gives the space of deleted data back now.
//!
//! A mounted volume does so by itself; this command asks its daemon not to wait, and follows. Any
//! other is opened for the time.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Serialize;

use super::control::{Answer, Client, Request};
use super::error::Error;
use super::progress::Progress;
use super::{FINE, Outcome, place};
use crate::fuse::chain;
use crate::sys::real::RealClock;
use crate::volume::{self, Collect, CollectFigures, OpenOptions, Volume};

/// Arguments of `gc`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Directory of the volume, or where it is mounted
    volume: PathBuf,
    /// Only tell what there is to win
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How often is looked how far it is.
const POLL: Duration = Duration::from_millis(100);

/// What is printed.
#[derive(Serialize)]
struct Printed {
    dry_run: bool,
    garbage_bytes: u64,
    freed_bytes: u64,
    rewritten_bytes: u64,
    packs: u64,
    missing: u64,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Outcome {
    let mount = place::find_mount(&arguments.volume)?;
    let connect = || match &mount {
        Some(mount) => Client::of_mount(mount),
        None => Client::of_volume(&arguments.volume),
    };
    let figures = match connect() {
        Some(client) => mounted(arguments, client, &connect)?,
        None => offline(arguments)?,
    };
    if let Some(why) = figures.failure {
        return Err(Error::Reported(format!("the collection did not end: {why}")));
    }
    let printed = Printed {
        dry_run: figures.dry_run,
        garbage_bytes: figures.garbage_bytes,
        freed_bytes: figures.freed_bytes,
        rewritten_bytes: figures.rewritten_bytes,
        packs: figures.packs,
        missing: figures.missing,
    };
    print(&printed, arguments.json).map_err(Error::Print)?;
    Ok(FINE)
}

/// Asks the daemon, and follows.
fn mounted(
    arguments: &Arguments,
    client: Client,
    connect: &dyn Fn() -> Option<Client>,
) -> Result<CollectFigures, Error> {
    let mut answer = client.ask(Request::Collect { dry_run: arguments.dry_run })?;
    let mut progress = Progress::start(true);
    loop {
        let figures = match answer {
            Answer::Collect(figures) => *figures,
            Answer::Failed { why } => return Err(Error::Reported(why)),
            _ => return Err(Error::DaemonGone),
        };
        if !figures.running {
            return Ok(figures);
        }
        progress.update(figures.done, figures.total, &figures.what);
        thread::sleep(POLL);
        answer = connect().ok_or(Error::DaemonGone)?.ask(Request::CollectFigures)?;
    }
}

/// Collects in a volume that nobody has open.
fn offline(arguments: &Arguments) -> Result<CollectFigures, Error> {
    let path = &arguments.volume;
    let of_volume = |error| Error::Volume { path: path.clone(), error };
    let options = OpenOptions { collects: false, ..OpenOptions::default() };
    let volume = Volume::open(place::disk(path)?, Arc::new(RealClock::new()), options);
    let volume = volume.map_err(of_volume)?;
    let collected = follow(&volume, Collect { dry_run: arguments.dry_run, urgent: true });
    let closed = volume.close();
    let figures = collected.map_err(of_volume)?;
    closed.map_err(|error| Error::Reported(chain(&error)))?;
    Ok(figures)
}

fn follow(volume: &Volume, ask: Collect) -> Result<CollectFigures, volume::Error> {
    let mut progress = Progress::start(true);
    thread::scope(|scope| {
        let collecting = scope.spawn(|| volume.collect(ask));
        while !collecting.is_finished() {
            thread::sleep(POLL);
            let figures = volume.collect_figures();
            progress.update(figures.done, figures.total, &figures.what);
        }
        collecting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn print(printed: &Printed, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, printed)?;
        return writeln!(out);
    }
    let size = |bytes| ByteSize(bytes).display().iec();
    writeln!(out, "garbage   {}", size(printed.garbage_bytes))?;
    if !printed.dry_run {
        writeln!(out, "freed     {} in {} packs", size(printed.freed_bytes), printed.packs)?;
        writeln!(out, "rewritten {}", size(printed.rewritten_bytes))?;
    }
    if printed.missing > 0 {
        writeln!(out, "{} chunks are missing: run 'pyramidfs check'", printed.missing)?;
    }
    Ok(())
}
