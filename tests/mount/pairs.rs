//! Two daemons that are started at once on one volume: one serves it, the other says why not.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use super::harness::{Numbers, PROGRAM, Site, daemons, write_random};

/// Volumes on each of which two daemons are started, all at the same time.
const VOLUMES: usize = 8;
const ROUNDS: u64 = 3;

/// The two mountpoints for a volume: its own two, or one and the same.
fn mountpoints(site: &Site, number: usize) -> [PathBuf; 2] {
    let second = if number.is_multiple_of(4) { 0 } else { 1 };
    [0, second].map(|at| site.path(&format!("mnt-{number}-{at}")))
}

fn start(site: &Site, number: usize, mountpoint: &Path) -> Child {
    let mut command = Command::new(PROGRAM);
    command.arg("mount").arg(site.path(&format!("volume-{number}"))).arg(mountpoint);
    // In the first round every other pair makes its volume first.
    if number.is_multiple_of(2) {
        command.arg("--create");
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The mountpoint of the one that serves; the other one has said in one line why it does not.
fn winner(site: &Site, number: usize, pair: [(PathBuf, Output); 2]) -> PathBuf {
    let volume = site.path(&format!("volume-{number}"));
    let (won, lost): (Vec<_>, Vec<_>) =
        pair.into_iter().partition(|(_, output)| output.status.success());
    let said =
        |(_, output): &(PathBuf, Output)| String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<String> = lost.iter().map(said).collect();
    assert_eq!((won.len(), lost.len()), (1, 1), "volume {number}: {lines:?}");
    let line = &lines[0];
    assert!(line.contains("is in use") && line.lines().count() == 1, "volume {number}: {line}");
    assert_eq!(daemons(&volume).len(), 1, "volume {number}");
    won.into_iter().next().unwrap().0
}

#[test]
fn of_two_daemons_that_start_at_once_one_serves_and_nothing_is_damaged() {
    let site = Site::bare();
    for number in 0..VOLUMES {
        let volume = site.path(&format!("volume-{number}"));
        if !number.is_multiple_of(2) {
            site.ok(["mkfs".as_ref(), volume.as_os_str()]);
        }
        for mountpoint in mountpoints(&site, number) {
            let _ = fs::create_dir(mountpoint);
        }
    }
    for round in 0..ROUNDS {
        let started: Vec<_> = (0..VOLUMES)
            .map(|number| mountpoints(&site, number).map(|at| (start(&site, number, &at), at)))
            .collect();
        let serving: Vec<PathBuf> = (0..)
            .zip(started)
            .map(|(number, pair)| {
                let ended = pair.map(|(child, at)| (at, child.wait_with_output().unwrap()));
                winner(&site, number, ended)
            })
            .collect();
        for (number, mountpoint) in (0_u64..).zip(&serving) {
            for before in 0..round {
                let bytes = fs::read(mountpoint.join(format!("file-{before}"))).unwrap();
                assert!(bytes == Numbers(before * 100 + number).stream(200_000));
            }
            let path = mountpoint.join(format!("file-{round}"));
            write_random(&path, round * 100 + number, 200_000);
            File::open(&path).unwrap().sync_all().unwrap();
            // The one that lost has left nothing on its mountpoint.
            for other in mountpoints(&site, number as usize).iter().filter(|at| *at != mountpoint) {
                assert_eq!(fs::read_dir(other).unwrap().count(), 0, "{}", other.display());
            }
        }
        serving.iter().for_each(|mountpoint| site.umount_at(mountpoint));
        for number in 0..VOLUMES {
            let volume = site.path(&format!("volume-{number}"));
            site.ok(["check".as_ref(), "--read-data".as_ref(), volume.as_os_str()]);
        }
    }
}
