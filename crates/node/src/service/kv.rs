//! The Kv service.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::limits::SESSION_TTL;
use quorate_proto::v1::kv_server::Kv;
use quorate_proto::v1::{
    BatchRequest, BatchResponse, CancelRequest, CancelResponse, CompareAndSetRequest,
    CompareAndSetResponse, DeleteRequest, DeleteResponse, Failure, GetRequest, GetResponse,
    IncrementRequest, IncrementResponse, MultiGetRequest, MultiGetResponse, OpenSessionRequest,
    OpenSessionResponse, PipelineRequest, PipelineResponse, PutRequest, PutResponse, ReadLevel,
    ReadOptions, Reason, ScanRequest, ScanResponse,
};
use quorate_raft::GroupId;
use tonic::{Request, Response, Status, Streaming};

use super::context::Context;
use super::outcome::{HasOutcome, Subject};
use super::write::{Written, write};
use super::{read, scan};
use crate::apply::{LogTime, Refusal, WriteAnswer};
use crate::command::{CommandDraft, Invalid};
use crate::core::{Core, CoreCell, duration, retry_after};
use crate::metrics::{LevelLabel, Method};
use crate::reply;
use crate::session_id::BirthWish;

/// The Kv service of a node. Before the node is ready every call answers STARTING.
#[derive(Clone)]
pub struct KvService {
    cell: CoreCell,
}

/// A stream of answers.
pub type Answers<T> = Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;

impl KvService {
    /// The service over a node's core, as soon as there is one.
    #[must_use]
    pub fn new(cell: CoreCell) -> Self {
        Self { cell }
    }

    /// Runs a unary call: reads its context, counts it, and turns a failure into its status, which
    /// says what is known of the outcome.
    async fn unary<R, T, F>(
        &self,
        method: Method,
        level: LevelLabel,
        request: Request<R>,
        run: impl FnOnce(Arc<Core>, Context, R) -> F,
    ) -> Result<Response<T>, Status>
    where
        R: HasOutcome,
        F: Future<Output = Result<T, Failure>>,
    {
        let context = Context::of(request.metadata());
        let subject = request.get_ref().subject();
        let refused = |failure| context.status(&subject.told(failure));
        let core = match level {
            LevelLabel::Stale => self.cell.open(),
            _ => self.cell.serving(),
        };
        let core = core.map_err(refused)?;
        let _call = core.life.call();
        let outcome = run(core.clone(), context.clone(), request.into_inner()).await;
        let code = outcome.as_ref().map_or_else(|failure| failure.code, |_| 0);
        core.metrics.requests.observe(method, code, level, context.started.elapsed());
        note_slow(method, code, &context);
        let answer = outcome.map_err(refused)?;
        let mut response = Response::new(answer);
        context.sign(response.metadata_mut());
        Ok(response)
    }
}

/// A request that took so long is worth a line in the log.
const SLOW: Duration = Duration::from_secs(1);

fn note_slow(method: Method, code: i32, context: &Context) {
    let took = context.started.elapsed();
    if took >= SLOW {
        let (method, request_id) = (method.name(), context.request_id.as_str());
        tracing::warn!(method, code, request_id, ?took, hops = context.hops, "request: slow");
    }
}

fn level_label(options: Option<&ReadOptions>) -> LevelLabel {
    match options.map_or(ReadLevel::Unspecified, |options| options.level()) {
        ReadLevel::Unspecified | ReadLevel::Linearizable => LevelLabel::Linearizable,
        ReadLevel::Lease => LevelLabel::Lease,
        ReadLevel::Session => LevelLabel::Session,
        ReadLevel::Bounded => LevelLabel::Bounded,
        ReadLevel::Stale => LevelLabel::Stale,
    }
}

fn invalid(core: &Core) -> impl Fn(Invalid) -> Failure + '_ {
    |invalid| core.complete(invalid.failure())
}

/// The methods that write and answer with the result of their operation.
macro_rules! write_method {
    ($core:ident, $context:ident, $request:ident, $draft:ident, $reply:ident, $is_delete:expr) => {{
        let draft = CommandDraft::$draft(&$request, &$core.limits).map_err(invalid(&$core))?;
        let hint = $request.route.clone();
        let several = draft.operations().len() > 1;
        match write(&$core, &$context, &$request, hint.as_ref(), draft, $is_delete).await? {
            Written::Elsewhere(answer) => Ok(answer),
            Written::Here(receipt, WriteAnswer::Done(done)) => {
                let mut answer = reply::$reply(done);
                answer.token = Some($core.token(&receipt));
                answer.receipt = Some(receipt);
                Ok(answer)
            }
            Written::Here(_, other) => Err(refused(&$core, other, several)),
        }
    }};
}

/// The failure that tells of a refusal; of one operation among `several` it says which.
fn refused(core: &Core, answer: WriteAnswer, several: bool) -> Failure {
    match answer {
        WriteAnswer::Refused(refusal) => {
            let failure = core.complete(reply::failure(&refusal, several));
            if failure.reason() == Reason::SessionsFull {
                retry_after(failure, 1_000)
            } else {
                failure
            }
        }
        other => {
            let message = format!("the state machine answered a write with {other:?}");
            core.failure(Reason::Internal, message)
        }
    }
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let level = level_label(request.get_ref().read.as_ref());
        self.unary(Method::Get, level, request, |core, context, request| async move {
            read::get(&core, &context, request).await
        })
        .await
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        self.unary(Method::Put, LevelLabel::None, request, |core, context, request| async move {
            write_method!(core, context, request, put, put, false)
        })
        .await
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        self.unary(Method::Delete, LevelLabel::None, request, |core, context, request| async move {
            write_method!(core, context, request, delete, delete, true)
        })
        .await
    }

    async fn compare_and_set(
        &self,
        request: Request<CompareAndSetRequest>,
    ) -> Result<Response<CompareAndSetResponse>, Status> {
        let method = Method::CompareAndSet;
        self.unary(method, LevelLabel::None, request, |core, context, request| async move {
            write_method!(core, context, request, compare_and_set, compare_and_set, false)
        })
        .await
    }

    async fn increment(
        &self,
        request: Request<IncrementRequest>,
    ) -> Result<Response<IncrementResponse>, Status> {
        let method = Method::Increment;
        self.unary(method, LevelLabel::None, request, |core, context, request| async move {
            write_method!(core, context, request, increment, increment, false)
        })
        .await
    }

    async fn batch(
        &self,
        request: Request<BatchRequest>,
    ) -> Result<Response<BatchResponse>, Status> {
        self.unary(Method::Batch, LevelLabel::None, request, |core, context, request| async move {
            write_method!(core, context, request, batch, batch, false)
        })
        .await
    }

    async fn cancel(
        &self,
        request: Request<CancelRequest>,
    ) -> Result<Response<CancelResponse>, Status> {
        self.unary(Method::Cancel, LevelLabel::None, request, |core, context, request| async move {
            cancel(&core, &context, request).await
        })
        .await
    }

    async fn open_session(
        &self,
        request: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        let method = Method::OpenSession;
        self.unary(method, LevelLabel::None, request, |core, _, request| async move {
            Ok(open_session(&core, &request))
        })
        .await
    }

    type MultiGetStream = Answers<MultiGetResponse>;

    async fn multi_get(
        &self,
        request: Request<MultiGetRequest>,
    ) -> Result<Response<Self::MultiGetStream>, Status> {
        not_offered(&Context::of(request.metadata()), "MultiGet", Subject::Read)
    }

    type ScanStream = Answers<ScanResponse>;

    async fn scan(
        &self,
        request: Request<ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let level = level_label(request.get_ref().read.as_ref());
        let metadata = request.metadata().clone();
        self.unary(Method::Scan, level, request, |core, context, request| async move {
            let only = scan::only_shard(&metadata);
            let answers = scan::scan(&core, &context, request, only).await?;
            Ok(Box::pin(answers) as Self::ScanStream)
        })
        .await
    }

    type PipelineStream = Answers<PipelineResponse>;

    async fn pipeline(
        &self,
        request: Request<Streaming<PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        // Its operations may have sessions, and are not read.
        not_offered(&Context::of(request.metadata()), "Pipeline", Subject::Attempt)
    }
}

fn not_offered<T>(context: &Context, what: &str, subject: Subject) -> Result<Response<T>, Status> {
    let message = format!("this version does not serve {what}");
    Err(context.status(&subject.told(Failure::of(Reason::NotOffered, message))))
}

async fn cancel(
    core: &Arc<Core>,
    context: &Context,
    request: CancelRequest,
) -> Result<CancelResponse, Failure> {
    let draft = CommandDraft::cancel(&request).map_err(invalid(core))?;
    let hint = request.route.clone();
    // A Cancel frees what its sequence held, so it is let in like a delete.
    match write(core, context, &request, hint.as_ref(), draft, true).await? {
        Written::Elsewhere(answer) => Ok(answer),
        Written::Here(receipt, answer) => {
            let mut answer = match answer {
                WriteAnswer::Barred => reply::cancel_barred(),
                WriteAnswer::Done(done) => reply::cancel_answered(done),
                WriteAnswer::Refused(Refusal::NotANumber(why)) => reply::cancel_refused(why),
                other => return Err(refused(core, other, false)),
            };
            answer.token = Some(core.token(&receipt));
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
/// shard is born no earlier than what its replica here has applied. For that shard alone, because the
/// others would refuse it as born in their future.
fn open_session(core: &Core, request: &OpenSessionRequest) -> OpenSessionResponse {
    let clock = LogTime::from_millis(core.clocks.median_ms(core.clock.moment()));
    let shard = core.engine.shards().get(GroupId(request.shard)).filter(|_| request.shard != 0);
    let applied = shard.map_or(0, |shard| shard.reader.status().log_time);
    let wish = BirthWish {
        not_before: LogTime(request.not_before),
        not_after: LogTime(request.not_after),
    };
    let id = core.sessions.mint(clock.max(LogTime(applied)), wish, rand::random());
    OpenSessionResponse {
        session_id: Bytes::copy_from_slice(id.as_bytes()),
        born: id.birth().0,
        ttl: Some(duration(SESSION_TTL)),
    }
}
