//! Committed entries in brief: what was asked and how it ended, never keys or values.

use quorate_machine::{ActionBrief, ApplyError, CommandBrief, LogTime, Remembered};
use quorate_raft::{Entry, EntryKind, GroupId, Index};
use quorate_storage::ShardReader;
use serde::Serialize;

/// A committed entry. The names of the fields are those of the JSON form, and never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EntryLine {
    /// The shard; 0 is the meta group.
    pub shard: u64,
    /// The index of the entry.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// `empty`, `command` or `membership`.
    pub kind: &'static str,
    /// Its log time: Unix milliseconds.
    pub log_time_ms: u64,
    /// The counter within the millisecond.
    pub log_time_logical: u16,
    /// The session of a command: 48 hexadecimal digits; `None` without one, as the next.
    pub session: Option<String>,
    /// The sequence of the command in its session.
    pub sequence: Option<u64>,
    /// What a command asks for: `put`, `delete`, `increment`, `check`, `get`, `batch` (of several
    /// of these), `cancel` or `change_map`.
    pub operation: Option<&'static str>,
    /// The number of operations on keys; 0 if there are none.
    pub operations: u64,
    /// Whether one of them has a condition.
    pub conditional: bool,
    /// The hash of each key, as it decides the shard: 16 hexadecimal digits.
    pub key_hashes: Vec<String>,
    /// How it ended, if its session still has the answer at the checkpoint: `applied`,
    /// `condition_false`, `refused`, `barred` (by a cancel), or `repeated` (another entry had
    /// decided the sequence, and this one changed nothing).
    pub outcome: Option<&'static str>,
    /// The reason of `refused`, as the API has it.
    pub reason: Option<&'static str>,
    /// The index of the entry that had decided the sequence, if `repeated`.
    pub decided_at: Option<u64>,
}

impl EntryLine {
    /// Describes an entry, with the answer in `state` if that has it.
    ///
    /// # Errors
    /// The command or the answer does not decode, or cannot be read.
    pub(super) fn of(
        group: GroupId,
        entry: &Entry,
        state: Option<&ShardReader>,
    ) -> Result<EntryLine, ApplyError> {
        let stamp = LogTime(entry.stamp);
        let mut line = EntryLine {
            shard: group.0,
            index: entry.index.0,
            term: entry.term.0,
            kind: match entry.kind {
                EntryKind::Noop => "empty",
                EntryKind::Command => "command",
                EntryKind::Membership => "membership",
            },
            log_time_ms: stamp.millis(),
            log_time_logical: stamp.logical(),
            session: None,
            sequence: None,
            operation: None,
            operations: 0,
            conditional: false,
            key_hashes: Vec::new(),
            outcome: None,
            reason: None,
            decided_at: None,
        };
        if entry.kind == EntryKind::Command {
            let command = CommandBrief::read(entry.index.0, entry.payload.clone())?;
            line.describe(&command);
            if let (Some((session, sequence)), Some(state)) = (command.session, state)
                && let Some(row) = state.get(&Remembered::row_of(&session, sequence))?
            {
                line.end(Remembered::read(row)?, state.applied());
            }
        }
        Ok(line)
    }

    fn describe(&mut self, command: &CommandBrief) {
        if let Some((session, sequence)) = &command.session {
            (self.session, self.sequence) = (Some(session.to_string()), Some(*sequence));
        }
        self.operation = Some(match &command.action {
            ActionBrief::Cancel => "cancel",
            ActionBrief::ChangeMap => "change_map",
            ActionBrief::Write(operations) => {
                self.operations = operations.len() as u64;
                self.conditional = operations.iter().any(|operation| operation.conditional);
                let hashes = operations.iter().map(|one| format!("{:016x}", one.key_hash));
                self.key_hashes = hashes.collect();
                match operations[..] {
                    [operation] => operation.name,
                    _ => "batch",
                }
            }
        });
    }

    /// Sets the outcome from what is remembered of the sequence in a state at `applied`.
    fn end(&mut self, remembered: Remembered, applied: Index) {
        let mut decided = |index: u64, outcome| match index.cmp(&self.index) {
            std::cmp::Ordering::Equal => self.outcome = Some(outcome),
            std::cmp::Ordering::Less => {
                (self.outcome, self.decided_at) = (Some("repeated"), Some(index));
            }
            // This one was refused before that one was decided; why is not remembered.
            std::cmp::Ordering::Greater => {}
        };
        match remembered {
            Remembered::Applied { index } => decided(index, "applied"),
            Remembered::ConditionFalse { index } => decided(index, "condition_false"),
            // These two do not say which entry decided: one after the state has not been applied.
            _ if self.index > applied.0 => {}
            Remembered::NotANumber => {
                (self.outcome, self.reason) = (Some("refused"), Some("NOT_A_NUMBER"));
            }
            Remembered::Barred => self.outcome = Some("barred"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use quorate_raft::Term;

    /// The outcome of the entry at index 5, in a state that has applied up to `applied`.
    fn end(
        remembered: Remembered,
        applied: u64,
    ) -> (Option<&'static str>, Option<&'static str>, Option<u64>) {
        let (index, term, payload) = (Index(5), Term(1), Bytes::new());
        let entry = Entry { index, term, kind: EntryKind::Noop, stamp: 0, payload };
        let mut line = EntryLine::of(GroupId(1), &entry, None).unwrap();
        line.end(remembered, Index(applied));
        (line.outcome, line.reason, line.decided_at)
    }

    #[test]
    fn an_outcome_is_of_the_entry_that_decided() {
        let applied = |index| Remembered::Applied { index };
        assert_eq!(end(applied(5), 9), (Some("applied"), None, None));
        assert_eq!(end(applied(3), 9), (Some("repeated"), None, Some(3)));
        assert_eq!(end(applied(7), 9), (None, None, None), "this one was refused before");
        let condition = Remembered::ConditionFalse { index: 5 };
        assert_eq!(end(condition, 9), (Some("condition_false"), None, None));
        assert_eq!(end(Remembered::Barred, 9), (Some("barred"), None, None));
        assert_eq!(end(Remembered::NotANumber, 5), (Some("refused"), Some("NOT_A_NUMBER"), None));
        assert_eq!(end(Remembered::NotANumber, 4), (None, None, None), "not applied yet");
        assert_eq!(end(Remembered::Barred, 4), (None, None, None), "not applied yet");
    }
}
