//! Calls about the cluster: map, location of keys, status, leadership.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_proto::hash;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::{
    ClusterMap, GetInfoRequest, GetInfoResponse, GetStatusRequest, GetStatusResponse,
    TransferLeaderRequest, TransferLeaderResponse,
};
use tonic::transport::Channel;
use tonic::{Response, Status};

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
        let deadline = Instant::now() + timeout;
        if self.inner.router.epoch() == 0 {
            self.inner.need_map(deadline).await;
        }
        // Fetching the map may have used up the timeout; each node has its own.
        let deadline = Instant::now() + timeout;
        let everyone = self.inner.router.everyone();
        let asked = everyone.iter().map(|(id, connection)| async move {
            let ask = |mut c: ClusterClient<Channel>| async move {
                c.get_status(GetStatusRequest::default()).await
            };
            let status = ask_node(connection, deadline, ask).await;
            NodeStatus {
                node_id: id.or(status.as_ref().ok().map(|s| s.node_id)),
                address: connection.address().to_owned(),
                status,
            }
        });
        let mut all = futures::future::join_all(asked).await;
        let given = everyone.iter().zip(&all).filter(|((_, c), _)| self.inner.router.is_given(c));
        self.inner.clusters.note(given.filter_map(|(_, node)| {
            Some((node.address.as_str(), &node.status.as_ref().ok()?.cluster_id))
        }));
        // A given endpoint may be a node of the map under another address: keep one row per node.
        all.sort_by_key(|n| (n.node_id.unwrap_or(u64::MAX), n.status.is_err()));
        all.dedup_by(|b, a| a.node_id.is_some() && a.node_id == b.node_id);
        let unknown_answered = |n: &NodeStatus| n.node_id.is_some() || n.status.is_err();
        all.retain(unknown_answered);
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

    /// Transfers the leadership of a shard to its replica on a node; 0 = to the preferred leader.
    ///
    /// # Errors
    /// [`Error::Refused`] when the node holds no replica of it, or this version does not offer it.
    pub async fn transfer_leader(
        &self,
        shard: u64,
        to_node: u64,
    ) -> Result<TransferLeaderResponse> {
        let deadline = self.inner.deadline(None);
        self.inner.need_map(deadline).await;
        self.check_endpoints()?;
        let everyone = self.inner.router.everyone();
        let mut last = None;
        for (_, connection) in &everyone {
            let ask = |mut c: ClusterClient<Channel>| async move {
                let to_node_id = to_node;
                c.transfer_leader(TransferLeaderRequest { shard, to_node_id, ..Default::default() })
                    .await
            };
            match ask_node(connection, deadline, ask).await {
                Err(error @ Error::NotApplied(_)) => last = Some(error),
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
