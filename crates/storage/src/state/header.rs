//! The shard header: the one row that says which checkpoint of which tree is a shard's state.
//!
//! A header is written in one insert after everything that it references is durable. That insert is
//! the commit point of a checkpoint, of an install and of a creation; recovery ignores anything
//! that the header does not reference.

use bincode::{BorrowDecode, Encode};
use quorate_raft::{GroupId, Index, LogId, Membership, ReplicaId, Term};

use super::generation::Generation;
use crate::codec;
use crate::error::{Result, StorageError};
use crate::keys::{RowKey, RowKind};

/// The version of the header's record.
pub(crate) const FORMAT: u8 = 1;

/// A part of the 64-bit hash space of keys; both ends belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, BorrowDecode)]
pub struct HashRange {
    /// The first hash that belongs to the range.
    pub first: u64,
    /// The last hash that belongs to the range.
    pub last: u64,
}

impl HashRange {
    /// The whole hash space.
    pub const ALL: HashRange = HashRange { first: 0, last: u64::MAX };

    /// Whether a key with this hash belongs to the range.
    #[must_use]
    pub fn contains(&self, hash: u64) -> bool {
        (self.first..=self.last).contains(&hash)
    }
}

/// The size of a state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, BorrowDecode)]
pub struct Counts {
    /// Live rows of all kinds.
    pub rows: u64,
    /// Live user rows.
    pub keys: u64,
    /// The bytes of the keys and records of the live user rows.
    pub bytes: u64,
}

impl Counts {
    /// Adds a live row.
    pub(crate) fn add(&mut self, key: &RowKey, record: &[u8]) {
        self.rows = self.rows.wrapping_add(1);
        if key.kind() == RowKind::User {
            self.keys = self.keys.wrapping_add(1);
            self.bytes = self.bytes.wrapping_add((key.key().len() + record.len()) as u64);
        }
    }

    /// Subtracts a row that was added. It wraps as the digest does: counts that do not match the
    /// rows are damage, which a scrub reports and which must not stop the process.
    pub(crate) fn subtract(&mut self, key: &RowKey, record: &[u8]) {
        self.rows = self.rows.wrapping_sub(1);
        if key.kind() == RowKind::User {
            self.keys = self.keys.wrapping_sub(1);
            self.bytes = self.bytes.wrapping_sub((key.key().len() + record.len()) as u64);
        }
    }
}

/// The position of a state in the log, with its size and digest. Equal on all replicas at equal
/// `applied`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    /// The last entry applied.
    pub applied: LogId,
    /// The log time of that entry; it never goes back.
    pub log_time: u64,
    /// The size of the state.
    pub counts: Counts,
    /// The digest of all live rows: the sum, modulo 2^128, of
    /// `xxh3_128(length of the row key, u32 little-endian ‖ row key ‖ record)`.
    pub digest: u128,
}

/// The durable description of a shard's state; see the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardHeader {
    /// The shard, which is also the group that replicates it.
    pub group: GroupId,
    /// The replica this state belongs to.
    pub replica: ReplicaId,
    /// The number of the tree that holds the state; each install begins a new one.
    pub generation: u64,
    /// The checkpoint: versions of rows with a higher number do not exist.
    pub number: u64,
    /// The frontier of the checkpoint.
    pub frontier: Frontier,
    /// The membership as of the last entry applied.
    pub membership: Membership,
    /// The hashes of the keys that the shard owns.
    pub range: HashRange,
    /// The epoch of that ownership.
    pub shard_epoch: u64,
    /// Log entries before this index are void: they belong to a state that an install has replaced.
    pub log_valid_from: Index,
}

/// The header as it is written. Fields are only added, with a new format.
#[derive(Encode, BorrowDecode)]
struct Record {
    group: u64,
    replica: u64,
    generation: u64,
    number: u64,
    applied_index: u64,
    applied_term: u64,
    log_time: u64,
    counts: Counts,
    digest: u128,
    membership: Vec<u8>,
    range: HashRange,
    shard_epoch: u64,
    log_valid_from: u64,
}

impl ShardHeader {
    /// The last entry applied in the checkpoint.
    #[must_use]
    pub fn applied(&self) -> LogId {
        self.frontier.applied
    }

    /// The name of the tree that holds the state.
    #[must_use]
    pub fn tree_name(&self) -> String {
        Generation::tree_name(self.group, self.generation).escape_ascii().to_string()
    }

    /// The bytes of the header row: format version and checksum, then the record.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let record = Record {
            group: self.group.0,
            replica: self.replica.0,
            generation: self.generation,
            number: self.number,
            applied_index: self.frontier.applied.index.0,
            applied_term: self.frontier.applied.term.0,
            log_time: self.frontier.log_time,
            counts: self.frontier.counts,
            digest: self.frontier.digest,
            membership: self.membership.encode().to_vec(),
            range: self.range,
            shard_epoch: self.shard_epoch,
            log_valid_from: self.log_valid_from.0,
        };
        codec::encode(FORMAT, &record)
    }

    /// Reads the header row of `group`.
    pub(crate) fn decode(group: GroupId, bytes: &[u8]) -> Result<ShardHeader> {
        let record: Record = codec::decode(bytes, FORMAT, &format!("the header of {group}"))?;
        if record.group != group.0 {
            return Err(StorageError::damaged(format!(
                "found the header of shard {} in place of shard {}'s",
                record.group, group.0
            )));
        }
        let membership = Membership::decode(&record.membership).map_err(|error| {
            StorageError::damaged(format!("the membership in the header of {group}: {error}"))
        })?;
        Ok(ShardHeader {
            group,
            replica: ReplicaId(record.replica),
            generation: record.generation,
            number: record.number,
            frontier: Frontier {
                applied: LogId {
                    term: Term(record.applied_term),
                    index: Index(record.applied_index),
                },
                log_time: record.log_time,
                counts: record.counts,
                digest: record.digest,
            },
            membership,
            range: record.range,
            shard_epoch: record.shard_epoch,
            log_valid_from: Index(record.log_valid_from),
        })
    }
}

#[cfg(test)]
mod tests {
    use quorate_raft::{NodeId, Replica};

    use super::*;
    use crate::golden::assert_golden;

    fn header() -> ShardHeader {
        let replica = Replica { id: ReplicaId(4), node: NodeId(1) };
        ShardHeader {
            group: GroupId(7),
            replica: ReplicaId(4),
            generation: 2,
            number: 3,
            frontier: Frontier {
                applied: LogId { term: Term(5), index: Index(300) },
                log_time: 6,
                counts: Counts { rows: 9, keys: 8, bytes: 10 },
                digest: 0x0102 << 64,
            },
            membership: Membership::of_voters([replica]),
            range: HashRange { first: 11, last: u64::MAX },
            shard_epoch: 12,
            log_valid_from: Index(13),
        }
    }

    /// The exact bytes are on disks: a change here is a new format version.
    #[test]
    fn golden_bytes() {
        let expected = [
            "01 016da519 41000000",               // format, CRC32C, length
            "07 04 02 03",                        // group, replica, generation, number
            "fb2c01 05 06",                       // index and term of the last entry, log time
            "09 08 0a",                           // rows, keys, bytes
            "fe00000000000000000201000000000000", // digest
            "17 0100 01000000 0400000000000000 0100000000000000 01", // membership, its length first
            "0b fdffffffffffffffff",              // range
            "0c 0d",                              // shard epoch, the first valid entry
        ];
        let bytes = header().encode().unwrap();
        assert_golden(&bytes, &expected.concat());
        assert_eq!(ShardHeader::decode(GroupId(7), &bytes).unwrap(), header());
    }

    #[test]
    fn a_newer_format_is_called_newer() {
        let mut bytes = header().encode().unwrap();
        codec::finish_frame(&mut bytes, FORMAT + 1).unwrap();
        let error = ShardHeader::decode(GroupId(7), &bytes).unwrap_err();
        assert!(matches!(error, StorageError::NewerFormat { found: 2, known: 1, .. }), "{error}");
    }
}
