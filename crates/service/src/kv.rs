//! The Kv service.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use quorate_machine::BirthWish;
use quorate_machine::{LogTime, Refusal, WriteAnswer};
use quorate_proto::limits::SESSION_TTL;
use quorate_proto::v1::kv_server::Kv;
use quorate_proto::v1::{
    BatchRequest, BatchResponse, CancelRequest, CancelResponse, CompareAndSetRequest,
    CompareAndSetResponse, DeleteRequest, DeleteResponse, Failure, GetRequest, GetResponse,
    IncrementRequest, IncrementResponse, MultiGetRequest, MultiGetResponse, OpenSessionRequest,
    OpenSessionResponse, PipelineRequest, PipelineResponse, PutRequest, PutResponse, ScanRequest,
    ScanResponse,
};
use quorate_raft::GroupId;
use tonic::{Request, Response, Status, Streaming};

use super::call::{CallerAddress, CallerConnection, Calls};
use super::context::{Answers, Context};
use super::operation::{Kind, level, refused};
use super::write::{Written, write};
use super::{multi_get, pipeline, scan};
use crate::draft::CommandDraft;
use crate::metrics::Method;
use crate::reply;
use crate::shared::{Shared, duration};

/// The Kv service of a node. Before the node is ready every call answers STARTING.
#[derive(Clone)]
pub struct KvService {
    calls: Calls,
}

impl KvService {
    /// The service of these calls.
    #[must_use]
    pub fn new(calls: Calls) -> Self {
        Self { calls }
    }
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        self.calls.operation(request).await
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        self.calls.operation(request).await
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        self.calls.operation(request).await
    }

    async fn compare_and_set(
        &self,
        request: Request<CompareAndSetRequest>,
    ) -> Result<Response<CompareAndSetResponse>, Status> {
        self.calls.operation(request).await
    }

    async fn increment(
        &self,
        request: Request<IncrementRequest>,
    ) -> Result<Response<IncrementResponse>, Status> {
        self.calls.operation(request).await
    }

    async fn batch(
        &self,
        request: Request<BatchRequest>,
    ) -> Result<Response<BatchResponse>, Status> {
        self.calls.operation(request).await
    }

    async fn cancel(
        &self,
        request: Request<CancelRequest>,
    ) -> Result<Response<CancelResponse>, Status> {
        self.calls
            .unary(Kind::of(Method::Cancel), request, |shared, context, request| async move {
                cancel(&shared, &context, request).await
            })
            .await
    }

    async fn open_session(
        &self,
        request: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        let kind = Kind::of(Method::OpenSession);
        let caller = request.extensions().get::<CallerAddress>().map(|caller| caller.0);
        self.calls
            .unary(kind, request, |shared, _, request| async move {
                Ok(open_session(&shared, caller, &request))
            })
            .await
    }

    type MultiGetStream = Answers<MultiGetResponse>;

    async fn multi_get(
        &self,
        request: Request<MultiGetRequest>,
    ) -> Result<Response<Self::MultiGetStream>, Status> {
        let kind = Kind::reads(Method::MultiGet, level(request.get_ref().read.as_ref()));
        let most = multi_get::piece_bytes(request.metadata());
        self.calls
            .stream(kind, request, |shared, context, place, request| async move {
                multi_get::multi_get(&shared, &context, place, request, most)
            })
            .await
    }

    type ScanStream = Answers<ScanResponse>;

    async fn scan(
        &self,
        request: Request<ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let kind = Kind::reads(Method::Scan, level(request.get_ref().read.as_ref()));
        let metadata = request.metadata().clone();
        self.calls
            .stream(kind, request, |shared, context, _, request| async move {
                let only = scan::only_shard(&metadata);
                scan::scan(&shared, &context, request, only).await
            })
            .await
    }

    type PipelineStream = Answers<PipelineResponse>;

    async fn pipeline(
        &self,
        request: Request<Streaming<PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        let connection = request.extensions().get::<CallerConnection>().cloned();
        let calls = self.calls.clone();
        self.calls
            .lasting(Kind::of(Method::Pipeline), request, |context, operations| {
                pipeline::serve(calls, context, connection, operations)
            })
            .await
    }
}

async fn cancel(
    shared: &Arc<Shared>,
    context: &Context,
    request: CancelRequest,
) -> Result<CancelResponse, Failure> {
    let draft =
        CommandDraft::cancel(&request, &shared.rules).map_err(|invalid| invalid.failure())?;
    let hint = request.route.clone();
    // A Cancel frees what its sequence held, so it is let in like a delete.
    match write(shared, context, &request, hint.as_ref(), draft, true).await? {
        Written::Elsewhere(answer) => Ok(answer),
        Written::Here(receipt, answer) => {
            let mut answer = match answer {
                WriteAnswer::Barred => reply::cancel_barred(),
                WriteAnswer::Done(done) => reply::cancel_answered(done),
                WriteAnswer::Refused(Refusal::NotANumber(why)) => reply::cancel_refused(why),
                other => return Err(refused(other, false)),
            };
            answer.token = Some(shared.token(&receipt));
            answer.receipt = Some(receipt);
            Ok(answer)
        }
    }
}

/// Mints a session without asking anybody: born at the median of the clocks that this node knows,
/// never at its own alone. Leaders hold the log time near the same median, so that shards take the
/// session though one clock is wrong.
///
/// A log that is ahead of the clocks, because they were once, waits for them: a session for such a
/// shard is born no earlier than what its replica here has applied. For that shard alone, because
/// the others would refuse it as born in their future.
///
/// The id names the client by the address that it called from, for its share of the shards'
/// session tables.
fn open_session(
    shared: &Shared,
    caller: Option<IpAddr>,
    request: &OpenSessionRequest,
) -> OpenSessionResponse {
    let clock = LogTime::from_millis(shared.clocks.median_ms(shared.clock.moment()));
    let shard = shared.engine.shards().get(GroupId(request.shard)).filter(|_| request.shard != 0);
    let applied = shard.map_or(0, |shard| shard.reader.status().log_time);
    let wish = BirthWish {
        not_before: LogTime(request.not_before),
        not_after: LogTime(request.not_after),
    };
    let id = shared.sessions.mint(clock.max(LogTime(applied)), wish, rand::random());
    let key = &shared.rules.session_key;
    let wire = key.seal(&id, &key.client(caller));
    OpenSessionResponse {
        session_id: Bytes::copy_from_slice(&wire),
        born: id.birth().0,
        ttl: Some(duration(SESSION_TTL)),
    }
}
