//! Behaviour of the roles, and the transitions between them.

mod candidate;
mod follower;
mod leader;
mod pre_candidate;
mod transfer;

pub(crate) use follower::Append;

use crate::config::Config;
use crate::output::{Event, ReadOutcome, TransferEnd};
use crate::raft::Raft;
use crate::role::{Follower, Role};
use crate::types::{Replica, Term, Ticks};

impl Raft {
    /// Starts an election. Learners and replicas outside the membership hold none; nor does a
    /// replica whose log is about to be replaced, or one in the last term.
    pub(crate) fn start_election(&mut self) {
        if self.is_leader() || self.fault.is_some() {
            return;
        }
        let last_term = self.term >= Term::LAST;
        if !self.members.current().is_voter(self.me.id) || self.installing.is_some() || last_term {
            if last_term {
                self.out.events.push(Event::NoTermLeft);
            }
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

    /// Becomes a follower in `term`. A running election timer continues: only a message from the
    /// leader or granting a vote restarts it.
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

    /// Ends a role and begins another. Reads and transfers that waited for the old role are
    /// answered.
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

    /// Whether votes are refused because this replica hears from a leader (Raft thesis §6.2); a
    /// leader hears itself while it has a quorum.
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
