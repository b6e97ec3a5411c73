//! Error types of the engine: why a scrub or an install failed.

use quorate_machine::ApplyError;
use quorate_raft::GroupId;
use quorate_storage::StorageError;

use crate::quarantine::Panicked;

/// Why a snapshot of another node is not installed. The replica keeps its state, except after
/// [`InstallError::State`], which stops it.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// This node holds no replica of the group.
    #[error("this node holds no replica of {0}")]
    NoReplica(GroupId),
    /// The core decided to install a snapshot that a newer one has replaced.
    #[error("a newer snapshot has replaced it")]
    Superseded,
    /// The storage rejected the snapshot.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The installed rows do not decode.
    #[error(transparent)]
    State(ApplyError),
}

/// Why a scrub failed: the replica has to stop.
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    /// The rows differ from the header, or cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Reading the rows panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}
