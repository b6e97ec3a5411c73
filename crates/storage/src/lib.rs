//! Storage of a Quorate node: safe use of sled, the record log, and the state of shards.
//!
//! # Layers
//!
//! | module | what it is |
//! |---|---|
//! | `database` | the only module that names sled: open, barrier, caps, poison |
//! | `codec` | the frame of every record on disk: format, CRC32C, length, bincode body |
//! | `pieces` | records over 6,000 bytes as several values |
//! | `log` | the record log of all groups: entries, hard states, resets |
//! | `mark` | the file `MARK`: the sequence that the log must reach |
//! | `node_records` | named records of the node itself |
//! | [`keys`], `state`, `state::snapshot` | one shard's rows, checkpoints, snapshots |
//! | `space` | free space and the reserve |
//! | [`crash`], `testing` | crash points, the log's twin and its contract (feature `testing`) |
//!
//! # What is on the disk
//!
//! | place in the data directory | content |
//! |---|---|
//! | `sled/`, tree `log` | records of the log: sequence (8) ‖ piece (2), big endian |
//! | `log/<first sequence>.log` | the same records, with `--log-store file` |
//! | `sled/`, tree `node` | records of the node: see [`NodeRecords`] |
//! | `sled/`, other trees | rows and headers of shards: see `state` |
//! | `MARK` | two slots with the last durable sequence of the log |
//!
//! # What survives
//!
//! A *barrier* is the database's `flush` followed by an `fdatasync` of our own. Once a barrier has
//! completed, everything written before it began survives the loss of power. A write without a
//! completed barrier may be there in full, in part or not at all, and every reader of records copes
//! with that:
//!
//! - Nothing is removed or overwritten before its replacement is durable.
//! - Every record carries a checksum; those of the log are chained and state how far the log was
//!   durable. Broken bytes are an error that names the record, never a shorter log.
//! - A failed write or fsync closes the database. Nothing is retried in the same process.
//!
//! # Versions
//!
//! Each record begins with the version of its format. A build reads the formats it knows, and calls
//! a higher one newer ([`StorageError::NewerFormat`]), which is not damage. The bincode
//! configuration is part of the format and cannot change.

mod codec;
pub mod crash;
mod database;
mod error;
#[cfg(test)]
mod golden;
pub mod keys;
mod log;
mod mark;
mod node_records;
mod pieces;
mod space;
mod state;
#[cfg(feature = "testing")]
pub mod testing;

pub use database::{
    BARRIER_BYTES, Database, DatabaseOptions, FatalHook, SEGMENT_BYTES, SLED_KEY_BYTES_MAX,
    SLED_VALUE_BYTES_MAX, SyncHook, Syncs, Tree, TreeRange, Value, panic_is_caught,
};
pub use error::{Result, StorageError};
pub use keys::{ROW_KEY_BYTES_MAX, RowKey, RowKind};
pub use log::{
    LogBackend, LogProblem, LogReading, LogTuning, RecordLog, RecoveredGroup, ReplicaKey, Section,
    SectionKind, log_backend, read_log,
};
pub use node_records::NodeRecords;
pub use space::{Disk, DiskLevel, Space, SpaceProbe};
pub use state::snapshot::{Installed, Installer, SnapshotSource};
pub use state::{
    CheckpointJob, CleanJob, Counts, DeltaBudget, DeltaLevel, Finished, Frontier, HashRange,
    Lookup, RECORD_BYTES_MAX, SCAN_PINS_MAX, SNAPSHOT_PINS_MAX, Scan, ScanPin, ScanRange,
    ShardHeader, ShardInit, ShardReader, ShardStatus, ShardStore, Transaction,
};

/// The format numbers of what this build writes, by name. It reads no others, so what could be read
/// has these.
#[must_use]
pub fn formats() -> Vec<(&'static str, u8)> {
    let of_files = [("mark", mark::FORMAT), ("node_record", node_records::FORMAT)];
    [of_files, log::FORMATS, state::FORMATS].concat()
}
