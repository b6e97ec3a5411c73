//! The first minute of a cluster: it forms, takes writes, answers reads, survives a kill.

use quorate_proto::v1::ReadLevel;
use quorate_tests::{Cluster, ClusterOptions, Exit};

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_what_it_acknowledged_when_a_leader_is_killed() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let client = cluster.client();
    for number in 0..100u32 {
        let key = format!("key-{number}");
        let put = client.put(key, number.to_string()).await.expect("the put is acknowledged");
        assert!(put.applied);
    }
    let victim = cluster.leader(1).await;
    assert_eq!(cluster.kill(victim), Exit::Signal(9));
    for number in 0..100u32 {
        let key = format!("key-{number}");
        let got = client.get(key.clone()).await.expect("two of three nodes are a quorum");
        assert_eq!(got.value, number.to_string(), "{key}");
        let put = client.put(key, (number + 1000).to_string()).await.expect("and take writes");
        assert!(put.applied && put.found);
    }
    cluster.start_node(victim);
    cluster.wait_ready().await;
    cluster.wait_equal().await;
    let got = client.get("key-7").level(ReadLevel::Stale).await.expect("a stale read");
    assert_eq!(got.value, "1007");
    for id in cluster.ids() {
        assert_eq!(cluster.stop(id), Exit::Code(0), "node {id} ends cleanly");
    }
}
