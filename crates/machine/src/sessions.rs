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
//! - *Shares.* From feature level 2 on a client may take more only while its rows have less than
//!   what is free: alone it gets half of the table, and however many clients take as much as they
//!   can, some is left for one more. A row that is small and replaces others needs no share, so
//!   that a session continues whatever others have taken since.

use std::collections::{BTreeMap, VecDeque, btree_map::Entry};

use bytes::Bytes;
use quorate_proto::{limits, raft::v1::CommandOperation};
use quorate_storage::{RowKey, StorageError};

use super::{
    answer::{Full, Refusal},
    answer_row::{AnswerRow, Mark, Stored, answer_row_key, encode_row, read_answer_row_key},
    error::{ApplyError, Damaged},
    rows::RowTransaction,
    stamp::LogTime,
};
use crate::{session_id::SessionId, session_key::ClientTag};

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
    /// The limits of feature levels 1 and 2. What level 2 adds, the share of a client, follows from
    /// `bytes_max`.
    pub const LEVEL_1: SessionLimits = SessionLimits {
        ttl_ms: limits::SESSION_TTL.as_millis() as u64,
        future_ms: limits::SESSION_FUTURE_MAX.as_millis() as u64,
        unanswered_max: limits::SESSION_UNANSWERED_MAX as usize,
        bytes_max: 16 << 20,
        expired_rows_per_entry: 32,
    };
}

/// The exactly-once part of a command.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SessionUse<'a> {
    /// The session.
    pub id: SessionId,
    /// The write's number in the session.
    pub sequence: u64,
    /// All sequences below this one are answered. A value above `sequence` counts as `sequence`.
    pub answered_below: u64,
    /// The session ends with this write.
    pub last: bool,
    /// What the row is known by.
    pub mark: Mark,
    /// The operations; `None` = a Cancel.
    pub operations: Option<&'a [CommandOperation]>,
}

impl SessionUse<'_> {
    fn floor(&self) -> u64 {
        self.answered_below.min(self.sequence)
    }

    /// Whether its row is about as small as rows are: of one operation, without a previous value.
    fn is_small(&self) -> bool {
        match self.operations {
            None => true,
            Some([operation]) => !operation.return_previous,
            Some(_) => false,
        }
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
    /// The bytes of each client that is known; never 0.
    clients: BTreeMap<ClientTag, u64>,
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
    mark: Mark,
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

    /// Drops the rows below the floor.
    fn past(&mut self) -> Vec<RowStub> {
        let gone = self.rows.partition_point(|row| row.sequence < self.floor);
        self.rows.drain(..gone).collect()
    }
}

impl SessionTable {
    /// An empty table.
    #[must_use]
    pub fn new(limits: SessionLimits) -> SessionTable {
        SessionTable { limits, sessions: BTreeMap::new(), bytes: 0, clients: BTreeMap::new() }
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
                mark: row.mark,
                bytes: stub_bytes,
                barred: row.stored == Stored::Barred,
            };
            table.count(&stub);
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
            for row in session.rows {
                rows.delete(&answer_row_key(&id, row.sequence))?;
                self.uncount(&row);
            }
        }
        Ok(())
    }

    /// What the rows of a client have, in bytes.
    #[must_use]
    pub fn of_client(&self, client: &ClientTag) -> u64 {
        self.clients.get(client).copied().unwrap_or_default()
    }

    /// Counts a row that was added.
    fn count(&mut self, row: &RowStub) {
        self.bytes += u64::from(row.bytes);
        if let Some(client) = row.mark.client() {
            *self.clients.entry(client).or_default() += u64::from(row.bytes);
        }
    }

    /// Counts a row no longer that was removed.
    fn uncount(&mut self, row: &RowStub) {
        self.bytes -= u64::from(row.bytes);
        if let Some(client) = row.mark.client()
            && let Entry::Occupied(mut of_client) = self.clients.entry(client)
        {
            *of_client.get_mut() -= u64::from(row.bytes);
            if *of_client.get() == 0 {
                of_client.remove();
            }
        }
    }

    /// Decides about a command at this log time. Changes nothing.
    #[must_use]
    pub fn admit(&self, command: &SessionUse<'_>, now: LogTime) -> Admission {
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

    /// Whether there is room for one more row, and the client may have it, once those rows that the
    /// command reports as answered are removed.
    fn room(&self, command: &SessionUse<'_>) -> Admission {
        let (mut kept, mut freed) = (0, 0);
        if let Some(session) = self.sessions.get(&command.id) {
            let gone = session.rows.partition_point(|row| row.sequence < command.floor());
            kept = session.rows.len() - gone;
            freed = session.rows.range(..gone).map(|row| u64::from(row.bytes)).sum();
        }
        let SessionLimits { unanswered_max, bytes_max, .. } = self.limits;
        let full = |full| Admission::Refused(Refusal::SessionsFull(full));
        if kept >= unanswered_max {
            return full(Full::Session { sequences: unanswered_max });
        }
        if self.bytes - freed >= bytes_max {
            return full(Full::Table { bytes: bytes_max });
        }
        let replaces = freed > 0 && command.is_small();
        if let Some(client) = command.mark.client().filter(|_| !replaces) {
            let (own, free) = (self.of_client(&client), bytes_max.saturating_sub(self.bytes));
            // Rows of level 1 among those freed are of no client.
            if own.saturating_sub(freed) >= free + freed {
                return full(Full::Share { own, free });
            }
        }
        Admission::New
    }

    /// Records the decision of a command that was [`Admission::New`], and removes the rows that the
    /// command reports as answered.
    ///
    /// # Errors
    /// A failed read or write.
    pub fn record(
        &mut self,
        command: &SessionUse<'_>,
        stored: &Stored,
        rows: &mut impl RowTransaction,
    ) -> Result<(), ApplyError> {
        let barred = matches!(stored, Stored::Barred);
        let mark = if barred { command.mark.barred() } else { command.mark };
        let floor = if command.last { command.sequence } else { command.floor() };
        let key = answer_row_key(&command.id, command.sequence);
        let value = encode_row(command.last, &mark, floor, stored);
        let bytes = row_cost(&key, &value);
        let stub = RowStub { sequence: command.sequence, mark, bytes, barred };
        // The row does not exist: the table has a stub of each row, and none of this one.
        rows.insert_new(&key, &value)?;

        let session = self.sessions.entry(command.id).or_default();
        session.add(stub, floor, command.last);
        let mut gone = session.past();
        if command.last {
            // Rows above the tombstone are removed too: the client will not ask for them again.
            while let Some(row) = session.rows.pop_back_if(|row| row.sequence > command.sequence) {
                gone.push(row);
            }
        }
        self.count(&stub);
        self.forget(&command.id, &gone, rows)
    }

    /// The remembered answer of a command that was [`Admission::Duplicate`]. The only change is
    /// that rows that the command reports as answered are removed.
    ///
    /// # Errors
    /// The row is missing or does not decode, or a failed read or write.
    pub fn replay(
        &mut self,
        command: &SessionUse<'_>,
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
            let gone = session.past();
            self.forget(&command.id, &gone, rows)?;
        }
        Ok(row.stored)
    }

    /// Deletes the rows that a session has dropped.
    fn forget(
        &mut self,
        id: &SessionId,
        gone: &[RowStub],
        rows: &mut impl RowTransaction,
    ) -> Result<(), ApplyError> {
        for row in gone {
            rows.delete(&answer_row_key(id, row.sequence))?;
            self.uncount(row);
        }
        Ok(())
    }
}

fn expired(id: &SessionId, now: LogTime, ttl_ms: u64) -> bool {
    id.birth().0.saturating_add(ttl_ms << 16) <= now.0
}

fn duplicate(row: &RowStub, command: &SessionUse<'_>) -> Admission {
    let sequence = command.sequence;
    match command.operations {
        // A Cancel asks for the answer, whatever it is.
        None => Admission::Duplicate,
        Some(_) if row.barred => Admission::Refused(Refusal::SequenceBarred { sequence }),
        Some(operations) if !row.mark.is_of(&command.mark, operations) => {
            Admission::Refused(Refusal::SequenceReused { sequence })
        }
        Some(_) => Admission::Duplicate,
    }
}

fn row_cost(key: &RowKey, value: &[u8]) -> u32 {
    (key.as_bytes().len() + value.len()) as u32 + ROW_OVERHEAD_BYTES as u32
}
