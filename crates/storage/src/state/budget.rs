//! The delta budget: the memory that all shards of a node share for deltas and for the cache of
//! tree rows.

use std::sync::atomic::{AtomicU64, Ordering};

use quorate_raft::{SMALL_BYTES, Taken};

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

/// By how many bytes a layer has grown, or shrunk.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Grown {
    /// All of it, with the overhead.
    pub(crate) all: i64,
    /// Records of more than [`SMALL_BYTES`].
    pub(crate) large: i64,
}

/// The node-wide budget of the deltas, and the node-wide cache beside it.
///
/// Every layer of every shard counts its bytes here, including the overhead of its structures, and
/// returns them when its last reader has dropped it.
#[derive(Debug)]
pub struct DeltaBudget {
    limit: u64,
    used: AtomicU64,
    /// The part of `used` that is records of more than [`SMALL_BYTES`].
    large: AtomicU64,
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
        let (used, large) = (AtomicU64::new(0), AtomicU64::new(0));
        DeltaBudget { limit, used, large, cache: ValueCache::new(cache) }
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

    /// Whether a write of `bytes` is taken while large ones of together `ahead` bytes are on their
    /// way into the deltas.
    ///
    /// Large ones together fill three quarters of the limit. The last quarter is for small ones,
    /// also when large ones of other leaders have filled more: this node has no say in what it
    /// follows. What that adds to the memory is within the second limit, at which apply pauses.
    #[must_use]
    pub fn has_room(&self, bytes: u64, ahead: u64) -> bool {
        let ahead = if bytes > SMALL_BYTES { ahead } else { 0 };
        let large = self.large.load(Ordering::Relaxed);
        Taken { all: self.used() + ahead, large: large + ahead }.has_room(bytes, self.limit)
    }

    /// The bytes that the cache of tree rows holds now.
    #[must_use]
    pub fn cache_used(&self) -> u64 {
        self.cache.used()
    }

    pub(crate) fn cache(&self) -> &ValueCache {
        &self.cache
    }

    /// Counts the growth of a layer.
    pub(crate) fn grow(&self, grown: Grown) {
        for (count, by) in [(&self.used, grown.all), (&self.large, grown.large)] {
            if by >= 0 {
                count.fetch_add(by.unsigned_abs(), Ordering::Relaxed);
                continue;
            }
            let before = count.fetch_sub(by.unsigned_abs(), Ordering::Relaxed);
            assert!(before >= by.unsigned_abs(), "{by} bytes returned of {before} taken");
        }
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
        let small = |all| budget.grow(Grown { all, large: 0 });
        small(99);
        assert_eq!(budget.level(), DeltaLevel::Ok);
        small(1);
        assert_eq!(budget.level(), DeltaLevel::Full);
        small(99);
        assert_eq!(budget.level(), DeltaLevel::Full);
        small(1);
        assert_eq!(budget.level(), DeltaLevel::Double);
        small(-200);
        assert_eq!((budget.used(), budget.level()), (0, DeltaLevel::Ok));
    }

    #[test]
    fn a_quarter_is_for_small_writes_whatever_large_ones_fill() {
        let (budget, large) = (DeltaBudget::new(100), SMALL_BYTES + 1);
        budget.grow(Grown { all: 60, large: 60 });
        assert!(budget.has_room(large, 14), "the last one may exceed its part");
        assert!(!budget.has_room(large, 15), "what is on its way counts");
        assert!(budget.has_room(1, 15));
        budget.grow(Grown { all: 90, large: 90 });
        assert!(budget.has_room(1, 0), "no small one is in it yet");
        budget.grow(Grown { all: 25, large: 0 });
        assert!(!budget.has_room(1, 0));
        budget.grow(Grown { all: -150, large: -150 });
        assert!(budget.has_room(1, 0) && budget.has_room(large, 0));
        budget.grow(Grown { all: 75, large: 0 });
        assert!(!budget.has_room(1, 0), "small ones have no more than all of it");
    }
}
