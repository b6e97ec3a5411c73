//! Questions of formation: asking the listed peers, and answering them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use quorate_proto::ids::{ClusterId, Incarnation};
use quorate_proto::raft::v1 as wire;
use quorate_raft::NodeId;
use quorate_transport::{Greeter, ProofKey};

use super::{Answer, Plan};
use crate::cluster::identity::{Formed, Identity};

/// Deadline of one peer, from resolving its name to its answer.
const ASK_DEADLINE: Duration = Duration::from_secs(1);

/// Answers of this node to peers that ask, before and after it has formed.
#[derive(Clone, Debug)]
pub struct AskAnswers {
    identity: Arc<Identity>,
    plan_hash: u64,
    plan: String,
}

impl AskAnswers {
    /// Answers for this identity, started with this plan.
    pub fn new(identity: Arc<Identity>, plan: &Plan) -> Self {
        Self { identity, plan_hash: plan.hash(), plan: plan.describe() }
    }
}

impl Greeter for AskAnswers {
    fn node(&self) -> NodeId {
        self.identity.node_id()
    }

    fn answer(&self) -> wire::AskResponse {
        wire::AskResponse {
            node_id: self.identity.node_id().0,
            incarnation: self.identity.incarnation().to_bytes().to_vec().into(),
            plan_hash: self.plan_hash,
            plan: self.plan.clone(),
            formed: self.identity.formed().map(|formed| formed_to_wire(&formed)),
            challenge: None,
        }
    }
}

/// Asks every peer of the plan, at the same time.
pub(super) async fn ask_all(
    identity: &Identity,
    plan: &Plan,
    key: &ProofKey,
) -> BTreeMap<NodeId, Answer> {
    let peers = plan.initial_cluster.iter().filter(|(node, _)| **node != plan.me);
    join_all(peers.map(|(&node, address)| async move {
        let answer = match tokio::time::timeout(ASK_DEADLINE, ask(identity, plan, node, key)).await
        {
            Ok(Ok(response)) => read_answer(node, address, &response),
            Ok(Err(why)) => Answer::Silent(why),
            Err(_) => Answer::Silent(format!("no response within {ASK_DEADLINE:?}")),
        };
        (node, answer)
    }))
    .await
    .into_iter()
    .collect()
}

async fn ask(
    identity: &Identity,
    plan: &Plan,
    node: NodeId,
    key: &ProofKey,
) -> Result<wire::AskResponse, String> {
    let request = wire::AskRequest {
        from_node: plan.me.0,
        from_incarnation: identity.incarnation().to_bytes().to_vec().into(),
        to_node: node.0,
        cluster_name: plan.cluster_name.clone(),
        plan_hash: plan.hash(),
        ..wire::AskRequest::default()
    };
    quorate_transport::ask(&plan.initial_cluster[&node], request, key).await
}

/// The answer in a response. A response that contradicts itself, or is from another node, counts as
/// silence.
fn read_answer(node: NodeId, address: &str, response: &wire::AskResponse) -> Answer {
    if response.node_id != node.0 {
        return Answer::Silent(format!("{address} is node {}", response.node_id));
    }
    let Some(incarnation) = Incarnation::from_bytes(&response.incarnation) else {
        return Answer::Silent("its incarnation does not have 16 bytes".into());
    };
    match &response.formed {
        None => Answer::Unformed {
            incarnation,
            plan_hash: response.plan_hash,
            plan: response.plan.clone(),
        },
        Some(formed) => match formed_from_wire(formed) {
            Ok(formed) if formed.members.get(&node).is_some_and(|known| *known != incarnation) => {
                Answer::Silent("it is not the incarnation in its own record".into())
            }
            Ok(formed) => Answer::Formed(formed),
            Err(why) => Answer::Silent(why),
        },
    }
}

fn formed_to_wire(formed: &Formed) -> wire::AskFormed {
    let member = |(node, incarnation): (&NodeId, &Incarnation)| wire::AskMember {
        node_id: node.0,
        incarnation: incarnation.to_bytes().to_vec().into(),
    };
    wire::AskFormed {
        cluster_id: formed.cluster_id.to_bytes().to_vec().into(),
        cluster_name: formed.cluster_name.clone(),
        members: formed.members.iter().map(member).collect(),
        shards: formed.shards,
        replicas: formed.replicas,
    }
}

/// The record in an answer. The cluster id is computed again, because the other fields determine
/// it.
fn formed_from_wire(answer: &wire::AskFormed) -> Result<Formed, String> {
    let mut members = BTreeMap::new();
    for member in &answer.members {
        let incarnation = Incarnation::from_bytes(&member.incarnation)
            .ok_or("a member's incarnation does not have 16 bytes")?;
        if members.insert(NodeId(member.node_id), incarnation).is_some() {
            return Err(format!("it lists node {} twice", member.node_id));
        }
    }
    let formed = Formed::new(&answer.cluster_name, members, answer.shards, answer.replicas);
    if ClusterId::from_bytes(&answer.cluster_id) != Some(formed.cluster_id) {
        return Err("its cluster id does not follow from its members".into());
    }
    Ok(formed)
}
