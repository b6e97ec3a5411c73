//! Property tests of quorums and memberships, against models that are obviously correct.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use quorate_raft::quorum::{Tally, reached, tally};
use quorate_raft::{Membership, NodeId, Replica, ReplicaId};

fn replica(id: u64) -> Replica {
    Replica::new(ReplicaId(id), NodeId(id))
}

/// Two sets of voters with ids up to 18, the second one often empty: then the configuration is not
/// joint.
fn memberships() -> impl Strategy<Value = Membership> {
    let set = |min| prop::collection::btree_set(1_u64..=18, min..18);
    (set(1), prop_oneof![Just(BTreeSet::new()), set(1)]).prop_map(|(incoming, outgoing)| {
        let all: BTreeSet<_> = incoming.union(&outgoing).copied().collect();
        let roles = all.into_iter().map(|id| {
            let voter = u8::from(incoming.contains(&id));
            let leaving = u8::from(outgoing.contains(&id));
            (replica(id), voter | leaving << 1)
        });
        Membership::from_parts(roles, false).expect("sound roles")
    })
}

/// Whether a majority says yes, by counting.
fn most(voters: &BTreeSet<ReplicaId>, yes: impl Fn(ReplicaId) -> bool) -> bool {
    voters.iter().filter(|&&voter| yes(voter)).count() * 2 > voters.len()
}

fn quorum(membership: &Membership, yes: impl Fn(ReplicaId) -> bool) -> bool {
    most(membership.incoming(), &yes)
        && (!membership.is_joint() || most(membership.outgoing(), &yes))
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(2_000))]

    /// The reached value is the largest that a quorum has; the model tries each.
    #[test]
    fn the_reached_value_is_the_largest_that_a_quorum_has(
        membership in memberships(),
        values in prop::collection::vec(0_u64..40, 19),
    ) {
        let value = |voter: ReplicaId| values[voter.0 as usize];
        let twin = (0..40).rev().find(|&floor| quorum(&membership, |voter| value(voter) >= floor));
        prop_assert_eq!(Some(reached(&membership, value)), twin);
    }

    /// A vote is won, lost or open, by the best and the worst way to fill in the missing answers.
    #[test]
    fn a_tally_agrees_with_the_best_and_the_worst_case(
        membership in memberships(),
        votes in prop::collection::btree_map(1_u64..=20, any::<bool>(), 0..20),
    ) {
        let votes: BTreeMap<_, _> =
            votes.into_iter().map(|(id, granted)| (ReplicaId(id), granted)).collect();
        let worst = quorum(&membership, |voter| votes.get(&voter).copied().unwrap_or(false));
        let best = quorum(&membership, |voter| votes.get(&voter).copied().unwrap_or(true));
        let twin = match (worst, best) {
            (true, _) => Tally::Won,
            (false, false) => Tally::Lost,
            (false, true) => Tally::Open,
        };
        prop_assert_eq!(tally(&membership, &votes), twin);
    }

    /// Two quorums of one configuration always share a voter.
    #[test]
    fn quorums_intersect(membership in memberships(), one in any::<u32>(), other in any::<u32>()) {
        let has = |set: u32| move |voter: ReplicaId| set >> voter.0 & 1 == 1;
        if quorum(&membership, has(one)) && quorum(&membership, has(other)) {
            let shared = membership.voters().any(|voter| has(one & other)(voter.id));
            prop_assert!(shared);
        }
    }

    /// A membership has one encoding, which decodes to it.
    #[test]
    fn memberships_survive_their_encoding(membership in memberships()) {
        let bytes = membership.encode();
        prop_assert_eq!(Membership::decode(&bytes), Ok(membership));
    }

    /// No bytes make the decoder panic.
    #[test]
    fn any_bytes_are_a_membership_or_an_error(
        mut bytes in prop::collection::vec(any::<u8>(), 0..80),
        plausible in any::<bool>(),
    ) {
        if plausible && bytes.len() >= 6 {
            bytes[..6].copy_from_slice(&[1, 0, 0, 0, 0, 0]);
            bytes[2] = ((bytes.len() - 6) / 17) as u8;
        }
        if let Ok(membership) = Membership::decode(&bytes) {
            prop_assert_eq!(&membership.encode()[..], &bytes[..]);
        }
    }
}
