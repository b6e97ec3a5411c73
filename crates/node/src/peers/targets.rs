//! What the transport is started with: whom it dials (the nodes of the newest map, else the founders), what
//! it says of this node, and how much it may queue.

use std::collections::BTreeMap;

use quorate_config::Config;
use quorate_proto::ids::Incarnation;
use quorate_proto::v1::ClusterMap;
use quorate_raft::NodeId;
use quorate_transport::{PeerTarget, PeerTargets, TransportConfig};

/// The peers that a map names.
#[must_use]
pub(crate) fn targets(map: &ClusterMap) -> PeerTargets {
    map.nodes
        .iter()
        .filter_map(|node| {
            let incarnation = Incarnation::from_bytes(&node.incarnation)?;
            Some((NodeId(node.id), PeerTarget { address: node.peer_address.clone(), incarnation }))
        })
        .collect()
}

/// The peers of a node that has no map yet: those that it founded the cluster with, at the addresses of
/// `--initial-cluster`.
#[must_use]
pub(crate) fn founders(config: &Config, members: &BTreeMap<NodeId, Incarnation>) -> PeerTargets {
    let founders = members.iter().filter_map(|(node, incarnation)| {
        let address = config.initial_cluster.get(node)?.to_string();
        Some((*node, PeerTarget { address, incarnation: *incarnation }))
    });
    founders.collect()
}

/// The transport of a node in a cluster of so many nodes.
pub(crate) fn transport_config(config: &Config, nodes: usize) -> TransportConfig {
    let peers = nodes.saturating_sub(1).max(1);
    let own =
        TransportConfig::new(config.advertise.to_string(), config.advertise_client.to_string());
    TransportConfig {
        // The transport's share, over the peers.
        bulk_queue_bytes: (config.memory.transport_queue as usize / peers).clamp(2 << 20, 8 << 20),
        labels: config.locality.clone(),
        ..own
    }
}
