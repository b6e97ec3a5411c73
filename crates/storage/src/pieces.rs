//! Pieces: a record longer than the database's longest value is split into several values.
//!
//! A piece is numbered by a big-endian `u16` at the end of its key, so that the pieces of a record
//! are adjacent and in order. The record's own frame states its length; a record whose pieces do
//! not add up to exactly that is broken.

use crate::database::SLED_VALUE_BYTES_MAX;

/// Bytes of a record in one piece: the longest value that the database accepts.
pub const PIECE_BYTES: usize = SLED_VALUE_BYTES_MAX;

/// Bytes of a piece number at the end of a key.
pub const PIECE_NUMBER_BYTES: usize = 2;

/// The longest record that can be split: it uses every piece number.
pub const SPLIT_BYTES_MAX: usize = PIECE_BYTES * (u16::MAX as usize + 1);

/// The pieces of `record` with their numbers, in order. An empty record has one empty piece, so
/// that it exists.
pub fn split(record: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    debug_assert!(record.len() <= SPLIT_BYTES_MAX);
    let empty = record.is_empty().then_some(record);
    (0..=u16::MAX).zip(empty.into_iter().chain(record.chunks(PIECE_BYTES)))
}

/// Splits the piece number off the end of a key.
#[must_use]
pub fn split_key(key: &[u8]) -> Option<(&[u8], u16)> {
    let (stem, number) = key.split_last_chunk::<PIECE_NUMBER_BYTES>()?;
    Some((stem, u16::from_be_bytes(*number)))
}

/// Joins pieces that are read from a range in key order.
#[derive(Debug, Default)]
pub struct Joiner {
    bytes: Vec<u8>,
    next: u32,
    broken: bool,
}

impl Joiner {
    /// Adds the piece `number`. Pieces out of order, or a short piece that is not the last, break
    /// the record.
    pub fn push(&mut self, number: u16, piece: &[u8]) {
        let previous_is_full = self.bytes.len() == self.next as usize * PIECE_BYTES;
        self.broken |= u32::from(number) != self.next || !previous_is_full;
        self.next = u32::from(number) + 1;
        if !self.broken {
            self.bytes.extend_from_slice(piece);
        }
    }

    /// The record, or `None` if a piece before the last one is missing. The record's frame detects
    /// a missing last piece.
    #[must_use]
    pub fn finish(self) -> Option<Vec<u8>> {
        (!self.broken && self.next > 0).then_some(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(pieces: &[(u16, &[u8])]) -> Option<Vec<u8>> {
        let mut joiner = Joiner::default();
        pieces.iter().for_each(|(number, piece)| joiner.push(*number, piece));
        joiner.finish()
    }

    #[test]
    fn split_and_join_are_inverse_at_every_boundary() {
        for len in [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES] {
            let record: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let pieces: Vec<_> = split(&record).collect();
            assert_eq!(pieces.len(), len.div_ceil(PIECE_BYTES).max(1), "{len} bytes");
            assert!(pieces.iter().all(|(_, piece)| piece.len() <= PIECE_BYTES));
            assert_eq!(join(&pieces), Some(record), "{len} bytes");
        }
    }

    #[test]
    fn a_missing_or_short_piece_breaks_the_record() {
        let record = vec![7; 3 * PIECE_BYTES];
        let pieces: Vec<_> = split(&record).collect();
        assert_eq!(join(&pieces[1..]), None);
        assert_eq!(join(&[pieces[0], pieces[2]]), None);
        assert_eq!(join(&[pieces[0], (1, &[7; 10]), pieces[2]]), None);
        assert_eq!(join(&[]), None);
    }
}
