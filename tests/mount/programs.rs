//! Programs that people use, on the mount: their results must be what they are elsewhere, also
//! after the mount was unmounted and mounted again.

use std::fs;
use std::process::Command;

use super::harness::{Site, need, run, shell};

/// A tree of real sources, packed once: headers of the C library, or documents.
fn pack_tree(site: &Site) {
    let from = ["/usr/include", "/usr/share/doc", "/etc"]
        .into_iter()
        .find(|path| fs::read_dir(path).is_ok_and(|entries| entries.count() > 20))
        .expect("a directory with something in it");
    // The first 15 MiB are enough, and links that lead outside are not wanted.
    let line = format!(
        "cd {from} && find . -type f -size -300k -printf '%p\\t%s\\n' | sort \
         | awk -F '\\t' '{{ sum += $2; if (sum > 15000000) exit; print $1 }}' \
         | tar -cf {} -T -",
        site.path("tree.tar").display()
    );
    shell(&site.path(""), &line);
    shell(&site.path(""), "mkdir plain && tar -xf tree.tar -C plain");
}

#[test]
fn tar_unpacks_the_same_tree_twice() {
    let site = Site::mounted();
    pack_tree(&site);
    let unpack = "tar -xf ../../tree.tar";
    for dir in ["one", "two"] {
        fs::create_dir(site.at(dir)).unwrap();
        shell(&site.at(dir), unpack);
        shell(&site.path(""), &format!("diff -r plain mnt/{dir}"));
    }
    let count = shell(&site.path(""), "find plain | wc -l");
    assert_eq!(shell(&site.at("one"), "find . | wc -l"), count);
    let pack =
        "tar -cf - --sort=name --format=pax --pax-option=delete=atime,delete=ctime . | sha256sum";
    let state = |site: &Site| {
        for dir in ["one", "two"] {
            shell(&site.path(""), &format!("diff -r plain mnt/{dir}"));
        }
        shell(&site.at("two"), pack)
    };
    let before = state(&site);
    // The directories' own times differ, the files' do not.
    let files = "find . -type f -printf '%p %m %s %T@\\n' | sort | sha256sum";
    assert_eq!(shell(&site.at("one"), files), shell(&site.path("plain"), files));
    site.remount();
    assert_eq!(state(&site), before);
    shell(&site.mountpoint(), "rm -r one && test ! -e one && mv two one && rm -r one");
    site.umount_and_check();
}

#[test]
fn git_clones_and_verifies() {
    need("git", "git");
    let site = Site::mounted();
    pack_tree(&site);
    let git = "git -c user.name=n -c user.email=e@x -c init.defaultBranch=main";
    shell(
        &site.mountpoint(),
        &format!(
            "export HOME=$PWD; mkdir source; cd source; tar -xf ../../tree.tar; {git} init -q .; \
             {git} add .; {git} commit -qm one; echo more > more; {git} add .; \
             {git} commit -qm two; {git} gc -q; cd ..; {git} clone -q --no-hardlinks source clone; \
             {git} -C clone fsck --full --strict; {git} clone -q source linked; \
             {git} -C linked fsck --full; test -z \"$({git} -C clone status --porcelain)\""
        ),
    );
    site.remount();
    shell(
        &site.mountpoint(),
        &format!(
            "export HOME=$PWD; {git} -C clone fsck --full; {git} -C linked fsck --full; \
             test -z \"$({git} -C linked status --porcelain)\"; cd clone; \
             {git} checkout -q HEAD~1; test ! -e more; {git} checkout -q main; test -e more"
        ),
    );
    site.umount_and_check();
}

#[test]
fn sqlite_keeps_its_database() {
    need("sqlite3", "sqlite3");
    let site = Site::mounted();
    let rows = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000) \
        insert into t(word, data) select 'word ' || i, randomblob(100) from n;";
    for mode in ["wal", "delete"] {
        let script = format!(
            "pragma journal_mode={mode}; pragma synchronous=full; create table t(id integer primary \
             key, word text, data blob); {rows} create index w on t(word); begin; update t set \
             data = zeroblob(300) where id % 7 = 0; commit; delete from t where id % 11 = 0; \
             {rows} pragma integrity_check;"
        );
        let told = shell(&site.mountpoint(), &format!("sqlite3 {mode}.db \"{script}\""));
        assert_eq!(told, format!("{mode}\nok\n"));
    }
    let ask = |mode: &str| {
        let ask = "pragma integrity_check; select count(*), sum(length(data)), max(id) from t; \
             select count(*) from t where word = 'word 77';";
        shell(&site.mountpoint(), &format!("sqlite3 {mode}.db \"{ask}\""))
    };
    let (wal, delete) = (ask("wal"), ask("delete"));
    assert!(wal.starts_with("ok\n38182|"), "{wal}");
    site.remount();
    assert_eq!((ask("wal"), ask("delete")), (wal, delete));
    site.umount_and_check();
}

#[test]
fn sqlite_loses_no_commit_in_a_kill() {
    need("sqlite3", "sqlite3");
    let site = Site::mounted();
    let sql = |line: &str| {
        let line = format!("pragma synchronous=full; {line}");
        let mut command = Command::new("sqlite3");
        let output = run(command.arg(site.at("db")).arg(line));
        String::from_utf8(output.stdout).unwrap()
    };
    sql("pragma journal_mode=wal; create table t(i integer);");
    for round in 1..=10 {
        sql(&format!("insert into t values({round});"));
        if round % 3 == 0 {
            site.kill_daemon();
            site.mount();
        }
        assert_eq!(
            sql("select count(*) from t; pragma integrity_check;"),
            format!("{round}\nok\n")
        );
    }
    site.umount_and_check();
}

#[test]
fn rsync_finds_nothing_to_do_afterwards() {
    need("rsync", "rsync");
    let site = Site::mounted();
    pack_tree(&site);
    shell(
        &site.path("plain"),
        "mkdir -p special; cd special; echo x > file; ln file hard; ln -s ../nowhere soft; \
         mkfifo pipe; mknod null c 1 3; mkdir empty; chmod 4711 file; chown 1234:4321 file; \
         touch -hd '1999-01-02 03:04:05.678901234' soft file empty; truncate -s 200M sparse",
    );
    // Extended attributes where the other side has them too.
    let x = if super::plain::takes_xattrs(&site.path("plain")) { "X" } else { "" };
    if x == "X" {
        super::plain::set_xattr(&site.path("plain/special/file"), "user.a", b"value", 0).unwrap();
    }
    let sync = |from: &str, to: &str| {
        shell(&site.path(""), &format!("rsync -aH{x} --sparse --delete {from}/ {to}"))
    };
    let differences = |from: &str, to: &str| {
        shell(&site.path(""), &format!("rsync -aH{x}nic --exclude=sparse --delete {from}/ {to}"))
    };
    sync("plain", "mnt/copy");
    assert_eq!(differences("plain", "mnt/copy"), "");
    site.remount();
    assert_eq!(differences("plain", "mnt/copy"), "");
    sync("mnt/copy", "back");
    assert_eq!(differences("plain", "back"), "");
    shell(&site.path(""), "cmp -n 1000000 plain/special/sparse mnt/copy/special/sparse");
    shell(&site.mountpoint(), "rm copy/special/file; touch copy/new");
    sync("plain", "mnt/copy");
    assert_eq!(differences("plain", "mnt/copy"), "");
    site.umount_and_check();
}

#[test]
fn fio_reads_back_what_it_wrote() {
    need("fio", "fio");
    let site = Site::mounted();
    let jobs = [
        ("mixed", "--rw=randrw --bs=4k-64k --ioengine=psync --fsync=64"),
        ("mapped", "--rw=randwrite --bs=4k --ioengine=mmap"),
        ("direct", "--rw=randwrite --bs=8k --ioengine=psync --direct=1"),
        ("unaligned", "--rw=randwrite --bs=513-20001 --bs_unaligned --ioengine=psync"),
    ];
    for (name, job) in jobs {
        let line = format!(
            "fio --name={name} --directory={} --size=12m --verify=crc32c --do_verify=1 \
             --verify_fatal=1 --randseed=1 --allrandrepeat=1 --output-format=terse {job}",
            site.mountpoint().display()
        );
        shell(&site.path(""), &line);
    }
    site.remount();
    let line = "fio --name=mapped --size=12m --verify=crc32c --verify_only --verify_fatal=1 \
        --randseed=1 --allrandrepeat=1 --rw=randwrite --bs=4k --ioengine=psync \
        --output-format=terse --directory=mnt";
    shell(&site.path(""), line);
    site.umount_and_check();
}
