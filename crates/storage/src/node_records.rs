//! Named records of the node itself, such as the last cluster map it has seen.

use crate::engine::Engine;
use crate::error::Result;

/// A few named blobs, each replaced as a whole: after a crash the old or the new one is there.
#[derive(Debug, Clone)]
pub struct NodeRecords {}

impl NodeRecords {
    /// Opens the records kept in `engine`.
    ///
    /// # Errors
    /// A failure of the engine.
    pub fn open(engine: &Engine) -> Result<Self> {
        let _ = engine;
        unimplemented!()
    }

    /// Replaces the record `name`; the new one is durable when this returns.
    ///
    /// # Errors
    /// A failure of the engine, or [`StorageError::TooLarge`](crate::StorageError::TooLarge).
    pub fn put(&self, name: &str, record: &[u8]) -> Result<()> {
        let _ = (name, record);
        unimplemented!()
    }

    /// The record `name`, if it was ever put.
    ///
    /// # Errors
    /// [`StorageError::Damaged`](crate::StorageError::Damaged) if it is not what was written.
    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let _ = name;
        unimplemented!()
    }
}
