//! View of the cluster, merged from the status of its nodes.
//!
//! Each node reports its own status, for which it needs no quorum. Where reports differ, the higher
//! term and the higher epoch win.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::wire::{
    ClusterMap, DiskLevel, GetStatusResponse, NodePhase, ReplicaHealth, ReplicaRole,
};
use crate::wire::{ReplicaStatus, std_duration};

mod clocks;
mod summary;

pub use summary::node_names;

/// The group that replicates the cluster map.
pub const META: u64 = 0;

/// The status that one address reported.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The node, if it is known.
    pub id: Option<u64>,
    /// The address, as given or from the map.
    pub address: String,
    /// The status, or why there is none.
    pub status: Result<GetStatusResponse, String>,
    /// The node answered that it takes no more clients or calls.
    pub refused: bool,
}

/// The state of the cluster, as far as its nodes answer.
#[derive(Debug)]
pub struct View {
    /// The nodes, those with problems first.
    pub nodes: Vec<NodeView>,
    /// The shards in order of their ids, the meta group first.
    pub shards: Vec<ShardView>,
    /// The newest known map.
    pub map: Option<ClusterMap>,
}

/// The state of one node.
#[derive(Debug)]
pub struct NodeView {
    /// The node's id; `None` if an address did not answer and no map names it.
    pub id: Option<u64>,
    /// The address at which its status was requested.
    pub address: String,
    /// Its status, or why it did not answer.
    pub status: Result<GetStatusResponse, String>,
    /// Its problem, as words that follow the node's name.
    pub problem: Option<String>,
    /// It did not answer this client, but a node that answered is connected to it.
    pub out_of_reach: bool,
    /// It answered, but only that it takes no more clients or calls.
    pub refused: bool,
    /// Offset of its wall clock from the median of all, in milliseconds, positive if ahead; `None`
    /// = not known.
    pub clock_ahead_ms: Option<i64>,
}

/// The state of one shard.
#[derive(Debug)]
pub struct ShardView {
    /// The shard's id; 0 is the meta group.
    pub id: u64,
    /// The nodes of its voters, in order.
    pub voters: Vec<u64>,
    /// Those voters' nodes whose status shows the replica.
    pub present: Vec<u64>,
    /// The node of its leader, as the leader itself reports, or as its followers do if only this
    /// client cannot reach the leader.
    pub leader: Option<u64>,
    /// The highest reported term.
    pub term: u64,
    /// The highest reported commit index.
    pub commit: u64,
    /// The applied index of the leader, else of the replica that is furthest ahead.
    pub applied: u64,
    /// The lag of the voter that is furthest behind, in entries, and its node; `None` if the
    /// progress of a voter is not known.
    pub lag: Option<(u64, u64)>,
    /// Number of keys.
    pub keys: u64,
    /// Size of keys and values in bytes.
    pub bytes: u64,
    /// The nodes whose replica is not healthy, and its problem.
    pub ailing: Vec<(u64, &'static str)>,
    /// Evidence that its replicas differ; `None` = there is none.
    pub diverged: Option<Diverged>,
    /// Why it does not serve; `None` = it serves.
    pub trouble: Option<Trouble>,
    /// It has fewer replicas than the cluster wants.
    pub under_replicated: bool,
}

/// Divergence: replicas of one shard that have applied the same entries and hold different rows, so
/// that some of them return wrong data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diverged {
    /// The lowest index at which their digests differ.
    pub index: u64,
    /// Groups of nodes whose replicas have the same digest there, the largest first.
    pub sides: Vec<Vec<u64>>,
}

/// Why a shard does not serve.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// No reported replica leads or knows the leader.
    NoLeader {
        /// How long it has had no leader, as far as a replica knows.
        since: Option<Duration>,
    },
    /// Its replicas name a leader that does not answer, and no node that answers hears from it.
    LeaderSilent {
        /// The node of that leader.
        leader: u64,
    },
    /// Its leader hears from fewer than a majority of its voters.
    NoQuorum {
        /// The leader.
        leader: u64,
    },
    /// None of its replicas answered.
    Unseen,
}

impl View {
    /// Merges the answers of the nodes with the newest known map.
    pub fn of(answers: Vec<Answer>, map: Option<ClusterMap>) -> View {
        let connected = connected(&answers);
        let nodes = nodes(answers, &connected);
        let replicas = replicas(&nodes);
        let mut ids: BTreeSet<u64> = replicas.keys().copied().collect();
        if let Some(map) = &map {
            ids.insert(META);
            ids.extend(map.shards.iter().map(|shard| shard.id));
        }
        let none = Vec::new();
        let shards = ids
            .into_iter()
            .map(|id| shard(id, replicas.get(&id).unwrap_or(&none), map.as_ref(), &connected))
            .collect();
        View { nodes, shards, map }
    }

    /// The shards that hold keys: all but the meta group.
    pub fn user_shards(&self) -> impl Iterator<Item = &ShardView> {
        self.shards.iter().filter(|shard| shard.id != META)
    }

    /// Number of these shards that serve.
    pub fn serving(&self) -> usize {
        self.user_shards().filter(|shard| shard.trouble.is_none()).count()
    }

    /// Number of nodes that answered.
    pub fn answering(&self) -> usize {
        self.nodes.iter().filter(|node| node.status.is_ok()).count()
    }

    /// Whether there are shards, every shard serves, and no replicas are known to differ.
    pub fn healthy(&self) -> bool {
        let is_healthy = |shard: &ShardView| shard.trouble.is_none() && shard.diverged.is_none();
        self.user_shards().next().is_some() && self.shards.iter().all(is_healthy)
    }
}

/// Maximum silence of a connection that still counts as evidence that the peer is alive.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// The nodes that are connected to a node that answered and were heard recently.
fn connected(answers: &[Answer]) -> BTreeSet<u64> {
    let peers = answers.iter().filter_map(|answer| answer.status.as_ref().ok());
    peers
        .flat_map(|status| &status.peers)
        .filter(|peer| {
            let silent_for = peer.silent_for.as_ref().map(std_duration);
            peer.connected && silent_for.is_none_or(|silent| silent < SILENCE_MAX)
        })
        .map(|peer| peer.node_id)
        .collect()
}

/// The nodes, those with problems first.
fn nodes(answers: Vec<Answer>, connected: &BTreeSet<u64>) -> Vec<NodeView> {
    let clocks = clocks::ahead_of_median(&answers);
    let mut nodes: Vec<NodeView> = answers
        .into_iter()
        .map(|Answer { id, address, status, refused }| {
            let unreached = status.is_err() && !refused;
            let out_of_reach = unreached && id.is_some_and(|id| connected.contains(&id));
            let problem = match &status {
                Err(why) if refused => Some(format!("is up and refuses this client: {why}")),
                Err(why) if out_of_reach => Some(format!("cannot be reached from here: {why}")),
                status => problem(status),
            };
            let clock_ahead_ms = id.and_then(|id| clocks.get(&id).copied());
            NodeView { id, address, problem, status, out_of_reach, refused, clock_ahead_ms }
        })
        .collect();
    let clock_is_right = |node: &NodeView| !node.clock_ahead_ms.is_some_and(clocks::is_off);
    nodes.sort_by_key(|node| {
        (node.problem.is_none(), clock_is_right(node), node.id.unwrap_or(u64::MAX))
    });
    nodes
}

fn problem(status: &Result<GetStatusResponse, String>) -> Option<String> {
    let status = match status {
        Ok(status) => status,
        Err(why) => return Some(format!("does not answer: {why}")),
    };
    let with_detail = |what: &str| match status.detail.as_str() {
        "" => what.to_owned(),
        detail => format!("{what}: {detail}"),
    };
    if !status.live {
        return Some(with_detail("is stuck"));
    }
    match status.phase() {
        NodePhase::Forming => return Some(with_detail("waits for the cluster to form")),
        NodePhase::Starting => return Some(with_detail("is starting")),
        NodePhase::Draining => return Some(with_detail("is shutting down")),
        NodePhase::StorageFailed => return Some(with_detail("could not open its storage")),
        NodePhase::Ready | NodePhase::Unspecified => {}
    }
    match status.disk.as_ref().map(|disk| (disk.level(), disk.writes_refused)) {
        Some((DiskLevel::Critical, _)) => {
            return Some("rejects all writes, even deletes: its disk is full".into());
        }
        Some((DiskLevel::Low, _) | (_, true)) => {
            return Some("accepts only deletes: its disk is full up to the reserve".into());
        }
        Some((DiskLevel::Ok | DiskLevel::Unspecified, false)) | None => {}
    }
    (!status.ready).then(|| with_detail("is not ready"))
}

/// All reported replicas, by shard.
fn replicas(nodes: &[NodeView]) -> BTreeMap<u64, Vec<(u64, &ReplicaStatus)>> {
    let mut replicas: BTreeMap<u64, Vec<_>> = BTreeMap::new();
    for node in nodes {
        let Ok(status) = &node.status else { continue };
        for replica in &status.replicas {
            replicas.entry(replica.shard).or_default().push((status.node_id, replica));
        }
    }
    replicas
}

fn shard(
    id: u64,
    replicas: &[(u64, &ReplicaStatus)],
    map: Option<&ClusterMap>,
    connected: &BTreeSet<u64>,
) -> ShardView {
    let term = replicas.iter().map(|(_, replica)| replica.term).max().unwrap_or(0);
    // A leader of an older term has been deposed and has not noticed it yet.
    let leader = replicas
        .iter()
        .find(|(_, replica)| replica.role() == ReplicaRole::Leader && replica.term == term);
    let voters = voters(id, leader.or_else(|| replicas.first()).map(|(_, replica)| *replica), map);
    let mut present: Vec<u64> = replicas.iter().map(|(node, _)| *node).collect();
    present.sort_unstable();
    let furthest = leader.or_else(|| replicas.iter().max_by_key(|(_, replica)| replica.applied));
    let commit = replicas.iter().map(|(_, replica)| replica.commit).max().unwrap_or(0);
    let wanted = map.map_or(0, |map| map.replicas_wanted as usize);
    let leader_or_trouble = leader_or_trouble(&voters, replicas, leader.copied(), connected);
    ShardView {
        id,
        leader: leader_or_trouble.as_ref().ok().copied().or(leader.map(|(node, _)| *node)),
        term,
        commit,
        applied: furthest.map_or(0, |(_, replica)| replica.applied),
        lag: lag(commit, &voters, replicas, leader.map(|(_, replica)| *replica)),
        keys: furthest.map_or(0, |(_, replica)| replica.keys),
        bytes: furthest.map_or(0, |(_, replica)| replica.bytes),
        ailing: replicas
            .iter()
            .filter_map(|(node, replica)| Some((*node, ailment(replica.health())?)))
            .collect(),
        diverged: diverged(replicas),
        trouble: leader_or_trouble.err(),
        under_replicated: id != META && !voters.is_empty() && voters.len() < wanted,
        voters,
        present,
    }
}

/// The nodes of the voters: from the group's own configuration, else, if no replica is reported,
/// from the map.
fn voters(id: u64, replica: Option<&ReplicaStatus>, map: Option<&ClusterMap>) -> Vec<u64> {
    let of_map = || {
        let map = map?;
        if id == META {
            return Some(&map.meta_replicas);
        }
        map.shards.iter().find(|shard| shard.id == id).map(|shard| &shard.replicas)
    };
    let own = replica.map(|replica| &replica.voters).filter(|voters| !voters.is_empty());
    let mut voters: Vec<u64> = own
        .or_else(of_map)
        .map(|of| of.iter().filter(|one| one.is_voter()).map(|one| one.node_id).collect())
        .unwrap_or_default();
    voters.sort_unstable();
    voters
}

/// The lag of the voter that is furthest behind, and its node, if the progress of every voter is
/// known: from its own report, else from what the leader knows to be durable there.
fn lag(
    commit: u64,
    voters: &[u64],
    replicas: &[(u64, &ReplicaStatus)],
    leader: Option<&ReplicaStatus>,
) -> Option<(u64, u64)> {
    let place = |voter: u64| {
        let own = replicas.iter().find(|(node, _)| *node == voter);
        own.map(|(_, replica)| replica.applied).or_else(|| {
            let progress = leader?.progress.iter().find(|progress| progress.node_id == voter)?;
            Some(progress.matched)
        })
    };
    let lags = voters.iter().map(|voter| Some((commit.saturating_sub(place(*voter)?), *voter)));
    lags.collect::<Option<Vec<_>>>()?.into_iter().max_by_key(|(lag, _)| *lag)
}

/// Compares the digests of replicas at each index for which at least two report one. The reports
/// are from different times, which does not matter: the digest at an index never changes.
fn diverged(replicas: &[(u64, &ReplicaStatus)]) -> Option<Diverged> {
    let mut at: BTreeMap<u64, BTreeMap<&[u8], BTreeSet<u64>>> = BTreeMap::new();
    for (node, replica) in replicas {
        // A replica that is known to be damaged is reported as damaged instead.
        if replica.health() == ReplicaHealth::Damaged {
            continue;
        }
        let marks = replica.marks.iter().map(|mark| (mark.applied, &mark.digest));
        let newest = (replica.digest_applied, &replica.digest);
        for (index, digest) in marks.chain([newest]).filter(|(_, digest)| !digest.is_empty()) {
            at.entry(index).or_default().entry(digest).or_default().insert(*node);
        }
    }
    let (index, by_digest) = at.into_iter().find(|(_, by_digest)| by_digest.len() > 1)?;
    let mut sides: Vec<Vec<u64>> =
        by_digest.into_values().map(|nodes| nodes.into_iter().collect()).collect();
    sides.sort_by_key(|nodes| (std::cmp::Reverse(nodes.len()), nodes[0]));
    Some(Diverged { index, sides })
}

fn ailment(health: ReplicaHealth) -> Option<&'static str> {
    match health {
        ReplicaHealth::Ok | ReplicaHealth::Unspecified => None,
        ReplicaHealth::Scrubbing => Some("is being checked"),
        ReplicaHealth::Installing => Some("receives a snapshot"),
        ReplicaHealth::Damaged => Some("is damaged"),
    }
}

/// The node of the leader of a shard that serves, or why the shard does not serve.
fn leader_or_trouble(
    voters: &[u64],
    replicas: &[(u64, &ReplicaStatus)],
    leader: Option<(u64, &ReplicaStatus)>,
    connected: &BTreeSet<u64>,
) -> Result<u64, Trouble> {
    if replicas.is_empty() {
        return Err(Trouble::Unseen);
    }
    let Some((leader, status)) = leader else {
        // The replica with the newest term knows the current leader best.
        let said = replicas
            .iter()
            .filter(|(_, replica)| replica.leader_node_id != 0)
            .max_by_key(|(_, replica)| replica.term)
            .map(|(_, replica)| replica.leader_node_id);
        if let Some(leader) = said
            && !replicas.iter().any(|(node, _)| *node == leader)
        {
            // A leader that only this client cannot reach serves.
            let heard = connected.contains(&leader);
            return if heard { Ok(leader) } else { Err(Trouble::LeaderSilent { leader }) };
        }
        let since = replicas.iter().filter_map(|(_, replica)| replica.leaderless_for.as_ref());
        return Err(Trouble::NoLeader { since: since.map(std_duration).max() });
    };
    let hears = |progress: &&crate::wire::ReplicaProgress| {
        progress.active && voters.contains(&progress.node_id) && progress.node_id != leader
    };
    let hearing = status.progress.iter().filter(hears).count() + 1;
    if hearing <= voters.len() / 2 { Err(Trouble::NoQuorum { leader }) } else { Ok(leader) }
}

#[cfg(test)]
pub mod tests;
