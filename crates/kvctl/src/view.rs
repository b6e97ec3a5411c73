//! One picture of the cluster out of what its nodes say.
//!
//! Each node answers for itself and needs no quorum to do so; nothing here asks anything of the
//! cluster as a whole. Where answers differ, the higher term and the higher epoch are believed.

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

/// What one address answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The node, if it is known.
    pub id: Option<u64>,
    /// The address asked, as given or as the map has it.
    pub address: String,
    /// The status, or why there is none.
    pub status: Result<GetStatusResponse, String>,
}

/// The cluster as far as it can be seen.
#[derive(Debug)]
pub struct View {
    /// The nodes, those with problems first.
    pub nodes: Vec<NodeView>,
    /// The shards in order of their ids, the meta group first.
    pub shards: Vec<ShardView>,
    /// The newest map that is known.
    pub map: Option<ClusterMap>,
}

/// One node.
#[derive(Debug)]
pub struct NodeView {
    /// The node; `None` where an address did not answer and no map names it.
    pub id: Option<u64>,
    /// Where it was asked.
    pub address: String,
    /// What it answered, or why it did not.
    pub status: Result<GetStatusResponse, String>,
    /// What is wrong with it, in words that go on after its name.
    pub problem: Option<String>,
    /// It did not answer here, but a node that did is connected with it.
    pub out_of_reach: bool,
    /// By how many milliseconds its wall clock is ahead of the median of all; `None` = not known.
    pub clock_ahead_ms: Option<i64>,
}

/// One shard.
#[derive(Debug)]
pub struct ShardView {
    /// The shard; 0 is the meta group.
    pub id: u64,
    /// The nodes that vote in it, in order.
    pub voters: Vec<u64>,
    /// Those of them whose replica answered.
    pub present: Vec<u64>,
    /// The node that leads it: it says so itself, or its followers do and it is only out of reach here.
    pub leader: Option<u64>,
    /// The highest term that was seen.
    pub term: u64,
    /// The highest commit index that was seen.
    pub commit: u64,
    /// How far the leader, else the furthest replica, has applied.
    pub applied: u64,
    /// Of the voters, by how many entries the last one is behind, and which one it is; `None` where a
    /// voter's place is not known.
    pub lag: Option<(u64, u64)>,
    /// Live keys.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// The nodes whose replica of it is not in order, and how.
    pub ailing: Vec<(u64, &'static str)>,
    /// Its replicas do not hold the same; `None` = nothing shows that.
    pub diverged: Option<Diverged>,
    /// Why it does not serve; `None` = it does.
    pub trouble: Option<Trouble>,
    /// It has fewer replicas than the cluster wants.
    pub under_replicated: bool,
}

/// Replicas of one shard that have applied the same entries and do not hold the same rows: some of
/// them give wrong answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diverged {
    /// The lowest index at which it shows.
    pub index: u64,
    /// The nodes whose replicas agree with each other there, the most first.
    pub sides: Vec<Vec<u64>>,
}

/// Why a shard does not serve.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// No replica that answered leads, or knows who does.
    NoLeader {
        /// For how long, as far as one of them knows.
        since: Option<Duration>,
    },
    /// It is said to be led by a node that does not answer, and that no node that answers hears.
    LeaderSilent {
        /// That node.
        leader: u64,
    },
    /// Its leader hears fewer than a majority of its voters.
    NoQuorum {
        /// The leader.
        leader: u64,
    },
    /// None of its replicas answered.
    Unseen,
}

impl View {
    /// The picture that these answers give, beside the newest map that is known.
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

    /// Shards that hold keys, so without the meta group.
    pub fn user_shards(&self) -> impl Iterator<Item = &ShardView> {
        self.shards.iter().filter(|shard| shard.id != META)
    }

    /// How many of them serve.
    pub fn serving(&self) -> usize {
        self.user_shards().filter(|shard| shard.trouble.is_none()).count()
    }

    /// How many nodes answered.
    pub fn answering(&self) -> usize {
        self.nodes.iter().filter(|node| node.status.is_ok()).count()
    }

    /// Whether there are shards and every one of them serves, and the same everywhere, as far as the
    /// nodes that answer know.
    pub fn healthy(&self) -> bool {
        let in_order = |shard: &ShardView| shard.trouble.is_none() && shard.diverged.is_none();
        self.user_shards().next().is_some() && self.shards.iter().all(in_order)
    }
}

/// A connection on which nothing was heard for so long says nothing of the other end.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// The nodes that a node which answered is connected with, and heard a moment ago.
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
        .map(|Answer { id, address, status }| {
            let out_of_reach = status.is_err() && id.is_some_and(|id| connected.contains(&id));
            let problem = match &status {
                Err(why) if out_of_reach => Some(format!("cannot be reached from here: {why}")),
                status => problem(status),
            };
            let clock_ahead_ms = id.and_then(|id| clocks.get(&id).copied());
            NodeView { id, address, problem, status, out_of_reach, clock_ahead_ms }
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
        return Some(with_detail("does not move"));
    }
    match status.phase() {
        NodePhase::Forming => return Some(with_detail("waits for the cluster to form")),
        NodePhase::Starting => return Some(with_detail("is starting")),
        NodePhase::Draining => return Some(with_detail("is going down")),
        NodePhase::StorageFailed => return Some(with_detail("could not open its storage")),
        NodePhase::Ready | NodePhase::Unspecified => {}
    }
    match status.disk.as_ref().map(|disk| (disk.level(), disk.writes_refused)) {
        Some((DiskLevel::Critical, _)) => {
            return Some("takes no writes, not even deletes: its disk is full".into());
        }
        Some((DiskLevel::Low, _) | (_, true)) => {
            return Some("takes deletes only: its disk is full up to the reserve".into());
        }
        Some((DiskLevel::Ok | DiskLevel::Unspecified, false)) | None => {}
    }
    (!status.ready).then(|| with_detail("is not ready"))
}

/// Every replica that answered, by shard.
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
    // A leader of an older term has been deposed and does not know it yet.
    let leader = replicas
        .iter()
        .find(|(_, replica)| replica.role() == ReplicaRole::Leader && replica.term == term);
    let voters = voters(id, leader.or_else(|| replicas.first()).map(|(_, replica)| *replica), map);
    let mut present: Vec<u64> = replicas.iter().map(|(node, _)| *node).collect();
    present.sort_unstable();
    let furthest = leader.or_else(|| replicas.iter().max_by_key(|(_, replica)| replica.applied));
    let commit = replicas.iter().map(|(_, replica)| replica.commit).max().unwrap_or(0);
    let wanted = map.map_or(0, |map| map.replicas_wanted as usize);
    let standing = standing(&voters, replicas, leader.copied(), connected);
    ShardView {
        id,
        leader: standing.as_ref().ok().copied().or(leader.map(|(node, _)| *node)),
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
        trouble: standing.err(),
        under_replicated: id != META && !voters.is_empty() && voters.len() < wanted,
        voters,
        present,
    }
}

/// A group's own configuration is the truth about it; the map stands in where no replica answers.
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
        .map(|voters| voters.iter().map(|voter| voter.node_id).collect())
        .unwrap_or_default();
    voters.sort_unstable();
    voters
}

/// The voter that is furthest behind, where the place of every voter is known: from its own answer,
/// else from what the leader knows to be durable there.
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

/// Compares the digests of replicas at each index for which two of them tell one. Each replica is
/// asked at another moment: what it has applied by then, and the marks that it has passed, are
/// facts whenever they are read.
fn diverged(replicas: &[(u64, &ReplicaStatus)]) -> Option<Diverged> {
    let mut at: BTreeMap<u64, BTreeMap<&[u8], BTreeSet<u64>>> = BTreeMap::new();
    for (node, replica) in replicas {
        // One that is known to be damaged is named as such.
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

/// Who leads a shard that serves, or why it does not serve.
fn standing(
    voters: &[u64],
    replicas: &[(u64, &ReplicaStatus)],
    leader: Option<(u64, &ReplicaStatus)>,
    connected: &BTreeSet<u64>,
) -> Result<u64, Trouble> {
    if replicas.is_empty() {
        return Err(Trouble::Unseen);
    }
    let Some((leader, status)) = leader else {
        // The newest term knows best who leads now.
        let said = replicas
            .iter()
            .filter(|(_, replica)| replica.leader_node_id != 0)
            .max_by_key(|(_, replica)| replica.term)
            .map(|(_, replica)| replica.leader_node_id);
        if let Some(leader) = said
            && !replicas.iter().any(|(node, _)| *node == leader)
        {
            // One that is only out of reach here serves all the same.
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
