//! Garbage: the rows and trees that the next cleaning may have to remove.

use std::mem;
use std::sync::Arc;

use super::generation::Generation;
use crate::keys::RowKey;

/// Rows to be cleaned are listed up to this many bytes; beyond that the whole tree is swept.
const REMEMBERED_BYTES_MAX: usize = 4 << 20;

/// The work of the next cleaning.
#[derive(Debug, Default)]
pub(crate) struct Garbage {
    /// Rows that have, or had, more than one version.
    pub(super) rows: Vec<RowKey>,
    bytes: usize,
    /// Any row may have more than one version: the whole tree must be swept.
    pub(super) sweep: bool,
    /// Trees that an install has replaced; they may still have readers.
    pub(super) retired: Vec<Arc<Generation>>,
}

impl Garbage {
    /// Adds a row of which a new version was written.
    pub(crate) fn note(&mut self, key: RowKey) {
        self.bytes += key.as_bytes().len() + mem::size_of::<RowKey>();
        if self.sweep || self.bytes > REMEMBERED_BYTES_MAX {
            self.sweep_all();
        } else {
            self.rows.push(key);
        }
    }

    /// Makes the next cleaning sweep the whole tree.
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

    /// Drops the rows, which belong to a tree that is no longer in use.
    pub(crate) fn forget_rows(&mut self) {
        self.rows = Vec::new();
        self.bytes = 0;
        self.sweep = false;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && !self.sweep && self.retired.is_empty()
    }
}
