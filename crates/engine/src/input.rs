//! Inputs of an event loop: requests, and notifications of what has happened.

use quorate_raft::{
    Envelope, GroupId, Index, Message, NodeId, PersistToken, ReplicaId, ReplicationSession,
    SnapshotMeta, Status, TransferError,
};
use tokio::sync::oneshot;

use super::group::Group;
use super::inbox::Weigh;
use super::request::{Proposal, ReadRequest};

/// An input of a loop.
#[derive(Debug)]
pub(super) enum Input {
    Messages(Vec<Envelope>),
    Propose(Proposal),
    Read(ReadRequest),
    Persisted(Vec<(GroupId, PersistToken)>),
    Applied(GroupId, Index),
    Installed(GroupId, SnapshotMeta),
    InstallFailed(GroupId),
    SnapshotBegins {
        group: GroupId,
        to: ReplicaId,
        session: ReplicationSession,
        last: Index,
        /// Gets whether the follower still needs it.
        needed: oneshot::Sender<bool>,
    },
    SnapshotSent {
        group: GroupId,
        to: ReplicaId,
        session: ReplicationSession,
        ok: bool,
    },
    BulkDropped {
        group: GroupId,
        to: ReplicaId,
    },
    PeerRefused(NodeId),
    /// A checkpoint covers the log up to here.
    Compact(GroupId, Index),
    Transfer {
        group: GroupId,
        to: ReplicaId,
        done: oneshot::Sender<Result<(), TransferError>>,
    },
    Campaign(GroupId),
    Add(Box<Group>),
    Status(oneshot::Sender<Vec<(GroupId, Status)>>),
    Stop,
}

/// The fixed part of an input's weight: about its size in memory.
const INPUT_BYTES: usize = 128;

impl Weigh for Input {
    fn weight(&self) -> usize {
        let variable = match self {
            Input::Propose(proposal) => proposal.payload.len(),
            Input::Messages(envelopes) => envelopes.iter().map(envelope_bytes).sum(),
            _ => 0,
        };
        INPUT_BYTES + variable
    }
}

pub(super) fn envelope_bytes(envelope: &Envelope) -> usize {
    let entries = match &envelope.message {
        Message::Append { entries, .. } => {
            entries.iter().map(|entry| entry.payload.len() + INPUT_BYTES).sum()
        }
        _ => 0,
    };
    INPUT_BYTES + entries
}
