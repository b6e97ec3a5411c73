//! What the log asks of a back end: to keep numbered byte strings.

use crate::error::Result;

/// A record as a scan finds it: its bytes, or why it is not one (the end of a sentence that begins
/// with the record's number).
pub(super) type Found<'a> = std::result::Result<&'a [u8], &'static str>;

/// A place for records. Sequences are given by the caller and grow by one.
pub(super) trait LogStore: Send {
    /// Shows every record that is there, in sequence, and every broken one in its place. A missing
    /// record is not shown.
    fn scan(&mut self, visit: &mut dyn FnMut(u64, Found<'_>) -> Result<()>) -> Result<()>;

    /// Reads one record that a scan has shown or that was written since.
    fn read(&mut self, sequence: u64) -> Result<Vec<u8>>;

    /// Removes everything at or above `sequence`, and what is left of broken records there.
    /// Durable on return.
    fn remove_from(&mut self, sequence: u64) -> Result<()>;

    /// Makes what a scan has shown durable: a killed process may have left it in the page cache.
    fn settle(&mut self) -> Result<()>;

    /// Adds a record. Durable on return.
    fn write(&mut self, sequence: u64, record: &[u8]) -> Result<()>;

    /// Removes records below `sequence`; false if some are left for a later call. One call removes
    /// more than was written since the last one, so that nothing piles up, and not much more, so
    /// that it is short. Not durable on return, and need not be: nobody reads them any more.
    fn remove_below(&mut self, sequence: u64) -> Result<bool>;

    /// Bytes that all records take here, those that are to be removed included. It is known once a
    /// scan has gone through.
    fn stored_bytes(&self) -> u64;
}
