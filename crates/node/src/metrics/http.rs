//! The HTTP listener of `/metrics`, `/livez` and `/readyz`.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use super::Metrics;
use crate::exit::Fatal;

/// What knows whether the node is well.
pub trait HealthSource: Send + Sync + 'static {
    /// Whether the engine loops and the log writer move. Never depends on other nodes.
    ///
    /// # Errors
    /// What stands still, as a sentence.
    fn live(&self) -> Result<(), String>;

    /// Whether the node takes requests: storage open, caught up once, not draining. Never depends on
    /// the quorum of one shard.
    ///
    /// # Errors
    /// What it waits for, as a sentence.
    fn ready(&self) -> Result<(), String>;
}

struct Shared {
    metrics: Arc<Metrics>,
    health: Arc<dyn HealthSource>,
    /// Whether only this machine can connect: then a request for another host's name comes from a page
    /// in a browser here that was told a false address, and is refused.
    loopback: bool,
}

/// Opens the listener.
///
/// # Errors
/// The address is taken or cannot be bound.
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
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

async fn scrape(State(shared): State<Arc<Shared>>) -> Response {
    const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
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
        return (StatusCode::FORBIDDEN, "this listener serves only its own machine\n")
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
