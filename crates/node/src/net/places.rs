//! Admission of connections to a listener, and their lifetimes: a connection is new until its first
//! request shows that the caller is a client, or its proof that it is a peer; then it gets a place
//! of that kind.
//!
//! Clients and peers have separate places, so that neither can block the other, and none is given
//! for what a caller says of itself. New connections have a few places for a short time: one that
//! is still new at its deadline is closed, and when all places are used the oldest is closed, so
//! that silent sockets and strangers do not block others.
//!
//! A client keeps its place while it uses it: a connection without a call in flight is closed after
//! its idle time, an old one is closed when its calls have ended, and if no place is free the
//! client that was idle for longest yields its place. Peers keep theirs.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use quorate_config::{Config, Key};
use quorate_proto::limits::TIMEOUT_MAX;
use quorate_proto::v1::{Failure, Reason};
use quorate_service::context::Context;
use quorate_service::metrics::ServiceMetrics;
use quorate_service::outcome::Subject;
use quorate_transport::{CALL_PROOF, Entrance, PeerService};
use rand::Rng;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Request, Status};
use tracing::{debug, warn};

use crate::metrics::Metrics;

/// Connections of peers: three of each other node (control, bulk, snapshot), one with the calls and
/// one with the streams of operations that it passes on, and twice as many while old ones end.
pub const PEERS_MAX: usize = 192;
/// Connections whose callers have no place so far. `limits.rs` counts their files.
pub const NEW_MAX: usize = 256;
/// Connections that have yielded their places and are not closed yet. `limits.rs` counts their
/// files.
pub const YIELDED_MAX: u64 = 64;
/// A connection that is still new is closed after this time.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may take to close after it was asked to: the longest call, and a margin.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(TIMEOUT_MAX.as_secs() + 5);
/// The same for a connection without a call in flight that has yielded its place.
const YIELD_TIMEOUT: Duration = Duration::from_secs(1);
/// Fraction of the setting by which idle times and ages differ between connections, so that clients
/// that connected together do not all reconnect together.
const JITTER: f64 = 0.1;

/// The limits of a listener.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// Places of clients.
    pub(super) clients: usize,
    /// A client is asked to close after this time without a call in flight.
    pub(super) idle: Duration,
    /// A client is asked to close its connection at this age.
    pub(super) age: Duration,
    /// A connection without a request is closed after this time.
    pub(super) patience: Duration,
}

impl Limits {
    /// The limits of a listener for clients.
    pub(super) fn of(config: &Config) -> Self {
        Self {
            clients: config.max_connections,
            idle: config.max_connection_idle,
            age: config.max_connection_age,
            patience: FIRST_REQUEST_TIMEOUT,
        }
    }
}

/// The places of one listener.
pub(super) struct Places {
    limits: Limits,
    /// Clients that have a place.
    clients: Mutex<HashMap<u64, Arc<Place>>>,
    peers: Arc<Semaphore>,
    /// The id of the next place.
    next: AtomicU64,
    yielded: AtomicU64,
    metrics: Arc<Metrics>,
    closed: Closed,
}

/// The counters of connections that were asked to close, by cause.
struct Closed {
    idle: Counter,
    aged: Counter,
    yielded: Counter,
}

impl Places {
    /// Places for the clients of `limits`, and for peers.
    pub(super) fn new(limits: Limits, metrics: Arc<Metrics>) -> Self {
        Self {
            limits,
            clients: Mutex::default(),
            peers: Arc::new(Semaphore::new(PEERS_MAX)),
            next: AtomicU64::new(0),
            yielded: AtomicU64::new(0),
            closed: Closed {
                idle: metrics.connections_closed("idle"),
                aged: metrics.connections_closed("aged"),
                yielded: metrics.connections_closed("yielded"),
            },
            metrics,
        }
    }

    /// The place of a connection that was just accepted.
    pub(super) fn enter(self: &Arc<Self>) -> Arc<Place> {
        self.metrics.node.connections.inc();
        let now = Instant::now();
        let Limits { idle, age, patience, .. } = self.limits;
        let factor = rand::rng().random_range(1.0 - JITTER..=1.0 + JITTER);
        Arc::new(Place {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            places: self.clone(),
            deadline: now + patience,
            idle: idle.mul_f64(factor),
            ages_at: now + age.mul_f64(factor),
            standing: Mutex::new(Standing::New),
            activity: Mutex::new(Activity { calls: 0, idle_since: now }),
            settled: Notify::new(),
            leaving: CancellationToken::new(),
            closed: CancellationToken::new(),
            proven: OnceLock::new(),
        })
    }

    fn refused(&self, sentence: &str) {
        self.metrics.node.connections_refused.inc();
        warn!(why = sentence, "connection: rejected");
    }

    /// The failure of a call without a place. It reports to clients that other nodes may have one;
    /// a node that forwards a call has no other way to this node.
    fn refusal(&self, caller: Caller, sentence: String) -> Failure {
        let refused = Failure::of(Reason::Overloaded, sentence);
        match caller {
            Caller::Peer => refused,
            Caller::Client | Caller::Probe => Failure {
                only_this_node: true,
                limit: self.limits.clients as u64,
                config_key: Key::MaxConnections.name().to_owned(),
                ..refused
            },
        }
    }

    /// The sentence for a caller beyond the limit.
    fn full(&self, caller: Caller) -> String {
        match caller {
            Caller::Client | Caller::Probe => format!(
                "this node already serves {} client connections, and none is idle; the limit is \
                 --{}",
                self.limits.clients,
                Key::MaxConnections
            ),
            Caller::Peer => format!("this node already serves {PEERS_MAX} connections of nodes"),
        }
    }

    /// Makes room for a client: the client that was idle for longest yields its place, unless
    /// [`YIELDED_MAX`] such connections are not closed yet. Returns whether there is room now.
    fn make_room(&self, clients: &mut HashMap<u64, Arc<Place>>) -> bool {
        if clients.len() < self.limits.clients {
            return true;
        }
        if self.yielded.load(Ordering::Relaxed) >= YIELDED_MAX {
            return false;
        }
        let idle = clients.values().filter_map(|place| Some((place.idle_since()?, place.id)));
        let Some((_, id)) = idle.min() else { return false };
        let Some(place) = clients.remove(&id) else { return false };
        place.yield_place();
        true
    }
}

/// The kind of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// A client.
    Client,
    /// A client that asks for the health of the node: it is answered even if no place is free,
    /// otherwise a busy node would look like a dead one.
    Probe,
    /// Another node.
    Peer,
}

/// The place of one connection. It ends with the connection, though calls may keep it longer.
pub(super) struct Place {
    id: u64,
    places: Arc<Places>,
    deadline: Instant,
    /// How long the connection may be idle.
    idle: Duration,
    ages_at: Instant,
    /// Locked after the clients of the listener if both are locked.
    standing: Mutex<Standing>,
    /// Locked last.
    activity: Mutex<Activity>,
    /// Notified when the connection gets a place among the clients.
    settled: Notify,
    leaving: CancellationToken,
    closed: CancellationToken,
    /// The proof of the first call that a node has passed on here. Such a node sends the same with
    /// every call, so that it is compared and not computed again.
    proven: OnceLock<MetadataValue<Ascii>>,
}

enum Standing {
    New,
    /// Among the clients.
    Client,
    /// It was among the clients, and another one has its place now.
    Yielded,
    /// Among the peers.
    Peer {
        _permit: OwnedSemaphorePermit,
    },
    Ended,
}

struct Activity {
    /// Calls in flight.
    calls: usize,
    /// The end of the last call, or the beginning of the connection.
    idle_since: Instant,
}

/// A call in flight, until it is dropped.
pub(super) struct InFlight(Arc<Place>);

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut activity = self.0.activity.lock();
        activity.calls -= 1;
        activity.idle_since = Instant::now();
    }
}

impl Place {
    /// When the connection is closed if it is still new.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether the connection is open and has no place among clients or peers.
    pub(super) fn is_new(&self) -> bool {
        matches!(*self.standing.lock(), Standing::New)
    }

    /// Whether the connection has a place of peers.
    pub(super) fn is_peer(&self) -> bool {
        matches!(*self.standing.lock(), Standing::Peer { .. })
    }

    /// Cancelled when the connection is to be closed regardless of calls in flight.
    pub(super) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Cancelled when the connection is to be closed in order, and when it has ended.
    pub(super) fn leaving(&self) -> &CancellationToken {
        &self.leaving
    }

    /// Where the calls of the connection are counted.
    pub(super) fn metrics(&self) -> &Arc<ServiceMetrics> {
        &self.places.metrics.service
    }

    /// Counts a call.
    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        self.activity.lock().calls += 1;
        InFlight(self.clone())
    }

    /// The end of the last call; `None` while a call is in flight.
    fn idle_since(&self) -> Option<Instant> {
        let activity = self.activity.lock();
        (activity.calls == 0).then_some(activity.idle_since)
    }

    /// Waits until the connection is to be closed in order, or has ended.
    pub(super) async fn until_leaving(&self) {
        while !self.leaving.is_cancelled() {
            let check_at = self.asks_to_leave(Instant::now());
            tokio::select! {
                () = self.leaving.cancelled() => {}
                () = self.settled.notified() => {}
                () = sleep_until(check_at) => {}
            }
        }
    }

    /// Asks an idle or old client to close. Returns the time of the next check.
    fn asks_to_leave(&self, now: Instant) -> Instant {
        if !matches!(*self.standing.lock(), Standing::Client) {
            return now + self.idle;
        }
        let idle_until = self.idle_since().unwrap_or(now) + self.idle;
        let cause = match () {
            () if self.ages_at <= now => &self.places.closed.aged,
            () if idle_until <= now => &self.places.closed.idle,
            () => return idle_until.min(self.ages_at),
        };
        cause.inc();
        self.leaving.cancel();
        now + self.idle
    }

    /// Waits for the longest time that a connection may take to close in order.
    pub(super) async fn until_overdue(&self) {
        let has_yielded = matches!(*self.standing.lock(), Standing::Yielded);
        if has_yielded {
            sleep(YIELD_TIMEOUT).await;
            // A call may have begun before the client received the request to close.
            if self.idle_since().is_some() {
                return;
            }
        }
        sleep(LEAVE_TIMEOUT).await;
    }

    /// Closes the connection regardless of calls in flight.
    pub(super) fn close(&self) {
        debug!("connection: closed by force, the client did not close it in time");
        self.closed.cancel();
    }

    /// Closes the connection if it is still new at its deadline.
    pub(super) fn close_overdue(&self) {
        if self.is_new() {
            debug!(after = ?self.places.limits.patience, "connection: closed, it sent no request");
            self.places.metrics.node.connections_refused.inc();
            self.closed.cancel();
        }
    }

    /// Closes the connection, which is new, because newer ones need its place.
    pub(super) fn make_room(&self) {
        self.places.refused("too many connections without a request");
        self.closed.cancel();
    }

    /// Frees the place: the connection has ended.
    pub(super) fn leave(&self) {
        let before = std::mem::replace(&mut *self.standing.lock(), Standing::Ended);
        match before {
            Standing::Ended => return,
            Standing::Client => drop(self.places.clients.lock().remove(&self.id)),
            Standing::Yielded => drop(self.places.yielded.fetch_sub(1, Ordering::Relaxed)),
            Standing::New | Standing::Peer { .. } => {}
        }
        self.places.metrics.node.connections.dec();
        self.leaving.cancel();
    }

    /// Yields the place to another connection.
    fn yield_place(&self) {
        let mut standing = self.standing.lock();
        if matches!(*standing, Standing::Client) {
            *standing = Standing::Yielded;
            self.places.yielded.fetch_add(1, Ordering::Relaxed);
            self.places.closed.yielded.inc();
            drop(standing);
            self.leaving.cancel();
        }
    }

    /// Gets a place for the caller, unless the connection has one.
    fn take(self: &Arc<Self>, caller: Caller) -> Result<(), String> {
        if !self.is_new() {
            return Ok(());
        }
        let taken = match caller {
            Caller::Client | Caller::Probe => self.take_of_clients(),
            Caller::Peer => self.take_of_peers(),
        };
        match taken {
            true => Ok(()),
            false if caller == Caller::Probe => Ok(()),
            false => Err(self.places.full(caller)),
        }
    }

    /// Gets a place for the caller of this request, unless the connection has one.
    ///
    /// # Errors
    /// The status for the caller when no place is free.
    fn admit(self: &Arc<Self>, caller: Caller, request: &Request<()>) -> Result<(), Status> {
        self.take(caller).map_err(|sentence| {
            self.places.refused(&sentence);
            // Only its message shows whether the call is a write with a session, and it is not
            // read here: the reported outcome is true of every write.
            let failure = Subject::Attempt.report(self.places.refusal(caller, sentence));
            Context::of(request.metadata()).status(&failure)
        })
    }

    fn take_of_clients(self: &Arc<Self>) -> bool {
        let mut clients = self.places.clients.lock();
        // Another request of the connection may have been first, or the connection has ended.
        if !self.is_new() {
            return true;
        }
        if !self.places.make_room(&mut clients) {
            return false;
        }
        let mut standing = self.standing.lock();
        if matches!(*standing, Standing::New) {
            *standing = Standing::Client;
            clients.insert(self.id, self.clone());
            self.settled.notify_one();
        }
        true
    }

    fn take_of_peers(&self) -> bool {
        let Ok(permit) = self.places.peers.clone().try_acquire_owned() else { return false };
        let mut standing = self.standing.lock();
        if matches!(*standing, Standing::New) {
            *standing = Standing::Peer { _permit: permit };
        }
        true
    }
}

/// The interceptor of a service: a request of a new connection gets a place for it, or is rejected.
pub(super) fn admit(
    caller: Caller,
) -> impl Fn(Request<()>) -> Result<Request<()>, Status> + Clone + Send + Sync + 'static {
    move |request| {
        let Some(place) = request.extensions().get::<Arc<Place>>() else { return Ok(request) };
        place.admit(caller, &request)?;
        Ok(request)
    }
}

/// The interceptor of the service for streams of nodes: a connection gets a place among those of
/// nodes once its caller has proved the secret. Until then it is a new one, which has little time
/// and yields to newer ones: strangers keep no place from a node.
pub(super) fn admit_proven()
-> impl Fn(Request<()>) -> Result<Request<()>, Status> + Clone + Send + Sync + 'static {
    move |mut request| {
        if let Some(place) = request.extensions().get::<Arc<Place>>().cloned() {
            let enter = move || {
                let taken = place.take(Caller::Peer);
                taken.inspect_err(|sentence| place.places.refused(sentence))
            };
            request.extensions_mut().insert(Entrance::new(enter));
        }
        Ok(request)
    }
}

/// The interceptor of a service whose calls come from nodes, which pass them on: each has to prove
/// the secret of the cluster to `gate` before it gets a place, or anything else.
pub(super) fn admit_passed_on(
    gate: PeerService,
) -> impl Fn(Request<()>) -> Result<Request<()>, Status> + Clone + Send + Sync + 'static {
    move |request| {
        let place = request.extensions().get::<Arc<Place>>();
        let given = request.metadata().get(CALL_PROOF);
        let known = place.and_then(|place| place.proven.get());
        if known.is_none() || known != given {
            gate.check_call(request.metadata())?;
        }
        if let Some(place) = place {
            if let Some(given) = given {
                place.proven.get_or_init(|| given.clone());
            }
            place.admit(Caller::Peer, &request)?;
        }
        Ok(request)
    }
}
