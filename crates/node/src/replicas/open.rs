//! The replicas at startup: hands what the storage held to the engine, and makes group 0 on a founder's
//! first start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_engine::scrub::LastRun;
use quorate_engine::{Shard, create_replicas, replica_init};
use quorate_machine::replicas_of;
use quorate_placement::meta_replicas;
use quorate_raft::GroupId;
use quorate_service::shared::Shared;
use quorate_storage::{Database, HashRange, RecoveredGroup, ReplicaKey, ShardStore};
use tracing::error;

use crate::cluster::{Formed, META};
use crate::exit::Fatal;

/// Opens what the storage held, and group 0 on a founder's first start. Returns the replicas that
/// wait for a scrub, and adds the damaged ones to those that stay as they are.
///
/// # Errors
///
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
                error!(shard = group.0, %error, "replica: not opened, it is damaged");
                damaged.insert(group);
            }
        }
    }
    // A replica's state is made before anything of it is logged.
    for (group, _) in recovered.into_keys() {
        if damaged.insert(group) {
            error!(shard = group.0, "replica: not opened, the log knows it and its state is gone");
        }
    }
    has_meta |= damaged.contains(&META);
    let founders = formed.members.keys().map(|node| node.0);
    let replicas = replicas_of(&meta_replicas(founders));
    let wanted = replica_init(META, &replicas, shared.node, HashRange::ALL, 1);
    // A map says that the cluster is past its first start: group 0 is then not made anew.
    if let (false, None, Some(meta)) = (has_meta, shared.map.get(), wanted) {
        create_replicas(sled, &shared.budget, &shared.engine, shared.node, vec![meta])
            .map_err(|error| Fatal::from(&error))?;
    }
    Ok(waiting)
}
