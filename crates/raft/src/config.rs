//! Configuration of one group, and the relations between its settings.

use thiserror::Error;

use crate::types::Ticks;

/// The settings of a [`crate::Raft`]. They are not persisted, and replicas of one group should
/// agree on the times.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// The interval between two heartbeats of a leader. Heartbeats fall on multiples of it, so that
    /// all groups led by one node send theirs in the same turn. Default 100 ms.
    pub heartbeat: Ticks,
    /// The shortest time without a leader before an election starts; also how long a replica that
    /// heard from a leader refuses its vote to others. Default 600 ms: six lost heartbeats.
    pub election_min: Ticks,
    /// The election timeout is drawn below this; also how long a leader continues without a quorum
    /// before it steps down. Default 1,200 ms. A wide range helps against split votes: with the
    /// default spread of 60 ticks two of three replicas draw the same tick once in 60 elections.
    pub election_max: Ticks,
    /// Ask for votes before raising the term (Raft thesis §9.6), so that a replica which was cut
    /// off does not depose a working leader on its return. Default on.
    pub pre_vote: bool,
    /// A leader without a quorum steps down, and replicas that hear from a leader refuse votes
    /// (Raft thesis §6.2). Default on.
    pub check_quorum: bool,
    /// The largest append, in entry bytes; a single entry may exceed it. Default 1 MiB.
    pub max_append_bytes: u64,
    /// The largest entry that can be proposed, payload and overhead. Default 2 MiB + 64 KiB: the
    /// largest request with room for its envelope.
    pub max_entry_bytes: u64,
    /// Appends sent to one follower and not yet answered. Default 256.
    pub max_inflight_messages: usize,
    /// Bytes sent to one follower and not yet acknowledged. Default 8 MiB: at 1 Gbit/s this fills a
    /// path with 64 ms of round trip and disk.
    pub max_inflight_bytes: u64,
    /// The largest write to the durable log, in entry bytes; a single entry may exceed it. Entries
    /// that do not fit go into further writes. Default 4 MiB.
    pub max_persist_bytes: u64,
    /// Entry bytes that a leader holds without having committed them; above this, proposals are
    /// refused. It bounds the log of a leader that is cut off, and how long a proposal waits for a
    /// slow disk: a proposal that would not commit before its caller's deadline is better refused.
    /// Large ones are refused from three quarters of it on ([`crate::room_for`]). Default 8 MiB.
    pub max_uncommitted_bytes: u64,
    /// Entry bytes handed out to be applied and not yet reported as applied; above this, committed
    /// entries wait in the log. Default 8 MiB.
    pub max_committed_bytes: u64,
    /// Reads waiting for an index; above this, reads are refused. Default 65,536.
    pub max_pending_reads: usize,
    /// Log, in entry bytes, that a leader keeps for followers that still need it, beyond what it
    /// could purge. Default 16 MiB: copying that much costs less than most snapshots.
    pub retain_bytes: u64,
    /// As `retain_bytes`, counted in entries. Default 131,072.
    pub retain_entries: u64,
    /// As `retain_bytes`, for a follower from the start of a snapshot transfer until it has caught
    /// up: entries written meanwhile must still be there when the snapshot has arrived, or another
    /// one has to follow. A value below `retain_bytes` counts as `retain_bytes`. Default 64 MiB.
    pub receiver_retain_bytes: u64,
    /// As `receiver_retain_bytes`, counted in entries. Default 524,288.
    pub receiver_retain_entries: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat: Ticks(10),
            election_min: Ticks(60),
            election_max: Ticks(120),
            pre_vote: true,
            check_quorum: true,
            max_append_bytes: 1 << 20,
            max_entry_bytes: (2 << 20) + (64 << 10),
            max_inflight_messages: 256,
            max_inflight_bytes: 8 << 20,
            max_persist_bytes: 4 << 20,
            max_uncommitted_bytes: 8 << 20,
            max_committed_bytes: 8 << 20,
            max_pending_reads: 65_536,
            retain_bytes: 16 << 20,
            retain_entries: 131_072,
            receiver_retain_bytes: 64 << 20,
            receiver_retain_entries: 524_288,
        }
    }
}

/// Why a [`Config`] cannot work.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Error)]
pub enum ConfigError {
    /// Times that do not fit together.
    #[error(
        "times must be 0 < heartbeat, 2 × heartbeat ≤ election_min < election_max; \
         they are heartbeat {heartbeat}, election_min {election_min}, election_max {election_max} \
         (ticks of 10 ms)"
    )]
    Times {
        /// The heartbeat interval given.
        heartbeat: Ticks,
        /// The shortest election timeout given.
        election_min: Ticks,
        /// The longest election timeout given.
        election_max: Ticks,
    },
    /// A limit that must be above zero.
    #[error("{0} must be above 0")]
    Zero(&'static str),
}

impl Config {
    /// Checks the relations between the settings.
    ///
    /// # Errors
    /// The first relation that does not hold.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Config { heartbeat, election_min, election_max, .. } = *self;
        let times = heartbeat.0 > 0
            && heartbeat.0.saturating_mul(2) <= election_min.0
            && election_min < election_max;
        if !times {
            return Err(ConfigError::Times { heartbeat, election_min, election_max });
        }
        for (name, value) in [
            ("max_append_bytes", self.max_append_bytes),
            ("max_entry_bytes", self.max_entry_bytes),
            ("max_inflight_messages", self.max_inflight_messages as u64),
            ("max_inflight_bytes", self.max_inflight_bytes),
            ("max_persist_bytes", self.max_persist_bytes),
            ("max_uncommitted_bytes", self.max_uncommitted_bytes),
            ("max_committed_bytes", self.max_committed_bytes),
            ("max_pending_reads", self.max_pending_reads as u64),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero(name));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_configuration_is_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn times_out_of_order_are_refused() {
        let base = Config::default();
        for (heartbeat, min, max) in [(0, 60, 120), (31, 60, 120), (10, 60, 60), (10, 120, 60)] {
            let config = Config {
                heartbeat: Ticks(heartbeat),
                election_min: Ticks(min),
                election_max: Ticks(max),
                ..base.clone()
            };
            assert!(
                matches!(config.validate(), Err(ConfigError::Times { .. })),
                "{heartbeat} {min} {max}"
            );
        }
    }

    #[test]
    fn a_limit_of_zero_is_refused_by_name() {
        let config = Config { max_inflight_messages: 0, ..Config::default() };
        let error = config.validate().unwrap_err();
        assert_eq!(error.to_string(), "max_inflight_messages must be above 0");
    }
}
