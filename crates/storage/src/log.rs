//! The record log: the persistent Raft state of all groups of a node, in one sequence of records.
//!
//! One [`RecordLog::append`] writes one record with the changes of any number of groups and makes
//! it durable with one barrier; a record per group would cost a barrier each.
//!
//! A record carries its sequence, the checksum of the record before it, the last sequence known
//! durable when it was written, the *head* (the first sequence that is still needed) and sections:
//!
//! | kind | meaning when records are read in sequence |
//! |---|---|
//! | HARD_STATE | the group's term, vote and commit index; the newest counts |
//! | APPEND | entries from index f on; drops what the group held at ≥ f |
//! | RESET | drops every entry of the group: the log begins after (index, term) |
//! | APPEND_MOVED | entries written again from a record to be removed; drops nothing |
//! | RESET_MOVED | a reset written again; drops what the group held at or below it |
//!
//! **Space** is freed only at the head. [`RecordLog::maintain`] writes the live sections of the
//! first records again at the tail. Once those are durable, the head moves in memory and the next
//! record carries it; once *that* record is durable, the records below the head are removed. So
//! every removed record has a durable replacement, and a reader that finds a record also knows
//! which records may be missing.
//!
//! **Recovery** accepts exactly two states of the disk: everything from the head to the last
//! durable record, or that and one more record, which was being written when the process died. A
//! record that is missing or broken at or below a sequence that any surviving record (or the file
//! `MARK`) knows to be durable is damage. A broken record above all of these is the unfinished
//! tail; it is removed, with a barrier, before the next write.

mod book;
mod file_store;
mod reading;
mod record;
mod recovery;
mod store;
mod tree_store;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use quorate_raft::{Entry, GroupId, HardState, Index, LogId, ReplicaId};

pub use self::reading::{LogProblem, LogReading, log_backend, read_log};

use self::book::{Book, SectionId};
use self::file_store::FileStore;
use self::record::{Change, Header, RecordBuilder};
use self::recovery::{Recovered, recover};
use self::store::LogStore;
use self::tree_store::TreeStore;
use crate::codec;
use crate::database::Database;
use crate::error::{Result, StorageError};
use crate::mark::Mark;

/// The formats of the log's files and records.
pub(crate) const FORMATS: [(&str, u8); 2] =
    [("log_file", file_store::FORMAT), ("log_record", record::FORMAT)];

/// The back end of the log. Both hold the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogBackend {
    /// A tree of the database.
    Sled,
    /// Append-only files in the folder `log`.
    File,
}

impl LogBackend {
    /// The name used by `--log-store`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sled => "sled",
            Self::File => "file",
        }
    }

    /// The number in `MARK`; its meaning never changes.
    fn number(self) -> u8 {
        match self {
            Self::Sled => 1,
            Self::File => 2,
        }
    }

    fn name_of(number: u8) -> &'static str {
        match number {
            1 => Self::Sled.name(),
            2 => Self::File.name(),
            _ => "of a newer version",
        }
    }
}

/// A change of one replica's persistent Raft state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// The group.
    pub group: GroupId,
    /// Its replica on this node.
    pub replica: ReplicaId,
    /// The change.
    pub kind: SectionKind,
}

/// The change of a [`Section`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SectionKind {
    /// Replaces term, vote and commit index.
    HardState(HardState),
    /// Appends entries with consecutive indexes and drops what the log held from the first of them
    /// on. An empty list changes nothing.
    Append(Vec<Entry>),
    /// Empties the log: the next entry follows this one, which a snapshot covers.
    Reset(LogId),
}

/// The part of one replica in the log after a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveredGroup {
    /// The newest hard state; the default if none was ever written.
    pub hard_state: HardState,
    /// The last reset, unless the log has since been purged through it.
    pub reset: Option<LogId>,
    /// Entries with consecutive indexes. They may include purged entries, because the log forgets a
    /// purge when the process ends, but none that a later append or reset dropped.
    pub entries: Vec<Entry>,
}

/// The key of one replica's part of the log.
pub type ReplicaKey = (GroupId, ReplicaId);

/// The largest record, in bytes, into which live sections of several records are moved.
const MOVED_RECORD_BYTES: u64 = 4 << 20;

/// The thresholds of the log's maintenance. Tests make them small, so that it happens often.
#[derive(Debug, Clone, Copy)]
pub struct LogTuning {
    /// Below this size of the log in bytes the head is not moved: that would save nothing.
    pub move_from_bytes: u64,
    /// About the bytes of live sections that one call of [`RecordLog::maintain`] writes again, or
    /// as many as were appended since the last call, if those are more.
    pub move_bytes: u64,
    /// The size in bytes at which a file is followed by a new one.
    pub file_bytes: u64,
}

impl Default for LogTuning {
    fn default() -> Self {
        Self { move_from_bytes: 4 << 20, move_bytes: 256 << 10, file_bytes: 16 << 20 }
    }
}

/// The log of a node. One thread owns it.
pub struct RecordLog {
    database: Database,
    tuning: LogTuning,
    in_engine: bool,
    store: Box<dyn LogStore>,
    mark: Mark,
    book: Book,
    builder: RecordBuilder,
    /// Checksum of the last record.
    last_crc: u32,
    /// The head that the last durable record carries: records below it may be removed.
    durable_head: u64,
    /// All records below this sequence have been removed.
    removed_below: u64,
    /// Bytes of the records appended since the last maintenance.
    appended: u64,
}

impl fmt::Debug for RecordLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordLog")
            .field("head", &self.book.head())
            .field("next", &self.book.next())
            .field("bytes", &self.book.bytes())
            .field("live_bytes", &self.book.live_bytes())
            .finish_non_exhaustive()
    }
}

impl RecordLog {
    /// Opens the log of the data directory `dir`, and returns each replica's part of it. All of it
    /// is durable when this returns.
    ///
    /// After a restart the caller purges each replica through its checkpoint before it appends.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] naming the sequence, [`StorageError::WrongBackend`], and failures
    /// of the disk.
    pub fn open(
        backend: LogBackend,
        database: &Database,
        dir: &Path,
    ) -> Result<(Self, BTreeMap<ReplicaKey, RecoveredGroup>)> {
        Self::open_tuned(backend, LogTuning::default(), database, dir)
    }

    /// As [`RecordLog::open`], with explicit thresholds.
    ///
    /// # Errors
    /// As [`RecordLog::open`].
    pub fn open_tuned(
        backend: LogBackend,
        tuning: LogTuning,
        database: &Database,
        dir: &Path,
    ) -> Result<(Self, BTreeMap<ReplicaKey, RecoveredGroup>)> {
        let mut store: Box<dyn LogStore> = match backend {
            LogBackend::Sled => Box::new(TreeStore::open(database)?),
            LogBackend::File => Box::new(FileStore::open(database, dir, tuning.file_bytes)?),
        };
        let mark = Mark::open(dir, database.syncs().clone())?;
        if let Some(recorded) = mark.as_ref().map(Mark::backend)
            && recorded != backend.number()
        {
            return Err(StorageError::WrongBackend {
                path: dir.to_owned(),
                recorded: LogBackend::name_of(recorded),
                asked: backend.name(),
            });
        }
        let marked = mark.as_ref().map_or(0, Mark::sequence);
        let Recovered { mut book, groups, last_crc, found } = recover(&mut *store, marked)?;
        let mut mark = match mark {
            Some(mark) => mark,
            // The mark is created before the first record is written.
            None if found => {
                let what = format!("{} holds a log but no file MARK", dir.display());
                return Err(StorageError::damaged(what));
            }
            None => Mark::create(dir, backend.number(), database.syncs().clone())?,
        };
        mark.set(book.next() - 1).map_err(|error| database.fail(error))?;
        let durable_head = book.head();
        book.advance_head();
        let log = Self {
            database: database.clone(),
            tuning,
            in_engine: backend == LogBackend::Sled,
            store,
            mark,
            book,
            builder: RecordBuilder::default(),
            last_crc,
            durable_head,
            removed_below: 0,
            appended: 0,
        };
        Ok((log, groups))
    }

    /// Writes one record; it is durable when this returns `Ok`. Without any change nothing is
    /// written.
    ///
    /// # Errors
    /// [`StorageError::Invalid`] for entries that are not consecutive or leave a gap after the last
    /// one, [`StorageError::TooLarge`] for a record over
    /// 64 MiB: nothing was written. After any other error the storage is closed.
    pub fn append(&mut self, sections: &[Section]) -> Result<()> {
        self.check(sections)?;
        self.builder.clear();
        for section in sections {
            let change = Change::of(&section.kind);
            if !change.is_empty() {
                self.builder.push((section.group, section.replica), &change)?;
            }
        }
        if self.builder.sections().is_empty() {
            return Ok(());
        }
        self.appended += self.write_record()?;
        let changes = sections.iter().map(|s| ((s.group, s.replica), Change::of(&s.kind)));
        let changes = changes.filter(|(_, change)| !change.is_empty());
        for ((key, change), (_, bytes)) in changes.zip(self.builder.sections()) {
            self.book.note(key, &change, *bytes);
        }
        let last = self.book.next() - 1;
        self.mark.refresh(last).map_err(|error| self.database.fail(error))
    }

    /// Declares the entries at or below `through` dead. They may come back after a restart.
    pub fn purge(&mut self, group: GroupId, replica: ReplicaId, through: Index) {
        self.book.purge((group, replica), through);
    }

    /// Declares everything of this replica dead. It may come back after a restart.
    pub fn forget(&mut self, group: GroupId, replica: ReplicaId) {
        self.book.forget((group, replica));
    }

    /// Moves the head and frees space: a little, in proportion to what was appended since the last
    /// call, so that neither dead records nor the work accumulate. Cheap when there is nothing to
    /// do. Call it after appends, and at least every second while idle, since it also refreshes
    /// `MARK`; again immediately while [`RecordLog::is_behind`].
    ///
    /// # Errors
    /// As [`RecordLog::append`].
    pub fn maintain(&mut self) -> Result<()> {
        if self.removed_below < self.durable_head {
            let upto = self.durable_head;
            if self.store.remove_below(upto)? {
                self.removed_below = upto;
            }
        }
        self.book.advance_head();
        // At least half of the bytes are dead, so each moved byte frees one: moving costs no more
        // than the appends that made the others dead, and moving as much as was appended keeps the
        // dead half from growing.
        let mut owed = self.tuning.move_bytes.max(std::mem::take(&mut self.appended));
        while owed > 0
            && self.book.bytes() > self.tuning.move_from_bytes
            && self.book.live_bytes() <= self.book.bytes() / 2
        {
            let moved = self.move_head(owed.min(MOVED_RECORD_BYTES))?;
            owed = if moved == 0 { 0 } else { owed.saturating_sub(moved) };
        }
        let last = self.book.next() - 1;
        self.mark.refresh(last).map_err(|error| self.database.fail(error))
    }

    /// Bytes of all records from the head on.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.book.bytes()
    }

    /// Whether dead records remain that could be removed now.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.removed_below < self.durable_head
    }

    /// Bytes that the log takes in its back end: all records, including dead ones that are not yet
    /// removed. In the database these are keys and values, without the overhead of the database's
    /// file ([`Database::disk_bytes`]).
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.store.stored_bytes()
    }

    /// Bytes of [`RecordLog::stored_bytes`] that are in the database: all, or none with the file
    /// back end.
    #[must_use]
    pub fn engine_bytes(&self) -> u64 {
        if self.in_engine { self.store.stored_bytes() } else { 0 }
    }

    /// The database, which a failure of the log closes too.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Bytes of all live sections: the least that [`RecordLog::bytes`] can become.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.book.live_bytes()
    }

    /// Bytes of one replica's live sections.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn group_bytes(&self, group: GroupId, replica: ReplicaId) -> u64 {
        self.book.replica_bytes((group, replica))
    }

    /// The live entries of a replica, as runs of indexes: one run, unless something is wrong.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn live_runs(&self, key: ReplicaKey) -> Vec<(Index, Index)> {
        self.book.live_runs(key)
    }

    /// The sequence of the last record; 0 if there is none.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.book.next() - 1
    }

    /// The sequence of the first record that is still needed.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn head(&self) -> u64 {
        self.book.head()
    }

    /// Closes the log in order: `MARK` then holds the last sequence.
    ///
    /// # Errors
    /// The mark cannot be written.
    pub fn close(mut self) -> Result<()> {
        let last = self.last_sequence();
        self.mark.set(last).map_err(|error| self.database.fail(error))
    }

    fn check(&self, sections: &[Section]) -> Result<()> {
        // The next index of each replica that an earlier section of this record has changed.
        let mut next: BTreeMap<ReplicaKey, Index> = BTreeMap::new();
        for Section { group, replica, kind } in sections {
            let key = (*group, *replica);
            match kind {
                SectionKind::HardState(_) => {}
                SectionKind::Reset(to) => {
                    next.insert(key, to.index.next());
                }
                SectionKind::Append(entries) => {
                    let Some(first) = entries.first() else { continue };
                    let expected = next.get(&key).copied().or_else(|| self.book.next_index(key));
                    if expected.is_some_and(|expected| first.index > expected) {
                        let what = format!("{group} {replica}: {first} leaves a gap in the log");
                        return Err(StorageError::Invalid { what });
                    }
                    let indexes = (first.index.0..).zip(entries);
                    if let Some((_, entry)) = indexes.clone().find(|(i, e)| e.index.0 != *i) {
                        let what = format!("{group} {replica}: {} is out of order", entry.id());
                        return Err(StorageError::Invalid { what });
                    }
                    next.insert(key, Index(first.index.0 + entries.len() as u64));
                }
            }
        }
        Ok(())
    }

    /// Writes the content of the builder as the next record and enters it into the book, without
    /// its sections. Returns its length in bytes.
    fn write_record(&mut self) -> Result<u64> {
        let sequence = self.book.next();
        let header = Header {
            sequence,
            previous: self.last_crc,
            // Each append waits for its barrier, and recovery ends with one.
            durable_upto: sequence - 1,
            head: self.book.head(),
        };
        let (record, crc) = self.builder.finish(header)?;
        let bytes = record.len() as u64;
        self.store.write(sequence, record)?;
        self.builder.give_back();
        self.last_crc = crc;
        self.durable_head = header.head;
        self.book.add_record(bytes);
        Ok(bytes)
    }

    /// Writes the live sections of the first records again as one record at the tail, about
    /// `at_least` bytes of them if there are that many. They are durable when the head moves, and
    /// the next record carries the new head. Returns the length of the record in bytes.
    fn move_head(&mut self, at_least: u64) -> Result<u64> {
        self.builder.clear();
        let end = self.book.next();
        let mut sequence = self.book.head();
        let mut moved: Vec<(ReplicaKey, SectionKind)> = Vec::new();
        while sequence < end && self.builder.body_bytes() < at_least {
            let live = self.book.live_in(sequence);
            // A long record is moved by itself, so that no record becomes too long to read.
            if !moved.is_empty() && self.builder.body_bytes() + live > MOVED_RECORD_BYTES {
                break;
            }
            if live > 0 {
                self.collect_live(sequence, &mut moved)?;
            }
            sequence += 1;
        }
        if moved.is_empty() {
            return Ok(0);
        }
        let written = self.write_record()?;
        for ((key, kind), (_, bytes)) in moved.iter().zip(self.builder.sections()) {
            self.book.note(*key, &Change::of(kind).moved(), *bytes);
        }
        self.book.advance_head();
        assert!(self.book.head() >= sequence, "record {} stays live", self.book.head());
        Ok(written)
    }

    /// Adds the live sections of record `sequence` to the builder and to `moved`.
    fn collect_live(
        &mut self,
        sequence: u64,
        moved: &mut Vec<(ReplicaKey, SectionKind)>,
    ) -> Result<()> {
        let bytes = self.store.read(sequence)?;
        let frame = codec::open_frame(&bytes).map_err(|error| {
            StorageError::damaged(format!("record {sequence} of the log {}", error.as_str()))
        })?;
        for (number, decoded) in (0..).zip(record::decode_sections(frame, sequence)?) {
            let section = SectionId { sequence, number };
            let key = decoded.key();
            let parts: Vec<SectionKind> = match decoded.section.kind {
                SectionKind::Append(entries) => {
                    let live = self.book.live_entries(key, section, &entries);
                    live.into_iter().map(SectionKind::Append).collect()
                }
                kind @ SectionKind::HardState(_) if self.book.is_hard_state(key, section) => {
                    vec![kind]
                }
                kind @ SectionKind::Reset(_) if self.book.is_reset(key, section) => vec![kind],
                SectionKind::HardState(_) | SectionKind::Reset(_) => Vec::new(),
            };
            for kind in parts {
                self.builder.push(key, &Change::of(&kind).moved())?;
                moved.push((key, kind));
            }
        }
        Ok(())
    }
}
