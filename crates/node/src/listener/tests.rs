//! Connections that stay, and those that must go, on a listener of two services: health stands for
//! what peers call, reflection for what clients call.

use std::time::Duration;

use quorate_proto::v1::{Failure, Outcome};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

use super::*;

const PATIENCE: Duration = Duration::from_millis(500);

async fn serve(clients_max: usize) -> (SocketAddr, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let places = Arc::new(Places::new(clients_max, metrics.clone()).with_patience(PATIENCE));
    let incoming = accepted(listener, places, CancellationToken::new());
    let (_, health) = tonic_health::server::health_reporter();
    let routes = Server::builder()
        .add_service(of(Caller::Peer, health))
        .add_service(of(Caller::Client, reflection_v1()));
    tokio::spawn(routes.serve_with_incoming(incoming));
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

#[tokio::test]
async fn clients_beyond_the_limit_are_refused_with_a_sentence_and_peers_are_not() {
    let (address, metrics) = serve(2).await;
    let (first, second) = (channel(address).await, channel(address).await);
    as_client(&first).await.unwrap();
    as_client(&second).await.unwrap();
    let third = channel(address).await;
    let refused = as_client(&third).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let sentence = "this node already serves 2 client connections; the limit is --max-connections";
    assert_eq!(refused.message(), sentence);
    let (failure, _) = Failure::from_details(refused.details()).unwrap();
    assert!(failure.only_this_node, "another node may have a place");
    assert_eq!((failure.limit, failure.knob.as_str()), (2, "max-connections"));
    // The request is not read, so that the node cannot know whether it is a repeated attempt.
    let (failure, _) = Failure::from_details(refused.details()).expect("a failure of ours");
    assert_eq!(failure.outcome(), Outcome::AttemptNotApplied);
    assert_eq!(metrics.connections_refused.get(), 1);

    let peer = channel(address).await;
    as_peer(&peer).await.unwrap();
    // Those who have a place keep it, whatever the hour.
    tokio::time::sleep(PATIENCE * 2).await;
    as_client(&first).await.unwrap();
    as_peer(&peer).await.unwrap();
    assert_eq!(metrics.connections.get(), 3, "the refused one is closed by its deadline");

    drop(second);
    let next = channel(address).await;
    timeout(Duration::from_secs(5), async {
        while as_client(&next).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the place of a client that left is free");
}

#[tokio::test]
async fn sockets_that_ask_nothing_keep_nobody_out_and_are_closed() {
    let (address, metrics) = serve(2).await;
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
        let end = timeout(PATIENCE * 10, socket.read_to_end(&mut bytes)).await;
        assert!(end.is_ok(), "a socket that asked nothing is still open");
    }
    timeout(PATIENCE * 10, async {
        while metrics.connections.get() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("idle channels are closed as well, and the two that asked have left");
}
