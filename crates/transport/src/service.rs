//! The incoming side: the gRPC service that peers call.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use quorate_proto::raft::v1 as wire;
use quorate_raft::Envelope;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, warn};

use super::admission::Connection;
use super::ask;
use super::gate::{Entrance, Gate};
use super::hello::HELLO_DEADLINE;
use super::peer::Peer;
use super::presence::Refused;
use super::proof::{Pending, ProofKey};
use super::{Greeter, Lane, PEER_MESSAGE_BYTES_MAX, Shared, Transport, convert, dial, snapshot};

/// How often frames are acknowledged, at most.
const ACK_INTERVAL: Duration = Duration::from_millis(250);
/// Answers under way to the caller: the challenge, the Hello, one acknowledgement, the reason of
/// the end.
const ANSWERS_MAX: usize = 5;

/// gRPC service that peers call. It answers questions immediately, and accepts streams once the
/// node has formed and [`PeerService::attach`] was called. A caller that does not prove the secret
/// of the cluster has no effect, and learns nothing but the number of the node.
#[derive(Clone)]
pub struct PeerService {
    inner: Arc<Inner>,
}

struct Inner {
    greeter: Arc<dyn Greeter>,
    transport: ArcSwapOption<Shared>,
    gate: Gate,
}

impl std::fmt::Debug for PeerService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerService")
            .field("node", &self.inner.greeter.node())
            .finish_non_exhaustive()
    }
}

impl PeerService {
    /// A service that only answers questions so far.
    pub fn new(greeter: Arc<dyn Greeter>, key: ProofKey) -> Self {
        let (transport, gate) = (ArcSwapOption::empty(), Gate::new(key));
        Self { inner: Arc::new(Inner { greeter, transport, gate }) }
    }

    /// Streams and calls since the start that were refused because they did not prove the secret.
    pub fn unproven(&self) -> u64 {
        self.inner.gate.unproven()
    }

    /// Checks the proof of a call that another node passes on, from its metadata. The caller has to
    /// be refused before anything is done for it; it is counted in [`Self::unproven`].
    ///
    /// # Errors
    /// UNAUTHENTICATED, with a sentence about what is wrong. So it is until [`Self::attach`], when
    /// nothing can be proved to this process yet; that is not counted.
    pub fn check_call(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let Some(shared) = self.inner.transport.load_full() else {
            let node = self.inner.greeter.node().0;
            let sentence = format!("node {node} is starting, and takes no calls of nodes yet");
            return Err(Status::unauthenticated(sentence));
        };
        self.inner.gate.check_call(&shared, metadata).map_err(Status::unauthenticated)
    }

    /// Accepts streams of peers from now on.
    pub fn attach(&self, transport: &Transport) {
        self.inner.transport.store(Some(Arc::clone(&transport.shared)));
    }

    /// The gRPC service, with its limits, for the listener of the peers.
    pub fn into_server(self) -> wire::peer_server::PeerServer<Self> {
        wire::peer_server::PeerServer::new(self).max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
    }

    /// Serves only peers on this listener, until `stop`.
    ///
    /// # Errors
    /// The listener failed, or the port is shared with something that is not this service.
    pub async fn serve(
        self,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> Result<(), tonic::transport::Error> {
        dial::peer_server()
            .add_service(self.into_server())
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.cancelled_owned())
            .await
    }

    fn shared(&self) -> Result<Arc<Shared>, Status> {
        self.inner.transport.load_full().ok_or_else(|| {
            let node = self.inner.greeter.node();
            Status::unavailable(format!("node {} is not ready for peers yet", node.0))
        })
    }
}

#[tonic::async_trait]
impl wire::peer_server::Peer for PeerService {
    type AskStream = ReceiverStream<Result<wire::AskResponse, Status>>;
    type LinkStream = ReceiverStream<Result<wire::LinkResponse, Status>>;
    type SnapshotStream = ReceiverStream<Result<wire::SnapshotResponse, Status>>;

    async fn ask(
        &self,
        request: Request<Streaming<wire::AskRequest>>,
    ) -> Result<Response<Self::AskStream>, Status> {
        let (answers, stream) = mpsc::channel(ask::MESSAGES);
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            let answer = || inner.greeter.answer();
            let answering = ask::answer(request, &answers, &inner.gate, answer);
            let ended = timeout(HELLO_DEADLINE, answering).await;
            if let Err(status) = ended.unwrap_or_else(|_| Err(too_late())) {
                // The asker may be gone.
                let _ = answers.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn link(
        &self,
        request: Request<Streaming<wire::LinkRequest>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let shared = self.shared()?;
        let entrance = Entrance::of(&request);
        let mut incoming = request.into_inner();
        let first = timeout(HELLO_DEADLINE, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello came"))??;
        let Some(wire::link_request::Content::Hello(hello)) = first.and_then(|r| r.content) else {
            return Err(Status::invalid_argument("a link opens with a Hello"));
        };
        let lane = match hello.lane() {
            wire::Lane::Control => Lane::Control,
            wire::Lane::Bulk => Lane::Bulk,
            wire::Lane::Snapshot | wire::Lane::Unspecified => {
                return Err(Status::invalid_argument("a link is for the control or the bulk lane"));
            }
        };
        let (answers, stream) = mpsc::channel(ANSWERS_MAX);
        match self.inner.gate.challenge(&shared, &hello) {
            Ok((challenge, pending)) => {
                send(&answers, wire::link_response::Content::Challenge(challenge));
                let service = self.clone();
                let opening = Opening { service, shared, hello, lane, entrance, answers };
                tokio::spawn(opening.run(pending, incoming));
            }
            Err(sentence) => send(&answers, refusal(&shared, sentence.into())),
        }
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotRequest>>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let shared = self.shared()?;
        let (answers, stream) = mpsc::channel(snapshot::ANSWERS_MAX);
        let service = self.clone();
        tokio::spawn(async move {
            let received = snapshot::receive(&service.inner.gate, &shared, request, &answers);
            let answer = received.await.map(|outcome| wire::SnapshotResponse {
                node_id: shared.local.node.0,
                refusal: outcome.err().unwrap_or_default(),
                challenge: None,
            });
            // The sender may be gone.
            let _ = answers.try_send(answer);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

fn too_late() -> Status {
    Status::deadline_exceeded("no proof came")
}

/// Sends what opens a link. The channel is new and has room for it.
fn send(
    answers: &mpsc::Sender<Result<wire::LinkResponse, Status>>,
    content: wire::link_response::Content,
) {
    let _ = answers.try_send(Ok(wire::LinkResponse { content: Some(content) }));
}

/// An incoming link whose Hello was challenged.
struct Opening {
    service: PeerService,
    shared: Arc<Shared>,
    hello: wire::Hello,
    lane: Lane,
    entrance: Entrance,
    answers: mpsc::Sender<Result<wire::LinkResponse, Status>>,
}

impl Opening {
    /// Waits for the proof, admits the peer, and reads the link until its end.
    async fn run(self, pending: Pending, mut incoming: Streaming<wire::LinkRequest>) {
        use wire::link_request::Content;
        let Self { service, shared, hello, lane, entrance, answers } = self;
        let second = timeout(HELLO_DEADLINE, incoming.message()).await;
        let proof = match second.ok().and_then(Result::ok).flatten().and_then(|r| r.content) {
            Some(Content::Proof(proof)) => Some(proof),
            _ => None,
        };
        let proven = service.inner.gate.prove(hello.from_node, &pending, proof);
        let admitted = match proven.and_then(|()| entrance.enter()) {
            // Admission may wait, and a caller that has left meanwhile must not displace its own
            // next connection.
            Ok(()) => tokio::select! {
                admitted = service.inner.gate.admit(&shared, &hello) => admitted,
                () = answers.closed() => return,
            },
            Err(sentence) => return send(&answers, refusal(&shared, sentence.into())),
        };
        match admitted {
            Ok((peer, theirs, connection)) => {
                peer.update_address(&theirs.peer_address);
                let mine = shared.hello(theirs.node, theirs.incarnation, hello.lane());
                let token = peer.replace_incoming(hello.lane());
                send(&answers, wire::link_response::Content::Hello(mine));
                Receiver { shared, peer, lane, answers, connection }.run(incoming, token).await;
            }
            Err(refused) => send(&answers, refusal(&shared, refused)),
        }
    }
}

fn refusal(shared: &Shared, refused: Refused) -> wire::link_response::Content {
    wire::link_response::Content::Refusal(wire::Refusal {
        sentence: refused.sentence,
        from_node: shared.local.node.0,
        reason: refused.reason.into(),
        start_id: shared.start.0,
    })
}

/// Reads one incoming link.
struct Receiver {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    lane: Lane,
    answers: mpsc::Sender<Result<wire::LinkResponse, Status>>,
    connection: Connection,
}

impl Receiver {
    /// Until the peer ends the stream, breaks the rules, opens a newer one, is found to be a copy,
    /// or this node stops.
    async fn run(self, incoming: Streaming<wire::LinkRequest>, token: CancellationToken) {
        let (node, lane) = (self.peer.node.0, self.lane);
        let ended = tokio::select! {
            biased;
            refused = self.connection.until_dropped() => {
                let content = Some(refusal(&self.shared, refused));
                let _ = self.answers.try_send(Ok(wire::LinkResponse { content }));
                return;
            }
            ended = token.run_until_cancelled(self.read(incoming)) => ended,
        };
        let Some(ended) = ended else { return };
        match ended {
            Ok(()) => debug!(peer = node, ?lane, "incoming link: ended"),
            Err(status) if status.code() == tonic::Code::InvalidArgument => {
                warn!(peer = node, ?lane, sentence = status.message(), "incoming link: dropped");
                let _ = self.answers.try_send(Err(status));
            }
            Err(status) => {
                let sentence = dial::status_sentence(&status);
                debug!(peer = node, ?lane, sentence, "incoming link: disconnected");
            }
        }
    }

    async fn read(&self, mut incoming: Streaming<wire::LinkRequest>) -> Result<(), Status> {
        let mut read: u64 = 0;
        // The next acknowledgement, when something was read that none has named.
        let mut ack_due: Option<Instant> = None;
        loop {
            let next = async {
                if self.lane == Lane::Bulk
                    && let Some(room) = self.shared.inbound.bulk_room()
                {
                    room.await;
                }
                incoming.message().await
            };
            let message = tokio::select! {
                biased;
                () = sleep_until(ack_due.unwrap_or_else(Instant::now)), if ack_due.is_some() => {
                    let ack = wire::link_response::Content::Ack(wire::Ack { number: read });
                    // A caller that does not take acknowledgements gets a later one.
                    let sent = self.answers.try_send(Ok(wire::LinkResponse { content: Some(ack) }));
                    ack_due = sent.is_err().then(|| Instant::now() + ACK_INTERVAL);
                    continue;
                }
                message = next => message?,
            };
            let Some(wire::LinkRequest { content }) = message else { return Ok(()) };
            let Some(wire::link_request::Content::Frame(frame)) = content else {
                return Err(Status::invalid_argument("a link carries frames after its Hello"));
            };
            if frame.number != read + 1 {
                let sentence = format!("frame {} came after frame {read}", frame.number);
                return Err(Status::invalid_argument(sentence));
            }
            read = frame.number;
            ack_due.get_or_insert_with(|| Instant::now() + ACK_INTERVAL);
            self.connection.told(frame.log_sequence);
            if let Some(live) = &frame.live {
                self.shared.reported(self.peer.node, live);
            }
            let messages =
                self.convert(frame).map_err(|error| Status::invalid_argument(error.0))?;
            self.peer.heard();
            self.shared.inbound.deliver(self.peer.node, self.lane, messages);
        }
    }

    /// The messages of a frame, each between the two nodes that this link joins.
    fn convert(&self, frame: wire::Frame) -> Result<Vec<Envelope>, convert::Malformed> {
        let mut messages = Vec::with_capacity(frame.messages.len());
        for message in frame.messages {
            let envelope = convert::from_wire(message)?;
            if envelope.from.node != self.peer.node || envelope.to.node != self.shared.local.node {
                return Err(convert::Malformed(format!(
                    "a message from node {} to node {} came on a link from node {} to node {}",
                    envelope.from.node.0,
                    envelope.to.node.0,
                    self.peer.node.0,
                    self.shared.local.node.0
                )));
            }
            messages.push(envelope);
        }
        Ok(messages)
    }
}
