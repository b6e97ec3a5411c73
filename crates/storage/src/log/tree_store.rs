//! Tree back end of the log: records in a tree of the database, with the key sequence ‖ piece, both
//! big endian.

use std::path::Path;

use super::store::{Found, LogStore};
use crate::database::{Database, Tree};
use crate::error::{Result, StorageError};
use crate::{crash, pieces};

const TREE: &[u8] = b"log";

/// The fewest keys that one call of `remove_below` removes, if there are that many. It removes two
/// more for each key written since the last call: so the backlog shrinks, and the duration of a
/// call is proportional to the appends before it.
const REMOVE_MIN: usize = 256;

pub(super) struct TreeStore {
    database: Database,
    tree: Tree,
    /// Keys written since the last call of `remove_below`.
    added: usize,
    /// Bytes of all keys and values in the tree.
    stored: u64,
}

impl TreeStore {
    pub fn open(database: &Database) -> Result<Self> {
        Ok(Self { database: database.clone(), tree: database.tree(TREE)?, added: 0, stored: 0 })
    }
}

fn sequence_of(key: &[u8]) -> Result<(u64, u16)> {
    pieces::split_key(key)
        .and_then(|(stem, piece)| Some((u64::from_be_bytes(stem.try_into().ok()?), piece)))
        .ok_or_else(|| StorageError::damaged(format!("the log has a key of {} bytes", key.len())))
}

fn key_of(sequence: u64, piece: u16) -> [u8; 10] {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&sequence.to_be_bytes());
    key[8..].copy_from_slice(&piece.to_be_bytes());
    key
}

impl LogStore for TreeStore {
    fn scan(&mut self, visit: &mut dyn FnMut(u64, Found<'_>) -> Result<()>) -> Result<()> {
        let mut open: Option<(u64, pieces::Joiner)> = None;
        let mut close = |open: Option<(u64, pieces::Joiner)>| match open {
            None => Ok(()),
            Some((sequence, joiner)) => match joiner.finish() {
                Some(record) => visit(sequence, Ok(&record)),
                None => visit(sequence, Err("lacks a piece")),
            },
        };
        self.stored = 0;
        for item in self.tree.range::<&[u8]>(..) {
            let (key, value) = item?;
            self.stored += (key.len() + value.len()) as u64;
            let (sequence, piece) = sequence_of(&key)?;
            if open.as_ref().is_none_or(|(current, _)| *current != sequence) {
                close(open.take())?;
            }
            open.get_or_insert_with(|| (sequence, pieces::Joiner::default())).1.push(piece, &value);
        }
        close(open)
    }

    fn read(&mut self, sequence: u64) -> Result<Vec<u8>> {
        let mut joiner = pieces::Joiner::default();
        for item in self.tree.range(key_of(sequence, 0)..=key_of(sequence, u16::MAX)) {
            let (key, value) = item?;
            joiner.push(sequence_of(&key)?.1, &value);
        }
        joiner.finish().ok_or_else(|| {
            StorageError::damaged(format!("record {sequence} of the log lacks a piece"))
        })
    }

    fn remove_from(&mut self, sequence: u64) -> Result<()> {
        for item in self.tree.range(key_of(sequence, 0)..) {
            let (key, value) = item?;
            self.tree.remove(&key)?;
            self.stored = self.stored.saturating_sub((key.len() + value.len()) as u64);
        }
        self.database.barrier()
    }

    fn settle(&mut self) -> Result<()> {
        self.database.barrier()
    }

    fn write(&mut self, sequence: u64, record: &[u8]) -> Result<()> {
        for (piece, bytes) in pieces::split(record) {
            let key = key_of(sequence, piece);
            self.tree.insert(&key, bytes)?;
            self.added += 1;
            self.stored += (key.len() + bytes.len()) as u64;
        }
        crash::point("log.written");
        self.database.barrier()
    }

    fn remove_below(&mut self, sequence: u64) -> Result<bool> {
        let at_most = REMOVE_MIN + 2 * std::mem::take(&mut self.added);
        let mut removed = 0;
        for item in self.tree.range(..key_of(sequence, 0)).take(at_most) {
            let (key, value) = item?;
            self.tree.remove(&key)?;
            self.stored = self.stored.saturating_sub((key.len() + value.len()) as u64);
            removed += 1;
        }
        Ok(removed < at_most)
    }

    fn file_of(&self, _sequence: u64) -> Option<&Path> {
        None
    }

    fn stored_bytes(&self) -> u64 {
        self.stored
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other keys would hide every record.
    #[test]
    fn the_key_of_a_piece_is_fixed() {
        let key = key_of(0x0102_0304_0506_0708, 0x090a);
        assert_eq!(key, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(sequence_of(&key).unwrap(), (0x0102_0304_0506_0708, 0x090a));
    }
}
