//! The roles. What belongs to a role lives in it, so that nothing of a role survives its end.

mod candidate;
mod follower;
mod leader;
mod pre_candidate;
mod transfer;

use std::collections::BTreeMap;

pub(crate) use follower::{Append, Follower};
pub(crate) use leader::Leader;

use crate::output::RoleKind;
use crate::types::{ReplicaId, Ticks};

/// The role of a replica (Raft paper §5.1, and the pre-candidate of the thesis §9.6).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Follower(Follower),
    PreCandidate(Ballot),
    Candidate(Ballot),
    Leader(Box<Leader>),
}

/// The votes of an election, or of the question whether to hold one.
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

    /// When an election is due; a leader has no such time.
    pub(crate) fn election_deadline(&self) -> Option<Ticks> {
        match self {
            Role::Follower(follower) => Some(follower.deadline),
            Role::PreCandidate(ballot) | Role::Candidate(ballot) => Some(ballot.deadline),
            Role::Leader(_) => None,
        }
    }
}
