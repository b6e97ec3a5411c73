//! Routing: where the leader of a shard is, the wait for one, and the nodes that may answer
//! instead.

use std::sync::Arc;
use std::time::Duration;

use quorate_engine::{Leadership, Shard};
use quorate_proto::v1::{Failure, MapShard, Reason, RouteHint};
use quorate_raft::{GroupId, NodeId};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::context::Context;
use super::forward::{Forward, Forwarded, Loss};
use crate::outcome::Subject;
use crate::shared::{Shared, retry_after};

/// How long a call waits for a shard to get a leader: the longest election timeout twice. A client
/// learns more by asking another node than by waiting longer.
pub const LEADER_TIMEOUT: Duration = Duration::from_millis(2_400);
/// After a failed attempt to reach a leader the next one waits at least this long, unless the
/// leadership changes before.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(50);

/// Where the leader of a shard is, as far as this node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaderLocation {
    /// On this node.
    Here,
    /// On this node, which takes no writes now: it has just been elected, or its replica cannot
    /// apply and is handing leadership on.
    LocalNotReady,
    /// On another node.
    At(NodeId),
    /// Nowhere that this node knows of.
    Unknown,
}

/// Where the leader is.
#[must_use]
pub fn leader_of(shard: &Shard, leadership: Leadership) -> LeaderLocation {
    match leadership.leader {
        Some(node) if node != shard.replica.node => LeaderLocation::At(node),
        Some(_) if leadership.is_leader && shard.serves() => LeaderLocation::Here,
        Some(_) => LeaderLocation::LocalNotReady,
        None => LeaderLocation::Unknown,
    }
}

/// Checks what the caller believes of the place of its key, part by part.
///
/// # Errors
/// WRONG_SHARD when a part that is given is not so.
pub fn check_hint(
    shared: &Shared,
    hint: Option<&RouteHint>,
    owner: &MapShard,
) -> Result<(), Failure> {
    let Some(hint) = hint else { return Ok(()) };
    let wrong = |message: String| {
        let failure = Failure {
            shard: owner.id,
            shard_epoch: owner.epoch,
            ..Failure::of(Reason::WrongShard, message)
        };
        Err(failure)
    };
    if !hint.cluster_id.is_empty() && hint.cluster_id != shared.cluster_id {
        return wrong(format!(
            "the request is for cluster {}, this is cluster {}",
            hex::encode(&hint.cluster_id),
            hex::encode(&shared.cluster_id)
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

/// The failure of a call that found no leader in time; nothing was proposed.
pub fn no_leader(shard: &Shard, why: &str) -> Failure {
    let message = format!("shard {} cannot take the call now: {why}", shard.group.0);
    let failure = Failure { shard: shard.group.0, ..Failure::of(Reason::NoLeader, message) };
    retry_after(failure, 100)
}

/// Waits until the leadership changes, a moment has passed, or the time is up.
pub async fn wait_for_change(
    leadership: &mut watch::Receiver<Leadership>,
    place: LeaderLocation,
    give_up: Instant,
) {
    let until = match place {
        // Nothing but a change helps.
        LeaderLocation::Unknown => give_up,
        LeaderLocation::Here | LeaderLocation::LocalNotReady | LeaderLocation::At(_) => {
            give_up.min(Instant::now() + ATTEMPT_PAUSE)
        }
    };
    // Whether it changed or the time passed, the caller looks again.
    let _ = timeout_at(until, leadership.changed()).await;
}

/// The other nodes with a replica of a shard: the leader first where it is known, by this node's
/// replica or from the last answer, then in the order of the map, which begins with the preferred
/// leader. Replicas without a vote come after those, nodes that lately did not answer last.
#[must_use]
pub fn other_replicas(shared: &Shared, owner: &MapShard) -> Vec<NodeId> {
    let shard = shared.engine.shards().get(GroupId(owner.id));
    let known = &shared.forward.known;
    let leader = match shard {
        Some(shard) => shard.leadership().leader,
        None => known.leader(owner.id),
    };
    let mut nodes: Vec<NodeId> = owner.replicas.iter().map(|r| NodeId(r.node_id)).collect();
    nodes.retain(|node| *node != shared.node);
    nodes.sort_by_key(|node| {
        (known.is_silent(*node), Some(*node) != leader, !owner.has_voter_on(node.0))
    });
    nodes
}

/// Passes a call to another node with a replica of the shard, trying them until one is reached. A
/// call that may safely be made twice (a read, or a write of a session) has a share of the time at
/// each, and continues with the next when no answer came.
///
/// # Errors
/// The failure of the node that was reached, or NO_LEADER when none was.
pub async fn pass_to_replicas<R: Forward>(
    shared: &Arc<Shared>,
    context: &Context,
    owner: &MapShard,
    request: &R,
    give_up: Instant,
) -> Result<R::Response, Failure> {
    let mut last = String::from("no other node holds a replica");
    let may_repeat = request.subject() != Subject::Write;
    let mut lost = None;
    let nodes = other_replicas(shared, owner);
    for (at, node) in nodes.iter().enumerate() {
        let left = give_up.min(context.deadline).saturating_duration_since(Instant::now());
        let share = left / (nodes.len() - at) as u32;
        // The last one has all that is left.
        let attempt = match may_repeat && at + 1 < nodes.len() {
            true => Context { deadline: Instant::now() + share, ..context.clone() },
            false => context.clone(),
        };
        match pass(shared, &attempt, *node, request).await {
            Forwarded::Answered(answer) => return Ok(answer),
            // An attempt before may be applied yet, whatever is said of this one.
            Forwarded::Failed(failure) if R::LOSS == Loss::Write && !failure.is_remembered() => {
                return Err(lost.unwrap_or(failure));
            }
            Forwarded::Failed(failure) => return Err(failure),
            Forwarded::Lost(failure) if !may_repeat => return Err(failure),
            Forwarded::Lost(failure) => lost = Some(failure),
            Forwarded::NotSent(failure) => last = failure.message,
        }
        if Instant::now() >= give_up {
            break;
        }
    }
    if let Some(failure) = lost {
        return Err(failure);
    }
    let message = format!("no replica of shard {} can be reached: {last}", owner.id);
    let failure = Failure { shard: owner.id, ..Failure::of(Reason::NoLeader, message) };
    Err(retry_after(failure, 100))
}

/// Passes a call on to a node that the map names.
pub async fn pass<R: Forward>(
    shared: &Shared,
    context: &Context,
    node: NodeId,
    request: &R,
) -> Forwarded<R::Response> {
    let map = shared.map.get();
    let Some(address) = map.as_ref().and_then(|map| map.node(node)) else {
        let message = format!("the map does not know node {node}");
        return Forwarded::NotSent(Failure::of(Reason::NoLeader, message));
    };
    shared.metrics.calls.forwarded.inc();
    shared.forward.pass(context, node, &address.peer_address, request).await
}
