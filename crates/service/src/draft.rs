//! From a client's request to the command that stands in the log.
//!
//! A [`CommandDraft`] is a checked request: nothing that apply would have to call malformed can
//! come out of it. The shard and its epoch are filled in when the draft is encoded, once, for the
//! log and the wire. An [`Invalid`] says why a request is rejected: it names the field, the limit
//! and the configuration key that changes it.

mod check;

use std::fmt;

use bytes::Bytes;
use prost::Message;
use quorate_machine::{SessionId, SessionKey, WriteKey, command};
use quorate_proto::{
    hash::{hash_tag, key_hash, owner},
    limits::{BATCH_OPERATIONS_MAX, REQUEST_BYTES_MAX},
    raft::v1::{
        CheckKey, Command, CommandOperation, CommandSession, DeleteKey, GetKey, command::Action,
        command_operation::Kind,
    },
    v1::{
        BatchOperation, BatchRequest, CancelRequest, CompareAndSetRequest, Condition,
        DeleteRequest, Failure, IncrementRequest, MapShard, PutRequest, Reason, WriteSession,
        batch_operation,
    },
};
use thiserror::Error;

use check::{
    check_condition, check_keys_once, check_sequence, check_session, check_session_id, check_value,
};

pub use check::{check_key, keyspace_id};

/// How much of a key a sentence shows.
const SHOWN_KEY_BYTES: usize = 48;

/// What requests are checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestRules {
    /// The longest value, in bytes.
    pub value_bytes_max: usize,
    /// The key of the session ids that the cluster gave.
    pub session_key: SessionKey,
}

/// What is wrong with a request. Nothing of it was proposed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct Invalid {
    /// The reason in the API's error table: one of the INVALID_ARGUMENT reasons, or SESSIONS_FULL.
    pub reason: Reason,
    /// The field, such as `operations[3].key`.
    pub field: String,
    /// A sentence for people.
    pub message: String,
    /// The limit that was exceeded; 0 = none was.
    pub limit: u64,
    /// The configuration key that moves the limit; empty = it is fixed.
    pub config_key: &'static str,
}

impl Invalid {
    fn new(reason: Reason, field: &str, message: impl Into<String>) -> Invalid {
        Invalid {
            reason,
            field: field.to_owned(),
            message: message.into(),
            limit: 0,
            config_key: "",
        }
    }

    fn limit(mut self, limit: usize, config_key: &'static str) -> Invalid {
        self.limit = limit as u64;
        self.config_key = config_key;
        self
    }

    /// The failure that travels.
    pub fn failure(&self) -> Failure {
        Failure {
            field: self.field.clone(),
            limit: self.limit,
            config_key: self.config_key.to_owned(),
            ..Failure::of(self.reason, self.message.clone())
        }
    }
}

/// A key in a sentence: escaped, and cut where it is long.
pub struct ShownKey<'a>(pub &'a [u8]);

impl fmt::Display for ShownKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(SHOWN_KEY_BYTES)];
        let more = if shown.len() < self.0.len() { "…" } else { "" };
        write!(f, "\"{}{more}\"", shown.escape_ascii())
    }
}

/// The [`Single`] of a request: its fields have the same names in all of them, except for the
/// condition.
macro_rules! single {
    ($request:ident, $condition:ident) => {
        Single {
            key: &$request.key,
            keyspace: &$request.keyspace,
            condition: $request.$condition.as_ref(),
            condition_field: stringify!($condition),
            return_previous: $request.return_previous,
            session: $request.session.as_ref(),
        }
    };
}

/// A checked write or Cancel, not yet bound to a shard.
#[derive(Clone, Debug, PartialEq)]
pub struct CommandDraft {
    /// With shard and epoch 0 until it is encoded.
    command: Command,
    /// The first key, which names the shard.
    key: Bytes,
}

impl CommandDraft {
    /// Checks a Put.
    pub fn put(request: &PutRequest, rules: &RequestRules) -> Result<CommandDraft, Invalid> {
        check_value("value", &request.value, rules)?;
        single!(request, condition).draft(Kind::Put(request.value.clone()), rules)
    }

    /// Checks a Delete.
    pub fn delete(request: &DeleteRequest, rules: &RequestRules) -> Result<CommandDraft, Invalid> {
        single!(request, condition).draft(Kind::Delete(DeleteKey {}), rules)
    }

    /// Checks a CompareAndSet, which is a Put under a condition.
    pub fn compare_and_set(
        request: &CompareAndSetRequest,
        rules: &RequestRules,
    ) -> Result<CommandDraft, Invalid> {
        if request.expect.is_none() {
            let message = "CompareAndSet needs what is expected; Put writes without a condition";
            return Err(Invalid::new(Reason::BadCondition, "expect", message));
        }
        check_value("value", &request.value, rules)?;
        single!(request, expect).draft(Kind::Put(request.value.clone()), rules)
    }

    /// Checks an Increment.
    pub fn increment(
        request: &IncrementRequest,
        rules: &RequestRules,
    ) -> Result<CommandDraft, Invalid> {
        single!(request, condition).draft(Kind::Increment(request.delta), rules)
    }

    /// Checks a Batch. That its keys are in one shard is only known with a map:
    /// [`CommandDraft::shard_in`].
    pub fn batch(request: &BatchRequest, rules: &RequestRules) -> Result<CommandDraft, Invalid> {
        let count = request.operations.len();
        if count == 0 {
            return Err(Invalid::new(
                Reason::BadRequest,
                "operations",
                "a Batch needs at least one operation",
            ));
        }
        if count > BATCH_OPERATIONS_MAX {
            let message =
                format!("the Batch has {count} operations; the limit is {BATCH_OPERATIONS_MAX}");
            let invalid = Invalid::new(Reason::TooLarge, "operations", message);
            return Err(invalid.limit(BATCH_OPERATIONS_MAX, ""));
        }
        let bytes = request.encoded_len();
        if bytes > REQUEST_BYTES_MAX {
            let message =
                format!("the Batch is {bytes} bytes long; the limit is {REQUEST_BYTES_MAX} bytes");
            return Err(
                Invalid::new(Reason::TooLarge, "operations", message).limit(REQUEST_BYTES_MAX, "")
            );
        }
        let keyspace = keyspace_id(&request.keyspace)?;
        let session =
            request.session.as_ref().map(|session| check_session(session, rules)).transpose()?;
        let operations = request.operations.iter().enumerate();
        let operations =
            operations.map(|(at, operation)| batch_operation(at, operation, keyspace, rules));
        let operations = operations.collect::<Result<Vec<_>, _>>()?;
        check_keys_once(&operations)?;
        Ok(CommandDraft::of_write(operations, session))
    }

    /// Checks a Cancel.
    pub fn cancel(request: &CancelRequest, rules: &RequestRules) -> Result<CommandDraft, Invalid> {
        check_key("key", &request.key)?;
        keyspace_id(&request.keyspace)?;
        let (id, client) = check_session_id("session_id", &request.session_id, rules)?;
        check_sequence("sequence", request.sequence)?;
        let session = CommandSession {
            id,
            sequence: request.sequence,
            answered_below: 0,
            last: false,
            client,
        };
        Ok(CommandDraft { command: command::cancel(session), key: request.key.clone() })
    }

    fn of_write(
        operations: Vec<CommandOperation>,
        session: Option<CommandSession>,
    ) -> CommandDraft {
        let key = operations[0].key.clone();
        CommandDraft { command: command::write(operations, session), key }
    }

    /// The hash of the first key, which decides where the command goes.
    pub fn key_hash(&self) -> u64 {
        key_hash(&self.key)
    }

    /// Which write of which session it is; `None` = it has no session, or is a Cancel.
    pub fn write_key(&self) -> Option<WriteKey> {
        let session = self.command.session.as_ref()?;
        let is_write = matches!(self.command.action, Some(Action::Write(_)));
        let id = SessionId::from_slice(&session.id).filter(|_| is_write)?;
        Some(id.write_key(session.sequence))
    }

    /// Whether the write is exactly-once. Without a session it must be proposed at most once.
    #[cfg(test)]
    pub fn has_session(&self) -> bool {
        self.command.session.is_some()
    }

    /// The operations; empty for a Cancel.
    pub fn operations(&self) -> &[CommandOperation] {
        match &self.command.action {
            Some(Action::Write(write)) => &write.operations,
            _ => &[],
        }
    }

    /// The shard of all keys, among shards in the order of their ranges. `Ok(None)` when these
    /// shards do not cover the first key, which a valid map never does; CROSS_SHARD when two keys
    /// are in two of them.
    pub fn shard_in<'m>(&self, shards: &'m [MapShard]) -> Result<Option<&'m MapShard>, Invalid> {
        let owner_of = |hash| owner(shards, hash).map(|at| &shards[at]);
        let Some(shard) = owner_of(self.key_hash()) else { return Ok(None) };
        let range = shard.first..=shard.last;
        for (at, operation) in self.operations().iter().enumerate().skip(1) {
            let hash = key_hash(&operation.key);
            if !range.contains(&hash) {
                let other = owner_of(hash).map_or(0, |other| other.id);
                return Err(cross_shard((shard.id, &self.key), (other, &operation.key), at));
            }
        }
        Ok(Some(shard))
    }

    /// The bytes for the log: the command, bound to a shard in an epoch.
    pub fn encode(&mut self, shard: u64, shard_epoch: u64) -> Bytes {
        command::encode(&mut self.command, shard, shard_epoch)
    }
}

/// What the requests on one key have in common.
struct Single<'a> {
    key: &'a Bytes,
    keyspace: &'a str,
    condition: Option<&'a Condition>,
    condition_field: &'static str,
    return_previous: bool,
    session: Option<&'a WriteSession>,
}

impl Single<'_> {
    fn draft(self, kind: Kind, rules: &RequestRules) -> Result<CommandDraft, Invalid> {
        check_key("key", self.key)?;
        if let Some(condition) = self.condition {
            check_condition(self.condition_field, condition, rules)?;
        }
        let operation = CommandOperation {
            keyspace: keyspace_id(self.keyspace)?,
            key: self.key.clone(),
            condition: self.condition.cloned(),
            return_previous: self.return_previous,
            kind: Some(kind),
        };
        let session = self.session.map(|session| check_session(session, rules)).transpose()?;
        Ok(CommandDraft::of_write(vec![operation], session))
    }
}

fn batch_operation(
    at: usize,
    operation: &BatchOperation,
    keyspace: u32,
    rules: &RequestRules,
) -> Result<CommandOperation, Invalid> {
    use batch_operation::Action as Asked;

    let field = |name: &str| format!("operations[{at}].{name}");
    check_key(&field("key"), &operation.key)?;
    if let Some(condition) = &operation.condition {
        check_condition(&field("condition"), condition, rules)?;
    }
    let kind = match &operation.action {
        Some(Asked::Put(put)) => {
            check_value(&field("put.value"), &put.value, rules)?;
            Kind::Put(put.value.clone())
        }
        Some(Asked::Delete(_)) => Kind::Delete(DeleteKey {}),
        Some(Asked::Increment(increment)) => Kind::Increment(increment.delta),
        Some(Asked::Check(_)) if operation.condition.is_none() => {
            let message = "a check without a condition checks nothing";
            return Err(Invalid::new(Reason::BadCondition, &field("condition"), message));
        }
        Some(Asked::Check(_)) => Kind::Check(CheckKey {}),
        Some(Asked::Get(_)) => Kind::Get(GetKey {}),
        None => {
            let message =
                format!("operations[{at}] says neither put, delete, increment, check nor get");
            return Err(Invalid::new(Reason::BadRequest, &field("action"), message));
        }
    };
    Ok(CommandOperation {
        keyspace,
        key: operation.key.clone(),
        condition: operation.condition.clone(),
        // A get answers with the value anyway; one meaning has one canonical form.
        return_previous: operation.return_previous && !matches!(kind, Kind::Get(_)),
        kind: Some(kind),
    })
}

fn cross_shard(first: (u64, &Bytes), other: (u64, &Bytes), at: usize) -> Invalid {
    let message = format!(
        "the key {} is in shard {} and the key {} in shard {}; a Batch stays in one shard. Keys \
         that belong together \
         share a shard when they have the same hash tag, as in \"{{user1}}:name\" and \
         \"{{user1}}:mail\" (now the tags \
         are {} and {})",
        ShownKey(first.1),
        first.0,
        ShownKey(other.1),
        other.0,
        ShownKey(hash_tag(first.1)),
        ShownKey(hash_tag(other.1)),
    );
    Invalid::new(Reason::CrossShard, &format!("operations[{at}].key"), message)
}

#[cfg(test)]
mod tests;
