//! A cluster of one node and one shard in this process: real sockets, real gRPC, a map for a store.
//! It keeps sessions, so that a write that is asked again is applied once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use quorate_client::api::cluster_server::{Cluster, ClusterServer};
use quorate_client::api::condition::Expect;
use quorate_client::api::kv_server::{Kv, KvServer};
use quorate_client::api::*;
use quorate_proto::hash::even_range;
use tonic::{Code, Request, Response, Status, Streaming};

const CLUSTER: Bytes = Bytes::from_static(b"cluster-16-bytes");
const HISTORY: Bytes = Bytes::from_static(b"history-16-bytes");

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub value: Bytes,
    pub revision: u64,
    pub create_revision: u64,
}

/// What the node holds and how it misbehaves.
#[derive(Default)]
pub struct State {
    pub rows: BTreeMap<Bytes, Row>,
    pub index: u64,
    /// Answers by session and sequence.
    answers: BTreeMap<(Bytes, u64), Written>,
    sessions: u64,
    /// The next calls of `Kv` fail with these.
    pub failures: VecDeque<Reason>,
    /// All writes are refused for this reason, and not done.
    pub refuse_writes: Option<Reason>,
    /// Writes are done and never answered.
    pub hang_writes: bool,
    /// Reads are never answered.
    pub hang_reads: bool,
    /// Writes that came, also those asked again.
    pub writes: u64,
    /// The levels of the reads that came, and whether they had a token.
    pub reads: Vec<(i32, bool)>,
    /// Whether the shard has a leader.
    pub leaderless: bool,
    /// Where the map says that the node is, if not where it is.
    pub advertised: Option<String>,
    /// The cluster that the map names, if not the usual one.
    pub cluster: Option<Bytes>,
}

#[derive(Clone, Default)]
struct Written {
    applied: bool,
    before: Option<Row>,
    after: Option<Row>,
    number: i64,
    replayed: bool,
}

/// A running node; it ends with the process.
#[derive(Clone)]
pub struct Fake {
    pub state: Arc<Mutex<State>>,
    pub address: String,
}

impl Fake {
    /// Starts a node on a runtime of its own.
    pub fn start() -> Fake {
        let (sender, receiver) = std::sync::mpsc::channel();
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_all().build().unwrap().block_on(async move {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap().to_string();
                let fake = Fake { state: shared, address };
                sender.send(fake.clone()).unwrap();
                let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
                tonic::transport::Server::builder()
                    .add_service(KvServer::new(fake.clone()))
                    .add_service(ClusterServer::new(fake))
                    .serve_with_incoming(incoming)
                    .await
                    .unwrap();
            });
        });
        receiver.recv().unwrap()
    }

    pub fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn map(&self) -> ClusterMap {
        let (first, last) = even_range(0, 1);
        let replica = MapReplica { replica_id: 1, node_id: 1 };
        let advertised = self.state().advertised.clone();
        let cluster_id = self.state().cluster.clone().unwrap_or(CLUSTER);
        ClusterMap {
            cluster_id,
            history: HISTORY,
            epoch: 1,
            nodes: vec![MapNode {
                id: 1,
                client_address: advertised.unwrap_or_else(|| self.address.clone()),
                ..Default::default()
            }],
            shards: vec![MapShard { id: 1, first, last, epoch: 1, replicas: vec![replica] }],
            meta_replicas: vec![replica],
            replicas_wanted: 1,
            ..Default::default()
        }
    }

    /// Fails as the test says; of a write with a session a refusal says nothing but of this attempt.
    fn fail(&self, refusal: Option<Reason>, in_session: bool) -> Result<(), Status> {
        let next = self.state().failures.pop_front();
        let Some(reason) = next.or(refusal) else { return Ok(()) };
        let mut failure = Failure::of(reason, "as the test says");
        if in_session && failure.outcome() == Outcome::NotApplied {
            failure.outcome = Outcome::AttemptNotApplied as i32;
        }
        let (code, message) = (Code::from(failure.code), failure.message.clone());
        Err(Status::with_details(code, message, failure.to_details("request-1")))
    }

    fn receipt(&self, level: i32) -> (Option<Receipt>, Option<SessionToken>) {
        let receipt = Receipt {
            level: level.max(1),
            shard: 1,
            term: 2,
            index: self.state().index,
            node_id: 1,
            map_epoch: 1,
            history: HISTORY,
            age_bound: None,
            leader_node_id: 1,
        };
        let token = SessionToken::of_receipt(CLUSTER, &receipt);
        (Some(receipt), Some(token))
    }

    async fn read(&self, options: Option<ReadOptions>) -> Result<i32, Status> {
        self.fail(None, false)?;
        let options = options.unwrap_or_default();
        self.state().reads.push((options.level, options.token.is_some()));
        if self.state().hang_reads {
            std::future::pending::<()>().await;
        }
        Ok(options.level)
    }

    /// Does a write once for each session and sequence. The change gives what the key holds then.
    async fn write(
        &self,
        key: Bytes,
        condition: Option<Condition>,
        session: Option<WriteSession>,
        change: impl FnOnce(Option<&Row>) -> Result<Option<Bytes>, Reason>,
    ) -> Result<Written, Status> {
        let refusal = self.state().refuse_writes;
        self.fail(refusal, session.is_some())?;
        let written = self.apply(key, condition, session, change)?;
        if self.state().hang_writes {
            std::future::pending::<()>().await;
        }
        Ok(written)
    }

    fn apply(
        &self,
        key: Bytes,
        condition: Option<Condition>,
        session: Option<WriteSession>,
        change: impl FnOnce(Option<&Row>) -> Result<Option<Bytes>, Reason>,
    ) -> Result<Written, Status> {
        let mut state = self.state();
        state.writes += 1;
        let id = session.map(|session| (session.id, session.sequence));
        if let Some(answer) = id.as_ref().and_then(|id| state.answers.get(id)) {
            return Ok(Written { replayed: true, ..answer.clone() });
        }
        state.index += 1;
        let index = state.index;
        let before = state.rows.get(&key).cloned();
        let holds = match condition.and_then(|condition| condition.expect) {
            None => true,
            Some(Expect::Absent(_)) => before.is_none(),
            Some(Expect::Revision(revision)) => {
                before.as_ref().map_or(0, |row| row.revision) == revision
            }
            Some(Expect::Value(value)) => before.as_ref().is_some_and(|row| row.value == value),
        };
        let mut written =
            Written { before: before.clone(), after: before.clone(), ..Default::default() };
        if holds {
            let value = change(before.as_ref()).map_err(|reason| {
                let failure = Failure::of(reason, "the value is not a number");
                let details = failure.to_details("request-2");
                Status::with_details(Code::from(failure.code), failure.message.clone(), details)
            })?;
            let create_revision = before.as_ref().map_or(index, |row| row.create_revision);
            written.applied = true;
            written.after = value.map(|value| Row { value, revision: index, create_revision });
            match &written.after {
                Some(row) => state.rows.insert(key, row.clone()),
                None => state.rows.remove(&key),
            };
        }
        if let Some(id) = id {
            state.answers.insert(id, written.clone());
        }
        Ok(written)
    }
}

fn stored(row: Option<&Row>) -> Option<StoredValue> {
    row.map(|row| StoredValue {
        value: row.value.clone(),
        value_omitted: false,
        revision: row.revision,
        create_revision: row.create_revision,
        log_time: 0,
    })
}

macro_rules! answer {
    ($type:ident, $fake:expr, $written:expr, $previous:expr $(, $field:ident)?) => {{
        let (receipt, token) = $fake.receipt(1);
        Ok(Response::new($type {
            applied: $written.applied,
            found: $written.before.is_some(),
            revision: $written.after.as_ref().map_or(0, |row| row.revision),
            create_revision: $written.after.as_ref().map_or(0, |row| row.create_revision),
            previous: $previous.then(|| stored($written.before.as_ref())).flatten(),
            replayed: $written.replayed,
            receipt,
            token,
            $($field: $written.$field,)?
            ..Default::default()
        }))
    }};
}

#[tonic::async_trait]
impl Kv for Fake {
    type MultiGetStream = futures::stream::Empty<Result<MultiGetResponse, Status>>;
    type ScanStream = BoxStream<'static, Result<ScanResponse, Status>>;
    type PipelineStream = futures::stream::Empty<Result<PipelineResponse, Status>>;

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let get = request.into_inner();
        let level = self.read(get.read).await?;
        let (receipt, token) = self.receipt(level);
        let row = self.state().rows.get(&get.key).cloned();
        Ok(Response::new(match row {
            None => GetResponse { receipt, token, ..Default::default() },
            Some(row) => GetResponse {
                found: true,
                value: row.value,
                revision: row.revision,
                create_revision: row.create_revision,
                log_time: 7 << 16,
                receipt,
                token,
            },
        }))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let put = request.into_inner();
        let value = put.value;
        let written = self.write(put.key, put.condition, put.session, |_| Ok(Some(value))).await?;
        answer!(PutResponse, self, written, put.return_previous)
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let delete = request.into_inner();
        let written =
            self.write(delete.key, delete.condition, delete.session, |_| Ok(None)).await?;
        answer!(DeleteResponse, self, written, delete.return_previous)
    }

    async fn compare_and_set(
        &self,
        request: Request<CompareAndSetRequest>,
    ) -> Result<Response<CompareAndSetResponse>, Status> {
        let cas = request.into_inner();
        let value = cas.value;
        let written = self.write(cas.key, cas.expect, cas.session, |_| Ok(Some(value))).await?;
        answer!(CompareAndSetResponse, self, written, cas.return_previous)
    }

    async fn increment(
        &self,
        request: Request<IncrementRequest>,
    ) -> Result<Response<IncrementResponse>, Status> {
        let increment = request.into_inner();
        let add = |row: Option<&Row>| {
            let text = row.map_or("0", |row| str::from_utf8(&row.value).unwrap_or("no"));
            let number: i64 = text.parse().map_err(|_| Reason::NotANumber)?;
            Ok(Some(Bytes::from((number + increment.delta).to_string())))
        };
        let mut written =
            self.write(increment.key, increment.condition, increment.session, add).await?;
        let after = written.after.as_ref().map(|row| String::from_utf8_lossy(&row.value));
        written.number = after.and_then(|text| text.parse().ok()).unwrap_or(0);
        answer!(IncrementResponse, self, written, increment.return_previous, number)
    }

    async fn batch(&self, _: Request<BatchRequest>) -> Result<Response<BatchResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn multi_get(
        &self,
        _: Request<MultiGetRequest>,
    ) -> Result<Response<Self::MultiGetStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn scan(
        &self,
        request: Request<ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let scan = request.into_inner();
        let level = self.read(scan.read).await?;
        let (receipt, token) = self.receipt(level);
        let mut rows: Vec<ScanRow> = Vec::new();
        for (key, row) in &self.state().rows {
            if key.starts_with(&scan.prefix)
                && *key >= scan.start
                && (scan.end.is_empty() || *key < scan.end)
            {
                rows.push(ScanRow {
                    key: key.clone(),
                    value: if scan.keys_only { Bytes::new() } else { row.value.clone() },
                    revision: row.revision,
                    create_revision: row.create_revision,
                    log_time: 7 << 16,
                });
            }
        }
        if scan.reverse {
            rows.reverse();
        }
        if scan.limit != 0 {
            rows.truncate(scan.limit as usize);
        }
        let count = rows.len() as u64;
        let mut messages: Vec<Result<ScanResponse, Status>> = Vec::new();
        if !scan.count_only {
            for rows in rows.chunks(100) {
                messages.push(Ok(ScanResponse { rows: rows.to_vec(), ..Default::default() }));
            }
        }
        let receipts = receipt.into_iter().collect();
        messages.push(Ok(ScanResponse { count, receipts, token, ..Default::default() }));
        Ok(Response::new(futures::stream::iter(messages).boxed()))
    }

    async fn pipeline(
        &self,
        _: Request<Streaming<PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn open_session(
        &self,
        _: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        let mut state = self.state();
        state.sessions += 1;
        Ok(Response::new(OpenSessionResponse {
            session_id: format!("session-{:016}", state.sessions).into(),
            born: 1,
            ttl: Duration::from_secs(600).try_into().ok(),
        }))
    }

    async fn cancel(&self, _: Request<CancelRequest>) -> Result<Response<CancelResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

#[tonic::async_trait]
impl Cluster for Fake {
    async fn get_info(
        &self,
        _: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        let limits = Limits { key_bytes_max: 4096, ..Default::default() };
        Ok(Response::new(GetInfoResponse {
            node_id: 1,
            limits: Some(limits),
            ..Default::default()
        }))
    }

    async fn get_map(
        &self,
        request: Request<GetMapRequest>,
    ) -> Result<Response<GetMapResponse>, Status> {
        let newer = request.into_inner().newer_than < 1;
        let leader = ShardLeader { shard: 1, node_id: 1, term: 2 };
        Ok(Response::new(GetMapResponse {
            map: newer.then(|| self.map()),
            map_epoch: 1,
            node_id: 1,
            leaders: vec![leader],
        }))
    }

    async fn get_status(
        &self,
        _: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        let state = self.state();
        let leads = !state.leaderless;
        let replica = |shard| ReplicaStatus {
            shard,
            replica_id: 1,
            role: match leads || shard == 0 {
                true => ReplicaRole::Leader.into(),
                false => ReplicaRole::Follower.into(),
            },
            term: 2,
            commit: state.index,
            applied: state.index,
            keys: state.rows.len() as u64,
            voters: vec![MapReplica { replica_id: 1, node_id: 1 }],
            health: ReplicaHealth::Ok.into(),
            leaderless_for: match leads {
                true => None,
                false => Duration::from_secs(4).try_into().ok(),
            },
            ..Default::default()
        };
        Ok(Response::new(GetStatusResponse {
            node_id: 1,
            phase: NodePhase::Ready.into(),
            ready: true,
            live: true,
            version: "0.1.0".into(),
            cluster_id: state.cluster.clone().unwrap_or(CLUSTER),
            replicas: vec![replica(0), replica(1)],
            ..Default::default()
        }))
    }

    async fn transfer_leader(
        &self,
        _: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        Ok(Response::new(TransferLeaderResponse { leader_node_id: 1, term: 2 }))
    }
}
