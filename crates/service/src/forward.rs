//! Calls that this node passes on: to the leader of a shard, or to a node with a replica.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_pipeline::{Answer, Lane, Operation, Unanswered};
use quorate_proto::limits::DECODE_BYTES_MAX;
use quorate_proto::sent::never_left;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::kv_client::KvClient;
use quorate_proto::v1::{
    BatchRequest, BatchResponse, CancelRequest, CancelResponse, CompareAndSetRequest,
    CompareAndSetResponse, DeleteRequest, DeleteResponse, Failure, GetRequest, GetResponse,
    IncrementRequest, IncrementResponse, MultiGetRequest, MultiGetResponse, Outcome,
    PipelineOperation, PutRequest, PutResponse, Reason, Receipt, TransferLeaderRequest,
    TransferLeaderResponse,
};
use quorate_raft::NodeId;
use tokio::sync::Semaphore;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::context::{Context, REQUEST_ID, TRACEPARENT};
use crate::known::KnownNodes;
use crate::outcome::HasOutcome;

/// How often a connection to another node without traffic is pinged.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// What a call is worth whose answer was lost on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// It changed nothing.
    Read,
    /// Its outcome is unknown.
    Write,
    /// The leadership may have moved, which asking again shows.
    Transfer,
}

/// A unary call that can be passed on as it came.
pub trait Forward: prost::Message + HasOutcome + Clone + Send + 'static {
    /// The answer.
    type Response: Send;
    /// What a lost answer means.
    const LOSS: Loss;

    /// The receipt of an answer; `None` where answers have none.
    fn receipt(response: &Self::Response) -> Option<&Receipt>;

    /// The request as an operation of a Pipeline; `None` for what is always a call of its own. A
    /// read is one, because its answer may be large, and all operations to a node share a stream.
    fn operation(&self) -> Option<Operation> {
        None
    }

    /// The answer in this result of a Pipeline, if it is of this kind.
    fn in_answer(_answer: Answer) -> Option<Self::Response> {
        None
    }

    /// Makes the call.
    fn call(
        channel: Channel,
        request: Request<Self>,
    ) -> impl Future<Output = Result<Response<Self::Response>, Status>> + Send;
}

macro_rules! forward {
    ($($request:ty => $response:ty, $method:ident, $loss:ident $(, $kind:ident)?;)*) => {$(
        impl Forward for $request {
            type Response = $response;
            const LOSS: Loss = Loss::$loss;

            fn receipt(response: &$response) -> Option<&Receipt> {
                response.receipt.as_ref()
            }

            $(fn operation(&self) -> Option<Operation> {
                Some(Operation::$kind(self.clone()))
            }

            fn in_answer(answer: Answer) -> Option<$response> {
                match answer {
                    Answer::$kind(answer) => Some(answer),
                    _ => None,
                }
            })?

            async fn call(
                channel: Channel,
                request: Request<Self>,
            ) -> Result<Response<$response>, Status> {
                kv(channel).$method(request).await
            }
        }
    )*};
}

forward! {
    GetRequest => GetResponse, get, Read;
    PutRequest => PutResponse, put, Write, Put;
    DeleteRequest => DeleteResponse, delete, Write, Delete;
    CompareAndSetRequest => CompareAndSetResponse, compare_and_set, Write, CompareAndSet;
    IncrementRequest => IncrementResponse, increment, Write, Increment;
    BatchRequest => BatchResponse, batch, Write, Batch;
    CancelRequest => CancelResponse, cancel, Write;
}

/// A part of a MultiGet whose keys are in one shard. What comes back is one message about the first
/// of the keys, with the receipt, however many there are: the rest is asked for when it is needed.
impl Forward for MultiGetRequest {
    type Response = MultiGetResponse;
    const LOSS: Loss = Loss::Read;

    fn receipt(response: &MultiGetResponse) -> Option<&Receipt> {
        response.receipts.first()
    }

    async fn call(
        channel: Channel,
        mut request: Request<Self>,
    ) -> Result<Response<MultiGetResponse>, Status> {
        request.metadata_mut().insert(PIECE, PIECE_BYTES.into());
        let mut answers = kv(channel).multi_get(request).await?.into_inner();
        let piece = answers.message().await?;
        piece.map(Response::new).ok_or_else(|| Status::unavailable("the answer has no message"))
    }
}

impl Forward for TransferLeaderRequest {
    type Response = TransferLeaderResponse;
    const LOSS: Loss = Loss::Transfer;

    fn receipt(_: &TransferLeaderResponse) -> Option<&Receipt> {
        None
    }

    async fn call(
        channel: Channel,
        request: Request<Self>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        ClusterClient::new(channel).transfer_leader(request).await
    }
}

fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel)
        .max_decoding_message_size(DECODE_BYTES_MAX)
        .max_encoding_message_size(DECODE_BYTES_MAX)
}

/// Connections to the other nodes' peer listeners, opened when they are first needed.
pub struct Forwarder {
    channels: Mutex<BTreeMap<(NodeId, Purpose), (String, Channel)>>,
    /// The streams of operations, by node and by how often these were passed on before.
    lanes: Mutex<BTreeMap<(NodeId, u32), (String, Lane)>>,
    /// What their answers have shown of them.
    pub known: KnownNodes,
    /// The places of scans with shards on other nodes.
    pub scans: Arc<Semaphore>,
    prove: Prove,
}

/// Puts into the metadata of a call to a node the proof that a node of the cluster passes it on.
/// `false` = this node was never connected to that one, so that there is none.
pub type Prove = Box<dyn Fn(NodeId, &mut MetadataMap) -> bool + Send + Sync>;

/// What a connection is for. A scan that is read slowly fills the windows of its streams, and then
/// of its connection: no other call may be behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Calls with one answer.
    Calls,
    /// Operations of Pipelines.
    Operations,
    /// Scans of single shards: [`SCANS_PER_CONNECTION`] of each scan.
    Scans(u32),
}

/// Scans with shards on other nodes that run at the same time; see [`Forwarder::scans`].
pub const SCANS_MAX: usize = 8;
/// Streams of one scan on one connection. With those of the other scans they are fewer than the
/// calls that the other node takes on a connection, so that no stream waits for another's end.
pub const SCANS_PER_CONNECTION: usize = 25;
/// Bytes of a scan's stream that may be under way unread. The window of the connection is as large
/// as those of all its streams, so that one that is not read holds up no other.
const SCAN_WINDOW_BYTES: u32 = 64 << 10;

/// Between nodes, on a MultiGet: the answer is to be one message about the first of the keys, of at
/// most this number of bytes or one result, with the receipts.
pub const PIECE: &str = "quorate-piece-bytes";
/// Bytes of such a message: what a node holds of a shard elsewhere for a reader of its own. It
/// shares a connection with all other calls, so it must not be one that waits for a reader.
pub const PIECE_BYTES: u32 = 128 << 10;

/// Why a call could not be passed on, or what the other node answered.
#[derive(Debug)]
pub enum Forwarded<T> {
    /// The answer of the other node.
    Answered(T),
    /// It failed there; final.
    Failed(Failure),
    /// No answer came, and the call may have arrived.
    Lost(Failure),
    /// It never left this node: another way may be tried.
    NotSent(Failure),
}

impl Forwarder {
    /// Without connections so far.
    #[must_use]
    pub fn new(prove: Prove) -> Self {
        Self {
            channels: Mutex::default(),
            lanes: Mutex::default(),
            known: KnownNodes::default(),
            scans: Arc::new(Semaphore::new(SCANS_MAX)),
            prove,
        }
    }

    /// Puts into the metadata of a call to `node` the proof that it comes from a node of the
    /// cluster.
    ///
    /// # Errors
    /// NO_LEADER when this node was never connected to that one, which would refuse the call.
    pub fn prove(&self, node: NodeId, metadata: &mut MetadataMap) -> Result<(), Failure> {
        match (self.prove)(node, metadata) {
            true => Ok(()),
            false => {
                let message = format!("this node was never connected to node {}", node.0);
                Err(Failure::of(Reason::NoLeader, message))
            }
        }
    }

    /// The client of a node's Kv service.
    ///
    /// # Errors
    /// `address` is not HOST:PORT.
    pub fn client(
        &self,
        node: NodeId,
        purpose: Purpose,
        address: &str,
    ) -> Result<KvClient<Channel>, Failure> {
        self.channel(node, purpose, address).map(kv)
    }

    fn channel(&self, node: NodeId, purpose: Purpose, address: &str) -> Result<Channel, Failure> {
        let mut channels = self.channels.lock();
        let channel = match channels.get(&(node, purpose)) {
            Some((known, channel)) if known == address => channel.clone(),
            _ => {
                let channel = connect(purpose, address)?;
                channels.insert((node, purpose), (address.to_owned(), channel.clone()));
                channel
            }
        };
        Ok(channel)
    }

    /// Passes a call on to `node`.
    pub async fn pass<R: Forward>(
        &self,
        context: &Context,
        node: NodeId,
        address: &str,
        message: &R,
    ) -> Forwarded<R::Response> {
        let left = context.left();
        // In a stream of its own it keeps its place among the others.
        let operation = context.in_stream.as_ref().and_then(|_| message.operation());
        let forwarded = match operation {
            Some(operation) => self.pass_in_lane::<R>(context, node, address, operation).await,
            None => self.call(context, node, address, message).await,
        };
        let forwarded = forwarded.unwrap_or_else(|refused| refused);
        match &forwarded {
            Forwarded::Answered(answer) => self.known.answered(node, R::receipt(answer)),
            Forwarded::Failed(failure) => self.known.failed(node, failure),
            Forwarded::Lost(_) => self.known.did_not_answer(node, Some(left)),
            Forwarded::NotSent(_) => self.known.did_not_answer(node, None),
        }
        forwarded
    }

    /// Passes a call on as a call.
    async fn call<R: Forward>(
        &self,
        context: &Context,
        node: NodeId,
        address: &str,
        message: &R,
    ) -> Result<Forwarded<R::Response>, Forwarded<R::Response>> {
        let mut request = Request::new(message.clone());
        context.forward_into(request.metadata_mut()).map_err(Forwarded::Failed)?;
        self.prove(node, request.metadata_mut()).map_err(Forwarded::NotSent)?;
        let channel = self.channel(node, Purpose::Calls, address).map_err(Forwarded::NotSent)?;
        let left = context.left();
        request.set_timeout(left);
        // The time-out is ours as well: a node that is stopped answers nothing.
        Ok(match tokio::time::timeout(left, R::call(channel, request)).await {
            Ok(Ok(response)) => Forwarded::Answered(response.into_inner()),
            Ok(Err(status)) => failed::<R>(node, &status),
            Err(_) => Forwarded::Lost(lost(R::LOSS, true, node, "its time was up")),
        })
    }

    /// Passes an operation on behind those before it.
    async fn pass_in_lane<R: Forward>(
        &self,
        context: &Context,
        node: NodeId,
        address: &str,
        operation: Operation,
    ) -> Result<Forwarded<R::Response>, Forwarded<R::Response>> {
        let lane = self.lane(context, node, address)?;
        let operation = PipelineOperation {
            request_id: context.request_id.clone(),
            traceparent: context.traceparent.clone().unwrap_or_default(),
            operation: Some(operation),
            ..PipelineOperation::default()
        };
        let mut pending = lane.send(operation, context.deadline.into_std());
        context.handed_over();
        Ok(match tokio::time::timeout_at(context.deadline, &mut pending).await {
            Ok(Ok(Answer::Failure(failure))) => Forwarded::Failed(failure),
            Ok(Ok(answer)) => match R::in_answer(answer) {
                Some(answer) => Forwarded::Answered(answer),
                None => {
                    Forwarded::Lost(lost(R::LOSS, false, node, "the answer is of another kind"))
                }
            },
            Ok(Err(Unanswered::NotSent(status))) => not_sent(node, status.message()),
            Ok(Err(Unanswered::Lost(status))) => {
                Forwarded::Lost(lost(R::LOSS, false, node, status.message()))
            }
            Err(_) if pending.was_sent() => {
                Forwarded::Lost(lost(R::LOSS, true, node, "its time was up"))
            }
            Err(_) => not_sent(node, "its time was up before it could be sent"),
        })
    }

    /// The stream of operations to a node, opened if there is none.
    fn lane<T>(
        &self,
        context: &Context,
        node: NodeId,
        address: &str,
    ) -> Result<Lane, Forwarded<T>> {
        let mut lanes = self.lanes.lock();
        if let Some((known, lane)) = lanes.get(&(node, context.hops))
            && known == address
            && lane.is_open()
        {
            return Ok(lane.clone());
        }
        let mut metadata = MetadataMap::new();
        context.forward_into(&mut metadata).map_err(Forwarded::Failed)?;
        // Each operation has its own.
        metadata.remove(REQUEST_ID);
        metadata.remove(TRACEPARENT);
        self.prove(node, &mut metadata).map_err(Forwarded::NotSent)?;
        let client = self.client(node, Purpose::Operations, address);
        let lane = Lane::open(client.map_err(Forwarded::NotSent)?, metadata);
        lanes.insert((node, context.hops), (address.to_owned(), lane.clone()));
        Ok(lane)
    }
}

fn not_sent<T>(node: NodeId, why: &str) -> Forwarded<T> {
    let message = format!("node {node} cannot be reached: {why}");
    Forwarded::NotSent(Failure::of(Reason::NoLeader, message))
}

fn failed<R: Forward>(node: NodeId, status: &Status) -> Forwarded<R::Response> {
    if let Some((failure, _)) = Failure::from_details(status.details()) {
        return Forwarded::Failed(failure);
    }
    if never_left(status) {
        return not_sent(node, status.message());
    }
    // A node gives this code at its door alone, before it looks at the call.
    if status.code() == Code::Unauthenticated {
        let message = format!("node {} takes no call of this one: {}", node.0, status.message());
        return Forwarded::NotSent(Failure::of(Reason::NoLeader, message));
    }
    let timed_out = matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled);
    Forwarded::Lost(lost(R::LOSS, timed_out, node, status.message()))
}

fn lost(loss: Loss, timed_out: bool, node: NodeId, why: &str) -> Failure {
    match loss {
        Loss::Read => {
            let message =
                format!("the read was passed on to node {node}, and no answer came: {why}");
            let reason = if timed_out { Reason::ReadTimeout } else { Reason::NoLeader };
            Failure { outcome: Outcome::Unspecified as i32, ..Failure::of(reason, message) }
        }
        Loss::Write => {
            let message =
                format!("the write was passed on to node {node}, and its answer is lost: {why}");
            let code = if timed_out { Code::DeadlineExceeded } else { Code::Unknown };
            Failure { code: code as i32, ..Failure::of(Reason::OutcomeUnknown, message) }
        }
        Loss::Transfer => {
            let message = format!(
                "the transfer was passed on to node {node}, and its answer is lost: {why}; the \
                 leadership may have moved"
            );
            Failure::of(Reason::NotTransferred, message)
        }
    }
}

fn connect(purpose: Purpose, address: &str) -> Result<Channel, Failure> {
    let (stream_window, connection_window) = match purpose {
        Purpose::Calls | Purpose::Operations => (1 << 20, 8 << 20),
        Purpose::Scans(_) => {
            (SCAN_WINDOW_BYTES, SCAN_WINDOW_BYTES * (SCANS_MAX * SCANS_PER_CONNECTION) as u32)
        }
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| {
        Failure::of(Reason::Internal, format!("{address} is not the address of a node: {error}"))
    })?;
    let endpoint = endpoint
        .connect_timeout(Duration::from_secs(1))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(connection_window);
    Ok(endpoint.connect_lazy())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Type and flags of the next HTTP/2 frame.
    async fn frame(stream: &mut TcpStream) -> (u8, u8) {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.expect("a frame");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body).await.expect("its body");
        (head[3], head[4])
    }

    #[tokio::test]
    async fn a_write_that_a_node_does_not_take_from_this_one_was_not_sent() {
        let refused = Status::unauthenticated("it has not proved the secret");
        let Forwarded::NotSent(failure) = failed::<PutRequest>(NodeId(2), &refused) else {
            panic!("another replica may be asked");
        };
        assert!(failure.message.contains("has not proved the secret"), "{failure:?}");
        let forwarder = Forwarder::new(Box::new(|_, _| false));
        let context = Context::of(&MetadataMap::new());
        let passed =
            forwarder.pass(&context, NodeId(2), "127.0.0.1:1", &PutRequest::default()).await;
        let Forwarded::NotSent(failure) = passed else { panic!("{passed:?}") };
        assert!(failure.message.contains("never connected to node 2"), "{failure:?}");
    }

    /// A node that takes one call at a time has one, and ends. What waited behind it never left.
    #[tokio::test]
    async fn a_write_that_waited_to_be_sent_when_its_connection_ended_was_not_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let forwarder = Arc::new(Forwarder::new(Box::new(|_, _| true)));
        let pass = || {
            let (forwarder, address) = (forwarder.clone(), address.clone());
            tokio::spawn(async move {
                let context = Context::of(&MetadataMap::new());
                forwarder.pass(&context, NodeId(2), &address, &PutRequest::default()).await
            })
        };
        let first = pass();
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.expect("the preface of HTTP/2");
        // SETTINGS: one stream at a time.
        let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1];
        stream.write_all(&settings).await.expect("they are sent");
        let (mut begun, mut accepted) = (false, false);
        while !(begun && accepted) {
            match frame(&mut stream).await {
                (1, _) => begun = true,
                (4, 1) => accepted = true,
                _ => {}
            }
        }
        let behind: Vec<_> = (0..10).map(|_| pass()).collect();
        // There is one thread, so that each of them has got as far as it can.
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        drop(stream);
        assert!(matches!(first.await, Ok(Forwarded::Lost(_))), "it may have arrived");
        let mut not_sent = 0;
        for pass in behind {
            not_sent += u32::from(matches!(pass.await, Ok(Forwarded::NotSent(_))));
        }
        // The library takes one more before it looks at the limit, and cannot say that of it.
        assert!(not_sent >= 9, "{not_sent} of 10 are known not to have left");
    }
}
