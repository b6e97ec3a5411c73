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
use quorate_proto::v1::{Failure, ReadLevel, Reason};
use tonic::{Code, Request, Response, Status};

use crate::admission::Admitted;
use crate::context::{Answers, Context};
use crate::metrics::{Method, ServiceMetrics};
use crate::outcome::{HasOutcome, Subject, check_features};
use crate::shared::{CallGuard, Lifecycle, Shared, SharedCell};

/// Calls that take longer than this are logged.
const SLOW: Duration = Duration::from_secs(1);

/// The shared state of the calls of all services.
#[derive(Clone)]
pub struct Calls {
    cell: SharedCell,
    metrics: Arc<ServiceMetrics>,
}

/// The kind of a call, known before its request is read.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The method.
    pub method: Method,
    /// The read level; `None` for a call that reads nothing.
    pub level: Option<ReadLevel>,
}

impl Kind {
    /// A call of this method that reads nothing.
    #[must_use]
    pub fn of(method: Method) -> Self {
        Self { method, level: None }
    }

    /// A call that reads at a level.
    #[must_use]
    pub fn reads(method: Method, level: ReadLevel) -> Self {
        Self { method, level: Some(level) }
    }
}

/// The address that a call came from, which its listener puts into the extensions of the request.
#[derive(Clone, Copy, Debug)]
pub struct CallerAddress(pub IpAddr);

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

    /// A call that is answered with a stream. It ends when the stream does, or when its reader
    /// leaves.
    ///
    /// # Errors
    /// The status of a failure before the first message.
    pub async fn stream<R, T, S, F>(
        &self,
        kind: Kind,
        request: Request<R>,
        run: impl FnOnce(Arc<Shared>, Context, R) -> F,
    ) -> Result<Response<Answers<T>>, Status>
    where
        R: HasOutcome,
        T: 'static,
        S: Stream<Item = Result<T, Failure>> + Send + 'static,
        F: Future<Output = Result<S, Failure>>,
    {
        let (call, shared, under_way) = self.admit(kind, &request)?;
        match run(shared, call.context.clone(), request.into_inner()).await {
            Ok(answers) => {
                let context = call.context.clone();
                let call = Some((call, under_way));
                let answers = Counted { answers: Box::pin(answers), call };
                let mut response = Response::new(Box::pin(answers) as Answers<T>);
                context.sign(response.metadata_mut());
                Ok(response)
            }
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

    /// A call of a method that this version does not serve.
    ///
    /// # Errors
    /// NOT_OFFERED, always.
    pub async fn not_offered<R: HasOutcome, T>(
        &self,
        method: Method,
        request: Request<R>,
    ) -> Result<Response<T>, Status> {
        self.in_any_phase(Kind::of(method), request, |_, _| async move {
            let message = format!("this version does not serve {}", method.name());
            Err(Failure::of(Reason::NotOffered, message))
        })
        .await
    }

    fn begin<R: HasOutcome>(&self, kind: Kind, request: &Request<R>) -> Call {
        if let Some(arrival) = request.extensions().get::<Arc<Arrival>>() {
            arrival.handled.store(true, Ordering::Relaxed);
        }
        Call {
            context: Context::of(request.metadata()),
            kind,
            subject: request.get_ref().subject(),
            calls: self.clone(),
            code: Code::Cancelled as i32,
        }
    }

    /// Begins a call that needs an open storage or a ready node. The drain waits for the guard,
    /// which is taken before the phase is read: a drain that begins later sees it.
    ///
    /// # Errors
    /// The status of a call before the node is ready, while it drains, or has too much to do.
    fn admit<R: HasOutcome>(
        &self,
        kind: Kind,
        request: &Request<R>,
    ) -> Result<(Call, Arc<Shared>, UnderWay), Status> {
        let call = self.begin(kind, request);
        let guard = Arc::new(self.cell.life.call());
        let admitted = self.admitted(kind).and_then(|shared| {
            check_features(request.get_ref().required_features())?;
            match shared.admission.admit(kind.method, &call.context, request.get_ref().bytes()) {
                Ok(place) => Ok((shared, (guard, place))),
                Err(failure) => {
                    shared.metrics.shed("calls").inc();
                    Err(failure)
                }
            }
        });
        match admitted {
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
        self.failed(failure)
    }

    fn failed(&mut self, failure: Failure) -> Status {
        let failure = match self.calls.cell.get() {
            Some(shared) => shared.complete(failure),
            None => failure,
        };
        self.code = failure.code;
        self.context.status(&self.subject.report(failure))
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

/// The answers of a call, counted at their end.
struct Counted<S> {
    answers: Pin<Box<S>>,
    /// With what a drain waits for; `None` once the end was counted.
    call: Option<(Call, UnderWay)>,
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
