//! Several processes and threads on the same files; mappings.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;

use super::harness::{Numbers, Site, run, shell};
use super::plain::map;

const BOTH: i32 = libc::PROT_READ | libc::PROT_WRITE;

#[test]
fn several_processes_append_to_one_file() {
    const LINES: usize = 400;
    let site = Site::mounted();
    let one = |name: char| {
        format!("i=0; while [ $i -lt {LINES} ]; do echo line-{name}-$i; i=$((i+1)); done >> log &")
    };
    let script: String = "abcd".chars().map(one).collect();
    shell(&site.mountpoint(), &format!("{script} wait"));
    let verify = || {
        let log = fs::read_to_string(site.at("log")).unwrap();
        assert_eq!(log.lines().count(), 4 * LINES);
        for name in "abcd".chars() {
            let lines = log.lines().filter(|line| line.starts_with(&format!("line-{name}-")));
            for (number, line) in lines.enumerate() {
                assert_eq!(line, format!("line-{name}-{number}"));
            }
        }
    };
    verify();
    site.remount();
    verify();
}

#[test]
fn a_shared_mapping_reaches_the_volume() {
    let site = Site::mounted();
    let content = Numbers(1).bytes(1_000_003);
    fs::write(site.at("file"), &content).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(site.at("file")).unwrap();
    let mut expected = content;
    map(&file, BOTH, |bytes| {
        assert!(bytes == expected.as_slice());
        for place in [0, 4095, 500_000, 1_000_002] {
            bytes[place] ^= 0xff;
            expected[place] ^= 0xff;
        }
    })
    .unwrap();
    // read(2) and write(2) see the mapping's bytes, and it theirs.
    assert!(fs::read(site.at("file")).unwrap() == expected);
    file.write_all_at(b"by write", 700_000).unwrap();
    expected[700_000..700_008].copy_from_slice(b"by write");
    map(&file, libc::PROT_READ, |bytes| assert!(bytes == expected.as_slice())).unwrap();
    // msync has made it durable only together with fsync of the same file.
    file.sync_all().unwrap();
    drop(file);
    site.kill_daemon();
    site.mount();
    assert!(fs::read(site.at("file")).unwrap() == expected);
    site.umount_and_check();
}

#[test]
fn a_mapping_stays_when_the_file_is_closed_and_removed() {
    let site = Site::mounted();
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).open(site.at("file")).unwrap();
    file.set_len(100_000).unwrap();
    map(&file, BOTH, |bytes| {
        bytes[50_000] = 7;
        fs::remove_file(site.at("file")).unwrap();
        bytes[99_999] = 8;
        assert_eq!((bytes[0], bytes[50_000]), (0, 7));
    })
    .unwrap();
    drop(file);
    assert_eq!(site.figure("files"), 1);
}

#[test]
fn threads_work_in_one_directory() {
    const THREADS: u64 = 8;
    const FILES: u64 = 120;
    let site = Site::mounted();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let site = &site;
            scope.spawn(move || {
                for number in 0..FILES {
                    let seed = thread * FILES + number;
                    let path = site.at(format!("file-{seed}"));
                    let content = Numbers(seed % 50).bytes(seed as usize * 37 % 30_000);
                    fs::write(&path, &content).unwrap();
                    if number % 10 == 0 {
                        File::open(&path).unwrap().sync_all().unwrap();
                    }
                    assert!(fs::read(&path).unwrap() == content);
                    match number % 3 {
                        0 => fs::remove_file(&path).unwrap(),
                        1 => fs::rename(&path, site.at(format!("kept-{seed}"))).unwrap(),
                        _ => {}
                    }
                }
            });
        }
    });
    site.remount();
    let mut count = 0;
    for entry in fs::read_dir(site.mountpoint()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let seed: u64 = name.split('-').nth(1).unwrap().parse().unwrap();
        let content = Numbers(seed % 50).bytes(seed as usize * 37 % 30_000);
        assert!(fs::read(entry.path()).unwrap() == content, "{name}");
        count += 1;
    }
    assert_eq!(count, THREADS * FILES * 2 / 3);
    site.umount_and_check();
}

#[test]
fn readers_and_a_writer_on_one_file() {
    let site = Site::mounted();
    // Every 8 bytes hold one number, which only rises: a reader sees old or new, never a mixture.
    const WORDS: u64 = 40_000;
    fs::write(site.at("file"), vec![0; WORDS as usize * 8]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(site.at("file")).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let (file, done) = (&file, &done);
            scope.spawn(move || {
                let mut numbers = Numbers(seed);
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let mut word = [0; 8];
                    file.read_exact_at(&mut word, numbers.below(WORDS) * 8).unwrap();
                    assert!(word.iter().all(|byte| *byte == word[0]), "{word:?}");
                }
            });
        }
        for version in 1..=6_u8 {
            for from in (0..WORDS).step_by(1000) {
                file.write_all_at(&[version; 8000], from * 8).unwrap();
            }
            file.sync_all().unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    drop(file);
    site.remount();
    assert!(fs::read(site.at("file")).unwrap() == vec![6; WORDS as usize * 8]);
}

#[test]
fn locks_work_between_processes() {
    super::harness::need("flock", "util-linux");
    let site = Site::mounted();
    File::create(site.at("lock")).unwrap();
    let held = File::open(site.at("lock")).unwrap();
    held.lock().unwrap();
    let tried = Command::new("flock")
        .args(["--nonblock", "--conflict-exit-code", "9"])
        .arg(site.at("lock"))
        .arg("true")
        .status()
        .unwrap();
    assert_eq!(tried.code(), Some(9));
    held.unlock().unwrap();
    run(Command::new("flock").arg("--nonblock").arg(site.at("lock")).arg("true"));
}

#[test]
fn a_writer_that_never_closes_is_read_by_others() {
    let site = Site::mounted();
    let mut log = File::create(site.at("log")).unwrap();
    for number in 0..200 {
        writeln!(log, "line {number}").unwrap();
        if number % 50 == 0 {
            let seen = shell(&site.mountpoint(), "tail -n 1 log");
            assert_eq!(seen, format!("line {number}\n"));
        }
    }
}
