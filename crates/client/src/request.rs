//! Calls as values: each is built with its options and sent by awaiting it.

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

/// A call under way.
pub type ResponseFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// How fresh a read is to be.
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

    /// Which node serves such a read best.
    fn route(&self) -> Route {
        match self.level.row().needs_leader {
            true => Route::Leader,
            false => Route::Replica,
        }
    }

    /// What is sent; a session read without a token of its own takes what this client has seen, of one
    /// shard where only that is read.
    pub fn wire(self, inner: &Inner, key: Option<&Bytes>) -> Option<ReadOptions> {
        // What is not sent means this level.
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

/// Options that every call has.
macro_rules! every_call {
    () => {
        /// Sets the time the call may take with all its retries.
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

/// Options that every read has.
macro_rules! every_read {
    () => {
        /// Sets how fresh the read must be.
        pub fn level(mut self, level: ReadLevel) -> Self {
            self.freshness.level = level;
            self
        }

        /// Reads at least what this token names, at the session level. Without, a session read sees what
        /// this client has seen.
        pub fn token(mut self, token: SessionToken) -> Self {
            self.freshness.level = ReadLevel::Session;
            self.freshness.token = Some(token);
            self
        }

        /// Reads what is at most so old, at the bounded level.
        pub fn max_staleness(mut self, age: Duration) -> Self {
            self.freshness.level = ReadLevel::Bounded;
            self.freshness.max_staleness = Some(age);
            self
        }
    };
}
pub(crate) use {every_call, every_read};

/// Options that every write has.
macro_rules! every_write {
    () => {
        every_call!();

        /// Sends the write with this identity, to ask again for one whose outcome is unknown. The
        /// operation must be the same.
        pub fn write_id(mut self, write: WriteId) -> Self {
            self.session = SessionMode::Given(write);
            self
        }

        /// Gives the write a session of its own that ends with it, so that the cluster has least to
        /// remember: for a program that writes once.
        pub fn one_shot(mut self) -> Self {
            self.session = SessionMode::OneShot;
            self
        }

        /// Puts the write's identity into `slot` before it is first sent, for a caller that may stop
        /// waiting for the answer and ask again later. One that was given is there at once.
        pub fn note_write_id(mut self, slot: &WriteIdSlot) -> Self {
            self.slot = Some(slot.clone());
            self
        }

        /// Sends the write without a session: once, and a lost answer is an unknown outcome for good.
        pub fn without_session(mut self) -> Self {
            self.session = SessionMode::None;
            self
        }
    };
}

/// Conditions that a write of one key can have. `$field` holds the condition.
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

        /// Sets the condition as a whole.
        pub fn condition(mut self, condition: Condition) -> Self {
            self.request.$field = Some(condition);
            self
        }

        /// Asks for what the key held before; with a false condition, still holds.
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

/// How a client writes unless a call says otherwise.
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
    // An earlier call has sent it: it is out already, whether this call gets to send it or not.
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

/// Writes a key if it is as expected; see [`Client::compare_and_set`](crate::Client::compare_and_set).
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

/// Several operations, all or none; see [`Client::batch`](crate::Client::batch). Each key may appear once.
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

    /// Adds a read of a key as it was before.
    pub fn get(self, key: impl Into<Bytes>) -> Self {
        self.act(key, Action::Get(GetAction {}))
    }

    /// Adds an operation as a whole, with a condition of its own if it has one.
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
