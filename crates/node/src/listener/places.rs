//! Who may stay on a listener: a connection is new until its first request says whether a client or a
//! peer called, and then takes a place among its kind.
//!
//! Clients and peers have places of their own, so that neither can lock the other out. New
//! connections have a few for a short time: one that asks nothing by its deadline is closed, and when
//! all are taken the oldest makes room, so that sockets which never say anything keep nobody out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quorate_proto::v1::{Failure, Reason};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};
use tracing::{debug, warn};

use crate::config::Key;
use crate::metrics::Metrics;
use crate::service::context::{Context, HOPS};
use crate::service::outcome::Subject;

/// Connections of peers: four of each of the other nodes (control, bulk, snapshot, passed-on
/// calls), twice over while old ones end.
const PEERS_MAX: usize = 256;
/// Connections that have not asked anything yet. `limits.rs` counts their files.
pub(super) const NEW_MAX: usize = 256;
/// A connection asks something by then, or is closed.
const FIRST_REQUEST_PATIENCE: Duration = Duration::from_secs(10);

/// The places of one listener.
pub(super) struct Places {
    clients: Arc<Semaphore>,
    clients_max: usize,
    peers: Arc<Semaphore>,
    patience: Duration,
    metrics: Arc<Metrics>,
    /// Whether the last one was refused: that is logged once, not for each.
    refusing: AtomicBool,
}

impl Places {
    /// Room for so many clients, and for peers beside them.
    pub(super) fn new(clients_max: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            clients: Arc::new(Semaphore::new(clients_max)),
            clients_max,
            peers: Arc::new(Semaphore::new(PEERS_MAX)),
            patience: FIRST_REQUEST_PATIENCE,
            metrics,
            refusing: AtomicBool::new(false),
        }
    }

    /// With another deadline for the first request.
    #[cfg(test)]
    pub(super) fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The place of a connection that was just accepted.
    pub(super) fn enter(self: &Arc<Self>) -> Arc<Place> {
        self.metrics.connections.inc();
        Arc::new(Place {
            places: self.clone(),
            deadline: Instant::now() + self.patience,
            standing: Mutex::new(Standing::New),
            closed: CancellationToken::new(),
        })
    }

    fn refused(&self, sentence: &str) {
        self.metrics.connections_refused.inc();
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
                limit: self.clients_max as u64,
                knob: Key::MaxConnections.name().to_owned(),
                ..refused
            },
        }
    }

    /// The sentence for a client beyond the limit.
    fn full(&self, caller: Caller) -> String {
        match caller {
            Caller::Client | Caller::Probe => format!(
                "this node already serves {} client connections; the limit is --max-connections",
                self.clients_max
            ),
            Caller::Peer => format!("this node already serves {PEERS_MAX} connections of nodes"),
        }
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
    places: Arc<Places>,
    deadline: Instant,
    standing: Mutex<Standing>,
    closed: CancellationToken,
}

enum Standing {
    New,
    /// Among the clients or the peers.
    Held {
        _permit: OwnedSemaphorePermit,
    },
    Ended,
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

    /// Cancelled when the connection is to be closed.
    pub(super) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Closes the connection if it asked nothing by its deadline.
    pub(super) fn close_overdue(&self) {
        if self.is_new() {
            debug!(after = ?self.places.patience, "connection: closed, it asked nothing");
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
        if !matches!(before, Standing::Ended) {
            self.places.metrics.connections.dec();
        }
    }

    /// Takes a place for the caller, unless the connection has one.
    fn take(&self, caller: Caller) -> Result<(), String> {
        let mut standing = self.standing.lock();
        if !matches!(*standing, Standing::New) {
            return Ok(());
        }
        let room = match caller {
            Caller::Client | Caller::Probe => &self.places.clients,
            Caller::Peer => &self.places.peers,
        };
        match room.clone().try_acquire_owned() {
            Ok(permit) => {
                *standing = Standing::Held { _permit: permit };
                self.places.refusing.store(false, Ordering::Relaxed);
                Ok(())
            }
            Err(_) if caller == Caller::Probe => Ok(()),
            Err(_) => Err(self.places.full(caller)),
        }
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
                let failure = Subject::Attempt.told(place.places.refusal(caller, sentence));
                Err(Context::of(request.metadata()).status(&failure))
            }
        }
    }
}
