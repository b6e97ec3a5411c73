//! Answer rows: the stored form of an answer, one row of the session table.
//!
//! The key of the row is the session id (24 bytes) and the sequence (8 bytes, big-endian), so that
//! rows are in the order of birth, session and sequence. A row has the format of the feature level
//! of the command that wrote it, and keeps it. Both forever (fixed-width integers little-endian,
//! *var* = LEB128):
//!
//! | bytes | field |
//! |---|---|
//! | 1 | format: 1 of level 1, 2 of level 2; 3 is kept for a write with a principal |
//! | 1 | flags: 1 the session ended with this write · 2 barred by Cancel · 4 applied · 8 refused |
//! | 8 | in format 1: content hash; 0 when barred |
//! | 16, 16 | in formats 2 and 3: content digest, zeros when barred; tag of the client |
//! | 16 | in format 3: tag of the principal |
//! | 8 | answered-below: every sequence below it is answered |
//!
//! and if refused, which is only an increment that cannot be carried out:
//!
//! | bytes | field |
//! |---|---|
//! | var | position of the operation |
//! | 1 | 0 the value of its key is not a number · 1 the sum does not fit 64 bits |
//!
//! and unless barred or refused:
//!
//! | bytes | field |
//! |---|---|
//! | var | index of the entry |
//! | 8 | log time of the entry |
//! | var | number of operations, and then each of them: |
//! | 1 | flags: 1 condition held · 2 found · 4 written here · 8 previous · 16 its value · |
//! | | 32 number · 64 a get |
//! | | (4: revision and log time are the entry's; 64: of a get that found its key) |
//! | var, 8 | revision, log time: unless written here |
//! | var | create revision |
//! | var, var, 8 | with flag 8: revision, create revision, log time of the previous value |
//! | var, n | with flag 16: its length and bytes |
//! | 8 | with flag 32: the number |
//!
//! This version neither writes nor reads format 3. A write without a principal stays in format 2,
//! so that no row has to be written anew when principals come.
//!
//! The values of gets are not stored, and the previous values of one answer only up to 1 KiB
//! together.

use bytes::Bytes;
use quorate_proto::{
    content::{CONTENT_DIGEST_BYTES, content_digest, content_hash},
    limits::{SESSION_ID_BYTES, STORED_PREVIOUS_BYTES_MAX},
    raft::v1::CommandOperation,
};
use quorate_storage::{RowKey, RowKind};

use super::{
    answer::{Done, NotANumber, OperationResult, Previous, ReadValue},
    error::Damaged,
    reader::{Reader, put_bytes, put_varint},
    stamp::LogTime,
};
use crate::{session_id::SessionId, session_key::ClientTag};

const FORMAT_1: u8 = 1;
const FORMAT_2: u8 = 2;

mod row_flag {
    pub const LAST: u8 = 1;
    pub const BARRED: u8 = 2;
    pub const APPLIED: u8 = 4;
    pub const REFUSED: u8 = 8;
    pub const ALL: u8 = 15;
}

mod operation_flag {
    pub const HELD: u8 = 1;
    pub const FOUND: u8 = 2;
    pub const WRITTEN_HERE: u8 = 4;
    pub const PREVIOUS: u8 = 8;
    pub const PREVIOUS_VALUE: u8 = 16;
    pub const NUMBER: u8 = 32;
    pub const READ: u8 = 64;
    pub const ALL: u8 = 127;
}

/// A row of the session table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerRow {
    /// Whether the session ended with this write.
    pub last: bool,
    /// Which write it answers, and whose.
    pub mark: Mark,
    /// Every sequence of the session below this one was answered.
    pub answered_below: u64,
    /// The remembered decision.
    pub stored: Stored,
}

/// How a row knows its write again, and whose it is; by the feature level of the command, which
/// decides the format of the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Of level 1, which does not know clients.
    Xxh3 {
        /// The [`content_hash`] of the operations; 0 for a Cancel.
        content: u64,
    },
    /// Of level 2.
    Sha256 {
        /// The [`content_digest`] of the operations; zeros for a Cancel.
        content: [u8; CONTENT_DIGEST_BYTES],
        /// The client whose share of the table the row takes.
        client: ClientTag,
    },
}

impl Mark {
    /// The client; `None` = it is not known.
    pub fn client(&self) -> Option<ClientTag> {
        match self {
            Mark::Xxh3 { .. } => None,
            Mark::Sha256 { client, .. } => Some(*client),
        }
    }

    /// Whether this is the mark of a write of these operations, which has the mark `of_write`. If
    /// the two are of different levels, the operations are hashed as the row's level does.
    pub fn is_of(&self, of_write: &Mark, operations: &[CommandOperation]) -> bool {
        match (self, of_write) {
            (Mark::Xxh3 { content }, Mark::Xxh3 { content: of_write }) => content == of_write,
            (Mark::Xxh3 { content }, Mark::Sha256 { .. }) => *content == content_hash(operations),
            (Mark::Sha256 { content, .. }, Mark::Sha256 { content: of_write, .. }) => {
                content == of_write
            }
            (Mark::Sha256 { content, .. }, Mark::Xxh3 { .. }) => {
                *content == content_digest(operations, None)
            }
        }
    }

    /// The mark of a sequence that is barred, where a write or Cancel has this one.
    pub fn barred(self) -> Mark {
        match self {
            Mark::Xxh3 { .. } => Mark::Xxh3 { content: 0 },
            Mark::Sha256 { client, .. } => {
                Mark::Sha256 { content: [0; CONTENT_DIGEST_BYTES], client }
            }
        }
    }
}

/// The remembered decision of a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It was not applied and never will be.
    Barred,
    /// It was rejected and changed nothing.
    NotANumber(NotANumber),
    /// Its answer.
    Done(Done),
}

impl From<Result<Done, NotANumber>> for Stored {
    fn from(decided: Result<Done, NotANumber>) -> Self {
        match decided {
            Ok(done) => Self::Done(done),
            Err(why) => Self::NotANumber(why),
        }
    }
}

/// The key of the row of a session's sequence.
pub fn answer_row_key(session: &SessionId, sequence: u64) -> RowKey {
    RowKey::new(RowKind::Session, 0, &session.write_key(sequence))
}

/// The session and sequence that a row key names.
pub fn read_answer_row_key(key: &RowKey) -> Result<(SessionId, u64), Damaged> {
    let parts = || {
        let (id, sequence) = key.key().split_at_checked(SESSION_ID_BYTES)?;
        Some((SessionId::from_slice(id)?, u64::from_be_bytes(sequence.try_into().ok()?)))
    };
    parts().ok_or_else(|| {
        Damaged::new("the key of a session row", "it is not a session id and a sequence")
    })
}

impl AnswerRow {
    /// The row's bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode_row(self.last, &self.mark, self.answered_below, &self.stored)
    }

    /// Reads a row. Any byte string is a row or [`Damaged`].
    pub fn decode(row: Bytes) -> Result<Self, Damaged> {
        let mut reader = Reader::new(row, "a session row");
        let format = reader.u8()?;
        if format != FORMAT_1 && format != FORMAT_2 {
            return Err(reader.damaged("its format is neither 1 nor 2"));
        }
        let flags = reader.u8()?;
        let decision = flags & (row_flag::BARRED | row_flag::APPLIED | row_flag::REFUSED);
        if flags & !row_flag::ALL != 0 || decision.count_ones() > 1 {
            return Err(reader.damaged("it has flags that this version does not know"));
        }
        let mark = match format {
            FORMAT_1 => Mark::Xxh3 { content: reader.u64()? },
            _ => Mark::Sha256 {
                content: reader.array()?,
                client: ClientTag::from_bytes(reader.array()?),
            },
        };
        let answered_below = reader.u64()?;
        let stored = match decision {
            row_flag::BARRED => Stored::Barred,
            row_flag::REFUSED => Stored::NotANumber(decode_not_a_number(&mut reader)?),
            decision => Stored::Done(decode_done(&mut reader, decision == row_flag::APPLIED)?),
        };
        reader.end()?;
        Ok(Self { last: flags & row_flag::LAST != 0, mark, answered_below, stored })
    }
}

/// The bytes of a row.
pub(super) fn encode_row(last: bool, mark: &Mark, answered_below: u64, stored: &Stored) -> Vec<u8> {
    let mut out = Vec::with_capacity(72);
    let mut flags = if last { row_flag::LAST } else { 0 };
    flags |= match stored {
        Stored::Barred => row_flag::BARRED,
        Stored::NotANumber(_) => row_flag::REFUSED,
        Stored::Done(done) if done.applied => row_flag::APPLIED,
        Stored::Done(_) => 0,
    };
    match mark {
        Mark::Xxh3 { content } => {
            out.extend_from_slice(&[FORMAT_1, flags]);
            out.extend_from_slice(&content.to_le_bytes());
        }
        Mark::Sha256 { content, client } => {
            out.extend_from_slice(&[FORMAT_2, flags]);
            out.extend_from_slice(content);
            out.extend_from_slice(client.as_bytes());
        }
    }
    out.extend_from_slice(&answered_below.to_le_bytes());
    match stored {
        Stored::Barred => {}
        Stored::NotANumber(NotANumber { operation, overflow }) => {
            put_varint(&mut out, *operation as u64);
            out.push(u8::from(*overflow));
        }
        Stored::Done(done) => {
            put_varint(&mut out, done.index);
            out.extend_from_slice(&done.log_time.0.to_le_bytes());
            put_varint(&mut out, done.results.len() as u64);
            let mut previous_room = STORED_PREVIOUS_BYTES_MAX;
            for result in &done.results {
                encode_result(&mut out, done, result, &mut previous_room);
            }
        }
    }
    out
}

fn decode_not_a_number(reader: &mut Reader) -> Result<NotANumber, Damaged> {
    let operation = reader.varint()? as usize;
    let overflow = match reader.u8()? {
        0 => false,
        1 => true,
        _ => return Err(reader.damaged("its refusal is of a kind that this version does not know")),
    };
    Ok(NotANumber { operation, overflow })
}

fn encode_result(
    out: &mut Vec<u8>,
    done: &Done,
    result: &OperationResult,
    previous_room: &mut usize,
) {
    use operation_flag as flag;

    let written_here = result.revision == done.index && result.log_time == done.log_time;
    let previous_value = result.previous.as_ref().and_then(|previous| previous.value.as_ref());
    let previous_value = previous_value.filter(|value| value.len() <= *previous_room);
    let flags = [
        (result.condition_held, flag::HELD),
        (result.found, flag::FOUND),
        (written_here, flag::WRITTEN_HERE),
        (result.previous.is_some(), flag::PREVIOUS),
        (previous_value.is_some(), flag::PREVIOUS_VALUE),
        (result.number.is_some(), flag::NUMBER),
        (result.read != ReadValue::None, flag::READ),
    ];
    out.push(flags.iter().filter(|(set, _)| *set).fold(0, |flags, (_, flag)| flags | flag));
    if !written_here {
        put_varint(out, result.revision);
        out.extend_from_slice(&result.log_time.0.to_le_bytes());
    }
    put_varint(out, result.create_revision);
    if let Some(previous) = &result.previous {
        put_varint(out, previous.revision);
        put_varint(out, previous.create_revision);
        out.extend_from_slice(&previous.log_time.0.to_le_bytes());
        if let Some(value) = previous_value {
            *previous_room -= value.len();
            put_bytes(out, value);
        }
    }
    if let Some(number) = result.number {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

fn decode_done(reader: &mut Reader, applied: bool) -> Result<Done, Damaged> {
    let index = reader.varint()?;
    let log_time = LogTime(reader.u64()?);
    let count = reader.varint()?;
    // Reserve nothing for a number that may be damaged: the vector grows with the decoded results.
    let mut results = Vec::new();
    for _ in 0..count {
        results.push(decode_result(reader, index, log_time)?);
    }
    Ok(Done { applied, replayed: true, index, log_time, results })
}

fn decode_result(
    reader: &mut Reader,
    index: u64,
    log_time: LogTime,
) -> Result<OperationResult, Damaged> {
    use operation_flag as flag;

    let flags = reader.u8()?;
    let is = |flag: u8| flags & flag != 0;
    if flags & !flag::ALL != 0 || (is(flag::PREVIOUS_VALUE) && !is(flag::PREVIOUS)) {
        return Err(reader.damaged("an operation has flags that this version does not know"));
    }
    let (revision, written_at) = if is(flag::WRITTEN_HERE) {
        (index, log_time)
    } else {
        (reader.varint()?, LogTime(reader.u64()?))
    };
    let create_revision = reader.varint()?;
    let previous = if is(flag::PREVIOUS) {
        Some(Previous {
            revision: reader.varint()?,
            create_revision: reader.varint()?,
            log_time: LogTime(reader.u64()?),
            value: if is(flag::PREVIOUS_VALUE) { Some(reader.bytes()?) } else { None },
        })
    } else {
        None
    };
    Ok(OperationResult {
        condition_held: is(flag::HELD),
        found: is(flag::FOUND),
        revision,
        create_revision,
        log_time: written_at,
        previous,
        number: if is(flag::NUMBER) { Some(reader.u64()? as i64) } else { None },
        read: if is(flag::READ) { ReadValue::Omitted } else { ReadValue::None },
    })
}
