//! Status of a replica, for operators and metrics.

use crate::output::RoleKind;
use crate::types::{Index, LogId, Replica, ReplicaId, Term};

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

/// A leader's view of one other member's progress.
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
    /// Appends sent and not yet answered.
    pub inflight: usize,
    /// Whether it has answered within the longest election timeout.
    pub active: bool,
}

/// The condition of a replica at one time.
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
    /// The target of a leadership transfer in progress.
    pub transferring: Option<ReplicaId>,
    /// Whether a snapshot is being installed.
    pub installing: bool,
    /// The other members, as the leader sees them; empty elsewhere.
    pub progress: Vec<ProgressStatus>,
}
