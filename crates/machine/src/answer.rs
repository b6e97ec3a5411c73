//! Answers of applied entries to their proposers.

use std::fmt;

use bytes::Bytes;
use quorate_proto::v1::{Outcome, Reason};

use super::stamp::LogTime;

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteAnswer {
    /// The write was decided: either all of it was carried out, or a condition was false and
    /// nothing was.
    Done(Done),
    /// The sequence that a Cancel named was not applied and never will be.
    Barred,
    /// The command changed nothing; the refusal has the reason and a sentence.
    Refused(Refusal),
    /// The cluster map was changed and has this epoch now.
    MapChanged {
        /// The new map's epoch.
        epoch: u64,
    },
    /// The cluster map was not changed: its epoch is not the one that the proposer expected.
    MapConflict {
        /// The current map's epoch; 0 = there is no map yet.
        epoch: u64,
    },
}

/// A decided write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Whether all conditions held and everything was carried out; otherwise nothing was.
    pub applied: bool,
    /// Whether this is the remembered answer of an earlier attempt.
    pub replayed: bool,
    /// The index of the entry that decided it: if applied, the revision of all keys that it wrote.
    pub index: u64,
    /// The log time of that entry.
    pub log_time: LogTime,
    /// One result for each operation, in order.
    pub results: Vec<OperationResult>,
}

/// The result of one operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperationResult {
    /// Whether the operation's own condition held; true if it has none.
    pub condition_held: bool,
    /// Whether the key was present before the write.
    pub found: bool,
    /// The key's revision: the entry's index if this operation wrote it; 0 = the key is absent and
    /// this operation did not remove it. A delete that removed a key has the entry's index; a
    /// delete of an absent key has 0, because it changed nothing.
    pub revision: u64,
    /// The index at which the present key was created; 0 = it is absent.
    pub create_revision: u64,
    /// The log time of the entry at `revision`; 0 = none.
    pub log_time: LogTime,
    /// The key's value before the write; `None` = not requested, or absent.
    pub previous: Option<Previous>,
    /// The sum, of an increment that was carried out.
    pub number: Option<i64>,
    /// The value that a get read.
    pub read: ReadValue,
}

/// The value of a key before a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Previous {
    /// The value; `None` = omitted, because it did not fit the answer or was too long to be
    /// remembered.
    pub value: Option<Bytes>,
    /// The revision of that value.
    pub revision: u64,
    /// The create revision of that value.
    pub create_revision: u64,
    /// The log time of that value.
    pub log_time: LogTime,
}

/// The value that a get operation of a Batch read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ReadValue {
    /// The operation is not a get, or the key is absent.
    #[default]
    None,
    /// The value.
    Value(Bytes),
    /// The key is present and its value is omitted: no room, a remembered answer, or a Batch that
    /// was not carried out.
    Omitted,
}

/// Why the increments of a write cannot be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotANumber {
    /// The operation's position.
    pub operation: usize,
    /// Whether the sum is outside the signed 64-bit range; otherwise the value is not a number.
    pub overflow: bool,
}

/// What is full, so that a session's write is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The session: the client has not reported enough sequences as answered.
    Session {
        /// The limit.
        sequences: usize,
    },
    /// The session table of the shard.
    Table {
        /// The limit of its rows, in bytes.
        bytes: u64,
    },
    /// The share of the client: its sessions have no less than what the table has free.
    Share {
        /// The rows of the client's sessions, in bytes.
        own: u64,
        /// What the table has free, in bytes, which is the limit for now.
        free: u64,
    },
}

/// Why a command was rejected. Nothing was changed, and only [`Refusal::NotANumber`] is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The group does not own the shard, its epoch or a key any more.
    WrongShard {
        /// The mismatch, and what the group owns.
        detail: String,
    },
    /// The session is older than its time to live.
    SessionExpired {
        /// The shard's log time.
        log_time: LogTime,
    },
    /// The session was born more than a second ahead of the shard's log time.
    SessionFromFuture {
        /// The shard's log time.
        log_time: LogTime,
    },
    /// The sequence is below those that the client reported as answered.
    SequencePast {
        /// The sequence of the command.
        sequence: u64,
        /// The lowest sequence that can still be used.
        answered_below: u64,
    },
    /// The session ended with an earlier write, which was marked as the last.
    SessionEnded {
        /// The sequence of the command.
        sequence: u64,
    },
    /// The sequence was barred by a Cancel before the write arrived.
    SequenceBarred {
        /// The sequence.
        sequence: u64,
    },
    /// The sequence was used before for other operations.
    SequenceReused {
        /// The sequence.
        sequence: u64,
    },
    /// The session, the session table of the shard, or the client's share of it is full.
    SessionsFull(Full),
    /// An increment found a value that is not a number, or would overflow. This is a decision: in a
    /// session it stays rejected, whatever the value is at a later attempt.
    NotANumber(NotANumber),
    /// The command is one that this program never proposes.
    Malformed {
        /// What is wrong.
        detail: String,
    },
    /// The cluster map breaks a rule.
    BadMap {
        /// The rule.
        detail: String,
    },
}

impl Refusal {
    /// The reason in the API's error table.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Refusal::WrongShard { .. } => Reason::WrongShard,
            Refusal::SessionExpired { .. } => Reason::SessionExpired,
            Refusal::SessionFromFuture { .. } => Reason::SessionFromFuture,
            Refusal::SequencePast { .. }
            | Refusal::SessionEnded { .. }
            | Refusal::SequenceBarred { .. } => Reason::SequencePast,
            Refusal::SequenceReused { .. } => Reason::SequenceReused,
            Refusal::SessionsFull(_) => Reason::SessionsFull,
            Refusal::NotANumber(_) => Reason::NotANumber,
            Refusal::Malformed { .. } | Refusal::BadMap { .. } => Reason::BadRequest,
        }
    }

    /// The outcome of the write. If it is only that of this attempt, an earlier attempt with the
    /// same sequence may have been applied and forgotten.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Refusal::SessionExpired { .. }
            | Refusal::SequencePast { .. }
            | Refusal::SessionEnded { .. }
            | Refusal::SequenceReused { .. } => Outcome::AttemptNotApplied,
            _ => Outcome::NotApplied,
        }
    }

    /// The limit that was reached, if it is one: a number of sequences, or of bytes.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        match self {
            Refusal::SessionsFull(Full::Session { sequences }) => Some(*sequences as u64),
            Refusal::SessionsFull(Full::Table { bytes }) => Some(*bytes),
            Refusal::SessionsFull(Full::Share { free, .. }) => Some(*free),
            _ => None,
        }
    }

    /// The shard's log time, if the client needs it to open a session that the shard accepts.
    #[must_use]
    pub fn log_time(&self) -> Option<LogTime> {
        match self {
            Refusal::SessionExpired { log_time } | Refusal::SessionFromFuture { log_time } => {
                Some(*log_time)
            }
            _ => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::WrongShard { detail } => write!(f, "{detail}; fetch the cluster map again"),
            Refusal::SessionExpired { log_time } => write!(
                f,
                "the session is past its time to live by the shard's log time, {log_time}; open \
                 a new one"
            ),
            Refusal::SessionFromFuture { log_time } => write!(
                f,
                "the session was born more than a second ahead of the shard's log time, \
                 {log_time}; the clocks known to the node that opened it are fast: open another \
                 session that is not born after that time, or at another node"
            ),
            Refusal::SequencePast { sequence, answered_below } => write!(
                f,
                "sequence {sequence} is not remembered: the client reported all below \
                 {answered_below} as answered"
            ),
            Refusal::SessionEnded { sequence } => {
                write!(f, "sequence {sequence} is past: the session has ended with another write")
            }
            Refusal::SequenceBarred { sequence } => {
                write!(f, "sequence {sequence} was barred by Cancel and is never applied")
            }
            Refusal::SequenceReused { sequence } => {
                write!(f, "sequence {sequence} was used before for other operations")
            }
            Refusal::SessionsFull(Full::Session { sequences }) => write!(
                f,
                "the session has {sequences} sequences that the client has not reported as \
                 answered, the limit"
            ),
            Refusal::SessionsFull(Full::Table { bytes }) => write!(
                f,
                "the shard's session table has reached its limit of {bytes} bytes; sessions leave \
                 it when they expire"
            ),
            Refusal::SessionsFull(Full::Share { own, free }) => write!(
                f,
                "the sessions of this client's address take {own} bytes of the shard's session \
                 table, of which {free} are free; so that there is room for others, no client may \
                 take more than it leaves free. Sessions leave the table when they expire"
            ),
            Refusal::NotANumber(NotANumber { overflow: false, .. }) => {
                f.write_str("the value is not a decimal signed 64-bit number")
            }
            Refusal::NotANumber(NotANumber { overflow: true, .. }) => {
                f.write_str("the sum does not fit a signed 64-bit number")
            }
            Refusal::Malformed { detail } => write!(f, "the command is malformed: {detail}"),
            Refusal::BadMap { detail } => write!(f, "the cluster map breaks a rule: {detail}"),
        }
    }
}
