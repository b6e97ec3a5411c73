//! The digest of a state, by which replicas are compared.
//!
//! It is the sum, modulo 2^128, of one hash per live row, session and map rows included:
//! `xxh3_128(length of the row key, u32 little-endian ‖ row key ‖ record)`. A sum does not depend
//! on the order of the rows, so each write changes it by two hashes. It finds damage and bugs, but
//! does not protect against rows that are chosen to collide.

use std::collections::VecDeque;

use quorate_raft::Index;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::keys::RowKey;

/// Longer records are hashed where they are.
const SCRATCH_BYTES: usize = 16 << 10;

/// A running digest. `scratch` is a buffer kept between rows.
#[derive(Debug, Default)]
pub(crate) struct Digest {
    sum: u128,
    scratch: Vec<u8>,
}

impl Digest {
    /// A digest that continues from `sum`; 0 is the digest of no rows.
    pub(crate) fn from_sum(sum: u128) -> Digest {
        Digest { sum, scratch: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn add(&mut self, key: &RowKey, record: &[u8]) {
        self.sum = self.sum.wrapping_add(self.row(key, record));
    }

    /// Subtracts a row that was added.
    pub(crate) fn subtract(&mut self, key: &RowKey, record: &[u8]) {
        self.sum = self.sum.wrapping_sub(self.row(key, record));
    }

    /// The digest of the rows added.
    pub(crate) fn sum(&self) -> u128 {
        self.sum
    }

    fn row(&mut self, key: &RowKey, record: &[u8]) -> u128 {
        let key = key.as_bytes();
        if record.len() > SCRATCH_BYTES {
            // Slower by some hundred nanoseconds, and without a copy that every shard would keep.
            let mut hash = Xxh3::new();
            hash.update(&(key.len() as u32).to_le_bytes());
            hash.update(key);
            hash.update(record);
            return hash.digest128();
        }
        self.scratch.clear();
        self.scratch.extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.scratch.extend_from_slice(key);
        self.scratch.extend_from_slice(record);
        xxh3_128(&self.scratch)
    }
}

/// A digest is recorded at every index that is a multiple of this.
pub(crate) const MARK_INTERVAL: u64 = 1_024;
/// The number of recorded digests that are kept, the newest ones.
pub(crate) const MARKS_MAX: usize = 16;

/// The digests at the last marked indexes, oldest first. Running replicas are asked one after the
/// other, so they can only be compared at an index that both have passed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks(VecDeque<(Index, u128)>);

impl Marks {
    /// Whether the digest after the entry at `index` is to be recorded.
    pub(crate) fn is_due(index: Index) -> bool {
        index.0.is_multiple_of(MARK_INTERVAL)
    }

    /// Records the digest after the entry at `index`.
    pub(crate) fn note(&mut self, index: Index, digest: u128) {
        if self.0.len() == MARKS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((index, digest));
    }

    /// Drops all of them, because another state has replaced this one.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn all(&self) -> Vec<(Index, u128)> {
        self.0.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::RowKind;

    fn digest(rows: &[(&[u8], &[u8])]) -> u128 {
        let mut digest = Digest::default();
        for (key, record) in rows {
            digest.add(&RowKey::new(RowKind::User, 0, key), record);
        }
        digest.sum()
    }

    #[test]
    fn its_values_never_change() {
        assert_eq!(digest(&[]), 0);
        assert_eq!(digest(&[(b"key", b"record")]), 0xbb7a_1a38_7170_dec8_211c_0b5e_98ba_6bf9);
        assert_eq!(digest(&[(b"key", b"record")]), xxh3_128(b"\x08\0\0\0\x01\0\0\0\0keyrecord"));
        let long = vec![7; SCRATCH_BYTES + 1];
        let whole = [b"\x08\0\0\0\x01\0\0\0\0key", &long[..]].concat();
        assert_eq!(digest(&[(b"key", &long)]), xxh3_128(&whole));
    }

    #[test]
    fn it_depends_on_the_rows_and_not_on_their_order() {
        let rows: [(&[u8], &[u8]); 2] = [(b"a", b"1"), (b"b", b"2")];
        assert_eq!(digest(&rows), digest(&[rows[1], rows[0]]));
        assert_ne!(digest(&rows), digest(&[(b"a", b"2"), (b"b", b"1")]));
        assert_ne!(digest(&[(b"a", b"bc")]), digest(&[(b"ab", b"c")]));
    }

    #[test]
    fn an_added_row_can_be_subtracted() {
        let key = RowKey::new(RowKind::Session, 1, b"s");
        let mut digest = Digest::from_sum(17);
        digest.add(&key, b"one");
        digest.subtract(&key, b"one");
        assert_eq!(digest.sum(), 17);
    }

    #[test]
    fn the_newest_marks_are_kept() {
        let mut marks = Marks::default();
        for index in (1..=20 * MARK_INTERVAL).filter(|index| Marks::is_due(Index(*index))) {
            marks.note(Index(index), u128::from(index));
        }
        let expected = (5..=20).map(|n| (Index(n * MARK_INTERVAL), u128::from(n * MARK_INTERVAL)));
        assert_eq!(marks.all(), expected.collect::<Vec<_>>());
        marks.clear();
        assert_eq!(marks.all(), []);
    }
}
