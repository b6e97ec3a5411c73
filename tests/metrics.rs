//! The metrics: after a run with a bit of everything, each one that is registered has moved.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use quorate_proto::raft::v1::AskRequest;
use quorate_proto::raft::v1::peer_client::PeerClient;
use quorate_proto::v1::kv_client::KvClient;
use quorate_proto::v1::{
    BatchRequest, CancelRequest, CompareAndSetRequest, DeleteRequest, GetRequest, IncrementRequest,
    MultiGetRequest, OpenSessionRequest, PutRequest, PutResponse, Reason, ScanRequest,
};
use quorate_tests::binaries::repository;
use quorate_tests::cluster::TIMEOUT;
use quorate_tests::raw::{failure, key_in};
use quorate_tests::{Cluster, ClusterOptions, until_async};
use tonic::Request;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

/// Metrics that do not move, and why.
const CONSTANT: [(&str, &str); 4] = [
    ("quorate_build", "the version of the program"),
    ("quorate_disk_level", "the disk has room; the suite `small_disk` looks at others"),
    ("quorate_replicas_damaged", "no replica is damaged here; the suite `damage` looks at it"),
    ("quorate_term_jumps", "no peer that knows the secret does it; a test of the engine does"),
];

/// More scans than the share of `--memory` for answers has room for, if each waits with a message.
const SCANS: usize = 20;

/// More connections without a request than a listener keeps, which is 256, by more than a burst of
/// the log, which is 50.
const SILENT: usize = 330;

const SHARDS: u32 = 2;

/// The names of the metrics that the code registers. A family without a series is not on a node's
/// page, so the page cannot say what is missing from it.
fn registered() -> BTreeSet<String> {
    let read = |file: &str| fs::read_to_string(repository().join(file)).expect("a source file");
    let mut names = BTreeSet::new();
    for file in [
        "crates/engine/src/metrics.rs",
        "crates/service/src/metrics.rs",
        "crates/service/src/metrics/requests.rs",
        "crates/node/src/metrics.rs",
    ] {
        let text = read(file);
        for line in text.lines() {
            // A row of `metrics!`.
            let row = line.trim().strip_suffix(',').and_then(|row| row.split_once(": "));
            if let Some((name, "counter" | "gauge" | "latency" | "count" | "bytes")) = row {
                names.insert(format!("quorate_{name}"));
            }
        }
        for call in ["registered(", ".register("] {
            for (at, _) in text.match_indices(call) {
                let Some((before, rest)) = text[at + call.len()..].split_once('"') else {
                    continue;
                };
                let is_argument = |c: char| c.is_lowercase() || c.is_whitespace() || c == ',';
                if let Some((name, _)) =
                    rest.split_once('"').filter(|_| before.chars().all(is_argument))
                {
                    names.insert(format!("quorate_{name}"));
                }
            }
        }
    }
    let process = read("crates/metrics/src/process.rs");
    let literals = process.split('"').skip(1).step_by(2);
    names.extend(literals.filter(|name| name.starts_with("process_")).map(str::to_owned));
    names
}

/// The methods of the client API, as the code lists them.
fn methods() -> Vec<String> {
    let file = repository().join("crates/service/src/metrics/requests.rs");
    let text = fs::read_to_string(file).expect("a source file");
    let (_, rows) = text.split_once("\nmethods! {").expect("the table of methods");
    let (rows, _) = rows.split_once('}').expect("its end");
    rows.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

/// What the pages of all nodes have shown so far.
struct Seen {
    registered: BTreeSet<String>,
    /// Everything is registered at zero, so what was seen with another value has moved.
    moved: BTreeSet<String>,
    /// Methods of which a request was counted.
    counted: BTreeSet<String>,
}

impl Seen {
    fn look(&mut self, cluster: &Cluster) {
        for id in cluster.ids().into_iter().filter(|id| cluster.runs(*id)) {
            let (code, page) = cluster.page(id, "/metrics");
            assert_eq!(code, 200, "{page}");
            for line in page.lines().filter(|line| !line.starts_with('#')) {
                self.note(line);
            }
        }
    }

    fn note(&mut self, line: &str) {
        let (series, value) = line.rsplit_once(' ').expect("a series and its value");
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let endings = ["", "_total", "_sum", "_count", "_bucket", "_info"];
        let families = endings.iter().filter_map(|ending| name.strip_suffix(ending));
        let family = families.into_iter().find(|family| self.registered.contains(*family));
        let family = family.unwrap_or_else(|| panic!("{name} is registered where no test looks"));
        if value.parse::<f64>().expect("a number") == 0.0 {
            return;
        }
        self.moved.insert(family.to_owned());
        if let Some((_, rest)) =
            labels.split_once("method=\"").filter(|_| name.ends_with("requests_total"))
        {
            self.counted.extend(rest.split_once('"').map(|(method, _)| method.to_owned()));
        }
    }

    /// The metrics that have not moved, and the methods that were not counted.
    fn still(&self) -> Vec<String> {
        let is_constant = |name: &&String| CONSTANT.iter().any(|(constant, _)| constant == name);
        let metrics = self.registered.difference(&self.moved).filter(|name| !is_constant(name));
        let methods = methods().into_iter().filter(|method| !self.counted.contains(method));
        metrics.cloned().chain(methods).collect()
    }

    /// Looks until these have moved.
    async fn wait(&mut self, cluster: &Cluster, names: Option<&[&str]>) {
        let began = Instant::now();
        loop {
            self.look(cluster);
            let still = self.still();
            let waited_for =
                |name: &&String| names.is_none_or(|names| names.contains(&name.as_str()));
            let still: Vec<&String> = still.iter().filter(waited_for).collect();
            if still.is_empty() {
                return;
            }
            assert!(began.elapsed() < TIMEOUT * 2, "these never moved: {still:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Calls each method once. What becomes of the call does not matter: each is counted.
async fn call_every_method(cluster: &Cluster, kv: &mut KvClient<Channel>) {
    let key = || bytes::Bytes::from("method");
    let put = PutRequest { key: key(), value: "1".into(), ..PutRequest::default() };
    kv.put(put).await.expect("a put");
    kv.get(GetRequest { key: key(), ..GetRequest::default() }).await.expect("a get");
    let many = MultiGetRequest { keys: vec![key(), key()], ..MultiGetRequest::default() };
    let mut answers = kv.multi_get(many).await.expect("a read of many keys").into_inner();
    while answers.message().await.expect("its results").is_some() {}
    let _ = kv.delete(DeleteRequest { key: key(), ..DeleteRequest::default() }).await;
    let _ = kv.compare_and_set(CompareAndSetRequest::default()).await;
    let _ = kv.increment(IncrementRequest { key: key(), ..IncrementRequest::default() }).await;
    let _ = kv.batch(BatchRequest::default()).await;
    let scan = kv.scan(ScanRequest::default()).await.expect("a scan");
    let mut answers = scan.into_inner();
    while answers.message().await.expect("an answer of the scan").is_some() {}
    let _ = kv.pipeline(futures::stream::empty()).await;
    let _ = kv.open_session(OpenSessionRequest::default()).await;
    let _ = kv.cancel(CancelRequest::default()).await;
    let client = cluster.client();
    client.info().await.expect("the facts of a node");
    client.map().await.expect("the map");
    let _ = client.transfer_leader(1, 2).await;
    cluster.status(1).await.expect("the status");
    client.put("session", "1").await.expect("a write of a session");
}

/// Writes large values into shard 1, until a follower that is away needs a snapshot.
async fn write_until_node_3_needs_a_snapshot(cluster: &Cluster, had: u64) {
    let client = cluster.client();
    until_async("the others drop what node 3 lacks from their logs", TIMEOUT * 2, || {
        let client = client.clone();
        async move {
            let puts = (0..16).map(|number| {
                let key = key_in(1, SHARDS, &format!("away{number}"));
                let client = client.clone();
                async move { client.put(key, "x".repeat(60_000)).await.expect("two of three") }
            });
            futures::future::join_all(puts).await;
            for id in [1, 2] {
                let status = cluster.status(id).await?;
                let replica = status.replicas.into_iter().find(|replica| replica.shard == 1)?;
                if replica.log_base <= had {
                    return None;
                }
            }
            Some(())
        }
    })
    .await;
}

/// Begins scans of megabytes that are not read, which have no room together, and a request that
/// never ends; until the node has given all of them up.
async fn stand_still(cluster: &Cluster, seen: &mut Seen) {
    let client = cluster.client();
    for number in 0..12 {
        let key = key_in(1, SHARDS, &format!("large{number}"));
        client.put(key, "x".repeat(700_000)).await.expect("a large value");
    }
    let leader = cluster.leader(1).await;
    let scans = (0..SCANS).map(|_| {
        let mut kv = cluster.kv(leader);
        async move { kv.scan(ScanRequest::default()).await.expect("a scan begins") }
    });
    let unread = futures::future::join_all(scans).await;
    let mut half = Grpc::new(cluster.channel(leader));
    half.ready().await.expect("a connection");
    let codec = ProstCodec::<PutRequest, PutResponse>::default();
    let path = PathAndQuery::from_static("/quorate.v1.Kv/Put");
    let begun = Request::new(futures::stream::pending());
    let half = half.client_streaming(begun, path, codec);
    let given_up = ["quorate_bodies_refused", "quorate_requests_overdue", "quorate_answers_unread"];
    let (half, ()) = tokio::join!(half, seen.wait(cluster, Some(&given_up)));
    let failure = failure(&half.expect_err("it never came"));
    assert_eq!(failure.reason(), Reason::Overloaded, "{failure:?}");
    drop(unread);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_registered_metric_moves() {
    // Little memory makes short logs, and an idle client is soon asked to leave.
    let arguments = ["--memory", "128MiB", "--max-connection-idle", "5s"].map(str::to_owned);
    let options =
        ClusterOptions { shards: SHARDS, arguments: arguments.into(), ..ClusterOptions::default() };
    let mut cluster = Cluster::start(options).await;
    let (moved, counted) = (BTreeSet::new(), BTreeSet::new());
    let mut seen = Seen { registered: registered(), moved, counted };
    // They never ask anything, and are closed for it: the first of them because there are too many,
    // with more lines in the log than one place of the code may write at once.
    let connect = |_| TcpStream::connect(cluster.endpoint(1)).expect("a connection");
    let _silent: Vec<TcpStream> = (0..SILENT).map(connect).collect();
    let mut idle = cluster.kv(1);
    call_every_method(&cluster, &mut idle).await;
    // Not a node: it has no secret.
    let stranger = AskRequest { nonce: vec![1; 32].into(), ..AskRequest::default() };
    let place = format!("http://{}", cluster.peer_address(1));
    let mut peer = PeerClient::connect(place).await.expect("the listener of the peers");
    let asked =
        peer.ask(futures::stream::iter([stranger])).await.expect("a challenge").into_inner();
    drop(asked);
    // A node that does not lead a shard passes its calls on.
    for id in cluster.ids() {
        let put = PutRequest { key: "forward".into(), ..PutRequest::default() };
        cluster.kv(id).put(put).await.expect("a put at any node");
    }
    seen.look(&cluster);

    cluster.wait_equal().await;
    let status = cluster.status(3).await.expect("node 3 answers");
    let had = status.replicas.iter().find(|replica| replica.shard == 1).expect("its replica").last;
    cluster.kill(3);
    write_until_node_3_needs_a_snapshot(&cluster, had).await;
    seen.wait(&cluster, Some(&["quorate_replication_lag_entries"])).await;
    stand_still(&cluster, &mut seen).await;
    cluster.kill(2);
    seen.wait(&cluster, Some(&["quorate_groups_without_leader"])).await;
    cluster.start_node(2);
    cluster.start_node(3);
    cluster.wait_ready().await;
    cluster.wait_equal().await;

    // Under load: the gauges of what waits are set once a second, and mostly nothing waits then.
    let writers: Vec<_> = (0..64)
        .map(|writer| {
            let client = cluster.client();
            tokio::spawn(async move {
                for number in 0.. {
                    let _ = client
                        .put(format!("load-{writer}-{}", number % 8), "x".repeat(9_000))
                        .await;
                }
            })
        })
        .collect();
    seen.wait(&cluster, None).await;
    writers.iter().for_each(tokio::task::JoinHandle::abort);
    let listed: BTreeMap<_, _> = CONSTANT.into();
    let unknown = listed.keys().find(|name| !seen.registered.contains(**name));
    assert_eq!(unknown, None, "the list of constant metrics names one that does not exist");
}
