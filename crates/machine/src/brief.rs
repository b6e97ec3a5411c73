//! Commands and remembered answers in brief, for people who look at a log: what was asked and how
//! it ended, without keys and values.

use bytes::Bytes;
use quorate_proto::{
    hash::key_hash,
    raft::v1::{CommandOperation, command::Action},
};
use quorate_storage::RowKey;

use super::{
    answer_row::{AnswerRow, Stored, answer_row_key},
    command::Kind,
    error::{ApplyError, Damaged},
    machine::decode_command,
    session_id::SessionId,
};

/// A command in brief.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandBrief {
    /// Session and sequence; `None` for a command without a session.
    pub session: Option<(SessionId, u64)>,
    /// What is asked.
    pub action: ActionBrief,
}

/// What a command asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActionBrief {
    /// Operations on keys, all or none.
    Write(Vec<OperationBrief>),
    /// The sequence is barred unless it was applied.
    Cancel,
    /// The cluster map is replaced.
    ChangeMap,
}

/// One operation of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationBrief {
    /// `put`, `delete`, `increment`, `check` or `get`.
    pub name: &'static str,
    /// The hash of the key, which decides the shard.
    pub key_hash: u64,
    /// Whether it has a condition.
    pub conditional: bool,
}

impl CommandBrief {
    /// Reads the payload of the command entry at `index`.
    ///
    /// # Errors
    /// It does not decode, or a newer version wrote it.
    pub fn read(index: u64, payload: Bytes) -> Result<CommandBrief, ApplyError> {
        let command = decode_command(index, payload)?;
        let damaged = |what: String| Damaged::new("a command entry", what);
        let session = command.session.map(|session| {
            let id = SessionId::from_slice(&session.id).ok_or_else(|| {
                damaged(format!("at index {index}: its session id has a wrong length"))
            })?;
            Ok::<_, Damaged>((id, session.sequence))
        });
        let action = match command.action {
            Some(Action::Write(write)) => {
                let operations = write.operations.iter().map(|operation| {
                    brief(operation).ok_or_else(|| ApplyError::UnknownFeature {
                        index,
                        detail: "the kind of an operation is unknown".to_owned(),
                    })
                });
                ActionBrief::Write(operations.collect::<Result<_, _>>()?)
            }
            Some(Action::Cancel(_)) => ActionBrief::Cancel,
            Some(Action::ChangeMap(_)) => ActionBrief::ChangeMap,
            None => {
                let detail = "its action is unknown".to_owned();
                return Err(ApplyError::UnknownFeature { index, detail });
            }
        };
        Ok(CommandBrief { session: session.transpose()?, action })
    }
}

fn brief(operation: &CommandOperation) -> Option<OperationBrief> {
    let name = match operation.kind.as_ref()? {
        Kind::Put(_) => "put",
        Kind::Delete(_) => "delete",
        Kind::Increment(_) => "increment",
        Kind::Check(_) => "check",
        Kind::Get(_) => "get",
    };
    let conditional = operation.condition.is_some();
    Some(OperationBrief { name, key_hash: key_hash(&operation.key), conditional })
}

/// What the session table remembers of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remembered {
    /// It was carried out.
    Applied {
        /// The index of the entry that decided it; a later entry of the sequence is a repetition.
        index: u64,
    },
    /// Its condition did not hold, and nothing was changed.
    ConditionFalse {
        /// As in [`Remembered::Applied`].
        index: u64,
    },
    /// It was refused, because a value was not a number or the sum does not fit 64 bits.
    NotANumber,
    /// A Cancel came first: it was not applied and never will be.
    Barred,
}

impl Remembered {
    /// The row of the session table in which the answer of a sequence would be.
    #[must_use]
    pub fn row_of(session: &SessionId, sequence: u64) -> RowKey {
        answer_row_key(session, sequence)
    }

    /// Reads such a row.
    ///
    /// # Errors
    /// It does not decode.
    pub fn read(row: Bytes) -> Result<Remembered, Damaged> {
        Ok(match AnswerRow::decode(row)?.stored {
            Stored::Done(done) if done.applied => Self::Applied { index: done.index },
            Stored::Done(done) => Self::ConditionFalse { index: done.index },
            Stored::NotANumber(_) => Self::NotANumber,
            Stored::Barred => Self::Barred,
        })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use quorate_proto::raft::v1::{Command, CommandSession};
    use quorate_proto::v1::{ClusterMap, Condition, condition::Expect};

    use super::*;
    use crate::command::{cancel, encode, encode_change_map, write};

    fn operation(key: &'static str, kind: Kind, condition: Option<Condition>) -> CommandOperation {
        CommandOperation { key: key.into(), kind: Some(kind), condition, ..Default::default() }
    }

    fn session() -> CommandSession {
        CommandSession { id: vec![7; 24].into(), sequence: 9, ..CommandSession::default() }
    }

    fn read(command: &mut Command) -> CommandBrief {
        CommandBrief::read(3, encode(command, 5, 1)).unwrap()
    }

    #[test]
    fn each_command_is_described_without_keys_and_values() {
        let condition = Some(Condition { expect: Some(Expect::Absent(true)) });
        let put = operation("secret", Kind::Put("of a user".into()), condition);
        let brief = read(&mut write(vec![put], Some(session())));
        let key_hash = key_hash(b"secret");
        let expected = OperationBrief { name: "put", key_hash, conditional: true };
        assert_eq!(brief.action, ActionBrief::Write(vec![expected]));
        let id = SessionId::from_slice(&[7; 24]).unwrap();
        assert_eq!(brief.session, Some((id, 9)));
        let said = format!("{brief:?}");
        assert!(!said.contains("secret") && !said.contains("of a user"), "{said}");

        assert_eq!(read(&mut cancel(session())).action, ActionBrief::Cancel);
        let map = encode_change_map(0, ClusterMap::default());
        let brief = CommandBrief::read(3, map).unwrap();
        assert_eq!(brief, CommandBrief { session: None, action: ActionBrief::ChangeMap });
    }

    #[test]
    fn a_command_of_a_newer_version_is_not_damage() {
        let mut newer = cancel(session());
        newer.version += 1;
        let error = CommandBrief::read(3, encode(&mut newer, 5, 1)).unwrap_err();
        assert!(matches!(error, ApplyError::UnknownFeature { index: 3, .. }), "{error}");
        let mut unknown = write(vec![CommandOperation::default()], None);
        let error = CommandBrief::read(4, encode(&mut unknown, 5, 1)).unwrap_err();
        assert!(matches!(error, ApplyError::UnknownFeature { index: 4, .. }), "{error}");
        let mut cut = cancel(session()).encode_to_vec();
        cut.truncate(cut.len() - 3);
        let error = CommandBrief::read(5, cut.into()).unwrap_err();
        assert!(matches!(error, ApplyError::Damaged(_)), "{error}");
    }
}
