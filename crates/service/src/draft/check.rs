//! The checks of the parts of a request: keys, keyspaces, values, conditions, sessions.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_config::Key;
use quorate_proto::{
    limits::{KEY_BYTES_MAX, SESSION_UNANSWERED_MAX, SESSION_WIRE_BYTES},
    raft::v1::{CommandOperation, CommandSession},
    v1::{Condition, Reason, WriteSession, condition::Expect},
};

use super::{Invalid, RequestRules, ShownKey};

/// The setting that moves the value limit.
const VALUE_KEY: Key = Key::MaxValueSize;

/// Checks a key of any request: 1 byte to 4 KiB.
pub fn check_key(field: &str, key: &[u8]) -> Result<(), Invalid> {
    if key.is_empty() {
        return Err(Invalid::new(
            Reason::BadKey,
            field,
            format!("{field} is empty; a key has at least one byte"),
        ));
    }
    if key.len() > KEY_BYTES_MAX {
        let message =
            format!("{field} is {} bytes long; the limit is {KEY_BYTES_MAX} bytes", key.len());
        return Err(Invalid::new(Reason::BadKey, field, message).limit(KEY_BYTES_MAX, ""));
    }
    Ok(())
}

/// The id of a keyspace by its name. Only the default one, with the empty name, exists for now.
pub fn keyspace_id(name: &str) -> Result<u32, Invalid> {
    if name.is_empty() {
        return Ok(0);
    }
    let shown = ShownKey(name.as_bytes());
    let message = format!(
        "the keyspace {shown} does not exist; this version has the default one alone, named \"\""
    );
    Err(Invalid::new(Reason::BadKeyspace, "keyspace", message))
}

pub(super) fn check_value(field: &str, value: &[u8], rules: &RequestRules) -> Result<(), Invalid> {
    too_long(Reason::BadValue, field, value, rules)
}

fn too_long(
    reason: Reason,
    field: &str,
    value: &[u8],
    rules: &RequestRules,
) -> Result<(), Invalid> {
    let limit = rules.value_bytes_max;
    if value.len() <= limit {
        return Ok(());
    }
    let message = format!(
        "{field} is {} bytes long; the limit is {limit} bytes, set by {VALUE_KEY}",
        value.len()
    );
    Err(Invalid::new(reason, field, message).limit(limit, VALUE_KEY.name()))
}

pub(super) fn check_condition(
    field: &str,
    condition: &Condition,
    rules: &RequestRules,
) -> Result<(), Invalid> {
    let bad = |message: String| Err(Invalid::new(Reason::BadCondition, field, message));
    match &condition.expect {
        None => bad(format!("{field} says neither absent, revision nor value")),
        Some(Expect::Absent(false)) => {
            bad(format!("{field}.absent is false; \"present with any value\" is not a condition"))
        }
        Some(Expect::Absent(true) | Expect::Revision(_)) => Ok(()),
        Some(Expect::Value(value)) => {
            too_long(Reason::BadCondition, &format!("{field}.value"), value, rules)
        }
    }
}

pub(super) fn check_session(
    session: &WriteSession,
    rules: &RequestRules,
) -> Result<CommandSession, Invalid> {
    let (id, client) = check_session_id("session.id", &session.id, rules)?;
    check_sequence("session.sequence", session.sequence)?;
    let WriteSession { sequence, answered_below, last, .. } = *session;
    let field = "session.answered_below";
    if answered_below > sequence {
        let message = format!(
            "session.answered_below is {answered_below}, above the sequence {sequence} \
             itself, which is not answered yet"
        );
        return Err(Invalid::new(Reason::BadToken, field, message));
    }
    // The sequence itself is one of those that are not answered.
    if sequence - answered_below.max(1) >= SESSION_UNANSWERED_MAX {
        let message = format!(
            "with sequence {sequence} more than {SESSION_UNANSWERED_MAX} writes of the session \
             would be unanswered, the limit: session.answered_below is {answered_below}"
        );
        let full = Invalid::new(Reason::SessionsFull, field, message);
        return Err(full.limit(SESSION_UNANSWERED_MAX as usize, ""));
    }
    Ok(CommandSession { id, sequence, answered_below, last, client })
}

/// The session id as shards store it, and the tag of the client that it was opened for.
pub(super) fn check_session_id(
    field: &str,
    id: &Bytes,
    rules: &RequestRules,
) -> Result<(Bytes, Bytes), Invalid> {
    if let Some((stored, client)) = rules.session_key.open(id) {
        let stored = Bytes::copy_from_slice(stored.as_bytes());
        return Ok((stored, Bytes::copy_from_slice(client.as_bytes())));
    }
    let message = match id.len() {
        SESSION_WIRE_BYTES => {
            format!("{field} is not one that OpenSession of this cluster has given")
        }
        length => format!(
            "{field} is {length} bytes long; a session id has {SESSION_WIRE_BYTES}, as OpenSession \
             gives it"
        ),
    };
    Err(Invalid::new(Reason::BadToken, field, message))
}

pub(super) fn check_sequence(field: &str, sequence: u64) -> Result<(), Invalid> {
    if sequence > 0 {
        return Ok(());
    }
    Err(Invalid::new(Reason::BadToken, field, format!("{field} is 0; sequences begin with 1")))
}

pub(super) fn check_keys_once(operations: &[CommandOperation]) -> Result<(), Invalid> {
    let mut seen = BTreeMap::new();
    for (at, operation) in operations.iter().enumerate() {
        if let Some(first) = seen.insert(&operation.key, at) {
            let key = ShownKey(&operation.key);
            let message = format!(
                "operations[{first}] and operations[{at}] both name the key {key}; a Batch names \
                 each key once"
            );
            return Err(Invalid::new(Reason::BadKey, &format!("operations[{at}].key"), message));
        }
    }
    Ok(())
}
