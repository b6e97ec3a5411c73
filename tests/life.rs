//! The life of a cluster: it forms, nodes come late, go, come back, lose their disks.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use quorate_client::{Client, ClientConfig};
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::{
    GetMapRequest, GetRequest, NodePhase, PutRequest, ReadLevel, ReplicaStatus,
};
use quorate_tests::cluster::TIMEOUT;
use quorate_tests::named::{check, fill};
use quorate_tests::ports::lease;
use quorate_tests::raw::{CALL, at, key_in, within};
use quorate_tests::{Cluster, ClusterOptions, Exit, binaries, until, until_async};

fn options(nodes: u64, shards: u32, arguments: &[&str]) -> ClusterOptions {
    let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    ClusterOptions { nodes, shards, arguments, ..ClusterOptions::default() }
}

async fn replica(cluster: &Cluster, id: u64, shard: u64) -> Option<ReplicaStatus> {
    let status = cluster.status(id).await?;
    status.replicas.into_iter().find(|replica| replica.shard == shard)
}

/// Waits until a node has logged this.
fn wait_logged(cluster: &Cluster, id: u64, sentence: &str) {
    until(&format!("node {id} logs {sentence:?}"), TIMEOUT, || {
        cluster.log(id).contains(sentence).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_while_the_others_compacted_catches_up_by_snapshot() {
    // Little memory makes short logs.
    let mut cluster = Cluster::start(options(3, 2, &["--memory", "128MiB"])).await;
    fill(&cluster.client(), "before", 20).await;
    cluster.wait_equal().await;
    let had = replica(&cluster, 3, 1).await.expect("node 3 answers").last;
    assert_eq!(cluster.kill(3), Exit::Signal(9));

    let client = cluster.client();
    let mut written = 0u32;
    until_async("the others drop what node 3 lacks from their logs", TIMEOUT * 2, || {
        let (client, cluster) = (client.clone(), &cluster);
        let first = written;
        written += 16;
        async move {
            let puts = (first..first + 16).map(|number| {
                // A few keys: their last values are what the snapshot has to carry.
                let key = key_in(1, 2, &format!("away{}", number % 32));
                let value = number.to_string().repeat(60_000 / number.to_string().len());
                let client = client.clone();
                async move { client.put(key, value).await.expect("two of three go on") }
            });
            futures::future::join_all(puts).await;
            for id in [1, 2] {
                let base = replica(cluster, id, 1).await?.log_base;
                if base <= had {
                    return None;
                }
            }
            Some(())
        }
    })
    .await;

    cluster.start_node(3);
    cluster.wait_ready().await;
    cluster.wait_equal().await;
    let installed = cluster.metric(3, "quorate_snapshots_installed_total");
    assert!(installed >= 1.0, "{installed} snapshots were installed");
    let sent: f64 =
        [1, 2].map(|id| cluster.metric(id, "quorate_snapshots_sent_total")).iter().sum();
    assert!(sent >= installed, "{sent} sent, {installed} installed");
    let base = replica(&cluster, 3, 1).await.expect("node 3 answers").log_base;
    assert!(base > had, "its log begins behind the snapshot, not at {base}");
    let mut there = cluster.kv(3);
    for number in written.saturating_sub(32)..written {
        let key = key_in(1, 2, &format!("away{}", number % 32));
        let request =
            GetRequest { key: key.into(), read: at(ReadLevel::Stale), ..GetRequest::default() };
        let got = there.get(request).await.expect("its own replica").into_inner();
        let value = number.to_string();
        assert!(got.value.starts_with(value.as_bytes()), "{number}");
        assert_eq!(got.receipt.expect("a receipt").node_id, 3);
    }
    check(&client, "before", 20).await;
}

/// Keys and bytes of what the snapshot has to carry.
const LARGE_KEYS: u32 = 800;
const LARGE_BYTES: usize = 60_000;
/// Between two writes of the load, which is 5 MB/s.
const LOAD_INTERVAL: Duration = Duration::from_millis(12);

/// While the snapshot travels more is written than a log keeps for a follower that is slow, and
/// less than it keeps for one that receives a snapshot: a quarter of the log's share over the
/// shards, and over the peers; here 2 MiB and 32 MiB.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_needs_a_snapshot_catches_up_under_steady_load() {
    let shards = 30;
    let mut cluster = Cluster::start(options(3, shards, &["--memory", "1GiB"])).await;
    let client = cluster.client();
    let put = |number: u32| {
        let key = key_in(1, shards, &format!("steady{}", number % LARGE_KEYS));
        let put = client.put(key, vec![number as u8; LARGE_BYTES]).timeout(TIMEOUT);
        async move { put.await.map(drop).expect("two of three go on") }
    };
    let had = replica(&cluster, 3, 1).await.expect("node 3 answers").last;
    assert_eq!(cluster.kill(3), Exit::Signal(9));
    futures::stream::iter((0..LARGE_KEYS).map(put)).buffer_unordered(16).collect::<Vec<()>>().await;
    for id in [1, 2] {
        until_async("node 3 needs a snapshot", TIMEOUT, || async {
            (replica(&cluster, id, 1).await?.log_base > had).then_some(())
        })
        .await;
    }

    // From now on writes never pause.
    let written = AtomicU64::new(0);
    let load = async {
        let interval = tokio::time::interval(LOAD_INTERVAL);
        let numbers = futures::stream::unfold((interval, 0), |(mut interval, number)| async move {
            interval.tick().await;
            Some((number, (interval, number + 1)))
        });
        let mut puts = std::pin::pin!(numbers.map(put).buffer_unordered(32));
        while puts.next().await.is_some() {
            written.fetch_add(1, Ordering::Relaxed);
        }
    };
    cluster.start_node(3);
    let catches_up = async {
        // Three times: what is committed now is applied there soon, whatever is written meanwhile.
        for _ in 0..3 {
            let begun = written.load(Ordering::Relaxed);
            until_async("the load continues", TIMEOUT, || async {
                (written.load(Ordering::Relaxed) > begun).then_some(())
            })
            .await;
            let committed = until_async("the leader answers", TIMEOUT, || async {
                let leader = *cluster.leaders().await.get(&1)?;
                (leader != 3).then_some(replica(&cluster, leader, 1).await?.commit)
            })
            .await;
            until_async("node 3 has applied it", TIMEOUT, || async {
                (replica(&cluster, 3, 1).await?.applied >= committed).then_some(())
            })
            .await;
        }
    };
    tokio::select! {
        () = load => unreachable!("it does not end"),
        () = catches_up => {}
    }
    let installed = cluster.metric(3, "quorate_snapshots_installed_total");
    eprintln!("{installed} snapshots, {} writes meanwhile", written.load(Ordering::Relaxed));
    assert!(installed >= 1.0, "it needed one");
    // A second one where leadership moved meanwhile.
    assert!(installed <= 2.0, "{installed} snapshots followed each other");
    cluster.wait_ready().await;
    cluster.wait_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_directory_has_no_vote_and_two_of_three_form_no_second_cluster() {
    let mut cluster = Cluster::start(options(3, 2, &[])).await;
    fill(&cluster.client(), "kept", 30).await;
    cluster.wait_equal().await;

    // One wiped: the members know it with another directory.
    assert_eq!(cluster.stop(3), Exit::Code(0));
    cluster.wipe(3);
    cluster.start_node(3);
    assert_eq!(cluster.wait_end_within(3, TIMEOUT), Exit::Code(10));
    let log = cluster.log(3);
    assert!(log.contains("node 3 is already a member of cluster quorate"), "{log}");
    assert!(log.contains("it cannot be used as node 3"), "{log}");
    fill(&cluster.client(), "later", 10).await;

    // Two wiped and the third away: they wait for it, and found nothing.
    assert_eq!(cluster.stop(2), Exit::Code(0));
    assert_eq!(cluster.stop(1), Exit::Code(0));
    cluster.wipe(2);
    cluster.wipe(3);
    cluster.start_node(2);
    cluster.start_node(3);
    for id in [2, 3] {
        // The third sentence comes four seconds after the first: many rounds of questions.
        until(&format!("node {id} keeps waiting"), TIMEOUT, || {
            let log = cluster.log(id);
            let fresh = log.rsplit("node: listening").next().unwrap_or_default();
            (fresh.matches("waiting to form the cluster: node 1").count() >= 3).then_some(())
        });
        let status = cluster.status(id).await.expect("it says how it stands");
        assert_eq!(status.phase(), NodePhase::Forming, "{}", status.detail);
        assert!(!status.ready && status.live && status.cluster_id.is_empty());
        assert!(status.detail.contains("node 1"), "{}", status.detail);
        let mut kv = cluster.kv(id);
        let refused = kv.put(PutRequest { key: "k".into(), ..PutRequest::default() }).await;
        assert!(refused.is_err(), "an unformed node takes no write");
    }

    // The one that remembers comes back: both are refused, and it has lost nothing.
    cluster.start_node(1);
    for id in [2, 3] {
        assert_eq!(cluster.wait_end_within(id, TIMEOUT), Exit::Code(10), "node {id}");
    }
    let mut kv = cluster.kv(1);
    for number in 0..30 {
        let request = GetRequest {
            key: format!("kept-{number}").into(),
            read: at(ReadLevel::Stale),
            ..GetRequest::default()
        };
        let got = until_async("node 1 has opened its storage", TIMEOUT, || {
            let (mut kv, request) = (kv.clone(), request.clone());
            async move { kv.get(request).await.ok() }
        });
        assert_eq!(got.await.into_inner().value, format!("kept {number}"));
    }
    let alone = PutRequest { key: "alone".into(), ..PutRequest::default() };
    let refused = kv.put(within(Duration::from_secs(4), alone)).await;
    assert!(refused.is_err(), "one of three takes no write");
}

#[tokio::test(flavor = "multi_thread")]
async fn formation_waits_for_the_last_node_and_for_equal_flags() {
    let mut cluster = Cluster::prepare(options(3, 2, &[]));
    cluster.start_node(1);
    cluster.start_node(2);
    let waiting = Instant::now();
    for id in [1, 2] {
        wait_logged(&cluster, id, "waiting to form the cluster: node 3: no answer from");
    }
    // Late by far more than any time-out between nodes.
    until_async("thirty seconds without node 3", TIMEOUT, || async {
        for id in [1, 2] {
            let status = cluster.status(id).await.expect("it listens while it waits");
            assert_eq!((status.phase(), status.ready), (NodePhase::Forming, false));
        }
        (waiting.elapsed() >= Duration::from_secs(30)).then_some(())
    })
    .await;

    // It comes, with other flags: everyone says who differs, and how.
    cluster.start_node_with(3, &["--shards", "4"]);
    for id in [1, 2] {
        wait_logged(&cluster, id, "node 3: it was started with other flags: it has --cluster-name");
    }
    wait_logged(&cluster, 3, "node 1: it was started with other flags");
    let log = cluster.log(1);
    assert!(
        log.contains("--shards 4 --replicas 3, this node has") && log.contains("--shards 2"),
        "{log}"
    );
    assert_eq!(cluster.status(1).await.expect("it answers").phase(), NodePhase::Forming);
    assert_eq!(cluster.stop(3), Exit::Code(0), "a node that waits can be stopped");

    cluster.start_node(3);
    cluster.wait_ready().await;
    fill(&cluster.client(), "formed", 10).await;

    // After formation the flags of the first start are history, but for the cluster's name.
    assert_eq!(cluster.stop(3), Exit::Code(0));
    cluster.start_node_with(3, &["--shards", "8", "--replicas", "5"]);
    wait_logged(&cluster, 3, "--shards 8 is ignored: the cluster was formed with 2");
    wait_logged(&cluster, 3, "--replicas 5 is ignored: the cluster was formed with 3");
    cluster.wait_ready().await;
    assert_eq!(cluster.stop(3), Exit::Code(0));
    cluster.start_node_with(3, &["--cluster-name", "another"]);
    assert_eq!(cluster.wait_end_within(3, TIMEOUT), Exit::Code(10));
    let log = cluster.log(3);
    assert!(log.contains("this directory belongs to cluster quorate, but this node was started"));
    cluster.start_node(3);
    cluster.wait_ready().await;
    check(&cluster.client(), "formed", 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_fails_no_write() {
    const CLIENTS: usize = 6;
    let mut cluster = Cluster::start(options(3, 4, &[])).await;
    let (stop, _) = tokio::sync::watch::channel(false);
    let acknowledged = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (client, stopped) = (cluster.client(), stop.subscribe());
            let acknowledged = acknowledged.clone();
            tokio::spawn(async move {
                let (mut last, mut failed, mut slowest) = (0u64, Vec::new(), Duration::ZERO);
                while !*stopped.borrow() {
                    let began = Instant::now();
                    let next = last + 1;
                    let key = format!("roll-{number}-{}", next % 16);
                    let put = client.put(key, next.to_string()).timeout(Duration::from_secs(20));
                    // Without a session a write is sent once: a lost answer would show.
                    let put = if number % 2 == 0 { put } else { put.without_session() };
                    match put.await {
                        Ok(put) => assert!(put.applied),
                        Err(error) => failed.push(error.to_string()),
                    }
                    last = next;
                    slowest = slowest.max(began.elapsed());
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                (last, failed, slowest)
            })
        })
        .collect();
    let more = |than: u64| {
        let acknowledged = acknowledged.clone();
        async move {
            until_async("writes go on", TIMEOUT, || async {
                (acknowledged.load(Ordering::Relaxed) >= than + 50).then_some(())
            })
            .await;
        }
    };
    more(0).await;
    for id in cluster.ids() {
        let began = Instant::now();
        assert_eq!(cluster.stop(id), Exit::Code(0), "node {id}");
        assert!(began.elapsed() < Duration::from_secs(20), "node {id}: {:?}", began.elapsed());
        more(acknowledged.load(Ordering::Relaxed)).await;
        cluster.start_node(id);
        cluster.wait_ready().await;
        more(acknowledged.load(Ordering::Relaxed)).await;
    }
    stop.send_replace(true);
    for (number, writer) in writers.into_iter().enumerate() {
        let (last, failed, slowest) = writer.await.expect("a writer does not panic");
        assert!(
            failed.is_empty(),
            "writer {number}: {} of {last} failed: {failed:?}",
            failed.len()
        );
        println!("writer {number}: {last} writes, the slowest took {slowest:?}");
        for at in last.saturating_sub(15).max(1)..=last {
            let got = cluster.client().get(format!("roll-{number}-{}", at % 16)).await;
            assert_eq!(got.expect("a read").value, at.to_string());
        }
    }
    cluster.wait_equal().await;
}

/// Stops all at once and kills all at once, and finds everything again; then refuses another store.
async fn everything_stays(store: &str, other: &str) {
    let mut cluster = Cluster::start(options(3, 2, &["--log-store", store])).await;
    fill(&cluster.client(), "first", 40).await;
    let big = "b".repeat(700_000);
    cluster.client().put("big", big.clone()).await.expect("a large value");

    for id in cluster.ids() {
        cluster.ask_to_stop(id);
    }
    let asked = Instant::now();
    for id in cluster.ids() {
        assert_eq!(cluster.wait_end_within(id, TIMEOUT), Exit::Code(0), "node {id}");
    }
    // Five seconds for leaderships that no node can take, and the checkpoints of a noisy machine.
    assert!(asked.elapsed() < Duration::from_secs(15), "the end took {:?}", asked.elapsed());
    for id in cluster.ids() {
        cluster.start_node(id);
    }
    cluster.wait_ready().await;
    check(&cluster.client(), "first", 40).await;
    fill(&cluster.client(), "second", 40).await;
    for id in cluster.ids() {
        cluster.kill(id);
    }
    for id in cluster.ids() {
        cluster.start_node(id);
    }
    cluster.wait_ready().await;
    let client = cluster.client();
    check(&client, "first", 40).await;
    check(&client, "second", 40).await;
    assert_eq!(client.get("big").await.expect("a read").value, big);
    cluster.wait_equal().await;

    assert_eq!(cluster.stop(2), Exit::Code(0));
    cluster.start_node_with(2, &["--log-store", other]);
    assert_eq!(cluster.wait_end_within(2, TIMEOUT), Exit::Code(2));
    let log = cluster.log(2);
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains(store) && last.contains("--log-store"), "{last}");
    cluster.start_node(2);
    cluster.wait_ready().await;
    check(&client, "second", 40).await;
    cluster.wait_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_stopped_or_killed_at_once_keep_everything_with_the_log_in_sled() {
    everything_stays("sled", "file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_stopped_or_killed_at_once_keep_everything_with_the_log_in_a_file() {
    everything_stays("file", "sled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_alone_is_a_cluster_of_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("d1");
    let ports = lease(1);
    let address = ports[0].address();
    let start = || {
        let mut kvnode = Command::new(binaries::path("kvnode"));
        kvnode.arg("start").arg("--data-dir").arg(&data).args(["--listen", &address]);
        kvnode.stdin(Stdio::null()).stderr(Stdio::null());
        Running(kvnode.spawn().expect("kvnode starts"))
    };
    let client =
        || Client::new(ClientConfig::new([&address]).expect("an endpoint").timeout(TIMEOUT));
    let mut process = start();
    let put = client().put("alone", "and well").await.expect("one node is a quorum of one");
    assert!(put.applied);
    assert_eq!(process.stop(), Some(0));
    let mut process = start();
    assert_eq!(client().get("alone").await.expect("a read").value, "and well");
    let unasked: Vec<_> = entries(&data);
    for name in ["IDENTITY", "LOCK", "README", "secret", "sled"] {
        assert!(unasked.iter().any(|entry| entry == name), "{unasked:?}");
    }
    assert_eq!(process.stop(), Some(0));
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("it is a directory").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// A process that does not outlive its test.
struct Running(std::process::Child);

impl Running {
    fn stop(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_raw(self.0.id() as i32).expect("a process id");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
        self.0.wait().expect("a child").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already where the test did not fail.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads and writes one key of each shard through every node, at every level.
async fn every_node_serves(cluster: &Cluster, shards: u32) {
    let mut served: BTreeMap<u64, u32> = BTreeMap::new();
    for shard in 1..=u64::from(shards) {
        let key = key_in(shard, shards, "spread");
        for id in cluster.ids().into_iter().filter(|id| cluster.runs(*id)) {
            let value = format!("from {id}");
            let request = PutRequest {
                key: key.clone().into(),
                value: value.clone().into(),
                ..PutRequest::default()
            };
            let put = cluster.kv(id).put(within(CALL, request)).await;
            let put = put.unwrap_or_else(|status| panic!("node {id}, shard {shard}: {status}"));
            let token = put.into_inner().token;
            for level in [ReadLevel::Linearizable, ReadLevel::Session, ReadLevel::Stale] {
                let mut read = at(level).expect("options");
                read.token = token.clone().filter(|_| level == ReadLevel::Session);
                let request = GetRequest {
                    key: key.clone().into(),
                    read: Some(read),
                    ..GetRequest::default()
                };
                let got = cluster.kv(id).get(within(CALL, request)).await;
                let got =
                    got.unwrap_or_else(|status| panic!("node {id}, {shard}, {level:?}: {status}"));
                let got = got.into_inner();
                let receipt = got.receipt.expect("a receipt");
                assert_eq!((receipt.level(), receipt.shard), (level, shard));
                if level != ReadLevel::Stale {
                    assert_eq!(got.value, value, "node {id}, shard {shard}, {level:?}");
                }
                if receipt.node_id != id {
                    *served.entry(id).or_default() += 1;
                }
            }
        }
    }
    println!("answers that came from another node: {served:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn five_nodes_with_five_replicas_lose_two_and_go_on() {
    let mut cluster = Cluster::start(options(5, 2, &["--replicas", "5"])).await;
    fill(&cluster.client(), "five", 20).await;
    let first = cluster.leader(1).await;
    let second = cluster.ids().into_iter().find(|id| *id != first).expect("there are others");
    for id in [first, second] {
        cluster.kill(id);
    }
    cluster.wait_ready().await;
    check(&cluster.client(), "five", 20).await;
    fill(&cluster.client(), "three", 20).await;
    every_node_serves(&cluster, 2).await;
    for id in [first, second] {
        cluster.start_node(id);
    }
    cluster.wait_ready().await;
    cluster.wait_equal().await;
    check(&cluster.client(), "three", 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_seven_nodes_two_are_outside_group_0_and_serve_all_the_same() {
    const SHARDS: u32 = 4;
    let mut cluster = Cluster::start(options(7, SHARDS, &[])).await;
    let statuses = cluster.statuses().await;
    let epoch = statuses[&1].map_epoch;
    let mut outside = Vec::new();
    for (id, status) in &statuses {
        assert!(status.map_epoch == epoch && epoch > 0, "node {id} has map {}", status.map_epoch);
        if !status.replicas.iter().any(|replica| replica.shard == 0) {
            outside.push(*id);
        }
    }
    assert_eq!(outside.len(), 2, "group 0 has five voters");
    let held: usize =
        statuses.values().flat_map(|s| &s.replicas).filter(|replica| replica.shard != 0).count();
    assert_eq!(held, 3 * SHARDS as usize, "three replicas of each shard");
    every_node_serves(&cluster, SHARDS).await;

    // A node outside of group 0 keeps the map over a restart.
    let id = outside[0];
    assert_eq!(cluster.stop(id), Exit::Code(0));
    cluster.start_node(id);
    cluster.wait_ready().await;
    let status = cluster.status(id).await.expect("it answers");
    assert!(status.map_epoch >= epoch);

    // It learns a newer one too: here a member comes back with another address for clients.
    let address = cluster.endpoint(1).replace("127.0.0.1", "localhost");
    assert_eq!(cluster.stop(1), Exit::Code(0));
    cluster.start_node_with(1, &["--advertise-client", &address]);
    cluster.wait_ready().await;
    for id in outside {
        until_async(&format!("node {id}, outside of group 0, learns it"), TIMEOUT, || async {
            let mut client = ClusterClient::new(cluster.channel(id));
            let map = client.get_map(GetMapRequest::default()).await.ok()?.into_inner().map?;
            map.nodes
                .iter()
                .any(|node| node.id == 1 && node.client_address == address)
                .then_some(())
        })
        .await;
    }
    every_node_serves(&cluster, SHARDS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_storage_is_gone_stays_up_and_says_why() {
    let mut cluster = Cluster::start(options(3, 2, &[])).await;
    fill(&cluster.client(), "stay", 20).await;
    cluster.wait_equal().await;
    assert_eq!(cluster.stop(2), Exit::Code(0));
    let (sled, aside) = (cluster.node(2).data.join("sled"), cluster.directory().join("moved"));
    fs::rename(&sled, &aside).expect("the storage is moved away");
    cluster.start_node(2);
    let status = until_async("node 2 knows that its storage failed", TIMEOUT, || async {
        let status = cluster.status(2).await?;
        (status.phase() == NodePhase::StorageFailed).then_some(status)
    })
    .await;
    assert!(!status.ready && status.live, "{status:?}");
    assert!(status.detail.contains("sled is missing"), "{}", status.detail);
    assert_eq!((cluster.page(2, "/livez").0, cluster.page(2, "/readyz").0), (200, 503));
    let words = cluster.kvctl(&["status"]);
    let text = String::from_utf8_lossy(&words.stdout).into_owned();
    assert!(text.contains("sled is missing"), "kvctl status shows why: {text}");
    assert!(!sled.join("db").exists(), "nothing was made anew");
    let get = GetRequest { key: "stay-1".into(), ..GetRequest::default() };
    cluster.kv(2).get(get).await.expect_err("it serves nothing");
    // The others do not need it, and a client that tries it first finds them.
    fill(&cluster.client_of(&[2, 1, 3]), "go-on", 10).await;
    assert_eq!(cluster.stop(2), Exit::Code(0));

    fs::rename(&aside, &sled).expect("what was moved is put back");
    cluster.start_node(2);
    cluster.wait_ready().await;
    cluster.wait_equal().await;
    check(&cluster.client(), "stay", 20).await;
    check(&cluster.client(), "go-on", 10).await;
}
