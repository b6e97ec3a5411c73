//! Which connections stay and which are closed, on a listener of two services: health represents
//! the calls of peers, reflection those of clients.

use std::time::Duration;

use quorate_proto::v1::{Failure, Outcome};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use super::*;

const TIMEOUT: Duration = Duration::from_millis(500);

/// Long times, so that only the limit under test closes a connection.
const LIMITS: Limits = Limits {
    clients: 2,
    idle: Duration::from_secs(600),
    age: Duration::from_secs(600),
    patience: TIMEOUT,
};

async fn serve(limits: Limits) -> (SocketAddr, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let places = Arc::new(Places::new(limits, metrics.clone()));
    let (_, health) = tonic_health::server::health_reporter();
    let mut routes = Routes::builder();
    routes.add_service(of(Caller::Peer, health)).add_service(of(Caller::Client, reflection_v1()));
    let stop = CancellationToken::new();
    tokio::spawn(super::serve(listener, Server::builder(), routes.routes(), places, stop));
    (address, metrics)
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
