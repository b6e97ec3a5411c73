//! The listeners: one for clients, and one for peers, which no client needs to reach.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use quorate_config::Config;
use quorate_proto::health::{LIVE_SERVICE, READY_SERVICE};
use quorate_proto::limits::DECODE_BYTES_MAX;
use quorate_proto::v1::cluster_server::ClusterServer;
use quorate_proto::v1::kv_server::KvServer;
use quorate_service::cluster::ClusterService;
use quorate_service::kv::KvService;
use quorate_transport::PeerService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::service::interceptor::InterceptedService;
use tonic::service::{Interceptor, Routes};
use tracing::{debug, warn};

use crate::exit::Fatal;
use crate::metrics::Metrics;

use super::bodies::{Budget, Tasks};
use super::calls::Calls;
use super::places::{self, Caller, Limits, Place, Places};

/// Interval of pings to a client without traffic.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// A client may give up all its calls at once, and begin and give up as many more, before the
/// server has looked at them. One with more resets than this many times its calls is disconnected:
/// it makes the server work for nothing.
const PENDING_RESETS_PER_CALL: usize = 2;
/// The bytes of one answer that wait for the socket although its reader has left room for them.
const SEND_BUFFER_BYTES: usize = 32 << 10;

/// The services of a listener.
#[derive(Clone)]
pub struct Services {
    /// Reads and writes of keys.
    pub kv: KvService,
    /// Map and status of the cluster.
    pub cluster: ClusterService,
    /// Messages of other nodes.
    pub peer: PeerService,
    /// The state of the gRPC health service.
    pub health: tonic_health::server::HealthReporter,
}

/// Opens a listener.
///
/// # Errors
/// The address is in use, or cannot be bound.
pub async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, Fatal> {
    TcpListener::bind(address).await.map_err(|error| {
        Fatal::AddressTaken(format!("cannot listen on {address}: {error} ({flag})"))
    })
}

/// Serves the client API until `stop`; then finishes the calls in flight. Nodes are not served
/// here.
pub async fn serve_clients(
    listener: TcpListener,
    services: Services,
    config: &Config,
    bodies: Arc<Budget>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let places = Arc::new(Places::new(Limits::of(config), metrics));
    let mut routes = Routes::builder();
    routes
        .add_service(of(Caller::Client, kv(services.kv)))
        .add_service(of(Caller::Client, cluster(services.cluster)))
        .add_service(of(
            Caller::Probe,
            tonic_health::pb::health_server::HealthServer::new(
                tonic_health::server::HealthService::from_health_reporter(services.health),
            ),
        ))
        .add_service(of(Caller::Client, reflection_v1()))
        .add_service(of(Caller::Client, reflection_v1alpha()));
    let calls_max = config.max_calls_per_connection;
    serve(listener, calls_max, routes.routes(), places, bodies, stop).await;
}

/// Serves peers, and calls that they pass on with a proof of the secret, until `stop`; then
/// finishes the calls in flight.
pub async fn serve_peers(
    listener: TcpListener,
    services: Services,
    config: &Config,
    bodies: Arc<Budget>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    // Every caller of this listener counts as a peer.
    let limits = Limits { clients: 0, ..Limits::of(config) };
    let places = Arc::new(Places::new(limits, metrics));
    let passed_on = places::admit_passed_on(services.peer.clone());
    let mut routes = Routes::builder();
    routes
        .add_service(InterceptedService::new(services.peer.into_server(), places::admit_proven()))
        .add_service(InterceptedService::new(kv(services.kv), passed_on.clone()))
        .add_service(InterceptedService::new(cluster(services.cluster), passed_on));
    let calls_max = config.max_calls_per_connection;
    serve(listener, calls_max, routes.routes(), places, bodies, stop).await;
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

/// The HTTP/2 server of a connection. Not tonic's: that one ends each call at the time-out that its
/// caller named, as CANCELLED, while a call here ends by its own deadline and says what is known of
/// its outcome.
fn server(calls_max: u32, bodies: Arc<Budget>) -> Server {
    let window = bodies.connection_window();
    let mut server = Server::new(Tasks(bodies));
    server
        .timer(TokioTimer::new())
        .max_concurrent_streams(calls_max)
        .max_pending_accept_reset_streams(Some(calls_max as usize * PENDING_RESETS_PER_CALL))
        .keep_alive_interval(Some(KEEPALIVE_INTERVAL))
        .keep_alive_timeout(Duration::from_secs(10))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(window)
        .max_send_buf_size(SEND_BUFFER_BYTES);
    server
}

type Server = http2::Builder<Tasks>;

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

/// The names of the health service, as initial entries of the reporter.
pub const HEALTH_SERVICES: [&str; 2] = [READY_SERVICE, LIVE_SERVICE];

/// Accepts connections and serves each separately, so that each can be closed by itself. A
/// connection is new at first; see [`places`].
async fn serve(
    listener: TcpListener,
    calls_max: u32,
    routes: Routes,
    places: Arc<Places>,
    bodies: Arc<Budget>,
    stop: CancellationToken,
) {
    let routes = routes.prepare();
    let server = server(calls_max, bodies.clone());
    let mut served = JoinSet::new();
    // In the order of their deadlines; some are no longer new.
    let mut newest: VecDeque<Arc<Place>> = VecDeque::new();
    loop {
        let due = newest.front().map(|place| place.deadline());
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                if let Some(place) = newest.pop_front() {
                    place.close_overdue();
                }
                continue;
            }
            Some(_) = served.join_next(), if !served.is_empty() => continue,
            stream = accept(&listener) => stream,
        };
        let Some((stream, caller)) = stream else { continue };
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
        let calls = Calls::new(routes.clone(), place.clone(), caller, bodies.clone());
        let connection = Placed::new(stream, place.clone());
        served.spawn(serve_one(server.clone(), calls, connection, place, stop.clone()));
    }
    drop(listener);
    while served.join_next().await.is_some() {}
}

/// Waits for a connection, and gives its caller's address too; `None` if it failed before it was
/// served.
async fn accept(listener: &TcpListener) -> Option<(TcpStream, IpAddr)> {
    match listener.accept().await {
        Ok((stream, caller)) => match stream.set_nodelay(true) {
            Ok(()) => Some((stream, caller.ip())),
            Err(error) => {
                debug!(%error, "connection: broken before it was served");
                None
            }
        },
        Err(error) => {
            // Out of descriptors, or the peer has disconnected; neither ends the listener.
            warn!(%error, "connection: not accepted");
            tokio::time::sleep(Duration::from_millis(10)).await;
            None
        }
    }
}

/// Serves one connection until it ends. To close it in order, its client gets a GOAWAY, and the
/// calls in flight end first.
async fn serve_one(
    server: Server,
    calls: Calls,
    connection: Placed,
    place: Arc<Place>,
    stop: CancellationToken,
) {
    let calls = TowerToHyperService::new(calls);
    let serving = server.serve_connection(TokioIo::new(connection), calls);
    let mut serving = std::pin::pin!(serving);
    let leaves = async {
        tokio::select! {
            () = stop.cancelled() => {}
            () = place.until_leaving() => {}
        }
    };
    let overdue = async {
        place.leaving().cancelled().await;
        place.until_overdue().await;
    };
    let (mut leaves, mut overdue) = (std::pin::pin!(leaves), std::pin::pin!(overdue));
    let (mut left, mut closed) = (false, false);
    let ended = loop {
        tokio::select! {
            ended = &mut serving => break ended,
            () = &mut leaves, if !left => {
                left = true;
                serving.as_mut().graceful_shutdown();
            }
            () = &mut overdue, if !closed => {
                closed = true;
                place.close();
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection: failed");
    }
}

/// A connection that frees its place when it ends, and ends when its place is closed.
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
