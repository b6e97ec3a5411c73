//! Leaderships that a client has placed, which are not moved to the preferred node.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use quorate_raft::{GroupId, Term};
use tokio::sync::Semaphore;

/// Transfers that a node prepares at the same time. Each looks at the engine's status meanwhile.
const TURNS: usize = 16;

/// The transfers that clients have asked this node for.
#[derive(Debug)]
pub struct Transfers {
    /// Places of transfers that this node prepares as the leader.
    pub(crate) turns: Semaphore,
    /// The terms in which this node leads by a client's wish.
    kept: Mutex<BTreeMap<GroupId, Term>>,
}

impl Default for Transfers {
    fn default() -> Self {
        Self { turns: Semaphore::new(TURNS), kept: Mutex::default() }
    }
}

impl Transfers {
    /// Notes that this node leads the group in this term by a client's wish. Memory alone holds it:
    /// with the leadership the wish ends.
    pub(crate) fn keep(&self, group: GroupId, term: Term) {
        self.kept.lock().insert(group, term);
    }

    /// Whether this node leads the group in this term by a client's wish.
    #[must_use]
    pub fn keeps(&self, group: GroupId, term: Term) -> bool {
        self.kept.lock().get(&group) == Some(&term)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_ends_with_its_term() {
        let transfers = Transfers::default();
        let (group, term) = (GroupId(2), Term(5));
        transfers.keep(group, term);
        assert!(transfers.keeps(group, term));
        assert!(!transfers.keeps(group, Term(6)) && !transfers.keeps(GroupId(1), term));
        transfers.keep(group, Term(6));
        assert!(!transfers.keeps(group, term));
    }
}
