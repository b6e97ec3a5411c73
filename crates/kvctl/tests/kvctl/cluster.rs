//! Commands about the cluster.

use quorate_testkit::FakeCluster;

use crate::call;

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
fn version_and_limits() {
    let fake = FakeCluster::single();
    let own = env!("CARGO_PKG_VERSION");
    let output = call(&fake, &["version", "-o", "tsv"]).ends(0);
    assert_eq!(output, format!("kvctl\t{own}\nn1\t0.1.0\n"));
    let limits = call(&fake, &["limits", "-o", "tsv"]).ends(0);
    assert!(limits.starts_with("key_bytes_max\t4096\n"), "{limits}");
}

#[test]
fn transfer_names_the_leader() {
    let fake = FakeCluster::single();
    assert_eq!(call(&fake, &["transfer", "1", "n1"]).ends(0), "n1\n");
    // The node of the test stays the leader whatever the request says.
    assert_eq!(call(&fake, &["transfer", "1", "2"]).ends(1), "n1\n");
    call(&fake, &["transfer", "1", "unknown"]).ends(2);
}
