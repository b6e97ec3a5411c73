//! The intent record: the last checkpoint begun in a tree, durable before any of its versions.

use bincode::{BorrowDecode, Encode};
use quorate_raft::GroupId;

use super::header::ShardHeader;
use crate::codec;
use crate::database::Tree;
use crate::error::Result;

/// The key of a shard's header in the tree of headers.
pub(crate) fn header_key(group: GroupId) -> [u8; 8] {
    group.0.to_be_bytes()
}

/// The key of a shard's intent record, beside its header.
pub(crate) fn intent_key(group: GroupId) -> [u8; 9] {
    let mut key = [b'a'; 9];
    key[..8].copy_from_slice(&header_key(group));
    key
}

/// The last checkpoint that was begun in a tree, and the last one after which it was cleaned.
///
/// It is durable before the first version of a checkpoint is written. So only a shard whose header
/// is older than its intent has to be searched for versions above the header when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub(crate) struct CheckpointIntent {
    pub(crate) generation: u64,
    /// The checkpoint whose versions may be in the tree.
    pub(crate) begun: u64,
    /// The checkpoint at which no superseded version was left in the tree; 0 = none.
    pub(crate) cleaned: u64,
}

impl CheckpointIntent {
    const FORMAT: u8 = 1;

    /// The record of a tree in which no checkpoint after its header's was begun.
    pub(crate) fn none(header: &ShardHeader) -> CheckpointIntent {
        let number = header.number;
        CheckpointIntent { generation: header.generation, begun: number, cleaned: number }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<CheckpointIntent> {
        codec::decode(bytes, CheckpointIntent::FORMAT, "the intent record of a shard")
    }

    /// Writes the record of a shard; it is durable after the next barrier.
    pub(crate) fn write(&self, headers: &Tree, group: GroupId) -> Result<()> {
        let bytes = codec::encode(CheckpointIntent::FORMAT, self)?;
        headers.insert(&intent_key(group), &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::{Database, DatabaseOptions};
    use crate::error::StorageError;
    use crate::golden::assert_golden;

    /// The exact bytes are on disks: a change here is a new format version.
    #[test]
    fn golden_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(dir.path(), DatabaseOptions::default()).unwrap();
        let tree = database.tree(b"shards").unwrap();
        let intent = CheckpointIntent { generation: 2, begun: 300, cleaned: 4 };
        intent.write(&tree, GroupId(0x0102)).unwrap();
        let (key, value) = tree.range::<&[u8]>(..).next().unwrap().unwrap();
        // Group and `a`; format, CRC32C, length, generation, begun, cleaned.
        assert_eq!(key[..], *b"\0\0\0\0\0\0\x01\x02a");
        assert_golden(&value, "01 fff78ab2 05000000 02 fb2c01 04");
        assert_eq!(CheckpointIntent::decode(&value).unwrap(), intent);
    }

    #[test]
    fn a_newer_format_is_called_newer() {
        let newer = codec::encode(CheckpointIntent::FORMAT + 1, &(1u64, 2u64, 3u64)).unwrap();
        let error = CheckpointIntent::decode(&newer).unwrap_err();
        assert!(matches!(error, StorageError::NewerFormat { found: 2, known: 1, .. }), "{error}");
    }
}
