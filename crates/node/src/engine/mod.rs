//! The multi-Raft engine: a few threads that drive every group of this node.
//!
//! ```text
//!  handlers ──Propose, Read──▶ ┌────────────┐ ──WriteRequest──▶ ┌────────────┐
//!  peers ─────Messages───────▶ │ engine loop│ ◀──Persisted───── │ log writer │ one record, one barrier
//!                              └────────────┘                   └────────────┘ for all groups
//!                                │        ▲  └─messages─▶ transport ◀─messages after durable─┘
//!                        Entries ▼        │ Applied
//!                              ┌────────────┐
//!                              │ apply pool │──answers──▶ handlers
//!                              └────────────┘
//! ```
//!
//! A group is driven by one loop and applied by one apply thread, for ever, so neither needs a
//! lock. The loops never touch sled: whatever reads or writes it lives in the log writer, the apply
//! pool, the checkpointer or the reader pool.

mod apply_pool;
mod checkpointer;
mod gate;
mod group;
mod handle;
mod inbox;
mod log_writer;
mod replica;
mod request;
mod shard;
mod snapshots;
#[cfg(test)]
pub(crate) mod testing;
mod turn;

use quorate_raft::{Envelope, NodeId};

pub use apply_pool::fatal_of;
pub use gate::Gate;
pub use handle::{Engine, Parts};
pub use inbox::{Inbox, Refused};
pub use log_writer::LogProgress;
pub use replica::{OpenReplicaError, restore, settle_log};
pub use request::{Answer, Proposal, ReadGrant, ReadRequest, RefusedProposal};
pub use shard::{Leadership, Shard, ShardStats, Shards};
pub use snapshots::{SnapshotOrder, Staged};

/// Where the engine's messages leave the node.
pub trait Outbox: Send + Sync {
    /// Sends each message to its node, or drops it: Raft repairs the loss of any message. Never
    /// blocks, and leaves the batch empty.
    fn send_all(&self, batch: &mut Vec<(NodeId, Envelope)>);
}

#[cfg(test)]
mod tests;
