//! Error types of proposals, reads, transfers and restores.

use thiserror::Error;

use crate::config::ConfigError;
use crate::membership::MembershipError;
use crate::types::{Index, LogId, Replica, ReplicaId, Term};

/// Why a proposal was rejected. Nothing was appended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Error)]
pub enum ProposeError {
    /// Another replica leads, or none.
    #[error("not the leader{}", hint_text(.hint))]
    NotLeader {
        /// The leader, where known.
        hint: Option<Replica>,
    },
    /// Leadership is being handed over.
    #[error("leadership is being transferred to {to}")]
    Transferring {
        /// The replica it goes to.
        to: ReplicaId,
    },
    /// Too much is proposed and not yet committed.
    #[error("{uncommitted} bytes are proposed and not yet committed; the limit is {limit}")]
    Full {
        /// Bytes waiting for commit.
        uncommitted: u64,
        /// The limit, [`crate::Config::max_uncommitted_bytes`].
        limit: u64,
    },
    /// The entry itself is too large and will never be accepted.
    #[error("an entry of {bytes} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// The size of the entry, with overhead.
        bytes: u64,
        /// The limit, [`crate::Config::max_entry_bytes`].
        limit: u64,
    },
}

/// Why a read was rejected.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Error)]
pub enum ReadError {
    /// No leader is known.
    #[error("no leader is known")]
    NoLeader,
    /// Leadership is being handed over: from the start of a transfer no read is promised.
    #[error("leadership is being transferred to {to}")]
    Transferring {
        /// The replica it goes to.
        to: ReplicaId,
    },
    /// Too many reads are waiting.
    #[error("{limit} reads are already waiting")]
    Full {
        /// The limit, [`crate::Config::max_pending_reads`].
        limit: usize,
    },
}

/// Why a leadership transfer was not started.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Error)]
pub enum TransferError {
    /// Another replica leads, or none.
    #[error("not the leader{}", hint_text(.hint))]
    NotLeader {
        /// The leader, where known.
        hint: Option<Replica>,
    },
    /// The target leads already.
    #[error("{0} is already the leader")]
    AlreadyLeader(ReplicaId),
    /// The target is not a voter of the group.
    #[error("{0} is not a voter of the group")]
    NotVoter(ReplicaId),
}

/// Why a replica cannot start from its restored state. Each is damage: nothing is repaired here.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Error)]
pub enum RestoreError {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Entries are missing between the base and the first, or between two.
    #[error("expected entry {expected} in the log, found {found}")]
    Gap {
        /// The index that should follow.
        expected: Index,
        /// The entry that is there.
        found: LogId,
    },
    /// A term in the log goes back, or is above the term of the hard state.
    #[error("entry {found} follows an entry of term {before}; the hard state's term is {current}")]
    Term {
        /// The offending entry.
        found: LogId,
        /// The term of the entry before it.
        before: Term,
        /// The term of the hard state.
        current: Term,
    },
    /// The log ends before what the state machine has applied, or holds another entry there.
    #[error("the state machine has applied {applied}, but the log ranges from {base} to {last}")]
    Applied {
        /// The last entry the state machine has applied.
        applied: LogId,
        /// The position before the first entry.
        base: LogId,
        /// The last entry.
        last: LogId,
    },
    /// The log ends before what is known to be committed.
    #[error("entries through {commit} are committed, but the log ends at {last}")]
    Commit {
        /// The restored commit index.
        commit: Index,
        /// The last entry.
        last: LogId,
    },
    /// A membership entry cannot be read.
    #[error("the membership entry at {index} cannot be read: {source}")]
    Membership {
        /// The entry's index.
        index: Index,
        /// What is wrong with it.
        source: MembershipError,
    },
}

fn hint_text(hint: &Option<Replica>) -> String {
    match hint {
        Some(leader) => format!(" ({} on {} is)", leader.id, leader.node),
        None => " (none is known)".to_owned(),
    }
}
