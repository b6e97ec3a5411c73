//! The multi-Raft engine: a few threads that drive every group of this node.
//!
//! ```text
//!  handlers ──Propose, Read──▶ ┌────────────┐ ──LogInput─────▶ ┌────────────┐
//!  peers ─────Messages───────▶ │ event loop │ ◀──Persisted───── │ log writer │ one record, one
//!                              └────────────┘                   └────────────┘ barrier for all
//!                                │        ▲  └─messages─▶ transport ◀─messages after durable─┘
//!                        Entries ▼        │ Applied
//!                              ┌────────────┐
//!                              │ apply pool │──answers──▶ handlers
//!                              └────────────┘
//! ```
//!
//! A group is driven by one loop and applied by one apply thread, forever, so neither needs a
//! lock. The loops never touch sled: only the log writer, the apply pool, the checkpointer and the
//! reader pool do.

mod apply_pool;
mod checkpointer;
pub mod clock;
pub mod clock_offset;
mod create;
mod error;
mod event_loop;
mod fatal;
mod gate;
mod group;
mod handle;
mod inbox;
mod input;
mod limits;
mod log_writer;
mod map_cell;
mod metrics;
pub mod quarantine;
mod replica;
mod request;
pub mod scrub;
mod shard;
mod snapshots;
#[cfg(feature = "testing")]
pub mod testing;
mod watchdog;

use quorate_raft::{Envelope, NodeId};

pub use apply_pool::load_machine;
pub use create::{create_replicas, replica_init};
pub use error::{InstallError, ScrubError};
pub use fatal::FatalHook;
pub use gate::Gate;
pub use handle::{Engine, Parts};

pub use limits::Limits;
pub use log_writer::LogProgress;
pub use map_cell::MapCell;
pub use metrics::EngineMetrics;
pub use replica::{OpenReplicaError, restored, settle_log};
pub use request::{Answer, Claim, Proposal, ReadGrant, ReadRequest, RefusedProposal};
pub use shard::{Leadership, Shard, ShardStats, Shards};
pub use snapshots::{SnapshotOrder, Staged};
pub use watchdog::BARRIER_MAX;

/// The transport as the engine sees it: where messages leave the node.
pub trait Outbox: Send + Sync {
    /// Sends each message to its node, or drops it: Raft repairs the loss of any message. Never
    /// blocks, and leaves the batch empty.
    fn send_all(&self, batch: &mut Vec<(NodeId, Envelope)>);
}

#[cfg(test)]
mod tests;
