//! Writing a checkpoint: the frozen layer becomes versions in the tree, and one insert of the
//! header makes them the state.

use std::cmp::Ordering;
use std::sync::Arc;

use bincode::{BorrowDecode, Encode};
use quorate_raft::{GroupId, LogId};

use super::clean::{self, Garbage};
use super::delta::Layer;
use super::header::ShardHeader;
use super::versions;
use super::view::{Generation, Shared};
use crate::codec;
use crate::error::Result;

/// The key of a shard's header in the tree of headers.
pub(crate) fn header_key(group: GroupId) -> [u8; 8] {
    group.0.to_be_bytes()
}

/// The key of a shard's attempt record, beside its header.
pub(crate) fn attempt_key(group: GroupId) -> [u8; 9] {
    let mut key = [b'a'; 9];
    key[..8].copy_from_slice(&header_key(group));
    key
}

/// The last checkpoint that was begun in a tree, and the last one that was cleaned up behind.
///
/// It is durable before the first version of a checkpoint is written. So a shard whose header is
/// older than its attempt has to be searched for versions above the header when it is opened, and
/// no other has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub(crate) struct Attempt {
    pub(crate) generation: u64,
    /// The checkpoint whose versions may be in the tree.
    pub(crate) begun: u64,
    /// The checkpoint at which no superseded version was left in the tree; 0 is none.
    pub(crate) cleaned: u64,
}

impl Attempt {
    const FORMAT: u8 = 1;

    /// The record of a tree in which nothing was begun that is not in its header.
    pub(crate) fn none(header: &ShardHeader) -> Attempt {
        let number = header.number;
        Attempt { generation: header.generation, begun: number, cleaned: number }
    }

    /// Notes that the versions of a checkpoint are about to be written; it must be behind a
    /// barrier before they are.
    fn begin(shared: &Shared, header: &ShardHeader) -> Result<()> {
        let mut attempt = shared.attempt.lock();
        if attempt.generation != header.generation {
            *attempt = Attempt { generation: header.generation, begun: 0, cleaned: 0 };
        }
        attempt.begun = header.number;
        attempt.write(shared)
    }

    /// Notes that nothing is left to clean up behind a checkpoint.
    pub(crate) fn clean(shared: &Shared, header: &ShardHeader) -> Result<()> {
        let mut attempt = shared.attempt.lock();
        match attempt.generation.cmp(&header.generation) {
            Ordering::Less => *attempt = Attempt::none(header),
            Ordering::Equal => attempt.cleaned = header.number,
            Ordering::Greater => return Ok(()),
        }
        attempt.write(shared)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Attempt> {
        codec::decode(bytes, Attempt::FORMAT, "the attempt record of a shard")
    }

    fn write(&self, shared: &Shared) -> Result<()> {
        let bytes = codec::encode(Attempt::FORMAT, self)?;
        shared.headers.insert(&attempt_key(shared.group), &bytes)
    }
}

/// A frozen layer to be written to the tree, on any thread. Neither apply nor readers wait for it.
#[derive(Debug)]
#[must_use = "a frozen layer stays in memory until its checkpoint is written"]
pub struct CheckpointJob {
    pub(crate) shared: Arc<Shared>,
    pub(crate) generation: Arc<Generation>,
    pub(crate) layer: Arc<Layer>,
    /// The header as it will be.
    pub(crate) header: ShardHeader,
}

/// A checkpoint that has been written; see [`ShardStore::finish`](super::ShardStore::finish).
#[derive(Debug)]
#[must_use = "a checkpoint counts once the store has finished it"]
pub struct Finished {
    /// The header as it is now; none if an install has replaced the tree meanwhile.
    pub(crate) header: Option<ShardHeader>,
    /// The rows of which versions were written.
    pub(crate) garbage: Garbage,
}

impl CheckpointJob {
    /// The shard.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.shared.group
    }

    /// The last entry in the checkpoint.
    #[must_use]
    pub fn applied(&self) -> LogId {
        self.header.applied()
    }

    /// The rows to be written.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.layer.read().len()
    }

    /// Writes the checkpoint; it is durable when this returns. Cleans up behind the one before it
    /// first, so that superseded versions never are more than two checkpoints' worth.
    ///
    /// # Errors
    /// A failed write: the engine is closed, and the process ends.
    pub fn run(self) -> Result<Finished> {
        clean::clean(&self.shared)?;
        let garbage = self.write_versions()?;
        // An install that came first has made this checkpoint's tree a thing of the past.
        let generations = self.shared.generations.lock();
        if generations.durable != self.header.generation {
            return Ok(Finished { header: None, garbage: Garbage::default() });
        }
        let key = header_key(self.shared.group);
        self.shared.headers.insert(&key, &self.header.encode()?)?;
        self.shared.engine.barrier()?;
        drop(generations);
        Ok(Finished { header: Some(self.header), garbage })
    }

    fn write_versions(&self) -> Result<Garbage> {
        let mut garbage = Garbage::default();
        let rows = self.layer.read();
        if rows.len() == 0 {
            return Ok(garbage);
        }
        let (tree, number) = (&self.generation.tree, self.header.number);
        Attempt::begin(&self.shared, &self.header)?;
        self.shared.engine.barrier()?;
        let cache = self.shared.budget.cache();
        for (key, record) in rows.all() {
            if record.is_some() || versions::exists(tree, key)? {
                versions::write(tree, key, number, record.map(|record| &record[..]))?;
                let bytes = key.as_bytes().len() + record.map_or(0, |record| record.len());
                self.shared.occupied.add(bytes as u64);
                garbage.note(key.clone());
            }
            // The frozen layer answers for this row until the checkpoint is finished; from then
            // on this is the row of the tree (see the module `view`).
            cache.put(self.generation.cache_id, key, record, || true);
        }
        // The header may only speak of versions that are durable.
        self.shared.engine.barrier()?;
        Ok(garbage)
    }
}
