//! Metrics of the engine.

quorate_metrics::metrics! {
    /// Metrics of the engine.
    pub struct EngineMetrics {
        /// Time from proposing an entry to its commit, at the leader.
        commit_seconds: latency,
        /// Time to apply one batch of committed entries.
        apply_seconds: latency,
        /// Time of one barrier of the log.
        fsync_seconds: latency,
        /// Time of one checkpoint of a shard.
        checkpoint_seconds: latency,
        /// Entries in one record of the log.
        log_record_entries: count,
        /// Bytes of the entries in one record of the log.
        log_record_bytes: bytes,
        /// Entries applied in one batch.
        apply_batch_entries: count,
        /// Elections started by this node.
        elections: counter,
        /// Times a group of this node learnt of another leader.
        leader_changes: counter,
        /// Times the term of a group jumped by more than 2^32, which elections do not do.
        term_jumps: counter,
        /// Snapshots received in full and installed.
        snapshots_installed: counter,
    }
}

impl EngineMetrics {
    /// Metrics that are not exported.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn unregistered() -> Self {
        Self::register(&mut quorate_metrics::prometheus_client::registry::Registry::default())
    }
}
