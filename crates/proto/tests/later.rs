//! What is decided of later versions: names, numbers and types that no version may move. The table
//! is in `crates/FORMATS.md`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};
use quorate_proto::FILE_DESCRIPTOR_SET_ALL;

fn descriptors() -> FileDescriptorSet {
    let mut set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET_ALL).unwrap();
    set.file.retain(|file| file.package().starts_with("quorate."));
    set
}

fn message<'a>(set: &'a FileDescriptorSet, name: &str) -> &'a DescriptorProto {
    let mut all = set.file.iter().flat_map(|file| &file.message_type);
    all.find(|one| one.name() == name).unwrap_or_else(|| panic!("there is no message {name}"))
}

fn enumeration<'a>(set: &'a FileDescriptorSet, name: &str) -> &'a EnumDescriptorProto {
    let mut all = set.file.iter().flat_map(|file| &file.enum_type);
    all.find(|one| one.name() == name).unwrap_or_else(|| panic!("there is no enum {name}"))
}

/// `name = number: type` of a field, as the golden lines below have it; `*` = repeated.
fn lines_of(message: &DescriptorProto) -> Vec<String> {
    let lines = message.field.iter().map(|field| {
        let of = match field.r#type() {
            Type::Message | Type::Enum => field.type_name().rsplit('.').next().unwrap().to_owned(),
            other => other.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
        };
        let many = if field.label() == Label::Repeated { "*" } else { "" };
        format!("{} = {}: {of}{many}", field.name(), field.number())
    });
    lines.collect()
}

#[test]
fn fields_for_later_versions_stay_where_they_are() {
    let golden: &[(&str, &[&str])] = &[
        ("Command", &["principal = 9: bytes"]),
        (
            "ChangeMap",
            &["expected_epoch = 1: uint64", "map = 2: ClusterMap", "changes = 3: MapChange*"],
        ),
        ("GetMapRequest", &["changes_known = 2: uint32"]),
        ("GetMapResponse", &["changes = 5: MapChange*", "changes_from = 6: uint64"]),
        (
            "MapChange",
            &[
                "put_node = 1: MapNode",
                "remove_node = 2: uint64",
                "put_shard = 3: MapShard",
                "remove_shard = 4: uint64",
                "put_lineage = 5: ShardLineage",
                "remove_lineage = 6: uint64",
                "meta_replicas = 7: MetaReplicas",
                "next_replica_id = 8: uint64",
                "next_shard_id = 9: uint64",
                "cluster_version = 10: uint32",
                "replicas_wanted = 11: uint32",
                "history = 12: bytes",
                "cluster_name = 13: string",
            ],
        ),
        ("MetaReplicas", &["replicas = 1: MapReplica*"]),
        ("MapNode", &["state = 6: MapNodeState"]),
        ("MapShard", &["state = 6: MapShardState"]),
        ("MapReplica", &["role = 3: MapReplicaRole"]),
        ("ShardLineage", &["second_parent = 5: uint64", "second_parent_index = 6: uint64"]),
        ("OpenSessionResponse", &["session_id = 1: bytes"]),
        ("WriteSession", &["id = 1: bytes"]),
        ("CancelRequest", &["session_id = 2: bytes"]),
    ];
    let set = descriptors();
    for (name, fields) in golden {
        let lines = lines_of(message(&set, name));
        for field in *fields {
            assert!(lines.iter().any(|line| line == field), "{name} has no {field}: {lines:#?}");
        }
    }
    let changes = message(&set, "MapChange");
    assert!(changes.field.iter().all(|field| field.oneof_index == Some(0)), "one oneof");
}

#[test]
fn values_for_later_versions_stay_where_they_are() {
    let golden = [
        ("MapNodeState", "UNSPECIFIED = 0, LEAVING = 1, REMOVED = 2"),
        ("MapShardState", "UNSPECIFIED = 0, SPLITTING = 1, MERGING = 2"),
        ("MapReplicaRole", "UNSPECIFIED = 0, LEARNER = 1"),
        ("Feature", "UNSPECIFIED = 0, TTL = 1, LEASE = 2, FENCE = 3, TRANSACTION = 4"),
    ];
    let set = descriptors();
    for (name, values) in golden {
        let of = enumeration(&set, name);
        // Of MAP_NODE_STATE_UNSPECIFIED, without what all values of the enum begin with.
        let prefix = of.value[0].name().trim_end_matches("UNSPECIFIED").to_owned();
        let values_of = of.value.iter().map(|value| {
            format!("{} = {}", value.name().strip_prefix(&prefix).unwrap(), value.number())
        });
        assert_eq!(values_of.collect::<Vec<_>>().join(", "), values, "{name}");
    }
}

/// Numbers that are kept without a field: ends are inclusive here.
#[test]
fn reserved_numbers_and_names_stay() {
    let golden: &[(&str, (i32, i32), &[&str])] = &[
        ("Command", (10, 15), &[]),
        ("CommandOperation", (10, 15), &["ttl", "lease_id", "fence"]),
        ("DeleteRequest", (2, 2), &["value"]),
        ("BatchRequest", (13, 13), &["return_previous"]),
    ];
    let set = descriptors();
    for (name, (first, last), names) in golden {
        let of = message(&set, name);
        let kept = of.reserved_range.iter().any(|r| (r.start(), r.end()) == (*first, last + 1));
        assert!(kept, "{name}: {first} to {last} are not reserved: {:?}", of.reserved_range);
        for kept in *names {
            assert!(of.reserved_name.iter().any(|name| name == kept), "{name}: {kept}");
        }
    }
    let kinds = enumeration(&set, "EntryKind");
    assert!(kinds.reserved_range.iter().any(|r| (r.start(), r.end()) == (4, 4)));
    assert_eq!(kinds.reserved_name, ["ENTRY_KIND_CHANGE"]);
}

/// A field of the map that no change can set would be lost for a reader that is sent changes.
#[test]
fn every_part_of_the_map_has_its_changes() {
    let set = descriptors();
    let changes: BTreeSet<_> =
        message(&set, "MapChange").field.iter().map(|field| field.name().to_owned()).collect();
    let mut covered = BTreeSet::new();
    for field in &message(&set, "ClusterMap").field {
        let of_field: &[&str] = match field.name() {
            // The id never changes; the epoch is that of the command, or of the answer.
            "cluster_id" | "epoch" => &[],
            "nodes" => &["put_node", "remove_node"],
            "shards" => &["put_shard", "remove_shard"],
            "lineage" => &["put_lineage", "remove_lineage"],
            same => &[same],
        };
        for change in of_field {
            assert!(changes.contains(*change), "no change for `{}` of the map", field.name());
            covered.insert((*change).to_owned());
        }
    }
    assert_eq!(covered, changes, "every change is of a part of the map");
}
