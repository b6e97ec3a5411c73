//! The cluster map of group 0 and its rows.
//!
//! Rows of kind Meta, keyspace 0; each value is a format byte, 1, and an encoded protobuf message:
//!
//! | key | message |
//! |---|---|
//! | `h` | the `ClusterMap` without its nodes and shards |
//! | `n` ‖ node id, u64 big-endian | a `MapNode` |
//! | `s` ‖ shard id, u64 big-endian | a `MapShard` |
//!
//! A change writes only the rows that differ. The order of nodes (by id) and shards (by range) is a
//! rule of the map, so it is not stored.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use prost::Message;
use quorate_proto::{
    raft::v1::ChangeMap,
    v1::{ClusterMap, MapNode, MapShard},
};
use quorate_storage::{RowKey, RowKind, StorageError};

use super::{
    answer::{Refusal, WriteAnswer},
    error::{ApplyError, Damaged},
    map_rules,
    rows::RowTransaction,
};

const FORMAT: u8 = 1;
const HEADER: &[u8] = b"h";
const NODE: u8 = b'n';
const SHARD: u8 = b's';

/// The map in group 0's state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MapState {
    map: Option<Arc<ClusterMap>>,
}

impl MapState {
    /// Loads the map from these rows.
    pub fn load(
        rows: impl IntoIterator<Item = Result<(RowKey, Bytes), StorageError>>,
    ) -> Result<Self, ApplyError> {
        let (mut header, mut nodes, mut shards) = (None, Vec::new(), Vec::new());
        for row in rows {
            let (key, row) = row?;
            match key.key() {
                HEADER => header = Some(decode::<ClusterMap>(&row)?),
                [NODE, ..] => nodes.push(decode::<MapNode>(&row)?),
                [SHARD, ..] => shards.push(decode::<MapShard>(&row)?),
                _ => return Err(damaged(format!("its row {key:?} is of an unknown kind")).into()),
            }
        }
        let Some(mut map) = header else {
            if nodes.is_empty() && shards.is_empty() {
                return Ok(Self::default());
            }
            return Err(damaged("its first row is missing").into());
        };
        nodes.sort_by_key(|node| node.id);
        shards.sort_by_key(|shard| shard.first);
        (map.nodes, map.shards) = (nodes, shards);
        map_rules::check(&map).map_err(|broken| damaged(broken.to_string()))?;
        Ok(Self { map: Some(Arc::new(map)) })
    }

    /// The map; `None` before the first one was committed.
    pub fn map(&self) -> Option<&Arc<ClusterMap>> {
        self.map.as_ref()
    }

    fn epoch(&self) -> u64 {
        self.map.as_ref().map_or(0, |map| map.epoch)
    }

    /// Replaces the map if its epoch is the one that the proposer expected and the rules permit the
    /// change.
    pub fn change(
        &mut self,
        change: ChangeMap,
        rows: &mut impl RowTransaction,
    ) -> Result<WriteAnswer, ApplyError> {
        if change.expected_epoch != self.epoch() {
            return Ok(WriteAnswer::MapConflict { epoch: self.epoch() });
        }
        let Some(map) = change.map else {
            return Ok(WriteAnswer::Refused(Refusal::Malformed {
                detail: "it has no map".to_owned(),
            }));
        };
        if let Err(broken) = map_rules::check_change(self.map.as_deref(), &map) {
            return Ok(WriteAnswer::Refused(Refusal::BadMap { detail: broken.to_string() }));
        }
        let epoch = map.epoch;
        self.write(map, rows)?;
        Ok(WriteAnswer::MapChanged { epoch })
    }

    fn write(&mut self, map: ClusterMap, rows: &mut impl RowTransaction) -> Result<(), ApplyError> {
        let mut before = self.map.as_deref().map(rows_of).unwrap_or_default();
        for (key, row) in rows_of(&map) {
            if before.remove(&key).as_ref() != Some(&row) {
                rows.put(&key, &row)?;
            }
        }
        for key in before.into_keys() {
            rows.delete(&key)?;
        }
        self.map = Some(Arc::new(map));
        Ok(())
    }
}

pub(crate) fn rows_of(map: &ClusterMap) -> BTreeMap<RowKey, Bytes> {
    let numbered = |kind: u8, id: u64| {
        let mut key = [kind; 9];
        key[1..].copy_from_slice(&id.to_be_bytes());
        RowKey::new(RowKind::Meta, 0, &key)
    };
    // Destructured field by field, so that a field added to the map cannot be forgotten here.
    let ClusterMap {
        cluster_id,
        cluster_name,
        history,
        epoch,
        nodes,
        shards,
        meta_replicas,
        next_replica_id,
        next_shard_id,
        cluster_version,
        replicas_wanted,
        lineage,
    } = map;
    let header = ClusterMap {
        cluster_id: cluster_id.clone(),
        cluster_name: cluster_name.clone(),
        history: history.clone(),
        epoch: *epoch,
        nodes: Vec::new(),
        shards: Vec::new(),
        meta_replicas: meta_replicas.clone(),
        next_replica_id: *next_replica_id,
        next_shard_id: *next_shard_id,
        cluster_version: *cluster_version,
        replicas_wanted: *replicas_wanted,
        lineage: lineage.clone(),
    };
    let mut rows = BTreeMap::from([(RowKey::new(RowKind::Meta, 0, HEADER), encode(&header))]);
    rows.extend(nodes.iter().map(|node| (numbered(NODE, node.id), encode(node))));
    rows.extend(shards.iter().map(|shard| (numbered(SHARD, shard.id), encode(shard))));
    rows
}

fn encode(message: &impl Message) -> Bytes {
    let mut out = Vec::with_capacity(1 + message.encoded_len());
    out.push(FORMAT);
    out.extend_from_slice(&message.encode_to_vec());
    Bytes::from(out)
}

fn decode<M: Message + Default>(row: &Bytes) -> Result<M, Damaged> {
    match row.split_first() {
        Some((&FORMAT, _)) => M::decode(row.slice(1..)).map_err(|error| damaged(error.to_string())),
        _ => Err(damaged("a row's format is not 1")),
    }
}

fn damaged(detail: impl Into<String>) -> Damaged {
    Damaged::new("the cluster map", detail)
}
