//! `batch`: one result per operation, all or nothing.

use quorate_client::api::Reason;
use quorate_testkit::{Calls, FakeCluster, REQUEST_ID, Step};

use crate::{call, call_with};

const OPERATIONS: &str = "\
{\"op\":\"check\",\"key\":\"{1}owner\",\"if_value\":\"Ada\"}
{\"op\":\"put\",\"key\":\"{1}name\",\"value_base64\":\"/w==\"}
{\"op\":\"increment\",\"key\":\"{1}visits\",\"by\":2}
{\"op\":\"get\",\"key\":\"{1}owner\"}
{\"op\":\"delete\",\"key\":\"{1}old\"}
";

#[test]
fn a_batch_prints_one_object_for_each_operation() {
    let fake = FakeCluster::single();
    call(&fake, &["put", "{1}owner", "Ada"]).ends(0);
    let batch = call_with(&fake, &["batch", "-o", "json"], OPERATIONS.as_bytes());
    assert_eq!(batch.stderr, "");
    let output = batch.ends(0);
    let objects: Vec<serde_json::Value> =
        output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let field = |name: &str| objects.iter().map(|object| object[name].clone()).collect::<Vec<_>>();
    assert_eq!(field("op"), ["check", "put", "increment", "get", "delete"]);
    assert_eq!(field("key"), ["{1}owner", "{1}name", "{1}visits", "{1}owner", "{1}old"]);
    assert_eq!(field("applied"), [true; 5]);
    assert_eq!(field("found"), [true, false, false, true, false]);
    assert_eq!(field("revision"), [1, 2, 2, 1, 0]);
    assert_eq!((&objects[2]["number"], &objects[3]["value"]), (&2.into(), &"Ada".into()));
    assert_eq!(objects[0]["receipt"]["index"], 2);
    assert_eq!(fake.state().store.rows["{1}name".as_bytes()].value, [0xff][..]);

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("operations");
    std::fs::write(&file, OPERATIONS).unwrap();
    let plain = call(&fake, &["batch", file.to_str().unwrap()]).ends(0);
    assert_eq!(plain, "{1}owner\t1\n{1}name\t3\n{1}visits\t4\n{1}owner\tAda\n{1}old\t0\n");
}

#[test]
fn a_false_condition_of_a_batch_is_1_and_changes_nothing() {
    let fake = FakeCluster::single();
    call(&fake, &["put", "{1}owner", "Grace"]).ends(0);
    let batch = call_with(&fake, &["batch"], OPERATIONS.as_bytes());
    assert_eq!(batch.stderr, "not applied: {1}owner is at revision 1\n");
    batch.ends(1);
    let batch = call_with(&fake, &["batch", "-o", "json"], OPERATIONS.as_bytes());
    assert_eq!(batch.stderr, "");
    let output = batch.ends(1);
    let first: serde_json::Value = serde_json::from_str(output.lines().next().unwrap()).unwrap();
    assert_eq!((&first["applied"], &first["condition_held"]), (&false.into(), &false.into()));
    assert_eq!(output.lines().count(), 5);
    assert_eq!(fake.state().store.rows.len(), 1);
}

#[test]
fn a_batch_has_the_exit_codes_of_a_write() {
    let fake = FakeCluster::single();
    let batch =
        |timeout: &str| call_with(&fake, &["--timeout", timeout, "batch"], OPERATIONS.as_bytes());
    fake.script(1, [Step::Refuse(Reason::CrossShard)]);
    let refused = batch("5s");
    assert_eq!(refused.stderr, format!("kvctl: as the test says (request {REQUEST_ID})\n"));
    refused.ends(2);
    call_with(&fake, &["batch", "-"], b"").ends(2);
    call(&fake, &["batch", "/no/such/file"]).ends(2);
    fake.always_on(1, Calls::Writes, Step::Refuse(Reason::NoLeader));
    batch("300ms").ends(3);
    fake.always_on(1, Calls::Writes, Step::Hang);
    let lost = batch("300ms");
    assert!(lost.stderr.contains("--write-id"), "{lost:?}");
    lost.ends(4);
}
