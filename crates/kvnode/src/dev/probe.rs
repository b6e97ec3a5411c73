//! What the nodes of a dev cluster say of themselves.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::{GetStatusRequest, GetStatusResponse, NodePhase, ReplicaRole};
use tonic::transport::Endpoint;

/// How long one node may take to answer; it is on this machine.
const TIMEOUT: Duration = Duration::from_secs(1);

/// One node's answer, reduced to what dev shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Report {
    /// How far the node is in its life.
    pub(super) phase: &'static str,
    /// Whether it takes requests.
    pub(super) ready: bool,
    /// The shards it leads, without the meta group.
    pub(super) leads: BTreeSet<u64>,
}

/// Asks a node how it stands; `None` if it does not answer.
pub(super) async fn ask(node: SocketAddr) -> Option<Report> {
    let question = async {
        let channel = Endpoint::from_shared(format!("http://{node}")).ok()?.connect().await.ok()?;
        let request = GetStatusRequest::default();
        let response = ClusterClient::new(channel).get_status(request).await.ok()?;
        Some(report(&response.into_inner()))
    };
    tokio::time::timeout(TIMEOUT, question).await.ok().flatten()
}

/// Asks all nodes at once.
pub(super) async fn ask_all(nodes: impl IntoIterator<Item = SocketAddr>) -> Vec<Option<Report>> {
    futures::future::join_all(nodes.into_iter().map(ask)).await
}

/// How many shards have a leader. Each counts once, even when a deposed leader does not know it
/// yet.
pub(super) fn led_shards(reports: &[Option<Report>]) -> usize {
    let led: BTreeSet<u64> =
        reports.iter().flatten().flat_map(|report| report.leads.iter().copied()).collect();
    led.len()
}

fn report(status: &GetStatusResponse) -> Report {
    let leads = status
        .replicas
        .iter()
        .filter(|replica| replica.shard != 0 && replica.role() == ReplicaRole::Leader)
        .map(|replica| replica.shard)
        .collect();
    Report { phase: phase_word(status.phase()), ready: status.ready, leads }
}

const fn phase_word(phase: NodePhase) -> &'static str {
    match phase {
        NodePhase::Unspecified => "unknown",
        NodePhase::Forming => "forming",
        NodePhase::Starting => "starting",
        NodePhase::Ready => "ready",
        NodePhase::Draining => "draining",
        NodePhase::StorageFailed => "storage-failed",
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::ReplicaStatus;

    use super::*;

    fn status(replicas: &[(u64, ReplicaRole)]) -> Option<Report> {
        let replicas = replicas
            .iter()
            .map(|(shard, role)| ReplicaStatus {
                shard: *shard,
                role: (*role).into(),
                ..ReplicaStatus::default()
            })
            .collect();
        Some(report(&GetStatusResponse { replicas, ..GetStatusResponse::default() }))
    }

    #[test]
    fn a_shard_counts_once_and_the_meta_group_not_at_all() {
        use ReplicaRole::{Follower, Leader};
        let reports = [
            status(&[(0, Leader), (1, Leader), (2, Follower), (3, Leader)]),
            None,
            status(&[(0, Follower), (1, Leader), (2, Leader), (3, Follower)]),
        ];
        assert_eq!(led_shards(&reports), 3);
    }
}
