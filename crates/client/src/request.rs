//! Builders of calls: each has its options and is sent by awaiting it.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_proto::v1::batch_operation::Action;
use quorate_proto::v1::condition::Expect;
use quorate_proto::v1::{
    BatchOperation, BatchRequest, BatchResponse, CheckAction, CompareAndSetRequest,
    CompareAndSetResponse, Condition, DeleteAction, DeleteRequest, DeleteResponse, GetAction,
    GetRequest, GetResponse, IncrementAction, IncrementRequest, IncrementResponse, PutAction,
    PutRequest, PutResponse, ReadLevel, ReadOptions, SessionToken,
};

use crate::call::{CallOptions, SessionMode};
use crate::error::Result;
use crate::inner::Inner;
use crate::retry::RetryClass;
use crate::router::Route;
use crate::write_id::{WriteId, WriteIdSlot};

/// The future of a call.
pub type ResponseFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// Required freshness of a read.
#[derive(Clone, Debug)]
pub(crate) struct Freshness {
    pub level: ReadLevel,
    pub token: Option<SessionToken>,
    pub max_staleness: Option<Duration>,
}

impl Freshness {
    pub fn new(client: &Inner) -> Freshness {
        Freshness { level: client.config.level, token: None, max_staleness: None }
    }

    /// The best node for such a read.
    pub fn route(&self) -> Route {
        match self.level.row().needs_leader {
            true => Route::Leader,
            false => Route::Replica,
        }
    }

    /// The options to send. A session read without its own token gets the token of this client,
    /// reduced to one shard if it reads only that shard.
    pub fn wire(self, inner: &Inner, key: Option<&Bytes>) -> Option<ReadOptions> {
        // Without options a read is linearizable.
        if self.level.row().level == ReadLevel::Linearizable {
            return None;
        }
        let seen = || match key {
            None => Some(inner.tokens.whole()),
            Some(key) => {
                let table = inner.router.table();
                let shard = table.shard_of(key).map(|p| table.shard(p).id);
                match shard {
                    Some(shard) => inner.tokens.of_shard(shard),
                    None => Some(inner.tokens.whole()),
                }
            }
        };
        let session = self.level == ReadLevel::Session;
        Some(ReadOptions {
            level: self.level as i32,
            token: self.token.or_else(|| session.then(seen).flatten()),
            max_staleness: self.max_staleness.and_then(|d| d.try_into().ok()),
        })
    }
}

/// Options of every call.
macro_rules! every_call {
    () => {
        /// Sets the timeout of the call with all its retries.
        pub fn timeout(mut self, timeout: Duration) -> Self {
            self.timeout = Some(timeout);
            self
        }

        /// Sets the keyspace; empty = the default one.
        pub fn keyspace(mut self, keyspace: impl Into<String>) -> Self {
            self.request.keyspace = keyspace.into();
            self
        }
    };
}

/// Options of every read.
macro_rules! every_read {
    () => {
        /// Sets the read level.
        pub fn level(mut self, level: ReadLevel) -> Self {
            self.freshness.level = level;
            self
        }

        /// Reads at the session level at least what this token names. Without a token, a session
        /// read sees at least what this client has seen.
        pub fn token(mut self, token: SessionToken) -> Self {
            self.freshness.level = ReadLevel::Session;
            self.freshness.token = Some(token);
            self
        }

        /// Reads at the bounded level data that is at most this old.
        pub fn max_staleness(mut self, age: Duration) -> Self {
            self.freshness.level = ReadLevel::Bounded;
            self.freshness.max_staleness = Some(age);
            self
        }
    };
}
pub(crate) use {every_call, every_read};

/// Options of every write.
macro_rules! every_write {
    () => {
        every_call!();

        /// Sends the write with this id, to retry a write of unknown outcome. The operation must be
        /// the same.
        pub fn write_id(mut self, write: WriteId) -> Self {
            self.session = SessionMode::Given(write);
            self
        }

        /// Sends the write in a session of its own that ends with it, which costs the cluster the
        /// least state: for a program that writes once.
        pub fn one_shot(mut self) -> Self {
            self.session = SessionMode::OneShot;
            self
        }

        /// Puts the write's id into `slot` before the write is first sent, for a caller that may
        /// stop waiting for the answer and retry later. A given id is there immediately.
        pub fn note_write_id(mut self, slot: &WriteIdSlot) -> Self {
            self.slot = Some(slot.clone());
            self
        }

        /// Sends the write without a session: once, and a lost answer leaves its outcome unknown
        /// permanently.
        pub fn without_session(mut self) -> Self {
            self.session = SessionMode::None;
            self
        }
    };
}

/// Conditions of a write of one key. `$field` is the field with the condition.
macro_rules! conditions {
    ($field:ident, $absent:ident, $revision:ident, $value:ident) => {
        /// Only if the key is absent.
        pub fn $absent(self) -> Self {
            self.condition(condition(Expect::Absent(true)))
        }

        /// Only if the key's revision is this one; 0 = only if it is absent.
        pub fn $revision(self, revision: u64) -> Self {
            self.condition(condition(Expect::Revision(revision)))
        }

        /// Only if the key's value is this one.
        pub fn $value(self, value: impl Into<Bytes>) -> Self {
            self.condition(condition(Expect::Value(value.into())))
        }

        /// Sets the condition.
        pub fn condition(mut self, condition: Condition) -> Self {
            self.request.$field = Some(condition);
            self
        }

        /// Requests the previous value of the key: with a false condition, its current value.
        pub fn return_previous(mut self) -> Self {
            self.request.return_previous = true;
            self
        }
    };
}

macro_rules! send_write {
    ($call:ident, $answer:ty) => {
        impl<'a> IntoFuture for $call<'a> {
            type Output = Result<$answer>;
            type IntoFuture = ResponseFuture<'a, $answer>;

            fn into_future(self) -> Self::IntoFuture {
                let options = write(self.client, self.session, self.slot, self.timeout);
                Box::pin(self.client.execute(self.request, options))
            }
        }
    };
}

fn condition(expect: Expect) -> Condition {
    Condition { expect: Some(expect) }
}

/// The session mode of writes that do not set one.
fn own(client: &Inner) -> SessionMode {
    match client.config.sessions {
        true => SessionMode::Own,
        false => SessionMode::None,
    }
}

fn write(
    client: &Inner,
    session: SessionMode,
    slot: Option<WriteIdSlot>,
    timeout: Option<Duration>,
) -> CallOptions {
    // An earlier call has sent the write: its id is known even if this call does not send it.
    if let (Some(slot), SessionMode::Given(id)) = (&slot, &session) {
        slot.set(id.clone());
    }
    CallOptions {
        slot,
        route: Route::Leader,
        class: match session {
            SessionMode::None => RetryClass::Bare,
            _ => RetryClass::Sessioned,
        },
        session,
        deadline: client.deadline(timeout),
    }
}

pub(crate) fn read(route: Route, deadline: Instant) -> CallOptions {
    CallOptions { route, class: RetryClass::Read, session: SessionMode::None, slot: None, deadline }
}

/// Reads a key; see [`Client::get`](crate::Client::get).
#[derive(Debug)]
#[must_use = "a call is sent by awaiting it"]
pub struct Get<'a> {
    client: &'a Inner,
    request: GetRequest,
    freshness: Freshness,
    timeout: Option<Duration>,
}

impl<'a> Get<'a> {
    pub(crate) fn new(client: &'a Inner, key: Bytes) -> Self {
        Get {
            client,
            request: GetRequest {
                key,
                keyspace: client.config.keyspace.clone(),
                ..GetRequest::default()
            },
            freshness: Freshness::new(client),
            timeout: None,
        }
    }

    /// The same with this freshness and keyspace.
    pub(crate) fn with(mut self, freshness: Freshness, keyspace: String) -> Self {
        self.freshness = freshness;
        self.request.keyspace = keyspace;
        self
    }

    every_call!();
    every_read!();
}

impl<'a> IntoFuture for Get<'a> {
    type Output = Result<GetResponse>;
    type IntoFuture = ResponseFuture<'a, GetResponse>;

    fn into_future(mut self) -> Self::IntoFuture {
        let inner = self.client;
        let options = read(self.freshness.route(), self.client.deadline(self.timeout));
        self.request.read = self.freshness.wire(inner, Some(&self.request.key));
        Box::pin(inner.execute(self.request, options))
    }
}

/// Writes a key; see [`Client::put`](crate::Client::put).
#[derive(Debug)]
#[must_use = "a call is sent by awaiting it"]
pub struct Put<'a> {
    client: &'a Inner,
    request: PutRequest,
    session: SessionMode,
    slot: Option<WriteIdSlot>,
    timeout: Option<Duration>,
}

impl<'a> Put<'a> {
    pub(crate) fn new(client: &'a Inner, key: Bytes, value: Bytes) -> Self {
        Put {
            client,
            request: PutRequest {
                key,
                value,
                keyspace: client.config.keyspace.clone(),
                ..PutRequest::default()
            },
            session: own(client),
            slot: None,
            timeout: None,
        }
    }

    every_write!();
    conditions!(condition, if_absent, if_revision, if_value);
}
send_write!(Put, PutResponse);

/// Removes a key; see [`Client::delete`](crate::Client::delete).
#[derive(Debug)]
#[must_use = "a call is sent by awaiting it"]
pub struct Delete<'a> {
    client: &'a Inner,
    request: DeleteRequest,
    session: SessionMode,
    slot: Option<WriteIdSlot>,
    timeout: Option<Duration>,
}

impl<'a> Delete<'a> {
    pub(crate) fn new(client: &'a Inner, key: Bytes) -> Self {
        Delete {
            client,
            request: DeleteRequest {
                key,
                keyspace: client.config.keyspace.clone(),
                ..DeleteRequest::default()
            },
            session: own(client),
            slot: None,
            timeout: None,
        }
    }

    every_write!();
    conditions!(condition, if_absent, if_revision, if_value);
}
send_write!(Delete, DeleteResponse);

/// Writes a key if it is as expected; see
/// [`Client::compare_and_set`](crate::Client::compare_and_set).
#[derive(Debug)]
#[must_use = "a call is sent by awaiting it"]
pub struct CompareAndSet<'a> {
    client: &'a Inner,
    request: CompareAndSetRequest,
    session: SessionMode,
    slot: Option<WriteIdSlot>,
    timeout: Option<Duration>,
}

impl<'a> CompareAndSet<'a> {
    pub(crate) fn new(client: &'a Inner, key: Bytes, value: Bytes) -> Self {
        CompareAndSet {
            client,
            request: CompareAndSetRequest {
                key,
                value,
                keyspace: client.config.keyspace.clone(),
                ..CompareAndSetRequest::default()
            },
            session: own(client),
            slot: None,
            timeout: None,
        }
    }

    every_write!();
    conditions!(expect, if_absent, if_revision, if_value);
}
send_write!(CompareAndSet, CompareAndSetResponse);

/// Adds to a number; see [`Client::increment`](crate::Client::increment).
#[derive(Debug)]
#[must_use = "a call is sent by awaiting it"]
pub struct Increment<'a> {
    client: &'a Inner,
    request: IncrementRequest,
    session: SessionMode,
    slot: Option<WriteIdSlot>,
    timeout: Option<Duration>,
}

impl<'a> Increment<'a> {
    pub(crate) fn new(client: &'a Inner, key: Bytes, delta: i64) -> Self {
        Increment {
            client,
            request: IncrementRequest {
                key,
                delta,
                keyspace: client.config.keyspace.clone(),
                ..IncrementRequest::default()
            },
            session: own(client),
            slot: None,
            timeout: None,
        }
    }

    every_write!();
    conditions!(condition, if_absent, if_revision, if_value);
}
send_write!(Increment, IncrementResponse);

/// Applies several operations, all or none; see [`Client::batch`](crate::Client::batch). Each key
/// may appear once.
#[derive(Debug)]
#[must_use = "a call is sent by awaiting it"]
pub struct Batch<'a> {
    client: &'a Inner,
    request: BatchRequest,
    session: SessionMode,
    slot: Option<WriteIdSlot>,
    timeout: Option<Duration>,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(client: &'a Inner) -> Self {
        Batch {
            client,
            request: BatchRequest {
                keyspace: client.config.keyspace.clone(),
                ..BatchRequest::default()
            },
            session: own(client),
            slot: None,
            timeout: None,
        }
    }

    every_write!();

    /// Adds a write.
    pub fn put(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        let value = value.into();
        self.act(key, Action::Put(PutAction { value }))
    }

    /// Adds a removal.
    pub fn delete(self, key: impl Into<Bytes>) -> Self {
        self.act(key, Action::Delete(DeleteAction {}))
    }

    /// Adds an increment.
    pub fn increment(self, key: impl Into<Bytes>, delta: i64) -> Self {
        self.act(key, Action::Increment(IncrementAction { delta }))
    }

    /// Adds a condition on a key that is not written.
    pub fn check(self, key: impl Into<Bytes>, expect: Expect) -> Self {
        self.operation(BatchOperation {
            key: key.into(),
            condition: Some(condition(expect)),
            action: Some(Action::Check(CheckAction {})),
            ..BatchOperation::default()
        })
    }

    /// Adds a read of the value of a key before the batch.
    pub fn get(self, key: impl Into<Bytes>) -> Self {
        self.act(key, Action::Get(GetAction {}))
    }

    /// Adds an operation, with its own condition if it has one.
    pub fn operation(mut self, operation: BatchOperation) -> Self {
        self.request.operations.push(operation);
        self
    }

    fn act(self, key: impl Into<Bytes>, action: Action) -> Self {
        self.operation(BatchOperation {
            key: key.into(),
            action: Some(action),
            ..BatchOperation::default()
        })
    }
}
send_write!(Batch, BatchResponse);
