//! The client: its constructors and calls.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use quorate_proto::v1::{
    CancelRequest, CancelResponse, ClusterMap, OpenSessionRequest, OpenSessionResponse,
    SessionToken,
};

use crate::call::{CallOptions, SessionMode};
use crate::config::ClientConfig;
use crate::error::{Error, Result};
use crate::inner::Inner;
use crate::multi_get::MultiGet;
use crate::pool::Pool;
use crate::request::{Batch, CompareAndSet, Delete, Get, Increment, Put};
use crate::retry::RetryClass;
use crate::router::{Route, Router};
use crate::scan::Scan;
use crate::write_id::WriteId;

/// A client of one cluster. It is cheap to clone, and many tasks can use it at the same time: all
/// clones share connections, sessions and the session token.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

impl Client {
    /// Creates a client that fetches the cluster map at its first call.
    #[must_use]
    pub fn new(config: ClientConfig) -> Client {
        let pool = Pool::new(config.connect_timeout);
        let seeds = config.endpoints.iter().map(|e| pool.at(e.address()));
        let router = Router::new(seeds.collect());
        Client { inner: Inner::new(config, pool, router) }
    }

    /// Creates a client and fetches the cluster map. All endpoints are asked in parallel, and the
    /// first to answer is used. A cluster that is still forming has no map yet; then the calls of
    /// the client wait for it.
    ///
    /// # Errors
    /// When no endpoint answers in time; [`Error::Invalid`] when the endpoints belong to several
    /// clusters.
    pub async fn connect(config: ClientConfig) -> Result<Client> {
        let client = Client::new(config);
        let timeout = client.inner.config.timeout;
        client.inner.fetch_map(Instant::now() + timeout).await?;
        Ok(client)
    }

    /// Reads a key.
    pub fn get(&self, key: impl Into<Bytes>) -> Get<'_> {
        Get::new(&self.inner, key.into())
    }

    /// Reads many keys of any shards with one call. Each key has a result of its own, in the order
    /// of the keys.
    pub fn multi_get<K: Into<Bytes>>(&self, keys: impl IntoIterator<Item = K>) -> MultiGet<'_> {
        MultiGet::new(&self.inner, keys.into_iter().map(Into::into).collect())
    }

    /// Writes a key.
    pub fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Put<'_> {
        Put::new(&self.inner, key.into(), value.into())
    }

    /// Removes a key.
    pub fn delete(&self, key: impl Into<Bytes>) -> Delete<'_> {
        Delete::new(&self.inner, key.into())
    }

    /// Writes a key if it is as expected. The expectation is set with one of `if_absent`,
    /// `if_revision` and
    /// `if_value`.
    pub fn compare_and_set(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> CompareAndSet<'_> {
        CompareAndSet::new(&self.inner, key.into(), value.into())
    }

    /// Adds to the number at a key; an absent key counts as 0.
    pub fn increment(&self, key: impl Into<Bytes>, delta: i64) -> Increment<'_> {
        Increment::new(&self.inner, key.into(), delta)
    }

    /// Applies several operations on keys of one shard, all or none.
    pub fn batch(&self) -> Batch<'_> {
        Batch::new(&self.inner)
    }

    /// Reads keys in order over all shards.
    pub fn scan(&self) -> Scan<'_> {
        Scan::new(&self.inner)
    }

    /// Opens a session for the caller's own use with `write_id`. Writes open sessions by
    /// themselves.
    ///
    /// # Errors
    /// [`Error::NotApplied`] when no node answers in time.
    pub async fn open_session(&self) -> Result<OpenSessionResponse> {
        let request = OpenSessionRequest::default();
        let opened = self.inner.open_session(request, None, self.inner.deadline(None)).await;
        opened.map(|(session, _)| session)
    }

    /// Settles a write of unknown outcome: returns its stored answer, or guarantees that it is
    /// never applied. Idempotent.
    ///
    /// # Errors
    /// [`Error::Unknown`] when no node answers in time, or the session has expired: the outcome of
    /// the write stays unknown. [`Error::Invalid`] when there can be no such write.
    pub async fn cancel(&self, key: impl Into<Bytes>, write: &WriteId) -> Result<CancelResponse> {
        let request = CancelRequest {
            key: key.into(),
            session_id: write.session.clone(),
            sequence: write.sequence,
            keyspace: self.inner.config.keyspace.clone(),
            ..CancelRequest::default()
        };
        let options = CallOptions {
            route: Route::Leader,
            class: RetryClass::Sessioned,
            session: SessionMode::Given(write.clone()),
            slot: None,
            deadline: self.inner.deadline(None),
        };
        self.inner.execute(request, options).await
    }

    /// The session token of everything this client has seen. With it, session reads of another
    /// client see at least as much.
    #[must_use]
    pub fn token(&self) -> SessionToken {
        self.inner.tokens.whole()
    }

    /// Makes session reads see at least what this token names.
    pub fn absorb_token(&self, token: &SessionToken) {
        self.inner.tokens.note(token);
    }

    /// Resets the session token, after the cluster's history changed.
    pub fn reset_token(&self) {
        self.inner.tokens.reset();
    }

    /// The cluster map that this client knows, without a request; none before the first was
    /// fetched.
    #[must_use]
    pub fn known_map(&self) -> Option<ClusterMap> {
        let table = self.inner.router.table();
        (table.map.epoch != 0).then(|| table.map.clone())
    }

    /// Checks that all endpoints that answered are nodes of one cluster. Other calls check it
    /// themselves; this is for callers that only use [`Client::status`]. Sends no request.
    ///
    /// # Errors
    /// [`Error::Invalid`] with a sentence that names the endpoints of each cluster.
    pub fn check_endpoints(&self) -> Result<()> {
        self.inner.clusters.check().map_err(|error| Error::Invalid(Box::new(error.detail(""))))
    }

    /// The nodes that this client could not reach at their advertised address at the last attempt,
    /// with that address, in order of their ids. Calls to them go through the given endpoints,
    /// which forward. A given endpoint itself is never among them. Sends no request.
    #[must_use]
    pub fn unreachable_nodes(&self) -> Vec<(u64, String)> {
        let unreachable = self.inner.router.unreachable().into_iter();
        unreachable.map(|(id, connection)| (id, connection.address().to_owned())).collect()
    }
}
