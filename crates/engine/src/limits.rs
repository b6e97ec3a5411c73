//! Memory limits of the engine.

/// The engine's shares of the node's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Raft log held in memory, over all groups; more forces checkpoints.
    pub log_node: u64,
    /// Raft log held in memory by one group; more forces a checkpoint of its shard.
    pub log_group: u64,
    /// Requests of clients queued for the loops.
    pub request_queue: u64,
}
