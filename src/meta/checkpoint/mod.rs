//! The checkpoint: what is committed and taken in, at rest.
//!
//! Owns the traits [`Checkpoint`] and [`View`], behind which the embedded store can be exchanged,
//! and their one implementation on redb, whose file `meta/checkpoint.redb` is reached through
//! `Disk` like every other. Table `entries` holds keys and values, table `position` the place in
//! the log up to which they are complete, and how many bytes its records have had.
//!
//! Invariants: (1) entries and position change in one transaction, with two-phase commit, and the
//! allocator's state is written along (quick repair), so opening after a crash reads a few pages
//! only; (2) every page is verified when it is read ([`backend`]), and should redb still meet bytes
//! that make it panic, that ends here, as [`Error::Damaged`].
//!
//! Absent on purpose: what keys and values mean.

pub(super) mod backend;

use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::RwLock;
use redb::{
    Builder, Database, Durability, ReadOnlyTable, ReadableDatabase, StorageBackend, TableDefinition,
};

use crate::meta::checkpoint::backend::{Backend, BadPage, PageFile, ReadingBackend};
use crate::meta::codec::{Reader, put_varint};
use crate::meta::error::{CodecError, Damage, Error, Result};
use crate::meta::groups::Entries;
use crate::meta::layers::{Entry, Slice};
use crate::store::LogPosition;
use crate::sys::{Access, Disk, DiskFile};

/// The directory of a volume's checkpoint.
pub(super) const DIR: &str = "meta";
/// The name of its file there.
pub(super) const FILE_NAME: &str = "checkpoint.redb";

const ENTRIES: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("entries");
const POSITION: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("position");
const POSITION_KEY: &[u8] = b"log";
const RECORDS_KEY: &[u8] = b"records";
const POSITION_FORMAT: u8 = 1;

/// Bytes of values that one slice of a view copies at most, beyond its first entry.
const SLICE_BYTES_MAX: usize = 256 * 1024;

/// How far a checkpoint has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Held {
    /// Of the last record that it holds.
    pub(super) position: LogPosition,
    /// Bytes of all commit records up to there; less when an earlier version held some of them.
    pub(super) record_bytes: u64,
}

/// A checkpoint that is open.
pub(super) trait Checkpoint: Send + Sync {
    /// Returns the checkpoint as it is now, and goes on being.
    fn view(&self) -> Result<(Arc<dyn View>, Held)>;
    /// Applies all entries and names `held`, in one durable step: all or nothing.
    fn take_in(&self, entries: &Entries, held: Held) -> Result<()>;
    /// Bytes of the file, without the space that it has grown ahead and never written.
    fn stored_bytes(&self) -> u64;
    /// Opens the file anew after an error. When a sync failed it is only for reading from then on,
    /// and [`Checkpoint::take_in`] answers [`Error::PreviousFailure`]. Older views are void.
    fn rescue(&self) -> Result<()>;
    /// Closes the file cleanly. Everything else answers [`Error::Closed`] afterwards.
    fn close(&self) -> Result<()>;
}

/// A checkpoint at one moment.
pub(super) trait View: Send + Sync {
    /// Returns the value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;
    /// Copies the next entries from `from` up to, not including, `end`: at most `count`.
    fn slice(&self, from: Bound<&[u8]>, end: &[u8], count: usize) -> Result<Slice>;
}

/// The checkpoint's file in `dir`.
pub(super) fn file_in(dir: &str) -> String {
    format!("{dir}/{FILE_NAME}")
}

/// Makes `dir` with an empty checkpoint, durably. It must not have one.
pub(super) fn create(disk: &Arc<dyn Disk>, dir: &str) -> Result<()> {
    let io = |source| Error::Io { action: "create", source };
    match disk.create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => result.map_err(io)?,
    }
    let file = disk.open(&file_in(dir), Access::CreateNew).map_err(io)?;
    let checkpoint = RedbCheckpoint::start(file, 0)?;
    checkpoint.take_in(&Entries::new(), Held::default())?;
    checkpoint.close()?;
    disk.sync_dir(dir).map_err(io)?;
    disk.sync_dir("").map_err(io)
}

/// Opens the checkpoint in `dir`; `cache_bytes` bounds what it keeps of the file in memory.
pub(super) fn open(disk: &Arc<dyn Disk>, dir: &str, cache_bytes: u64) -> Result<RedbCheckpoint> {
    let file = disk.open(&file_in(dir), Access::Write).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing,
        _ => Error::Io { action: "open", source },
    })?;
    // redb would take an empty file for a new database.
    if file.is_empty().map_err(|source| Error::Io { action: "open", source })? {
        return Err(Error::Damaged { source: Damage::Empty });
    }
    if backend::names_older_state(&*file).map_err(|source| Error::Io { action: "open", source })? {
        return Err(Error::Damaged { source: Damage::Header });
    }
    RedbCheckpoint::start(file, cache_bytes)
}

/// The checkpoint on redb.
pub(super) struct RedbCheckpoint {
    file: Arc<PageFile>,
    cache_bytes: usize,
    state: RwLock<State>,
}

/// How far the file can be used.
enum State {
    Writing(Database),
    Reading(Database),
    /// It could not be opened anew.
    Lost,
    Closed,
}

impl RedbCheckpoint {
    fn start(file: Arc<dyn DiskFile>, cache_bytes: u64) -> Result<RedbCheckpoint> {
        let file = PageFile::new(file).map_err(|source| Error::Io { action: "open", source })?;
        let file = Arc::new(file);
        let cache_bytes = usize::try_from(cache_bytes).unwrap_or(usize::MAX);
        let database = open_database(Backend(file.clone()), cache_bytes)?;
        Ok(RedbCheckpoint { file, cache_bytes, state: RwLock::new(State::Writing(database)) })
    }

    /// The state after a failure, from the file alone.
    fn reopened(&self) -> Result<State> {
        if self.file.has_failed_sync() {
            let backend = ReadingBackend::new(self.file.clone())
                .map_err(|source| Error::Io { action: "open", source })?;
            open_database(backend, self.cache_bytes).map(State::Reading)
        } else {
            open_database(Backend(self.file.clone()), self.cache_bytes).map(State::Writing)
        }
    }
}

/// Opens redb, which makes a new database of an empty file.
fn open_database(backend: impl StorageBackend, cache_bytes: usize) -> Result<Database> {
    guarded("open", || {
        let mut builder = Builder::new();
        builder.set_cache_size(cache_bytes);
        Ok(builder.create_with_backend(backend)?)
    })
}

impl Checkpoint for RedbCheckpoint {
    fn view(&self) -> Result<(Arc<dyn View>, Held)> {
        let state = self.state.read();
        let database = match &*state {
            State::Writing(database) | State::Reading(database) => database,
            State::Lost => return Err(Error::PreviousFailure),
            State::Closed => return Err(Error::Closed),
        };
        let (table, position, records) = guarded("read", || {
            let transaction = database.begin_read()?;
            let table = transaction.open_table(POSITION)?;
            let position = table.get(POSITION_KEY)?.map(|guard| guard.value().to_vec());
            let records = table.get(RECORDS_KEY)?.map(|guard| guard.value().to_vec());
            Ok((transaction.open_table(ENTRIES)?, position, records))
        })?;
        let position = position.ok_or(Error::Damaged { source: Damage::NoPosition })?;
        let damage = |error| Error::Damaged { source: Damage::Position(error) };
        let position = decode_position(&position).map_err(damage)?;
        let record_bytes = records.map_or(Ok(0), |bytes| decode_records(&bytes)).map_err(damage)?;
        Ok((Arc::new(RedbView { table }), Held { position, record_bytes }))
    }

    fn take_in(&self, entries: &Entries, held: Held) -> Result<()> {
        let state = self.state.read();
        let database = match &*state {
            State::Writing(database) => database,
            State::Reading(_) | State::Lost => return Err(Error::PreviousFailure),
            State::Closed => return Err(Error::Closed),
        };
        guarded("write", || {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            transaction.set_two_phase_commit(true);
            transaction.set_quick_repair(true);
            {
                let mut table = transaction.open_table(ENTRIES)?;
                for (key, value) in entries {
                    match value {
                        Some(value) => drop(table.insert(key.as_ref(), value.as_ref())?),
                        None => drop(table.remove(key.as_ref())?),
                    }
                }
                let mut table = transaction.open_table(POSITION)?;
                table.insert(POSITION_KEY, encode_position(held.position).as_slice())?;
                table.insert(RECORDS_KEY, encode_records(held.record_bytes).as_slice())?;
            }
            Ok(transaction.commit()?)
        })
    }

    fn rescue(&self) -> Result<()> {
        let mut state = self.state.write();
        match std::mem::replace(&mut *state, State::Lost) {
            State::Closed => {
                *state = State::Closed;
                return Err(Error::Closed);
            }
            // After an error of the disk redb itself writes nothing more.
            State::Writing(database) | State::Reading(database) => {
                let _ = guarded("close", || Ok(database.close()?));
            }
            State::Lost => {}
        }
        *state = self.reopened()?;
        Ok(())
    }

    fn stored_bytes(&self) -> u64 {
        self.file.written_bytes()
    }

    fn close(&self) -> Result<()> {
        match std::mem::replace(&mut *self.state.write(), State::Closed) {
            State::Writing(database) | State::Reading(database) => {
                guarded("close", || Ok(database.close()?))
            }
            State::Lost | State::Closed => Ok(()),
        }
    }
}

impl Drop for RedbCheckpoint {
    /// One that was not closed: redb finishes its own work then, and may panic in there too.
    fn drop(&mut self) {
        let state = std::mem::replace(self.state.get_mut(), State::Closed);
        let _ = guarded("close", || {
            drop(state);
            Ok(())
        });
    }
}

struct RedbView {
    table: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl View for RedbView {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        guarded("read", || Ok(self.table.get(key)?.map(|guard| guard.value().to_vec())))
    }

    fn slice(&self, from: Bound<&[u8]>, end: &[u8], count: usize) -> Result<Slice> {
        guarded("read", || {
            let mut entries: Vec<Entry> = Vec::new();
            let mut bytes = 0;
            for item in self.table.range::<&[u8]>((from, Bound::Excluded(end)))? {
                let (key, value) = item?;
                if entries.len() >= count || bytes >= SLICE_BYTES_MAX {
                    return Ok(Slice { entries, is_cut: true });
                }
                bytes += value.value().len();
                entries.push((Arc::from(key.value()), Some(Arc::from(value.value()))));
            }
            Ok(Slice { entries, is_cut: false })
        })
    }
}

/// Calls redb; its errors and its panics become ours.
///
/// redb trusts its pages after the header, and some damage makes it panic. Unwinding is safe to
/// pass: redb's locks are poisoned by it, so that later calls fail instead of trusting its state.
fn guarded<T>(
    action: &'static str,
    call: impl FnOnce() -> std::result::Result<T, redb::Error>,
) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(translate(action, error)),
        Err(_) => Err(Error::Damaged { source: Damage::Panic }),
    }
}

fn translate(action: &'static str, error: redb::Error) -> Error {
    match error {
        redb::Error::Io(source) if bad_page(&source).is_some() => {
            let page = bad_page(&source).unwrap_or_default();
            Error::Damaged { source: Damage::Page { page } }
        }
        redb::Error::Io(source) if !is_damage(&source) => Error::Io { action, source },
        redb::Error::PreviousIo => Error::PreviousFailure,
        redb::Error::DatabaseClosed => Error::Closed,
        error => Error::Damaged { source: Damage::Store(Box::new(error)) },
    }
}

/// A file that is shorter than its header says, or has another file's header.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData)
}

/// The page that does not fit its checksum, if that is the error.
fn bad_page(error: &io::Error) -> Option<u64> {
    error.get_ref()?.downcast_ref::<BadPage>().map(|bad| bad.page)
}

fn encode_records(bytes: u64) -> Vec<u8> {
    let mut out = vec![POSITION_FORMAT];
    put_varint(&mut out, bytes);
    out
}

fn decode_records(bytes: &[u8]) -> std::result::Result<u64, CodecError> {
    let mut reader = Reader::new(bytes);
    match reader.byte()? {
        POSITION_FORMAT => {}
        format => return Err(CodecError::Format(format)),
    }
    let bytes = reader.varint()?;
    reader.finish()?;
    Ok(bytes)
}

pub(super) fn encode_position(position: LogPosition) -> Vec<u8> {
    let mut out = vec![POSITION_FORMAT];
    for number in [position.pack, position.offset, position.sequence] {
        put_varint(&mut out, number);
    }
    out
}

pub(super) fn decode_position(bytes: &[u8]) -> std::result::Result<LogPosition, CodecError> {
    let mut reader = Reader::new(bytes);
    match reader.byte()? {
        POSITION_FORMAT => {}
        format => return Err(CodecError::Format(format)),
    }
    let position = LogPosition {
        pack: reader.varint()?,
        offset: reader.varint()?,
        sequence: reader.varint()?,
    };
    reader.finish()?;
    if position.is_possible() { Ok(position) } else { Err(CodecError::Number) }
}
