//! The rules of a cluster map, and of a change from one map to the next.
//!
//! They are checked before a change is proposed, so that the proposer gets the error, and again at
//! apply, so that no map that breaks a rule can ever take effect, whichever node proposed it.
//!
//! A map that a newer node made may have states and roles that this version does not know. By
//! itself it is valid ([`check`]): it is loaded, kept, passed on and routed by. No change of levels
//! 1 and 2 may have one ([`check_change`]), because these levels give them no meaning.

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::{
    limits::{ID_BYTES, REPLICAS_MAX, SHARDS_MAX},
    map::voters,
    v1::{ClusterMap, MapNode, MapReplica, MapShard},
};
use thiserror::Error;

/// The rule that a map breaks, as a sentence.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct BrokenRule(String);

macro_rules! rule {
    ($holds:expr, $($sentence:tt)+) => {
        if !$holds {
            return Err(BrokenRule(format!($($sentence)+)));
        }
    };
}

/// Checks a map by itself.
///
/// # Errors
/// The first broken rule.
pub fn check(map: &ClusterMap) -> Result<(), BrokenRule> {
    rule!(map.epoch > 0, "its epoch is 0");
    rule!(
        map.cluster_id.len() == ID_BYTES,
        "its cluster id is {} bytes long",
        map.cluster_id.len()
    );
    rule!(map.history.len() == ID_BYTES, "its history is {} bytes long", map.history.len());
    rule!(map.cluster_version > 0, "its cluster version is 0");
    rule!(
        map.replicas_wanted % 2 == 1 && map.replicas_wanted <= REPLICAS_MAX,
        "{} replicas are wanted; the number must be odd and at most {REPLICAS_MAX}",
        map.replicas_wanted
    );
    check_nodes(&map.nodes)?;
    check_ranges(map)?;
    check_replicas(map)?;
    check_lineage(map)
}

/// Checks that a command of level 1 or 2 may put `new` after `old`; `None` = there is no map yet.
///
/// # Errors
/// The first broken rule.
pub fn check_change(old: Option<&ClusterMap>, new: &ClusterMap) -> Result<(), BrokenRule> {
    check(new)?;
    check_plain(new)?;
    let Some(old) = old else {
        rule!(new.epoch == 1, "the first map has epoch {}", new.epoch);
        return Ok(());
    };
    rule!(new.epoch == old.epoch + 1, "epoch {} does not follow epoch {}", new.epoch, old.epoch);
    rule!(new.cluster_id == old.cluster_id, "it is of another cluster");
    rule!(
        new.cluster_version >= old.cluster_version,
        "its cluster version falls from {} to {}",
        old.cluster_version,
        new.cluster_version
    );
    for (what, old, new) in [
        ("replica", old.next_replica_id, new.next_replica_id),
        ("shard", old.next_shard_id, new.next_shard_id),
    ] {
        rule!(new >= old, "the next {what} id falls from {old} to {new}");
    }
    check_shards_follow(old, new)?;
    check_replicas_follow(old, new)
}

/// Checks that nothing in a map is what levels 1 and 2 do not know.
fn check_plain(map: &ClusterMap) -> Result<(), BrokenRule> {
    for MapNode { id, state, .. } in &map.nodes {
        rule!(*state == 0, "node {id} has state {state}, and this version sets none");
    }
    for MapShard { id, state, .. } in &map.shards {
        rule!(*state == 0, "shard {id} has state {state}, and this version sets none");
    }
    for MapReplica { replica_id: id, role, .. } in groups(map).flat_map(|(_, replicas)| replicas) {
        rule!(*role == 0, "replica {id} has role {role}, and this version makes only voters");
    }
    for line in &map.lineage {
        let plain = line.second_parent == 0 && line.second_parent_index == 0;
        rule!(plain, "shard {} has a second parent, and this version merges none", line.child);
    }
    Ok(())
}

fn check_nodes(nodes: &[MapNode]) -> Result<(), BrokenRule> {
    rule!(!nodes.is_empty(), "it has no nodes");
    let mut incarnations = BTreeSet::new();
    let mut before = 0;
    for node in nodes {
        let id = node.id;
        rule!(id > before, "node {id} is listed after node {before}; ids must grow from 1");
        before = id;
        if !node.is_member() {
            continue;
        }
        rule!(!node.peer_address.is_empty(), "node {id} has no peer address");
        rule!(!node.client_address.is_empty(), "node {id} has no client address");
        rule!(
            node.incarnation.len() == ID_BYTES,
            "the incarnation of node {id} is not {ID_BYTES} bytes long"
        );
        rule!(
            incarnations.insert(&node.incarnation),
            "node {id} has the incarnation of another node"
        );
    }
    Ok(())
}

fn check_ranges(map: &ClusterMap) -> Result<(), BrokenRule> {
    rule!(!map.shards.is_empty(), "it has no shards");
    rule!(
        map.shards.len() as u64 <= SHARDS_MAX,
        "it has {} shards; the limit is {SHARDS_MAX}",
        map.shards.len()
    );
    let mut ids = BTreeSet::new();
    let mut next = Some(0u64);
    for MapShard { id, first, last, epoch, .. } in &map.shards {
        rule!(*id > 0 && *id < map.next_shard_id, "shard id {id} was never assigned");
        rule!(ids.insert(*id), "shard {id} is listed twice");
        rule!(*epoch > 0, "shard {id} has epoch 0");
        rule!(
            next == Some(*first),
            "shard {id} begins at {first:#018x}, which is not where the previous shard ends"
        );
        rule!(first <= last, "shard {id} ends before it begins");
        next = last.checked_add(1);
    }
    rule!(next.is_none(), "the last shard does not end where the hash space ends");
    Ok(())
}

/// Each group of the map with its replicas; group 0 is the meta group.
fn groups(map: &ClusterMap) -> impl Iterator<Item = (u64, &[MapReplica])> {
    let shards = map.shards.iter().map(|shard| (shard.id, &shard.replicas[..]));
    std::iter::once((0, &map.meta_replicas[..])).chain(shards)
}

fn check_replicas(map: &ClusterMap) -> Result<(), BrokenRule> {
    let nodes: BTreeSet<u64> = map.nodes.iter().map(|node| node.id).collect();
    let mut ids = BTreeSet::new();
    for (group, replicas) in groups(map) {
        let count = voters(replicas).count();
        rule!(
            (1..=REPLICAS_MAX as usize).contains(&count),
            "group {group} has {count} replicas that vote; it must have 1 to {REPLICAS_MAX}"
        );
        let mut hosts = BTreeSet::new();
        for replica in replicas {
            let MapReplica { replica_id: id, node_id: node, .. } = replica;
            rule!(
                *id > 0 && *id < map.next_replica_id,
                "replica id {id} of group {group} was never assigned"
            );
            rule!(ids.insert(*id), "replica {id} is listed twice");
            rule!(nodes.contains(node), "replica {id} is on node {node}, which is not in the map");
            let alone = !replica.is_voter() || hosts.insert(*node);
            rule!(alone, "group {group} has two replicas on node {node}");
        }
    }
    Ok(())
}

fn check_lineage(map: &ClusterMap) -> Result<(), BrokenRule> {
    let mut before = 0;
    for line in &map.lineage {
        let (child, parent) = (line.child, line.parent);
        rule!(child > before, "the lineage of shard {child} is listed after shard {before}'s");
        before = child;
        let assigned = child < map.next_shard_id;
        rule!(assigned, "the lineage names shard {child}, which was never assigned");
        rule!(parent > 0 && parent < child, "shard {child} cannot come from shard {parent}");
        let second = line.second_parent;
        rule!(
            second < child && second != parent,
            "shard {child} cannot come from shard {parent} and shard {second}"
        );
        rule!(
            line.map_epoch <= map.epoch,
            "shard {child} comes from a later epoch, {}",
            line.map_epoch
        );
    }
    Ok(())
}

fn check_shards_follow(old: &ClusterMap, new: &ClusterMap) -> Result<(), BrokenRule> {
    let known: BTreeMap<u64, &MapShard> =
        old.shards.iter().map(|shard| (shard.id, shard)).collect();
    for shard in &new.shards {
        let id = shard.id;
        let Some(before) = known.get(&id) else {
            rule!(id >= old.next_shard_id, "shard id {id} was used before");
            continue;
        };
        rule!(shard.epoch >= before.epoch, "the epoch of shard {id} falls");
        let moved = (shard.first, shard.last) != (before.first, before.last);
        rule!(
            !moved || shard.epoch > before.epoch,
            "the range of shard {id} changes and its epoch does not"
        );
    }
    Ok(())
}

fn check_replicas_follow(old: &ClusterMap, new: &ClusterMap) -> Result<(), BrokenRule> {
    let known: BTreeMap<u64, (u64, u64)> = groups(old)
        .flat_map(|(group, replicas)| {
            replicas.iter().map(move |r| (r.replica_id, (group, r.node_id)))
        })
        .collect();
    for (group, replicas) in groups(new) {
        for MapReplica { replica_id: id, node_id: node, .. } in replicas {
            match known.get(id) {
                None => rule!(*id >= old.next_replica_id, "replica id {id} was used before"),
                Some(place) => {
                    rule!(
                        *place == (group, *node),
                        "replica {id} moves to another group or node; it needs a new id"
                    );
                }
            }
        }
    }
    Ok(())
}
