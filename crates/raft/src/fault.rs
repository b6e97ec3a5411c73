//! Faults that make a replica stop by itself: to continue would risk the promises of its group.

use thiserror::Error;

use crate::membership::MembershipError;
use crate::types::{Index, LogId, ReplicaId, Term};

/// A condition after which a replica cannot continue. From then on it grants no vote, accepts and
/// sends nothing, and hands out nothing to be applied; the other replicas continue without it. It
/// takes part again when it is restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Fault {
    /// A leader has another entry where one is committed here. No sound leader has (Leader
    /// Completeness, Raft paper §5.4), so one of the two logs is not the log of the group.
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
    /// The leader sent a membership that this build cannot read. It would be in force as soon as it
    /// is in the log, so the replica cannot even vote without knowing it.
    #[error("the membership entry at {index} cannot be read, a newer build may: {source}")]
    Membership {
        /// The position of the entry.
        index: Index,
        /// What is wrong with it.
        source: MembershipError,
    },
}
