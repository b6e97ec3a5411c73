//! The keeper of the cluster map: proposes changes of the map, and makes this node follow it.
//!
//! The leader of group 0 proposes the first map, and a change when a node announces another
//! address. Every node creates the replicas that the map assigns to it, gives the transport its
//! peers, and stores the newest map, so that it can serve its shards without group 0.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;
use quorate_config::Config;
use quorate_engine::{Answer, Claim, Engine, MapCell, Proposal, create_replicas, replica_init};
use quorate_machine::command::encode_change_map;
use quorate_machine::{Map, WriteAnswer, map_rules, voters_of};
use quorate_placement::{Founding, first_map};
use quorate_proto::ids::Incarnation;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::{ClusterMap, GetMapRequest, MapNode};
use quorate_raft::{GroupId, NodeId};
use quorate_storage::{Database, HashRange, NodeRecords, ShardInit};
use quorate_transport::Transport;
use tokio::sync::oneshot;
use tonic::Request;
use tonic::transport::Endpoint;
use tracing::{debug, info, warn};

use super::identity::{Formed, Identity};
use crate::exit::end_for_storage;
use crate::peers::{Peers, targets};

/// The name of the node record with the newest map.
pub const MAP_RECORD: &str = "map";
/// The meta group.
pub const META: GroupId = GroupId(0);
/// Interval of the keeper without a change that wakes it.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Interval at which a node outside group 0 asks for a newer map.
const ASK_INTERVAL: Duration = Duration::from_secs(5);
/// How long the first map waits for founders that have not announced their addresses; then it uses
/// the addresses of `--initial-cluster`.
const FOUNDERS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the keeper waits for the answer to a proposal before it checks the map again.
const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The keeper, with everything that it reads and changes.
pub struct Keeper {
    /// The settings.
    pub config: Config,
    /// The identity of this node.
    pub identity: Arc<Identity>,
    /// The agreement of the founders.
    pub formed: Formed,
    /// The engine.
    pub engine: Arc<Engine>,
    /// The transport.
    pub transport: Transport,
    /// The connected peers.
    pub peers: Arc<Peers>,
    /// The newest map.
    pub map: MapCell,
    /// The database for the states of new replicas.
    pub sled: Database,
    /// The memory budget of all deltas.
    pub budget: Arc<quorate_storage::DeltaBudget>,
    /// The store of the map.
    pub records: Arc<NodeRecords>,
    /// Replicas whose state exists but could not be opened: they are not created again.
    pub damaged: BTreeSet<GroupId>,
}

impl Keeper {
    /// Runs until the node ends.
    pub async fn run(self) {
        let mut map_changed = self.map.watch();
        let mut peers_changed = self.peers.watch();
        let mut remembered = 0;
        let started = Instant::now();
        let mut asked = started;
        let mut refused = BTreeMap::new();
        loop {
            let newest = map_changed.borrow_and_update().clone();
            let known = newest.is_some();
            if let Some(map) = newest
                && map.epoch() > remembered
            {
                self.follow(&map).await;
                remembered = map.epoch();
            }
            if !known || asked.elapsed() >= ASK_INTERVAL {
                self.ask_for_map(&mut refused).await;
                asked = Instant::now();
            }
            self.propose_changes(started).await;
            tokio::select! {
                _ = map_changed.changed() => {}
                _ = peers_changed.changed() => {}
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
        }
    }

    /// Applies a new map to this node.
    async fn follow(&self, map: &Arc<Map>) {
        info!(epoch = map.epoch(), shards = map.shards().len(), "map: received a newer one");
        self.transport.set_peers(&targets(map.proto()));
        self.transport.set_map_epoch(map.epoch());
        let bytes = map.proto().encode_to_vec();
        let records = self.records.clone();
        let wanted = self.missing_replicas(map);
        let (sled, budget, engine) = (self.sled.clone(), self.budget.clone(), self.engine.clone());
        let me = self.config.node_id;
        let made = tokio::task::spawn_blocking(move || {
            records.put(MAP_RECORD, &bytes)?;
            create_replicas(&sled, &budget, &engine, me, wanted)
        });
        match made.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => end_for_storage(&error),
            Err(_) => debug!("map: replicas not created, the node is stopping"),
        }
    }

    /// The voters that the map assigns to this node and that do not exist here yet.
    fn missing_replicas(&self, map: &Map) -> Vec<ShardInit> {
        let me = self.config.node_id;
        let here = self.engine.shards().all();
        let mine = map.assigned_to(me).filter(|shard| {
            !here.contains_key(&GroupId(shard.id)) && !self.damaged.contains(&GroupId(shard.id))
        });
        mine.filter_map(|shard| {
            let range = HashRange { first: shard.first, last: shard.last };
            replica_init(GroupId(shard.id), &voters_of(&shard.replicas), me, range, shard.epoch)
        })
        .collect()
    }

    async fn propose_changes(&self, started: Instant) {
        let leads = self.engine.shards().get(META).is_some_and(|meta| meta.leadership().is_leader);
        if !leads {
            return;
        }
        let (expected, next) = match self.map.get() {
            None => match self.founding(started) {
                Some(founding) => (0, first_map(&founding)),
                None => return,
            },
            Some(map) => match self.with_new_addresses(&map) {
                Some(next) => (map.epoch(), next),
                None => return,
            },
        };
        if let Err(broken) =
            map_rules::check_change(self.map.get().as_ref().map(|map| map.proto()), &next)
        {
            warn!(error = %broken, "map: change not proposed, it breaks a rule");
            return;
        }
        let epoch = next.epoch;
        let (answer, answered) = oneshot::channel();
        let payload = encode_change_map(expected, next);
        let claim = Claim::default();
        let proposal = Proposal { group: META, payload, write: None, answer, claim };
        if self.engine.propose(proposal).is_err() {
            return;
        }
        match tokio::time::timeout(PROPOSAL_TIMEOUT, answered).await {
            Ok(Ok(Answer::Applied { answer: WriteAnswer::MapChanged { epoch }, .. })) => {
                info!(epoch, "map: changed");
            }
            // After any other outcome the keeper checks the map again; because of the expected
            // epoch, no change is made twice.
            other => debug!(epoch, ?other, "map: not changed"),
        }
    }

    /// The input of the first map, once every founder has announced its addresses.
    fn founding(&self, started: Instant) -> Option<Founding> {
        let connected = self.peers.connected();
        let patient = started.elapsed() < FOUNDERS_TIMEOUT;
        let mut nodes = Vec::new();
        for (&node, &incarnation) in &self.formed.members {
            nodes.push(if node == self.config.node_id {
                self.me(incarnation)
            } else if let Some((hello, _)) = connected.get(&node) {
                MapNode {
                    id: node.0,
                    peer_address: hello.peer_address.clone(),
                    client_address: hello.client_address.clone(),
                    labels: hello.labels.clone(),
                    incarnation: incarnation.to_bytes().to_vec().into(),
                    ..MapNode::default()
                }
            } else if patient {
                return None;
            } else {
                let address = self.config.initial_cluster.get(&node)?.to_string();
                MapNode {
                    id: node.0,
                    peer_address: address.clone(),
                    client_address: address,
                    labels: BTreeMap::new(),
                    incarnation: incarnation.to_bytes().to_vec().into(),
                    ..MapNode::default()
                }
            });
        }
        Some(Founding {
            cluster_id: self.formed.cluster_id.to_bytes(),
            cluster_name: self.formed.cluster_name.clone(),
            shards: u64::from(self.formed.shards),
            replicas: self.formed.replicas,
            nodes,
        })
    }

    fn me(&self, incarnation: Incarnation) -> MapNode {
        MapNode {
            id: self.config.node_id.0,
            peer_address: self.config.advertise.to_string(),
            client_address: self.config.advertise_client.to_string(),
            labels: self.config.locality.clone(),
            incarnation: incarnation.to_bytes().to_vec().into(),
            ..MapNode::default()
        }
    }

    /// The map with the addresses and labels that nodes of the right incarnation announce; `None` =
    /// no change.
    fn with_new_addresses(&self, map: &Map) -> Option<ClusterMap> {
        let mut next = map.proto().clone();
        let connected = self.peers.connected();
        for node in &mut next.nodes {
            if node.id == self.config.node_id.0 {
                let state = node.state;
                *node = MapNode { state, ..self.me(self.identity.incarnation()) };
            } else if let Some((hello, _)) = connected.get(&NodeId(node.id))
                && Incarnation::from_bytes(&node.incarnation) == Some(hello.incarnation)
            {
                node.peer_address.clone_from(&hello.peer_address);
                node.client_address.clone_from(&hello.client_address);
                node.labels.clone_from(&hello.labels);
            }
        }
        if next.nodes == map.proto().nodes {
            return None;
        }
        next.epoch += 1;
        Some(next)
    }

    /// Gets the map, and each newer one, from the other nodes if this one is outside group 0. Why
    /// the map of a node is rejected is logged once per reason; `refused` holds the last reason.
    async fn ask_for_map(&self, refused: &mut BTreeMap<NodeId, String>) {
        if self.engine.shards().get(META).is_some() {
            return;
        }
        for (node, (hello, _)) in self.peers.connected() {
            let mut question = Request::new(GetMapRequest {
                newer_than: self.map.epoch(),
                ..GetMapRequest::default()
            });
            self.transport.prove_call(node, question.metadata_mut());
            let Some(map) = fetch_map(&hello.peer_address, question).await else {
                continue;
            };
            match check_fetched(&map, &self.formed.cluster_id.to_bytes()) {
                Ok(()) => {
                    refused.remove(&node);
                    self.map.offer(Map::new(map));
                    return;
                }
                Err(why) => {
                    let (peer, address) = (node.0, &hello.peer_address);
                    if refused.get(&node) != Some(&why) {
                        warn!(peer, address, why, "map: rejected");
                    }
                    refused.insert(node, why);
                }
            }
        }
    }
}

/// Checks a map that was fetched from an address. Only the address identifies the sender, and a
/// node of another cluster may have that address by now.
///
/// # Errors
/// The reason to reject it, as a sentence.
fn check_fetched(map: &ClusterMap, cluster_id: &[u8]) -> Result<(), String> {
    if map.cluster_id != cluster_id {
        return Err(format!("it belongs to another cluster, {}", hex::encode(&map.cluster_id)));
    }
    map_rules::check(map).map_err(|broken| broken.to_string())
}

/// Asks a node for its map if it is newer.
async fn fetch_map(address: &str, question: Request<GetMapRequest>) -> Option<ClusterMap> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
    let endpoint = endpoint.connect_timeout(Duration::from_secs(1)).timeout(Duration::from_secs(2));
    let mut client = ClusterClient::new(endpoint.connect_lazy());
    client.get_map(question).await.ok()?.into_inner().map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> ClusterMap {
        let node = |id: u64| MapNode {
            id,
            peer_address: format!("10.0.0.{id}:7401"),
            client_address: format!("10.0.0.{id}:7400"),
            labels: BTreeMap::new(),
            incarnation: vec![id as u8; 16].into(),
            ..MapNode::default()
        };
        first_map(&Founding {
            cluster_id: [7; 16],
            cluster_name: "quorate".into(),
            shards: 4,
            replicas: 3,
            nodes: (1..=3).map(node).collect(),
        })
    }

    #[test]
    fn a_fetched_map_is_accepted_only_if_it_is_ours_and_complete() {
        assert_eq!(check_fetched(&map(), &[7; 16]), Ok(()));
        let foreign = check_fetched(&map(), &[8; 16]).expect_err("it belongs to another cluster");
        assert_eq!(foreign, format!("it belongs to another cluster, {}", "07".repeat(16)));
        let mut with_a_gap = map();
        with_a_gap.shards.remove(1);
        let broken = check_fetched(&with_a_gap, &[7; 16]).expect_err("a hash has no owner");
        assert!(broken.contains("not where the previous shard ends"), "{broken}");
    }
}
