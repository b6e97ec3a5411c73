//! Reads and refused writes over the services of a node alone, without listeners and peers.

mod calls;
mod multi_get;
mod pages;
mod pipeline;
mod pressure;
mod refusals;
mod sessions;
mod transfers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use quorate_config::{Environment, Key, Layers, resolve};
use quorate_engine::MapCell;
use quorate_engine::clock::Clock;
use quorate_engine::testing::TEST_LIMITS;
use quorate_engine::{BARRIER_MAX, Engine, EngineMetrics, FatalHook, Outbox, Parts};
use quorate_engine::{create_replicas, replica_init};
use quorate_machine::{Map, SessionKey, SessionMint, voters_of};
use quorate_placement::{Founding, first_map};
use quorate_proto::v1::kv_server::{Kv, KvServer};
use quorate_proto::v1::{
    Failure, GetRequest, MapNode, NodePhase, OpenSessionRequest, PutRequest, Reason, Receipt,
    ScanRequest, ScanResponse, ScanRow, SessionToken, WriteSession,
};
use quorate_raft::{GroupId, NodeId};
use quorate_storage::{Database, DatabaseOptions, DeltaBudget, HashRange, LogBackend, RecordLog};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Request;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;

use super::admission::Admissions;
use super::call::Calls;
use super::context::{Context, HOPS_MAX};
use super::forward::Forwarder;
use super::kept::Transfers;
use super::kv::KvService;
use super::route;
use super::scan::{self, Plan, Source, There, answers};
use crate::draft::RequestRules;
use crate::metrics::ServiceMetrics;
use crate::shared::{AnswerBudget, Shared, SharedCell};

const CLUSTER: [u8; 16] = [7; 16];
const SESSION_KEY: SessionKey = SessionKey::from_bytes([7; 32]);
/// Threads of the runtime that may wait for the disk, and how many of them scans may have.
const READER_THREADS: usize = 4;
const SCAN_THREADS: usize = 2;

/// The bytes of answers that are held, and their bound.
struct Answers {
    used: AtomicU64,
    limit: AtomicU64,
}

impl Default for Answers {
    fn default() -> Self {
        Self { used: AtomicU64::new(0), limit: AtomicU64::new(u64::MAX) }
    }
}

impl AnswerBudget for Answers {
    fn take(&self, bytes: u64) -> bool {
        let used = self.used.fetch_add(bytes, Ordering::SeqCst) + bytes;
        let fits = used <= self.limit.load(Ordering::SeqCst);
        if !fits {
            self.give_back(bytes);
        }
        fits
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::SeqCst);
    }
}

/// Peers that receive nothing.
struct NoPeers;

impl Outbox for NoPeers {
    fn send_all(&self, batch: &mut Vec<(NodeId, quorate_raft::Envelope)>) {
        batch.clear();
    }
}

/// Node 1 of a map holds the one replica of its one shard; the others pass everything on to it.
struct Node {
    shared: Arc<Shared>,
    kv: KvService,
    orders: mpsc::Receiver<quorate_engine::SnapshotOrder>,
    dir: tempfile::TempDir,
}

impl Node {
    fn start(id: u64, address_of_1: &str) -> Self {
        let holder = MapNode { id: 1, peer_address: address_of_1.to_owned(), ..MapNode::default() };
        Self::with(id, vec![holder], |_| {})
    }

    /// A node of a map in which each of `holders` has a replica of the shard, with another engine.
    fn with(id: u64, holders: Vec<MapNode>, change: impl FnOnce(&mut Parts)) -> Self {
        Self::of_shards(id, holders, 1, change)
    }

    /// The same in a map with this number of shards.
    fn of_shards(
        id: u64,
        holders: Vec<MapNode>,
        shards: u64,
        change: impl FnOnce(&mut Parts),
    ) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let flags = BTreeMap::from([(Key::DataDir, dir.path().display().to_string())]);
        let nothing = Environment::from_pairs([]);
        let layers = Layers::new(flags, &nothing, None).expect("the layers");
        let mut config = resolve(&layers, 256 << 20).expect("a configuration").config;
        config.node_id = NodeId(id);
        let sled =
            Database::open(&dir.path().join("sled"), DatabaseOptions::default()).expect("sled");
        let (log, _) = RecordLog::open(LogBackend::Sled, &sled, dir.path()).expect("a log");
        let budget = Arc::new(DeltaBudget::new(config.memory.delta));
        let (map, metrics) = (MapCell::default(), Arc::new(ServiceMetrics::unregistered()));
        let (snapshots, orders) = mpsc::channel(1);
        let mut parts = Parts {
            node: config.node_id,
            seed: 1,
            raft: quorate_raft::Config::default(),
            limits: TEST_LIMITS,
            log,
            budget: budget.clone(),
            outbox: Arc::new(NoPeers),
            map: map.clone(),
            snapshots,
            metrics: Arc::new(EngineMetrics::unregistered()),
            fatal: FatalHook(|error| panic!("the storage failed: {error}")),
            barrier_max: BARRIER_MAX,
        };
        change(&mut parts);
        let engine = Engine::start(parts).expect("an engine");
        map.offer(Map::new(first_map(&Founding {
            cluster_id: CLUSTER,
            cluster_name: "quorate".into(),
            shards,
            replicas: holders.len() as u32,
            nodes: holders,
        })));
        let known = map.get().expect("a map");
        let replicas = known.shards().iter().filter_map(|shard| {
            let range = HashRange { first: shard.first, last: shard.last };
            let replicas = voters_of(&shard.replicas);
            replica_init(GroupId(shard.id), &replicas, NodeId(id), range, 1)
        });
        create_replicas(&sled, &budget, &engine, NodeId(id), replicas.collect())
            .expect("its replicas");
        let cell = SharedCell::default();
        let shared = Arc::new(Shared {
            node: config.node_id,
            cluster_id: CLUSTER.to_vec().into(),
            engine,
            map,
            forward: Forwarder::new(Box::new(|_, _| true)),
            read_threads: Arc::new(Semaphore::new(16)),
            scan_threads: Arc::new(Semaphore::new(SCAN_THREADS)),
            sessions: SessionMint::new(id),
            budget,
            rules: RequestRules {
                value_bytes_max: config.max_value_size.0,
                session_key: SESSION_KEY,
            },
            metrics,
            admission: Admissions::new(config.memory.requests_held()),
            answers: Arc::new(Answers::default()),
            life: cell.life.clone(),
            transfers: Transfers::default(),
            disk: Arc::default(),
            damaged: Mutex::default(),
            clock: Clock,
            clocks: Arc::default(),
            config,
        });
        shared.life.enter(NodePhase::Ready, "");
        cell.set(shared.clone());
        let kv = KvService::new(Calls::new(cell, shared.metrics.clone()));
        Self { shared, kv, orders, dir }
    }

    async fn put(&self, key: &str, value: Vec<u8>) {
        let put =
            PutRequest { key: key.to_owned().into(), value: value.into(), ..PutRequest::default() };
        self.kv.put(Request::new(put)).await.expect("it is written");
    }

    async fn scan(&self, timeout: &str, request: ScanRequest) -> Messages {
        let scan = scan::scan(&self.shared, &context(timeout), request, None).await;
        Box::pin(scan.expect("it begins"))
    }

    fn stop(self) {
        self.shared.engine.stop();
        drop((self.orders, self.dir));
    }
}

/// Node 1, which holds the shard, with its server, and node 2, which reaches it there.
async fn served_and_asked() -> (Node, Node, JoinHandle<Result<(), tonic::transport::Error>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    let (holder, asked) = (Node::start(1, &address), Node::start(2, &address));
    let service = KvServer::new(holder.kv.clone());
    let incoming = TcpListenerStream::new(listener);
    let server = Server::builder().add_service(service).serve_with_incoming(incoming);
    (holder, asked, tokio::spawn(server))
}

/// The messages of a scan, before they are the answers of a call.
type Messages = BoxStream<'static, Result<ScanResponse, Failure>>;

/// The context of a call with this time-out, in its wire form.
fn context(timeout: &str) -> Context {
    let mut metadata = MetadataMap::new();
    metadata.insert("grpc-timeout", timeout.parse().expect("ascii"));
    Context::of(&metadata)
}

/// Runs a test on a node by itself.
fn run<F: Future<Output = ()>>(test: impl FnOnce(Node) -> F) {
    block_on(async { test(Node::start(1, "")).await });
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(READER_THREADS)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(test);
    runtime.shutdown_background();
}

/// The rows of a page and its last message.
async fn page(
    mut scan: impl Stream<Item = Result<ScanResponse, impl std::fmt::Debug>> + Unpin,
) -> (Vec<Bytes>, ScanResponse) {
    let (mut keys, mut last) = (Vec::new(), None);
    while let Some(message) = scan.next().await {
        let message = message.expect("a message");
        assert!(last.is_none(), "a message after the last one");
        keys.extend(message.rows.iter().map(|row| row.key.clone()));
        if message.token.is_some() {
            assert!(!message.receipts.is_empty());
            last = Some(message);
        }
    }
    (keys, last.expect("a last message"))
}

#[test]
fn scans_that_nobody_reads_hold_no_thread_and_end_their_page_in_time() {
    run(|node| async {
        let keys: Vec<String> = (0..8).map(|n| format!("key{n}")).collect();
        for key in &keys {
            node.put(key, vec![1; 700_000]).await;
        }
        let mut unread = Vec::new();
        for _ in 0..2 * READER_THREADS {
            unread.push(node.scan("2S", ScanRequest::default()).await);
        }
        let begun = std::time::Instant::now();
        // All of them have put together what waits to be read, and only then is a thread asked for.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let thread = tokio::task::spawn_blocking(|| {});
        let free = tokio::time::timeout(Duration::from_secs(1), thread).await;
        free.expect("a thread is free").expect("it runs");
        let whole = page(node.scan("2S", ScanRequest::default()).await).await;
        assert_eq!((whole.0.len(), whole.1.next_page_token.len()), (keys.len(), 0));
        // Past their time the pins are gone, though no row was read.
        tokio::time::sleep(Duration::from_secs(2).saturating_sub(begun.elapsed())).await;
        while node.shared.life.calls() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(4), "a scan is still under way");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for scan in unread {
            let (mut found, last) = page(scan).await;
            assert!(!found.is_empty() && found.len() < keys.len(), "{} rows", found.len());
            assert_eq!(last.count, found.len() as u64);
            let rest =
                ScanRequest { page_token: last.next_page_token.clone(), ..ScanRequest::default() };
            let (more, end) = page(node.scan("2S", rest).await).await;
            assert!(end.next_page_token.is_empty());
            found.extend(more);
            assert_eq!(found, keys);
        }
        node.stop();
    });
}

/// A message of another node with these keys.
fn message(keys: &[&'static str]) -> ScanResponse {
    let row = |key: &&'static str| ScanRow {
        key: Bytes::from_static(key.as_bytes()),
        ..ScanRow::default()
    };
    ScanResponse { rows: keys.iter().map(row).collect(), ..ScanResponse::default() }
}

/// The same as the last message of its page.
fn last_message(shard: u64, keys: &[&'static str], next_page_token: &'static [u8]) -> ScanResponse {
    ScanResponse {
        next_page_token: Bytes::from_static(next_page_token),
        receipts: vec![Receipt { shard, ..Receipt::default() }],
        token: Some(SessionToken::default()),
        ..message(keys)
    }
}

fn there(messages: Vec<ScanResponse>) -> Source {
    Source::There(There::new(Box::pin(stream::iter(messages.into_iter().map(Ok))), None))
}

#[test]
fn a_page_ends_where_another_node_ended_its_own() {
    run(|node| async {
        for (count_only, rows) in [(false, 3), (true, 0)] {
            let request = ScanRequest { count_only, ..ScanRequest::default() };
            let plan = Plan::of(&node.shared, &request).expect("a plan");
            let sources = vec![
                there(vec![message(&["a"]), last_message(1, &["c"], b"more")]),
                there(vec![last_message(2, &["b", "d", "e"], b"")]),
            ];
            let scan = answers(&node.shared, &context("2S"), plan, sources, false);
            let (keys, last) = page(Box::pin(scan)).await;
            // Whether the first node has a row before "d" is not known.
            assert_eq!(keys, ["a", "b", "c"][..rows]);
            assert_eq!(last.count, 3);
            assert!(!last.next_page_token.is_empty(), "the other node has more");
            assert_eq!(last.receipts.len(), 2);
        }
        node.stop();
    });
}

#[test]
fn a_node_that_falls_silent_ends_the_page_or_fails_the_scan() {
    run(|node| async {
        let silent = |messages: Vec<ScanResponse>| {
            let rows = stream::iter(messages.into_iter().map(Ok)).chain(stream::pending());
            vec![Source::There(There::new(Box::pin(rows), None))]
        };
        let begin = |sources| {
            let plan = Plan::of(&node.shared, &ScanRequest::default()).expect("a plan");
            Box::pin(answers(&node.shared, &context("300m"), plan, sources, false))
        };
        let with_receipts = ScanResponse {
            receipts: vec![Receipt { shard: 1, ..Receipt::default() }],
            ..message(&["a", "b"])
        };
        let (keys, last) = page(begin(silent(vec![with_receipts]))).await;
        assert_eq!((keys.len(), last.next_page_token.is_empty()), (2, false));
        for (sources, reason) in
            [(silent(vec![]), Reason::ReadTimeout), (vec![there(vec![])], Reason::NoLeader)]
        {
            let failure = begin(sources).next().await.expect("an answer").expect_err("a failure");
            assert_eq!(failure.reason(), reason);
        }
        // The node serves as before.
        let get = GetRequest { key: Bytes::from_static(b"none"), ..GetRequest::default() };
        assert!(!node.kv.get(Request::new(get)).await.expect("an answer").get_ref().found);
        node.stop();
    });
}

#[test]
fn a_scan_that_gets_no_thread_in_time_is_refused() {
    run(|node| async {
        node.put("key", vec![1]).await;
        let threads = node.shared.scan_threads.clone();
        let busy = threads.acquire_many_owned(SCAN_THREADS as u32).await.expect("all of them");
        let mut refused = node.scan("200m", ScanRequest::default()).await;
        let failure = refused.next().await.expect("an answer").expect_err("no thread was free");
        assert_eq!(failure.reason(), Reason::Overloaded);
        let waiting = node.scan("2S", ScanRequest::default()).await;
        drop(busy);
        assert_eq!(page(waiting).await.0, ["key"]);
        node.stop();
    });
}

#[test]
fn a_scan_through_another_node_is_the_same_scan() {
    block_on(async {
        let (holder, asked, server) = served_and_asked().await;
        let keys: Vec<String> = (0..8).map(|n| format!("key{n}")).collect();
        for key in &keys {
            holder.put(key, vec![1; 700_000]).await;
        }
        let all = ScanRequest::default;
        let (found, last) = page(asked.scan("5S", all()).await).await;
        assert_eq!((found.len(), last.count, last.next_page_token.len()), (8, 8, 0));
        assert_eq!((last.receipts.len(), last.receipts[0].node_id), (1, 1));
        let (found, last) = page(asked.scan("5S", ScanRequest { limit: 3, ..all() }).await).await;
        assert_eq!(
            (&found[..], last.next_page_token.len()),
            (&[Bytes::from("key0"), Bytes::from("key1"), Bytes::from("key2")][..], 0)
        );
        let count = ScanRequest { count_only: true, reverse: true, ..all() };
        assert_eq!(page(asked.scan("5S", count).await).await.1.count, 8);

        // It is not read until its time is up: the page ends, and the next one continues after it.
        let unread = asked.scan("1S", all()).await;
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        let (mut found, last) = page(unread).await;
        assert!(!found.is_empty() && found.len() < keys.len(), "{} rows", found.len());
        let rest = ScanRequest { page_token: last.next_page_token, ..all() };
        let (more, end) = page(asked.scan("5S", rest).await).await;
        assert!(end.next_page_token.is_empty());
        found.extend(more);
        assert_eq!(found, keys);

        let mut too_far = context("5S");
        too_far.hops = HOPS_MAX;
        let refused = scan::scan(&asked.shared, &too_far, all(), None).await.err();
        assert_eq!(refused.expect("it goes no further").reason(), Reason::NoLeader);
        server.abort();
        asked.stop();
        holder.stop();
    });
}

/// A node that accepts connections and answers nothing, as one that is stopped.
async fn silent_node() -> (tokio::net::TcpListener, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    (listener, address)
}

#[test]
fn a_node_without_a_replica_goes_round_a_node_that_does_not_answer() {
    block_on(async {
        let (holder, _, server) = served_and_asked().await;
        let address = holder.shared.map().expect("a map").node(NodeId(1)).cloned();
        let address = address.expect("node 1").peer_address;
        let (_listener, silent) = silent_node().await;
        // Whichever of the two ids the map prefers belongs to the silent node.
        let holders = |first: &str, second: &str| {
            let of = |id, address: &str| MapNode {
                id,
                peer_address: address.to_owned(),
                ..MapNode::default()
            };
            vec![of(3, first), of(4, second)]
        };
        let mut asked = Node::with(9, holders(&silent, &address), |_| {});
        let owner = asked.shared.map().expect("a map").shards()[0].clone();
        let mut with_learner = owner.clone();
        with_learner.replicas[0].role = 1;
        let order = route::other_replicas(&asked.shared, &with_learner);
        let nodes = owner.replicas.iter().map(|replica| NodeId(replica.node_id));
        assert_eq!(order, nodes.rev().collect::<Vec<_>>(), "a learner is asked after the voter");
        if route::other_replicas(&asked.shared, &owner)[0] == NodeId(4) {
            asked.stop();
            asked = Node::with(9, holders(&address, &silent), |_| {});
        }
        let opened = asked.kv.open_session(Request::new(OpenSessionRequest::default())).await;
        let id = opened.expect("a session").into_inner().session_id;
        let put = |key: &'static str, timeout, sequence: Option<u64>| {
            let session = sequence.map(|sequence| WriteSession {
                id: id.clone(),
                sequence,
                ..WriteSession::default()
            });
            let key = Bytes::from_static(key.as_bytes());
            let put = PutRequest { key, session, ..PutRequest::default() };
            let mut request = Request::new(put);
            request.set_timeout(timeout);
            asked.kv.put(request)
        };
        // A write that must not be made twice is made at one node, and its outcome is unknown.
        let (long, short) = (Duration::from_secs(4), Duration::from_secs(1));
        let unknown = put("a", short, None).await.expect_err("it is at the silent node");
        let (failure, _) = Failure::from_details(unknown.details()).expect("a failure of ours");
        assert_eq!(failure.reason(), Reason::OutcomeUnknown);
        // From now on that node is asked last.
        let begun = std::time::Instant::now();
        put("b", long, None).await.expect("it is written");
        assert!(begun.elapsed() < short, "{:?}", begun.elapsed());
        // Without that memory, a read and a write of a session go on after their share of the time.
        asked.shared.forward.known.answered(NodeId(3), None);
        asked.shared.forward.known.answered(NodeId(4), None);
        put("c", long, Some(1)).await.expect("it is written");
        asked.shared.forward.known.answered(NodeId(3), None);
        asked.shared.forward.known.answered(NodeId(4), None);
        let get = GetRequest { key: Bytes::from_static(b"c"), ..GetRequest::default() };
        assert!(asked.kv.get(Request::new(get)).await.expect("an answer").get_ref().found);
        server.abort();
        asked.stop();
        holder.stop();
    });
}
