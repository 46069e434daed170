//! Snapshots that are made by themselves, and how many of them are kept.
//!
//! Owns [`Policy`] with its plan, which is a pure function, and [`Keeper`], the thread that follows
//! it. A snapshot is named after the beginning of its hour, day or week (from Monday on, all in
//! UTC): `hourly-2026-11-28T06:00:00Z`. So a policy needs no memory: what is missing is seen from
//! the names, also after a remount, and of several hours that were missed one is made up, the last.
//!
//! Invariants: (1) only snapshots with such names are deleted; (2) of each kind the newest stay, by
//! the order in which they were made, so that a clock that was set back deletes nothing anew.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::super::{Current, Error, Volume};
use super::SnapshotInfo;
use crate::sys::Clock;

/// The kinds: name, seconds, and seconds from a beginning of one to 1970-01-01, a Thursday.
const KINDS: [(&str, i64, i64); 3] =
    [("hourly", 3600, 0), ("daily", 86_400, 0), ("weekly", 604_800, 3 * 86_400)];

/// Most snapshots of one kind.
const KEPT_MAX: u32 = 10_000;

/// Longest sleep: a clock may be set, and a machine may sleep.
const SLEEP_MAX: Duration = Duration::from_secs(600);
/// How long to wait after a failure.
const RETRY_WAIT: Duration = Duration::from_secs(60);

/// How many snapshots of each kind are kept; 0: none is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    kept: [u32; 3],
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Names of snapshots to be made.
    pub make: Vec<String>,
    /// Names of snapshots to be deleted.
    pub delete: Vec<Vec<u8>>,
}

impl Policy {
    /// Parses `hourly:24+daily:7+weekly:4`.
    pub fn parse(text: &str) -> Result<Policy, String> {
        let mut policy = Policy::default();
        for part in text.split('+') {
            let wrong = || format!("'{part}' is no policy: write it as hourly:24+daily:7+weekly:4");
            let (name, count) = part.split_once(':').ok_or_else(wrong)?;
            let kind = KINDS.iter().position(|kind| kind.0 == name).ok_or_else(wrong)?;
            let count: u32 = count.parse().map_err(|_| wrong())?;
            if KEPT_MAX < count {
                return Err(format!("{part}: at most {KEPT_MAX} of a kind are kept"));
            }
            policy.kept[kind] = count;
        }
        Ok(policy)
    }

    /// What is to be done at `now`, in seconds since 1970, with these snapshots there.
    pub fn plan(&self, now: i64, there: &[SnapshotInfo]) -> Plan {
        let mut plan = Plan::default();
        for ((kind, period, offset), kept) in KINDS.into_iter().zip(self.kept) {
            let kept = kept as usize;
            if kept == 0 {
                continue;
            }
            let mut own: Vec<&SnapshotInfo> =
                there.iter().filter(|info| is_of_kind(&info.name, kind)).collect();
            own.sort_by_key(|info| info.number);
            let name = name_of(kind, beginning(now, period, offset));
            let is_missing = own.iter().all(|info| info.name != name.as_bytes());
            let surplus = (own.len() + usize::from(is_missing)).saturating_sub(kept);
            plan.delete.extend(own.iter().take(surplus).map(|info| info.name.clone()));
            if is_missing {
                plan.make.push(name);
            }
        }
        plan
    }

    /// Seconds until the next one is due.
    pub fn wait(&self, now: i64) -> Duration {
        let wanted = KINDS.into_iter().zip(self.kept).filter(|(_, kept)| *kept != 0);
        let next =
            wanted.map(|((_, period, offset), _)| beginning(now, period, offset) + period - now);
        next.min().map_or(SLEEP_MAX, |left| Duration::from_secs(left.unsigned_abs()))
    }
}

fn beginning(now: i64, period: i64, offset: i64) -> i64 {
    (now + offset).div_euclid(period) * period - offset
}

fn name_of(kind: &str, secs: i64) -> String {
    format!("{kind}-{}", utc(secs))
}

/// Whether the name is one that a policy gives.
fn is_of_kind(name: &[u8], kind: &str) -> bool {
    let Some(rest) = name.strip_prefix(kind.as_bytes()) else { return false };
    let pattern = b"-0000-00-00T00:00:00Z";
    rest.len() == pattern.len()
        && rest.iter().zip(pattern).all(|(byte, like)| match like {
            b'0' => byte.is_ascii_digit(),
            like => byte == like,
        })
}

/// A time, seconds since 1970, as `2026-11-28T06:00:00Z`.
pub fn utc(secs: i64) -> String {
    let (days, rest) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
    // Years begin in March, so that the day that is sometimes missing is the last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Runs before a snapshot is made: what the kernel holds is handed over.
type Before = Box<dyn Fn() + Send + Sync>;

/// The thread that follows a policy. It ends when it is dropped.
pub struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    volume: Weak<Current>,
    clock: Arc<dyn Clock>,
    policy: Policy,
    before: Before,
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Keeper {
    /// Starts the thread.
    pub fn start(
        volume: &Arc<Current>,
        clock: Arc<dyn Clock>,
        policy: Policy,
        before: impl Fn() + Send + Sync + 'static,
    ) -> std::io::Result<Keeper> {
        let shared = Arc::new(Shared {
            volume: Arc::downgrade(volume),
            clock,
            policy,
            before: Box::new(before),
            stopped: Mutex::new(false),
            changed: Condvar::new(),
        });
        let of_thread = Arc::clone(&shared);
        let named = std::thread::Builder::new().name("snapshots".to_owned());
        let thread = named.spawn(move || of_thread.run())?;
        Ok(Keeper { shared, thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        *self.shared.stopped.lock() = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that makes snapshots panicked");
        }
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let Some(volume) = self.volume.upgrade() else { return };
            let kept = match volume.is_writable() {
                true => volume.keep_snapshots(&self.policy, &*self.before),
                false => Ok(()),
            };
            drop(volume);
            let wait = match kept {
                Ok(()) => self.policy.wait(self.clock.now().secs).min(SLEEP_MAX),
                Err(error) => {
                    tracing::warn!("cannot keep to the policy of snapshots: {error}");
                    RETRY_WAIT
                }
            };
            let mut stopped = self.stopped.lock();
            if !*stopped {
                self.changed.wait_for(&mut stopped, wait);
            }
            if *stopped {
                return;
            }
        }
    }
}

impl Volume {
    /// Makes and deletes what a policy wants now.
    pub fn keep_snapshots(&self, policy: &Policy, before: &dyn Fn()) -> Result<(), Error> {
        let plan = policy.plan(self.now().secs, &self.snapshots());
        if !plan.make.is_empty() {
            before();
        }
        for name in plan.make {
            match self.snapshot_create(name.as_bytes()) {
                Ok(_) => tracing::info!("made the snapshot {name}"),
                // Somebody else was faster.
                Err(Error::Exists) => {}
                Err(error) => return Err(error),
            }
        }
        for name in plan.delete {
            match self.snapshot_delete(&name) {
                Ok(()) => {
                    tracing::info!("deleted the snapshot {}", String::from_utf8_lossy(&name));
                }
                Err(Error::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Timestamp;

    const SATURDAY: i64 = 1_795_845_600;

    fn there(names: &[String]) -> Vec<SnapshotInfo> {
        let info = |(number, name): (u64, &String)| SnapshotInfo {
            number,
            name: name.clone().into_bytes(),
            time: Timestamp::default(),
            files: 0,
            logical_bytes: 0,
        };
        (1..).zip(names).map(info).collect()
    }

    #[test]
    fn times_as_text() {
        assert_eq!(utc(SATURDAY), "2026-11-28T06:00:00Z");
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(-1), "1969-12-31T23:59:59Z");
        assert_eq!(utc(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn policies_as_text() {
        let policy = Policy::parse("hourly:24+daily:7+weekly:4").unwrap();
        assert_eq!(policy, Policy { kept: [24, 7, 4] });
        assert_eq!(Policy::parse("weekly:2").unwrap(), Policy { kept: [0, 0, 2] });
        for wrong in ["", "hourly", "hourly:x", "yearly:1", "hourly:1,daily:1", "daily:10001"] {
            assert!(Policy::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_of_each_kind_is_made_in_its_time() {
        let policy = Policy::parse("hourly:24+daily:7+weekly:4").unwrap();
        let plan = policy.plan(SATURDAY + 1234, &[]);
        let names = [
            "hourly-2026-11-28T06:00:00Z",
            "daily-2026-11-28T00:00:00Z",
            // The Monday before.
            "weekly-2026-11-23T00:00:00Z",
        ];
        assert_eq!(plan.make, names);
        assert_eq!(policy.plan(SATURDAY + 3599, &there(&plan.make)), Plan::default());
        let next = policy.plan(SATURDAY + 3600, &there(&plan.make));
        assert_eq!(next.make, ["hourly-2026-11-28T07:00:00Z"]);
        assert_eq!(policy.wait(SATURDAY + 1), Duration::from_secs(3599));
        assert_eq!(
            Policy::parse("daily:1").unwrap().wait(SATURDAY),
            Duration::from_secs(18 * 3600)
        );
    }

    #[test]
    fn the_oldest_of_its_own_go() {
        let policy = Policy::parse("hourly:2").unwrap();
        let mut names: Vec<String> =
            ["hourly-by-hand", "daily-2026-11-28T00:00:00Z", "x"].map(str::to_owned).into();
        for hour in 0..10 {
            let plan = policy.plan(SATURDAY + hour * 3600, &there(&names));
            names.retain(|name| !plan.delete.contains(&name.clone().into_bytes()));
            names.extend(plan.make);
            assert_eq!(names.len(), 3 + (hour as usize + 1).min(2), "{names:?}");
        }
        assert_eq!(names[4], "hourly-2026-11-28T15:00:00Z");
        // A clock that was set back: one is made, and stays.
        let plan = policy.plan(0, &there(&names));
        assert_eq!(plan.make, ["hourly-1970-01-01T00:00:00Z"]);
        assert_eq!(plan.delete, [b"hourly-2026-11-28T14:00:00Z"]);
        names.remove(3);
        names.extend(plan.make);
        assert_eq!(policy.plan(1, &there(&names)), Plan::default());
    }
}
