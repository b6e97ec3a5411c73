//! Shared state of a client, and the fetching of the cluster map.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use quorate_proto::limits::DECODE_BYTES_MAX;
use quorate_proto::v1::GetMapRequest;
use quorate_proto::v1::cluster_client::ClusterClient;
use tonic::transport::Channel;

use crate::attempt::AttemptError;
use crate::budget::RetryBudget;
use crate::clusters::Clusters;
use crate::config::ClientConfig;
use crate::error::{Detail, Error, Result};
use crate::pool::{Connection, Pool};
use crate::request_id::RequestIds;
use crate::router::Router;
use crate::session::Sessions;
use crate::token::Tokens;

/// Timeout of one node's answer to a request for the map.
const MAP_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for the other endpoints to name their cluster after the first map has arrived.
const CLUSTERS_TIMEOUT: Duration = Duration::from_millis(50);

/// Minimum time between two attempts to fetch the first map.
const MAP_PAUSE: Duration = Duration::from_millis(500);

/// State that all calls of a client share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub config: ClientConfig,
    pub pool: Pool,
    pub router: Router,
    pub sessions: Sessions,
    pub tokens: Tokens,
    pub request_ids: RequestIds,
    pub clusters: Clusters,
    pub retries: RetryBudget,
    /// Held while one task fetches the map, so that others wait for it. The value is the time of
    /// the last attempt.
    fetching: tokio::sync::Mutex<Option<Instant>>,
    /// Whether a background task is fetching the map.
    refreshing: AtomicBool,
    me: Weak<Inner>,
}

/// A `Cluster` client of one connection with this crate's limits.
pub(crate) fn cluster(channel: Channel) -> ClusterClient<Channel> {
    ClusterClient::new(channel).max_decoding_message_size(DECODE_BYTES_MAX)
}

impl Inner {
    /// The state of a client that has no map yet.
    pub fn new(config: ClientConfig, pool: Pool, router: Router) -> Arc<Inner> {
        Arc::new_cyclic(|me| Inner {
            config,
            pool,
            router,
            sessions: Sessions::default(),
            tokens: Tokens::default(),
            request_ids: RequestIds::new(),
            clusters: Clusters::default(),
            retries: RetryBudget::new(),
            fetching: tokio::sync::Mutex::default(),
            refreshing: AtomicBool::new(false),
            me: me.clone(),
        })
    }

    /// The deadline of a call that begins now, by its own timeout or else the client's.
    pub fn deadline(&self, timeout: Option<Duration>) -> Instant {
        Instant::now() + timeout.unwrap_or(self.config.timeout)
    }

    /// Fetches the map if there is none and no recent attempt failed. A call continues without a
    /// map, because any node can route it.
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
            // A failure is reported by the call itself, which asks the same endpoints.
            let _ = self.ask_for_map(deadline).await;
            *last = Some(Instant::now());
        }
    }

    /// Fetches the map now, for a call that was rejected because its map is old.
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

    /// Fetches the map, or returns why it could not.
    pub async fn fetch_map(&self, deadline: Instant) -> Result<()> {
        let mut last = self.fetching.lock().await;
        let result = self.ask_for_map(deadline).await;
        *last = Some(Instant::now());
        result
    }

    /// Fetches the map in the background if `epoch` is newer than the known map.
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

    /// Asks all nodes in parallel and stops at the first map that is newer than the known one. If
    /// no map is known yet, it waits up to [`CLUSTERS_TIMEOUT`] longer for the clusters of the
    /// other endpoints.
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
                // Do not wait for slower endpoints.
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
                        tracing::warn!(address, "map: of another cluster, ignored");
                    } else if cluster.is_some() && newer_than != 0 {
                        return Ok(());
                    }
                    if let Some(cluster) = cluster {
                        clusters.push((address, cluster));
                        until.get_or_insert_with(|| Instant::now() + CLUSTERS_TIMEOUT);
                    }
                }
                Err(error) => last = Some(error),
            }
        }
        if newer_than == 0 {
            self.clusters.note(clusters.iter().map(|(address, cluster)| (*address, cluster)));
            if let Err(error) = self.clusters.check() {
                return Err(Error::Invalid(Box::new(error.detail(""))));
            }
        }
        match last {
            Some(error) if !answered => {
                let detail = error.detail("");
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
) -> Result<quorate_proto::v1::GetMapResponse, AttemptError> {
    let deadline = deadline.min(Instant::now() + MAP_TIMEOUT + connection.connect_timeout());
    let ask = async {
        let (channel, generation) =
            connection.channel().await.map_err(AttemptError::unreachable)?;
        let answer =
            cluster(channel).get_map(GetMapRequest { newer_than, ..Default::default() }).await;
        answer.map_err(|status| {
            let error = AttemptError::of_status(&status);
            if error.broken {
                connection.broken(generation);
            }
            error
        })
    };
    match tokio::time::timeout_at(deadline.into(), ask).await {
        Ok(result) => result.map(tonic::Response::into_inner),
        Err(_) => Err(AttemptError::silent(connection.address(), MAP_TIMEOUT)),
    }
}
