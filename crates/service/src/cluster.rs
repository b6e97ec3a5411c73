//! The Cluster service: facts that each node reports about itself, without a quorum, and the
//! transfer of leaderships.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use quorate_config::Config;
use quorate_engine::Shard;
use quorate_metrics::process::resident_bytes;
use quorate_proto::feature::FEATURES;
use quorate_proto::level::LEVELS;
use quorate_proto::limits;
use quorate_proto::v1::cluster_server::Cluster;
use quorate_proto::v1::{
    self as wire, Defaults, DigestMark, DiskStatus, GetInfoRequest, GetInfoResponse, GetMapRequest,
    GetMapResponse, GetStatusRequest, GetStatusResponse, Limits, MapReplica, MemoryStatus,
    NodePhase, QueueStatus, ReadLevel, ReplicaHealth, ReplicaProgress, ReplicaRole, ReplicaStatus,
    ShardLeader, TransferLeaderRequest, TransferLeaderResponse,
};
use quorate_proto::version::{VERSION, build};
use quorate_raft::{GroupId, NodeId, ProgressKind, RoleKind, Status as RaftStatus};
use quorate_storage::{Disk, DiskLevel, Space};
use tonic::{Request, Response, Status};

use crate::call::Calls;
use crate::health::Health;
use crate::metrics::Method;
use crate::operation::Kind;
use crate::shared::{Shared, duration};
use crate::transfer;

/// The Cluster service of a node. Facts are answered in every phase.
#[derive(Clone)]
pub struct ClusterService {
    calls: Calls,
    config: Arc<Config>,
    health: Health,
}

impl ClusterService {
    /// The service of these calls.
    #[must_use]
    pub fn new(calls: Calls, config: Arc<Config>, health: Health) -> Self {
        Self { calls, config, health }
    }

    fn info(&self, shared: Option<&Shared>) -> GetInfoResponse {
        let map = shared.and_then(|shared| shared.map.get());
        let offered = LEVELS.iter().filter(|row| row.offered);
        GetInfoResponse {
            node_id: self.config.node_id.0,
            cluster_id: shared.map_or_else(Bytes::new, |shared| shared.cluster_id.clone()),
            cluster_name: self.config.cluster_name.clone(),
            history: map.as_ref().map_or_else(Bytes::new, |map| map.proto().history.clone()),
            version: VERSION.to_owned(),
            cluster_version: map.as_ref().map_or(0, |map| map.proto().cluster_version),
            features: FEATURES.iter().map(|feature| feature.name()).collect(),
            levels: offered.map(|row| row.level as i32).collect(),
            limits: Some(limits_of(&self.config)),
            defaults: Some(Defaults {
                timeout: Some(duration(limits::TIMEOUT_DEFAULT)),
                timeout_max: Some(duration(limits::TIMEOUT_MAX)),
                session_ttl: Some(duration(limits::SESSION_TTL)),
                level: ReadLevel::Linearizable as i32,
            }),
            map_epoch: map.map_or(0, |map| map.epoch()),
            build: build(),
        }
    }

    fn map(&self, shared: Option<&Shared>, newer_than: u64) -> GetMapResponse {
        let map = shared.and_then(|shared| shared.map.get());
        let epoch = map.as_ref().map_or(0, |map| map.epoch());
        let newer = epoch > newer_than || newer_than == 0;
        GetMapResponse {
            map: map.filter(|_| newer).map(|map| map.proto().clone()),
            map_epoch: epoch,
            node_id: self.config.node_id.0,
            leaders: shared.map_or_else(Vec::new, leaders),
            // The whole map is always an answer, also to who knows changes.
            changes: Vec::new(),
            changes_from: 0,
        }
    }

    async fn status(&self, shared: Option<&Shared>, omit_replicas: bool) -> GetStatusResponse {
        let life = self.calls.life();
        let mut status = GetStatusResponse {
            node_id: self.config.node_id.0,
            phase: life.phase() as i32,
            ready: life.phase() == NodePhase::Ready,
            live: self.health.check_live().is_ok(),
            detail: life.detail(),
            uptime: Some(duration(life.started.elapsed())),
            version: VERSION.to_owned(),
            pid: std::process::id(),
            clock_ms: quorate_engine::clock::Clock.unix_millis(),
            disk: self.health.disk(),
            ..GetStatusResponse::default()
        };
        if let Some(shared) = shared {
            describe(shared, &mut status, omit_replicas).await;
            let clocks = shared.clocks.recent_ms(shared.clock.moment());
            status.peers = self.health.peers();
            for peer in &mut status.peers {
                peer.clock_offset_ms = clocks.get(&NodeId(peer.node_id)).copied();
            }
        }
        status
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn get_info(
        &self,
        request: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        let kind = Kind::of(Method::GetInfo);
        self.calls
            .in_any_phase(
                kind,
                request,
                |shared, _| async move { Ok(self.info(shared.as_deref())) },
            )
            .await
    }

    async fn get_map(
        &self,
        request: Request<GetMapRequest>,
    ) -> Result<Response<GetMapResponse>, Status> {
        let kind = Kind::of(Method::GetMap);
        self.calls
            .in_any_phase(kind, request, |shared, request| async move {
                Ok(self.map(shared.as_deref(), request.newer_than))
            })
            .await
    }

    async fn get_status(
        &self,
        request: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        let kind = Kind::of(Method::GetStatus);
        self.calls
            .in_any_phase(kind, request, |shared, request| async move {
                Ok(self.status(shared.as_deref(), request.omit_replicas).await)
            })
            .await
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        self.calls
            .unary(
                Kind::of(Method::TransferLeader),
                request,
                |shared, context, request| async move {
                    transfer::transfer(&shared, &context, request).await
                },
            )
            .await
    }
}

fn limits_of(config: &Config) -> Limits {
    Limits {
        key_bytes_max: limits::KEY_BYTES_MAX as u64,
        value_bytes_max: config.max_value_size.0 as u64,
        request_bytes_max: limits::REQUEST_BYTES_MAX as u64,
        message_bytes_max: limits::DECODE_BYTES_MAX as u64,
        token_parts_max: limits::TOKEN_PARTS_MAX as u64,
        session_unanswered_max: limits::SESSION_UNANSWERED_MAX,
        scan_rows_max: limits::SCAN_ROWS_MAX,
        scan_bytes_max: limits::SCAN_BYTES_MAX,
        scan_time_max: Some(duration(limits::SCAN_TIME_MAX)),
        batch_operations_max: limits::BATCH_OPERATIONS_MAX as u64,
    }
}

fn leaders(shared: &Shared) -> Vec<ShardLeader> {
    let shards = shared.engine.shards().all();
    let known = shards.values().filter_map(|shard| {
        let leadership = shard.leadership();
        let node_id = leadership.leader?.0;
        Some(ShardLeader { shard: shard.group.0, node_id, term: leadership.term.0 })
    });
    known.collect()
}

async fn describe(shared: &Shared, status: &mut GetStatusResponse, omit_replicas: bool) {
    let map = shared.map.get();
    status.cluster_id = shared.cluster_id.clone();
    status.history = map.as_ref().map_or_else(Bytes::new, |map| map.proto().history.clone());
    status.map_epoch = map.map_or(0, |map| map.epoch());
    status.memory = Some(MemoryStatus {
        resident_bytes: resident_bytes().unwrap_or(0),
        budget_bytes: shared.config.memory.total,
        delta_bytes: shared.budget.used(),
        delta_bytes_max: shared.budget.limit(),
    });
    status.queues = vec![QueueStatus {
        name: "engine".into(),
        depth: shared.engine.queued_bytes(),
        capacity: shared.config.memory.commands_queued(),
        unit: "bytes".into(),
    }];
    if omit_replicas {
        return;
    }
    let shards = shared.engine.shards().all();
    let by_group: BTreeMap<GroupId, RaftStatus> =
        shared.engine.status().await.into_iter().collect();
    status.replicas = shards
        .values()
        .filter_map(|shard| Some(replica(shard, by_group.get(&shard.group)?)))
        .collect();
    status.replicas.extend(shared.damaged.lock().iter().map(|group| ReplicaStatus {
        shard: group.0,
        role: ReplicaRole::Follower as i32,
        health: ReplicaHealth::Damaged as i32,
        ..ReplicaStatus::default()
    }));
    status.replicas.sort_by_key(|replica| replica.shard);
}

fn replica(shard: &Shard, raft: &RaftStatus) -> ReplicaStatus {
    let state = shard.reader.status();
    let header = shard.reader.header();
    let role = match raft.role {
        RoleKind::Follower => ReplicaRole::Follower,
        RoleKind::PreCandidate => ReplicaRole::PreCandidate,
        RoleKind::Candidate => ReplicaRole::Candidate,
        RoleKind::Leader => ReplicaRole::Leader,
    };
    let health = if shard.is_damaged() {
        ReplicaHealth::Damaged
    } else if shard.is_scrubbing() {
        ReplicaHealth::Scrubbing
    } else if raft.installing {
        ReplicaHealth::Installing
    } else {
        ReplicaHealth::Ok
    };
    let members = &header.membership;
    ReplicaStatus {
        shard: shard.group.0,
        replica_id: shard.replica.id.0,
        role: role as i32,
        term: raft.term.0,
        leader_node_id: raft.leader.map_or(0, |leader| leader.node.0),
        commit: raft.commit.0,
        applied: state.applied.index.0,
        last: raft.last.index.0,
        lag: raft.commit.0.saturating_sub(state.applied.index.0),
        keys: state.counts.keys,
        bytes: state.counts.bytes,
        digest: state.digest.to_be_bytes().to_vec().into(),
        digest_applied: state.applied.index.0,
        marks: shard
            .reader
            .marks()
            .into_iter()
            .map(|(index, digest)| DigestMark {
                applied: index.0,
                digest: digest.to_be_bytes().to_vec().into(),
            })
            .collect(),
        log_bytes: raft.log_bytes,
        checkpoint_applied: state.checkpoint.index.0,
        health: health as i32,
        leaderless_for: shard.leaderless_for().map(duration),
        shard_epoch: shard.epoch,
        log_time: state.log_time,
        sessions: shard.sessions(),
        log_base: raft.base.index.0,
        voters: members
            .voters()
            .map(|replica| MapReplica {
                replica_id: replica.id.0,
                node_id: replica.node.0,
                ..MapReplica::default()
            })
            .collect(),
        progress: raft
            .progress
            .iter()
            .map(|other| ReplicaProgress {
                replica_id: other.replica.0,
                node_id: members.node_of(other.replica).map_or(0, |node| node.0),
                matched: other.matched.0,
                active: other.active,
                snapshot: other.state == ProgressKind::Snapshot,
            })
            .collect(),
    }
}

/// The disk as the node last saw it: `used` bytes are its data directory's, `space` is its file
/// system's.
#[must_use]
pub fn disk_status(used: u64, space: &Space, disk: &Disk) -> DiskStatus {
    let level = disk.level();
    DiskStatus {
        used_bytes: used,
        free_bytes: space.free,
        total_bytes: space.total,
        reserve_bytes: space.reserve(),
        writes_refused: level > DiskLevel::Ok,
        reusable_bytes: disk.room(),
        level: match level {
            DiskLevel::Ok => wire::DiskLevel::Ok,
            DiskLevel::Low => wire::DiskLevel::Low,
            DiskLevel::Critical => wire::DiskLevel::Critical,
        }
        .into(),
    }
}
