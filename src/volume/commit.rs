//! Commits: a group becomes durable.
//!
//! Owns the one commit that runs at a time, who waits for which group, the timer, the poison, and
//! the volume's counters.
//!
//! A commit: cut (entries and dirty layers together) → flush the layers of that group → flush the
//! store's pipeline → append the record with one sync → hand the group on to the committed layer.
//! Whoever asks while one runs is served by the next, together with all who asked meanwhile.
//!
//! Invariants: (1) a group is cut only when the one before it is durable; (2) a commit that found
//! no space is taken up again with the same group; (3) any other failure poisons the volume.

use std::collections::{BTreeMap, VecDeque};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::collect::collect_thread;
use super::node::Node;
use super::{Error, Volume, Wait};
use crate::meta::{CollectionState, Counters, GroupId, Ino, Key, Meta, Snapshot};
use crate::store::LogPosition;
use crate::sys::Clock;
use crate::sys::locks::{Condvar, Mutex, MutexGuard, thread};

/// A group of this many bytes is committed before it takes more, so that its record fits a pack.
const GROUP_BYTES_MAX: u64 = 8 << 20;

/// Threads that flush; hashing inside a flush uses all cores anyway.
const FLUSHERS: usize = 2;

/// Nodes that pressure puts into the flushers' queue at a time.
const FLUSHES_AHEAD_MAX: usize = 64;

/// The commit that runs, and what all know of commits.
#[derive(Debug, Default)]
pub(super) struct Commits {
    /// Held by the one who commits.
    running: Mutex<Running>,
    /// Nodes with layers, by group.
    dirty: Mutex<BTreeMap<GroupId, Vec<Arc<Node>>>>,
    /// Nodes that have had layers since they were last flushed, the longest first. Each stands
    /// here once.
    waiting: Mutex<VecDeque<Arc<Node>>>,
    /// Why the volume takes no more changes.
    poison: Mutex<Option<String>>,
    timer: Arc<Timer>,
}

/// How far commits have come.
#[derive(Debug, Default)]
struct Running {
    /// A group that is cut and not durable yet.
    cut: Option<Cut>,
    /// The number of the last group that is durable.
    durable: u64,
}

/// A group that is cut.
#[derive(Debug)]
struct Cut {
    group: GroupId,
    nodes: Vec<Arc<Node>>,
    /// The snapshot that it ends with, if it does; complete once its record is made.
    snapshot: Option<(u64, Snapshot)>,
    /// Its record and counters, once all its layers are flushed: a second try appends the same.
    record: Option<(Vec<u8>, Counters)>,
}

#[derive(Debug, Default)]
struct Timer {
    state: Mutex<TimerState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct TimerState {
    stopped: bool,
    asked: bool,
}

impl Commits {
    /// Registers a node whose top layer belongs to `group`.
    pub(super) fn add_dirty(&self, group: GroupId, node: &Arc<Node>) {
        self.dirty.lock().entry(group).or_default().push(Arc::clone(node));
    }

    /// Lists a node that is not listed, for the time when many bytes are dirty.
    pub(super) fn list(&self, node: &Arc<Node>) {
        self.waiting.lock().push_back(Arc::clone(node));
    }

    fn longest_dirty(&self) -> Option<Arc<Node>> {
        let node = self.waiting.lock().pop_front()?;
        node.state.lock().listed = false;
        Some(node)
    }

    /// Takes nodes off the list that a commit has flushed, so that they can be let go.
    fn unlist_clean(&self) {
        let listed = std::mem::take(&mut *self.waiting.lock());
        let (dirty, clean): (VecDeque<_>, VecDeque<_>) = listed.into_iter().partition(|node| {
            let mut state = node.state.lock();
            state.listed = !state.layers.is_empty();
            state.listed
        });
        drop(clean);
        let mut waiting = self.waiting.lock();
        let newer = std::mem::replace(&mut *waiting, dirty);
        waiting.extend(newer);
    }

    pub(super) fn poison(&self, why: String) {
        let mut poison = self.poison.lock();
        if poison.is_none() {
            tracing::error!("the volume takes no more changes: {why}");
            *poison = Some(why);
        }
    }

    pub(super) fn check_poison(&self) -> Result<(), Error> {
        match self.poison.lock().as_ref() {
            Some(why) => Err(Error::Poisoned { why: why.clone() }),
            None => Ok(()),
        }
    }

    pub(super) fn is_poisoned(&self) -> bool {
        self.poison.lock().is_some()
    }
}

impl Volume {
    /// Commits all that was changed before the call.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] leaves all in place for another try; other failures poison the volume.
    pub fn sync(&self) -> Result<(), Error> {
        self.check_open()?;
        if self.options.read_only { Ok(()) } else { self.commit_all() }
    }

    /// Makes all changes of `ino` that were made before the call durable.
    pub fn fsync(&self, ino: Ino, wait: Wait) -> Result<(), Error> {
        self.check_open()?;
        if self.options.read_only {
            return Ok(());
        }
        if wait == Wait::No {
            return Err(Error::WouldWait);
        }
        let committed = self.commit_all();
        self.take_error(ino)?;
        committed
    }

    /// Reports once that bytes of the file were lost.
    pub(super) fn take_error(&self, ino: Ino) -> Result<(), Error> {
        let Some(node) = self.nodes.peek(ino) else { return Ok(()) };
        let error = node.state.lock().error.take();
        self.nodes.put(node);
        error.map_or(Ok(()), |why| Err(Error::WriteLost { why }))
    }

    pub(super) fn commit_all(&self) -> Result<(), Error> {
        // All that was changed before the call is in this group or in an older one.
        let wanted = self.meta.enter().id();
        let mut running = self.commits.running.lock();
        self.commits.check_poison()?;
        if wanted.0 <= running.durable {
            // Another's commit took it along while this call waited.
            MutexGuard::unlock_fair(running);
            return Ok(());
        }
        let result = self.commit_running(&mut running, None);
        // To those who wait already, so that the next commit takes all of them along.
        MutexGuard::unlock_fair(running);
        match &result {
            Ok(()) => self.budget.set_failing(None),
            Err(error) => self.note_failure(error),
        }
        result
    }

    /// Commits all that was changed before the call; the group ends with a snapshot.
    ///
    /// When there is no space the group stays cut as always, and the snapshot comes with it.
    pub(super) fn commit_snapshot(&self, name: &[u8]) -> Result<(), Error> {
        let mut running = self.commits.running.lock();
        self.commits.check_poison()?;
        let result = self.commit_running(&mut running, Some(name));
        MutexGuard::unlock_fair(running);
        match &result {
            Ok(()) => self.budget.set_failing(None),
            Err(error) => self.note_failure(error),
        }
        result
    }

    /// Commits chunks that no change has a need for: those of a repair.
    pub(crate) fn commit_chunks(&self) -> Result<(), Error> {
        let counters = self.counters.lock().committed;
        self.meta.enter().put(&Key::Counters, counters.encode());
        self.commit_all()
    }

    /// Sets what the volume counts, from the next commit on: for repair, with nothing else going
    /// on.
    pub(crate) fn recount(&self, counted: &Counters) {
        let mut counters = self.counters.lock();
        (counters.next_ino, counters.files) = (counted.next_ino, counted.files);
        counters.committed = *counted;
        counters.logical.clear();
    }

    /// Finishes the group that is cut already, if one is, and then the open one.
    fn commit_running(&self, running: &mut Running, snapshot: Option<&[u8]>) -> Result<(), Error> {
        if running.cut.is_some() {
            self.finish_cut(running)?;
        }
        if self.meta.wants_take_in() && !self.options.background {
            self.meta.take_in()?;
        }
        self.note_bad_chunks();
        let cut = self.meta.cut(snapshot.is_some(), |group| {
            let counters = self.counters.lock().at_cut();
            (self.commits.dirty.lock().remove(&group).unwrap_or_default(), counters)
        });
        let Some((group, (nodes, counters))) = cut else { return Ok(()) };
        self.counters.lock().next_base = counters;
        let snapshot = snapshot.map(|name| {
            let (name, time) = (name.to_vec(), self.clock.now());
            (0, Snapshot { name, time, files: counters.files, ..Snapshot::default() })
        });
        running.cut = Some(Cut { group, nodes, snapshot, record: None });
        self.finish_cut(running)
    }

    fn finish_cut(&self, running: &mut Running) -> Result<(), Error> {
        let Some(cut) = running.cut.as_mut() else { return Ok(()) };
        let group = cut.group;
        let (record, counters) = match cut.record.take() {
            Some(record) => record,
            None => {
                self.flush_cut(cut)?;
                let mut counters = self.counters.lock().committing(group);
                self.enter_snapshot(cut, &mut counters);
                self.meta.amend(group, &Key::Counters, Some(counters.encode()));
                if let Some(state) = self.counters.lock().collection_news() {
                    self.meta.amend(group, &Key::Collection, Some(state.encode()));
                }
                (self.meta.record()?, counters)
            }
        };
        let position = self.append_record(&record);
        if position.is_err() {
            cut.record = Some((record, counters));
        }
        self.meta.committed(position?);
        self.counters.lock().committed(group, counters);
        running.durable = group.0;
        self.commits.unlist_clean();
        if let Some(cut) = running.cut.take() {
            if let Some((number, snapshot)) = &cut.snapshot {
                self.snapshots.add(*number, snapshot);
            }
            cut.nodes.into_iter().for_each(|node| self.nodes.put(node));
        }
        // Whoever wanted dirty space meanwhile may have found the list empty.
        self.relieve();
        let lives = self.store.wants_copies() || self.image_is_due();
        if self.meta.wants_take_in() || lives {
            self.wake_timer();
        }
        Ok(())
    }

    /// Enters the snapshot that a group ends with; the epoch rises with it.
    fn enter_snapshot(&self, cut: &mut Cut, counters: &mut Counters) {
        let Some((number, snapshot)) = &mut cut.snapshot else { return };
        *number = self.meta.next_snapshot();
        snapshot.logical_bytes = counters.logical_bytes;
        counters.epoch = *number + 1;
        self.meta.amend(cut.group, &Key::Snapshot(*number), Some(snapshot.encode()));
    }

    fn append_record(&self, record: &[u8]) -> Result<LogPosition, Error> {
        let flushed = self.store.flush()?;
        Ok(self.store.commit(flushed, record)?)
    }

    /// Flushes all layers of a group that is cut, on several threads when there are several nodes.
    ///
    /// Not on the threads that hash: a flush may wait for another flusher of the same node, which
    /// waits for hashing.
    fn flush_cut(&self, cut: &Cut) -> Result<(), Error> {
        let threads = match self.options.background {
            true => FLUSHERS.min(cut.nodes.len()),
            false => 1,
        };
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(node) = cut.nodes.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.flush_node(node, cut.group)?;
            }
            Ok(())
        };
        if threads <= 1 {
            return work();
        }
        thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut result = work();
            for other in others {
                // A panic in there goes on here: the commit must not end as if all were flushed.
                let finished = other.join().unwrap_or_else(|panic| resume_unwind(panic));
                result = result.and(finished);
            }
            result
        })
    }

    /// Makes room in the open group: commits when it is full.
    pub(super) fn make_group_room(&self, wait: Wait) -> Result<(), Error> {
        if self.meta.dirty_bytes() < GROUP_BYTES_MAX {
            return Ok(());
        }
        if wait == Wait::No {
            return Err(Error::WouldWait);
        }
        self.commit_all()
    }

    /// Has the longest dirty nodes flushed when many bytes are dirty.
    pub(super) fn relieve(&self) {
        // Those in the flushers' queue are on their way: no more are added than are needed.
        for _ in 0..FLUSHES_AHEAD_MAX {
            if !self.budget.is_pressed() || FLUSHES_AHEAD_MAX <= self.flushers.len() {
                return;
            }
            let Some(node) = self.commits.longest_dirty() else { return };
            self.flush_soon(&node);
            self.nodes.put(node);
        }
    }

    pub(super) fn start_threads(self: &Arc<Self>) {
        let mut threads = self.threads.lock();
        for _ in 0..FLUSHERS {
            let worker = self.flushers.worker(Arc::downgrade(self));
            threads.push(thread::spawn(worker));
        }
        let timer = Arc::clone(&self.commits.timer);
        let interval = Duration::from_millis(self.options.commit_interval_ms);
        let weak = Arc::downgrade(self);
        let clock = Arc::clone(&self.clock);
        threads.push(thread::spawn(move || timer_thread(&timer, &*clock, interval, &weak)));
        let timer = Arc::clone(&self.commits.timer);
        let weak = Arc::downgrade(self);
        threads.push(thread::spawn(move || take_in_thread(&timer, &weak)));
        if self.options.read_only || self.options.repairing {
            return;
        }
        let collector = Arc::clone(&self.collector);
        let weak = Arc::downgrade(self);
        let clock = Arc::clone(&self.clock);
        threads.push(thread::spawn(move || collect_thread(&collector, &*clock, &weak)));
    }

    /// Ends the threads and waits for them.
    pub(super) fn stop_threads(&self) {
        self.flushers.stop();
        self.collector.stop();
        self.commits.timer.state.lock().stopped = true;
        self.commits.timer.changed.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock());
        for one in threads {
            // The last reference may end on one of the threads themselves.
            if one.thread().id() != thread::current().id() && one.join().is_err() {
                tracing::error!("a thread of the volume panicked");
            }
        }
    }

    pub(super) fn wake_timer(&self) {
        self.commits.timer.state.lock().asked = true;
        self.commits.timer.changed.notify_all();
    }

    /// What the background does when it was woken.
    fn tidy_up(&self) {
        if self.meta.wants_take_in() {
            self.take_in();
        }
        match self.purge_snapshots() {
            // The next opening, or the next deletion, goes on.
            Err(Error::Closed) | Ok(()) => {}
            Err(error) => tracing::warn!("cannot purge a deleted snapshot: {error}"),
        }
        self.keep_second_lives();
    }

    /// Makes second copies of tree chunks, and an image of the metadata, if these are due. A
    /// failure is no harm: the next time goes on.
    pub(super) fn keep_second_lives(&self) {
        if self.store.wants_copies()
            && let Err(error) = self.store.copy_trees()
            && !matches!(error, crate::store::Error::NoSpace)
        {
            tracing::warn!("cannot make second copies of tree chunks: {error}");
        }
        if let Err(error) = self.keep_image() {
            tracing::warn!("cannot make an image of the metadata: {error}");
        }
    }

    pub(super) fn take_in(&self) {
        if let Err(error) = self.meta.take_in() {
            self.note_failure(&Error::from(error));
            return;
        }
        if let Err(error) = self.store.save_index() {
            // The index is derived: without a new run only the next opening takes longer.
            tracing::warn!("cannot save the index: {error}");
        }
    }
}

/// Commits what is dirty, every `interval`.
fn timer_thread(timer: &Timer, clock: &dyn Clock, interval: Duration, volume: &Weak<Volume>) {
    loop {
        {
            let mut state = timer.state.lock();
            let end = clock.monotonic() + interval;
            loop {
                // Woken early, it waits for the rest: by the clock, which a test may hold.
                let left = end.saturating_sub(clock.monotonic());
                if state.stopped || timer.changed.wait_for(&mut state, left).timed_out() {
                    break;
                }
            }
            if state.stopped {
                return;
            }
        }
        let Some(volume) = volume.upgrade() else { return };
        let commits = !volume.options.read_only && !volume.commits.is_poisoned();
        if commits && let Err(error) = volume.commit_all() {
            tracing::error!("a commit failed: {error}");
        }
    }
}

/// Lets the checkpoint take in what is committed, whenever that is much.
fn take_in_thread(timer: &Timer, volume: &Weak<Volume>) {
    loop {
        {
            let mut state = timer.state.lock();
            while !state.stopped && !state.asked {
                timer.changed.wait(&mut state);
            }
            if state.stopped {
                return;
            }
            state.asked = false;
        }
        let Some(volume) = volume.upgrade() else { return };
        volume.tidy_up();
    }
}

/// The volume's counters, now and at the cuts.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// The next inode number.
    pub(super) next_ino: u64,
    /// Inodes.
    pub(super) files: u64,
    /// What the last durable record said.
    committed: Counters,
    /// What stood at the last cut, without its logical bytes.
    next_base: Counters,
    /// Changes of the logical bytes, by the group they belong to.
    logical: BTreeMap<GroupId, i64>,
    /// What is known of garbage.
    pub(super) collection: CollectionState,
    /// What the last record said of that.
    collection_kept: CollectionState,
}

impl Counts {
    pub(super) fn load(meta: &Meta) -> Result<Counts, Error> {
        let collection = match meta.get(&Key::Collection)? {
            Some(bytes) => CollectionState::decode(&bytes)?,
            None => CollectionState::default(),
        };
        let committed = match meta.get(&Key::Counters)? {
            Some(bytes) => Counters::decode(&bytes)?,
            None => Counters::default(),
        };
        Ok(Counts {
            next_ino: committed.next_ino,
            files: committed.files,
            next_base: committed,
            committed,
            logical: BTreeMap::new(),
            collection,
            collection_kept: collection,
        })
    }

    /// Sum of file sizes without holes, as far as it is stored.
    pub(super) fn logical_bytes(&self) -> u64 {
        self.committed.logical_bytes.saturating_add_signed(self.logical.values().sum())
    }

    pub(super) fn add_logical(&mut self, group: GroupId, change: i64) {
        *self.logical.entry(group).or_default() += change;
    }

    /// Counts bytes that left a file: they may be garbage.
    pub(super) fn release(&mut self, bytes: u64) {
        let state = &mut self.collection;
        state.released_bytes = state.released_bytes.saturating_add(bytes);
    }

    /// What is known of garbage, if that changed since it was last kept.
    fn collection_news(&mut self) -> Option<CollectionState> {
        let is_news = self.collection != self.collection_kept;
        self.collection_kept = self.collection;
        is_news.then_some(self.collection)
    }

    fn at_cut(&self) -> Counters {
        Counters { next_ino: self.next_ino, files: self.files, ..self.committed }
    }

    /// The counters as they stand at the end of `group`, whose layers are all flushed.
    fn committing(&self, group: GroupId) -> Counters {
        let change = self.logical.range(..=group).map(|(_, change)| change).sum();
        let logical_bytes = self.committed.logical_bytes.saturating_add_signed(change);
        Counters { logical_bytes, ..self.next_base }
    }

    fn committed(&mut self, group: GroupId, counters: Counters) {
        self.committed = counters;
        self.logical = self.logical.split_off(&GroupId(group.0 + 1));
    }
}
