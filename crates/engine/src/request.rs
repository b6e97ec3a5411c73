//! What request handlers ask of an engine loop, and what they get back.

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
    /// Which write of which session it is. While the same is under way here already, as when a
    /// client tries again because the disk is slow, it is not proposed again: it waits for the answer.
    pub write: Option<WriteKey>,
    /// Where the answer goes. A handler that is gone loses the answer, not the proposal.
    pub answer: oneshot::Sender<Answer>,
}

/// What became of a proposal.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It committed and was applied here, at this position of the log.
    Applied {
        /// The entry that carried it.
        at: LogId,
        /// The entry's log time.
        log_time: u64,
        /// What the state machine says.
        answer: WriteAnswer,
    },
    /// It was not proposed, and never will be.
    Refused(RefusedProposal),
    /// It was proposed, and another entry committed at its index: certainly not applied.
    Lost,
    /// It was proposed, and this replica cannot tell what became of it (a snapshot replaced its
    /// part of the log, or the replica stopped).
    Unknown,
}

/// Tells all who wait for one proposal; a handler that is gone loses the answer, and no more.
pub(super) fn answer_all(mut waiters: Vec<oneshot::Sender<Answer>>, answer: Answer) {
    // Mostly there is one, and nothing is copied for it.
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
    /// This replica does not lead; the node that does, as far as it knows.
    NotLeader(Option<NodeId>),
    /// Leadership is being handed over.
    Transferring,
    /// This replica leads and takes no commands now: it has just been elected, or cannot apply.
    LocalNotReady,
    /// Too many bytes are proposed and not yet committed.
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
    /// Where the grant goes.
    pub grant: oneshot::Sender<ReadGrant>,
}

/// The outcome of a ReadIndex round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadGrant {
    /// A replica that has applied this index may answer.
    Ready(Index),
    /// Nothing is promised: no leader, or leadership changed. Ask again.
    Dropped,
    /// This node holds no replica of the group.
    NoReplica,
}
