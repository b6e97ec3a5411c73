//! The listeners: one for clients, one for peers, or one for both.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use prometheus_client::metrics::gauge::Gauge;
use quorate_proto::limits::DECODE_BYTES_MAX;
use quorate_proto::v1::cluster_server::ClusterServer;
use quorate_proto::v1::kv_server::KvServer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tracing::{debug, warn};

use crate::config::Config;
use crate::exit::Fatal;
use crate::health_probe::{LIVE_SERVICE, READY_SERVICE};
use crate::metrics::Metrics;
use crate::service::cluster::ClusterService;
use crate::service::kv::KvService;
use crate::transport::PeerService;

/// Connections that have been accepted and wait for the server; it takes them at once.
const ACCEPTED_WAITING: usize = 16;
/// A client that resets so many streams before the server saw them is cut off.
const PENDING_RESETS_MAX: usize = 64;

/// What a listener serves.
#[derive(Clone)]
pub struct Services {
    /// Keys.
    pub kv: KvService,
    /// Facts about the cluster.
    pub cluster: ClusterService,
    /// Other nodes.
    pub peer: PeerService,
    /// The gRPC health service's state.
    pub health: tonic_health::server::HealthReporter,
}

/// Opens a listener.
///
/// # Errors
///
/// The address is taken, or cannot be bound.
pub async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, Fatal> {
    TcpListener::bind(address).await.map_err(|error| {
        Fatal::AddressTaken(format!("cannot listen on {address}: {error} ({flag})"))
    })
}

/// Serves the client API, and peers too where both have one address, until `stop`.
///
/// # Errors
///
/// The listener failed.
pub async fn serve_clients(
    listener: TcpListener,
    services: Services,
    with_peers: bool,
    config: &Config,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    // Peers on the same listener must not find it full of clients, so they have room of their own.
    let peers = if with_peers { PEER_CONNECTIONS } else { 0 };
    let incoming = limited(listener, config.max_connections + peers, metrics, stop.clone());
    let routes = server(config)
        .add_service(kv(services.kv))
        .add_service(cluster(services.cluster))
        .add_service(tonic_health::pb::health_server::HealthServer::new(
            tonic_health::server::HealthService::from_health_reporter(services.health),
        ))
        .add_optional_service(with_peers.then(|| services.peer.into_server()))
        .add_service(reflection_v1())
        .add_service(reflection_v1alpha());
    routes.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await
}

/// Serves peers, and calls that they pass on, until `stop`.
///
/// # Errors
///
/// The listener failed.
pub async fn serve_peers(
    listener: TcpListener,
    services: Services,
    config: &Config,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let incoming = limited(listener, PEER_CONNECTIONS, metrics, stop.clone());
    server(config)
        .add_service(services.peer.into_server())
        .add_service(kv(services.kv))
        .add_service(cluster(services.cluster))
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
}

/// Connections of peers: four of each of the other nodes (control, bulk, snapshot, passed-on
/// calls), twice over while old ones end.
const PEER_CONNECTIONS: usize = 256;

fn kv(service: KvService) -> KvServer<KvService> {
    KvServer::new(service)
        .max_decoding_message_size(DECODE_BYTES_MAX)
        .max_encoding_message_size(DECODE_BYTES_MAX)
}

fn cluster(service: ClusterService) -> ClusterServer<ClusterService> {
    ClusterServer::new(service).max_decoding_message_size(DECODE_BYTES_MAX)
}

fn server(config: &Config) -> Server {
    Server::builder()
        .tcp_nodelay(true)
        .max_concurrent_streams(config.max_calls_per_connection)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(8 << 20)
}

macro_rules! reflection {
    ($name:ident, $build:ident, $version:ident) => {
        fn $name() -> tonic_reflection::server::$version::ServerReflectionServer<
            impl tonic_reflection::server::$version::ServerReflection,
        > {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(quorate_proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .$build()
                // The descriptor set is compiled into the program, and a test decodes it.
                .expect("the compiled descriptor set is valid")
        }
    };
}
reflection!(reflection_v1, build_v1, v1);
reflection!(reflection_v1alpha, build_v1alpha, v1alpha);

/// The names of the health service, for the reporter to begin with.
pub const HEALTH_SERVICES: [&str; 2] = [READY_SERVICE, LIVE_SERVICE];

/// Accepts connections up to a limit. One beyond it is closed at once: a client that is told no
/// tries another node, one that waits does not.
fn limited(
    listener: TcpListener,
    limit: usize,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> impl Stream<Item = std::io::Result<Counted>> {
    let (accepted, waiting) = mpsc::channel(ACCEPTED_WAITING);
    let permits = Arc::new(Semaphore::new(limit));
    tokio::spawn(async move {
        let mut refusing = false;
        loop {
            let stream = tokio::select! {
                () = stop.cancelled() => return,
                stream = listener.accept() => stream,
            };
            let stream = match stream {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, or the peer was gone already; neither ends the listener.
                    warn!(%error, "connection: not accepted");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let Ok(permit) = permits.clone().try_acquire_owned() else {
                metrics.connections_refused.inc();
                if !refusing {
                    warn!(limit, "connection: refused, all are in use (--max-connections)");
                }
                refusing = true;
                continue;
            };
            refusing = false;
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "connection: broken before it was served");
                continue;
            }
            metrics.connections.inc();
            let counted = Counted { stream, open: metrics.connections.clone(), _permit: permit };
            if accepted.send(Ok(counted)).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(waiting)
}

/// A connection that gives its place back when it ends.
pub struct Counted {
    stream: TcpStream,
    open: Gauge,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl Connected for Counted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
