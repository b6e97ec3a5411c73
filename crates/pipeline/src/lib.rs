//! The sending side of `Kv.Pipeline`: many operations over one stream, each with one answer. The
//! client sends through it, and so do nodes that pass operations on.
//!
//! A [`Lane`] is one stream. Operations leave it in the order in which they were given to it,
//! several in a frame where several wait, and within the credit that the node grants. Where no
//! answer comes, [`Unanswered`] says whether the operation may have arrived.
//!
//! **Boundary.** It knows neither what an operation does nor when to try again.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use prost::Message;
use quorate_proto::v1::kv_client::KvClient;
use quorate_proto::v1::{
    PipelineCredit, PipelineOperation, PipelineRequest, PipelineResponse, pipeline_answer,
    pipeline_operation,
};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Extensions, Request, Status, Streaming};

pub use pipeline_answer::Result as Answer;
pub use pipeline_operation::Operation;

/// The most operations of a frame.
const FRAME_OPERATIONS_MAX: usize = 256;
/// A frame with this many bytes takes no further operation.
const FRAME_BYTES: usize = 256 << 10;

/// Operations that wait to be sent. One more is refused.
const WAITING_MAX: usize = 4_096;

/// Why an operation has no answer.
#[derive(Clone, Debug)]
pub enum Unanswered {
    /// It never left this process.
    NotSent(Status),
    /// It was sent, and the stream ended before its answer.
    Lost(Status),
}

/// One stream of operations to a node. It ends when all its clones are dropped, or when the node
/// ends it.
#[derive(Clone, Debug)]
pub struct Lane {
    waiting: mpsc::Sender<Job>,
}

/// An operation with what its caller waits with.
#[derive(Debug)]
struct Job {
    operation: PipelineOperation,
    deadline: Instant,
    sent: Arc<AtomicBool>,
    answer: oneshot::Sender<Result<Answer, Unanswered>>,
}

/// The answer to come of one operation. Dropping it gives the answer up; an operation that was not
/// sent by then never is.
#[derive(Debug)]
pub struct Pending {
    sent: Arc<AtomicBool>,
    answer: oneshot::Receiver<Result<Answer, Unanswered>>,
}

impl Lane {
    /// A stream of its own, of which each call has this metadata. It is opened in the background.
    #[must_use]
    pub fn open(client: KvClient<Channel>, metadata: MetadataMap) -> Self {
        let (waiting, jobs) = mpsc::channel(WAITING_MAX);
        tokio::spawn(run(client, metadata, jobs));
        Self { waiting }
    }

    /// Whether it takes operations. It may end at any time.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.waiting.is_closed()
    }

    /// Gives it an operation; its number is the lane's. The order of these calls is the order in
    /// which operations are sent. The node has until `deadline` to answer; the caller waits for as
    /// long as it likes.
    pub fn send(&self, operation: PipelineOperation, deadline: Instant) -> Pending {
        let (answer, pending) = oneshot::channel();
        let sent = Arc::new(AtomicBool::new(false));
        let job = Job { operation, deadline, sent: sent.clone(), answer };
        if let Err(TrySendError::Full(job)) = self.waiting.try_send(job) {
            let message = format!("{WAITING_MAX} operations wait to be sent to the node already");
            job.end(&Status::resource_exhausted(message));
        }
        // An ended lane drops the job, and with it the sender of the answer.
        Pending { sent, answer: pending }
    }
}

impl Pending {
    /// Whether the operation has left this process.
    #[must_use]
    pub fn was_sent(&self) -> bool {
        self.sent.load(Ordering::Acquire)
    }
}

impl Future for Pending {
    type Output = Result<Answer, Unanswered>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.answer).poll(context));
        Poll::Ready(answer.unwrap_or_else(|_| {
            let status = Status::unavailable("the stream of operations has ended");
            Err(match self.was_sent() {
                true => Unanswered::Lost(status),
                false => Unanswered::NotSent(status),
            })
        }))
    }
}

/// Opens the stream and carries it until its end.
async fn run(mut client: KvClient<Channel>, metadata: MetadataMap, mut jobs: mpsc::Receiver<Job>) {
    // A frame is made when the connection has room for it, so that it holds all that waits then.
    let (frames, outgoing) = mpsc::channel(1);
    let request =
        Request::from_parts(metadata, Extensions::default(), ReceiverStream::new(outgoing));
    match client.pipeline(request).await {
        Ok(answers) => Stream::new(jobs, frames).carry(answers.into_inner()).await,
        Err(status) => {
            jobs.close();
            while let Ok(job) = jobs.try_recv() {
                job.end(&status);
            }
        }
    }
}

impl Job {
    /// Ends an operation that was not sent.
    fn end(self, status: &Status) {
        // Its caller may have left.
        let _ = self.answer.send(Err(Unanswered::NotSent(status.clone())));
    }
}

/// The state of an open stream.
struct Stream {
    jobs: mpsc::Receiver<Job>,
    /// `None` = this side has ended.
    frames: Option<mpsc::Sender<PipelineRequest>>,
    /// Taken from `jobs` and not sent yet.
    waiting: VecDeque<Job>,
    unanswered: HashMap<u64, oneshot::Sender<Result<Answer, Unanswered>>>,
    credit: PipelineCredit,
    next_id: u64,
    /// Whether every clone of the lane was dropped, or the node wants the stream to end.
    ending: bool,
}

impl Stream {
    fn new(jobs: mpsc::Receiver<Job>, frames: mpsc::Sender<PipelineRequest>) -> Self {
        Self {
            jobs,
            frames: Some(frames),
            waiting: VecDeque::new(),
            unanswered: HashMap::new(),
            credit: PipelineCredit::default(),
            next_id: 1,
            ending: false,
        }
    }

    async fn carry(mut self, mut answers: Streaming<PipelineResponse>) {
        let mut taken = Vec::new();
        let end = loop {
            self.forget_given_up();
            if self.ending && self.waiting.is_empty() {
                self.frames = None;
                if self.unanswered.is_empty() {
                    break Status::unavailable("the stream of operations has ended");
                }
            }
            let has_credit = self.front_fits();
            tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(frame)) => self.take(frame),
                    Ok(None) => break Status::unavailable("the node has ended the stream"),
                    Err(status) => break status,
                },
                room = reserve(self.frames.clone()), if has_credit => match room {
                    Some(room) => {
                        let frame = self.frame();
                        room.send(frame);
                    }
                    None => self.frames = None,
                },
                count = self.jobs.recv_many(&mut taken, FRAME_OPERATIONS_MAX),
                    if !self.ending && self.waiting.len() < FRAME_OPERATIONS_MAX =>
                {
                    self.waiting.extend(taken.drain(..));
                    self.ending = count == 0;
                }
            }
        };
        self.jobs.close();
        while let Ok(job) = self.jobs.try_recv() {
            job.end(&end);
        }
        self.waiting.drain(..).for_each(|job| job.end(&end));
        for answer in self.unanswered.into_values() {
            // Its caller may have left.
            let _ = answer.send(Err(Unanswered::Lost(end.clone())));
        }
    }

    /// Drops those at the front whose callers have left, or whose time is up.
    fn forget_given_up(&mut self) {
        while let Some(job) = self.waiting.front() {
            let late = job.deadline <= Instant::now();
            if !late && !job.answer.is_closed() {
                return;
            }
            if let Some(job) = self.waiting.pop_front() {
                job.end(&Status::deadline_exceeded("its time was up before it could be sent"));
            }
        }
    }

    /// Whether an operation waits that the credit covers.
    fn front_fits(&self) -> bool {
        self.frames.is_some() && self.waiting.front().is_some_and(|job| self.covers(job))
    }

    fn covers(&self, job: &Job) -> bool {
        let bytes = job.operation.encoded_len() as u64;
        self.credit.operations > 0 && self.credit.bytes >= bytes
    }

    /// The next frame: what waits and is covered.
    fn frame(&mut self) -> PipelineRequest {
        let now = Instant::now();
        let (mut operations, mut bytes) = (Vec::new(), 0);
        while operations.len() < FRAME_OPERATIONS_MAX && bytes < FRAME_BYTES {
            self.forget_given_up();
            let Some(mut job) = self.waiting.pop_front() else { break };
            job.operation.id = self.next_id;
            let left = job.deadline.saturating_duration_since(now);
            // 0 would mean the default.
            job.operation.timeout = left.max(Duration::from_nanos(1)).try_into().ok();
            if !self.covers(&job) {
                self.waiting.push_front(job);
                break;
            }
            self.next_id += 1;
            let length = job.operation.encoded_len();
            bytes += length;
            self.credit.operations -= 1;
            self.credit.bytes -= length as u64;
            job.sent.store(true, Ordering::Release);
            self.unanswered.insert(job.operation.id, job.answer);
            operations.push(job.operation);
        }
        PipelineRequest { operations, ..PipelineRequest::default() }
    }

    fn take(&mut self, frame: PipelineResponse) {
        if let Some(more) = frame.credit {
            self.credit.operations = self.credit.operations.saturating_add(more.operations);
            self.credit.bytes = self.credit.bytes.saturating_add(more.bytes);
        }
        for answer in frame.answers {
            if let Some(caller) = self.unanswered.remove(&answer.id) {
                let result = answer
                    .result
                    .ok_or_else(|| Unanswered::Lost(Status::unknown("the answer has no result")));
                // Its caller may have left.
                let _ = caller.send(result);
            }
        }
        if frame.ending && !self.ending {
            self.ending = true;
            self.jobs.close();
            let end = Status::unavailable("the node wants the stream to end");
            while let Ok(job) = self.jobs.try_recv() {
                job.end(&end);
            }
            self.waiting.drain(..).for_each(|job| job.end(&end));
        }
    }
}

/// Waits for room for a frame; `None` if the connection takes no more.
async fn reserve<T>(frames: Option<mpsc::Sender<T>>) -> Option<mpsc::OwnedPermit<T>> {
    frames?.reserve_owned().await.ok()
}
