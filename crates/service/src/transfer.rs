//! Transfer of a leadership on request: by the node that leads, whichever was asked, and answered
//! by the node that leads then.
//!
//! From the start of a transfer the leader takes no calls until the target has taken over, or an
//! election timeout has passed. So it is started only when the target has the log but for what is
//! on its way.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use quorate_engine::{Leadership, Shard};
use quorate_machine::{Map, voters_of};
use quorate_proto::v1::{Failure, MapShard, Reason, TransferLeaderRequest, TransferLeaderResponse};
use quorate_raft::{GroupId, NodeId, ProgressKind, Replica, Status, Term, TransferError};
use tokio::time::{Instant, sleep, timeout_at};

use crate::context::Context;
use crate::forward::Forwarded;
use crate::route::{
    LEADER_TIMEOUT, LeaderLocation, no_leader, pass, pass_to_replicas, wait_for_change,
};
use crate::shared::{Shared, retry_after};

/// The part of the caller's time that is kept for the answer, at each node that the call passes: a
/// transfer that failed says why.
const ANSWER_MARGIN: Duration = Duration::from_millis(100);
/// Interval of the looks at a target that does not have the log yet.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How long a node may still answer after another one was seen to lead: it may be the one that
/// handed over, and knows more.
const ANSWER_GRACE: Duration = Duration::from_millis(500);
/// The time beyond an election timeout until the end of a transfer is known here.
const END_MARGIN: Duration = Duration::from_millis(200);

/// Makes the leader of a shard hand over, and answers when the target leads.
///
/// # Errors
/// BAD_REQUEST for a shard that is not there or a node without a replica of it, NO_LEADER, or
/// NOT_TRANSFERRED when the target does not answer, lacks entries or does not take over in time.
pub async fn transfer(
    shared: &Arc<Shared>,
    context: &Context,
    request: TransferLeaderRequest,
) -> Result<TransferLeaderResponse, Failure> {
    let margin = ANSWER_MARGIN.min(context.left() / 10);
    let context = &Context { deadline: context.deadline - margin, ..context.clone() };
    let map = shared.map()?;
    let owner = group_of(&map, request.shard)?;
    let target = target_of(&owner, request.to_node_id)?;
    let Some(shard) = shared.engine.shards().get(GroupId(owner.id)) else {
        return pass_to_replicas(shared, context, &owner, &request, context.deadline).await;
    };
    let me = shared.node;
    let mut give_up = context.deadline.min(context.started + LEADER_TIMEOUT);
    let mut handed_over = false;
    let mut leadership = shard.watch_leadership();
    loop {
        let now = *leadership.borrow_and_update();
        let (place, missing) = match now.leader {
            Some(leader) if leader == me && !now.is_leader => {
                (LeaderLocation::LocalNotReady, "its leader has just been elected".to_owned())
            }
            Some(leader) if leader == me && target.node == me => {
                shared.transfers.keep(shard.group, now.term);
                return Ok(led_by(me, now.term));
            }
            Some(leader) if leader == me => {
                hand_over(shared, context, &shard, target, now.term).await?;
                handed_over = true;
                give_up = context.deadline.min(Instant::now() + LEADER_TIMEOUT);
                continue;
            }
            Some(leader) => {
                // The target is asked too: it then knows that a client wants it to lead.
                let seen = handed_over && leader == target.node;
                match pass_unless_replaced(shared, context, leader, &request, &shard).await {
                    Some(Forwarded::Answered(answer)) => return Ok(answer),
                    Some(_) if seen => return Ok(led_by(leader, now.term)),
                    Some(Forwarded::Failed(failure) | Forwarded::Lost(failure)) => {
                        return Err(failure);
                    }
                    Some(Forwarded::NotSent(failure)) => {
                        (LeaderLocation::At(leader), failure.message)
                    }
                    None => continue,
                }
            }
            None => {
                (LeaderLocation::Unknown, "it has no leader that this node knows of".to_owned())
            }
        };
        wait_for_change(&mut leadership, place, give_up).await;
        if Instant::now() >= give_up {
            return Err(no_leader(&shard, &missing));
        }
    }
}

fn led_by(node: NodeId, term: Term) -> TransferLeaderResponse {
    TransferLeaderResponse { leader_node_id: node.0, term: term.0 }
}

fn bad_request(field: &str, message: String) -> Failure {
    Failure { field: field.to_owned(), ..Failure::of(Reason::BadRequest, message) }
}

fn not_transferred(shard: u64, message: String) -> Failure {
    let failure = Failure { shard, ..Failure::of(Reason::NotTransferred, message) };
    retry_after(failure, 500)
}

/// The shard of the map, or what the map says of the meta group.
fn group_of(map: &Map, shard: u64) -> Result<MapShard, Failure> {
    if shard == 0 {
        let replicas = map.proto().meta_replicas.clone();
        return Ok(MapShard { replicas, ..MapShard::default() });
    }
    map.shard(GroupId(shard)).cloned().ok_or_else(|| {
        let ids = || map.shards().iter().map(|shard| shard.id);
        let (first, last) = (ids().min().unwrap_or_default(), ids().max().unwrap_or_default());
        let message = format!(
            "there is no shard {shard}: the shards are {first} to {last}, and 0 is the meta group"
        );
        bad_request("shard", message)
    })
}

/// The replica on a node; 0 is the preferred leader.
fn target_of(owner: &MapShard, node: u64) -> Result<Replica, Failure> {
    let voters = voters_of(&owner.replicas);
    let found = match node {
        0 => voters.first(),
        node => voters.iter().find(|replica| replica.node.0 == node),
    };
    found.copied().ok_or_else(|| {
        let nodes: Vec<String> = voters.iter().map(|r| r.node.0.to_string()).collect();
        let message = format!(
            "node {node} holds no replica of shard {} that votes; nodes {} do",
            owner.id,
            nodes.join(", ")
        );
        bad_request("to_node_id", message)
    })
}

/// Passes the request to the node that leads; `None` = another one leads meanwhile, and this one
/// did not answer: a stopped node never does.
async fn pass_unless_replaced(
    shared: &Shared,
    context: &Context,
    leader: NodeId,
    request: &TransferLeaderRequest,
    shard: &Shard,
) -> Option<Forwarded<TransferLeaderResponse>> {
    let mut leadership = shard.watch_leadership();
    let replaced = async {
        let other = |now: &Leadership| now.leader.is_some_and(|node| node != leader);
        if leadership.wait_for(other).await.is_err() {
            // The replica is gone, and nothing will be known here.
            pending::<()>().await;
        }
        sleep(ANSWER_GRACE).await;
    };
    tokio::select! {
        biased;
        passed = pass(shared, context, leader, request) => Some(passed),
        () = replaced => None,
    }
}

/// Hands over the leadership that this node has in `term`. Returns once it has it no longer, which
/// does not say who has.
async fn hand_over(
    shared: &Shared,
    context: &Context,
    shard: &Shard,
    target: Replica,
    term: Term,
) -> Result<(), Failure> {
    let (group, to) = (shard.group, target.node.0);
    let failed = |message: String| Err(not_transferred(group.0, message));
    let Ok(_turn) = timeout_at(context.deadline, shared.transfers.turns.acquire()).await else {
        return failed(format!("node {} prepares too many other transfers", shared.node.0));
    };
    let silent_until = context.deadline.min(Instant::now() + LEADER_TIMEOUT);
    let mut leadership = shard.watch_leadership();
    while leads(*leadership.borrow_and_update(), shared.node, term) {
        let status = shared.engine.status().await;
        let status = status.iter().find(|(id, _)| *id == group);
        let (until, why) = match status.and_then(|(_, status)| lack(status, group, target)) {
            None => match shared.engine.transfer(group, target.id).await {
                Ok(Ok(())) => {
                    return until_it_took_over(shared, context, shard, target, term).await;
                }
                Ok(Err(TransferError::NotVoter(_))) => {
                    let message = format!("node {to} has no vote in shard {}", group.0);
                    return Err(bad_request("to_node_id", message));
                }
                // It has just lost the leadership, or ends.
                Ok(Err(TransferError::NotLeader { .. } | TransferError::AlreadyLeader(_)))
                | Err(_) => (context.deadline, "the leader has just changed".to_owned()),
            },
            Some(Lack::Answers) => {
                let message = format!("node {to} does not answer node {}", shared.node.0);
                (silent_until, message)
            }
            Some(Lack::Entries(message)) => (context.deadline, message),
        };
        if Instant::now() >= until {
            return failed(still_led(&why, shared, shard));
        }
        let look = until.min(Instant::now() + LOOK_INTERVAL);
        // Whether it changed or the time passed, the loop looks again.
        let _ = timeout_at(look, leadership.changed()).await;
    }
    Ok(())
}

fn leads(now: Leadership, node: NodeId, term: Term) -> bool {
    now.term == term && now.leader == Some(node)
}

/// Waits for the end of a transfer that has begun.
async fn until_it_took_over(
    shared: &Shared,
    context: &Context,
    shard: &Shard,
    target: Replica,
    term: Term,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let until = context.deadline.min(begun + shared.config.election_min + END_MARGIN);
    let mut leadership = shard.watch_leadership();
    let left = leadership.wait_for(|now| !leads(*now, shared.node, term));
    if timeout_at(until, left).await.is_ok() {
        return Ok(());
    }
    let took = begun.elapsed().as_millis();
    let why = format!("node {} did not take over within {took} ms", target.node.0);
    Err(not_transferred(shard.group.0, still_led(&why, shared, shard)))
}

fn still_led(why: &str, shared: &Shared, shard: &Shard) -> String {
    format!("{why}; node {} still leads shard {}", shared.node.0, shard.group.0)
}

/// What keeps a transfer from being started.
#[derive(Debug, PartialEq, Eq)]
enum Lack {
    /// The target has not answered within an election timeout.
    Answers,
    /// It lacks entries that are not on their way to it.
    Entries(String),
}

/// What the target lacks before it could take over at once. One that the group does not know is
/// left to the core.
fn lack(status: &Status, group: GroupId, target: Replica) -> Option<Lack> {
    let other = status.progress.iter().find(|other| other.replica == target.id)?;
    let (node, shard) = (target.node.0, group.0);
    if !other.active {
        return Some(Lack::Answers);
    }
    if other.state == ProgressKind::Snapshot {
        return Some(Lack::Entries(format!("node {node} receives a snapshot of shard {shard}")));
    }
    let lacks = status.last.index.0.saturating_sub(other.matched.0);
    let all_sent = other.state == ProgressKind::Replicate && other.next > status.last.index;
    match all_sent || lacks == 0 {
        true => None,
        false => Some(Lack::Entries(format!("node {node} lacks {lacks} entries of shard {shard}"))),
    }
}

#[cfg(test)]
mod tests {
    use quorate_raft::{Index, LogId, ProgressStatus, ReplicaId, RoleKind};

    use quorate_proto::v1::MapReplica;

    use super::*;

    #[test]
    fn only_a_voter_gets_the_leadership() {
        let replica = |id, role| MapReplica { replica_id: id, node_id: id, role };
        let replicas = vec![replica(1, 1), replica(2, 0), replica(3, 0)];
        let owner = MapShard { id: 7, replicas, ..MapShard::default() };
        let target = |node| target_of(&owner, node).map(|replica| replica.node.0);
        assert_eq!((target(0).ok(), target(3).ok()), (Some(2), Some(3)));
        let refused = target(1).expect_err("a learner");
        let expected = "node 1 holds no replica of shard 7 that votes; nodes 2, 3 do";
        assert_eq!(refused.message, expected);
    }

    #[test]
    fn a_transfer_waits_for_what_the_target_lacks() {
        let target = Replica { id: ReplicaId(7), node: NodeId(3) };
        let at = |index| LogId { term: Term(2), index: Index(index) };
        let lacks = |active, state, matched, next| {
            let progress = ProgressStatus {
                replica: target.id,
                state,
                matched: Index(matched),
                next: Index(next),
                inflight: 0,
                active,
            };
            let status = Status {
                term: Term(2),
                role: RoleKind::Leader,
                leader: None,
                commit: Index(90),
                applied: Index(90),
                persisted: Index(90),
                last: at(100),
                base: at(0),
                log_bytes: 0,
                transferring: None,
                installing: false,
                progress: vec![progress],
            };
            lack(&status, GroupId(4), target)
        };
        let entries = |text: &str| Some(Lack::Entries(text.to_owned()));
        use ProgressKind::{Probe, Replicate, Snapshot};
        assert_eq!(lacks(true, Replicate, 80, 101), None, "all is on its way");
        assert_eq!(lacks(true, Probe, 100, 101), None);
        assert_eq!(lacks(false, Replicate, 100, 101), Some(Lack::Answers));
        let behind = "node 3 lacks 20 entries of shard 4";
        assert_eq!(lacks(true, Replicate, 80, 95), entries(behind));
        assert_eq!(lacks(true, Probe, 80, 101), entries(behind));
        let installs = "node 3 receives a snapshot of shard 4";
        assert_eq!(lacks(true, Snapshot, 80, 101), entries(installs));
    }
}
