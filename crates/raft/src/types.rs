//! Identifiers, log positions and entries, which every other module uses.

use std::fmt;

use bytes::Bytes;

/// Declares a `u64` newtype whose `Display` is a letter and the number.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id! {
    /// A node: one process with one data directory. Chosen by the operator, never 0.
    NodeId, "n"
}
id! {
    /// A Raft group, which replicates one shard. Group 0 is the meta group.
    GroupId, "g"
}
id! {
    /// One group's member on one node: the identity that votes. It is never used again, so a node
    /// that lost its disk comes back as another replica and can never repeat a vote it has
    /// forgotten.
    ReplicaId, "r"
}
id! {
    /// A Raft term (Raft paper §5.1). Term 0 is before the first election.
    Term, ""
}
id! {
    /// A position in the log. The first entry has index 1; 0 is the position before it.
    Index, ""
}
id! {
    /// A reading of a clock that runs through suspend (CLOCK_BOOTTIME), in units of 10 ms. The core
    /// never reads a clock itself: every input carries one of these.
    Ticks, ""
}

impl Term {
    /// The last term, 2^63 − 1. Messages of later ones are damage and are dropped, so no replica in
    /// it stands for election: it would leave for a term in which the others do not hear it.
    pub const LAST: Self = Self(u64::MAX / 2);

    /// The term after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl Index {
    /// The index after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The index before this one; 0 stays 0.
    #[must_use]
    pub fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Ticks {
    /// The reading `span` later. Saturates, so that `Ticks(u64::MAX)` means "never".
    #[must_use]
    pub fn after(self, span: Ticks) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// How long after `earlier` this reading was taken; 0 when it was taken before it.
    #[must_use]
    pub fn since(self, earlier: Ticks) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

/// The identity of a log entry. Two entries with the same `LogId` in one group are the same entry,
/// and so are all entries before them (Log Matching, Raft paper §5.3).
///
/// The derived order compares the term first: it is the "up-to-date" order of the election
/// restriction (Raft paper §5.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// The term of the leader that created the entry.
    pub term: Term,
    /// The entry's position.
    pub index: Index,
}

impl LogId {
    /// The position before the first entry of every log.
    pub const ZERO: LogId = LogId { term: Term(0), index: Index(0) };

    /// Joins a term and an index.
    #[must_use]
    pub fn new(term: Term, index: Index) -> Self {
        Self { term, index }
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.term)
    }
}

/// A replica together with the node it lives on: who it is, and where its messages go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Replica {
    /// The identity that votes and acknowledges.
    pub id: ReplicaId,
    /// The node that hosts it; used only for delivery.
    pub node: NodeId,
}

impl Replica {
    /// Joins a replica id and a node id.
    #[must_use]
    pub fn new(id: ReplicaId, node: NodeId) -> Self {
        Self { id, node }
    }
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)
    }
}

/// One leader's bookkeeping about one follower: (leader term, counter). The leader believes only
/// replies that carry the session it uses now, so that no reply to an earlier leadership, or from
/// before a replica was removed and added again, can move its progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicationSession {
    /// The leader's term.
    pub term: Term,
    /// Counts the sessions that the leader has opened in that term.
    pub counter: u64,
}

impl fmt::Display for ReplicationSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.counter)
    }
}

/// The kind of an entry's payload. The numbers are used in messages and in records on disk: they
/// never change their meaning. 4 is kept for a change of the group itself, such as a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// The empty entry that a new leader appends, so that it can commit what it inherited
    /// (Raft paper §5.4.2 and §8).
    Noop = 1,
    /// A command of the state machine, opaque here.
    Command = 2,
    /// A [`crate::Membership`], in force as soon as it is in the log.
    Membership = 3,
}

impl EntryKind {
    /// The kind with this number, if there is one.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Noop),
            2 => Some(Self::Command),
            3 => Some(Self::Membership),
            _ => None,
        }
    }
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The term of the leader that created it.
    pub term: Term,
    /// Its position.
    pub index: Index,
    /// The kind of the payload.
    pub kind: EntryKind,
    /// The time stamp given by the leader, in whatever unit the caller of `propose` uses. It grows
    /// from entry to entry.
    pub stamp: u64,
    /// The content; shared, so that a clone costs a reference count.
    pub payload: Bytes,
}

impl Entry {
    /// The overhead that an entry is counted with, on top of its payload: about what it costs in
    /// memory and on the wire.
    pub const OVERHEAD_BYTES: u64 = 64;

    /// The entry's identity.
    pub fn id(&self) -> LogId {
        LogId { term: self.term, index: self.index }
    }

    /// The size that all limits in bytes count: payload and a fixed overhead.
    pub fn bytes(&self) -> u64 {
        self.payload.len() as u64 + Entry::OVERHEAD_BYTES
    }
}

/// The state that must survive a restart, apart from the log (Raft paper figure 2, "persistent
/// state").
///
/// It is one record: a term without the vote cast in it would allow a second vote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HardState {
    /// The latest term this replica has seen.
    pub term: Term,
    /// The replica it voted for in that term.
    pub vote: Option<ReplicaId>,
    /// A lower bound of the commit index. It is written along with the rest, never for its own
    /// sake.
    pub commit: Index,
}

impl fmt::Display for HardState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "term={} vote=", self.term)?;
        match self.vote {
            Some(replica) => write!(f, "{replica}")?,
            None => write!(f, "-")?,
        }
        write!(f, " commit={}", self.commit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_ids_compare_the_term_first() {
        let longer = LogId::new(Term(1), Index(9));
        let newer = LogId::new(Term(2), Index(3));
        assert!(newer > longer);
        assert!(LogId::new(Term(2), Index(4)) > newer);
    }

    #[test]
    fn entry_kinds_keep_their_numbers() {
        for (number, kind) in
            [(1, EntryKind::Noop), (2, EntryKind::Command), (3, EntryKind::Membership)]
        {
            assert_eq!(EntryKind::from_u8(number), Some(kind));
            assert_eq!(kind as u8, number);
        }
        assert_eq!(EntryKind::from_u8(0), None);
        assert_eq!(EntryKind::from_u8(4), None, "kept for a change of the group");
    }

    #[test]
    fn ids_print_their_letter() {
        assert_eq!(NodeId(1).to_string(), "n1");
        assert_eq!(GroupId(2).to_string(), "g2");
        assert_eq!(ReplicaId(3).to_string(), "r3");
        assert_eq!(LogId::new(Term(2), Index(7)).to_string(), "7@2");
    }
}
