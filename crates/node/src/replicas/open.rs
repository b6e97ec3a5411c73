//! The replicas at startup: gives the stored replicas to the engine, and creates group 0 on a
//! founder's first start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_engine::scrub::LastRun;
use quorate_engine::{Shard, create_replicas, replica_init};
use quorate_machine::voters_of;
use quorate_placement::meta_replicas;
use quorate_raft::GroupId;
use quorate_service::shared::Shared;
use quorate_storage::{Database, HashRange, RecoveredGroup, ReplicaKey, ShardStore};
use tracing::error;

use crate::cluster::{Formed, META};
use crate::exit::Fatal;

/// Opens the stored replicas, and creates group 0 on a founder's first start. Returns the replicas
/// that wait for a scrub, and adds the unusable ones to `damaged`.
///
/// # Errors
/// A failed write.
pub(crate) fn open_replicas(
    shared: &Shared,
    sled: &Database,
    formed: &Formed,
    stores: Vec<ShardStore>,
    mut recovered: BTreeMap<ReplicaKey, RecoveredGroup>,
    last_run: LastRun,
    damaged: &mut BTreeSet<GroupId>,
) -> Result<Vec<Arc<Shard>>, Fatal> {
    let scrub_first = last_run == LastRun::MayHaveLost;
    let mut waiting = Vec::new();
    let mut has_meta = false;
    for store in stores {
        let (group, replica) = (store.header().group, store.header().replica);
        has_meta |= group == META;
        match shared.engine.add(store, recovered.remove(&(group, replica)), scrub_first) {
            Ok(shard) if scrub_first => waiting.push(shard),
            Ok(_) => {}
            Err(error) => {
                error!(shard = group.0, %error, "replica: not opened, damaged");
                damaged.insert(group);
            }
        }
    }
    // The state of a replica is created before its first log record.
    for (group, _) in recovered.into_keys() {
        if damaged.insert(group) {
            error!(shard = group.0, "replica: not opened, log entries but no state");
        }
    }
    has_meta |= damaged.contains(&META);
    let founders = formed.members.keys().map(|node| node.0);
    let replicas = voters_of(&meta_replicas(founders));
    let wanted = replica_init(META, &replicas, shared.node, HashRange::ALL, 1);
    // A map shows that this is not the first start: group 0 is then not created again.
    if let (false, None, Some(meta)) = (has_meta, shared.map.get(), wanted) {
        create_replicas(sled, &shared.budget, &shared.engine, shared.node, vec![meta])
            .map_err(|error| Fatal::from(&error))?;
    }
    Ok(waiting)
}
