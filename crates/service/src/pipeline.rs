//! Pipeline: many operations over one stream.
//!
//! Each stream has a task that takes frames, carries their operations out together, and puts the
//! answers into frames as they come. Writes on one shard are handed to its leader in the order in
//! which they were sent: each has its *turn*, which passes to the next one when the write was
//! proposed or passed on.
//!
//! What a stream holds is bounded: by credit for what was sent and is not answered, and by *room*
//! for answers that its reader has not taken. With the room used up reads and writes that may
//! answer with values wait, and no further frame is taken; what was proposed before is answered, so
//! that a reader that stands still holds nothing that other calls need. Over all streams, answers
//! that are not taken have the same budget as those of calls: what does not fit loses its values.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt, poll};
use prost::Message;
use quorate_machine::Map;
use quorate_proto::hash::key_hash;
use quorate_proto::limits::REQUEST_BYTES_MAX;
use quorate_proto::v1::pipeline_answer::Result as Answer;
use quorate_proto::v1::pipeline_operation::Operation as Asked;
use quorate_proto::v1::{
    Failure, PipelineAnswer, PipelineCredit, PipelineOperation, PipelineRequest, PipelineResponse,
    Reason, StoredValue,
};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout_at;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::call::{CallerConnection, Calls};
use crate::context::Context;
use crate::in_stream::{InStream, ROOM_BYTES};
use crate::operation::Operation;
use crate::outcome::{Subject, check_features};
use crate::shared::{CallGuard, HeldAnswer, retry_after};

/// Operations that a client may have sent and not seen answered: as many as a connection may have
/// calls, which a node that is not busy always takes.
const OPERATIONS_MAX: u64 = 256;
/// Bytes of these operations: two of the largest, so that one is under way while another comes.
const BYTES_MAX: u64 = 2 * REQUEST_BYTES_MAX as u64;
/// The share of a stream on which another node passes operations on: that of several clients.
const FROM_NODES: u64 = 8;
/// A frame of answers with this many bytes takes no further answer, and with as many bytes waiting
/// to be read no further operation is taken.
const FRAME_BYTES: usize = 1 << 20;
/// Credit is given back in a frame of its own when this part of it has been used.
const CREDIT_PARTS: u64 = 4;
/// An answer of up to this many bytes is not counted: the credit bounds their number.
const TINY_BYTES: usize = 1 << 10;

/// Carries out the operations of a stream.
pub fn serve(
    calls: Calls,
    context: Context,
    connection: Option<CallerConnection>,
    operations: Streaming<PipelineRequest>,
) -> impl Stream<Item = Result<PipelineResponse, Failure>> + Send + 'static {
    let (frames, answers) = mpsc::channel::<Frame>(1);
    let driver = Driver::new(calls, context, connection);
    tokio::spawn(driver.run(operations, frames));
    // The listener asks for a frame when there is room for it, and counts it from then on.
    ReceiverStream::new(answers).map(|(frame, _held)| frame)
}

/// An answered operation.
struct Done {
    answer: PipelineAnswer,
    /// The bytes of the answer.
    length: usize,
    /// The bytes of the operation, which are given back as credit.
    credit: u64,
    /// What a drain waits for until the listener has the answer.
    guard: Option<Arc<CallGuard>>,
    held: Held,
}

/// What an answer holds until the connection has room for it.
type Held = (Option<OwnedSemaphorePermit>, Option<HeldAnswer>);

/// A frame with what its answers hold.
type Frame = (Result<PipelineResponse, Failure>, Vec<Held>);

/// The state of one stream.
struct Driver {
    calls: Calls,
    /// The context of the stream.
    context: Context,
    connection: Option<CallerConnection>,
    /// Counts the connection as used while an operation is under way.
    used: Option<Box<dyn Send>>,
    running: FuturesUnordered<BoxFuture<'static, Done>>,
    /// The numbers of the operations without an answer.
    ids: HashSet<u64>,
    /// What is answered and not in a frame yet.
    done: VecDeque<Done>,
    done_bytes: usize,
    /// What the client may still send.
    credit: PipelineCredit,
    /// What it may send in addition, which it does not know yet.
    earned: PipelineCredit,
    granted: PipelineCredit,
    /// The turns of the writes on each shard.
    turns: HashMap<u64, Arc<Mutex<()>>>,
    room: Arc<Semaphore>,
    /// Whether the client has ended its side.
    ended: bool,
    /// Whether the client is asked to end the stream; and whether it knows.
    ending: bool,
    ending_said: bool,
}

impl Driver {
    fn new(calls: Calls, context: Context, connection: Option<CallerConnection>) -> Self {
        let of_node = connection.as_ref().is_some_and(|connection| connection.0.is_of_node());
        let times = if of_node { FROM_NODES } else { 1 };
        let granted =
            PipelineCredit { operations: OPERATIONS_MAX * times, bytes: BYTES_MAX * times };
        Self {
            calls,
            context,
            connection,
            used: None,
            running: FuturesUnordered::new(),
            ids: HashSet::new(),
            done: VecDeque::new(),
            done_bytes: 0,
            credit: PipelineCredit::default(),
            earned: granted,
            granted,
            turns: HashMap::new(),
            room: Arc::new(Semaphore::new(InStream::units(ROOM_BYTES) as usize)),
            ended: false,
            ending: false,
            ending_said: false,
        }
    }

    /// Runs until the client has ended its side and everything is answered, or has left.
    async fn run(
        mut self,
        mut operations: Streaming<PipelineRequest>,
        frames: mpsc::Sender<Frame>,
    ) {
        let life = self.calls.life().clone();
        let connection = self.connection.clone();
        let ends = async {
            let leaves = async {
                match &connection {
                    Some(connection) => connection.0.leaving().cancelled().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = life.until_refusing() => {}
                () = leaves => {}
            }
        };
        let mut ends = std::pin::pin!(ends);
        loop {
            let idle = self.running.is_empty();
            if idle {
                self.used = None;
            }
            if idle && self.ended && self.done.is_empty() {
                return;
            }
            let takes = !self.ended && self.done_bytes < FRAME_BYTES;
            let has_frame = self.has_frame();
            tokio::select! {
                biased;
                () = &mut ends, if !self.ending => self.ending = true,
                // Before frames are made, so that one holds all that is answered by then.
                Some(done) = self.running.next(), if !idle => self.finish(done),
                room = frames.reserve(), if has_frame => match room {
                    Ok(room) => {
                        let (frame, held) = self.frame();
                        room.send((Ok(frame), held));
                    }
                    Err(_) => return,
                },
                // A client that has left takes no frame.
                () = frames.closed(), if !has_frame => return,
                frame = operations.message(), if takes => {
                    let ended = match frame {
                        Ok(Some(frame)) => self.take(frame).await,
                        Ok(None) => {
                            self.ended = true;
                            continue;
                        }
                        Err(status) => Err(broken(&status)),
                    };
                    if let Err(failure) = ended {
                        // Its reader may have left.
                        let _ = frames.send((Err(failure), Vec::new())).await;
                        return;
                    }
                }
            }
        }
    }

    /// Begins the operations of a frame.
    ///
    /// # Errors
    /// The failure with which the stream ends.
    async fn take(&mut self, frame: PipelineRequest) -> Result<(), Failure> {
        let PipelineRequest { operations, required_features } = frame;
        let lengths: Vec<usize> = operations.iter().map(Message::encoded_len).collect();
        let whole: usize = lengths.iter().sum();
        let mut refusal = check_features(&required_features).err();
        // One alone has its own limit.
        if operations.len() > 1 && whole > REQUEST_BYTES_MAX {
            refusal = Some(too_large(whole));
        }
        for (operation, length) in operations.into_iter().zip(lengths) {
            let (id, length) = (operation.id, length as u64);
            if !self.ids.insert(id) {
                let message = format!("operation {id} was sent again before it was answered");
                let field = "operations.id".to_owned();
                return Err(Failure { field, ..Failure::of(Reason::BadRequest, message) });
            }
            let covered = self.credit.operations > 0 && self.credit.bytes >= length;
            let refusal = match &refusal {
                Some(refusal) => Some(refusal.clone()),
                None if !covered => Some(beyond_credit()),
                None => None,
            };
            // What came beyond the credit gives none back.
            let credit = if covered { length } else { 0 };
            if covered {
                self.credit.operations -= 1;
                self.credit.bytes -= length;
            }
            if self.used.is_none() {
                self.used = self.connection.as_ref().map(|connection| connection.0.begin());
            }
            self.begin(operation, credit, refusal).await;
        }
        Ok(())
    }

    /// Begins an operation: it has come as far as it can without waiting when this returns.
    async fn begin(&mut self, operation: PipelineOperation, credit: u64, refusal: Option<Failure>) {
        let id = operation.id;
        let turn = self.turn(operation.operation.as_ref());
        let context = self.context.of_operation(&operation, InStream::new(self.room.clone()));
        let calls = self.calls.clone();
        let mut running: BoxFuture<'static, Done> = Box::pin(async move {
            let asked = operation.operation;
            let (answer, guard) = answer(&calls, &context, asked, turn, refusal).await;
            let mut answer = PipelineAnswer { id, result: Some(answer) };
            let mut length = answer.encoded_len();
            let mut share = None;
            if length > TINY_BYTES {
                share = calls.answers().and_then(|all| HeldAnswer::take(&all, length as u64));
                if share.is_none() {
                    answer.result = answer.result.map(without_values);
                    length = answer.encoded_len();
                }
            }
            let room = context.in_stream.as_ref().and_then(|stream| stream.room_of_answer(length));
            Done { answer, length, credit, guard, held: (room, share) }
        });
        match poll!(&mut running) {
            std::task::Poll::Ready(done) => self.finish(done),
            std::task::Poll::Pending => self.running.push(running),
        }
    }

    /// The turns on the shard of a write; `None` for what needs none.
    fn turn(&mut self, asked: Option<&Asked>) -> Option<Arc<Mutex<()>>> {
        let key = written_key(asked?)?;
        let map = self.calls.map()?;
        let shard = Map::shard_of(&map, key_hash(key)).id;
        Some(self.turns.entry(shard).or_default().clone())
    }

    fn finish(&mut self, done: Done) {
        self.ids.remove(&done.answer.id);
        self.done_bytes += done.length;
        if done.credit > 0 {
            self.earned.operations += 1;
            self.earned.bytes += done.credit;
        }
        self.done.push_back(done);
    }

    /// Whether there is something to send.
    fn has_frame(&self) -> bool {
        let uses = |earned: u64, granted: u64| earned * CREDIT_PARTS >= granted;
        !self.done.is_empty()
            || uses(self.earned.operations, self.granted.operations)
            || uses(self.earned.bytes, self.granted.bytes)
            || (self.ending && !self.ending_said)
    }

    /// The next frame: answers, the credit that was earned, and whether the stream is to end.
    fn frame(&mut self) -> (PipelineResponse, Vec<Held>) {
        let (mut answers, mut all_held, mut bytes) = (Vec::new(), Vec::new(), 0);
        while bytes < FRAME_BYTES {
            let is_first = answers.is_empty();
            let fits = |done: &mut Done| is_first || bytes + done.length <= FRAME_BYTES;
            let Some(done) = self.done.pop_front_if(fits) else { break };
            let Done { answer, length, guard, held, .. } = done;
            bytes += length;
            answers.push(answer);
            if held.0.is_some() || held.1.is_some() {
                all_held.push(held);
            }
            drop(guard);
        }
        self.done_bytes -= bytes;
        let earned = std::mem::take(&mut self.earned);
        self.credit.operations += earned.operations;
        self.credit.bytes += earned.bytes;
        self.ending_said = self.ending;
        let credit = (earned != PipelineCredit::default()).then_some(earned);
        (PipelineResponse { answers, credit, ending: self.ending }, all_held)
    }
}

/// The answer to one operation.
async fn answer(
    calls: &Calls,
    context: &Context,
    asked: Option<Asked>,
    turn: Option<Arc<Mutex<()>>>,
    refusal: Option<Failure>,
) -> (Answer, Option<Arc<CallGuard>>) {
    macro_rules! answer {
        ($($kind:ident),*) => {
            match asked {
                $(Some(Asked::$kind(request)) => {
                    let (result, guard) = carry_out(calls, context, request, turn, refusal).await;
                    (result.map_or_else(Answer::Failure, Answer::$kind), guard)
                })*
                None => {
                    let message = "the operation is of no kind that this version knows";
                    let failure = Failure {
                        field: "operations.operation".to_owned(),
                        ..Failure::of(Reason::BadRequest, message)
                    };
                    (Answer::Failure(failure), None)
                }
            }
        };
    }
    answer!(Get, Put, Delete, CompareAndSet, Increment, Batch)
}

async fn carry_out<R: Operation>(
    calls: &Calls,
    context: &Context,
    request: R,
    turn: Option<Arc<Mutex<()>>>,
    refusal: Option<Failure>,
) -> (Result<R::Response, Failure>, Option<Arc<CallGuard>>) {
    if let Some(failure) = refusal {
        return (Err(calls.refused_in_pipeline(context, &request, failure)), None);
    }
    if let (Some(turn), Some(stream)) = (turn, &context.in_stream) {
        let largest = request.answer_bytes_max(calls.value_bytes_max());
        let waits = async {
            stream.keep_turn(turn.lock_owned().await);
            if largest > 0 {
                stream.take_room(largest).await;
            }
        };
        if timeout_at(context.deadline, waits).await.is_err() {
            let message = "the write waited behind others of its stream until its time was up; it \
                           was not proposed";
            let failure = retry_after(Failure::of(Reason::Overloaded, message), 100);
            return (Err(calls.refused_in_pipeline(context, &request, failure)), None);
        }
    }
    calls.in_pipeline(context.clone(), request).await
}

/// An answer for which there is no room: a read is refused, a write keeps its values back.
fn without_values(answer: Answer) -> Answer {
    let omit = |previous: &mut Option<StoredValue>| {
        if let Some(previous) = previous {
            previous.value = Bytes::new();
            previous.value_omitted = true;
        }
    };
    match answer {
        Answer::Get(_) => {
            let message = "this node holds too many bytes of unread answers for this one; the \
                           limit is a share of --memory; retry later";
            let failure = retry_after(Failure::of(Reason::Overloaded, message), 100);
            Answer::Failure(Subject::Read.report(failure))
        }
        Answer::Put(mut answer) => {
            omit(&mut answer.previous);
            Answer::Put(answer)
        }
        Answer::Delete(mut answer) => {
            omit(&mut answer.previous);
            Answer::Delete(answer)
        }
        Answer::CompareAndSet(mut answer) => {
            omit(&mut answer.previous);
            Answer::CompareAndSet(answer)
        }
        Answer::Increment(mut answer) => {
            omit(&mut answer.previous);
            Answer::Increment(answer)
        }
        Answer::Batch(mut answer) => {
            for result in &mut answer.results {
                omit(&mut result.previous);
                if !result.value.is_empty() {
                    result.value = Bytes::new();
                    result.value_omitted = true;
                }
            }
            Answer::Batch(answer)
        }
        failure @ Answer::Failure(_) => failure,
    }
}

/// The key that names the shard of a write; `None` for a read, which needs no turn.
fn written_key(asked: &Asked) -> Option<&Bytes> {
    match asked {
        Asked::Get(_) => None,
        Asked::Put(request) => Some(&request.key),
        Asked::Delete(request) => Some(&request.key),
        Asked::CompareAndSet(request) => Some(&request.key),
        Asked::Increment(request) => Some(&request.key),
        Asked::Batch(request) => Some(&request.operations.first()?.key),
    }
}

fn too_large(bytes: usize) -> Failure {
    let message = format!(
        "the operations of the frame are {bytes} bytes long; the limit is {REQUEST_BYTES_MAX} bytes"
    );
    Failure {
        field: "operations".to_owned(),
        limit: REQUEST_BYTES_MAX as u64,
        ..Failure::of(Reason::TooLarge, message)
    }
}

fn beyond_credit() -> Failure {
    let message = "the operation was sent beyond the credit of its stream; wait for more";
    retry_after(Failure::of(Reason::Overloaded, message), 100)
}

/// The failure of a stream that cannot be read.
fn broken(status: &Status) -> Failure {
    if let Some((failure, _)) = Failure::from_details(status.details()) {
        return failure;
    }
    let message = format!("the frame cannot be read: {}", status.message());
    match status.code() {
        Code::Internal | Code::InvalidArgument => Failure::of(Reason::BadRequest, message),
        code => Failure { code: code as i32, ..Failure::of(Reason::BadRequest, message) },
    }
}
