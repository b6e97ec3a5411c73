//! Writing a checkpoint: the frozen layer becomes versions in the tree, and one insert of the
//! header makes them the state.

use std::sync::Arc;

use quorate_raft::{GroupId, LogId};

use super::clean;
use super::delta::Layer;
use super::garbage::Garbage;
use super::generation::Generation;
use super::header::ShardHeader;
use super::intent::header_key;
use super::versions;
use super::view::Shared;
use crate::error::Result;

/// A frozen layer to be written to the tree, on any thread. Neither apply nor readers wait for it.
#[derive(Debug)]
#[must_use = "a frozen layer stays in memory until its checkpoint is written"]
pub struct CheckpointJob {
    pub(crate) shared: Arc<Shared>,
    pub(crate) generation: Arc<Generation>,
    pub(crate) layer: Arc<Layer>,
    /// The header of the new checkpoint.
    pub(crate) header: ShardHeader,
}

/// A checkpoint that has been written; see [`ShardStore::finish`](super::ShardStore::finish).
#[derive(Debug)]
#[must_use = "a checkpoint counts once the store has finished it"]
pub struct Finished {
    /// The durable header; `None` if an install has replaced the tree meanwhile.
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

    /// Writes the checkpoint; it is durable when this returns. Cleans up after the previous one
    /// first, so that superseded versions never exceed two checkpoints' worth.
    ///
    /// # Errors
    /// A failed write: the database is closed, and the process ends.
    pub fn run(self) -> Result<Finished> {
        clean::clean(&self.shared)?;
        let garbage = self.write_versions()?;
        // An install that finished first has replaced this checkpoint's tree.
        let generations = self.shared.generations.lock();
        if generations.durable != self.header.generation {
            return Ok(Finished { header: None, garbage: Garbage::default() });
        }
        let key = header_key(self.shared.group);
        self.shared.headers.insert(&key, &self.header.encode()?)?;
        self.shared.database.barrier()?;
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
        self.shared.write_intent(&self.header)?;
        self.shared.database.barrier()?;
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
        // The header may only reference durable versions.
        self.shared.database.barrier()?;
        Ok(garbage)
    }
}
