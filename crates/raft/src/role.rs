//! The roles, and how one follows another. What belongs to a role lives in it, so that nothing of a
//! role survives its end.

mod candidate;
mod follower;
mod leader;
mod pre_candidate;
mod transfer;

use std::collections::BTreeMap;

pub(crate) use follower::{Append, Follower};
pub(crate) use leader::Leader;

use crate::config::Config;
use crate::output::{Event, ReadOutcome, RoleKind, TransferEnd};
use crate::raft::Raft;
use crate::types::{Replica, ReplicaId, Term, Ticks};

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

impl Raft {
    /// An election is due. Learners and strangers hold none; nor does a replica whose log is about
    /// to be replaced.
    pub(crate) fn start_election(&mut self) {
        if self.is_leader() || self.fault.is_some() {
            return;
        }
        if !self.members.current().is_voter(self.me.id) || self.installing.is_some() {
            let later = self.draw_deadline();
            match &mut self.role {
                Role::Follower(follower) => follower.deadline = later,
                Role::PreCandidate(ballot) | Role::Candidate(ballot) => ballot.deadline = later,
                Role::Leader(_) => {}
            }
        } else if self.config.pre_vote {
            self.become_pre_candidate();
        } else {
            self.become_candidate(false);
        }
    }

    /// Follows in `term`. A timer that runs goes on: only a leader's words and a vote given restart
    /// it.
    pub(crate) fn become_follower(&mut self, term: Term, leader: Option<Replica>) {
        assert!(term >= self.term, "the term cannot go from {} back to {term}", self.term);
        if term > self.term {
            self.term = term;
            self.vote = None;
            self.persistence.touch_hard_state();
        }
        let deadline = match self.role.election_deadline() {
            Some(deadline) => deadline,
            None => self.draw_deadline(),
        };
        self.change_role(Role::Follower(Follower::new(leader, self.now, deadline)));
    }

    /// Ends a role and begins another. What waited for the old one is told.
    fn change_role(&mut self, role: Role) {
        let old = std::mem::replace(&mut self.role, role);
        match old {
            Role::Follower(mut follower) => {
                let reads = follower.reads.drop_all();
                self.out.reads.extend(reads.into_iter().map(|read| (read, ReadOutcome::Dropped)));
            }
            Role::Leader(mut leader) => {
                self.answer(leader.reads.drop_all(), None);
                if let Some(transfer) = leader.transfer {
                    let end = TransferEnd::SteppedDown;
                    self.out.events.push(Event::Transfer { to: transfer.to, end });
                }
            }
            Role::PreCandidate(_) | Role::Candidate(_) => {}
        }
        let (term, role, leader) = (self.term, self.role.kind(), self.leader());
        self.out.events.push(Event::Role { term, role, leader });
    }

    /// Whether votes are refused because a leader is heard (Raft thesis §6.2): a leader hears
    /// itself as long as it has a quorum.
    pub(crate) fn hears_leader(&self) -> bool {
        self.config.check_quorum
            && match &self.role {
                Role::Leader(_) => true,
                Role::Follower(follower) => {
                    follower.leader.is_some()
                        && self.now.since(follower.heard) < self.config.election_min
                }
                Role::PreCandidate(_) | Role::Candidate(_) => false,
            }
    }

    fn draw_deadline(&mut self) -> Ticks {
        let Config { election_min, election_max, .. } = self.config;
        self.now.after(self.entropy.between(election_min, election_max))
    }

    fn other_voters(&self) -> Vec<Replica> {
        self.members.current().voters().filter(|voter| voter.id != self.me.id).collect()
    }
}
