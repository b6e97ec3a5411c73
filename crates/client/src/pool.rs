//! Connections: one per address, opened when needed. Names are resolved again each time, and
//! failing connections are skipped while others work.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quorate_pipeline::Lane;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};

use crate::flow::Flow;
use crate::rpc;

/// First wait after a connection could not be made; it doubles up to [`GATE_MAX`].
const GATE_MIN: Duration = Duration::from_millis(100);
const GATE_MAX: Duration = Duration::from_secs(5);

/// How long a node that did not answer, or rejected a call as overloaded, is skipped while there
/// are others.
const SUSPECT: Duration = Duration::from_secs(1);

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// The connections of all addresses ever used. There are few, because addresses are from the
/// cluster map.
#[derive(Debug)]
pub(crate) struct Pool {
    connect_timeout: Duration,
    all: Mutex<HashMap<String, Arc<Connection>>>,
}

impl Pool {
    pub fn new(connect_timeout: Duration) -> Pool {
        Pool { connect_timeout, all: Mutex::default() }
    }

    /// The connection to an address, which need not be open yet.
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

/// Preference of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fitness {
    /// It is open, or was never tried.
    Good,
    /// Last resort: its last attempt failed, or its node recently did not answer or rejected a
    /// call.
    Poor,
}

/// The connection to one address.
#[derive(Debug)]
pub(crate) struct Connection {
    address: String,
    endpoint: Result<Endpoint, String>,
    state: Mutex<State>,
    /// Held while one task connects, so that the others wait for its result instead of connecting
    /// too.
    connecting: tokio::sync::Mutex<()>,
    probing: AtomicBool,
    /// Whether the node is too old for streams of operations.
    serves_no_lanes: AtomicBool,
    /// The calls under way at the node.
    flow: Flow,
}

#[derive(Debug, Default)]
struct State {
    channel: Option<Channel>,
    /// Counts channels, so that a late failure of an old one does not drop its successor.
    generation: u64,
    /// The stream of operations, on the channel of this generation.
    lane: Option<(u64, Lane)>,
    failed: Option<Failed>,
    suspect_until: Option<Instant>,
    /// When the node last answered a call.
    heard: Option<Instant>,
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
            serves_no_lanes: AtomicBool::new(false),
            flow: Flow::default(),
        }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Timeout of opening the connection.
    pub fn connect_timeout(&self) -> Duration {
        let endpoint = self.endpoint.as_ref().ok();
        endpoint.and_then(Endpoint::get_connect_timeout).unwrap_or_default()
    }

    /// Whether to choose it now. A failed connection is retried in the background after its wait,
    /// so that no call is delayed by another failure.
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

    /// The channel and its generation; connects first if there is none.
    ///
    /// # Errors
    /// A sentence, if the connection could not be made, so that nothing was sent.
    pub async fn channel(&self) -> Result<(Channel, u64), String> {
        if let Some(open) = self.open_channel() {
            return Ok(open);
        }
        let endpoint = self.endpoint.as_ref().map_err(String::clone)?;
        let begun = Instant::now();
        let _one = self.connecting.lock().await;
        if let Some(open) = self.open_channel() {
            return Ok(open);
        }
        if let Some(error) = self.failed_since(begun) {
            return Err(error);
        }
        match endpoint.connect().await {
            Ok(channel) => Ok(self.connected(channel)),
            Err(error) => Err(self.connect_failed(&error)),
        }
    }

    /// The stream of operations on this channel, opened if there is none; none if the node does not
    /// serve streams.
    pub fn lane(&self, channel: &Channel, generation: u64) -> Option<Lane> {
        if self.serves_no_lanes.load(Ordering::Relaxed) {
            return None;
        }
        let mut state = self.state.lock();
        let known = state.lane.as_ref().filter(|(of, lane)| *of == generation && lane.is_open());
        if let Some((_, lane)) = known {
            return Some(lane.clone());
        }
        let lane = Lane::open(rpc::kv(channel.clone()), MetadataMap::new());
        state.lane = Some((generation, lane.clone()));
        Some(lane)
    }

    /// Notes that the node does not serve streams of operations.
    pub fn serves_no_lanes(&self) {
        self.serves_no_lanes.store(true, Ordering::Relaxed);
    }

    /// Whether the last attempt to connect failed.
    pub fn is_unreachable(&self) -> bool {
        self.state.lock().failed.is_some()
    }

    /// The calls under way at the node.
    pub fn flow(&self) -> &Flow {
        &self.flow
    }

    /// Whether the node has answered nothing since then: it is not slow, it is silent.
    pub fn is_silent_since(&self, since: Instant) -> bool {
        self.state.lock().heard.is_none_or(|heard| heard < since)
    }

    /// Notes that a node answered.
    pub fn answered(&self) {
        let mut state = self.state.lock();
        state.heard = Some(Instant::now());
        if state.suspect_until.is_some() {
            state.suspect_until = None;
        }
    }

    /// Notes that a node accepted a request and did not answer in time.
    pub fn pass_over(&self) {
        self.state.lock().suspect_until = Some(Instant::now() + SUSPECT);
    }

    /// Notes that a node rejects this connection as one too many, and closes it.
    pub fn turned_away(&self, generation: u64) {
        self.pass_over();
        self.broken(generation);
    }

    /// Drops a broken channel; the next call connects again.
    pub fn broken(&self, generation: u64) {
        let mut state = self.state.lock();
        if state.generation == generation {
            state.channel = None;
            state.lane = None;
        }
    }

    fn open_channel(&self) -> Option<(Channel, u64)> {
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
            tracing::info!(address = self.address, "connection: open again");
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
                tracing::warn!(
                    address = self.address,
                    error,
                    "connection: failed; other endpoints are used and this one is retried"
                );
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
            // The outcome is recorded in the state.
            let _ = this.channel().await;
            this.probing.store(false, Ordering::Release);
        });
    }
}
