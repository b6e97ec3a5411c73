//! Placement of the replicas of a new cluster.
//!
//! A consistent-hash ring of virtual nodes is walked clockwise from each shard's point to distinct
//! nodes, with a bound on the load of each node. The result is stored in the cluster map; the ring
//! is never used at run time, so a change of this file does not move existing replicas.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};

use hashring::HashRing;

/// Virtual nodes of each node on the ring. With 64, the arcs of three nodes differ by a few per
/// cent; the load bound evens out the rest.
const VIRTUAL_NODES: u32 = 64;

/// A node to place replicas on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The node id.
    pub node: u64,
    /// The label `zone`, if the node has one; a node without it is a zone of its own.
    pub zone: Option<String>,
}

/// A point on the ring. It is hashed as one byte slice, so that its hash depends neither on how the
/// standard library hashes tuples or strings nor on the width of a pointer.
#[derive(Clone, Debug)]
struct Point {
    node: u64,
    bytes: [u8; 13],
}

impl Point {
    fn virtual_node(node: u64, number: u32) -> Self {
        Self { node, bytes: point_bytes(b'n', node, number) }
    }
}

impl Hash for Point {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.bytes);
    }
}

struct ShardPoint([u8; 13]);

impl Hash for ShardPoint {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

fn point_bytes(kind: u8, id: u64, number: u32) -> [u8; 13] {
    let mut bytes = [0; 13];
    bytes[0] = kind;
    bytes[1..9].copy_from_slice(&id.to_be_bytes());
    bytes[9..].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// For each of the shards 1…`shards`, the nodes of its replicas; the first is the preferred leader.
///
/// Each shard gets `min(replicas, nodes)` distinct nodes. No node gets more than its even share of
/// replicas (rounded up), nor more than its even share of preferred leaderships, and no two
/// replicas of a shard share a zone while a node of another zone has room. The result depends only
/// on the arguments, not on the order of `nodes`.
#[must_use]
pub fn place(nodes: &[Candidate], shards: u64, replicas: usize) -> BTreeMap<u64, Vec<u64>> {
    let zones = zones(nodes);
    let wanted = replicas.min(zones.len());
    if wanted == 0 {
        return BTreeMap::new();
    }
    let mut ring = HashRing::new();
    ring.batch_add(
        zones
            .keys()
            .flat_map(|&node| (0..VIRTUAL_NODES).map(move |n| Point::virtual_node(node, n)))
            .collect(),
    );
    let mut load = Load::new(zones.len() as u64, shards, wanted as u64);
    let mut all = (1..=shards)
        .map(|shard| {
            let mut walk = walk(&ring, shard);
            // A node comes first if it can only be filled by a replica of every shard from here on:
            // left to the end, it would have more room than there are shards to use it.
            walk.sort_by_key(|&node| load.room(node) < shards - shard + 1);
            let placed = place_shard(&walk, &zones, &load, wanted);
            load.take(&placed);
            (shard, placed)
        })
        .collect();
    while move_one_leadership(&mut all, &mut load) {}
    all
}

/// Moves one preferred leadership from a node with more than its share, which the last shards may
/// leave, to a node with less, along a chain of nodes in which each two share a shard. Returns
/// false when no node has too many or no such chain exists.
fn move_one_leadership(all: &mut BTreeMap<u64, Vec<u64>>, load: &mut Load) -> bool {
    let over = load.leaders.iter().find(|(_, led)| **led > load.leaders_max);
    let Some((&over, _)) = over else { return false };
    // Breadth first search: for each node reached, the node and the shard it was reached by.
    let mut reached: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let mut queue = VecDeque::from([over]);
    while let Some(giver) = queue.pop_front() {
        for (&shard, on) in all.iter().filter(|(_, on)| on[0] == giver) {
            for &taker in &on[1..] {
                if taker == over || reached.contains_key(&taker) {
                    continue;
                }
                reached.insert(taker, (giver, shard));
                if !load.may_lead(taker) {
                    queue.push_back(taker);
                    continue;
                }
                *load.leaders.entry(over).or_default() -= 1;
                *load.leaders.entry(taker).or_default() += 1;
                let mut at = taker;
                while let Some(&(from, shard)) = reached.get(&at) {
                    if let Some(on) = all.get_mut(&shard) {
                        on.sort_by_key(|node| *node != at);
                    }
                    at = from;
                }
                return true;
            }
        }
    }
    false
}

fn zones(nodes: &[Candidate]) -> BTreeMap<u64, String> {
    nodes
        .iter()
        .map(|candidate| {
            // The prefix keeps a node without a zone apart from a zone that is named like it.
            let zone = match &candidate.zone {
                Some(zone) => format!("zone {zone}"),
                None => format!("node {}", candidate.node),
            };
            (candidate.node, zone)
        })
        .collect()
}

/// The distinct nodes in clockwise order from the shard's point.
fn walk(ring: &HashRing<Point>, shard: u64) -> Vec<u64> {
    let point = ShardPoint(point_bytes(b's', shard, 0));
    let mut seen = BTreeSet::new();
    // `get_with_replicas` repeats nodes, one for each virtual node, so the whole circle is walked.
    ring.get_with_replicas(&point, ring.len() - 1)
        .unwrap_or_default()
        .into_iter()
        .map(|point| point.node)
        .filter(|node| seen.insert(*node))
        .collect()
}

/// The load of each node so far, and its bounds.
struct Load {
    replicas: BTreeMap<u64, u64>,
    leaders: BTreeMap<u64, u64>,
    replicas_max: u64,
    leaders_max: u64,
}

impl Load {
    fn new(nodes: u64, shards: u64, replicas: u64) -> Self {
        Self {
            replicas: BTreeMap::new(),
            leaders: BTreeMap::new(),
            replicas_max: (shards * replicas).div_ceil(nodes),
            leaders_max: shards.div_ceil(nodes),
        }
    }

    fn room(&self, node: u64) -> u64 {
        self.replicas_max.saturating_sub(self.replicas.get(&node).copied().unwrap_or(0))
    }

    fn may_lead(&self, node: u64) -> bool {
        self.leaders.get(&node).copied().unwrap_or(0) < self.leaders_max
    }

    fn take(&mut self, placed: &[u64]) {
        for &node in placed {
            *self.replicas.entry(node).or_default() += 1;
        }
        if let Some(&first) = placed.first() {
            *self.leaders.entry(first).or_default() += 1;
        }
    }
}

fn place_shard(
    walk: &[u64],
    zones: &BTreeMap<u64, String>,
    load: &Load,
    wanted: usize,
) -> Vec<u64> {
    let mut chosen: Vec<u64> = Vec::with_capacity(wanted);
    let mut used_zones: BTreeSet<&str> = BTreeSet::new();
    // Three walks, each with one rule fewer: the number of replicas matters more than zones, and
    // zones matter more than an even load.
    for (zone_rule, load_rule) in [(true, true), (false, true), (false, false)] {
        for &node in walk {
            if chosen.len() == wanted {
                break;
            }
            let zone = zones[&node].as_str();
            let zone_is_free = !zone_rule || !used_zones.contains(zone);
            let has_room = !load_rule || load.room(node) > 0;
            if !chosen.contains(&node) && zone_is_free && has_room {
                chosen.push(node);
                used_zones.insert(zone);
            }
        }
    }
    if let Some(leader) = chosen.iter().position(|&node| load.may_lead(node)) {
        chosen[..=leader].rotate_right(1);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: u64) -> Vec<Candidate> {
        (1..=count).map(|node| Candidate { node, zone: None }).collect()
    }

    fn count<'a>(items: impl Iterator<Item = &'a u64>) -> BTreeMap<u64, u64> {
        let mut counts = BTreeMap::new();
        for item in items {
            *counts.entry(*item).or_default() += 1;
        }
        counts
    }

    #[test]
    fn the_placement_of_known_clusters_never_changes() {
        // Golden: nodes of different builds that form a cluster must compute the same map.
        let placed: Vec<(u64, Vec<u64>)> = place(&nodes(3), 8, 3).into_iter().collect();
        assert_eq!(placed, GOLDEN_3_NODES_8_SHARDS.map(|(s, n)| (s, n.to_vec())).to_vec());
        let placed: Vec<(u64, Vec<u64>)> = place(&nodes(5), 6, 3).into_iter().collect();
        assert_eq!(placed, GOLDEN_5_NODES_6_SHARDS.map(|(s, n)| (s, n.to_vec())).to_vec());
    }

    const GOLDEN_3_NODES_8_SHARDS: [(u64, [u64; 3]); 8] = [
        (1, [1, 3, 2]),
        (2, [2, 3, 1]),
        (3, [2, 1, 3]),
        (4, [2, 1, 3]),
        (5, [1, 3, 2]),
        (6, [3, 1, 2]),
        (7, [3, 2, 1]),
        (8, [1, 2, 3]),
    ];
    const GOLDEN_5_NODES_6_SHARDS: [(u64, [u64; 3]); 6] = [
        (1, [1, 3, 5]),
        (2, [2, 3, 5]),
        (3, [4, 2, 1]),
        (4, [4, 2, 1]),
        (5, [5, 3, 4]),
        (6, [3, 1, 5]),
    ];

    #[test]
    fn replicas_are_distinct_and_evenly_spread_with_even_leaderships() {
        for count_nodes in 1..=9 {
            for shards in [1, 7, 64, 256] {
                for replicas in [1, 3, 5, 7] {
                    let placed = place(&nodes(count_nodes), shards, replicas);
                    let wanted = replicas.min(count_nodes as usize);
                    assert_eq!(placed.len() as u64, shards);
                    for on in placed.values() {
                        let distinct: BTreeSet<_> = on.iter().collect();
                        assert_eq!((on.len(), distinct.len()), (wanted, wanted));
                    }
                    let loads = count(placed.values().flatten());
                    let bound = (shards * wanted as u64).div_ceil(count_nodes);
                    assert!(loads.values().all(|&load| load <= bound), "{loads:?} over {bound}");
                    let leaders = count(placed.values().filter_map(|on| on.first()));
                    let bound = shards.div_ceil(count_nodes);
                    assert!(leaders.values().all(|&led| led <= bound), "{leaders:?} over {bound}");
                }
            }
        }
    }

    #[test]
    fn the_order_in_which_nodes_are_named_does_not_matter() {
        let mut reversed = nodes(5);
        reversed.reverse();
        assert_eq!(place(&nodes(5), 64, 3), place(&reversed, 64, 3));
    }

    #[test]
    fn replicas_of_a_shard_are_in_different_zones_while_there_is_room() {
        let zoned: Vec<_> = (1..=6)
            .map(|node| Candidate { node, zone: Some(["a", "b", "c"][node as usize % 3].into()) })
            .collect();
        for on in place(&zoned, 64, 3).values() {
            let zones: BTreeSet<_> = on.iter().map(|node| node % 3).collect();
            assert_eq!(zones.len(), 3, "{on:?}");
        }
        // With a single zone, each shard still gets all its replicas.
        let one: Vec<_> = (1..=3).map(|node| Candidate { node, zone: Some("a".into()) }).collect();
        assert!(place(&one, 8, 3).values().all(|on| on.len() == 3));
    }
}
