//! The listeners: one for clients, one for peers, or one for both.

mod places;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use quorate_proto::limits::DECODE_BYTES_MAX;
use quorate_proto::v1::cluster_server::ClusterServer;
use quorate_proto::v1::kv_server::KvServer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::config::Config;
use crate::exit::Fatal;
use crate::health_probe::{LIVE_SERVICE, READY_SERVICE};
use crate::metrics::Metrics;
use crate::service::cluster::ClusterService;
use crate::service::kv::KvService;
use crate::transport::PeerService;

use places::{Caller, Place, Places};

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
    let places = Arc::new(Places::new(config.max_connections, metrics));
    let incoming = accepted(listener, places, stop.clone());
    let routes = server(config)
        .add_service(of(Caller::Client, kv(services.kv)))
        .add_service(of(Caller::Client, cluster(services.cluster)))
        .add_service(of(
            Caller::Probe,
            tonic_health::pb::health_server::HealthServer::new(
                tonic_health::server::HealthService::from_health_reporter(services.health),
            ),
        ))
        .add_optional_service(with_peers.then(|| of(Caller::Peer, services.peer.into_server())))
        .add_service(of(Caller::Client, reflection_v1()))
        .add_service(of(Caller::Client, reflection_v1alpha()));
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
    // Whoever calls here counts as a peer.
    let incoming = accepted(listener, Arc::new(Places::new(0, metrics)), stop.clone());
    server(config)
        .add_service(of(Caller::Peer, services.peer.into_server()))
        .add_service(of(Caller::Peer, kv(services.kv)))
        .add_service(of(Caller::Peer, cluster(services.cluster)))
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
}

/// A service whose callers take places of this kind.
fn of<S>(caller: Caller, service: S) -> InterceptedService<S, impl Interceptor + Clone> {
    InterceptedService::new(service, places::admit(caller))
}

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

/// Accepts connections. Each is new at first; see [`places`].
fn accepted(
    listener: TcpListener,
    places: Arc<Places>,
    stop: CancellationToken,
) -> impl Stream<Item = std::io::Result<Placed>> {
    let (accepted, waiting) = mpsc::channel(ACCEPTED_WAITING);
    tokio::spawn(async move {
        // In the order of their deadlines; some are no longer new.
        let mut newest: VecDeque<Arc<Place>> = VecDeque::new();
        loop {
            let due = newest.front().map(|place| place.deadline());
            let stream = tokio::select! {
                () = stop.cancelled() => return,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    if let Some(place) = newest.pop_front() {
                        place.close_overdue();
                    }
                    continue;
                }
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
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "connection: broken before it was served");
                continue;
            }
            if newest.len() >= places::NEW_MAX {
                newest.retain(|place| place.is_new());
            }
            if newest.len() >= places::NEW_MAX
                && let Some(oldest) = newest.pop_front()
            {
                oldest.make_room();
            }
            let place = places.enter();
            newest.push_back(place.clone());
            if accepted.send(Ok(Placed::new(stream, place))).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(waiting)
}

/// A connection that gives its place back when it ends, and ends when its place is closed.
struct Placed {
    stream: TcpStream,
    place: Arc<Place>,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Placed {
    fn new(stream: TcpStream, place: Arc<Place>) -> Self {
        let closed = Box::pin(place.closed().clone().cancelled_owned());
        Self { stream, place, closed }
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        self.place.leave();
    }
}

impl Connected for Placed {
    type ConnectInfo = Arc<Place>;

    fn connect_info(&self) -> Arc<Place> {
        self.place.clone()
    }
}

impl AsyncRead for Placed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        // The server always waits for bytes of a new connection, so it is woken here.
        if self.closed.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Placed {
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
