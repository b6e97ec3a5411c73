//! Routing: the nodes that the client asks, and what it learns from answers.

use std::future::IntoFuture;
use std::time::{Duration, Instant};

use quorate_client::api::{Failure, ReadLevel, Reason};
use quorate_client::{Client, ClientConfig, Error};
use quorate_testkit::{CLUSTER, Calls, FakeCluster, Step, VERSION, failure};

use crate::{client, config};

#[tokio::test]
async fn a_write_goes_to_the_preferred_leader_with_its_route() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    for _ in 0..5 {
        assert!(client.put("k", "v").await.unwrap().applied);
    }
    client.get("k").await.unwrap();
    let writes = fake.writes();
    assert_eq!(writes.len(), 5);
    for seen in &writes {
        assert_eq!(seen.node, 1);
        let route = seen.route.as_ref().unwrap();
        assert_eq!(route.cluster_id, CLUSTER);
        assert_eq!((route.shard, route.shard_epoch, route.map_epoch), (1, 1, 1));
        let timeout = seen.timeout.as_ref().unwrap().strip_suffix('u').unwrap();
        let micros: u64 = timeout.parse().unwrap();
        assert!((4_500_000..=5_000_000).contains(&micros), "the node has the time of the call");
    }
    assert_ne!(writes[0].request_id, writes[1].request_id);
    assert_eq!(fake.state().reads[0].0, 1);
}

#[tokio::test]
async fn a_failure_that_names_the_leader_is_followed_with_the_same_write() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    let hint = Failure { shard: 1, leader_node_id: 3, ..failure(Reason::NoLeader) };
    fake.script(1, [Step::Fail(hint)]);
    client.put("k", "v").await.unwrap();
    client.put("k", "w").await.unwrap();
    let writes = fake.writes();
    let nodes: Vec<u64> = writes.iter().map(|w| w.node).collect();
    assert_eq!(nodes, [1, 3, 3], "and it is remembered");
    let sequences: Vec<u64> = writes.iter().map(|w| w.session.as_ref().unwrap().sequence).collect();
    assert_eq!(sequences, [1, 1, 2]);
    assert_eq!(writes[0].request_id, writes[1].request_id, "one call, one id");
}

#[tokio::test]
async fn a_leader_with_too_many_connections_is_skipped() {
    let fake = FakeCluster::start(3);
    let full = Failure { only_this_node: true, ..failure(Reason::Overloaded) };
    fake.always(1, Step::Fail(full));
    let client = client(&fake).await;
    let begun = Instant::now();
    for _ in 0..5 {
        client.put("k", "v").await.unwrap();
        client.get("k").await.unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "took {:?}", begun.elapsed());
    let nodes: Vec<u64> = fake.writes().iter().map(|w| w.node).collect();
    let asked = nodes.iter().filter(|node| **node == 1).count();
    assert!(asked <= 2, "the full node is skipped for a while: {nodes:?}");
    let sequences: Vec<_> = fake.writes().iter().map(|w| w.session.clone().unwrap()).collect();
    assert!(sequences.iter().all(|s| s.id == sequences[0].id), "one session is enough");
}

#[tokio::test]
async fn nodes_with_too_many_connections_are_retried_after_a_wait() {
    let fake = FakeCluster::start(3);
    let full = Failure { only_this_node: true, ..failure(Reason::Overloaded) };
    for node in 1..=3 {
        fake.script(node, [Step::Fail(full.clone()), Step::Fail(full.clone())]);
    }
    client(&fake).await.put("k", "v").await.unwrap();
    fake.always(1, Step::Fail(full.clone()));
    fake.always(2, Step::Fail(full.clone()));
    fake.always(3, Step::Fail(full));
    let config = config(&fake).timeout(Duration::from_secs(1));
    let client = Client::connect(config).await.unwrap();
    let error = client.put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::NotApplied(_)), "{error}");
    assert_eq!(error.reason(), Some(Reason::Overloaded), "{error}");
}

#[tokio::test]
async fn the_client_learns_the_leader_from_a_receipt() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    fake.state().leader = 2;
    client.put("k", "v").await.unwrap();
    client.put("k", "v").await.unwrap();
    let nodes: Vec<u64> = fake.writes().iter().map(|w| w.node).collect();
    assert_eq!(nodes, [1, 2]);
    assert_eq!(client.locate("k").await.unwrap().leader_node_id, 2);
}

#[tokio::test]
async fn the_client_learns_the_leader_with_the_map() {
    let fake = FakeCluster::start(3);
    fake.state().leader = 3;
    let client = client(&fake).await;
    assert_eq!(client.locate("k").await.unwrap().leader_node_id, 3);
    client.put("k", "v").await.unwrap();
    assert_eq!(fake.writes()[0].node, 3);
}

#[tokio::test]
async fn stale_reads_are_spread_over_the_replicas() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    for _ in 0..9 {
        client.get("k").level(ReadLevel::Stale).await.unwrap();
    }
    let state = fake.state();
    for node in 1..=3 {
        assert_eq!(state.reads.iter().filter(|(n, _)| *n == node).count(), 3, "node {node}");
    }
    let read = &state.reads[0].1;
    assert_eq!(read.level(), ReadLevel::Stale);
    assert!(read.token.is_none());
}

#[tokio::test]
async fn the_first_endpoint_to_answer_is_used() {
    let fake = FakeCluster::start(3);
    let endpoints = ["127.0.0.1:1", fake.addresses[2].as_str(), "127.0.0.1:2"];
    let client = Client::connect(ClientConfig::new(endpoints).unwrap()).await.unwrap();
    assert_eq!(client.known_map().unwrap().epoch, 1);
    client.put("k", "v").await.unwrap();
    assert_eq!(fake.writes()[0].node, 1);
}

#[tokio::test]
async fn connecting_fails_when_no_endpoint_answers() {
    let config = ClientConfig::new(["127.0.0.1:1"]).unwrap();
    let error = Client::connect(config).await.unwrap_err();
    assert!(matches!(error, Error::NotApplied(_)), "{error}");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
}

#[tokio::test]
async fn unreachable_advertised_addresses_fall_back_to_the_given_endpoint() {
    let fake = FakeCluster::start(3);
    {
        let mut state = fake.state();
        let map = state.map.as_mut().unwrap();
        for (i, node) in map.nodes.iter_mut().enumerate() {
            node.client_address = format!("127.0.0.1:{}", i + 1);
        }
    }
    let config = ClientConfig::new([fake.addresses[1].as_str()]).unwrap();
    let client = Client::connect(config).await.unwrap();
    for _ in 0..10 {
        client.put("k", "v").await.unwrap();
        client.get("k").level(ReadLevel::Stale).await.unwrap();
    }
    assert!(fake.writes().iter().all(|w| w.node == 2));
    assert_eq!(fake.writes().len(), 10);
    let advertised = (1..=3).map(|id| (id, format!("127.0.0.1:{id}"))).collect::<Vec<_>>();
    assert_eq!(client.unreachable_nodes(), advertised);
}

#[tokio::test]
async fn a_given_endpoint_that_is_down_is_not_an_unreachable_advertised_address() {
    let fake = FakeCluster::start(3);
    let closed = "127.0.0.1:1";
    fake.state().map.as_mut().unwrap().nodes[0].client_address = closed.into();
    let config = ClientConfig::new([closed, fake.addresses[1].as_str()]).unwrap();
    let client = Client::connect(config).await.unwrap();
    client.put("k", "v").await.unwrap();
    assert_eq!(client.unreachable_nodes(), []);
}

#[tokio::test]
async fn a_wrong_shard_makes_the_client_fetch_the_map() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    fake.state().map = Some(fake.map_of(2, 4));
    fake.script(1, [Step::Fail(failure(Reason::WrongShard))]);
    client.put("k", "v").await.unwrap();
    let writes = fake.writes();
    assert_eq!(writes.len(), 2);
    let route = writes[1].route.as_ref().unwrap();
    assert_eq!(route.map_epoch, 2);
    assert_eq!(route.shard, client.locate("k").await.unwrap().shard);
    let sequence = |i: usize| writes[i].session.as_ref().unwrap().sequence;
    assert_eq!(sequence(0), sequence(1), "it is the same write");
}

#[tokio::test]
async fn a_newer_epoch_in_a_receipt_refreshes_the_map_in_the_background() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    fake.state().map = Some(fake.map_of(5, 2));
    client.get("k").await.unwrap();
    let arrived = async {
        while client.known_map().unwrap().epoch != 5 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), arrived).await.unwrap();
    assert_eq!(client.known_map().unwrap().shards.len(), 2);
}

#[tokio::test]
async fn a_map_of_another_cluster_is_ignored() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    let mut foreign = fake.map_of(9, 2);
    foreign.cluster_id = "another-cluster!".into();
    fake.state().map = Some(foreign);
    assert_eq!(client.map().await.unwrap().epoch, 1);
}

#[tokio::test]
async fn a_silent_node_costs_one_second_and_is_then_skipped() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    fake.always(1, Step::Hang);
    let begun = Instant::now();
    client.get("k").await.unwrap();
    let first = begun.elapsed();
    assert!(first >= Duration::from_millis(900) && first < Duration::from_secs(3), "{first:?}");
    let begun = Instant::now();
    client.get("k").await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
}

/// 60 writes that the nodes do not answer in time while they answer reads, all attempts counted.
#[tokio::test]
async fn a_slow_node_is_waited_for_and_not_asked_again_and_again() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    client.put("k", "v").await.unwrap();
    for node in 1..=3 {
        fake.always_on(node, Calls::Writes, Step::Hang);
    }
    let reads = async {
        loop {
            client.get("k").level(ReadLevel::Stale).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let puts = (0..60).map(|_| client.put("k", "v").timeout(Duration::from_millis(3_500)));
    let puts = futures::future::join_all(puts.map(IntoFuture::into_future));
    let ended = tokio::select! {
        ended = puts => ended,
        () = reads => unreachable!(),
    };
    assert!(ended.iter().all(|put| put.as_ref().is_err_and(Error::is_unknown)));
    // Ten calls pay for a retry, each second for ten more, and there were ten at first. With an
    // attempt per second they were 180.
    let attempts = fake.writes().len() - 1;
    assert!((60..=60 + 10 + 40 + 30).contains(&attempts), "{attempts} attempts");
}

#[tokio::test]
async fn refused_calls_are_repeated_within_the_budget() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    let retry_after = Some(Duration::from_millis(50).try_into().unwrap());
    let full = Failure { retry_after, ..failure(Reason::Overloaded) };
    for node in 1..=3 {
        fake.always(node, Step::Fail(full.clone()));
    }
    let puts = (0..100).map(|_| client.put("k", "v").timeout(Duration::from_secs(2)));
    let ended = futures::future::join_all(puts.map(IntoFuture::into_future)).await;
    for put in ended {
        let error = put.unwrap_err();
        assert!(matches!(error, Error::NotApplied(_)), "{error}");
        assert_eq!(error.reason(), Some(Reason::Overloaded), "{error}");
    }
    let attempts = fake.writes().len();
    assert!(attempts <= 100 + 10 + 20 + 20, "{attempts} attempts");
    fake.state().always.clear();
    client.put("k", "v").await.unwrap();
}

#[tokio::test]
async fn a_write_without_a_session_says_why_there_is_none_in_its_own_words() {
    let client = Client::new(ClientConfig::new(["127.0.0.1:1"]).unwrap());
    let error = client.put("k", "v").timeout(Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::NoLeader), "{error}");
    assert!(error.to_string().contains("no session could be opened for the write"), "{error}");
}

#[tokio::test]
async fn a_cluster_without_a_map_is_asked_through_its_endpoints() {
    let fake = FakeCluster::start(3);
    fake.state().map = None;
    let client = client(&fake).await;
    assert!(client.known_map().is_none());
    assert!(client.map().await.is_err());
    client.put("k", "v").await.unwrap();
    assert_eq!(fake.writes()[0].route, None);
}

#[tokio::test]
async fn status_asks_every_node_once_and_shows_the_silent() {
    let fake = FakeCluster::start(3);
    fake.always(2, Step::Hang);
    let client = client(&fake).await;
    let all = client.status(Duration::from_millis(300)).await;
    let ids: Vec<_> = all.iter().map(|n| n.node_id).collect();
    assert_eq!(ids, [Some(1), Some(2), Some(3)]);
    assert!(all[0].status.is_ok() && all[2].status.is_ok());
    assert!(matches!(all[1].status, Err(Error::NotApplied(_))));
    assert_eq!(client.info().await.unwrap().version, VERSION);
    for node in 1..=3 {
        fake.always(node, Step::Fail(failure(Reason::NotOffered)));
    }
    let refused = client.transfer_leader(1, 2).await.unwrap_err();
    assert!(matches!(refused, Error::Refused(_)), "{refused}");
    assert_eq!(refused.reason(), Some(Reason::NotOffered));
}

#[tokio::test]
async fn endpoints_of_several_clusters_are_rejected() {
    let (fake, other) = (FakeCluster::start(3), FakeCluster::start(3));
    let odd = bytes::Bytes::from_static(b"other---16-bytes");
    other.state().map.as_mut().unwrap().cluster_id = odd;
    let endpoints =
        [fake.addresses[0].as_str(), other.addresses[0].as_str(), fake.addresses[1].as_str()];
    let config = ClientConfig::new(endpoints).unwrap();
    let error = Client::connect(config.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    let named = format!("{} belongs to cluster 6f746865, but ", other.addresses[0]);
    assert!(error.to_string().contains(&named), "{error}");

    let client = Client::new(config);
    assert!(matches!(client.put("k", "v").await.unwrap_err(), Error::Invalid(_)));
    assert!(client.check_endpoints().is_err());
    assert_eq!(fake.writes().len() + other.writes().len(), 0);
}
