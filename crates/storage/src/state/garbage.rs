//! Garbage: what may be there to remove, remembered until the next cleaning.

use std::mem;
use std::sync::Arc;

use super::generation::Generation;
use crate::keys::RowKey;

/// Rows to look at are remembered up to this many bytes; beyond, the whole tree is gone through.
const REMEMBERED_BYTES_MAX: usize = 4 << 20;

/// What may be there to remove.
#[derive(Debug, Default)]
pub(crate) struct Garbage {
    /// Rows that have, or had, more than one version.
    pub(super) rows: Vec<RowKey>,
    bytes: usize,
    /// Any row may have: the whole tree is to be gone through.
    pub(super) sweep: bool,
    /// Trees that an install has replaced; their last readers may still be there.
    pub(super) retired: Vec<Arc<Generation>>,
}

impl Garbage {
    /// Remembers a row of which a new version was written.
    pub(crate) fn note(&mut self, key: RowKey) {
        self.bytes += key.as_bytes().len() + mem::size_of::<RowKey>();
        if self.sweep || self.bytes > REMEMBERED_BYTES_MAX {
            self.sweep_all();
        } else {
            self.rows.push(key);
        }
    }

    /// Makes the next cleaning go through the whole tree.
    pub(crate) fn sweep_all(&mut self) {
        self.sweep = true;
        self.rows = Vec::new();
        self.bytes = 0;
    }

    pub(crate) fn retire(&mut self, generation: Arc<Generation>) {
        self.retired.push(generation);
    }

    pub(crate) fn merge(&mut self, other: Garbage) {
        if other.sweep {
            self.sweep_all();
        }
        other.rows.into_iter().for_each(|row| self.note(row));
        self.retired.extend(other.retired);
    }

    /// Forgets the rows, which belong to a tree that is no longer in use.
    pub(crate) fn forget_rows(&mut self) {
        self.rows = Vec::new();
        self.bytes = 0;
        self.sweep = false;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && !self.sweep && self.retired.is_empty()
    }
}
