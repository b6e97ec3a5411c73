//! The inside of a client: what all its calls share, and how it learns the cluster map.

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
use crate::clusters::Clusters;
use crate::config::ClientConfig;
use crate::error::{Detail, Error, Result};
use crate::pool::{Connection, Pool};
use crate::request_id::RequestIds;
use crate::router::Router;
use crate::session::Sessions;
use crate::token::Tokens;

/// How long one node may take to send its map.
const MAP_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the other endpoints may take to name their cluster once the first map is there.
const CLUSTERS_TIMEOUT: Duration = Duration::from_millis(50);

/// How long an attempt to learn the first map is not repeated.
const MAP_PAUSE: Duration = Duration::from_millis(500);

/// What all calls of a client share.
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

/// The cluster client of one connection with this crate's limits.
pub(crate) fn cluster(channel: Channel) -> ClusterClient<Channel> {
    ClusterClient::new(channel).max_decoding_message_size(DECODE_BYTES_MAX)
}

impl Inner {
    /// What a client that knows no map yet has.
    pub fn new(config: ClientConfig, pool: Pool, router: Router) -> Arc<Inner> {
        Arc::new_cyclic(|me| Inner {
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
        })
    }

    /// When a call that begins now is over, by its own timeout or the client's.
    pub fn deadline(&self, timeout: Option<Duration>) -> Instant {
        Instant::now() + timeout.unwrap_or(self.config.timeout)
    }

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
                        until.get_or_insert_with(|| Instant::now() + CLUSTERS_TIMEOUT);
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
) -> Result<quorate_proto::v1::GetMapResponse, AttemptError> {
    let deadline = deadline.min(Instant::now() + MAP_TIMEOUT + connection.connect_patience());
    let ask = async {
        let (channel, generation) =
            connection.channel().await.map_err(AttemptError::unreachable)?;
        let answer = cluster(channel).get_map(GetMapRequest { newer_than }).await;
        answer.map_err(|status| {
            let lost = AttemptError::of_status(&status);
            if lost.broken {
                connection.broken(generation);
            }
            lost
        })
    };
    match tokio::time::timeout_at(deadline.into(), ask).await {
        Ok(result) => result.map(tonic::Response::into_inner),
        Err(_) => Err(AttemptError::silent(connection.address(), MAP_TIMEOUT)),
    }
}
