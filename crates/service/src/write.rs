//! Writes: to the leader, wherever it is, and proposed at most once by this node.

use std::sync::Arc;

use quorate_engine::{Answer, Claim, Proposal, RefusedProposal, Shard};
use quorate_machine::{WriteAnswer, WriteKey};
use quorate_proto::v1::{Failure, Outcome, Reason, Receipt, RouteHint};
use quorate_raft::{GroupId, LogId};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tonic::Code;

use super::context::Context;
use super::forward::{Forward, Forwarded};
use super::route::{self, LEADER_TIMEOUT, LeaderLocation, no_leader, pass, wait_for_change};
use crate::draft::CommandDraft;
use crate::metrics::Shed;
use crate::shared::{Shared, retry_after};

/// The answer of a write.
#[derive(Debug)]
pub enum Written<T> {
    /// It was proposed here.
    Here(Receipt, WriteAnswer),
    /// Another node answered.
    Elsewhere(T),
}

/// Carries a write to the leader of its shard and waits for the answer.
///
/// # Errors
/// Every failure says what is known of the outcome.
pub async fn write<R: Forward>(
    shared: &Arc<Shared>,
    context: &Context,
    request: &R,
    hint: Option<&RouteHint>,
    mut draft: CommandDraft,
    is_delete: bool,
) -> Result<Written<R::Response>, Failure> {
    let map = shared.map()?;
    let owner = draft.shard_in(map.shards()).map_err(|invalid| invalid.failure())?;
    let owner =
        owner.ok_or_else(|| Failure::of(Reason::Internal, "the map does not own the key"))?;
    route::check_hint(shared, hint, owner)?;
    let group = GroupId(owner.id);
    let give_up = context.deadline.min(context.started + LEADER_TIMEOUT);
    let Some(shard) = shared.engine.shards().get(group) else {
        let answer = route::pass_to_replicas(shared, context, owner, request, give_up).await?;
        return Ok(Written::Elsewhere(answer));
    };
    let mut leadership = shard.watch_leadership();
    loop {
        let place = route::leader_of(&shard, *leadership.borrow_and_update());
        let missing = match place {
            LeaderLocation::Here => {
                shared.check_room(is_delete, request.bytes())?;
                let payload = draft.encode(shard.group.0, shard.epoch);
                match propose(shared, context, &shard, payload, draft.write_key()).await? {
                    Some((receipt, answer)) => return Ok(Written::Here(receipt, answer)),
                    None => "its leader has just changed".to_owned(),
                }
            }
            LeaderLocation::At(node) => match pass(shared, context, node, request).await {
                Forwarded::Answered(answer) => return Ok(Written::Elsewhere(answer)),
                Forwarded::Failed(failure) | Forwarded::Lost(failure) => return Err(failure),
                Forwarded::NotSent(failure) => failure.message,
            },
            LeaderLocation::LocalNotReady => {
                "its leader, this node, takes no writes now".to_owned()
            }
            LeaderLocation::Unknown => "it has no leader that this node knows of".to_owned(),
        };
        wait_for_change(&mut leadership, place, give_up).await;
        if Instant::now() >= give_up {
            return Err(no_leader(&shard, &missing));
        }
    }
}

/// Withdraws a proposal when it is dropped, unless it was proposed.
struct Withdraws(Claim);

impl Drop for Withdraws {
    fn drop(&mut self) {
        // If it is not the first, the proposal is no longer queued.
        let _ = self.0.decides();
    }
}

/// Proposes once; `None` = it was certainly not proposed, and asking the new leader is safe.
async fn propose(
    shared: &Shared,
    context: &Context,
    shard: &Shard,
    payload: bytes::Bytes,
    write: Option<WriteKey>,
) -> Result<Option<(Receipt, WriteAnswer)>, Failure> {
    let (sender, receiver) = oneshot::channel();
    let started = Instant::now();
    // A caller that leaves drops this future, and with it withdraws.
    let claim = Withdraws(Claim::default());
    let proposal =
        Proposal { group: shard.group, payload, write, answer: sender, claim: claim.0.clone() };
    let proposed = shared.engine.propose(proposal);
    context.handed_over();
    if proposed.is_err() {
        shared.metrics.shed(Shed::Proposals).inc();
        let message = "too many requests wait to be proposed; try again";
        return Err(retry_after(Failure::of(Reason::Overloaded, message), 100));
    }
    let answer = match timeout_at(context.deadline, receiver).await {
        Ok(Ok(answer)) => answer,
        // The replica stopped, or the node is ending.
        Ok(Err(_)) => Answer::Unknown,
        Err(_) if claim.0.decides() => {
            shared.metrics.shed(Shed::Deadline).inc();
            shared.admission.writes.observe(started.elapsed());
            let message = "the write waited to be proposed until its time was up; it was not \
                           proposed";
            return Err(retry_after(Failure::of(Reason::Overloaded, message), 100));
        }
        Err(_) => return Err(unknown(shard, Code::DeadlineExceeded, "before it committed")),
    };
    match answer {
        Answer::Applied { at: LogId { term, index }, answer, .. } => {
            shared.admission.writes.observe(started.elapsed());
            shared.metrics.calls.proposal_seconds.observe_duration(started.elapsed());
            let level = quorate_proto::v1::ReadLevel::Linearizable;
            Ok(Some((shared.receipt(shard, level, term, index), answer)))
        }
        Answer::Refused(
            RefusedProposal::NotLeader(_)
            | RefusedProposal::Transferring
            | RefusedProposal::LocalNotReady
            | RefusedProposal::NoReplica,
        ) => Ok(None),
        Answer::Refused(RefusedProposal::Full) => {
            shared.metrics.shed(Shed::Uncommitted).inc();
            let message = "too much is proposed and not yet committed; try again";
            Err(retry_after(Failure::of(Reason::Overloaded, message), 100))
        }
        Answer::Refused(RefusedProposal::TooLarge) => {
            Err(Failure::of(Reason::TooLarge, "the write is larger than a log entry may be"))
        }
        Answer::Lost => {
            let message = format!(
                "the leader of shard {} changed and another entry took the write's place; \
                 it was certainly not applied",
                shard.group.0
            );
            let failure =
                Failure { shard: shard.group.0, ..Failure::of(Reason::NoLeader, message) };
            Err(failure)
        }
        Answer::Unknown => {
            Err(unknown(shard, Code::Unknown, "when this replica stopped following its entry"))
        }
    }
}

fn unknown(shard: &Shard, code: Code, when: &str) -> Failure {
    let message = format!(
        "the write was proposed to shard {}, and the wait for it ended {when}; it may be applied",
        shard.group.0
    );
    Failure {
        code: code as i32,
        outcome: Outcome::Unknown as i32,
        shard: shard.group.0,
        ..Failure::of(Reason::OutcomeUnknown, message)
    }
}
