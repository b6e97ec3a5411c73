//! The session table of a shard, for exactly-once writes: which (session, sequence) was decided,
//! and how.
//!
//! The rows are authoritative and this table is their index: one row for each remembered sequence
//! and no other. So a write with a session writes one row more, and removes each row that is not
//! needed any more. The answers stay in the rows; memory holds only what the next command is
//! checked against. [`SessionTable::load`] of the rows always gives the same table.
//!
//! - *Accepted ids.* A session lives for [`SessionLimits::ttl_ms`] from its birth, by the shard's
//!   own log time. An unknown id within it is new; an older one is rejected whether it is
//!   remembered or not. So forgetting expired sessions is always safe.
//! - *Remembered answers.* Those of sequences from `answered_below` on. A write carries that number
//!   and its row keeps it; the session's is the greatest of the remaining rows. A row is dropped
//!   only when another row says that its sequence is answered, so the greatest is never lost.
//! - *The end.* A write marked `last` removes all other rows of its session; its own stays as a
//!   tombstone. Every other sequence is then past.
//! - *Full.* With [`SessionLimits::unanswered_max`] sequences in a session, or
//!   [`SessionLimits::bytes_max`] in the table, new sequences are rejected; no live row is evicted.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use quorate_proto::limits;
use quorate_storage::{RowKey, StorageError};

use super::{
    answer::Refusal,
    answer_row::{AnswerRow, Stored, answer_row_key, encode_row, read_answer_row_key},
    error::{ApplyError, Damaged},
    rows::RowTransaction,
    stamp::LogTime,
};
use crate::session_id::SessionId;

/// The overhead of a row in bytes, in addition to its key and value, in [`SessionTable::bytes`]:
/// its structures in memory and on disk.
const ROW_OVERHEAD_BYTES: u64 = 64;

/// The limits of a session table. All replicas of all versions must use the same limits, because
/// they decide what is rejected: they belong to the feature level and are not configurable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// How long a session is valid from its birth, in milliseconds of log time.
    pub ttl_ms: u64,
    /// How far ahead of the log time a session may be born, in milliseconds.
    pub future_ms: u64,
    /// The most remembered sequences of a session.
    pub unanswered_max: usize,
    /// Once the rows of the table together reach this many bytes (key, value and 64 each), new
    /// sequences are rejected. The last row accepted may exceed it by its own length.
    pub bytes_max: u64,
    /// Expiry stops once this many rows were removed for one entry. A session is removed as a
    /// whole, so it may exceed this by `unanswered_max`.
    pub expired_rows_per_entry: usize,
}

impl SessionLimits {
    /// The limits of feature level 1.
    pub const LEVEL_1: SessionLimits = SessionLimits {
        ttl_ms: limits::SESSION_TTL.as_millis() as u64,
        future_ms: limits::SESSION_FUTURE_MAX.as_millis() as u64,
        unanswered_max: limits::SESSION_UNANSWERED_MAX as usize,
        bytes_max: 16 << 20,
        expired_rows_per_entry: 32,
    };
}

/// The exactly-once part of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionUse {
    /// The session.
    pub id: SessionId,
    /// The write's number in the session.
    pub sequence: u64,
    /// All sequences below this one are answered. A value above `sequence` counts as `sequence`.
    pub answered_below: u64,
    /// The session ends with this write.
    pub last: bool,
    /// The hash of the operations; `None` = a Cancel.
    pub content_hash: Option<u64>,
}

impl SessionUse {
    fn floor(&self) -> u64 {
        self.answered_below.min(self.sequence)
    }
}

/// The decision of the table about a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Its sequence is remembered: [`SessionTable::replay`] gives the answer.
    Duplicate,
    /// It is new: decide it, and then [`SessionTable::record`] the answer.
    New,
    /// It is rejected.
    Refused(Refusal),
}

/// The index of a shard's session rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionTable {
    limits: SessionLimits,
    /// In the order of ids, which is the order of births.
    sessions: BTreeMap<SessionId, Session>,
    bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Session {
    /// Every sequence below this one is answered, and forgotten.
    floor: u64,
    /// Whether the session ended; its one row is the tombstone.
    ended: bool,
    /// In the order of their sequences; never empty.
    rows: VecDeque<RowStub>,
}

/// The part of a row that the next command is checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RowStub {
    sequence: u64,
    content_hash: u64,
    /// The cost of the row; a row is far below 4 GiB.
    bytes: u32,
    barred: bool,
}

impl Session {
    fn position(&self, sequence: u64) -> Result<usize, usize> {
        match self.rows.back() {
            // Sequences usually arrive in order.
            Some(newest) if newest.sequence < sequence => Err(self.rows.len()),
            _ => self.rows.binary_search_by_key(&sequence, |row| row.sequence),
        }
    }

    fn add(&mut self, row: RowStub, answered_below: u64, last: bool) {
        match self.position(row.sequence) {
            Ok(at) => self.rows[at] = row,
            Err(at) => self.rows.insert(at, row),
        }
        self.floor = self.floor.max(answered_below);
        self.ended |= last;
    }
}

impl SessionTable {
    /// An empty table.
    #[must_use]
    pub fn new(limits: SessionLimits) -> SessionTable {
        SessionTable { limits, sessions: BTreeMap::new(), bytes: 0 }
    }

    /// Loads the table from these rows, in any order.
    ///
    /// # Errors
    /// A failed read, or a row that does not decode.
    pub fn load(
        limits: SessionLimits,
        rows: impl IntoIterator<Item = Result<(RowKey, Bytes), StorageError>>,
    ) -> Result<Self, ApplyError> {
        let mut table = Self::new(limits);
        for row in rows {
            let (key, value) = row?;
            let (id, sequence) = read_answer_row_key(&key)?;
            let stub_bytes = row_cost(&key, &value);
            let row = AnswerRow::decode(value)?;
            let stub = RowStub {
                sequence,
                content_hash: row.content_hash,
                bytes: stub_bytes,
                barred: row.stored == Stored::Barred,
            };
            table.bytes += u64::from(stub_bytes);
            table.sessions.entry(id).or_default().add(stub, row.answered_below, row.last);
        }
        Ok(table)
    }

    /// The number of remembered sessions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether no session is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// The size of the rows in bytes, with the overhead of each.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> SessionLimits {
        self.limits
    }

    /// Removes sessions past their time to live, oldest first and only some of them, so that one
    /// entry never removes many. The remaining ones are rejected too.
    ///
    /// # Errors
    /// A failed write.
    pub fn expire(
        &mut self,
        now: LogTime,
        rows: &mut impl RowTransaction,
    ) -> Result<(), ApplyError> {
        let mut removed = 0;
        while removed < self.limits.expired_rows_per_entry {
            let Some(oldest) = self.sessions.first_entry() else { break };
            if !expired(oldest.key(), now, self.limits.ttl_ms) {
                break;
            }
            let (id, session) = oldest.remove_entry();
            removed += session.rows.len();
            for row in &session.rows {
                self.bytes -= u64::from(row.bytes);
                rows.delete(&answer_row_key(&id, row.sequence))?;
            }
        }
        Ok(())
    }

    /// Decides about a command at this log time. Changes nothing.
    #[must_use]
    pub fn admit(&self, command: &SessionUse, now: LogTime) -> Admission {
        let SessionUse { id, sequence, .. } = *command;
        let born_ahead = LogTime(now.0.saturating_add(self.limits.future_ms << 16)) < id.birth();
        if born_ahead {
            return Admission::Refused(Refusal::SessionFromFuture { log_time: now });
        }
        if expired(&id, now, self.limits.ttl_ms) {
            return Admission::Refused(Refusal::SessionExpired { log_time: now });
        }
        let past = |floor: u64| {
            Admission::Refused(Refusal::SequencePast { sequence, answered_below: floor.max(1) })
        };
        if sequence == 0 {
            return past(1);
        }
        if let Some(session) = self.sessions.get(&id) {
            if let Ok(at) = session.position(sequence) {
                return duplicate(&session.rows[at], command);
            }
            if session.ended {
                return Admission::Refused(Refusal::SessionEnded { sequence });
            }
            if sequence < session.floor {
                return past(session.floor);
            }
        }
        self.room(command)
    }

    /// Whether there is room for one more row, once those that the command reports as answered are
    /// removed.
    fn room(&self, command: &SessionUse) -> Admission {
        let (mut kept, mut freed) = (0, 0);
        if let Some(session) = self.sessions.get(&command.id) {
            let gone = session.rows.partition_point(|row| row.sequence < command.floor());
            kept = session.rows.len() - gone;
            freed = session.rows.range(..gone).map(|row| u64::from(row.bytes)).sum();
        }
        if kept >= self.limits.unanswered_max {
            Admission::Refused(Refusal::SessionsFull { session: true })
        } else if self.bytes - freed >= self.limits.bytes_max {
            Admission::Refused(Refusal::SessionsFull { session: false })
        } else {
            Admission::New
        }
    }

    /// Records the decision of a command that was [`Admission::New`], and removes the rows that the
    /// command reports as answered.
    ///
    /// # Errors
    /// A failed read or write.
    pub fn record(
        &mut self,
        command: &SessionUse,
        stored: &Stored,
        rows: &mut impl RowTransaction,
    ) -> Result<(), ApplyError> {
        let barred = matches!(stored, Stored::Barred);
        let content_hash = if barred { 0 } else { command.content_hash.unwrap_or_default() };
        let floor = if command.last { command.sequence } else { command.floor() };
        let key = answer_row_key(&command.id, command.sequence);
        let value = encode_row(command.last, content_hash, floor, stored);
        let bytes = row_cost(&key, &value);
        let stub = RowStub { sequence: command.sequence, content_hash, bytes, barred };
        // The row does not exist: the table has a stub of each row, and none of this one.
        rows.insert_new(&key, &value)?;

        let session = self.sessions.entry(command.id).or_default();
        self.bytes += u64::from(stub.bytes);
        session.add(stub, floor, command.last);
        if command.last {
            // Rows above the tombstone are removed too: the client will not ask for them again.
            while session.rows.back().is_some_and(|row| row.sequence > command.sequence) {
                self.bytes -= drop_row(session.rows.pop_back(), &command.id, rows)?;
            }
        }
        self.bytes -= trim(session, &command.id, rows)?;
        Ok(())
    }

    /// The remembered answer of a command that was [`Admission::Duplicate`]. The only change is
    /// that rows that the command reports as answered are removed.
    ///
    /// # Errors
    /// The row is missing or does not decode, or a failed read or write.
    pub fn replay(
        &mut self,
        command: &SessionUse,
        rows: &mut impl RowTransaction,
    ) -> Result<Stored, ApplyError> {
        let key = answer_row_key(&command.id, command.sequence);
        let missing = || Damaged::new("the session table", format!("the row {key:?} is missing"));
        let mut row = AnswerRow::decode(rows.get(&key)?.ok_or_else(missing)?)?;
        let session = self.sessions.get_mut(&command.id).ok_or_else(missing)?;
        if command.floor() > session.floor {
            session.floor = command.floor();
            // The row with the old number may be among those removed, so this row carries the new
            // one.
            row.answered_below = session.floor;
            rows.put(&key, &row.encode())?;
            self.bytes -= trim(session, &command.id, rows)?;
        }
        Ok(row.stored)
    }
}

fn expired(id: &SessionId, now: LogTime, ttl_ms: u64) -> bool {
    id.birth().0.saturating_add(ttl_ms << 16) <= now.0
}

fn duplicate(row: &RowStub, command: &SessionUse) -> Admission {
    let sequence = command.sequence;
    match command.content_hash {
        // A Cancel asks for the answer, whatever it is.
        None => Admission::Duplicate,
        Some(_) if row.barred => Admission::Refused(Refusal::SequenceBarred { sequence }),
        Some(hash) if hash != row.content_hash => {
            Admission::Refused(Refusal::SequenceReused { sequence })
        }
        Some(_) => Admission::Duplicate,
    }
}

/// Drops the rows below the session's floor; returns their size in bytes.
fn trim(
    session: &mut Session,
    id: &SessionId,
    rows: &mut impl RowTransaction,
) -> Result<u64, ApplyError> {
    let mut freed = 0;
    while session.rows.front().is_some_and(|row| row.sequence < session.floor) {
        freed += drop_row(session.rows.pop_front(), id, rows)?;
    }
    Ok(freed)
}

fn drop_row(
    row: Option<RowStub>,
    id: &SessionId,
    rows: &mut impl RowTransaction,
) -> Result<u64, ApplyError> {
    let Some(row) = row else { return Ok(0) };
    rows.delete(&answer_row_key(id, row.sequence))?;
    Ok(u64::from(row.bytes))
}

fn row_cost(key: &RowKey, value: &[u8]) -> u32 {
    (key.as_bytes().len() + value.len()) as u32 + ROW_OVERHEAD_BYTES as u32
}
