//! Pins: the readers that still need an older state of a shard.
//!
//! A pin names a tree (by generation), the checkpoint in it whose versions must stay, and, for
//! scans, the index whose versions must stay in the delta. While a pin is held, superseded
//! versions that it can see are not removed.
//!
//! Lock order: an active layer's lock, then the pins. A reader registers while it holds the
//! layer for reading, so the writer, which asks for the pinned indexes while it holds the layer
//! for writing, misses none.

use std::collections::BTreeMap;

use crate::error::{Result, StorageError};

/// Scans of one shard that may be pinned at the same time.
pub const SCAN_PINS_MAX: usize = 64;
/// Snapshots of one shard that may be pinned at the same time.
pub const SNAPSHOT_PINS_MAX: usize = 2;

/// The purpose of a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PinKind {
    /// A read of the state at an index, for a client.
    Scan,
    /// A read of a checkpoint, for a follower or a backup.
    Snapshot,
    /// A read of a checkpoint, to compare its digest.
    Scrub,
}

#[derive(Debug)]
struct Pin {
    kind: PinKind,
    generation: u64,
    number: u64,
    /// The index pinned in the delta; `None` if only the checkpoint is read.
    index: Option<u64>,
}

/// All pins of a shard.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    next_id: u64,
    held: BTreeMap<u64, Pin>,
}

impl Pins {
    /// Registers a pin; an error if there are too many of its kind.
    pub(crate) fn add(
        &mut self,
        kind: PinKind,
        generation: u64,
        number: u64,
        index: Option<u64>,
    ) -> Result<u64> {
        let (limit, what) = match kind {
            PinKind::Scan => (SCAN_PINS_MAX, "scans"),
            PinKind::Snapshot => (SNAPSHOT_PINS_MAX, "snapshots"),
            PinKind::Scrub => (1, "scrubs"),
        };
        if self.held.values().filter(|pin| pin.kind == kind).count() >= limit {
            return Err(StorageError::TooManyPins { what, limit });
        }
        let id = self.next_id;
        self.next_id += 1;
        self.held.insert(id, Pin { kind, generation, number, index });
        Ok(id)
    }

    pub(crate) fn remove(&mut self, id: u64) {
        let pin = self.held.remove(&id);
        assert!(pin.is_some(), "pin {id} was released twice");
    }

    /// The indexes pinned in the delta, once each, ascending.
    pub(crate) fn indexes(&self) -> Vec<u64> {
        let mut indexes: Vec<u64> = self.held.values().filter_map(|pin| pin.index).collect();
        indexes.sort_unstable();
        indexes.dedup();
        indexes
    }

    /// The checkpoints pinned in one tree, once each, ascending.
    pub(crate) fn numbers(&self, generation: u64) -> Vec<u64> {
        let here = self.held.values().filter(|pin| pin.generation == generation);
        let mut numbers: Vec<u64> = here.map(|pin| pin.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }
}
