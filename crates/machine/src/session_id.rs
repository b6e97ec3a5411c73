//! Session ids: the identity of an exactly-once session, minted by a node without coordination.
//!
//! id = birth by log time 8 ‖ node 4 ‖ counter 4 ‖ random 8 bytes, all big-endian, so that ids are
//! ordered by birth. Clients hold a longer form, which is opaque to them: `session_key`. Two ids
//! are equal only when the same node minted both at the same log time with the same counter and the
//! same 64 random bits.

use std::{
    fmt,
    sync::atomic::{AtomicU32, Ordering},
};

use quorate_proto::limits::SESSION_ID_BYTES;

use crate::stamp::LogTime;

/// The key of a session's write; see [`SessionId::write_key`].
pub type WriteKey = [u8; SESSION_ID_BYTES + 8];

/// The identity of a client's exactly-once session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId([u8; SESSION_ID_BYTES]);

impl SessionId {
    /// Builds an id from its parts.
    #[must_use]
    pub fn from_parts(birth: LogTime, node: u32, counter: u32, random: u64) -> SessionId {
        let mut id = [0; SESSION_ID_BYTES];
        id[..8].copy_from_slice(&birth.0.to_be_bytes());
        id[8..12].copy_from_slice(&node.to_be_bytes());
        id[12..16].copy_from_slice(&counter.to_be_bytes());
        id[16..].copy_from_slice(&random.to_be_bytes());
        Self(id)
    }

    /// Reads an id; `None` if it is not 24 bytes long.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<SessionId> {
        Some(SessionId(bytes.try_into().ok()?))
    }

    /// The bytes, as shards store them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; SESSION_ID_BYTES] {
        &self.0
    }

    /// The key of the write with this sequence: the id, and the sequence in big-endian order.
    #[must_use]
    pub fn write_key(&self, sequence: u64) -> WriteKey {
        let mut key = [0; SESSION_ID_BYTES + 8];
        key[..SESSION_ID_BYTES].copy_from_slice(&self.0);
        key[SESSION_ID_BYTES..].copy_from_slice(&sequence.to_be_bytes());
        key
    }

    /// The log time at which the session was born.
    #[must_use]
    pub fn birth(&self) -> LogTime {
        let mut birth = [0; 8];
        birth.copy_from_slice(&self.0[..8]);
        LogTime(u64::from_be_bytes(birth))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

/// Mints session ids for one node.
#[derive(Debug)]
pub struct SessionMint {
    node: u32,
    counter: AtomicU32,
}

impl SessionMint {
    /// A mint for a node; node ids above 32 bits keep their low half, which is safe, because the
    /// random part keeps the ids distinct.
    #[must_use]
    pub fn new(node: u64) -> SessionMint {
        SessionMint { node: node as u32, counter: AtomicU32::new(0) }
    }

    /// A new id, born at `clock`, the node's estimate of the log time, within the client's wish.
    #[must_use]
    pub fn mint(&self, clock: LogTime, wish: BirthWish, random: u64) -> SessionId {
        let latest = if wish.not_after == LogTime(0) { clock } else { clock.min(wish.not_after) };
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        SessionId::from_parts(latest.max(wish.not_before), self.node, counter, random)
    }
}

/// The bounds of a birth that a client takes from the rejection of its last session: the log time
/// of the shard that rejected it. So a node with wrong clocks cannot mint useless sessions forever;
/// 0 = no wish.
///
/// A wish has no other effect: shards reject a birth more than a second ahead of their log time,
/// and one that is a time to live behind it.
#[derive(Clone, Copy, Debug, Default)]
pub struct BirthWish {
    /// From SESSION_EXPIRED: the session is born no earlier. It wins over `not_after`.
    pub not_before: LogTime,
    /// From SESSION_FROM_FUTURE: the session is born no later.
    pub not_after: LogTime,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_layout_is_fixed() {
        let id = SessionId::from_parts(
            LogTime(0x0102_0304_0506_0708),
            0x0a0b_0c0d,
            0x1112_1314,
            0x2122_2324_2526_2728,
        );
        assert_eq!(id.to_string(), "01020304050607080a0b0c0d111213142122232425262728");
        assert_eq!(id.birth(), LogTime(0x0102_0304_0506_0708));
        assert_eq!(SessionId::from_slice(id.as_bytes()), Some(id));
        assert_eq!(SessionId::from_slice(&id.as_bytes()[1..]), None);
    }

    #[test]
    fn ids_differ_by_the_counter_even_if_all_else_is_equal() {
        let mint = SessionMint::new(3);
        let clock = LogTime::from_millis(1_000);
        assert_ne!(
            mint.mint(clock, BirthWish::default(), 7),
            mint.mint(clock, BirthWish::default(), 7)
        );
    }

    #[test]
    fn slow_clocks_and_fast_ones_yield_to_the_log_time_of_a_shard() {
        let mint = SessionMint::new(3);
        let (early, late) = (LogTime::from_millis(1_000), LogTime::from_millis(900_000));
        let born = |clock, not_before, not_after| {
            mint.mint(clock, BirthWish { not_before, not_after }, 7).birth()
        };
        assert_eq!(born(early, late, LogTime(0)), late);
        assert_eq!(born(late, early, LogTime(0)), late);
        assert_eq!(born(late, LogTime(0), early), early);
        assert_eq!(born(early, LogTime(0), late), early);
        assert_eq!(born(early, late, early), late, "not_before wins");
    }

    proptest! {
        #[test]
        fn ids_are_ordered_by_birth(a: (u64, u32, u32, u64), b: (u64, u32, u32, u64)) {
            let id = |p: (u64, u32, u32, u64)| SessionId::from_parts(LogTime(p.0), p.1, p.2, p.3);
            prop_assert_eq!(id(a).cmp(&id(b)), a.cmp(&b));
        }
    }
}
