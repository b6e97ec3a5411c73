//! Damaged directories: what is damaged has a name, and the rest is still printed.

use std::fs;
use std::path::{Path, PathBuf};

use quorate_storage::{Database, DatabaseOptions};
use serde_json::{Value, json};

use crate::node::{Node, VALUE, home, inspect, write_everything};
use crate::{group, report_of};

/// The directory of a node that has ended in order.
async fn ended(store: &str) -> tempfile::TempDir {
    let home = home();
    let node = Node::start(home.path(), store).await;
    write_everything(&node).await;
    node.terminate();
    report_of(home.path(), 0);
    home
}

/// Flips a bit in each place where the value is; gives the number of places.
fn flip_values(path: &Path) -> usize {
    let mut bytes = fs::read(path).unwrap();
    let found = |at: &usize| bytes[*at..].starts_with(VALUE.as_bytes());
    let places: Vec<usize> = (0..bytes.len()).filter(found).collect();
    for at in &places {
        bytes[*at] ^= 1;
    }
    fs::write(path, bytes).unwrap();
    places.len()
}

fn log_file(home: &Path) -> PathBuf {
    home.join("data/log/00000000000000000001.log")
}

fn problems(report: &Value) -> Vec<Value> {
    assert_eq!(report["sound"], false);
    report["problems"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_flipped_bit_in_a_file_of_the_log_names_the_record_and_hides_no_state() {
    let home = ended("file").await;
    let sound = report_of(home.path(), 0);
    assert!(flip_values(&log_file(home.path())) > 0);
    let report = report_of(home.path(), 1);
    let problems = problems(&report);
    let first = &problems[0];
    assert_eq!(first["kind"], "damaged", "{first}");
    assert_eq!(first["file"], "log/00000000000000000001.log", "{first}");
    let record = first["record"].as_u64().unwrap();
    let what = first["what"].as_str().unwrap();
    assert!(what.contains(&format!("record {record} of the log fails its checksum")), "{what}");
    // The log is read up to the damage, and the states are whole.
    assert_eq!(report["log"]["last_record"], record - 1);
    for shard in 0..3 {
        let (group, before) = (group(&report, shard), group(&sound, shard));
        assert_eq!(group["health"], "log_incomplete", "{group}");
        for field in ["checkpoint", "voters", "rows", "keys", "bytes", "sessions", "digest"] {
            assert_eq!(group[field], before[field], "{field}");
        }
        assert_eq!(group["digest"], group["digest_computed"], "{group}");
        assert_eq!(group["term"], 1, "{group}");
    }
    let (code, out, err) = inspect(home.path(), &[]);
    assert_eq!((code, err.as_str()), (1, ""));
    let named = format!("  log/00000000000000000001.log, record {record}: ");
    assert!(out.contains(&named), "{out}");
    // What was committed before the damage is printed, and the damage named beside it.
    let (code, out, err) = inspect(home.path(), &["--entries"]);
    assert_eq!(code, 1);
    assert!(out.contains("\"operation\":\"change_map\""), "{out}");
    assert!(err.starts_with("kvnode: log/00000000000000000001.log, record "), "{err}");
}

#[tokio::test]
async fn a_file_of_the_log_with_a_broken_header_or_a_newer_one_is_named() {
    let home = ended("file").await;
    let path = log_file(home.path());
    let whole = fs::read(&path).unwrap();
    let mut bytes = whole.clone();
    bytes[3] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let broken = problems(&report_of(home.path(), 1));
    let said: Vec<&str> = broken.iter().map(|one| one["what"].as_str().unwrap()).collect();
    let header = format!("damaged: the header of {} is broken", path.display());
    assert!(said.contains(&header.as_str()), "{said:?}");
    assert_eq!(said.len(), 1, "that its records are missing says nothing more: {said:?}");

    let mut bytes = whole;
    bytes[7] = 2;
    let crc = crc32c::crc32c(&bytes[..24]);
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    let (code, out, _) = inspect(home.path(), &["-o", "json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    let newer = &problems(&report)[0];
    assert_eq!((code, &newer["kind"]), (12, &json!("newer_format")), "{out}");
    let what = newer["what"].as_str().unwrap();
    assert!(what.contains("has format 2, but this build knows only formats up to 1"), "{what}");
}

/// Flips a bit of the first value of a tree from this key on.
fn flip_in_tree(home: &Path, tree: &str, from: &[u8]) {
    let dir = home.join("data/sled");
    let database = Database::open(&dir, DatabaseOptions::default()).unwrap();
    let tree = database.tree(tree.as_bytes()).unwrap();
    let (key, value) = tree.range(from..).next().unwrap().unwrap();
    let mut flipped = value.to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    tree.insert(&key, &flipped).unwrap();
    database.barrier().unwrap();
}

/// The one problem of a damaged directory.
fn only_problem(home: &Path) -> (Value, Value) {
    let report = report_of(home, 1);
    let mut problems = problems(&report);
    assert_eq!(problems.len(), 1, "{problems:?}");
    (report, problems.remove(0))
}

#[tokio::test]
async fn a_flipped_bit_in_the_file_of_the_database_is_found_by_the_log_in_it() {
    let home = ended("sled").await;
    assert!(flip_values(&home.path().join("data/sled/db")) > 0);
    // The database forgets what follows the damage; the log knows that it was there.
    let (_, problem) = only_problem(home.path());
    assert_eq!((&problem["file"], &problem["tree"]), (&json!("sled"), &json!("log")), "{problem}");
    assert!(problem["record"].as_u64().unwrap() > 1, "{problem}");
}

#[tokio::test]
async fn a_damaged_row_names_its_tree_and_shard() {
    let home = ended("sled").await;
    let sound = report_of(home.path(), 0);
    flip_in_tree(home.path(), "s1/1", b"");
    let (report, problem) = only_problem(home.path());
    assert_eq!((&problem["file"], &problem["tree"]), (&json!("sled"), &json!("s1/1")), "{problem}");
    assert_eq!((&problem["kind"], &problem["shard"]), (&json!("damaged"), &json!(1)), "{problem}");
    let what = problem["what"].as_str().unwrap();
    assert!(what.contains("a row of the state fails its checksum"), "{what}");
    let (damaged, before) = (group(&report, 1), group(&sound, 1));
    assert_eq!(damaged["health"], "damaged");
    assert_eq!(damaged["digest_computed"], Value::Null);
    for field in ["term", "vote", "commit", "log", "checkpoint", "keys", "digest"] {
        assert_eq!(damaged[field], before[field], "{field}");
    }
    assert_eq!(group(&report, 2), group(&sound, 2), "the other shards are whole");
}

#[tokio::test]
async fn a_damaged_header_of_a_shard_hides_no_log_of_it() {
    let home = ended("file").await;
    let sound = report_of(home.path(), 0);
    flip_in_tree(home.path(), "shards", &1_u64.to_be_bytes());
    let (report, problem) = only_problem(home.path());
    assert_eq!((&problem["tree"], &problem["shard"]), (&json!("shards"), &json!(1)), "{problem}");
    let (damaged, before) = (group(&report, 1), group(&sound, 1));
    assert_eq!((&damaged["health"], &damaged["checkpoint"]), (&json!("damaged"), &Value::Null));
    for field in ["replica_id", "term", "vote", "log"] {
        assert_eq!(damaged[field], before[field], "{field}");
    }
}

#[tokio::test]
async fn a_row_that_is_gone_differs_from_the_digest() {
    let home = ended("sled").await;
    let database = Database::open(&home.path().join("data/sled"), DatabaseOptions::default());
    let database = database.unwrap();
    let tree = database.tree(b"s1/1").unwrap();
    let key = tree.range::<&[u8]>(..).next().unwrap().unwrap().0;
    tree.remove(&key).unwrap();
    database.barrier().unwrap();
    drop((tree, database));
    let (report, problem) = only_problem(home.path());
    let what = problem["what"].as_str().unwrap();
    assert!(what.contains("but the header of the shard says"), "{what}");
    let damaged = group(&report, 1);
    assert_ne!(damaged["digest"], damaged["digest_computed"]);
    assert_eq!(damaged["health"], "damaged");
}

#[tokio::test]
async fn a_damaged_record_of_the_log_in_the_database_is_named() {
    let home = ended("sled").await;
    flip_in_tree(home.path(), "log", &5_u64.to_be_bytes());
    let (report, problem) = only_problem(home.path());
    assert_eq!((&problem["tree"], &problem["record"]), (&json!("log"), &json!(5)), "{problem}");
    assert_eq!(report["log"]["last_record"], 4);
    assert_eq!(group(&report, 1)["health"], "log_incomplete");
}

#[tokio::test]
async fn a_database_that_does_not_open_hides_no_log_in_files() {
    let home = ended("file").await;
    let sound = report_of(home.path(), 0);
    let path = home.path().join("data/sled/db");
    fs::remove_file(&path).unwrap();
    let report = report_of(home.path(), 1);
    let problems = problems(&report);
    assert_eq!((problems.len(), &problems[0]["file"]), (1, &json!("sled/db")), "{problems:?}");
    let what = problems[0]["what"].as_str().unwrap();
    assert!(what.starts_with(&format!("{} is missing", path.display())), "{what}");
    let (group, before) = (group(&report, 1), group(&sound, 1));
    for field in ["replica_id", "term", "vote", "log"] {
        assert_eq!(group[field], before[field], "{field}");
    }
    assert_eq!(group["checkpoint"], Value::Null);
}

#[tokio::test]
async fn a_broken_mark_is_named_and_hides_nothing() {
    for store in ["sled", "file"] {
        let home = ended(store).await;
        let sound = report_of(home.path(), 0);
        let path = home.path().join("data/MARK");
        let length = fs::metadata(&path).unwrap().len();
        fs::write(&path, vec![0; length as usize]).unwrap();
        let report = report_of(home.path(), 1);
        let problems = problems(&report);
        assert_eq!((problems.len(), &problems[0]["file"]), (1, &json!("MARK")), "{problems:?}");
        assert_eq!(report["log_store"], store);
        for field in ["groups", "log", "last_run", "map_epoch"] {
            assert_eq!(report[field], sound[field], "{field}");
        }
    }
}
