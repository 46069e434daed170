//! The list behind `-o`, as fstab and mount(8) pass it.
//!
//! Owns which words there are: for the kernel, for the daemon, and those that are meant for others
//! and change nothing here. An unknown word is an error, so that a misspelt one is not lost.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;

/// Least memory for a cache, bytes: less would not hold what one request needs.
const MEMORY_BYTES_MIN: u64 = 1 << 20;
/// Longest time between commits.
const COMMIT_SECONDS_MAX: u64 = 300;

/// Words that change nothing: for mount(8), systemd or the boot, or already so by nature (the
/// kernel sets no access times on FUSE, and permission bits are always judged).
const IGNORED: [&str; 36] = [
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
    "async",
    "default_permissions",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
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
    /// `sync`.
    pub synchronous: bool,
    /// `cache=SIZE`, bytes.
    pub cache_bytes: Option<u64>,
    /// `index_memory=SIZE`, bytes.
    pub index_memory_bytes: Option<u64>,
    /// `commit=SECONDS`.
    pub commit_interval: Option<Duration>,
    /// `log=FILE`.
    pub log: Option<PathBuf>,
}

impl Options {
    /// Takes in what `other` says; it wins where both speak.
    pub fn merge(&mut self, other: &Options) {
        self.read_only = other.read_only.or(self.read_only);
        self.allow_other |= other.allow_other;
        self.set_id = other.set_id.or(self.set_id);
        self.devices = other.devices.or(self.devices);
        self.execute = other.execute.or(self.execute);
        self.synchronous |= other.synchronous;
        self.cache_bytes = other.cache_bytes.or(self.cache_bytes);
        self.index_memory_bytes = other.index_memory_bytes.or(self.index_memory_bytes);
        self.commit_interval = other.commit_interval.or(self.commit_interval);
        self.log = other.log.clone().or(self.log.take());
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
            "sync" => self.synchronous = true,
            "" => {}
            _ if is_ignored(word) => {}
            "cache" | "index_memory" | "commit" | "log" => {
                return Err(format!("option '{word}' needs a value: '{word}=…'"));
            }
            _ => return Err(format!("unknown option '{word}'")),
        }
        Ok(())
    }

    fn take_value(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "cache" => self.cache_bytes = Some(parse_size(value)?),
            "index_memory" => self.index_memory_bytes = Some(parse_size(value)?),
            "commit" => self.commit_interval = Some(parse_commit(value)?),
            "log" if value.is_empty() => return Err("'log=' needs a file".to_owned()),
            "log" => self.log = Some(PathBuf::from(value)),
            "comment" | "uhelper" | "helper" => {}
            _ if is_ignored(name) => {}
            _ => return Err(format!("unknown option '{name}=…'")),
        }
        Ok(())
    }
}

fn is_ignored(word: &str) -> bool {
    word.starts_with("x-") || word.starts_with("X-") || IGNORED.contains(&word)
}

/// Parses a comma list. The error is one line.
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
            "ro,allow_other,nosuid,nodev,noexec,sync,cache=64MiB,index_memory=1GiB,commit=30,log=/l",
        );
        let expected = Options {
            read_only: Some(true),
            allow_other: true,
            set_id: Some(false),
            devices: Some(false),
            execute: Some(false),
            synchronous: true,
            cache_bytes: Some(64 << 20),
            index_memory_bytes: Some(1 << 30),
            commit_interval: Some(Duration::from_secs(30)),
            log: Some(PathBuf::from("/l")),
        };
        assert_eq!(options, Ok(expected));
    }

    #[test]
    fn what_fstab_passes_changes_nothing() {
        let list = "defaults,rw,_netdev,nofail,noauto,user,x-systemd.automount,\
            x-systemd.requires=/v,X-mount.mkdir,comment=x,relatime,,";
        let expected = Options { read_only: Some(false), ..Options::default() };
        assert_eq!(parse(list), Ok(expected));
    }

    #[test]
    fn unknown_and_malformed_words_are_refused() {
        for list in [
            "remount",
            "cahce=1GiB",
            "cache",
            "cache=",
            "cache=lots",
            "cache=5",
            "commit=0",
            "commit=-1",
            "commit=9999",
            "log=",
            "ro,nosense",
        ] {
            assert!(parse(list).is_err(), "{list}");
        }
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
