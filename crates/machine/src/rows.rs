//! Rows of a group during the application of an entry: the interface to the storage, and an
//! in-memory implementation for tests.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_storage::{RowKey, RowKind, StorageError, Transaction};

/// The rows of one group, as the entry being applied reads and changes them. The entry sees its own
/// changes immediately; readers see all of them or none, when the storage commits the transaction.
pub trait RowTransaction {
    /// The row's bytes; `None` = there is no such row.
    ///
    /// # Errors
    /// A failed read.
    fn get(&mut self, key: &RowKey) -> Result<Option<Bytes>, StorageError>;
    /// Stores a row, replacing an existing one.
    ///
    /// # Errors
    /// A failed read of the existing row.
    fn put(&mut self, key: &RowKey, row: &[u8]) -> Result<(), StorageError>;
    /// Stores a row that does not exist yet, which saves the search for an existing one.
    ///
    /// # Errors
    /// The row is too large.
    fn insert_new(&mut self, key: &RowKey, row: &[u8]) -> Result<(), StorageError>;
    /// Removes a row, if it exists.
    ///
    /// # Errors
    /// A failed read of the existing row.
    fn delete(&mut self, key: &RowKey) -> Result<(), StorageError>;
}

impl RowTransaction for Transaction<'_> {
    fn get(&mut self, key: &RowKey) -> Result<Option<Bytes>, StorageError> {
        Transaction::get(self, key)
    }

    fn put(&mut self, key: &RowKey, row: &[u8]) -> Result<(), StorageError> {
        Transaction::put(self, key, row)
    }

    fn insert_new(&mut self, key: &RowKey, row: &[u8]) -> Result<(), StorageError> {
        Transaction::insert_new(self, key, row)
    }

    fn delete(&mut self, key: &RowKey) -> Result<(), StorageError> {
        Transaction::delete(self, key)
    }
}

/// Rows in memory, for tests and models.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryRows(BTreeMap<RowKey, Bytes>);

impl MemoryRows {
    /// The rows of a kind, in key order, in the form in which the storage returns them.
    pub fn of_kind(
        &self,
        kind: RowKind,
    ) -> impl Iterator<Item = Result<(RowKey, Bytes), StorageError>> + '_ {
        self.0
            .iter()
            .filter(move |(key, _)| key.kind() == kind)
            .map(|(key, row)| Ok((key.clone(), row.clone())))
    }
}

impl RowTransaction for MemoryRows {
    fn get(&mut self, key: &RowKey) -> Result<Option<Bytes>, StorageError> {
        Ok(self.0.get(key).cloned())
    }

    fn put(&mut self, key: &RowKey, row: &[u8]) -> Result<(), StorageError> {
        self.0.insert(key.clone(), Bytes::copy_from_slice(row));
        Ok(())
    }

    fn insert_new(&mut self, key: &RowKey, row: &[u8]) -> Result<(), StorageError> {
        let before = self.0.insert(key.clone(), Bytes::copy_from_slice(row));
        assert!(before.is_none(), "{key:?} exists already");
        Ok(())
    }

    fn delete(&mut self, key: &RowKey) -> Result<(), StorageError> {
        self.0.remove(key);
        Ok(())
    }
}
