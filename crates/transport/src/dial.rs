//! Opening a connection to a peer, and saying in words why it could not be opened.

use std::error::Error;
use std::io;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint, Server};

/// How long a connection may take, from resolving the name to the end of the HTTP/2 handshake.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// A peer that answers no ping for interval and timeout together is gone.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// What a receiver lets a sender have under way before it has read any of it: enough for two of the
/// largest frames, little enough that a receiver which stops reading stops the sender.
const WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// Why a connection could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialError {
    /// For people.
    pub sentence: String,
    /// The host is there and nothing listens: the process has ended.
    pub refused: bool,
}

/// Opens one HTTP/2 connection to `address` (`host:port`). The name is resolved anew at each call.
/// The connection closes when the channel and its streams are dropped.
///
/// # Errors
/// [`DialError`], within two seconds.
pub async fn connect(address: &str) -> Result<Channel, DialError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| DialError { sentence: error_sentence(&error), refused: false })?
        .connect_timeout(CONNECT_DEADLINE)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    match tokio::time::timeout(CONNECT_DEADLINE, endpoint.connect()).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => {
            Err(DialError { sentence: error_sentence(&error), refused: is_refused(&error) })
        }
        Err(_) => Err(DialError {
            sentence: format!("not connected within {CONNECT_DEADLINE:?}"),
            refused: false,
        }),
    }
}

/// A server with the settings that links between nodes need: no delay, raised windows, pings.
pub fn peer_server() -> Server {
    Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
}

/// What a peer's status says, with the cause where the transport hides it.
pub fn status_sentence(status: &tonic::Status) -> String {
    match status.source() {
        Some(source) => error_sentence(source),
        None if status.message().is_empty() => format!("status {:?}", status.code()),
        None => status.message().to_owned(),
    }
}

/// The innermost cause: the outer ones say no more than "transport error".
fn error_sentence(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map_or_else(String::new, ToString::to_string)
}

fn is_refused(error: &(dyn Error + 'static)) -> bool {
    causes(error)
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::ConnectionRefused)
}

fn causes<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'e (dyn Error + 'static)| (*error).source())
}
