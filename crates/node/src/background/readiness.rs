//! Readiness of a node that has started.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_proto::v1::NodePhase;
use quorate_raft::GroupId;
use tracing::info;

use quorate_service::shared::Shared;

/// Interval at which a starting node checks whether it is ready.
const READY_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// A node is ready after this time even if some shards have no leader.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits until the node has caught up once with every shard that has a leader, then makes it ready.
pub async fn become_ready(shared: Arc<Shared>) {
    let started = Instant::now();
    let mut said = 0;
    while !matches!(shared.life.phase(), NodePhase::Draining | NodePhase::StorageFailed) {
        let waiting = match caught_up(&shared).await {
            None => "the cluster map is not known yet".to_owned(),
            Some((have, all)) => {
                // One shard without a quorum must not keep the node from serving the others.
                let patient = started.elapsed() < CATCH_UP_TIMEOUT;
                if (have == all || !patient)
                    && shared.life.advance(NodePhase::Starting, NodePhase::Ready, "")
                {
                    info!("node: serving");
                }
                if have == all {
                    info!("ready: {all} of {all} shards have leaders");
                    return;
                }
                format!("{have} of {all} shards have leaders and are caught up here")
            }
        };
        shared.life.advance(NodePhase::Starting, NodePhase::Starting, waiting.as_str());
        if started.elapsed().as_secs() / 2 > said {
            said = started.elapsed().as_secs() / 2;
            info!(why = waiting, "node: waiting");
        }
        tokio::time::sleep(READY_POLL_INTERVAL).await;
    }
}

/// Number of this node's replicas that know a leader and have applied all entries known to be
/// committed, and number of those that it makes by the map, without group 0; both may be 0. `None`
/// before there is a map.
async fn caught_up(shared: &Shared) -> Option<(usize, usize)> {
    let map = shared.map.get()?;
    let here = shared.engine.shards().all();
    let status: BTreeMap<_, _> = shared.engine.status().await.into_iter().collect();
    let (mut have, mut all) = (0, 0);
    for shard in map.assigned_to(shared.node) {
        all += 1;
        let group = GroupId(shard.id);
        let known = here.get(&group).zip(status.get(&group));
        have += usize::from(known.is_some_and(|(shard, raft)| {
            shard.leadership().leader.is_some() && shard.gate.applied() >= raft.commit
        }));
    }
    Some((have, all))
}
