//! The wrapper of calls: each is counted once, with the code that its caller got.

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use quorate_proto::v1::cluster_server::Cluster;
use quorate_proto::v1::{GetInfoRequest, MultiGetRequest, NodePhase};

use super::*;
use crate::cluster::ClusterService;
use crate::health::Health;
use crate::shared::Lifecycle;

/// The services of a node that has only begun, and what they count.
struct Young {
    kv: KvService,
    cluster: ClusterService,
    registry: Registry,
    life: Arc<Lifecycle>,
}

impl Young {
    fn new() -> Self {
        let mut registry = Registry::default();
        let metrics = Arc::new(ServiceMetrics::register(&mut registry));
        let cell = SharedCell::default();
        let life = cell.life.clone();
        let calls = Calls::new(cell.clone(), metrics);
        let flags = BTreeMap::from([(Key::DataDir, "nowhere".to_owned())]);
        let layers = Layers::new(flags, &Environment::from_pairs([]), None).expect("the layers");
        let config = resolve(&layers, 256 << 20).expect("a configuration").config;
        let cluster = ClusterService::new(calls.clone(), Arc::new(config), Health::new(cell));
        Self { kv: KvService::new(calls), cluster, registry, life }
    }

    /// The series of counted requests: method, code, level and number.
    fn counted(&self) -> Vec<String> {
        counted(&self.registry)
    }
}

fn counted(registry: &Registry) -> Vec<String> {
    let mut text = String::new();
    encode(&mut text, registry).expect("text");
    let mut series: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("requests_total"))
        .map(|line| line.replace(['"', '{', '}'], "").replace(',', " "))
        .collect();
    series.sort();
    series
}

#[test]
fn calls_before_the_node_is_ready_are_counted() {
    block_on(async {
        let young = Young::new();
        let get = GetRequest { key: Bytes::from_static(b"k"), ..GetRequest::default() };
        let refused = young.kv.get(Request::new(get)).await.expect_err("it is starting");
        assert_eq!(refused.code(), tonic::Code::Unavailable);
        let multi = young.kv.multi_get(Request::new(MultiGetRequest::default())).await;
        assert_eq!(multi.err().map(|status| status.code()), Some(tonic::Code::Unavailable));
        for _ in 0..2 {
            young.cluster.get_info(Request::new(GetInfoRequest::default())).await.expect("facts");
        }
        assert_eq!(
            young.counted(),
            [
                "method=Get code=UNAVAILABLE level=linearizable 1",
                "method=GetInfo code=OK level=none 2",
                "method=MultiGet code=UNAVAILABLE level=linearizable 1",
            ]
        );
    });
}

/// Both look at the phase and then enter another one.
#[test]
fn a_node_that_drains_does_not_become_ready() {
    let life = Lifecycle::default();
    life.enter(NodePhase::Starting, "");
    // The drain begins between the look of readiness and what follows from it.
    life.enter(NodePhase::Draining, "it goes down");
    assert!(!life.advance(NodePhase::Starting, NodePhase::Ready, ""));
    assert!(!life.advance(NodePhase::Starting, NodePhase::Starting, "it waits"));
    assert_eq!((life.phase(), life.detail().as_str()), (NodePhase::Draining, "it goes down"));
}

#[test]
fn a_drain_sees_a_call_before_that_has_read_the_phase() {
    let young = Young::new();
    let life = young.life.clone();
    let held = life.hold_detail();
    let call = std::thread::spawn(move || {
        let get = GetRequest { key: Bytes::from_static(b"k"), ..GetRequest::default() };
        block_on(async {
            young.kv.get(Request::new(get)).await.expect_err("the node is starting");
        });
    });
    let began = std::time::Instant::now();
    while life.calls() == 0 {
        assert!(began.elapsed() < Duration::from_secs(10), "it reads the phase without a count");
        std::thread::yield_now();
    }
    drop(held);
    call.join().expect("it is rejected");
    assert_eq!(life.calls(), 0);
}

#[test]
fn a_scan_is_counted_at_its_end_and_once() {
    run(|node| async {
        node.put("key", vec![1]).await;
        let mut registry = Registry::default();
        let metrics = Arc::new(ServiceMetrics::register(&mut registry));
        let cell = SharedCell::default();
        cell.set(node.shared.clone());
        let life = cell.life.clone();
        let kv = KvService::new(Calls::new(cell, metrics));
        let begin = async || {
            let scan = kv.scan(Request::new(ScanRequest::default())).await;
            scan.expect("it begins").into_inner()
        };
        let read = begin().await;
        assert_eq!(life.calls(), 1, "a drain waits for it");
        assert_eq!(counted(&registry), Vec::<String>::new(), "it was not read yet");
        page(read).await;
        assert_eq!(life.calls(), 0);
        assert_eq!(counted(&registry), ["method=Scan code=OK level=linearizable 1"]);
        drop(begin().await);
        assert_eq!(
            counted(&registry),
            [
                "method=Scan code=CANCELLED level=linearizable 1",
                "method=Scan code=OK level=linearizable 1",
            ]
        );
        let threads = node.shared.scan_threads.clone();
        let _busy = threads.acquire_many_owned(SCAN_THREADS as u32).await.expect("all of them");
        let mut request = Request::new(ScanRequest::default());
        request.set_timeout(Duration::from_millis(200));
        let mut refused = kv.scan(request).await.expect("it begins").into_inner();
        let status = refused.next().await.expect("an answer").expect_err("no thread was free");
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(
            counted(&registry)
                .contains(&"method=Scan code=RESOURCE_EXHAUSTED level=linearizable 1".to_owned())
        );
        node.stop();
    });
}
