//! The counts of requests: every call of the client API is counted once, whatever its end.

use std::collections::BTreeMap;
use std::time::Instant;

use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::kv_client::KvClient;
use quorate_proto::v1::{
    GetInfoRequest, GetMapRequest, GetRequest, MapReplica, MultiGetRequest, PutRequest,
    PutResponse, ReadLevel, Reason, ScanRequest, ScanResponse, TransferLeaderRequest,
};
use quorate_tests::cluster::TIMEOUT;
use quorate_tests::raw::{at, failure};
use quorate_tests::{Cluster, ClusterOptions, until, until_async};
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use tonic_prost::ProstCodec;

/// Requests by method and code.
type Counts = BTreeMap<(String, String), u64>;

/// What a node has counted, the levels together, without GetStatus, which the harness calls.
fn counted(cluster: &Cluster, id: u64) -> Counts {
    let (code, page) = cluster.page(id, "/metrics");
    assert_eq!(code, 200, "{page}");
    let mut counts = Counts::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("quorate_requests_total{")) {
        let (labels, value) = line.split_once("} ").expect("labels and a value");
        let label = |name: &str| {
            let rest = labels.split_once(&format!("{name}=\"")).expect("the label").1;
            rest.split_once('"').expect("its end").0.to_owned()
        };
        if label("method") != "GetStatus" {
            let value: u64 = value.parse().expect("a number");
            *counts.entry((label("method"), label("code"))).or_default() += value;
        }
    }
    counts
}

/// What was sent, as it was answered.
#[derive(Default)]
struct Sent(Counts);

impl Sent {
    fn note(&mut self, method: &str, code: Code, calls: u64) {
        let code = match code {
            Code::Ok => "OK",
            Code::Cancelled => "CANCELLED",
            Code::InvalidArgument => "INVALID_ARGUMENT",
            Code::Internal => "INTERNAL",
            Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Code::Unimplemented => "UNIMPLEMENTED",
            Code::Unavailable => "UNAVAILABLE",
            other => panic!("no call here ends with {other:?}"),
        };
        *self.0.entry((method.to_owned(), code.to_owned())).or_default() += calls;
    }

    /// Sends this number of calls, and expects each to be answered with this code.
    async fn send<T>(
        &mut self,
        method: &str,
        code: Code,
        calls: u64,
        mut call: impl AsyncFnMut() -> Result<T, tonic::Status>,
    ) {
        for _ in 0..calls {
            let answered = match call().await {
                Ok(_) => Code::Ok,
                Err(status) => status.code(),
            };
            assert_eq!(answered, code, "{method}");
        }
        self.note(method, code, calls);
    }

    /// Waits until the node has counted all of it; a call that is counted twice is never equal.
    fn is_counted(&self, cluster: &Cluster, id: u64) {
        let mut last = Counts::new();
        let equal = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until("the counts", TIMEOUT / 4, || {
                last = counted(cluster, id);
                (last == self.0).then_some(())
            });
        }));
        assert!(equal.is_ok(), "counted {last:#?}\nsent {:#?}", self.0);
    }
}

fn put(key: &'static str) -> PutRequest {
    PutRequest { key: key.into(), value: "v".into(), ..PutRequest::default() }
}

async fn read_whole<T>(answers: &mut Streaming<T>) -> Result<(), tonic::Status> {
    while answers.message().await?.is_some() {}
    Ok(())
}

/// A message that is not the one of the method, sent to a path.
async fn raw(channel: &Channel, path: &'static str) -> Result<PutResponse, tonic::Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("a connection");
    let codec = ProstCodec::<MapReplica, PutResponse>::default();
    // Its first field is a number, where a put has its key.
    let message = tonic::Request::new(MapReplica { replica_id: 7, node_id: 7, role: 0 });
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
    grpc.unary(message, path, codec).await.map(tonic::Response::into_inner)
}

/// A scan of more than a connection takes without being read.
async fn begin_scan(kv: &mut KvClient<Channel>) -> Streaming<ScanResponse> {
    kv.scan(ScanRequest::default()).await.expect("it begins").into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_is_counted_once_whatever_its_end() {
    let arguments = ["--max-connections", "2"].map(str::to_owned).to_vec();
    let options = ClusterOptions { nodes: 1, shards: 1, arguments, ..ClusterOptions::default() };
    let mut cluster = Cluster::start(options).await;
    let mut sent = Sent(counted(&cluster, 1));
    let channel = cluster.channel(1);
    let mut kv = KvClient::new(channel.clone());
    let mut about = ClusterClient::new(channel.clone());

    // Answered, and refused by the handler.
    for number in 0..12 {
        let key = format!("large{number}").into();
        let put = PutRequest { key, value: vec![7; 700_000].into(), ..PutRequest::default() };
        kv.put(put).await.expect("a large value");
    }
    sent.note("Put", Code::Ok, 12);
    sent.send("Put", Code::InvalidArgument, 5, async || kv.put(put("")).await).await;
    let get = |level| GetRequest { key: "k".into(), read: at(level), ..GetRequest::default() };
    sent.send("Get", Code::Ok, 3, async || kv.get(get(ReadLevel::Linearizable)).await).await;
    sent.send("Get", Code::Ok, 2, async || kv.get(get(ReadLevel::Stale)).await).await;
    let many = |key: &str| MultiGetRequest {
        keys: vec!["k".into(), key.to_owned().into()],
        ..MultiGetRequest::default()
    };
    let multi = async || read_whole(&mut kv.multi_get(many("l")).await?.into_inner()).await;
    sent.send("MultiGet", Code::Ok, 3, multi).await;
    let multi = async || read_whole(&mut kv.multi_get(many("")).await?.into_inner()).await;
    sent.send("MultiGet", Code::InvalidArgument, 2, multi).await;
    let info = async || about.get_info(GetInfoRequest::default()).await;
    sent.send("GetInfo", Code::Ok, 3, info).await;
    sent.send("GetMap", Code::Ok, 2, async || about.get_map(GetMapRequest::default()).await).await;
    let transfer = async || about.transfer_leader(TransferLeaderRequest::default()).await;
    sent.send("TransferLeader", Code::Ok, 2, transfer).await;
    let nowhere = TransferLeaderRequest { shard: 9, ..TransferLeaderRequest::default() };
    let transfer = async || about.transfer_leader(nowhere.clone()).await;
    sent.send("TransferLeader", Code::InvalidArgument, 2, transfer).await;
    let scan = async || read_whole(&mut begin_scan(&mut kv).await).await;
    sent.send("Scan", Code::Ok, 2, scan).await;
    let bad = ScanRequest { page_token: "no token".into(), ..ScanRequest::default() };
    let fails = async || read_whole(&mut kv.scan(bad.clone()).await?.into_inner()).await;
    sent.send("Scan", Code::InvalidArgument, 3, fails).await;

    // Never seen by a handler.
    let unreadable = async || raw(&channel, "/quorate.v1.Kv/Put").await;
    sent.send("Put", Code::Internal, 4, unreadable).await;
    let nowhere = async || raw(&channel, "/quorate.v1.Kv/Nowhere").await;
    sent.send("unknown", Code::Unimplemented, 3, nowhere).await;
    let mut half = Grpc::new(channel.clone());
    half.ready().await.expect("a connection");
    let codec = ProstCodec::<PutRequest, PutResponse>::default();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/quorate.v1.Kv/Put");
    let whole = futures::stream::pending::<PutRequest>();
    let mut given_up = Box::pin(half.client_streaming(tonic::Request::new(whole), path, codec));
    assert!(futures::poll!(&mut given_up).is_pending());
    // Its head leaves before this does.
    sent.send("Get", Code::Ok, 1, async || kv.get(get(ReadLevel::Stale)).await).await;
    drop(given_up);
    // The code with which the library answers a request that was cut short.
    sent.note("Put", Code::Internal, 1);
    sent.is_counted(&cluster, 1);

    // At the door: two connections are busy, each with a scan that is not read.
    let mut busy = [cluster.kv(1), cluster.kv(1)];
    let mut unread = Vec::new();
    for kv in &mut busy {
        unread.push(begin_scan(kv).await);
    }
    let mut third = cluster.kv(1);
    let refused = async || third.put(put("k")).await;
    sent.send("Put", Code::ResourceExhausted, 6, refused).await;
    sent.is_counted(&cluster, 1);

    // Callers that leave in a stream.
    drop(unread.pop());
    sent.note("Scan", Code::Cancelled, 1);
    sent.is_counted(&cluster, 1);

    // While the node drains, which waits for the other scan.
    cluster.ask_to_stop(1);
    let mut refused = 0;
    let began = Instant::now();
    while refused < 3 {
        assert!(began.elapsed() < TIMEOUT, "it takes calls still");
        match busy[0].put(put("k")).await {
            Ok(_) => sent.note("Put", Code::Ok, 1),
            Err(status) => {
                assert_eq!(failure(&status).reason(), Reason::Draining, "{status}");
                refused += 1;
                sent.note("Put", Code::Unavailable, 1);
            }
        }
    }
    let stale = async || busy[0].get(get(ReadLevel::Stale)).await;
    sent.send("Get", Code::Unavailable, 2, stale).await;
    sent.is_counted(&cluster, 1);
    drop(unread);
    cluster.wait_end(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_to_a_node_that_has_not_started_are_counted() {
    let mut cluster = Cluster::prepare(ClusterOptions::default());
    cluster.start_node(1);
    until_async("it listens", TIMEOUT, || cluster.status(1)).await;
    let mut sent = Sent::default();
    let mut kv = cluster.kv(1);
    sent.send("Put", Code::Unavailable, 4, async || kv.put(put("k")).await).await;
    let mut about = ClusterClient::new(cluster.channel(1));
    let info = async || about.get_info(GetInfoRequest::default()).await;
    sent.send("GetInfo", Code::Ok, 2, info).await;
    sent.is_counted(&cluster, 1);
}
