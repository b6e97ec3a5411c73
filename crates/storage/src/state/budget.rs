//! The delta budget: the memory that all shards of a node share for deltas and for the cache of
//! tree rows.

use std::sync::atomic::{AtomicU64, Ordering};

use super::cache::ValueCache;

/// How full the deltas of a node are together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeltaLevel {
    /// Below the limit.
    Ok,
    /// At the limit: checkpoints are due, and new proposals are rejected.
    Full,
    /// At twice the limit: apply pauses, and committed entries wait in the log.
    Double,
}

/// The node-wide budget of the deltas, and the node-wide cache beside it.
///
/// Every layer of every shard counts its bytes here, including the overhead of its structures, and
/// returns them when its last reader has dropped it.
#[derive(Debug)]
pub struct DeltaBudget {
    limit: u64,
    used: AtomicU64,
    cache: ValueCache,
}

impl DeltaBudget {
    /// The default limit of the deltas, in bytes.
    pub const DEFAULT_LIMIT: u64 = 64 << 20;

    /// A budget of `limit` bytes for deltas, and half as much for the cache of tree rows.
    #[must_use]
    pub fn new(limit: u64) -> DeltaBudget {
        DeltaBudget::with_cache(limit, limit / 2)
    }

    /// A budget of `limit` bytes for deltas and of `cache` bytes for the cache of tree rows.
    #[must_use]
    pub fn with_cache(limit: u64, cache: u64) -> DeltaBudget {
        DeltaBudget { limit, used: AtomicU64::new(0), cache: ValueCache::new(cache) }
    }

    /// The bytes that deltas hold now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The bytes that deltas may hold before proposals are rejected.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// How full the deltas are.
    #[must_use]
    pub fn level(&self) -> DeltaLevel {
        match self.used() {
            used if used >= self.limit.saturating_mul(2) => DeltaLevel::Double,
            used if used >= self.limit => DeltaLevel::Full,
            _ => DeltaLevel::Ok,
        }
    }

    /// The bytes that the cache of tree rows holds now.
    #[must_use]
    pub fn cache_used(&self) -> u64 {
        self.cache.used()
    }

    pub(crate) fn cache(&self) -> &ValueCache {
        &self.cache
    }

    pub(crate) fn take(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        let before = self.used.fetch_sub(bytes, Ordering::Relaxed);
        assert!(before >= bytes, "{bytes} bytes returned of {before} taken");
    }
}

impl Default for DeltaBudget {
    fn default() -> DeltaBudget {
        DeltaBudget::new(DeltaBudget::DEFAULT_LIMIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_begin_at_the_limit_and_at_twice_the_limit() {
        let budget = DeltaBudget::new(100);
        budget.take(99);
        assert_eq!(budget.level(), DeltaLevel::Ok);
        budget.take(1);
        assert_eq!(budget.level(), DeltaLevel::Full);
        budget.take(99);
        assert_eq!(budget.level(), DeltaLevel::Full);
        budget.take(1);
        assert_eq!(budget.level(), DeltaLevel::Double);
        budget.give_back(200);
        assert_eq!((budget.used(), budget.level()), (0, DeltaLevel::Ok));
    }
}
