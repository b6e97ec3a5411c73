//! The record log: what all groups of a node must not forget, in one sequence of records.
//!
//! One [`RecordLog::append`] writes one record with the changes of any number of groups and makes
//! it durable with one barrier; a chunk per group would cost a barrier's worth of work each.
//!
//! A record carries its sequence, the checksum of the record before it, the last sequence known
//! durable when it was written, the *head* (the first sequence that still matters) and sections.
//! What a section means:
//!
//! | kind | meaning when records are read in sequence |
//! |---|---|
//! | HARD_STATE | the group's term, vote and commit index; the newest counts |
//! | APPEND | entries from index f on; drops what the group held at ≥ f |
//! | RESET | drops every entry of the group: the log begins after (index, term) |
//! | APPEND_MOVED | entries written again from a record that leaves; drops nothing |
//! | RESET_MOVED | a reset written again; drops what the group held at or below it |
//!
//! **Space** comes back at the head only. [`RecordLog::maintain`] writes the sections of the first
//! records that still matter again at the tail; once those are durable the head moves in memory,
//! the next record says so, and once *that* one is durable the records below are removed. So
//! whatever is removed has been replaced behind a completed barrier, and a reader that finds a
//! record also knows which ones it may miss.
//!
//! **Recovery** accepts exactly two states of the disk: everything from the head to the last
//! durable record, or that and one record more, which was being written when the process died. A
//! record that is missing or broken at or below a sequence that any surviving record (or the file
//! `MARK`) knows to be durable is damage; a broken one above all of them is the unfinished tail and
//! is removed, with a barrier, before anything new is written.

use std::collections::BTreeMap;
use std::path::Path;

use quorate_raft::{Entry, GroupId, HardState, Index, LogId, ReplicaId};

use crate::engine::Engine;
use crate::error::Result;

/// Where the records are kept. Both back ends hold the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogBackend {
    /// A tree of the engine.
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

/// What a [`Section`] changes.
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

/// What the log holds of one replica after a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveredGroup {
    /// The newest hard state; the default if none was ever written.
    pub hard_state: HardState,
    /// The last reset, unless the log has since been purged through it.
    pub reset: Option<LogId>,
    /// Entries with consecutive indexes. Entries that had been purged may be among them (the log
    /// forgets a purge when the process ends); none that a later append or reset dropped is.
    pub entries: Vec<Entry>,
}

/// Names one replica's part of the log.
pub type ReplicaKey = (GroupId, ReplicaId);

/// The log of a node. One thread owns it.
#[derive(Debug)]
pub struct RecordLog {}

impl RecordLog {
    /// Opens the log of the data directory `dir`, and returns what it holds of each replica. All of
    /// that is durable when this returns.
    ///
    /// # Errors
    /// [`StorageError::Damaged`](crate::StorageError::Damaged) naming the sequence, and others.
    pub fn open(
        backend: LogBackend,
        engine: &Engine,
        dir: &Path,
    ) -> Result<(Self, BTreeMap<ReplicaKey, RecoveredGroup>)> {
        let _ = (backend, engine, dir);
        unimplemented!()
    }

    /// Writes one record; it is durable when this returns `Ok`.
    ///
    /// # Errors
    /// Invalid or too large requests change nothing; any other error has closed the storage.
    pub fn append(&mut self, sections: &[Section]) -> Result<()> {
        let _ = sections;
        unimplemented!()
    }

    /// Declares the entries at or below `through` dead. They may come back after a restart.
    pub fn purge(&mut self, group: GroupId, replica: ReplicaId, through: Index) {
        let _ = (group, replica, through);
        unimplemented!()
    }

    /// Declares everything of this replica dead. It may come back after a restart.
    pub fn forget(&mut self, group: GroupId, replica: ReplicaId) {
        let _ = (group, replica);
        unimplemented!()
    }

    /// Moves the head and frees space, a bounded amount of work at a time; cheap when there is
    /// nothing to do. Call it after appends, and at least every second while idle: it also keeps
    /// `MARK` fresh.
    ///
    /// # Errors
    /// As [`RecordLog::append`].
    pub fn maintain(&mut self) -> Result<()> {
        unimplemented!()
    }

    /// Bytes of all records from the head on.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        unimplemented!()
    }

    /// Bytes of one replica's live sections.
    #[must_use]
    pub fn group_bytes(&self, group: GroupId, replica: ReplicaId) -> u64 {
        let _ = (group, replica);
        unimplemented!()
    }

    /// Ends cleanly: `MARK` then holds the last sequence.
    ///
    /// # Errors
    /// If the mark cannot be written.
    pub fn close(self) -> Result<()> {
        unimplemented!()
    }
}
