//! Routing of calls: the newest known map, the leader of each shard, and the reachable nodes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::RwLock;
use quorate_proto::hash;
use quorate_proto::map::voters;
use quorate_proto::v1::{ClusterMap, GetMapResponse, MapShard, RouteHint};

use crate::pool::{Connection, Fitness, Pool};

/// The preferred node of a call. Every node answers every call; the right one saves a hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The leader of the key's shard.
    Leader,
    /// Any replica of the key's shard.
    Replica,
    /// Any node.
    Any,
}

/// Routing table: the map and the known leaders. Replaced as a whole when the map changes.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub map: ClusterMap,
    /// The last known leader of each shard of the map; 0 = unknown.
    leaders: Vec<AtomicU64>,
    /// Shard id → position in the map.
    positions: HashMap<u64, usize>,
    nodes: BTreeMap<u64, Arc<Connection>>,
}

impl Table {
    /// The shard of a key as its position in the map; none before a map is known.
    pub fn shard_of(&self, key: &[u8]) -> Option<usize> {
        hash::owner(&self.map.shards, hash::key_hash(key))
    }

    pub fn shard(&self, position: usize) -> &MapShard {
        &self.map.shards[position]
    }

    /// The node of the last known leader, else of the preferred leader; 0 = unknown.
    pub fn leader(&self, position: usize) -> u64 {
        match self.leaders[position].load(Ordering::Relaxed) {
            0 => voters(&self.shard(position).replicas).next().map_or(0, |r| r.node_id),
            node => node,
        }
    }

    /// The node of the last known leader; 0 = unknown.
    pub fn known_leader(&self, position: usize) -> u64 {
        self.leaders[position].load(Ordering::Relaxed)
    }

    /// The node of the leader of a shard; none where it is not known, as of the meta group.
    pub fn leader_of(&self, shard: u64) -> Option<u64> {
        let position = *self.positions.get(&shard)?;
        Some(self.known_leader(position)).filter(|node| *node != 0)
    }

    pub fn hint(&self, position: Option<usize>) -> Option<RouteHint> {
        if self.map.epoch == 0 {
            return None;
        }
        let shard = position.map(|p| self.shard(p));
        Some(RouteHint {
            cluster_id: self.map.cluster_id.clone(),
            shard: shard.map_or(0, |s| s.id),
            shard_epoch: shard.map_or(0, |s| s.epoch),
            map_epoch: self.map.epoch,
        })
    }

    pub fn nodes(&self) -> impl Iterator<Item = (u64, &Arc<Connection>)> {
        self.nodes.iter().map(|(id, c)| (*id, c))
    }

    fn learn_leader(&self, shard: u64, node: u64) {
        if node == 0 || !self.nodes.contains_key(&node) {
            return;
        }
        if let Some(i) = self.positions.get(&shard) {
            let leader = &self.leaders[*i];
            if leader.load(Ordering::Relaxed) != node {
                leader.store(node, Ordering::Relaxed);
            }
        }
    }
}

/// Router, shared by all calls of a client.
#[derive(Debug)]
pub(crate) struct Router {
    table: RwLock<Arc<Table>>,
    seeds: Vec<Arc<Connection>>,
    /// Counter that spreads the calls that any node may serve.
    turn: AtomicUsize,
}

impl Router {
    pub fn new(seeds: Vec<Arc<Connection>>) -> Router {
        Router { table: RwLock::default(), seeds, turn: AtomicUsize::new(0) }
    }

    pub fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read())
    }

    pub fn epoch(&self) -> u64 {
        self.table.read().map.epoch
    }

    /// Learns the answer of a GetMap. Returns false for a map of another cluster, which is ignored.
    pub fn learn_map(&self, answer: GetMapResponse, pool: &Pool) -> bool {
        let mut table = self.table.write();
        if let Some(map) = answer.map {
            if table.map.epoch != 0 && map.cluster_id != table.map.cluster_id {
                return false;
            }
            if map.epoch > table.map.epoch {
                *table = Arc::new(table_of(map, &table, pool));
            }
        }
        for leader in answer.leaders {
            table.learn_leader(leader.shard, leader.node_id);
        }
        true
    }

    pub fn learn_leader(&self, shard: u64, node: u64) {
        self.table.read().learn_leader(shard, node);
    }

    /// The best connection for a call that is not in `tried`; none if all are.
    pub fn pick(
        &self,
        table: &Table,
        shard: Option<usize>,
        route: Route,
        tried: &[Arc<Connection>],
    ) -> Option<Arc<Connection>> {
        let turn = match route {
            Route::Leader => 0,
            Route::Replica | Route::Any => self.turn.fetch_add(1, Ordering::Relaxed),
        };
        let of_shard = shard.filter(|_| route != Route::Any);
        let leader = of_shard
            .filter(|_| route == Route::Leader)
            .and_then(|p| table.nodes.get(&table.leader(p)));
        let replicas = of_shard.map_or(&[][..], |p| &table.shard(p).replicas);
        let replicas =
            rotated(replicas.len(), turn).filter_map(|i| table.nodes.get(&replicas[i].node_id));
        let all = table.nodes.len();
        let others = table.nodes.values();
        let others = others.clone().skip(turn % all.max(1)).chain(others).take(all);
        let seeds = rotated(self.seeds.len(), turn).map(|i| &self.seeds[i]);

        let mut last_resort = None;
        for connection in leader.into_iter().chain(replicas).chain(others).chain(seeds) {
            if tried.iter().any(|t| Arc::ptr_eq(t, connection)) {
                continue;
            }
            if connection.fitness() == Fitness::Good {
                return Some(Arc::clone(connection));
            }
            last_resort.get_or_insert(connection);
        }
        last_resort.cloned()
    }

    /// The nodes with an unreachable advertised address, without those whose given endpoint is that
    /// very address. Calls to them go through the given endpoints.
    pub fn unreachable(&self) -> Vec<(u64, Arc<Connection>)> {
        let table = self.table();
        let unreachable = table.nodes().filter(|(_, c)| c.is_unreachable() && !self.is_given(c));
        unreachable.map(|(id, c)| (id, Arc::clone(c))).collect()
    }

    /// Whether a connection is one of the given endpoints.
    pub fn is_given(&self, connection: &Arc<Connection>) -> bool {
        self.seeds.iter().any(|seed| Arc::ptr_eq(seed, connection))
    }

    /// All nodes of the map, and the given endpoints that are not among them, with their ids if
    /// known.
    pub fn everyone(&self) -> Vec<(Option<u64>, Arc<Connection>)> {
        let table = self.table();
        let mut all: Vec<_> = table.nodes().map(|(id, c)| (Some(id), Arc::clone(c))).collect();
        for seed in &self.seeds {
            if !all.iter().any(|(_, c)| Arc::ptr_eq(c, seed)) {
                all.push((None, Arc::clone(seed)));
            }
        }
        all
    }
}

fn rotated(len: usize, turn: usize) -> impl Iterator<Item = usize> {
    (0..len).map(move |i| (i + turn) % len)
}

/// Makes the table of a new map. Known leaders are kept if they still have a replica of their
/// shard.
fn table_of(map: ClusterMap, old: &Table, pool: &Pool) -> Table {
    let known = |shard: &MapShard| {
        let i = old.positions.get(&shard.id)?;
        let leader = old.leaders[*i].load(Ordering::Relaxed);
        let still = shard.replicas.iter().any(|r| r.node_id == leader);
        still.then_some(leader)
    };
    let leaders = map.shards.iter().map(|s| AtomicU64::new(known(s).unwrap_or(0)));
    let positions = map.shards.iter().enumerate().map(|(i, s)| (s.id, i));
    let nodes = map.nodes.iter().filter(|n| !n.client_address.is_empty());
    Table {
        leaders: leaders.collect(),
        positions: positions.collect(),
        nodes: nodes.map(|n| (n.id, pool.at(&n.client_address))).collect(),
        map,
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::{MapReplica, MapReplicaRole};

    use super::*;

    /// A newer node may send such a map. Without a leader known the first voter is asked.
    #[test]
    fn a_replica_without_a_vote_is_not_the_preferred_leader() {
        let replica = |node_id, role| MapReplica { replica_id: node_id, node_id, role };
        let replicas =
            vec![replica(4, MapReplicaRole::Learner as i32), replica(5, 9), replica(2, 0)];
        let shard = MapShard { id: 1, last: u64::MAX, state: 9, replicas, ..MapShard::default() };
        let map = ClusterMap { epoch: 1, shards: vec![shard], ..ClusterMap::default() };
        let leaders = vec![AtomicU64::new(0)];
        let table =
            Table { map, leaders, positions: HashMap::from([(1, 0)]), nodes: BTreeMap::new() };
        let position = table.shard_of(b"key").expect("the ranges route, whatever the state");
        assert_eq!(table.leader(position), 2);
    }
}
