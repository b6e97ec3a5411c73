//! Which connections stay and which are closed, on a listener of two services: health represents
//! the calls of peers, reflection those of clients.

use std::convert::Infallible;
use std::time::Duration;

use futures::StreamExt;
use hyper_util::rt::TokioExecutor;
use quorate_proto::v1::{Failure, Outcome};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::http::{HeaderValue, Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use super::*;

mod bodies;

const TIMEOUT: Duration = Duration::from_millis(500);

const CALLS_MAX: u32 = 256;

/// Long times, so that only the limit under test closes a connection.
const LIMITS: Limits = Limits {
    clients: 2,
    idle: Duration::from_secs(600),
    age: Duration::from_secs(600),
    patience: TIMEOUT,
};

/// How long a node is busy with something else.
const BUSY: Duration = Duration::from_millis(800);

/// Methods that take longer than their caller says it waits; `Block` holds up its thread first.
#[derive(Clone)]
struct Slow;

impl NamedService for Slow {
    const NAME: &'static str = "test.Slow";
}

impl Service<Request<Body>> for Slow {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let blocks = request.uri().path().ends_with("Block");
        Box::pin(async move {
            if blocks {
                std::thread::sleep(BUSY);
            }
            tokio::time::sleep(TIMEOUT).await;
            let mut response = Response::new(Body::empty());
            response.headers_mut().insert("grpc-status", HeaderValue::from_static("4"));
            Ok(response)
        })
    }
}

type Sender = hyper::client::conn::http2::SendRequest<Body>;

/// A connection on which nothing but the server ends a call.
async fn plain_connection(address: SocketAddr) -> Sender {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let connected = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await;
    let (sender, connection) = connected.unwrap();
    tokio::spawn(connection);
    sender
}

/// Calls the slow method; the status that the server gave.
async fn call_slow(sender: &mut Sender, method: &str) -> Result<String, hyper::Error> {
    let request = Request::post(format!("http://node/test.Slow/{method}"))
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "50m")
        .body(Body::empty());
    let answer = sender.send_request(request.unwrap()).await?;
    Ok(answer.headers()["grpc-status"].to_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_call_ends_by_its_own_deadline_and_not_at_the_callers_time() {
    let (address, _) = serve(LIMITS).await;
    let mut sender = plain_connection(address).await;
    let status = call_slow(&mut sender, "Call").await.unwrap();
    assert_eq!(status, "4", "1 = CANCELLED by the transport");
}

/// As when all callers behind one connection run out of time on a node that is busy: it finds the
/// calls and their ends together.
#[tokio::test]
async fn a_client_that_gives_up_all_its_calls_at_once_keeps_its_connection() {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tell.send(serve(LIMITS).await.0).unwrap();
            std::future::pending::<()>().await;
        });
    });
    let sender = plain_connection(told.recv().unwrap()).await;
    let call = || {
        let mut sender = sender.clone();
        tokio::spawn(async move { call_slow(&mut sender, "Call").await })
    };
    assert_eq!(call().await.unwrap().unwrap(), "4");
    let mut blocking = sender.clone();
    let busy = tokio::spawn(async move { call_slow(&mut blocking, "Block").await });
    tokio::time::sleep(BUSY / 4).await;
    let calls: Vec<_> = (1..CALLS_MAX).map(|_| call()).collect();
    tokio::time::sleep(BUSY / 4).await;
    calls.iter().for_each(|call| call.abort());
    assert_eq!(busy.await.unwrap().unwrap(), "4");
    assert_eq!(call().await.unwrap().unwrap(), "4");
}

async fn serve(limits: Limits) -> (SocketAddr, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let bodies = Arc::new(Budget::new(64 << 20, &metrics));
    (serve_with(limits, metrics.clone(), bodies).await, metrics)
}

/// Serves with this budget of bodies.
async fn serve_with(limits: Limits, metrics: Arc<Metrics>, bodies: Arc<Budget>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let places = Arc::new(Places::new(limits, metrics));
    let (_, health) = tonic_health::server::health_reporter();
    let mut routes = Routes::builder();
    routes
        .add_service(of(Caller::Peer, health))
        .add_service(of(Caller::Client, reflection_v1()))
        .add_service(of(Caller::Client, Slow))
        .add_service(of(Caller::Client, bodies::Large));
    let stop = CancellationToken::new();
    tokio::spawn(super::serve(listener, CALLS_MAX, routes.routes(), places, bodies, stop));
    address
}

async fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

async fn as_peer(channel: &Channel) -> Result<(), tonic::Status> {
    let request = HealthCheckRequest { service: String::new() };
    HealthClient::new(channel.clone()).check(request).await.map(drop)
}

async fn as_client(channel: &Channel) -> Result<(), tonic::Status> {
    let requests = futures::stream::iter([ServerReflectionRequest::default()]);
    let mut client = ServerReflectionClient::new(channel.clone());
    client.server_reflection_info(requests).await.map(drop)
}

/// A call in flight: accepts more questions, and ends when the sender is dropped.
struct Busy {
    questions: mpsc::Sender<ServerReflectionRequest>,
    answers: tonic::Streaming<ServerReflectionResponse>,
}

impl Busy {
    async fn begin(channel: &Channel) -> Busy {
        let (questions, asked) = mpsc::channel(1);
        let mut client = ServerReflectionClient::new(channel.clone());
        let answers = client.server_reflection_info(ReceiverStream::new(asked)).await.unwrap();
        Busy { questions, answers: answers.into_inner() }
    }

    async fn ask(&mut self) {
        let question = ServerReflectionRequest {
            message_request: Some(MessageRequest::ListServices(String::new())),
            ..ServerReflectionRequest::default()
        };
        self.questions.send(question).await.unwrap();
        self.answers.next().await.expect("an answer").unwrap();
    }

    /// Waits for the end of the call.
    async fn end(mut self) {
        drop(self.questions);
        while let Some(answer) = self.answers.next().await {
            answer.unwrap();
        }
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = timeout(TIMEOUT * 20, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}

/// The header by which a node says that it passes a call on; a client can say so too.
async fn with_hops(channel: &Channel) -> Result<(), tonic::Status> {
    let questions = futures::stream::iter([ServerReflectionRequest::default()]);
    let mut request = tonic::Request::new(questions);
    request.metadata_mut().insert(quorate_service::context::HOPS, 1.into());
    let mut client = ServerReflectionClient::new(channel.clone());
    client.server_reflection_info(request).await.map(drop)
}

#[tokio::test]
async fn a_client_that_says_it_passes_calls_on_is_a_client_like_any_other() {
    let (address, metrics) = serve(LIMITS).await;
    let mut liars = Vec::new();
    for _ in 0..places::PEERS_MAX + 10 {
        let liar = channel(address).await;
        with_hops(&liar).await.unwrap();
        liars.push(liar);
    }
    as_peer(&channel(address).await).await.expect("a place of peers");
    until("but for 2 clients all have left", || metrics.node.connections.get() <= 3).await;

    let (address, _) = serve(LIMITS).await;
    let clients = [channel(address).await, channel(address).await];
    let _busy = [Busy::begin(&clients[0]).await, Busy::begin(&clients[1]).await];
    let refused = with_hops(&channel(address).await).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
}

#[tokio::test]
async fn clients_beyond_the_limit_are_rejected_with_a_sentence_and_peers_are_not() {
    let (address, metrics) = serve(LIMITS).await;
    let (first, second) = (channel(address).await, channel(address).await);
    let mut first_call = Busy::begin(&first).await;
    let _second_call = Busy::begin(&second).await;
    let third = channel(address).await;
    let refused = as_client(&third).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let sentence = "this node already serves 2 client connections, and none is idle; the limit is \
                    --max-connections";
    assert_eq!(refused.message(), sentence);
    let (failure, _) = Failure::from_details(refused.details()).expect("a failure of ours");
    assert!(failure.only_this_node, "another node may have a place");
    assert_eq!((failure.limit, failure.config_key.as_str()), (2, "max-connections"));
    // The request is not read, so that the node cannot know whether it is a repeated attempt.
    assert_eq!(failure.outcome(), Outcome::AttemptNotApplied);
    assert_eq!(metrics.node.connections_refused.get(), 1);

    let peer = channel(address).await;
    as_peer(&peer).await.unwrap();
    until("the refused one is closed by its deadline", || metrics.node.connections.get() == 3)
        .await;
    first_call.ask().await;
    as_client(&first).await.unwrap();
    as_peer(&peer).await.unwrap();

    first_call.end().await;
    let next = channel(address).await;
    timeout(Duration::from_secs(5), async {
        while as_client(&next).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("a client that has become idle yields its place");
    assert_eq!(metrics.connections_closed("yielded").get(), 1);
    until("it has left", || metrics.node.connections.get() == 3).await;
    as_peer(&peer).await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_its_client_reconnects_without_an_error() {
    let idle = Duration::from_millis(50);
    let (address, metrics) = serve(Limits { idle, ..LIMITS }).await;
    let peer = channel(address).await;
    as_peer(&peer).await.unwrap();
    let client = channel(address).await;
    let mut call = Busy::begin(&client).await;
    tokio::time::sleep(idle * 4).await;
    call.ask().await;
    assert_eq!(metrics.connections_closed("idle").get(), 0, "a call is in flight");
    call.end().await;
    for count in 1..=3 {
        let closed = metrics.connections_closed("idle");
        until("the idle one is closed", || closed.get() == count).await;
        until("only the peer is left", || metrics.node.connections.get() == 1).await;
        as_client(&client).await.unwrap();
    }
    as_peer(&peer).await.unwrap();
}

#[tokio::test]
async fn an_old_connection_is_closed_when_its_calls_have_ended() {
    let age = Duration::from_millis(100);
    let (address, metrics) = serve(Limits { age, ..LIMITS }).await;
    let client = channel(address).await;
    let mut call = Busy::begin(&client).await;
    let aged = metrics.connections_closed("aged");
    until("it is old", || aged.get() == 1).await;
    call.ask().await;
    call.ask().await;
    assert_eq!(metrics.node.connections.get(), 1, "the call continues");
    call.end().await;
    until("it is closed", || metrics.node.connections.get() == 0).await;
    as_client(&client).await.unwrap();
}

#[tokio::test]
async fn silent_sockets_do_not_block_other_clients_and_are_closed() {
    let (address, metrics) = serve(LIMITS).await;
    let mut idle = Vec::new();
    for _ in 0..places::NEW_MAX + 20 {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    let mut waiting = Vec::new();
    for _ in 0..20 {
        waiting.push(channel(address).await);
    }
    as_peer(&channel(address).await).await.unwrap();
    as_client(&channel(address).await).await.unwrap();

    for socket in &mut idle {
        let mut bytes = Vec::new();
        // The server's settings, then the end.
        let end = timeout(TIMEOUT * 10, socket.read_to_end(&mut bytes)).await;
        assert!(end.is_ok(), "a socket without a request is still open");
    }
    timeout(TIMEOUT * 10, async {
        while metrics.node.connections.get() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("idle channels and the two with a request are closed");
}
