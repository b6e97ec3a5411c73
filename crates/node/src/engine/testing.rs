//! What tests of the engine begin with: a replica on a disk of its own.

use std::path::Path;
use std::sync::Arc;

use quorate_raft::{GroupId, Membership, NodeId, Replica, ReplicaId};
use quorate_storage::{
    DeltaBudget, Engine as Sled, EngineOptions, HashRange, ShardInit, ShardStore,
};

/// The group that the tests' replicas belong to.
pub(crate) const GROUP: GroupId = GroupId(1);

/// The replica of the group on a node: both have the same number.
pub(crate) fn replica(number: u64) -> Replica {
    Replica { id: ReplicaId(number), node: NodeId(number) }
}

pub(crate) fn sled(dir: &Path) -> Sled {
    Sled::open(&dir.join("sled"), EngineOptions::default()).unwrap()
}

/// The new state of node 1's replica, one of `voters`.
pub(crate) fn store(sled: &Sled, budget: &Arc<DeltaBudget>, voters: u64) -> ShardStore {
    let init = ShardInit {
        group: GROUP,
        replica: ReplicaId(1),
        membership: Membership::of_voters((1..=voters).map(replica)),
        range: HashRange::ALL,
        shard_epoch: 1,
    };
    ShardStore::create(sled, init, budget.clone()).unwrap()
}
