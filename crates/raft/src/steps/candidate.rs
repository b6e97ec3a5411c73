//! The candidate: asks for votes in its own term (Raft paper §5.2).

use std::collections::BTreeMap;

use crate::message::Message;
use crate::quorum::{Tally, tally};
use crate::raft::Raft;
use crate::role::{Ballot, Role};
use crate::types::{Index, LogId, Replica, Term};

impl Raft {
    /// Begins an election in the next term. Requests leave when term and vote are durable, and our
    /// own vote counts from then on: otherwise, after a crash, it could be given to another
    /// candidate.
    pub(crate) fn become_candidate(&mut self, transfer: bool) {
        assert!(self.term < Term::LAST, "there is no term to stand for election in");
        self.term = self.term.next();
        self.vote = Some(self.me.id);
        self.persistence.touch_hard_state();
        let deadline = self.draw_deadline();
        self.change_role(Role::Candidate(Ballot { votes: BTreeMap::new(), deadline }));
        let last = self.log.last();
        for voter in self.other_voters() {
            self.send_when_durable(voter, Index(0), Message::Vote { last, transfer });
        }
    }

    /// Answers a vote request of the current term, from any role (Raft paper §5.2, §5.4.1). Whether
    /// the candidate is in our configuration does not matter: ours may be the older one.
    pub(crate) fn on_vote(&mut self, from: Replica, last: LogId) {
        let free = match self.vote {
            Some(vote) => vote == from.id,
            None => self.leader().is_none(),
        };
        let granted = free && last >= self.log.last();
        if granted {
            if self.vote.is_none() {
                self.vote = Some(from.id);
                self.persistence.touch_hard_state();
            }
            if let Role::PreCandidate(_) = self.role {
                // Its own election would only compete with the one it supports.
                self.become_follower(self.term, None);
            }
            let deadline = self.draw_deadline();
            if let Role::Follower(follower) = &mut self.role {
                follower.deadline = deadline;
            }
        }
        let reply = Message::VoteReply { asked: self.term, granted };
        self.send_when_durable(from, Index(0), reply);
    }

    pub(crate) fn on_vote_reply(&mut self, from: Replica, asked: Term, granted: bool) {
        if let Role::Candidate(ballot) = &mut self.role
            && asked == self.term
            && self.members.current().is_voter(from.id)
        {
            ballot.votes.entry(from.id).or_insert(granted);
            self.count_votes();
        }
    }

    /// Counts our own vote, once it is durable.
    pub(crate) fn count_own_vote(&mut self) {
        if let Role::Candidate(ballot) = &mut self.role
            && self.persistence.hard_state_durable()
            && ballot.votes.insert(self.me.id, true).is_none()
        {
            self.count_votes();
        }
    }

    fn count_votes(&mut self) {
        let Role::Candidate(ballot) = &self.role else { return };
        match tally(self.members.current(), &ballot.votes) {
            Tally::Won => self.become_leader(),
            // The vote stays cast: another replica must not win the same term with our vote.
            Tally::Lost => self.become_follower(self.term, None),
            Tally::Open => {}
        }
    }
}
