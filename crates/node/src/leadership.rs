//! Where leaders should be: on the preferred nodes, away from slow disks, and elsewhere when the
//! node goes down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_raft::{GroupId, NodeId, ProgressKind, ReplicaId, Status};
use tracing::{debug, info, warn};

use crate::bridge::Peers;
use crate::core::Core;
use crate::engine::Shards;

/// How often preferences are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A preferred leader must have been connected for so long before leadership goes to it.
const SETTLED: Duration = Duration::from_secs(10);
/// A drain gives its leaderships away within this time, or goes on without.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);
/// A leadership that was given away so often while the node goes down, and came back, stays: the others
/// go down too, and would pass it round for as long as they all wait.
const DEPARTURES_MAX: u32 = 2;

/// Hands leaderships to their preferred nodes, and away from this one while its disk is slow.
pub async fn keep(core: Arc<Core>, peers: Arc<Peers>) {
    let slow_disk = core.config.election_max;
    let mut looked = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if let Some(hangs) = crate::health::barrier_hangs(&core) {
            crate::exit::Fatal::Fsync(format!(
                "a write to the log has not become durable for {} s",
                hangs.as_secs()
            ))
            .end_process();
        }
        if core.engine.log_busy_for().is_some_and(|busy| busy > slow_disk) {
            warn!("disk: slower than an election timeout, giving leaderships away");
            give_all_away(&core).await;
        } else if looked.elapsed() >= LOOK {
            looked = Instant::now();
            prefer(&core, &peers).await;
        }
    }
}

async fn prefer(core: &Core, peers: &Peers) {
    let Some(map) = core.map.get() else { return };
    let connected = peers.connected();
    let settled =
        |node: NodeId| connected.get(&node).is_some_and(|(_, since)| since.elapsed() >= SETTLED);
    if !leads_any(core.engine.shards()) {
        return;
    }
    for (group, status) in core.engine.status().await {
        let replicas = match group {
            GroupId(0) => Some(&map.proto().meta_replicas),
            group => map.shard(group).map(|shard| &shard.replicas),
        };
        let Some(preferred) = replicas.and_then(|replicas| replicas.first()) else { continue };
        let (replica, node) = (ReplicaId(preferred.replica_id), NodeId(preferred.node_id));
        if node != core.node && settled(node) && caught_up(&status, replica) {
            debug!(shard = group.0, to = node.0, "leader: handing over to the preferred node");
            // The answer only says whether it began; the next look sees how it ended.
            drop(core.engine.transfer(group, replica));
        }
    }
}

fn leads_any(shards: &Shards) -> bool {
    shards.all().values().any(|shard| shard.leadership().is_leader)
}

/// Whether this replica leads, and the other one has all but what is on its way.
fn caught_up(status: &Status, replica: ReplicaId) -> bool {
    status.progress.iter().any(|other| {
        other.replica == replica
            && other.active
            && other.state == ProgressKind::Replicate
            && other.matched >= status.commit
    })
}

/// The other replica that is furthest, for each group led here.
fn best_targets(status: &[(GroupId, Status)]) -> BTreeMap<GroupId, ReplicaId> {
    let of_group = |(group, status): &(GroupId, Status)| {
        let active = status.progress.iter().filter(|other| other.active);
        let best = active.max_by_key(|other| other.matched)?;
        Some((*group, best.replica))
    };
    status.iter().filter_map(of_group).collect()
}

/// Hands every leadership of this node to the replica that is furthest, where there is one.
pub async fn give_all_away(core: &Core) {
    for (group, replica) in best_targets(&core.engine.status().await) {
        drop(core.engine.transfer(group, replica));
    }
}

/// Gives all leaderships away before the node goes down. With all nodes going at once there is
/// nobody to keep them: a leadership that comes back too often stays here, and ends with the process.
pub async fn drain(core: &Core) {
    let started = Instant::now();
    let mut departures = Departures::default();
    while started.elapsed() < DRAIN_PATIENCE {
        let mut targets = best_targets(&core.engine.status().await);
        departures.see(targets.keys().copied().collect());
        targets.retain(|group, _| departures.of(*group) < DEPARTURES_MAX);
        if targets.is_empty() {
            // Nothing is led here, or there is nobody who could take it.
            break;
        }
        for (group, replica) in targets {
            drop(core.engine.transfer(group, replica));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    info!(took = ?started.elapsed(), "drain: leaderships given away");
}

/// How often leaderships have left this node.
#[derive(Default)]
struct Departures {
    led: BTreeSet<GroupId>,
    left: BTreeMap<GroupId, u32>,
}

impl Departures {
    /// Takes note of the groups that are led now.
    fn see(&mut self, led: BTreeSet<GroupId>) {
        for gone in self.led.difference(&led) {
            *self.left.entry(*gone).or_default() += 1;
        }
        self.led = led;
    }

    /// How often the leadership of this group has left.
    fn of(&self, group: GroupId) -> u32 {
        self.left.get(&group).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leadership_that_leaves_is_counted_and_one_that_stays_is_not() {
        let mut departures = Departures::default();
        let (kept, given) = (GroupId(1), GroupId(2));
        for _ in 0..3 {
            departures.see(BTreeSet::from([kept, given]));
            departures.see(BTreeSet::from([kept]));
        }
        assert_eq!(
            (departures.of(kept), departures.of(given), departures.of(GroupId(3))),
            (0, 3, 0)
        );
    }
}
