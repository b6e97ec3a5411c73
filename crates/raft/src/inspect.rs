//! Read access to the replica's state.

use crate::membership::Membership;
use crate::output::RoleKind;
use crate::raft::Raft;
use crate::role::Role;
use crate::status::Status;
use crate::types::{GroupId, Index, LogId, Replica, ReplicaId, Term, Ticks};

impl Raft {
    /// The replica's condition, for operators and metrics.
    #[must_use]
    pub fn status(&self) -> Status {
        let (transferring, progress) = match &self.role {
            Role::Leader(leader) => {
                let members = leader.progress.values().map(|progress| {
                    progress.status(progress.is_active(self.now, self.config.election_max))
                });
                (leader.transfer.as_ref().map(|transfer| transfer.to), members.collect())
            }
            _ => (None, Vec::new()),
        };
        Status {
            term: self.term,
            role: self.role.kind(),
            leader: self.leader(),
            commit: self.commit,
            applied: self.applying.applied,
            persisted: self.persistence.durable(),
            last: self.log.last(),
            base: self.log.base(),
            log_bytes: self.log.bytes(),
            transferring,
            installing: self.installing.is_some(),
            progress,
        }
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// This replica.
    #[must_use]
    pub fn me(&self) -> Replica {
        self.me
    }

    /// The leader of the current term, where known.
    #[must_use]
    pub fn leader(&self) -> Option<Replica> {
        match &self.role {
            Role::Leader(_) => Some(self.me),
            Role::Follower(follower) => follower.leader,
            Role::PreCandidate(_) | Role::Candidate(_) => None,
        }
    }

    /// Whether this replica leads, as far as it knows.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// The role without its data.
    #[must_use]
    pub fn role(&self) -> RoleKind {
        self.role.kind()
    }

    /// The current term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// The replica that this one voted for in the current term.
    #[must_use]
    pub fn vote(&self) -> Option<ReplicaId> {
        self.vote
    }

    /// The commit index.
    #[must_use]
    pub fn commit(&self) -> Index {
        self.commit
    }

    /// The last index reported as applied.
    #[must_use]
    pub fn applied(&self) -> Index {
        self.applying.applied
    }

    /// The stamp of the last entry.
    #[must_use]
    pub fn last_stamp(&self) -> u64 {
        self.log.last_stamp()
    }

    /// The size of the log that is kept, in entry bytes.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        self.log.bytes()
    }

    /// The membership in force: the last one in the log, committed or not.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        self.members.current()
    }

    /// The identity of the entry at an index, where the log holds it.
    #[must_use]
    pub fn entry_id(&self, index: Index) -> Option<LogId> {
        self.log.id_at(index)
    }

    /// At the leader: the wall clock of each voter as last reported, its own included, and when the
    /// report arrived; 0 = not reported in this leadership. Empty at other roles.
    #[must_use]
    pub fn clocks(&self) -> Vec<(ReplicaId, u64, Ticks)> {
        let Role::Leader(leader) = &self.role else { return Vec::new() };
        let clock = |voter: ReplicaId| match leader.progress.get(&voter) {
            Some(progress) => (voter, progress.clock, progress.clock_at),
            None => (voter, self.clock, self.now),
        };
        self.members.current().voters().map(|voter| clock(voter.id)).collect()
    }

    /// At a follower: the newest (own earlier clock reading, index) such that a state which has
    /// applied the index is no older than the reading. `None` until the leader has confirmed one.
    #[must_use]
    pub fn freshness(&self) -> Option<(Ticks, Index)> {
        match &self.role {
            Role::Follower(follower) => follower.freshness,
            _ => None,
        }
    }
}
