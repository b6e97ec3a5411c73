//! Who may stay on a listener, and how long: a connection is new until its first request says whether
//! a client or a peer called, and then takes a place among its kind.
//!
//! Clients and peers have places of their own, so that neither can lock the other out. New
//! connections have a few for a short time: one that asks nothing by its deadline is closed, and when
//! all are taken the oldest makes room, so that sockets which never say anything keep nobody out.
//!
//! A client keeps its place while it makes use of it: a connection without a call in flight is closed
//! after a while, one that is old is closed when its calls have ended, and where no place is free the
//! client that was idle for longest yields its own. Peers keep theirs.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use quorate_config::{Config, Key};
use quorate_proto::limits::TIMEOUT_MAX;
use quorate_proto::v1::{Failure, Reason};
use quorate_service::context::{Context, HOPS};
use quorate_service::outcome::Subject;
use rand::Rng;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};
use tracing::{debug, warn};

use crate::metrics::Metrics;

/// Connections of peers: four of each of the other nodes (control, bulk, snapshot, passed-on
/// calls), twice over while old ones end.
const PEERS_MAX: usize = 256;
/// Connections that have not asked anything yet. `limits.rs` counts their files.
pub(super) const NEW_MAX: usize = 256;
/// Connections that have yielded their places and are not closed yet. `limits.rs` counts their files.
const YIELDED_MAX: u64 = 64;
/// A connection asks something by then, or is closed.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to leave once it was asked to: the longest call, and a little.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(TIMEOUT_MAX.as_secs() + 5);
/// How long one may take that has no call in flight and whose place another one has.
const YIELD_TIMEOUT: Duration = Duration::from_secs(1);
/// Idle times and ages differ by so much of the setting from connection to connection, so that clients
/// that came together do not all come back together.
const JITTER: f64 = 0.1;

/// What the places of a listener are limited to.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// How many clients have a place.
    pub(super) clients: usize,
    /// A client without a call in flight for so long is asked to leave.
    pub(super) idle: Duration,
    /// A client whose connection is so old is asked to leave.
    pub(super) age: Duration,
    /// A connection asks something by then, or is closed.
    pub(super) patience: Duration,
}

impl Limits {
    /// Those of a listener for clients.
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
    /// The clients that have a place.
    clients: Mutex<HashMap<u64, Arc<Place>>>,
    peers: Arc<Semaphore>,
    /// The id of the next place.
    next: AtomicU64,
    yielded: AtomicU64,
    metrics: Arc<Metrics>,
    closed: Closed,
    /// Whether the last one was refused: that is logged once, not for each.
    refusing: AtomicBool,
}

/// The counters of connections that were asked to leave, by cause.
struct Closed {
    idle: Counter,
    aged: Counter,
    yielded: Counter,
}

impl Places {
    /// Room for so many clients, and for peers beside them.
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
            refusing: AtomicBool::new(false),
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
        })
    }

    fn refused(&self, sentence: &str) {
        self.metrics.node.connections_refused.inc();
        if !self.refusing.swap(true, Ordering::Relaxed) {
            warn!("connection: refused, {sentence}");
        }
    }

    /// The failure of a call that has no place. Clients are told that other nodes may have one; who is
    /// itself asked to pass a call on has no other way to this node.
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

    /// Makes room among the clients: the one that was idle for longest gives its place away, unless so
    /// many have that are not closed yet. Returns whether there is room now.
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

/// Whose request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// A client.
    Client,
    /// A client that asks how the node is: it is answered where no place is free as well, or a busy
    /// node would look like a dead one.
    Probe,
    /// Another node.
    Peer,
}

/// The place of one connection. It ends with the connection, though calls may hold it longer.
pub(super) struct Place {
    id: u64,
    places: Arc<Places>,
    deadline: Instant,
    /// How long the connection may be idle.
    idle: Duration,
    ages_at: Instant,
    /// Locked after the clients of the listener where both are.
    standing: Mutex<Standing>,
    /// Locked last.
    activity: Mutex<Activity>,
    /// Told when the connection has a place among the clients.
    settled: Notify,
    leaving: CancellationToken,
    closed: CancellationToken,
}

enum Standing {
    New,
    /// Among the clients.
    Client,
    /// It was among the clients, and its place is another one's.
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

    /// Cancelled when the connection is to be closed, whatever is in flight.
    pub(super) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Cancelled when the connection is to be closed in order, and when it is gone.
    pub(super) fn leaving(&self) -> &CancellationToken {
        &self.leaving
    }

    /// Counts a call.
    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        self.activity.lock().calls += 1;
        InFlight(self.clone())
    }

    /// Since when no call is in flight; `None` while one is.
    fn idle_since(&self) -> Option<Instant> {
        let activity = self.activity.lock();
        (activity.calls == 0).then_some(activity.idle_since)
    }

    /// Waits until the connection is to be closed in order, or is gone.
    pub(super) async fn until_leaving(&self) {
        while !self.leaving.is_cancelled() {
            let look_at = self.asks_to_leave(Instant::now());
            tokio::select! {
                () = self.leaving.cancelled() => {}
                () = self.settled.notified() => {}
                () = sleep_until(look_at) => {}
            }
        }
    }

    /// Asks a client to leave that is idle or old. Returns when to look again.
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

    /// Waits as long as a connection may take to be closed in order.
    pub(super) async fn until_overdue(&self) {
        let has_yielded = matches!(*self.standing.lock(), Standing::Yielded);
        if has_yielded {
            sleep(YIELD_TIMEOUT).await;
            // A call may have begun before the client heard that it is to leave.
            if self.idle_since().is_some() {
                return;
            }
        }
        sleep(LEAVE_TIMEOUT).await;
    }

    /// Closes the connection, whatever is in flight.
    pub(super) fn close(&self) {
        debug!("connection: closed, it did not leave when it was asked to");
        self.closed.cancel();
    }

    /// Closes the connection if it asked nothing by its deadline.
    pub(super) fn close_overdue(&self) {
        if self.is_new() {
            debug!(after = ?self.places.limits.patience, "connection: closed, it asked nothing");
            self.places.metrics.node.connections_refused.inc();
            self.closed.cancel();
        }
    }

    /// Closes the connection, new as it is, because newer ones need the room.
    pub(super) fn make_room(&self) {
        self.places.refused("too many are open that ask nothing");
        self.closed.cancel();
    }

    /// The connection is gone.
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

    /// Another connection has the place from now on.
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

    /// Takes a place for the caller, unless the connection has one.
    fn take(self: &Arc<Self>, caller: Caller) -> Result<(), String> {
        if !self.is_new() {
            return Ok(());
        }
        let taken = match caller {
            Caller::Client | Caller::Probe => self.take_of_clients(),
            Caller::Peer => self.take_of_peers(),
        };
        match taken {
            true => {
                self.places.refusing.store(false, Ordering::Relaxed);
                Ok(())
            }
            false if caller == Caller::Probe => Ok(()),
            false => Err(self.places.full(caller)),
        }
    }

    fn take_of_clients(self: &Arc<Self>) -> bool {
        let mut clients = self.places.clients.lock();
        // Another request of the connection may have been first, or it is gone.
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

/// What stands before a service: each request of a new connection takes a place for it, or is refused.
/// A call that another node passed on is that node's, whatever service it is for.
pub(super) fn admit(
    caller: Caller,
) -> impl Fn(Request<()>) -> Result<Request<()>, Status> + Clone + Send + Sync + 'static {
    move |request| {
        let Some(place) = request.extensions().get::<Arc<Place>>() else { return Ok(request) };
        let passed_on = request.metadata().contains_key(HOPS);
        let caller = if passed_on { Caller::Peer } else { caller };
        match place.take(caller) {
            Ok(()) => Ok(request),
            Err(sentence) => {
                place.places.refused(&sentence);
                // Whether the call is a write with a session stands in its message, which is not
                // read here: what is said is true of every write.
                let failure = Subject::Attempt.report(place.places.refusal(caller, sentence));
                Err(Context::of(request.metadata()).status(&failure))
            }
        }
    }
}
