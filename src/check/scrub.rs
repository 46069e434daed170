//! Checking a mounted volume, beside its use: paced, resumable, on a schedule.
//!
//! Owns [`Scrub`]: one thread that checks when it is asked or when it is time, and what it found
//! last. How far it has come is an entry of the metadata, written with the ordinary commits, so
//! that a check which an unmount cuts short goes on at the next mount where it was.
//!
//! Invariants: (1) one check at a time; whoever asks meanwhile joins it; (2) it reads no more bytes
//! a second than it was told; (3) it ends soon after [`Scrub::stop`], and before the volume closes.
//!
//! Absent on purpose: who asks, and how it is printed.

use std::ops::ControlFlow;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{Progress, Report, online};
use crate::meta::{CheckState, Key};
use crate::sys::Clock;
use crate::volume::{Current, Error, Volume};

/// How often the place is written down.
const NOTE_INTERVAL: Duration = Duration::from_secs(10);
/// Findings that are kept; all are counted.
const FINDINGS_MAX: usize = 1000;
/// A check that is due waits that long after a mount: others have the disk then.
const FIRST_WAIT: Duration = Duration::from_secs(60);
/// One that did not end is not taken up before that by itself.
const RETRY_WAIT: Duration = Duration::from_secs(3600);

/// When and how fast a volume is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Time from the end of one check to the beginning of the next; none: only when asked.
    pub interval: Option<Duration>,
    /// Bytes of packs that are read in a second, at most; 0 sets no limit.
    pub rate_bytes: u64,
}

impl Schedule {
    /// What is read in a second when nobody says so: a tenth or less of what disks give.
    pub const RATE_BYTES: u64 = 64 << 20;
}

/// What is known of the last check, or of the one under way.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Figures {
    /// Whether one is under way.
    pub running: bool,
    /// How far it is in its part, in the part's own unit.
    pub done_bytes: u64,
    /// All that there is to do in the part.
    pub total_bytes: u64,
    /// The part.
    pub what: String,
    /// When the last one that looked at everything ended: seconds since 1970, 0 for never.
    pub finished: u64,
    /// What it found, or what this one has found so far.
    pub finding_count: u64,
    /// The first of them, a line each; of a check before the mount only their number is known.
    pub findings: Vec<String>,
    /// Damaged places whose chunks were stored anew elsewhere.
    pub healed: u64,
    /// Inodes that were looked at.
    pub files: u64,
    /// Chunks in the packs.
    pub chunks: u64,
    /// Bytes of the packs.
    pub bytes: u64,
    /// Why it could not go on.
    pub failure: Option<String>,
}

/// Checks of a volume that is in use.
pub struct Scrub {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    volume: Weak<Current>,
    clock: Arc<dyn Clock>,
    interval: Option<Duration>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// A check that somebody asked for: whether with all data.
    asked: Option<bool>,
    /// Ends the check under way.
    cancelled: bool,
    stopped: bool,
    rate_bytes: u64,
    /// None begins by itself before this time of the clock.
    not_before: Duration,
    figures: Figures,
}

impl Scrub {
    /// Starts the thread for a volume that was just opened.
    pub fn start(
        volume: &Arc<Current>,
        clock: Arc<dyn Clock>,
        schedule: Schedule,
    ) -> std::io::Result<Scrub> {
        let kept = kept(volume);
        let figures =
            Figures { finished: kept.finished, finding_count: kept.findings, ..Figures::default() };
        let rate_bytes = schedule.rate_bytes;
        let first_wait = FIRST_WAIT.min(schedule.interval.unwrap_or_default());
        let not_before = clock.monotonic() + first_wait;
        let state = State {
            asked: None,
            cancelled: false,
            stopped: false,
            rate_bytes,
            not_before,
            figures,
        };
        let shared = Arc::new(Shared {
            volume: Arc::downgrade(volume),
            clock,
            interval: schedule.interval,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let of_thread = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("check".to_owned()).spawn(move || of_thread.run())?;
        Ok(Scrub { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Asks for a check, or joins the one under way; a rate holds from now on.
    pub fn ask(&self, read_data: bool, rate_bytes: Option<u64>) -> Figures {
        let mut state = self.shared.state.lock();
        state.rate_bytes = rate_bytes.unwrap_or(state.rate_bytes);
        if !state.figures.running {
            state.asked = Some(read_data);
            let finished = state.figures.finished;
            // From now on: who asks again at once must not take the last one for this one.
            state.figures = Figures { running: true, finished, ..Figures::default() };
        }
        self.shared.changed.notify_all();
        state.figures.clone()
    }

    /// Ends the check under way; its place is kept.
    pub fn cancel(&self) {
        self.shared.state.lock().cancelled = true;
        self.shared.changed.notify_all();
    }

    /// What is known.
    pub fn figures(&self) -> Figures {
        self.shared.state.lock().figures.clone()
    }

    /// Ends the thread, and with it the check under way; its place is kept.
    pub fn stop(&self) {
        self.shared.state.lock().stopped = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that checks the volume panicked");
        }
    }
}

impl Drop for Scrub {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the metadata keeps of checks.
fn kept(volume: &Volume) -> CheckState {
    let value = volume.meta().get(&Key::Check).ok().flatten();
    value.and_then(|bytes| CheckState::decode(&bytes).ok()).unwrap_or_default()
}

/// Writes that down, with the next commit.
fn keep(volume: &Current, state: &CheckState) {
    if volume.is_writable() {
        volume.meta().enter().put(&Key::Check, state.encode());
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let Some(read_data) = self.next() else { return };
            let Some(volume) = self.volume.upgrade() else { return };
            self.state.lock().cancelled = false;
            let checked = self.check(&volume, read_data);
            let mut state = self.state.lock();
            if let Err(error) = checked {
                tracing::error!("the check ended early: {error}");
                state.figures.running = false;
                state.figures.failure = Some(error.to_string());
            }
            if state.figures.failure.is_some() {
                state.not_before = self.clock.monotonic() + RETRY_WAIT;
            }
        }
    }

    /// Waits until somebody asks or it is time; none when the thread is to end.
    fn next(&self) -> Option<bool> {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(read_data) = state.asked.take() {
                return Some(read_data);
            }
            let Some(left) = self.left(state.figures.finished, state.not_before) else {
                self.changed.wait(&mut state);
                continue;
            };
            if left.is_zero() {
                let finished = state.figures.finished;
                state.figures = Figures { running: true, finished, ..Figures::default() };
                return Some(true);
            }
            self.changed.wait_for(&mut state, left);
        }
    }

    /// Time until a check is due; none when none is.
    fn left(&self, finished: u64, not_before: Duration) -> Option<Duration> {
        let interval = self.interval?;
        let volume = self.volume.upgrade()?;
        // A clock that was set back must not put it off for ever.
        let now = u64::try_from(self.clock.now().secs).unwrap_or(0);
        let since = Duration::from_secs(now.checked_sub(finished).unwrap_or(u64::MAX));
        let due = if kept(&volume).next_pack > 0 {
            Duration::ZERO
        } else {
            interval - since.min(interval)
        };
        Some(due.max(not_before.saturating_sub(self.clock.monotonic())))
    }

    fn check(&self, volume: &Arc<Current>, read_data: bool) -> Result<(), Error> {
        let mut state = kept(volume);
        let mut pace = Pace { clock: &*self.clock, from: None };
        let mut noted = self.clock.monotonic();
        let first = state.next_pack;
        if first == 0 {
            state.findings = 0;
        }
        let checked = online(volume, first, read_data, &mut |at: Progress| {
            {
                let mut state = self.state.lock();
                let figures = &mut state.figures;
                (figures.done_bytes, figures.total_bytes) = (at.done_bytes, at.total_bytes);
                at.what.clone_into(&mut figures.what);
            }
            let now = self.clock.monotonic();
            state.next_pack = state.next_pack.max(at.pack);
            if NOTE_INTERVAL <= now.saturating_sub(noted) {
                keep(volume, &state);
                noted = now;
            }
            self.wait(&mut pace, &at)
        });
        let report = checked?;
        state.findings += report.findings.len() as u64;
        if !report.stopped {
            let now = u64::try_from(self.clock.now().secs).unwrap_or(0);
            (state.next_pack, state.finished) = (0, now);
        }
        keep(volume, &state);
        self.ended(volume, report, &state);
        Ok(())
    }

    /// Waits as long as the rate asks for; breaks when the check is to end.
    fn wait(&self, pace: &mut Pace<'_>, at: &Progress) -> ControlFlow<()> {
        let mut state = self.state.lock();
        loop {
            if state.stopped || state.cancelled {
                return ControlFlow::Break(());
            }
            // Trees are cached, and small beside the data.
            let ahead = match at.pack {
                0 => Duration::ZERO,
                _ => pace.ahead(at.done_bytes, state.rate_bytes),
            };
            if ahead.is_zero() {
                return ControlFlow::Continue(());
            }
            self.changed.wait_for(&mut state, ahead);
        }
    }

    fn ended(&self, volume: &Current, report: Report, kept: &CheckState) {
        for finding in &report.findings {
            tracing::error!("check: {finding}");
        }
        if report.stopped {
            tracing::info!("the check goes on at the next chance");
        }
        // What was found is kept where a crash does not forget it.
        if volume.is_writable()
            && let Err(error) = volume.sync()
        {
            tracing::warn!("the result of the check is not durable: {error}");
        }
        let mut state = self.state.lock();
        let figures = &mut state.figures;
        figures.running = false;
        (figures.finished, figures.finding_count) = (kept.finished, kept.findings);
        let lines = report.findings.iter().take(FINDINGS_MAX);
        figures.findings = lines.map(ToString::to_string).collect();
        (figures.healed, figures.files) = (report.healed, report.files);
        (figures.chunks, figures.bytes) = (report.chunks, report.bytes);
        figures.failure = report.stopped.then(|| "it was stopped, and can be taken up".to_owned());
    }
}

/// How far a check may have come by now.
struct Pace<'a> {
    clock: &'a dyn Clock,
    /// Where it was when it began, and when.
    from: Option<(u64, Duration)>,
}

impl Pace<'_> {
    /// How long to wait, having come to `done`.
    fn ahead(&mut self, done: u64, rate_bytes: u64) -> Duration {
        let now = self.clock.monotonic();
        let (start, began) = *self.from.get_or_insert((done, now));
        if rate_bytes == 0 {
            return Duration::ZERO;
        }
        let earned = now.saturating_sub(began).as_nanos();
        let spent = u128::from(done.saturating_sub(start)) * 1_000_000_000 / u128::from(rate_bytes);
        // In steps that are worth a wake-up.
        match u64::try_from(spent.saturating_sub(earned)) {
            Ok(nanos) if nanos < 20_000_000 => Duration::ZERO,
            Ok(nanos) => Duration::from_nanos(nanos).min(Duration::from_secs(1)),
            Err(_) => Duration::from_secs(1),
        }
    }
}
