//! Key hashing: which bytes of a key are hashed, how, and which shard owns the hash.
//!
//! This rule is part of the contract forever: a key's shard is computed by nodes, by clients in any
//! language, and again when an old log is replayed.

use xxhash_rust::xxh3::xxh3_64;

use crate::v1::{ClusterMap, MapShard};

/// The part of a key that is hashed: the bytes between its first `{` and the first `}` after that,
/// if there is at least one; otherwise the whole key. Keys with the same tag share a shard, as in
/// Redis Cluster.
///
/// ```
/// # use quorate_proto::hash::hash_tag;
/// assert_eq!(hash_tag(b"user:{42}:name"), b"42");
/// assert_eq!(hash_tag(b"{}{a}"), b"{}{a}");
/// ```
#[must_use]
pub fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|b| *b == b'{') else {
        return key;
    };
    let after = &key[open + 1..];
    match after.iter().position(|b| *b == b'}') {
        None | Some(0) => key,
        Some(close) => &after[..close],
    }
}

/// The position of a key in the hash space: xxh3_64 of its hash tag with seed 0. The keyspace is
/// not hashed.
#[must_use]
pub fn key_hash(key: &[u8]) -> u64 {
    xxh3_64(hash_tag(key))
}

/// The range of shard `i` of `n` equal ones, `i` from 0, both ends inclusive. Range i starts at
/// ceil(i·2^64/n).
///
/// # Panics
/// When `i >= n`.
#[must_use]
pub fn even_range(i: u64, n: u64) -> (u64, u64) {
    assert!(i < n, "shard {i} of {n}");
    let start = |i: u64| (u128::from(i) << 64).div_ceil(u128::from(n));
    // start(n) is 2^64, so that the last range ends at 2^64 - 1; both fit by construction.
    (start(i) as u64, (start(i + 1) - 1) as u64)
}

/// The position of the shard that owns a hash, among shards in the order of their ranges; `None` if
/// the ranges have a gap there.
#[must_use]
pub fn owner(shards: &[MapShard], hash: u64) -> Option<usize> {
    let i = shards.partition_point(|s| s.last < hash);
    shards.get(i).filter(|s| s.first <= hash).map(|_| i)
}

impl ClusterMap {
    /// The shard that owns a key.
    #[must_use]
    pub fn shard_of(&self, key: &[u8]) -> Option<&MapShard> {
        owner(&self.shards, key_hash(key)).map(|i| &self.shards[i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Key, hash tag, hash. The hashes of the empty key, `a` and `abc` are the published ones of
    /// XXH3; the others are frozen at their first values.
    const GOLDEN: &[(&[u8], &[u8], u64)] = &[
        (b"a", b"a", 0xe6c6_32b6_1e96_4e1f),
        (b"abc", b"abc", 0x78af_5f94_892f_3950),
        (b"{abc}", b"abc", 0x78af_5f94_892f_3950),
        (b"x{abc}y{def}", b"abc", 0x78af_5f94_892f_3950),
        (b"{}", b"{}", 0x1349_cde1_2770_5c16),
        (b"{}{a}", b"{}{a}", 0xa2f8_a871_3f8a_6cef),
        (b"x{}", b"x{}", 0x6a12_0be5_9e62_79b8),
        (b"{a", b"{a", 0xe4a9_ab0c_4204_61cf),
        (b"a}", b"a}", 0x7b08_7c12_6f48_5d93),
        (b"}a{", b"}a{", 0x03b5_584f_0f66_d1b3),
        (b"}{a}", b"a", 0xe6c6_32b6_1e96_4e1f),
        (b"{{a}}", b"{a", 0xe4a9_ab0c_4204_61cf),
        (b"{a{b}c}", b"a{b", 0x46f2_6b08_8e8f_ff91),
        (b"{\x00\xff}\n", b"\x00\xff", 0xa99b_043a_346c_8bf3),
        (b"\xff{\xff\xfe", b"\xff{\xff\xfe", 0x1517_bcf8_aaf9_9a43),
        (b"{ }", b" ", 0xfc15_37fc_103c_b7cf),
    ];

    #[test]
    fn hash_tags_and_hashes_never_change() {
        assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2);
        for (key, tag, hash) in GOLDEN {
            assert_eq!(hash_tag(key), *tag, "tag of {key:?}");
            assert_eq!(key_hash(key), *hash, "hash of {key:?}: {:#x}", key_hash(key));
        }
    }

    #[test]
    fn even_ranges_cover_the_space_without_gap() {
        for n in [1, 2, 3, 7, 8, 64, 1_000, 4_096] {
            let mut next = 0u128;
            for i in 0..n {
                let (first, last) = even_range(i, n);
                assert_eq!(u128::from(first), next, "range {i} of {n}");
                assert!(first <= last);
                next = u128::from(last) + 1;
            }
            assert_eq!(next, 1 << 64);
        }
        assert_eq!(even_range(1, 3).0, 0x5555_5555_5555_5556, "the start is rounded up");
    }

    #[test]
    fn owner_is_found_at_both_ends_and_not_in_gaps() {
        let shard = |id, first, last| MapShard { id, first, last, ..Default::default() };
        let shards = [shard(1, 0, 9), shard(2, 10, 10), shard(3, 20, u64::MAX)];
        let id = |hash| owner(&shards, hash).map(|i| shards[i].id);
        assert_eq!(id(0), Some(1));
        assert_eq!(id(9), Some(1));
        assert_eq!(id(10), Some(2));
        assert_eq!(id(11), None);
        assert_eq!(id(19), None);
        assert_eq!(id(20), Some(3));
        assert_eq!(id(u64::MAX), Some(3));
        assert!(owner(&[], 5).is_none());
    }
}
