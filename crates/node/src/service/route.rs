//! Where a call belongs.

use std::sync::Arc;

use quorate_proto::v1::{Failure, MapShard, Reason, RouteHint};
use quorate_raft::{GroupId, NodeId};
use tokio::time::Instant;

use super::context::Context;
use super::forward::{Forward, Forwarded};
use super::write::pass;
use crate::core::{Core, retry_after};
use crate::engine::{Leadership, Shard};

/// Where the leader of a shard is, as far as this node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this node.
    Here,
    /// On this node, which takes no writes now: it has just been elected, or its replica cannot
    /// apply and is handing leadership on.
    NotYet,
    /// On another node.
    At(NodeId),
    /// Nowhere that this node knows of.
    Unknown,
}

/// Where the leader is.
#[must_use]
pub fn leader_of(shard: &Shard, leadership: Leadership) -> Place {
    match leadership.leader {
        Some(node) if node != shard.replica.node => Place::At(node),
        Some(_) if leadership.is_leader && shard.serves() => Place::Here,
        Some(_) => Place::NotYet,
        None => Place::Unknown,
    }
}

/// Checks what the caller believes of the place of its key, part by part.
///
/// # Errors
///
/// WRONG_SHARD when a part that is given is not so.
pub fn check_hint(core: &Core, hint: Option<&RouteHint>, owner: &MapShard) -> Result<(), Failure> {
    let Some(hint) = hint else { return Ok(()) };
    let wrong = |message: String| {
        let failure = Failure {
            shard: owner.id,
            shard_epoch: owner.epoch,
            ..Failure::of(Reason::WrongShard, message)
        };
        Err(core.complete(failure))
    };
    if !hint.cluster_id.is_empty() && hint.cluster_id != core.cluster_id {
        return wrong(format!(
            "the request is for cluster {}, this is cluster {}",
            hex::encode(&hint.cluster_id),
            hex::encode(&core.cluster_id)
        ));
    }
    if hint.shard != 0 && hint.shard != owner.id {
        return wrong(format!("the key is in shard {}, not in {}", owner.id, hint.shard));
    }
    if hint.shard != 0 && hint.shard_epoch != 0 && hint.shard_epoch != owner.epoch {
        return wrong(format!(
            "shard {} is in epoch {}, not in {}; fetch the cluster map again",
            owner.id, owner.epoch, hint.shard_epoch
        ));
    }
    Ok(())
}

/// The other nodes with a replica of a shard: the leader first where it is known, then in the order
/// of the map, which begins with the preferred leader.
#[must_use]
pub fn other_replicas(core: &Core, owner: &MapShard) -> Vec<NodeId> {
    let shard = core.engine.shards().get(GroupId(owner.id));
    let leader = shard.and_then(|shard| shard.leadership().leader);
    let mut nodes: Vec<NodeId> = owner.replicas.iter().map(|r| NodeId(r.node_id)).collect();
    nodes.retain(|node| *node != core.node);
    nodes.sort_by_key(|node| Some(*node) != leader);
    nodes
}

/// Passes a call to another node with a replica of the shard, trying them until one is reached.
///
/// # Errors
///
/// The failure of the node that was reached, or NO_LEADER when none was.
pub async fn pass_to_replicas<R: Forward>(
    core: &Arc<Core>,
    context: &Context,
    owner: &MapShard,
    request: &R,
    give_up: Instant,
) -> Result<R::Response, Failure> {
    let mut last = String::from("no other node holds a replica");
    for node in other_replicas(core, owner) {
        match pass(core, context, node, request).await {
            Forwarded::Answered(answer) => return Ok(answer),
            Forwarded::Failed(failure) => return Err(core.complete(failure)),
            Forwarded::NotSent(failure) => last = failure.message,
        }
        if Instant::now() >= give_up {
            break;
        }
    }
    let message = format!("no replica of shard {} can be reached: {last}", owner.id);
    let failure = Failure { shard: owner.id, ..Failure::of(Reason::NoLeader, message) };
    Err(core.complete(retry_after(failure, 100)))
}
