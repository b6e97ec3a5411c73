//! Outputs of the core, collected since the last call and taken once per turn of the driver.

use crate::message::{Envelope, Message};
use crate::output::Output;
use crate::raft::Raft;
use crate::role::Role;
use crate::types::{Entry, HardState, Index, Replica};

impl Raft {
    /// Whether [`Raft::take_output`] is due.
    #[must_use]
    pub fn has_output(&self) -> bool {
        if self.fault.is_some() {
            return !self.out.is_empty();
        }
        let due = match &self.role {
            Role::Leader(leader) => leader.dirty,
            Role::Follower(follower) => {
                let overdue = follower.reads.retry_at().is_some_and(|at| at <= self.now);
                follower.leader.is_some() && (overdue || follower.reads.is_due())
            }
            Role::PreCandidate(_) | Role::Candidate(_) => false,
        };
        due || self.persistence.is_ready(&self.log)
            || self.applicable().is_some()
            || !self.out.is_empty()
    }

    /// All work that has come up since the last call. The driver calls it once per turn, after all
    /// inputs of that turn: this batches proposals, reads and writes.
    pub fn take_output(&mut self) -> Output {
        if self.fault.is_some() {
            return std::mem::take(&mut self.out);
        }
        self.begin_reads();
        self.replicate();
        self.forward_reads();
        let hard_state = HardState { term: self.term, vote: self.vote, commit: self.commit };
        let max_bytes = self.config.max_persist_bytes;
        let persist = self.persistence.take(&self.log, hard_state, max_bytes);
        let committed = self.take_committed();
        self.check();
        Output { persist, committed, ..std::mem::take(&mut self.out) }
    }

    /// The last index that may be applied, if it was not handed out yet: committed, and durable
    /// here. `None` while a snapshot is being installed.
    fn applicable(&self) -> Option<Index> {
        let limit = self.commit.min(self.persistence.durable());
        let room = self.applying.bytes < self.config.max_committed_bytes;
        (self.installing.is_none() && room && limit > self.applying.handed).then_some(limit)
    }

    fn take_committed(&mut self) -> Vec<Entry> {
        let Some(limit) = self.applicable() else { return Vec::new() };
        let from = self.applying.handed.next();
        let mut bytes = self.applying.bytes;
        let room = |entry: &&Entry| {
            let fits = bytes < self.config.max_committed_bytes;
            bytes += entry.bytes();
            fits
        };
        let committed: Vec<_> = self.log.range(from, limit).take_while(room).cloned().collect();
        self.applying.bytes += committed.iter().map(Entry::bytes).sum::<u64>();
        self.applying.handed = Index(self.applying.handed.0 + committed.len() as u64);
        committed
    }

    pub(crate) fn envelope(&self, to: Replica, message: Message) -> Envelope {
        Envelope { group: self.group, from: self.me, to, term: self.term, message }
    }

    /// Sends a message that promises nothing durable.
    pub(crate) fn send(&mut self, to: Replica, message: Message) {
        let envelope = self.envelope(to, message);
        self.out.send.push(envelope);
    }

    /// Sends a message that promises that our term and vote, and the log through `through`, survive
    /// a crash.
    pub(crate) fn send_when_durable(&mut self, to: Replica, through: Index, message: Message) {
        let envelope = self.envelope(to, message);
        if self.persistence.hard_state_durable() && self.persistence.durable() >= through {
            self.out.send.push(envelope);
        } else {
            self.persistence.send_after(envelope);
        }
    }
}
