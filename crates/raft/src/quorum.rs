//! Majorities, of one set of voters and of two (Raft paper §6).

use std::collections::{BTreeMap, BTreeSet};

use crate::membership::Membership;
use crate::types::ReplicaId;

/// The state of a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tally {
    /// A quorum said yes.
    Won,
    /// No quorum can say yes any longer.
    Lost,
    /// Both are still possible.
    Open,
}

/// Groups up to this size are counted without an allocation.
const SMALL: usize = 15;

/// The largest value that a majority of `voters` has reached; `u64::MAX` for an empty set, which is
/// not a constraint.
fn majority(voters: &BTreeSet<ReplicaId>, value: &mut impl FnMut(ReplicaId) -> u64) -> u64 {
    if voters.is_empty() {
        return u64::MAX;
    }
    let mut small = [0; SMALL];
    let mut large = Vec::new();
    let values: &mut [u64] = if voters.len() <= SMALL {
        &mut small[..voters.len()]
    } else {
        large.resize(voters.len(), 0);
        &mut large
    };
    for (slot, &voter) in values.iter_mut().zip(voters) {
        *slot = value(voter);
    }
    values.sort_unstable();
    // In ascending order the value at (n − 1) / 2 has n / 2 + 1 values at or above it: a majority.
    values[(values.len() - 1) / 2]
}

/// The largest value that a quorum has reached: a majority of the voters and, in a joint
/// configuration, a majority of the outgoing voters too. 0 where there are no voters.
pub fn reached(membership: &Membership, mut value: impl FnMut(ReplicaId) -> u64) -> u64 {
    if membership.incoming().is_empty() {
        return 0;
    }
    let incoming = majority(membership.incoming(), &mut value);
    incoming.min(majority(membership.outgoing(), &mut value))
}

/// The state of a vote. Answers of replicas that are not voters are not counted.
#[must_use]
pub fn tally(membership: &Membership, votes: &BTreeMap<ReplicaId, bool>) -> Tally {
    if reached(membership, |voter| u64::from(votes.get(&voter) == Some(&true))) == 1 {
        Tally::Won
    } else if reached(membership, |voter| u64::from(votes.get(&voter) != Some(&false))) == 0 {
        Tally::Lost
    } else {
        Tally::Open
    }
}
