//! Trees: named, ordered sets of keys and values, within the caps.

use std::fmt;
use std::ops::{Deref, RangeBounds};

use super::Database;
use super::call::read;
use crate::crash;
use crate::error::{Result, StorageError};

/// The longest key that [`Tree::insert`] accepts.
pub const SLED_KEY_BYTES_MAX: usize = 4_700;
/// The longest value that [`Tree::insert`] accepts; longer records are split into pieces.
pub const SLED_VALUE_BYTES_MAX: usize = 6_000;

/// Bytes of a remove, in addition to its key, that count towards [`super::BARRIER_BYTES`]: it
/// writes its leaf again as an insert does, whatever it removes. So there are at most 512 removes
/// between two barriers.
const REMOVE_BYTES: u64 = 1 << 10;

/// A named, ordered set of keys and values inside a [`Database`]. Clones share it.
#[derive(Clone)]
pub struct Tree {
    database: Database,
    tree: sled::Tree,
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tree").field(&String::from_utf8_lossy(&self.tree.name())).finish()
    }
}

impl Tree {
    pub(super) fn new(database: Database, tree: sled::Tree) -> Self {
        Self { database, tree }
    }

    /// Replaces the value of the empty key, past the accounts of [`super::BARRIER_BYTES`].
    pub(super) fn insert_raw(&self, value: &[u8]) -> sled::Result<Option<sled::IVec>> {
        self.tree.insert(b"", value)
    }

    /// The database this tree belongs to.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// A failed read.
    pub fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        let value = read("read a value of", &self.tree.name(), || self.tree.get(key))?;
        Ok(value.map(Value))
    }

    /// Inserts or replaces; durable after the next barrier. Waits for one if too much has been
    /// inserted since the last.
    ///
    /// # Errors
    /// [`StorageError::TooLarge`] over the caps, otherwise a failure of the database, which closes
    /// it.
    pub fn insert(&self, key: &[u8], value: &[u8]) -> Result<()> {
        check_len("a key", key.len(), SLED_KEY_BYTES_MAX)?;
        check_len("a value", value.len(), SLED_VALUE_BYTES_MAX)?;
        let bytes = (key.len() + value.len()) as u64;
        self.database.reserve(bytes)?;
        crash::point("database.insert");
        let name = self.tree.name();
        self.database.write("insert a value into", &name, || self.tree.insert(key, value))?;
        self.database.written(bytes);
        Ok(())
    }

    /// Removes; durable after the next barrier. The replacement of the value must be durable
    /// already.
    ///
    /// # Errors
    /// As [`Tree::insert`].
    pub fn remove(&self, key: &[u8]) -> Result<()> {
        check_len("a key", key.len(), SLED_KEY_BYTES_MAX)?;
        let bytes = key.len() as u64 + REMOVE_BYTES;
        self.database.reserve(bytes)?;
        crash::point("database.remove");
        let name = self.tree.name();
        self.database.write("remove a value from", &name, || self.tree.remove(key))?;
        self.database.written(bytes);
        Ok(())
    }

    /// The keys in `range` in order. Not a snapshot: concurrent writes may or may not be seen. It
    /// does not iterate from the end, because the database's reverse iterator panics if a key is
    /// between a node and the key that it guesses to be just below that node.
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> TreeRange {
        TreeRange { pairs: Some(self.tree.range(range)), tree: self.tree.clone() }
    }
}

fn check_len(what: &'static str, len: usize, limit: usize) -> Result<()> {
    if len > limit { Err(StorageError::TooLarge { what, len, limit }) } else { Ok(()) }
}

/// An iterator over keys and values of a tree, in key order. An error ends it.
pub struct TreeRange {
    /// `None` after an error: the position of the database's iterator is then unknown.
    pairs: Option<sled::Iter>,
    tree: sled::Tree,
}

impl Iterator for TreeRange {
    type Item = Result<(Value, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        let pairs = self.pairs.as_mut()?;
        let next = read("read a range of", &self.tree.name(), || pairs.next().transpose());
        if next.is_err() {
            self.pairs = None;
        }
        next.map(|pair| pair.map(|(key, value)| (Value(key), Value(value)))).transpose()
    }
}

/// Bytes read from a tree. Copy them to keep them: a value may keep its whole page in memory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(sled::IVec);

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.escape_ascii())
    }
}
