//! A view of a replica for people and metrics.

use crate::membership::Membership;
use crate::output::RoleKind;
use crate::raft::Raft;
use crate::role::Role;
use crate::types::{GroupId, Index, LogId, Replica, ReplicaId, Term, Ticks};

/// How a leader replicates to one follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProgressKind {
    /// Looking for the point where the logs agree; one append at a time.
    Probe,
    /// Streaming appends.
    Replicate,
    /// Waiting for a snapshot to arrive.
    Snapshot,
}

/// A leader's view of one other member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProgressStatus {
    /// The member.
    pub replica: ReplicaId,
    /// How entries travel to it.
    pub state: ProgressKind,
    /// The last index known to be equal and durable there.
    pub matched: Index,
    /// The next index to send.
    pub next: Index,
    /// Appends on their way.
    pub inflight: usize,
    /// It has answered within the longest election timeout.
    pub active: bool,
}

/// A snapshot of a replica's condition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Status {
    /// The current term.
    pub term: Term,
    /// The role in it.
    pub role: RoleKind,
    /// The leader of the term, where known.
    pub leader: Option<Replica>,
    /// The commit index.
    pub commit: Index,
    /// The last index reported as applied.
    pub applied: Index,
    /// The last index that is durable here.
    pub persisted: Index,
    /// The last entry.
    pub last: LogId,
    /// The position before the first entry that is kept.
    pub base: LogId,
    /// The size of the kept log, in entry bytes.
    pub log_bytes: u64,
    /// Whom leadership is being handed to.
    pub transferring: Option<ReplicaId>,
    /// A snapshot is being installed.
    pub installing: bool,
    /// The other members, as the leader sees them; empty elsewhere.
    pub progress: Vec<ProgressStatus>,
}

impl Raft {
    /// The replica's condition, for people and metrics.
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
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// This replica.
    pub fn me(&self) -> Replica {
        self.me
    }

    /// The leader of the current term, where known.
    pub fn leader(&self) -> Option<Replica> {
        match &self.role {
            Role::Leader(_) => Some(self.me),
            Role::Follower(follower) => follower.leader,
            Role::PreCandidate(_) | Role::Candidate(_) => None,
        }
    }

    /// Whether this replica leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// The role without its data.
    pub fn role(&self) -> RoleKind {
        self.role.kind()
    }

    /// The current term.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Whom this replica voted for in the current term.
    pub fn vote(&self) -> Option<ReplicaId> {
        self.vote
    }

    /// The commit index.
    pub fn commit(&self) -> Index {
        self.commit
    }

    /// The last index reported as applied.
    pub fn applied(&self) -> Index {
        self.applying.applied
    }

    /// The last index of the log.
    pub fn last_index(&self) -> Index {
        self.log.last().index
    }

    /// The stamp of the last entry.
    pub fn last_stamp(&self) -> u64 {
        self.log.last_stamp()
    }

    /// The size of the log that is kept, in entry bytes.
    pub fn log_bytes(&self) -> u64 {
        self.log.bytes()
    }

    /// The membership in force: the last one in the log, committed or not.
    pub fn membership(&self) -> &Membership {
        self.members.current()
    }

    /// The identity of the entry at an index, where the log holds it.
    pub fn entry_id(&self, index: Index) -> Option<LogId> {
        self.log.id_at(index)
    }

    /// At the leader: the wall clock of each voter as last reported, its own included, and when the
    /// report came; 0 = not reported in this leadership. Elsewhere empty.
    pub fn clocks(&self) -> Vec<(ReplicaId, u64, Ticks)> {
        let Role::Leader(leader) = &self.role else { return Vec::new() };
        let clock = |voter: ReplicaId| match leader.progress.get(&voter) {
            Some(progress) => (voter, progress.clock, progress.clock_at),
            None => (voter, self.clock, self.now),
        };
        self.members.current().voters().map(|voter| clock(voter.id)).collect()
    }

    /// At a follower: the newest (own earlier clock reading, index) such that a state which has
    /// applied the index is no older than the reading. None until the leader has confirmed one.
    pub fn freshness(&self) -> Option<(Ticks, Index)> {
        match &self.role {
            Role::Follower(follower) => follower.freshness,
            _ => None,
        }
    }
}
