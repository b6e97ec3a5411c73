//! Execution of one write: its conditions are checked against the state before it, and then all of
//! its operations are carried out, or none.

use std::collections::BTreeSet;

use bytes::Bytes;
use quorate_proto::{
    limits::{BATCH_ANSWER_BYTES_MAX, KEY_BYTES_MAX},
    raft::v1::{CommandOperation, Write, command_operation::Kind},
    v1::condition::Expect,
};
use quorate_storage::{RowKey, RowKind};

use super::{
    answer::{Done, NotANumber, OperationResult, Previous, ReadValue, Refusal},
    error::ApplyError,
    record::Record,
    rows::RowTransaction,
    stamp::LogTime,
};

/// The entry that is being applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryPlace {
    /// Its index, which becomes the revision of what it writes.
    pub index: u64,
    /// Its stamp.
    pub log_time: LogTime,
}

/// Checks the properties of a write that apply relies on, and that the proposer must have checked.
///
/// # Errors
/// [`ApplyError::UnknownFeature`] for a feature of a newer version, which this one must not skip.
pub fn check(write: &Write, index: u64) -> Result<Result<(), Refusal>, ApplyError> {
    let unknown = |what: &str, at: usize| ApplyError::UnknownFeature {
        index,
        detail: format!("operation {at} of the write has an unknown {what}"),
    };
    let malformed = |detail: String| Ok(Err(Refusal::Malformed { detail }));
    if write.operations.is_empty() {
        return malformed("it has no operations".to_owned());
    }
    for (at, operation) in write.operations.iter().enumerate() {
        if operation.kind.is_none() {
            return Err(unknown("kind", at));
        }
        if operation.condition.as_ref().is_some_and(|condition| condition.expect.is_none()) {
            return Err(unknown("condition", at));
        }
        if operation.key.is_empty() || operation.key.len() > KEY_BYTES_MAX {
            return malformed(format!(
                "the key of operation {at} is {} bytes long",
                operation.key.len()
            ));
        }
    }
    if write.operations.len() > 1 {
        let mut keys = BTreeSet::new();
        for (at, operation) in write.operations.iter().enumerate() {
            if !keys.insert((operation.keyspace, &operation.key)) {
                return malformed(format!("operation {at} repeats the key of another operation"));
            }
        }
    }
    Ok(Ok(()))
}

/// Carries out a write that has passed [`check`]. With [`NotANumber`] it has changed nothing.
pub fn execute(
    write: &Write,
    place: EntryPlace,
    rows: &mut impl RowTransaction,
) -> Result<Result<Done, NotANumber>, ApplyError> {
    let mut steps = Vec::with_capacity(write.operations.len());
    for operation in &write.operations {
        steps.push(Step::read(operation, rows)?);
    }
    let applied = steps.iter().all(|step| step.condition_held);
    if applied && let Err(not_a_number) = add_numbers(&mut steps) {
        return Ok(Err(not_a_number));
    }
    let mut room = BATCH_ANSWER_BYTES_MAX;
    let mut results = Vec::with_capacity(steps.len());
    for step in steps {
        let mut result = step.answer_before(&mut room);
        if applied {
            step.carry_out(place, &mut result, &mut room, rows)?;
        }
        results.push(result);
    }
    Ok(Ok(Done { applied, replayed: false, index: place.index, log_time: place.log_time, results }))
}

/// One operation and the state of its key before the write.
struct Step<'a> {
    operation: &'a CommandOperation,
    row_key: RowKey,
    current: Option<Record>,
    condition_held: bool,
    /// The sum, of an increment.
    number: Option<i64>,
}

impl<'a> Step<'a> {
    fn read(
        operation: &'a CommandOperation,
        rows: &mut impl RowTransaction,
    ) -> Result<Step<'a>, ApplyError> {
        let row_key = RowKey::new(RowKind::User, operation.keyspace, &operation.key);
        let current = rows.get(&row_key)?.map(Record::decode).transpose()?;
        let expect = operation.condition.as_ref().and_then(|condition| condition.expect.as_ref());
        let condition_held = expect.is_none_or(|expect| holds(expect, current.as_ref()));
        Ok(Self { operation, row_key, current, condition_held, number: None })
    }

    /// The part of the result that does not depend on whether the write is carried out.
    fn answer_before(&self, room: &mut usize) -> OperationResult {
        let mut result =
            OperationResult { condition_held: self.condition_held, ..OperationResult::default() };
        let is_get = matches!(self.operation.kind, Some(Kind::Get(_)));
        if let Some(record) = &self.current {
            result.found = true;
            result.revision = record.revision;
            result.create_revision = record.create_revision;
            result.log_time = LogTime(record.log_time);
            if is_get {
                result.read = ReadValue::Omitted;
            } else if self.operation.return_previous {
                result.previous = Some(Previous {
                    value: fit(&record.value, room),
                    revision: record.revision,
                    create_revision: record.create_revision,
                    log_time: LogTime(record.log_time),
                });
            }
        }
        result
    }

    fn carry_out(
        self,
        place: EntryPlace,
        result: &mut OperationResult,
        room: &mut usize,
        rows: &mut impl RowTransaction,
    ) -> Result<(), ApplyError> {
        let value = match &self.operation.kind {
            Some(Kind::Put(value)) => value.clone(),
            Some(Kind::Increment(_)) => {
                result.number = self.number;
                Bytes::from(self.number.unwrap_or_default().to_string())
            }
            Some(Kind::Delete(_)) => {
                result.create_revision = 0;
                if self.current.is_some() {
                    (result.revision, result.log_time) = (place.index, place.log_time);
                    rows.delete(&self.row_key)?;
                }
                return Ok(());
            }
            Some(Kind::Get(_)) => {
                if let Some(value) = self.current.and_then(|record| fit(&record.value, room)) {
                    result.read = ReadValue::Value(value);
                }
                return Ok(());
            }
            Some(Kind::Check(_)) | None => return Ok(()),
        };
        let create_revision = self.current.map_or(place.index, |record| record.create_revision);
        let record = Record {
            create_revision,
            revision: place.index,
            log_time: place.log_time.0,
            expiry: None,
            value,
        };
        rows.put(&self.row_key, &record.encode())?;
        (result.revision, result.create_revision) = (place.index, create_revision);
        result.log_time = place.log_time;
        Ok(())
    }
}

/// The value if it still fits the answer.
fn fit(value: &Bytes, room: &mut usize) -> Option<Bytes> {
    *room = room.checked_sub(value.len())?;
    Some(value.clone())
}

fn holds(expect: &Expect, current: Option<&Record>) -> bool {
    match (expect, current) {
        (Expect::Absent(_) | Expect::Revision(0), current) => current.is_none(),
        (Expect::Revision(revision), Some(record)) => record.revision == *revision,
        (Expect::Value(value), Some(record)) => record.value == value,
        (Expect::Revision(_) | Expect::Value(_), None) => false,
    }
}

fn add_numbers(steps: &mut [Step<'_>]) -> Result<(), NotANumber> {
    for (operation, step) in steps.iter_mut().enumerate() {
        let Some(Kind::Increment(delta)) = step.operation.kind else { continue };
        let before = match &step.current {
            Some(record) => {
                parse_number(&record.value).ok_or(NotANumber { operation, overflow: false })?
            }
            None => 0,
        };
        step.number =
            Some(before.checked_add(delta).ok_or(NotANumber { operation, overflow: true })?);
    }
    Ok(())
}

/// Reads the decimal form that an increment writes: no plus sign, no leading zeros, no spaces. So a
/// number has exactly one text, and comparing values compares numbers.
pub fn parse_number(value: &[u8]) -> Option<i64> {
    let digits = value.strip_prefix(b"-").unwrap_or(value);
    let canonical = match digits {
        [b'0'] => digits.len() == value.len(),
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if canonical { std::str::from_utf8(value).ok()?.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_has_one_text() {
        for (text, number) in [
            ("0", 0),
            ("7", 7),
            ("-7", -7),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(parse_number(text.as_bytes()), Some(number), "{text}");
        }
        for text in [
            "",
            "-",
            "-0",
            "00",
            "01",
            "-01",
            "+1",
            " 1",
            "1 ",
            "1\n",
            "1.0",
            "1e3",
            "0x1",
            "٣",
            "a",
            "9223372036854775808",
            "-9223372036854775809",
            "99999999999999999999999999",
        ] {
            assert_eq!(parse_number(text.as_bytes()), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_parsed_number_is_written_as_the_same_text(number: i64, bytes: Vec<u8>) {
            prop_assert_eq!(parse_number(number.to_string().as_bytes()), Some(number));
            if let Some(number) = parse_number(&bytes) {
                let text = number.to_string();
                prop_assert_eq!(text.as_bytes(), &bytes[..]);
            }
        }
    }
}
