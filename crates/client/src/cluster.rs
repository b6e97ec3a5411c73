//! Calls about the cluster: map, location of keys, status, leadership.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_proto::hash;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::{
    ClusterMap, GetInfoRequest, GetInfoResponse, GetStatusRequest, GetStatusResponse, Reason,
    TransferLeaderRequest, TransferLeaderResponse,
};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::attempt::AttemptError;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::inner::cluster;
use crate::pool::Connection;

/// The status of one node, or why it did not report one.
#[derive(Debug)]
pub struct NodeStatus {
    /// The node's id; none if only an endpoint is known and it did not answer.
    pub node_id: Option<u64>,
    /// The address of the request: `host:port`.
    pub address: String,
    /// Its status, or why there is none.
    pub status: Result<GetStatusResponse>,
}

/// Version, limits and defaults of one node, or why it did not report them.
#[derive(Debug)]
pub struct NodeInfo {
    /// The node's id; none if only an endpoint is known and it did not answer.
    pub node_id: Option<u64>,
    /// The address of the request: `host:port`.
    pub address: String,
    /// What it reports, or why it does not.
    pub info: Result<GetInfoResponse>,
}

/// The location of a key: its shard and the replicas.
#[derive(Clone, Debug)]
pub struct Location {
    /// The part of the key that is hashed.
    pub tag: Bytes,
    /// The hash of the key.
    pub hash: u64,
    /// The shard that owns it.
    pub shard: u64,
    /// The first hash the shard owns, inclusive.
    pub first: u64,
    /// The last hash the shard owns, inclusive.
    pub last: u64,
    /// The shard's epoch.
    pub shard_epoch: u64,
    /// The epoch of the map this is from.
    pub map_epoch: u64,
    /// The shard's replicas, the preferred leader first.
    pub replicas: Vec<ReplicaLocation>,
    /// The node of the leader as last reported to this client; 0 = unknown.
    pub leader_node_id: u64,
}

/// The location of one replica.
#[derive(Clone, Debug)]
pub struct ReplicaLocation {
    /// The id of the replica.
    pub replica_id: u64,
    /// The id of its node.
    pub node_id: u64,
    /// The address of that node for clients; empty = the map has none.
    pub address: String,
}

impl Client {
    /// Fetches the cluster map and returns it.
    ///
    /// # Errors
    /// [`Error::NotApplied`] when no node answers, or the cluster is still forming.
    pub async fn map(&self) -> Result<ClusterMap> {
        self.inner.fetch_map(self.inner.deadline(None)).await?;
        self.known_map().ok_or_else(|| {
            let message = "the cluster is still forming and has no map yet".into();
            AttemptError::unreachable(message).into_error("")
        })
    }

    /// Locates a key, by a map fetched now.
    ///
    /// # Errors
    /// As [`Client::map`].
    pub async fn locate(&self, key: impl Into<Bytes>) -> Result<Location> {
        let key = key.into();
        let map = self.map().await?;
        let table = self.inner.router.table();
        let tag = key.slice_ref(hash::hash_tag(&key));
        let Some(position) = table.shard_of(&key) else {
            let message = "the cluster's map has no shard for this key".into();
            return Err(AttemptError::unreachable(message).into_error(""));
        };
        let shard = table.shard(position);
        let address = |node: u64| {
            let node = map.nodes.iter().find(|n| n.id == node);
            node.map_or_else(String::new, |n| n.client_address.clone())
        };
        let replicas = shard.replicas.iter().map(|r| ReplicaLocation {
            replica_id: r.replica_id,
            node_id: r.node_id,
            address: address(r.node_id),
        });
        Ok(Location {
            hash: hash::key_hash(&key),
            tag,
            shard: shard.id,
            first: shard.first,
            last: shard.last,
            shard_epoch: shard.epoch,
            map_epoch: table.map.epoch,
            replicas: replicas.collect(),
            leader_node_id: table.known_leader(position),
        })
    }

    /// Asks all known nodes for their status in parallel, with `timeout` for each. Needs neither a
    /// quorum nor a session nor a map. Nodes are in order of their ids, unknown ones last.
    pub async fn status(&self, timeout: Duration) -> Vec<NodeStatus> {
        let ask = |mut c: ClusterClient<Channel>| async move {
            c.get_status(GetStatusRequest::default()).await
        };
        let about = |status: &GetStatusResponse| (status.node_id, status.cluster_id.clone());
        let all = self.ask_everyone(timeout, ask, about).await;
        let named = |(node_id, address, status)| NodeStatus { node_id, address, status };
        all.into_iter().map(named).collect()
    }

    /// Asks all known nodes for their version, limits and defaults, as [`Client::status`] does.
    pub async fn infos(&self, timeout: Duration) -> Vec<NodeInfo> {
        let ask = |mut c: ClusterClient<Channel>| async move {
            c.get_info(GetInfoRequest::default()).await
        };
        let about = |info: &GetInfoResponse| (info.node_id, info.cluster_id.clone());
        let all = self.ask_everyone(timeout, ask, about).await;
        let named = |(node_id, address, info)| NodeInfo { node_id, address, info };
        all.into_iter().map(named).collect()
    }

    /// Asks all known nodes one thing in parallel. Of each: its id, its address, and its answer, of
    /// which `about` says whose it is and of which cluster.
    async fn ask_everyone<T, F>(
        &self,
        timeout: Duration,
        ask: impl Fn(ClusterClient<Channel>) -> F,
        about: impl Fn(&T) -> (u64, Bytes),
    ) -> Vec<(Option<u64>, String, Result<T>)>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + timeout;
        if self.inner.router.epoch() == 0 {
            self.inner.need_map(deadline).await;
        }
        // Fetching the map may have used up the timeout; each node has its own.
        let deadline = Instant::now() + timeout;
        let everyone = self.inner.router.everyone();
        let ask = &ask;
        let asked = everyone.iter().map(|(id, connection)| async move {
            (*id, connection, ask_node(connection, deadline, ask).await)
        });
        let answers = futures::future::join_all(asked).await;
        let clusters: Vec<(&str, Bytes)> = answers
            .iter()
            .filter(|(_, connection, _)| self.inner.router.is_given(connection))
            .filter_map(|(_, connection, answer)| {
                Some((connection.address(), about(answer.as_ref().ok()?).1))
            })
            .collect();
        self.inner.clusters.note(clusters.iter().map(|(address, id)| (*address, id)));
        let named = |(id, connection, answer): (Option<u64>, &Arc<Connection>, Result<T>)| {
            let id = id.or(answer.as_ref().ok().map(|answer| about(answer).0));
            (id, connection.address().to_owned(), answer)
        };
        let mut all: Vec<_> = answers.into_iter().map(named).collect();
        // A given endpoint may be a node of the map under another address: keep one row per node.
        all.sort_by_key(|(id, _, answer)| (id.unwrap_or(u64::MAX), answer.is_err()));
        all.dedup_by(|b, a| a.0.is_some() && a.0 == b.0);
        all.retain(|(id, _, answer)| id.is_some() || answer.is_err());
        all
    }

    /// The version, limits and defaults of a node, from the first that answers.
    ///
    /// # Errors
    /// [`Error::NotApplied`] when none answers in time.
    pub async fn info(&self) -> Result<GetInfoResponse> {
        let deadline = self.inner.deadline(None);
        let everyone = self.inner.router.everyone();
        let asked = everyone.iter().map(|(_, connection)| {
            let ask = |mut c: ClusterClient<Channel>| async move {
                c.get_info(GetInfoRequest::default()).await
            };
            Box::pin(ask_node(connection, deadline, ask))
        });
        futures::future::select_ok(asked).await.map(|(info, _)| info)
    }

    /// Transfers the leadership of a shard to its replica on a node, and returns when that leads; 0
    /// = to the preferred leader.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is no such shard, or no replica of it on the node;
    /// [`Error::NotApplied`] when the shard has no leader, or the node could not take over in time.
    pub async fn transfer_leader(
        &self,
        shard: u64,
        to_node: u64,
    ) -> Result<TransferLeaderResponse> {
        let deadline = self.inner.deadline(None);
        self.inner.need_map(deadline).await;
        self.check_endpoints()?;
        let mut everyone = self.inner.router.everyone();
        let leader = self.inner.router.table().leader_of(shard);
        everyone.sort_by_key(|(id, _)| id.is_none() || *id != leader);
        let mut last = None;
        for (at, (_, connection)) in everyone.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            // A node that is stopped never answers, and another one may.
            let share = if at + 1 < everyone.len() { left / 2 } else { left };
            let ask = |mut c: ClusterClient<Channel>| async move {
                let to_node_id = to_node;
                let message = TransferLeaderRequest { shard, to_node_id, ..Default::default() };
                let mut request = Request::new(message);
                request.set_timeout(share);
                c.transfer_leader(request).await
            };
            match ask_node(connection, Instant::now() + share, ask).await {
                Err(error @ Error::NotApplied(_))
                    if error.detail().reason != Some(Reason::NotTransferred) =>
                {
                    last = Some(error);
                }
                // The leader has said why not; another node would only ask it again.
                other => return other,
            }
        }
        Err(last
            .unwrap_or_else(|| AttemptError::unreachable("no node is known".into()).into_error("")))
    }
}

/// Asks one node one thing.
async fn ask_node<T, F>(
    connection: &Arc<Connection>,
    deadline: Instant,
    ask: impl FnOnce(ClusterClient<Channel>) -> F,
) -> Result<T>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let begun = Instant::now();
    let asked = async {
        let (channel, generation) =
            connection.channel().await.map_err(AttemptError::unreachable)?;
        ask(cluster(channel)).await.map_err(|status| {
            let error = AttemptError::of_status(&status);
            if error.broken {
                connection.broken(generation);
            }
            error
        })
    };
    let result = match tokio::time::timeout_at(deadline.into(), asked).await {
        Ok(result) => result.map(Response::into_inner),
        Err(_) => Err(AttemptError::silent(connection.address(), begun.elapsed())),
    };
    result.map_err(|error| error.into_error(""))
}
