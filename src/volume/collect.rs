//! Collection: when the space of what was deleted comes back, and from which roots that is decided.
//!
//! Owns the thread that begins collections by itself, one whole run (mark, choose, clean, drop),
//! its pace beside other work, and the estimate of garbage. Nothing counts references: a run marks
//! all that the metadata names at one commit, live files and snapshots alike, and what is found
//! again meanwhile is marked by whoever finds it (`store::collect`).
//!
//! Invariants: (1) one run at a time; (2) a pack goes only when what it had alive is durable
//! elsewhere, the checkpoint holds all its commit records, and an image of the metadata stands
//! behind them; (3) a run that ends anywhere, by an error or a crash, has lost nothing; (4) whoever
//! follows a root to chunks holds a visit of the store.
//!
//! Absent on purpose: where chunks lie.

use std::ops::ControlFlow;
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::image::newest_image;
use super::{Error, Volume, Wait};
use crate::meta::{CollectionState, Content, Ino, Key, KeyRange, Reading, version};
use crate::store::{Collection, Policy, Victim};
use crate::sys::Clock;
use crate::sys::locks::{Condvar, Mutex, MutexGuard};

/// How often the thread looks whether a collection is worth it.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Garbage below this is left alone, unless space is low.
const GARBAGE_BYTES_MIN: u64 = 16 << 20;
/// And below this share of what is stored: one in so many bytes.
const GARBAGE_PART: u64 = 8;
/// While less than one in so many bytes is free, little garbage is worth a run.
const LOW_SPACE_PART: u64 = 8;
/// What is worth one then.
const LOW_SPACE_GARBAGE_MIN: u64 = 4 << 20;
/// A run that took so long rests so many times as long before the next.
const REST_FACTOR: u32 = 4;
/// Live bytes that are moved before packs are dropped.
const BATCH_BYTES: u64 = 64 << 20;
/// What a commit finds moved and not durable yet, at most: others wait for that commit.
const UNSYNCED_BYTES: u64 = 4 << 20;
/// A pack is cleaned when a quarter of it is garbage; while space is low, an eighth.
const GARBAGE_SHARE_PERCENT: u64 = 25;
const LOW_SPACE_SHARE_PERCENT: u64 = 12;
/// Work between two looks at the time.
const SLICE: Duration = Duration::from_millis(2);
/// Beside other work a run rests four times as long as it works, and a fifth of that otherwise.
const BUSY_REST: u32 = 4;
/// What is asked for within this time counts as other work.
const BUSY_WINDOW: Duration = Duration::from_millis(250);
/// What was learnt is never taken for less: of a million bytes that leave files.
const LEARNT_MIN: u64 = 50_000;
const MILLION: u64 = 1_000_000;

/// Garbage that is worth waiting for when there is no room.
const RECLAIM_BYTES_MIN: u64 = 2 << 20;
/// How long that may take.
const RECLAIM_WAIT: Duration = Duration::from_secs(90);
/// How often is looked whether it is over.
const RECLAIM_STEP: Duration = Duration::from_millis(20);

/// How a run is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collect {
    /// Only mark and tell.
    pub dry_run: bool,
    /// As fast as it goes, however little there is to win.
    pub urgent: bool,
}

/// What is known of the last collection, or of the one under way.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CollectFigures {
    /// Whether one is under way.
    pub running: bool,
    /// What it does.
    pub what: String,
    /// How far it is in that.
    pub done: u64,
    /// All that there is to do in that; 0 when nobody knows.
    pub total: u64,
    /// Whether it only looked.
    pub dry_run: bool,
    /// When the last one ended: seconds since 1970, 0 for never.
    pub finished: u64,
    /// Bytes of packs that were garbage when it had marked.
    pub garbage_bytes: u64,
    /// Bytes of packs that are gone.
    pub freed_bytes: u64,
    /// Bytes that were written again for that.
    pub rewritten_bytes: u64,
    /// Packs that are gone.
    pub packs: u64,
    /// Chunks that files name and no pack has.
    pub missing: u64,
    /// Why it did not end.
    pub failure: Option<String>,
}

/// The collections of a volume.
#[derive(Default)]
pub(super) struct Collector {
    state: Mutex<State>,
    changed: Condvar,
    figures: Mutex<CollectFigures>,
    /// Held by the one who collects.
    running: Mutex<()>,
    /// Calls that read or change: whether anybody else is at work.
    calls: AtomicU64,
}

#[derive(Default)]
struct State {
    asked: Option<Collect>,
    stopped: bool,
    /// Somebody waits for the run under way.
    hurried: bool,
    /// None begins by itself before this time of the clock.
    not_before: Duration,
}

/// How a run keeps out of the way.
struct Pace<'a> {
    volume: &'a Volume,
    urgent: bool,
    worked_since: Duration,
    busy_until: Duration,
    calls: u64,
}

impl Collector {
    /// Counts a call of somebody else.
    pub(super) fn note_call(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps collections from beginning, and waits for the one under way.
    pub(super) fn hold(&self) -> MutexGuard<'_, ()> {
        self.running.lock()
    }

    /// Ends the thread, and with it the run under way.
    pub(super) fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
    }
}

/// Where the metadata names roots.
pub(super) fn root_ranges() -> [KeyRange; 2] {
    [KeyRange::contents(Ino(0)), KeyRange::all_versions()]
}

impl<'a> Pace<'a> {
    fn new(volume: &'a Volume, urgent: bool) -> Pace<'a> {
        let now = volume.clock.monotonic();
        let calls = volume.collector.calls.load(Ordering::Relaxed);
        Pace { volume, urgent, worked_since: now, busy_until: Duration::ZERO, calls }
    }

    /// Rests when that is due; breaks when the run is to end.
    fn step(&mut self) -> ControlFlow<()> {
        let (volume, collector) = (self.volume, &self.volume.collector);
        if !volume.options.background {
            return ControlFlow::Continue(());
        }
        let now = volume.clock.monotonic();
        let worked = now.saturating_sub(self.worked_since);
        if worked < SLICE {
            return ControlFlow::Continue(());
        }
        let calls = collector.calls.load(Ordering::Relaxed);
        if calls != self.calls {
            (self.calls, self.busy_until) = (calls, now + BUSY_WINDOW);
        }
        let mut state = collector.state.lock();
        let rest = match (self.urgent || state.hurried, now < self.busy_until) {
            (true, _) => Duration::ZERO,
            (false, true) => worked * BUSY_REST,
            (false, false) => worked / 5,
        };
        if !state.stopped && !rest.is_zero() {
            collector.changed.wait_for(&mut state, rest.min(Duration::from_millis(200)));
        }
        let stopped = state.stopped;
        drop(state);
        self.worked_since = volume.clock.monotonic();
        if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Volume {
    /// Has the thread collect now, or joins the run under way.
    pub fn ask_to_collect(&self, ask: Collect) -> CollectFigures {
        let mut figures = self.collector.figures.lock();
        if !figures.running {
            *figures = CollectFigures {
                running: true,
                dry_run: ask.dry_run,
                finished: figures.finished,
                ..CollectFigures::default()
            };
            self.collector.state.lock().asked = Some(ask);
        }
        self.collector.state.lock().hurried |= ask.urgent;
        self.collector.changed.notify_all();
        figures.clone()
    }

    /// Whether a collection is likely to give so many bytes back.
    pub(super) fn may_reclaim(&self, bytes: u64) -> bool {
        self.options.background
            && self.collects_by_itself()
            && bytes.max(RECLAIM_BYTES_MIN) <= self.garbage_estimate()
    }

    /// Has a collection run, and waits for it; says whether it gave anything back.
    pub(super) fn reclaim(&self) -> bool {
        let freed = || self.counters.lock().collection.freed_bytes;
        let (before, began) = (freed(), self.clock.monotonic());
        self.ask_to_collect(Collect { dry_run: false, urgent: true });
        let collector = &self.collector;
        while collector.figures.lock().running {
            let mut state = collector.state.lock();
            if state.stopped {
                break;
            }
            collector.changed.wait_for(&mut state, RECLAIM_STEP);
            drop(state);
            if RECLAIM_WAIT < self.clock.monotonic().saturating_sub(began) {
                break;
            }
        }
        before < freed()
    }

    /// What is known of the last collection, or of the one under way.
    pub fn collect_figures(&self) -> CollectFigures {
        self.collector.figures.lock().clone()
    }

    /// An estimate of the bytes of packs that nothing needs any more.
    pub fn garbage_estimate(&self) -> u64 {
        let state = self.counters.lock().collection;
        let learnt = if state.learnt == 0 { MILLION } else { state.learnt };
        let released = u128::from(state.released_bytes) * u128::from(learnt);
        let released = u64::try_from(released / u128::from(MILLION)).unwrap_or(u64::MAX);
        let stored = self.store.stats().stored_bytes;
        state.garbage_bytes.saturating_add(released).min(stored)
    }

    /// Runs one collection, on this thread.
    ///
    /// # Errors
    ///
    /// A tree chunk that cannot be read ends it before anything is dropped: what lies below is not
    /// known. On a full disk it has dropped what needed no room.
    pub fn collect(&self, ask: Collect) -> Result<CollectFigures, Error> {
        self.check_open()?;
        if self.options.read_only {
            return Err(Error::ReadOnly);
        }
        let _one = self.collector.running.lock();
        {
            let mut figures = self.collector.figures.lock();
            let finished = figures.finished;
            let dry_run = ask.dry_run;
            *figures =
                CollectFigures { running: true, dry_run, finished, ..CollectFigures::default() };
        }
        let collected = self.run_collection(ask);
        let mut figures = self.collector.figures.lock();
        figures.running = false;
        if let Err(error) = &collected {
            figures.failure = Some(error.to_string());
        }
        collected.map(|()| figures.clone())
    }

    fn run_collection(&self, ask: Collect) -> Result<(), Error> {
        let began_with = self.counters.lock().collection;
        let mut pace = Pace::new(self, ask.urgent);
        // Visits that began before are over when it returns: what they found is in a group by now.
        let collection = self.store.begin_collection()?;
        self.commit_marker()?;
        let position = {
            self.meta.take_in()?;
            self.meta.position()
        };
        let frozen = self.meta.frozen()?;
        collection.candidates_below(position);
        self.mark_all(&collection, &frozen, &mut pace)?;
        drop(frozen);
        let is_low = self.is_space_low()?;
        let share =
            if is_low || ask.urgent { LOW_SPACE_SHARE_PERCENT } else { GARBAGE_SHARE_PERCENT };
        let policy = Policy { garbage_percent: share, ..Policy::default() };
        let (garbage, victims) = collection.choose(&policy, &mut |pack| {
            self.tell("choosing packs", pack, position.pack);
            pace.step()
        })?;
        {
            let mut figures = self.collector.figures.lock();
            figures.garbage_bytes = garbage;
            figures.missing = collection.marks().missing();
        }
        if ask.dry_run {
            return Ok(());
        }
        let urgent = is_low || ask.urgent;
        let (freed, rewritten) = self.clean(&collection, victims, urgent, &mut pace)?;
        drop(collection);
        self.learn(&began_with, garbage, freed, rewritten);
        self.commit_all()
    }

    /// Commits something in any case, so that the record lies behind the packs that are sealed.
    fn commit_marker(&self) -> Result<(), Error> {
        self.make_group_room(Wait::Yes)?;
        let state = self.counters.lock().collection;
        self.meta.enter().put(&Key::Collection, state.encode());
        self.commit_all()
    }

    fn tell(&self, what: &str, done: u64, total: u64) {
        let mut figures = self.collector.figures.lock();
        if figures.what != what {
            what.clone_into(&mut figures.what);
        }
        (figures.done, figures.total) = (done, total);
    }

    /// Marks all that the metadata names.
    fn mark_all(
        &self,
        collection: &Collection<'_>,
        frozen: &dyn Reading,
        pace: &mut Pace<'_>,
    ) -> Result<(), Error> {
        let total = self.counters.lock().files;
        let mut done = 0;
        let mut failed = None;
        for range in root_ranges() {
            frozen.scan(range, &mut |key, value| {
                done += 1;
                self.tell("marking", done.min(total), total);
                let marked = content_of(key, value).and_then(|content| match content {
                    Some(content) => self.mark_one(collection, &content, pace),
                    None => Ok(()),
                });
                match marked {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => {
                        failed = Some(error);
                        ControlFlow::Break(())
                    }
                }
            })?;
            if failed.is_some() {
                break;
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn mark_one(
        &self,
        collection: &Collection<'_>,
        root: &Content,
        pace: &mut Pace<'_>,
    ) -> Result<(), Error> {
        let mut stopped = pace.step().is_break();
        if !stopped {
            collection.marks().mark(&self.store, &root.address, &mut |_| {
                let step = pace.step();
                stopped |= step.is_break();
                step
            })?;
        }
        if stopped { Err(Error::Closed) } else { Ok(()) }
    }

    /// Drops what is dead as a whole, and cleans what is dead in part. Returns what was freed and
    /// what was written for that.
    fn clean(
        &self,
        collection: &Collection<'_>,
        victims: Vec<Victim>,
        urgent: bool,
        pace: &mut Pace<'_>,
    ) -> Result<(u64, u64), Error> {
        let worth: u64 = victims.iter().map(|one| one.pack_bytes - one.live_bytes).sum();
        if victims.is_empty() || !self.keep_image_behind(&victims, worth, urgent)? {
            return Ok((0, 0));
        }
        collection.switch(&victims);
        let total: u64 = victims.iter().map(|victim| victim.live_bytes).sum();
        let (mut freed, mut rewritten, mut done) = (0, 0, 0);
        let (dead, mixed): (Vec<Victim>, Vec<Victim>) =
            victims.into_iter().partition(|victim| victim.live_bytes == 0);
        // What needs no room comes first.
        let (mut batch, mut rest) = (dead.as_slice(), mixed.as_slice());
        loop {
            let live = batch.iter().map(|victim| victim.live_bytes).sum::<u64>();
            let moved = self.clean_batch(collection, batch, (done, total), pace)?;
            done += live;
            freed += moved.0;
            rewritten += moved.1;
            if rest.is_empty() {
                return Ok((freed, rewritten));
            }
            // What is moved must fit beside what it replaces.
            let batch_bytes = (self.statfs()?.available_bytes / 4).min(BATCH_BYTES);
            let mut live = 0;
            let fits = |victim: &&Victim| {
                let first = live == 0;
                live += victim.live_bytes;
                first || live <= batch_bytes
            };
            (batch, rest) = rest.split_at(rest.iter().take_while(fits).count());
        }
    }

    /// Moves what lives in some victims, commits, and drops them. Returns what was freed and what
    /// was written for that.
    fn clean_batch(
        &self,
        collection: &Collection<'_>,
        batch: &[Victim],
        (done, total): (u64, u64),
        pace: &mut Pace<'_>,
    ) -> Result<(u64, u64), Error> {
        let packs: Vec<u64> = batch.iter().map(|victim| victim.pack).collect();
        let mut durable = 0;
        // A second try finds moved what the first has moved.
        let cleaned = self.with_reserve(|| {
            Ok(collection.clean(&packs, &mut |bytes| {
                self.tell("cleaning", done + bytes, total);
                if UNSYNCED_BYTES < bytes.saturating_sub(durable) && !pace.urgent {
                    durable = bytes;
                    // The commit at the end meets a failure again.
                    let _ = self.commit_chunks();
                }
                pace.step()
            })?)
        })?;
        if cleaned.stopped {
            return Err(Error::Closed);
        }
        let rewritten = cleaned.rewritten_bytes;
        if 0 < rewritten {
            self.commit_marker()?;
        }
        let clean: Vec<u64> = cleaned.packs.into_iter().collect();
        let freed = collection.drop_packs(&clean)?;
        self.space.forget();
        {
            // At once, for those who wait for room.
            let mut counters = self.counters.lock();
            let state = &mut counters.collection;
            state.freed_bytes = state.freed_bytes.saturating_add(freed);
            state.rewritten_bytes = state.rewritten_bytes.saturating_add(rewritten);
        }
        let mut figures = self.collector.figures.lock();
        figures.freed_bytes += freed;
        figures.rewritten_bytes += rewritten;
        figures.packs += clean.len() as u64;
        Ok((freed, rewritten))
    }

    /// Sees to an image of the metadata behind the victims. Says whether there is one: it is not
    /// made where it would take more than there is to win.
    fn keep_image_behind(
        &self,
        victims: &[Victim],
        worth: u64,
        urgent: bool,
    ) -> Result<bool, Error> {
        let last = victims.iter().map(|victim| victim.pack).max().unwrap_or(0);
        let image = newest_image(&self.meta)?;
        if image.is_some_and(|image| last < image.position.pack) {
            return Ok(true);
        }
        let cost = self.meta.stored_bytes();
        if !urgent && worth < cost {
            tracing::debug!("a collection would free {worth} bytes, and its image take {cost}");
            return Ok(false);
        }
        self.tell("writing an image of the metadata", 0, 0);
        self.with_reserve(|| self.make_image())?;
        Ok(newest_image(&self.meta)?.is_some_and(|image| last < image.position.pack))
    }

    fn is_space_low(&self) -> Result<bool, Error> {
        let space = self.statfs()?;
        Ok(space.available_bytes < space.total_bytes / LOW_SPACE_PART)
    }

    /// Learns how much of what leaves files is garbage of the packs.
    fn learn(&self, before: &CollectionState, garbage: u64, freed: u64, rewritten: u64) {
        let now = u64::try_from(self.clock.now().secs).unwrap_or(0);
        let mut counters = self.counters.lock();
        let state = &mut counters.collection;
        state.finished = now;
        // What was released meanwhile is still to come.
        state.released_bytes = state.released_bytes.saturating_sub(before.released_bytes);
        let fresh = garbage.saturating_sub(before.garbage_bytes);
        if before.released_bytes > 0 {
            let found = u128::from(fresh) * u128::from(MILLION) / u128::from(before.released_bytes);
            let found = u64::try_from(found).unwrap_or(MILLION);
            state.learnt = found.clamp(LEARNT_MIN, MILLION);
        }
        state.garbage_bytes = garbage.saturating_sub(freed.saturating_sub(rewritten.min(freed)));
        drop(counters);
        self.collector.figures.lock().finished = now;
    }

    fn collects_by_itself(&self) -> bool {
        self.options.collects && !self.commits.is_poisoned()
    }

    /// Whether a collection is worth it now.
    fn wants_collection(&self) -> bool {
        let garbage = self.garbage_estimate();
        let stored = self.store.stats().stored_bytes;
        let low = self.is_space_low().unwrap_or(false);
        let fresh = self.counters.lock().collection.released_bytes;
        match low {
            true => LOW_SPACE_GARBAGE_MIN <= garbage && LOW_SPACE_GARBAGE_MIN <= fresh,
            false => GARBAGE_BYTES_MIN.max(stored / GARBAGE_PART) <= garbage,
        }
    }
}

/// The content that an entry names: that of a live file, or an old version of one.
pub(super) fn content_of(key: &[u8], value: &[u8]) -> Result<Option<Content>, Error> {
    let kept = match Key::decode(key)? {
        Key::Content(_) => Some(value),
        Key::Version { live, .. } => match Key::decode(live)? {
            Key::Content(_) => version(value)?,
            _ => None,
        },
        _ => None,
    };
    Ok(kept.map(Content::decode).transpose()?)
}

/// Collects when it was asked, or when it is worth it.
pub(super) fn collect_thread(collector: &Collector, clock: &dyn Clock, volume: &Weak<Volume>) {
    loop {
        let asked = {
            let mut state = collector.state.lock();
            if !state.stopped && state.asked.is_none() {
                collector.changed.wait_for(&mut state, LOOK_INTERVAL);
            }
            if state.stopped {
                return;
            }
            state.asked.take()
        };
        let Some(volume) = volume.upgrade() else { return };
        let rested = collector.state.lock().not_before <= clock.monotonic();
        let ask = match asked {
            Some(ask) => ask,
            None if rested && volume.collects_by_itself() && volume.wants_collection() => {
                let urgent = volume.is_space_low().unwrap_or(false);
                Collect { dry_run: false, urgent }
            }
            None => continue,
        };
        let began = clock.monotonic();
        match volume.collect(ask) {
            Ok(figures) => tracing::info!(
                "collected: {} bytes freed, {} written again",
                figures.freed_bytes,
                figures.rewritten_bytes
            ),
            Err(Error::Closed) => {}
            Err(error) => {
                tracing::warn!("a collection ended early: {error}");
            }
        }
        let took = clock.monotonic().saturating_sub(began);
        let mut state = collector.state.lock();
        state.not_before = clock.monotonic() + took * REST_FACTOR;
        state.hurried = state.asked.is_some_and(|ask| ask.urgent);
    }
}
