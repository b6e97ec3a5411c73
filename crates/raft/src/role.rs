//! The roles, with the data that a replica holds in each; none of it survives the end of the role.
//! The behaviour of the roles is in `steps`.

use std::collections::BTreeMap;

use crate::output::RoleKind;
use crate::progress::Progress;
use crate::reads::{ForwardedReads, ReadRounds};
use crate::types::{Index, Replica, ReplicaId, Ticks};

/// The role of a replica (Raft paper §5.1, and the pre-candidate of the thesis §9.6).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Follower(Follower),
    PreCandidate(Ballot),
    Candidate(Ballot),
    Leader(Box<Leader>),
}

/// The votes of an election or of a pre-election.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ballot {
    /// The first answer of each replica.
    pub(crate) votes: BTreeMap<ReplicaId, bool>,
    /// When to try again.
    pub(crate) deadline: Ticks,
}

impl Role {
    pub(crate) fn kind(&self) -> RoleKind {
        match self {
            Role::Follower(_) => RoleKind::Follower,
            Role::PreCandidate(_) => RoleKind::PreCandidate,
            Role::Candidate(_) => RoleKind::Candidate,
            Role::Leader(_) => RoleKind::Leader,
        }
    }

    /// When an election is due; `None` for a leader.
    pub(crate) fn election_deadline(&self) -> Option<Ticks> {
        match self {
            Role::Follower(follower) => Some(follower.deadline),
            Role::PreCandidate(ballot) | Role::Candidate(ballot) => Some(ballot.deadline),
            Role::Leader(_) => None,
        }
    }
}

/// The data of a follower.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Follower {
    /// The leader of the current term, once a message from it arrived.
    pub(crate) leader: Option<Replica>,
    /// When the last message from the leader arrived.
    pub(crate) heard: Ticks,
    /// When an election is due.
    pub(crate) deadline: Ticks,
    pub(crate) reads: ForwardedReads,
    /// Whether the leader sent entries that do not follow each other, which was reported.
    pub(crate) malformed: bool,
    /// See [`Raft::freshness`].
    pub(crate) freshness: Option<(Ticks, Index)>,
}

impl Follower {
    pub(crate) fn new(leader: Option<Replica>, now: Ticks, deadline: Ticks) -> Self {
        Self {
            leader,
            heard: now,
            deadline,
            reads: ForwardedReads::default(),
            malformed: false,
            freshness: None,
        }
    }
}

/// The data of a leader.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Leader {
    /// The first entry of the term. Until it is committed, no entry is known to be (§5.4.2).
    pub(crate) term_start: Index,
    /// All other members.
    pub(crate) progress: BTreeMap<ReplicaId, Progress>,
    pub(crate) next_heartbeat: Ticks,
    /// The next check-quorum deadline: the last known contact with a quorum plus `election_max`.
    pub(crate) quorum_deadline: Ticks,
    /// The size of the entries after the commit index.
    pub(crate) uncommitted_bytes: u64,
    /// Whether something may be due for sending. That is decided once per output, so that many
    /// proposals become one append.
    pub(crate) dirty: bool,
    /// The last quorum round that was started.
    pub(crate) round: u64,
    pub(crate) reads: ReadRounds,
    /// The round that confirms ages: (round, commit index when it began).
    pub(crate) age: Option<(u64, Index)>,
    pub(crate) transfer: Option<Transfer>,
}

/// A transfer in progress. From its start the leader accepts no proposals, so that the target can
/// catch up, and promises no reads: the target may win at any time, unhindered by the others'
/// leases.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Transfer {
    pub(crate) to: ReplicaId,
    /// When the transfer is given up.
    pub(crate) deadline: Ticks,
}
