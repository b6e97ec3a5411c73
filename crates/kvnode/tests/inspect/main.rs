//! `kvnode inspect` on the directories of real nodes: what it says is what the node said and what
//! was written, damage has a name, and the directory stays as it was.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod damage;
mod node;

use std::fs;
use std::path::Path;
use std::process::Command;

use quorate_proto::hash::key_hash;
use quorate_proto::v1::{GetStatusResponse, ReplicaStatus};
use serde_json::{Value, json};

use node::{Node, SHARD, STORES, Written, inspect, snapshot, write_everything};

/// The entry of the report for a shard.
fn group(report: &Value, shard: u64) -> &Value {
    let groups = report["groups"].as_array().unwrap();
    groups.iter().find(|group| group["shard"] == shard).unwrap()
}

/// What the node has said of a replica, in the form of the report, where the two must agree however
/// the node ended.
fn agrees(group: &Value, replica: &ReplicaStatus) {
    assert_eq!(group["replica_id"], replica.replica_id, "{group}");
    assert_eq!(group["term"], replica.term, "{group}");
    assert_eq!(group["vote"], replica.replica_id, "it elected itself: {group}");
    assert_eq!(group["log"]["last"], replica.last, "{group}");
    assert!(group["log"]["first"].as_u64().unwrap() <= replica.log_base + 1, "{group}");
    assert!(group["log"]["bytes"].as_u64().unwrap() >= replica.log_bytes, "{group}");
    let voters = replica.voters.iter();
    let voters: Vec<Value> =
        voters.map(|one| json!({ "replica_id": one.replica_id, "node_id": one.node_id })).collect();
    assert_eq!(group["voters"], json!(voters), "{group}");
    assert_eq!(group["health"], "ok", "{group}");
    assert_eq!(group["digest"], group["digest_computed"], "{group}");
}

fn agrees_on_node(report: &Value, status: &GetStatusResponse, store: &str) {
    assert_eq!(report["node_id"], status.node_id);
    assert_eq!(report["cluster_id"], hex(&status.cluster_id));
    assert_eq!(report["map_epoch"], status.map_epoch);
    assert_eq!(report["cluster_name"], "of-the-test");
    assert_eq!((&report["shards"], &report["replicas"]), (&json!(2), &json!(3)));
    assert_eq!((&report["formed"], &report["boot_counter"]), (&json!(true), &json!(1)));
    let member = json!([{ "node_id": 1, "incarnation": report["incarnation"] }]);
    assert_eq!(report["members"], member);
    assert_eq!(report["log_store"], store);
    assert_eq!(report["formats"]["identity"], 1);
    assert_eq!(report["formats"]["log_record"], 1);
    assert_eq!(report["problems"], json!([]));
    assert_eq!(report["sound"], true);
    let shards: Vec<&Value> =
        report["groups"].as_array().unwrap().iter().map(|group| &group["shard"]).collect();
    assert_eq!(shards, [0, 1, 2]);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Inspects as JSON, and holds that the directory stays as it is and no copy is left.
fn report_of(home: &Path, expected: i32) -> Value {
    let before = snapshot(&home.join("data"));
    let (code, out, err) = inspect(home, &["-o", "json"]);
    assert_eq!(code, expected, "{out}{err}");
    assert_eq!(snapshot(&home.join("data")), before, "the directory has changed");
    assert_eq!(fs::read_dir(home.join("copies")).unwrap().count(), 0, "a copy was left");
    assert_eq!(out.matches('\n').count(), 1, "one object: {out}");
    serde_json::from_str(&out).unwrap()
}

fn entries_of(home: &Path, arguments: &[&str]) -> Vec<Value> {
    let before = snapshot(&home.join("data"));
    let (code, out, err) = inspect(home, arguments);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert_eq!(snapshot(&home.join("data")), before, "the directory has changed");
    for secret in ["visits", "lasting-value", "word"] {
        assert!(!out.contains(secret), "no key and no value: {out}");
    }
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn after_a_clean_end_it_says_what_the_node_said() {
    for store in STORES {
        let home = node::home();
        let node = Node::start(home.path(), store).await;
        let written = write_everything(&node).await;
        let status = node.status().await;
        node.terminate();

        let report = report_of(home.path(), 0);
        agrees_on_node(&report, &status, store);
        assert_eq!(report["last_run"], "clean");
        for replica in &status.replicas {
            let group = group(&report, replica.shard);
            agrees(group, replica);
            // All was applied, and a clean end writes a checkpoint of it.
            assert_eq!(group["commit"], replica.commit, "{group}");
            let checkpoint = &group["checkpoint"];
            assert_eq!(checkpoint["index"], replica.applied, "{group}");
            assert_eq!(checkpoint["term"], replica.term, "{group}");
            assert_eq!(checkpoint["log_time_ms"], replica.log_time >> 16, "{group}");
            assert_eq!(checkpoint["log_time_logical"], replica.log_time & 0xffff, "{group}");
            assert_eq!(group["keys"], replica.keys, "{group}");
            assert_eq!(group["bytes"], replica.bytes, "{group}");
            assert_eq!(group["sessions"], replica.sessions, "{group}");
            assert_eq!(group["digest"], hex(&replica.digest), "{group}");
        }
        let shard = group(&report, SHARD);
        assert_eq!(shard["sessions"], 1, "{shard}");
        let answers = written.iter().filter(|write| write.sequence.is_some()).count() as u64;
        assert_eq!(shard["rows"], shard["keys"].as_u64().unwrap() + answers, "{shard}");

        entries_match(&entries_of(home.path(), &["--entries=1"]), &written, true);
        let all = entries_of(home.path(), &["--entries"]);
        assert_eq!(all.iter().filter(|entry| entry["shard"] == 0).count(), 2, "{all:?}");
        let change = all.iter().find(|entry| entry["operation"] == "change_map").unwrap();
        assert_eq!((&change["shard"], &change["kind"]), (&json!(0), &json!("command")));
    }
}

#[tokio::test]
async fn after_a_kill_it_says_what_is_durable() {
    for store in STORES {
        let home = node::home();
        let node = Node::start(home.path(), store).await;
        let written = write_everything(&node).await;
        let status = node.status().await;
        drop(node);

        let report = report_of(home.path(), 0);
        agrees_on_node(&report, &status, store);
        assert_eq!(report["last_run"], "killed");
        for replica in &status.replicas {
            let group = group(&report, replica.shard);
            agrees(group, replica);
            // It is the only voter, so what is in its log is committed.
            assert_eq!(group["commit"], replica.commit, "{group}");
            assert_eq!(group["checkpoint"]["index"], 0, "{group}");
        }
        // There is no checkpoint yet, and so no answer.
        entries_match(&entries_of(home.path(), &["--entries", "1"]), &written, false);
    }
}

/// Each command among the entries is one that was written, in order, and each of these is there.
fn entries_match(entries: &[Value], written: &[Written], has_answers: bool) {
    let indexes: Vec<u64> = entries.iter().map(|entry| entry["index"].as_u64().unwrap()).collect();
    let expected: Vec<u64> = (1..=indexes.len() as u64).collect();
    assert_eq!(indexes, expected, "every index once");
    assert_eq!((&entries[0]["kind"], &entries[0]["operation"]), (&json!("empty"), &Value::Null));
    let commands: Vec<&Value> = entries.iter().filter(|entry| entry["kind"] == "command").collect();
    assert_eq!(commands.len(), written.len(), "{commands:?}");
    for (entry, write) in commands.iter().zip(written) {
        assert_eq!(entry["shard"], SHARD, "{entry}");
        assert_eq!(entry["index"], write.index, "{entry}");
        assert_eq!(entry["term"], 1, "{entry}");
        assert!(entry["log_time_ms"].as_u64().unwrap() > 1_600_000_000_000, "{entry}");
        assert_eq!(entry["operation"], write.operation, "{entry}");
        let hashes: Vec<String> =
            write.keys.iter().map(|key| format!("{:016x}", key_hash(key.as_bytes()))).collect();
        assert_eq!(entry["key_hashes"], json!(hashes), "{entry}");
        assert_eq!(entry["operations"], hashes.len(), "{entry}");
        assert_eq!(entry["conditional"], write.conditional, "{entry}");
        assert_eq!(entry["sequence"], json!(write.sequence), "{entry}");
        assert_eq!(entry["session"], json!(write.session), "{entry}");
        let outcome = write.outcome.filter(|_| has_answers);
        assert_eq!(entry["outcome"], json!(outcome), "{entry}");
        let refused = outcome == Some("refused");
        assert_eq!(entry["reason"], json!(refused.then_some("NOT_A_NUMBER")), "{entry}");
    }
}

/// The names of the fields are forever.
#[tokio::test]
async fn the_shapes_are_fixed() {
    let home = node::home();
    let node = Node::start(home.path(), "sled").await;
    write_everything(&node).await;
    node.terminate();
    let names = |value: &Value| -> String {
        let mut names: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        names.sort_unstable();
        names.join(" ")
    };
    let report = report_of(home.path(), 0);
    assert_eq!(
        names(&report),
        "boot_counter cluster_id cluster_name data_dir formats formed groups incarnation last_run \
         log log_store map_epoch members node_id problems replicas shards sound"
    );
    assert_eq!(names(&report["log"]), "bytes first_record last_record unfinished_record");
    assert_eq!(
        names(&report["formats"]),
        "identity log_record mark node_record row_version shard_header"
    );
    let group = group(&report, SHARD);
    assert_eq!(
        names(group),
        "bytes checkpoint commit digest digest_computed health keys log replica_id rows sessions \
         shard term vote voters"
    );
    assert_eq!(names(&group["log"]), "bytes first last");
    assert_eq!(names(&group["checkpoint"]), "index log_time_logical log_time_ms number term");
    let entry = &entries_of(home.path(), &["--entries"])[0];
    assert_eq!(
        names(entry),
        "conditional decided_at index key_hashes kind log_time_logical log_time_ms operation \
         operations outcome reason sequence session shard term"
    );
    fs::write(home.path().join("data/MARK"), []).unwrap();
    let problem = &report_of(home.path(), 1)["problems"][0];
    assert_eq!(names(problem), "file kind record shard tree what");
}

#[tokio::test]
async fn people_get_a_table() {
    let home = node::home();
    let node = Node::start(home.path(), "sled").await;
    write_everything(&node).await;
    node.terminate();
    let (code, out, err) = inspect(home.path(), &[]);
    assert_eq!((code, err.as_str()), (0, ""));
    for part in
        ["node         1, boot counter 1\n", "\nlast run     stopped in order\n", "\nSHARD  "]
    {
        assert!(out.contains(part), "no {part:?} in\n{out}");
    }
    assert!(out.ends_with("\nNothing is wrong.\n"), "{out}");
    let (code, _, err) = inspect(home.path(), &["--entries=7"]);
    assert_eq!(code, 2);
    let sentence = "has no replica of shard 7, only of these: 0, 1, 2 (--entries)\n";
    assert!(err.ends_with(sentence), "{err}");
}

#[tokio::test]
async fn a_node_that_runs_is_left_alone() {
    let home = node::home();
    let node = Node::start(home.path(), "sled").await;
    let (code, out, err) = inspect(home.path(), &["-o", "json"]);
    let data = home.path().join("data");
    let sentence =
        format!("kvnode: the data directory {} is in use by another process\n", data.display());
    assert_eq!((code, out.as_str(), err), (11, "", sentence));
    assert_eq!(fs::read_dir(home.path().join("copies")).unwrap().count(), 0);
    node.terminate();
    report_of(home.path(), 0);
}

#[tokio::test]
async fn what_is_no_data_directory_is_refused_as_start_refuses_it() {
    let home = node::home();
    let refused = |expected: i32, sentence: &str| {
        let before = snapshot(home.path());
        let (code, out, err) = inspect(home.path(), &["-o", "json"]);
        assert_eq!((code, out.as_str()), (expected, ""), "{err}");
        assert!(err.contains(sentence), "no {sentence:?} in {err}");
        assert_eq!(snapshot(home.path()), before, "something was written");
        err
    };
    refused(2, "cannot read the data directory");
    fs::create_dir(home.path().join("data")).unwrap();
    refused(10, "is not the data directory of a node: it has no file IDENTITY");
    fs::remove_dir(home.path().join("data")).unwrap();

    Node::start(home.path(), "file").await.terminate();
    let identity = home.path().join("data/IDENTITY");
    let whole = fs::read_to_string(&identity).unwrap();
    // Each of these is also what `start` says.
    let as_start = |expected: i32, sentence: &str| {
        let said = refused(expected, sentence);
        let start = Command::new(env!("CARGO_BIN_EXE_kvnode"))
            .args(["start", "--listen=127.0.0.1:0", "--advertise=127.0.0.1:9"])
            .args(["--log-format=text", "--log-level=error"])
            .arg(format!("--data-dir={}", home.path().join("data").display()))
            .output()
            .unwrap();
        assert_eq!(start.status.code(), Some(expected));
        let sentence = said.trim_end().strip_prefix("kvnode: ").unwrap();
        let started = String::from_utf8(start.stderr).unwrap();
        assert!(started.contains(sentence), "{started}\nhas not {sentence}");
    };
    fs::write(&identity, whole.replace("node_id=1", "node_id=2")).unwrap();
    as_start(10, "IDENTITY is damaged: its checksum does not match");
    fs::write(&identity, whole.replace("format=1", "format=2")).unwrap();
    as_start(12, "has format 2, this version knows formats up to 1");
    fs::remove_file(&identity).unwrap();
    as_start(10, "holds data but no file IDENTITY");
    fs::write(&identity, whole).unwrap();
    report_of(home.path(), 0);
}

#[tokio::test]
async fn a_copy_that_cannot_be_made_is_refused_with_its_setting() {
    let home = node::home();
    Node::start(home.path(), "sled").await.terminate();
    let before = snapshot(&home.path().join("data"));
    let nowhere = home.path().join("nowhere").display().to_string();
    let within = home.path().join("data").display().to_string();
    for (place, why) in
        [(&nowhere, "No such file"), (&within, "must not lie in the data directory")]
    {
        let (code, _, err) = inspect(home.path(), &["--copy-dir", place]);
        assert_eq!(code, 2, "{err}");
        assert!(err.contains(why) && err.contains("--copy-dir or TMPDIR"), "{err}");
    }
    let (code, out, _) = inspect(home.path(), &["--copy-dir", home.path().to_str().unwrap()]);
    assert!(code == 0 && out.ends_with("Nothing is wrong.\n"), "{out}");
    assert_eq!(snapshot(&home.path().join("data")), before);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2, "no copy was left");
}
