//! A cluster of scripted nodes in this process: real sockets, real gRPC, answers as each test says.

use std::collections::{HashMap, VecDeque};
use std::net::{Shutdown, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use quorate_client::api::cluster_server::{Cluster, ClusterServer};
use quorate_client::api::kv_server::{Kv, KvServer};
use quorate_client::api::*;
use quorate_client::{Client, ClientConfig};
use quorate_proto::hash::even_range;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, Streaming};

/// What a node does with one call instead of answering it well.
#[derive(Clone, Debug)]
pub enum Step {
    /// Answers well.
    Answer,
    /// Fails with this, and does nothing.
    Fail(Failure),
    /// Fails with a status that no node of ours would make.
    Foreign(Code),
    /// Does it, then loses every connection before the answer leaves.
    Break,
    /// Does it, and never answers.
    Hang,
}

/// A write as a node saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub node: u64,
    pub session: Option<WriteSession>,
    pub route: Option<RouteHint>,
    pub request_id: String,
    pub timeout: Option<String>,
}

/// What the nodes have in common.
#[derive(Default)]
pub struct State {
    pub map: Option<ClusterMap>,
    /// What the node does with its next calls; when empty, it answers.
    pub script: HashMap<u64, VecDeque<Step>>,
    /// What the node does whenever its script is empty.
    pub always: HashMap<u64, Step>,
    pub writes: Vec<Seen>,
    pub reads: Vec<(u64, GetRequest)>,
    pub scans: Vec<(u64, ScanRequest)>,
    pub opened: Vec<OpenSessionRequest>,
    /// The nodes that opened them.
    pub opened_by: Vec<u64>,
    pub cancelled: Vec<CancelRequest>,
    /// Whom receipts name as the leader; 0 = nobody.
    pub leader: u64,
    pub session_ttl: Option<Duration>,
    /// The writes that were done: (session, sequence), or none without a session.
    pub applied: Vec<Option<(Bytes, u64)>>,
    /// The rows that scans see, in order.
    pub rows: Vec<Bytes>,
    /// Rows in one message, messages in one page.
    pub page: (usize, usize),
    /// The message of a scan after which its stream breaks off once.
    pub scan_breaks_after: Option<usize>,
}

/// The whole cluster.
#[derive(Clone)]
pub struct Fake {
    pub state: Arc<Mutex<State>>,
    pub addresses: Vec<String>,
    sockets: Arc<Mutex<Vec<(u64, std::net::TcpStream)>>>,
}

struct Node {
    id: u64,
    fake: Fake,
    next: Arc<AtomicU64>,
}

pub const CLUSTER: Bytes = Bytes::from_static(b"cluster-16-bytes");
pub const HISTORY: Bytes = Bytes::from_static(b"history-16-bytes");

pub fn failure(reason: Reason) -> Failure {
    Failure::of(reason, "as the script says")
}

impl Fake {
    /// Three nodes and one shard, preferably led by node 1; every node is given to the client.
    pub async fn start() -> Fake {
        let mut listeners = Vec::new();
        for _ in 0..3 {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            listeners.push(tokio::net::TcpListener::from_std(listener).unwrap());
        }
        let address = |l: &tokio::net::TcpListener| l.local_addr().unwrap().to_string();
        let fake = Fake {
            state: Arc::default(),
            addresses: listeners.iter().map(address).collect(),
            sockets: Arc::default(),
        };
        fake.state.lock().page = (2, 2);
        fake.state.lock().map = Some(fake.map_of(1, 1));
        let next = Arc::new(AtomicU64::new(1));
        for (id, listener) in (1..).zip(listeners) {
            let node = Arc::new(Node { id, fake: fake.clone(), next: Arc::clone(&next) });
            let sockets = Arc::clone(&fake.sockets);
            let incoming = TcpListenerStream::new(listener).map(move |stream| {
                let stream = stream?.into_std()?;
                sockets.lock().push((id, stream.try_clone()?));
                tokio::net::TcpStream::from_std(stream)
            });
            let server = tonic::transport::Server::builder()
                .add_service(KvServer::from_arc(Arc::clone(&node)))
                .add_service(ClusterServer::from_arc(node))
                .serve_with_incoming(incoming);
            tokio::spawn(server);
        }
        fake
    }

    /// A map of the three nodes with so many shards, replica lists in node order.
    pub fn map_of(&self, epoch: u64, shards: u64) -> ClusterMap {
        let node = |(id, address): (u64, &String)| MapNode {
            id,
            client_address: address.clone(),
            ..MapNode::default()
        };
        let shard = |i: u64| MapShard {
            id: i + 1,
            first: even_range(i, shards).0,
            last: even_range(i, shards).1,
            epoch: 1,
            replicas: (1..=3).map(|n| MapReplica { replica_id: i * 3 + n, node_id: n }).collect(),
        };
        ClusterMap {
            cluster_id: CLUSTER,
            history: HISTORY,
            epoch,
            nodes: (1..).zip(&self.addresses).map(node).collect(),
            shards: (0..shards).map(shard).collect(),
            ..ClusterMap::default()
        }
    }

    pub fn config(&self) -> ClientConfig {
        ClientConfig::new(&self.addresses).unwrap()
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.config()).await.unwrap()
    }

    pub fn script(&self, node: u64, steps: impl IntoIterator<Item = Step>) {
        self.state.lock().script.entry(node).or_default().extend(steps);
    }

    pub fn always(&self, node: u64, step: Step) {
        self.state.lock().always.insert(node, step);
    }

    pub fn writes(&self) -> Vec<Seen> {
        self.state.lock().writes.clone()
    }

    fn lose_connections(&self, node: u64) {
        for (id, socket) in self.sockets.lock().iter() {
            if *id == node {
                // Sockets that are long gone say so; nothing to do about them.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }
}

impl Node {
    fn step(&self) -> Step {
        let mut state = self.fake.state.lock();
        let scripted = state.script.get_mut(&self.id).and_then(VecDeque::pop_front);
        let always = state.always.get(&self.id).cloned();
        scripted.or(always).unwrap_or(Step::Answer)
    }

    fn receipt(&self, index: u64) -> Receipt {
        let state = self.fake.state.lock();
        Receipt {
            level: ReadLevel::Linearizable as i32,
            shard: 1,
            term: 1,
            index,
            node_id: self.id,
            map_epoch: state.map.as_ref().map_or(0, |m| m.epoch),
            history: HISTORY,
            age_bound: None,
            leader_node_id: state.leader,
        }
    }

    /// Ends a call as the script says; with `Answer` it goes on.
    async fn play(&self, step: Step, request_id: &str) -> Result<(), Status> {
        match step {
            Step::Answer => Ok(()),
            Step::Fail(failure) => Err(Status::with_details(
                Code::from(failure.code),
                failure.message.clone(),
                failure.to_details(request_id),
            )),
            Step::Foreign(code) => Err(Status::new(code, "from somebody else")),
            Step::Break => {
                self.fake.lose_connections(self.id);
                std::future::pending().await
            }
            Step::Hang => std::future::pending().await,
        }
    }

    /// Takes in a write: noted, done at most once per session sequence, answered as scripted.
    async fn write<T>(
        &self,
        request: &Request<T>,
        session: Option<&WriteSession>,
        route: Option<&RouteHint>,
    ) -> Result<(u64, bool), Status> {
        let header = |name: &str| {
            let value = request.metadata().get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        let request_id = header("x-request-id").unwrap_or_default();
        let step = self.step();
        let mut replayed = false;
        {
            let mut state = self.fake.state.lock();
            state.writes.push(Seen {
                node: self.id,
                session: session.cloned(),
                route: route.cloned(),
                request_id: request_id.clone(),
                timeout: header("grpc-timeout"),
            });
            if matches!(step, Step::Answer | Step::Break | Step::Hang) {
                let id = session.map(|s| (s.id.clone(), s.sequence));
                replayed = id.is_some() && state.applied.contains(&id);
                if !replayed {
                    state.applied.push(id);
                }
            }
        }
        self.play(step, &request_id).await?;
        Ok((self.next.fetch_add(1, Ordering::Relaxed), replayed))
    }

    fn token(&self, index: u64) -> Option<SessionToken> {
        Some(SessionToken::of_receipt(CLUSTER, &self.receipt(index)))
    }
}

fn not_scripted<T>() -> Result<T, Status> {
    Err(Status::unimplemented("the fake does not do this"))
}

#[tonic::async_trait]
impl Kv for Node {
    type MultiGetStream = futures::stream::Empty<Result<MultiGetResponse, Status>>;
    type ScanStream = futures::stream::BoxStream<'static, Result<ScanResponse, Status>>;
    type PipelineStream = futures::stream::Empty<Result<PipelineResponse, Status>>;

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let request = request.into_inner();
        self.fake.state.lock().reads.push((self.id, request));
        self.play(self.step(), "").await?;
        let index = self.next.load(Ordering::Relaxed);
        Ok(Response::new(GetResponse {
            found: true,
            value: Bytes::from_static(b"value"),
            revision: index,
            receipt: Some(self.receipt(index)),
            token: self.token(index),
            ..GetResponse::default()
        }))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let put = request.get_ref();
        let (session, route) = (put.session.as_ref(), put.route.as_ref());
        let (index, replayed) = self.write(&request, session, route).await?;
        Ok(Response::new(PutResponse {
            applied: true,
            revision: index,
            replayed,
            receipt: Some(self.receipt(index)),
            token: self.token(index),
            ..PutResponse::default()
        }))
    }

    async fn delete(&self, _: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        not_scripted()
    }

    async fn compare_and_set(
        &self,
        _: Request<CompareAndSetRequest>,
    ) -> Result<Response<CompareAndSetResponse>, Status> {
        not_scripted()
    }

    async fn increment(
        &self,
        request: Request<IncrementRequest>,
    ) -> Result<Response<IncrementResponse>, Status> {
        let increment = request.get_ref();
        let (session, route) = (increment.session.as_ref(), increment.route.as_ref());
        let (index, replayed) = self.write(&request, session, route).await?;
        Ok(Response::new(IncrementResponse {
            applied: true,
            revision: index,
            replayed,
            receipt: Some(self.receipt(index)),
            token: self.token(index),
            ..IncrementResponse::default()
        }))
    }

    async fn batch(&self, _: Request<BatchRequest>) -> Result<Response<BatchResponse>, Status> {
        not_scripted()
    }

    async fn multi_get(
        &self,
        _: Request<MultiGetRequest>,
    ) -> Result<Response<Self::MultiGetStream>, Status> {
        not_scripted()
    }

    /// Pages of keys in order; the token of a page is its last key.
    async fn scan(
        &self,
        request: Request<ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let scan = request.into_inner();
        self.play(self.step(), "").await?;
        let receipt = self.receipt(7);
        let mut state = self.fake.state.lock();
        state.scans.push((self.id, scan.clone()));
        let wanted = |k: &&Bytes| {
            k.starts_with(&scan.prefix)
                && **k >= scan.start
                && (scan.end.is_empty() || **k < scan.end)
                && **k > scan.page_token
        };
        let (rows, messages) = state.page;
        let all: Vec<Bytes> = state.rows.iter().filter(wanted).cloned().collect();
        let of_limit = usize::try_from(scan.limit).unwrap();
        let room = if of_limit == 0 { usize::MAX } else { of_limit };
        let page: Vec<Bytes> = all.iter().take((rows * messages).min(room)).cloned().collect();
        let more = page.len() < all.len() && page.len() < room;
        let mut out: Vec<Result<ScanResponse, Status>> = Vec::new();
        if !scan.count_only {
            for keys in page.chunks(rows) {
                let row = |key: &Bytes| ScanRow { key: key.clone(), ..ScanRow::default() };
                out.push(Ok(ScanResponse {
                    rows: keys.iter().map(row).collect(),
                    ..ScanResponse::default()
                }));
            }
        }
        out.push(Ok(ScanResponse {
            count: page.len() as u64,
            next_page_token: page.last().filter(|_| more).cloned().unwrap_or_default(),
            receipts: vec![receipt],
            ..ScanResponse::default()
        }));
        if let Some(after) = state.scan_breaks_after.take() {
            out.truncate(after);
            out.push(Err(Status::unavailable("the stream broke")));
        }
        Ok(Response::new(futures::stream::iter(out).boxed()))
    }

    async fn pipeline(
        &self,
        _: Request<Streaming<PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        not_scripted()
    }

    async fn open_session(
        &self,
        request: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        let mut state = self.fake.state.lock();
        state.opened.push(request.into_inner());
        state.opened_by.push(self.id);
        let ttl = state.session_ttl.unwrap_or(Duration::from_secs(600));
        Ok(Response::new(OpenSessionResponse {
            session_id: format!("session-{:016}", state.opened.len()).into(),
            born: 1,
            ttl: Some(ttl.try_into().unwrap()),
        }))
    }

    async fn cancel(
        &self,
        request: Request<CancelRequest>,
    ) -> Result<Response<CancelResponse>, Status> {
        let cancel = request.into_inner();
        self.play(self.step(), "").await?;
        let mut state = self.fake.state.lock();
        let id = Some((cancel.session_id.clone(), cancel.sequence));
        let result = match state.applied.contains(&id) {
            true => CancelResult::Answered,
            false => CancelResult::Barred,
        };
        state.cancelled.push(cancel);
        Ok(Response::new(CancelResponse {
            result: result as i32,
            applied: result == CancelResult::Answered,
            ..CancelResponse::default()
        }))
    }
}

#[tonic::async_trait]
impl Cluster for Node {
    async fn get_info(
        &self,
        _: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        Ok(Response::new(GetInfoResponse {
            node_id: self.id,
            version: "fake".into(),
            ..GetInfoResponse::default()
        }))
    }

    async fn get_map(
        &self,
        request: Request<GetMapRequest>,
    ) -> Result<Response<GetMapResponse>, Status> {
        let state = self.fake.state.lock();
        let newer_than = request.into_inner().newer_than;
        Ok(Response::new(GetMapResponse {
            map: state.map.clone().filter(|m| m.epoch > newer_than),
            map_epoch: state.map.as_ref().map_or(0, |m| m.epoch),
            node_id: self.id,
            leaders: Vec::new(),
        }))
    }

    async fn get_status(
        &self,
        _: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        self.play(self.step(), "").await?;
        Ok(Response::new(GetStatusResponse { node_id: self.id, ..GetStatusResponse::default() }))
    }

    async fn transfer_leader(
        &self,
        _: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        self.play(Step::Fail(failure(Reason::NotOffered)), "").await?;
        not_scripted()
    }
}
