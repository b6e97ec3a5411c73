//! The state of a shard: checkpoints by version.
//!
//! A shard's applied state is a tree at its last *checkpoint* and an in-memory *delta* of the
//! writes applied since. Applying an entry touches memory only; the log makes it durable.
//!
//! | where | what |
//! |---|---|
//! | tree `s<shard>/<generation>` | versions of rows by checkpoint number (`keys`, `versions`) |
//! | tree `shards` | one header for each shard ([`ShardHeader`]), and the intent record beside it |
//! | memory | one active and at most one frozen delta layer (`delta`), cached tree rows (`cache`) |
//!
//! **A checkpoint** freezes the active layer, records its intent, writes the newest record of each
//! row as a new version (a deletion as a tombstone), waits for a barrier, writes the header in one
//! insert, and waits for a barrier. The versions below it are untouched until the header is
//! durable, and versions above the header's number do not exist: they are ignored, and removed
//! when the shard is opened. So a crash at any point leaves the state of either checkpoint, and
//! entries applied again from the log find the same rows as before.
//!
//! **Readers** use an atomically replaced view and never wait for more than one entry's writes
//! ([`ShardReader`]). A pin keeps the state of one index readable ([`ScanPin`]).
//!
//! **An install** writes a new tree and switches to it by the header (see [`snapshot`]).

mod budget;
mod cache;
mod checkpoint;
mod clean;
mod delta;
mod digest;
mod garbage;
mod generation;
mod header;
mod intent;
mod pins;
mod reader;
mod scan;
mod scan_pin;
pub(crate) mod snapshot;
mod store;
mod tail;
mod transaction;
mod versions;
mod view;

/// The formats of a shard's rows and header.
pub(crate) const FORMATS: [(&str, u8); 2] =
    [("shard_header", header::FORMAT), ("row_version", versions::FORMAT)];

pub use budget::{DeltaBudget, DeltaLevel};
pub use checkpoint::{CheckpointJob, Finished};
pub use clean::CleanJob;
pub use header::{Counts, Frontier, HashRange, ShardHeader};
pub use pins::{SCAN_PINS_MAX, SNAPSHOT_PINS_MAX};
pub use reader::{ShardReader, ShardStatus};
pub use scan::{Scan, ScanRange};
pub use scan_pin::ScanPin;
pub use store::{ShardInit, ShardStore};
pub use transaction::Transaction;
pub use versions::RECORD_BYTES_MAX;
pub use view::Lookup;
