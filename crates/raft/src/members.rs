//! The membership in force, and the earlier ones that a truncation would bring back.

use std::collections::VecDeque;

use crate::membership::Membership;
use crate::types::Index;

/// Memberships by the index of their entry, ascending. A membership is in force as soon as its
/// entry is in the log, committed or not (Raft paper §6), so the last one is in force. The first is
/// of some index at or before `applied`, which is never truncated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Members {
    history: VecDeque<(Index, Membership)>,
    current: Membership,
}

impl Members {
    pub(crate) fn new(index: Index, membership: Membership) -> Self {
        Self { history: VecDeque::new(), current: membership.clone() }.with(index, membership)
    }

    fn with(mut self, index: Index, membership: Membership) -> Self {
        self.push(index, membership);
        self
    }

    pub(crate) fn current(&self) -> &Membership {
        &self.current
    }

    /// Adds the membership of an appended entry.
    pub(crate) fn push(&mut self, index: Index, membership: Membership) {
        self.current = membership.clone();
        self.history.push_back((index, membership));
    }

    /// Drops the memberships of truncated entries, those at or after `from`. Returns the index of
    /// the membership that is in force again, if it changed.
    pub(crate) fn truncate_from(&mut self, from: Index) -> Option<Index> {
        let before = self.history.len();
        while self.history.len() > 1 && self.history.back().is_some_and(|known| known.0 >= from) {
            self.history.pop_back();
        }
        if self.history.len() == before {
            return None;
        }
        let (index, membership) = self.history.back()?;
        self.current = membership.clone();
        Some(*index)
    }

    /// Drops the memberships that no truncation can bring back: nothing through `applied` is
    /// truncated.
    pub(crate) fn prune(&mut self, applied: Index) {
        while self.history.get(1).is_some_and(|known| known.0 <= applied) {
            self.history.pop_front();
        }
    }

    /// Asserts the invariants of the type.
    pub(crate) fn check(&self, applied: Index) {
        let indexes: Vec<_> = self.history.iter().map(|known| known.0).collect();
        assert!(indexes.is_sorted(), "memberships out of order: {indexes:?}");
        assert!(indexes[0] <= applied, "the oldest membership {indexes:?} is above {applied}");
        assert_eq!(self.history.back().map(|known| &known.1), Some(&self.current));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{NodeId, Replica, ReplicaId};

    fn of(ids: &[u64]) -> Membership {
        Membership::of_voters(ids.iter().map(|&id| Replica::new(ReplicaId(id), NodeId(id))))
    }

    #[test]
    fn truncation_brings_the_membership_before_back() {
        let mut members = Members::new(Index(3), of(&[1]));
        members.push(Index(5), of(&[1, 2]));
        members.push(Index(8), of(&[1, 2, 3]));
        assert_eq!(members.truncate_from(Index(9)), None);
        assert_eq!(members.truncate_from(Index(8)), Some(Index(5)));
        assert_eq!(members.current(), &of(&[1, 2]));
        members.prune(Index(5));
        assert_eq!(members.truncate_from(Index(6)), None);
        assert_eq!(members.current(), &of(&[1, 2]));
        members.check(Index(5));
    }
}
