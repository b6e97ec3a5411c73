//! The store behind the nodes: what a call does when nothing is scripted.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_proto::v1::batch_operation::Action;
use quorate_proto::v1::condition::Expect;
use quorate_proto::v1::{
    BatchOperation, BatchResponse, BatchResult, CancelResponse, CancelResult, Condition, Failure,
    Outcome, Reason, ScanRequest, ScanRow, StoredValue, WriteSession,
};

/// The log time of every row.
pub(crate) const LOG_TIME: u64 = 7 << 16;

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The value.
    pub value: Bytes,
    /// The index of the write that put it there.
    pub revision: u64,
    /// The index of the write that created the key.
    pub create_revision: u64,
}

/// Rows, and the answers that sessions remember.
#[derive(Debug, Default)]
pub struct Store {
    /// The records by key.
    pub rows: BTreeMap<Bytes, Row>,
    /// The index of the newest write. Every write that is executed takes the next one, whether its
    /// condition holds or not; so this is how many were.
    pub index: u64,
    /// The sessions that were opened.
    sessions: u64,
    /// What the sessions remember, by id and sequence; `None` = barred by Cancel.
    remembered: BTreeMap<(Bytes, u64), Option<Written>>,
}

/// What a write did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written {
    pub applied: bool,
    pub before: Option<Row>,
    pub after: Option<Row>,
    /// The answer is that of an earlier attempt.
    pub replayed: bool,
}

impl Written {
    /// The number that the key holds afterwards; 0 if it holds none.
    pub fn number(&self) -> i64 {
        let text = self.after.as_ref().and_then(|row| str::from_utf8(&row.value).ok());
        text.and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

/// What a write makes of what the key holds: the value that it holds then, `None` = it is absent.
pub(crate) enum Change {
    Set(Bytes),
    Remove,
    Add(i64),
}

impl Change {
    fn of(self, before: Option<&Row>) -> Result<Option<Bytes>, Failure> {
        match self {
            Change::Set(value) => Ok(Some(value)),
            Change::Remove => Ok(None),
            Change::Add(delta) => {
                let text = before.map_or(Some("0"), |row| str::from_utf8(&row.value).ok());
                let number = text
                    .and_then(|text| text.parse::<i64>().ok())
                    .ok_or_else(|| Failure::of(Reason::NotANumber, "the value is not a number"))?;
                Ok(Some((number + delta).to_string().into()))
            }
        }
    }
}

impl Store {
    /// The id of a new session, as long as those of nodes.
    pub(crate) fn open_session(&mut self) -> Bytes {
        self.sessions += 1;
        format!("session-{:048}", self.sessions).into()
    }

    /// Executes a write, of each session and sequence once.
    pub(crate) fn write(
        &mut self,
        key: Bytes,
        condition: Option<Condition>,
        session: Option<WriteSession>,
        change: Change,
    ) -> Result<Written, Failure> {
        let id = session.map(|session| (session.id, session.sequence));
        match id.as_ref().and_then(|id| self.remembered.get(id)) {
            Some(Some(written)) => return Ok(Written { replayed: true, ..written.clone() }),
            Some(None) => {
                let barred = Failure::of(Reason::SequencePast, "the sequence was barred");
                return Err(Failure { outcome: Outcome::NotApplied as i32, ..barred });
            }
            None => {}
        }
        self.index += 1;
        let index = self.index;
        let before = self.rows.get(&key).cloned();
        let mut written = Written { before: before.clone(), ..Written::default() };
        if holds(condition, before.as_ref()) {
            let value = change.of(before.as_ref())?;
            let create_revision = before.as_ref().map_or(index, |row| row.create_revision);
            written.applied = true;
            written.after = value.map(|value| Row { value, revision: index, create_revision });
            match &written.after {
                Some(row) => self.rows.insert(key, row.clone()),
                None => self.rows.remove(&key),
            };
        } else {
            written.after = before;
        }
        if let Some(id) = id {
            self.remembered.insert(id, Some(written.clone()));
        }
        Ok(written)
    }

    /// Executes the operations of a Batch if all of their conditions hold. No session remembers it.
    pub(crate) fn batch(&mut self, operations: &[BatchOperation]) -> BatchResponse {
        self.index += 1;
        let index = self.index;
        let held = |operation: &BatchOperation| {
            holds(operation.condition.clone(), self.rows.get(&operation.key))
        };
        let held: Vec<bool> = operations.iter().map(held).collect();
        let applied = held.iter().all(|held| *held);
        let mut results = Vec::new();
        for (operation, condition_held) in operations.iter().zip(held) {
            let before = self.rows.get(&operation.key).cloned();
            let change = match operation.action.clone() {
                _ if !applied => None,
                Some(Action::Put(put)) => Some(Change::Set(put.value)),
                Some(Action::Delete(_)) => Some(Change::Remove),
                Some(Action::Increment(increment)) => Some(Change::Add(increment.delta)),
                Some(Action::Check(_) | Action::Get(_)) | None => None,
            };
            let after = match change.map(|change| change.of(before.as_ref())) {
                // A value that is not a number stays as it is: no test needs the failure.
                None | Some(Err(_)) => before.clone(),
                Some(Ok(None)) => None,
                Some(Ok(Some(value))) => {
                    let create_revision = before.as_ref().map_or(index, |row| row.create_revision);
                    Some(Row { value, revision: index, create_revision })
                }
            };
            match &after {
                Some(row) => self.rows.insert(operation.key.clone(), row.clone()),
                None => self.rows.remove(&operation.key),
            };
            let is_get = matches!(operation.action, Some(Action::Get(_)));
            let written = Written { applied, before, after, replayed: false };
            let row = written.after.as_ref();
            results.push(BatchResult {
                condition_held,
                found: written.before.is_some(),
                revision: row.map_or(0, |row| row.revision),
                create_revision: row.map_or(0, |row| row.create_revision),
                number: written.number(),
                value: row.filter(|_| is_get).map_or_else(Bytes::new, |row| row.value.clone()),
                ..BatchResult::default()
            });
        }
        let revision = if applied { index } else { 0 };
        BatchResponse { applied, results, revision, ..BatchResponse::default() }
    }

    /// Settles a write: what is remembered of it, or it is barred.
    pub(crate) fn cancel(&mut self, session: Bytes, sequence: u64) -> CancelResponse {
        let written = self.remembered.entry((session, sequence)).or_default();
        let result = match written {
            Some(_) => CancelResult::Answered,
            None => CancelResult::Barred,
        };
        CancelResponse {
            result: result as i32,
            applied: written.as_ref().is_some_and(|written| written.applied),
            ..CancelResponse::default()
        }
    }

    /// The rows of one page of at most `most` rows, and the token of the next one, which is the
    /// last key of this one; empty behind the last page.
    pub(crate) fn page(&self, scan: &ScanRequest, most: usize) -> (Vec<ScanRow>, Bytes) {
        let limit = match usize::try_from(scan.limit) {
            Ok(0) | Err(_) => usize::MAX,
            Ok(limit) => limit,
        };
        let most = match usize::try_from(scan.page_size) {
            Ok(0) | Err(_) => most,
            Ok(size) => most.min(size),
        };
        let token = &scan.page_token;
        let wanted = |key: &Bytes| {
            let behind = if scan.reverse { key < token } else { key > token };
            key.starts_with(&scan.prefix)
                && *key >= scan.start
                && (scan.end.is_empty() || *key < scan.end)
                && (token.is_empty() || behind)
        };
        let mut found: Vec<ScanRow> = Vec::new();
        for (key, row) in self.rows.iter().filter(|(key, _)| wanted(key)) {
            found.push(ScanRow {
                key: key.clone(),
                value: if scan.keys_only { Bytes::new() } else { row.value.clone() },
                revision: row.revision,
                create_revision: row.create_revision,
                log_time: LOG_TIME,
            });
        }
        if scan.reverse {
            found.reverse();
        }
        let more = found.len() > most && most < limit;
        found.truncate(most.min(limit));
        let last = found.last().filter(|_| more).map(|row| row.key.clone());
        (found, last.unwrap_or_default())
    }
}

fn holds(condition: Option<Condition>, row: Option<&Row>) -> bool {
    match condition.and_then(|condition| condition.expect) {
        None => true,
        Some(Expect::Absent(_)) => row.is_none(),
        Some(Expect::Revision(revision)) => row.map_or(0, |row| row.revision) == revision,
        Some(Expect::Value(value)) => row.is_some_and(|row| row.value == value),
    }
}

pub(crate) fn stored(row: &Row) -> StoredValue {
    StoredValue {
        value: row.value.clone(),
        revision: row.revision,
        create_revision: row.create_revision,
        ..StoredValue::default()
    }
}
