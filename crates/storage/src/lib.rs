//! Storage of a Quorate node: the rules that make sled safe, and the record log.

pub mod codec;
pub mod crash;
mod engine;
mod error;
pub mod keys;
mod log;
mod mark;
mod node_records;
pub mod pieces;
pub mod snapshot;
mod space;
pub mod state;
#[cfg(feature = "testing")]
pub mod testing;

pub use engine::{
    BARRIER_BYTES, Engine, EngineOptions, FatalHook, KEY_BYTES_MAX, SEGMENT_BYTES, Tree, TreeRange,
    VALUE_BYTES_MAX, Value, opening_on_this_thread,
};
pub use error::{Result, StorageError};
pub use keys::{MAX_KEY_BYTES, RowKey, RowKind};
pub use log::{LogBackend, LogTuning, RecordLog, RecoveredGroup, ReplicaKey, Section, SectionKind};
pub use node_records::NodeRecords;
pub use snapshot::{Installed, Installer, SnapshotSource};
pub use space::{DiskLevel, Space};
pub use state::{
    CheckpointJob, CleanJob, Counts, DeltaBudget, DeltaLevel, Finished, Frontier, HashRange,
    Lookup, Scan, ScanPin, ScanRange, ShardHeader, ShardInit, ShardReader, ShardStatus, ShardStore,
    Transaction,
};
