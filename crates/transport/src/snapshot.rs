//! Snapshots: one stream for each transfer, checked chunk by chunk and as a whole.
//!
//! A transfer either ends with the receiver's word that it is durable, or it is nothing: the
//! receiver's [`SnapshotSink::abort`] is called whenever the stream ends, stalls or breaks a rule
//! before its end was seen, and the sender gets a [`SnapshotError`]. Reading and writing of chunks
//! happen on blocking threads; two chunks at most wait on each side, and HTTP/2 paces the rest.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use parking_lot::Mutex;
use quorate_proto::raft::v1 as wire;
use quorate_proto::raft::v1::snapshot_request::Content;
use quorate_raft::{GroupId, NodeId, Replica, ReplicationSession, SnapshotMeta, Term};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tonic::{Request, Status, Streaming};
use xxhash_rust::xxh3::Xxh3;

use super::gate::{Entrance, Gate};
use super::hello::HELLO_DEADLINE;
use super::peer::Peer;
use super::proof::{Claim, STRANGE_WORDS_MAX};
use super::{Shared, convert, dial};

/// The largest chunk on the wire, in bytes; a larger one from the source is cut into several.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// Chunks that wait between the blocking thread and the stream, on either side.
const CHUNKS_WAITING_MAX: usize = 2;
/// Answers under way to the sender: the challenge and the outcome.
pub(super) const ANSWERS_MAX: usize = 2;
/// How long the receiver may take, after the end, to make the snapshot durable.
const FINISH_DEADLINE: Duration = Duration::from_secs(120);
/// How long a new transfer waits for the end of an older one from the same node that was cut.
const TAKEOVER_DEADLINE: Duration = Duration::from_secs(5);

/// Which snapshot it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// The group.
    pub group: GroupId,
    /// The replica that sends.
    pub from: Replica,
    /// The replica that is to receive.
    pub to: Replica,
    /// The sender's term.
    pub term: Term,
    /// The replication session in which the leader asked for the transfer.
    pub session: ReplicationSession,
    /// What the snapshot holds.
    pub meta: SnapshotMeta,
}

/// Where the chunks of an outgoing snapshot come from. Called on a blocking thread.
pub trait SnapshotSource: Send + 'static {
    /// The next chunk; `None` at the end. Empty chunks are skipped.
    ///
    /// # Errors
    /// A sentence; the transfer ends as failed.
    fn next_chunk(&mut self) -> Result<Option<Bytes>, String>;
}

/// Where the chunks of an incoming snapshot go. Called on a blocking thread, and ended by exactly
/// one of [`SnapshotSink::finish`] and [`SnapshotSink::abort`].
pub trait SnapshotSink: Send {
    /// The next chunk, whose checksum was right.
    ///
    /// # Errors
    /// A sentence, which the sender receives; `abort` follows.
    fn write(&mut self, chunk: Bytes) -> Result<(), String>;

    /// All chunks have come and the digest of the whole is right. `Ok` = durably received.
    ///
    /// # Errors
    /// A sentence, which the sender receives; the sink has cleaned up after itself.
    fn finish(self: Box<Self>) -> Result<(), String>;

    /// The transfer has failed; what was written is nothing.
    fn abort(self: Box<Self>, why: &str);
}

/// Why a snapshot did not arrive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// There is no such peer.
    #[error("node {} is not a peer", .0.0)]
    NotAPeer(NodeId),
    /// No connection could be made, or it broke.
    #[error("the connection failed: {0}")]
    Broke(String),
    /// The receiver refused it or failed.
    #[error("the receiver refused it: {0}")]
    Refused(String),
    /// The source failed.
    #[error("the source failed: {0}")]
    Source(String),
    /// The receiver read nothing for this long.
    #[error("it stood still for {0:?}")]
    Stalled(Duration),
}

/// The right to send the one snapshot that may be under way to a peer.
pub struct SnapshotTurn {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    _permit: OwnedSemaphorePermit,
}

impl std::fmt::Debug for SnapshotTurn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotTurn").field("to", &self.peer.node).finish_non_exhaustive()
    }
}

/// Waits for the turn.
pub(super) async fn turn(shared: &Arc<Shared>, to: NodeId) -> Result<SnapshotTurn, SnapshotError> {
    let peer = shared.peer(to).ok_or(SnapshotError::NotAPeer(to))?;
    let permit = Arc::clone(&peer.snapshot_out).acquire_owned().await;
    // The semaphore is never closed.
    let permit = permit.map_err(|_| SnapshotError::NotAPeer(to))?;
    Ok(SnapshotTurn { shared: Arc::clone(shared), peer, _permit: permit })
}

impl SnapshotTurn {
    /// Sends the snapshot. `Ok(bytes)` when the receiver has it durably.
    ///
    /// # Errors
    /// [`SnapshotError`]; the receiver then has nothing, unless only its answer was lost.
    pub async fn send(
        self,
        header: &SnapshotHeader,
        source: impl SnapshotSource,
    ) -> Result<u64, SnapshotError> {
        let target = self.peer.target();
        let channel = dial::connect(&target.address)
            .await
            .map_err(|error| SnapshotError::Broke(error.sentence))?;
        let hello = self.shared.hello(self.peer.node, target.incarnation, wire::Lane::Snapshot);
        let claim = Claim::of_hello(&hello);
        let start = wire::SnapshotStart {
            hello: Some(hello),
            group: header.group.0,
            from: Some(convert::replica_to_wire(header.from)),
            to: Some(convert::replica_to_wire(header.to)),
            term: header.term.0,
            session: convert::session_to_wire(header.session),
            meta: Some(convert::meta_to_wire(&header.meta)),
        };
        let (chunks, waiting) = mpsc::channel(CHUNKS_WAITING_MAX);
        let waiting = Waiting(Arc::new(Mutex::new(Some(waiting))));
        let reader = spawn_blocking(move || read_source(source, &chunks));
        let progress = Arc::new(Progress::default());
        let (prove, proof) = oneshot::channel();
        let stream = Outgoing::new(start, proof, Arc::clone(&waiting.0), Arc::clone(&progress));
        let mut client = wire::peer_client::PeerClient::new(channel);
        let stall_max = self.shared.config.snapshot_stall_max;
        let broke = |status: Status| SnapshotError::Broke(dial::status_sentence(&status));
        let answering = async {
            let mut answers = client.snapshot(stream).await.map_err(broke)?.into_inner();
            let first = answers.message().await.map_err(broke)?.unwrap_or_default();
            let Some(challenge) = first.challenge else {
                let refusal = first.refusal.chars().take(STRANGE_WORDS_MAX).collect();
                return Err(SnapshotError::Refused(refusal));
            };
            let proof = claim.answer(&self.shared.local.key, &challenge);
            // Without it no chunk leaves this node; the stream may have ended.
            let _ = prove.send(proof.map_err(SnapshotError::Refused)?);
            let outcome = answers.message().await.map_err(broke)?;
            let ended = || SnapshotError::Broke("it ended the connection".to_owned());
            match outcome.ok_or_else(ended)?.refusal {
                refusal if refusal.is_empty() => Ok(progress.bytes.load(Ordering::Relaxed)),
                refusal => Err(SnapshotError::Refused(refusal)),
            }
        };
        let answered = tokio::select! {
            biased;
            answered = answering => Some(answered),
            () = progress.stalled(stall_max) => None,
        };
        // Then the reader ends at its next chunk. Its error explains the others.
        drop(waiting);
        let read = reader.await.map_err(|error| SnapshotError::Source(error.to_string()))?;
        match (read, answered) {
            (Err(why), _) => Err(SnapshotError::Source(why)),
            (Ok(()), None) => Err(SnapshotError::Stalled(stall_max)),
            (Ok(()), Some(answered)) => answered,
        }
    }
}

/// What was read and waits for the stream. The connection may hold the stream, and a receiver that
/// takes nothing may hold the connection: so the reader's end is here, where the transfer ends.
struct Waiting(WaitingSteps);

type WaitingSteps = Arc<Mutex<Option<mpsc::Receiver<Step>>>>;

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.lock().take();
    }
}

/// A step of the source, as it waits for the stream.
enum Step {
    Chunk(Bytes),
    /// The source is at its end. Without it the stream ends unfinished.
    End,
}

/// Reads the source until its end, its error, or until no receiver is left.
fn read_source(mut source: impl SnapshotSource, chunks: &mpsc::Sender<Step>) -> Result<(), String> {
    loop {
        let step = match source.next_chunk()? {
            Some(chunk) if chunk.is_empty() => continue,
            Some(chunk) => Step::Chunk(chunk),
            None => Step::End,
        };
        let last = matches!(step, Step::End);
        if chunks.blocking_send(step).is_err() || last {
            return Ok(());
        }
    }
}

/// How far a transfer is, for the watch over it.
#[derive(Default)]
struct Progress {
    /// Messages handed to the connection.
    steps: AtomicU64,
    bytes: AtomicU64,
    ended: std::sync::atomic::AtomicBool,
}

impl Progress {
    /// Returns when nothing was handed over for `stall_max`, or the receiver does not finish.
    async fn stalled(&self, stall_max: Duration) {
        let mut steps = 0;
        loop {
            let ended = self.ended.load(Ordering::Relaxed);
            tokio::time::sleep(if ended { FINISH_DEADLINE } else { stall_max }).await;
            let now = self.steps.load(Ordering::Relaxed);
            if std::mem::replace(&mut steps, now) == now {
                return;
            }
        }
    }
}

/// The stream of one transfer: start, proof, chunks, end.
struct Outgoing {
    start: Option<wire::SnapshotStart>,
    /// The answer to the receiver's challenge; `None` once it has left.
    proof: Option<oneshot::Receiver<wire::Proof>>,
    waiting: WaitingSteps,
    /// What is left of a chunk that was too large.
    rest: Bytes,
    chunks: u64,
    bytes: u64,
    digest: Xxh3,
    ended: bool,
    progress: Arc<Progress>,
}

impl Outgoing {
    fn new(
        start: wire::SnapshotStart,
        proof: oneshot::Receiver<wire::Proof>,
        waiting: WaitingSteps,
        progress: Arc<Progress>,
    ) -> Self {
        let (start, proof) = (Some(start), Some(proof));
        let (rest, digest) = (Bytes::new(), Xxh3::new());
        Self { start, proof, waiting, rest, chunks: 0, bytes: 0, digest, ended: false, progress }
    }

    fn chunk(&mut self) -> Content {
        let data = self.rest.split_to(self.rest.len().min(CHUNK_BYTES_MAX));
        self.chunks += 1;
        self.bytes += data.len() as u64;
        self.progress.bytes.store(self.bytes, Ordering::Relaxed);
        self.digest.update(&data);
        let crc32c = crc32c::crc32c(&data);
        Content::Chunk(wire::SnapshotChunk { number: self.chunks, data, crc32c })
    }

    fn poll_content(&mut self, cx: &mut Context<'_>) -> Poll<Option<Content>> {
        if let Some(start) = self.start.take() {
            return Poll::Ready(Some(Content::Start(start)));
        }
        if let Some(proof) = &mut self.proof {
            return match Pin::new(proof).poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(proof)) => {
                    self.proof = None;
                    Poll::Ready(Some(Content::Proof(proof)))
                }
                // The receiver has not proved the secret.
                Poll::Ready(Err(_)) => Poll::Ready(None),
            };
        }
        if self.rest.is_empty() && !self.ended {
            let waiting = self.waiting.lock().as_mut().map(|waiting| waiting.poll_recv(cx));
            match waiting.unwrap_or(Poll::Ready(None)) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Step::Chunk(chunk))) => self.rest = chunk,
                Poll::Ready(Some(Step::End)) => {
                    self.ended = true;
                    self.progress.ended.store(true, Ordering::Relaxed);
                    return Poll::Ready(Some(Content::End(wire::SnapshotEnd {
                        chunks: self.chunks,
                        bytes: self.bytes,
                        digest: Bytes::copy_from_slice(&self.digest.digest128().to_be_bytes()),
                    })));
                }
                Poll::Ready(None) => self.ended = true,
            }
        }
        Poll::Ready((!self.rest.is_empty()).then(|| self.chunk()))
    }
}

impl Stream for Outgoing {
    type Item = wire::SnapshotRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.poll_content(cx);
        if polled.is_ready() {
            self.progress.steps.fetch_add(1, Ordering::Relaxed);
        }
        polled
            .map(|content| content.map(|content| wire::SnapshotRequest { content: Some(content) }))
    }
}

/// Messages from the stream to the blocking thread that owns the sink.
enum Feed {
    Chunk(Bytes),
    Finish,
    Abort(String),
}

/// Takes one incoming snapshot, of a peer that the gate admits. The inner error is a sentence for
/// the sender; the outer one means that the sender is gone.
pub(super) async fn receive(
    gate: &Gate,
    shared: &Arc<Shared>,
    request: Request<Streaming<wire::SnapshotRequest>>,
    answers: &mpsc::Sender<Result<wire::SnapshotResponse, Status>>,
) -> Result<Result<(), String>, Status> {
    let entrance = Entrance::of(&request);
    let mut incoming = request.into_inner();
    let first = timeout(HELLO_DEADLINE, incoming.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no start of a snapshot came"))??;
    let Some(Content::Start(start)) = first.and_then(|request| request.content) else {
        return Ok(Err("a snapshot begins with its start".into()));
    };
    let Some(hello) = start.hello.as_ref().filter(|hello| hello.lane() == wire::Lane::Snapshot)
    else {
        return Ok(Err("the start of a snapshot has no Hello for the snapshot lane".into()));
    };
    let (challenge, pending) = match gate.challenge(shared, hello) {
        Ok(challenged) => challenged,
        Err(sentence) => return Ok(Err(sentence)),
    };
    let challenge = Some(challenge);
    // The channel is new and has room.
    let _ = answers.try_send(Ok(wire::SnapshotResponse { challenge, ..Default::default() }));
    let second = timeout(HELLO_DEADLINE, incoming.message()).await;
    let proof = match second.ok().and_then(Result::ok).flatten().and_then(|r| r.content) {
        Some(Content::Proof(proof)) => Some(proof),
        _ => None,
    };
    let proven = gate.prove(hello.from_node, &pending, proof);
    if let Err(sentence) = proven.and_then(|()| entrance.enter()) {
        return Ok(Err(sentence));
    }
    // No other process may be accepted in its place before the transfer is over.
    let admitted = tokio::select! {
        admitted = gate.admit(shared, hello) => admitted,
        () = answers.closed() => return Err(Status::cancelled("the sender is gone")),
    };
    let (peer, _, connection) = match admitted {
        Ok(admitted) => admitted,
        Err(refused) => return Ok(Err(refused.sentence)),
    };
    let header = match read_start(&start, shared, &peer) {
        Ok(header) => header,
        Err(malformed) => return Ok(Err(malformed.0)),
    };
    let token = peer.replace_incoming(wire::Lane::Snapshot);
    // Had it been dropped before there was a token, that would not be cancelled.
    if let Some(refused) = connection.dropped() {
        return Ok(Err(refused.sentence));
    }
    let permit = Arc::clone(&peer.snapshot_in).acquire_owned();
    let Ok(Ok(permit)) = timeout(TAKEOVER_DEADLINE, permit).await else {
        return Ok(Err(format!("an earlier snapshot from node {} is not over", peer.node.0)));
    };

    let (feed, fed) = mpsc::channel(CHUNKS_WAITING_MAX);
    let (inbound, from) = (Arc::clone(&shared.inbound), peer.node);
    let sink = spawn_blocking(move || {
        let written = inbound.begin_snapshot(from, header).and_then(|sink| write_sink(sink, fed));
        // Held until the sink is done, so that the next transfer finds nothing of this one.
        drop(permit);
        written
    });
    let stall_max = shared.config.snapshot_stall_max;
    let taken = token.run_until_cancelled(take(&mut incoming, &feed, &peer, stall_max)).await;
    let verdict = match taken {
        Some(Ok(())) => Feed::Finish,
        Some(Err(why)) => Feed::Abort(why),
        None => Feed::Abort("a newer transfer began, or this node stops".into()),
    };
    // An error means that the sink has failed; it says why itself.
    let _ = feed.send(verdict).await;
    drop(feed);
    Ok(sink.await.unwrap_or_else(|error| Err(format!("the receiver failed: {error}"))))
}

fn read_start(
    start: &wire::SnapshotStart,
    shared: &Shared,
    peer: &Peer,
) -> Result<SnapshotHeader, convert::Malformed> {
    let need = |replica: Option<wire::Replica>, field: &str| {
        replica
            .map(convert::replica_from_wire)
            .ok_or_else(|| convert::Malformed(format!("the start of a snapshot has no {field}")))
    };
    let (from, to) = (need(start.from, "sender")?, need(start.to, "receiver")?);
    if from.node != peer.node || to.node != shared.local.node {
        return Err(convert::Malformed(format!(
            "a snapshot from node {} to node {} came from node {} to node {}",
            from.node.0, to.node.0, peer.node.0, shared.local.node.0
        )));
    }
    let meta = start.meta.as_ref();
    let meta =
        meta.ok_or_else(|| convert::Malformed("the start of a snapshot has no meta".into()))?;
    Ok(SnapshotHeader {
        group: GroupId(start.group),
        from,
        to,
        term: Term(start.term),
        session: convert::read_session(start.session, "the start of a snapshot")?,
        meta: convert::meta_from_wire(meta)?,
    })
}

/// Takes chunks until the end was seen and is right; otherwise says what is wrong.
async fn take(
    incoming: &mut Streaming<wire::SnapshotRequest>,
    feed: &mpsc::Sender<Feed>,
    peer: &Peer,
    stall_max: Duration,
) -> Result<(), String> {
    let (mut chunks, mut bytes, mut digest) = (0_u64, 0_u64, Xxh3::new());
    loop {
        let message = match timeout(stall_max, incoming.message()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => return Err("the snapshot was cut before its end".into()),
            Ok(Err(status)) => {
                return Err(format!("the snapshot was cut: {}", dial::status_sentence(&status)));
            }
            Err(_) => return Err(format!("no chunk came for {stall_max:?}")),
        };
        peer.heard();
        match message.content {
            Some(Content::Chunk(chunk)) => {
                chunks += 1;
                check_chunk(&chunk, chunks)?;
                bytes += chunk.data.len() as u64;
                digest.update(&chunk.data);
                if feed.send(Feed::Chunk(chunk.data)).await.is_err() {
                    return Err("it could not be written".into());
                }
            }
            Some(Content::End(end)) => {
                let right = end.chunks == chunks
                    && end.bytes == bytes
                    && end.digest[..] == digest.digest128().to_be_bytes();
                return if right {
                    Ok(())
                } else {
                    Err(format!(
                        "the snapshot is not what was sent: {} chunks and {} bytes were sent, \
                         {chunks} and {bytes} came, or its digest differs",
                        end.chunks, end.bytes
                    ))
                };
            }
            Some(Content::Start(_) | Content::Proof(_)) | None => {
                return Err("expected a chunk or the end of the snapshot".into());
            }
        }
    }
}

fn check_chunk(chunk: &wire::SnapshotChunk, expected: u64) -> Result<(), String> {
    if chunk.number != expected {
        return Err(format!("chunk {} came where {expected} was due", chunk.number));
    }
    if chunk.data.len() > CHUNK_BYTES_MAX {
        return Err(format!("chunk {expected} has {} bytes", chunk.data.len()));
    }
    if chunk.crc32c != crc32c::crc32c(&chunk.data) {
        return Err(format!("chunk {expected} is corrupted: its checksum does not match"));
    }
    Ok(())
}

/// Feeds the sink, on a blocking thread.
fn write_sink(
    mut sink: Box<dyn SnapshotSink>,
    mut fed: mpsc::Receiver<Feed>,
) -> Result<(), String> {
    loop {
        match fed.blocking_recv() {
            Some(Feed::Chunk(chunk)) => {
                if let Err(why) = sink.write(chunk) {
                    sink.abort(&why);
                    return Err(why);
                }
            }
            Some(Feed::Finish) => return sink.finish(),
            Some(Feed::Abort(why)) => {
                sink.abort(&why);
                return Err(why);
            }
            None => {
                let why = "the connection was dropped";
                sink.abort(why);
                return Err(why.into());
            }
        }
    }
}
