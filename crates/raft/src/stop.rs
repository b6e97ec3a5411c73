//! The stop of a replica that cannot continue without contradicting the others.

use crate::fault::Fault;
use crate::message::{Envelope, Message};
use crate::output::{Event, ReadOutcome};
use crate::raft::Raft;
use crate::role::Role;

impl Raft {
    /// Why this replica has stopped by itself; `None` while it takes part in its group.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Stops until the next start. Messages that were not handed out yet are dropped.
    pub(crate) fn stop(&mut self, fault: Fault) {
        if let Role::Follower(follower) = &mut self.role {
            let reads = follower.reads.drop_all();
            self.out.reads.extend(reads.into_iter().map(|read| (read, ReadOutcome::Dropped)));
        }
        self.out.send.clear();
        self.fault = Some(fault);
        self.out.events.push(Event::Stopped { fault });
    }

    /// Learns from a message who leads; a stopped replica learns nothing else. With it the node can
    /// forward requests.
    pub(crate) fn learn_leader(&mut self, envelope: &Envelope) {
        let leads = matches!(envelope.message, Message::Append { .. } | Message::Heartbeat { .. });
        if let Role::Follower(follower) = &mut self.role
            && leads
            && envelope.term >= self.term
            && follower.leader != Some(envelope.from)
        {
            follower.leader = Some(envelope.from);
            let (term, role) = (self.term, self.role.kind());
            self.out.events.push(Event::Role { term, role, leader: Some(envelope.from) });
        }
    }
}
