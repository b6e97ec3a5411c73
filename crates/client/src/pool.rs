//! Connections: one to each address, made when needed, resolved again each time, kept out of the way
//! while they fail.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

/// The first wait after a connection could not be made; it doubles up to [`GATE_MAX`].
const GATE_MIN: Duration = Duration::from_millis(100);
const GATE_MAX: Duration = Duration::from_secs(5);

/// How long a node that was silent, or turned a call away, is passed over while there are others.
const SUSPECT: Duration = Duration::from_secs(1);

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Every address ever used. Addresses come from the cluster map, so that there are few.
#[derive(Debug)]
pub(crate) struct Pool {
    connect_timeout: Duration,
    all: Mutex<HashMap<String, Arc<Connection>>>,
}

impl Pool {
    pub fn new(connect_timeout: Duration) -> Pool {
        Pool { connect_timeout, all: Mutex::default() }
    }

    /// The connection to an address, which need not stand yet.
    pub fn at(&self, address: &str) -> Arc<Connection> {
        let mut all = self.all.lock();
        if let Some(connection) = all.get(address) {
            return Arc::clone(connection);
        }
        let connection = Arc::new(Connection::new(address, self.connect_timeout));
        all.insert(address.to_owned(), Arc::clone(&connection));
        connection
    }
}

/// Whether a connection is worth choosing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fitness {
    /// It stands, or was never tried.
    Good,
    /// Its last attempt failed, or its node was silent or turned a call away a moment ago: the last
    /// resort.
    Poor,
}

/// The connection to one address.
#[derive(Debug)]
pub(crate) struct Connection {
    address: String,
    endpoint: Result<Endpoint, String>,
    state: Mutex<State>,
    /// Held while one task connects, so that the others wait for its result instead of connecting too.
    connecting: tokio::sync::Mutex<()>,
    probing: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    channel: Option<Channel>,
    /// Counts channels, so that a late failure of an old one does not drop its successor.
    generation: u64,
    failed: Option<Failed>,
    suspect_until: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Failed {
    error: String,
    until: Instant,
    gate: Duration,
}

impl Connection {
    fn new(address: &str, connect_timeout: Duration) -> Connection {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .and_then(|e| {
                e.connect_timeout(connect_timeout)
                    .tcp_nodelay(true)
                    .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
                    .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                    .keep_alive_while_idle(true)
                    .user_agent(concat!("quorate-client/", env!("CARGO_PKG_VERSION")))
            })
            .map_err(|e| format!("`{address}` is not an address: {e}"));
        Connection {
            address: address.to_owned(),
            endpoint,
            state: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            probing: AtomicBool::new(false),
        }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// How long a connection may take to be made.
    pub fn connect_patience(&self) -> Duration {
        let endpoint = self.endpoint.as_ref().ok();
        endpoint.and_then(Endpoint::get_connect_timeout).unwrap_or_default()
    }

    /// Whether to choose it now. A connection that failed is tried again in the background once its
    /// wait is over, so that no call pays for finding out that it still fails.
    pub fn fitness(self: &Arc<Self>) -> Fitness {
        let state = self.state.lock();
        if let Some(failed) = &state.failed {
            if Instant::now() >= failed.until {
                self.probe();
            }
            return Fitness::Poor;
        }
        match state.suspect_until {
            Some(until) if Instant::now() < until => Fitness::Poor,
            _ => Fitness::Good,
        }
    }

    /// The channel and its generation, connecting first where none stands.
    ///
    /// # Errors
    /// A sentence: the connection could not be made, so that nothing was sent.
    pub async fn channel(&self) -> Result<(Channel, u64), String> {
        if let Some(standing) = self.standing() {
            return Ok(standing);
        }
        let endpoint = self.endpoint.as_ref().map_err(String::clone)?;
        let begun = Instant::now();
        let _one = self.connecting.lock().await;
        if let Some(standing) = self.standing() {
            return Ok(standing);
        }
        if let Some(error) = self.failed_since(begun) {
            return Err(error);
        }
        match endpoint.connect().await {
            Ok(channel) => Ok(self.connected(channel)),
            Err(error) => Err(self.connect_failed(&error)),
        }
    }

    /// Whether the last attempt to connect failed.
    pub fn is_unreachable(&self) -> bool {
        self.state.lock().failed.is_some()
    }

    /// Notes that a node answered.
    pub fn answered(&self) {
        let mut state = self.state.lock();
        if state.suspect_until.is_some() {
            state.suspect_until = None;
        }
    }

    /// Notes that a node took a request and was silent for too long.
    pub fn pass_over(&self) {
        self.state.lock().suspect_until = Some(Instant::now() + SUSPECT);
    }

    /// Notes that a node has no place for this connection, which is given up.
    pub fn turned_away(&self, generation: u64) {
        self.pass_over();
        self.broken(generation);
    }

    /// Drops a channel that broke; the next call connects anew.
    pub fn broken(&self, generation: u64) {
        let mut state = self.state.lock();
        if state.generation == generation {
            state.channel = None;
        }
    }

    fn standing(&self) -> Option<(Channel, u64)> {
        let state = self.state.lock();
        Some((state.channel.clone()?, state.generation))
    }

    /// The error of an attempt that another task made while this one waited for it.
    fn failed_since(&self, begun: Instant) -> Option<String> {
        let state = self.state.lock();
        let failed = state.failed.as_ref()?;
        (failed.until > begun + failed.gate).then(|| failed.error.clone())
    }

    fn connected(&self, channel: Channel) -> (Channel, u64) {
        let mut state = self.state.lock();
        if state.failed.take().is_some() {
            tracing::info!(address = self.address, "connected again");
        }
        state.suspect_until = None;
        state.generation += 1;
        state.channel = Some(channel.clone());
        (channel, state.generation)
    }

    fn connect_failed(&self, error: &dyn std::error::Error) -> String {
        let mut cause = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let error = format!("{} cannot be reached: {cause}", self.address);
        let mut state = self.state.lock();
        let gate = match &state.failed {
            Some(failed) => (failed.gate * 2).min(GATE_MAX),
            None => {
                tracing::warn!("{error}; other endpoints are used and this one is tried again");
                GATE_MIN
            }
        };
        state.failed = Some(Failed { error: error.clone(), until: Instant::now() + gate, gate });
        error
    }

    fn probe(self: &Arc<Self>) {
        if self.probing.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = Arc::clone(self);
        tokio::spawn(async move {
            // The outcome is noted in the state; there is nobody else to tell.
            let _ = this.channel().await;
            this.probing.store(false, Ordering::Release);
        });
    }
}
