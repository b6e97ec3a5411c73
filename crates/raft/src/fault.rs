//! Why a replica stops by itself: to go on would risk what the group has promised.

use thiserror::Error;

use crate::membership::MembershipError;
use crate::types::{Index, LogId, ReplicaId, Term};

/// What a replica met that it cannot go on after. From then on it votes for nobody, takes and sends
/// nothing, and hands out nothing to be applied; the other replicas go on without it. It is tried
/// again when the replica is started anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Fault {
    /// A leader has another entry where one is committed here. No sound leader has (Leader
    /// Completeness, Raft paper §5.4), so one of the two logs is not that of the group.
    #[error("{leader} leads term {term} with the entry {theirs} where {ours} is committed here")]
    Fork {
        /// The leader.
        leader: ReplicaId,
        /// Its term.
        term: Term,
        /// The committed entry here.
        ours: LogId,
        /// The leader's entry at the same index.
        theirs: LogId,
    },
    /// The leader sent a membership that this build cannot read. It would be in force from the
    /// moment it is in the log, so the replica cannot even vote without knowing it.
    #[error("the membership entry at {index} cannot be read, a newer build may: {source}")]
    Membership {
        /// The position of the entry.
        index: Index,
        /// What is wrong with it.
        source: MembershipError,
    },
}
