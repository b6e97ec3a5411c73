//! The value cache: a bounded cache of rows that were read from, or just written to, the trees of a
//! node.
//!
//! It answers for rows that are in no delta layer. The module [`view`](super::view), which fills
//! it, explains why it is never stale.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault};
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3Default;

use crate::keys::RowKey;

/// Stripes, each with its own lock, so that readers rarely wait for each other.
const STRIPES: usize = 16;
/// The overhead of an entry in bytes: table slot and the headers of two buffers.
const ENTRY_OVERHEAD: u64 = 160;
/// Longer records are not cached: one of them would evict thousands of others.
const CACHED_RECORD_BYTES_MAX: usize = 64 << 10;

/// The state to which a cached row belongs: one tree of one shard, in one run of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CacheId(u64);

type Hasher = BuildHasherDefault<Xxh3Default>;
type Rows = HashMap<(CacheId, RowKey), Option<Bytes>, Hasher>;

/// Two generations of rows. A row that is used moves to the young one; when that holds its half of
/// the bytes, the old one is dropped and the young one replaces it.
#[derive(Debug, Default)]
struct Stripe {
    young: Rows,
    old: Rows,
    young_bytes: u64,
    old_bytes: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ValueCache {
    stripes: Vec<Mutex<Stripe>>,
    hasher: Hasher,
    /// Half of the bytes a stripe may hold.
    half: u64,
    used: AtomicU64,
    next_id: AtomicU64,
}

impl ValueCache {
    pub(crate) fn new(bytes: u64) -> ValueCache {
        ValueCache {
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            hasher: Hasher::default(),
            half: bytes / STRIPES as u64 / 2,
            used: AtomicU64::new(0),
            next_id: AtomicU64::new(1),
        }
    }

    /// An id under which nothing is cached yet.
    pub(crate) fn new_id(&self) -> CacheId {
        CacheId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The cached row: `Some(None)` is a row known to be absent.
    pub(crate) fn get(&self, id: CacheId, key: &RowKey) -> Option<Option<Bytes>> {
        // The pair must be owned to look it up; cloning the key is a reference count.
        let pair = (id, key.clone());
        let mut stripe = self.stripe(&pair).lock();
        if let Some(record) = stripe.young.get(&pair) {
            return Some(record.clone());
        }
        let record = stripe.old.remove(&pair)?;
        let cost = cost(key, record.as_ref());
        stripe.old_bytes -= cost;
        stripe.young_bytes += cost;
        stripe.young.insert(pair, record.clone());
        self.turn(&mut stripe);
        Some(record)
    }

    /// Caches the record of a row if `still_true` holds, which is checked under the row's cache
    /// lock.
    pub(crate) fn put(
        &self,
        id: CacheId,
        key: &RowKey,
        record: Option<&Bytes>,
        still_true: impl FnOnce() -> bool,
    ) {
        let pair = (id, key.clone());
        let mut stripe = self.stripe(&pair).lock();
        if !still_true() {
            return;
        }
        self.forget(&mut stripe, &pair);
        if self.half == 0 || record.is_some_and(|record| record.len() > CACHED_RECORD_BYTES_MAX) {
            return;
        }
        let cost = cost(key, record);
        stripe.young.insert(pair, record.cloned());
        stripe.young_bytes += cost;
        self.used.fetch_add(cost, Ordering::Relaxed);
        self.turn(&mut stripe);
    }

    fn forget(&self, stripe: &mut Stripe, pair: &(CacheId, RowKey)) {
        if let Some(record) = stripe.young.remove(pair) {
            let cost = cost(&pair.1, record.as_ref());
            stripe.young_bytes -= cost;
            self.used.fetch_sub(cost, Ordering::Relaxed);
        }
        if let Some(record) = stripe.old.remove(pair) {
            let cost = cost(&pair.1, record.as_ref());
            stripe.old_bytes -= cost;
            self.used.fetch_sub(cost, Ordering::Relaxed);
        }
    }

    fn turn(&self, stripe: &mut Stripe) {
        if stripe.young_bytes > self.half {
            self.used.fetch_sub(stripe.old_bytes, Ordering::Relaxed);
            stripe.old = mem::take(&mut stripe.young);
            stripe.old_bytes = mem::take(&mut stripe.young_bytes);
        }
    }

    fn stripe(&self, pair: &(CacheId, RowKey)) -> &Mutex<Stripe> {
        &self.stripes[(self.hasher.hash_one(pair) >> 32) as usize % STRIPES]
    }
}

fn cost(key: &RowKey, record: Option<&Bytes>) -> u64 {
    (key.as_bytes().len() + record.map_or(0, Bytes::len)) as u64 + ENTRY_OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::RowKind;

    fn key(n: u32) -> RowKey {
        RowKey::new(RowKind::User, 0, &n.to_be_bytes())
    }

    #[test]
    fn it_holds_at_most_its_bytes_and_keeps_used_rows() {
        let cache = ValueCache::new(256 << 10);
        let id = cache.new_id();
        let record = Bytes::from(vec![7; 100]);
        for n in 0..10_000 {
            cache.put(id, &key(n), Some(&record), || true);
            assert_eq!(cache.get(id, &key(0)), Some(Some(record.clone())), "row 0 after {n}");
            // A generation may exceed its half by the last row.
            assert!(cache.used() <= (256 << 10) + 16 * 300, "{} bytes", cache.used());
        }
        assert_eq!(cache.get(id, &key(1)), None);
        assert_eq!(cache.get(cache.new_id(), &key(0)), None);
    }

    #[test]
    fn a_put_replaces_and_a_stale_put_does_nothing() {
        let cache = ValueCache::new(1 << 20);
        let id = cache.new_id();
        cache.put(id, &key(1), Some(&Bytes::from_static(b"a")), || true);
        cache.put(id, &key(1), None, || true);
        assert_eq!(cache.get(id, &key(1)), Some(None));
        cache.put(id, &key(1), Some(&Bytes::from_static(b"b")), || false);
        assert_eq!(cache.get(id, &key(1)), Some(None));
    }

    #[test]
    fn a_record_too_long_to_cache_still_drops_the_cached_one() {
        let cache = ValueCache::new(64 << 20);
        let id = cache.new_id();
        cache.put(id, &key(1), Some(&Bytes::from_static(b"short")), || true);
        cache.put(id, &key(1), Some(&Bytes::from(vec![0; CACHED_RECORD_BYTES_MAX + 1])), || true);
        assert_eq!(cache.get(id, &key(1)), None);
        assert_eq!(cache.used(), 0);
    }
}
