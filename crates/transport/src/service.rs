//! The incoming side: the gRPC service that peers call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use quorate_proto::raft::v1 as wire;
use quorate_raft::{Envelope, NodeId};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, warn};

use super::admission::Connection;
use super::hello::HELLO_DEADLINE;
use super::peer::Peer;
use super::presence::Refused;
use super::{
    Greeter, Lane, PEER_MESSAGE_BYTES_MAX, PeerHello, Shared, Transport, convert, dial, snapshot,
};

/// How often frames are acknowledged, at most.
const ACK_INTERVAL: Duration = Duration::from_millis(250);
/// Answers under way to the caller: the Hello, one acknowledgement, the reason of the end.
const ANSWERS_MAX: usize = 4;
/// Refused node ids whose sentences are remembered, so that each is logged once per change.
const REFUSALS_MAX: usize = 64;

/// gRPC service that peers call. It answers questions immediately, and accepts streams once the
/// node has formed and [`PeerService::attach`] was called.
#[derive(Clone)]
pub struct PeerService {
    inner: Arc<Inner>,
}

struct Inner {
    greeter: Arc<dyn Greeter>,
    transport: ArcSwapOption<Shared>,
    refusals: Mutex<BTreeMap<u64, String>>,
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
    pub fn new(greeter: Arc<dyn Greeter>) -> Self {
        let transport = ArcSwapOption::empty();
        Self { inner: Arc::new(Inner { greeter, transport, refusals: Mutex::default() }) }
    }

    /// Accepts streams of peers from now on.
    pub fn attach(&self, transport: &Transport) {
        self.inner.transport.store(Some(Arc::clone(&transport.shared)));
    }

    /// The gRPC service, with its limits, for a listener shared with other services.
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

    /// The peer that says this, or why it is refused.
    pub(super) async fn admit(
        &self,
        shared: &Shared,
        hello: &wire::Hello,
    ) -> Result<(Arc<Peer>, PeerHello, Connection), Refused> {
        let admitted = Self::check(shared, hello).await;
        let mut refusals = self.inner.refusals.lock();
        match &admitted {
            Ok(_) => drop(refusals.remove(&hello.from_node)),
            // It comes again in a moment, and then there is something to say.
            Err(refused) if refused.reason == wire::RefusalReason::Undecided => {}
            Err(Refused { sentence, .. }) => {
                if refusals.get(&hello.from_node) != Some(sentence) {
                    warn!(peer = hello.from_node, sentence, "peer: refused");
                    if refusals.len() >= REFUSALS_MAX {
                        refusals.clear();
                    }
                    refusals.insert(hello.from_node, sentence.clone());
                }
            }
        }
        admitted
    }

    async fn check(
        shared: &Shared,
        hello: &wire::Hello,
    ) -> Result<(Arc<Peer>, PeerHello, Connection), Refused> {
        if let Some(sentence) = shared.fenced.get() {
            return Err(format!("node {} takes no part: {sentence}", shared.local.node.0).into());
        }
        let peer = shared.peer(NodeId(hello.from_node));
        let target = peer.as_ref().map(|peer| peer.target());
        let theirs = shared.check_hello(hello, target.as_ref())?;
        // check_hello refuses what has no target.
        let unknown = || format!("node {} is not known here", hello.from_node);
        let peer = peer.ok_or_else(unknown)?;
        let connection = peer.take(&theirs, false, &shared.memory).await?;
        Ok((peer, theirs, connection))
    }
}

#[tonic::async_trait]
impl wire::peer_server::Peer for PeerService {
    type LinkStream = ReceiverStream<Result<wire::LinkResponse, Status>>;

    async fn ask(
        &self,
        _request: Request<wire::AskRequest>,
    ) -> Result<Response<wire::AskResponse>, Status> {
        Ok(Response::new(self.inner.greeter.answer()))
    }

    async fn link(
        &self,
        request: Request<Streaming<wire::LinkRequest>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let shared = self.shared()?;
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
        let first = match self.admit(&shared, &hello).await {
            Ok((peer, theirs, connection)) => {
                peer.update_address(&theirs.peer_address);
                let mine = shared.hello(theirs.node, theirs.incarnation, hello.lane());
                let token = peer.replace_incoming(hello.lane());
                let answers = answers.clone();
                let receiver = Receiver { shared, peer, lane, answers, connection };
                tokio::spawn(receiver.run(incoming, token));
                wire::link_response::Content::Hello(mine)
            }
            Err(refused) => refusal(&shared, refused),
        };
        // The channel is new and has room, unless the receiver has already ended it.
        let _ = answers.try_send(Ok(wire::LinkResponse { content: Some(first) }));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotRequest>>,
    ) -> Result<Response<wire::SnapshotResponse>, Status> {
        let shared = self.shared()?;
        let admit = async |hello: &wire::Hello| self.admit(&shared, hello).await;
        let refusal = snapshot::receive(admit, &shared, request.into_inner()).await?;
        let node_id = shared.local.node.0;
        Ok(Response::new(wire::SnapshotResponse {
            node_id,
            refusal: refusal.err().unwrap_or_default(),
        }))
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
