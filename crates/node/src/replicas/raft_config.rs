//! The configuration of the Raft cores: timings from the settings, limits from the shares of
//! memory.

use std::time::Duration;

use quorate_config::Config;
use quorate_raft::Config as RaftConfig;

/// The configuration of every core of a node in a cluster of `shards` shards and `nodes` nodes.
pub(crate) fn raft_config(config: &Config, shards: u32, nodes: usize) -> RaftConfig {
    let ticks = |time: Duration| quorate_raft::Ticks(time.as_millis() as u64 / 10);
    let defaults = RaftConfig::default();
    // All groups together retain at most a quarter of the log's share for slow followers.
    let retain = config.memory.log_node / 4 / u64::from(shards + 1);
    // Each peer receives one snapshot at a time, and the entries retained for these receivers stay
    // within another quarter. The checkpoints of a group keep the rest of its log within the other
    // half.
    let peers = nodes.saturating_sub(1).max(1) as u64;
    let receiver = (config.memory.log_node / 4 / peers).min(config.memory.log_group / 2);
    RaftConfig {
        heartbeat: ticks(config.heartbeat),
        election_min: ticks(config.election_min),
        election_max: ticks(config.election_max),
        retain_bytes: retain.clamp(1 << 20, config.memory.log_group / 4),
        receiver_retain_bytes: receiver,
        max_uncommitted_bytes: defaults.max_uncommitted_bytes.min(config.memory.log_group / 2),
        ..defaults
    }
}
