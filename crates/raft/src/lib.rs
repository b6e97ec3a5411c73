//! The Raft core of Quorate: a pure state machine without I/O, clock or randomness of its own.

mod config;
mod entropy;
mod error;
pub mod invariants;
mod log;
mod members;
mod membership;
mod message;
mod output;
mod persist;
mod progress;
pub mod quorum;
mod raft;
mod reads;
mod replication;
mod role;
mod status;
mod types;

pub use config::{Config, ConfigError};
pub use error::{ProposeError, ReadError, RestoreError, TransferError};
pub use membership::{Membership, MembershipError};
pub use message::{
    AppendResult, Envelope, Message, ReadRequest, SnapshotMeta, SnapshotResult, Timing,
};
pub use output::{
    Event, Install, Output, Persist, PersistToken, ReadId, ReadOutcome, RoleKind, SnapshotSend,
    TransferEnd,
};
pub use raft::{Raft, Restored};
pub use status::{ProgressKind, ProgressStatus, Status};
pub use types::{
    Entry, EntryKind, GroupId, HardState, Index, LogId, NodeId, Replica, ReplicaId, SessionId,
    Term, Ticks,
};
