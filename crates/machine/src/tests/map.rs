//! Group 0: the rules of the cluster map, and its rows.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use quorate_proto::{
    hash::even_range,
    raft::v1::{ChangeMap, Command, command::Action},
    v1::{
        ClusterMap, MapChange, MapNode, MapNodeState, MapReplica, MapReplicaRole, MapShard,
        MapShardState, ShardLineage, map_change::Change,
    },
};
use quorate_raft::{GroupId, NodeId};
use quorate_storage::RowKind;

use super::build::{START_MS, command, entry, put, write};
use crate::{
    Applied, ApplyError, Map, MemoryRows, Refusal, StateMachine, WriteAnswer, map_rules, voters_of,
};

const LEARNER: i32 = MapReplicaRole::Learner as i32;

fn replica(replica_id: u64, node_id: u64) -> MapReplica {
    MapReplica { replica_id, node_id, ..MapReplica::default() }
}

fn line(child: u64, parent: u64, map_epoch: u64) -> ShardLineage {
    ShardLineage { child, parent, parent_index: 77, map_epoch, ..ShardLineage::default() }
}

/// Three nodes, four shards, three replicas each.
fn first_map() -> ClusterMap {
    let nodes = (1..=3u64).map(|id| MapNode {
        id,
        peer_address: format!("n{id}:7411"),
        client_address: format!("n{id}:7401"),
        labels: [("zone".to_owned(), format!("z{id}"))].into(),
        incarnation: Bytes::from(vec![id as u8; 16]),
        ..MapNode::default()
    });
    let shards = (0..4u64).map(|i| {
        let (first, last) = even_range(i, 4);
        let replicas = (1..=3).map(|node| replica(4 + i * 3 + node - 1, node)).collect();
        MapShard { id: i + 1, first, last, epoch: 1, replicas, ..MapShard::default() }
    });
    ClusterMap {
        cluster_id: Bytes::from_static(&[7; 16]),
        cluster_name: "test".to_owned(),
        history: Bytes::from_static(&[8; 16]),
        epoch: 1,
        nodes: nodes.collect(),
        shards: shards.collect(),
        meta_replicas: (1..=3).map(|node| replica(node, node)).collect(),
        next_replica_id: 16,
        next_shard_id: 5,
        cluster_version: 1,
        replicas_wanted: 3,
        lineage: Vec::new(),
    }
}

fn next_map(map: &ClusterMap) -> ClusterMap {
    ClusterMap { epoch: map.epoch + 1, ..map.clone() }
}

/// Shard 2 gives its upper half to the new shard 5, with new replicas.
fn split_map(map: &ClusterMap) -> ClusterMap {
    let mut new = next_map(map);
    let (first, last) = (new.shards[1].first, new.shards[1].last);
    let middle = first + (last - first) / 2;
    let next = new.next_replica_id;
    let replicas = (0..3).map(|i| replica(next + i, i + 1)).collect();
    new.shards[1].last = middle;
    new.shards[1].epoch += 1;
    let child = new.next_shard_id;
    let first = middle + 1;
    let shard = MapShard { id: child, first, last, epoch: 1, replicas, ..MapShard::default() };
    new.shards.insert(2, shard);
    new.next_replica_id += 3;
    new.next_shard_id += 1;
    new.lineage.push(line(child, 2, new.epoch));
    new
}

struct Meta {
    machine: StateMachine,
    rows: MemoryRows,
    index: u64,
}

impl Meta {
    fn new() -> Self {
        Self {
            machine: StateMachine::load_meta([]).unwrap(),
            rows: MemoryRows::default(),
            index: 0,
        }
    }

    fn apply(&mut self, command: &Command) -> WriteAnswer {
        self.index += 1;
        let entry = entry(self.index, START_MS, command);
        let applied = self.machine.apply_entry(&entry, &mut self.rows).unwrap();
        let reloaded = StateMachine::load_meta(self.rows.of_kind(RowKind::Meta)).unwrap();
        assert_eq!(self.machine, reloaded);
        match applied {
            Applied::Command(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn change(&mut self, expected_epoch: u64, map: &ClusterMap) -> WriteAnswer {
        let change = ChangeMap { expected_epoch, map: Some(map.clone()), changes: Vec::new() };
        self.apply(&Command { shard: 0, shard_epoch: 0, ..command(Action::ChangeMap(change)) })
    }
}

#[test]
fn a_map_is_replaced_only_at_the_expected_epoch() {
    let mut meta = Meta::new();
    assert!(meta.machine.map().is_none());
    let first = first_map();
    assert_eq!(meta.change(1, &first), WriteAnswer::MapConflict { epoch: 0 });
    assert_eq!(meta.change(0, &first), WriteAnswer::MapChanged { epoch: 1 });
    assert_eq!(meta.machine.map().unwrap().as_ref(), &first);
    // The proposal of a second leader that also saw no map.
    assert_eq!(meta.change(0, &first), WriteAnswer::MapConflict { epoch: 1 });
    let second = split_map(&first);
    assert_eq!(meta.change(1, &second), WriteAnswer::MapChanged { epoch: 2 });
    assert_eq!(meta.change(1, &second), WriteAnswer::MapConflict { epoch: 2 });
    assert_eq!(meta.machine.map().unwrap().as_ref(), &second);
}

#[test]
fn a_change_writes_only_the_rows_that_differ() {
    let mut meta = Meta::new();
    let first = first_map();
    meta.change(0, &first);
    let before = meta.rows.clone();
    assert_eq!(before.of_kind(RowKind::Meta).count(), 1 + 3 + 4);
    meta.change(1, &split_map(&first));
    let rows =
        |rows: &MemoryRows| rows.of_kind(RowKind::Meta).map(Result::unwrap).collect::<Vec<_>>();
    let (before, after) = (rows(&before), rows(&meta.rows));
    let changed = after.iter().filter(|row| !before.contains(row)).count();
    assert_eq!(changed, 3, "the header, the parent and the child");

    // Merged shards leave no rows.
    let mut merged = next_map(meta.machine.map().unwrap());
    let gone = merged.shards.remove(2);
    merged.shards[1].last = gone.last;
    merged.shards[1].epoch += 1;
    assert_eq!(meta.change(2, &merged), WriteAnswer::MapChanged { epoch: 3 });
    assert_eq!(meta.rows.of_kind(RowKind::Meta).count(), 1 + 3 + 4);
}

/// The rows of group 0, and the same map as one message, which is the node record `map`.
#[test]
fn the_bytes_of_a_map_are_fixed() {
    let map = ClusterMap {
        cluster_id: Bytes::from_static(&[7; 16]),
        cluster_name: "c".to_owned(),
        history: Bytes::from_static(&[8; 16]),
        epoch: 1,
        nodes: vec![MapNode {
            id: 1,
            peer_address: "n:1".to_owned(),
            client_address: "n:2".to_owned(),
            labels: [("zone".to_owned(), "z".to_owned())].into(),
            incarnation: Bytes::from_static(&[9; 16]),
            ..MapNode::default()
        }],
        shards: vec![MapShard {
            id: 1,
            first: 0,
            last: u64::MAX,
            epoch: 1,
            replicas: vec![replica(2, 1)],
            ..MapShard::default()
        }],
        meta_replicas: vec![replica(1, 1)],
        next_replica_id: 3,
        next_shard_id: 2,
        cluster_version: 1,
        replicas_wanted: 1,
        lineage: Vec::new(),
    };
    // Cluster id, name, history, epoch; replicas of the meta group, next ids, version, replicas.
    let head = format!("0a10{} 120163 1a10{} 2001", "07".repeat(16), "08".repeat(16));
    let tail = "3a0408011001 4003 4802 5001 5801";
    // Id, peer address, client address, labels, incarnation.
    let zone = "2209 0a047a6f6e65 12017a";
    let node = format!("0801 12036e3a31 1a036e3a32 {zone} 2a10{}", "09".repeat(16));
    // Id, last hash, epoch, replicas; the first hash is 0 and left out.
    let shard = "0801 19ffffffffffffffff 2001 2a0408021001";

    let mut meta = Meta::new();
    assert_eq!(meta.change(0, &map), WriteAnswer::MapChanged { epoch: 1 });
    let rows: Vec<(String, String)> = (meta.rows.of_kind(RowKind::Meta).map(Result::unwrap))
        .map(|(key, row)| (hex::encode(key.as_bytes()), hex::encode(row)))
        .collect();
    let expected = [
        ("03 00000000 68", format!("01 {head} {tail}")),
        ("03 00000000 6e 0000000000000001", format!("01 {node}")),
        ("03 00000000 73 0000000000000001", format!("01 {shard}")),
    ];
    let expected = expected.map(|(k, v)| (k.replace(' ', ""), v.replace(' ', "")));
    assert_eq!(rows, expected);
    // `change` has read the rows back.
    assert_eq!(meta.machine.map().unwrap().as_ref(), &map);

    let whole = format!("{head} 2a29{node} 3213{shard} {tail}").replace(' ', "");
    assert_eq!(hex::encode(map.encode_to_vec()), whole);
}

#[test]
fn a_map_that_breaks_a_rule_is_never_committed() {
    let mut meta = Meta::new();
    let mut gap = first_map();
    gap.shards[2].first += 1;
    assert!(matches!(meta.change(0, &gap), WriteAnswer::Refused(Refusal::BadMap { .. })));
    assert!(meta.machine.map().is_none());
    assert_eq!(meta.rows, MemoryRows::default());
}

/// A change by parts, which a newer version proposes: nothing of it may be passed over.
#[test]
fn a_change_of_parts_of_the_map_stops_the_replica() {
    let first = first_map();
    let changes = vec![MapChange { change: Some(Change::ReplicasWanted(1)) }];
    for map in [None, Some(next_map(&first))] {
        let mut meta = Meta::new();
        meta.change(0, &first);
        let before = meta.rows.clone();
        let change = ChangeMap { expected_epoch: 1, map, changes: changes.clone() };
        for feature_level in [1, 2] {
            let command = Command { feature_level, ..command(Action::ChangeMap(change.clone())) };
            let entry = entry(2, START_MS, &command);
            let error = meta.machine.apply_entry(&entry, &mut meta.rows).unwrap_err();
            assert!(matches!(error, ApplyError::UnknownFeature { index: 2, .. }), "{error}");
            assert_eq!(meta.rows, before);
        }
    }
}

/// Neither does a number in the map that a later version knows take effect by a command of a level
/// that does not know it.
#[test]
fn states_roles_and_second_parents_are_kept_and_never_proposed() {
    type Newer = fn(&mut ClusterMap);
    let newer: &[(&str, Newer)] = &[
        ("node 2 has state 1", |map| map.nodes[1].state = MapNodeState::Leaving.into()),
        ("node 3 has state 99", |map| map.nodes[2].state = 99),
        ("shard 1 has state 1", |map| map.shards[0].state = MapShardState::Splitting.into()),
        ("shard 4 has state 99", |map| map.shards[3].state = 99),
        ("replica 5 has role 1", |map| map.shards[0].replicas[1].role = LEARNER),
        ("replica 2 has role 99", |map| map.meta_replicas[1].role = 99),
        ("shard 4 has a second parent", |map| {
            map.lineage.push(ShardLineage { second_parent: 3, ..line(4, 1, 1) });
        }),
        ("shard 4 has a second parent", |map| {
            map.lineage.push(ShardLineage { second_parent_index: 3, ..line(4, 1, 1) });
        }),
    ];
    for (sentence, change) in newer {
        let mut map = first_map();
        change(&mut map);
        map_rules::check(&map).unwrap();
        let broken = map_rules::check_change(None, &map).unwrap_err().to_string();
        assert!(broken.contains(sentence), "{broken:?} does not say {sentence:?}");
        let mut meta = Meta::new();
        let refused = meta.change(0, &map);
        assert!(matches!(refused, WriteAnswer::Refused(Refusal::BadMap { .. })), "{refused:?}");
        // Rows that a newer version wrote are read, and nothing in them is lost.
        let rows = crate::meta::rows_of(&map).into_iter().map(Ok);
        let loaded = StateMachine::load_meta(rows).unwrap();
        assert_eq!(loaded.map().unwrap().as_ref(), &map);
    }
}

/// The rules are about voters: a replica that is to replace another may be on the same node, beside
/// a full group. A removed node has no addresses.
#[test]
fn a_newer_map_with_learners_is_valid_and_they_are_no_voters() {
    let mut map = first_map();
    let learner = MapReplica { role: LEARNER, ..replica(16, 1) };
    map.next_replica_id = 17;
    map.shards[0].replicas.insert(0, learner);
    map.nodes.push(MapNode { id: 4, state: MapNodeState::Removed.into(), ..MapNode::default() });
    map_rules::check(&map).unwrap();
    let voters: Vec<u64> = voters_of(&map.shards[0].replicas).iter().map(|one| one.id.0).collect();
    assert_eq!(voters, [4, 5, 6]);

    let preferred = |group| Map::new(map.clone()).preferred_leader(GroupId(group));
    assert_eq!(preferred(1).map(|one| one.id.0), Some(4));
    assert_eq!((preferred(0).map(|one| one.id.0), preferred(9)), (Some(1), None));

    // Node 4 has only the learner; node 3 leaves the shard whose state is not known alone.
    let mut of_4 = map.clone();
    of_4.nodes[3] = MapNode { id: 4, ..map.nodes[2].clone() };
    of_4.shards[0].replicas[0].node_id = 4;
    of_4.shards[2].state = 99;
    let of_4 = Map::new(of_4);
    let assigned = |node| of_4.assigned_to(NodeId(node)).map(|shard| shard.id).collect::<Vec<_>>();
    assert_eq!((assigned(3), assigned(4)), (vec![1, 2, 4], vec![]));

    let shard = &mut map.shards[0];
    shard.replicas.iter_mut().for_each(|replica| replica.role = LEARNER);
    let broken = map_rules::check(&map).unwrap_err().to_string();
    assert_eq!(broken, "group 1 has 0 replicas that vote; it must have 1 to 7");
}

#[test]
fn the_meta_group_owns_no_keys() {
    let answer = Meta::new().apply(&write(vec![put("k", "v")]));
    assert!(matches!(answer, WriteAnswer::Refused(Refusal::WrongShard { .. })));
}

#[test]
fn damaged_rows_are_not_a_map() {
    use crate::RowTransaction;

    let mut meta = Meta::new();
    meta.change(0, &first_map());
    let keys: Vec<_> = meta.rows.of_kind(RowKind::Meta).map(|row| row.unwrap().0).collect();
    for key in &keys {
        let mut rows = meta.rows.clone();
        rows.delete(key).unwrap();
        assert!(StateMachine::load_meta(rows.of_kind(RowKind::Meta)).is_err(), "without {key:?}");
        let mut rows = meta.rows.clone();
        rows.put(key, b"\x02").unwrap();
        assert!(StateMachine::load_meta(rows.of_kind(RowKind::Meta)).is_err(), "broken {key:?}");
    }
}

#[test]
fn every_rule_of_a_map_has_its_sentence() {
    type Break = fn(&mut ClusterMap);
    let breaks: &[(&str, Break)] = &[
        ("its epoch is 0", |map| map.epoch = 0),
        ("cluster id is 0 bytes", |map| map.cluster_id = Bytes::new()),
        ("history is 1 bytes", |map| map.history = Bytes::from_static(b"h")),
        ("cluster version is 0", |map| map.cluster_version = 0),
        ("2 replicas are wanted", |map| map.replicas_wanted = 2),
        ("9 replicas are wanted", |map| map.replicas_wanted = 9),
        ("it has no nodes", |map| map.nodes.clear()),
        ("node 1 is listed after node 2", |map| map.nodes.swap(0, 1)),
        ("node 1 has no peer address", |map| map.nodes[0].peer_address.clear()),
        ("node 1 has no client address", |map| map.nodes[0].client_address.clear()),
        ("incarnation of node 1", |map| map.nodes[0].incarnation = Bytes::new()),
        ("has the incarnation of another", |map| {
            map.nodes[1].incarnation = map.nodes[0].incarnation.clone();
        }),
        ("it has no shards", |map| map.shards.clear()),
        ("shard id 5 was never assigned", |map| map.shards[0].id = 5),
        ("shard id 0 was never assigned", |map| map.shards[0].id = 0),
        ("shard 1 is listed twice", |map| map.shards[1].id = 1),
        ("shard 3 has epoch 0", |map| map.shards[2].epoch = 0),
        ("shard 1 begins at", |map| map.shards[0].first = 1),
        ("shard 2 begins at", |map| map.shards[1].first -= 1),
        ("shard 3 begins at", |map| map.shards.swap(1, 2)),
        ("ends before it begins", |map| map.shards[3].last = map.shards[3].first - 1),
        ("does not end where the hash space ends", |map| map.shards[3].last -= 1),
        ("group 0 has 0 replicas", |map| map.meta_replicas.clear()),
        ("group 2 has 0 replicas", |map| map.shards[1].replicas.clear()),
        ("replica id 16 of group 1", |map| map.shards[0].replicas[0].replica_id = 16),
        ("replica id 0 of group 1", |map| map.shards[0].replicas[0].replica_id = 0),
        ("replica 1 is listed twice", |map| map.shards[0].replicas[0].replica_id = 1),
        ("node 9, which is not in the map", |map| map.shards[0].replicas[0].node_id = 9),
        ("two replicas on node 2", |map| map.shards[0].replicas[0].node_id = 2),
        ("shard 9, which was never assigned", |map| {
            map.lineage.push(line(9, 1, 1));
        }),
        ("cannot come from shard 4", |map| {
            map.lineage.push(line(4, 4, 1));
        }),
        ("shard 4 cannot come from shard 1 and shard 1", |map| {
            map.lineage.push(ShardLineage { second_parent: 1, ..line(4, 1, 1) });
        }),
        ("shard 4 cannot come from shard 1 and shard 4", |map| {
            map.lineage.push(ShardLineage { second_parent: 4, ..line(4, 1, 1) });
        }),
        ("from a later epoch", |map| {
            map.lineage.push(line(4, 1, 2));
        }),
        ("the lineage of shard 4 is listed after", |map| {
            map.lineage = vec![line(4, 1, 1); 2];
        }),
    ];
    map_rules::check(&first_map()).unwrap();
    for (sentence, break_it) in breaks {
        let mut map = first_map();
        break_it(&mut map);
        let broken = map_rules::check(&map).unwrap_err().to_string();
        assert!(broken.contains(sentence), "{broken:?} does not say {sentence:?}");
    }
}

#[test]
fn every_rule_of_a_change_has_its_sentence() {
    type Break = fn(&mut ClusterMap);
    let breaks: &[(&str, Break)] = &[
        ("epoch 4 does not follow epoch 2", |map| map.epoch = 4),
        ("of another cluster", |map| map.cluster_id = Bytes::from_static(&[1; 16])),
        ("cluster version falls", |map| map.cluster_version = 1),
        ("next replica id falls", |map| {
            map.shards.iter_mut().for_each(|shard| shard.replicas.retain(|r| r.replica_id < 16));
            map.shards[2].replicas.push(replica(16, 1));
            map.next_replica_id = 17;
        }),
        ("next shard id falls", |map| {
            let last = map.shards[2].last;
            map.shards.remove(2);
            map.shards[1].last = last;
            map.shards[1].epoch += 1;
            map.lineage.clear();
            map.next_shard_id = 5;
        }),
        ("the epoch of shard 2 falls", |map| map.shards[1].epoch = 1),
        ("the range of shard 1 changes", |map| {
            map.shards[0].last -= 1;
            map.shards[1].first -= 1;
            map.shards[1].epoch += 1;
        }),
        ("replica 7 moves to another group or node", |map| {
            map.shards[0].replicas[0].replica_id = 7;
            map.shards[1].replicas[0].replica_id = 4;
        }),
    ];
    let old = {
        let mut old = split_map(&first_map());
        old.cluster_version = 2;
        old
    };
    map_rules::check_change(Some(&old), &next_map(&old)).unwrap();
    for (sentence, break_it) in breaks {
        let mut new = next_map(&old);
        break_it(&mut new);
        let broken = map_rules::check_change(Some(&old), &new).unwrap_err().to_string();
        assert!(broken.contains(sentence), "{broken:?} does not say {sentence:?}");
    }
}

#[test]
fn ids_are_never_used_again() {
    let old = split_map(&first_map());
    // Replica 18 and shard 5 are removed; neither id may be used again, whatever else is in the
    // map.
    let mut without = next_map(&old);
    without.shards[2].replicas.retain(|replica| replica.replica_id != 18);
    map_rules::check_change(Some(&old), &without).unwrap();
    let mut back = next_map(&without);
    back.shards[2].replicas.push(replica(18, 3));
    let broken = map_rules::check_change(Some(&without), &back).unwrap_err().to_string();
    assert_eq!(broken, "replica id 18 was used before");

    let mut merged = next_map(&old);
    let gone = merged.shards.remove(2);
    merged.shards[1].last = gone.last;
    merged.shards[1].epoch += 1;
    map_rules::check_change(Some(&old), &merged).unwrap();
    let mut back = split_map(&merged);
    back.shards[2].id = 5;
    back.lineage.pop();
    let broken = map_rules::check_change(Some(&merged), &back).unwrap_err().to_string();
    assert_eq!(broken, "shard id 5 was used before");
}

proptest! {
    #[test]
    fn a_chain_of_splits_is_kept_and_reloaded(count in 1..12usize) {
        let mut meta = Meta::new();
        let mut map = first_map();
        prop_assert_eq!(meta.change(0, &map), WriteAnswer::MapChanged { epoch: 1 });
        for _ in 0..count {
            let next = split_map(&map);
            let changed = WriteAnswer::MapChanged { epoch: next.epoch };
            prop_assert_eq!(meta.change(map.epoch, &next), changed);
            map = next;
        }
        prop_assert_eq!(meta.machine.map().unwrap().as_ref(), &map);
    }
}
