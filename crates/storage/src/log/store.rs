//! The interface of the log's back ends: they store numbered byte strings.

use std::path::Path;

use crate::error::Result;

/// A record as a scan finds it: its bytes, or why they are not a record (the end of a sentence that
/// begins with the record's number).
pub(super) type Found<'a> = std::result::Result<&'a [u8], &'static str>;

/// A store of records. The caller assigns the sequences, which grow by one.
pub(super) trait LogStore: Send {
    /// Visits every record, in sequence, broken ones included. A missing record is not visited.
    fn scan(&mut self, visit: &mut dyn FnMut(u64, Found<'_>) -> Result<()>) -> Result<()>;

    /// Reads one record that a scan has visited or that was written since.
    fn read(&mut self, sequence: u64) -> Result<Vec<u8>>;

    /// Removes everything at or above `sequence`, including the remains of broken records. Durable
    /// on return.
    fn remove_from(&mut self, sequence: u64) -> Result<()>;

    /// Makes the records that a scan has visited durable: a killed process may have left them in
    /// the page cache.
    fn settle(&mut self) -> Result<()>;

    /// Adds a record. Durable on return.
    fn write(&mut self, sequence: u64, record: &[u8]) -> Result<()>;

    /// Removes records below `sequence`; false if some are left for a later call. One call removes
    /// more than was written since the last call, so that dead records do not accumulate, but not
    /// much more, so that it is short. The removal is not durable on return and need not be,
    /// because these records are never read again.
    fn remove_below(&mut self, sequence: u64) -> Result<bool>;

    /// The file that holds a record, or would hold it; `None` if records are not in files.
    fn file_of(&self, sequence: u64) -> Option<&Path>;

    /// Bytes of all records in the store, including those that are still to be removed. Known after
    /// a complete scan.
    fn stored_bytes(&self) -> u64;
}
