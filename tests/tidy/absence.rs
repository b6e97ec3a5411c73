//! Rules of absence: what a crate must not name.

use super::sources::{Source, assert_none, hits, sources};

#[test]
fn the_raft_core_is_pure() {
    let banned = [
        "tokio",
        "tonic",
        "sled",
        "Instant",
        "SystemTime",
        "thread",
        "rand",
        "HashMap",
        "HashSet",
        "std::fs",
        "std::net",
        "std::env",
        "println!",
        "f32",
        "f64",
    ];
    let found = hits(&sources("crates/raft/src"), &banned);
    assert_none("crates/raft names no I/O, clock, thread, randomness or unordered map", &found);
}

#[test]
fn apply_is_deterministic() {
    let banned =
        ["HashMap", "HashSet", "Instant", "SystemTime", "rand", "tokio", "thread", "f32", "f64"];
    let all = sources("crates/machine/src");
    let code = all.iter().filter(|source| !source.is_test());
    assert_none(
        "the state machine has no clock, randomness, unordered map or float",
        &hits(code, &banned),
    );
}

#[test]
fn one_module_names_sled() {
    let all: Vec<Source> = ["crates", "tests"].into_iter().flat_map(sources).collect();
    let code = all.iter().filter(|source| {
        !source.is_test() && !source.path.starts_with("crates/storage/src/database")
    });
    let found = hits(code, &["sled::", "use sled"]);
    assert_none("only crates/storage/src/database names sled", &found);
}

#[test]
fn sled_is_used_within_its_rules() {
    let banned = [
        ".apply_batch",
        ".transaction",
        ".checksum",
        ".compare_and_swap",
        ".fetch_and_update",
        ".update_and_fetch",
        ".clear_tree",
        "sled::Batch",
        ".flush_async",
        ".export(",
        ".import(",
    ];
    let found = hits(&sources("crates/storage/src"), &banned);
    assert_none("plain inserts and removes only: the rest takes a process-wide lock", &found);
}

#[test]
fn no_queue_is_unbounded() {
    let all = sources("crates");
    let code = all.iter().filter(|source| !source.is_test());
    let found =
        hits(code, &["unbounded_channel", "UnboundedSender", "unbounded", "mpsc::channel()"]);
    assert_none("every queue is bounded", &found);
}

#[test]
fn prost_types_are_derived_in_proto_alone() {
    let all = sources("crates");
    let code = all.iter().filter(|source| !source.path.starts_with("crates/proto/"));
    let found =
        hits(code, &["prost::Oneof", "prost::Enumeration", "derive(Message", "::prost::Message)"]);
    assert_none("nothing outside of crates/proto derives prost types", &found);
}

#[test]
fn statuses_stay_at_the_edge() {
    // The peer service and the listeners are gRPC as well; the probe is a client of the health
    // service; the proto crate owns the mapping of failures; the nodes of the testkit serve.
    let edge = [
        "crates/service/src",
        "crates/transport/src",
        "crates/node/src/net/",
        "crates/kvnode/src/health_probe.rs",
        "crates/client/",
        "crates/proto/",
        "crates/testkit/",
        "crates/node/src/cluster/bootstrap",
    ];
    let all = sources("crates");
    let code = all.iter().filter(|source| {
        !source.is_test() && !edge.iter().any(|edge| source.path.starts_with(edge))
    });
    let found =
        hits(code, &["tonic::Status", "tonic::Code", "Status::new", "Status::with_details"]);
    assert_none("a gRPC status is seen by services and clients alone", &found);
}
