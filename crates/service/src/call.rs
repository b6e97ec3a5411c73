//! Calls: the one wrapper that every call of every service goes through, in every phase of the
//! node.
//!
//! It reads the call's context, asks the lifecycle whether calls are served and the admission
//! whether there is room for one more, counts the call once when it ends (however it ends, a caller
//! that leaves included), logs slow ones, completes failures, states what a failure means for a
//! write, and makes the gRPC status. Handlers return bare failures. Authentication of callers
//! belongs here.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use futures::Stream;
use quorate_machine::Map;
use quorate_proto::limits::VALUE_BYTES_CEILING;
use quorate_proto::v1::{Failure, ReadLevel};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use crate::admission::Admitted;
use crate::context::{Answers, Context};
use crate::metrics::{Method, ServiceMetrics, Shed};
use crate::operation::{Kind, Operation};
use crate::outcome::{HasOutcome, Subject, check_features};
use crate::shared::{AnswerBudget, CallGuard, Lifecycle, Shared, SharedCell};

/// Calls that take longer than this are logged.
const SLOW: Duration = Duration::from_secs(1);

/// The shared state of the calls of all services.
#[derive(Clone)]
pub struct Calls {
    cell: SharedCell,
    metrics: Arc<ServiceMetrics>,
}

/// The address that a call came from, which its listener puts into the extensions of the request.
#[derive(Clone, Copy, Debug)]
pub struct CallerAddress(pub IpAddr);

/// The connection that a call came on, as its listener knows it.
pub trait Connection: Send + Sync {
    /// Counts the connection as used for as long as the guard lives. A stream of operations does so
    /// while one of them is under way, and is idle between them.
    fn begin(&self) -> Box<dyn Send>;

    /// Whether the other end has proved to be a node of the cluster.
    fn is_of_node(&self) -> bool;

    /// Cancelled when the connection is to be closed: a stream ends then.
    fn leaving(&self) -> &CancellationToken;
}

/// The connection of a call, which its listener puts into the extensions of the request.
#[derive(Clone)]
pub struct CallerConnection(pub Arc<dyn Connection>);

impl Calls {
    /// The calls of a node, from the start of the process on.
    #[must_use]
    pub fn new(cell: SharedCell, metrics: Arc<ServiceMetrics>) -> Self {
        Self { cell, metrics }
    }

    /// The lifecycle of the node.
    #[must_use]
    pub fn life(&self) -> &Arc<Lifecycle> {
        &self.cell.life
    }

    /// A call with one answer, served once the node is ready; stale reads as soon as the storage is
    /// open.
    ///
    /// # Errors
    /// The status of the failure.
    pub async fn unary<R, T, F>(
        &self,
        kind: Kind,
        request: Request<R>,
        run: impl FnOnce(Arc<Shared>, Context, R) -> F,
    ) -> Result<Response<T>, Status>
    where
        R: HasOutcome,
        F: Future<Output = Result<T, Failure>>,
    {
        let (call, shared, _under_way) = self.admit(kind, &request)?;
        match run(shared, call.context.clone(), request.into_inner()).await {
            Ok(answer) => Ok(call.answer(answer)),
            Err(failure) => Err(call.fail(failure)),
        }
    }

    /// A call that is one operation.
    ///
    /// # Errors
    /// The status of the failure.
    pub async fn operation<R: Operation>(
        &self,
        request: Request<R>,
    ) -> Result<Response<R::Response>, Status> {
        self.unary(request.get_ref().kind(), request, |shared, context, request| {
            request.carry_out(shared, context)
        })
        .await
    }

    /// An operation of a Pipeline, with what a drain waits for until its answer is sent.
    pub async fn in_pipeline<R: Operation>(
        &self,
        context: Context,
        request: R,
    ) -> (Result<R::Response, Failure>, Option<Arc<CallGuard>>) {
        let kind = request.kind();
        let mut call = self.call(kind, context.clone(), &request);
        let (shared, (guard, place)) = match self.enter(kind, &context, &request) {
            Ok(entered) => entered,
            Err(failure) => return (Err(call.report(failure)), None),
        };
        // It may be given back before the end.
        match &context.in_stream {
            Some(stream) => stream.keep_place(place),
            None => drop(place),
        }
        let result = match request.carry_out(shared, context).await {
            Ok(answer) => {
                call.code = Code::Ok as i32;
                Ok(answer)
            }
            Err(failure) => Err(call.report(failure)),
        };
        (result, Some(guard))
    }

    /// The failure of an operation of a Pipeline that is refused before it is looked at.
    pub fn refused_in_pipeline<R: Operation>(
        &self,
        context: &Context,
        request: &R,
        failure: Failure,
    ) -> Failure {
        self.call(request.kind(), context.clone(), request).report(failure)
    }

    /// The room for answers that are not taken; `None` while the node has no storage.
    #[must_use]
    pub fn answers(&self) -> Option<Arc<dyn AnswerBudget>> {
        Some(self.cell.get()?.answers.clone())
    }

    /// The cluster map, if the node has one.
    #[must_use]
    pub fn map(&self) -> Option<Arc<Map>> {
        self.cell.get()?.map.get()
    }

    /// The longest value that the node takes, in bytes.
    #[must_use]
    pub fn value_bytes_max(&self) -> usize {
        self.cell.get().map_or(VALUE_BYTES_CEILING, |shared| shared.rules.value_bytes_max)
    }

    /// A call that lasts as long as its stream, which a drain does not wait for: what comes on it
    /// is counted by itself.
    ///
    /// # Errors
    /// The status of a failure before the first message.
    pub async fn lasting<R, T, S>(
        &self,
        kind: Kind,
        request: Request<R>,
        run: impl FnOnce(Context, R) -> S,
    ) -> Result<Response<Answers<T>>, Status>
    where
        R: HasOutcome,
        T: 'static,
        S: Stream<Item = Result<T, Failure>> + Send + 'static,
    {
        let call = self.begin(kind, &request);
        if let Err(failure) = self.enter(kind, &call.context, request.get_ref()) {
            return Err(call.fail(failure));
        }
        let answers = run(call.context.clone(), request.into_inner());
        Ok(counted(call, answers, None))
    }

    /// A call that is answered with a stream. It ends when the stream does, or when its reader
    /// leaves. `run` has its place among the calls under way, which must not wait for a reader.
    ///
    /// # Errors
    /// The status of a failure before the first message.
    pub async fn stream<R, T, S, F>(
        &self,
        kind: Kind,
        request: Request<R>,
        run: impl FnOnce(Arc<Shared>, Context, Option<Admitted>, R) -> F,
    ) -> Result<Response<Answers<T>>, Status>
    where
        R: HasOutcome,
        T: 'static,
        S: Stream<Item = Result<T, Failure>> + Send + 'static,
        F: Future<Output = Result<S, Failure>>,
    {
        let (call, shared, (guard, place)) = self.admit(kind, &request)?;
        match run(shared, call.context.clone(), place, request.into_inner()).await {
            Ok(answers) => Ok(counted(call, answers, Some(guard))),
            Err(failure) => Err(call.fail(failure)),
        }
    }

    /// A call that is answered in every phase of the node, with the shared state where there is one
    /// already.
    ///
    /// # Errors
    /// The status of the failure.
    pub async fn in_any_phase<R, T, F>(
        &self,
        kind: Kind,
        request: Request<R>,
        run: impl FnOnce(Option<Arc<Shared>>, R) -> F,
    ) -> Result<Response<T>, Status>
    where
        R: HasOutcome,
        F: Future<Output = Result<T, Failure>>,
    {
        let call = self.begin(kind, &request);
        if let Err(failure) = check_features(request.get_ref().required_features()) {
            return Err(call.fail(failure));
        }
        match run(self.cell.get(), request.into_inner()).await {
            Ok(answer) => Ok(call.answer(answer)),
            Err(failure) => Err(call.fail(failure)),
        }
    }

    fn begin<R: HasOutcome>(&self, kind: Kind, request: &Request<R>) -> Call {
        if let Some(arrival) = request.extensions().get::<Arc<Arrival>>() {
            arrival.handled.store(true, Ordering::Relaxed);
        }
        self.call(kind, Context::of(request.metadata()), request.get_ref())
    }

    fn call<R: HasOutcome>(&self, kind: Kind, context: Context, request: &R) -> Call {
        let subject = request.subject();
        Call { context, kind, subject, calls: self.clone(), code: Code::Cancelled as i32 }
    }

    /// Begins a call that needs an open storage or a ready node.
    ///
    /// # Errors
    /// The status of a call before the node is ready, while it drains, or has too much to do.
    fn admit<R: HasOutcome>(
        &self,
        kind: Kind,
        request: &Request<R>,
    ) -> Result<(Call, Arc<Shared>, UnderWay), Status> {
        let call = self.begin(kind, request);
        match self.enter(kind, &call.context, request.get_ref()) {
            Ok((shared, under_way)) => {
                if let Some(arrival) = request.extensions().get::<Arc<Arrival>>() {
                    // It is given once; a second one would only be dropped earlier.
                    let _ = arrival.guard.set(under_way.0.clone());
                }
                Ok((call, shared, under_way))
            }
            Err(failure) => Err(call.fail(failure)),
        }
    }

    /// Whether the node takes the request: with what a drain waits for, and the request's place.
    /// The guard is taken before the phase is read, so that a drain that begins later sees it.
    ///
    /// # Errors
    /// The failure of a request before the node is ready, while it drains, that requires more than
    /// this version has, or comes when there is too much to do.
    fn enter<R: HasOutcome>(
        &self,
        kind: Kind,
        context: &Context,
        request: &R,
    ) -> Result<(Arc<Shared>, UnderWay), Failure> {
        let guard = Arc::new(self.cell.life.call());
        let shared = self.admitted(kind)?;
        check_features(request.required_features())?;
        match shared.admission.admit(kind.method, context, request.bytes()) {
            Ok(place) => Ok((shared, (guard, place))),
            Err(failure) => {
                shared.metrics.shed(Shed::Calls).inc();
                Err(failure)
            }
        }
    }

    fn admitted(&self, kind: Kind) -> Result<Arc<Shared>, Failure> {
        match kind.level {
            // A draining node rejects these too: they would keep it, and be cut off.
            Some(ReadLevel::Stale) if !self.cell.life.refuses() => self.cell.open(),
            _ => self.cell.serving(),
        }
    }
}

/// What a call holds until its end: what the drain waits for, and its place.
type UnderWay = (Arc<CallGuard>, Option<Admitted>);

/// A call of the client API from its arrival on. One that no handler ever has is counted when this
/// is dropped: refused at the door, not readable, of a method that is not there, or given up before
/// its request was whole.
pub struct Arrival {
    metrics: Arc<ServiceMetrics>,
    /// `None` = this version does not know it.
    method: Option<Method>,
    began: Instant,
    code: AtomicI32,
    /// Whether a handler has it, and with it a [`Call`] that counts it.
    handled: AtomicBool,
    /// What the drain waits for, of a call that was admitted: not for its handler alone, but until
    /// its answer is sent, which is as long as the listener keeps this.
    guard: OnceLock<Arc<CallGuard>>,
}

impl Arrival {
    /// The call of this path; `None` if it is not of the client API. Goes into the extensions of
    /// the request.
    #[must_use]
    pub fn of(path: &str, metrics: &Arc<ServiceMetrics>) -> Option<Arc<Self>> {
        let (_, method) = path.strip_prefix("/quorate.v1.")?.split_once('/')?;
        Some(Arc::new(Self {
            metrics: metrics.clone(),
            method: Method::named(method),
            began: Instant::now(),
            code: AtomicI32::new(Code::Cancelled as i32),
            handled: AtomicBool::new(false),
            guard: OnceLock::new(),
        }))
    }

    /// Takes the code that the call was answered with, should no handler have had it.
    pub fn answered(&self, code: i32) {
        self.code.store(code, Ordering::Relaxed);
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if *self.handled.get_mut() {
            return;
        }
        let (requests, code) = (&self.metrics.requests, *self.code.get_mut());
        match self.method {
            Some(method) => requests.observe(method, code, None, self.began.elapsed()),
            None => requests.observe_unknown(code),
        }
    }
}

/// One call under way. It is counted when it is dropped, with the code that it has then: CANCELLED,
/// if its caller left before the end.
struct Call {
    context: Context,
    kind: Kind,
    subject: Subject,
    calls: Calls,
    code: i32,
}

impl Call {
    fn answer<T>(mut self, answer: T) -> Response<T> {
        self.code = Code::Ok as i32;
        let mut response = Response::new(answer);
        self.context.sign(response.metadata_mut());
        response
    }

    fn fail(mut self, failure: Failure) -> Status {
        let failure = self.report(failure);
        self.context.status(&failure)
    }

    /// The failure as it is sent; the call ends with it.
    fn report(&mut self, failure: Failure) -> Failure {
        let failure = match self.calls.cell.get() {
            Some(shared) => shared.complete(failure),
            None => failure,
        };
        self.code = failure.code;
        self.subject.report(failure)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let took = self.context.started.elapsed();
        let Kind { method, level } = self.kind;
        self.calls.metrics.requests.observe(method, self.code, level, took);
        if took >= SLOW {
            let (method, code, hops) = (method.name(), self.code, self.context.hops);
            let request_id = self.context.request_id.as_str();
            tracing::warn!(method, code, request_id, ?took, hops, "request: slow");
        }
    }
}

/// The response of a call that is answered with a stream; its end is that of the call.
fn counted<T: 'static>(
    call: Call,
    answers: impl Stream<Item = Result<T, Failure>> + Send + 'static,
    under_way: Option<Arc<CallGuard>>,
) -> Response<Answers<T>> {
    let context = call.context.clone();
    let answers = Counted { answers: Box::pin(answers), call: Some((call, under_way)) };
    let mut response = Response::new(Box::pin(answers) as Answers<T>);
    context.sign(response.metadata_mut());
    response
}

/// The answers of a call, counted at their end.
struct Counted<S> {
    answers: Pin<Box<S>>,
    /// With what a drain waits for; `None` once the end was counted.
    call: Option<(Call, Option<Arc<CallGuard>>)>,
}

impl<T, S: Stream<Item = Result<T, Failure>>> Stream for Counted<S> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Option<Self::Item>> {
        match self.answers.as_mut().poll_next(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(answer))) => Poll::Ready(Some(Ok(answer))),
            Poll::Ready(Some(Err(failure))) => {
                let call = self.call.take();
                Poll::Ready(call.map(|(call, _under_way)| Err(call.fail(failure))))
            }
            Poll::Ready(None) => {
                if let Some((mut call, _under_way)) = self.call.take() {
                    call.code = Code::Ok as i32;
                }
                Poll::Ready(None)
            }
        }
    }
}
