//! Transfers of leaderships on request: through every node, to every replica, kept and refused.

use std::collections::BTreeSet;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quorate_client::{Client, ClientConfig};
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::{
    ClusterMap, MapReplica, Reason, TransferLeaderRequest, TransferLeaderResponse,
};
use quorate_tests::cluster::TIMEOUT;
use quorate_tests::raw::{CALL, failure, within};
use quorate_tests::{Cluster, ClusterOptions, until_async};
use tonic::{Code, Status};

fn options(nodes: u64, shards: u32) -> ClusterOptions {
    ClusterOptions { nodes, shards, ..ClusterOptions::default() }
}

/// Asks one node, within this time.
async fn ask(
    cluster: &Cluster,
    node: u64,
    shard: u64,
    to_node_id: u64,
    timeout: Duration,
) -> Result<TransferLeaderResponse, Status> {
    let request = TransferLeaderRequest { shard, to_node_id, ..TransferLeaderRequest::default() };
    let mut client = ClusterClient::new(cluster.channel(node));
    client.transfer_leader(within(timeout, request)).await.map(tonic::Response::into_inner)
}

/// Asks one node, which must hand over.
async fn hand_over(cluster: &Cluster, node: u64, shard: u64, to: u64) -> TransferLeaderResponse {
    let answer = ask(cluster, node, shard, to, CALL).await;
    answer.unwrap_or_else(|status| panic!("node {node}: shard {shard} to {to}: {status:?}"))
}

/// The replicas of a shard, or of the meta group, the preferred leader first.
fn replicas(map: &ClusterMap, shard: u64) -> Vec<u64> {
    let shards = map.shards.iter().find(|known| known.id == shard);
    let replicas = shards.map_or(&map.meta_replicas, |known| &known.replicas);
    replicas.iter().map(|replica: &MapReplica| replica.node_id).collect()
}

/// Increments one counter of a shard until it is to stop.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// Counters, of which each has a task.
const COUNTERS: u64 = 8;

impl Load {
    fn start(cluster: &Cluster) -> Self {
        let endpoints = cluster.endpoints();
        let config = ClientConfig::new(endpoints.split(',')).expect("addresses are endpoints");
        let client = Client::new(config.timeout(TIMEOUT));
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let task = |number: u64| {
            let (client, stop, done) = (client.clone(), stop.clone(), done.clone());
            tokio::spawn(async move {
                let mut sum = 0;
                while !stop.load(Ordering::SeqCst) {
                    let added = client.increment(format!("counter{number}"), 1).await;
                    let added = added.unwrap_or_else(|error| panic!("no outcome is lost: {error}"));
                    sum += 1;
                    assert_eq!(added.number, sum, "counter{number}");
                    done.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        let tasks = (0..COUNTERS).map(task).collect();
        Self { stop, done, tasks }
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.expect("every increment is answered, once");
        }
        self.done.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_hands_every_shard_to_every_replica_while_writes_go_on() {
    // Each shard has a node without a replica of it.
    let cluster = Cluster::start(options(4, 2)).await;
    let map = cluster.client().map().await.expect("the map");
    let load = Load::start(&cluster);
    let mut handed = 0;
    for shard in 0..=2 {
        for asked in cluster.ids() {
            for to in replicas(&map, shard) {
                let began = load.done();
                let answer = hand_over(&cluster, asked, shard, to).await;
                assert_eq!(answer.leader_node_id, to, "node {asked}: shard {shard}");
                let status = cluster.status(to).await.expect("it answers");
                let replica = status.replicas.iter().find(|replica| replica.shard == shard);
                let replica = replica.expect("it has a replica");
                assert_eq!((replica.leader_node_id, replica.term), (to, answer.term));
                // It leads already, which is answered at once and in the same term.
                assert_eq!(hand_over(&cluster, asked, shard, to).await, answer);
                handed += 1;
                until_async("writes go on", TIMEOUT, || async {
                    (load.done() > began).then_some(())
                })
                .await;
            }
        }
    }
    let preferred = replicas(&map, 1)[0];
    let last = replicas(&map, 1)[2];
    hand_over(&cluster, 1, 1, last).await;
    assert_eq!(hand_over(&cluster, 1, 1, 0).await.leader_node_id, preferred);
    let written = load.end().await;
    eprintln!("{handed} leaderships were handed over, {written} writes meanwhile");
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_lead_is_refused_and_the_leader_leads_on() {
    let cluster = Cluster::start(options(4, 2)).await;
    let client = cluster.client();
    let map = client.map().await.expect("the map");
    let of_1 = replicas(&map, 1);
    let without = cluster.ids().into_iter().find(|id| !of_1.contains(id)).expect("one of four");
    for node in cluster.ids() {
        let refused = |shard, to| ask(&cluster, node, shard, to, CALL);
        let status = refused(9, 1).await.expect_err("there are two shards");
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let said = failure(&status);
        assert_eq!((said.reason(), &*said.field), (Reason::BadRequest, "shard"));
        assert_eq!(
            said.message,
            "there is no shard 9: the shards are 1 to 2, and 0 is the meta group"
        );
        let status = refused(1, without).await.expect_err("it has no replica");
        let said = failure(&status);
        assert_eq!((said.reason(), &*said.field), (Reason::BadRequest, "to_node_id"));
        let holders: Vec<String> = of_1.iter().map(u64::to_string).collect();
        assert_eq!(
            said.message,
            format!(
                "node {without} holds no replica of shard 1 that votes; nodes {} do",
                holders.join(", ")
            )
        );
    }
    let output = cluster.kvctl(&["transfer", "1", &without.to_string()]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("holds no replica of shard 1"), "{}", said(&output));

    // A node that is stopped does not take over; the leader leads on, and says so.
    let (leader, stopped) = (of_1[0], of_1[1]);
    hand_over(&cluster, without, 1, leader).await;
    let term = hand_over(&cluster, leader, 1, leader).await.term;
    cluster.pause(stopped);
    let load = Load::start(&cluster);
    let refused = async |node| {
        let status = ask(&cluster, node, 1, stopped, CALL).await.expect_err("it is stopped");
        let said = failure(&status);
        assert_eq!((status.code(), said.reason()), (Code::Unavailable, Reason::NotTransferred));
        said
    };
    // At first the leader has heard of it lately, and only then knows.
    let silent = format!("node {stopped} does not answer");
    until_async("the leader misses it", TIMEOUT, || async {
        refused(leader).await.message.contains(&silent).then_some(())
    })
    .await;
    for node in [leader, without] {
        let said = refused(node).await;
        assert!(said.message.contains(&silent), "{said:?}");
        assert!(said.message.contains(&format!("{leader} still leads shard 1")), "{said:?}");
        assert_eq!(said.leader_node_id, leader);
    }
    let output = cluster.kvctl(&["transfer", "1", &stopped.to_string()]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert_eq!(
        hand_over(&cluster, without, 1, leader).await.term,
        term,
        "it never stopped leading"
    );
    cluster.resume(stopped);
    until_async("the node that was stopped takes over", TIMEOUT, || async {
        let answer = ask(&cluster, without, 1, stopped, CALL).await.ok()?;
        (answer.leader_node_id == stopped).then_some(())
    })
    .await;
    assert!(load.end().await > 0);
    let output = cluster.kvctl(&["transfer", "1", "preferred"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("n{leader}\n"), "{output:?}");
}

/// Shards of the next test: of nine one node is preferred by three at least.
const SHARDS: u32 = 9;

#[tokio::test(flavor = "multi_thread")]
async fn a_leadership_that_was_asked_for_stays_and_others_go_home() {
    let mut cluster = Cluster::start(options(3, SHARDS)).await;
    let map = cluster.client().map().await.expect("the map");
    let prefer = |node: u64| -> BTreeSet<u64> {
        let of = map.shards.iter().filter(|shard| shard.replicas[0].node_id == node);
        of.map(|shard| shard.id).collect()
    };
    let ids = cluster.ids();
    let home = ids.into_iter().max_by_key(|id| prefer(*id).len()).expect("three nodes");
    let homesick = prefer(home);
    assert!(homesick.len() >= 3, "{homesick:?}");
    cluster.kill(home);
    cluster.start_node(home);
    cluster.wait_ready().await;
    // Two of the three are led by the same node: what it gives back, and what it keeps.
    let leaders = until_async("other nodes lead two of them", TIMEOUT, || async {
        let mut leaders = cluster.leaders().await;
        leaders.retain(|shard, leader| homesick.contains(shard) && *leader != home);
        (leaders.len() == homesick.len()).then_some(leaders)
    })
    .await;
    let count = |leader: &u64| leaders.values().filter(|other| *other == leader).count();
    let host = *leaders.values().max_by_key(|leader| count(leader)).expect("three of them");
    let kept = *leaders.iter().find(|(_, leader)| **leader == host).expect("the host leads").0;
    let answer = hand_over(&cluster, home, kept, host).await;
    assert_eq!(answer.leader_node_id, host);
    let now = until_async("the other shards are led at home", TIMEOUT * 2, || async {
        let leaders = cluster.leaders().await;
        let at_home = |shard: &&u64| leaders.get(shard) == Some(&home);
        let others = homesick.iter().filter(at_home).count();
        (others >= homesick.len() - 1).then_some(leaders)
    })
    .await;
    assert_eq!(now.get(&kept), Some(&host), "it was asked for");
    assert_eq!(hand_over(&cluster, home, kept, host).await.term, answer.term, "it never left");
    assert_eq!(hand_over(&cluster, host, kept, 0).await.leader_node_id, home);
}
