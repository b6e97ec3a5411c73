//! Requests of handlers to an event loop, and the answers: proposals and linearizable reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use quorate_raft::{GroupId, Index, LogId, NodeId};
use tokio::sync::oneshot;

use quorate_machine::WriteAnswer;
use quorate_machine::WriteKey;

/// A command to be proposed to a group, once.
#[derive(Debug)]
pub struct Proposal {
    /// The group.
    pub group: GroupId,
    /// The encoded command.
    pub payload: Bytes,
    /// The identity of a session's write. While the same write is in flight here, for example
    /// because a client retries on a slow disk, it is not proposed again: it waits for that answer.
    pub write: Option<WriteKey>,
    /// The receiver of the answer. If it has given up, only the answer is lost, not the proposal.
    pub answer: oneshot::Sender<Answer>,
    /// Who decides whether it is proposed.
    pub claim: Claim,
}

/// Decides once whether a queued proposal is proposed or withdrawn: by the first of the event
/// loop that takes it and the caller that gives it up. So a caller that could withdraw knows that
/// nothing was proposed.
#[derive(Clone, Debug, Default)]
pub struct Claim(Arc<AtomicBool>);

impl Claim {
    /// Whether this call is the first, and so decides.
    #[must_use]
    pub fn decides(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// The outcome of a proposal.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It committed and was applied here, at this position of the log.
    Applied {
        /// The entry that carried it.
        at: LogId,
        /// The entry's log time.
        log_time: u64,
        /// The result of the state machine.
        answer: WriteAnswer,
    },
    /// It was not proposed, and never will be.
    Refused(RefusedProposal),
    /// It was proposed, and another entry committed at its index: certainly not applied.
    Lost,
    /// It was proposed, and this replica cannot determine the outcome: a snapshot replaced its part
    /// of the log, or the replica stopped.
    Unknown,
}

/// Answers all handlers that wait for one proposal; those that have given up are ignored.
pub(super) fn answer_all(mut waiters: Vec<oneshot::Sender<Answer>>, answer: Answer) {
    // Usually there is one, and the answer is not cloned.
    let last = waiters.pop();
    for waiter in waiters {
        let _ = waiter.send(answer.clone());
    }
    if let Some(last) = last {
        let _ = last.send(answer);
    }
}

/// Why a loop did not propose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedProposal {
    /// This replica does not lead; the node of the leader, if it is known here.
    NotLeader(Option<NodeId>),
    /// Leadership is being transferred.
    Transferring,
    /// This replica leads but accepts no commands now: it has just been elected, or cannot apply.
    LocalNotReady,
    /// Too many proposed bytes are not yet committed.
    Full,
    /// The command is larger than an entry may be.
    TooLarge,
    /// This node holds no replica of the group.
    NoReplica,
}

/// A linearizable read that waits for its index.
#[derive(Debug)]
pub struct ReadRequest {
    /// The group.
    pub group: GroupId,
    /// The receiver of the grant.
    pub grant: oneshot::Sender<ReadGrant>,
}

/// The outcome of a ReadIndex round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadGrant {
    /// A replica that has applied this index may answer.
    Ready(Index),
    /// No index was confirmed: no leader, or leadership changed. Ask again.
    Dropped,
    /// This node holds no replica of the group.
    NoReplica,
}
