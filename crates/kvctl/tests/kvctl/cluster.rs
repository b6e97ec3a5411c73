//! Commands about the cluster.

use std::io::{BufRead as _, BufReader};

use quorate_client::api::Reason;
use quorate_testkit::{Calls, FakeCluster, REQUEST_ID, Step};
use rustix::process::Signal;

use crate::endings::{send, wait};
use crate::{call, program, run};

#[test]
fn status_health_and_shards() {
    let fake = FakeCluster::single();
    call(&fake, &["put", "k", "v"]).ends(0);
    let status = call(&fake, &["status"]).ends(0);
    assert!(
        status.starts_with("1 of 1 shards serve; 1 of 1 node answers\n\nNODE  ADDRESS"),
        "{status}"
    );
    assert_eq!(call(&fake, &["health"]).ends(0), "1 of 1 shards serve; 1 of 1 node answers\n");
    assert_eq!(
        call(&fake, &["shards", "-o", "tsv"]).ends(0),
        "meta\tserves\tn1\tn1\t2\t1\t1\t0\t1\t0\n1\tserves\tn1\tn1\t2\t1\t1\t0\t1\t0\n"
    );
    let nodes = call(&fake, &["nodes", "-o", "json"]).ends(0);
    let node: serde_json::Value = serde_json::from_str(&nodes).unwrap();
    assert_eq!((&node["node_id"], &node["leads"]), (&1.into(), &1.into()));

    fake.state().leader = 0;
    let sentence = "0 of 1 shards serve; shard 1 has no leader for 4 s (needs 1 of n1; has n1)\n";
    assert_eq!(call(&fake, &["health"]).ends(1), sentence);
    assert!(call(&fake, &["status"]).ends(0).starts_with(sentence));
}

#[test]
fn locate_prints_tag_hash_and_place() {
    let fake = FakeCluster::single();
    let output = call(&fake, &["locate", "user{42}name"]).ends(0);
    let lines: Vec<&str> = output.lines().collect();
    let hash = format!("hash      {:016x}", quorate_client::hash::key_hash(b"42"));
    assert_eq!(lines[..2], ["tag       42", &hash]);
    assert_eq!(
        lines[2..],
        [
            "shard     1",
            "range     0000000000000000–ffffffffffffffff",
            "replicas  n1",
            "leader    n1",
        ]
    );
}

#[test]
fn version_names_kvctl_and_the_nodes() {
    let fake = FakeCluster::single();
    let own = env!("CARGO_PKG_VERSION");
    let output = call(&fake, &["version", "-o", "tsv"]).ends(0);
    assert_eq!(output, format!("kvctl\t{own}\nn1\t0.1.0\n"));
}

#[test]
fn limits_are_one_value_or_that_of_each_node() {
    let fake = FakeCluster::start(3);
    let table = call(&fake, &["limits"]).ends(0);
    assert!(table.starts_with("key_bytes_max           4096\n"), "{table}");
    assert!(table.contains("\nvalue_bytes_max         1048576\n"), "{table}");
    assert!(table.ends_with("levels                  linearizable,stale\n"), "{table}");
    let object = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let json = call(&fake, &["limits", "-o", "json"]).ends(0);
    let all = object(&json);
    assert_eq!((&all["nodes"], &all["key_bytes_max"]), (&[1, 2, 3][..].into(), &4096.into()));
    assert_eq!((&all["level"], &all["timeout_ms"]), (&"linearizable".into(), &0.into()));

    fake.state().value_bytes_max.insert(2, 7);
    let table = call(&fake, &["limits"]).ends(0);
    assert!(table.contains("\nvalue_bytes_max         1048576 (n1 n3), 7 (n2)\n"), "{table}");
    assert!(table.starts_with("key_bytes_max           4096\n"), "{table}");
    let tsv = call(&fake, &["limits", "-o", "tsv"]).ends(0);
    assert!(tsv.starts_with("key_bytes_max\t4096\tn1 n2 n3\n"), "{tsv}");
    assert!(tsv.contains("\nvalue_bytes_max\t1048576\tn1 n3\nvalue_bytes_max\t7\tn2\n"), "{tsv}");
    let json = call(&fake, &["limits", "-o", "json"]).ends(0);
    let nodes: Vec<_> = json.lines().map(|line| object(line)["nodes"].clone()).collect();
    assert_eq!(nodes, [serde_json::json!([1, 3]), serde_json::json!([2])]);

    let mut nobody = program();
    nobody.args(["--endpoints", "127.0.0.1:1", "limits"]);
    let nobody = run(nobody, b"");
    assert!(nobody.stderr.starts_with("127.0.0.1:1: "), "{nobody:?}");
    nobody.ends(3);
}

#[test]
fn transfer_names_the_leader() {
    let fake = FakeCluster::start(3);
    assert_eq!(call(&fake, &["transfer", "1", "n2"]).ends(0), "n2\n");
    assert_eq!(call(&fake, &["transfer", "meta", "3"]).ends(0), "n3\n");
    assert_eq!(call(&fake, &["transfer", "1", "preferred"]).ends(0), "n1\n");
    assert_eq!(
        call(&fake, &["transfer", "1", "3", "-o", "json"]).ends(0),
        "{\"shard\":1,\"leader_node_id\":3,\"term\":2}\n"
    );
    for (words, part) in [
        (["transfer", "1", "unknown"], "expected a node, as n2 or 2, or preferred"),
        (["transfer", "1", "0"], "expected a node"),
        (["transfer", "first", "2"], "expected a shard, as 3, or meta"),
        (["transfer", "1", "9"], "as the test says"),
    ] {
        let refused = call(&fake, &words);
        assert!(refused.stderr.contains(part), "{refused:?}");
        refused.ends(2);
    }
}

#[test]
fn a_transfer_that_fails_has_its_code_and_goes_round_a_silent_node() {
    let fake = FakeCluster::start(3);
    let all = fake.addresses.join(",");
    let transfer = |timeout: &str| {
        let mut command = program();
        command.args(["--endpoints", &all, "--timeout", timeout, "transfer", "1", "2"]);
        run(command, b"")
    };
    fake.state().leader = 3;
    for (reason, code) in [
        (Reason::NotTransferred, 3),
        (Reason::NoLeader, 3),
        (Reason::NotOffered, 5),
        (Reason::Internal, 70),
    ] {
        (1..=3).for_each(|node| fake.always(node, Step::Refuse(reason)));
        let failed = transfer("2s");
        assert!(failed.stderr.starts_with("kvctl: as the test says"), "{failed:?}");
        assert_eq!(failed.code, Some(code), "{reason:?} {failed:?}");
    }
    // The leader says why not, and no other node is asked.
    (1..=2).for_each(|node| fake.always(node, Step::Answer));
    fake.always(3, Step::Refuse(Reason::NotTransferred));
    transfer("2s").ends(3);
    assert_eq!(fake.state().leader, 3);
    // Of what the leader does not answer another node is asked.
    fake.always(3, Step::Hang);
    assert_eq!(transfer("2s").ends(0), "n2\n");
}

#[test]
fn watch_prints_again_until_it_is_interrupted() {
    let fake = FakeCluster::single();
    for command in ["status", "shards"] {
        let mut program = program();
        program.args(["--endpoints", &fake.addresses[0], command, "--watch", "50ms"]);
        let mut child = program.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for picture in 0..3 {
            let heading = lines.any(|line| {
                let line = line.unwrap();
                line.starts_with("NODE") || line.starts_with("SHARD")
            });
            assert!(heading, "{command}: picture {picture}");
        }
        send(&child, Signal::INT);
        assert_eq!(wait(&mut child), Some(130), "{command}");
    }
    let refused = call(&fake, &["status", "--watch", "soon"]);
    assert!(refused.stderr.contains("--watch"), "{refused:?}");
    refused.ends(2);
}

#[test]
fn a_level_that_a_node_does_not_serve_is_named_with_those_that_it_serves() {
    let fake = FakeCluster::single();
    for (reason, code) in [(Reason::NotOffered, 5), (Reason::BadLevel, 2)] {
        fake.always_on(1, Calls::Reads, Step::Refuse(reason));
        let refused = call(&fake, &["get", "k", "--consistency", "session"]);
        assert_eq!(
            refused.stderr,
            format!(
                "kvctl: n1 serves no session reads, only linearizable, stale (as the test says) \
                 (request {REQUEST_ID})\n"
            )
        );
        refused.ends(code);
        // Where the level is served the node means something else.
        let other = call(&fake, &["get", "k", "--consistency", "stale"]);
        assert_eq!(other.stderr, format!("kvctl: as the test says (request {REQUEST_ID})\n"));
        other.ends(code);
    }
}
