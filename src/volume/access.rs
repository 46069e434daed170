//! When reading moves an inode's time of access: the rule, which a remount changes.
//!
//! Owns [`Rule`]. It is read with every read request, so it is one byte without a lock.

use std::sync::atomic::{AtomicU8, Ordering};

use super::{Atime, OpenOptions, Volume};

/// The bit for directories; below it stands the rule.
const DIRECTORIES: u8 = 4;

/// The rule that holds now.
#[derive(Debug)]
pub(super) struct Rule(AtomicU8);

impl Rule {
    pub(super) fn new(options: &OpenOptions) -> Rule {
        Rule(AtomicU8::new(encode(options.atime, options.dir_atime)))
    }

    /// When it moves.
    pub(super) fn atime(&self) -> Atime {
        match self.0.load(Ordering::Relaxed) & !DIRECTORIES {
            0 => Atime::Never,
            1 => Atime::Relative,
            _ => Atime::Strict,
        }
    }

    /// Whether that goes for directories too.
    pub(super) fn directories(&self) -> bool {
        self.0.load(Ordering::Relaxed) & DIRECTORIES != 0
    }
}

impl Volume {
    /// Changes when reading moves times of access, from the next read on.
    pub fn set_access_times(&self, atime: Atime, directories: bool) {
        self.access.0.store(encode(atime, directories), Ordering::Relaxed);
    }
}

fn encode(atime: Atime, directories: bool) -> u8 {
    let rule = match atime {
        Atime::Never => 0,
        Atime::Relative => 1,
        Atime::Strict => 2,
    };
    rule | if directories { DIRECTORIES } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_fits_its_byte() {
        for atime in [Atime::Never, Atime::Relative, Atime::Strict] {
            for dir_atime in [false, true] {
                let rule = Rule::new(&OpenOptions { atime, dir_atime, ..OpenOptions::default() });
                assert_eq!((rule.atime(), rule.directories()), (atime, dir_atime));
            }
        }
    }
}
