//! Commands: the requests of log entries to the state machine, their versions and their encoding.
//!
//! The bytes are the same on the wire, in the log and at apply; the core and the storage never
//! decode them.

use bytes::Bytes;
use prost::Message;
use quorate_proto::content::content_digest;
use quorate_proto::raft::v1::{
    CancelWrite, ChangeMap, Command, CommandSession, Write, command::Action,
};
use quorate_proto::v1::ClusterMap;

pub use quorate_proto::raft::v1::{CommandOperation, command_operation::Kind};

/// The format of [`Command`] that this version writes, and the only one that it reads.
pub const COMMAND_VERSION: u32 = 1;

/// The level of commands without a session: what level 2 adds is about sessions.
const PLAIN_LEVEL: u32 = 1;

/// The level from which on a session's write has a digest of its content, and its client a share.
pub(crate) const DIGEST_LEVEL: u32 = 2;

/// The last level whose commands have no principal: one that has is malformed.
pub(crate) const WITHOUT_PRINCIPAL_LEVEL: u32 = 2;

/// A write, all or nothing, not yet bound to a shard; [`encode`] binds it.
#[must_use]
pub fn write(operations: Vec<CommandOperation>, session: Option<CommandSession>) -> Command {
    // Only a session compares it.
    let content_digest = match session {
        Some(_) => Bytes::copy_from_slice(&content_digest(&operations, None)),
        None => Bytes::new(),
    };
    let write = Write { operations, content_digest, ..Write::default() };
    of(Action::Write(write), session)
}

/// A Cancel of the write that `session` names, not yet bound to a shard.
#[must_use]
pub fn cancel(session: CommandSession) -> Command {
    of(Action::Cancel(CancelWrite {}), Some(session))
}

/// The bytes of a command that replaces the cluster map if its epoch is `expected_epoch` (0 = there
/// is none yet). Check it first with [`crate::map_rules::check_change`].
#[must_use]
pub fn encode_change_map(expected_epoch: u64, map: ClusterMap) -> Bytes {
    let change = ChangeMap { expected_epoch, map: Some(map), changes: Vec::new() };
    of(Action::ChangeMap(change), None).encode_to_vec().into()
}

/// The bytes for the log: the command, bound to a shard in an epoch.
pub fn encode(command: &mut Command, shard: u64, shard_epoch: u64) -> Bytes {
    command.shard = shard;
    command.shard_epoch = shard_epoch;
    command.encode_to_vec().into()
}

fn of(action: Action, session: Option<CommandSession>) -> Command {
    Command {
        version: COMMAND_VERSION,
        feature_level: if session.is_some() { DIGEST_LEVEL } else { PLAIN_LEVEL },
        shard: 0,
        shard_epoch: 0,
        session,
        principal: Bytes::new(),
        action: Some(action),
    }
}
