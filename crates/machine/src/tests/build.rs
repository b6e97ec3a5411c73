//! Builders of commands for tests, and random commands.

use bytes::Bytes;
use proptest::prelude::*;
use quorate_proto::{
    content::{content_digest, content_hash},
    raft::v1::{
        CancelWrite, CheckKey, Command, CommandOperation, CommandSession, DeleteKey, GetKey, Write,
        command::Action, command_operation::Kind,
    },
    v1::{Condition, condition::Expect},
};
use quorate_raft::{Entry, EntryKind, Index, Term};
use quorate_storage::RowKind;

use crate::{
    Applied, ApplyError, ClientTag, LogTime, MemoryRows, Ownership, SessionId, SessionLimits,
    StateMachine, WriteAnswer,
};

/// The log time at which tests begin, in milliseconds.
pub const START_MS: u64 = 1_000_000;

/// Limits that random tests reach.
pub const SMALL: SessionLimits = SessionLimits {
    ttl_ms: 10_000,
    future_ms: 1_000,
    unanswered_max: 3,
    bytes_max: 1 << 30,
    expired_rows_per_entry: 2,
};

pub const OWNERSHIP: Ownership = Ownership { shard: 5, shard_epoch: 2, first: 0, last: u64::MAX };

pub fn put(key: &str, value: impl Into<Bytes>) -> CommandOperation {
    operation(key, Kind::Put(value.into()))
}

pub fn delete(key: &str) -> CommandOperation {
    operation(key, Kind::Delete(DeleteKey {}))
}

pub fn add(key: &str, delta: i64) -> CommandOperation {
    operation(key, Kind::Increment(delta))
}

pub fn check(key: &str, expect: Expect) -> CommandOperation {
    when(operation(key, Kind::Check(CheckKey {})), expect)
}

pub fn get(key: &str) -> CommandOperation {
    operation(key, Kind::Get(GetKey {}))
}

pub fn when(operation: CommandOperation, expect: Expect) -> CommandOperation {
    CommandOperation { condition: Some(Condition { expect: Some(expect) }), ..operation }
}

pub fn and_previous(operation: CommandOperation) -> CommandOperation {
    CommandOperation { return_previous: true, ..operation }
}

pub fn value(text: &'static str) -> Expect {
    Expect::Value(Bytes::from_static(text.as_bytes()))
}

fn operation(key: &str, kind: Kind) -> CommandOperation {
    CommandOperation {
        keyspace: 0,
        key: Bytes::copy_from_slice(key.as_bytes()),
        condition: None,
        return_previous: false,
        kind: Some(kind),
    }
}

pub fn write(operations: Vec<CommandOperation>) -> Command {
    let content_hash = content_hash(&operations);
    let content_digest = Bytes::copy_from_slice(&content_digest(&operations, None));
    command(Action::Write(Write { operations, content_hash, content_digest }))
}

pub fn cancel() -> Command {
    command(Action::Cancel(CancelWrite {}))
}

pub fn command(action: Action) -> Command {
    Command {
        version: 1,
        feature_level: 1,
        shard: OWNERSHIP.shard,
        shard_epoch: OWNERSHIP.shard_epoch,
        session: None,
        principal: Bytes::new(),
        action: Some(action),
    }
}

/// A session born `born_after_ms` milliseconds after the start.
pub fn session(born_after_ms: u64) -> SessionId {
    SessionId::from_parts(LogTime::from_millis(START_MS + born_after_ms), 1, 2, 3)
}

pub fn within(command: Command, id: SessionId, sequence: u64, answered_below: u64) -> Command {
    let id = Bytes::copy_from_slice(id.as_bytes());
    let client = Bytes::copy_from_slice(client(1).as_bytes());
    let session = CommandSession { id, sequence, answered_below, last: false, client };
    Command { feature_level: 2, session: Some(session), ..command }
}

/// A client by its number.
pub fn client(number: u8) -> ClientTag {
    ClientTag::from_bytes([number; 16])
}

/// The command of another client than the first.
pub fn by(number: u8, mut command: Command) -> Command {
    command.session.as_mut().unwrap().client = Bytes::copy_from_slice(client(number).as_bytes());
    command
}

/// The command as level 1 has it, without what only level 2 knows.
pub fn at_level_1(mut command: Command) -> Command {
    command.feature_level = 1;
    if let Some(session) = &mut command.session {
        session.client = Bytes::new();
    }
    if let Some(Action::Write(write)) = &mut command.action {
        write.content_digest = Bytes::new();
    }
    command
}

pub fn last(mut command: Command) -> Command {
    command.session.as_mut().unwrap().last = true;
    command
}

pub fn entry(index: u64, at_ms: u64, command: &Command) -> Entry {
    use prost::Message;
    Entry {
        term: Term(1),
        index: Index(index),
        kind: EntryKind::Command,
        stamp: LogTime::from_millis(at_ms).0,
        payload: command.encode_to_vec().into(),
    }
}

/// A shard with its rows; each command takes the next index. After each one the machine is compared
/// with a reload of its rows.
pub struct Shard {
    pub machine: StateMachine,
    pub rows: MemoryRows,
    pub index: u64,
    pub now_ms: u64,
}

impl Shard {
    pub fn new(limits: SessionLimits) -> Self {
        let machine = StateMachine::load_shard(OWNERSHIP, limits, []).unwrap();
        Self { machine, rows: MemoryRows::default(), index: 0, now_ms: START_MS }
    }

    pub fn try_apply(&mut self, command: &Command) -> Result<WriteAnswer, ApplyError> {
        self.index += 1;
        let entry = entry(self.index, self.now_ms, command);
        let applied = self.machine.apply_entry(&entry, &mut self.rows)?;
        assert_eq!(self.machine, self.reloaded(), "after {command:?}");
        match applied {
            Applied::Command(answer) => Ok(answer),
            other => panic!("a command applied as {other:?}"),
        }
    }

    pub fn apply(&mut self, command: &Command) -> WriteAnswer {
        self.try_apply(command).unwrap()
    }

    pub fn reloaded(&self) -> StateMachine {
        let sessions = self.machine.sessions().unwrap();
        let rows = self.rows.of_kind(RowKind::Session);
        StateMachine::load_shard(*self.machine.ownership().unwrap(), sessions.limits(), rows)
            .unwrap()
    }
}

/// One step of a random log.
#[derive(Clone, Debug)]
pub struct Step {
    /// `None` = an empty entry.
    pub command: Option<Command>,
    /// The time since the previous entry.
    pub after_ms: u64,
}

impl Step {
    pub fn entry(&self, index: u64, at_ms: u64) -> Entry {
        match &self.command {
            Some(command) => entry(index, at_ms, command),
            None => Entry {
                term: Term(1),
                index: Index(index),
                kind: EntryKind::Noop,
                stamp: LogTime::from_millis(at_ms).0,
                payload: Bytes::new(),
            },
        }
    }
}

/// Logs in which keys, sessions, sequences and values often coincide, and time passes the time to
/// live.
pub fn log(steps: usize) -> impl Strategy<Value = Vec<Step>> {
    let after_ms = prop_oneof![4 => 0..200u64, 1 => 0..4_000u64, 1 => Just(0)];
    let step = (prop_oneof![1 => Just(None), 20 => random_command().prop_map(Some)], after_ms)
        .prop_map(|(command, after_ms)| Step { command, after_ms });
    prop::collection::vec(step, 1..steps)
}

fn random_command() -> impl Strategy<Value = Command> {
    let action = prop_oneof![8 => random_write(), 2 => Just(cancel())];
    let identity = (0..6u64, 0..7u64, 0..8u64, prop::bool::weighted(0.06), 1..4u8);
    let identity = prop_oneof![1 => Just(None), 5 => identity.prop_map(Some)];
    let epoch = prop_oneof![20 => Just(OWNERSHIP.shard_epoch), 1 => Just(1)];
    let shard = prop_oneof![20 => Just(OWNERSHIP.shard), 1 => Just(6)];
    let level_1 = any::<bool>();
    (action, identity, epoch, shard, level_1).prop_map(|(command, identity, epoch, shard, old)| {
        let mut command = Command { shard_epoch: epoch, shard, ..command };
        if let Some((number, sequence, answered_below, is_last, client)) = identity {
            command = within(command, session(number * 3_500), sequence, answered_below);
            command = by(client, command);
            command = if is_last { last(command) } else { command };
        }
        if old { at_level_1(command) } else { command }
    })
}

fn random_write() -> impl Strategy<Value = Command> {
    let one = (random_operation(), 0..3usize).prop_map(|(operation, key)| (key, operation)).boxed();
    let batch = prop_oneof![
        3 => prop::collection::vec(one.clone(), 1),
        1 => prop::collection::vec(one, 2..4),
    ];
    batch.prop_map(|operations| {
        let mut keys = std::collections::BTreeSet::new();
        let operations = operations.into_iter().filter(|(key, _)| keys.insert(*key));
        let named = operations.map(|(key, operation)| CommandOperation {
            key: Bytes::copy_from_slice(["a", "{tag}b", "c"][key].as_bytes()),
            ..operation
        });
        write(named.collect())
    })
}

fn random_value() -> impl Strategy<Value = Bytes> {
    let text = prop::sample::select(vec!["", "0", "7", "-3", "x", "9223372036854775807"]);
    let long = (0..2u8, prop::sample::select(vec![600usize, 1_024, 1_025]));
    prop_oneof![
        6 => text.prop_map(|text| Bytes::from_static(text.as_bytes())),
        1 => long.prop_map(|(byte, len)| Bytes::from(vec![b'a' + byte; len])),
    ]
}

fn random_operation() -> impl Strategy<Value = CommandOperation> {
    let kind = prop_oneof![
        4 => random_value().prop_map(Kind::Put),
        2 => Just(Kind::Delete(DeleteKey {})),
        2 => prop::sample::select(vec![1i64, -1, 5, i64::MAX, i64::MIN]).prop_map(Kind::Increment),
        1 => Just(Kind::Check(CheckKey {})),
        2 => Just(Kind::Get(GetKey {})),
    ];
    let expect = prop_oneof![
        2 => Just(Expect::Absent(true)),
        2 => (0..30u64).prop_map(Expect::Revision),
        1 => random_value().prop_map(Expect::Value),
    ];
    let expect = prop_oneof![4 => Just(None), 1 => expect.prop_map(Some)];
    (kind, expect, any::<bool>()).prop_map(|(kind, expect, return_previous)| CommandOperation {
        keyspace: 0,
        key: Bytes::new(),
        condition: expect.map(|expect| Condition { expect: Some(expect) }),
        return_previous,
        kind: Some(kind),
    })
}
