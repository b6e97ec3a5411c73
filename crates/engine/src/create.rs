//! Creation of replicas: their initial state, and making it durable.

use std::sync::Arc;

use quorate_raft::{GroupId, Membership, NodeId, Replica};
use quorate_storage::{Database, DeltaBudget, HashRange, ShardInit, ShardStore, StorageError};

use crate::Engine;

/// The initial state of the replica on node `me`; `None` when the node holds none.
#[must_use]
pub fn replica_init(
    group: GroupId,
    replicas: &[Replica],
    me: NodeId,
    range: HashRange,
    shard_epoch: u64,
) -> Option<ShardInit> {
    let replica = replicas.iter().find(|replica| replica.node == me)?;
    Some(ShardInit {
        group,
        replica: replica.id,
        membership: Membership::of_voters(replicas.iter().copied()),
        range,
        shard_epoch,
    })
}

/// Creates replicas durably and adds them to the engine. The preferred leader starts an election
/// immediately, so that a new shard does not wait for an election timeout.
///
/// # Errors
/// A failed write; the caller ends the process.
pub fn create_replicas(
    sled: &Database,
    budget: &Arc<DeltaBudget>,
    engine: &Engine,
    me: NodeId,
    wanted: Vec<ShardInit>,
) -> Result<(), StorageError> {
    for init in wanted {
        let group = init.group;
        let preferred = init.membership.voters().next().map(|first| first.node) == Some(me);
        let store = ShardStore::create(sled, init, budget.clone())?;
        if let Err(error) = engine.add(store, None, false) {
            // The state was just created and is empty, so this is a bug, not damage.
            return Err(StorageError::Invalid {
                what: format!("{group} cannot be opened: {error}"),
            });
        }
        if preferred {
            engine.campaign(group);
        }
    }
    Ok(())
}
