//! Scan pins: the pinned state of a shard at one index, shared by scans and reads of many rows.

use std::sync::Arc;

use bytes::Bytes;
use quorate_raft::Index;

use super::versions;
use super::view::{PinGuard, View};
use crate::error::Result;
use crate::keys::RowKey;

/// Holds the state of a shard at one index for reading. Cloning shares the pin.
#[derive(Clone, Debug)]
pub struct ScanPin {
    pinned: Arc<Pinned>,
}

#[derive(Debug)]
struct Pinned {
    view: Arc<View>,
    index: u64,
    _guard: PinGuard,
}

impl ScanPin {
    pub(super) fn new(view: Arc<View>, index: u64, guard: PinGuard) -> ScanPin {
        ScanPin { pinned: Arc::new(Pinned { view, index, _guard: guard }) }
    }

    /// The pinned index.
    #[must_use]
    pub fn index(&self) -> Index {
        Index(self.pinned.index)
    }

    /// The row at the pinned index. It may wait for the disk.
    ///
    /// # Errors
    /// A failed read, or [`Damaged`](crate::StorageError::Damaged).
    pub fn get(&self, key: &RowKey) -> Result<Option<Bytes>> {
        let Pinned { view, index, .. } = &*self.pinned;
        if let Some(record) = view.active.read().at(key, *index) {
            return Ok(record.clone());
        }
        if let Some(frozen) = &view.frozen
            && let Some(record) = frozen.read().at(key, *index)
        {
            return Ok(record.clone());
        }
        Ok(versions::read(&view.generation.tree, key, view.header.number)?.flatten())
    }

    pub(super) fn view(&self) -> &View {
        &self.pinned.view
    }
}
