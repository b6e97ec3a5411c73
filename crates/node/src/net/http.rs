//! The HTTP listener of `/metrics`, `/livez` and `/readyz`.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use quorate_service::health::Health;
use tokio::net::TcpListener;

use super::bounded::BoundedListener;
use crate::exit::Fatal;
use crate::metrics::Metrics;

/// Source of the verdicts of `/livez` and `/readyz`.
pub trait HealthSource: Send + Sync + 'static {
    /// Whether the engine loops and the log writer make progress. Never depends on other nodes.
    ///
    /// # Errors
    /// The part that is stuck, as a sentence.
    fn live(&self) -> Result<(), String>;

    /// Whether the node accepts requests: storage open, caught up once, not draining. Never depends
    /// on the quorum of one shard.
    ///
    /// # Errors
    /// The reason, as a sentence.
    fn ready(&self) -> Result<(), String>;
}

impl HealthSource for Health {
    fn live(&self) -> Result<(), String> {
        self.check_live()
    }

    fn ready(&self) -> Result<(), String> {
        self.check_ready()
    }
}

/// Cap of connections: more than scrapers and probes need at the same time.
pub const CONNECTIONS: usize = 64;
/// Lifetime of a connection: longer than a scrape, and than the usual pause between two.
const LIFETIME: Duration = Duration::from_secs(90);

struct Shared {
    metrics: Arc<Metrics>,
    health: Arc<dyn HealthSource>,
    /// Whether only this machine can connect. A request with the name of another host is then
    /// rejected: it comes from a web page in a local browser that used DNS rebinding.
    loopback: bool,
}

/// Opens the listener.
///
/// # Errors
/// The address is in use or cannot be bound.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Fatal> {
    TcpListener::bind(address).await.map_err(|error| {
        Fatal::AddressTaken(format!(
            "cannot listen on {address} for metrics: {error} (--metrics-listen)"
        ))
    })
}

/// Serves until `stop` is done.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    health: Arc<dyn HealthSource>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let loopback = listener.local_addr()?.ip().is_loopback();
    let shared = Arc::new(Shared { metrics, health, loopback });
    let router = Router::new()
        .route("/metrics", get(scrape))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .layer(middleware::from_fn_with_state(shared.clone(), refuse_foreign_host))
        .with_state(shared);
    let listener = BoundedListener::new(listener, CONNECTIONS, LIFETIME);
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

async fn scrape(State(shared): State<Arc<Shared>>) -> Response {
    const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    // Set here, because a node that does not start yet has nothing else that sets them.
    let node = &shared.metrics.node;
    node.ready.set(i64::from(shared.health.ready().is_ok()));
    node.live.set(i64::from(shared.health.live().is_ok()));
    match shared.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn live(State(shared): State<Arc<Shared>>) -> Response {
    verdict(shared.health.live())
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    verdict(shared.health.ready())
}

fn verdict(result: Result<(), String>) -> Response {
    match result {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
    .into_response()
}

async fn refuse_foreign_host(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    if shared.loopback && !names_this_machine(request.headers()) {
        return (StatusCode::FORBIDDEN, "this listener accepts only requests to its own machine\n")
            .into_response();
    }
    next.run(request).await
}

fn names_this_machine(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _)) => v6,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use quorate_service::metrics::Method;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    /// A node with the given faults.
    #[derive(Default)]
    struct Node {
        not_live: Mutex<Option<String>>,
        not_ready: Mutex<Option<String>>,
    }

    impl HealthSource for Node {
        fn live(&self) -> Result<(), String> {
            self.not_live.lock().clone().map_or(Ok(()), Err)
        }

        fn ready(&self) -> Result<(), String> {
            self.not_ready.lock().clone().map_or(Ok(()), Err)
        }
    }

    async fn get(address: SocketAddr, path: &str, host: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    #[tokio::test]
    async fn it_serves_metrics_and_verdicts_to_its_own_machine() {
        let metrics = Arc::new(Metrics::new());
        let node = Arc::new(Node::default());
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let health: Arc<dyn HealthSource> = node.clone();
        let server = tokio::spawn(serve(listener, metrics.clone(), health, async {
            let _ = stopped.await;
        }));

        metrics.service.requests.observe(Method::Put, 0, None, Duration::from_millis(1));
        metrics.queue("inbox").bytes.set(3);
        let (code, text) = get(address, "/metrics", "localhost").await;
        assert_eq!(code, 200);
        for line in [
            r#"quorate_requests_total{method="Put",code="OK",level="none"} 1"#,
            r#"quorate_request_seconds_count{method="Put"} 1"#,
            r#"quorate_queue_bytes{queue="inbox"} 3"#,
            concat!(r#"quorate_build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""} 1"#),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");

        assert_eq!(get(address, "/livez", "127.0.0.1:1").await, (200, "ok\n".to_owned()));
        *node.not_ready.lock() = Some("waiting for node 2".to_owned());
        let (_, text) = get(address, "/metrics", "localhost").await;
        assert!(text.contains("\nquorate_ready 0\n"), "{text}");
        assert!(text.contains("\nquorate_live 1\n"), "{text}");
        let waiting = (503, "waiting for node 2\n".to_owned());
        assert_eq!(get(address, "/readyz", "[::1]:80").await, waiting);
        assert_eq!(get(address, "/livez", "localhost:80").await.0, 200);
        *node.not_live.lock() = Some("the log writer is stuck".to_owned());
        assert_eq!(get(address, "/livez", "localhost").await.0, 503);
        assert!(get(address, "/metrics", "localhost").await.1.contains("\nquorate_live 0\n"));
        assert_eq!(get(address, "/other", "localhost").await.0, 404);
        assert_eq!(get(address, "/metrics", "evil.example").await.0, 403);

        stop.send(()).unwrap();
        server.await.unwrap().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refused = bind(taken.local_addr().unwrap()).await.unwrap_err();
        assert_eq!(refused.code(), 13);
    }
}
