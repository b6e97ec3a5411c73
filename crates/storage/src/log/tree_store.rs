//! Records in a tree of the engine: key = sequence ‖ piece, both big endian.

use super::store::{Found, LogStore};
use crate::engine::{Engine, Tree};
use crate::error::{Result, StorageError};
use crate::{crash, pieces};

const TREE: &[u8] = b"log";

/// Keys removed by one call of `remove_below`, so that it never holds up an append for long.
const REMOVE_MAX: usize = 256;

pub(super) struct TreeStore {
    engine: Engine,
    tree: Tree,
}

impl TreeStore {
    pub fn open(engine: &Engine) -> Result<Self> {
        Ok(Self { engine: engine.clone(), tree: engine.tree(TREE)? })
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
        for item in self.tree.range::<&[u8]>(..) {
            let (key, value) = item?;
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
            self.tree.remove(&item?.0)?;
        }
        self.engine.barrier()
    }

    fn settle(&mut self) -> Result<()> {
        self.engine.barrier()
    }

    fn write(&mut self, sequence: u64, record: &[u8]) -> Result<()> {
        for (piece, bytes) in pieces::split(record) {
            self.tree.insert(&key_of(sequence, piece), bytes)?;
        }
        crash::point("log.written");
        self.engine.barrier()
    }

    fn remove_below(&mut self, sequence: u64) -> Result<bool> {
        let mut removed = 0;
        for item in self.tree.range(..key_of(sequence, 0)).take(REMOVE_MAX) {
            self.tree.remove(&item?.0)?;
            removed += 1;
        }
        Ok(removed < REMOVE_MAX)
    }
}
