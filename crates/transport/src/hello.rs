//! Handshake: the Hello that opens each stream, and the checks on it.

use quorate_proto::ids::{ClusterId, Incarnation};
use quorate_proto::raft::v1 as wire;
use quorate_proto::version::{FEATURE_LEVEL, VERSION, build};
use quorate_raft::NodeId;

use super::memory::StartId;
use super::{Lane, PeerTarget, Shared, proof};

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long the called node may take to answer the Hello.
pub(crate) const HELLO_DEADLINE: Duration = Duration::from_secs(2);
/// The oldest version of the peer messages that this program understands.
pub const WIRE_VERSION_MIN: u32 = 2;
/// The newest version of the peer messages that this program understands.
pub const WIRE_VERSION_MAX: u32 = 2;

/// What a peer says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerHello {
    /// The peer.
    pub node: NodeId,
    /// The incarnation of its data directory.
    pub incarnation: Incarnation,
    /// Starts of a process on its directory.
    pub boot_counter: u64,
    /// Drawn by its process.
    pub start: StartId,
    /// The last record of its log that is behind a completed barrier; 0 = none.
    pub log_sequence: u64,
    /// How long its process has run; zero = it does not say.
    pub uptime: Duration,
    /// The epoch of the cluster map it holds; 0 = none.
    pub map_epoch: u64,
    /// The oldest and newest version of the peer messages it understands.
    pub wire_versions: (u32, u32),
    /// The feature level of its program.
    pub feature_version: u32,
    /// Its program's version and build, for people.
    pub build: String,
    /// Where it wants peers to reach it.
    pub peer_address: String,
    /// Where it wants clients to reach it.
    pub client_address: String,
    /// The labels of the place where it stands.
    pub labels: BTreeMap<String, String>,
}

pub(super) fn lane_to_wire(lane: Lane) -> wire::Lane {
    match lane {
        Lane::Control => wire::Lane::Control,
        Lane::Bulk => wire::Lane::Bulk,
    }
}

impl Shared {
    /// What this node says to `to`.
    pub(super) fn hello(
        &self,
        to: NodeId,
        to_incarnation: Incarnation,
        lane: wire::Lane,
    ) -> wire::Hello {
        let local = &self.local;
        wire::Hello {
            cluster_id: local.cluster_id.to_bytes().to_vec().into(),
            from_node: local.node.0,
            from_incarnation: local.incarnation.to_bytes().to_vec().into(),
            to_node: to.0,
            to_incarnation: to_incarnation.to_bytes().to_vec().into(),
            wire_version_min: WIRE_VERSION_MIN,
            wire_version_max: WIRE_VERSION_MAX,
            feature_version: FEATURE_LEVEL,
            build: format!("{VERSION} {}", build()),
            lane: lane.into(),
            map_epoch: self.map_epoch.load(Ordering::Relaxed),
            peer_address: self.config.peer_address.clone(),
            client_address: self.config.client_address.clone(),
            boot_counter: local.boot_counter,
            start_id: self.start.0,
            log_sequence: self.inbound.log_sequence(),
            uptime_ms: self.born.elapsed().as_millis() as u64,
            labels: self.config.labels.clone(),
            nonce: proof::nonce(),
        }
    }

    /// Checks whether the wire versions of a Hello have one in common with this node's. Nothing
    /// else of a Hello is looked at before its sender has proved the secret.
    ///
    /// # Errors
    /// A sentence that both sides can log.
    pub(super) fn check_versions(&self, hello: &wire::Hello) -> Result<(), String> {
        let (least, most) = (hello.wire_version_min, hello.wire_version_max);
        if least > WIRE_VERSION_MAX || most < WIRE_VERSION_MIN {
            return Err(format!(
                "node {} speaks wire versions {least} to {most}, node {} speaks \
                 {WIRE_VERSION_MIN} to {WIRE_VERSION_MAX}",
                hello.from_node, self.local.node.0
            ));
        }
        Ok(())
    }

    /// Checks the Hello of a peer; `target` is what this node knows of that node id.
    ///
    /// # Errors
    /// A sentence that both sides can log.
    pub(super) fn check_hello(
        &self,
        hello: &wire::Hello,
        target: Option<&PeerTarget>,
    ) -> Result<PeerHello, String> {
        let local = &self.local;
        let peer = hello.from_node;
        let cluster = ClusterId::from_bytes(&hello.cluster_id)
            .ok_or_else(|| format!("node {peer} names no cluster"))?;
        if cluster != local.cluster_id {
            return Err(format!(
                "node {peer} belongs to cluster {cluster}, node {} to cluster {} ({})",
                local.node.0, local.cluster_id, local.cluster_name
            ));
        }
        if hello.to_node != local.node.0 {
            return Err(format!(
                "node {peer} looks for node {}, and this is node {}",
                hello.to_node, local.node.0
            ));
        }
        if !hello.to_incarnation.is_empty()
            && Incarnation::from_bytes(&hello.to_incarnation) != Some(local.incarnation)
        {
            return Err(format!(
                "node {peer} expects another data directory at node {} than incarnation {}",
                local.node.0, local.incarnation
            ));
        }
        let target = target.ok_or_else(|| {
            format!("node {peer} is not a member that node {} knows", local.node.0)
        })?;
        let incarnation = Incarnation::from_bytes(&hello.from_incarnation)
            .ok_or_else(|| format!("node {peer} names no incarnation"))?;
        if incarnation != target.incarnation {
            return Err(format!(
                "node {peer} has the data directory of incarnation {incarnation}, and node {} \
                 knows it with incarnation {}",
                local.node.0, target.incarnation
            ));
        }
        if hello.start_id == 0 {
            return Err(format!("node {peer} names no start of its process"));
        }
        Ok(PeerHello {
            node: NodeId(peer),
            incarnation,
            boot_counter: hello.boot_counter,
            start: StartId(hello.start_id),
            log_sequence: hello.log_sequence,
            uptime: Duration::from_millis(hello.uptime_ms),
            map_epoch: hello.map_epoch,
            wire_versions: (hello.wire_version_min, hello.wire_version_max),
            feature_version: hello.feature_version,
            build: hello.build.clone(),
            peer_address: hello.peer_address.clone(),
            client_address: hello.client_address.clone(),
            labels: hello.labels.clone(),
        })
    }
}
