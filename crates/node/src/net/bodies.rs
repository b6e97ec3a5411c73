//! The bodies of requests and answers: how many bytes of them a node holds, and for how long.
//!
//! All listeners of a node share one [`Budget`]. A request counts while it is received, an answer
//! until the transport has taken it. What does not fit is refused as OVERLOADED. Bodies of more
//! than [`quorate_raft::SMALL_BYTES`] may use three quarters of the budget, so that small requests
//! and answers still have room beside large ones that stand still. A request is as large as its
//! message says in its first bytes: many beginnings of large ones are no small requests.
//!
//! A request must be complete within [`Patience::request`]; the messages of a stream of requests
//! each, from their first byte. An answer of which nothing was taken for [`Patience::answer`] is
//! reset: its task is dropped, and HTTP/2 then drops the bytes that it has queued for it.
//!
//! Connections of nodes are exempt where they carry Raft: the transport has queues, acknowledgments
//! and limits of silence of its own.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::rt::Executor;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use quorate_proto::v1::{Failure, Reason};
use quorate_raft::room_for;
use quorate_service::context::{Context as CallContext, REQUEST_ID};
use quorate_service::outcome::Subject;
use quorate_service::shared::AnswerBudget;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request};
use tonic::metadata::MetadataMap;

use crate::metrics::{Metrics, QueueMetrics};

/// The bytes of an answer that are handed to the transport at once. It holds them in memory when
/// the reader has left no room for them.
const PIECE: usize = 16 << 10;
/// The last bytes of a message are handed over last and copied, so that a reader who stands still
/// at the end of an answer does not keep all of it in memory: after this piece nothing watches.
const TAIL: usize = 1 << 10;
/// The bytes before a message of gRPC: a flag and the length.
const PREFIX: usize = 5;

/// How long a body may stand still.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// From the headers of a request to its end, and from the first byte of a streamed message to
    /// its last.
    pub(super) request: Duration,
    /// Between two pieces of an answer.
    pub(super) answer: Duration,
}

impl Patience {
    /// The times of a node.
    pub(super) const DEFAULT: Self =
        Self { request: Duration::from_secs(10), answer: Duration::from_secs(30) };
}

/// The bytes of bodies that a node holds.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: AtomicU64,
    patience: Patience,
    gauge: QueueMetrics,
    refused: Counter,
    overdue: Counter,
    unread: Counter,
}

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64, metrics: &Metrics) -> Self {
        Self::with(limit, Patience::DEFAULT, metrics)
    }

    /// A budget with other times.
    pub(super) fn with(limit: u64, patience: Patience, metrics: &Metrics) -> Self {
        Self {
            limit,
            used: AtomicU64::new(0),
            patience,
            gauge: metrics.queue("bodies"),
            refused: metrics.node.bodies_refused.clone(),
            overdue: metrics.node.requests_overdue.clone(),
            unread: metrics.node.answers_unread.clone(),
        }
    }

    /// The bytes that are held now.
    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// A window for the requests of one connection, in bytes: what the client may have sent that
    /// no call has taken yet.
    pub(super) fn connection_window(&self) -> u32 {
        let window = (self.limit / 4).clamp(1 << 20, 8 << 20);
        u32::try_from(window).unwrap_or(u32::MAX)
    }

    /// Takes `bytes` for a body of `size`; whether they fit.
    fn take(&self, size: u64, bytes: u64) -> bool {
        let limit = room_for(size, self.limit);
        let fits = |used: u64| used.checked_add(bytes).filter(|after| *after <= limit);
        if self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            self.refused.inc();
            return false;
        }
        self.gauge.bytes.inc_by(i64::try_from(bytes).unwrap_or(i64::MAX));
        true
    }

    fn return_bytes(&self, bytes: u64) {
        let before = self.used.fetch_sub(bytes, Ordering::Relaxed);
        assert!(before >= bytes, "{bytes} bytes of bodies returned of {before} taken");
        self.gauge.bytes.dec_by(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    fn full(&self, what: &str) -> String {
        format!(
            "this node holds too many bytes of unfinished requests and unread answers for {what}; \
             the limit is {} bytes, a share of --memory; retry later",
            self.limit
        )
    }
}

/// The answers of operations, before they are the body of a stream.
impl AnswerBudget for Budget {
    fn take(&self, bytes: u64) -> bool {
        Self::take(self, bytes, bytes)
    }

    fn give_back(&self, bytes: u64) {
        self.return_bytes(bytes);
    }
}

/// What one body holds of the budget.
struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Share {
    fn new(budget: Arc<Budget>) -> Self {
        Self { budget, bytes: 0 }
    }

    /// Takes `bytes` for a body that will have `announced` in all, as far as is known.
    fn take(&mut self, announced: usize, bytes: usize) -> bool {
        let (announced, bytes) = (announced as u64, bytes as u64);
        let fits = self.budget.take(announced.max(self.bytes + bytes), bytes);
        if fits {
            self.bytes += bytes;
        }
        fits
    }

    fn give_back(&mut self, bytes: u64) {
        if bytes > 0 {
            self.bytes -= bytes;
            self.budget.return_bytes(bytes);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

/// What a refusal needs to know of its call.
#[derive(Clone)]
pub(super) struct Call {
    request_id: Option<HeaderValue>,
    /// It is a stream of requests, which may be idle between two messages.
    streams: bool,
    /// It changes nothing.
    reads: bool,
}

impl Call {
    /// The call of this request; `None` if its bodies are not limited here.
    pub(super) fn of<B>(request: &Request<B>) -> Option<Self> {
        let path = request.uri().path();
        if path.starts_with("/quorate.raft.") {
            return None;
        }
        let method = path.rsplit('/').next().unwrap_or_default();
        Some(Self {
            request_id: request.headers().get(REQUEST_ID).cloned(),
            streams: matches!(method, "Pipeline" | "ServerReflectionInfo"),
            reads: matches!(method, "Get" | "MultiGet" | "Scan"),
        })
    }

    fn status(&self, failure: &Failure) -> Status {
        let mut headers = HeaderMap::new();
        if let Some(id) = &self.request_id {
            headers.insert(REQUEST_ID, id.clone());
        }
        CallContext::of(&MetadataMap::from_headers(headers)).status(failure)
    }

    /// The refusal of a request that was not received whole, so nothing of it is done. Only its
    /// message shows whether it is a write with a session: the outcome is true of every write.
    fn refusal(&self, sentence: String) -> Status {
        self.status(&Subject::Attempt.report(Failure::of(Reason::Overloaded, sentence)))
    }

    /// The end of a call whose answer is not sent. A write may be applied.
    fn unanswered(&self, sentence: String) -> Status {
        let reason = if self.reads { Reason::Overloaded } else { Reason::OutcomeUnknown };
        self.status(&Failure::of(reason, sentence))
    }
}

/// Where a body is between messages.
#[derive(Default)]
struct Framing {
    prefix: BytesMut,
    /// The length of the last message that has begun.
    length: usize,
    /// What of it has not come.
    left: usize,
}

impl Framing {
    fn is_between(&self) -> bool {
        self.prefix.is_empty() && self.left == 0
    }

    fn advance(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.left == 0 {
                let missing = PREFIX - self.prefix.len();
                let (now, later) = data.split_at(missing.min(data.len()));
                self.prefix.extend_from_slice(now);
                data = later;
                let &[_, a, b, c, d] = &self.prefix[..] else { return };
                self.prefix.clear();
                self.length = u32::from_be_bytes([a, b, c, d]) as usize;
                self.left = self.length;
            }
            let taken = self.left.min(data.len());
            self.left -= taken;
            data = &data[taken..];
        }
    }
}

/// The body of a request.
pub(super) struct Received {
    body: Incoming,
    call: Call,
    share: Share,
    framing: Framing,
    /// When the message must be complete; `None` between those of a stream, and after the end.
    due: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Received {
    /// The body of a request whose headers have just come.
    pub(super) fn new(body: Incoming, call: Call, budget: Arc<Budget>) -> Self {
        let due = Some(Instant::now() + budget.patience.request);
        let (share, framing) = (Share::new(budget), Framing::default());
        Self { body, call, share, framing, due, sleep: None }
    }

    fn received(&mut self, data: &Bytes) -> Result<(), Status> {
        self.framing.advance(data);
        if !self.share.take(self.framing.length, data.len()) {
            return Err(self.call.refusal(self.share.budget.full("this request")));
        }
        if self.call.streams {
            if self.framing.is_between() {
                self.due = None;
            } else if self.due.is_none() {
                self.due = Some(Instant::now() + self.share.budget.patience.request);
            }
        }
        Ok(())
    }

    /// Waits until the request is overdue.
    fn poll_overdue(&mut self, context: &mut Context<'_>) -> Poll<Status> {
        let Some(due) = self.due else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if sleep.deadline() != due {
            sleep.as_mut().reset(due);
        }
        ready!(sleep.as_mut().poll(context));
        self.due = None;
        let budget = &self.share.budget;
        budget.overdue.inc();
        let sentence = format!(
            "the request was not complete {:?} after its beginning: {} bytes of it had come",
            budget.patience.request, self.share.bytes
        );
        Poll::Ready(self.call.refusal(sentence))
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let me = &mut *self;
        if me.call.streams && me.framing.is_between() {
            // The messages so far are taken.
            me.share.give_back(me.share.bytes);
        }
        match Pin::new(&mut me.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let received = frame.data_ref().map_or(Ok(()), |data| me.received(data));
                Poll::Ready(Some(received.map(|()| frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                Poll::Ready(Some(Err(Status::from_error(Box::new(error)))))
            }
            Poll::Ready(None) => {
                me.due = None;
                Poll::Ready(None)
            }
            Poll::Pending => me.poll_overdue(context).map(|status| Some(Err(status))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer, in pieces.
pub(super) struct Sent {
    body: Body,
    call: Call,
    share: Share,
    /// What the transport has not asked for yet.
    rest: Bytes,
    /// The bytes that it asked for last.
    given: u64,
    reader: Arc<Reader>,
    ended: bool,
}

impl Sent {
    /// An answer to the call, for the task that this is polled in.
    pub(super) fn new(body: Body, call: Call, budget: Arc<Budget>) -> Self {
        let reader = READER.try_with(Arc::clone).unwrap_or_default();
        let (share, rest) = (Share::new(budget), Bytes::new());
        Self { body, call, share, rest, given: 0, reader, ended: false }
    }

    fn piece(&mut self) -> Frame<Bytes> {
        let length = match self.rest.len() {
            short @ ..=TAIL => short,
            long => (long - TAIL).min(PIECE),
        };
        let piece = self.rest.split_to(length);
        // A tiny answer holds nothing of the budget.
        self.given = (length as u64).min(self.share.bytes);
        self.reader.waits_since(Some(Instant::now()));
        Frame::data(if self.rest.is_empty() { Bytes::copy_from_slice(&piece) } else { piece })
    }
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let me = &mut *self;
        // It asks for more when there was room for what it had.
        me.reader.waits_since(None);
        me.share.give_back(std::mem::take(&mut me.given));
        if !me.rest.is_empty() {
            return Poll::Ready(Some(Ok(me.piece())));
        }
        if me.ended {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut me.body).poll_frame(context));
        let data = match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            },
            other => return Poll::Ready(other),
        };
        // A tiny answer is not counted: calls bound their number, and it may be of a write.
        if data.len() <= TAIL || me.share.take(data.len(), data.len()) {
            me.rest = data;
            return Poll::Ready(Some(Ok(me.piece())));
        }
        me.ended = true;
        let mut trailers = HeaderMap::new();
        let status = me.call.unanswered(me.share.budget.full("this answer"));
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && (self.ended || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

tokio::task_local! {
    /// The reader of the answer that a task sends.
    static READER: Arc<Reader>;
}

/// The reader of one answer.
#[derive(Debug, Default)]
struct Reader {
    /// Since when it has not taken the last piece.
    waits_since: Mutex<Option<Instant>>,
}

impl Reader {
    fn waits_since(&self, since: Option<Instant>) {
        *self.waits_since.lock() = since;
    }

    /// Waits until the reader has taken nothing for `patience`.
    async fn until_unread(&self, patience: Duration) {
        loop {
            // A wait that begins later is seen in time: it is shorter than `patience` by then.
            let since = *self.waits_since.lock();
            let due = since.unwrap_or_else(Instant::now) + patience;
            sleep_until(due).await;
            if since.is_some() && *self.waits_since.lock() == since {
                return;
            }
        }
    }
}

/// Runs the calls of a connection, each as a task that ends when its answer stays unread.
#[derive(Clone)]
pub(super) struct Tasks(pub(super) Arc<Budget>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, call: F) {
        let (budget, reader) = (self.0.clone(), Arc::<Reader>::default());
        let watched = reader.clone();
        tokio::spawn(READER.scope(reader, async move {
            tokio::select! {
                biased;
                () = call => {}
                () = watched.until_unread(budget.patience.answer) => {
                    budget.unread.inc();
                }
            }
        }));
    }
}
