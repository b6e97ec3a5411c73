//! The services of one node.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use quorate_proto::limits::KEY_BYTES_MAX;
use quorate_proto::v1::cluster_server::{Cluster, ClusterServer};
use quorate_proto::v1::kv_server::{Kv, KvServer};
use quorate_proto::v1::*;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::pipeline;
use crate::state::{Calls, HISTORY, REQUEST_ID, SeenWrite, State, Step, VERSION, failure};
use crate::store::{Change, LOG_TIME, stored};

/// The message of the failure with which calls end that the nodes do not serve at all.
pub const NOT_SERVED: &str = "the nodes of this test do not serve this call";

/// How long a shard without a leader has had none.
const LEADERLESS_FOR: Duration = Duration::from_secs(4);

const TERM: u64 = 2;

type Answer<T> = Result<Response<T>, Status>;

type Messages<T> = BoxStream<'static, Result<T, Status>>;

/// What the nodes and the test share.
pub(crate) struct Shared {
    pub state: Mutex<State>,
    /// Every connection that was accepted, and by which node.
    pub sockets: Mutex<Vec<(u64, TcpStream)>>,
}

#[derive(Clone)]
struct Node {
    id: u64,
    shared: Arc<Shared>,
}

/// Serves one node, until it is dropped.
pub(crate) async fn serve(id: u64, listener: TcpListener, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("it does not block");
    let accepted = Arc::clone(&shared);
    let incoming = TcpListenerStream::new(listener).map(move |stream| {
        let stream = stream?.into_std()?;
        accepted.sockets.lock().push((id, stream.try_clone()?));
        tokio::net::TcpStream::from_std(stream)
    });
    let node = Arc::new(Node { id, shared });
    let server = tonic::transport::Server::builder()
        .add_service(KvServer::from_arc(Arc::clone(&node)))
        .add_service(ClusterServer::from_arc(node))
        .serve_with_incoming(incoming);
    server.await.expect("a node of the test serves");
}

fn status(failure: &Failure) -> Status {
    let details = failure.to_details(REQUEST_ID);
    Status::with_details(Code::from(failure.code), failure.message.clone(), details)
}

/// What a node says that refuses a call.
fn refusal(reason: Reason, in_session: bool) -> Failure {
    let mut failure = failure(reason);
    if in_session && failure.outcome() == Outcome::NotApplied {
        failure.outcome = Outcome::AttemptNotApplied as i32;
    }
    failure
}

fn not_served<T>() -> Result<T, Status> {
    Err(Status::unimplemented(NOT_SERVED))
}

/// Executes and answers a write of one key. `$change` makes of the request what is to be done,
/// `$number` is the field of an answer that has one.
macro_rules! write_one {
    ($node:ident, $call:ident, $condition:ident, $change:expr
        => $answer:ident $(, $number:ident)?) => {{
        let (metadata, _, request) = $call.into_parts();
        let session = request.session.clone();
        $node.see_write(&metadata, session.clone(), request.route.clone());
        let (key, keep) = (request.key.clone(), request.return_previous);
        let condition = request.$condition.clone();
        let change = $change(request);
        let write = |state: &mut State| {
            state.store.write(key.clone(), condition, session.clone(), change)
        };
        let written = $node.serve(Calls::Writes, session.is_some(), write).await?;
        let (receipt, token) = $node.receipt(ReadLevel::Linearizable as i32, &key);
        Ok(Response::new($answer {
            applied: written.applied,
            found: written.before.is_some(),
            revision: written.after.as_ref().map_or(0, |row| row.revision),
            create_revision: written.after.as_ref().map_or(0, |row| row.create_revision),
            previous: written.before.as_ref().filter(|_| keep).map(stored),
            replayed: written.replayed,
            $($number: written.number(),)?
            receipt,
            token,
            ..Default::default()
        }))
    }};
}

impl Node {
    /// Does with a call what the script says: `execute` is what it does if it is to be done.
    async fn serve<T: Send>(
        &self,
        calls: Calls,
        in_session: bool,
        execute: impl FnOnce(&mut State) -> Result<T, Failure>,
    ) -> Result<T, Status> {
        {
            let mut state = self.shared.state.lock();
            match state.step(self.id, calls) {
                Step::Answer => return execute(&mut state).map_err(|failure| status(&failure)),
                Step::Fail(failure) => return Err(status(&failure)),
                Step::Refuse(reason) => return Err(status(&refusal(reason, in_session))),
                Step::Foreign(code) => return Err(Status::new(code, "from somebody else")),
                Step::Hang => drop(execute(&mut state)),
                Step::Break => {
                    drop(execute(&mut state));
                    self.close_connections();
                }
            }
        }
        std::future::pending().await
    }

    fn close_connections(&self) {
        for (id, socket) in self.shared.sockets.lock().iter() {
            if *id == self.id {
                // Of one that was closed before this is an error, which changes nothing.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }

    fn see_write(
        &self,
        metadata: &MetadataMap,
        session: Option<WriteSession>,
        route: Option<RouteHint>,
    ) {
        let header = |name: &str| {
            let value = metadata.get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        let seen = SeenWrite {
            node: self.id,
            session,
            route,
            request_id: header("x-request-id").unwrap_or_default(),
            timeout: header("grpc-timeout"),
        };
        self.shared.state.lock().writes.push(seen);
    }

    /// Executes a read; the level that was asked for comes back with what was read.
    async fn read<T: Send>(
        &self,
        options: Option<ReadOptions>,
        execute: impl FnOnce(&mut State) -> T,
    ) -> Result<(i32, T), Status> {
        let options = options.unwrap_or_default();
        let level = options.level().row().level as i32;
        self.shared.state.lock().reads.push((self.id, options));
        let read = self.serve(Calls::Reads, false, |state| Ok(execute(state))).await?;
        Ok((level, read))
    }

    /// What goes with an answer about a key.
    fn receipt(&self, level: i32, key: &[u8]) -> (Option<Receipt>, Option<SessionToken>) {
        let state = self.shared.state.lock();
        let receipt = Receipt {
            level,
            shard: state.map.as_ref().and_then(|map| map.shard_of(key)).map_or(1, |shard| shard.id),
            term: TERM,
            index: state.store.index,
            node_id: self.id,
            map_epoch: state.epoch(),
            history: HISTORY,
            age_bound: None,
            leader_node_id: state.leader,
        };
        let token = SessionToken::of_receipt(state.cluster_id(), &receipt);
        (Some(receipt), Some(token))
    }

    /// The replica of a shard here, if it has one; the shard 0 is the meta group, which its first
    /// replica leads.
    fn replica(&self, state: &State, shard: u64, of: &[MapReplica]) -> Option<ReplicaStatus> {
        let here = of.iter().find(|replica| replica.node_id == self.id)?;
        let leader = if shard == 0 { of[0].node_id } else { state.leader };
        Some(ReplicaStatus {
            shard,
            replica_id: here.replica_id,
            role: match leader == self.id {
                true => ReplicaRole::Leader.into(),
                false => ReplicaRole::Follower.into(),
            },
            term: TERM,
            commit: state.store.index,
            applied: state.store.index,
            keys: state.store.rows.len() as u64,
            voters: of.to_vec(),
            health: ReplicaHealth::Ok.into(),
            leaderless_for: match leader {
                0 => LEADERLESS_FOR.try_into().ok(),
                _ => None,
            },
            ..ReplicaStatus::default()
        })
    }
}

#[tonic::async_trait]
impl Kv for Node {
    type MultiGetStream = Messages<MultiGetResponse>;
    type ScanStream = Messages<ScanResponse>;
    type PipelineStream = Messages<PipelineResponse>;

    async fn get(&self, call: Request<GetRequest>) -> Answer<GetResponse> {
        let GetRequest { key, read, .. } = call.into_inner();
        let row = |state: &mut State| state.store.rows.get(&key).cloned();
        let (level, row) = self.read(read, row).await?;
        let (receipt, token) = self.receipt(level, &key);
        let mut response = GetResponse { receipt, token, ..GetResponse::default() };
        if let Some(row) = row {
            response.found = true;
            response.value = row.value;
            response.revision = row.revision;
            response.create_revision = row.create_revision;
            response.log_time = LOG_TIME;
        }
        Ok(Response::new(response))
    }

    async fn put(&self, call: Request<PutRequest>) -> Answer<PutResponse> {
        let change = |put: PutRequest| Change::Set(put.value);
        write_one!(self, call, condition, change => PutResponse)
    }

    async fn delete(&self, call: Request<DeleteRequest>) -> Answer<DeleteResponse> {
        let change = |_: DeleteRequest| Change::Remove;
        write_one!(self, call, condition, change => DeleteResponse)
    }

    async fn compare_and_set(
        &self,
        call: Request<CompareAndSetRequest>,
    ) -> Answer<CompareAndSetResponse> {
        let change = |cas: CompareAndSetRequest| Change::Set(cas.value);
        write_one!(self, call, expect, change => CompareAndSetResponse)
    }

    async fn increment(&self, call: Request<IncrementRequest>) -> Answer<IncrementResponse> {
        let change = |increment: IncrementRequest| Change::Add(increment.delta);
        write_one!(self, call, condition, change => IncrementResponse, number)
    }

    async fn batch(&self, call: Request<BatchRequest>) -> Answer<BatchResponse> {
        let (metadata, _, request) = call.into_parts();
        let session = request.session.clone();
        self.see_write(&metadata, session.clone(), request.route.clone());
        let first = request.operations.first().map_or_else(Bytes::new, |first| first.key.clone());
        let write = |state: &mut State| Ok(state.store.batch(&request.operations));
        let answer = self.serve(Calls::Writes, session.is_some(), write).await?;
        let (receipt, token) = self.receipt(ReadLevel::Linearizable as i32, &first);
        Ok(Response::new(BatchResponse { receipt, token, ..answer }))
    }

    async fn multi_get(&self, call: Request<MultiGetRequest>) -> Answer<Self::MultiGetStream> {
        let MultiGetRequest { keys, read, .. } = call.into_inner();
        {
            let mut state = self.shared.state.lock();
            if state.serves_no_multi_get {
                return Err(status(&refusal(Reason::NotOffered, false)));
            }
            state.multi_gets.push((self.id, keys.len()));
        }
        if let Some(at) = keys.iter().position(|key| key.is_empty()) {
            let field = format!("keys[{at}]");
            return Err(status(&Failure { field, ..failure(Reason::BadKey) }));
        }
        let results = |state: &mut State| {
            let results: Vec<_> = keys.iter().map(|key| state.result(key)).collect();
            (results, state.message_rows, state.multi_get_breaks_after.take())
        };
        let (level, (results, message_rows, breaks_after)) = self.read(read, results).await?;
        let (mut receipts, mut token) = (Vec::<Receipt>::new(), SessionToken::default());
        for (receipt, part) in keys.iter().map(|key| self.receipt(level, key)) {
            receipts.extend(receipt.filter(|new| receipts.iter().all(|r| r.shard != new.shard)));
            token.merge(&part.unwrap_or_default()).expect("there is one history");
        }
        let message = |results: &[MultiGetResult]| {
            Ok(MultiGetResponse { results: results.to_vec(), ..MultiGetResponse::default() })
        };
        let mut messages: Vec<_> = results.chunks(message_rows).map(message).collect();
        messages.push(Ok(MultiGetResponse { receipts, token: Some(token), ..Default::default() }));
        if let Some(after) = breaks_after {
            messages.truncate(after);
            messages.push(Err(Status::unavailable("the stream broke")));
        }
        Ok(Response::new(futures::stream::iter(messages).boxed()))
    }

    async fn scan(&self, call: Request<ScanRequest>) -> Answer<Self::ScanStream> {
        let scan = call.into_inner();
        let page = |state: &mut State| {
            let (rows, next) = state.store.page(&scan, state.page_rows);
            let breaks_after = match state.every_scan_breaks {
                true => state.scan_breaks_after,
                false => state.scan_breaks_after.take(),
            };
            (rows, next, state.message_rows, breaks_after)
        };
        let (level, (rows, next_page_token, message_rows, breaks_after)) =
            self.read(scan.read.clone(), page).await?;
        let (receipt, token) = self.receipt(level, &scan.start);
        let count = rows.len() as u64;
        let mut messages: Vec<Result<ScanResponse, Status>> = Vec::new();
        if !scan.count_only {
            for rows in rows.chunks(message_rows) {
                messages.push(Ok(ScanResponse { rows: rows.to_vec(), ..ScanResponse::default() }));
            }
        }
        messages.push(Ok(ScanResponse {
            count,
            next_page_token,
            receipts: receipt.into_iter().collect(),
            token,
            ..ScanResponse::default()
        }));
        if let Some(after) = breaks_after {
            messages.truncate(after);
            messages.push(Err(Status::unavailable("the stream broke")));
        }
        Ok(Response::new(futures::stream::iter(messages).boxed()))
    }

    async fn pipeline(
        &self,
        call: Request<Streaming<PipelineRequest>>,
    ) -> Answer<Self::PipelineStream> {
        {
            let mut state = self.shared.state.lock();
            if state.serves_no_streams {
                return not_served();
            }
            state.streams.push(self.id);
        }
        Ok(Response::new(pipeline::serve(self.clone(), call.into_inner()).boxed()))
    }

    async fn open_session(&self, call: Request<OpenSessionRequest>) -> Answer<OpenSessionResponse> {
        let mut state = self.shared.state.lock();
        state.opened.push((self.id, call.into_inner()));
        Ok(Response::new(OpenSessionResponse {
            session_id: state.store.open_session(),
            born: 1,
            ttl: state.session_ttl.try_into().ok(),
        }))
    }

    async fn cancel(&self, call: Request<CancelRequest>) -> Answer<CancelResponse> {
        let CancelRequest { session_id, sequence, .. } = call.into_inner();
        let settle = |state: &mut State| Ok(state.store.cancel(session_id, sequence));
        Ok(Response::new(self.serve(Calls::Writes, false, settle).await?))
    }
}

#[tonic::async_trait]
impl Cluster for Node {
    async fn get_info(&self, _: Request<GetInfoRequest>) -> Answer<GetInfoResponse> {
        let key_bytes_max = KEY_BYTES_MAX as u64;
        let limits = &self.shared.state.lock().value_bytes_max;
        let value_bytes_max = limits.get(&self.id).copied().unwrap_or(1 << 20);
        Ok(Response::new(GetInfoResponse {
            node_id: self.id,
            version: VERSION.into(),
            limits: Some(Limits { key_bytes_max, value_bytes_max, ..Limits::default() }),
            levels: vec![ReadLevel::Linearizable.into(), ReadLevel::Stale.into()],
            ..GetInfoResponse::default()
        }))
    }

    async fn get_map(&self, call: Request<GetMapRequest>) -> Answer<GetMapResponse> {
        let newer_than = call.into_inner().newer_than;
        let state = self.shared.state.lock();
        let shards = state.map.iter().flat_map(|map| &map.shards).filter(|_| state.leader != 0);
        let leader =
            |shard: &MapShard| ShardLeader { shard: shard.id, node_id: state.leader, term: TERM };
        Ok(Response::new(GetMapResponse {
            map: state.map.clone().filter(|map| map.epoch > newer_than),
            map_epoch: state.epoch(),
            node_id: self.id,
            leaders: shards.map(leader).collect(),
            ..GetMapResponse::default()
        }))
    }

    async fn get_status(&self, _: Request<GetStatusRequest>) -> Answer<GetStatusResponse> {
        let replicas = |state: &mut State| {
            let state = &*state;
            let map = state.map.iter();
            let groups = map.flat_map(|map| {
                let shards = map.shards.iter().map(|shard| (shard.id, &shard.replicas));
                [(0, &map.meta_replicas)].into_iter().chain(shards)
            });
            let replicas = groups.filter_map(|(shard, of)| self.replica(state, shard, of));
            Ok((state.cluster_id(), replicas.collect()))
        };
        let (cluster_id, replicas) = self.serve(Calls::All, false, replicas).await?;
        Ok(Response::new(GetStatusResponse {
            node_id: self.id,
            phase: NodePhase::Ready.into(),
            ready: true,
            live: true,
            version: VERSION.into(),
            cluster_id,
            replicas,
            ..GetStatusResponse::default()
        }))
    }

    /// Makes the node the leader of every shard if the cluster has it.
    async fn transfer_leader(
        &self,
        call: Request<TransferLeaderRequest>,
    ) -> Answer<TransferLeaderResponse> {
        let to = call.into_inner().to_node_id;
        let leader = |state: &mut State| {
            let node = |map: &ClusterMap| map.nodes.iter().any(|node| node.id == to);
            if to != 0 && !state.map.as_ref().is_some_and(node) {
                return Err(failure(Reason::BadRequest));
            }
            state.leader = if to == 0 { 1 } else { to };
            Ok(state.leader)
        };
        let leader_node_id = self.serve(Calls::All, false, leader).await?;
        Ok(Response::new(TransferLeaderResponse { leader_node_id, term: TERM }))
    }
}
