//! Transactions: the writes of one log entry.

use std::collections::BTreeMap;
use std::collections::btree_map;

use bytes::Bytes;
use quorate_raft::{LogId, Membership};

use super::header::Frontier;
use super::store::ShardStore;
use super::versions::RECORD_BYTES_MAX;
use crate::error::{Result, StorageError};
use crate::keys::{ROW_KEY_BYTES_MAX, RowKey};

/// A row that the transaction has read, and its new record if it was written.
#[derive(Debug)]
struct Slot {
    old: Option<Bytes>,
    new: Option<Option<Bytes>>,
}

/// The application of one log entry: reads see its own writes, and [`commit`](Transaction::commit)
/// makes all of them visible atomically, together with the new applied index. Dropping it changes
/// nothing.
///
/// An entry without effect is applied by committing an empty transaction.
#[derive(Debug)]
pub struct Transaction<'a> {
    store: &'a mut ShardStore,
    at: LogId,
    log_time: u64,
    slots: BTreeMap<RowKey, Slot>,
    membership: Option<Membership>,
}

impl ShardStore {
    /// Begins to apply the entry `at`, which must follow the last applied entry: an entry without
    /// effect is applied too, by an empty transaction. A log time that goes back is replaced by the
    /// current one.
    ///
    /// # Panics
    /// If an entry is skipped or applied twice: the replica would differ from the others.
    pub fn begin(&mut self, at: LogId, log_time: u64) -> Transaction<'_> {
        let applied = self.frontier.applied;
        assert!(
            at.index.0 == applied.index.0 + 1 && at.term >= applied.term,
            "{}: entry {at} applied after {applied}",
            self.header().group
        );
        let log_time = log_time.max(self.frontier.log_time);
        Transaction::new(self, at, log_time)
    }
}

impl<'a> Transaction<'a> {
    fn new(store: &'a mut ShardStore, at: LogId, log_time: u64) -> Transaction<'a> {
        Transaction { store, at, log_time, slots: BTreeMap::new(), membership: None }
    }

    /// The entry being applied.
    #[must_use]
    pub fn at(&self) -> LogId {
        self.at
    }

    /// The log time of the entry.
    #[must_use]
    pub fn log_time(&self) -> u64 {
        self.log_time
    }

    /// The row, including the writes of this transaction.
    ///
    /// # Errors
    /// A failed read, or [`StorageError::Damaged`].
    pub fn get(&mut self, key: &RowKey) -> Result<Option<Bytes>> {
        let slot = self.slot(key)?;
        Ok(slot.new.as_ref().unwrap_or(&slot.old).clone())
    }

    /// Writes a row. The record is copied, so that it does not keep a receive buffer alive.
    ///
    /// # Errors
    /// [`StorageError::TooLarge`], or a failed read of the row's old record.
    pub fn put(&mut self, key: &RowKey, record: &[u8]) -> Result<()> {
        check_lengths(key, record)?;
        self.slot(key)?.new = Some(Some(Bytes::copy_from_slice(record)));
        Ok(())
    }

    /// Writes a row that the caller knows does not exist, which saves the search for its old
    /// record. If it did exist, counts and digest would no longer match the rows, so debug builds
    /// search anyway.
    ///
    /// # Errors
    /// [`StorageError::TooLarge`].
    pub fn insert_new(&mut self, key: &RowKey, record: &[u8]) -> Result<()> {
        check_lengths(key, record)?;
        let new = Some(Some(Bytes::copy_from_slice(record)));
        match self.slots.entry(key.clone()) {
            btree_map::Entry::Occupied(slot) => slot.into_mut().new = new,
            btree_map::Entry::Vacant(slot) => {
                debug_assert!(self.store.get(key)?.is_none(), "{key:?} exists already");
                slot.insert(Slot { old: None, new });
            }
        }
        Ok(())
    }

    /// Deletes a row, if it exists.
    ///
    /// # Errors
    /// A failed read of the row's old record.
    pub fn delete(&mut self, key: &RowKey) -> Result<()> {
        self.slot(key)?.new = Some(None);
        Ok(())
    }

    /// Sets the membership of the group, as a membership entry does.
    pub fn set_membership(&mut self, membership: Membership) {
        self.membership = Some(membership);
    }

    /// Makes the writes visible to readers atomically, and the entry applied.
    pub fn commit(self) {
        let Transaction { store, at, log_time, slots, membership } = self;
        let mut counts = store.frontier().counts;
        let digest = store.digest_mut();
        for (key, slot) in &slots {
            let Some(new) = &slot.new else { continue };
            if let Some(old) = &slot.old {
                digest.subtract(key, old);
                counts.subtract(key, old);
            }
            if let Some(new) = new {
                digest.add(key, new);
                counts.add(key, new);
            }
        }
        let frontier = Frontier { applied: at, log_time, counts, digest: digest.sum() };
        // Deleting a row that does not exist writes nothing.
        let writes = slots.into_iter().filter_map(|(key, slot)| {
            let new = slot.new?;
            (new.is_some() || slot.old.is_some()).then_some((key, new))
        });
        store.apply(writes, frontier, membership);
    }

    fn slot(&mut self, key: &RowKey) -> Result<&mut Slot> {
        match self.slots.entry(key.clone()) {
            btree_map::Entry::Occupied(slot) => Ok(slot.into_mut()),
            btree_map::Entry::Vacant(slot) => {
                let old = self.store.get(key)?;
                Ok(slot.insert(Slot { old, new: None }))
            }
        }
    }
}

fn check_lengths(key: &RowKey, record: &[u8]) -> Result<()> {
    let (len, limit) = (key.key().len(), ROW_KEY_BYTES_MAX);
    if len > limit {
        return Err(StorageError::TooLarge { what: "a key", len, limit });
    }
    let (len, limit) = (record.len(), RECORD_BYTES_MAX);
    if len > limit {
        return Err(StorageError::TooLarge { what: "a record", len, limit });
    }
    Ok(())
}
