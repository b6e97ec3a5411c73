//! Membership of a group: voters, learners, and the two sets of voters of a joint configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use thiserror::Error;

use crate::types::{Entry, EntryKind, NodeId, Replica, ReplicaId};

/// The members of a group. A joint configuration (Raft paper §6) has outgoing voters too: while it
/// is in force, every decision needs a majority of both sets.
///
/// Invariants: every replica named anywhere has a node; `learners` and `voters` share no replica,
/// nor do `learners` and `voters_outgoing`; `learners_next` is a subset of `voters_outgoing` and
/// disjoint from `voters`; `auto_leave` is set only where there are outgoing voters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Membership {
    voters: BTreeSet<ReplicaId>,
    voters_outgoing: BTreeSet<ReplicaId>,
    learners: BTreeSet<ReplicaId>,
    learners_next: BTreeSet<ReplicaId>,
    auto_leave: bool,
    nodes: BTreeMap<ReplicaId, NodeId>,
}

/// Why bytes are not a membership, or why the parts of one do not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum MembershipError {
    /// This build does not know the format number.
    #[error("membership format {0} is not known")]
    Format(u8),
    /// The bytes are too few or too many.
    #[error("membership has an invalid length of {0} bytes")]
    Length(usize),
    /// A replica has roles that exclude each other, or none.
    #[error("{replica} has the roles {roles:#06b}, which exclude each other")]
    Roles {
        /// The replica.
        replica: ReplicaId,
        /// The role bits found.
        roles: u8,
    },
    /// The replicas are not in strictly ascending order.
    #[error("{0} is out of order")]
    Order(ReplicaId),
    /// Unknown flags, or `auto_leave` without a joint configuration.
    #[error("membership flags {0:#04x} are not valid here")]
    Flags(u8),
}

const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 6;
const MEMBER_BYTES: usize = 17;

const VOTER: u8 = 1;
const OUTGOING: u8 = 2;
const LEARNER: u8 = 4;
const LEARNER_NEXT: u8 = 8;

impl Membership {
    /// A plain configuration with these voters and no learners.
    pub fn of_voters(replicas: impl IntoIterator<Item = Replica>) -> Self {
        let mut membership = Self::default();
        for replica in replicas {
            membership.voters.insert(replica.id);
            membership.nodes.insert(replica.id, replica.node);
        }
        membership
    }

    /// Builds a configuration from the role bits of each replica: 1 voter, 2 outgoing voter,
    /// 4 learner, 8 learner once the joint configuration is left (with 2).
    ///
    /// # Errors
    /// Roles that exclude each other, or `auto_leave` without outgoing voters.
    pub fn from_parts(
        members: impl IntoIterator<Item = (Replica, u8)>,
        auto_leave: bool,
    ) -> Result<Self, MembershipError> {
        let mut membership = Self { auto_leave, ..Self::default() };
        for (replica, roles) in members {
            let allowed = [VOTER, VOTER | OUTGOING, OUTGOING, LEARNER, OUTGOING | LEARNER_NEXT];
            if !allowed.contains(&roles) {
                return Err(MembershipError::Roles { replica: replica.id, roles });
            }
            for (bit, set) in [
                (VOTER, &mut membership.voters),
                (OUTGOING, &mut membership.voters_outgoing),
                (LEARNER, &mut membership.learners),
                (LEARNER_NEXT, &mut membership.learners_next),
            ] {
                if roles & bit != 0 {
                    set.insert(replica.id);
                }
            }
            if membership.nodes.insert(replica.id, replica.node).is_some() {
                return Err(MembershipError::Order(replica.id));
            }
        }
        if auto_leave && !membership.is_joint() {
            return Err(MembershipError::Flags(1));
        }
        Ok(membership)
    }

    /// The node that hosts a member.
    #[must_use]
    pub fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.nodes.get(&replica).copied()
    }

    /// A member with its node.
    #[must_use]
    pub fn replica(&self, replica: ReplicaId) -> Option<Replica> {
        self.node_of(replica).map(|node| Replica { id: replica, node })
    }

    /// Whether the replica votes, in the incoming or the outgoing set.
    #[must_use]
    pub fn is_voter(&self, replica: ReplicaId) -> bool {
        self.voters.contains(&replica) || self.voters_outgoing.contains(&replica)
    }

    /// Whether the replica has any role.
    #[must_use]
    pub fn contains(&self, replica: ReplicaId) -> bool {
        self.nodes.contains_key(&replica)
    }

    /// Whether two sets of voters are in force.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    /// The incoming voters; all voters where the configuration is not joint.
    #[must_use]
    pub fn incoming(&self) -> &BTreeSet<ReplicaId> {
        &self.voters
    }

    /// The outgoing voters; empty where the configuration is not joint.
    #[must_use]
    pub fn outgoing(&self) -> &BTreeSet<ReplicaId> {
        &self.voters_outgoing
    }

    /// The voters of both sets, in ascending order, each once.
    pub fn voters(&self) -> impl Iterator<Item = Replica> + '_ {
        self.replicas().filter(|replica| self.is_voter(replica.id))
    }

    /// All members, in ascending order.
    pub fn replicas(&self) -> impl Iterator<Item = Replica> + '_ {
        self.nodes.iter().map(|(&id, &node)| Replica { id, node })
    }

    /// Whether it has no members.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    fn roles(&self, replica: ReplicaId) -> u8 {
        [
            (VOTER, &self.voters),
            (OUTGOING, &self.voters_outgoing),
            (LEARNER, &self.learners),
            (LEARNER_NEXT, &self.learners_next),
        ]
        .iter()
        .filter(|(_, set)| set.contains(&replica))
        .fold(0, |roles, (bit, _)| roles | bit)
    }

    /// The payload of a membership entry: format, flags, number of members (u32), then per member,
    /// ascending, replica id (u64), node id (u64) and role bits (u8); all little-endian. One
    /// membership has exactly one encoding.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.nodes.len() * MEMBER_BYTES);
        bytes.push(FORMAT);
        bytes.push(u8::from(self.auto_leave));
        bytes.extend_from_slice(&(self.nodes.len() as u32).to_le_bytes());
        for replica in self.replicas() {
            bytes.extend_from_slice(&replica.id.0.to_le_bytes());
            bytes.extend_from_slice(&replica.node.0.to_le_bytes());
            bytes.push(self.roles(replica.id));
        }
        Bytes::from(bytes)
    }

    /// The inverse of [`Membership::encode`].
    ///
    /// # Errors
    /// The bytes are not the one encoding of a sound membership.
    pub fn decode(bytes: &[u8]) -> Result<Self, MembershipError> {
        let length = || MembershipError::Length(bytes.len());
        let (header, mut rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or_else(length)?;
        let [format, flags, count @ ..] = *header;
        if format != FORMAT {
            return Err(MembershipError::Format(format));
        }
        if flags > 1 {
            return Err(MembershipError::Flags(flags));
        }
        let count = u32::from_le_bytes(count) as usize;
        if count.checked_mul(MEMBER_BYTES) != Some(rest.len()) {
            return Err(length());
        }
        let mut members = Vec::with_capacity(count);
        let mut previous = None;
        while let Some((id, after)) = rest.split_first_chunk::<8>() {
            let (node, after) = after.split_first_chunk::<8>().ok_or_else(length)?;
            let (&roles, after) = after.split_first().ok_or_else(length)?;
            let id = ReplicaId(u64::from_le_bytes(*id));
            if previous >= Some(id) {
                return Err(MembershipError::Order(id));
            }
            previous = Some(id);
            members.push((Replica { id, node: NodeId(u64::from_le_bytes(*node)) }, roles));
            rest = after;
        }
        Self::from_parts(members, flags == 1)
    }
}

/// `voters=r1,r2 outgoing=r1 learners=r4 next=r5 auto-leave`, empty parts left out.
impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, set) in [
            ("voters", &self.voters),
            ("outgoing", &self.voters_outgoing),
            ("learners", &self.learners),
            ("next", &self.learners_next),
        ] {
            if set.is_empty() && name != "voters" {
                continue;
            }
            write!(f, "{separator}{name}=")?;
            separator = " ";
            for (position, replica) in set.iter().enumerate() {
                write!(f, "{}{replica}", if position > 0 { "," } else { "" })?;
            }
        }
        if self.auto_leave { write!(f, " auto-leave") } else { Ok(()) }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id())?;
        match self.kind {
            EntryKind::Noop => write!(f, " noop"),
            EntryKind::Command => write!(f, " {}", self.payload.escape_ascii()),
            EntryKind::Membership => match Membership::decode(&self.payload) {
                Ok(membership) => write!(f, " {membership}"),
                Err(_) => write!(f, " membership?"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(id: u64) -> Replica {
        Replica { id: ReplicaId(id), node: NodeId(100 + id) }
    }

    #[test]
    fn the_encoding_is_fixed() {
        let membership = Membership::from_parts([(replica(1), 1), (replica(2), 4)], false).unwrap();
        let expected = [
            &[1, 0, 2, 0, 0, 0][..],
            &[1, 0, 0, 0, 0, 0, 0, 0, 101, 0, 0, 0, 0, 0, 0, 0, 1],
            &[2, 0, 0, 0, 0, 0, 0, 0, 102, 0, 0, 0, 0, 0, 0, 0, 4],
        ]
        .concat();
        assert_eq!(membership.encode(), expected);
        assert_eq!(Membership::decode(&expected), Ok(membership));
    }

    #[test]
    fn a_joint_membership_survives_the_round_trip() {
        let members =
            [(replica(1), 3), (replica(2), 2), (replica(3), 1), (replica(4), 10), (replica(5), 4)];
        let membership = Membership::from_parts(members, true).unwrap();
        assert_eq!(
            membership.to_string(),
            "voters=r1,r3 outgoing=r1,r2,r4 learners=r5 next=r4 auto-leave"
        );
        assert!(membership.is_joint() && membership.is_voter(ReplicaId(4)));
        assert_eq!(Membership::decode(&membership.encode()), Ok(membership));
    }

    #[test]
    fn damage_is_an_error_with_its_reason() {
        let good = Membership::of_voters([replica(1), replica(2)]).encode().to_vec();
        for cut in 0..good.len() {
            let error = Membership::decode(&good[..cut]).unwrap_err();
            assert_eq!(error, MembershipError::Length(cut));
        }
        let changed = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            Membership::decode(&bytes).unwrap_err()
        };
        assert_eq!(changed(0, 2), MembershipError::Format(2));
        assert_eq!(changed(1, 1), MembershipError::Flags(1));
        assert_eq!(changed(1, 2), MembershipError::Flags(2));
        assert_eq!(changed(6, 2), MembershipError::Order(ReplicaId(2)));
        assert_eq!(changed(22, 5), MembershipError::Roles { replica: ReplicaId(1), roles: 5 });
        assert_eq!(changed(22, 0), MembershipError::Roles { replica: ReplicaId(1), roles: 0 });
    }
}
