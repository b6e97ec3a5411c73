//! The pre-candidate: asks whether an election could be won before raising the term (Raft thesis
//! §9.6).

use std::collections::BTreeMap;

use crate::message::Message;
use crate::quorum::{Tally, tally};
use crate::raft::Raft;
use crate::role::{Ballot, Role};
use crate::types::{LogId, Replica, Term};

impl Raft {
    /// Asks all voters. The leader is forgotten, so that other replicas that miss it too get our
    /// consent.
    pub(crate) fn become_pre_candidate(&mut self) {
        let deadline = self.draw_deadline();
        let votes = BTreeMap::from([(self.me.id, true)]);
        self.change_role(Role::PreCandidate(Ballot { votes, deadline }));
        let last = self.log.last();
        for voter in self.other_voters() {
            self.send(voter, Message::PreVote { last });
        }
        self.count_pre_votes();
    }

    /// Answers a pre-vote. It changes no state here, so the answer does not wait for a write.
    pub(crate) fn on_pre_vote(&mut self, from: Replica, term: Term, last: LogId) {
        let granted = term >= self.term && last >= self.log.last() && !self.hears_leader();
        self.send(from, Message::PreVoteReply { proposed: term.next(), granted });
    }

    pub(crate) fn on_pre_vote_reply(&mut self, from: Replica, proposed: Term, granted: bool) {
        let asked = self.term.next();
        if let Role::PreCandidate(ballot) = &mut self.role
            && proposed == asked
            && self.members.current().is_voter(from.id)
        {
            ballot.votes.entry(from.id).or_insert(granted);
            self.count_pre_votes();
        }
    }

    fn count_pre_votes(&mut self) {
        let Role::PreCandidate(ballot) = &self.role else { return };
        match tally(self.members.current(), &ballot.votes) {
            Tally::Won => self.become_candidate(false),
            Tally::Lost => self.become_follower(self.term, None),
            Tally::Open => {}
        }
    }
}
