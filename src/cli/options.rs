//! The list behind `-o`, as fstab and mount(8) pass it.
//!
//! Owns which words there are: for the kernel, for the daemon, and those that are meant for others
//! and change nothing here. An unknown word is an error, so that a misspelt one is not lost.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;

use crate::fuse::Change;
use crate::volume::{Atime, Policy};

/// Least memory for a cache, bytes: less would not hold what one request needs.
const MEMORY_BYTES_MIN: u64 = 1 << 20;
/// Least quota, bytes: a volume needs some for itself.
const QUOTA_BYTES_MIN: u64 = 16 << 20;
/// Longest time between commits.
const COMMIT_SECONDS_MAX: u64 = 300;

/// Words that change nothing: for mount(8), systemd or the boot, or already so by nature
/// (permission bits are always judged).
const IGNORED: [&str; 27] = [
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "default_permissions",
    "lazytime",
    "nolazytime",
    "iversion",
    "noiversion",
    "mand",
    "nomand",
    "silent",
    "loud",
    "dirsync",
    "symfollow",
    "nonempty",
    "big_writes",
    "fsck",
    "quiet",
    "rbind",
    "private",
];

/// Words that mountinfo shows of a FUSE mount, and that mount(8) hands back on a remount.
const SHOWN: [&str; 6] = ["fd", "rootmode", "user_id", "group_id", "max_read", "blksize"];

/// What the words behind `-o` say; what is `None` was not said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// `ro` or `rw`.
    pub read_only: Option<bool>,
    /// `allow_other`.
    pub allow_other: bool,
    /// `suid` or `nosuid`.
    pub set_id: Option<bool>,
    /// `dev` or `nodev`.
    pub devices: Option<bool>,
    /// `exec` or `noexec`.
    pub execute: Option<bool>,
    /// `sync` or `async`.
    pub synchronous: Option<bool>,
    /// `noatime`, `relatime`, `strictatime`.
    pub atime: Option<Atime>,
    /// `diratime` or `nodiratime`.
    pub dir_atime: Option<bool>,
    /// `cache=SIZE`, bytes.
    pub cache_bytes: Option<u64>,
    /// `index_memory=SIZE`, bytes.
    pub index_memory_bytes: Option<u64>,
    /// `commit=SECONDS`.
    pub commit_interval: Option<Duration>,
    /// `check=TIME`: how long after one check the next one begins; 0 is never by itself.
    pub check_interval: Option<Duration>,
    /// `check_rate=SIZE`: bytes that it reads in a second; 0 is no limit.
    pub check_rate_bytes: Option<u64>,
    /// `quota=SIZE`: bytes that the volume may store; 0 is no limit.
    pub quota_bytes: Option<u64>,
    /// `gc` or `nogc`: whether space of deleted data comes back by itself.
    pub collects: Option<bool>,
    /// `snapshot=NAME`: that one alone is mounted, for reading.
    pub snapshot: Option<String>,
    /// `snapshots=hourly:24+daily:7+weekly:4`: made by themselves, and so many are kept.
    pub snapshots: Option<Policy>,
    /// `log=FILE`.
    pub log: Option<PathBuf>,
    /// `subtype=pyramidfs` or `subtype=none`: the type in mountinfo, with or without a name.
    pub subtype: Option<bool>,
    /// `remount`.
    pub remount: bool,
    /// A word of [`SHOWN`]: only a remount may have it.
    pub shown: Option<String>,
    /// The first word that nobody knows.
    pub unknown: Option<String>,
}

impl Options {
    /// Takes in what `other` says; it wins where both speak.
    pub fn merge(&mut self, other: &Options) {
        self.read_only = other.read_only.or(self.read_only);
        self.allow_other |= other.allow_other;
        self.set_id = other.set_id.or(self.set_id);
        self.devices = other.devices.or(self.devices);
        self.execute = other.execute.or(self.execute);
        self.synchronous = other.synchronous.or(self.synchronous);
        self.atime = other.atime.or(self.atime);
        self.dir_atime = other.dir_atime.or(self.dir_atime);
        self.cache_bytes = other.cache_bytes.or(self.cache_bytes);
        self.index_memory_bytes = other.index_memory_bytes.or(self.index_memory_bytes);
        self.commit_interval = other.commit_interval.or(self.commit_interval);
        self.check_interval = other.check_interval.or(self.check_interval);
        self.check_rate_bytes = other.check_rate_bytes.or(self.check_rate_bytes);
        self.quota_bytes = other.quota_bytes.or(self.quota_bytes);
        self.collects = other.collects.or(self.collects);
        self.snapshot = other.snapshot.clone().or(self.snapshot.take());
        self.snapshots = other.snapshots.or(self.snapshots);
        self.log = other.log.clone().or(self.log.take());
        self.subtype = other.subtype.or(self.subtype);
        self.remount |= other.remount;
        self.shown = self.shown.take().or(other.shown.clone());
        self.unknown = self.unknown.take().or(other.unknown.clone());
    }

    /// Refuses what was not known; mount(8) asks with `-s` to be generous there.
    pub fn check(&self, sloppy: bool) -> Result<(), String> {
        let shown = self.shown.as_ref().filter(|_| !self.remount);
        match self.unknown.as_ref().or(shown).filter(|_| !sloppy) {
            Some(word) => Err(format!("unknown option '{word}'")),
            None => Ok(()),
        }
    }

    /// The flags of the mount that a remount sets.
    pub fn change(&self) -> Change {
        Change {
            read_only: self.read_only,
            set_id: self.set_id,
            devices: self.devices,
            execute: self.execute,
            synchronous: self.synchronous,
            atime: self.atime,
            dir_atime: self.dir_atime,
        }
    }

    /// Refuses what a remount cannot change; `self` is what the mount has.
    pub fn refuse_changes(&self, asked: &Options) -> Result<(), String> {
        fn differs<T: PartialEq>(own: &Option<T>, asked: &Option<T>) -> bool {
            asked.is_some() && own != asked
        }
        let changed = [
            ("cache", differs(&self.cache_bytes, &asked.cache_bytes)),
            ("index_memory", differs(&self.index_memory_bytes, &asked.index_memory_bytes)),
            ("commit", differs(&self.commit_interval, &asked.commit_interval)),
            ("check", differs(&self.check_interval, &asked.check_interval)),
            ("check_rate", differs(&self.check_rate_bytes, &asked.check_rate_bytes)),
            ("gc", differs(&self.collects, &asked.collects)),
            ("snapshot", differs(&self.snapshot, &asked.snapshot)),
            ("snapshots", differs(&self.snapshots, &asked.snapshots)),
            ("log", differs(&self.log, &asked.log)),
            ("subtype", differs(&self.subtype, &asked.subtype)),
            ("allow_other", asked.allow_other && !self.allow_other),
        ];
        match changed.iter().find(|(_, changed)| *changed) {
            Some((word, _)) => {
                Err(format!("a remount cannot change '{word}': unmount, and mount again with it"))
            }
            None => Ok(()),
        }
    }

    fn take(&mut self, word: &str) -> Result<(), String> {
        match word.split_once('=') {
            None => self.take_flag(word),
            Some((name, value)) => self.take_value(name, value),
        }
    }

    fn take_flag(&mut self, word: &str) -> Result<(), String> {
        match word {
            "ro" => self.read_only = Some(true),
            "rw" => self.read_only = Some(false),
            "allow_other" => self.allow_other = true,
            "suid" => self.set_id = Some(true),
            "nosuid" => self.set_id = Some(false),
            "dev" => self.devices = Some(true),
            "nodev" => self.devices = Some(false),
            "exec" => self.execute = Some(true),
            "noexec" => self.execute = Some(false),
            "sync" => self.synchronous = Some(true),
            "async" => self.synchronous = Some(false),
            "noatime" => self.atime = Some(Atime::Never),
            // The kernel's own choice when nothing is said.
            "atime" | "relatime" | "nostrictatime" => self.atime = Some(Atime::Relative),
            "strictatime" | "norelatime" => self.atime = Some(Atime::Strict),
            "diratime" => self.dir_atime = Some(true),
            "nodiratime" => self.dir_atime = Some(false),
            "gc" => self.collects = Some(true),
            "nogc" => self.collects = Some(false),
            "remount" => self.remount = true,
            "" => {}
            _ if is_ignored(word) => {}
            "cache" | "index_memory" | "commit" | "check" | "check_rate" | "quota" | "log"
            | "subtype" | "snapshot" | "snapshots" => {
                return Err(format!("option '{word}' needs a value: '{word}=…'"));
            }
            _ => self.unknown = self.unknown.take().or(Some(word.to_owned())),
        }
        Ok(())
    }

    fn take_value(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "cache" => self.cache_bytes = Some(parse_size(value)?),
            "index_memory" => self.index_memory_bytes = Some(parse_size(value)?),
            "commit" => self.commit_interval = Some(parse_commit(value)?),
            "check" => self.check_interval = Some(parse_time(value)?),
            "check_rate" => self.check_rate_bytes = Some(parse_rate(value)?),
            "quota" => self.quota_bytes = Some(parse_quota(value)?),
            "snapshot" if value.is_empty() => return Err("'snapshot=' needs a name".to_owned()),
            "snapshot" => self.snapshot = Some(value.to_owned()),
            "snapshots" => self.snapshots = Some(Policy::parse(value)?),
            "log" if value.is_empty() => return Err("'log=' needs a file".to_owned()),
            "log" => self.log = Some(PathBuf::from(value)),
            "subtype" => self.subtype = Some(parse_subtype(value)?),
            "comment" | "uhelper" | "helper" => {}
            _ if is_ignored(name) => {}
            _ if SHOWN.contains(&name) => self.shown = Some(format!("{name}=…")),
            _ => self.unknown = self.unknown.take().or(Some(format!("{name}=…"))),
        }
        Ok(())
    }
}

fn is_ignored(word: &str) -> bool {
    word.starts_with("x-") || word.starts_with("X-") || IGNORED.contains(&word)
}

/// Parses a comma list. The error is one line. Unknown words are told by [`Options::check`].
pub fn parse(list: &str) -> Result<Options, String> {
    let mut options = Options::default();
    for word in list.split(',') {
        options.take(word.trim())?;
    }
    Ok(options)
}

/// Parses a size as `64MiB`, in bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let ByteSize(bytes) =
        text.parse().map_err(|_| format!("'{text}' is no size: write it as 64MiB"))?;
    if bytes < MEMORY_BYTES_MIN {
        return Err(format!("{text} is too little: at least 1MiB"));
    }
    Ok(bytes)
}

/// Parses bytes a second as `64MiB`; 0 sets no limit.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { parse_size(text) }
}

/// Parses a quota as `64GiB`; 0 sets no limit.
fn parse_quota(text: &str) -> Result<u64, String> {
    match parse_rate(text)? {
        bytes @ 1..QUOTA_BYTES_MIN => {
            Err(format!("a quota of {bytes} bytes is too little: at least 16MiB"))
        }
        bytes => Ok(bytes),
    }
}

/// Parses a time as `30d`, `12h`, `10m` or `90s`; seconds need no letter.
fn parse_time(text: &str) -> Result<Duration, String> {
    let units = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];
    let unit = units.into_iter().find(|(letter, _)| text.ends_with(*letter));
    let number = unit.map_or(text, |(letter, _)| text.trim_end_matches(letter));
    let seconds = number.parse::<u32>().map(|number| u64::from(number) * unit.map_or(1, |u| u.1));
    seconds
        .map(Duration::from_secs)
        .map_err(|_| format!("'{text}' is no time: write it as 30d, 12h or 10m"))
}

fn parse_subtype(value: &str) -> Result<bool, String> {
    match value {
        "pyramidfs" => Ok(true),
        "none" | "" => Ok(false),
        _ => Err(format!("subtype={value}: it is 'pyramidfs' or 'none'")),
    }
}

/// Parses the type behind `-t`, which says whether it has a subtype.
pub fn parse_type(text: &str) -> Result<bool, String> {
    match text {
        "pyramidfs" | "fuse.pyramidfs" => Ok(true),
        "fuse" => Ok(false),
        _ => Err(format!("{text} is no type of pyramidfs: it is 'fuse.pyramidfs' or 'fuse'")),
    }
}

fn parse_commit(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=COMMIT_SECONDS_MAX) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("commit={text}: give seconds from 1 to {COMMIT_SECONDS_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_words_of_ours() {
        let options = parse(
            "ro,allow_other,nosuid,nodev,noexec,sync,cache=64MiB,index_memory=1GiB,commit=30,log=/l,\
             subtype=none,strictatime,nodiratime,check=30d,check_rate=0,quota=1GiB,\
             nogc,snapshot=s,snapshots=daily:7",
        );
        let expected = Options {
            read_only: Some(true),
            allow_other: true,
            set_id: Some(false),
            devices: Some(false),
            execute: Some(false),
            synchronous: Some(true),
            atime: Some(Atime::Strict),
            dir_atime: Some(false),
            cache_bytes: Some(64 << 20),
            index_memory_bytes: Some(1 << 30),
            commit_interval: Some(Duration::from_secs(30)),
            check_interval: Some(Duration::from_secs(30 * 86_400)),
            check_rate_bytes: Some(0),
            quota_bytes: Some(1 << 30),
            collects: Some(false),
            log: Some(PathBuf::from("/l")),
            subtype: Some(false),
            snapshot: Some("s".to_owned()),
            snapshots: Policy::parse("daily:7").ok(),
            ..Options::default()
        };
        assert_eq!(options, Ok(expected));
    }

    #[test]
    fn times() {
        for (text, seconds) in [("0", 0), ("90", 90), ("5s", 5), ("2m", 120), ("3h", 10_800)] {
            assert_eq!(parse_time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert!(parse_time("99999999999d").is_err());
    }

    #[test]
    fn what_fstab_passes_changes_nothing() {
        let list = "defaults,rw,_netdev,nofail,noauto,user,x-systemd.automount,\
            x-systemd.requires=/v,X-mount.mkdir,comment=x,lazytime,,";
        let expected = Options { read_only: Some(false), ..Options::default() };
        assert_eq!(parse(list), Ok(expected));
    }

    #[test]
    fn unknown_and_malformed_words_are_refused() {
        let refused = |list: &str| match parse(list) {
            Ok(options) => options.check(false).is_err(),
            Err(_) => true,
        };
        for list in [
            "user_id=0",
            "subtype=sshfs",
            "cahce=1GiB",
            "cache",
            "cache=",
            "cache=lots",
            "cache=5",
            "commit=0",
            "commit=-1",
            "commit=9999",
            "check=",
            "check=d",
            "check=1w",
            "check_rate=5",
            "quota",
            "quota=lots",
            "quota=1MiB",
            "log=",
            "ro,nosense",
        ] {
            assert!(refused(list), "{list}");
        }
        assert_eq!(parse("a,b=1").unwrap().check(false).unwrap_err(), "unknown option 'a'");
        assert_eq!(parse("b=1").unwrap().check(false).unwrap_err(), "unknown option 'b=…'");
        assert_eq!(parse("nosense,b=1").unwrap().check(true), Ok(()));
        assert_eq!(parse("remount,user_id=0,max_read=4096").unwrap().check(false), Ok(()));
    }

    #[test]
    fn a_remount_changes_flags_alone() {
        let own = Options { allow_other: true, ..parse("cache=8MiB,commit=5").unwrap() };
        let lists = ["ro", "rw,nosuid", "cache=8MiB,commit=5,allow_other", "defaults,noatime"];
        for list in lists.into_iter().chain(["quota=1GiB", "quota=0"]) {
            assert_eq!(own.refuse_changes(&parse(list).unwrap()), Ok(()), "{list}");
        }
        let lists = ["cache=9MiB", "commit=6", "log=/l", "subtype=none", "index_memory=1GiB"];
        for list in lists.into_iter().chain(["check=30d", "check_rate=1MiB"]) {
            let line = own.refuse_changes(&parse(list).unwrap()).unwrap_err();
            assert!(line.contains("unmount"), "{list}: {line}");
        }
        let change = parse("remount,ro,noexec,async").unwrap().change();
        assert_eq!((change.read_only, change.execute), (Some(true), Some(false)));
        assert_eq!((change.synchronous, change.set_id), (Some(false), None));
    }

    #[test]
    fn the_last_word_wins() {
        assert_eq!(parse("ro,rw").map(|options| options.read_only), Ok(Some(false)));
        let mut first = parse("ro,cache=2MiB").unwrap();
        first.merge(&parse("cache=4MiB").unwrap());
        assert_eq!(first.cache_bytes, Some(4 << 20));
        assert_eq!(first.read_only, Some(true));
    }
}
