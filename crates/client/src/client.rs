//! The client itself: what all calls share, and how it learns the cluster map.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use quorate_proto::limits::DECODE_BYTES_MAX;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::{
    CancelRequest, CancelResponse, ClusterMap, GetMapRequest, OpenSessionRequest,
    OpenSessionResponse, SessionToken,
};
use tonic::transport::Channel;

use crate::call::{How, Identity, RequestIds};
use crate::clusters::Clusters;
use crate::config::ClientConfig;
use crate::error::{Detail, Error, Lost, Result, WriteId};
use crate::pool::{Connection, Pool};
use crate::request::{Batch, CompareAndSet, Delete, Get, Increment, Put};
use crate::retry::Kind;
use crate::router::{Router, Want};
use crate::scan::Scan;
use crate::session::Sessions;
use crate::token::Tokens;

/// How long one node may take to send its map.
const MAP_PATIENCE: Duration = Duration::from_secs(1);

/// How long the other endpoints may take to name their cluster once the first map is there.
const CLUSTERS_PATIENCE: Duration = Duration::from_millis(50);

/// How long an attempt to learn the first map is not repeated.
const MAP_PAUSE: Duration = Duration::from_millis(500);

/// A client of one cluster. Cheap to clone, and all clones share connections, sessions and what was seen;
/// made to be used by many tasks at once.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub config: ClientConfig,
    pub pool: Pool,
    pub router: Router,
    pub sessions: Sessions,
    pub tokens: Tokens,
    pub request_ids: RequestIds,
    pub clusters: Clusters,
    /// Held while one task fetches the map, so that others wait for it; says when that was last.
    fetching: tokio::sync::Mutex<Option<Instant>>,
    /// A task in the background fetches the map.
    refreshing: AtomicBool,
    me: Weak<Inner>,
}

impl Client {
    /// A client that asks for the map at its first call.
    #[must_use]
    pub fn new(config: ClientConfig) -> Client {
        let pool = Pool::new(config.connect_timeout);
        let seeds = config.endpoints.iter().map(|e| pool.at(e.address()));
        let router = Router::new(seeds.collect());
        let inner = Arc::new_cyclic(|me| Inner {
            config,
            pool,
            router,
            sessions: Sessions::default(),
            tokens: Tokens::default(),
            request_ids: RequestIds::new(),
            clusters: Clusters::default(),
            fetching: tokio::sync::Mutex::default(),
            refreshing: AtomicBool::new(false),
            me: me.clone(),
        });
        Client { inner }
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
        Get::new(self, key.into())
    }

    /// Writes a key.
    pub fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Put<'_> {
        Put::new(self, key.into(), value.into())
    }

    /// Removes a key.
    pub fn delete(&self, key: impl Into<Bytes>) -> Delete<'_> {
        Delete::new(self, key.into())
    }

    /// Writes a key if it is as expected: say of what with one of `absent`, `revision`, `value`.
    pub fn compare_and_set(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> CompareAndSet<'_> {
        CompareAndSet::new(self, key.into(), value.into())
    }

    /// Adds to the number at a key; an absent key counts as 0.
    pub fn increment(&self, key: impl Into<Bytes>, delta: i64) -> Increment<'_> {
        Increment::new(self, key.into(), delta)
    }

    /// Several operations on keys of one shard, all or none.
    pub fn batch(&self) -> Batch<'_> {
        Batch::new(self)
    }

    /// Reads keys in order over all shards.
    pub fn scan(&self) -> Scan<'_> {
        Scan::new(self)
    }

    /// Opens a session for the caller's own use with `identity`. Writes do so by themselves.
    ///
    /// # Errors
    /// [`Error::NotApplied`] when no node answers in time.
    pub async fn open_session(&self) -> Result<OpenSessionResponse> {
        let request = OpenSessionRequest::default();
        let opened = self.inner.open_session(request, None, self.deadline(None)).await;
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
        let how = How {
            want: Want::Leader,
            kind: Kind::Sessioned,
            identity: Identity::Given(write.clone()),
            slot: None,
            deadline: self.deadline(None),
        };
        self.inner.execute(request, how).await
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

    pub(crate) fn deadline(&self, timeout: Option<Duration>) -> Instant {
        Instant::now() + timeout.unwrap_or(self.inner.config.timeout)
    }
}

/// The cluster client of one connection with this crate's limits.
pub(crate) fn cluster(channel: Channel) -> ClusterClient<Channel> {
    ClusterClient::new(channel).max_decoding_message_size(DECODE_BYTES_MAX)
}

impl Inner {
    /// Makes sure that a map was asked for once. A call goes on without one: any node routes it.
    pub async fn need_map(&self, deadline: Instant) {
        if self.router.epoch() != 0 {
            return;
        }
        let Ok(mut last) = tokio::time::timeout_at(deadline.into(), self.fetching.lock()).await
        else {
            return;
        };
        let paused = last.is_some_and(|at| at.elapsed() < MAP_PAUSE);
        if self.router.epoch() == 0 && !paused {
            // That it failed shows in the call itself, which asks the same endpoints.
            let _ = self.ask_for_map(deadline).await;
            *last = Some(Instant::now());
        }
    }

    /// Fetches the map now, for a call that was told its own is old.
    pub async fn refresh_map(&self, deadline: Instant) {
        let epoch = self.router.epoch();
        let Ok(mut last) = tokio::time::timeout_at(deadline.into(), self.fetching.lock()).await
        else {
            return;
        };
        if self.router.epoch() == epoch {
            let _ = self.ask_for_map(deadline).await;
            *last = Some(Instant::now());
        }
    }

    /// Fetches the map and says why not.
    pub async fn fetch_map(&self, deadline: Instant) -> Result<()> {
        let mut last = self.fetching.lock().await;
        let result = self.ask_for_map(deadline).await;
        *last = Some(Instant::now());
        result
    }

    /// Fetches the map in the background when somebody has a newer one.
    pub fn heard_epoch(&self, epoch: u64) {
        if epoch <= self.router.epoch() || self.refreshing.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(me) = self.me.upgrade() else {
            return;
        };
        tokio::spawn(async move {
            me.refresh_map(Instant::now() + me.config.timeout).await;
            me.refreshing.store(false, Ordering::Release);
        });
    }

    /// Asks everybody at once and is content with the first map that is newer. Before any map is known,
    /// the others may say for a moment longer to which cluster they belong.
    async fn ask_for_map(&self, deadline: Instant) -> Result<()> {
        let newer_than = self.router.epoch();
        let everyone = self.router.everyone();
        let mut asked: FuturesUnordered<_> = everyone
            .iter()
            .map(|(_, connection)| async move {
                (connection.address(), get_map(connection, newer_than, deadline).await)
            })
            .collect();
        let mut answered = false;
        let mut last = None;
        let mut clusters = Vec::new();
        let mut until: Option<Instant> = None;
        loop {
            let next = match until {
                None => asked.next().await,
                // Who is later than this is not waited for.
                Some(until) => {
                    tokio::time::timeout_at(until.into(), asked.next()).await.unwrap_or(None)
                }
            };
            let Some((address, result)) = next else { break };
            match result {
                Ok(answer) => {
                    answered = true;
                    let cluster = answer.map.as_ref().map(|map| map.cluster_id.clone());
                    if !self.router.learn_map(answer, &self.pool) {
                        tracing::warn!(
                            "an endpoint belongs to another cluster; its map is ignored"
                        );
                    } else if cluster.is_some() && newer_than != 0 {
                        return Ok(());
                    }
                    if let Some(cluster) = cluster {
                        clusters.push((address, cluster));
                        until.get_or_insert_with(|| Instant::now() + CLUSTERS_PATIENCE);
                    }
                }
                Err(lost) => last = Some(lost),
            }
        }
        if newer_than == 0 {
            self.clusters.note(clusters.iter().map(|(address, cluster)| (*address, cluster)));
            if let Err(lost) = self.clusters.check() {
                return Err(Error::Invalid(Box::new(lost.detail(""))));
            }
        }
        match last {
            Some(lost) if !answered => {
                let detail = lost.detail("");
                let asked: Vec<_> = everyone.iter().map(|(_, c)| c.address()).collect();
                Err(Error::NotApplied(Box::new(Detail {
                    message: format!("none of {} answers: {}", asked.join(", "), detail.message),
                    ..detail
                })))
            }
            _ => Ok(()),
        }
    }
}

async fn get_map(
    connection: &Arc<Connection>,
    newer_than: u64,
    deadline: Instant,
) -> Result<quorate_proto::v1::GetMapResponse, Lost> {
    let deadline = deadline.min(Instant::now() + MAP_PATIENCE + connection.connect_patience());
    let ask = async {
        let (channel, generation) = connection.channel().await.map_err(Lost::unreachable)?;
        let answer = cluster(channel).get_map(GetMapRequest { newer_than }).await;
        answer.map_err(|status| {
            let lost = Lost::of_status(&status);
            if lost.broken {
                connection.broken(generation);
            }
            lost
        })
    };
    match tokio::time::timeout_at(deadline.into(), ask).await {
        Ok(result) => result.map(tonic::Response::into_inner),
        Err(_) => Err(Lost::silent(connection.address(), MAP_PATIENCE)),
    }
}
