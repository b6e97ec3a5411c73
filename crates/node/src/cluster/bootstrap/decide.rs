//! The formation decision: a pure function of the answers of one round.

use std::collections::BTreeMap;
use std::fmt;

use quorate_proto::ids::Incarnation;
use quorate_raft::NodeId;

use super::Plan;
use crate::cluster::identity::Formed;

/// Answer of a listed peer, or the reason that there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No usable answer; the reason in words.
    Silent(String),
    /// It has not formed.
    Unformed {
        /// The incarnation of its directory.
        incarnation: Incarnation,
        /// [`Plan::hash`] of its plan.
        plan_hash: u64,
        /// [`Plan::describe`] of its plan.
        plan: String,
    },
    /// It belongs to a cluster.
    Formed(Formed),
}

/// Next step of an unformed node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Ask again later.
    Wait(Vec<Waiting>),
    /// All peers are new and have an equal plan: form this.
    Form(Formed),
    /// The cluster exists and knows this directory: copy its record.
    Join(Formed),
    /// The cluster exists and does not know this directory: end with this sentence.
    Refuse(String),
}

/// A peer that formation waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The peer.
    pub node: NodeId,
    /// The reason, in words.
    pub why: String,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}: {}", self.node.0, self.why)
    }
}

/// Decides on the answers of one round. A listed peer without an answer counts as silent.
///
/// A formed peer decides, regardless of the others: this node joins if that peer recorded this
/// incarnation, and otherwise ends. The node forms only if no peer has formed and every listed peer
/// answered with an equal plan.
pub fn decide(
    my_incarnation: Incarnation,
    plan: &Plan,
    answers: &BTreeMap<NodeId, Answer>,
) -> Decision {
    if let Some(settled) = decide_by_formed(my_incarnation, plan, answers) {
        return settled;
    }
    let mut members = BTreeMap::from([(plan.me, my_incarnation)]);
    let mut waiting = Vec::new();
    for (&node, address) in plan.initial_cluster.iter().filter(|(node, _)| **node != plan.me) {
        let why = match answers.get(&node) {
            Some(Answer::Unformed { incarnation, plan_hash, .. }) if *plan_hash == plan.hash() => {
                members.insert(node, *incarnation);
                continue;
            }
            Some(Answer::Unformed { plan: theirs, .. }) => format!(
                "it was started with other flags: it has {theirs}, this node has {}",
                plan.describe()
            ),
            Some(Answer::Silent(why)) => format!("no answer from {address} ({why})"),
            Some(Answer::Formed(_)) | None => format!("no answer from {address}"),
        };
        waiting.push(Waiting { node, why });
    }
    if waiting.is_empty() {
        Decision::Form(Formed::new(&plan.cluster_name, members, plan.shards, plan.replicas))
    } else {
        Decision::Wait(waiting)
    }
}

/// The decision that the formed peers imply; `None` when there are none.
fn decide_by_formed(
    my_incarnation: Incarnation,
    plan: &Plan,
    answers: &BTreeMap<NodeId, Answer>,
) -> Option<Decision> {
    let mut join: Option<(NodeId, &Formed)> = None;
    for (&peer, answer) in answers {
        let Answer::Formed(formed) = answer else { continue };
        if formed.cluster_name != plan.cluster_name {
            return Some(Decision::Refuse(format!(
                "node {} belongs to cluster {}, but this node was started with --cluster-name {}",
                peer.0, formed.cluster_name, plan.cluster_name
            )));
        }
        match formed.members.get(&plan.me) {
            Some(incarnation) if *incarnation == my_incarnation => {}
            Some(_) => {
                return Some(Decision::Refuse(format!(
                    "node {me} is already a member of cluster {name}, with another data directory: \
                     node {peer} has recorded incarnation {theirs}, and this directory is \
                     {my_incarnation}. A wiped or replaced directory has lost its votes, so it \
                     cannot be used as node {me}. Start the node with its old directory",
                    me = plan.me.0,
                    name = formed.cluster_name,
                    peer = peer.0,
                    theirs = formed.members[&plan.me],
                )));
            }
            None => {
                return Some(Decision::Refuse(format!(
                    "cluster {} already exists (node {} is a member) and node {} is not a member \
                     of it; a new node cannot be added yet",
                    formed.cluster_name, peer.0, plan.me.0
                )));
            }
        }
        match join {
            Some((first, other)) if other != formed => {
                return Some(Decision::Refuse(format!(
                    "node {} is in cluster {} and node {} in cluster {}; this node cannot \
                     decide which one is right",
                    first.0, other.cluster_id, peer.0, formed.cluster_id
                )));
            }
            _ => join = Some((peer, formed)),
        }
    }
    join.map(|(_, formed)| Decision::Join(formed.clone()))
}
