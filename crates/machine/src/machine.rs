//! The state machine of a group: one committed entry → changed rows and an answer.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use quorate_proto::{
    content::CONTENT_DIGEST_BYTES,
    hash::key_hash,
    raft::v1::{Command, CommandSession, Write, command::Action},
    v1::ClusterMap,
    version::FEATURE_LEVEL,
};
use quorate_raft::{Entry, EntryKind, Membership};
use quorate_storage::{RowKey, StorageError};

use super::{
    answer::{Refusal, WriteAnswer},
    answer_row::{Mark, Stored},
    command::{COMMAND_VERSION, DIGEST_LEVEL, WITHOUT_PRINCIPAL_LEVEL},
    error::{ApplyError, Damaged},
    execute::{self, EntryPlace},
    meta::MapState,
    rows::RowTransaction,
    sessions::{Admission, SessionLimits, SessionTable, SessionUse},
    stamp::LogTime,
};
use crate::{session_id::SessionId, session_key::ClientTag};

/// The part of the hash space that a shard's group owns, by its own state, which is authoritative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// The shard, which is also the group.
    pub shard: u64,
    /// The epoch of the shard.
    pub shard_epoch: u64,
    /// The first hash of its range, inclusive.
    pub first: u64,
    /// The last hash of its range, inclusive.
    pub last: u64,
}

impl Ownership {
    fn refuse(&self, what: &str) -> Refusal {
        let Ownership { shard, shard_epoch, first, last } = self;
        Refusal::WrongShard {
            detail: format!(
                "{what}; this is shard {shard} in epoch {shard_epoch}, with hashes \
                 {first:#018x} to {last:#018x}"
            ),
        }
    }
}

/// The result of applying an entry.
#[derive(Debug)]
pub enum Applied {
    /// An empty entry of a new leader.
    Noop,
    /// A configuration of the group, which the caller stores with the transaction.
    Membership(Membership),
    /// A command and its answer.
    Command(WriteAnswer),
}

/// The in-memory part of a group's state machine. The rows are authoritative: after any entry the
/// machine equals one that is loaded from the rows.
///
/// After an [`ApplyError`] the machine and the transaction must be dropped: they may hold a part of
/// the entry.
#[derive(Clone, Debug, PartialEq)]
pub struct StateMachine {
    owned: Owned,
}

#[derive(Clone, Debug, PartialEq)]
enum Owned {
    /// A shard of keys.
    Keys { ownership: Ownership, sessions: SessionTable },
    /// Group 0.
    Map(MapState),
}

impl StateMachine {
    /// Loads the machine of a shard; `session_rows` are all its rows of kind Session.
    ///
    /// # Errors
    /// A failed read, or a row that does not decode.
    pub fn load_shard(
        ownership: Ownership,
        limits: SessionLimits,
        session_rows: impl IntoIterator<Item = Result<(RowKey, Bytes), StorageError>>,
    ) -> Result<Self, ApplyError> {
        let sessions = SessionTable::load(limits, session_rows)?;
        Ok(Self { owned: Owned::Keys { ownership, sessions } })
    }

    /// Loads the machine of group 0; `meta_rows` are all its rows of kind Meta.
    ///
    /// # Errors
    /// A failed read, or rows that are not a valid map.
    pub fn load_meta(
        meta_rows: impl IntoIterator<Item = Result<(RowKey, Bytes), StorageError>>,
    ) -> Result<Self, ApplyError> {
        Ok(Self { owned: Owned::Map(MapState::load(meta_rows)?) })
    }

    /// The cluster map; `None` for a shard, and before the first map was committed.
    #[must_use]
    pub fn map(&self) -> Option<&Arc<ClusterMap>> {
        match &self.owned {
            Owned::Map(state) => state.map(),
            Owned::Keys { .. } => None,
        }
    }

    /// The session table of a shard; `None` for group 0.
    #[must_use]
    pub fn sessions(&self) -> Option<&SessionTable> {
        match &self.owned {
            Owned::Keys { sessions, .. } => Some(sessions),
            Owned::Map(_) => None,
        }
    }

    /// The ownership of a shard; `None` for group 0.
    #[must_use]
    pub fn ownership(&self) -> Option<&Ownership> {
        match &self.owned {
            Owned::Keys { ownership, .. } => Some(ownership),
            Owned::Map(_) => None,
        }
    }

    /// Applies a committed entry. Entries must be applied in order, each once; `rows` is the state
    /// after the previous entry.
    ///
    /// # Errors
    /// A failure that stops the replica.
    pub fn apply_entry(
        &mut self,
        entry: &Entry,
        rows: &mut impl RowTransaction,
    ) -> Result<Applied, ApplyError> {
        let place = EntryPlace { index: entry.index.0, log_time: LogTime(entry.stamp) };
        if let Owned::Keys { sessions, .. } = &mut self.owned {
            sessions.expire(place.log_time, rows)?;
        }
        match entry.kind {
            EntryKind::Noop => Ok(Applied::Noop),
            EntryKind::Membership => {
                let membership = Membership::decode(&entry.payload)
                    .map_err(|error| Damaged::new("a membership entry", error.to_string()))?;
                Ok(Applied::Membership(membership))
            }
            EntryKind::Command => {
                let command = decode_command(place.index, entry.payload.clone())?;
                Ok(Applied::Command(self.apply_command(command, place, rows)?))
            }
        }
    }

    fn apply_command(
        &mut self,
        command: Command,
        place: EntryPlace,
        rows: &mut impl RowTransaction,
    ) -> Result<WriteAnswer, ApplyError> {
        let Command { shard, shard_epoch, session, action, feature_level: level, .. } = command;
        let Some(action) = action else {
            return Err(unknown(place.index, "its action is unknown"));
        };
        if let Action::ChangeMap(change) = &action
            && !change.changes.is_empty()
        {
            return Err(unknown(place.index, "it changes the map by parts"));
        }
        if level <= WITHOUT_PRINCIPAL_LEVEL && !command.principal.is_empty() {
            let detail = format!("it has a principal, which level {level} does not know");
            return Ok(WriteAnswer::Refused(Refusal::Malformed { detail }));
        }
        match (&mut self.owned, action) {
            (Owned::Map(state), Action::ChangeMap(change)) => state.change(change, rows),
            (Owned::Map(_), Action::Write(_) | Action::Cancel(_)) => {
                let detail = "this is the meta group, which owns no keys".to_owned();
                Ok(WriteAnswer::Refused(Refusal::WrongShard { detail }))
            }
            (Owned::Keys { ownership, .. }, Action::ChangeMap(_)) => {
                Ok(WriteAnswer::Refused(ownership.refuse("the cluster map is not kept here")))
            }
            (Owned::Keys { ownership, .. }, _) if shard != ownership.shard => {
                Ok(WriteAnswer::Refused(
                    ownership.refuse(&format!("the command is for shard {shard}")),
                ))
            }
            (Owned::Keys { ownership, sessions }, Action::Write(write)) => {
                let command = ShardCommand { ownership, sessions, shard_epoch, level, place, rows };
                command.write(&write, session.as_ref())
            }
            (Owned::Keys { ownership, sessions }, Action::Cancel(_)) => {
                let command = ShardCommand { ownership, sessions, shard_epoch, level, place, rows };
                command.cancel(session.as_ref())
            }
        }
    }
}

fn unknown(index: u64, detail: impl Into<String>) -> ApplyError {
    ApplyError::UnknownFeature { index, detail: detail.into() }
}

/// Reads a command; the byte strings in it are slices of the payload.
pub(crate) fn decode_command(index: u64, payload: Bytes) -> Result<Command, ApplyError> {
    let command = Command::decode(payload)
        .map_err(|error| Damaged::new("a command entry", format!("at index {index}: {error}")))?;
    if command.version != COMMAND_VERSION {
        return Err(unknown(
            index,
            format!("its format is {}, expected {COMMAND_VERSION}", command.version),
        ));
    }
    if command.feature_level == 0 || command.feature_level > FEATURE_LEVEL {
        let level = command.feature_level;
        return Err(unknown(
            index,
            format!("its feature level is {level}, expected 1 to {FEATURE_LEVEL}"),
        ));
    }
    Ok(command)
}

/// One command on a shard's keys.
struct ShardCommand<'a, R> {
    ownership: &'a Ownership,
    sessions: &'a mut SessionTable,
    shard_epoch: u64,
    /// The feature level, whose rules apply: replicas of all versions decide alike.
    level: u32,
    place: EntryPlace,
    rows: &'a mut R,
}

impl<R: RowTransaction> ShardCommand<'_, R> {
    fn write(
        self,
        write: &Write,
        session: Option<&CommandSession>,
    ) -> Result<WriteAnswer, ApplyError> {
        if let Err(refusal) = execute::check(write, self.place.index)? {
            return Ok(WriteAnswer::Refused(refusal));
        }
        let session = session.map(|session| session_use(self.level, session, Some(write)));
        let session = match session.transpose() {
            Ok(session) => session,
            Err(refusal) => return Ok(WriteAnswer::Refused(refusal)),
        };
        let Some(session) = session else {
            return match self.owned(write) {
                Err(refusal) => Ok(WriteAnswer::Refused(refusal)),
                Ok(()) => Ok(answer_of(execute::execute(write, self.place, self.rows)?.into())),
            };
        };
        // A decided write gets its remembered answer, even if the shard has changed since:
        // answering "not applied" to a retry would be false for the write.
        let admission = self.sessions.admit(&session, self.place.log_time);
        if admission == Admission::Duplicate {
            return Ok(answer_of(self.sessions.replay(&session, self.rows)?));
        }
        if let Err(refusal) = self.owned(write) {
            return Ok(WriteAnswer::Refused(refusal));
        }
        if let Admission::Refused(refusal) = admission {
            return Ok(WriteAnswer::Refused(refusal));
        }
        let decided = execute::execute(write, self.place, self.rows)?.into();
        self.sessions.record(&session, &decided, self.rows)?;
        Ok(answer_of(decided))
    }

    fn cancel(self, session: Option<&CommandSession>) -> Result<WriteAnswer, ApplyError> {
        let session = match session.map(|session| session_use(self.level, session, None)) {
            Some(Ok(session)) => session,
            Some(Err(refusal)) => return Ok(WriteAnswer::Refused(refusal)),
            None => {
                let detail = "a Cancel names no session".to_owned();
                return Ok(WriteAnswer::Refused(Refusal::Malformed { detail }));
            }
        };
        let admission = self.sessions.admit(&session, self.place.log_time);
        if admission == Admission::Duplicate {
            return Ok(answer_of(self.sessions.replay(&session, self.rows)?));
        }
        if let Err(refusal) = self.epoch_owned() {
            return Ok(WriteAnswer::Refused(refusal));
        }
        if let Admission::Refused(refusal) = admission {
            return Ok(WriteAnswer::Refused(refusal));
        }
        self.sessions.record(&session, &Stored::Barred, self.rows)?;
        Ok(WriteAnswer::Barred)
    }

    fn epoch_owned(&self) -> Result<(), Refusal> {
        if self.shard_epoch == self.ownership.shard_epoch {
            Ok(())
        } else {
            Err(self.ownership.refuse(&format!("the command is for epoch {}", self.shard_epoch)))
        }
    }

    fn owned(&self, write: &Write) -> Result<(), Refusal> {
        self.epoch_owned()?;
        let range = self.ownership.first..=self.ownership.last;
        for (at, operation) in write.operations.iter().enumerate() {
            let hash = key_hash(&operation.key);
            if !range.contains(&hash) {
                return Err(self
                    .ownership
                    .refuse(&format!("the key of operation {at} hashes to {hash:#018x}")));
            }
        }
        Ok(())
    }
}

/// The use of a session by a command of this level; `write` is `None` for a Cancel.
fn session_use<'a>(
    level: u32,
    session: &CommandSession,
    write: Option<&'a Write>,
) -> Result<SessionUse<'a>, Refusal> {
    let bad = |what: &str, bytes: &[u8]| Refusal::Malformed {
        detail: format!("its {what} is {} bytes long", bytes.len()),
    };
    let id = SessionId::from_slice(&session.id).ok_or_else(|| bad("session id", &session.id))?;
    let mark = if level < DIGEST_LEVEL {
        Mark::Xxh3 { content: write.map_or(0, |write| write.content_hash) }
    } else {
        let client = &session.client;
        let client = ClientTag::from_slice(client).ok_or_else(|| bad("client tag", client))?;
        let content = match write.map(|write| &write.content_digest) {
            Some(digest) => (&digest[..]).try_into().map_err(|_| bad("content digest", digest))?,
            None => [0; CONTENT_DIGEST_BYTES],
        };
        Mark::Sha256 { content, client }
    };
    let CommandSession { sequence, answered_below, last, .. } = *session;
    let operations = write.map(|write| &write.operations[..]);
    Ok(SessionUse { id, sequence, answered_below, last, mark, operations })
}

fn answer_of(stored: Stored) -> WriteAnswer {
    match stored {
        Stored::Done(done) => WriteAnswer::Done(done),
        Stored::NotANumber(why) => WriteAnswer::Refused(Refusal::NotANumber(why)),
        Stored::Barred => WriteAnswer::Barred,
    }
}
