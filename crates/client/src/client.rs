//! The client itself: what a caller can ask of it.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt;
use quorate_proto::v1::{
    CancelRequest, CancelResponse, ClusterMap, GetResponse, OpenSessionRequest,
    OpenSessionResponse, ReadLevel, SessionToken,
};

use crate::call::{CallOptions, SessionMode};
use crate::config::ClientConfig;
use crate::error::{Error, Result};
use crate::inner::Inner;
use crate::pool::Pool;
use crate::request::{Batch, CompareAndSet, Delete, Get, Increment, Put};
use crate::retry::RetryClass;
use crate::router::{Route, Router};
use crate::scan::Scan;
use crate::write_id::WriteId;

/// A client of one cluster. Cheap to clone, and all clones share connections, sessions and what was seen;
/// made to be used by many tasks at once.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

impl Client {
    /// A client that asks for the map at its first call.
    #[must_use]
    pub fn new(config: ClientConfig) -> Client {
        let pool = Pool::new(config.connect_timeout);
        let seeds = config.endpoints.iter().map(|e| pool.at(e.address()));
        let router = Router::new(seeds.collect());
        Client { inner: Inner::new(config, pool, router) }
    }

    /// A client that has the map: all endpoints are asked for it at once, and one that answers is enough.
    /// A cluster that is still forming has none; the client is ready to wait for it with its calls.
    ///
    /// # Errors
    /// When no endpoint answers in time; [`Error::Invalid`] when they are of several clusters.
    pub async fn connect(config: ClientConfig) -> Result<Client> {
        let client = Client::new(config);
        let patience = client.inner.config.timeout;
        client.inner.fetch_map(Instant::now() + patience).await?;
        Ok(client)
    }

    /// Reads a key.
    pub fn get(&self, key: impl Into<Bytes>) -> Get<'_> {
        Get::new(&self.inner, key.into())
    }

    /// Writes a key.
    pub fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Put<'_> {
        Put::new(&self.inner, key.into(), value.into())
    }

    /// Removes a key.
    pub fn delete(&self, key: impl Into<Bytes>) -> Delete<'_> {
        Delete::new(&self.inner, key.into())
    }

    /// Writes a key if it is as expected: say of what with one of `absent`, `revision`, `value`.
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

    /// Several operations on keys of one shard, all or none.
    pub fn batch(&self) -> Batch<'_> {
        Batch::new(&self.inner)
    }

    /// Reads keys in order over all shards.
    pub fn scan(&self) -> Scan<'_> {
        Scan::new(&self.inner)
    }

    /// Opens a session for the caller's own use with `write_id`. Writes do so by themselves.
    ///
    /// # Errors
    /// [`Error::NotApplied`] when no node answers in time.
    pub async fn open_session(&self) -> Result<OpenSessionResponse> {
        let request = OpenSessionRequest::default();
        let opened = self.inner.open_session(request, None, self.inner.deadline(None)).await;
        opened.map(|(session, _)| session)
    }

    /// Settles a write whose outcome is unknown: its remembered answer, or the certainty that it is never
    /// applied. Asking twice does no harm.
    ///
    /// # Errors
    /// [`Error::Unknown`] when no answer is had in time, or the session is over: the write is as unknown as
    /// before. [`Error::Invalid`] when there can be no such write.
    pub async fn cancel(&self, key: impl Into<Bytes>, write: &WriteId) -> Result<CancelResponse> {
        let request = CancelRequest {
            key: key.into(),
            session_id: write.session.clone(),
            sequence: write.sequence,
            keyspace: self.inner.config.keyspace.clone(),
            route: None,
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

    /// What this client has seen: kept by a caller, it makes session reads of another client see as much.
    #[must_use]
    pub fn token(&self) -> SessionToken {
        self.inner.tokens.whole()
    }

    /// Makes session reads see at least what a kept token names.
    pub fn absorb_token(&self, token: &SessionToken) {
        self.inner.tokens.note(token);
    }

    /// Forgets what was seen, after the cluster's history changed.
    pub fn reset_token(&self) {
        self.inner.tokens.reset();
    }

    /// The cluster map as this client knows it, without asking anybody; none before one was learnt.
    #[must_use]
    pub fn known_map(&self) -> Option<ClusterMap> {
        let table = self.inner.router.table();
        (table.map.epoch != 0).then(|| table.map.clone())
    }

    /// Whether all endpoints that answered are nodes of one cluster, as far as this client was told. Calls
    /// fail by themselves if not; this is for those who only ask for [`Client::status`]. Asks nobody.
    ///
    /// # Errors
    /// [`Error::Invalid`] with a sentence that names the odd one out.
    pub fn check_endpoints(&self) -> Result<()> {
        self.inner.clusters.check().map_err(|lost| Error::Invalid(Box::new(lost.detail(""))))
    }

    /// The nodes that could not be reached at the address the cluster advertises for them when this client
    /// last tried, and that address, in order of their ids. Calls to them go through the given endpoints,
    /// which forward; a given endpoint itself is never among them. Asks nobody.
    #[must_use]
    pub fn unreachable_nodes(&self) -> Vec<(u64, String)> {
        let lost = self.inner.router.unreachable().into_iter();
        lost.map(|(id, connection)| (id, connection.address().to_owned())).collect()
    }
}

/// How many gets of one [`Client::multi_get`] are under way at once.
const MULTI_GET_AT_ONCE: usize = 64;

impl Client {
    /// Reads many keys, of any shards, each by itself; the results are in the order of the keys. With
    /// `level` none the client's own level holds.
    pub async fn multi_get<K: Into<Bytes>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        level: Option<ReadLevel>,
    ) -> Vec<Result<GetResponse>> {
        let level = level.unwrap_or(self.inner.config.level);
        let gets: Vec<_> =
            keys.into_iter().map(|key| self.get(key).level(level).into_future()).collect();
        futures::stream::iter(gets).buffered(MULTI_GET_AT_ONCE).collect().await
    }
}
